//! What executes system calls asynchronously: an io_uring, or threads and epoll, behind one interface.
//!
//! A back end knows nothing of operations or front ends. It is given calls with a token each, and gives back the token
//! with the call's result. The reactor puts operations together from calls, so both back ends share all that is
//! difficult about them.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

pub mod blocking;
pub mod patience;
pub mod threads;
pub mod uring;
pub mod workers;

/// The caller's number of a call in flight. Back ends use [`NO_TOKEN`] themselves.
pub type Token = u64;

/// A token that no caller uses.
pub const NO_TOKEN: Token = u64::MAX;

/// A read or write of a file.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The file.
    pub fd: RawFd,
    /// To memory, or from it.
    pub direction: Direction,
    /// Where the bytes go, or are.
    pub memory: Pieces,
    /// How many bytes.
    pub length: usize,
    /// From where in the file, or to where.
    pub offset: u64,
    /// Through the page cache, so that it may be worth a try whether it is possible at once.
    pub cached: bool,
}

/// The way of a [`Transfer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file.
    Read,
    /// To the file, which leaves the memory as it is.
    Write,
}

/// The memory of a [`Transfer`].
#[derive(Clone, Copy, Debug)]
pub enum Pieces {
    /// One piece, of the transfer's length.
    One(*mut u8),
    /// So many pieces. The list, too, must stay as it is until the event.
    List(*const libc::iovec, u32),
}

/// A call on a file.
#[derive(Clone, Copy, Debug)]
pub enum FileCall {
    /// `pread`, `pwrite`, `preadv` or `pwritev`.
    Transfer(Transfer),
    /// `fallocate`.
    Allocate {
        /// The file.
        fd: RawFd,
        /// `FALLOC_FL_…` bits.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// `fdatasync`.
    Sync {
        /// The file.
        fd: RawFd,
    },
    /// `ftruncate`.
    Truncate {
        /// The file.
        fd: RawFd,
        /// Its new size in bytes.
        size: u64,
    },
    /// `lseek` with `SEEK_DATA` and `SEEK_HOLE`: whether there are data or a hole, and how far. All is data where the file system
    /// can't tell. Result: sectors << 1, plus 1 for a hole.
    SeekHole {
        /// The file. Its position changes.
        fd: RawFd,
        /// From where, a whole number of sectors.
        offset: u64,
        /// How far to look at most, in bytes: at least a sector, at most `i32::MAX`.
        length: u64,
    },
    /// `copy_file_range`, or reading and writing where that isn't possible; all of the length unless the source ends.
    Copy {
        /// The file to read.
        from: RawFd,
        /// Where in it.
        from_offset: u64,
        /// The file to write.
        to: RawFd,
        /// Where in it.
        to_offset: u64,
        /// Bytes, at most `i32::MAX`.
        length: u64,
    },
}

/// A call that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The caller's number of the call.
    pub token: Token,
    /// What the system call returned, or a negative errno value.
    pub result: i32,
}

/// A descriptor to wait on, and the number under which the back end knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The caller's number of the descriptor; small numbers are best.
    pub number: u32,
    /// The descriptor.
    pub fd: RawFd,
}

/// Executes calls on files. Every call given to it ends with exactly one [`Event`].
pub trait FileBackend {
    /// Makes a file known of which much will be read and written. Back ends that gain nothing by that do nothing.
    fn add_file(&mut self, fd: RawFd) {
        let _ = fd;
    }

    /// Forgets a file before its descriptor is closed, whether it was made known or not. No call on it may be in flight.
    fn remove_file(&mut self, fd: RawFd) {
        let _ = fd;
    }

    /// Starts a call on a file.
    ///
    /// # Safety
    ///
    /// Memory and descriptors in the call must stay valid until its event.
    unsafe fn file(&mut self, token: Token, call: FileCall);
}

/// Executes all calls. Every call given to it ends with exactly one [`Event`], except `notify`.
pub trait Backend: FileBackend {
    /// `uring` or `threads`.
    fn name(&self) -> &'static str;

    /// Makes a source known before its first use. It must not be a regular file.
    ///
    /// # Errors
    ///
    /// When its descriptor can't be waited on.
    fn add(&mut self, source: Source) -> io::Result<()>;

    /// Forgets a source. No call on it may be in flight.
    fn remove(&mut self, source: Source);

    /// Starts to take the count out of an event descriptor, waiting until there is one. Result: 8.
    fn count(&mut self, token: Token, source: Source);

    /// Starts to receive from a socket, waiting until there is something. Result: bytes, 0 at the end of the stream.
    ///
    /// # Safety
    ///
    /// `length` bytes at `buffer` must stay valid, and unused, until its event.
    unsafe fn receive(&mut self, token: Token, source: Source, buffer: *mut u8, length: usize);

    /// Starts to send to a socket, waiting until something can be. Result: bytes.
    ///
    /// # Safety
    ///
    /// The message and all that it points to must stay valid and unchanged until its event.
    unsafe fn send(&mut self, token: Token, source: Source, message: *const libc::msghdr);

    /// Ends a `count`, `receive` or `send` early: it ends with `-ECANCELED` unless it ends otherwise before.
    fn cancel(&mut self, token: Token, source: Source);

    /// Adds 1 to an event descriptor that doesn't block. Nothing is reported. The descriptor must stay open until
    /// the next `wait` has returned.
    fn notify(&mut self, fd: RawFd);

    /// Appends the events of calls that are over to `events`; if there are none, waits for them, at most for `timeout`
    /// (`None`: forever). May return early without any.
    ///
    /// # Errors
    ///
    /// When the kernel refuses what can't be refused.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()>;

    /// Whether a `wait` without a timeout is worth it: false only if it surely finds nothing.
    fn is_ready(&mut self) -> bool;
}
