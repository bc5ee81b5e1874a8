//! The dynamic disk header: where the BAT is, how large blocks are, and who the parent is.

use super::bytes::{array, checksum, put, u16_at, u32_at, u64_at};
use super::locator::{self, ParentLocator};
use super::uuid::Uuid;
use crate::error::{Error, Result};

/// Bytes of a header.
pub const LENGTH: usize = 1024;
/// First eight bytes.
pub const COOKIE: [u8; 8] = *b"cxsparse";
/// Parent locator entries.
pub const LOCATORS: usize = 8;
/// Smallest block that the engine takes, bytes: one bitmap byte.
pub const MIN_BLOCK_SIZE: u32 = 4096;
/// Largest block that the engine takes, bytes: its bitmap is 64 KiB.
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;

const VERSION: u32 = 0x0001_0000;
const CHECKSUM: usize = 36;
const PARENT_NAME: usize = 64;
const PARENT_NAME_UNITS: usize = 256;
const LOCATOR_TABLE: usize = 576;

/// A dynamic header's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Byte offset of the next structure; all ones, since there is none.
    pub data_offset: u64,
    /// Byte offset of the block allocation table.
    pub table_offset: u64,
    /// Entries in that table.
    pub max_table_entries: u32,
    /// Bytes of data in a block: a power of two.
    pub block_size: u32,
    /// Identity of the parent, [`Uuid::NIL`] for blktap's raw parents; zero in dynamic images.
    pub parent_uuid: Uuid,
    /// Modification time of the parent, VHD time stamp; Windows writes 0.
    pub parent_timestamp: u32,
    /// Name of the parent in UTF-16 code units, without trailing zeros.
    pub parent_name: Vec<u16>,
    /// Ways to find the parent.
    pub locators: [ParentLocator; LOCATORS],
}

impl Header {
    /// The header of a new dynamic image with its BAT at `table_offset`.
    #[must_use]
    pub fn new(table_offset: u64, max_table_entries: u32, block_size: u32) -> Self {
        Self {
            data_offset: u64::MAX,
            table_offset,
            max_table_entries,
            block_size,
            parent_uuid: Uuid::NIL,
            parent_timestamp: 0,
            parent_name: Vec::new(),
            locators: [ParentLocator::default(); LOCATORS],
        }
    }

    /// Reads a header.
    ///
    /// # Errors
    /// Names the first field that is not as the specification has it, with its offset in the header.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let invalid = |offset: usize, message: &str| {
            Error::invalid("dynamic header", message).at(offset as u64)
        };
        if bytes.len() < LENGTH {
            return Err(invalid(0, "too short").found(bytes.len(), LENGTH));
        }
        let bytes = &bytes[..LENGTH];
        if array(bytes, 0) != COOKIE {
            return Err(invalid(0, "wrong cookie").found(bytes[..8].escape_ascii(), "cxsparse"));
        }
        let version = u32_at(bytes, 24);
        if version != VERSION {
            return Err(
                invalid(24, "unsupported header version").found(format!("{version:#x}"), "0x10000")
            );
        }
        let stored = u32_at(bytes, CHECKSUM);
        let computed = checksum(bytes, CHECKSUM);
        if stored != computed {
            return Err(invalid(CHECKSUM, "wrong checksum")
                .found(format!("{stored:#x}"), format!("{computed:#x}")));
        }
        let table_offset = u64_at(bytes, 16);
        if !table_offset.is_multiple_of(512) || table_offset < 512 {
            return Err(invalid(16, "impossible table offset")
                .found(table_offset, "a multiple of 512, at least 512"));
        }
        let block_size = u32_at(bytes, 32);
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size)
        {
            return Err(invalid(32, "unsupported block size")
                .found(block_size, "a power of two, 4 KiB to 256 MiB"));
        }
        let mut parent_name: Vec<u16> = (0..PARENT_NAME_UNITS)
            .map(|unit| u16_at(bytes, PARENT_NAME + 2 * unit))
            .collect();
        let used = parent_name
            .iter()
            .position(|unit| *unit == 0)
            .unwrap_or(PARENT_NAME_UNITS);
        parent_name.truncate(used);
        Ok(Self {
            data_offset: u64_at(bytes, 8),
            table_offset,
            max_table_entries: u32_at(bytes, 28),
            block_size,
            parent_uuid: Uuid(array(bytes, 40)),
            parent_timestamp: u32_at(bytes, 56),
            parent_name,
            locators: std::array::from_fn(|index| {
                ParentLocator::decode(&bytes[LOCATOR_TABLE + index * locator::LENGTH..])
            }),
        })
    }

    /// The header as bytes, checksum included. A parent name of more than 256 code units is cut.
    #[must_use]
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.data_offset.to_be_bytes());
        put(&mut bytes, 16, &self.table_offset.to_be_bytes());
        put(&mut bytes, 24, &VERSION.to_be_bytes());
        put(&mut bytes, 28, &self.max_table_entries.to_be_bytes());
        put(&mut bytes, 32, &self.block_size.to_be_bytes());
        put(&mut bytes, 40, &self.parent_uuid.0);
        put(&mut bytes, 56, &self.parent_timestamp.to_be_bytes());
        for (unit, value) in self.parent_name.iter().take(PARENT_NAME_UNITS).enumerate() {
            put(&mut bytes, PARENT_NAME + 2 * unit, &value.to_be_bytes());
        }
        for (index, entry) in self.locators.iter().enumerate() {
            put(
                &mut bytes,
                LOCATOR_TABLE + index * locator::LENGTH,
                &entry.encode(),
            );
        }
        let sum = checksum(&bytes, CHECKSUM);
        put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
        bytes
    }

    /// The parent's name as text, unpaired surrogates replaced.
    #[must_use]
    pub fn parent_name(&self) -> String {
        String::from_utf16_lossy(&self.parent_name)
    }
}

/// The checksum that the bytes of a header should have.
#[must_use]
pub(crate) fn checksum_of(bytes: &[u8]) -> u32 {
    checksum(bytes, CHECKSUM)
}

/// The fields of a header as they are in spite of a wrong checksum; for looking at a damaged image, never for using it.
#[must_use]
pub(crate) fn decode_damaged(bytes: &[u8]) -> Option<Header> {
    let mut bytes = bytes.to_vec();
    let sum = checksum_of(&bytes);
    put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
    Header::decode(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing;

    type Damage = fn(&mut Header);

    fn sample() -> Header {
        let mut header = Header::new(1536, 20, 2 << 20);
        header.parent_uuid = Uuid([3; 16]);
        header.parent_timestamp = 77;
        header.parent_name = "base ü.vhd".encode_utf16().collect();
        header.locators[1] = ParentLocator {
            platform: *b"W2ru",
            data_space: 512,
            data_length: 20,
            data_offset: 0x3000,
        };
        header
    }

    #[test]
    fn round_trips() {
        assert_eq!(Header::decode(&sample().encode()), Ok(sample()));
        assert_eq!(sample().parent_name(), "base ü.vhd");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        testing::every_changed_byte_is_refused(&sample().encode(), |bytes| {
            Header::decode(bytes).err()
        });
    }

    #[test]
    fn impossible_fields_are_named_even_with_a_right_checksum() {
        let cases: &[(Damage, u64)] = &[
            (|header| header.table_offset = 1, 16),
            (|header| header.table_offset = 0, 16),
            (|header| header.block_size = 3 << 20, 32),
            (|header| header.block_size = 512, 32),
        ];
        for (damage, offset) in cases {
            let mut header = sample();
            damage(&mut header);
            let error =
                Header::decode(&header.encode()).expect_err("an impossible field is refused");
            assert_eq!(error.offset, Some(*offset));
        }
    }

    #[test]
    fn locator_space_is_in_sectors_or_bytes() {
        assert_eq!(
            ParentLocator {
                data_space: 1,
                ..Default::default()
            }
            .space_bytes(),
            512
        );
        assert_eq!(
            ParentLocator {
                data_space: 4096,
                ..Default::default()
            }
            .space_bytes(),
            4096
        );
    }
}
