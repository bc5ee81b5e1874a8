//! How fast is it? Keeps requests in flight, and counts.

use std::time::{Duration, Instant};

use load::{Histogram, Options, Outcome, Places, Random, Result, Rw, fail};

use crate::handshake::shake_hands;
use crate::socket::{Address, Socket};
use crate::transmission::{Request, Transmission};
use crate::wire::Command;

/// A disk, and how long everything may take.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// Where its server is.
    pub address: &'a Address,
    /// Its name there; empty: the one that the server offers by default.
    pub export: &'a str,
    /// The whole job must be done within this time.
    pub timeout: Duration,
    /// A flush follows each write; an access is over when that is answered.
    pub flush_each: bool,
}

/// Does it on all of these disks at the same time, each in a thread of its own, and returns the line about all of them.
///
/// # Errors
/// When a request fails, or the options make no sense for a disk.
pub fn run(disks: &[Disk<'_>], options: &Options) -> Result<String> {
    load::run(disks, options, Job::new, Job::run)
}

/// The load on one disk. An access has a slot, and may need a flush after its write.
struct Job {
    transmission: Transmission,
    command: Command,
    bytes: u32,
    time: Duration,
    flush_each: bool,
    places: Places,
    /// When the access of each slot began, and whether its flush has.
    accesses: Vec<Access>,
    idle: Vec<u32>,
    /// Slots whose write is done, for a flush.
    written: Vec<u32>,
    latencies: Histogram,
}

#[derive(Clone, Copy, Debug)]
struct Access {
    started: Instant,
    flushing: bool,
}

impl Job {
    fn new(disk: &Disk<'_>, options: &Options) -> Result<Self> {
        let command = match options.rw {
            Rw::Randread | Rw::Read => Command::Read,
            Rw::Randwrite | Rw::Write => Command::Write,
            Rw::Trim => Command::Trim,
        };
        if disk.flush_each && command != Command::Write {
            fail!("only writes are followed by flushes");
        }
        let socket = Socket::connect(disk.address, disk.timeout)?;
        let export = shake_hands(&socket, disk.export)?;
        if command != Command::Read && export.is_read_only() {
            fail!("the disk is read-only");
        }
        if command == Command::Trim && !export.can_trim() {
            fail!("the server can't trim");
        }
        if disk.flush_each && !export.can_flush() {
            fail!("the server can't flush");
        }
        let places = Places::new(options, export.bytes)?;
        let Ok(bytes) = u32::try_from(options.bs) else {
            fail!("{} bytes are too many for a request", options.bs);
        };
        let depth = options.depth;
        let written = if command == Command::Write {
            bytes as usize
        } else {
            0
        };
        let mut random = Random::new(options.seed);
        let access = Access {
            started: Instant::now(),
            flushing: false,
        };
        Ok(Self {
            transmission: Transmission::new(socket, depth, written, options.poll, &mut random)?,
            command,
            bytes,
            time: options.time,
            flush_each: disk.flush_each,
            places,
            accesses: vec![access; depth as usize],
            idle: (0..depth).rev().collect(),
            written: Vec::with_capacity(depth as usize),
            latencies: Histogram::default(),
        })
    }

    fn run(mut self) -> Result<Outcome> {
        let started = Instant::now();
        self.work(started + self.time)?;
        let elapsed = started.elapsed();
        let calls = self.transmission.calls;
        self.transmission.disconnect();
        Ok(Outcome {
            span: self.places.span(),
            elapsed,
            latencies: self.latencies,
            counts: vec![
                ("sends", calls.sends),
                ("receives", calls.receives),
                ("sleeps", calls.sleeps),
            ],
        })
    }

    fn work(&mut self, until: Instant) -> Result<()> {
        let mut now = Instant::now();
        loop {
            if self.transmission.has_room() {
                self.put_requests(now, until);
            }
            if self.idle.len() == self.accesses.len() {
                return Ok(());
            }
            self.transmission.exchange()?;
            now = Instant::now();
            self.transmission.check_time(now)?;
            while let Some(slot) = self.transmission.take()? {
                self.finish(slot, now);
            }
        }
    }

    /// All that are ready.
    fn put_requests(&mut self, now: Instant, until: Instant) {
        while let Some(slot) = self.written.pop() {
            self.accesses[slot as usize].flushing = true;
            let flush = Request {
                command: Command::Flush,
                offset: 0,
                length: 0,
            };
            self.transmission.put(slot, flush);
        }
        // Trimming is over when everything is trimmed.
        while (now < until || self.command == Command::Trim)
            && !self.idle.is_empty()
            && let Some(offset) = self.places.next()
            && let Some(slot) = self.idle.pop()
        {
            self.accesses[slot as usize] = Access {
                started: now,
                flushing: false,
            };
            let request = Request {
                command: self.command,
                offset,
                length: self.bytes,
            };
            self.transmission.put(slot, request);
        }
    }

    fn finish(&mut self, slot: u32, now: Instant) {
        let Access { started, flushing } = self.accesses[slot as usize];
        if self.flush_each && !flushing {
            self.written.push(slot);
        } else {
            self.latencies.add(now - started);
            self.idle.push(slot);
        }
    }
}
