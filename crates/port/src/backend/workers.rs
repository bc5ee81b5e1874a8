//! A bounded pool of threads for calls that block.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Event, FileCall, Token, blocking};
use crate::event_fd;

/// The pool. Threads are started when they are first needed.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    threads: usize,
    limit: usize,
}

#[derive(Debug)]
struct Shared {
    jobs: Mutex<Jobs>,
    work: Condvar,
    results: Mutex<Vec<Event>>,
    /// Written to when `results` stops being empty.
    bell: OwnedFd,
}

#[derive(Debug)]
struct Jobs {
    queue: VecDeque<Job>,
    idle: usize,
    stop: bool,
}

#[derive(Debug)]
struct Job {
    token: Token,
    call: FileCall,
}

// SAFETY: whoever submits a job vouches that its memory is valid until its result is taken, and memory may be written
// from any thread.
unsafe impl Send for Job {}

impl Workers {
    /// A pool of at most `limit` threads.
    ///
    /// # Errors
    ///
    /// When there are too many descriptors.
    pub fn new(limit: usize) -> io::Result<Self> {
        let shared = Shared {
            jobs: Mutex::new(Jobs {
                queue: VecDeque::with_capacity(256),
                idle: 0,
                stop: false,
            }),
            work: Condvar::new(),
            results: Mutex::new(Vec::with_capacity(256)),
            bell: event_fd::create()?,
        };
        Ok(Self {
            shared: Arc::new(shared),
            threads: 0,
            limit: limit.max(1),
        })
    }

    /// Becomes readable when there are results; its count must be taken before [`Workers::results`].
    #[must_use]
    pub fn bell(&self) -> RawFd {
        self.shared.bell.as_raw_fd()
    }

    /// Hands a call to a thread.
    ///
    /// # Safety
    ///
    /// Memory and descriptors in the call must stay valid until its result is taken.
    pub unsafe fn submit(&mut self, token: Token, call: FileCall) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.queue.push_back(Job { token, call });
        let start = jobs.queue.len() > jobs.idle && self.threads < self.limit;
        drop(jobs);
        if start && spawn(&self.shared).is_ok() {
            self.threads += 1;
        }
        if self.threads == 0 {
            // Not even one thread is to be had: do it here, slowly.
            drain_one(&self.shared);
        } else {
            self.shared.work.notify_one();
        }
    }

    /// Takes the results that are there.
    pub fn results(&mut self, events: &mut Vec<Event>) {
        events.append(&mut lock(&self.shared.results));
    }
}

impl Drop for Workers {
    /// Threads end by themselves: one that is stuck in the kernel is not worth waiting for.
    fn drop(&mut self) {
        lock(&self.shared.jobs).stop = true;
        self.shared.work.notify_all();
    }
}

/// A lock whose data are valid even if a thread panicked with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("port-file".into())
        .stack_size(256 << 10)
        .spawn(move || work(&shared))
        .map(drop)
}

fn work(shared: &Shared) {
    let mut jobs = lock(&shared.jobs);
    loop {
        if let Some(job) = jobs.queue.pop_front() {
            drop(jobs);
            run(shared, &job);
            jobs = lock(&shared.jobs);
        } else if jobs.stop {
            return;
        } else {
            jobs.idle += 1;
            jobs = shared
                .work
                .wait(jobs)
                .unwrap_or_else(PoisonError::into_inner);
            jobs.idle -= 1;
        }
    }
}

fn drain_one(shared: &Shared) {
    let job = lock(&shared.jobs).queue.pop_front();
    if let Some(job) = job {
        run(shared, &job);
    }
}

fn run(shared: &Shared, job: &Job) {
    // SAFETY: who submitted the job vouches for its memory until the result is taken.
    let result = unsafe { blocking::execute(&job.call) };
    let mut results = lock(&shared.results);
    results.push(Event {
        token: job.token,
        result,
    });
    if results.len() == 1 {
        event_fd::add(shared.bell.as_raw_fd());
    }
}
