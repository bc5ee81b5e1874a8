//! Event descriptors: counters that wake whoever waits on them.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::error::retried;

/// A new event descriptor that doesn't block.
///
/// # Errors
///
/// When there are too many descriptors.
pub fn create() -> io::Result<OwnedFd> {
    // SAFETY: no memory is concerned.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds 1. Result: 8, or a negative errno value; `-EAGAIN` means that the count is as high as it can be, so that the
/// other side has enough to wake up for.
pub fn add(fd: RawFd) -> i32 {
    let one = 1u64;
    // SAFETY: the descriptor reads eight bytes from `one`.
    retried(|| unsafe { libc::write(fd, (&raw const one).cast(), size_of::<u64>()) })
}

/// Whether 1 can be added at once: the other side may make a descriptor that it shares with us block, and fill it. Nothing
/// keeps it from doing so after the answer.
pub fn has_room(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: `poll` is one valid, writable structure.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Takes the count. Result: 8, or a negative errno value; `-EAGAIN` if there is none.
pub fn take(fd: RawFd) -> i32 {
    let mut count = 0u64;
    // SAFETY: the descriptor writes at most eight bytes into `count`.
    retried(|| unsafe { libc::read(fd, (&raw mut count).cast(), size_of::<u64>()) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_full_one_has_no_room() {
        let event = create().unwrap();
        let fd = event.as_raw_fd();
        assert!(has_room(fd));
        assert_eq!((add(fd), has_room(fd)), (8, true));
        let most = u64::MAX - 2;
        // SAFETY: eight bytes of `most` are read.
        assert_eq!(unsafe { libc::write(fd, (&raw const most).cast(), 8) }, 8);
        assert_eq!((add(fd), has_room(fd)), (-libc::EAGAIN, false));
        assert_eq!((take(fd), has_room(fd)), (8, true));
    }
}
