//! `ring-client`: plays the guest's side of a blktap ring that `tapdisk` serves on a Unix socket.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use load::{Options, seconds};
use ring_client::client::Connect;
use ring_client::{bench, malformed, verify};

/// Plays the guest's side of a blktap ring, for tests and benchmarks. Overwrites the disk.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Random reads and writes, each compared with what must be there.
    Verify {
        #[command(flatten)]
        common: Common,
        /// Number of requests.
        #[arg(long, default_value_t = 100_000)]
        requests: u64,
        /// Requests in flight.
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=32))]
        depth: u32,
        /// Equal seeds make equal requests.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Use only so many sectors from the start of the disk (all of them are held in memory).
        #[arg(long, default_value_t = 1 << 18)]
        sectors_limit: u64,
        /// Percentage of writes.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
        writes: u8,
        /// A flush every so many requests; 0: only at the end.
        #[arg(long, default_value_t = 1000)]
        flush_every: u64,
    },
    /// Requests that no honest guest sends; each must get an error and harm nothing.
    Malformed {
        #[command(flatten)]
        common: Common,
    },
    /// Measures; prints one line of JSON.
    Bench {
        #[command(flatten)]
        common: Common,
        /// The socket of another disk that gets the same load at the same time; once for each.
        #[arg(long)]
        beside: Vec<PathBuf>,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Args)]
struct Common {
    /// The Unix socket on which tapdisk takes rings.
    #[arg(long)]
    socket: PathBuf,
    /// Fail when it takes longer; a benchmark has its own time on top.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    timeout: Duration,
    /// What the ring's indexes begin with; 4294967280 makes them wrap around soon.
    #[arg(long, default_value_t = 0)]
    start_index: u32,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Verify {
            common,
            requests,
            depth,
            seed,
            sectors_limit,
            writes,
            flush_every,
        } => {
            let options = verify::Options {
                requests,
                depth,
                seed,
                sectors_limit,
                writes,
                flush_every,
            };
            verify::run(&common.connect(Duration::ZERO), &options).map(|_| ())
        }
        Command::Malformed { common } => {
            malformed::run(&common.connect(Duration::ZERO)).map(|count| {
                println!("{count} malformed requests were refused, and the ring still works")
            })
        }
        Command::Bench {
            common,
            beside,
            options,
        } => {
            let first = common.connect(options.time);
            let others = beside.iter().map(|socket| Connect { socket, ..first });
            let rings: Vec<_> = std::iter::once(first).chain(others).collect();
            bench::run(&rings, &options).map(|line| println!("{line}"))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ring-client: {failure}");
            ExitCode::FAILURE
        }
    }
}

impl Common {
    fn connect(&self, extra: Duration) -> Connect<'_> {
        Connect {
            socket: &self.socket,
            start_index: self.start_index,
            timeout: self.timeout.saturating_add(extra),
        }
    }
}
