//! Latencies, counted in buckets of about 3 % width, so that millions of them take constant memory.

use std::time::Duration;

/// Buckets of one power of two.
const STEPS: u32 = 32;

/// Latencies that were counted.
#[derive(Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    total: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; 64 * STEPS as usize],
            count: 0,
            total: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(nanoseconds)] += 1;
        self.count += 1;
        self.total += u128::from(nanoseconds);
        self.max = self.max.max(nanoseconds);
    }

    /// Counts what another has counted as well.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (bucket, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += count;
        }
        self.count += other.count;
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    fn bucket(value: u64) -> usize {
        let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEPS.ilog2() + 1);
        (shift * STEPS) as usize + (value >> shift) as usize
    }

    /// The largest value of a bucket.
    fn upper(bucket: usize) -> u64 {
        let (bucket, steps) = (bucket as u64, u64::from(STEPS));
        if bucket < 2 * steps {
            return bucket;
        }
        let shift = bucket / steps - 1;
        ((bucket - shift * steps + 1) << shift) - 1
    }

    /// In microseconds: so many of a thousand latencies are no longer than this.
    pub(crate) fn permille(&self, permille: u64) -> f64 {
        let wanted = (self.count * permille).div_ceil(1000);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return Self::upper(bucket).min(self.max) as f64 / 1000.0;
            }
        }
        0.0
    }

    pub(crate) fn mean(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.total as f64 / self.count as f64 / 1000.0
        }
    }

    pub(crate) fn max(&self) -> f64 {
        self.max as f64 / 1000.0
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;
    use std::time::Duration;

    #[test]
    fn a_value_lies_in_its_bucket() {
        for value in (0..200_000).chain((0..60).map(|bit| (1 << bit) + 12_345)) {
            let bucket = Histogram::bucket(value);
            let upper = Histogram::upper(bucket);
            assert!(
                upper >= value && upper as f64 <= value as f64 * 1.04 + 1.0,
                "{value} in {bucket} up to {upper}"
            );
            assert!(
                bucket == 0 || Histogram::upper(bucket - 1) < value,
                "{value} in {bucket}"
            );
        }
    }

    #[test]
    fn two_are_as_good_as_one() {
        let mut all = Histogram::default();
        let mut halves = [Histogram::default(), Histogram::default()];
        for microseconds in 1..=1000 {
            all.add(Duration::from_micros(microseconds));
            halves[usize::from(microseconds > 300)].add(Duration::from_micros(microseconds));
        }
        let [mut first, second] = halves;
        first.merge(&second);
        assert_eq!(first.count(), 1000);
        assert_eq!(first.permille(990), all.permille(990));
        assert_eq!((first.mean(), first.max()), (all.mean(), all.max()));
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|microseconds| histogram.add(Duration::from_micros(microseconds)));
        for permille in [1, 500, 990, 1000] {
            let value = histogram.permille(permille);
            assert!(
                (value - permille as f64).abs() <= permille as f64 * 0.04,
                "{permille}: {value}"
            );
        }
        assert!((histogram.mean() - 500.5).abs() < 0.01);
    }
}
