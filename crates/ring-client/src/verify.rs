//! Random reads and writes, every read compared with what must be there.
//!
//! A model in memory holds what the first sectors of the disk contain; it is filled by reading them once. Requests in flight never
//! overlap when one of them writes, so that the model is always right. Everything around a segment in its page is filled with
//! noise before and looked at afterwards: nothing but the segment may be read into, and nothing but the segment may reach the disk.

use load::{Random, Result, during, fail};

use crate::client::{Client, Connect, describe};
use crate::ring::{
    Bounds, ENTRIES, PAGE_SECTORS, REQUEST_BYTES, Request, Response, SECTOR, SEGMENTS, operation,
    status,
};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of random requests.
    pub requests: u64,
    /// Requests in flight, 1 to 32.
    pub depth: u32,
    /// Equal seeds make equal requests.
    pub seed: u64,
    /// Use only so many sectors from the start of the disk.
    pub sectors_limit: u64,
    /// Percentage of writes.
    pub writes: u8,
    /// A flush every so many requests; 0: none but the last.
    pub flush_every: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Reads compared.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Sectors compared, those of the last pass included.
    pub sectors_compared: u64,
}

/// Does it. The outcome is for the curious; everything was as it must be.
///
/// # Errors
/// When anything wasn't.
pub fn run(connect: &Connect<'_>, options: &Options) -> Result<Outcome> {
    let client = Client::connect(connect)?;
    let sectors = client.disk.sectors.min(options.sectors_limit);
    if sectors < (SEGMENTS * usize::from(PAGE_SECTORS)) as u64 {
        fail!("{sectors} sectors are too few for requests of {REQUEST_BYTES} bytes");
    }
    let mut job = Job {
        client,
        options: *options,
        random: Random::new(options.seed),
        sectors,
        model: vec![
            0;
            usize::try_from(sectors)
                .unwrap_or(usize::MAX)
                .saturating_mul(SECTOR)
        ],
        users: vec![0; sectors as usize],
        flights: (0..ENTRIES).map(|_| Flight::default()).collect(),
        outcome: Outcome::default(),
        next_sector: 0,
    };
    job.read_all(false)?;
    job.random_requests()?;
    job.must_flush()?;
    job.read_all(true)?;
    println!(
        "verified {} reads, {} writes and {} flushes on {} sectors; {}",
        job.outcome.reads,
        job.outcome.writes,
        job.outcome.flushes,
        sectors,
        describe(&job.client.ring.counts)
    );
    Ok(job.outcome)
}

const WRITER: u8 = u8::MAX;

/// A request in flight.
#[derive(Debug, Default)]
struct Flight {
    operation: u8,
    sector: u64,
    bounds: Vec<Bounds>,
    /// The data pages as they were when the request was sent.
    pages: Vec<u8>,
}

struct Job {
    client: Client,
    options: Options,
    random: Random,
    sectors: u64,
    model: Vec<u8>,
    /// Who uses each sector now: a number of readers, or [`WRITER`].
    users: Vec<u8>,
    flights: Vec<Flight>,
    outcome: Outcome,
    next_sector: u64,
}

impl Job {
    /// Reads every sector, into the model or to compare it with the model.
    fn read_all(&mut self, compare: bool) -> Result<()> {
        let per_request = (SEGMENTS * usize::from(PAGE_SECTORS)) as u64;
        let mut next = 0;
        while next < self.sectors || self.client.ring.in_flight() > 0 {
            while next < self.sectors
                && self.client.ring.in_flight() < self.options.depth
                && let Some(id) = self.client.take_id()
            {
                let count = per_request.min(self.sectors - next);
                let bounds = (0..count.div_ceil(u64::from(PAGE_SECTORS)))
                    .map(|page| {
                        let left = count - page * u64::from(PAGE_SECTORS);
                        Bounds {
                            first: 0,
                            last: left.min(u64::from(PAGE_SECTORS)) as u8 - 1,
                        }
                    })
                    .collect();
                self.send(id, operation::READ, next, bounds);
                next += count;
            }
            during("kicking tapdisk", self.client.ring.publish())?;
            self.collect(1, compare)?;
        }
        Ok(())
    }

    fn random_requests(&mut self) -> Result<()> {
        let mut left = self.options.requests;
        while left > 0 || self.client.ring.in_flight() > 0 {
            let room = u64::from(self.options.depth - self.client.ring.in_flight());
            let burst = if room == 0 {
                0
            } else {
                left.min(1 + self.random.below(room))
            };
            for _ in 0..burst {
                if !self.send_random() {
                    break;
                }
                left -= 1;
            }
            during("kicking tapdisk", self.client.ring.publish())?;
            let in_flight = self.client.ring.in_flight();
            if in_flight > 0 {
                // Mostly the next response, sometimes several at once.
                let wanted = if self.random.percent(70) {
                    1
                } else {
                    1 + self.random.below(in_flight.into()) as u32
                };
                self.collect(wanted, true)?;
            }
            if self.client.is_late() {
                fail!("timed out with {left} requests to go");
            }
        }
        Ok(())
    }

    /// Puts a random request into the ring. False if nothing could be sent now.
    fn send_random(&mut self) -> bool {
        let done = self.client.ring.counts.requests;
        if self.options.flush_every > 0
            && done % self.options.flush_every == self.options.flush_every - 1
        {
            let Some(id) = self.client.take_id() else {
                return false;
            };
            self.send(id, operation::FLUSH, 0, Vec::new());
            return true;
        }
        let write = !self.client.disk.read_only && self.random.percent(self.options.writes.into());
        for _ in 0..20 {
            let bounds = self.random_bounds();
            let count = bounds.iter().map(|bounds| bounds.sectors()).sum::<usize>() as u64;
            let sector = match self.random.below(8) {
                0 if self.next_sector + count <= self.sectors => self.next_sector,
                // Crowded, so that requests meet.
                1 | 2 => self.random.below((self.sectors - count + 1).min(512)),
                3 => self.sectors - count,
                _ => self.random.below(self.sectors - count + 1),
            };
            let range = sector as usize..(sector + count) as usize;
            let clash = if write { 1 } else { WRITER };
            if self.users[range].iter().any(|&users| users >= clash) {
                continue;
            }
            let Some(id) = self.client.take_id() else {
                return false;
            };
            self.next_sector = sector + count;
            self.send(
                id,
                if write {
                    operation::WRITE
                } else {
                    operation::READ
                },
                sector,
                bounds,
            );
            return true;
        }
        false
    }

    fn random_bounds(&mut self) -> Vec<Bounds> {
        let count = 1 + self.random.below(SEGMENTS as u64) as usize;
        let whole = self.random.percent(50);
        (0..count)
            .map(|_| {
                if whole || self.random.percent(20) {
                    return Bounds::PAGE;
                }
                let first = self.random.below(u64::from(PAGE_SECTORS)) as u8;
                Bounds {
                    first,
                    last: first + self.random.below(u64::from(PAGE_SECTORS - first)) as u8,
                }
            })
            .collect()
    }

    fn send(&mut self, id: u32, operation: u8, sector: u64, bounds: Vec<Bounds>) {
        let count = bounds.iter().map(|bounds| bounds.sectors()).sum::<usize>();
        for users in &mut self.users[sector as usize..sector as usize + count] {
            *users = if operation == operation::WRITE {
                WRITER
            } else {
                *users + 1
            };
        }
        let flight = &mut self.flights[id as usize];
        flight.pages.resize(bounds.len() * crate::ring::PAGE, 0);
        self.random.fill(&mut flight.pages);
        for (segment, page) in flight.pages.chunks_exact(crate::ring::PAGE).enumerate() {
            self.client.ring.write_page(id, segment, 0, page);
        }
        self.client
            .ring
            .put(&Request::new(operation, id, sector, &bounds));
        *flight = Flight {
            operation,
            sector,
            bounds,
            pages: std::mem::take(&mut flight.pages),
        };
    }

    /// Waits, then takes all responses that are there.
    fn collect(&mut self, wanted: u32, compare: bool) -> Result<()> {
        if self.client.ring.waiting() == 0 {
            self.client.wait(wanted)?;
        }
        while let Some(response) = self.client.ring.take() {
            self.finish(response, compare)?;
        }
        Ok(())
    }

    fn finish(&mut self, response: Response, compare: bool) -> Result<()> {
        let Some(flight) = self
            .flights
            .get_mut(usize::try_from(response.id).unwrap_or(usize::MAX))
        else {
            fail!("a response with id {}", response.id);
        };
        let flight = std::mem::take(flight);
        let Flight {
            operation,
            sector,
            bounds,
            pages,
        } = &flight;
        if *operation != response.operation {
            fail!(
                "id {}: a response to operation {}, but {operation} was asked",
                response.id,
                response.operation
            );
        }
        if response.status != status::OKAY {
            let count = bounds.iter().map(|bounds| bounds.sectors()).sum::<usize>();
            fail!(
                "operation {operation}, sector {sector}, {count} sectors: status {}",
                response.status
            );
        }
        let id = response.id as u32;
        let mut at = *sector as usize;
        for (segment, bounds) in bounds.iter().enumerate() {
            let sent = &pages[segment * crate::ring::PAGE..][..crate::ring::PAGE];
            let mut now = [0; crate::ring::PAGE];
            self.client.ring.read_page(id, segment, 0, &mut now);
            for inside in 0..usize::from(PAGE_SECTORS) {
                let bytes = inside * SECTOR..(inside + 1) * SECTOR;
                let is_data =
                    (usize::from(bounds.first)..=usize::from(bounds.last)).contains(&inside);
                if is_data && *operation == operation::READ {
                    let model = &mut self.model[at * SECTOR..][..SECTOR];
                    if !compare {
                        model.copy_from_slice(&now[bytes]);
                    } else if *model != now[bytes.clone()] {
                        let place = model
                            .iter()
                            .zip(&now[bytes])
                            .position(|(a, b)| a != b)
                            .unwrap_or(0);
                        fail!(
                            "sector {at} (segment {segment} of a read at {sector}) is wrong from its byte {place} on"
                        );
                    }
                } else if sent[bytes.clone()] != now[bytes] {
                    fail!(
                        "operation {operation} at sector {sector}: segment {segment}: sector {inside} of its page was changed"
                    );
                }
                if is_data {
                    if *operation == operation::WRITE {
                        self.model[at * SECTOR..][..SECTOR]
                            .copy_from_slice(&sent[inside * SECTOR..][..SECTOR]);
                    }
                    self.users[at] = if *operation == operation::WRITE {
                        0
                    } else {
                        self.users[at] - 1
                    };
                    at += 1;
                }
            }
        }
        match *operation {
            operation::READ if compare => {
                self.outcome.reads += 1;
                self.outcome.sectors_compared += (at as u64) - sector;
            }
            operation::WRITE => self.outcome.writes += 1,
            operation::FLUSH => self.outcome.flushes += 1,
            _ => {}
        }
        self.client.free_id(id);
        // For their memory.
        self.flights[id as usize].pages = flight.pages;
        Ok(())
    }

    fn must_flush(&mut self) -> Result<()> {
        self.outcome.flushes += 1;
        self.client
            .must("flush", &Request::new(operation::FLUSH, 0, 0, &[]))
    }
}
