//! The sector bitmaps of all blocks, read in the order of the file: against the batmap, and on demand against the data.

use super::batmap::BatmapState;
use super::checkup::Checkup;
use super::codes;
use super::findings::{Finding, Rank, Stage};
use super::footers::Footers;
use super::table::Table;
use crate::error::Result;
use crate::format::bitmap;
use crate::format::footer::Footer;
use crate::jobs::Context;
use crate::record::MAX_DATA_MAP;

/// Blocks whose bitmaps are in memory together at most.
const WINDOW: usize = 4096;
/// Bytes of bitmaps that are in memory together at most.
const WINDOW_BYTES: usize = 16 << 20;
/// Sectors that are listed of a block; the original lists all.
const LISTED_SECTORS: usize = 4096;

/// What the bitmaps say.
#[derive(Debug, Default)]
pub(crate) struct Bitmaps {
    /// One bit for each block of the disk, set where all of its sectors are in the file; most significant bit first.
    pub(crate) full: Vec<u8>,
    /// All bitmaps were read.
    pub(crate) complete: bool,
}

/// A block whose bitmap is not full.
struct Partial {
    sector: u32,
    block: u32,
    bits: Vec<u8>,
}

/// Reads and checks all bitmaps, and with `data` what lies under their clear bits.
pub(crate) async fn check(
    context: &Context,
    checkup: &mut Checkup<'_>,
    footers: &Footers,
    footer: &Footer,
    table: &Table,
    batmap: Option<&BatmapState>,
    data: bool,
) -> Result<Bitmaps> {
    let file_end = footers.end / 512;
    // Only blocks that are where they can be.
    let readable = |place: &&(u32, u32)| {
        let start = u64::from(place.0);
        place.1 < table.count && start >= 1 && start + u64::from(table.bitmap_sectors) <= file_end
    };
    let places: Vec<(u32, u32)> = table.placed.iter().filter(readable).copied().collect();
    let bytes = table.bitmap_sectors as usize * 512;
    let mut state = State {
        checkup,
        footer,
        table,
        batmap,
        bitmaps: Bitmaps {
            full: vec![0; (table.count as usize).div_ceil(8)],
            complete: places.len() == table.allocated() as usize,
        },
        missed: 0,
        empty: 0,
    };
    context.begin("bitmaps", places.len() as u64 * bytes as u64);
    for window in places.chunks(WINDOW.min(WINDOW_BYTES / bytes).max(1)) {
        let partial = state.window(window, data).await;
        if data {
            state.data(&partial).await;
        }
        context.advance((window.len() * bytes) as u64)?;
    }
    state.totals();
    Ok(state.bitmaps)
}

struct State<'a, 'b> {
    checkup: &'a mut Checkup<'b>,
    footer: &'a Footer,
    table: &'a Table,
    batmap: Option<&'a BatmapState>,
    bitmaps: Bitmaps,
    /// Full blocks that the batmap doesn't know of.
    missed: u64,
    /// Blocks without any sector.
    empty: u64,
}

impl State<'_, '_> {
    /// Sectors that the disk has in a block.
    fn sectors_of(&self, block: u32) -> u32 {
        let per_block = u64::from(self.table.sectors_per_block);
        let start = u64::from(block) * per_block;
        (self.footer.current_size / 512)
            .saturating_sub(start)
            .min(per_block) as u32
    }

    /// Reads the bitmaps of some blocks. Returns those that are not full, if they are wanted.
    async fn window(&mut self, places: &[(u32, u32)], keep: bool) -> Vec<Partial> {
        let bytes = self.table.bitmap_sectors as usize * 512;
        let (io, file) = (self.checkup.io, self.checkup.file.file);
        let mut partial = Vec::new();
        let mut done = 0;
        while done < places.len() {
            let offsets = places[done..]
                .iter()
                .map(|(sector, _)| u64::from(*sector) * 512);
            let mut taken = 0;
            let take = |bits: &[u8]| {
                let (sector, block) = places[done + taken];
                taken += 1;
                if !self.judge(block, sector, bits) && keep {
                    partial.push(Partial {
                        sector,
                        block,
                        bits: bits.to_vec(),
                    });
                }
            };
            let outcome = io.read_each("bitmap", file, offsets, bytes, take).await;
            done += taken;
            if let Err(error) = outcome {
                // They come in order: the first that is missing is the one that failed.
                self.bitmaps.complete = false;
                if let Some((sector, _)) = places.get(done) {
                    self.checkup
                        .unreadable("bitmap", u64::from(*sector) * 512, error.errno);
                }
                done += 1;
            }
        }
        partial
    }

    /// Compares a bitmap with the batmap. Returns whether it has all sectors of the disk.
    fn judge(&mut self, block: u32, sector: u32, bits: &[u8]) -> bool {
        let (set, count) = bitmap::run(bits, 0, self.sectors_of(block));
        let whole = count == self.sectors_of(block);
        let has_all = set && whole;
        // A disk that grows has more of its last block.
        let full = bitmap::is_full(bits, self.table.sectors_per_block);
        if full {
            bitmap::set_range(&mut self.bitmaps.full, block, 1);
        } else if !set && whole {
            self.empty += 1;
        }
        match self.batmap {
            Some(batmap) if batmap.calls_full(block) && !has_all => {
                let message =
                    format!("the batmap calls block {block} full, and its bitmap doesn't");
                let first = if set { count } else { 0 };
                let finding = Finding::new(codes::BATMAP_NOT_FULL, "bitmap", message)
                    .at(u64::from(sector) * 512 + u64::from(first) / 8)
                    .of_block(block)
                    .found(
                        format!("sector {first} of the block is not in the file"),
                        "all are",
                    );
                self.checkup.add(finding);
            }
            Some(batmap) if full && batmap.matches && !batmap.calls_full(block) => self.missed += 1,
            _ => {}
        }
        has_all
    }

    /// Looks for data under the clear bits of blocks.
    async fn data(&mut self, partial: &[Partial]) {
        let length = u64::from(self.table.sectors_per_block) * 512;
        let part = length.min(MAX_DATA_MAP);
        let map_bytes = (part / 512).div_ceil(8) as usize;
        let bitmap_sectors = u64::from(self.table.bitmap_sectors);
        let parts: Vec<(&Partial, u64, u64)> = partial
            .iter()
            .flat_map(|one| {
                let start = (u64::from(one.sector) + bitmap_sectors) * 512;
                (0..length / part).map(move |index| (one, index * part, start + index * part))
            })
            .collect();
        let (io, file) = (self.checkup.io, self.checkup.file.file);
        let mut done = 0;
        while done < parts.len() {
            let mut taken = 0;
            let take = |map: &[u8]| {
                let (one, first, _) = parts[done + taken];
                taken += 1;
                let map = map.get(..map_bytes).unwrap_or(map);
                let sectors = under_clear(&one.bits, (first / 512) as usize, map);
                if !sectors.is_empty() {
                    self.found_under_clear(one, &sectors);
                }
            };
            let offsets = parts[done..]
                .iter()
                .map(|(_, _, offset)| (file, *offset, part));
            let outcome = io.data_map_each(offsets, take).await;
            done += taken;
            if let Err(error) = outcome {
                // They come in order: the first that is missing is the one that failed.
                if let Some((_, _, offset)) = parts.get(done) {
                    self.checkup.unreadable("block", *offset, error.errno);
                }
                done += 1;
            }
        }
    }

    fn found_under_clear(&mut self, one: &Partial, sectors: &[u32]) {
        let block = one.block;
        let first = sectors.first().copied().unwrap_or_default();
        let start =
            (u64::from(one.sector) + u64::from(self.table.bitmap_sectors) + u64::from(first)) * 512;
        let message = format!(
            "block {block} has data in {} sectors that its bitmap says are not there",
            sectors.len()
        );
        let finding = Finding::new(codes::BITMAP_DATA, "block", message)
            .at(start)
            .of_block(block)
            .found(format!("data in sector {first} of the block"), "zeros");
        let lines: Vec<String> = sectors
            .iter()
            .take(LISTED_SECTORS)
            .map(|sector| {
                format!("sector 0x{sector:x} of block 0x{block:x} has data where bitmap is clear")
            })
            .collect();
        self.checkup.findings.add_known(
            finding,
            Rank(Stage::Blocks, u64::from(block), 3),
            lines.join("\n"),
        );
    }

    fn totals(&mut self) {
        if self.missed > 0 {
            let message = format!("{} full blocks are not in the batmap", self.missed);
            self.checkup
                .add(Finding::new(codes::BATMAP_MISSES, "batmap", message).found(self.missed, 0));
        }
        if self.empty > 0 {
            let message = format!("{} blocks have no sector", self.empty);
            self.checkup
                .add(Finding::new(codes::BLOCKS_EMPTY, "BAT", message).found(self.empty, 0));
        }
    }
}

/// The sectors, from `first` of a block on, that `map` says have data and `bits` doesn't have.
fn under_clear(bits: &[u8], first: usize, map: &[u8]) -> Vec<u32> {
    let sectors = (0..map.len() * 8).map(|at| (at as u32, (first + at) as u32));
    let under =
        sectors.filter(|(at, sector)| bitmap::is_set(map, *at) && !bitmap::is_set(bits, *sector));
    under.map(|(_, sector)| sector).collect()
}
