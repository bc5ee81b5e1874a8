//! blktap's batmap: its header, its place, and what it says of blocks, compared with the BAT and the bitmaps.

use super::checkup::{Checkup, sectors};
use super::codes;
use super::findings::{Finding, Rank, Stage};
use super::footers::Footers;
use crate::format::bat;
use crate::format::batmap::{self, Batmap};
use crate::format::bitmap;
use crate::format::footer::Footer;
use crate::format::header::Header;

const NAME: &str = "batmap";

/// The batmap of an image.
#[derive(Debug)]
pub(crate) struct BatmapState {
    /// Byte offset of its header.
    pub(crate) at: u64,
    pub(crate) header: Batmap,
    /// The part that counts.
    pub(crate) map: Vec<u8>,
    /// Whether the map is the one that was checksummed, and programs go by it.
    pub(crate) matches: bool,
    /// Whether it is where it can be, and large enough.
    pub(crate) placed: bool,
}

impl BatmapState {
    /// Whether programs take this block to be full because of it.
    pub(crate) fn calls_full(&self, block: u32) -> bool {
        self.matches && bitmap::is_set(&self.map, block)
    }
}

/// Reads and checks the batmap, if the image has one, or should.
pub(crate) async fn check(
    checkup: &mut Checkup<'_>,
    footers: &Footers,
    footer: &Footer,
    header: &Header,
) -> Option<BatmapState> {
    if !footer.may_have_batmap() {
        return None;
    }
    let at = batmap::header_offset(header.table_offset, header.max_table_entries);
    let length = batmap::HEADER_LENGTH as u64;
    let bytes = if at.saturating_add(length) > footers.end {
        Vec::new()
    } else {
        checkup.read(NAME, at, length).await
    };
    let decoded = if bytes.len() < batmap::HEADER_LENGTH {
        None
    } else {
        Batmap::decode(&bytes)
    };
    let Some(found) = decoded else {
        if footer.demands_batmap() {
            let cookie = bytes
                .get(..8)
                .unwrap_or_default()
                .escape_ascii()
                .to_string();
            let finding = Finding::new(codes::BATMAP_MISSING, NAME, "there is no batmap").at(at);
            let rank = Rank(Stage::Table, 0, 0);
            checkup
                .findings
                .add_known(finding.found(cookie, "tdbatmap"), rank, UNUSABLE);
        }
        return None;
    };
    if found.key_hash.is_some() {
        checkup.add(Finding::new(codes::DISK_ENCRYPTED, NAME, "the disk is encrypted").at(at + 29));
    }
    Some(judge(checkup, footers, footer, header, at, found).await)
}

/// What the original says where it can't read a batmap.
const UNUSABLE: &str = "error calculating end of metadata: -22";

async fn judge(
    checkup: &mut Checkup<'_>,
    footers: &Footers,
    footer: &Footer,
    header: &Header,
    at: u64,
    found: Batmap,
) -> BatmapState {
    let known = found.version <= batmap::VERSION;
    if !known {
        let finding =
            Finding::new(codes::BATMAP_VERSION, NAME, "unsupported batmap version").at(at + 20);
        let finding = finding.found(
            format!("{:#x}", found.version),
            format!("at most {:#x}", batmap::VERSION),
        );
        checkup
            .findings
            .add_known(finding, Rank(Stage::Table, 0, 0), UNUSABLE);
    }
    let placed = place(checkup, footers, footer, header, at, &found);
    let length = batmap::map_bytes(footer.current_size, header.block_size);
    let map = if placed {
        checkup.read(NAME, found.offset, length).await
    } else {
        Vec::new()
    };
    let matches = known && found.matches(&map) && placed;
    if known && placed && !matches {
        let finding = Finding::new(codes::BATMAP_CHECKSUM, NAME, "wrong checksum").at(at + 24);
        let computed = batmap::checksum(&map, found.version);
        let finding = finding.found(format!("{:#x}", found.checksum), format!("{computed:#x}"));
        checkup
            .findings
            .add_known(finding, Rank(Stage::Table, 0, 0), UNUSABLE);
    }
    BatmapState {
        at,
        header: found,
        map,
        matches,
        placed,
    }
}

fn place(
    checkup: &mut Checkup<'_>,
    footers: &Footers,
    footer: &Footer,
    header: &Header,
    at: u64,
    found: &Batmap,
) -> bool {
    let words = |what: &str| format!("batmap is invalid: {what}");
    let rank = |sub| Rank(Stage::Batmap, 0, sub);
    let room = u64::from(found.sectors) * 512;
    let count = footer.current_size.div_ceil(u64::from(header.block_size));
    let needed = u64::from(header.max_table_entries).max(count).div_ceil(8);
    if room < needed {
        let finding = Finding::new(codes::BATMAP_SIZE, NAME, "the batmap is too small").at(at + 16);
        let finding = finding.found(format!("{room} bytes"), format!("at least {needed}"));
        let what = if room == 0 {
            "invalid size zero"
        } else {
            "batmap-BAT size mismatch"
        };
        checkup.findings.add_known(finding, rank(0), words(what));
        return false;
    }
    let end = found.offset.saturating_add(room);
    // Behind the BAT and its own header there is nothing before the blocks but locators, with which blocks are compared.
    let first = at + batmap::HEADER_LENGTH as u64;
    if found.offset < first || !found.offset.is_multiple_of(512) || end > footers.end {
        let finding = Finding::new(
            codes::BATMAP_PLACE,
            NAME,
            "the batmap lies where it can't be",
        )
        .at(at + 8);
        let finding = finding.found(
            format!("{} to {end}", found.offset),
            format!("a multiple of 512, from {first} to {}", footers.end),
        );
        if found.offset == 0 || !found.offset.is_multiple_of(512) {
            checkup
                .findings
                .add_known(finding, rank(1), words("invalid batmap offset"));
        } else if end > checkup.file.size.saturating_sub(512) {
            checkup
                .findings
                .add_known(finding, rank(2), words("invalid batmap size"));
        } else {
            checkup.add(finding);
        }
        return false;
    }
    true
}

/// Compares the batmap with the BAT.
pub(crate) fn against_table(
    checkup: &mut Checkup<'_>,
    state: &BatmapState,
    table: &[u32],
    count: u32,
) {
    if !state.matches {
        return;
    }
    let entries = (0_u32..).zip(table.iter().copied()).take(count as usize);
    for (block, _) in
        entries.filter(|(block, sector)| *sector == bat::UNUSED && state.calls_full(*block))
    {
        let message = format!("block {block} is called full and does not exist");
        let finding = Finding::new(codes::BATMAP_ABSENT_BLOCK, NAME, message)
            .at(state.header.offset + u64::from(block) / 8)
            .of_block(block)
            .found("a set bit", "a clear bit");
        let words = format!("batmap shows unallocated block {block} full");
        checkup
            .findings
            .add_known(finding, Rank(Stage::Batmap, 1 + u64::from(block), 0), words);
    }
}

/// The sectors of header and map.
pub(crate) fn areas(state: &BatmapState) -> [super::checkup::Range; 2] {
    let map = if state.placed {
        sectors(state.header.offset, u64::from(state.header.sectors) * 512)
    } else {
        (0, 0)
    };
    [sectors(state.at, batmap::HEADER_LENGTH as u64), map]
}
