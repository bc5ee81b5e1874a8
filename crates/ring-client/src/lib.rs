//! Plays the guest's side of a blktap2 ring: makes the shared memory, hands it to `tapdisk` over a Unix socket, puts
//! requests into it and takes responses out. For tests and benchmarks; the disk's contents are at its mercy.
//!
//! `ring` is the ring itself, `client` the connection and the waiting, and the others are one job each.

pub mod bench;
pub mod client;
pub mod malformed;
pub mod ring;
pub mod verify;

pub use load::{Failure, Result};
