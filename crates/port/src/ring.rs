//! The blktap2 shared ring over any mapping: requests and responses in one page, their data in 352 pages behind it.
//!
//! # The layout
//!
//! From Xen's public headers `io/ring.h` and `io/blkif.h` and from blktap2's `blktaplib.h`, for x86-64, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0, 4, 8, 12 | indexes, u32 each: `req_prod`, `req_event`, `rsp_prod`, `rsp_event` |
//! | 16 | the ring's message: 0 none, 1 pause, 2 resume, 3 close |
//! | 64 + 112 i | entry i of 32: a request, later overwritten by a response |
//! | 4096 (1 + 11 d + j) | data page of segment j of the request whose id is d |
//!
//! A request is operation u8, nr_segments u8, handle u16, id u64 at 8, sector u64 at 16, and from 24 on 11 segments of 8 bytes:
//! reference u32, first sector u8, last sector u8, both in units of 512 bytes within the segment's page. A discard
//! has flags u8 at 1 (bit 0: secure) and its number of sectors as u64 at 24. A response is id u64, operation u8 at 8, status i16 at 10.
//!
//! **The data pages go with the request's id, not with its ring entry** (blktap2's `MMAP_VADDR(vstart, req->id, segment)`).
//! Requests complete out of order while entries are reused in order, so an entry may be reused although the request that
//! was first in it is still being served; what keeps its data alone is that the guest doesn't reuse its id. Here an id above 31, or one
//! that is still in flight, is refused: no two requests in flight ever have data pages in common.
//!
//! # What is trusted
//!
//! Nothing. The guest can write every byte of the mapping at any time. So our own indexes are private copies, an entry is
//! copied out once before it is looked at, and what the data pages hold is moved but never looked at. The guest could only end
//! us by taking away pages that don't come back (by truncating the file, or punching out huge ones), which [`Ring::new`] rules out.
//!
//! # Which operations
//!
//! Read (0), write (1), flush (3, without segments) and discard (5). A write barrier (2) promises more than a flush behind
//! the write: nothing submitted after it may pass it. blktap2 doesn't have it, Linux no longer sends it, and a guest that is told
//! `EOPNOTSUPP` falls back to flushes; so that is the answer to it, as to every other operation.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use vhd::record::{
    FRONT_END_CLOSED, FrontEndRequest, MAX_SEGMENTS, RequestKind, Response, SECTOR, Segment,
};

use crate::front_end::{FrontEnd, Transport};

#[path = "ring/handover.rs"]
mod handover;
#[cfg(test)]
#[path = "ring/tests.rs"]
mod tests;

pub use handover::{RingFds, receive_ring};

const PAGE: usize = 4096;
/// Entries in the ring, and so requests in flight.
pub const ENTRIES: u32 = 32;
/// Segments of a request (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const SEGMENTS: usize = 11;
/// Bytes of the mapping: `BLKTAP_MMAP_REGION_SIZE` pages.
pub const MAPPING_BYTES: usize = (1 + ENTRIES as usize * SEGMENTS) * PAGE;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const MESSAGE: usize = 16;
const FIRST_ENTRY: usize = 64;
const ENTRY_BYTES: usize = 112;
const ENTRY_WORDS: usize = ENTRY_BYTES / 8;

/// `BLKIF_OP_READ`, `_WRITE`, `_FLUSH_DISKCACHE`, `_DISCARD`.
const OP_READ: u8 = 0;
const OP_WRITE: u8 = 1;
const OP_FLUSH: u8 = 3;
const OP_DISCARD: u8 = 5;

/// `BLKIF_RSP_ERROR`, `BLKIF_RSP_EOPNOTSUPP`.
const RSP_ERROR: i16 = -1;
const RSP_EOPNOTSUPP: i16 = -2;

/// The back end's side of a ring.
#[derive(Debug)]
pub struct Ring {
    page: Mapping,
    _memory: OwnedFd,
    kick: OwnedFd,
    notify: OwnedFd,
    region: u32,
    /// Index of the next request.
    req_cons: u32,
    /// Index of the next response to be written.
    rsp_prod: u32,
    /// The index up to which responses are published.
    published: u32,
    handles: [Handle; ENTRIES as usize],
    /// Bit h: handle h is unused.
    free: u32,
    /// Bit d: a request with id d is in flight and owns data pages.
    ids: u32,
    stage: Stage,
}

/// What a request in flight needs for its response.
#[derive(Clone, Copy, Debug, Default)]
struct Handle {
    id: u64,
    operation: u8,
    /// It holds its id's bit in `ids`.
    owns_pages: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// No more requests are taken; the value goes into the closing record.
    Ending {
        error: i32,
    },
    Closed,
}

impl Ring {
    /// Maps the ring. Both sides go on from the `rsp_prod` found there, read once: 0 in a guest's fresh ring.
    ///
    /// `kick` becomes readable when the guest notifies us, `notify` is written to when we notify it.
    ///
    /// # Errors
    /// When the memory is too small, can't be mapped, could be truncated by the other side (an ordinary file, or a memfd
    /// without `F_SEAL_SHRINK`), or has huge pages.
    pub fn new(memory: OwnedFd, kick: OwnedFd, notify: OwnedFd) -> io::Result<Self> {
        check_memory(&memory)?;
        let page = Mapping::new(&memory)?;
        let start = page.index(RSP_PROD).load(Ordering::Relaxed);
        Ok(Self {
            page,
            _memory: memory,
            kick,
            notify,
            region: 0,
            req_cons: start,
            rsp_prod: start,
            published: start,
            handles: [Handle::default(); ENTRIES as usize],
            free: u32::MAX,
            ids: 0,
            stage: Stage::Open,
        })
    }

    /// First byte of the mapping.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.page.base.as_ptr()
    }

    /// Bytes in the mapping.
    #[must_use]
    pub fn len(&self) -> usize {
        MAPPING_BYTES
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

    /// The ring's message (`BLKTAP2_RING_MESSAGE_…`), for `tapdisk_vbd_check_ring_message`.
    #[must_use]
    pub fn message(&self) -> u8 {
        self.page.message().load(Ordering::Acquire)
    }

    fn in_flight(&self) -> u32 {
        (!self.free).count_ones()
    }

    /// Takes requests up to index `prod`, or until `out` has `limit` entries.
    fn take(&mut self, prod: u32, front_end: u32, out: &mut Vec<FrontEndRequest>, limit: usize) {
        while self.req_cons != prod && out.len() < limit {
            let entry = Entry::copy(&self.page, self.req_cons);
            self.req_cons = self.req_cons.wrapping_add(1);
            let request = self.accept(&entry, front_end);
            out.push(request);
        }
    }

    /// Gives the request a handle, checks it and decodes it.
    fn accept(&mut self, entry: &Entry, front_end: u32) -> FrontEndRequest {
        // There is one: requests in flight are those between `rsp_prod` and `req_cons`, and `pull` keeps them at ENTRIES or fewer.
        let slot = self.free.trailing_zeros();
        self.free &= !(1 << slot);
        let id = entry.id();
        let mut request = FrontEndRequest {
            front_end,
            slot,
            // Names something for an operation that doesn't exist; nobody looks at it when there is an error.
            operation: RequestKind::Flush as u8,
            flags: 0,
            error: 0,
            sector: entry.sector(),
            sectors: 0,
            region: self.region,
            segments: [Segment::default(); MAX_SEGMENTS],
            nr_segments: 0,
        };
        let owner = 1u32
            .checked_shl(u32::try_from(id).unwrap_or(u32::MAX))
            .filter(|bit| self.ids & bit == 0);
        let outcome = match owner {
            Some(_) => entry.decode(id as u32, &mut request),
            None => Err(-libc::EINVAL),
        };
        if let Err(error) = outcome {
            request.error = error;
            request.nr_segments = 0;
            request.sectors = 0;
        }
        // A malformed request owns no pages, so that its id can't be used to shut out the id's rightful use.
        let owns_pages = outcome.is_ok();
        if let (true, Some(bit)) = (owns_pages, owner) {
            self.ids |= bit;
        }
        self.handles[slot as usize] = Handle {
            id,
            operation: entry.operation(),
            owns_pages,
        };
        request
    }
}

impl FrontEnd for Ring {
    fn pull(&mut self, id: u32, out: &mut Vec<FrontEndRequest>, limit: usize) {
        while self.stage == Stage::Open && out.len() < limit {
            // Acquire: the entries below the index are read after it.
            let prod = self.page.index(REQ_PROD).load(Ordering::Acquire);
            // In flight are the requests from rsp_prod to req_cons. An honest guest has at most ENTRIES requests without
            // a response that it has seen, which are at least those without one that we wrote.
            if prod.wrapping_sub(self.rsp_prod) > ENTRIES
                || prod.wrapping_sub(self.req_cons) > ENTRIES
            {
                self.stage = Stage::Ending {
                    error: -libc::EPROTO,
                };
                break;
            }
            if prod == self.req_cons {
                break;
            }
            self.take(prod, id, out, limit);
        }
        if let Stage::Ending { error } = self.stage
            && self.in_flight() == 0
            && self.published == self.rsp_prod
            && out.len() < limit
        {
            self.stage = Stage::Closed;
            out.push(closing_record(id, error));
        }
    }

    fn has_requests(&self) -> bool {
        self.stage == Stage::Open
            && self.page.index(REQ_PROD).load(Ordering::Relaxed) != self.req_cons
    }

    fn arm(&mut self) -> bool {
        if self.stage != Stage::Open {
            return false;
        }
        // The guest writes req_prod, passes a full barrier and reads req_event; we do the reverse. So at least one of the
        // two sees what the other wrote.
        self.page
            .index(REQ_EVENT)
            .store(self.req_cons.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.has_requests()
    }

    fn push(&mut self, response: &Response) {
        let slot = response.slot;
        if slot >= ENTRIES || self.free & (1 << slot) != 0 {
            debug_assert!(false, "response to a request that isn't in flight");
            return;
        }
        self.free |= 1 << slot;
        let handle = self.handles[slot as usize];
        if handle.owns_pages {
            self.ids &= !(1 << handle.id);
        }
        let status = match response.status {
            0 => 0,
            status if status == -libc::EOPNOTSUPP => RSP_EOPNOTSUPP,
            _ => RSP_ERROR,
        };
        // The entry is ours: its request was copied out (rsp_prod < req_cons), and the guest puts another one there
        // only after it has seen this response.
        let words = self.page.entry(self.rsp_prod);
        words[0].store(handle.id, Ordering::Relaxed);
        words[1].store(
            u64::from(handle.operation) | u64::from(status.cast_unsigned()) << 16,
            Ordering::Relaxed,
        );
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    fn kick(&mut self) -> bool {
        let (old, new) = (self.published, self.rsp_prod);
        if old == new {
            return false;
        }
        self.published = new;
        // Release: the responses below the index are written before it.
        self.page.index(RSP_PROD).store(new, Ordering::Release);
        // The guest writes rsp_event, passes a full barrier and reads rsp_prod; see `arm`.
        fence(Ordering::SeqCst);
        let event = self.page.index(RSP_EVENT).load(Ordering::Relaxed);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }

    fn detach(&mut self) {
        if self.stage == Stage::Open {
            self.stage = Stage::Ending { error: 0 };
        }
    }

    fn transport(&mut self) -> Transport<'_> {
        Transport::Doorbell {
            kick: self.kick.as_raw_fd(),
            notify: self.notify.as_raw_fd(),
        }
    }
}

fn closing_record(front_end: u32, error: i32) -> FrontEndRequest {
    FrontEndRequest {
        front_end,
        slot: 0,
        operation: FRONT_END_CLOSED,
        flags: 0,
        error,
        sector: 0,
        sectors: 0,
        region: 0,
        segments: [Segment::default(); MAX_SEGMENTS],
        nr_segments: 0,
    }
}

/// An entry, copied out of the ring.
struct Entry([u64; ENTRY_WORDS]);

impl Entry {
    fn copy(page: &Mapping, index: u32) -> Self {
        let shared = page.entry(index);
        Self(std::array::from_fn(|word| {
            shared[word].load(Ordering::Relaxed)
        }))
    }

    fn operation(&self) -> u8 {
        self.0[0] as u8
    }

    /// `nr_segments`; the flags of a discard.
    fn second_byte(&self) -> u8 {
        (self.0[0] >> 8) as u8
    }

    fn id(&self) -> u64 {
        self.0[1]
    }

    fn sector(&self) -> u64 {
        self.0[2]
    }

    /// First and last sector of a segment within its page.
    fn bounds(&self, segment: usize) -> (u8, u8) {
        let word = self.0[3 + segment];
        ((word >> 32) as u8, (word >> 40) as u8)
    }

    /// Fills in what the operation asks for. `id` is below ENTRIES. The error is the answer to a malformed request.
    fn decode(&self, id: u32, request: &mut FrontEndRequest) -> Result<(), i32> {
        let kind = match self.operation() {
            OP_READ => RequestKind::Read,
            OP_WRITE => RequestKind::Write,
            OP_FLUSH => RequestKind::Flush,
            OP_DISCARD => RequestKind::Discard,
            _ => return Err(-libc::EOPNOTSUPP),
        };
        request.operation = kind as u8;
        match kind {
            RequestKind::Flush => {
                if self.second_byte() != 0 {
                    return Err(-libc::EINVAL);
                }
                request.sector = 0;
            }
            RequestKind::Discard => {
                match self.second_byte() {
                    0 => {}
                    // Secure: the sectors must be unrecoverable, which nothing here can promise.
                    1 => return Err(-libc::EOPNOTSUPP),
                    _ => return Err(-libc::EINVAL),
                }
                request.sectors = u32::try_from(self.0[3])
                    .ok()
                    .filter(|&n| n > 0)
                    .ok_or(-libc::EINVAL)?;
            }
            _ => self.decode_segments(id, request)?,
        }
        request
            .sector
            .checked_add(u64::from(request.sectors))
            .ok_or(-libc::EINVAL)?;
        Ok(())
    }

    fn decode_segments(&self, id: u32, request: &mut FrontEndRequest) -> Result<(), i32> {
        let count = usize::from(self.second_byte());
        if count == 0 || count > SEGMENTS {
            return Err(-libc::EINVAL);
        }
        for segment in 0..count {
            let (first, last) = self.bounds(segment);
            if first > last || usize::from(last) >= PAGE / SECTOR as usize {
                return Err(-libc::EINVAL);
            }
            let sectors = u32::from(last - first) + 1;
            let page = 1 + id * SEGMENTS as u32 + segment as u32;
            let buffer = page * PAGE as u32 + u32::from(first) * SECTOR as u32;
            request.segments[segment] = Segment { buffer, sectors };
            request.sectors += sectors;
        }
        request.nr_segments = count as u8;
        Ok(())
    }
}

/// The shared memory. The ring page is accessed through atomics only, the data pages not at all.
#[derive(Debug)]
struct Mapping {
    base: ptr::NonNull<u8>,
}

impl Mapping {
    fn new(memory: &OwnedFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MAPPING_BYTES,
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
        Ok(Self { base })
    }

    /// One of the four indexes.
    fn index(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset <= RSP_EVENT && offset.is_multiple_of(4));
        // SAFETY: the address is aligned and lies in the ring page, which stays mapped while `self` lives; everybody in this
        // process accesses it through atomics of this size only.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn message(&self) -> &AtomicU8 {
        // SAFETY: as for `index`.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(MESSAGE)) }
    }

    /// The words of the entry that an index stands for.
    fn entry(&self, index: u32) -> &[AtomicU64; ENTRY_WORDS] {
        let offset = FIRST_ENTRY + (index % ENTRIES) as usize * ENTRY_BYTES;
        // SAFETY: the last entry ends at 64 + 32 × 112 = 3648, within the ring page, which stays mapped while `self` lives;
        // 64 and 112 are multiples of 8. Atomics may be shared with anybody, and have the layout of their integers.
        unsafe {
            &*self
                .base
                .as_ptr()
                .add(offset)
                .cast::<[AtomicU64; ENTRY_WORDS]>()
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and nothing refers to it once its owner is dropped:
        // a ring is dropped only when nothing is in flight.
        unsafe { libc::munmap(self.base.as_ptr().cast(), MAPPING_BYTES) };
    }
}

/// Makes sure that every page of the mapping stays there whatever the other side does.
fn check_memory(memory: &OwnedFd) -> io::Result<()> {
    let refuse = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    let (mode, _) = stat(memory)?;
    match mode & libc::S_IFMT {
        libc::S_IFREG => {}
        // A driver's mapping has no size of its own and can't be truncated.
        libc::S_IFCHR => return Ok(()),
        _ => return refuse("the ring's memory is neither a memfd nor a device"),
    }
    // SAFETY: this command takes no argument and changes nothing.
    let seals = unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return refuse("the ring's memory could be truncated by its client (no F_SEAL_SHRINK)");
    }
    // A page that its client has punched out comes back when it is touched, but a huge one only if there is one left: else the
    // toucher gets a SIGBUS.
    if file_system(memory)? != libc::TMPFS_MAGIC {
        return refuse("the ring's memory has no ordinary pages");
    }
    // The size counts only if it is looked at after the seal.
    let (_, size) = stat(memory)?;
    if size < MAPPING_BYTES as i64 {
        return refuse("the ring's memory is too small");
    }
    Ok(())
}

/// The magic number of an open file's file system.
fn file_system(file: &OwnedFd) -> io::Result<libc::c_long> {
    // SAFETY: an all-zero `statfs` is a valid value of that plain structure.
    let mut statfs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `statfs` is a writable structure of the right type.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut statfs) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(statfs.f_type)
}

/// Mode and size of an open file.
fn stat(file: &OwnedFd) -> io::Result<(libc::mode_t, i64)> {
    // SAFETY: an all-zero `stat` is a valid value of that plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `stat` is a writable structure of the right type.
    if unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((stat.st_mode, stat.st_size))
}
