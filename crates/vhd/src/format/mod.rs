//! The structures of a VHD file as bytes and back: no state, no I/O, no policy about whole images.
//!
//! Source of all layouts: Microsoft, *Virtual Hard Disk Image Format Specification*, version 1.0 (2006). All integers in
//! a VHD are big-endian.

pub mod bat;
pub mod batmap;
pub mod bitmap;
pub(crate) mod bytes;
pub mod dump;
pub mod footer;
pub mod geometry;
pub mod header;
pub mod locator;
pub mod timestamp;
pub mod uuid;

#[cfg(test)]
mod testing {
    use crate::error::Error;

    /// Checks that a structure with a checksum is refused whichever of its bytes is changed, and that the error has a place.
    pub(super) fn every_changed_byte_is_refused(good: &[u8], decode: fn(&[u8]) -> Option<Error>) {
        assert_eq!(decode(good), None);
        for at in 0..good.len() {
            let mut damaged = good.to_vec();
            damaged[at] ^= 0x10;
            let error = decode(&damaged).expect("a damaged structure is refused");
            assert!(
                error.found.is_some() && error.expected.is_some() && error.offset.is_some(),
                "{at}: {error}"
            );
        }
    }
}
