//! What came of a load: one line of JSON.

use std::time::Duration;

use crate::{Histogram, Options};

/// What came of one job, or of several at the same time.
#[derive(Debug)]
pub struct Outcome {
    /// How many bytes from the start of the disk were used.
    pub span: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// How long each access took.
    pub latencies: Histogram,
    /// What else was counted; equal jobs count the same things.
    pub counts: Vec<(&'static str, u64)>,
}

impl Outcome {
    /// Both together.
    pub(crate) fn with(mut self, other: Self) -> Self {
        self.latencies.merge(&other.latencies);
        for (own, (_, others)) in self.counts.iter_mut().zip(other.counts) {
            own.1 += others;
        }
        Self {
            elapsed: self.elapsed.max(other.elapsed),
            ..self
        }
    }

    /// The line.
    pub(crate) fn report(&self, options: &Options) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let ios = self.latencies.count();
        let counts: String = self
            .counts
            .iter()
            .map(|(name, count)| format!(",\"{name}\":{count}"))
            .collect();
        format!(
            "{{\"rw\":\"{}\",\"bs\":{},\"depth\":{},\"span\":{},\"seconds\":{seconds:.3},\"ios\":{ios},\
             \"iops\":{:.0},\"mb_per_s\":{:.1},\"latency_us\":{{\"mean\":{:.1},\"p50\":{:.1},\"p90\":{:.1},\"p99\":{:.1},\
             \"p999\":{:.1},\"max\":{:.1}}}{counts}}}",
            options.rw.name(),
            options.bs,
            options.depth,
            self.span,
            ios as f64 / seconds,
            (ios * options.bs) as f64 / seconds / 1e6,
            self.latencies.mean(),
            self.latencies.permille(500),
            self.latencies.permille(900),
            self.latencies.permille(990),
            self.latencies.permille(999),
            self.latencies.max(),
        )
    }
}
