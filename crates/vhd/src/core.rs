//! The request path: a request becomes an I/O plan, completions move it on.
//!
//! Reads are in `read.rs`, and what lies below the leaf in `search.rs`; `discard.rs` and `status.rs` have what their names
//! say, and `bitmaps.rs` what all of them need. A request is cut where blocks and chain levels meet; neighbouring parts that stay neighbours in a file are joined
//! again. A part that must wait (for a bitmap, for new space) is parked as a [`Piece`] and started over when it may go on.
//! Nothing here awaits: allocation extents and commits are tasks (`extend.rs`, `commit.rs`) that the path only asks for.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use slab::Slab;

use crate::batmap_state::BatmapState;
use crate::below::Below;
use crate::cache::{BitmapCache, Content, Key};
use crate::commit::CommitState;
use crate::discard::Releases;
use crate::error::errno;
use crate::extend::Allocator;
use crate::image::{Blocks, Image, Layout, Place};
use crate::io::{Mark, Owner, Queue, Transfer, plain_op};
use crate::planted::{self, Bug};
use crate::record::{
    Completion, FLAG_FAST_ZERO, FLAG_FUA, Finished, Op, OpKind, RequestKind, StatusExtent,
    TdRequest, max_status_extents,
};
use crate::request::{Piece, Request, Source};
use crate::sector_bitmap::SectorBitmap;
use crate::status::Description;

/// Sectors in the largest request that the engine takes: 1 GiB, so that a transfer's length fits a completion.
pub(crate) const MAX_SECTORS: u32 = 1 << 21;

/// So many parts that found no memory try again in vain before the others needn't.
const RETRIES_IN_VAIN: usize = 64;

/// The state of an open virtual disk.
#[derive(Debug)]
pub(crate) struct Core {
    /// The images, leaf first.
    pub(crate) chain: Vec<Image>,
    pub(crate) read_only: bool,
    /// No new requests are taken.
    pub(crate) closing: bool,
    pub(crate) requests: Slab<Request>,
    pub(crate) finished: VecDeque<Finished>,
    pub(crate) cache: BitmapCache,
    /// How the images below the leaf are looked at.
    pub(crate) below: Below,
    /// Bitmaps, or sectors of them, that are on their way.
    pub(crate) loading: usize,
    pub(crate) allocator: Allocator,
    pub(crate) commit: CommitState,
    /// Parts that wait for staging memory or room in the bitmap cache.
    pub(crate) starved: VecDeque<Piece>,
    pub(crate) releases: Releases,
    /// Number of the next request.
    pub(crate) next_sequence: u64,
}

impl Core {
    /// The state of a chain, which has at least its leaf.
    pub(crate) fn new(chain: Vec<Image>, read_only: bool, bitmap_cache_bytes: usize) -> Self {
        Self {
            allocator: Allocator::new(&chain[0]),
            below: Below::new(&chain),
            loading: 0,
            chain,
            read_only,
            closing: false,
            requests: Slab::new(),
            finished: VecDeque::new(),
            cache: BitmapCache::new(bitmap_cache_bytes),
            commit: CommitState::default(),
            starved: VecDeque::new(),
            releases: Releases::default(),
            next_sequence: 0,
        }
    }

    /// The leaf: the only image that is written.
    pub(crate) fn leaf(&mut self) -> &mut Image {
        // A core is made with its leaf and never loses it.
        &mut self.chain[0]
    }

    /// The leaf's blocks, if it has a BAT.
    pub(crate) fn leaf_blocks(&mut self) -> Option<&mut Blocks> {
        match &mut self.leaf().layout {
            Layout::Blocks(blocks) => Some(blocks),
            Layout::Flat => None,
        }
    }

    /// Whether closing has anything to write: the image was changed, or has a fault that other programs mind.
    pub(crate) fn needs_close(&mut self) -> bool {
        let has_fault = self.leaf_blocks().is_some_and(|blocks| blocks.has_fault());
        self.commit.modified || has_fault && !self.read_only
    }

    /// The leaf's batmap, if it has one.
    pub(crate) fn leaf_batmap(&mut self) -> Option<&mut BatmapState> {
        self.leaf_blocks()?.batmap.as_deref_mut()
    }

    /// Takes on a request.
    pub(crate) fn submit(&mut self, queue: &mut Queue, request: &TdRequest) {
        match self.check(request) {
            Ok(kind) => self.start(queue, kind, request, None, None),
            Err(errno) => self.finished.push_back(Finished {
                tag: request.tag,
                status: -errno,
            }),
        }
    }

    /// Takes on a request of a job's, whose status `waiter` gets; a write takes its data from `source`.
    pub(crate) fn submit_for_job(
        &mut self,
        queue: &mut Queue,
        request: &TdRequest,
        source: Option<Source>,
        waiter: Rc<Cell<Option<i32>>>,
    ) {
        match self.check(request) {
            Ok(kind) => self.start(queue, kind, request, source, Some(waiter)),
            Err(errno) => waiter.set(Some(-errno)),
        }
    }

    fn check(&mut self, request: &TdRequest) -> Result<RequestKind, i32> {
        if self.closing {
            return Err(errno::ESHUTDOWN);
        }
        let kind = RequestKind::from_raw(request.kind).ok_or(errno::EOPNOTSUPP)?;
        match kind {
            RequestKind::Flush => return Ok(kind),
            RequestKind::Read | RequestKind::BlockStatus => {}
            RequestKind::Write | RequestKind::Discard | RequestKind::WriteZeroes => {
                if self.read_only {
                    return Err(errno::EPERM);
                }
            }
        }
        let end = request
            .sector
            .checked_add(u64::from(request.sectors))
            .ok_or(errno::EINVAL)?;
        let in_range = request.sectors > 0 && end <= self.leaf().sectors;
        let buffer_bytes = match kind {
            RequestKind::Read | RequestKind::Write if request.sectors > MAX_SECTORS => None,
            RequestKind::Read | RequestKind::Write => Some(request.sectors * 512),
            RequestKind::BlockStatus => {
                Some(max_status_extents(request.sectors) * StatusExtent::BYTES)
            }
            _ => Some(0),
        };
        let in_memory = buffer_bytes
            .is_some_and(|bytes| bytes == 0 || request.buffer.checked_add(bytes).is_some());
        if in_range && in_memory {
            Ok(kind)
        } else {
            Err(errno::EINVAL)
        }
    }

    fn start(
        &mut self,
        queue: &mut Queue,
        kind: RequestKind,
        request: &TdRequest,
        source: Option<Source>,
        waiter: Option<Rc<Cell<Option<i32>>>>,
    ) {
        self.next_sequence += 1;
        let index = self.requests.insert(Request {
            tag: request.tag,
            kind,
            flags: request.flags,
            sequence: self.next_sequence - 1,
            region: request.region,
            // One part for this function itself, so that the request can't end before all its parts are known.
            parts: 1,
            status: 0,
            description: (kind == RequestKind::BlockStatus)
                .then(|| Box::new(Description::new(request))),
            source,
            waiter,
        }) as u32;
        if kind == RequestKind::Flush {
            self.join_commit(index);
            return;
        }
        let piece = Piece {
            request: index,
            below: false,
            sector: request.sector,
            count: request.sectors,
            // Without data the buffer means nothing, and must not overflow.
            buffer: if kind == RequestKind::Read || kind == RequestKind::Write {
                request.buffer
            } else {
                0
            },
        };
        self.advance(queue, piece);
        self.part_done(index, 0);
    }

    /// Starts or restarts a part of a request.
    fn advance(&mut self, queue: &mut Queue, piece: Piece) {
        match self.requests.get(piece.request as usize) {
            // Another part failed: no use in going on.
            Some(request) if request.status != 0 => {}
            Some(request) => match request.kind {
                RequestKind::Read => self.read(queue, piece),
                RequestKind::Write => self.write(queue, piece),
                RequestKind::BlockStatus => self.describe(queue, piece),
                _ => self.erase(queue, piece),
            },
            None => {}
        }
    }

    /// Lets a part wait: it counts as one of its request's until [`Core::resume`].
    pub(crate) fn park(&mut self, piece: Piece) -> Piece {
        if let Some(request) = self.requests.get_mut(piece.request as usize) {
            request.parts += 1;
        }
        piece
    }

    /// Restarts parked parts.
    pub(crate) fn resume(&mut self, queue: &mut Queue, pieces: Vec<Piece>) {
        for piece in pieces {
            self.advance(queue, piece);
            self.part_done(piece.request, 0);
        }
    }

    /// Fails parked parts with a (positive) errno value.
    pub(crate) fn fail(&mut self, pieces: Vec<Piece>, errno: i32) {
        for piece in pieces {
            self.part_done(piece.request, -errno);
        }
    }

    /// Gives parts another chance that found no memory. When several find none again, the others can't expect any either
    /// before something ends that is in flight; and there may be a million of them, one for each block of a disk.
    pub(crate) fn retry_starved(&mut self, queue: &mut Queue) {
        let mut in_vain = 0;
        for _ in 0..self.starved.len() {
            let Some(piece) = self.starved.pop_front() else {
                return;
            };
            let others = self.starved.len();
            self.advance(queue, piece);
            self.part_done(piece.request, 0);
            in_vain += usize::from(self.starved.len() > others);
            if in_vain == RETRIES_IN_VAIN {
                return;
            }
        }
    }

    /// Fails the parts that found no memory, with a (positive) errno value.
    pub(crate) fn fail_starved(&mut self, errno: i32) {
        let starved = std::mem::take(&mut self.starved);
        self.fail(starved.into(), errno);
    }

    fn write(&mut self, queue: &mut Queue, piece: Piece) {
        let leaf = self.leaf();
        if let Layout::Flat = leaf.layout {
            let file = leaf.file;
            return self.transfer(queue, OpKind::Write, file, piece.sector * 512, piece, None);
        }
        self.each_block(queue, piece, Self::write_block);
    }

    /// Calls `handle` for the part of `piece` in each block of the leaf, with the block's place if it is in this file.
    pub(crate) fn each_block(
        &mut self,
        queue: &mut Queue,
        piece: Piece,
        handle: fn(&mut Self, &mut Queue, Piece, u32, Option<Place>),
    ) {
        let mut done = 0;
        while done < piece.count {
            let Some(Image {
                file,
                layout: Layout::Blocks(blocks),
                ..
            }) = self.chain.first()
            else {
                return;
            };
            let sector = piece.sector + u64::from(done);
            let (block, first) = blocks.block_of(sector);
            let count = (piece.count - done).min(blocks.sectors_per_block - first);
            let place = blocks.place_of(*file, sector);
            handle(self, queue, piece.part(done, count), block, place);
            done += count;
        }
    }

    pub(crate) fn write_block(
        &mut self,
        queue: &mut Queue,
        piece: Piece,
        block: u32,
        place: Option<Place>,
    ) {
        let Some(place) = place else {
            return match self.allocate(block) {
                // Its place is known now.
                Allocated::Yes => self.advance(queue, piece),
                Allocated::Wait => {
                    let piece = self.park(piece);
                    self.allocator.waiting.push(piece);
                }
                Allocated::Starved => {
                    let piece = self.park(piece);
                    self.starved.push_back(piece);
                }
            };
        };
        if place.full {
            return self.transfer(queue, OpKind::Write, place.file, place.data, piece, None);
        }
        let Some(index) = self.bitmap(queue, piece, &place) else {
            return;
        };
        let Some(bits) = self.cache.bits(index) else {
            return;
        };
        let mark = if bits.run(place.first, piece.count) == (true, piece.count) {
            None
        } else {
            self.cache.pin(index);
            if planted::is(Bug::BitBeforeData) {
                self.cache.mark(index, place.first, piece.count);
            }
            Some(Mark {
                entry: index,
                first: place.first,
                count: piece.count,
            })
        };
        self.transfer(queue, OpKind::Write, place.file, place.data, piece, mark);
    }

    /// Finds a place for a block of the leaf that has none.
    fn allocate(&mut self, block: u32) -> Allocated {
        let Some(slot) = self.allocator.peek() else {
            return Allocated::Wait;
        };
        let Some(blocks) = self.leaf_blocks() else {
            return Allocated::Wait;
        };
        let (born_full, bytes) = (blocks.born_full(), blocks.bitmap_bytes());
        if !born_full
            && self
                .cache
                .insert(
                    Key::Block(block),
                    Content::Bitmap(SectorBitmap::clear(bytes)),
                    None,
                )
                .is_none()
        {
            self.commit.wanted = true;
            return Allocated::Starved;
        }
        let Some(blocks) = self.leaf_blocks() else {
            return Allocated::Wait;
        };
        blocks.allocate(block, slot);
        if born_full {
            blocks.set_full(block);
        }
        self.allocator.take();
        self.commit.allocated(block, slot);
        Allocated::Yes
    }

    /// Makes zeros of a part's memory.
    pub(crate) fn zero(&mut self, queue: &mut Queue, piece: Piece) {
        self.transfer(queue, OpKind::ZeroBuffer, 0, 0, piece, None);
    }

    /// Moves a part's data, joining it to the part before where they are neighbours in file and memory.
    pub(crate) fn transfer(
        &mut self,
        queue: &mut Queue,
        kind: OpKind,
        file: u16,
        offset: u64,
        piece: Piece,
        mark: Option<Mark>,
    ) {
        let Some(request) = self.requests.get_mut(piece.request as usize) else {
            return;
        };
        let length = u64::from(piece.count) * 512;
        // The other kinds move no bytes.
        let moves = matches!(kind, OpKind::Read | OpKind::Write);
        let expected = if moves { length } else { 0 };
        let source = request.source.filter(|_| kind == OpKind::Write);
        if mark.is_none()
            && let Some(last) = queue.ops.back().copied()
            && last.kind == kind
            && last.file == file
            && last.region == request.region
            && (u64::from(last.buffer) + last.length == u64::from(piece.buffer)
                || !moves && kind != OpKind::ZeroBuffer)
            && (kind == OpKind::ZeroBuffer || last.offset + last.length == offset)
            && let Some(Owner::Transfer(transfer)) = queue.owner_mut(last.id)
            && transfer.request == piece.request
            && transfer.mark.is_none()
            && source.is_none()
        {
            transfer.expected += expected;
            if let Some(last) = queue.ops.back_mut() {
                last.length += length;
            }
            return;
        }
        request.parts += 1;
        let op = match source {
            Some(source) => Op {
                source_file: source.file,
                source_offset: source.offset(piece.sector),
                ..plain_op(OpKind::CopyRange, file, offset, length)
            },
            None => Op {
                fast: request.flags & FLAG_FAST_ZERO != 0,
                region: request.region,
                buffer: piece.buffer,
                ..plain_op(kind, file, offset, length)
            },
        };
        queue.push(
            op,
            Owner::Transfer(Transfer {
                request: piece.request,
                expected,
                mark,
            }),
        );
    }

    /// Takes in a completion.
    pub(crate) fn complete(&mut self, queue: &mut Queue, completion: Completion) {
        match queue.complete(completion) {
            Some(Owner::Transfer(transfer)) => self.transferred(transfer, completion.result),
            Some(Owner::Bitmap { entry, chunk }) => {
                self.bitmap_loaded(queue, entry, chunk, completion.result);
            }
            Some(Owner::Fetch { entry, fetch }) => {
                self.fetched(queue, entry, fetch, completion.result);
            }
            Some(Owner::SeekHole(piece)) => self.hole_found(queue, piece, completion.result),
            Some(Owner::Answer { request, chunk }) => {
                queue.staging.free(chunk);
                self.part_done(request, completion.result.min(0));
            }
            Some(Owner::Task(_)) | None => {}
        }
    }

    fn transferred(&mut self, transfer: Transfer, result: i32) {
        let status = match u64::try_from(result) {
            Err(_) => result,
            Ok(moved) if moved == transfer.expected => 0,
            // The file ended, or took less, where it should not have.
            Ok(_) => -errno::EIO,
        };
        if let Some(mark) = transfer.mark {
            if status == 0 {
                self.cache.mark(mark.entry, mark.first, mark.count);
            }
            self.cache.unpin(mark.entry);
        }
        self.part_done(transfer.request, status);
    }

    /// A part of a request is over, with 0 or a negative errno value.
    pub(crate) fn part_done(&mut self, index: u32, status: i32) {
        let Some(request) = self.requests.get_mut(index as usize) else {
            return;
        };
        if request.status == 0 {
            request.status = status;
        }
        request.parts -= 1;
        if request.parts > 0 {
            return;
        }
        if request.changes_disk() {
            self.commit.modified = true;
            let durable = request.flags & FLAG_FUA != 0 && !planted::is(Bug::FuaWithoutCommit);
            if durable && request.status == 0 {
                request.parts = 1;
                return self.join_commit(index);
            }
        }
        self.finish(index);
    }

    /// Hands a request to the next commit, which ends it.
    fn join_commit(&mut self, index: u32) {
        if self.read_only {
            return self.finish(index);
        }
        self.commit.waiters.push(index);
    }

    /// Whether a request that waits for a commit is a flush.
    pub(crate) fn is_flush(&self, index: u32) -> bool {
        self.requests
            .get(index as usize)
            .is_some_and(|request| request.kind == RequestKind::Flush)
    }

    /// Ends a request that waits for a commit with a (positive) errno value.
    pub(crate) fn fail_waiter(&mut self, index: u32, errno: i32) {
        if let Some(request) = self.requests.get_mut(index as usize) {
            request.status = -errno;
        }
        self.finish(index);
    }

    /// Ends a request with the status that it has, unless a sync failed meanwhile that may have lost its data.
    pub(crate) fn finish(&mut self, index: u32) {
        let Some(mut request) = self.requests.try_remove(index as usize) else {
            return;
        };
        if let Some((before, errno)) = self.commit.doubtful
            && request.status == 0
            && request.sequence < before
            && request.changes_disk()
            && !planted::is(Bug::WritesTrustedAfterFailedSync)
        {
            request.status = -errno;
        }
        let status = match &request.description {
            Some(description) if request.status == 0 => description.extents(),
            _ => request.status,
        };
        if let Some(waiter) = request.waiter {
            waiter.set(Some(status));
        } else {
            self.finished.push_back(Finished {
                tag: request.tag,
                status,
            });
        }
    }
}

/// Outcome of an attempt to find a place for a block.
enum Allocated {
    /// The BAT in memory names the block's place now.
    Yes,
    /// There is no free place: more are on their way.
    Wait,
    /// No room for the new block's bitmap in the cache.
    Starved,
}
