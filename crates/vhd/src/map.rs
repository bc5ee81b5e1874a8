//! Where the sectors of a chain are: for jobs that look at many of them at once.
//!
//! Level by level: what a level does not have is looked up in the next one, all bitmaps that a level needs are read
//! together. The request path has its own way (`core.rs`), which shares its cache among many small requests.

use std::ops::Range;

use crate::error::Result;
use crate::format::bitmap;
use crate::image::{Blocks, Image, Layout};
use crate::io::Io;

/// Sectors that jobs look up together: 128 MiB.
pub(crate) const WINDOW: u64 = 1 << 18;

/// Sectors of a chain that are together in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First sector on the virtual disk.
    pub(crate) sector: u64,
    pub(crate) sectors: u64,
    /// Where they are; `None` if they are in no image of the chain, and zeros.
    pub(crate) place: Option<Place>,
}

/// A place of sectors in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the image in the chain.
    pub(crate) level: usize,
    /// Byte offset in its file.
    pub(crate) offset: u64,
}

impl Extent {
    /// Whether `next` goes on where this one ends, on the disk and in the file.
    fn goes_on_with(&self, next: &Self) -> bool {
        let joins = match (self.place, next.place) {
            (None, None) => true,
            (Some(here), Some(there)) => {
                here.level == there.level && here.offset + self.sectors * 512 == there.offset
            }
            _ => false,
        };
        joins && self.sector + self.sectors == next.sector
    }
}

/// Where `sectors` of the disk are that `chain` (leaf first) makes: extents that cover them in order, neighbours joined.
/// Memory and time are proportional to the range and the number of fragments in it; callers go through a disk in steps of
/// [`WINDOW`].
///
/// # Errors
/// An I/O error while a bitmap is read.
pub(crate) async fn resolve(io: &Io, chain: &[Image], sectors: Range<u64>) -> Result<Vec<Extent>> {
    let Found { mut extents, below } = find(io, chain, sectors).await?;
    for range in below {
        push_zeros(&mut extents, range);
    }
    join(&mut extents);
    Ok(extents)
}

/// As [`resolve`], for the upper part of a chain.
///
/// # Errors
/// An I/O error while a bitmap is read.
pub(crate) async fn look_up(io: &Io, upper: &[Image], sectors: Range<u64>) -> Result<Found> {
    let mut found = find(io, upper, sectors).await?;
    join(&mut found.extents);
    Ok(found)
}

/// What the upper part of a chain says of sectors.
#[derive(Debug)]
pub(crate) struct Found {
    /// What it decides, in order, neighbours joined: sectors that it has, and zeros where one of its images ends before the
    /// disk does.
    pub(crate) extents: Vec<Extent>,
    /// What is left to the images below, in order, none empty.
    pub(crate) below: Vec<Range<u64>>,
}

async fn find(io: &Io, chain: &[Image], sectors: Range<u64>) -> Result<Found> {
    let mut found = Vec::new();
    let mut open = vec![sectors];
    for (level, image) in chain.iter().enumerate() {
        let mut below = Vec::new();
        for range in std::mem::take(&mut open) {
            // Behind the end of a smaller image there are zeros, whatever its parents have.
            let end = range.end.min(image.sectors.max(range.start));
            push_zeros(&mut found, end..range.end);
            if range.start < end {
                open.push(range.start..end);
            }
        }
        match &image.layout {
            Layout::Flat => found.extend(open.drain(..).map(|range| Extent {
                sector: range.start,
                sectors: range.end - range.start,
                place: Some(Place {
                    level,
                    offset: range.start * 512,
                }),
            })),
            Layout::Blocks(blocks) => {
                in_blocks(io, image, blocks, level, &open, &mut found, &mut below).await?;
            }
        }
        open = below;
        if open.is_empty() {
            break;
        }
    }
    open.retain(|range| !range.is_empty());
    Ok(Found {
        extents: found,
        below: open,
    })
}

/// Puts extents in order and joins neighbours.
pub(crate) fn join(extents: &mut Vec<Extent>) {
    extents.sort_unstable_by_key(|extent| extent.sector);
    extents.dedup_by(|next, extent| {
        let joins = extent.goes_on_with(next);
        if joins {
            extent.sectors += next.sectors;
        }
        joins
    });
}

fn push_zeros(found: &mut Vec<Extent>, range: Range<u64>) {
    if !range.is_empty() {
        found.push(Extent {
            sector: range.start,
            sectors: range.end - range.start,
            place: None,
        });
    }
}

/// The part of a range in one block.
struct Part {
    sector: u64,
    /// First sector in the block.
    first: u32,
    count: u32,
    /// Sector of the block's bitmap in the file.
    bitmap: u64,
}

/// Looks up ranges in the blocks of one level. What is not there goes to `below`.
async fn in_blocks(
    io: &Io,
    image: &Image,
    blocks: &Blocks,
    level: usize,
    ranges: &[Range<u64>],
    found: &mut Vec<Extent>,
    below: &mut Vec<Range<u64>>,
) -> Result<()> {
    let per_block = u64::from(blocks.sectors_per_block);
    let data = |part: &Part, skip: u32, count: u32| Extent {
        sector: part.sector + u64::from(skip),
        sectors: u64::from(count),
        place: Some(Place {
            level,
            offset: (part.bitmap + u64::from(blocks.bitmap_sectors + part.first + skip)) * 512,
        }),
    };
    let mut partial = Vec::new();
    for range in ranges {
        let mut sector = range.start;
        while sector < range.end {
            let (block, first) = ((sector / per_block) as u32, (sector % per_block) as u32);
            let count = (range.end - sector).min(per_block - u64::from(first)) as u32;
            match blocks.bitmap_sector(block) {
                None => push_below(below, sector..sector + u64::from(count)),
                Some(bitmap) => {
                    let part = Part {
                        sector,
                        first,
                        count,
                        bitmap,
                    };
                    if blocks.is_full(block) {
                        found.push(data(&part, 0, count));
                    } else {
                        partial.push(part);
                    }
                }
            }
            sector += u64::from(count);
        }
    }
    let mut parts = partial.iter();
    let mut gaps = Vec::new();
    let split = |bits: &[u8]| {
        // A bitmap is handed over for each part, in order.
        let Some(part) = parts.next() else { return };
        let mut done = 0;
        while done < part.count {
            let (present, count) = bitmap::run(bits, part.first + done, part.count - done);
            if present {
                found.push(data(part, done, count));
            } else {
                let start = part.sector + u64::from(done);
                gaps.push(start..start + u64::from(count));
            }
            done += count;
        }
    };
    let offsets = partial.iter().map(|part| part.bitmap * 512);
    io.read_each("bitmap", image.file, offsets, blocks.bitmap_bytes(), split)
        .await
        .map_err(|error| error.in_file(&image.path))?;
    below.append(&mut gaps);
    below.sort_unstable_by_key(|range| range.start);
    below.dedup_by(|next, range| {
        let joins = range.end == next.start;
        if joins {
            range.end = next.end;
        }
        joins
    });
    Ok(())
}

fn push_below(below: &mut Vec<Range<u64>>, range: Range<u64>) {
    match below.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => below.push(range),
    }
}
