//! blktap's batmap: one bit a block that says that all sectors of the block are in this file, so that its bitmap need not
//! be read. Its 512-byte header follows the BAT (padded to a sector) of images whose creator is `tap`, version 1.2 or later.
//! Source: the layout that blktap's libvhd writes.

use std::ops::Range;

use super::bytes::{array, u32_at, u64_at};

/// Bytes of the header.
pub const HEADER_LENGTH: usize = 512;
/// First eight bytes.
pub const COOKIE: [u8; 8] = *b"tdbatmap";

/// Where the map is, as a range of bytes of the file, if `header` is a batmap's header.
#[must_use]
pub fn extent(header: &[u8]) -> Option<Range<u64>> {
    if array(header, 0) != COOKIE {
        return None;
    }
    let start = u64_at(header, 8);
    Some(start..start.saturating_add(u64::from(u32_at(header, 16)) * 512))
}
