//! The attached front ends: their descriptors are waited on here, their sockets read and written, their bells rung.

mod eager;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Instant;

use vhd::record::{FRONT_END_CLOSED, FrontEndRequest, Response};

use crate::backend::{Backend, Source, Token};
use crate::error::{Error, Result};
use crate::front_end::{FrontEnd, Transport};
use crate::pool::Pool;
use crate::regions::Regions;
use crate::socket;

use eager::Pace;

/// Vectors that are sent at once at most: what the kernel takes.
const VECTORS: usize = 1024;

/// A number isn't given to another front end before this many others are free, so that late records of the host can't
/// mean the wrong one.
const RESTING: usize = 32;

/// What an event of a front end is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Its bell was rung.
    Count,
    /// Bytes were received.
    Receive,
    /// Bytes were sent.
    Send,
}

/// The table of front ends.
#[derive(Debug, Default)]
pub struct FrontEnds {
    entries: Vec<Option<Entry>>,
    /// Numbers without a front end, the longest free first.
    free: VecDeque<u32>,
    /// Those that may have requests, or bytes to move.
    ready: VecDeque<u32>,
    /// Those with responses in this turn.
    pushed: Vec<u32>,
    /// Those that are closed and wait for calls to end.
    closing: Vec<u32>,
    /// The memory that streams share.
    pub pool: Option<Rc<RefCell<Pool>>>,
    /// Sockets are read and written by calls of our own, not by the back end: see [`FrontEnds::set_eager`].
    eager: bool,
}

struct Entry {
    front_end: Box<dyn FrontEnd>,
    source: Source,
    /// Where to ring; streams have no bell.
    notify: Option<RawFd>,
    /// A region that goes with it.
    region: Option<u32>,
    is_ready: bool,
    is_pushed: bool,
    counting: bool,
    receiving: bool,
    sending: bool,
    pace: Pace,
    /// Its socket failed.
    failed: bool,
    closed: bool,
    message: Box<Message>,
}

/// What is being sent. The kernel reads it until the send is over.
struct Message {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("source", &self.source)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Entry {
    fn new(
        front_end: Box<dyn FrontEnd>,
        source: Source,
        notify: Option<RawFd>,
        region: Option<u32>,
    ) -> Self {
        Self {
            front_end,
            source,
            notify,
            region,
            is_ready: false,
            is_pushed: false,
            counting: false,
            receiving: false,
            sending: false,
            pace: Pace::default(),
            failed: false,
            closed: false,
            message: Box::new(Message {
                // SAFETY: all-zero bytes are a valid `msghdr`.
                header: unsafe { std::mem::zeroed() },
                vectors: Vec::with_capacity(if notify.is_some() { 0 } else { VECTORS }),
            }),
        }
    }

    fn is_idle(&self) -> bool {
        !(self.counting || self.receiving || self.sending)
    }
}

/// The token of a front end's call; the two highest bytes tell it from those of operations.
#[must_use]
pub fn token(number: u32, call: Call) -> Token {
    let tag: u64 = match call {
        Call::Count => 1,
        Call::Receive => 2,
        Call::Send => 3,
    };
    tag << 48 | u64::from(number)
}

/// The front end and call of a token, if it is one of theirs.
#[must_use]
pub fn from_token(token: Token) -> Option<(u32, Call)> {
    let call = match token >> 48 {
        1 => Call::Count,
        2 => Call::Receive,
        3 => Call::Send,
        _ => return None,
    };
    Some(((token & 0xffff_ffff) as u32, call))
}

impl FrontEnds {
    /// Attaches a front end, with the region that goes with it if it has one of its own. Returns its number.
    ///
    /// # Errors
    ///
    /// When its descriptor can't be waited on.
    pub fn attach(
        &mut self,
        mut front_end: Box<dyn FrontEnd>,
        region: Option<u32>,
        backend: &mut dyn Backend,
    ) -> Result<u32> {
        let number = if self.free.len() > RESTING {
            self.free.pop_front().unwrap_or_default()
        } else {
            self.entries.push(None);
            (self.entries.len() - 1) as u32
        };
        let (fd, notify) = match front_end.transport() {
            Transport::Doorbell { kick, notify } => (kick, Some(notify)),
            Transport::Stream(stream) => (stream.fd(), None),
        };
        // Number 0 is the reactor's.
        let source = Source {
            number: number + 1,
            fd,
        };
        if let Err(error) = backend.add(source) {
            self.free.push_back(number);
            return Err(Error::os(
                "the front end's descriptor can't be waited on",
                &error,
            ));
        }
        let mut entry = Entry::new(front_end, source, notify, region);
        if notify.is_some() {
            entry.counting = true;
            backend.count(token(number, Call::Count), source);
        }
        self.entries[number as usize] = Some(entry);
        // It may have received something already.
        self.make_ready(number);
        Ok(number)
    }

    /// Has a front end stop pulling; it reports when it is closed.
    ///
    /// # Errors
    ///
    /// `EBADF` when no front end has the number.
    pub fn detach(&mut self, number: u32) -> Result<()> {
        let Some(entry) = self.entry(number).filter(|entry| !entry.closed) else {
            return Err(Error::new(
                libc::EBADF,
                format!("no front end has the number {number}"),
            ));
        };
        entry.front_end.detach();
        if entry.notify.is_none() {
            // A receive that is under way comes to its end.
            // SAFETY: no memory is concerned.
            unsafe { libc::shutdown(entry.source.fd, libc::SHUT_RD) };
        }
        self.make_ready(number);
        Ok(())
    }

    /// Hands a response to its front end. One that doesn't exist any more is ignored.
    pub fn push(&mut self, response: &Response) {
        let number = response.front_end;
        let Some(entry) = self.entry(number).filter(|entry| !entry.closed) else {
            return;
        };
        entry.front_end.push(response);
        if !entry.is_pushed {
            entry.is_pushed = true;
            self.pushed.push(number);
        }
    }

    /// Publishes what was pushed, and rings where that is wanted.
    pub fn kick(&mut self, backend: &mut dyn Backend) {
        while let Some(number) = self.pushed.pop() {
            if let Some(entry) = self.entry(number) {
                entry.is_pushed = false;
                if entry.front_end.kick()
                    && let Some(notify) = entry.notify
                {
                    backend.notify(notify);
                }
            }
            self.make_ready(number);
        }
    }

    /// Takes the result of a front end's call.
    pub fn event(&mut self, number: u32, call: Call, result: i32, backend: &mut dyn Backend) {
        let Some(entry) = self.entry(number) else {
            debug_assert!(false, "an event of no front end");
            return;
        };
        let again = matches!(-result, libc::EINTR | libc::EAGAIN);
        match call {
            Call::Count => entry.counted(number, result, backend),
            Call::Receive => {
                entry.receiving = false;
                entry.pace.received();
                match entry.front_end.transport() {
                    Transport::Stream(stream) if result >= 0 => {
                        stream.received(result.unsigned_abs() as usize)
                    }
                    _ => entry.failed |= !again,
                }
            }
            Call::Send => {
                entry.sending = false;
                match entry.front_end.transport() {
                    Transport::Stream(stream) if result >= 0 => {
                        stream.sent(result.unsigned_abs() as usize)
                    }
                    _ => entry.failed |= !again,
                }
            }
        }
        if entry.failed {
            entry.fail(number, backend);
        }
        self.make_ready(number);
    }

    /// Pulls requests of those that may have some into `requests`, up to `limit` in all, and moves their bytes.
    pub fn service(
        &mut self,
        requests: &mut Vec<FrontEndRequest>,
        limit: usize,
        backend: &mut dyn Backend,
    ) {
        self.service_ready(requests, limit, backend);
        // Memory that one gives back may be what another waits for.
        while self
            .pool
            .as_ref()
            .is_some_and(|pool| pool.borrow_mut().take_wakeup())
        {
            for number in 0..self.entries.len() {
                self.make_ready(number as u32);
            }
            self.service_ready(requests, limit, backend);
        }
    }

    /// Whether some may have requests that weren't pulled because of the limit, or memory came free for them.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Says whether the owner is going to look for requests by itself for a while ([`FrontEnds::poll`]). Then sockets are read and
    /// written right here: a call that is over at once costs both ends of the connection far less than one that waits.
    pub fn set_eager(&mut self, eager: bool) {
        if self.eager && !eager {
            // Nobody looks at these sockets any more, and the owner may be too busy ever to sleep and so to `arm` them.
            for number in 0..self.entries.len() {
                if let Some(Entry { notify: None, .. }) = &self.entries[number] {
                    self.make_ready(number as u32);
                }
            }
        }
        self.eager = eager;
    }

    /// Whether a front end has requests that nobody told us of, in memory that it shares with its client or in a socket.
    #[must_use]
    pub fn poll(&mut self, now: Instant, backend: &mut dyn Backend) -> bool {
        for number in 0..self.entries.len() {
            if let Some(entry) = &mut self.entries[number]
                && !entry.closed
                && (entry.front_end.has_requests()
                    || entry.take_received(number as u32, now, backend))
            {
                self.make_ready(number as u32);
            }
        }
        self.is_pending()
    }

    /// Has clients tell us of their next requests. Whether a front end has some already.
    #[must_use]
    pub fn arm(&mut self, backend: &mut dyn Backend) -> bool {
        for (number, entry) in self.entries.iter_mut().enumerate() {
            if let Some(entry) = entry
                && !entry.closed
            {
                entry.start_receiving(number as u32, backend);
            }
        }
        self.make_ready_if(|front_end| front_end.arm())
    }

    fn make_ready_if(&mut self, mut condition: impl FnMut(&mut dyn FrontEnd) -> bool) -> bool {
        for number in 0..self.entries.len() {
            if let Some(entry) = &mut self.entries[number]
                && !entry.closed
                && condition(&mut *entry.front_end)
            {
                self.make_ready(number as u32);
            }
        }
        self.is_pending()
    }

    /// Drops those that are closed and that nothing uses any more.
    pub fn sweep(&mut self, backend: &mut dyn Backend, regions: &mut Regions) {
        let mut index = 0;
        while let Some(&number) = self.closing.get(index) {
            let gone = self.entries[number as usize].take_if(|entry| {
                entry.is_idle() && entry.region.is_none_or(|region| !regions.in_use(region))
            });
            let Some(entry) = gone else {
                index += 1;
                continue;
            };
            self.closing.swap_remove(index);
            backend.remove(entry.source);
            if let Some(region) = entry.region {
                regions.remove(region);
            }
            self.free.push_back(number);
        }
    }

    /// Ends all calls, whatever the front ends think of it. They come to their end with the next events.
    pub fn abandon(&mut self, backend: &mut dyn Backend) {
        for number in 0..self.entries.len() {
            if let Some(entry) = &mut self.entries[number] {
                entry.cancel(number as u32, backend);
                if !entry.closed {
                    entry.closed = true;
                    self.closing.push(number as u32);
                }
            }
        }
    }

    /// Whether calls are in flight or memory is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(Option::is_none)
    }

    fn service_ready(
        &mut self,
        requests: &mut Vec<FrontEndRequest>,
        limit: usize,
        backend: &mut dyn Backend,
    ) {
        let mut interrupted = None;
        for _ in 0..self.ready.len() {
            let Some(number) = self.ready.pop_front() else {
                return;
            };
            let Some(Some(entry)) = self.entries.get_mut(number as usize) else {
                continue;
            };
            entry.is_ready = false;
            if entry.closed {
                continue;
            }
            let has_turn = requests.len() < limit;
            if has_turn {
                let before = requests.len();
                entry.front_end.pull(number, requests, limit);
                entry.pace.pulled(requests.len() - before);
                if requests[before..]
                    .last()
                    .is_some_and(|request| request.operation == FRONT_END_CLOSED)
                {
                    entry.closed = true;
                    entry.cancel(number, backend);
                    self.closing.push(number);
                    continue;
                }
            }
            entry.start(number, self.eager, backend);
            if has_turn && requests.len() >= limit {
                interrupted = Some(number);
            } else if !has_turn && limit > 0 {
                self.make_ready(number);
            }
        }
        // Next time the others come first.
        if let Some(number) = interrupted {
            self.make_ready(number);
        }
    }

    fn entry(&mut self, number: u32) -> Option<&mut Entry> {
        self.entries.get_mut(number as usize)?.as_mut()
    }

    fn make_ready(&mut self, number: u32) {
        if let Some(Some(entry)) = self.entries.get_mut(number as usize)
            && !entry.is_ready
            && !entry.closed
        {
            entry.is_ready = true;
            self.ready.push_back(number);
        }
    }
}

impl Entry {
    /// Starts to receive and to send, if it may and isn't at it already. An eager one sends what can be sent at once, and leaves
    /// receiving to [`Entry::take_received`].
    fn start(&mut self, number: u32, eager: bool, backend: &mut dyn Backend) {
        let eager = eager && self.pace.is_eager();
        if !eager {
            self.start_receiving(number, backend);
        }
        let Transport::Stream(stream) = self.front_end.transport() else {
            return;
        };
        while !self.failed && !self.sending {
            let Message { header, vectors } = &mut *self.message;
            vectors.clear();
            stream.send_from(vectors, VECTORS);
            if vectors.is_empty() {
                return;
            }
            header.msg_iov = vectors.as_mut_ptr();
            header.msg_iovlen = vectors.len();
            if eager {
                // SAFETY: the stream promises that the memory is valid, and the message names nothing else.
                let result = unsafe { socket::send(self.source.fd, header) };
                // Whatever the error is, the back end will meet it as well.
                if let Ok(count) = usize::try_from(result) {
                    stream.sent(count);
                    continue;
                }
            }
            self.sending = true;
            // SAFETY: the stream promises that the memory stays valid until `sent`, the message is boxed and left
            // alone while `sending`, and the entry is dropped only when it isn't sending.
            unsafe { backend.send(token(number, Call::Send), self.source, header) };
        }
    }

    fn start_receiving(&mut self, number: u32, backend: &mut dyn Backend) {
        if self.receiving || self.failed {
            return;
        }
        if let Transport::Stream(stream) = self.front_end.transport()
            && let Some((buffer, length)) = stream.receive_into()
            && length > 0
        {
            self.receiving = true;
            // SAFETY: the stream promises that the memory stays valid until `received`, and it is dropped only when it
            // isn't receiving.
            unsafe { backend.receive(token(number, Call::Receive), self.source, buffer, length) };
        }
    }

    /// Receives what has come, when it is time to look. True if there was something. A stream for which nothing comes for long
    /// is left to the back end.
    fn take_received(&mut self, number: u32, now: Instant, backend: &mut dyn Backend) -> bool {
        if self.receiving || self.failed || !self.pace.is_eager() || !self.pace.is_due(now) {
            return false;
        }
        let Transport::Stream(stream) = self.front_end.transport() else {
            return false;
        };
        let Some((buffer, length)) = stream.receive_into().filter(|&(_, length)| length > 0) else {
            return false;
        };
        // SAFETY: the stream promises that the memory is valid.
        let result = unsafe { socket::receive(self.source.fd, buffer, length) };
        if let Ok(count) = usize::try_from(result) {
            stream.received(count);
            self.pace.received();
            return true;
        }
        // Whatever the error is, the back end will meet it as well.
        self.pace.missed(now);
        if !self.pace.is_eager() {
            self.start_receiving(number, backend);
        }
        false
    }

    fn counted(&mut self, number: u32, result: i32, backend: &mut dyn Backend) {
        self.counting = false;
        if self.closed {
            return;
        }
        if result >= 0 || matches!(-result, libc::EINTR | libc::EAGAIN) {
            self.counting = true;
            backend.count(token(number, Call::Count), self.source);
        } else {
            self.front_end.detach();
        }
    }

    /// The socket failed: the stream is told as soon as no call is in flight.
    fn fail(&mut self, number: u32, backend: &mut dyn Backend) {
        if !self.is_idle() {
            self.cancel(number, backend);
        } else if let Transport::Stream(stream) = self.front_end.transport() {
            stream.broken();
        }
    }

    fn cancel(&mut self, number: u32, backend: &mut dyn Backend) {
        for (call, active) in [
            (Call::Count, self.counting),
            (Call::Receive, self.receiving),
            (Call::Send, self.sending),
        ] {
            if active {
                backend.cancel(token(number, call), self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests;
