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
        commit::run_alone(core, io).await?;
    }
    loop {
        until(|| next(&core.borrow()).is_some()).await;
        let next = next(&core.borrow());
        match next {
            Some(Next::FailOldest) => fail_oldest(&mut core.borrow_mut()),
            Some(Next::Reclaim) => {
                core.borrow_mut().releases.reclaiming = true;
                let reclaimed = reclaim(core, io).await;
                core.borrow_mut().releases.reclaiming = false;
                reclaimed?;
                break;
            }
            Some(Next::Nothing) | None => break,
        }
    }
    Ok(core.borrow().allocator.peek().is_some())
}

/// What can be done for those that wait.
enum Next {
    /// There is a place, or none will come.
    Nothing,
    /// Making places free.
    Reclaim,
    /// Failing the oldest request, which waits for a place itself and keeps places from being used.
    FailOldest,
}

/// What to do, if that is decided.
fn next(core: &Core) -> Option<Next> {
    let (releases, oldest) = (&core.releases, core.oldest_request());
    let nothing_comes = releases.unnamed.is_empty() && !releases.reclaiming;
    if core.allocator.peek().is_some() || nothing_comes {
        Some(Next::Nothing)
    } else if releases.can_reclaim(oldest) {
        Some(Next::Reclaim)
    } else if !releases.reclaiming && waits(core, oldest) {
        Some(Next::FailOldest)
    } else {
        None
    }
}

/// Whether the request of this number waits for a place.
fn waits(core: &Core, request: u64) -> bool {
    let mut waiting = core.allocator.waiting.iter();
    waiting.any(|piece| sequence(core, piece.request) == Some(request))
}

fn sequence(core: &Core, request: u32) -> Option<u64> {
    core.requests
        .get(request as usize)
        .map(|request| request.sequence)
}

fn fail_oldest(core: &mut Core) {
    let oldest = core.oldest_request();
    let waiting = std::mem::take(&mut core.allocator.waiting);
    let (failed, others) = waiting
        .into_iter()
        .partition(|piece| sequence(core, piece.request) == Some(oldest));
    core.allocator.waiting = others;
    core.fail(failed, errno::ENOSPC);
}
