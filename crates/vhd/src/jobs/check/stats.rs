//! How many sectors the images of a chain have, and how many of them their parents don't have: what `vhd-util check -s` tells.

use serde::Serialize;

use super::table::Table;
use crate::error::Result;
use crate::format::bat;
use crate::format::bitmap;
use crate::jobs::Context;

/// Sectors that are looked at together, in all images.
const WINDOW: u64 = 1 << 18;

/// Sectors of an image of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Sectors in its blocks.
    pub allocated: u64,
    /// Sectors that its bitmaps say are there.
    pub written: u64,
    /// Of those, the ones that the image below doesn't have.
    pub not_in_parent: u64,
    /// Of those, the ones that no image below has.
    pub not_in_ancestors: u64,
}

/// An image with a BAT whose sectors are counted.
pub(crate) struct Counted {
    pub(crate) file: u16,
    /// Bytes in the file.
    pub(crate) size: u64,
    pub(crate) table: Table,
}

/// Counts sectors of all images of a chain, leaf first.
pub(crate) async fn count(context: &Context, chain: &[Counted]) -> Result<Vec<Stats>> {
    let sectors_of = |image: &Counted| {
        let blocks = image.table.count;
        u64::from(blocks) * u64::from(image.table.sectors_per_block)
    };
    let mut stats = vec![Stats::default(); chain.len()];
    for (image, stats) in chain.iter().zip(&mut stats) {
        stats.allocated =
            u64::from(image.table.allocated()) * u64::from(image.table.sectors_per_block);
    }
    let end = chain.iter().map(sectors_of).max().unwrap_or_default();
    context.begin("counting sectors", end);
    let mut start = 0;
    while start < end {
        let bytes = (WINDOW / 8) as usize;
        let mut below = vec![0_u8; bytes];
        let mut all_below = vec![0_u8; bytes];
        for (image, stats) in chain.iter().zip(&mut stats).rev() {
            let bits = window(context, image, start).await?;
            let count = |other: &[u8]| -> u64 {
                bits.iter()
                    .zip(other)
                    .map(|(mine, other)| u64::from((mine & !other).count_ones()))
                    .sum()
            };
            stats.written += count(&vec![0; bytes]);
            stats.not_in_parent += count(&below);
            stats.not_in_ancestors += count(&all_below);
            all_below
                .iter_mut()
                .zip(&bits)
                .for_each(|(all, mine)| *all |= mine);
            below = bits;
        }
        context.advance(WINDOW.min(end - start))?;
        start += WINDOW;
    }
    Ok(stats)
}

/// The sectors that an image has of a window.
async fn window(context: &Context, image: &Counted, start: u64) -> Result<Vec<u8>> {
    let table = &image.table;
    let mut bits = vec![0_u8; (WINDOW / 8) as usize];
    let per_block = u64::from(table.sectors_per_block);
    let end = (start + WINDOW).min(u64::from(table.count) * per_block);
    let blocks = (start / per_block)..end.div_ceil(per_block).max(start / per_block);
    let length = table.bitmap_sectors as usize * 512;
    // A block that is past the end of the file has no sectors.
    let places: Vec<(u64, u64)> = blocks
        .filter_map(|block| match table.entries.get(block as usize) {
            None | Some(&bat::UNUSED) => None,
            Some(sector) => Some((block, u64::from(*sector))),
        })
        .filter(|(_, sector)| sector * 512 + length as u64 <= image.size)
        .collect();
    let offsets = places.iter().map(|(_, sector)| sector * 512);
    let mut next = places.iter();
    let take = |bitmap: &[u8]| {
        let Some((block, _)) = next.next() else {
            return;
        };
        let first = block * per_block;
        let mut at = first.max(start);
        let limit = (first + per_block).min(start + WINDOW);
        while at < limit {
            let (set, count) = bitmap::run(bitmap, (at - first) as u32, (limit - at) as u32);
            if set {
                bitmap::set_range(&mut bits, (at - start) as u32, count);
            }
            at += u64::from(count);
        }
    };
    context
        .io
        .read_each("bitmap", image.file, offsets, length, take)
        .await?;
    Ok(bits)
}
