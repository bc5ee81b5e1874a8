//! Whether to look for work for a while before sleeping.
//!
//! Sleeping and being woken costs a few microseconds, and on a virtual CPU that halts half a millisecond: often more than
//! what is waited for takes. Looking costs a CPU. So a data plane looks only as long as more than half of its looks find
//! something: each that does earns a credit, each that doesn't takes one away. Without credit it sleeps at once, but looks
//! again now and then, so that it notices when times change. And a look lasts a few times as long as those that were
//! worth it, not longer. (Linux' halt polling of guests goes by how long the sleep took
//! instead; where waking alone takes longer than the limit, that never begins to look.)
//!
//! When others want the CPU that looking takes, it stops at once, and for longer.

use std::time::{Duration, Instant};

/// Looks in vain in a row until it sleeps at once.
const MOST_CREDIT: u32 = 8;

/// Sleeps without a look between two attempts.
const PAUSE: u32 = 16;

/// The same after somebody else needed the CPU.
const LONG_PAUSE: u32 = 512;

/// How many times the usual a look lasts.
const PATIENCE: u32 = 4;

/// Keeps the usual from becoming less than what it is worth to look for.
const RESOLUTION: Duration = Duration::from_nanos(250);

/// Who looks without pause sees the clock advance by far less than this, unless the CPU was taken away.
const GAP: Duration = Duration::from_micros(50);

/// See the module's comment.
#[derive(Debug)]
pub struct Polling {
    limit: Duration,
    /// How long it takes as a rule until something is found.
    usual: Duration,
    credit: u32,
    pause: u32,
}

/// One look for work.
#[derive(Debug)]
pub struct Look {
    start: Instant,
    last: Instant,
}

impl Look {
    /// A look that begins now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            last: now,
        }
    }
}

impl Polling {
    /// Looks for at most `limit` before a sleep; zero: never.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            usual: limit,
            credit: 0,
            pause: 0,
        }
    }

    /// Whether the next sleep will have a look before it.
    #[must_use]
    pub fn looks(&self) -> bool {
        self.pause == 0 && !self.limit.is_zero()
    }

    /// Whether to look before the next sleep.
    pub fn is_due(&mut self) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        !self.limit.is_zero()
    }

    /// Whether a look goes on, though nothing was found so far.
    pub fn goes_on(&mut self, look: &mut Look, now: Instant) -> bool {
        if now - look.last > GAP {
            self.credit = 0;
            self.pause = LONG_PAUSE;
            return false;
        }
        look.last = now;
        if now - look.start < self.limit.min(self.usual * PATIENCE) {
            return true;
        }
        self.usual = self.limit.min(self.usual * 2);
        self.credit = self.credit.saturating_sub(1);
        if self.credit == 0 {
            self.pause = PAUSE;
        }
        false
    }

    /// A look has found something.
    pub fn found(&mut self, look: Look) {
        self.usual = (self.usual * 7 + (look.last - look.start)) / 8 + RESOLUTION;
        self.credit = (self.credit + 1).min(MOST_CREDIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    /// Looks once; what is waited for comes after `delay`. `None`: it slept at once.
    fn look(polling: &mut Polling, delay: Duration, step: Duration) -> Option<bool> {
        let mut now = Instant::now();
        let end = now + delay;
        if !polling.is_due() {
            return None;
        }
        let mut look = Look::new(now);
        loop {
            now += step;
            if now >= end {
                polling.found(look);
                return Some(true);
            }
            if !polling.goes_on(&mut look, now) {
                return Some(false);
            }
        }
    }

    fn looks(polling: &mut Polling, count: usize, delay: Duration) -> usize {
        (0..count)
            .filter(|_| look(polling, delay, Duration::from_micros(1)).is_some())
            .count()
    }

    #[test]
    fn looks_as_long_as_that_finds_something() {
        let mut polling = Polling::new(LIMIT);
        assert_eq!(looks(&mut polling, 1000, LIMIT / 2), 1000);
        // Some that find nothing don't matter.
        for _ in 0..100 {
            assert_eq!(looks(&mut polling, 3, LIMIT / 2), 3);
            assert_eq!(looks(&mut polling, 2, 2 * LIMIT), 2);
        }
    }

    #[test]
    fn hardly_looks_when_that_finds_nothing_and_notices_when_it_would() {
        let mut polling = Polling::new(LIMIT);
        looks(&mut polling, 100, LIMIT / 2);
        let in_vain = looks(&mut polling, 1000, 2 * LIMIT);
        assert!(in_vain < 80, "{in_vain} of 1000");
        let after = looks(&mut polling, 1000, LIMIT / 2);
        assert!(after > 980, "{after} of 1000");
    }

    #[test]
    fn leaves_the_cpu_to_others() {
        let mut polling = Polling::new(LIMIT);
        looks(&mut polling, 100, LIMIT / 2);
        assert_eq!(look(&mut polling, 2 * LIMIT, GAP * 2), Some(false));
        assert_eq!(looks(&mut polling, 500, LIMIT / 2), 0);
        assert_eq!(looks(&mut polling, 100, LIMIT / 2), 88);
    }

    #[test]
    fn never_looks_without_a_limit() {
        assert_eq!(
            looks(&mut Polling::new(Duration::ZERO), 100, Duration::ZERO),
            0
        );
    }
}
