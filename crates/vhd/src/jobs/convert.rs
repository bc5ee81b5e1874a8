//! Making a new image, in whichever format, of what a disk holds with all its parents: no more is copied than there is.

use std::ops::Range;

use serde::Deserialize;

use super::Context;
use super::create::fixed_end;
use super::new_image::{BLOCK_SIZE, Blank, Empty, check_size, device_end};
use crate::error::{Error, Result, errno};
use crate::format::bitmap;
use crate::format::footer::{DiskType, Footer};
use crate::format::timestamp;
use crate::format::uuid::Uuid;
use crate::image::Image;
use crate::io::Copier;
use crate::map;
use crate::open::{Driver, FileSpec};
use crate::record::MAX_DATA_MAP;
use crate::wants::Access;

/// Bytes that are searched for a hole at once.
const SEARCH: u64 = 1 << 30;
/// Sectors of zeros that are copied rather than left out, between data.
const GAP: u32 = 128;

/// What a new image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Format {
    /// The disk's sectors, and nothing else.
    Raw,
    /// A fixed VHD.
    Fixed,
    /// A dynamic VHD.
    Dynamic,
}

/// What to convert.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConvertSpec {
    /// Path of the image, which nobody may write meanwhile.
    pub path: String,
    /// How to read it.
    pub driver: Driver,
    /// Path of the new image, where nothing is yet, or a block device whose content is lost.
    pub target: String,
    /// What it becomes.
    pub format: Format,
    /// Its identity; of no use to a raw file.
    pub uuid: Uuid,
    /// Time of creation, Unix time in seconds.
    pub now: u64,
}

pub(super) async fn run(context: &Context, spec: &ConvertSpec) -> Result<()> {
    let (chain, info) = context
        .open_chain(&spec.path, spec.driver, Access::Read, Access::Parent)
        .await?;
    let size = info.sectors * 512;
    let driver = match spec.format {
        Format::Raw => Driver::Aio,
        Format::Fixed | Format::Dynamic => Driver::Vhd,
    };
    let timestamp = timestamp::from_unix(spec.now);
    context
        .make_image(&spec.target, driver, async |target| {
            context.begin("converting", size);
            match spec.format {
                Format::Raw => to_raw(context, &chain, target, size).await,
                Format::Fixed => {
                    let footer = Footer::new(DiskType::Fixed, size, spec.uuid, timestamp);
                    to_fixed(context, &chain, target, &footer).await
                }
                Format::Dynamic => {
                    let footer = Footer::new(DiskType::Dynamic, size, spec.uuid, timestamp);
                    to_dynamic(context, &chain, target, footer).await
                }
            }
        })
        .await
}

async fn to_raw(context: &Context, chain: &[Image], target: &FileSpec, size: u64) -> Result<()> {
    if target.block_device && size > target.size {
        return Err(Error {
            errno: errno::ENOSPC,
            ..Error::invalid("file", "the block device is too small for the disk")
                .found(target.size, format!("at least {size} bytes"))
        });
    }
    context.make_zeros(target, size, size).await?;
    let place = |sector: u64| Ok(sector * 512);
    copy_disk(context, chain, target.file, size / 512, u64::MAX, place).await?;
    context.io.sync(target.file).await
}

async fn to_fixed(
    context: &Context,
    chain: &[Image],
    target: &FileSpec,
    footer: &Footer,
) -> Result<()> {
    let size = footer.current_size;
    check_size(size, i64::MAX.cast_unsigned() - 512)?;
    let end = fixed_end(target, size)?;
    context.clear_footers(target).await?;
    context.make_zeros(target, end, end + 512).await?;
    let place = |sector: u64| Ok(sector * 512);
    copy_disk(context, chain, target.file, size / 512, u64::MAX, place).await?;
    context.write_footers(target, footer, end).await
}

/// Blocks get their places in the order of the disk, when the first data of each come.
async fn to_dynamic(
    context: &Context,
    chain: &[Image],
    target: &FileSpec,
    footer: Footer,
) -> Result<()> {
    let size = footer.current_size;
    let image = Empty {
        footer,
        max_size: size,
        block_size: BLOCK_SIZE,
        parent: None,
    };
    let limit = if target.block_device {
        Some(device_end(target)?)
    } else {
        None
    };
    let mut blank = Blank::new(&image)?;
    if let Some(end) = limit {
        context.clear_footers(target).await?;
        context.make_zeros(target, end, end).await?;
    }
    let per_block = u64::from(BLOCK_SIZE) / 512;
    let place = |sector: u64| {
        let block = (sector / per_block) as usize;
        let first = blank.place(block, limit)?;
        Ok((first + 1 + sector % per_block) * 512)
    };
    copy_disk(context, chain, target.file, size / 512, per_block, place).await?;
    context.write_blank(target, blank).await
}

/// Copies all data of a disk to where `place` says that a sector goes, which is asked once for each `step` sectors at
/// least, in ascending order.
async fn copy_disk(
    context: &Context,
    chain: &[Image],
    target: u16,
    sectors: u64,
    step: u64,
    mut place: impl FnMut(u64) -> Result<u64>,
) -> Result<()> {
    let mut copier = Copier::new(&context.io, "data");
    let mut start = 0;
    let outcome = async {
        while start < sectors {
            let window = start..sectors.min(start + map::WINDOW);
            start = window.end;
            let length = (window.end - window.start) * 512;
            for extent in map::resolve(&context.io, chain, window).await? {
                let Some(found) = extent.place else { continue };
                let Some(image) = chain.get(found.level) else {
                    continue;
                };
                let bytes = found.offset..found.offset + extent.sectors * 512;
                for run in data_runs(context, image, bytes).await? {
                    let mut at = run.start;
                    while at < run.end {
                        let sector = extent.sector + (at - found.offset) / 512;
                        let rest = step - sector % step;
                        let part = (run.end - at).min(rest.saturating_mul(512));
                        let to = place(sector)?;
                        copier.copy((image.file, at), (target, to), part).await?;
                        at += part;
                    }
                }
            }
            context.advance(length)?;
        }
        Ok(())
    };
    let outcome = outcome.await;
    copier.finish().await.and(outcome)
}

/// The parts of a range of bytes in an image's file that are not zeros, neighbours joined.
async fn data_runs(context: &Context, image: &Image, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let io = &context.io;
    let mut pieces = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let (hole, bytes) = io
            .seek_hole(image.file, at, (range.end - at).min(SEARCH))
            .await?;
        let end = at + bytes;
        while at < end && !hole {
            let length = (end - at).min(MAX_DATA_MAP);
            pieces.push((image.file, at, length));
            at += length;
        }
        at = end;
    }
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut looked_at = pieces.iter();
    let take = |map: &[u8]| {
        // A bitmap comes for each piece, in order.
        let Some((_, offset, length)) = looked_at.next() else {
            return;
        };
        let (mut sector, count) = (0, (length / 512) as u32);
        while sector < count {
            let (data, run) = bitmap::run(map, sector, count - sector);
            let start = offset + u64::from(sector) * 512;
            let end = start + u64::from(run) * 512;
            match runs.last_mut() {
                _ if !data => {}
                Some(last) if start - last.end <= u64::from(GAP) * 512 => last.end = end,
                _ => runs.push(start..end),
            }
            sector += run;
        }
    };
    io.data_map_each(pieces.iter().copied(), take)
        .await
        .map_err(|error| error.in_file(&image.path))?;
    Ok(runs)
}
