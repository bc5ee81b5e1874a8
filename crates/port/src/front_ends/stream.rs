//! Calls on sockets that never wait.

use std::io;
use std::os::fd::RawFd;

/// Receives what has arrived, at most `length` bytes. 0: the peer closed its side.
///
/// # Errors
/// `EAGAIN` when nothing has, and those of `recv`.
///
/// # Safety
/// `length` bytes at `buffer` must be valid.
pub(super) unsafe fn receive(fd: RawFd, buffer: *mut u8, length: usize) -> io::Result<usize> {
    // SAFETY: the caller vouches for the memory.
    let result = unsafe { libc::recv(fd, buffer.cast(), length, libc::MSG_DONTWAIT) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sends as much of a message as can be sent. Returns the bytes.
///
/// # Errors
/// `EAGAIN` when nothing can, and those of `sendmsg`.
///
/// # Safety
/// All that the message points to must be valid.
pub(super) unsafe fn send(fd: RawFd, message: &libc::msghdr) -> io::Result<usize> {
    // SAFETY: the caller vouches for the memory.
    let result = unsafe { libc::sendmsg(fd, message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
