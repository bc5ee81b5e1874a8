//! A lean NBD client that puts load on disks. It does as little as a client can for an operation, so that what is measured is
//! the server: one send for all requests that are ready, one receive for all replies that are there, and nothing is done with
//! the data. It speaks the fixed newstyle handshake and simple replies.
//!
//! `wire` is how the protocol looks, `socket` the connection and the waiting, `handshake` what comes first, `transmission` the
//! requests in flight, and `bench` keeps them in flight and counts.

#![forbid(unsafe_code)]

pub mod bench;
mod handshake;
pub mod socket;
mod transmission;
mod wire;
