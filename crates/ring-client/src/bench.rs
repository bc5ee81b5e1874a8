//! How fast is it? One line of JSON.

use std::collections::VecDeque;
use std::time::Instant;

use load::{Histogram, Options, Outcome, Places, Random, Result, Rw, during, fail};

use crate::client::{Client, Connect};
use crate::ring::{
    Bounds, ENTRIES, PAGE, PAGE_SECTORS, REQUEST_BYTES, Request, SECTOR, operation, status,
};

/// Does it on all of these rings at the same time, each in a thread of its own, and returns the line about all of them.
///
/// # Errors
/// When an access fails, or the options make no sense for a disk.
pub fn run(rings: &[Connect<'_>], options: &Options) -> Result<String> {
    load::run(rings, options, Job::new, Job::run)
}

/// An access in flight.
#[derive(Clone, Copy, Debug)]
struct Access {
    started: Instant,
    /// Parts without a response.
    parts: u32,
}

/// A part of an access that waits for its place in the ring.
#[derive(Clone, Copy, Debug)]
struct Part {
    access: u32,
    sector: u64,
    sectors: u64,
}

struct Job {
    client: Client,
    options: Options,
    places: Places,
    accesses: Vec<Option<Access>>,
    idle: Vec<u32>,
    parts: VecDeque<Part>,
    /// Which access each id in flight belongs to.
    owners: [u32; ENTRIES as usize],
    latencies: Histogram,
}

impl Job {
    fn new(connect: &Connect<'_>, options: &Options) -> Result<Self> {
        let client = Client::connect(connect)?;
        let disk = client.disk.sectors.saturating_mul(SECTOR as u64);
        let places = Places::new(options, disk)?;
        if options.rw == Rw::Trim {
            fail!("a ring has no requests that trim");
        }
        if options.rw.is_write() && client.disk.read_only {
            fail!("the disk is read-only");
        }
        let mut job = Self {
            client,
            options: *options,
            places,
            accesses: vec![None; options.depth as usize],
            idle: (0..options.depth).rev().collect(),
            parts: VecDeque::new(),
            owners: [0; ENTRIES as usize],
            latencies: Histogram::default(),
        };
        job.fill_pages();
        Ok(job)
    }

    fn run(mut self) -> Result<Outcome> {
        let started = Instant::now();
        self.work(started + self.options.time)?;
        let counts = &self.client.ring.counts;
        Ok(Outcome {
            span: self.places.span(),
            elapsed: started.elapsed(),
            latencies: self.latencies,
            counts: vec![
                ("requests", counts.requests),
                ("kicks", counts.kicks),
                ("notifications", counts.notifications),
                ("sleeps", counts.sleeps),
            ],
        })
    }

    /// So that writes don't write zeros.
    fn fill_pages(&mut self) {
        let mut random = Random::new(self.options.seed);
        let mut page = [0; PAGE];
        for id in 0..ENTRIES {
            for segment in 0..REQUEST_BYTES / PAGE {
                random.fill(&mut page);
                self.client.ring.write_page(id, segment, 0, &page);
            }
        }
    }

    fn work(&mut self, until: Instant) -> Result<()> {
        let mut now = Instant::now();
        loop {
            while now < until
                && !self.idle.is_empty()
                && let Some(place) = self.places.next()
                && let Some(access) = self.idle.pop()
            {
                self.start(access, place, now);
            }
            while let Some(&part) = self.parts.front()
                && let Some(id) = self.client.take_id()
            {
                self.parts.pop_front();
                self.send(id, part);
            }
            during("kicking tapdisk", self.client.ring.publish())?;
            if self.client.ring.in_flight() == 0 {
                return Ok(());
            }
            if !self.look_for_responses() {
                self.client.wait(1)?;
            }
            now = Instant::now();
            while let Some(response) = self.client.ring.take() {
                if response.status != status::OKAY || response.id >= ENTRIES.into() {
                    fail!(
                        "operation {}: status {}",
                        response.operation,
                        response.status
                    );
                }
                self.finish(response.id as u32, now);
            }
        }
    }

    /// Whether there are responses, sooner or later.
    fn look_for_responses(&self) -> bool {
        if self.client.ring.waiting() > 0 {
            return true;
        }
        if self.options.poll.is_zero() {
            return false;
        }
        let end = Instant::now() + self.options.poll;
        while self.client.ring.waiting() == 0 {
            if Instant::now() >= end {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    }

    fn start(&mut self, access: u32, place: u64, now: Instant) {
        let sectors = self.options.bs / SECTOR as u64;
        let most = (REQUEST_BYTES / SECTOR) as u64;
        let first = place / SECTOR as u64;
        let mut at = 0;
        let mut parts = 0;
        while at < sectors {
            let count = most.min(sectors - at);
            self.parts.push_back(Part {
                access,
                sector: first + at,
                sectors: count,
            });
            at += count;
            parts += 1;
        }
        self.accesses[access as usize] = Some(Access {
            started: now,
            parts,
        });
    }

    fn send(&mut self, id: u32, part: Part) {
        let mut bounds = [Bounds::PAGE; REQUEST_BYTES / PAGE];
        let pages = part.sectors.div_ceil(PAGE_SECTORS.into()) as usize;
        let rest = part.sectors - (pages as u64 - 1) * u64::from(PAGE_SECTORS);
        bounds[pages - 1].last = rest as u8 - 1;
        let operation = if self.options.rw.is_write() {
            operation::WRITE
        } else {
            operation::READ
        };
        self.client
            .ring
            .put(&Request::new(operation, id, part.sector, &bounds[..pages]));
        self.owners[id as usize] = part.access;
    }

    fn finish(&mut self, id: u32, now: Instant) {
        self.client.free_id(id);
        let access = self.owners[id as usize];
        let Some(flight) = &mut self.accesses[access as usize] else {
            return;
        };
        flight.parts -= 1;
        if flight.parts == 0 {
            self.latencies.add(now - flight.started);
            self.accesses[access as usize] = None;
            self.idle.push(access);
        }
    }
}
