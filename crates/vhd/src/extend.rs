//! Allocation: the file grows several blocks at a time (an extent), and blocks are handed out from there.
//!
//! An extent is made in this order: the file is extended, which makes the new space zeros; then the bitmaps of all its
//! blocks and a footer behind it are written. After that its blocks may be handed out and get data. Before a BAT entry
//! that names one of them goes to disk, all of that must be durable: the first commit that finds it isn't syncs once for
//! the whole extent. (A sync right after making an extent was tried: it stalls the writes that come meanwhile.) So no
//! write waits for a barrier, and a power cut at any instant finds a footer at the end of the file or, while it moves,
//! the copy at offset 0.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::core::Core;
use crate::error::{Error, Result, errno};
use crate::format::bat;
use crate::image::{Image, Layout};
use crate::io::{Io, until};
use crate::request::Piece;

/// Blocks in the first extent; each is twice as large as the one before.
const FIRST_EXTENT: usize = 4;
/// Blocks in the largest extent: 64 MiB of sparse file with the usual block size, given back when the disk is closed.
const MAX_EXTENT: usize = 32;

/// Space for new blocks of the leaf.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// Places of free blocks: sectors of their bitmaps, those first that were used before.
    free: VecDeque<u32>,
    /// Parts of writes that wait for a place.
    pub(crate) waiting: Vec<Piece>,
    /// An extent is being made.
    pub(crate) extending: bool,
    /// Extents are made and synced by tasks: this many are at it.
    pub(crate) tasks: u32,
    /// Places in extents that may not be durable, ascending.
    fresh: VecDeque<u32>,
    /// Places that were used before and may not be durable as free ones, with the number of the sync that will see to it.
    recycled: BTreeMap<u32, u64>,
    next_sync: u64,
    /// Sector of the footer behind the last extent.
    end: u64,
    /// Everything below this sector is durable as far as it was written as part of an extent.
    durable_end: u64,
    /// There is a place for every block: no more extents are needed.
    complete: bool,
    /// The last attempt failed: the next one is made when a write needs it, not ahead of need.
    failed: bool,
    /// A sync failed: the fresh part must be written again before the next one.
    rewrite: bool,
    /// How many syncs failed so far.
    failed_syncs: u64,
    next_extent: usize,
}

/// An extent to be made.
struct Plan {
    file: u16,
    places: Vec<u32>,
    /// Sector of the footer behind it.
    end: u64,
    bitmap: Vec<u8>,
    footer: [u8; 512],
    /// Sector where unknown bytes begin that must go first.
    cut: Option<u64>,
    write_backup: bool,
}

impl Allocator {
    pub(crate) fn new(leaf: &Image) -> Self {
        let end = match &leaf.layout {
            Layout::Flat => leaf.sectors,
            Layout::Blocks(blocks) => blocks.data_end,
        };
        Self {
            free: VecDeque::new(),
            waiting: Vec::new(),
            extending: false,
            tasks: 0,
            fresh: VecDeque::new(),
            recycled: BTreeMap::new(),
            next_sync: 0,
            end,
            durable_end: end,
            complete: false,
            failed: false,
            rewrite: false,
            failed_syncs: 0,
            next_extent: FIRST_EXTENT,
        }
    }

    /// The place that the next block gets, if there is one.
    pub(crate) fn peek(&self) -> Option<u32> {
        self.free.front().copied()
    }

    /// Hands out the place that [`Allocator::peek`] showed.
    pub(crate) fn take(&mut self) {
        self.free.pop_front();
    }

    /// Whether an extent should be made now: writes wait, or soon would, though `returning` places will be free before long.
    pub(crate) fn wants_extent(&self, returning: usize) -> bool {
        let low = !self.failed
            && self.next_extent > FIRST_EXTENT
            && self.free.len() + returning <= self.next_extent / 4;
        !self.extending && !self.complete && (!self.waiting.is_empty() || low)
    }

    /// Sector of the footer behind the last extent.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Blocks lost their places: more may be needed than there are.
    pub(crate) fn blocks_released(&mut self) {
        self.complete = false;
    }

    /// A place that a block had before is free and as good as new. Such places are handed out first.
    pub(crate) fn recycle(&mut self, place: u32) {
        self.free.push_front(place);
        self.recycled.insert(place, self.next_sync);
    }

    /// Whether the block at `place` may be named by a BAT entry on disk.
    pub(crate) fn is_durable(&self, place: u32) -> bool {
        u64::from(place) < self.durable_end && !self.recycled.contains_key(&place)
    }

    /// What a sync that begins now will have made durable when it ends well: everything below a sector, and what was
    /// recycled before.
    fn mark(&mut self) -> (u64, u64) {
        self.next_sync += 1;
        (self.end, self.next_sync - 1)
    }

    /// A sync that began when [`Allocator::mark`] gave these is over.
    fn synced(&mut self, (end, sync): (u64, u64)) {
        self.durable_end = self.durable_end.max(end);
        while self
            .fresh
            .front()
            .is_some_and(|place| u64::from(*place) < end)
        {
            self.fresh.pop_front();
        }
        self.recycled.retain(|_, recycled| *recycled > sync);
    }
}

/// Makes the leaf durable. After a failed sync, what was not durable is written again first: the kernel may have dropped
/// it and does not say so twice.
pub(crate) async fn sync_leaf(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    if core.borrow().allocator.rewrite {
        write_again(core, io).await?;
    }
    sync_file(core, io).await?;
    // One that an extent made meanwhile may have failed: then this one's success proves nothing.
    let core = core.borrow();
    if core.allocator.rewrite {
        let errno = core.commit.sync_error.unwrap_or(errno::EIO);
        return Err(Error::io("file", 0, errno));
    }
    Ok(())
}

/// Syncs the leaf's file and keeps account of what that made durable.
async fn sync_file(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    let (file, mark, trusted, failed_syncs) = {
        let mut core = core.borrow_mut();
        let (file, mark) = (core.leaf().file, core.allocator.mark());
        (
            file,
            mark,
            !core.allocator.rewrite,
            core.allocator.failed_syncs,
        )
    };
    let outcome = io.sync(file).await;
    let mut core = core.borrow_mut();
    match &outcome {
        // What a failed sync dropped, before this one or meanwhile, is not made durable by it.
        Ok(()) if trusted && core.allocator.failed_syncs == failed_syncs => {
            core.allocator.synced(mark)
        }
        Ok(()) => {}
        Err(error) => {
            core.allocator.rewrite = true;
            core.allocator.failed_syncs += 1;
            core.commit.sync_error = Some(error.errno);
            core.commit.doubtful = Some((core.next_sequence, error.errno));
        }
    }
    outcome
}

/// Writes the extents again that are not known to be durable. No extent is made meanwhile: its footer would be at the
/// same place as its first bitmap.
async fn write_again(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    until(|| !core.borrow().allocator.extending).await;
    let plan = {
        let mut core = core.borrow_mut();
        core.allocator.rewrite = false;
        core.allocator.extending = true;
        fresh_plan(&mut core)
    };
    let outcome = match plan {
        Some(plan) => write_extent(io, &plan).await,
        None => Ok(()),
    };
    let mut core = core.borrow_mut();
    core.allocator.extending = false;
    core.allocator.rewrite |= outcome.is_err();
    outcome
}

/// Task: makes an extent and lets waiting writes go on.
pub(crate) async fn extend(core: Rc<RefCell<Core>>, io: Io) {
    let plan = plan_extent(&mut core.borrow_mut());
    let outcome = match plan {
        Ok(Some(plan)) => make_extent(&core, &io, &plan).await.map(|()| Some(plan)),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    let mut core = core.borrow_mut();
    core.allocator.extending = false;
    core.allocator.tasks -= 1;
    core.allocator.failed = outcome.is_err();
    let waiting = std::mem::take(&mut core.allocator.waiting);
    match outcome {
        Ok(plan) => {
            match plan {
                Some(plan) => extent_made(&mut core, plan),
                None => core.allocator.complete = true,
            }
            core.resume(&mut io.queue(), waiting);
        }
        Err(error) => {
            // What the attempt left behind the footer is cleaned up by the next one.
            if let Some(blocks) = core.leaf_blocks() {
                blocks.stale_tail = true;
                blocks.needs_footer = true;
            }
            core.fail(waiting, error.errno);
        }
    }
}

/// Chooses the places of the next extent's blocks; `None` if no block is without a place.
fn plan_extent(core: &mut Core) -> Result<Option<Plan>> {
    let (file, end) = (core.leaf().file, core.allocator.end);
    let (free, waiting) = (core.allocator.free.len(), core.allocator.waiting.len());
    let wanted = core.allocator.next_extent.max(waiting.min(MAX_EXTENT));
    let Some(blocks) = core.leaf_blocks() else {
        return Ok(None);
    };
    let unallocated = blocks
        .bat
        .iter()
        .take(blocks.count as usize)
        .filter(|entry| **entry == bat::UNUSED)
        .count();
    // After a failed attempt, what lies behind the last extent is not ours to keep; everything before it is.
    let cut = blocks.stale_tail.then_some(end);
    let mut places = Vec::new();
    let mut end = end;
    while places.len() < wanted.min(unallocated.saturating_sub(free)) {
        let place = blocks.place(end);
        // The last place whose sector number a BAT entry can hold.
        match u32::try_from(place) {
            Ok(place) if place != bat::UNUSED => places.push(place),
            _ => break,
        }
        end = place + blocks.block_span();
    }
    if places.is_empty() && unallocated > free {
        return Err(Error {
            errno: errno::ENOSPC,
            ..Error::invalid("BAT", "no sector number is left for a new block")
        });
    }
    if places.is_empty() {
        return Ok(None);
    }
    let bitmap = blocks.new_bitmap();
    let footer = blocks.footer.encode();
    Ok(Some(Plan {
        file,
        places,
        end,
        bitmap,
        footer,
        cut,
        write_backup: blocks.needs_backup_footer,
    }))
}

async fn make_extent(core: &Rc<RefCell<Core>>, io: &Io, plan: &Plan) -> Result<()> {
    if plan.write_backup {
        io.write("backup footer", plan.file, 0, &plan.footer)
            .await?;
        sync_file(core, io).await?;
    }
    if let Some(sector) = plan.cut {
        // The file must never end with a sector of the guest's, which could look like a footer.
        io.write("footer", plan.file, sector * 512, &plan.footer)
            .await?;
        sync_file(core, io).await?;
        io.truncate(plan.file, (sector + 1) * 512).await?;
    }
    io.truncate(plan.file, (plan.end + 1) * 512).await?;
    write_extent(io, plan).await
}

async fn write_extent(io: &Io, plan: &Plan) -> Result<()> {
    let bitmaps = plan
        .places
        .iter()
        .map(|place| (u64::from(*place) * 512, plan.bitmap.as_slice()));
    let footer = (plan.end * 512, plan.footer.as_slice());
    io.write_all("extent", plan.file, bitmaps.chain([footer]))
        .await
}

fn extent_made(core: &mut Core, plan: Plan) {
    if let Some(blocks) = core.leaf_blocks() {
        blocks.stale_tail = false;
        blocks.needs_backup_footer = false;
        blocks.needs_footer = false;
    }
    core.commit.modified = true;
    let allocator = &mut core.allocator;
    allocator.end = plan.end;
    allocator.fresh.extend(&plan.places);
    allocator.free.extend(plan.places);
    allocator.next_extent = (allocator.next_extent * 2).min(MAX_EXTENT);
}

/// The extents that are not durable, as one plan.
fn fresh_plan(core: &mut Core) -> Option<Plan> {
    let (file, end) = (core.leaf().file, core.allocator.end);
    let recycled = core.allocator.recycled.keys();
    let places: Vec<u32> = core
        .allocator
        .fresh
        .iter()
        .chain(recycled)
        .copied()
        .collect();
    let blocks = core.leaf_blocks()?;
    let bitmap = blocks.new_bitmap();
    let footer = blocks.footer.encode();
    Some(Plan {
        file,
        places,
        end,
        bitmap,
        footer,
        cut: None,
        write_backup: false,
    })
}
