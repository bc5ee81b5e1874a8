//! Everything on one io_uring: file operations, event descriptors and sockets are submitted, and waited for, by a
//! single system call.
//!
//! It needs Linux 6.1, for completions that are processed only when the owner asks for them; older kernels get the
//! thread-pool back end.

mod registered;

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};

use self::registered::Registered;
use super::patience::Patience;
use super::workers::Workers;
use super::{
    Backend, Direction, Event, FileBackend, FileCall, NO_TOKEN, Pieces, Source, Token, Transfer,
    blocking,
};

/// Token of the read of the workers' bell.
const BELL: Token = NO_TOKEN - 1;

/// Direct reads and writes that are submitted together. Those of one submission often end together as well: with all of 32
/// in one, the device and the data plane take turns in idling, and 69 k/s were reached where 4 or 1 at a time reach 88 k/s
/// (a virtio disk; buffered reads are over as soon as they are submitted).
const DIRECT_BATCH: u32 = 4;

/// Threads for the few calls that an io_uring lacks.
const WORKERS: usize = 4;

/// See the module's comment.
pub struct Uring {
    ring: IoUring,
    registered: Registered,
    /// Events of calls that were over at once.
    ready: Vec<Event>,
    patience: Patience,
    workers: Option<Workers>,
    /// Calls given to workers and not yet over.
    delegated: usize,
    /// The bell's read is in flight.
    listening: bool,
    /// Direct reads and writes queued since the last of their batches.
    unsent: u32,
}

/// What is added to event descriptors.
static ONE: u64 = 1;

/// Where counts of event descriptors go. Nobody ever looks at it, so any number of reads may share it.
static COUNT: AtomicU64 = AtomicU64::new(0);

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("ready", &self.ready)
            .field("delegated", &self.delegated)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring of about `depth` entries. More operations than that may be in flight.
    ///
    /// # Errors
    ///
    /// When the kernel has no io_uring, doesn't permit it, or is too old.
    pub fn new(depth: u32) -> io::Result<Self> {
        let entries = depth.clamp(8, 4096).next_power_of_two();
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(entries * 4);
        let ring = builder.build(entries)?;
        let parameters = ring.params();
        if !(parameters.is_feature_ext_arg()
            && parameters.is_feature_nodrop()
            && parameters.is_feature_skip_cqe_on_success()
            && parameters.is_feature_submit_stable())
        {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        Ok(Self {
            registered: Registered::new(&ring),
            ring,
            ready: Vec::with_capacity(256),
            patience: Patience::default(),
            workers: None,
            delegated: 0,
            listening: false,
            unsent: 0,
        })
    }

    /// Queues an entry, making room in the queue if need be.
    ///
    /// # Safety
    ///
    /// What the entry names must stay valid until its completion.
    unsafe fn push(&mut self, entry: &Entry) {
        // SAFETY: the caller vouches for the entry.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            if self.ring.submit().is_err() {
                // The kernel has no room for further completions until some are taken.
                let mut ready = std::mem::take(&mut self.ready);
                self.reap(&mut ready);
                self.ready = ready;
            }
        }
    }

    fn reap(&mut self, events: &mut Vec<Event>) {
        let mut rung = false;
        for entry in self.ring.completion() {
            match entry.user_data() {
                NO_TOKEN => {}
                BELL => rung = true,
                token => events.push(Event {
                    token,
                    result: entry.result(),
                }),
            }
        }
        if rung {
            self.listening = false;
            if let Some(workers) = &mut self.workers {
                let before = events.len();
                workers.results(events);
                self.delegated -= events.len() - before;
            }
            self.listen();
        }
    }

    /// Waits for the workers' bell if a worker has something to do.
    fn listen(&mut self) {
        let Some(workers) = &self.workers else { return };
        if self.delegated > 0 && !self.listening {
            self.listening = true;
            let bell = workers.bell();
            // SAFETY: the bell is closed only after all calls on workers are over.
            unsafe { self.read_count(BELL, bell) };
        }
    }

    /// # Safety
    ///
    /// The descriptor must stay open until the call is over.
    unsafe fn read_count(&mut self, token: Token, fd: RawFd) {
        let word = COUNT.as_ptr().cast();
        let entry = opcode::Read::new(Fd(fd), word, 8)
            .offset(u64::MAX)
            .build()
            .user_data(token);
        // SAFETY: the word lives forever, and the caller vouches for the descriptor.
        unsafe { self.push(&entry) };
    }

    fn delegate(&mut self, token: Token, call: FileCall) {
        if self.workers.is_none() {
            self.workers = Workers::new(WORKERS).ok();
        }
        if let Some(workers) = &mut self.workers {
            self.delegated += 1;
            // SAFETY: the caller of `file` vouches for the call until its event.
            unsafe { workers.submit(token, call) };
            self.listen();
        } else {
            // SAFETY: as above.
            let result = unsafe { blocking::execute(&call) };
            self.ready.push(Event { token, result });
        }
    }
}

/// What the kernel takes at most in one call, rounded down to pages.
fn clamp(length: usize) -> u32 {
    length.min(0x7fff_f000) as u32
}

/// The entry for a transfer on a file by this name.
fn entry(transfer: &Transfer, file: Fd) -> Entry {
    let Transfer { length, offset, .. } = *transfer;
    match (transfer.direction, transfer.memory) {
        (Direction::Read, Pieces::One(buffer)) => opcode::Read::new(file, buffer, clamp(length))
            .offset(offset)
            .build(),
        (Direction::Write, Pieces::One(buffer)) => opcode::Write::new(file, buffer, clamp(length))
            .offset(offset)
            .build(),
        (Direction::Read, Pieces::List(vectors, count)) => opcode::Readv::new(file, vectors, count)
            .offset(offset)
            .build(),
        (Direction::Write, Pieces::List(vectors, count)) => {
            opcode::Writev::new(file, vectors, count)
                .offset(offset)
                .build()
        }
    }
}

impl FileBackend for Uring {
    fn add_file(&mut self, fd: RawFd) {
        self.registered.add(&self.ring, fd);
    }

    fn remove_file(&mut self, fd: RawFd) {
        self.registered.remove(&self.ring, fd);
    }

    unsafe fn file(&mut self, token: Token, call: FileCall) {
        // SAFETY: the caller vouches for the memory.
        let at_once = unsafe {
            self.patience
                .write(&call)
                .or_else(|| self.patience.read(&call))
        };
        if let Some(result) = at_once {
            return self.ready.push(Event { token, result });
        }
        let entry = match call {
            FileCall::Transfer(ref transfer) => {
                let (file, flags) = self.registered.name(transfer.fd);
                entry(transfer, file).flags(flags)
            }
            FileCall::Allocate {
                fd,
                mode,
                offset,
                length,
            } => opcode::Fallocate::new(Fd(fd), length)
                .offset(offset)
                .mode(mode)
                .build(),
            FileCall::Sync { fd } => opcode::Fsync::new(Fd(fd))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            FileCall::Truncate { .. } | FileCall::SeekHole { .. } | FileCall::Copy { .. } => {
                return self.delegate(token, call);
            }
        };
        // SAFETY: the caller vouches for memory and descriptor until the event.
        unsafe { self.push(&entry.user_data(token)) };
        if let FileCall::Transfer(Transfer { cached: false, .. }) = call {
            self.unsent += 1;
            if self.unsent >= DIRECT_BATCH {
                self.unsent = 0;
                // Should the kernel be short of room now, the next `wait` submits what is left.
                let _ = self.ring.submit();
            }
        }
    }
}

impl Backend for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn add(&mut self, _: Source) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, _: Source) {}

    fn count(&mut self, token: Token, source: Source) {
        // SAFETY: no memory of the caller is concerned.
        unsafe { self.read_count(token, source.fd) };
    }

    unsafe fn receive(&mut self, token: Token, source: Source, buffer: *mut u8, length: usize) {
        let entry = opcode::Recv::new(Fd(source.fd), buffer, clamp(length))
            .build()
            .user_data(token);
        // SAFETY: the caller vouches for the memory until the event.
        unsafe { self.push(&entry) };
    }

    unsafe fn send(&mut self, token: Token, source: Source, message: *const libc::msghdr) {
        let flags = libc::MSG_NOSIGNAL.cast_unsigned();
        let entry = opcode::SendMsg::new(Fd(source.fd), message)
            .flags(flags)
            .build()
            .user_data(token);
        // SAFETY: the caller vouches for the memory until the event.
        unsafe { self.push(&entry) };
    }

    fn cancel(&mut self, token: Token, _: Source) {
        let entry = opcode::AsyncCancel::new(token).build().user_data(NO_TOKEN);
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) };
    }

    fn notify(&mut self, fd: RawFd) {
        let word = (&raw const ONE).cast();
        let entry = opcode::Write::new(Fd(fd), word, 8)
            .offset(u64::MAX)
            .build()
            .flags(Flags::SKIP_SUCCESS)
            .user_data(NO_TOKEN);
        // SAFETY: the word lives forever.
        unsafe { self.push(&entry) };
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.patience.end_batch();
        events.append(&mut self.ready);
        let idle = events.is_empty() && self.ring.completion().is_empty();
        let result = match timeout {
            None if idle => self.ring.submit_and_wait(1),
            Some(timeout) if idle && !timeout.is_zero() => {
                let timeout = Timespec::from(timeout);
                self.ring
                    .submitter()
                    .submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
            _ => {
                let queue = self.ring.submission();
                let quiet = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
                drop(queue);
                if quiet { Ok(0) } else { self.ring.submit() }
            }
        };
        self.reap(events);
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Time is up, a signal came, or the kernel is short of room or memory for a moment.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn is_ready(&mut self) -> bool {
        !self.ready.is_empty()
            || !self.ring.completion().is_empty()
            || self.ring.submission().taskrun()
    }
}
