//! The dynamic header, field by field.

use super::checkup::{Checkup, overlaps, sectors};
use super::codes::{self, Code};
use super::findings::{Finding, Rank, Stage};
use super::footers::Footers;
use super::locators::PLATFORMS;
use crate::format::bytes::{array, u32_at, u64_at};
use crate::format::footer::{DiskType, Footer};
use crate::format::header::{self, Header};

/// The size of blocks that blktap can use.
const USUAL_BLOCK: u32 = 2 << 20;
/// The structure, in findings.
const NAME: &str = "dynamic header";

/// The header, as far as it can be used.
#[derive(Debug)]
pub(crate) struct HeaderState {
    pub(crate) header: Header,
    /// Whether programs can rely on it.
    pub(crate) good: bool,
}

/// Reads and checks the header of an image with a BAT. `None` if nothing can be done with it.
pub(crate) async fn check(
    checkup: &mut Checkup<'_>,
    footers: &Footers,
    footer: &Footer,
) -> Option<HeaderState> {
    let at = footer.data_offset;
    let bytes = checkup.read(NAME, at, header::LENGTH as u64).await;
    if bytes.len() < header::LENGTH || at.saturating_add(header::LENGTH as u64) > footers.end {
        let finding = Finding::new(
            codes::HEADER_PLACE,
            NAME,
            "the header lies past the end of the file",
        )
        .at(at);
        let finding = finding.found(
            format!("end at {}", at.saturating_add(header::LENGTH as u64)),
            format!("at most {}", footers.end),
        );
        checkup.findings.add_known(
            finding,
            Rank(Stage::Header, 0, 0),
            "error reading header: -5",
        );
        return None;
    }
    let mut judge = Judge {
        checkup,
        at,
        complaints: 0,
    };
    judge.fields(&bytes);
    judge.parent(&bytes, footer.disk_type == DiskType::Differencing);
    let (header, good) = match Header::decode(&bytes) {
        Ok(header) => (header, true),
        Err(_) => (header::decode_damaged(&bytes)?, false),
    };
    judge.sizes(&header, footer);
    judge.platforms(&header);
    let table = sectors(header.table_offset, u64::from(header.max_table_entries) * 4);
    if overlaps(table, sectors(at, header::LENGTH as u64)) || table.0 == 0 {
        let message = "the BAT lies on the header or the footer's copy";
        let finding = Finding::new(codes::BAT_PLACE, "BAT", message).at(header.table_offset);
        checkup.add(finding.found(
            header.table_offset,
            format!("at least {}", at + header::LENGTH as u64),
        ));
        return None;
    }
    Some(HeaderState { header, good })
}

struct Judge<'a, 'b> {
    checkup: &'a mut Checkup<'b>,
    at: u64,
    complaints: u8,
}

impl Judge<'_, '_> {
    fn finding(&self, code: Code, offset: u64, message: &str) -> Finding {
        Finding::new(code, NAME, message).at(self.at + offset)
    }

    fn add(&mut self, finding: Finding, original: &str) {
        self.complaints += 1;
        let rank = Rank(Stage::Header, 0, self.complaints);
        self.checkup
            .findings
            .add_known(finding, rank, format!("header is invalid: {original}"));
    }

    /// In the order of the original.
    fn fields(&mut self, bytes: &[u8]) {
        if !bytes.starts_with(&header::COOKIE) {
            let found = bytes
                .get(..8)
                .unwrap_or_default()
                .escape_ascii()
                .to_string();
            let finding = self.finding(codes::HEADER_COOKIE, 0, "there is no dynamic header");
            return self.add(finding.found(found, "cxsparse"), "invalid cookie");
        }
        let (stored, computed) = (u32_at(bytes, 36), header::checksum_of(bytes));
        if stored != computed {
            let finding = self.finding(codes::HEADER_CHECKSUM, 36, "wrong checksum");
            self.add(
                finding.found(format!("{stored:#x}"), format!("{computed:#x}")),
                "invalid checksum",
            );
        }
        let version = u32_at(bytes, 24);
        if version != 0x0001_0000 {
            let finding = self.finding(codes::HEADER_VERSION, 24, "unsupported header version");
            self.add(
                finding.found(format!("{version:#x}"), "0x10000"),
                "invalid header version",
            );
        }
        let next = u64_at(bytes, 8);
        if next != u64::MAX {
            let finding = self.finding(
                codes::HEADER_DATA_OFFSET,
                8,
                "a structure behind the header is named",
            );
            self.add(
                finding.found(format!("{next:#x}"), format!("{:#x}", u64::MAX)),
                "invalid data offset",
            );
        }
        self.table(bytes);
        let block_size = u32_at(bytes, 32);
        if !block_size.is_power_of_two()
            || !(header::MIN_BLOCK_SIZE..=header::MAX_BLOCK_SIZE).contains(&block_size)
        {
            let finding = self.finding(codes::HEADER_BLOCK_SIZE, 32, "impossible block size");
            let finding = finding.found(block_size, "a power of two, 4 KiB to 256 MiB");
            if block_size.is_power_of_two() {
                self.checkup.add(finding);
            } else {
                self.add(finding, "invalid block size");
            }
        } else if block_size != USUAL_BLOCK {
            let finding = self.finding(codes::HEADER_ODD_BLOCK_SIZE, 32, "an unusual block size");
            self.checkup.add(finding.found(block_size, USUAL_BLOCK));
        }
        let reserved = bytes
            .iter()
            .enumerate()
            .skip(60)
            .filter(|(at, _)| *at < 64 || *at >= 768);
        if let Some((at, _)) = reserved.into_iter().find(|(_, byte)| **byte != 0) {
            let finding = self.finding(
                codes::HEADER_RESERVED,
                at as u64,
                "reserved bytes are not zero",
            );
            self.add(finding, "invalid reserved bits");
        }
    }

    fn table(&mut self, bytes: &[u8]) {
        let offset = u64_at(bytes, 16);
        let end = offset.saturating_add(u64::from(u32_at(bytes, 28)) * 4);
        let limit = self.checkup.file.size.saturating_sub(512);
        let impossible = offset < 512 || !offset.is_multiple_of(512);
        if impossible {
            let finding = self.finding(codes::HEADER_TABLE_OFFSET, 16, "impossible table offset");
            self.add(
                finding.found(offset, "a multiple of 512, at least 512"),
                "invalid table offset",
            );
        } else if end > limit {
            let finding = self.finding(
                codes::BAT_PLACE,
                16,
                "the BAT goes on past the end of the file",
            );
            self.add(
                finding.found(format!("end at {end}"), format!("at most {limit}")),
                "invalid table offset",
            );
        }
    }

    /// What the header says of a parent, where there is one and where there should be none.
    fn parent(&mut self, bytes: &[u8], has_parent: bool) {
        let words = |what: &str| format!("differencing header is invalid: {what}");
        let name = bytes.get(64..576).unwrap_or_default();
        let stamp = u32_at(bytes, 56);
        if has_parent {
            if self.checkup.in_future(stamp) {
                let finding = self.finding(
                    codes::HEADER_PARENT_TIME,
                    56,
                    "the parent was modified in the future",
                );
                let finding = finding.found(stamp, "at most the current time");
                let original = words("parent creation time in future");
                self.checkup
                    .findings
                    .add_known(finding, Rank(Stage::Parent, 0, 0), original);
            }
            let units = name
                .as_chunks::<2>()
                .0
                .iter()
                .map(|unit| u16::from_be_bytes(*unit));
            let text: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
            if String::from_utf16(&text).is_err() {
                let finding = self.finding(
                    codes::HEADER_PARENT_NAME,
                    64,
                    "the parent's name is no UTF-16",
                );
                let original = words("invalid parent name");
                self.checkup
                    .findings
                    .add_known(finding, Rank(Stage::Parent, 1, 0), original);
            }
            return;
        }
        let is_set = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
        let fields = [
            (64, is_set(name), "non-null parent name"),
            (
                576,
                is_set(bytes.get(576..768).unwrap_or_default()),
                "non-null parent locators",
            ),
            (40, array(bytes, 40) != [0_u8; 16], "non-null parent uuid"),
            (56, stamp != 0, "non-zero parent timestamp"),
        ];
        for (offset, is_set, what) in fields {
            if is_set {
                let message = format!("a dynamic disk has a {what}");
                let finding = self.finding(codes::HEADER_PARENT_UNUSED, offset, &message);
                let rank = Rank(Stage::Parent, offset, 0);
                self.checkup
                    .findings
                    .add_known(finding, rank, words(&format!("invalid {what}")));
            }
        }
    }

    /// The original opens no image with a locator of an unknown platform, and doesn't say why.
    fn platforms(&mut self, header: &Header) {
        let mut used = header.locators.iter().filter(|locator| locator.is_used());
        if used.any(|locator| !PLATFORMS.contains(&&locator.platform)) {
            let rank = Rank(Stage::Opening, 0, 0);
            self.checkup.findings.verdict(rank, String::new);
        }
    }

    fn sizes(&mut self, header: &Header, footer: &Footer) {
        let count = footer.current_size.div_ceil(u64::from(header.block_size));
        let entries = u64::from(header.max_table_entries);
        if count > entries {
            let finding = self.finding(
                codes::HEADER_TABLE_ENTRIES,
                28,
                "the BAT has too few entries",
            );
            self.checkup
                .add(finding.found(entries, format!("at least {count}")));
        }
        // The original counts blocks of 2 MiB, and no last block that is not whole.
        let blocks = footer.current_size >> 21;
        if blocks > entries {
            let words = || format!("VHD size ({blocks} blocks) exceeds BAT size ({entries})");
            self.checkup
                .findings
                .verdict(Rank(Stage::Table, 1, 0), words);
        }
    }
}
