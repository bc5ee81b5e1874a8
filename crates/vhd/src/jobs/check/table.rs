//! The BAT: every entry against the other structures, the end of the file, and the other blocks.

use super::batmap::{self, BatmapState};
use super::checkup::{Checkup, Range, overlaps, sectors};
use super::codes::{self, Code};
use super::findings::{Finding, Rank, Stage};
use super::footers::Footers;
use crate::format::bat;
use crate::format::footer::Footer;
use crate::format::header::{self, Header};
use crate::image::{ALIGNMENT, MAX_BAT_ENTRIES, bitmap_sectors};

/// What is known of where things are in the file.
#[derive(Debug)]
pub(crate) struct Table {
    /// All entries, also those past the end of the disk.
    pub(crate) entries: Vec<u32>,
    /// Blocks of the disk.
    pub(crate) count: u32,
    pub(crate) sectors_per_block: u32,
    pub(crate) bitmap_sectors: u32,
    /// Blocks in the order of the file: first sector, and block. Entries past the end of the disk among them.
    pub(crate) placed: Vec<(u32, u32)>,
    /// First sector behind every structure that is no block.
    pub(crate) metadata_end: u64,
    /// First sector behind every structure and block.
    pub(crate) data_end: u64,
}

impl Table {
    /// Sectors of a block, bitmap and data.
    pub(crate) fn span(&self) -> u64 {
        u64::from(self.bitmap_sectors) + u64::from(self.sectors_per_block)
    }

    pub(crate) fn allocated(&self) -> u32 {
        let entries = self.entries.iter().take(self.count as usize);
        entries.filter(|entry| **entry != bat::UNUSED).count() as u32
    }
}

/// Reads the BAT. The disk has no more blocks than it has entries, whatever the footer says.
pub(crate) async fn read(checkup: &mut Checkup<'_>, footer: &Footer, header: &Header) -> Table {
    let limit = u64::from(header.max_table_entries).min(MAX_BAT_ENTRIES);
    let bytes = checkup.read("BAT", header.table_offset, limit * 4).await;
    let mut entries = Vec::with_capacity(bytes.len() / 4);
    bat::decode(&bytes, &mut entries);
    drop(bytes);
    let count = footer.current_size.div_ceil(u64::from(header.block_size));
    let count = count.min(entries.len() as u64) as u32;
    let mut placed: Vec<(u32, u32)> = (0_u32..)
        .zip(entries.iter().copied())
        .filter(|(_, sector)| *sector != bat::UNUSED)
        .map(|(block, sector)| (sector, block))
        .collect();
    placed.sort_unstable();
    let sectors_per_block = header.block_size / 512;
    Table {
        entries,
        count,
        sectors_per_block,
        bitmap_sectors: bitmap_sectors(sectors_per_block),
        placed,
        metadata_end: 0,
        data_end: 0,
    }
}

/// A structure on which no block may lie.
struct Area {
    range: Range,
    code: Code,
    name: &'static str,
}

fn areas(
    footer: &Footer,
    header: &Header,
    table: &Table,
    batmap: Option<&BatmapState>,
) -> Vec<Area> {
    let area = |range, code, name| Area { range, code, name };
    let used = sectors(header.table_offset, u64::from(table.count) * 4);
    let whole = sectors(header.table_offset, u64::from(header.max_table_entries) * 4);
    let mut areas = vec![
        area(
            (0, 1),
            codes::BLOCK_ON_FOOTER_COPY,
            "the copy of the footer",
        ),
        area(
            sectors(footer.data_offset, header::LENGTH as u64),
            codes::BLOCK_ON_HEADER,
            "the dynamic header",
        ),
        area(used, codes::BLOCK_ON_BAT, "the BAT"),
        area(
            (used.1, whole.1),
            codes::BLOCK_ON_BAT_RESERVE,
            "the unused part of the BAT",
        ),
    ];
    if let Some(batmap) = batmap {
        let [header, map] = batmap::areas(batmap);
        areas.push(area(header, codes::BLOCK_ON_BATMAP, "the batmap's header"));
        areas.push(area(map, codes::BLOCK_ON_BATMAP, "the batmap"));
    } else if footer.demands_batmap() {
        // Where its header should be.
        let missing = (whole.1, whole.1 + 1);
        areas.push(area(
            missing,
            codes::BLOCK_ON_BATMAP,
            "the place of the batmap's header",
        ));
    }
    let locators = header.locators.iter().filter(|locator| locator.is_used());
    areas.extend(locators.map(|locator| {
        let range = sectors(locator.data_offset, locator.space_bytes());
        area(range, codes::BLOCK_ON_LOCATOR, "the name of the parent")
    }));
    areas.retain(|area| area.range.0 < area.range.1);
    areas
}

/// Checks where every block is.
pub(crate) fn check(
    checkup: &mut Checkup<'_>,
    footers: &Footers,
    footer: &Footer,
    header: &Header,
    table: &mut Table,
    batmap: Option<&BatmapState>,
) {
    let areas = areas(footer, header, table, batmap);
    let file_end = footers.end / 512;
    // One that claims to be past the end of the file takes no room.
    let metadata_end = areas
        .iter()
        .map(|area| area.range.1)
        .filter(|end| *end <= file_end);
    table.metadata_end = metadata_end.fold(0, u64::max);
    let last = table
        .placed
        .iter()
        .map(|(sector, _)| u64::from(*sector) + table.span());
    table.data_end = last
        .filter(|end| *end <= file_end)
        .fold(table.metadata_end, u64::max);

    let mut scan = Scan {
        checkup,
        table,
        header,
        areas: &areas,
        file_end,
        footer_is_there: footers.primary.good,
    };
    scan.places();
    scan.overlaps();
    scan.rest();
    scan.verdict(footers);
}

struct Scan<'a, 'b> {
    checkup: &'a mut Checkup<'b>,
    table: &'a Table,
    header: &'a Header,
    areas: &'a [Area],
    file_end: u64,
    footer_is_there: bool,
}

impl Scan<'_, '_> {
    fn finding(&self, code: Code, block: u32, message: String) -> Finding {
        let at = self.header.table_offset + u64::from(block) * 4;
        Finding::new(code, "BAT", message).at(at).of_block(block)
    }

    /// Blocks on other structures, and past the end of the file.
    fn places(&mut self) {
        let (span, areas) = (self.table.span(), self.areas);
        let areas_end = areas.iter().map(|area| area.range.1).fold(0, u64::max);
        for (sector, block) in self.table.placed.iter().copied() {
            let first = u64::from(sector);
            let range = (first, first + span);
            if first < areas_end {
                for area in areas.iter().filter(|area| overlaps(area.range, range)) {
                    let message = format!("block {block} lies on {}", area.name);
                    let finding = self.finding(area.code, block, message);
                    let expected = format!("at least sector {}", area.range.1);
                    self.checkup
                        .add(finding.found(format!("sector {sector}"), expected));
                }
            }
            if range.1 <= self.file_end {
                continue;
            }
            let (code, message) = if first >= self.file_end {
                (
                    codes::BLOCK_PAST_END,
                    format!("block {block} is past the end of the file"),
                )
            } else if self.footer_is_there {
                (
                    codes::BLOCK_ON_FOOTER,
                    format!("block {block} lies on the footer"),
                )
            } else {
                (
                    codes::BLOCK_CUT,
                    format!("block {block} goes on past the end of the file"),
                )
            };
            let expected = format!("at most sector {}", self.file_end.saturating_sub(span));
            let finding = self.finding(code, block, message);
            self.checkup
                .add(finding.found(format!("sector {sector}"), expected));
        }
    }

    /// Blocks on other blocks: neighbours in the order of the file.
    fn overlaps(&mut self) {
        if self.checkup.ignore.overlaps {
            return;
        }
        let span = self.table.span();
        let mut reaching: Option<(u32, u32)> = None;
        for (sector, block) in self.table.placed.iter().copied() {
            if let Some((before, other)) = reaching
                && u64::from(before) + span > u64::from(sector)
            {
                let (code, message) = if before == sector {
                    (
                        codes::BLOCKS_DUPLICATE,
                        format!("blocks {other} and {block} are in the same place"),
                    )
                } else {
                    (
                        codes::BLOCKS_OVERLAP,
                        format!("blocks {other} and {block} overlap"),
                    )
                };
                let finding = self.finding(code, block, message);
                let expected = format!("at least sector {}", u64::from(before) + span);
                self.checkup
                    .add(finding.found(format!("sector {sector}"), expected));
            }
            reaching = Some((sector, block));
        }
    }

    /// What concerns many blocks together.
    fn rest(&mut self) {
        let count = self.table.count;
        let beyond = self.table.entries.iter().skip(count as usize);
        let beyond = beyond.filter(|entry| **entry != bat::UNUSED).count();
        if beyond > 0 {
            let message = format!("{beyond} entries past the end of the disk have blocks");
            let finding = self.finding(codes::BLOCK_BEYOND_DISK, count, message);
            self.checkup.add(finding.found(beyond, 0));
        }
        let data = |sector: &u32| u64::from(*sector) + u64::from(self.table.bitmap_sectors);
        let unaligned = self
            .table
            .placed
            .iter()
            .filter(|(sector, _)| !data(sector).is_multiple_of(ALIGNMENT));
        let unaligned = unaligned.count();
        if unaligned > 0 {
            let message = format!("the data of {unaligned} blocks are not aligned to 4 KiB");
            self.checkup
                .add(Finding::new(codes::BLOCKS_UNALIGNED, "BAT", message).found(unaligned, 0));
        }
    }

    /// The first block that the original doesn't like, and why.
    fn verdict(&mut self, footers: &Footers) {
        let span = self.table.span();
        let end_of_headers = self.areas.iter().map(|area| area.range.1).fold(0, u64::max);
        let file = self.checkup.file;
        // It takes a short footer for a whole one.
        let legacy = u64::from(!file.size.is_multiple_of(512));
        let end = (file.size + legacy).saturating_sub(512) / 512;
        let may_lack_footer = !footers.primary.good && self.checkup.ignore.primary_footer;
        let mut first: Option<u32> = None;
        if !self.checkup.ignore.overlaps {
            let pairs = self.table.placed.windows(2);
            let pairs = pairs.filter(|pair| u64::from(pair[0].0) + span > u64::from(pair[1].0));
            first = pairs.flat_map(|pair| [pair[0].1, pair[1].1]).min();
        }
        let entries = (0_u32..)
            .zip(self.table.entries.iter().copied())
            .take(self.table.count as usize);
        for (block, sector) in entries.filter(|(_, sector)| *sector != bat::UNUSED) {
            let start = u64::from(sector);
            let rank = |sub| Rank(Stage::Blocks, u64::from(block), sub);
            let findings = &mut self.checkup.findings;
            if start < end_of_headers {
                return findings.verdict(rank(0), || {
                    format!("block {block} (offset 0x{sector:x}) clobbers headers")
                });
            }
            if start + span > end && !(may_lack_footer && start + span == end + 1) {
                return findings.verdict(rank(1), || {
                    format!("block {block} (offset 0x{sector:x}) clobbers footer")
                });
            }
            if first != Some(block) {
                continue;
            }
            let hit =
                |other: &(u32, u32)| other.0 != block && u64::from(other.1.abs_diff(sector)) < span;
            let entries = (0_u32..)
                .zip(self.table.entries.iter().copied())
                .take(self.table.count as usize);
            if let Some((other, place)) =
                entries.filter(|(_, place)| *place != bat::UNUSED).find(hit)
            {
                return findings.verdict(rank(2), || {
                    format!("block {block} (offset 0x{sector:x}) clobbers block {other} (offset 0x{place:x})")
                });
            }
        }
    }
}
