//! Where accesses go.

use crate::{Options, Random, Result, Rw, fail};

const SECTOR: u64 = 512;
const MOST_DEPTH: u32 = 1 << 16;

/// The places of a job's accesses on its disk, as offsets in bytes. Only where everything is done once do they end.
#[derive(Debug)]
pub struct Places {
    rw: Rw,
    random: Random,
    align: u64,
    count: u64,
    next: u64,
    span: u64,
}

impl Places {
    /// Those that fit the options, on a disk of so many bytes.
    ///
    /// # Errors
    /// When the options make no sense for this disk.
    pub fn new(options: &Options, disk: u64) -> Result<Self> {
        let Options { bs, depth, .. } = *options;
        if bs == 0 || !bs.is_multiple_of(SECTOR) || bs > u64::from(u32::MAX) {
            fail!("the size of an access must be a multiple of {SECTOR}");
        }
        if depth == 0 {
            fail!("a depth of 0 does nothing");
        }
        if depth > MOST_DEPTH {
            fail!("a depth of {depth} is more than {MOST_DEPTH}");
        }
        let span = if options.span == 0 {
            disk
        } else {
            options.span.min(disk)
        };
        let align = if options.align == 0 {
            bs
        } else {
            options.align
        };
        if align < bs || !align.is_multiple_of(SECTOR) {
            fail!("accesses of {bs} bytes can't begin at multiples of {align}");
        }
        let count = span / align;
        if count == 0 {
            fail!("not one access of {bs} bytes fits into {span} bytes");
        }
        Ok(Self {
            rw: options.rw,
            random: Random::new(options.seed),
            align,
            count,
            next: 0,
            span,
        })
    }

    /// How many bytes from the start of the disk are used.
    #[must_use]
    pub fn span(&self) -> u64 {
        self.span
    }
}

impl Iterator for Places {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let place = if self.rw.is_random() {
            self.random.below(self.count)
        } else {
            if self.next == self.count {
                if self.rw == Rw::Trim {
                    return None;
                }
                self.next = 0;
            }
            self.next += 1;
            self.next - 1
        };
        Some(place * self.align)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Places;
    use crate::{Options, Rw};

    const OPTIONS: Options = Options {
        rw: Rw::Read,
        bs: 4096,
        depth: 1,
        time: Duration::ZERO,
        span: 0,
        align: 0,
        seed: 1,
        poll: Duration::ZERO,
    };

    #[test]
    fn reads_and_writes_begin_again_but_trims_end() {
        let places = |rw| Places::new(&Options { rw, ..OPTIONS }, 3 * 4096 + 512).unwrap();
        let twice: Vec<_> = places(Rw::Write).take(6).collect();
        assert_eq!(twice, [0, 4096, 8192, 0, 4096, 8192]);
        assert_eq!(places(Rw::Trim).collect::<Vec<_>>(), [0, 4096, 8192]);
    }

    #[test]
    fn random_places_are_all_over_the_span_in_steps() {
        let options = Options {
            rw: Rw::Randwrite,
            span: 1 << 20,
            align: 12_288,
            ..OPTIONS
        };
        let places = Places::new(&options, 1 << 30).unwrap();
        assert_eq!(places.span(), 1 << 20);
        let mut seen = [0; 85];
        for place in places.take(10_000) {
            assert_eq!(place % 12_288, 0);
            seen[place as usize / 12_288] += 1;
        }
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
        let again = |seed| {
            let options = Options { seed, ..options };
            let places = Places::new(&options, 1 << 30).unwrap();
            places.take(10).collect::<Vec<_>>()
        };
        assert_eq!(again(1), again(1));
        assert_ne!(again(1), again(2));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (options, words) in [
            (
                Options {
                    bs: 1000,
                    ..OPTIONS
                },
                "a multiple of 512",
            ),
            (Options { bs: 0, ..OPTIONS }, "a multiple of 512"),
            (
                Options {
                    depth: 0,
                    ..OPTIONS
                },
                "a depth of 0",
            ),
            (
                Options {
                    depth: 65_537,
                    ..OPTIONS
                },
                "more than 65536",
            ),
            (
                Options {
                    align: 2048,
                    ..OPTIONS
                },
                "multiples of 2048",
            ),
            (
                Options {
                    span: 2048,
                    ..OPTIONS
                },
                "fits into 2048 bytes",
            ),
            (
                Options {
                    bs: 1 << 20,
                    ..OPTIONS
                },
                "fits into 65536 bytes",
            ),
        ] {
            let failure = Places::new(&options, 65_536).unwrap_err().to_string();
            assert!(failure.contains(words), "{failure}");
        }
    }
}
