//! One turn of the data plane: responses out, operations in, completions and requests back, and a single wait for all
//! that can happen.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhd::record::FrontEndRequest;

use crate::backend::threads::Threads;
use crate::backend::uring::Uring;
use crate::backend::{Backend, Event, Source, Token};
use crate::batch::{Batch, Layout};
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::event_fd;
use crate::file::{File, OpenOptions};
use crate::front_end::FrontEnd;
use crate::front_ends::{FrontEnds, from_token};
use crate::nbd::{NbdConnection, NbdOptions};
use crate::operations::{Context, Operations};
use crate::polling::{Look, Polling};
use crate::pool::Pool;
use crate::regions::Regions;
use crate::ring::Ring;

/// Which back end to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// io_uring where it can be had, otherwise threads.
    #[default]
    Auto,
    /// io_uring.
    Uring,
    /// Threads and epoll.
    Threads,
}

/// Settings of a reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which back end to use.
    pub backend: BackendKind,
    /// Entries of the io_uring; a quarter of it is the most threads of the other back end.
    pub depth: u32,
    /// Size of the buffer pool of NBD connections in bytes.
    pub pool_bytes: usize,
    /// How long to look for something to do before sleeping, at most.
    pub poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: BackendKind::Auto,
            depth: 128,
            pool_bytes: Pool::DEFAULT_BYTES,
            poll: Duration::ZERO,
        }
    }
}

/// What a turn has reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Completions in their area.
    pub completions: u32,
    /// Requests in their area.
    pub requests: u32,
    /// Whether [`Reactor::wake_fd`] was written to since the last turn that said so.
    pub woken: bool,
}

impl Turn {
    /// The report in one number: completions | requests << 15 | woken << 30.
    #[must_use]
    pub fn encode(self) -> u32 {
        self.completions | self.requests << 15 | u32::from(self.woken) << 30
    }
}

const WAKE: Token = 4 << 48;

/// How long the end waits for operations in flight; what is left of them then is leaked.
const DRAIN: Duration = Duration::from_secs(60);

/// Owner of files, front ends and the back end. It belongs to the thread that made it.
pub struct Reactor {
    // Dropped in this order, when nothing is in flight any more.
    front_ends: FrontEnds,
    operations: Operations,
    regions: Regions,
    buffers: Vec<Arc<Buffer>>,
    backend: Box<dyn Backend>,
    wake: OwnedFd,
    layout: Layout,
    polling: Polling,
    pool_bytes: usize,
    waking: bool,
    woken: bool,
    events: Vec<Event>,
    requests: Vec<FrontEndRequest>,
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor")
            .field("backend", &self.backend.name())
            .field("operations", &self.operations)
            .field("front_ends", &self.front_ends)
            .finish_non_exhaustive()
    }
}

impl Reactor {
    /// A reactor for the calling thread.
    ///
    /// # Errors
    ///
    /// When io_uring is asked for and can't be had, or there are too many descriptors.
    pub fn new(options: &Options) -> Result<Self> {
        let wake = event_fd::create().map_err(|error| Error::os("no event descriptor", &error))?;
        let mut reactor = Self {
            front_ends: FrontEnds::default(),
            operations: Operations::default(),
            regions: Regions::default(),
            buffers: Vec::new(),
            backend: backend(options)?,
            wake,
            layout: Layout::default(),
            polling: Polling::new(options.poll),
            pool_bytes: options.pool_bytes,
            waking: false,
            woken: false,
            events: Vec::with_capacity(256),
            requests: Vec::with_capacity(256),
        };
        let source = reactor.wake_source();
        reactor
            .backend
            .add(source)
            .map_err(|error| Error::os("the wake-up can't be waited on", &error))?;
        Ok(reactor)
    }

    /// `uring` or `threads`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.backend.name()
    }

    /// An event descriptor: adding to it makes the running turn, or the next, return.
    #[must_use]
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Opens a file. Returns its number, and the file.
    ///
    /// # Errors
    ///
    /// Those of [`File::open`], and `EMFILE`.
    pub fn open_file(&mut self, path: &str, options: OpenOptions) -> Result<(u16, &File)> {
        let file = File::open(path, options)?;
        let number = self.operations.files.insert(file, &mut *self.backend)?;
        match self.operations.files.entry(number) {
            Some(entry) => Ok((number, &entry.file)),
            None => Err(Error::new(libc::EBADF, "no such file")),
        }
    }

    /// Closes a file as soon as the operations in flight on it are over.
    ///
    /// # Errors
    ///
    /// `EBADF` when no open file has the number.
    pub fn close_file(&mut self, number: u32) -> Result<()> {
        self.operations.files.close(number, &mut *self.backend)
    }

    /// Attaches a shared ring; takes the descriptors. Returns the front end's number.
    ///
    /// # Errors
    ///
    /// When the memory isn't a ring's, or a descriptor can't be waited on.
    pub fn attach_ring(&mut self, memory: OwnedFd, kick: OwnedFd, notify: OwnedFd) -> Result<u32> {
        for fd in [&kick, &notify] {
            set_nonblocking(fd).map_err(|error| {
                Error::os("the ring's event descriptors can't be set up", &error)
            })?;
        }
        let mut ring = Ring::new(memory, kick, notify)
            .map_err(|error| Error::os("the ring can't be mapped", &error))?;
        // SAFETY: the region is removed before the ring is dropped.
        let region = unsafe { self.regions.add(ring.base(), ring.len()) };
        ring.set_region(region);
        self.attach(Box::new(ring), Some(region))
    }

    /// Attaches an NBD connection whose handshake is over; takes the socket. `received` is what was read from it after
    /// the handshake. Returns the front end's number.
    ///
    /// # Errors
    ///
    /// When there is no memory for the pool, or the socket can't be waited on.
    pub fn attach_nbd(
        &mut self,
        socket: OwnedFd,
        received: &[u8],
        options: NbdOptions,
    ) -> Result<u32> {
        let pool = self.pool()?;
        self.attach(
            Box::new(NbdConnection::new(socket, received, options, pool)),
            None,
        )
    }

    /// Attaches any front end. A region that goes with it is removed with it.
    ///
    /// # Errors
    ///
    /// When its descriptor can't be waited on.
    pub fn attach(&mut self, front_end: Box<dyn FrontEnd>, region: Option<u32>) -> Result<u32> {
        let result = self
            .front_ends
            .attach(front_end, region, &mut *self.backend);
        if result.is_err()
            && let Some(region) = region
        {
            self.regions.remove(region);
        }
        result
    }

    /// Has a front end finish what is in flight and close; it reports `FRONT_END_CLOSED` then.
    ///
    /// # Errors
    ///
    /// `EBADF` when no front end has the number.
    pub fn detach(&mut self, front_end: u32) -> Result<()> {
        self.front_ends.detach(front_end)
    }

    /// Says where records and staging are in WebAssembly memory, from the next turn on.
    pub fn set_layout(&mut self, layout: Layout) {
        self.layout = layout;
    }

    /// Gives a region number to memory that lives as long as the reactor.
    ///
    /// # Safety
    ///
    /// The memory must stay valid, readable and writable until the reactor is dropped.
    pub unsafe fn add_region(&mut self, base: *mut u8, length: usize) -> u32 {
        // SAFETY: the caller vouches for it.
        unsafe { self.regions.add(base, length) }
    }

    /// New memory of `length` bytes with a region number, for operations and whoever holds the buffer.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory.
    pub fn allocate_buffer(&mut self, length: usize) -> Result<(u32, Arc<Buffer>)> {
        let buffer =
            Buffer::new(length).map_err(|error| Error::os("no memory for a buffer", &error))?;
        // SAFETY: the reactor keeps the buffer for as long as it lives.
        let region = unsafe { self.regions.add(buffer.base(), buffer.len()) };
        let buffer = Arc::new(buffer);
        self.buffers.push(Arc::clone(&buffer));
        Ok((region, buffer))
    }

    /// One turn: pushes responses, submits operations, and returns as soon as there are completions or requests, the
    /// reactor was woken, or the time is up (`None`: never).
    ///
    /// # Errors
    ///
    /// When the layout doesn't fit the memory, or the kernel refuses to wait. Nothing was done in the first case.
    pub fn turn(
        &mut self,
        memory: &mut [u8],
        operations: u32,
        responses: u32,
        timeout: Option<Duration>,
    ) -> Result<Turn> {
        let mut batch = Batch::new(memory, self.layout, operations, responses)?;
        let eager = self.polling.looks();
        self.front_ends.set_eager(eager);
        for index in 0..responses {
            self.front_ends.push(&batch.response(index));
        }
        self.front_ends.kick(&mut *self.backend);
        let mut context = Context {
            backend: &mut *self.backend,
            regions: &mut self.regions,
        };
        for index in 0..operations {
            self.operations
                .start(&batch.operation(index), &mut batch, &mut context);
        }
        self.operations.flush(context.backend);
        if !self.waking {
            self.waking = true;
            self.backend.count(WAKE, self.wake_source());
        }
        // There may be no time to look for requests before others have something to report, again and again.
        if eager && self.front_ends.pool.is_some() {
            let _ = self.front_ends.poll(Instant::now(), &mut *self.backend);
        }
        self.service(&batch);
        self.wait(&batch, timeout)?;
        Ok(self.report(&mut batch))
    }

    fn wait(&mut self, batch: &Batch<'_>, timeout: Option<Duration>) -> Result<()> {
        let mut deadline = None;
        let mut polled = false;
        loop {
            let mut timeout = timeout;
            if self.has_report() || self.front_ends.is_pending() {
                timeout = Some(Duration::ZERO);
            } else if timeout != Some(Duration::ZERO) {
                if !polled {
                    polled = true;
                    if self.poll(batch)? {
                        return Ok(());
                    }
                }
                if self.front_ends.arm(&mut *self.backend) {
                    self.service(batch);
                    continue;
                }
                if let Some(limit) = &mut timeout {
                    let now = Instant::now();
                    *limit = deadline
                        .get_or_insert(now + *limit)
                        .saturating_duration_since(now);
                }
            }
            self.backend
                .wait(timeout, &mut self.events)
                .map_err(|error| Error::os("the port can't wait", &error))?;
            self.handle();
            self.service(batch);
            if self.has_report() || timeout == Some(Duration::ZERO) {
                return Ok(());
            }
        }
    }

    /// Looks for something to do for a while, without sleeping. Whether there is something to report.
    fn poll(&mut self, batch: &Batch<'_>) -> Result<bool> {
        if !self.polling.is_due() {
            return Ok(false);
        }
        // What was queued is submitted first, and much of it is over then.
        let mut ready = true;
        let mut look = None;
        loop {
            if ready {
                self.backend
                    .wait(Some(Duration::ZERO), &mut self.events)
                    .map_err(|error| Error::os("the port can't wait", &error))?;
                self.handle();
            }
            let now = Instant::now();
            if self.front_ends.poll(now, &mut *self.backend) || ready {
                self.service(batch);
                if self.has_report() {
                    if let Some(look) = look {
                        self.polling.found(look);
                    }
                    return Ok(true);
                }
            }
            let look = look.get_or_insert_with(|| Look::new(now));
            if !self.polling.goes_on(look, now) {
                return Ok(false);
            }
            std::hint::spin_loop();
            ready = self.backend.is_ready();
        }
    }

    fn has_report(&self) -> bool {
        self.operations.has_done() || !self.requests.is_empty() || self.woken
    }

    fn handle(&mut self) {
        for Event { token, result } in self.events.drain(..) {
            if token == WAKE {
                self.waking = false;
                self.woken = true;
            } else if let Some((number, call)) = from_token(token) {
                self.front_ends
                    .event(number, call, result, &mut *self.backend);
            } else {
                let mut context = Context {
                    backend: &mut *self.backend,
                    regions: &mut self.regions,
                };
                self.operations.event(token, result, &mut context);
            }
        }
    }

    fn service(&mut self, batch: &Batch<'_>) {
        self.front_ends.service(
            &mut self.requests,
            batch.requests() as usize,
            &mut *self.backend,
        );
        self.front_ends.sweep(&mut *self.backend, &mut self.regions);
    }

    fn report(&mut self, batch: &mut Batch<'_>) -> Turn {
        let completions = self.operations.report(batch);
        let requests = self.requests.len().min(batch.requests() as usize);
        for (index, request) in self.requests.drain(..requests).enumerate() {
            batch.set_request(index as u32, &request);
        }
        Turn {
            completions,
            requests: requests as u32,
            woken: std::mem::take(&mut self.woken),
        }
    }

    fn wake_source(&self) -> Source {
        Source {
            number: 0,
            fd: self.wake.as_raw_fd(),
        }
    }

    fn pool(&mut self) -> Result<Rc<RefCell<Pool>>> {
        if let Some(pool) = &self.front_ends.pool {
            return Ok(Rc::clone(pool));
        }
        let mut pool = Pool::new(self.pool_bytes)
            .map_err(|error| Error::os("no memory for the pool", &error))?;
        // SAFETY: the pool lives as long as the reactor, which `front_ends` sees to.
        let region = unsafe { self.regions.add(pool.base(), pool.len()) };
        pool.set_region(region);
        Ok(Rc::clone(
            self.front_ends.pool.insert(Rc::new(RefCell::new(pool))),
        ))
    }

    /// Ends everything that is in flight. True if that succeeded.
    fn drain(&mut self) -> bool {
        let end = Instant::now() + DRAIN;
        self.front_ends.abandon(&mut *self.backend);
        if self.waking {
            let source = self.wake_source();
            self.backend.cancel(WAKE, source);
        }
        loop {
            self.front_ends.sweep(&mut *self.backend, &mut self.regions);
            if self.operations.in_flight() == 0 && self.front_ends.is_empty() && !self.waking {
                return true;
            }
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() || self.backend.wait(Some(rest), &mut self.events).is_err() {
                return false;
            }
            self.handle();
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if self.drain() {
            self.operations.files.clear(&mut *self.backend);
        } else {
            // The kernel may still use this memory: it must never be freed.
            std::mem::forget(std::mem::take(&mut self.front_ends));
            std::mem::forget(std::mem::take(&mut self.operations));
            std::mem::forget(std::mem::take(&mut self.buffers));
        }
    }
}

fn backend(options: &Options) -> Result<Box<dyn Backend>> {
    if options.backend != BackendKind::Threads {
        match Uring::new(options.depth) {
            Ok(uring) => return Ok(Box::new(uring)),
            Err(error) if options.backend == BackendKind::Uring => {
                return Err(Error::os("io_uring can't be had", &error));
            }
            Err(_) => {}
        }
    }
    let threads = (options.depth / 4).clamp(4, 64) as usize;
    let threads =
        Threads::new(threads).map_err(|error| Error::os("no thread-pool back end", &error))?;
    Ok(Box::new(threads))
}

fn set_nonblocking(fd: &OwnedFd) -> std::io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take no pointer.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
