//! Discard and write zeroes: sectors that are zeros, and space that goes back.
//!
//! In an image without a parent a block that is zeroed as a whole is released: its BAT entry becomes unused at once in
//! memory, and on disk with the next commit. Its place is used again, or its space given back, only when that is durable
//! and every request that was in flight at the release has ended, since such a request may still move data there. Parts
//! of blocks are punched out of the file. Where a parent is, zeros must hide it: they are sectors that are present.

use std::cell::RefCell;
use std::rc::Rc;

use crate::core::Core;
use crate::error::Result;
use crate::extend::sync_leaf;
use crate::image::{Layout, Place};
use crate::io::{Io, Mark, Queue};
use crate::planted::{self, Bug};
use crate::record::{FLAG_NO_HOLE, OpKind, RequestKind};
use crate::request::Piece;

/// Places that are made free between two looks at the rest of the world.
const PLACES_PER_ROUND: usize = 64;

/// A block's place after the block was released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Released {
    place: u32,
    /// Requests with smaller numbers may still move data there.
    sequence: u64,
}

/// Places on their way from blocks that were released to free space.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    /// The BAT on disk may still name them.
    pub(crate) named: Vec<Released>,
    /// It does not any more.
    pub(crate) unnamed: Vec<Released>,
    /// How many there are, wherever they are.
    pub(crate) returning: usize,
    /// A task is at it.
    pub(crate) reclaiming: bool,
}

impl Releases {
    /// Whether a task could make a place free, given the number of the oldest request in flight.
    pub(crate) fn can_reclaim(&self, oldest: u64) -> bool {
        !self.reclaiming
            && self
                .unnamed
                .iter()
                .any(|released| released.sequence <= oldest)
    }
}

impl Core {
    /// Zeroes or discards a part of the disk.
    pub(crate) fn erase(&mut self, queue: &mut Queue, piece: Piece) {
        let kind = self.erase_kind(piece);
        let leaf = self.leaf();
        if let Layout::Flat = leaf.layout {
            let file = leaf.file;
            return self.transfer(queue, kind, file, piece.sector * 512, piece, None);
        }
        self.each_block(queue, piece, Self::erase_block);
    }

    /// Whether the file keeps its space.
    fn erase_kind(&self, piece: Piece) -> OpKind {
        match self.requests.get(piece.request as usize) {
            Some(request)
                if request.kind == RequestKind::WriteZeroes
                    && request.flags & FLAG_NO_HOLE != 0 =>
            {
                OpKind::WriteZeroes
            }
            _ => OpKind::PunchHole,
        }
    }

    fn erase_block(&mut self, queue: &mut Queue, piece: Piece, block: u32, place: Option<Place>) {
        let has_parent = self.chain.len() > 1;
        let kind = self.erase_kind(piece);
        // A discard promises nothing of sectors that are only in a parent, and leaves them alone.
        let hides_parent = has_parent
            && self
                .requests
                .get(piece.request as usize)
                .is_some_and(|it| it.kind == RequestKind::WriteZeroes);
        let Some(place) = place else {
            if hides_parent {
                self.write_block(queue, piece, block, None);
            }
            return;
        };
        if !has_parent && kind == OpKind::PunchHole && self.is_whole(piece, place.first) {
            return self.release(block);
        }
        if place.full {
            return self.transfer(queue, kind, place.file, place.data, piece, None);
        }
        let Some(index) = self.bitmap(queue, piece, &place) else {
            return;
        };
        let mut done = 0;
        while done < piece.count
            && let Some(bits) = self.cache.bits(index)
        {
            let (present, count) = bits.run(place.first + done, piece.count - done);
            // What is not present reads as zeros already, unless a parent shows through.
            if present || hides_parent {
                let mark = (!present).then(|| {
                    self.cache.pin(index);
                    Mark {
                        entry: index,
                        first: place.first + done,
                        count,
                    }
                });
                let offset = place.data + u64::from(done) * 512;
                self.transfer(
                    queue,
                    kind,
                    place.file,
                    offset,
                    piece.part(done, count),
                    mark,
                );
            }
            done += count;
        }
    }

    /// Whether a part that begins at sector `first` of its block is all of the block that the disk has.
    fn is_whole(&mut self, piece: Piece, first: u32) -> bool {
        let sectors = self.leaf().sectors;
        let Some(blocks) = self.leaf_blocks() else {
            return false;
        };
        first == 0
            && (piece.count == blocks.sectors_per_block
                || piece.sector + u64::from(piece.count) == sectors)
    }

    /// Takes a block out of the BAT.
    fn release(&mut self, block: u32) {
        let sequence = self.next_sequence;
        let Some(blocks) = self.leaf_blocks() else {
            return;
        };
        let Some(place) = blocks.release(block) else {
            return;
        };
        self.cache.detach(block);
        self.commit.changed(block);
        self.commit.modified = true;
        let released = Released { place, sequence };
        if planted::is(Bug::ReuseBeforeCommit) {
            self.releases.unnamed.push(released);
        } else {
            self.releases.named.push(released);
        }
        self.releases.returning += 1;
        self.allocator.blocks_released();
        // Space that only a commit can free should not pile up.
        self.commit.wanted |= self.releases.named.len() >= PLACES_PER_ROUND;
    }

    /// The number of the oldest request in flight.
    pub(crate) fn oldest_request(&self) -> u64 {
        if planted::is(Bug::ReuseUnderRequests) {
            return u64::MAX;
        }
        self.requests
            .iter()
            .map(|(_, request)| request.sequence)
            .min()
            .unwrap_or(u64::MAX)
    }
}

/// Task: gives the space of released places back, and makes them free.
pub(crate) async fn reclaim_task(core: Rc<RefCell<Core>>, io: Io) {
    // A place that could not be made free stays unused; nothing else is wrong.
    let _ = reclaim(&core, &io).await;
    let mut core = core.borrow_mut();
    core.releases.reclaiming = false;
    core.allocator.tasks -= 1;
    let waiting = std::mem::take(&mut core.allocator.waiting);
    core.resume(&mut io.queue(), waiting);
}

/// Gives the space of places back that no BAT entry on disk and no request in flight knows, and makes them free.
///
/// # Errors
/// An I/O error; the places that it concerns are not used any more.
pub(crate) async fn reclaim(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    let (file, span, bitmap, places) = {
        let mut core = core.borrow_mut();
        let oldest = core.oldest_request();
        let (ready, rest): (Vec<Released>, Vec<Released>) =
            std::mem::take(&mut core.releases.unnamed)
                .into_iter()
                .partition(|released| released.sequence <= oldest);
        core.releases.unnamed = rest;
        let file = core.leaf().file;
        let Some(blocks) = core.leaf_blocks() else {
            return Ok(());
        };
        (file, blocks.block_span(), blocks.new_bitmap(), ready)
    };
    let mut rest = places.as_slice();
    while !rest.is_empty() {
        let (places, later) = rest.split_at(rest.len().min(PLACES_PER_ROUND));
        rest = later;
        let outcome = make_free(io, file, places, span * 512, &bitmap).await;
        let mut core = core.borrow_mut();
        core.releases.returning -= places.len();
        if outcome.is_err() {
            // These places stay unused; the others may be tried again.
            core.releases.unnamed.extend(later);
        }
        outcome?;
        for released in places {
            core.allocator.recycle(released.place);
        }
    }
    Ok(())
}

/// Makes the blocks at `places` as they are in a new extent: zeros behind a new bitmap.
async fn make_free(
    io: &Io,
    file: u16,
    places: &[Released],
    bytes: u64,
    bitmap: &[u8],
) -> Result<()> {
    let offsets = || {
        places
            .iter()
            .map(|released| u64::from(released.place) * 512)
    };
    if !planted::is(Bug::ReuseUnpunched) {
        io.punch_all(file, offsets(), bytes).await?;
    }
    io.write_all("bitmap", file, offsets().map(|offset| (offset, bitmap)))
        .await
}

/// Frees the space of all places that were released, for a disk that is about to be closed.
///
/// # Errors
/// An I/O error.
pub(crate) async fn reclaim_all(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    if core.borrow().releases.unnamed.is_empty() {
        return Ok(());
    }
    reclaim(core, io).await?;
    sync_leaf(core, io).await
}
