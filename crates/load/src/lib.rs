//! What clients that put load on disks have in common: the options, where accesses go, how long they took, and the line that
//! tells of it. `ring-client` and `nbd-load` bring the way to the disk.

#![forbid(unsafe_code)]

mod failure;
mod histogram;
mod options;
mod places;
mod random;
mod report;
mod several;

pub use failure::{Failure, Result, during};
pub use histogram::Histogram;
pub use options::{Options, Rw, seconds};
pub use places::Places;
pub use random::Random;
pub use report::Outcome;
pub use several::run;
