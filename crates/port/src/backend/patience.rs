//! When to write into the page cache, or read from it, at once rather than asynchronously.
//!
//! Writing into the page cache is copying, and the kernel takes longer to hand that to another thread (which is what
//! io_uring does on ext4) than to do it. Measured on ext4, 4 KiB random overwrites, medians of five runs: depth 1
//! 125 k/s at once against 57 k/s asynchronously, depth 32 230 k/s against 98 k/s.
//!
//! But once too many pages wait to be written back, the kernel slows writers down by putting them to sleep. Then it is
//! better that another thread sleeps, and the data plane goes on with what is in the cache.
//!
//! Reads from the cache are completed by io_uring as they are submitted, so a call of their own is only worth it where hardly any
//! are submitted together: depth 1 over a ring 283-297 k/s by io_uring against 317-345 k/s at once, no difference at depths 2 and 4,
//! and 356-462 k/s against 240-370 k/s at depth 32 (alternating rounds).

use std::time::{Duration, Instant};

use super::{Direction, FileCall, Transfer, blocking};

/// The most bytes that are written at once: with less, sequential writes of 1 MiB over NBD were a sixth slower.
pub const LENGTH: usize = 1 << 20;

/// Writes that take longer than this have slept.
const SLOW: Duration = Duration::from_millis(2);

/// So many writes go by between two looks at the clock, which takes a fiftieth of a small write.
const STEP: u32 = 4;

/// After one of so many bytes the clock is looked at in any case: it may take that long awake.
const LARGE: usize = 64 << 10;

/// Writes that are asynchronous after one that has slept.
const PAUSE: u32 = 256;

/// Reads that are submitted together at most to be done at once.
const FEW: u32 = 2;

/// Decides on what goes through the page cache.
#[derive(Debug, Default)]
pub struct Patience {
    pause: u32,
    /// When the first of `writes` began.
    since: Option<Instant>,
    /// Writes since the last look at the clock.
    writes: u32,
    /// Reads since the last batch ended.
    reads: u32,
    /// The last batch with reads had few of them.
    few: bool,
}

impl Patience {
    /// Executes a call if it is a write that is better done at once.
    ///
    /// # Safety
    ///
    /// The memory that the call names must be valid.
    pub unsafe fn write(&mut self, call: &FileCall) -> Option<i32> {
        let FileCall::Transfer(Transfer {
            direction: Direction::Write,
            length: length @ ..=LENGTH,
            cached: true,
            ..
        }) = *call
        else {
            return None;
        };
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        self.since.get_or_insert_with(Instant::now);
        // SAFETY: the caller vouches for the memory.
        let result = unsafe { blocking::execute(call) };
        self.writes += 1;
        if self.writes == STEP || length >= LARGE {
            self.look();
        }
        Some(result)
    }

    /// Executes a call if it is a read that is better done at once, and can be.
    ///
    /// # Safety
    ///
    /// The memory that the call names must be valid.
    pub unsafe fn read(&mut self, call: &FileCall) -> Option<i32> {
        let FileCall::Transfer(Transfer {
            direction: Direction::Read,
            cached: true,
            ..
        }) = call
        else {
            return None;
        };
        self.reads += 1;
        if !self.few {
            return None;
        }
        // SAFETY: the caller vouches for the memory.
        unsafe { blocking::read_at_once(call) }
    }

    /// What follows doesn't come together with what was before.
    pub fn end_batch(&mut self) {
        if self.writes > 0 {
            self.look();
        }
        self.since = None;
        if self.reads > 0 {
            self.few = self.reads <= FEW;
            self.reads = 0;
        }
    }

    /// Whether the last writes have slept.
    fn look(&mut self) {
        let now = Instant::now();
        if self.since.is_some_and(|since| now - since > SLOW) {
            self.pause = PAUSE;
        }
        self.since = Some(now);
        self.writes = 0;
    }
}
