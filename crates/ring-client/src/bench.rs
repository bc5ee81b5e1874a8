//! How fast is it? One line of JSON.

use std::collections::VecDeque;
use std::sync::Barrier;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use crate::client::{Client, Connect};
use crate::histogram::Histogram;
use crate::random::Random;
use crate::ring::{
    Bounds, Counts, ENTRIES, PAGE, PAGE_SECTORS, REQUEST_BYTES, Request, SECTOR, operation, status,
};
use crate::{Failure, Result, during, fail};

/// The pattern of the accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other.
    Sequential,
    /// Anywhere.
    Random,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where.
    pub pattern: Pattern,
    /// Write rather than read.
    pub write: bool,
    /// Bytes of an access; more than 44 KiB become several requests.
    pub bs: u64,
    /// Accesses in flight.
    pub depth: u32,
    /// For how long.
    pub time: Duration,
    /// Use only so many bytes from the start of the disk; 0: all.
    pub span: u64,
    /// Begin accesses at multiples of so many bytes; 0: of their size.
    pub align: u64,
    /// Equal seeds make equal accesses.
    pub seed: u64,
    /// Look for responses for so long before sleeping, as a guest does whose idle loop polls.
    pub poll: Duration,
}

/// Does it on all of these rings at the same time, each in a thread of its own, and returns the line about all of them.
///
/// # Errors
/// When an access fails, or the options make no sense for a disk.
pub fn run(rings: &[Connect<'_>], options: &Options) -> Result<String> {
    let everybody = Barrier::new(rings.len());
    let outcomes = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (seed, connect) in (options.seed..).zip(rings) {
            let everybody = &everybody;
            threads.push(scope.spawn(move || {
                let job = Job::new(connect, &Options { seed, ..*options });
                everybody.wait();
                job?.run()
            }));
        }
        let outcome = |thread: ScopedJoinHandle<'_, Result<Outcome>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure("a thread failed".to_owned())))
        };
        threads
            .into_iter()
            .map(outcome)
            .collect::<Result<Vec<Outcome>>>()
    })?;
    let all = outcomes.into_iter().reduce(Outcome::with);
    Ok(all.map_or_else(String::new, |all| all.report(options)))
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
    random: Random,
    span: u64,
    align: u64,
    places: u64,
    next_place: u64,
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
        let span = if options.span == 0 {
            disk
        } else {
            options.span.min(disk)
        };
        if options.bs == 0
            || !options.bs.is_multiple_of(SECTOR as u64)
            || options.bs > u64::from(u32::MAX)
        {
            fail!("the size of an access must be a multiple of {SECTOR}");
        }
        if options.depth == 0 {
            fail!("a depth of 0 does nothing");
        }
        let align = if options.align == 0 {
            options.bs
        } else {
            options.align
        };
        if align < options.bs || !align.is_multiple_of(SECTOR as u64) {
            fail!(
                "accesses of {} bytes can't begin at multiples of {align}",
                options.bs
            );
        }
        let places = span / align;
        if places == 0 {
            fail!(
                "not one access of {} bytes fits into {span} bytes",
                options.bs
            );
        }
        if options.write && client.disk.read_only {
            fail!("the disk is read-only");
        }
        let mut job = Self {
            client,
            options: *options,
            random: Random::new(options.seed),
            span,
            align,
            places,
            next_place: 0,
            accesses: vec![None; options.depth as usize],
            idle: (0..options.depth).rev().collect(),
            parts: VecDeque::new(),
            owners: [0; ENTRIES as usize],
            latencies: Histogram::new(),
        };
        job.fill_pages();
        Ok(job)
    }

    fn run(mut self) -> Result<Outcome> {
        let started = Instant::now();
        self.work(started + self.options.time)?;
        Ok(Outcome {
            span: self.span,
            elapsed: started.elapsed(),
            latencies: self.latencies,
            counts: self.client.ring.counts,
        })
    }

    /// So that writes don't write zeros.
    fn fill_pages(&mut self) {
        let mut page = [0; PAGE];
        for id in 0..ENTRIES {
            for segment in 0..REQUEST_BYTES / PAGE {
                self.random.fill(&mut page);
                self.client.ring.write_page(id, segment, 0, &page);
            }
        }
    }

    fn work(&mut self, until: Instant) -> Result<()> {
        let mut now = Instant::now();
        loop {
            while now < until
                && let Some(access) = self.idle.pop()
            {
                self.start(access, now);
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

    fn start(&mut self, access: u32, now: Instant) {
        let place = match self.options.pattern {
            Pattern::Random => self.random.below(self.places),
            Pattern::Sequential => {
                let place = self.next_place;
                self.next_place = (place + 1) % self.places;
                place
            }
        };
        let sectors = self.options.bs / SECTOR as u64;
        let most = (REQUEST_BYTES / SECTOR) as u64;
        let first = place * (self.align / SECTOR as u64);
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
        let operation = if self.options.write {
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

/// What became of one job, or of several at the same time.
struct Outcome {
    span: u64,
    elapsed: Duration,
    latencies: Histogram,
    counts: Counts,
}

impl Outcome {
    fn with(mut self, other: Self) -> Self {
        self.latencies.merge(&other.latencies);
        self.counts.add(&other.counts);
        Self {
            elapsed: self.elapsed.max(other.elapsed),
            ..self
        }
    }

    fn report(&self, options: &Options) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let count = self.latencies.count();
        let name = match (options.pattern, options.write) {
            (Pattern::Random, false) => "randread",
            (Pattern::Random, true) => "randwrite",
            (Pattern::Sequential, false) => "read",
            (Pattern::Sequential, true) => "write",
        };
        format!(
            "{{\"rw\":\"{name}\",\"bs\":{},\"depth\":{},\"span\":{},\"seconds\":{seconds:.3},\"ios\":{count},\
             \"iops\":{:.0},\"mb_per_s\":{:.1},\"latency_us\":{{\"mean\":{:.1},\"p50\":{:.1},\"p90\":{:.1},\"p99\":{:.1},\
             \"p999\":{:.1},\"max\":{:.1}}},\"requests\":{},\"kicks\":{},\"notifications\":{},\"sleeps\":{}}}",
            options.bs,
            options.depth,
            self.span,
            count as f64 / seconds,
            (count * options.bs) as f64 / seconds / 1e6,
            self.latencies.mean(),
            self.latencies.permille(500),
            self.latencies.permille(900),
            self.latencies.permille(990),
            self.latencies.permille(999),
            self.latencies.max(),
            self.counts.requests,
            self.counts.kicks,
            self.counts.notifications,
            self.counts.sleeps,
        )
    }
}
