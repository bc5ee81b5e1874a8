//! The guest's side of the shared memory: one ring page, then 11 data pages for each of 32 request ids.
//!
//! Layout and rules are those of Xen's public `io/ring.h` and `io/blkif.h` and of blktap2; the port's `ring.rs` has
//! them in a table. Written a second time on purpose: a test with shared code would agree with its own mistakes.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Bytes in a sector.
pub const SECTOR: usize = 512;
/// Sectors in a page.
pub const PAGE_SECTORS: u8 = 8;
/// Entries in the ring.
pub const ENTRIES: u32 = 32;
/// Segments in a request.
pub const SEGMENTS: usize = 11;
/// Bytes of data in a request.
pub const REQUEST_BYTES: usize = SEGMENTS * PAGE;
/// Bytes of the whole memory.
pub const MEMORY_BYTES: usize = PAGE + ENTRIES as usize * REQUEST_BYTES;

/// Operation numbers of blkif.
pub mod operation {
    #![allow(missing_docs)]
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const BARRIER: u8 = 2;
    pub const FLUSH: u8 = 3;
    pub const DISCARD: u8 = 5;
}

/// Response status numbers of blkif.
pub mod status {
    #![allow(missing_docs)]
    pub const OKAY: i16 = 0;
    pub const ERROR: i16 = -1;
    pub const EOPNOTSUPP: i16 = -2;
}

/// A segment: first and last sector within its page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The first sector.
    pub first: u8,
    /// The last sector; part of the segment.
    pub last: u8,
}

impl Bounds {
    /// A whole page.
    pub const PAGE: Self = Self {
        first: 0,
        last: PAGE_SECTORS - 1,
    };

    /// Number of sectors.
    #[must_use]
    pub fn sectors(self) -> usize {
        usize::from(self.last - self.first) + 1
    }
}

/// A request, as freely wrong as one likes.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What to do.
    pub operation: u8,
    /// The number of segments.
    pub nr_segments: u8,
    /// Which data pages; comes back in the response.
    pub id: u64,
    /// First sector.
    pub sector: u64,
    /// The segments.
    pub segments: [Bounds; SEGMENTS],
}

impl Request {
    /// A request for whole or partial pages.
    #[must_use]
    pub fn new(operation: u8, id: u32, sector: u64, bounds: &[Bounds]) -> Self {
        let mut segments = [Bounds::default(); SEGMENTS];
        segments[..bounds.len()].copy_from_slice(bounds);
        Self {
            operation,
            nr_segments: bounds.len() as u8,
            id: id.into(),
            sector,
            segments,
        }
    }
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// The request's operation.
    pub operation: u8,
    /// A [`status`].
    pub status: i16,
}

/// How often each side told the other of something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests put into the ring.
    pub requests: u64,
    /// Batches of requests of which the other side had to be told.
    pub kicks: u64,
    /// Batches of which it didn't want to be told.
    pub kicks_saved: u64,
    /// Responses taken out of the ring.
    pub responses: u64,
    /// Notifications that came, as the eventfd counts them.
    pub notifications: u64,
    /// Times that we had to sleep for responses.
    pub sleeps: u64,
}

impl Counts {
    /// Adds those of another ring.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.kicks += other.kicks;
        self.kicks_saved += other.kicks_saved;
        self.responses += other.responses;
        self.notifications += other.notifications;
        self.sleeps += other.sleeps;
    }
}

/// The ring and its data pages.
#[derive(Debug)]
pub struct GuestRing {
    base: ptr::NonNull<u8>,
    memory: OwnedFd,
    kick: OwnedFd,
    notify: OwnedFd,
    /// Index of the next request.
    req_prod: u32,
    published: u32,
    /// Index of the next response.
    rsp_cons: u32,
    /// What happened so far.
    pub counts: Counts,
}

impl GuestRing {
    /// Makes a ring whose indexes all begin with `start`.
    ///
    /// # Errors
    /// When the kernel gives no memory or descriptor.
    pub fn new(start: u32) -> io::Result<Self> {
        let memory = make_memory()?;
        let (kick, notify) = (make_event()?, make_event()?);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MEMORY_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                memory.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = ptr::NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        let ring = Self {
            base,
            memory,
            kick,
            notify,
            req_prod: start,
            published: start,
            rsp_cons: start,
            counts: Counts::default(),
        };
        ring.req_prod().store(start, Ordering::Relaxed);
        ring.req_event()
            .store(start.wrapping_add(1), Ordering::Relaxed);
        ring.rsp_prod().store(start, Ordering::Relaxed);
        ring.rsp_event()
            .store(start.wrapping_add(1), Ordering::Release);
        Ok(ring)
    }

    /// What the other side is given: memory, kick, notify.
    #[must_use]
    pub fn descriptors(&self) -> [RawFd; 3] {
        [
            self.memory.as_raw_fd(),
            self.kick.as_raw_fd(),
            self.notify.as_raw_fd(),
        ]
    }

    /// Becomes readable with a notification.
    #[must_use]
    pub fn notify(&self) -> RawFd {
        self.notify.as_raw_fd()
    }

    /// Requests that may still be put into the ring.
    #[must_use]
    pub fn room(&self) -> u32 {
        ENTRIES - self.in_flight()
    }

    /// Requests whose responses weren't taken yet.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Puts a request into the ring; [`Self::publish`] shows it. There must be room.
    pub fn put(&mut self, request: &Request) {
        assert!(self.room() > 0, "the ring is full");
        let head = u64::from(request.operation) | u64::from(request.nr_segments) << 8;
        self.word(self.req_prod, 0).store(head, Ordering::Relaxed);
        self.word(self.req_prod, 1)
            .store(request.id, Ordering::Relaxed);
        self.word(self.req_prod, 2)
            .store(request.sector, Ordering::Relaxed);
        for (index, bounds) in request.segments.iter().enumerate() {
            // The reference means nothing in this protocol: something that would be noticed if it did.
            let word = 0xdead_beef | u64::from(bounds.first) << 32 | u64::from(bounds.last) << 40;
            self.word(self.req_prod, 3 + index)
                .store(word, Ordering::Relaxed);
        }
        self.req_prod = self.req_prod.wrapping_add(1);
        self.counts.requests += 1;
    }

    /// As [`Self::put`], for a discard of so many sectors.
    pub fn put_discard(&mut self, id: u32, sector: u64, sectors: u64, flags: u8) {
        let index = self.req_prod;
        self.put(&Request {
            nr_segments: flags,
            ..Request::new(operation::DISCARD, id, sector, &[])
        });
        self.word(index, 3).store(sectors, Ordering::Relaxed);
    }

    /// Shows the requests that were put to the other side, and kicks it if it wants to be kicked.
    ///
    /// # Errors
    /// When the event descriptor can't be written.
    pub fn publish(&mut self) -> io::Result<()> {
        let (old, new) = (self.published, self.req_prod);
        if old == new {
            return Ok(());
        }
        self.published = new;
        self.req_prod().store(new, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.req_event().load(Ordering::Relaxed);
        if new.wrapping_sub(event) < new.wrapping_sub(old) {
            self.counts.kicks += 1;
            self.kick()
        } else {
            self.counts.kicks_saved += 1;
            Ok(())
        }
    }

    /// Kicks the other side, wanted or not.
    ///
    /// # Errors
    /// When the event descriptor can't be written.
    pub fn kick(&self) -> io::Result<()> {
        let one = 1u64;
        // SAFETY: eight bytes of `one` are read.
        let written = unsafe { libc::write(self.kick.as_raw_fd(), (&raw const one).cast(), 8) };
        if written == 8 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Responses that wait.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.rsp_prod()
            .load(Ordering::Acquire)
            .wrapping_sub(self.rsp_cons)
    }

    /// Takes a response.
    pub fn take(&mut self) -> Option<Response> {
        if self.waiting() == 0 {
            return None;
        }
        let id = self.word(self.rsp_cons, 0).load(Ordering::Relaxed);
        let tail = self.word(self.rsp_cons, 1).load(Ordering::Relaxed);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        self.counts.responses += 1;
        Some(Response {
            id,
            operation: tail as u8,
            status: ((tail >> 16) as u16).cast_signed(),
        })
    }

    /// Asks for a notification when `wanted` more responses are there. True if they already are: none may come then.
    pub fn arm(&mut self, wanted: u32) -> bool {
        self.rsp_event()
            .store(self.rsp_cons.wrapping_add(wanted), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.waiting() >= wanted
    }

    /// Takes the notifications that came.
    pub fn drain_notifications(&mut self) {
        let mut count = 0u64;
        // SAFETY: eight bytes are written into `count`. The descriptor doesn't block.
        if unsafe { libc::read(self.notify.as_raw_fd(), (&raw mut count).cast(), 8) } == 8 {
            self.counts.notifications += count;
        }
    }

    /// Copies into a data page.
    pub fn write_page(&mut self, id: u32, segment: usize, offset: usize, bytes: &[u8]) {
        let to = self.data(id, segment, offset, bytes.len());
        // SAFETY: `data` checked the range; the memory isn't behind a reference.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies out of a data page.
    pub fn read_page(&self, id: u32, segment: usize, offset: usize, bytes: &mut [u8]) {
        let from = self.data(id, segment, offset, bytes.len());
        // SAFETY: `data` checked the range; the memory isn't behind a reference.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }

    fn data(&self, id: u32, segment: usize, offset: usize, length: usize) -> *mut u8 {
        assert!(
            id < ENTRIES && segment < SEGMENTS && offset + length <= PAGE,
            "outside of the data pages"
        );
        let page = 1 + id as usize * SEGMENTS + segment;
        // SAFETY: the page lies in the mapping.
        unsafe { self.base.as_ptr().add(page * PAGE + offset) }
    }

    fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        assert!(word < 14, "outside of the entry");
        let offset = 64 + (index % ENTRIES) as usize * 112 + word * 8;
        // SAFETY: aligned, in the ring page, mapped while `self` lives, and accessed through atomics only.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        assert!(offset <= 12 && offset.is_multiple_of(4), "not an index");
        // SAFETY: as for `word`.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn req_prod(&self) -> &AtomicU32 {
        self.index(0)
    }

    fn req_event(&self) -> &AtomicU32 {
        self.index(4)
    }

    fn rsp_prod(&self) -> &AtomicU32 {
        self.index(8)
    }

    fn rsp_event(&self) -> &AtomicU32 {
        self.index(12)
    }

    /// Shows an impossible request index: the other side must give up.
    pub fn break_index(&mut self) {
        self.req_prod()
            .store(self.published.wrapping_add(ENTRIES + 1), Ordering::Release);
    }
}

impl Drop for GuestRing {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), MEMORY_BYTES) };
    }
}

fn make_memory() -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let fd = unsafe {
        libc::memfd_create(
            c"tapdisk-ring".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let memory = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain system calls on that descriptor.
    let made = unsafe {
        libc::ftruncate(fd, MEMORY_BYTES as libc::off_t) == 0
            && libc::fcntl(
                fd,
                libc::F_ADD_SEALS,
                libc::F_SEAL_SHRINK | libc::F_SEAL_GROW,
            ) == 0
    };
    if made {
        Ok(memory)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn make_event() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
