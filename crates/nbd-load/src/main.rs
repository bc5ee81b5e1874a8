//! `nbd-load`: puts load on disks that are served over NBD, and tells how fast they are.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use load::{Options, seconds};
use nbd_load::bench::{Disk, run};
use nbd_load::socket::Address;

/// Puts load on a disk that is served over NBD; prints one line of JSON. Overwrites the disk when told to write.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The server's Unix socket, or tcp:HOST:PORT.
    #[arg(long, value_parser = address)]
    socket: Address,
    /// The server of another disk that gets the same load at the same time; once for each.
    #[arg(long, value_parser = address)]
    beside: Vec<Address>,
    /// The name of the export.
    #[arg(long, default_value = "")]
    export: String,
    #[command(flatten)]
    options: Options,
    /// Follow each write with a flush, and count both as one access.
    #[arg(long)]
    flush_each: bool,
    /// Fail when it takes longer than this on top of its own time.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    timeout: Duration,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let disks: Vec<_> = std::iter::once(&arguments.socket)
        .chain(&arguments.beside)
        .map(|address| Disk {
            address,
            export: &arguments.export,
            timeout: arguments.timeout.saturating_add(arguments.options.time),
            flush_each: arguments.flush_each,
        })
        .collect();
    match run(&disks, &arguments.options) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("nbd-load: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn address(text: &str) -> Result<Address, Infallible> {
    Ok(Address::from(text))
}
