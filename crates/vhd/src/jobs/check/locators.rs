//! Parent locators: their entries in the header, and the names that they have for the parent.

use super::checkup::{Checkup, overlaps, sectors};
use super::codes;
use super::findings::{Finding, Rank, Stage};
use super::footers::Footers;
use super::table::Table;
use crate::format::bytes::u32_at;
use crate::format::footer::Footer;
use crate::format::header::{self, Header};
use crate::format::locator::{self, ParentLocator};

/// Platform codes that the format has.
pub(crate) const PLATFORMS: [&[u8; 4]; 7] = [
    b"Wi2r", b"Wi2k", b"W2ru", b"W2ku", b"Mac ", b"MacX", b"MACX",
];
/// Names that are longer are not read.
const MAX_NAME: u64 = 64 << 10;

/// A name of the parent.
#[derive(Debug)]
pub(crate) struct Name {
    /// Index of its locator.
    pub(crate) index: u64,
    pub(crate) path: String,
}

/// Checks the locators of a differencing image. Returns the names that they have.
pub(crate) async fn check(
    checkup: &mut Checkup<'_>,
    footers: &Footers,
    footer: &Footer,
    header: &Header,
    table: &Table,
) -> Vec<Name> {
    let raw = checkup
        .read(
            "dynamic header",
            footer.data_offset + 576,
            (locator::LENGTH * header::LOCATORS) as u64,
        )
        .await;
    let mut names = Vec::new();
    let mut platforms: Vec<[u8; 4]> = Vec::new();
    let mut in_bytes = false;
    for (index, entry) in (0_u64..).zip(&header.locators) {
        let mut judge = Judge {
            checkup,
            index,
            at: footer.data_offset + 576 + index * locator::LENGTH as u64,
            complaints: 0,
        };
        let bytes = raw
            .get(index as usize * locator::LENGTH..)
            .unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(locator::LENGTH)];
        if !judge.entry(entry, bytes, footers, header, table) {
            continue;
        }
        in_bytes |= entry.data_space >= 512;
        // The original compares upper and lower case as what they are in its code: MacX alone.
        if platforms.contains(&entry.platform) {
            let words = format!(
                "duplicate platform code in locator {index}: 0x{:x}",
                u32_at(&entry.platform, 0)
            );
            judge.add(
                codes::LOCATOR_DUPLICATE,
                0,
                "its platform has another locator",
                words,
            );
        }
        platforms.push(entry.platform);
        names.extend(judge.name(entry, header).await);
    }
    if in_bytes {
        let message = "the space of parent locators is in bytes";
        let finding = Finding::new(codes::LOCATOR_SPACE_BYTES, "parent locator", message);
        checkup.add(finding.at(footer.data_offset + 576 + 4));
    }
    names
}

struct Judge<'a, 'b> {
    checkup: &'a mut Checkup<'b>,
    index: u64,
    /// Byte offset of the entry.
    at: u64,
    complaints: u8,
}

impl Judge<'_, '_> {
    fn finding(&self, code: codes::Code, offset: u64, message: &str) -> Finding {
        let message = format!("parent locator {}: {message}", self.index);
        Finding::new(code, "parent locator", message).at(self.at + offset)
    }

    fn rank(&mut self) -> Rank {
        self.complaints += 1;
        Rank(Stage::Locators, self.index, self.complaints)
    }

    fn add(&mut self, code: codes::Code, offset: u64, message: &str, words: String) {
        let rank = self.rank();
        let finding = self.finding(code, offset, message);
        self.checkup.findings.add_known(finding, rank, words);
    }

    /// Checks an entry. Returns whether its name can be read.
    fn entry(
        &mut self,
        entry: &ParentLocator,
        bytes: &[u8],
        footers: &Footers,
        header: &Header,
        table: &Table,
    ) -> bool {
        let invalid = |index: u64, what: &str| format!("invalid parent locator {index}: {what}");
        if !entry.is_used() {
            if bytes.iter().any(|byte| *byte != 0) {
                let words = invalid(self.index, "non-zero locator");
                self.add(
                    codes::LOCATOR_UNUSED,
                    0,
                    "it is not used and not zero",
                    words,
                );
            }
            return false;
        }
        if !PLATFORMS.contains(&&entry.platform) {
            let code = entry.platform.escape_ascii().to_string();
            let message = format!("unknown platform '{code}'");
            let words = invalid(self.index, "invalid platform code");
            self.add(codes::LOCATOR_PLATFORM, 0, &message, words);
            return false;
        }
        let (space, length) = (entry.space_bytes(), u64::from(entry.data_length));
        if entry.data_offset == 0 {
            let words = invalid(self.index, "invalid data offset");
            self.add(codes::LOCATOR_PLACE, 16, "its name is nowhere", words);
            return false;
        }
        if entry.data_space == 0 {
            let words = invalid(self.index, "invalid data space");
            self.add(codes::LOCATOR_LENGTH, 4, "its name has no space", words);
        }
        if length == 0 {
            let words = invalid(self.index, "invalid data length");
            self.add(codes::LOCATOR_LENGTH, 8, "its name is empty", words);
            return false;
        }
        let declared = match u64::from(entry.data_space) {
            sectors if sectors < 512 => sectors * 512,
            bytes => bytes,
        };
        if length > declared && declared > 0 {
            let finding = self.finding(
                codes::LOCATOR_LENGTH,
                8,
                "its name is longer than its space",
            );
            self.checkup
                .add(finding.found(length, format!("at most {declared}")));
        }
        let end = entry.data_offset.saturating_add(space);
        if end > footers.end {
            let finding = self.finding(
                codes::LOCATOR_PLACE,
                16,
                "its name goes on past the end of the file",
            );
            let finding =
                finding.found(format!("end at {end}"), format!("at most {}", footers.end));
            if end > self.checkup.file.size.saturating_sub(512) {
                let rank = self.rank();
                let words = invalid(self.index, "invalid size");
                self.checkup.findings.add_known(finding, rank, words);
            } else {
                self.checkup.add(finding);
            }
            return entry.data_offset.saturating_add(length) <= footers.end;
        }
        let place = sectors(entry.data_offset, length);
        let structures = [
            (0, 1),
            sectors(
                self.at - 576 - self.index * locator::LENGTH as u64,
                header::LENGTH as u64,
            ),
        ];
        let bat = sectors(header.table_offset, u64::from(table.count) * 4);
        if structures
            .iter()
            .chain([&bat])
            .any(|other| overlaps(*other, place))
        {
            let finding = self.finding(
                codes::LOCATOR_PLACE,
                16,
                "its name lies on another structure",
            );
            self.checkup.add(finding.found(
                format!("sector {}", place.0),
                format!("at least sector {}", bat.1),
            ));
        }
        if bytes.get(12..16).is_some_and(|reserved| reserved != [0; 4]) {
            let words = invalid(self.index, "invalid reserved bits");
            self.add(
                codes::LOCATOR_RESERVED,
                12,
                "reserved bytes are not zero",
                words,
            );
        }
        true
    }

    /// Reads the name.
    async fn name(&mut self, entry: &ParentLocator, header: &Header) -> Option<Name> {
        let length = u64::from(entry.data_length).min(MAX_NAME);
        let data = self
            .checkup
            .read("parent locator", entry.data_offset, length)
            .await;
        let path = entry.path(&data);
        let reads = matches!(&entry.platform, b"W2ru" | b"W2ku" | b"MacX" | b"MACX");
        let Some(path) = path else {
            if reads {
                let words = format!("error reading parent locator {}: -22", self.index);
                self.add(codes::LOCATOR_TEXT, 16, "its name is no path", words);
            }
            return None;
        };
        let base = path.rsplit('/').next().unwrap_or(&path);
        let name = header.parent_name();
        // Windows has the whole path in the header.
        let other = name.replace('\\', "/");
        if base != name {
            let words = format!(
                "parent locator {} name ({base}) does not match header name ({name})",
                self.index
            );
            let rank = self.rank();
            if other.rsplit('/').next() == Some(base) {
                self.checkup.findings.verdict(rank, || words);
            } else {
                let finding = self.finding(
                    codes::LOCATOR_NAME,
                    16,
                    "its name is not the one in the header",
                );
                self.checkup
                    .findings
                    .add_known(finding.found(base, &name), rank, words);
            }
        }
        Some(Name {
            index: self.index,
            path,
        })
    }
}
