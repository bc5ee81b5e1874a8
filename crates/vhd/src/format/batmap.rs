//! blktap's batmap: one bit a block that says that all sectors of the block are in this file, so that its bitmap need not
//! be read. Its 512-byte header follows the BAT (padded to a sector) of images whose creator is `tap`, version 1.2 or later.
//! Source: the layout that blktap's libvhd writes.

use super::bytes::{array, put, u32_at, u64_at};

/// Bytes of the header.
pub const HEADER_LENGTH: usize = 512;
/// First eight bytes.
pub const COOKIE: [u8; 8] = *b"tdbatmap";
/// The version that blktap writes today.
pub const VERSION: u32 = 0x0001_0002;
/// The version whose checksum adds signed bytes.
pub const SIGNED_VERSION: u32 = 0x0001_0001;

const MARKER: usize = 28;
const KEY_HASH: usize = 29;
const NONCE: usize = KEY_HASH + 1;
const HASH: usize = NONCE + 32;
const RESERVED: usize = HASH + 32;

/// What blktap keeps of the key of an encrypted disk: SHA-256 of the nonce and the key behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash {
    /// Random bytes, hashed before the key.
    pub nonce: [u8; 32],
    /// The hash.
    pub hash: [u8; 32],
}

/// A batmap's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batmap {
    /// Byte offset of the map in the file.
    pub offset: u64,
    /// Sectors that are kept for the map; an oversized BAT has more than the disk needs.
    pub sectors: u32,
    /// [`VERSION`], or [`SIGNED_VERSION`] in old files.
    pub version: u32,
    /// Checksum of the map, see [`checksum`].
    pub checksum: u32,
    /// blktap's marker byte, which `vhd-util set -f marker` sets.
    pub marker: u8,
    /// The disk is encrypted with the key that this is the hash of.
    pub key_hash: Option<KeyHash>,
    /// The reserved bytes, kept as they are.
    pub reserved: [u8; HEADER_LENGTH - RESERVED],
}

impl Batmap {
    /// The header of an empty map of `sectors` sectors at byte `offset` of the file.
    #[must_use]
    pub fn new(offset: u64, sectors: u32) -> Self {
        Self {
            offset,
            sectors,
            version: VERSION,
            checksum: checksum(&[], VERSION),
            marker: 0,
            key_hash: None,
            reserved: [0; HEADER_LENGTH - RESERVED],
        }
    }

    /// Reads a header, if `bytes` are one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        (array(bytes, 0) == COOKIE).then(|| Self {
            offset: u64_at(bytes, 8),
            sectors: u32_at(bytes, 16),
            version: u32_at(bytes, 20),
            checksum: u32_at(bytes, 24),
            marker: array::<1>(bytes, MARKER)[0],
            key_hash: (array(bytes, KEY_HASH) != [0]).then(|| KeyHash {
                nonce: array(bytes, NONCE),
                hash: array(bytes, HASH),
            }),
            reserved: array(bytes, RESERVED),
        })
    }

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.offset.to_be_bytes());
        put(&mut bytes, 16, &self.sectors.to_be_bytes());
        put(&mut bytes, 20, &self.version.to_be_bytes());
        put(&mut bytes, 24, &self.checksum.to_be_bytes());
        bytes[MARKER] = self.marker;
        if let Some(key) = &self.key_hash {
            bytes[KEY_HASH] = 1;
            put(&mut bytes, NONCE, &key.nonce);
            put(&mut bytes, HASH, &key.hash);
        }
        put(&mut bytes, RESERVED, &self.reserved);
        bytes
    }

    /// Whether `map`, the first [`map_bytes`] of the map, is the one that was checksummed.
    #[must_use]
    pub fn matches(&self, map: &[u8]) -> bool {
        self.checksum == checksum(map, self.version)
    }
}

/// Byte offset of the header in an image whose BAT has `max_table_entries` entries at `table_offset`.
#[must_use]
pub fn header_offset(table_offset: u64, max_table_entries: u32) -> u64 {
    table_offset
        .saturating_add(u64::from(max_table_entries) * 4)
        .checked_next_multiple_of(512)
        .unwrap_or(u64::MAX)
}

/// Sectors of the map of an image whose BAT has `max_table_entries` entries.
#[must_use]
pub fn map_sectors(max_table_entries: u32) -> u32 {
    max_table_entries.div_ceil(8 * 512).max(1)
}

/// Bytes of the map that count for a disk of `current_size` bytes: the part that is read, and that the checksum covers.
/// As blktap does it, blocks that begin a byte which they don't fill have no bit where that byte would begin a sector.
#[must_use]
pub fn map_bytes(current_size: u64, block_size: u32) -> u64 {
    let bytes = current_size / u64::from(block_size.max(1)) / 8;
    bytes.max(1).next_multiple_of(512)
}

/// One's complement of the sum of all bytes of a map, which are signed in [`SIGNED_VERSION`].
#[must_use]
pub fn checksum(map: &[u8], version: u32) -> u32 {
    let sum = map.iter().fold(0_u32, |sum, byte| {
        let signed = i32::from(byte.cast_signed()).cast_unsigned();
        sum.wrapping_add(if version == SIGNED_VERSION {
            signed
        } else {
            u32::from(*byte)
        })
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let mut batmap = Batmap {
            checksum: 77,
            marker: 5,
            key_hash: Some(KeyHash {
                nonce: [1; 32],
                hash: [2; 32],
            }),
            ..Batmap::new(2560, 3)
        };
        batmap.reserved[417] = 9;
        assert_eq!(Batmap::decode(&batmap.encode()), Some(batmap.clone()));
        batmap.key_hash = None;
        assert_eq!(Batmap::decode(&batmap.encode()), Some(batmap));
        assert_eq!(Batmap::decode(&[0; HEADER_LENGTH]), None);
    }

    #[test]
    fn checksums_are_those_of_the_version() {
        let map = [0x80, 0x01, 0xff];
        assert_eq!(checksum(&map, VERSION), !0x180);
        assert_eq!(checksum(&map, SIGNED_VERSION), !0_u32.wrapping_sub(0x80));
        let batmap = Batmap {
            checksum: !0x180,
            ..Batmap::new(0, 1)
        };
        assert!(batmap.matches(&map));
        assert!(Batmap::new(0, 1).matches(&[0; 512]));
    }

    #[test]
    fn the_header_is_behind_the_whole_table() {
        assert_eq!(header_offset(1536, 128), 2048);
        assert_eq!(header_offset(1536, 129), 2560);
        assert_eq!(header_offset(u64::MAX - 1, u32::MAX), u64::MAX);
    }

    #[test]
    fn the_map_is_as_long_as_blktap_has_it() {
        let mib = 1 << 20;
        assert_eq!(map_bytes(mib, 2 << 20), 512);
        assert_eq!(map_bytes(8192 * mib, 2 << 20), 512);
        assert_eq!(map_bytes(8194 * mib, 2 << 20), 512);
        assert_eq!(map_bytes(8208 * mib, 2 << 20), 1024);
    }
}
