//! Who lies where in a file with a BAT: blocks may lie on nothing else, and on no other block.

use crate::batmap_state::BatmapState;
use crate::error::{Error, Result};
use crate::format::bat;
use crate::format::header;
use crate::format::locator::ParentLocator;
use crate::image::Blocks;
use crate::open::{FileSpec, Footers};
use crate::orphans::Orphans;

/// Sectors of a structure, first and behind the last.
type Range = (u64, u64);

/// A structure on which a block may not lie, though reading goes without it.
enum Area {
    Table,
    BatmapHeader,
    Batmap,
    Locator(usize),
}

impl Area {
    fn name(&self) -> String {
        match self {
            Self::Table => "the unused part of the BAT".to_owned(),
            Self::BatmapHeader => "the batmap's header".to_owned(),
            Self::Batmap => "the batmap".to_owned(),
            Self::Locator(index) => format!("the data of parent locator {index}"),
        }
    }
}

/// What is left of the file between structures and blocks.
pub(crate) struct Space {
    /// First sector behind every structure that is no block.
    pub(crate) metadata_end: u64,
    /// First sector behind every structure and block.
    pub(crate) data_end: u64,
    pub(crate) orphans: Orphans,
}

/// Checks every BAT entry. A batmap or a parent locator on which a block lies is taken away where the image is only read.
///
/// # Errors
/// The first block that can't be where it is.
pub(crate) fn check(
    blocks: &mut Blocks,
    spec: &FileSpec,
    footers: &Footers,
    batmap: &mut Option<BatmapState>,
    warnings: &mut Vec<String>,
) -> Result<Space> {
    // A sector that is there in part holds nothing of a block.
    let (span, file_end) = (blocks.block_span(), footers.end / 512);
    let needed = needed(blocks);
    let areas = areas(blocks, batmap.as_ref());
    let metadata_end = needed
        .iter()
        .chain(areas.iter().map(|(range, _)| range))
        .map(|range| range.1.min(file_end))
        .fold(0, u64::max);
    let mut data_end = metadata_end;
    let mut cut_short = None;
    let mut places = Vec::with_capacity(blocks.allocated() as usize);
    let mut covered: Vec<Option<u32>> = vec![None; areas.len()];
    for (block, sector) in (0_u32..)
        .zip(blocks.bat.iter().copied())
        .filter(|(_, sector)| *sector != bat::UNUSED)
    {
        let first = u64::from(sector);
        let range = (first, first + span);
        let wrong = |message: String, expected: String| {
            Error::invalid("BAT", format!("block {block} {message}"))
                .at(entry_offset(blocks, block))
                .found(format!("sector {sector}"), expected)
        };
        let lies_on = |what: &str, end: u64| {
            wrong(format!("lies on {what}"), format!("at least sector {end}"))
        };
        if first < metadata_end {
            if let Some(other) = needed.iter().find(|other| overlaps(**other, range)) {
                return Err(lies_on("the footer's copy, the header or the BAT", other.1));
            }
            for ((other, area), covered) in areas.iter().zip(&mut covered) {
                let gives_way = matches!(area, Area::Batmap)
                    && batmap.as_ref().is_some_and(BatmapState::is_wrong);
                if overlaps(*other, range) {
                    if !spec.read_only && !gives_way {
                        return Err(lies_on(&area.name(), other.1));
                    }
                    covered.get_or_insert(block);
                }
            }
        }
        if range.1 > file_end {
            if !spec.read_only || first >= file_end {
                return Err(wrong(
                    "ends behind the end of the file".to_owned(),
                    format!("at most sector {}", file_end.saturating_sub(span)),
                ));
            }
            cut_short = Some(block);
        }
        data_end = data_end.max(range.1.min(file_end));
        places.push(sector);
    }
    places.sort_unstable();
    if let Some(pair) = places
        .windows(2)
        .find(|pair| u64::from(pair[0]) + span > u64::from(pair[1]))
    {
        return Err(overlapping(blocks, pair[0], pair[1]));
    }
    for ((_, area), block) in areas.iter().zip(covered) {
        let Some(block) = block else { continue };
        warnings.push(format!("block {block} lies on {}", area.name()));
        match area {
            Area::Table => {}
            Area::BatmapHeader | Area::Batmap => *batmap = None,
            // What it says now is what a guest wrote.
            Area::Locator(index) => blocks.header.locators[*index] = ParentLocator::default(),
        }
    }
    if let Some(block) = cut_short {
        warnings.push(format!(
            "block {block} ends behind the end of the file and is cut short"
        ));
    }
    let past_end = blocks.bat.iter().skip(blocks.count as usize);
    if past_end.copied().any(|entry| entry != bat::UNUSED) {
        warnings.push("the BAT names blocks past the end of the disk".to_owned());
    }
    let orphans = if spec.read_only {
        Orphans::default()
    } else {
        Orphans::find(blocks, &places, metadata_end)
    };
    Ok(Space {
        metadata_end,
        data_end,
        orphans,
    })
}

/// The structures without which nothing can be read.
fn needed(blocks: &Blocks) -> [Range; 3] {
    let table = blocks.header.table_offset;
    [
        (0, 1),
        sectors(blocks.footer.data_offset, header::LENGTH as u64),
        sectors(table, u64::from(blocks.count) * 4),
    ]
}

/// The sectors before `limit` that no structure is in, of an image all of whose blocks are behind that.
pub(crate) fn free_before(blocks: &Blocks, limit: u64) -> Vec<Range> {
    let structures = areas(blocks, blocks.batmap.as_deref()).into_iter();
    let mut used: Vec<Range> = structures.map(|(range, _)| range).collect();
    used.extend(needed(blocks));
    used.sort_unstable();
    let mut end = 0;
    let mut free = Vec::new();
    for (first, behind) in used.into_iter().chain([(limit, limit)]) {
        if end < first.min(limit) {
            free.push((end, first.min(limit)));
        }
        end = end.max(behind);
    }
    free
}

fn areas(blocks: &Blocks, batmap: Option<&BatmapState>) -> Vec<(Range, Area)> {
    let header = &blocks.header;
    let table_end = sectors(header.table_offset, u64::from(header.max_table_entries) * 4).1;
    let used_end = sectors(header.table_offset, u64::from(blocks.count) * 4).1;
    let mut areas = vec![((used_end, table_end), Area::Table)];
    if let Some(batmap) = batmap {
        let [of_header, of_map] = batmap
            .areas()
            .map(|(start, end)| sectors(start, end - start));
        areas.push((of_header, Area::BatmapHeader));
        areas.push((of_map, Area::Batmap));
    }
    let locators = header.locators.iter().enumerate();
    areas.extend(
        locators
            .filter(|(_, locator)| locator.is_used())
            .map(|(index, locator)| {
                let range = sectors(locator.data_offset, locator.space_bytes());
                (range, Area::Locator(index))
            }),
    );
    areas
}

/// The sectors that hold any of `length` bytes at `offset`.
fn sectors(offset: u64, length: u64) -> Range {
    (offset / 512, offset.saturating_add(length).div_ceil(512))
}

fn entry_offset(blocks: &Blocks, block: u32) -> u64 {
    blocks.header.table_offset + u64::from(block) * 4
}

/// The error of two blocks at these places.
fn overlapping(blocks: &Blocks, first: u32, second: u32) -> Error {
    let mut named: Vec<(u32, u32)> = (0_u32..)
        .zip(&blocks.bat)
        .filter(|(_, place)| [first, second].contains(place))
        .map(|(block, place)| (*place, block))
        .collect();
    named.sort_unstable();
    // Both places were read from the table, where they are in two entries at least.
    let block = |index: usize| named.get(index).map_or(0, |(_, block)| *block);
    Error::invalid(
        "BAT",
        format!("blocks {} and {} overlap", block(0), block(1)),
    )
    .at(entry_offset(blocks, block(1)))
    .found(
        format!("sector {second}"),
        format!("at least sector {}", u64::from(first) + blocks.block_span()),
    )
}

/// Whether two ranges have a sector in common.
pub(crate) fn overlaps(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}
