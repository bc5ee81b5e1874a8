//! Structures as they are in a file, right or wrong: for people, and for programs that print them.

use serde::{Serialize, Serializer};

use super::bytes::{array, checksum, u32_at, u64_at};
use super::footer::{self, Footer};
use super::header::{self, Header};
use super::uuid::Uuid;
use crate::error::Result;

/// A footer's fields as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FooterDump {
    /// Byte offset in the file.
    #[serde(serialize_with = "decimal")]
    pub offset: u64,
    /// The first eight bytes, up to a zero.
    pub cookie: String,
    /// Feature bits.
    pub features: u32,
    /// Format version, major in the upper half.
    pub version: u32,
    /// Byte offset of the dynamic header.
    #[serde(serialize_with = "decimal")]
    pub data_offset: u64,
    /// Creation time, VHD time stamp.
    pub timestamp: u32,
    /// Creator application, up to a zero.
    pub creator_application: String,
    /// Its version, major in the upper half.
    pub creator_version: u32,
    /// Creator host OS.
    pub creator_host_os: u32,
    /// Bytes.
    #[serde(serialize_with = "decimal")]
    pub original_size: u64,
    /// Bytes.
    #[serde(serialize_with = "decimal")]
    pub current_size: u64,
    /// Cylinders, heads and sectors per track in a word's upper half and its two last bytes.
    pub geometry: u32,
    /// Disk type.
    pub disk_type: u32,
    /// Stored checksum.
    pub checksum: u32,
    /// What it should be.
    pub computed_checksum: u32,
    /// Identity.
    pub uuid: String,
    /// Non-zero with a saved machine state.
    pub saved_state: u8,
    /// blktap's flag.
    pub hidden: u8,
}

impl FooterDump {
    /// The footer in `bytes`, which are at byte `offset` of the file; what is missing counts as zeros.
    #[must_use]
    pub fn new(bytes: &[u8], offset: u64) -> Self {
        let mut whole = [0; footer::LENGTH];
        let present = bytes.len().min(whole.len());
        whole[..present].copy_from_slice(&bytes[..present]);
        Self {
            offset,
            cookie: text(&whole[..8]),
            features: u32_at(&whole, 8),
            version: u32_at(&whole, 12),
            data_offset: u64_at(&whole, 16),
            timestamp: u32_at(&whole, 24),
            creator_application: text(&whole[28..32]),
            creator_version: u32_at(&whole, 32),
            creator_host_os: u32_at(&whole, 36),
            original_size: u64_at(&whole, 40),
            current_size: u64_at(&whole, 48),
            geometry: u32_at(&whole, 56),
            disk_type: u32_at(&whole, 60),
            checksum: u32_at(&whole, 64),
            computed_checksum: checksum(&whole, 64),
            uuid: Uuid(array(&whole, 68)).to_string(),
            saved_state: whole[84],
            hidden: whole[85],
        }
    }

    /// Whether blktap's resize poisoned the footer, which is right otherwise.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.cookie.as_bytes() == footer::POISON && self.checksum == self.computed_checksum
    }
}

/// What is wrong with a footer that isn't just poisoned.
///
/// # Errors
/// The first field that can't be accepted.
pub fn check_footer(bytes: &[u8], dump: &FooterDump) -> Result<()> {
    if dump.is_poisoned() {
        return Ok(());
    }
    Footer::decode(bytes)
        .map(drop)
        .map_err(|error| error.relative_to(dump.offset))
}

/// A dynamic header's fields as they are, without its locators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderDump {
    /// Byte offset in the file.
    #[serde(serialize_with = "decimal")]
    pub offset: u64,
    /// The first eight bytes, up to a zero.
    pub cookie: String,
    /// Byte offset of the next structure.
    #[serde(serialize_with = "decimal")]
    pub data_offset: u64,
    /// Byte offset of the BAT.
    #[serde(serialize_with = "decimal")]
    pub table_offset: u64,
    /// Header version.
    pub version: u32,
    /// Entries in the BAT.
    pub max_table_entries: u32,
    /// Bytes.
    pub block_size: u32,
    /// Identity of the parent.
    pub parent_uuid: String,
    /// When it was modified, VHD time stamp.
    pub parent_timestamp: u32,
    /// Its name.
    pub parent_name: String,
    /// Stored checksum.
    pub checksum: u32,
    /// What it should be.
    pub computed_checksum: u32,
}

impl HeaderDump {
    /// The header in `bytes`, which are at byte `offset` of the file; what is missing counts as zeros.
    #[must_use]
    pub fn new(bytes: &[u8], offset: u64) -> Self {
        let mut whole = [0; header::LENGTH];
        let present = bytes.len().min(whole.len());
        whole[..present].copy_from_slice(&bytes[..present]);
        let units = whole[64..576].as_chunks::<2>().0;
        let name: Vec<u16> = units
            .iter()
            .map(|unit| u16::from_be_bytes(*unit))
            .take_while(|unit| *unit != 0)
            .collect();
        Self {
            offset,
            cookie: text(&whole[..8]),
            data_offset: u64_at(&whole, 8),
            table_offset: u64_at(&whole, 16),
            version: u32_at(&whole, 24),
            max_table_entries: u32_at(&whole, 28),
            block_size: u32_at(&whole, 32),
            parent_uuid: Uuid(array(&whole, 40)).to_string(),
            parent_timestamp: u32_at(&whole, 56),
            parent_name: String::from_utf16_lossy(&name),
            checksum: u32_at(&whole, 36),
            computed_checksum: checksum(&whole, 36),
        }
    }
}

/// What is wrong with a header.
///
/// # Errors
/// The first field that can't be accepted.
pub fn check_header(bytes: &[u8], offset: u64) -> Result<Header> {
    Header::decode(bytes).map_err(|error| error.relative_to(offset))
}

/// Text up to a zero.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// As decimal digits in a string: numbers from a file need not fit into JavaScript's.
pub(crate) fn decimal<S: Serializer>(
    value: &u64,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::footer::DiskType;

    #[test]
    fn shows_what_is_there() {
        let footer = Footer::new(DiskType::Dynamic, 40 << 20, Uuid([7; 16]), 9);
        let mut bytes = footer.encode();
        let dump = FooterDump::new(&bytes, 3);
        assert_eq!((dump.cookie.as_str(), dump.offset), ("conectix", 3));
        assert_eq!(dump.current_size, 40 << 20);
        assert_eq!(dump.checksum, dump.computed_checksum);
        assert_eq!(check_footer(&bytes, &dump), Ok(()));
        bytes[50] ^= 1;
        let dump = FooterDump::new(&bytes, 3);
        assert_ne!(dump.checksum, dump.computed_checksum);
        let error = check_footer(&bytes, &dump).expect_err("a changed footer is refused");
        assert_eq!(error.offset, Some(3 + 64));
        let nothing = FooterDump::new(&[], 0);
        assert_eq!((nothing.cookie.as_str(), nothing.checksum), ("", 0));
    }

    #[test]
    fn a_poisoned_footer_with_its_checksum_will_do() {
        let mut bytes = Footer::new(DiskType::Dynamic, 40 << 20, Uuid([7; 16]), 9).encode();
        bytes[..8].copy_from_slice(&footer::POISON);
        assert!(!FooterDump::new(&bytes, 0).is_poisoned());
        let sum = checksum(&bytes, 64);
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        let dump = FooterDump::new(&bytes, 0);
        assert!(dump.is_poisoned());
        assert_eq!(check_footer(&bytes, &dump), Ok(()));
    }

    #[test]
    fn a_header_is_shown_with_its_parent() {
        let mut header = Header::new(1536, 20, 2 << 20);
        header.parent_name = "ü.vhd".encode_utf16().collect();
        let dump = HeaderDump::new(&header.encode(), 512);
        assert_eq!(dump.parent_name, "ü.vhd");
        assert_eq!((dump.max_table_entries, dump.block_size), (20, 2 << 20));
        assert_eq!(dump.checksum, dump.computed_checksum);
        assert!(check_header(&header.encode(), 512).is_ok());
        assert_eq!(HeaderDump::new(&[], 0).block_size, 0);
    }
}
