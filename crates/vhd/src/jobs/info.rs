//! Describing an image and the chain below it, as far as it can be opened.

use serde::{Deserialize, Serialize};

use super::Context;
use crate::chain;
use crate::error::Result;
use crate::image::{Image, Layout};
use crate::open::Driver;
use crate::wants::Access;

/// Which image to describe.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InfoSpec {
    /// Its path.
    pub path: String,
    /// How to read it.
    pub driver: Driver,
}

/// An image of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDescription {
    /// The path by which it was opened.
    pub path: String,
    /// `fixed`, `dynamic`, `differencing` or `raw`.
    #[serde(rename = "type")]
    pub disk_type: String,
    /// Size of the virtual disk, bytes.
    pub size: u64,
    /// Its UUID; empty for a raw file.
    pub uuid: String,
    /// Bytes in a block; 0 without a BAT.
    pub block_size: u32,
    /// Blocks of the virtual disk; 0 without a BAT.
    pub blocks: u32,
    /// Blocks that are in this file; 0 without a BAT.
    pub allocated_blocks: u32,
}

pub(super) async fn run(context: &Context, spec: &InfoSpec) -> Result<Vec<ImageDescription>> {
    let leaf = context
        .open_file(&spec.path, spec.driver, Access::Inspect)
        .await?;
    let (images, _) = chain::open(&context.io, &context.files, &leaf, |_| Access::Inspect).await?;
    Ok(images.iter().map(describe).collect())
}

fn describe(image: &Image) -> ImageDescription {
    let (disk_type, block_size, blocks, allocated_blocks) = match &image.layout {
        Layout::Flat => {
            let disk_type = if image.uuid.is_some() { "fixed" } else { "raw" };
            (disk_type.to_owned(), 0, 0, 0)
        }
        Layout::Blocks(blocks) => (
            blocks.footer.disk_type.to_string(),
            blocks.header.block_size,
            blocks.count,
            blocks.allocated(),
        ),
    };
    ImageDescription {
        path: image.path.clone(),
        disk_type,
        size: image.sectors * 512,
        uuid: image.uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        block_size,
        blocks,
        allocated_blocks,
    }
}
