//! blktap's batmap: one bit a block that says that all sectors of the block are in this file, so that its bitmap need not
//! be read. Its 512-byte header follows the BAT (padded to a sector) of images whose creator is `tap`, version 1.2 or later.
//! Source: the layout that blktap's libvhd writes.

use super::bytes::{array, u32_at, u64_at};

/// Bytes of the header.
pub const HEADER_LENGTH: usize = 512;
/// First eight bytes.
pub const COOKIE: [u8; 8] = *b"tdbatmap";

/// A batmap's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batmap {
    /// Byte offset of the map in the file.
    pub offset: u64,
    /// Sectors of the map.
    pub sectors: u32,
    /// 0x0001_0002, or 0x0001_0001 in files of older versions, whose checksum adds signed bytes.
    pub version: u32,
    /// Checksum of the map.
    pub checksum: u32,
    /// blktap's marker byte.
    pub marker: u8,
    /// The disk is encrypted; blktap keeps a hash of its key here.
    pub is_encrypted: bool,
}

impl Batmap {
    /// Reads a header, if `bytes` are one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        (array(bytes, 0) == COOKIE).then(|| Self {
            offset: u64_at(bytes, 8),
            sectors: u32_at(bytes, 16),
            version: u32_at(bytes, 20),
            checksum: u32_at(bytes, 24),
            marker: array::<1>(bytes, 28)[0],
            is_encrypted: array::<1>(bytes, 29)[0] != 0,
        })
    }

    /// Whether `map`, the part of the map that covers the disk in whole sectors, is the one that was checksummed.
    #[must_use]
    pub fn matches(&self, map: &[u8]) -> bool {
        let sum = map.iter().fold(0_u32, |sum, byte| {
            let signed = i32::from(byte.cast_signed()).cast_unsigned();
            sum.wrapping_add(if self.version == 0x0001_0001 {
                signed
            } else {
                u32::from(*byte)
            })
        });
        self.checksum == !sum
    }
}
