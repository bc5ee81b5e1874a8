//! Block status: which sectors of the disk are data, and which are holes that read as zeros.
//!
//! A sector is data if any image of the chain has it, whatever it reads as. The walk goes from sector to sector, looks down
//! the chain for each as a read would, and describes runs of them; neighbours that are alike become one extent. Where it has
//! to wait, for a bitmap or for the file system, its [`Piece`] says where it goes on. It ends early, which the requester
//! must expect, when the answer is full or the search was long.

use crate::below::Seen;
use crate::cache::Lookup;
use crate::core::{Core, MAX_SECTORS};
use crate::image::{Image, Layout};
use crate::io::{Owner, Queue, plain_op};
use crate::record::{
    FLAG_REQ_ONE, Op, OpKind, STATUS_HOLE, STATUS_ZERO, StatusExtent, TdRequest, max_status_extents,
};
use crate::request::Piece;

/// What is in no image.
const NOTHING: u32 = STATUS_HOLE | STATUS_ZERO;

/// Most places at which a request looks, so that none keeps the others from being served. A chain of 30 images with the
/// usual blocks takes fewer for the longest request of an NBD client.
const MAX_LOOKS: u32 = 1 << 16;

/// Blocks, or stretches, after the one whose bitmap is needed now that are looked at for bitmaps to fetch along. Even a cache of the least
/// size has room for these.
const READ_AHEAD: u32 = 8;

/// What is known of a block status request's sectors so far.
#[derive(Debug)]
pub(crate) struct Description {
    /// Records of extents, as they go to the buffer.
    records: Vec<u8>,
    last: Option<StatusExtent>,
    /// Most extents that there may be.
    limit: u32,
    /// The first sector after those that are to be described.
    end: u64,
    /// Byte offset in the request's region.
    buffer: u32,
    looks: u32,
}

impl Description {
    pub(crate) fn new(request: &TdRequest) -> Self {
        Self {
            records: Vec::new(),
            last: None,
            limit: if request.flags & FLAG_REQ_ONE != 0 {
                1
            } else {
                max_status_extents(request.sectors)
            },
            end: request.sector + u64::from(request.sectors),
            buffer: request.buffer,
            looks: 0,
        }
    }

    /// Extents that are described.
    pub(crate) fn extents(&self) -> i32 {
        (self.records.len() / StatusExtent::BYTES as usize) as i32
    }

    /// Adds the next `sectors` sectors. False if there is no room for them.
    fn add(&mut self, sectors: u32, flags: u32) -> bool {
        let bytes = StatusExtent::BYTES as usize;
        let mut extent = StatusExtent { sectors, flags };
        match self.last {
            Some(last) if last.flags == flags => {
                extent.sectors += last.sectors;
                self.records.truncate(self.records.len() - bytes);
            }
            _ if self.records.len() == self.limit as usize * bytes => return false,
            _ => {}
        }
        self.last = Some(extent);
        let words = extent.encode();
        self.records
            .extend(words.iter().flat_map(|word| word.to_le_bytes()));
        true
    }
}

/// Outcome of a look at the first sectors of a piece.
enum Look {
    /// So many of them are like this.
    Like(u32, u32),
    /// So many of them are not in the leaf.
    Below(u32),
    /// The piece was left to someone who will go on with it.
    Wait,
}

impl Core {
    /// Goes on with a block status request: the first sectors of `piece` are those to be described next.
    pub(crate) fn describe(&mut self, queue: &mut Queue, mut piece: Piece) {
        while piece.count > 0 {
            let look = self.look(queue, piece);
            let Some(request) = self.requests.get_mut(piece.request as usize) else {
                return;
            };
            let Some(description) = request.description.as_deref_mut() else {
                return;
            };
            description.looks += 1;
            piece = match look {
                Look::Wait => return,
                Look::Below(count) => Piece {
                    below: true,
                    count,
                    ..piece
                },
                Look::Like(count, flags) => next(description, piece, count, flags),
            };
        }
        self.answer(queue, piece);
    }

    /// Looks at a piece, in the leaf or below it.
    fn look(&mut self, queue: &mut Queue, piece: Piece) -> Look {
        if piece.below {
            return self.look_below(queue, piece);
        }
        let leaf = self.leaf();
        let Image {
            file,
            layout: Layout::Blocks(blocks),
            ..
        } = leaf
        else {
            let file = leaf.file;
            return self.seek_hole(queue, piece, file);
        };
        let (_, first) = blocks.block_of(piece.sector);
        let piece = piece.part(0, piece.count.min(blocks.sectors_per_block - first));
        let Some(place) = blocks.place_of(*file, piece.sector) else {
            return Look::Below(piece.count);
        };
        if place.full {
            return Look::Like(piece.count, 0);
        }
        let Some(index) = self.bitmap(queue, piece, &place) else {
            self.load_ahead(queue, piece);
            return Look::Wait;
        };
        let Some(bits) = self.cache.bits(index) else {
            return Look::Wait;
        };
        match bits.run(first, piece.count) {
            (true, count) => Look::Like(count, 0),
            (false, count) => Look::Below(count),
        }
    }

    /// Looks at a piece that the leaf doesn't have.
    fn look_below(&mut self, queue: &mut Queue, piece: Piece) -> Look {
        if self.chain.len() == 1 {
            return Look::Like(piece.count, NOTHING);
        }
        let count = self.below.rest_of_stretch(piece.sector);
        let piece = piece.part(0, piece.count.min(count));
        let Some((seen, count)) = self.seen_below(queue, piece) else {
            self.search_on(queue, piece);
            return Look::Wait;
        };
        let Seen::In(level) = seen else {
            return Look::Like(count, NOTHING);
        };
        match self.chain.get(level) {
            Some(Image {
                file,
                layout: Layout::Flat,
                ..
            }) => {
                let file = *file;
                self.seek_hole(queue, piece.part(0, count), file)
            }
            _ => Look::Like(count, 0),
        }
    }

    /// Has the bitmaps of the leaf's blocks after that of `piece` loaded too, as far as there is memory for them now.
    fn load_ahead(&mut self, queue: &mut Queue, piece: Piece) {
        let end = self.end_of_description(piece);
        let mut sector = piece.sector;
        for _ in 0..READ_AHEAD {
            let Some(Image {
                file,
                layout: Layout::Blocks(blocks),
                ..
            }) = self.chain.first()
            else {
                return;
            };
            let per_block = u64::from(blocks.sectors_per_block);
            sector = (sector / per_block + 1) * per_block;
            if sector >= end {
                return;
            }
            let Some(place) = blocks.place_of(*file, sector) else {
                continue;
            };
            if !place.full
                && matches!(self.cache.lookup(place.block), Lookup::Missing)
                && !self.load_bitmap(queue, &place, Vec::new())
            {
                return;
            }
        }
    }

    /// Has the stretches after that of `piece` looked at too, as far as there is memory for that now.
    fn search_on(&mut self, queue: &mut Queue, piece: Piece) {
        let end = self.end_of_description(piece);
        let mut sector = piece.sector;
        for _ in 0..READ_AHEAD {
            sector += u64::from(self.below.rest_of_stretch(sector));
            let (stretch, _) = self.below.stretch_of(sector);
            if sector >= end || !self.search_ahead(queue, stretch) {
                return;
            }
        }
    }

    /// The first sector after those that the request of `piece` is about.
    fn end_of_description(&self, piece: Piece) -> u64 {
        self.requests
            .get(piece.request as usize)
            .and_then(|request| request.description.as_deref())
            .map_or(0, |description| description.end)
    }

    /// Asks the file system whether the first sectors of a piece are a hole of the file in which they lie as they are.
    fn seek_hole(&mut self, queue: &mut Queue, piece: Piece, file: u16) -> Look {
        let piece = self.park(piece);
        let bytes = u64::from(piece.count.min(MAX_SECTORS)) * 512;
        queue.push(
            plain_op(OpKind::SeekHole, file, piece.sector * 512, bytes),
            Owner::SeekHole(piece),
        );
        Look::Wait
    }

    /// Takes in what the file system says of a piece.
    pub(crate) fn hole_found(&mut self, queue: &mut Queue, piece: Piece, result: i32) {
        if result < 0 {
            return self.part_done(piece.request, result);
        }
        if let Some(request) = self.requests.get_mut(piece.request as usize)
            && let Some(description) = request.description.as_deref_mut()
        {
            let flags = if result & 1 == 1 { NOTHING } else { 0 };
            // Whatever the host says, the walk goes on and ends.
            let count = (result.cast_unsigned() >> 1).clamp(1, piece.count);
            let piece = next(description, piece, count, flags);
            self.describe(queue, piece);
        }
        self.part_done(piece.request, 0);
    }

    /// Copies the answer to where it is wanted, as soon as there is staging memory for it.
    fn answer(&mut self, queue: &mut Queue, piece: Piece) {
        let Some(request) = self.requests.get_mut(piece.request as usize) else {
            return;
        };
        let Some(description) = request.description.as_deref() else {
            return;
        };
        let bytes = description.records.as_slice();
        let Some(chunk) = queue.staging.allocate(bytes.len()) else {
            let piece = self.park(piece);
            self.starved.push_back(piece);
            return;
        };
        queue.staging.chunk(chunk)[..bytes.len()].copy_from_slice(bytes);
        request.parts += 1;
        let op = Op {
            region: request.region,
            buffer: description.buffer,
            source_offset: u64::from(chunk.offset()),
            ..plain_op(OpKind::CopyToBuffer, 0, 0, bytes.len() as u64)
        };
        let owner = Owner::Answer {
            request: piece.request,
            chunk,
        };
        queue.push(op, owner);
    }
}

/// Describes the first `count` sectors of `piece`. Returns what comes after them: no sectors if the description is over.
fn next(description: &mut Description, piece: Piece, count: u32, flags: u32) -> Piece {
    let sector = piece.sector + u64::from(count);
    let goes_on = description.add(count, flags) && description.looks < MAX_LOOKS;
    Piece {
        below: false,
        sector,
        // A request has fewer than 2^32 sectors.
        count: if goes_on {
            (description.end - sector) as u32
        } else {
            0
        },
        ..piece
    }
}
