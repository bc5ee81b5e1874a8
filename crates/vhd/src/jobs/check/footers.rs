//! Both copies of the footer, field by field, and which of them counts.

use super::checkup::Checkup;
use super::codes::{self, FooterCode};
use super::findings::{Finding, Rank, Stage};
use crate::format::bytes::{array, u16_at, u32_at, u64_at};
use crate::format::footer::{self, DiskType, Footer};
use crate::format::geometry::Geometry;
use crate::image::MAX_DYNAMIC_SIZE;

/// blktap's newest creator version: 1.3.
const TAP_NEWEST: u32 = 0x0001_0003;
/// Feature bits that there are: temporary, and the one that is always set.
const FEATURES: u32 = 3;

/// Creators whose disks qemu takes to be as large as the footer says; those of all others as their geometry says.
const SIZED_FOR_QEMU: [&[u8; 4]; 6] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0"];

/// Which copy of a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Primary,
    Backup,
}

impl Which {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary footer",
            Self::Backup => "backup footer",
        }
    }

    fn code(self, code: &FooterCode) -> codes::Code {
        match self {
            Self::Primary => code.primary,
            Self::Backup => code.backup,
        }
    }
}

/// A copy of the footer, as far as it can be read.
#[derive(Debug)]
pub(crate) struct Copy {
    /// Byte offset in the file.
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
    /// Its fields; where only the checksum is wrong, what they would be.
    pub(crate) fields: Option<Footer>,
    /// Whether programs can rely on it.
    pub(crate) good: bool,
}

/// The footers of an image.
#[derive(Debug)]
pub(crate) struct Footers {
    pub(crate) primary: Copy,
    pub(crate) backup: Copy,
    /// The one that counts; from a damaged copy if there is no good one.
    pub(crate) footer: Option<Footer>,
    /// First byte of the footer at the end; without a good one, where the file ends.
    pub(crate) end: u64,
}

impl Footers {
    /// Whether one of the copies is good.
    pub(crate) fn reliable(&self) -> bool {
        self.primary.good || self.backup.good
    }
}

/// Reads and checks both copies.
pub(crate) async fn check(checkup: &mut Checkup<'_>) -> Footers {
    let size = checkup.file.size;
    let legacy = size % 512 == footer::LEGACY_LENGTH as u64;
    let primary_at = if legacy {
        size - footer::LEGACY_LENGTH as u64
    } else {
        size.saturating_sub(footer::LENGTH as u64) / 512 * 512
    };
    let primary = copy(checkup, "primary footer", primary_at).await;
    let backup = copy(checkup, "backup footer", 0).await;
    if size < footer::LEGACY_LENGTH as u64 {
        let finding = Finding::new(
            codes::FILE_TOO_SMALL,
            "file",
            "the file is too small for a VHD",
        )
        .found(format!("{size} bytes"), "at least 511");
        checkup.findings.add_known(
            finding,
            Rank(Stage::Footers, 0, 0),
            "error reading primary footer: -5",
        );
    }
    let footers = choose(checkup, primary, backup);
    let is_fixed = |copy: &Copy| {
        let fields = copy.fields.as_ref();
        fields.is_some_and(|footer| footer.disk_type == DiskType::Fixed)
    };
    let primary_ends_it = footers.primary.good && is_fixed(&footers.primary);
    if size >= footer::LEGACY_LENGTH as u64 {
        judge(checkup, Which::Primary, &footers.primary);
    }
    if !legacy && !size.is_multiple_of(512) {
        // The original reads around the page cache, and not at multiples of a sector here.
        let words = || "error reading primary footer: -22".to_owned();
        checkup.findings.verdict(Rank(Stage::Footers, 0, 0), words);
    }
    if legacy && footers.primary.good {
        let message = "the footer has 511 bytes";
        checkup.add(Finding::new(codes::FOOTER_LEGACY, "primary footer", message).at(primary_at));
    }
    if primary_ends_it {
        if footers.backup.good && !is_fixed(&footers.backup) {
            let message = "the file ends like a fixed disk and begins like a dynamic one";
            checkup.add(
                Finding::new(codes::FOOTER_AMBIGUOUS, "primary footer", message).at(primary_at),
            );
        }
    } else {
        // What is wrong with both alike is told once.
        if checkup.ignore.primary_footer || footers.primary.bytes != footers.backup.bytes {
            judge(checkup, Which::Backup, &footers.backup);
        }
        compare(checkup, &footers);
    }
    if let Some(footer) = &footers.footer {
        judge_disk(checkup, footer, &footers);
    }
    footers
}

async fn copy(checkup: &mut Checkup<'_>, name: &'static str, at: u64) -> Copy {
    let bytes = checkup.read(name, at, footer::LENGTH as u64).await;
    let decoded = Footer::decode(&bytes).ok();
    // An image with a BAT has no copy at offset 0 that is a fixed disk's.
    let good = decoded.as_ref().is_some_and(|footer| {
        at > 0 || checkup.file.size <= footer::LENGTH as u64 || footer.disk_type != DiskType::Fixed
    });
    let fields = decoded.or_else(|| footer::decode_damaged(&bytes));
    Copy {
        at,
        bytes,
        fields,
        good,
    }
}

fn choose(checkup: &Checkup<'_>, primary: Copy, backup: Copy) -> Footers {
    let copies = [&primary, &backup];
    let good = copies.iter().find(|copy| copy.good);
    let chosen = good.or_else(|| copies.iter().find(|copy| copy.fields.is_some()));
    let mut footer = chosen.and_then(|copy| copy.fields.clone());
    if let (Some(footer), Some(backup)) =
        (&mut footer, backup.fields.as_ref().filter(|_| backup.good))
        && backup.hides_in_backup()
    {
        footer.set_hidden(backup.is_hidden());
    }
    let ends_file = primary.good || checkup.file.block_device;
    let end = if ends_file {
        primary.at
    } else {
        checkup.file.size
    };
    Footers {
        primary,
        backup,
        footer,
        end,
    }
}

/// One copy, in the order in which the original looks at its fields.
fn judge(checkup: &mut Checkup<'_>, which: Which, copy: &Copy) {
    let mut judge = Judge {
        checkup,
        which,
        copy,
        rank: match which {
            Which::Primary => 0,
            Which::Backup => 1,
        },
        complaints: 0,
    };
    judge.all();
}

struct Judge<'a, 'b> {
    checkup: &'a mut Checkup<'b>,
    which: Which,
    copy: &'a Copy,
    rank: u64,
    complaints: u8,
}

impl Judge<'_, '_> {
    /// Adds a finding about the field at `offset`. The original's words are `original`; it would ignore a bad primary copy
    /// if it was told so.
    fn add(
        &mut self,
        code: &FooterCode,
        offset: u64,
        message: &str,
        (found, expected): (String, String),
        original: &str,
    ) {
        let finding = Finding::new(self.which.code(code), self.which.name(), message)
            .at(self.copy.at + offset)
            .found(found, expected);
        if original.is_empty() || self.which == Which::Primary && self.checkup.ignore.primary_footer
        {
            return self.checkup.add(finding);
        }
        let words = format!("{} invalid: {original}", self.which.name());
        self.complaints += 1;
        let rank = Rank(Stage::Footers, self.rank, self.complaints);
        self.checkup.findings.add_known(finding, rank, words);
    }

    fn all(&mut self) {
        let bytes = &self.copy.bytes;
        let expected = |value: &str| value.to_owned();
        if bytes.starts_with(&footer::POISON) {
            return self.add(
                &codes::FOOTER_POISON,
                0,
                "blktap was resizing the disk and did not finish",
                (expected("v_poison"), expected("conectix")),
                "invalid cookie",
            );
        }
        if !bytes.starts_with(&footer::COOKIE) {
            let found = bytes
                .get(..8)
                .unwrap_or_default()
                .escape_ascii()
                .to_string();
            return self.add(
                &codes::FOOTER_COOKIE,
                0,
                "there is no footer",
                (found, expected("conectix")),
                "invalid cookie",
            );
        }
        self.checksum();
        let features = u32_at(bytes, 8);
        if features & 2 == 0 || features & !FEATURES != 0 {
            let words = if features & 2 == 0 {
                "invalid 'reserved' feature"
            } else {
                "invalid extra features"
            };
            let values = (format!("{features:#x}"), expected("0x2 or 0x3"));
            self.add(
                &codes::FOOTER_FEATURES,
                8,
                "wrong feature bits",
                values,
                words,
            );
        }
        let version = u32_at(bytes, 12);
        if version != 0x0001_0000 {
            let values = (format!("{version:#x}"), expected("0x10000"));
            self.add(
                &codes::FOOTER_VERSION,
                12,
                "unsupported format version",
                values,
                "invalid file format version",
            );
        }
        let disk_type = u32_at(bytes, 60);
        let data_offset = u64_at(bytes, 16);
        if matches!(disk_type, 3 | 4) {
            if !data_offset.is_multiple_of(512) || data_offset < footer::LENGTH as u64 {
                let values = (
                    data_offset.to_string(),
                    expected("a multiple of 512, at least 512"),
                );
                self.add(
                    &codes::FOOTER_DATA_OFFSET,
                    16,
                    "impossible data offset",
                    values,
                    "",
                );
            }
        } else if data_offset != footer::NO_DATA_OFFSET {
            let values = (
                format!("{data_offset:#x}"),
                format!("{:#x}", footer::NO_DATA_OFFSET),
            );
            self.add(
                &codes::FOOTER_DATA_OFFSET,
                16,
                "a fixed disk has no dynamic header",
                values,
                "invalid data offset",
            );
        }
        let stamp = u32_at(bytes, 24);
        if self.checkup.in_future(stamp) {
            let values = (stamp.to_string(), expected("at most the current time"));
            self.add(
                &codes::FOOTER_TIMESTAMP,
                24,
                "made in the future",
                values,
                "creation time in future",
            );
        }
        let creator: [u8; 4] = array(bytes, 28);
        let creator_version = u32_at(bytes, 32);
        if creator.starts_with(b"tap") && creator_version > TAP_NEWEST {
            let values = (
                format!("{creator_version:#x}"),
                format!("at most {TAP_NEWEST:#x}"),
            );
            self.add(
                &codes::FOOTER_CREATOR,
                32,
                "an unknown version of blktap",
                values,
                "unsupported tap creator version",
            );
        }
        let size = u64_at(bytes, 48);
        if size == 0 || !size.is_multiple_of(512) || size > i64::MAX.cast_unsigned() {
            let values = (size.to_string(), expected("a positive multiple of 512"));
            self.add(&codes::FOOTER_SIZE, 48, "impossible size", values, "");
        } else {
            self.geometry(size);
        }
        if !matches!(disk_type, 2..=4) {
            let values = (disk_type.to_string(), expected("2, 3 or 4"));
            self.add(
                &codes::FOOTER_TYPE,
                60,
                "unknown disk type",
                values,
                "invalid type",
            );
        }
        self.flags();
    }

    fn checksum(&mut self) {
        let bytes = &self.copy.bytes;
        let (stored, computed) = (u32_at(bytes, 64), footer::checksum_of(bytes));
        if stored == computed {
            return;
        }
        if footer::is_unsummed(bytes) {
            let message = "the hidden flag is not in the checksum";
            let finding = Finding::new(codes::FOOTER_UNSUMMED, self.which.name(), message);
            return self.checkup.add(finding.at(self.copy.at + 64));
        }
        let values = (format!("{stored:#x}"), format!("{computed:#x}"));
        self.add(
            &codes::FOOTER_CHECKSUM,
            64,
            "wrong checksum",
            values,
            "invalid checksum",
        );
    }

    fn geometry(&mut self, size: u64) {
        let bytes = &self.copy.bytes;
        let geometry = Geometry {
            cylinders: u16_at(bytes, 56),
            heads: array::<1>(bytes, 58)[0],
            sectors_per_track: array::<1>(bytes, 59)[0],
        };
        // The original compares the fields as one number.
        let number = |geometry: Geometry| {
            u32::from(geometry.cylinders) << 16
                | u32::from(geometry.heads) << 8
                | u32::from(geometry.sectors_per_track)
        };
        let largest = Geometry::for_sectors(size / 512);
        if number(geometry) > number(largest) {
            let values = (describe(geometry), format!("at most {}", describe(largest)));
            self.add(
                &codes::FOOTER_GEOMETRY,
                56,
                "the geometry is too large",
                values,
                "geometry too large",
            );
        }
    }

    fn flags(&mut self) {
        let bytes = &self.copy.bytes;
        let saved = array::<1>(bytes, 84)[0];
        if saved != 0 {
            let original = if saved == 1 {
                ""
            } else {
                "invalid 'saved' state"
            };
            let values = (saved.to_string(), "0".to_owned());
            self.add(
                &codes::FOOTER_SAVED_STATE,
                84,
                "a machine state is saved with the disk",
                values,
                original,
            );
        }
        let hidden = array::<1>(bytes, 85)[0];
        if hidden > 1 {
            let values = (hidden.to_string(), "0 or 1".to_owned());
            self.add(
                &codes::FOOTER_HIDDEN,
                85,
                "the hidden flag is neither set nor clear",
                values,
                "invalid 'hidden' state",
            );
        }
        let reserved = bytes.iter().skip(86).position(|byte| *byte != 0);
        if let Some(at) = reserved {
            let values = ("other bytes".to_owned(), "zeros".to_owned());
            self.add(
                &codes::FOOTER_RESERVED,
                86 + at as u64,
                "reserved bytes are not zero",
                values,
                "invalid 'reserved' bits",
            );
        }
        if array(bytes, 68) == [0_u8; 16] {
            let values = ("zeros".to_owned(), "a UUID".to_owned());
            self.add(
                &codes::FOOTER_UUID,
                68,
                "the image has no UUID",
                values,
                "invalid (NULL) uuid",
            );
        }
    }
}

fn describe(geometry: Geometry) -> String {
    format!(
        "{}/{}/{}",
        geometry.cylinders, geometry.heads, geometry.sectors_per_track
    )
}

/// The fields of a footer by name, for comparing two of them.
pub(crate) const FIELDS: [(&str, u64, u64); 15] = [
    ("features", 8, 12),
    ("format version", 12, 16),
    ("data offset", 16, 24),
    ("time stamp", 24, 28),
    ("creator application", 28, 32),
    ("creator version", 32, 36),
    ("creator host OS", 36, 40),
    ("original size", 40, 48),
    ("current size", 48, 56),
    ("geometry", 56, 60),
    ("disk type", 60, 64),
    ("UUID", 68, 84),
    ("saved state", 84, 85),
    ("hidden flag", 85, 86),
    ("reserved bytes", 86, 511),
];

/// The indices in [`FIELDS`] of those in which two copies differ.
pub(crate) fn differences(one: &[u8], other: &[u8]) -> Vec<usize> {
    let field = |bytes: &[u8], (_, start, end): (&str, u64, u64)| {
        bytes
            .get(start as usize..end as usize)
            .unwrap_or_default()
            .to_vec()
    };
    let differs = |index: &usize| field(one, FIELDS[*index]) != field(other, FIELDS[*index]);
    (0..FIELDS.len()).filter(differs).collect()
}

/// Compares two good copies field by field.
fn compare(checkup: &mut Checkup<'_>, footers: &Footers) {
    let (primary, backup) = (&footers.primary, &footers.backup);
    let both = primary.good && backup.good;
    if both {
        // blktap's first versions set the hidden flag in the backup only.
        let hides = backup.fields.as_ref().is_some_and(Footer::hides_in_backup);
        for index in differences(&primary.bytes, &backup.bytes) {
            let (name, start, end) = FIELDS[index];
            if hides && name == "hidden flag" {
                continue;
            }
            let hex = |bytes: &[u8]| {
                let field = bytes.get(start as usize..end as usize).unwrap_or_default();
                let shown = field.iter().take(16).map(|byte| format!("{byte:02x}"));
                shown.collect::<String>()
            };
            let message = format!("the copies of the footer differ in the {name}");
            let finding = Finding::new(codes::FOOTER_COPIES, "backup footer", message)
                .at(start)
                .found(hex(&backup.bytes), hex(&primary.bytes));
            if checkup.ignore.primary_footer {
                checkup.add(finding);
            } else {
                let words = "primary and backup footers do not match";
                checkup
                    .findings
                    .add_known(finding, Rank(Stage::Footers, 2, 0), words);
            }
        }
    } else if !checkup.ignore.primary_footer && primary.bytes != backup.bytes {
        let words = || "primary and backup footers do not match".to_owned();
        checkup.findings.verdict(Rank(Stage::Footers, 2, 0), words);
    }
}

/// What the footer that counts says of the disk.
fn judge_disk(checkup: &mut Checkup<'_>, footer: &Footer, footers: &Footers) {
    let at = if footers.primary.fields.is_some() {
        footers.primary.at
    } else {
        0
    };
    let is_fixed = footer.disk_type == DiskType::Fixed;
    if is_fixed && footer.current_size > footers.end {
        let message = "the disk is larger than its file";
        let finding = Finding::new(codes::FIXED_TOO_LARGE, "primary footer", message).at(at + 48);
        checkup.add(finding.found(footer.current_size, format!("at most {}", footers.end)));
    }
    if !is_fixed && footer.current_size > MAX_DYNAMIC_SIZE {
        let finding = Finding::new(
            codes::DISK_TOO_LARGE,
            "footer",
            "the disk is larger than 2040 GiB",
        )
        .at(at + 48);
        checkup.add(finding.found(footer.current_size, format!("at most {MAX_DYNAMIC_SIZE}")));
    }
    if footer.has_old_bitmaps() && !is_fixed {
        let message = "the image is of blktap's first version";
        checkup.add(Finding::new(codes::OLD_BITMAPS, "footer", message).at(at + 32));
    }
    let spanned = footer.geometry.sectors() * 512;
    let largest = footer.geometry == Geometry::for_sectors(u64::MAX);
    if spanned < footer.current_size
        && !largest
        && !SIZED_FOR_QEMU.contains(&&footer.creator_application)
    {
        let finding = Finding::new(
            codes::GEOMETRY_SMALLER,
            "footer",
            "the geometry spans less than the disk",
        )
        .at(at + 56);
        checkup.add(finding.found(
            format!("{spanned} bytes"),
            format!("{} bytes", footer.current_size),
        ));
    }
}
