//! The footer: identity, type and size of a disk. At the end of every VHD, and copied to offset 0 of dynamic and
//! differencing ones. 512 bytes; files of old Microsoft programs end with 511 of them.

use std::fmt;

use serde::Deserialize;

use super::bytes::{array, checksum, put, u16_at, u32_at, u64_at};
use super::geometry::Geometry;
use super::uuid::Uuid;
use crate::error::{Error, Result};

/// Bytes of a footer.
pub const LENGTH: usize = 512;
/// Bytes of the footer in files written by Microsoft programs before Virtual PC 2004.
pub const LEGACY_LENGTH: usize = 511;
/// First eight bytes.
pub const COOKIE: [u8; 8] = *b"conectix";
/// First eight bytes while blktap resizes the disk: its journal has what undoes the change.
pub const POISON: [u8; 8] = *b"v_poison";
/// Data offset of a fixed disk, which has no dynamic header.
pub const NO_DATA_OFFSET: u64 = u64::MAX;

const FEATURE_RESERVED: u32 = 2;
const VERSION: u32 = 0x0001_0000;
const CHECKSUM: usize = 64;
const HIDDEN: usize = 85;

/// blktap's creator versions are major and minor number in the halves of a word.
const TAP_0_1: u32 = 0x0000_0001;
const TAP_1_1: u32 = 0x0001_0001;
const TAP_1_3: u32 = 0x0001_0003;

/// What kind of image a VHD is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[repr(u32)]
pub enum DiskType {
    /// All sectors in order, then the footer.
    Fixed = 2,
    /// Blocks allocated when first written.
    Dynamic = 3,
    /// As dynamic, with a parent that shows through where nothing was written.
    Differencing = 4,
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        })
    }
}

/// A footer's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Feature bits; bit 1 is always set by conforming writers.
    pub features: u32,
    /// Byte offset of the dynamic header, [`NO_DATA_OFFSET`] for a fixed disk.
    pub data_offset: u64,
    /// Creation time, VHD time stamp.
    pub timestamp: u32,
    /// Four characters naming the program that made the image.
    pub creator_application: [u8; 4],
    /// Version of that program, major in the upper half.
    pub creator_version: u32,
    /// Four characters naming its operating system.
    pub creator_host_os: [u8; 4],
    /// Size at creation, bytes.
    pub original_size: u64,
    /// Size of the virtual disk now, bytes. This one counts, never [`Footer::geometry`].
    pub current_size: u64,
    /// CHS geometry for old guests.
    pub geometry: Geometry,
    /// Kind of image.
    pub disk_type: DiskType,
    /// Identity, named by children.
    pub uuid: Uuid,
    /// Non-zero if a machine state is saved with the disk.
    pub saved_state: u8,
    /// The 427 reserved bytes, kept as they are; blktap's "hidden" flag is the first.
    pub reserved: [u8; 427],
}

impl Footer {
    /// A footer for a new image of `size` bytes, as blktap writes it (creator `tap`, no host OS). A fixed disk's version is
    /// 1.3; that of an image with a BAT is 1.1, which may be without a batmap, until [`Footer::promise_batmap`].
    #[must_use]
    pub fn new(disk_type: DiskType, size: u64, uuid: Uuid, timestamp: u32) -> Self {
        Self {
            features: FEATURE_RESERVED,
            data_offset: if disk_type == DiskType::Fixed {
                NO_DATA_OFFSET
            } else {
                LENGTH as u64
            },
            timestamp,
            creator_application: *b"tap\0",
            creator_version: if disk_type == DiskType::Fixed {
                TAP_1_3
            } else {
                TAP_1_1
            },
            creator_host_os: [0; 4],
            original_size: size,
            current_size: size,
            geometry: Geometry::for_sectors(size / 512),
            disk_type,
            uuid,
            saved_state: 0,
            reserved: [0; 427],
        }
    }

    /// Reads a footer from its 511 or 512 bytes; what follows them is ignored.
    ///
    /// # Errors
    /// Names the first field that is not as the specification has it, with its offset in the footer.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let invalid = |offset: u64, message: &str| Error::invalid("footer", message).at(offset);
        if bytes.len() < LEGACY_LENGTH {
            return Err(invalid(0, "too short").found(bytes.len(), LENGTH));
        }
        let bytes = &bytes[..bytes.len().min(LENGTH)];
        if array(bytes, 0) == POISON {
            return Err(invalid(
                0,
                "the disk was being resized and has to be reverted with the resize's journal first",
            )
            .found("v_poison", "conectix"));
        }
        if array(bytes, 0) != COOKIE {
            return Err(invalid(0, "wrong cookie").found(bytes[..8].escape_ascii(), "conectix"));
        }
        let version = u32_at(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            return Err(
                invalid(12, "unsupported format version").found(format!("{version:#x}"), "0x10000")
            );
        }
        let stored = u32_at(bytes, CHECKSUM);
        let computed = checksum(bytes, CHECKSUM);
        if stored != computed && Some(stored) != checksum_without_hidden(bytes) {
            return Err(invalid(CHECKSUM as u64, "wrong checksum")
                .found(format!("{stored:#x}"), format!("{computed:#x}")));
        }
        let disk_type = match u32_at(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(invalid(60, "unknown disk type").found(other, "2, 3 or 4")),
        };
        let data_offset = u64_at(bytes, 16);
        if disk_type != DiskType::Fixed
            && (!data_offset.is_multiple_of(512) || data_offset < LENGTH as u64)
        {
            return Err(invalid(16, "impossible data offset")
                .found(data_offset, "a multiple of 512, at least 512"));
        }
        let current_size = u64_at(bytes, 48);
        if current_size == 0
            || !current_size.is_multiple_of(512)
            || current_size > i64::MAX.cast_unsigned()
        {
            return Err(invalid(48, "impossible current size")
                .found(current_size, "a positive multiple of 512"));
        }
        Ok(Self {
            features: u32_at(bytes, 8),
            data_offset,
            timestamp: u32_at(bytes, 24),
            creator_application: array(bytes, 28),
            creator_version: u32_at(bytes, 32),
            creator_host_os: array(bytes, 36),
            original_size: u64_at(bytes, 40),
            current_size,
            geometry: Geometry {
                cylinders: u16_at(bytes, 56),
                heads: bytes[58],
                sectors_per_track: bytes[59],
            },
            disk_type,
            uuid: Uuid(array(bytes, 68)),
            saved_state: bytes[84],
            // The last reserved byte is not there in the 511-byte form; it is zero then.
            reserved: {
                let mut reserved = [0; 427];
                let present = &bytes[HIDDEN..];
                reserved[..present.len()].copy_from_slice(present);
                reserved
            },
        })
    }

    /// Whether blktap made the image.
    #[must_use]
    pub fn made_by_tap(&self) -> bool {
        is_tap(self.creator_application)
    }

    /// Whether blktap made the image with its first version, whose bitmaps have another order of bits.
    #[must_use]
    pub fn has_old_bitmaps(&self) -> bool {
        self.made_by_tap() && self.creator_version == TAP_0_1
    }

    /// Makes the image one that has a batmap: blktap's version 1.3.
    pub fn promise_batmap(&mut self) {
        self.creator_version = TAP_1_3;
    }

    /// Whether the image must have a batmap: blktap's do since version 1.2.
    #[must_use]
    pub fn demands_batmap(&self) -> bool {
        self.made_by_tap() && self.creator_version > TAP_1_1
    }

    /// Whether the image may have a batmap: blktap's do since version 1.1.
    #[must_use]
    pub fn may_have_batmap(&self) -> bool {
        self.made_by_tap() && self.creator_version >= TAP_1_1
    }

    /// Whether the hidden flag counts that the copy at offset 0 has: blktap's first versions set it only there, and left
    /// the checksum as it was.
    #[must_use]
    pub fn hides_in_backup(&self) -> bool {
        hides_without_checksum(self.creator_application, self.creator_version)
    }

    /// Whether blktap's storage manager hides the image: it waits to be coalesced and is no disk of its own.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.reserved[0] != 0
    }

    /// Sets or clears blktap's hidden flag.
    pub fn set_hidden(&mut self, hidden: bool) {
        self.reserved[0] = u8::from(hidden);
    }

    /// The footer as bytes, checksum included.
    #[must_use]
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.features.to_be_bytes());
        put(&mut bytes, 12, &VERSION.to_be_bytes());
        put(&mut bytes, 16, &self.data_offset.to_be_bytes());
        put(&mut bytes, 24, &self.timestamp.to_be_bytes());
        put(&mut bytes, 28, &self.creator_application);
        put(&mut bytes, 32, &self.creator_version.to_be_bytes());
        put(&mut bytes, 36, &self.creator_host_os);
        put(&mut bytes, 40, &self.original_size.to_be_bytes());
        put(&mut bytes, 48, &self.current_size.to_be_bytes());
        put(&mut bytes, 56, &self.geometry.cylinders.to_be_bytes());
        bytes[58] = self.geometry.heads;
        bytes[59] = self.geometry.sectors_per_track;
        put(&mut bytes, 60, &(self.disk_type as u32).to_be_bytes());
        put(&mut bytes, 68, &self.uuid.0);
        bytes[84] = self.saved_state;
        put(&mut bytes, HIDDEN, &self.reserved);
        let sum = checksum(&bytes, CHECKSUM);
        put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
        bytes
    }
}

/// The checksum that the bytes of a footer should have.
#[must_use]
pub(crate) fn checksum_of(bytes: &[u8]) -> u32 {
    checksum(bytes, CHECKSUM)
}

/// Whether the checksum is right but for the hidden flag, and may be so.
#[must_use]
pub(crate) fn is_unsummed(bytes: &[u8]) -> bool {
    checksum_without_hidden(bytes) == Some(u32_at(bytes, CHECKSUM))
}

/// The fields of a footer as they are in spite of a wrong checksum; for looking at a damaged image, never for using it.
#[must_use]
pub(crate) fn decode_damaged(bytes: &[u8]) -> Option<Footer> {
    let mut bytes = bytes.to_vec();
    let sum = checksum_of(&bytes);
    put(&mut bytes, CHECKSUM, &sum.to_be_bytes());
    Footer::decode(&bytes).ok()
}

fn is_tap(creator_application: [u8; 4]) -> bool {
    creator_application.starts_with(b"tap")
}

fn hides_without_checksum(creator_application: [u8; 4], creator_version: u32) -> bool {
    is_tap(creator_application) && matches!(creator_version, TAP_0_1 | TAP_1_1)
}

/// The checksum that footers have whose hidden flag was set by a program that let the checksum be: `None` if this can't be
/// one of them.
fn checksum_without_hidden(bytes: &[u8]) -> Option<u32> {
    let hidden = *bytes.get(HIDDEN)?;
    if hidden != 1 || !hides_without_checksum(array(bytes, 28), u32_at(bytes, 32)) {
        return None;
    }
    // The checksum is the complement of a sum.
    Some(checksum(bytes, CHECKSUM).wrapping_add(u32::from(hidden)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing;

    type Damage = fn(&mut Footer);

    fn sample() -> Footer {
        Footer::new(DiskType::Dynamic, 40 << 20, Uuid([7; 16]), 1234)
    }

    #[test]
    fn round_trips() {
        for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
            let mut footer = Footer {
                saved_state: 1,
                ..Footer::new(disk_type, 512, Uuid([9; 16]), 5)
            };
            footer.reserved[0] = 1;
            assert_eq!(Footer::decode(&footer.encode()), Ok(footer));
        }
    }

    #[test]
    fn reads_the_511_byte_form() {
        assert_eq!(
            Footer::decode(&sample().encode()[..LEGACY_LENGTH]),
            Ok(sample())
        );
        assert!(Footer::decode(&sample().encode()[..LEGACY_LENGTH - 1]).is_err());
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        testing::every_changed_byte_is_refused(&sample().encode(), |bytes| {
            Footer::decode(bytes).err()
        });
    }

    #[test]
    fn a_hidden_flag_without_its_checksum_is_believed_of_old_versions_only() {
        for (creator, version, accepted) in [
            (*b"tap\0", TAP_0_1, true),
            (*b"tap\0", TAP_1_1, true),
            (*b"tap\0", TAP_1_3, false),
            (*b"qemu", TAP_1_1, false),
        ] {
            let mut footer = Footer {
                creator_application: creator,
                creator_version: version,
                ..sample()
            };
            let mut bytes = footer.encode();
            assert!(!footer.is_hidden());
            bytes[HIDDEN] = 1;
            footer.set_hidden(true);
            assert!(footer.is_hidden());
            assert_eq!(
                Footer::decode(&bytes).ok(),
                accepted.then(|| footer.clone())
            );
            assert_eq!(Footer::decode(&footer.encode()), Ok(footer));
            bytes[HIDDEN + 1] = 1;
            assert!(Footer::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_poisoned_footer_is_told_from_a_damaged_one() {
        let mut bytes = sample().encode();
        bytes[..8].copy_from_slice(&POISON);
        let error = Footer::decode(&bytes).expect_err("a poisoned footer is refused");
        assert!(error.message.contains("journal"), "{error}");
    }

    #[test]
    fn impossible_fields_are_named_even_with_a_right_checksum() {
        let cases: &[(Damage, u64)] = &[
            (|footer| footer.current_size = 0, 48),
            (|footer| footer.current_size = 513, 48),
            (|footer| footer.data_offset = 100, 16),
        ];
        for (damage, offset) in cases {
            let mut footer = sample();
            damage(&mut footer);
            let error =
                Footer::decode(&footer.encode()).expect_err("an impossible field is refused");
            assert_eq!(error.offset, Some(*offset));
        }
    }
}
