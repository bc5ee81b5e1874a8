//! Requests in flight on a connection: each has a slot, whose number and use make its cookie.

use std::io;
use std::time::{Duration, Instant};

use load::{Failure, Random, Result, fail};

use crate::socket::Socket;
use crate::wire::{self, Command, REPLY_BYTES, REQUEST_BYTES};

/// As much as a Unix socket holds by default, and more than fits a processor's nearest caches.
const INCOMING_BYTES: usize = 1 << 18;

/// A request of a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    /// Bytes.
    pub(crate) offset: u64,
    /// Bytes; 0 for a flush.
    pub(crate) length: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    request: Request,
    /// Of its latest request.
    cookie: u64,
    in_flight: bool,
}

/// How often the kernel was called.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Calls {
    /// That sent something.
    pub(crate) sends: u64,
    /// That received something.
    pub(crate) receives: u64,
    /// How often it slept.
    pub(crate) sleeps: u64,
}

/// The requests, and what is on its way in either direction. Nothing is allocated once it exists.
pub(crate) struct Transmission {
    socket: Socket,
    slots: Vec<Slot>,
    /// Look for so long before sleeping.
    poll: Duration,
    outgoing: Outgoing,
    incoming: Incoming,
    pub(crate) calls: Calls,
}

/// Requests that wait to be sent, one behind the other in a buffer that was random all over: so is what they write.
struct Outgoing {
    buffer: Vec<u8>,
    sent: usize,
    end: usize,
}

struct Incoming {
    buffer: Vec<u8>,
    /// Where the next header begins, or what of the data of `reading` is there.
    start: usize,
    end: usize,
    /// The slot whose data are coming, and how many bytes of them are missing.
    reading: Option<(u32, usize)>,
}

impl Transmission {
    /// For so many slots, in each of which a request has up to `written` bytes of data.
    pub(crate) fn new(
        socket: Socket,
        slots: u32,
        written: usize,
        poll: Duration,
        random: &mut Random,
    ) -> Result<Self> {
        let bytes = (REQUEST_BYTES + written).checked_mul(slots as usize);
        let Some(bytes) = bytes.filter(|&bytes| bytes <= isize::MAX as usize) else {
            fail!("{slots} writes of {written} bytes are more than memory");
        };
        let mut buffer = vec![0; bytes];
        random.fill(&mut buffer);
        let slot = Slot {
            request: Request {
                command: Command::Disconnect,
                offset: 0,
                length: 0,
            },
            cookie: 0,
            in_flight: false,
        };
        Ok(Self {
            socket,
            slots: vec![slot; slots as usize],
            poll,
            outgoing: Outgoing {
                buffer,
                sent: 0,
                end: 0,
            },
            incoming: Incoming {
                buffer: vec![0; INCOMING_BYTES],
                start: 0,
                end: 0,
                reading: None,
            },
            calls: Calls::default(),
        })
    }

    /// Whether all requests are sent, so that there is room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.sent == self.outgoing.end
    }

    /// Puts the request of a slot, which has none in flight, behind the others. Only where there was room since the last
    /// exchange: so no slot has two requests in the buffer.
    pub(crate) fn put(&mut self, slot: u32, request: Request) {
        let entry = &mut self.slots[slot as usize];
        debug_assert!(!entry.in_flight);
        // The slot in the lower half, its uses in the upper one.
        let cookie = (entry.cookie & !u64::from(u32::MAX) | u64::from(slot)).wrapping_add(1 << 32);
        *entry = Slot {
            request,
            cookie,
            in_flight: true,
        };
        let Request {
            command,
            offset,
            length,
        } = request;
        let out = &mut self.outgoing;
        if out.sent == out.end {
            (out.sent, out.end) = (0, 0);
        }
        let header = wire::request(command, cookie, offset, length);
        out.buffer[out.end..out.end + REQUEST_BYTES].copy_from_slice(&header);
        out.end += REQUEST_BYTES;
        if command == Command::Write {
            out.end += length as usize;
        }
    }

    /// Sends what is to be sent and receives what is there; looks and then sleeps until one of that succeeds.
    ///
    /// # Errors
    /// When the server closes the connection, and when time is up.
    pub(crate) fn exchange(&mut self) -> Result<()> {
        self.send()?;
        let mut end = None;
        loop {
            let all_sent = self.has_room();
            if !(all_sent && self.poll.is_zero()) {
                if self.receive(false)? {
                    return Ok(());
                }
                if !all_sent && self.send()? {
                    return Ok(());
                }
                if !self.poll.is_zero() {
                    let now = Instant::now();
                    if now < *end.get_or_insert(now + self.poll) {
                        std::hint::spin_loop();
                        continue;
                    }
                }
            }
            self.calls.sleeps += 1;
            if all_sent {
                self.receive(true)?;
                return Ok(());
            }
            self.socket.wait()?;
        }
    }

    /// Whether anything was sent.
    fn send(&mut self) -> Result<bool> {
        let out = &mut self.outgoing;
        if out.sent == out.end {
            return Ok(false);
        }
        let sent = self.socket.send_now(&out.buffer[out.sent..out.end])?;
        out.sent += sent;
        self.calls.sends += u64::from(sent > 0);
        Ok(sent > 0)
    }

    /// Whether anything came.
    fn receive(&mut self, sleep: bool) -> Result<bool> {
        let buffer = &mut self.incoming.buffer[self.incoming.end..];
        let count = if sleep {
            self.socket.receive(buffer)?
        } else {
            self.socket.receive_now(buffer)?
        };
        self.incoming.end += count;
        self.calls.receives += u64::from(count > 0);
        Ok(count > 0)
    }

    /// A slot whose request is done, if there is one among what was received. All must be taken before the next exchange.
    ///
    /// # Errors
    /// When a request failed, or the server says what makes no sense.
    pub(crate) fn take(&mut self) -> Result<Option<u32>> {
        if self.incoming.reading.is_none() {
            let Some(header) = self.incoming.header() else {
                return Ok(None);
            };
            let slot = self.answered(&header)?;
            let Request {
                command, length, ..
            } = self.slots[slot as usize].request;
            let data = if command == Command::Read {
                length as usize
            } else {
                0
            };
            self.incoming.reading = Some((slot, data));
        }
        let done = self.incoming.skip();
        if let Some(slot) = done {
            self.slots[slot as usize].in_flight = false;
        }
        Ok(done)
    }

    /// The slot of a reply that tells of success.
    fn answered(&self, header: &[u8; REPLY_BYTES]) -> Result<u32> {
        let wire::Reply { error, cookie } = wire::reply(header).map_err(Failure)?;
        // The lower half.
        let slot = cookie as u32;
        let Some(&Slot { request, .. }) = self
            .slots
            .get(slot as usize)
            .filter(|slot| slot.in_flight && slot.cookie == cookie)
        else {
            fail!("a reply to {cookie:#x}, which isn't in flight");
        };
        if error != 0 {
            let Request {
                command,
                offset,
                length,
            } = request;
            fail!(
                "{command:?} of {length} bytes at {offset}: {}",
                io::Error::from_raw_os_error(error.cast_signed())
            );
        }
        Ok(slot)
    }

    /// Fails when time is up.
    pub(crate) fn check_time(&self, now: Instant) -> Result<()> {
        self.socket.check_time(now)
    }

    /// Says good-bye, to whoever may still be there.
    pub(crate) fn disconnect(self) {
        let request = wire::request(Command::Disconnect, 0, 0, 0);
        drop(self.socket.send_now(&request));
    }
}

impl Incoming {
    /// The next header, if all of it is there; what is there of it is moved to the start if not.
    fn header(&mut self) -> Option<[u8; REPLY_BYTES]> {
        let there = &self.buffer[self.start..self.end];
        if let Some(header) = there.first_chunk() {
            self.start += REPLY_BYTES;
            return Some(*header);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        None
    }

    /// Passes over the data of the slot that they are for. Returns it when all have come.
    fn skip(&mut self) -> Option<u32> {
        let (slot, missing) = self.reading?;
        let there = missing.min(self.end - self.start);
        self.start += there;
        if there < missing {
            (self.start, self.end) = (0, 0);
            self.reading = Some((slot, missing - there));
            return None;
        }
        self.reading = None;
        Some(slot)
    }
}
