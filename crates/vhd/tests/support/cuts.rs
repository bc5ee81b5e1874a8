//! Power cuts: the states that one can leave, each checked once.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::Write;

use super::Random;
use super::power::state::mix;
use super::power::{Left, PowerLog};

/// Up to this many pending changes, every subset of them in every order that makes a difference is tried.
const EXHAUSTIVE: usize = 6;
/// States that are tried beyond: subsets of whole changes, and changes torn at sectors, in random order.
const SUBSETS: usize = 12;
const TORN: usize = 4;

/// States that each kind of work explores at least, unless `TAPVHD_STATES` says another number.
pub fn enough_states() -> usize {
    let given = std::env::var("TAPVHD_STATES").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(20_000)
}

/// Fingerprints are random enough as they are.
#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed")
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// How a run's disk treats operations in flight.
#[derive(Clone, Copy, Debug)]
enum Haste {
    Any,
    Oldest,
    Youngest,
    /// The oldest takes long.
    Stuck,
}

impl Haste {
    fn of(seed: u64) -> Self {
        [Self::Any, Self::Oldest, Self::Youngest, Self::Stuck][mix(seed) as usize % 4]
    }
}

type Fingerprints = HashSet<u64, BuildHasherDefault<AsIs>>;

/// Explores what power cuts leave, and counts it.
#[derive(Debug)]
pub struct Explorer {
    random: Random,
    /// Which operations end first.
    haste: Haste,
    /// All states seen.
    distinct: Fingerprints,
    /// Those that were checked against the promises as they are now.
    checked: Fingerprints,
    /// How many states were checked.
    checks: u64,
}

impl Explorer {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            haste: Haste::of(seed),
            distinct: Fingerprints::default(),
            checked: Fingerprints::default(),
            checks: 0,
        }
    }

    /// Another run begins: its states are counted on top, and its random choices follow from `seed`.
    pub fn begin(&mut self, seed: u64) {
        self.random = Random(seed);
        self.haste = Haste::of(seed);
        self.checked.clear();
    }

    /// More is promised than before (something was acknowledged as durable): states that were good may not be any more.
    pub fn promises_changed(&mut self) {
        self.checked.clear();
    }

    /// How many different states of the files were checked so far.
    pub fn distinct(&self) -> usize {
        self.distinct.len()
    }

    /// How often a state was checked so far; more than [`Explorer::distinct`], as promises change.
    pub fn checks(&self) -> u64 {
        self.checks
    }

    /// Says how many states were explored, past what cargo captures.
    pub fn report(&self, name: &str) {
        let (distinct, checks) = (self.distinct(), self.checks);
        let _ = writeln!(
            std::io::stderr(),
            "{name}: {distinct} crash states, {checks} checks"
        );
    }

    /// Which of so many operations in flight, oldest first, ends next.
    pub fn pick(&mut self, in_flight: usize) -> usize {
        let usual = self.random.below(8) > 0;
        match self.haste {
            Haste::Oldest if usual => 0,
            Haste::Youngest if usual => in_flight - 1,
            Haste::Stuck if usual && in_flight > 1 => 1 + self.random.below(in_flight - 1),
            _ => self.random.below(in_flight),
        }
    }

    /// One of the states that a cut here can leave, unchecked.
    pub fn one(&mut self, log: &mut PowerLog) -> Left {
        let mark = log.mark();
        self.tear(log);
        let left = log.left(self.random.below(log.directories()));
        log.back(mark);
        left
    }

    /// Cuts the power here: calls `check` for each state that this can leave and that is new.
    pub fn cut(&mut self, log: &mut PowerLog, check: &mut dyn FnMut(&Left)) {
        let pending = log.pending();
        if pending <= EXHAUSTIVE {
            self.visit(log, check);
            let mut used = vec![false; pending];
            self.extend(log, &mut used, None, check);
        } else {
            for kept in [0, pending] {
                self.sample(log, check, |index, _| index < kept, false);
            }
            for _ in 0..SUBSETS {
                // Few, half or most of them.
                let percent = [10, 50, 90][self.random.below(3)];
                self.sample(log, check, |_, random| random.below(100) < percent, true);
            }
        }
        for _ in 0..if pending == 0 { 0 } else { TORN } {
            self.torn(log, check);
        }
    }

    /// Adds every change that is not used yet to those that are, and so on.
    fn extend(
        &mut self,
        log: &mut PowerLog,
        used: &mut [bool],
        last: Option<usize>,
        check: &mut dyn FnMut(&Left),
    ) {
        for next in 0..used.len() {
            // Of two orders that come to the same, one will do.
            let same = last.is_some_and(|last| next < last && log.commute(next, last));
            if used[next] || same {
                continue;
            }
            let mark = log.mark();
            log.keep(next, None);
            self.visit(log, check);
            used[next] = true;
            self.extend(log, used, Some(next), check);
            used[next] = false;
            log.back(mark);
        }
    }

    fn sample(
        &mut self,
        log: &mut PowerLog,
        check: &mut dyn FnMut(&Left),
        mut choose: impl FnMut(usize, &mut Random) -> bool,
        shuffle: bool,
    ) {
        let mark = log.mark();
        for change in self.order(log, shuffle) {
            if choose(change, &mut self.random) {
                log.keep(change, None);
            }
        }
        self.visit(log, check);
        log.back(mark);
    }

    fn torn(&mut self, log: &mut PowerLog, check: &mut dyn FnMut(&Left)) {
        let mark = log.mark();
        self.tear(log);
        self.visit(log, check);
        log.back(mark);
    }

    /// Lets a part of everything reach the disk.
    fn tear(&mut self, log: &mut PowerLog) {
        for change in self.order(log, true) {
            let percent = [0, 30, 70, 100][self.random.below(4)];
            let random = &mut self.random;
            log.keep(change, Some(&mut || random.below(100) < percent));
        }
    }

    fn order(&mut self, log: &PowerLog, shuffle: bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..log.pending()).collect();
        if shuffle {
            for index in (1..order.len()).rev() {
                order.swap(index, self.random.below(index + 1));
            }
        }
        order
    }

    /// Checks the state of the log, if that is new, with each state of the directory.
    fn visit(&mut self, log: &PowerLog, check: &mut dyn FnMut(&Left)) {
        for directory in 0..log.directories() {
            let fingerprint = log.fingerprint(directory);
            if self.checked.insert(fingerprint) {
                self.distinct.insert(fingerprint);
                self.checks += 1;
                check(&log.left(directory));
            }
        }
    }
}
