//! Telling what BAT and bitmaps of an image say, block by block.

use serde::{Deserialize, Serialize};

use super::Context;
use super::info::{hex, no_blocks};
use crate::error::{Error, Result, errno};
use crate::format::bat;
use crate::image::Layout;
use crate::open::Driver;
use crate::wants::Access;

/// Which blocks to tell of.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BlocksSpec {
    /// Path of the image.
    pub path: String,
    /// The first block.
    pub block: u32,
    /// How many; those behind the last block of the disk don't count.
    pub count: u32,
    /// Tell their bitmaps too; [`MAX_BITMAPS`] blocks at most then.
    #[serde(default)]
    pub bitmaps: bool,
}

/// Most bitmaps that are told at once.
pub const MAX_BITMAPS: u32 = 1 << 12;

/// What BAT and bitmaps say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockTable {
    /// Blocks of the virtual disk.
    pub blocks: u32,
    /// Sectors of data in a block.
    pub sectors_per_block: u32,
    /// Sectors of a bitmap.
    pub bitmap_sectors: u32,
    /// BAT entries of the blocks: the sector of the file where the block's bitmap is, 0xffffffff for one that isn't there.
    pub entries: Vec<u32>,
    /// The blocks' bitmaps in hexadecimal digits, empty for those that aren't there.
    pub bitmaps: Vec<String>,
}

pub(super) async fn run(context: &Context, spec: &BlocksSpec) -> Result<BlockTable> {
    let (file, image, _) = context
        .open_image(&spec.path, Driver::Vhd, Access::Inspect)
        .await?;
    let Layout::Blocks(blocks) = &image.layout else {
        return Err(no_blocks(&spec.path));
    };
    if spec.bitmaps && spec.count > MAX_BITMAPS {
        return Err(Error {
            errno: errno::EINVAL,
            ..Error::invalid("job", "too many bitmaps at once")
        }
        .found(spec.count, format!("at most {MAX_BITMAPS}")));
    }
    let first = spec.block.min(blocks.count) as usize;
    let end = spec.block.saturating_add(spec.count).min(blocks.count) as usize;
    let entries = blocks.bat.get(first..end).unwrap_or_default().to_vec();
    let mut bitmaps = vec![String::new(); if spec.bitmaps { entries.len() } else { 0 }];
    if spec.bitmaps {
        let mut allocated = (0..entries.len()).filter(|index| entries[*index] != bat::UNUSED);
        let offsets = entries
            .iter()
            .filter(|entry| **entry != bat::UNUSED)
            .map(|entry| u64::from(*entry) * 512);
        let take = |bytes: &[u8]| {
            if let Some(bitmap) = allocated.next().and_then(|index| bitmaps.get_mut(index)) {
                *bitmap = hex(bytes);
            }
        };
        context
            .io
            .read_each("bitmap", file.file, offsets, blocks.bitmap_bytes(), take)
            .await
            .map_err(|error| error.in_file(&spec.path))?;
    }
    Ok(BlockTable {
        blocks: blocks.count,
        sectors_per_block: blocks.sectors_per_block,
        bitmap_sectors: blocks.bitmap_sectors,
        entries,
        bitmaps,
    })
}
