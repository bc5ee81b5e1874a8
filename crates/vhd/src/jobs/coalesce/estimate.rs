//! What a merge will take: bytes to copy, blocks to allocate, space. It is known before anything is written, so that a
//! file system that is too small is noticed then and not in the middle.

use std::ops::Range;

use serde::Serialize;

use super::{CoalesceSpec, Cut};
use crate::error::{Error, Result, errno};
use crate::image::{Blocks, Image, Layout};
use crate::io::Io;
use crate::jobs::Context;
use crate::map::{self, Extent};
use crate::open::Driver;

/// File systems give out space in units of this many bytes.
const UNIT: u64 = 4096;
/// What a file system needs for its own account of new space, at least.
const MARGIN: u64 = 1 << 20;
/// Sectors in a block of the usual size.
const USUAL_BLOCK_SECTORS: u64 = 4096;
/// Bytes at which a search for holes looks at a time.
const LOOK: u64 = 1 << 30;

/// What a merge will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// Bytes to copy.
    pub bytes: u64,
    /// Bytes to make zeros, since an image between child and target is smaller than the child.
    pub zero_bytes: u64,
    /// Blocks that the target must allocate.
    pub blocks: u64,
    /// Bytes that the target takes of its file system at most.
    pub space: u64,
    /// Bytes that are free there, if that is known; a block device has no file system.
    pub free: Option<u64>,
}

/// Estimates the merge of the sectors from `from` on.
///
/// # Errors
/// An I/O error; that the job was cancelled.
pub(super) async fn run(
    context: &Context,
    spec: &CoalesceSpec,
    cut: &Cut,
    from: u64,
) -> Result<Estimate> {
    let target = cut.lower.first();
    let free = match target {
        Some(target) if !target.block_device => Some(context.files.free_space(target.file).await?),
        _ => None,
    };
    // Looking for holes takes longer, and is needed only if there is not enough space for everything.
    let mut estimate = Estimator::new(context, spec, cut, spec.dry_run)
        .estimate(from)
        .await?;
    if !spec.dry_run && free.is_some_and(|free| estimate.space > free) {
        estimate = Estimator::new(context, spec, cut, true)
            .estimate(from)
            .await?;
    }
    Ok(Estimate { free, ..estimate })
}

/// Refuses to begin what can't end well.
///
/// # Errors
/// `ENOSPC`.
pub(super) fn check_space(cut: &Cut, estimate: &Estimate) -> Result<()> {
    let Some(target) = cut.lower.first() else {
        return Ok(());
    };
    let refuse = |message: &str, found: String, expected: String| {
        Err(Error {
            errno: errno::ENOSPC,
            ..Error::invalid("file system", message)
                .found(found, expected)
                .in_file(&target.path)
        })
    };
    match (&target.layout, estimate.free) {
        (Layout::Blocks(blocks), _) if target.block_device => {
            let room = device_room(blocks, estimate.blocks);
            if room < estimate.blocks && blocks.orphans.is_empty() {
                let expected = format!("room for {}", estimate.blocks);
                return refuse(
                    "the block device is too small",
                    format!("room for {room} blocks"),
                    expected,
                );
            }
            Ok(())
        }
        (_, Some(free)) if estimate.space > free && !target.block_device => refuse(
            "too little space is free",
            format!("{free} bytes"),
            format!("at least {}", estimate.space),
        ),
        _ => Ok(()),
    }
}

/// How many of `wanted` blocks fit behind the last one on a block device.
fn device_room(blocks: &Blocks, wanted: u64) -> u64 {
    let Some(end) = blocks.device_end else {
        return wanted;
    };
    let mut next = blocks.data_end;
    let mut room = 0;
    while room < wanted && blocks.place(next) + blocks.block_span() <= end {
        next = blocks.place(next) + blocks.block_span();
        room += 1;
    }
    room
}

struct Estimator<'a> {
    context: &'a Context,
    cut: &'a Cut,
    /// Sectors in a block of the target; `None` without blocks.
    per_block: Option<u64>,
    /// Whether to look for holes.
    exact: bool,
    estimate: Estimate,
    /// The block of the target that was counted last.
    counted: Option<u64>,
}

impl<'a> Estimator<'a> {
    fn new(context: &'a Context, spec: &CoalesceSpec, cut: &'a Cut, exact: bool) -> Self {
        let of = |image: &Image| match &image.layout {
            Layout::Blocks(blocks) => Some(u64::from(blocks.sectors_per_block)),
            Layout::Flat => None,
        };
        let driver = spec.output.as_ref().map(|output| output.driver);
        let per_block = match (cut.lower.first(), driver) {
            (Some(target), _) => of(target),
            (None, Some(Driver::Aio)) => None,
            // A new image has blocks like its child's.
            (None, _) => cut.upper.first().and_then(of).or(Some(USUAL_BLOCK_SECTORS)),
        };
        Self {
            context,
            cut,
            per_block,
            exact,
            estimate: Estimate::default(),
            counted: None,
        }
    }

    async fn estimate(mut self, from: u64) -> Result<Estimate> {
        let mut start = from;
        self.context
            .begin("estimating", (self.cut.sectors.saturating_sub(from)) * 512);
        while start < self.cut.sectors {
            let end = self.cut.sectors.min(start + map::WINDOW);
            let found = map::look_up(&self.context.io, &self.cut.upper, start..end).await?;
            for extent in found.extents {
                self.add(&extent).await?;
            }
            self.context.advance((end - start) * 512)?;
            start = end;
        }
        if self.estimate.space > 0 {
            self.estimate.space += MARGIN;
        }
        Ok(self.estimate)
    }

    async fn add(&mut self, extent: &Extent) -> Result<()> {
        let bytes = extent.sectors * 512;
        let Some(place) = extent.place else {
            self.estimate.zero_bytes += bytes;
            return Ok(());
        };
        self.estimate.bytes += bytes;
        let Some(source) = self.cut.upper.get(place.level) else {
            return Ok(());
        };
        let (mut sector, end) = (extent.sector, extent.sector + extent.sectors);
        while sector < end {
            let part_end = self
                .per_block
                .map_or(end, |count| end.min((sector / count + 1) * count));
            let offset = place.offset + (sector - extent.sector) * 512;
            let length = (part_end - sector) * 512;
            let target = self.target_of(sector);
            self.estimate.space += if self.exact {
                new_space(
                    &self.context.io,
                    (source.file, offset..offset + length),
                    target,
                )
                .await?
            } else {
                length.next_multiple_of(UNIT) + UNIT
            };
            sector = part_end;
        }
        Ok(())
    }

    /// The file and byte offset where a sector of the target is, if it has a place. Otherwise its block counts as one that
    /// must be allocated.
    fn target_of(&mut self, sector: u64) -> Option<(u16, u64)> {
        let target = self.cut.lower.first();
        let place = match target.map(|target| (target, &target.layout)) {
            Some((target, Layout::Flat)) => Some((target.file, sector * 512)),
            Some((target, Layout::Blocks(blocks))) => blocks
                .place_of(target.file, sector)
                .map(|place| (place.file, place.data)),
            None => None,
        };
        let block = self.per_block.map(|count| sector / count);
        if place.is_none() && block.is_some() && self.counted != block {
            self.counted = block;
            self.estimate.blocks += 1;
            self.estimate.space += UNIT;
        }
        place
    }
}

/// Bytes that a file system must give for a copy of `source`: those of its bytes that are no hole, where the target has none
/// or no place yet.
async fn new_space(
    io: &Io,
    (file, range): (u16, Range<u64>),
    target: Option<(u16, u64)>,
) -> Result<u64> {
    let mut space = 0;
    let mut offset = range.start;
    while offset < range.end {
        let (hole, end) = run_at(io, file, offset..range.end).await?;
        if !hole {
            space += match target {
                None => (end - offset).next_multiple_of(UNIT) + UNIT,
                Some((file, base)) => {
                    let start = base + (offset - range.start);
                    holes(io, file, start..start + (end - offset)).await?
                }
            };
        }
        offset = end;
    }
    Ok(space)
}

/// Whether a range of a file begins with a hole, and where that ends as far as one look tells.
async fn run_at(io: &Io, file: u16, range: Range<u64>) -> Result<(bool, u64)> {
    let most = (range.end - range.start).min(LOOK);
    let (hole, length) = io.seek_hole(file, range.start, most).await?;
    Ok((hole, range.end.min(range.start + length)))
}

/// Bytes of a file that are holes.
async fn holes(io: &Io, file: u16, range: Range<u64>) -> Result<u64> {
    let mut bytes = 0;
    let mut offset = range.start;
    while offset < range.end {
        let (hole, end) = run_at(io, file, offset..range.end).await?;
        if hole {
            bytes += (end - offset).next_multiple_of(UNIT) + UNIT;
        }
        offset = end;
    }
    Ok(bytes)
}
