//! A file that can't grow: writes that need a place wait for those that blocks have just given back, if there are any, and
//! fail only if they come to nothing. A full block device is the usual case, whose guest discards and writes.

use std::cell::RefCell;
use std::rc::Rc;

use crate::commit;
use crate::core::Core;
use crate::discard::reclaim;
use crate::error::{Result, errno};
use crate::io::{Io, until};

/// Whether writes wait that places on their way would help.
pub(super) fn can_wait(core: &Core) -> bool {
    !core.allocator.waiting.is_empty() && core.releases.returning > 0
}

/// Makes places free that blocks have given back: commits, so that the BAT on disk doesn't name them any more, and waits for
/// the requests that may still move data there. Returns whether there are free places now.
///
/// # Errors
/// An I/O error.
pub(super) async fn bring_back(core: &Rc<RefCell<Core>>, io: &Io) -> Result<bool> {
    until(|| !core.borrow().commit.running).await;
    if !core.borrow().releases.named.is_empty() {
        core.borrow_mut().commit.running = true;
        let committed = commit::run(core, io).await;
        core.borrow_mut().commit.running = false;
        committed?;
    }
    while {
        until(|| is_decided(&core.borrow())).await;
        fail_oldest(&mut core.borrow_mut())
    } {}
    if begin(&mut core.borrow_mut()) {
        let reclaimed = reclaim(core, io).await;
        core.borrow_mut().releases.reclaiming = false;
        reclaimed?;
    }
    Ok(core.borrow().allocator.peek().is_some())
}

/// Whether there is nothing more to wait for.
fn is_decided(core: &Core) -> bool {
    let releases = &core.releases;
    let nothing_comes = releases.unnamed.is_empty() && !releases.reclaiming;
    core.allocator.peek().is_some()
        || nothing_comes
        || releases.can_reclaim(core.oldest_request())
        || !releases.reclaiming && oldest_waits(core)
}

/// Whether the oldest request in flight waits for a place itself.
fn oldest_waits(core: &Core) -> bool {
    let oldest = core.oldest_request();
    let mut waiting = core.allocator.waiting.iter();
    waiting.any(|piece| sequence(core, piece.request) == Some(oldest))
}

fn sequence(core: &Core, request: u32) -> Option<u64> {
    core.requests
        .get(request as usize)
        .map(|request| request.sequence)
}

/// Fails the oldest request if it keeps places from being used for which it waits itself. Returns whether it did.
fn fail_oldest(core: &mut Core) -> bool {
    let oldest = core.oldest_request();
    let releases = &core.releases;
    let is_free = core.allocator.peek().is_some() || releases.unnamed.is_empty();
    if is_free || releases.can_reclaim(oldest) || releases.reclaiming || !oldest_waits(core) {
        return false;
    }
    let waiting = std::mem::take(&mut core.allocator.waiting);
    let (failed, others) = waiting
        .into_iter()
        .partition(|piece| sequence(core, piece.request) == Some(oldest));
    core.allocator.waiting = others;
    core.fail(failed, errno::ENOSPC);
    true
}

/// Begins to make places free, if that can be done.
fn begin(core: &mut Core) -> bool {
    let oldest = core.oldest_request();
    let can_reclaim = core.allocator.peek().is_none() && core.releases.can_reclaim(oldest);
    core.releases.reclaiming |= can_reclaim;
    can_reclaim
}
