//! The structures of a VHD file as bytes and back: no state, no I/O, no policy about whole images.
//!
//! Source of all layouts: Microsoft, *Virtual Hard Disk Image Format Specification*, version 1.0 (2006). All integers in
//! a VHD are big-endian.

pub mod bat;
pub mod batmap;
pub mod bitmap;
mod bytes;
pub mod footer;
pub mod geometry;
pub mod header;
pub mod locator;
pub mod timestamp;
pub mod uuid;
