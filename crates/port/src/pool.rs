//! The buffer pool of the NBD connections of one worker: where the data of their requests lies between socket and file.
//!
//! The pool is one anonymous mapping, so that it can be registered with the kernel as a whole and named in records by a
//! region number and a byte offset. Pages are touched only when used, and the lowest free address is taken first, so a
//! lightly used pool stays small in memory.
//!
//! # Who gets memory
//!
//! A connection holds memory from the moment it starts to receive a write until the answer (or the data of a read) is
//! sent, so a client that stops reading its socket keeps what it holds. What it may hold is therefore bounded: in the
//! *shared* arena no connection may hold more than half of what it leaves free. So one that stalls has a third of the arena at
//! most, the next one a third of the rest, and the others go on with what remains. The *large* arena, at least
//! [`MAX_ALLOCATION`], serves requests that are big beside the shared one, and those that don't find their place there;
//! one at a time for each connection. Who has to wait for an arena is served in order of arrival, except that a connection
//! that holds nothing gets up to 1 MiB wherever there is room.
//!
//! # The owner's duty
//!
//! Memory comes free in `push` and `sent` of one front end while another waits for it. Then [`Pool::take_wakeup`] returns true,
//! and whoever runs the front ends must call `pull` and `receive_into` of all of them again before it sleeps.

use std::collections::VecDeque;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

mod buddy;
#[cfg(test)]
pub(crate) mod tests;

use buddy::Buddy;

/// Alignment and smallest size of an allocation.
pub const PAGE: u32 = 4096;
/// The largest allocation: the largest payload that the NBD protocol obliges nobody to refuse.
pub const MAX_ALLOCATION: u32 = PAGE << buddy::MAX_ORDER;
/// A first allocation of this size is made wherever there is room.
const MIN_SHARE: u32 = 1 << 20;

/// Memory of a [`Pool`]. It can be neither copied nor made outside this module, and [`Pool::free`] consumes it: nothing
/// is freed twice. Dropping it leaks its bytes until the pool goes, which is what safety asks for when the
/// kernel may still be using them.
#[derive(Debug)]
#[must_use = "dropping an allocation leaks it; give it to Pool::free"]
pub struct Allocation {
    offset: u32,
    order: u8,
    pool: u32,
}

impl Allocation {
    /// Byte offset in the pool's region; a multiple of [`PAGE`].
    #[must_use]
    pub fn offset(&self) -> u32 {
        self.offset
    }

    /// Bytes, at least as many as were asked for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        PAGE << self.order
    }
}

/// One connection's claim on a [`Pool`], made by [`Pool::join`].
#[derive(Debug)]
pub struct Share {
    /// Bytes held in the shared arena.
    held: u32,
    /// Bytes held in the large arena.
    large: u32,
    /// Its place in a queue.
    waiting: Option<(Arena, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arena {
    Shared,
    Large,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Pool {
    base: ptr::NonNull<u8>,
    len: u32,
    region: u32,
    id: u32,
    /// First byte of the large arena.
    border: u32,
    shared: Buddy,
    large: Buddy,
    shared_queue: VecDeque<u64>,
    large_queue: VecDeque<u64>,
    next_ticket: u64,
    wakeup: bool,
}

impl Pool {
    /// A usual size.
    pub const DEFAULT_BYTES: usize = 64 << 20;

    /// A pool of about this many bytes: rounded up to a multiple of [`MAX_ALLOCATION`], at least two of them and less
    /// than 4 GiB. A quarter, at least one [`MAX_ALLOCATION`], is the large arena.
    ///
    /// # Errors
    /// When the mapping can't be made.
    pub fn new(bytes: usize) -> io::Result<Self> {
        static IDS: AtomicU32 = AtomicU32::new(0);
        let unit = MAX_ALLOCATION as usize;
        let units = bytes.div_ceil(unit).clamp(2, u32::MAX as usize / unit);
        let len = units * unit;
        let large = (units / 4).max(1) * unit;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = ptr::NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        // Both fit: `len` is less than 4 GiB.
        let (len, border) = (len as u32, (len - large) as u32);
        Ok(Self {
            base,
            len,
            region: 0,
            id: IDS.fetch_add(1, Ordering::Relaxed),
            border,
            shared: Buddy::new(border / PAGE),
            large: Buddy::new((len - border) / PAGE),
            shared_queue: VecDeque::new(),
            large_queue: VecDeque::new(),
            next_ticket: 0,
            wakeup: false,
        })
    }

    /// First byte of the mapping.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes in the mapping.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Never: it is here because `len` is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The region number under which records name this memory.
    #[must_use]
    pub fn region(&self) -> u32 {
        self.region
    }

    /// Sets the region number.
    pub fn set_region(&mut self, region: u32) {
        self.region = region;
    }

    /// Where an allocation lies.
    #[must_use]
    pub fn address(&self, allocation: &Allocation) -> *mut u8 {
        self.check(allocation);
        // SAFETY: an allocation of this pool lies within its mapping.
        unsafe { self.base.as_ptr().add(allocation.offset as usize) }
    }

    /// A share for one more connection.
    pub fn join(&mut self) -> Share {
        Share {
            held: 0,
            large: 0,
            waiting: None,
        }
    }

    /// Ends a share. What it still holds is not freed.
    pub fn leave(&mut self, mut share: Share) {
        self.give_up(&mut share);
    }

    /// Takes memory for `bytes` (at most [`MAX_ALLOCATION`]). `None` if it must wait: ask again after the next wake-up and
    /// whenever something of the share was freed, or [`Pool::give_up`].
    pub fn allocate(&mut self, share: &mut Share, bytes: u32) -> Option<Allocation> {
        let order = Buddy::order(bytes.div_ceil(PAGE))?;
        let size = PAGE << order;
        let free = u64::from(self.shared.free_pages()) * u64::from(PAGE);
        let first = share.held == 0 && size <= MIN_SHARE;
        let fair = first || 2 * u64::from(share.held) + 3 * u64::from(size) <= free;
        // Who has nothing to wait for in the shared arena doesn't wait in its line, where others with more modest wishes stand.
        let shared = size <= self.border / 4 && (fair || share.held > 0);
        let (arena, waits_for_itself) = if shared {
            (Arena::Shared, !fair)
        } else {
            (Arena::Large, share.large > 0)
        };
        if share.waiting.is_some_and(|(waits, _)| waits != arena) {
            self.give_up(share);
        }
        if waits_for_itself {
            self.give_up(share);
            return None;
        }
        let ticket = share.waiting.map(|(_, ticket)| ticket);
        let next = self.queue(arena).front().copied();
        // A first one passes by those in line. What they wait for may never come, if ever so little is held everywhere by
        // clients that have stalled.
        let offset = if next.is_some() && next != ticket && !first {
            None
        } else {
            self.place(arena, share, order)
        };
        let Some(offset) = offset else {
            if ticket.is_none() {
                let ticket = self.next_ticket;
                self.next_ticket += 1;
                self.queue(arena).push_back(ticket);
                share.waiting = Some((arena, ticket));
            }
            return None;
        };
        self.give_up(share);
        if offset < self.border {
            share.held += size;
        } else {
            share.large += size;
        }
        Some(Allocation {
            offset,
            order,
            pool: self.id,
        })
    }

    fn place(&mut self, arena: Arena, share: &Share, order: u8) -> Option<u32> {
        if arena == Arena::Shared {
            if let Some(page) = self.shared.allocate(order) {
                return Some(page * PAGE);
            }
            if share.large > 0 || !self.large_queue.is_empty() {
                return None;
            }
        }
        self.large
            .allocate(order)
            .map(|page| self.border + page * PAGE)
    }

    /// Gives memory back.
    pub fn free(&mut self, share: &mut Share, allocation: Allocation) {
        self.check(&allocation);
        let size = allocation.capacity();
        if allocation.offset < self.border {
            self.shared.free(allocation.offset / PAGE, allocation.order);
            share.held -= size;
        } else {
            self.large
                .free((allocation.offset - self.border) / PAGE, allocation.order);
            share.large -= size;
        }
        self.wakeup |= self.anyone_waits();
    }

    /// Leaves the line.
    pub fn give_up(&mut self, share: &mut Share) {
        if let Some((arena, ticket)) = share.waiting.take() {
            self.queue(arena).retain(|&other| other != ticket);
            self.wakeup |= self.anyone_waits();
        }
    }

    /// Asks for a wake-up: a front end can go on after something other than memory held it up.
    pub fn wake(&mut self) {
        self.wakeup = true;
    }

    /// Whether front ends that waited may be able to go on, since the last call.
    pub fn take_wakeup(&mut self) -> bool {
        std::mem::take(&mut self.wakeup)
    }

    /// Bytes that are free, for metrics and tests.
    #[must_use]
    pub fn available(&self) -> u32 {
        (self.shared.free_pages() + self.large.free_pages()) * PAGE
    }

    fn anyone_waits(&self) -> bool {
        !self.shared_queue.is_empty() || !self.large_queue.is_empty()
    }

    fn queue(&mut self, arena: Arena) -> &mut VecDeque<u64> {
        match arena {
            Arena::Shared => &mut self.shared_queue,
            Arena::Large => &mut self.large_queue,
        }
    }

    fn check(&self, allocation: &Allocation) {
        assert_eq!(allocation.pool, self.id, "an allocation of another pool");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and goes with the pool that owns it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len as usize) };
    }
}
