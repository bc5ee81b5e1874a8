//! Plays the guest's side of a blktap2 ring: makes the shared memory, hands it to `tapdisk` over a Unix socket, puts
//! requests into it and takes responses out. For tests and benchmarks; the disk's contents are at its mercy.
//!
//! `ring` is the ring itself, `client` the connection and the waiting, and the others are one job each.

pub mod bench;
pub mod client;
mod histogram;
pub mod malformed;
mod random;
pub mod ring;
pub mod verify;

/// Why a job failed, in words for its user.
#[derive(Debug)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// The outcome of a job.
pub type Result<T> = std::result::Result<T, Failure>;

/// Turns an I/O error into a failure that says what was being done.
fn during<T>(what: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| Failure(format!("{what}: {error}")))
}

/// Fails with a message.
macro_rules! fail {
    ($($message:tt)*) => { return Err($crate::Failure(format!($($message)*))) };
}
use fail;
