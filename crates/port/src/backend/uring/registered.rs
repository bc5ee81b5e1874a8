//! Files registered with an io_uring: the kernel need not look up their descriptors and count their users for each call.
//!
//! A registered file is open until it is taken out, and for some ten milliseconds after a process that was killed: so would be
//! its locks. So what is registered is the same file opened once more, which has none.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::IoUring;
use io_uring::squeue::Flags;
use io_uring::types::Fd;

use crate::file::reopen;

/// Files that are registered at most. Calls on others name their descriptors.
const SLOTS: u16 = 256;

/// In a slot that is empty.
const EMPTY: RawFd = -1;

/// The table of registered files.
#[derive(Debug)]
pub struct Registered {
    /// By descriptor: its slot.
    slots: Vec<Option<u16>>,
    free: Vec<u16>,
}

impl Registered {
    /// An empty table. It stays empty where the kernel has none, or is late to close what is taken out.
    pub fn new(ring: &IoUring) -> Self {
        // Up to Linux 6.12 that waits for all calls that began before, or for a second. There is no feature that stands for the
        // change; this one came two versions later.
        let is_prompt = ring.params().is_feature_no_iowait();
        let slots = if is_prompt && ring.submitter().register_files_sparse(SLOTS.into()).is_ok() {
            SLOTS
        } else {
            0
        };
        Self {
            slots: Vec::new(),
            free: (0..slots).rev().collect(),
        }
    }

    /// Puts a file in if that is possible.
    pub fn add(&mut self, ring: &IoUring, fd: RawFd) {
        let (Ok(index), Some(&slot)) = (usize::try_from(fd), self.free.last()) else {
            return;
        };
        let set = |file: RawFd| ring.submitter().register_files_update(slot.into(), &[file]);
        if let Ok(file) = open_again(fd)
            && set(file.as_raw_fd()).is_ok()
        {
            self.free.pop();
            if self.slots.len() <= index {
                self.slots.resize(index + 1, None);
            }
            self.slots[index] = Some(slot);
        }
    }

    /// Takes a file out if it is in. No call on it may be in flight, nor wait to be submitted.
    pub fn remove(&mut self, ring: &IoUring, fd: RawFd) {
        let taken = usize::try_from(fd)
            .ok()
            .and_then(|index| self.slots.get_mut(index)?.take());
        let Some(slot) = taken else { return };
        // A slot that can't be emptied isn't used again.
        if ring
            .submitter()
            .register_files_update(slot.into(), &[EMPTY])
            .is_ok()
        {
            self.free.push(slot);
        }
    }

    /// How an entry names a file: its slot, with the flag that says so, or its descriptor.
    pub fn name(&self, fd: RawFd) -> (Fd, Flags) {
        let slot = usize::try_from(fd)
            .ok()
            .and_then(|index| *self.slots.get(index)?);
        match slot {
            Some(slot) => (Fd(slot.into()), Flags::FIXED_FILE),
            None => (Fd(fd), Flags::empty()),
        }
    }
}

/// The same file, opened in the same way.
fn open_again(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFL takes no pointer.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let kept = libc::O_ACCMODE | libc::O_DIRECT | libc::O_NOATIME;
    reopen(fd, (flags & kept) | libc::O_NOCTTY)
}
