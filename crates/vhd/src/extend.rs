//! Allocation: the file grows several blocks at a time (an extent), and blocks are handed out from there. Orphaned space
//! (`orphans.rs`) is made as good as new and handed out before that.
//!
//! An extent is made in this order: the file is extended, which makes the new space zeros; then the bitmaps of all its
//! blocks and a footer behind it are written. After that its blocks may be handed out and get data. Before a BAT entry
//! that names one of them goes to disk, all of that must be durable: the first commit that finds it isn't syncs once for
//! the whole extent. (A sync right after making an extent was tried: it stalls the writes that come meanwhile.) So no
//! write waits for a barrier, and a power cut at any instant finds a footer at the end of the file or, while it moves,
//! the copy at offset 0.
//!
//! A block device has its size, and its footer a fixed place at the end: an extent is only the bitmaps of its blocks there,
//! which are clear since the device's bytes can be anything.

mod scarce;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::core::Core;
use crate::error::{Error, Result, errno};
use crate::format::bat;
use crate::format::footer::Footer;
use crate::format::geometry::Geometry;
use crate::image::{Image, Layout};
use crate::io::{Io, until};
use crate::planted::{self, Bug};
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
    /// There is no room for an extent, and places are awaited that blocks gave back.
    awaits_return: bool,
    /// Extents are made and synced by tasks: this many are at it.
    pub(crate) tasks: u32,
    /// Places in extents that may not be durable, ascending.
    fresh: VecDeque<u32>,
    /// Places that were used before and may not be durable as free ones, with the number of the sync that will see to it.
    recycled: BTreeMap<u32, u64>,
    next_sync: u64,
    /// First sector behind the last extent.
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
    /// First sector behind it.
    end: u64,
    bitmap: Vec<u8>,
    footer: [u8; 512],
    /// The footer at the end moves behind it.
    grows: bool,
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
            awaits_return: false,
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

    /// Whether an extent should be made now: writes wait, or soon would, which counts `ahead` of need only, though
    /// `returning` places will be free before long.
    pub(crate) fn wants_extent(&self, returning: usize, ahead: bool) -> bool {
        let low = ahead
            && !self.failed
            && self.next_extent > FIRST_EXTENT
            && self.free.len() + returning <= self.next_extent / 4;
        let busy = self.extending || self.awaits_return;
        !busy && !self.complete && (!self.waiting.is_empty() || low)
    }

    /// First sector behind the last extent: in a file, that of the footer.
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
        u64::from(place) < self.durable_end
            && (!self.recycled.contains_key(&place) || planted::is(Bug::ReuseWithoutSync))
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
        if planted::is(Bug::NoRewriteAfterFailedSync) {
            core.borrow_mut().allocator.rewrite = false;
        } else {
            write_again(core, io).await?;
        }
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
    let mark = if planted::is(Bug::SyncCountsTooMuch) {
        core.allocator.mark()
    } else {
        mark
    };
    match &outcome {
        // What a failed sync dropped, before this one or meanwhile, is not made durable by it.
        Ok(()) if trusted && core.allocator.failed_syncs == failed_syncs => {
            core.allocator.synced(mark)
        }
        Ok(()) => {}
        Err(error) => {
            core.allocator.rewrite = true;
            core.allocator.failed_syncs += 1;
            core.commit.sync_error =
                Some(error.errno).filter(|_| !planted::is(Bug::FailedSyncUntold));
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
    let mut outcome = match reuse_orphans(&core, &io).await {
        Ok(0) => extend_file(&core, &io).await,
        other => other.map(drop),
    };
    core.borrow_mut().allocator.extending = false;
    if let Err(error) = &outcome
        && error.errno == errno::ENOSPC
        && scarce::can_wait(&core.borrow())
    {
        core.borrow_mut().allocator.awaits_return = true;
        match scarce::bring_back(&core, &io).await {
            Ok(true) => outcome = Ok(()),
            Ok(false) => {}
            Err(error) => outcome = Err(error),
        }
        core.borrow_mut().allocator.awaits_return = false;
    }
    let mut core = core.borrow_mut();
    core.allocator.tasks -= 1;
    core.allocator.failed = outcome.is_err();
    let waiting = std::mem::take(&mut core.allocator.waiting);
    match outcome {
        Ok(()) => core.resume(&mut io.queue(), waiting),
        Err(error) => core.fail(waiting, error.errno),
    }
}

/// Makes an extent at the end of the file, a smaller one if there is no space for more.
async fn extend_file(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    let mut most = MAX_EXTENT;
    loop {
        let Some(plan) = plan_extent(&mut core.borrow_mut(), most)? else {
            core.borrow_mut().allocator.complete = true;
            return Ok(());
        };
        let Err(error) = make_extent(core, io, &plan).await else {
            extent_made(&mut core.borrow_mut(), plan);
            return Ok(());
        };
        // What the attempt left behind the footer is cleaned up by the next one.
        if let Some(blocks) = core.borrow_mut().leaf_blocks()
            && plan.grows
        {
            blocks.stale_tail = true;
            blocks.needs_footer = true;
        }
        if error.errno != errno::ENOSPC || plan.places.len() == 1 {
            return Err(error);
        }
        most = plan.places.len() / 2;
    }
}

/// How many places to make now.
fn wanted(core: &mut Core) -> usize {
    let (free, waiting) = (core.allocator.free.len(), core.allocator.waiting.len());
    let wanted = core.allocator.next_extent.max(waiting.min(MAX_EXTENT));
    let absent = core.leaf_blocks().map_or(0, |blocks| blocks.absent());
    wanted.min((absent as usize).saturating_sub(free))
}

/// Makes orphaned places free, if there are any. Returns how many.
async fn reuse_orphans(core: &Rc<RefCell<Core>>, io: &Io) -> Result<usize> {
    let first_use = {
        let mut core = core.borrow_mut();
        // What a failed sync left of the BAT on disk is anybody's guess, which may name these places.
        let trusted = core.allocator.failed_syncs == 0;
        match core.leaf_blocks().map(|blocks| &blocks.orphans) {
            Some(orphans) if trusted && !orphans.is_empty() => !orphans.durable,
            _ => return Ok(0),
        }
    };
    if first_use {
        // The BAT that was read may have been written by a process that was killed, and not be on disk.
        sync_file(core, io).await?;
    }
    let (file, places, bitmap, span, zero) = {
        let mut core = core.borrow_mut();
        let (wanted, file) = (wanted(&mut core), core.leaf().file);
        let Some(blocks) = core.leaf_blocks() else {
            return Ok(0);
        };
        let mut orphans = std::mem::take(&mut blocks.orphans);
        let places = orphans.take(blocks, wanted);
        orphans.durable = true;
        blocks.orphans = orphans;
        let (bitmap, span) = (blocks.new_bitmap(), blocks.block_span());
        (file, places, bitmap, span, blocks.device_end.is_none())
    };
    let offsets = || places.iter().map(|place| u64::from(*place) * 512);
    let outcome = async {
        if zero && !planted::is(Bug::OrphansUsedAsTheyAre) {
            io.punch_all(file, offsets(), span * 512).await?;
        }
        let bitmaps = offsets().map(|offset| (offset, bitmap.as_slice()));
        io.write_all("bitmap", file, bitmaps).await
    };
    // Places that can't be made as good as new stay unused: there are others.
    if outcome.await.is_err() {
        return Ok(0);
    }
    let allocator = &mut core.borrow_mut().allocator;
    for place in places.iter().rev() {
        allocator.recycle(*place);
    }
    Ok(places.len())
}

/// Chooses the places of the next extent's blocks, at most `most`; `None` if no block is without a place.
fn plan_extent(core: &mut Core, most: usize) -> Result<Option<Plan>> {
    let (file, mut end) = (core.leaf().file, core.allocator.end);
    let wanted = wanted(core);
    let Some(blocks) = core.leaf_blocks() else {
        return Ok(None);
    };
    // After a failed attempt, what lies behind the last extent is not ours to keep; everything before it is.
    let cut = (blocks.stale_tail && !planted::is(Bug::StaleTailKept)).then_some(end);
    let limit = blocks.device_end.unwrap_or(u64::MAX);
    let mut places = Vec::new();
    while places.len() < wanted.min(most) {
        let place = blocks.place(end);
        if place + blocks.block_span() > limit {
            break;
        }
        // The last place whose sector number a BAT entry can hold.
        match u32::try_from(place) {
            Ok(place) if place != bat::UNUSED => places.push(place),
            _ => break,
        }
        end = place + blocks.block_span();
    }
    if places.is_empty() && wanted > 0 {
        let message = if blocks.device_end.is_some() {
            "the device has no room for a new block"
        } else {
            "no sector number is left for a new block"
        };
        return Err(Error {
            errno: errno::ENOSPC,
            ..Error::invalid("BAT", message)
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
        grows: blocks.device_end.is_none(),
        cut,
        write_backup: blocks.needs_backup_footer,
    }))
}

async fn make_extent(core: &Rc<RefCell<Core>>, io: &Io, plan: &Plan) -> Result<()> {
    if plan.write_backup && !planted::is(Bug::FooterMovesWithoutBackup) {
        io.write("backup footer", plan.file, 0, &plan.footer)
            .await?;
        if !planted::is(Bug::BackupNotSynced) {
            sync_file(core, io).await?;
        }
    }
    if let Some(sector) = plan.cut {
        // The file must never end with a sector of the guest's, which could look like a footer.
        if planted::is(Bug::CutAtGuestData) {
            io.truncate(plan.file, sector * 512).await?;
        }
        io.write("footer", plan.file, sector * 512, &plan.footer)
            .await?;
        sync_file(core, io).await?;
        io.truncate(plan.file, (sector + 1) * 512).await?;
    }
    if plan.grows {
        io.truncate(plan.file, (plan.end + 1) * 512).await?;
    }
    write_extent(io, plan).await
}

async fn write_extent(io: &Io, plan: &Plan) -> Result<()> {
    let bitmaps = plan
        .places
        .iter()
        .map(|place| (u64::from(*place) * 512, plan.bitmap.as_slice()));
    let footer = plan
        .grows
        .then_some((plan.end * 512, plan.footer.as_slice()));
    io.write_all("extent", plan.file, bitmaps.chain(footer))
        .await
}

/// Makes both footers say that the disk has `size` bytes, durably, each one sector; no extent moves the one at the end
/// meanwhile.
///
/// # Errors
/// An I/O error: closing writes the footers as they were.
pub(crate) async fn replace_footer(core: &Rc<RefCell<Core>>, io: &Io, size: u64) -> Result<()> {
    until(|| !core.borrow().allocator.extending).await;
    let (file, at, footer, cut) = {
        let mut core = core.borrow_mut();
        let (file, end) = (core.leaf().file, core.allocator.end);
        let Some(blocks) = core.leaf_blocks() else {
            return Ok(());
        };
        let footer = Footer {
            current_size: size,
            geometry: Geometry::for_sectors(size / 512),
            ..blocks.footer.clone()
        };
        // Whatever comes of this, closing has to look after the footers.
        (blocks.needs_footer, blocks.needs_backup_footer) = (true, true);
        let at = blocks.device_end.unwrap_or(end);
        let cut = blocks.device_end.is_none() && blocks.stale_tail;
        core.allocator.extending = true;
        (file, at, footer, cut)
    };
    let bytes = footer.encode();
    let outcome = async {
        io.write("backup footer", file, 0, &bytes).await?;
        sync_file(core, io).await?;
        io.write("footer", file, at * 512, &bytes).await?;
        sync_file(core, io).await?;
        if cut {
            io.truncate(file, (at + 1) * 512).await?;
            sync_file(core, io).await?;
        }
        Ok(())
    };
    let outcome = outcome.await;
    let mut core = core.borrow_mut();
    core.allocator.extending = false;
    core.commit.modified = true;
    if outcome.is_ok()
        && let Some(blocks) = core.leaf_blocks()
    {
        blocks.footer = footer;
        (blocks.needs_footer, blocks.needs_backup_footer) = (false, false);
        blocks.stale_tail &= !cut;
    }
    outcome
}

fn extent_made(core: &mut Core, plan: Plan) {
    if let Some(blocks) = core.leaf_blocks() {
        blocks.needs_backup_footer = false;
        if plan.grows {
            blocks.stale_tail = false;
            blocks.needs_footer = false;
        }
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
        grows: blocks.device_end.is_none(),
        cut: None,
        write_backup: false,
    })
}
