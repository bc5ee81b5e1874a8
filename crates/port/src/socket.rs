//! Calls on sockets that never wait.

use std::os::fd::RawFd;

use crate::error::retried;

/// Receives what has arrived, at most `length` bytes. Result: bytes, 0 when the peer closed its side, or a negative errno
/// value: `-EAGAIN` when nothing has.
///
/// # Safety
///
/// `length` bytes at `buffer` must be valid.
pub(crate) unsafe fn receive(fd: RawFd, buffer: *mut u8, length: usize) -> i32 {
    // SAFETY: the caller vouches for the memory.
    retried(|| unsafe { libc::recv(fd, buffer.cast(), length, libc::MSG_DONTWAIT) })
}

/// Sends as much of a message as can be sent. Result: bytes, or a negative errno value: `-EAGAIN` when nothing can.
///
/// # Safety
///
/// The message and all that it points to must be valid.
pub(crate) unsafe fn send(fd: RawFd, message: *const libc::msghdr) -> i32 {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the caller vouches for the message.
    retried(|| unsafe { libc::sendmsg(fd, message, flags) })
}
