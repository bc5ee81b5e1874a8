//! `ring-client`: plays the guest's side of a blktap ring that `tapdisk` serves on a Unix socket.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
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
        /// What to do.
        #[arg(long)]
        rw: Rw,
        /// Bytes of an access; more than 44 KiB become several requests.
        #[arg(long, default_value_t = 4096)]
        bs: u64,
        /// Accesses in flight.
        #[arg(long, default_value_t = 32)]
        depth: u32,
        /// For how long.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Use only so many bytes from the start of the disk; 0: all.
        #[arg(long, default_value_t = 0)]
        span: u64,
        /// Begin accesses at multiples of so many bytes; 0: of their size.
        #[arg(long, default_value_t = 0)]
        align: u64,
        /// Equal seeds make equal accesses.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Look for responses for so many microseconds before sleeping, as a guest does whose idle loop polls.
        #[arg(long, default_value_t = 0)]
        poll_us: u64,
    },
}

#[derive(Args)]
struct Common {
    /// The Unix socket on which tapdisk takes rings.
    #[arg(long)]
    socket: PathBuf,
    /// Fail when it takes longer, in seconds; a benchmark has its own time on top.
    #[arg(long, default_value_t = 120.0)]
    timeout: f64,
    /// What the ring's indexes begin with; 4294967280 makes them wrap around soon.
    #[arg(long, default_value_t = 0)]
    start_index: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rw {
    Randread,
    Randwrite,
    Read,
    Write,
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
            common
                .connect(0.0)
                .and_then(|connect| verify::run(&connect, &options))
                .map(|_| ())
        }
        Command::Malformed { common } => common
            .connect(0.0)
            .and_then(|connect| malformed::run(&connect))
            .map(|count| {
                println!("{count} malformed requests were refused, and the ring still works")
            }),
        Command::Bench {
            common,
            beside,
            rw,
            bs,
            depth,
            seconds,
            span,
            align,
            seed,
            poll_us,
        } => {
            let pattern = match rw {
                Rw::Randread | Rw::Randwrite => bench::Pattern::Random,
                Rw::Read | Rw::Write => bench::Pattern::Sequential,
            };
            let write = matches!(rw, Rw::Randwrite | Rw::Write);
            duration(seconds)
                .and_then(|time| {
                    let options = bench::Options {
                        pattern,
                        write,
                        bs,
                        depth,
                        time,
                        span,
                        align,
                        seed,
                        poll: Duration::from_micros(poll_us),
                    };
                    let first = common.connect(seconds)?;
                    let others = beside.iter().map(|socket| Connect { socket, ..first });
                    bench::run(
                        &std::iter::once(first).chain(others).collect::<Vec<_>>(),
                        &options,
                    )
                })
                .map(|line| println!("{line}"))
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

fn duration(seconds: f64) -> ring_client::Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| ring_client::Failure(format!("{seconds} seconds: {error}")))
}

impl Common {
    fn connect(&self, extra_seconds: f64) -> ring_client::Result<Connect<'_>> {
        let timeout = duration(self.timeout + extra_seconds)?;
        Ok(Connect {
            socket: &self.socket,
            start_index: self.start_index,
            timeout,
        })
    }
}
