//! Whether and when to look at a socket that nothing waits for.
//!
//! To look is a system call, which is less than it takes both sides of a connection to wait: a client that has one request in
//! flight gets its answer sooner. Of a client that has many, several arrive together, and the system call that submits
//! their operations brings the next ones along: then the back end does better.

use std::time::{Duration, Instant};

/// Between two looks.
const INTERVAL: Duration = Duration::from_micros(1);

/// Looks in a row that find nothing until it is better to be told.
const HOPELESS: u32 = 256;

/// How often requests must come one at a time after some that came together.
const ALONE: u32 = 64;

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Pace {
    next: Option<Instant>,
    misses: u32,
    /// How often requests must still come one at a time.
    together: u32,
}

impl Pace {
    /// So many requests came at once.
    pub fn pulled(&mut self, requests: usize) {
        if requests > 1 {
            self.together = ALONE;
        } else if requests == 1 {
            self.together = self.together.saturating_sub(1);
        }
    }

    /// Something was received.
    pub fn received(&mut self) {
        self.next = None;
        self.misses = 0;
    }

    /// There was nothing to receive.
    pub fn missed(&mut self, now: Instant) {
        self.next = Some(now + INTERVAL);
        self.misses += 1;
    }

    /// Whether to look at the socket by oneself.
    pub fn is_eager(&self) -> bool {
        self.together == 0 && self.misses < HOPELESS
    }

    /// Whether it is time for a look.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_with_one_request_at_a_time_is_looked_at() {
        let mut pace = Pace::default();
        assert!(pace.is_eager());
        pace.pulled(2);
        for _ in 0..ALONE {
            assert!(!pace.is_eager());
            pace.pulled(0);
            pace.pulled(1);
        }
        assert!(pace.is_eager());
    }

    #[test]
    fn one_that_is_silent_is_waited_on() {
        let mut pace = Pace::default();
        let now = Instant::now();
        for _ in 0..HOPELESS {
            assert!(pace.is_eager());
            pace.missed(now);
            assert!(!pace.is_due(now) && pace.is_due(now + INTERVAL));
        }
        assert!(!pace.is_eager());
        pace.received();
        assert!(pace.is_eager() && pace.is_due(now));
    }
}
