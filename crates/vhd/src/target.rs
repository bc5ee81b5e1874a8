//! The open disk of the engine as a job's target: what a job writes goes the way of a guest's requests, so that
//! allocation, bitmaps, commits and their order are the same, and as safe. The data come from other files.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::core::Core;
use crate::error::{self, Error, Result};
use crate::io::{Io, until};
use crate::record::{RequestKind, TdRequest};
use crate::request::Source;

/// Sectors in the largest request of a job that moves data: 4 MiB.
pub(crate) const MAX_SECTORS: u64 = 8192;
/// Sectors in the largest request that moves none, so that it takes in whole blocks.
const MAX_ZERO_SECTORS: u64 = 1 << 20;
/// Requests of a job in flight, if they are small.
const DEPTH: usize = 128;
/// Sectors in flight, if requests are large: 64 MiB.
const DEPTH_SECTORS: u64 = 16 * MAX_SECTORS;

/// A request's status, once it is over: 0, or a negative errno value.
pub(crate) type Waiter = Rc<Cell<Option<i32>>>;

/// The open disk, and the job's requests in flight.
pub(crate) struct Target {
    core: Rc<RefCell<Core>>,
    io: Io,
    in_flight: VecDeque<InFlight>,
    /// Sectors that those in flight copy.
    sectors: u64,
    /// Requests that are not in flight any more.
    taken: u64,
}

struct InFlight {
    sector: u64,
    /// Sectors that it copies.
    sectors: u64,
    waiter: Waiter,
}

impl Target {
    pub(crate) fn new(core: Rc<RefCell<Core>>, io: Io) -> Self {
        Self {
            core,
            io,
            in_flight: VecDeque::new(),
            sectors: 0,
            taken: 0,
        }
    }

    /// The state of the disk.
    pub(crate) fn core(&self) -> &Rc<RefCell<Core>> {
        &self.core
    }

    /// Copies data at byte `offset` of `file` to `sectors` sectors from `sector` on. Returns as soon as there is room
    /// for more requests; [`Target::finish`] waits for all.
    ///
    /// # Errors
    /// That of an earlier request.
    pub(crate) async fn copy(
        &mut self,
        sector: u64,
        sectors: u64,
        file: u16,
        offset: u64,
    ) -> Result<()> {
        let source = Source::new(file, offset, sector);
        self.in_parts(RequestKind::Write, sector, sectors, Some(source))
            .await
    }

    /// Makes sectors zeros, giving back space, as [`Target::copy`] writes them.
    ///
    /// # Errors
    /// That of an earlier request.
    pub(crate) async fn zero(&mut self, sector: u64, sectors: u64) -> Result<()> {
        self.in_parts(RequestKind::WriteZeroes, sector, sectors, None)
            .await
    }

    /// How many requests there were so far.
    pub(crate) fn submitted(&self) -> u64 {
        self.taken + self.in_flight.len() as u64
    }

    /// How many of them have ended well, up to the first that has not.
    pub(crate) fn ended(&self) -> u64 {
        let ended = |request: &&InFlight| request.waiter.get().is_some_and(|status| status >= 0);
        self.taken + self.in_flight.iter().take_while(ended).count() as u64
    }

    /// Begins to make everything durable that has ended, while more is written.
    pub(crate) fn start_flush(&self) -> Waiter {
        self.request(RequestKind::Flush, 0, 0, None)
    }

    /// Waits for all requests, and makes them durable.
    ///
    /// # Errors
    /// The first error of a request.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        self.finish().await?;
        self.submit(RequestKind::Flush, 0, 0, None);
        self.finish().await
    }

    /// Waits for all requests.
    ///
    /// # Errors
    /// The first error of a request; nothing is in flight any more then.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        let mut first = Ok(());
        while !self.in_flight.is_empty() {
            first = first.and(self.take_one().await);
        }
        first
    }

    async fn in_parts(
        &mut self,
        kind: RequestKind,
        sector: u64,
        sectors: u64,
        source: Option<Source>,
    ) -> Result<()> {
        let largest = match kind {
            RequestKind::Write => MAX_SECTORS,
            _ => MAX_ZERO_SECTORS,
        };
        let mut done = 0;
        while done < sectors {
            while self.in_flight.len() >= DEPTH || self.sectors >= DEPTH_SECTORS {
                if let Err(error) = self.take_one().await {
                    self.finish().await.ok();
                    return Err(error);
                }
            }
            let count = (sectors - done).min(largest);
            self.submit(kind, sector + done, count as u32, source);
            done += count;
        }
        Ok(())
    }

    fn submit(&mut self, kind: RequestKind, sector: u64, sectors: u32, source: Option<Source>) {
        let waiter = self.request(kind, sector, sectors, source);
        let sectors = source.map_or(0, |_| u64::from(sectors));
        self.sectors += sectors;
        self.in_flight.push_back(InFlight {
            sector,
            sectors,
            waiter,
        });
    }

    fn request(
        &self,
        kind: RequestKind,
        sector: u64,
        sectors: u32,
        source: Option<Source>,
    ) -> Waiter {
        let request = TdRequest {
            tag: 0,
            kind: kind as u8,
            flags: 0,
            sector,
            sectors,
            region: 0,
            buffer: 0,
        };
        let waiter = Waiter::default();
        let mut core = self.core.borrow_mut();
        core.submit_for_job(&mut self.io.queue(), &request, source, waiter.clone());
        waiter
    }

    async fn take_one(&mut self) -> Result<()> {
        let Some(request) = self.in_flight.front() else {
            return Ok(());
        };
        let (sector, sectors, waiter) = (request.sector, request.sectors, request.waiter.clone());
        until(|| waiter.get().is_some()).await;
        self.in_flight.pop_front();
        self.sectors -= sectors;
        self.taken += 1;
        match waiter.get() {
            Some(status) if status < 0 => {
                let path = self.core.borrow_mut().leaf().path.clone();
                let errno = status.saturating_neg();
                let message = format!("writing at sector {sector}: {}", error::reason(errno));
                Err(Error {
                    errno,
                    ..Error::invalid("disk", message)
                }
                .in_file(&path))
            }
            _ => Ok(()),
        }
    }
}
