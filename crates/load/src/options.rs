//! The load that is wanted, as the command line says it.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// What is done, by fio's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rw {
    /// Reads anywhere.
    Randread,
    /// Writes anywhere.
    Randwrite,
    /// Reads one after the other, from the start again after the end.
    Read,
    /// Writes one after the other, from the start again after the end.
    Write,
    /// Trims everything once, one access after the other.
    Trim,
}

impl Rw {
    /// Whether accesses are anywhere.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite)
    }

    /// Whether data are written.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(self, Self::Randwrite | Self::Write)
    }

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
            Self::Trim => "trim",
        }
    }
}

/// What to do with a disk.
#[derive(Args, Clone, Copy, Debug)]
pub struct Options {
    /// What to do.
    #[arg(long)]
    pub rw: Rw,
    /// Bytes of an access.
    #[arg(long, default_value_t = 4096)]
    pub bs: u64,
    /// Accesses in flight.
    #[arg(long, default_value_t = 32)]
    pub depth: u32,
    /// For how long.
    #[arg(long = "seconds", value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub time: Duration,
    /// Use only so many bytes from the start of the disk; 0: all.
    #[arg(long, default_value_t = 0)]
    pub span: u64,
    /// Begin accesses at multiples of so many bytes; 0: of their size.
    #[arg(long, default_value_t = 0)]
    pub align: u64,
    /// Equal seeds make equal accesses.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Look for answers for so many microseconds before sleeping, as a guest does whose idle loop polls.
    #[arg(long = "poll-us", value_name = "MICROSECONDS", default_value = "0", value_parser = microseconds)]
    pub poll: Duration,
}

/// Longer times are mistakes, and clocks can't count them.
const MOST_SECONDS: f64 = 1e9;

/// A time from the command line, in seconds.
///
/// # Errors
/// When it is none, or too long.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    if seconds > MOST_SECONDS {
        return Err(format!("more than {MOST_SECONDS} seconds"));
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn microseconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse::<u32>()
        .map(|count| Duration::from_micros(count.into()))
}
