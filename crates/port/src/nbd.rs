//! The transmission phase of an NBD connection as a front end. The handshake is the host's; it hands over the socket and
//! what it has already read from it.
//!
//! # What is where
//!
//! * `wire`: the messages, and which requests are acceptable.
//! * `receive_buffer`: where bytes arrive.
//! * here: the requests in flight, their memory, and the order in which replies go out.
//!
//! # Flow
//!
//! Bytes arrive 64 KiB at a time, and headers are parsed out of them. The data of a small write is copied from there into its place
//! in the pool; of a large one, what hasn't arrived yet is received straight into its place. A request that is complete
//! is pulled by the host, its answer pushed; replies go out in one list of vectors, headers and data alternating.
//!
//! A request needs a slot (there are [`MAX_IN_FLIGHT`]) and, for data, memory of the pool within the connection's share. Where
//! one is missing, nothing more is parsed or received until there is: TCP tells the client to wait. Other connections are not
//! concerned. When a slot or memory comes free, [`Pool::take_wakeup`] says so.
//!
//! # The end
//!
//! After `NBD_CMD_DISC`, the end of the stream, or a violation of the protocol, nothing more is received; what is in flight is
//! answered and sent, then `FRONT_END_CLOSED` follows and whoever drops the connection closes the socket. `detach` does the same, and answers
//! requests that the host hasn't pulled yet with `ESHUTDOWN`. After `broken` nothing is sent either.
//!
//! # What is asked of the reactor
//!
//! * After `push` and `sent`, ask [`Pool::take_wakeup`], and if it says so, `pull` and `receive_into` every connection of the
//!   pool again before sleeping. Without that, a connection that waited for memory would wait for ever.
//! * When `broken` is called, neither a receive nor a send is outstanding in the kernel any more.
//! * After `detach`, cancel a receive that is outstanding, and report its end with `received` (0 if it was cancelled): the
//!   kernel may be writing into the memory until then, so `FRONT_END_CLOSED` waits for it.
//! * `receive_into` and `send_from` may be called again without `received` and `sent` in between; they name the same bytes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use vhd::record::{
    FRONT_END_CLOSED, FrontEndRequest, MAX_SEGMENTS, RequestKind, Response, SECTOR, Segment,
    StatusExtent,
};

use crate::front_end::{FrontEnd, Stream, Transport};
use crate::pool::{Allocation, Pool, Share};

mod receive_buffer;
#[cfg(test)]
mod tests;
mod wire;

use receive_buffer::ReceiveBuffer;
use wire::{Header, REQUEST_BYTES, Reply, Verdict};

/// Requests of one connection that may be in flight.
pub const MAX_IN_FLIGHT: usize = 256;
/// Bytes received at once.
const RECEIVE_BYTES: usize = 64 << 10;
/// From this length on, what is missing of a write's data is received straight into its place. A shorter rest is cheaper to
/// copy than to receive by a call of its own.
const DIRECT_BYTES: usize = 16 << 10;

/// What was negotiated in the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NbdOptions {
    /// `NBD_OPT_STRUCTURED_REPLY`.
    pub structured_replies: bool,
    /// The id of the metadata context `base:allocation`, if the client chose it (`NBD_OPT_SET_META_CONTEXT`).
    pub allocation_context: Option<u32>,
    /// Refuse whatever writes.
    pub read_only: bool,
}

/// A connection in its transmission phase. See the module's comment.
#[derive(Debug)]
pub struct NbdConnection {
    socket: OwnedFd,
    options: NbdOptions,
    pool: Rc<RefCell<Pool>>,
    share: mem::ManuallyDrop<Share>,
    slots: mem::ManuallyDrop<Box<[Slot]>>,
    free: Vec<u16>,
    /// Slots of requests that are complete and not yet pulled.
    ready: VecDeque<u16>,
    /// Slots of replies that are not completely sent.
    replies: VecDeque<u16>,
    /// Bytes of the first reply that are sent.
    reply_sent: usize,
    /// Requests pulled and not yet pushed.
    in_flight: usize,
    buffer: mem::ManuallyDrop<ReceiveBuffer>,
    expects: Expects,
    /// The parser waits for a slot or for memory.
    blocked: bool,
    receive: Option<Receive>,
    sending: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Requests are read.
    Open,
    /// Nothing more is read, but replies are sent.
    Ending,
    /// The socket is dead.
    Broken,
    /// `FRONT_END_CLOSED` was given out.
    Closed,
}

/// What the next bytes of the stream are.
#[derive(Clone, Copy, Debug)]
enum Expects {
    Header,
    /// The data of the write in this slot, of which so many bytes are there.
    Data {
        slot: u16,
        filled: u32,
    },
    /// So many bytes of the data of the refused write in this slot.
    Waste {
        slot: u16,
        left: u32,
    },
}

/// A receive that was asked for.
#[derive(Clone, Copy, Debug)]
struct Receive {
    at: *mut u8,
    length: usize,
    /// Into the pool, not into the receive buffer.
    direct: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Arriving,
    Ready,
    InFlight,
    Replying,
}

#[derive(Debug)]
struct Slot {
    phase: Phase,
    kind: RequestKind,
    flags: u8,
    /// 0 or a negative errno value.
    error: i32,
    cookie: u64,
    offset: u64,
    length: u32,
    memory: Option<Allocation>,
    reply: Reply,
    /// Bytes of the reply's data, which are in `memory`.
    reply_data: u32,
}

impl Slot {
    const EMPTY: Self = Self {
        phase: Phase::Free,
        kind: RequestKind::Flush,
        flags: 0,
        error: 0,
        cookie: 0,
        offset: 0,
        length: 0,
        memory: None,
        reply: Reply::EMPTY,
        reply_data: 0,
    };
}

impl NbdConnection {
    /// A connection whose handshake is over. `received` is what was read from the socket after it.
    #[must_use]
    pub fn new(
        socket: OwnedFd,
        received: &[u8],
        options: NbdOptions,
        pool: Rc<RefCell<Pool>>,
    ) -> Self {
        let share = pool.borrow_mut().join();
        Self {
            socket,
            options,
            pool,
            share: mem::ManuallyDrop::new(share),
            slots: mem::ManuallyDrop::new((0..MAX_IN_FLIGHT).map(|_| Slot::EMPTY).collect()),
            free: (0..MAX_IN_FLIGHT as u16).rev().collect(),
            ready: VecDeque::with_capacity(MAX_IN_FLIGHT),
            replies: VecDeque::with_capacity(MAX_IN_FLIGHT),
            reply_sent: 0,
            in_flight: 0,
            buffer: mem::ManuallyDrop::new(ReceiveBuffer::new(RECEIVE_BYTES, received)),
            expects: Expects::Header,
            blocked: false,
            receive: None,
            sending: false,
            stage: Stage::Open,
        }
    }

    /// Parses what is in the receive buffer, as far as slots and memory go.
    fn parse(&mut self) {
        while self.stage == Stage::Open {
            let bytes = self.buffer.bytes();
            match self.expects {
                Expects::Header => {
                    let Some(header) = bytes.first_chunk::<REQUEST_BYTES>() else {
                        return;
                    };
                    let Some(header) = Header::parse(header) else {
                        return self.end();
                    };
                    if !self.begin(&header) {
                        return;
                    }
                }
                Expects::Data { slot, filled } => {
                    let missing = self.slots[usize::from(slot)].length - filled;
                    let count = bytes.len().min(missing as usize);
                    if count == 0 {
                        return;
                    }
                    let to = self.data_address(slot, filled);
                    // SAFETY: the slot's memory has room for `length` bytes, `filled + count` are not more, and it isn't behind
                    // a reference anywhere; the receive buffer lies elsewhere.
                    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), count) };
                    self.buffer.consume(count);
                    self.arrived(slot, filled + count as u32);
                }
                Expects::Waste { slot, left } => {
                    let count = bytes.len().min(left as usize);
                    if count == 0 {
                        return;
                    }
                    self.buffer.consume(count);
                    let left = left - count as u32;
                    if left == 0 {
                        self.complete(slot);
                    } else {
                        self.expects = Expects::Waste { slot, left };
                    }
                }
            }
        }
    }

    /// Takes a request up. False when it has to wait, and its header stays where it is.
    fn begin(&mut self, header: &Header) -> bool {
        let verdict = header.judge(self.options);
        let (kind, flags, error, drain) = match verdict {
            Verdict::Serve { kind, flags } => (kind, flags, 0, 0),
            Verdict::Refuse { errno, drain } => (RequestKind::Flush, 0, -errno, drain),
            Verdict::Disconnect | Verdict::Violation => {
                self.end();
                return false;
            }
        };
        let Some(&slot) = self.free.last() else {
            self.blocked = true;
            return false;
        };
        let mut memory = None;
        let bytes = header.memory(kind);
        if bytes > 0 {
            memory = self.pool.borrow_mut().allocate(&mut self.share, bytes);
            if memory.is_none() {
                self.blocked = true;
                return false;
            }
        }
        self.blocked = false;
        self.free.pop();
        self.buffer.consume(REQUEST_BYTES);
        self.slots[usize::from(slot)] = Slot {
            phase: Phase::Arriving,
            kind,
            flags,
            error,
            cookie: header.cookie,
            offset: header.offset,
            length: header.length,
            memory,
            reply: Reply::EMPTY,
            reply_data: 0,
        };
        if kind == RequestKind::Write {
            self.expects = Expects::Data { slot, filled: 0 };
        } else if drain > 0 {
            self.expects = Expects::Waste { slot, left: drain };
        } else {
            self.complete(slot);
        }
        true
    }

    /// So many bytes of a write's data are there.
    fn arrived(&mut self, slot: u16, filled: u32) {
        if filled == self.slots[usize::from(slot)].length {
            self.complete(slot);
        } else {
            self.expects = Expects::Data { slot, filled };
        }
    }

    /// Everything of the request is there.
    fn complete(&mut self, slot: u16) {
        self.expects = Expects::Header;
        self.slots[usize::from(slot)].phase = Phase::Ready;
        self.ready.push_back(slot);
    }

    fn data_address(&self, slot: u16, from: u32) -> *mut u8 {
        let pool = self.pool.borrow();
        let memory = self.slots[usize::from(slot)]
            .memory
            .as_ref()
            .expect("a request with data has memory");
        debug_assert!(from <= memory.capacity());
        // SAFETY: `from` is within the allocation.
        unsafe { pool.address(memory).add(from as usize) }
    }

    /// Reads nothing more. What has completely arrived is still served.
    fn end(&mut self) {
        if self.stage == Stage::Open {
            self.stage = Stage::Ending;
        }
        self.blocked = false;
        self.pool.borrow_mut().give_up(&mut self.share);
        // The kernel may still be writing into the data's place: then `received` comes back to this.
        if self.receive.is_none()
            && let Expects::Data { slot, .. } | Expects::Waste { slot, .. } = self.expects
        {
            self.expects = Expects::Header;
            self.release(slot);
        }
    }

    /// Puts a reply at the end of the line. `payload` is that of a [`Response`].
    fn reply(&mut self, slot: u16, status: i32, payload: u32) {
        let entry = &self.slots[usize::from(slot)];
        let mut error = wire::error_value(status);
        let mut data = 0;
        match entry.kind {
            // A refused request has another kind.
            RequestKind::Read if error == 0 => data = entry.length,
            RequestKind::BlockStatus if error == 0 => {
                data = self.extents(slot, payload);
                // There has to be one.
                if data == 0 {
                    error = wire::error_value(-libc::EIO);
                }
            }
            _ => {}
        }
        let entry = &mut self.slots[usize::from(slot)];
        entry.reply_data = data;
        entry.reply = match (self.options.allocation_context, entry.kind) {
            _ if !self.options.structured_replies => Reply::simple(entry.cookie, error),
            _ if error != 0 => Reply::structured_error(entry.cookie, error),
            (_, RequestKind::Read) => {
                Reply::structured_data(entry.cookie, entry.offset, entry.length)
            }
            (Some(context), RequestKind::BlockStatus) => {
                Reply::structured_status(entry.cookie, context, data)
            }
            _ => Reply::structured_none(entry.cookie),
        };
        entry.phase = Phase::Replying;
        if data == 0 {
            self.release_memory(slot);
        }
        self.replies.push_back(slot);
    }

    /// Makes the extents that the host put into a request's memory those of the wire. Returns their bytes.
    fn extents(&mut self, slot: u16, extents: u32) -> u32 {
        let room = wire::status_bytes(self.slots[usize::from(slot)].length);
        let bytes = extents.saturating_mul(StatusExtent::BYTES).min(room);
        let at = self.data_address(slot, 0);
        // SAFETY: the memory has so much room; the request is over and the reply isn't being sent, so it is behind no other
        // reference, and the kernel doesn't use it.
        wire::encode_extents(unsafe { std::slice::from_raw_parts_mut(at, bytes as usize) });
        bytes
    }

    fn release_memory(&mut self, slot: u16) {
        if let Some(memory) = self.slots[usize::from(slot)].memory.take() {
            self.pool.borrow_mut().free(&mut self.share, memory);
            self.wake();
        }
    }

    fn release(&mut self, slot: u16) {
        self.release_memory(slot);
        self.slots[usize::from(slot)].phase = Phase::Free;
        self.free.push(slot);
        self.wake();
    }

    /// A slot or memory came free.
    fn wake(&mut self) {
        if self.blocked {
            self.pool.borrow_mut().wake();
        }
    }

    fn record(&self, id: u32, slot: u16) -> FrontEndRequest {
        let entry = &self.slots[usize::from(slot)];
        let mut request = FrontEndRequest {
            front_end: id,
            slot: u32::from(slot),
            operation: entry.kind as u8,
            flags: entry.flags,
            error: entry.error,
            sector: 0,
            sectors: 0,
            region: self.pool.borrow().region(),
            segments: [Segment::default(); MAX_SEGMENTS],
            nr_segments: 0,
        };
        if entry.error == 0 {
            request.sector = entry.offset / SECTOR;
            request.sectors = entry.length / SECTOR as u32;
        }
        if let Some(memory) = &entry.memory {
            request.segments[0] = Segment {
                buffer: memory.offset(),
                sectors: request.sectors,
            };
            request.nr_segments = 1;
        }
        request
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Ending | Stage::Broken)
            && self.in_flight == 0
            && self.ready.is_empty()
            && self.replies.is_empty()
            && self.receive.is_none()
    }
}

impl FrontEnd for NbdConnection {
    fn pull(&mut self, id: u32, out: &mut Vec<FrontEndRequest>, limit: usize) {
        self.parse();
        while out.len() < limit {
            let Some(slot) = self.ready.pop_front() else {
                break;
            };
            self.slots[usize::from(slot)].phase = Phase::InFlight;
            self.in_flight += 1;
            out.push(self.record(id, slot));
        }
        if self.is_over() && out.len() < limit {
            self.stage = Stage::Closed;
            out.push(FrontEndRequest {
                front_end: id,
                slot: 0,
                operation: FRONT_END_CLOSED,
                flags: 0,
                error: 0,
                sector: 0,
                sectors: 0,
                region: 0,
                segments: [Segment::default(); MAX_SEGMENTS],
                nr_segments: 0,
            });
        }
    }

    fn push(&mut self, response: &Response) {
        let known = self
            .slots
            .get(response.slot as usize)
            .is_some_and(|slot| slot.phase == Phase::InFlight);
        if !known {
            debug_assert!(false, "response to a request that isn't in flight");
            return;
        }
        let slot = response.slot as u16;
        self.in_flight -= 1;
        if self.stage == Stage::Broken {
            self.release(slot);
        } else {
            self.reply(slot, response.status, response.payload);
        }
    }

    fn kick(&mut self) -> bool {
        false
    }

    fn detach(&mut self) {
        if matches!(self.stage, Stage::Broken | Stage::Closed) {
            return;
        }
        self.end();
        while let Some(slot) = self.ready.pop_front() {
            self.reply(slot, -libc::ESHUTDOWN, 0);
        }
    }

    fn transport(&mut self) -> Transport<'_> {
        Transport::Stream(self)
    }
}

impl Stream for NbdConnection {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn receive_into(&mut self) -> Option<(*mut u8, usize)> {
        if self.receive.is_none() {
            self.parse();
            if self.stage != Stage::Open || self.blocked {
                return None;
            }
            let mut receive = None;
            if let Expects::Data { slot, filled } = self.expects {
                let length = (self.slots[usize::from(slot)].length - filled) as usize;
                if length >= DIRECT_BYTES {
                    receive = Some(Receive {
                        at: self.data_address(slot, filled),
                        length,
                        direct: true,
                    });
                }
            }
            self.receive = receive.or_else(|| {
                let (at, length) = self.buffer.room();
                Some(Receive {
                    at,
                    length,
                    direct: false,
                })
            });
        }
        self.receive.map(|receive| (receive.at, receive.length))
    }

    fn received(&mut self, count: usize) {
        let Some(receive) = self.receive.take() else {
            debug_assert!(false, "nothing was to be received");
            return;
        };
        let count = count.min(receive.length);
        if count == 0 || self.stage != Stage::Open {
            return self.end();
        }
        match self.expects {
            Expects::Data { slot, filled } if receive.direct => {
                self.arrived(slot, filled + count as u32)
            }
            // SAFETY: the caller says that they were written where `room` said, and `room` wasn't called since.
            _ => unsafe { self.buffer.filled(count) },
        }
        self.parse();
    }

    fn send_from(&mut self, vectors: &mut Vec<libc::iovec>, limit: usize) {
        let mut skip = self.reply_sent;
        for &slot in &self.replies {
            let entry = &self.slots[usize::from(slot)];
            let head = entry.reply.bytes();
            let data = entry.reply_data as usize;
            if vectors.len() >= limit {
                break;
            }
            if skip < head.len() {
                let rest = &head[skip..];
                vectors.push(libc::iovec {
                    iov_base: rest.as_ptr().cast_mut().cast(),
                    iov_len: rest.len(),
                });
            }
            let skip_data = skip.saturating_sub(head.len());
            skip = 0;
            if skip_data < data {
                if vectors.len() >= limit {
                    break;
                }
                let at = self.data_address(slot, skip_data as u32);
                vectors.push(libc::iovec {
                    iov_base: at.cast(),
                    iov_len: data - skip_data,
                });
            }
        }
        self.sending = !self.replies.is_empty();
    }

    fn sent(&mut self, count: usize) {
        self.sending = false;
        self.reply_sent += count;
        while let Some(&slot) = self.replies.front() {
            let entry = &self.slots[usize::from(slot)];
            let total = entry.reply.bytes().len() + entry.reply_data as usize;
            if self.reply_sent < total {
                return;
            }
            self.reply_sent -= total;
            self.replies.pop_front();
            self.release(slot);
        }
        debug_assert_eq!(self.reply_sent, 0, "more was sent than there was");
        self.reply_sent = 0;
    }

    fn broken(&mut self) {
        if self.stage == Stage::Closed {
            return;
        }
        self.stage = Stage::Broken;
        self.receive = None;
        self.sending = false;
        self.end();
        self.reply_sent = 0;
        while let Some(slot) = self.replies.pop_front().or_else(|| self.ready.pop_front()) {
            self.release(slot);
        }
    }
}

impl Drop for NbdConnection {
    fn drop(&mut self) {
        // After FRONT_END_CLOSED nothing is outstanding. Should the reactor go down before that, then whatever the kernel may still
        // use is leaked rather than reused: the receive buffer, the reply headers, and memory of requests in flight.
        // Allocations that stay in their slots leak by themselves.
        let receiving = self.receive.is_some();
        let direct = self.receive.is_some_and(|receive| receive.direct);
        for slot in 0..self.slots.len() {
            let idle = match self.slots[slot].phase {
                Phase::Free | Phase::Ready => true,
                Phase::Arriving => !direct,
                Phase::InFlight => false,
                Phase::Replying => !self.sending,
            };
            if idle {
                self.release_memory(slot as u16);
            }
        }
        // SAFETY: each is dropped or taken here at most once, and not used afterwards.
        unsafe {
            if !receiving {
                mem::ManuallyDrop::drop(&mut self.buffer);
            }
            if !self.sending {
                mem::ManuallyDrop::drop(&mut self.slots);
            }
            let share = mem::ManuallyDrop::take(&mut self.share);
            self.pool.borrow_mut().leave(share);
        }
    }
}
