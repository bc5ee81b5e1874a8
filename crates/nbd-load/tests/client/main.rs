//! The client against small servers in this process.

mod failures;
mod load;
mod support;
