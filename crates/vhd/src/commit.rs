//! Commits: how what the guest wrote becomes durable, in an order that a power cut can't spoil.
//!
//! A flush (or a write with FUA, once its data are written) joins the next commit; all that wait then share it. A commit
//! takes the bits and BAT entries that are not on disk as they are when it begins, and then
//!
//! 1. syncs, if any of those bits may be set before its data are durable, or any entry may name a block whose extent is
//!    not durable (a barrier), or blktap's batmap says what these entries would make wrong (`batmap_state.rs`);
//! 2. writes the bitmaps and BAT sectors, neighbours together;
//! 3. syncs, and ends the requests.
//!
//! So a bit never reaches the disk before its data, nor an entry before its bitmap.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::batmap_state::Emptying;
use crate::cache::Entry;
use crate::core::Core;
use crate::discard::Released;
use crate::error::Result;
use crate::extend::sync_leaf;
use crate::format::bat::{self, ENTRIES_PER_SECTOR};
use crate::io::{Io, until};
use crate::planted::{self, Bug};

/// Bitmaps that are written between two barriers at most, which bounds the memory of a commit.
const BITMAPS_PER_ROUND: usize = 1024;

/// What is not on disk yet, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct CommitState {
    /// Requests that end with the next commit.
    pub(crate) waiters: Vec<u32>,
    /// A commit is wanted though nobody waits: the host is idle, or the cache is full of dirty bitmaps.
    pub(crate) wanted: bool,
    pub(crate) running: bool,
    /// The image was changed since it was opened.
    pub(crate) modified: bool,
    /// A sync failed with this errno and no flush was told yet: the next one is.
    pub(crate) sync_error: Option<i32>,
    /// Writes with smaller numbers that were in flight when a sync failed, and how it failed: some of their data may be
    /// lost with it, and no later sync would tell.
    pub(crate) doubtful: Option<(u64, i32)>,
    /// BAT sectors with entries that are not on disk.
    dirty_bat: BTreeSet<u32>,
    /// Places that blocks were given since.
    places: Vec<u32>,
}

impl CommitState {
    /// `block` was given the place `place`.
    pub(crate) fn allocated(&mut self, block: u32, place: u32) {
        self.changed(block);
        self.places.push(place);
    }

    /// The BAT entry of `block` changed.
    pub(crate) fn changed(&mut self, block: u32) {
        self.dirty_bat.insert(block / ENTRIES_PER_SECTOR as u32);
    }

    /// Whether BAT entries are not on disk.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty_bat.is_empty()
    }
}

/// What one round of a commit writes.
struct Round {
    file: u16,
    barrier: bool,
    /// Cache indexes and blocks of the bitmaps, pinned meanwhile.
    bitmaps: Vec<u32>,
    bat: BTreeSet<u32>,
    places: Vec<u32>,
    /// Places whose blocks were released: no entry on disk names them when the round is over.
    released: Vec<Released>,
    /// Byte offsets and contents.
    bitmap_writes: Vec<(u64, Vec<u8>)>,
    bat_writes: Vec<(u64, Vec<u8>)>,
    /// The batmap must be emptied before the BAT is written.
    batmap: Option<Emptying>,
    last: bool,
}

/// Task: commits until nobody waits for another one.
pub(crate) async fn commit(core: Rc<RefCell<Core>>, io: Io) {
    loop {
        let mut waiters = begin(&mut core.borrow_mut());
        let outcome = run(&core, &io).await;
        let mut core = core.borrow_mut();
        if planted::is(Bug::FlushJoinsRunningCommit) {
            waiters.append(&mut core.commit.waiters);
        }
        if let Err(error) = &outcome {
            // They wait for a commit that makes bitmaps clean, which may never succeed.
            core.fail_starved(error.errno);
            if waiters.iter().any(|waiter| core.is_flush(*waiter)) {
                core.commit.sync_error = None;
            }
        }
        for waiter in waiters {
            match &outcome {
                Ok(()) => core.finish(waiter),
                Err(error) => core.fail_waiter(waiter, error.errno),
            }
        }
        if core.commit.waiters.is_empty() {
            core.commit.running = false;
            return;
        }
    }
}

/// Takes those who wait. A flush that comes after a failed sync is told of it instead: it can't make durable what that
/// lost. A write with FUA waits for its own data only.
fn begin(core: &mut Core) -> Vec<u32> {
    core.commit.wanted = false;
    let waiters = std::mem::take(&mut core.commit.waiters);
    let (flushes, writes): (Vec<u32>, Vec<u32>) = waiters
        .into_iter()
        .partition(|waiter| core.is_flush(*waiter));
    if flushes.is_empty() {
        return writes;
    }
    let Some(errno) = core.commit.sync_error.take() else {
        return [flushes, writes].concat();
    };
    for flush in flushes {
        core.fail_waiter(flush, errno);
    }
    writes
}

/// Commits for a task that needs it, once no other commit is at it. Those that wait meanwhile get the next one.
///
/// # Errors
/// Those of a commit.
pub(crate) async fn run_alone(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    until(|| !core.borrow().commit.running).await;
    core.borrow_mut().commit.running = true;
    let outcome = run(core, io).await;
    core.borrow_mut().commit.running = false;
    outcome
}

/// Makes everything durable that was written before the call.
pub(crate) async fn run(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    let mut rounds = Vec::new();
    let outcome = loop {
        let mut round = begin_round(&mut core.borrow_mut());
        let outcome = write_round(core, io, &mut round).await;
        let last = round.last;
        rounds.push(round);
        if last || outcome.is_err() {
            break outcome;
        }
    };
    // No round is over before the last sync: what that does not cover may be lost.
    for round in rounds {
        end_round(&mut core.borrow_mut(), round, outcome.is_ok());
    }
    outcome
}

fn begin_round(core: &mut Core) -> Round {
    let bitmaps = core.cache.take_dirty(BITMAPS_PER_ROUND);
    let last = !core.cache.is_dirty();
    let (mut bat, mut places, mut released) = Default::default();
    if last {
        bat = std::mem::take(&mut core.commit.dirty_bat);
        places = std::mem::take(&mut core.commit.places);
        released = std::mem::take(&mut core.releases.named);
    }
    let batmap = core
        .leaf_blocks()
        .filter(|_| !bat.is_empty())
        .and_then(|blocks| blocks.batmap.as_ref()?.emptying());
    let barrier = batmap.is_some() && !planted::is(Bug::NoBarrierForBatmap)
        || !bitmaps.is_empty() && !planted::is(Bug::NoBarrierForBits)
        || !places.iter().all(|place| core.allocator.is_durable(*place))
            && !planted::is(Bug::NoBarrierForEntries);
    let mut bitmap_writes = Vec::with_capacity(bitmaps.len());
    for index in &bitmaps {
        let Some((block, bits)) = core.cache.get(*index).and_then(Entry::bitmap) else {
            continue;
        };
        let bits = bits.to_vec();
        if let Some(sector) = core
            .leaf_blocks()
            .and_then(|blocks| blocks.bitmap_sector(block))
        {
            bitmap_writes.push((sector * 512, bits));
        }
    }
    let file = core.leaf().file;
    let bat_writes = core
        .leaf_blocks()
        .map(|blocks| bat_writes(blocks, &bat))
        .unwrap_or_default();
    Round {
        file,
        barrier,
        bitmaps,
        bat,
        places,
        released,
        bitmap_writes,
        bat_writes,
        batmap,
        last,
    }
}

/// The dirty sectors of the BAT, neighbours joined.
fn bat_writes(blocks: &crate::image::Blocks, sectors: &BTreeSet<u32>) -> Vec<(u64, Vec<u8>)> {
    let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
    for sector in sectors {
        let first = *sector as usize * ENTRIES_PER_SECTOR;
        let entries = blocks
            .bat
            .get(first..first + ENTRIES_PER_SECTOR)
            .unwrap_or_default();
        let offset = blocks.header.table_offset + u64::from(*sector) * 512;
        let bytes = bat::encode(entries);
        match writes.last_mut() {
            Some((start, joined)) if *start + joined.len() as u64 == offset => joined.extend(bytes),
            _ => writes.push((offset, bytes)),
        }
    }
    writes
}

async fn write_round(core: &Rc<RefCell<Core>>, io: &Io, round: &mut Round) -> Result<()> {
    if let Some(batmap) = &round.batmap {
        io.write("batmap", round.file, batmap.header_at, &batmap.header)
            .await?;
    }
    if round.barrier {
        sync_leaf(core, io).await?;
    }
    if let Some(batmap) = &round.batmap {
        if let Some(state) = core.borrow_mut().leaf_batmap() {
            state.emptied();
        }
        io.write("batmap", round.file, batmap.map_at, &batmap.map)
            .await?;
    }
    fn pieces(writes: &[(u64, Vec<u8>)]) -> impl Iterator<Item = (u64, &[u8])> {
        writes
            .iter()
            .map(|(offset, bytes)| (*offset, bytes.as_slice()))
    }
    io.write_all(
        "bitmap",
        round.file,
        pieces(&std::mem::take(&mut round.bitmap_writes)),
    )
    .await?;
    io.write_all(
        "BAT",
        round.file,
        pieces(&std::mem::take(&mut round.bat_writes)),
    )
    .await?;
    if round.last && !planted::is(Bug::NoLastSync) {
        sync_leaf(core, io).await
    } else {
        Ok(())
    }
}

fn end_round(core: &mut Core, round: Round, good: bool) {
    let good = good || planted::is(Bug::FailedCommitForgotten);
    for index in &round.bitmaps {
        core.cache.unpin(*index);
        if !good {
            core.cache.mark_dirty(*index);
        } else {
            core.settle(*index);
        }
    }
    if good {
        core.releases.unnamed.extend(round.released);
    } else {
        core.commit.dirty_bat.extend(round.bat);
        core.commit.places.extend(round.places);
        core.releases.named.extend(round.released);
    }
}
