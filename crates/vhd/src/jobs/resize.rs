//! Making a disk larger or smaller, while nobody has it open.
//!
//! A disk with a BAT grows as an open one does (`grow.rs`) where its BAT has room; else the first blocks move behind the last
//! one, and the BAT, the batmap and the locators get their room (`metadata/extend_table.rs`). It shrinks when its footers say
//! so, each one sector; then the blocks behind its end go. So whatever a power cut leaves is a disk of the old size or of the
//! new one, and the job, started again, finishes what is missing.

use serde::Deserialize;

use super::Context;
use super::new_image::check_size;
use crate::chain;
use crate::error::{Error, Result};
use crate::format::footer::Footer;
use crate::format::geometry::Geometry;
use crate::grow;
use crate::image::Layout;
use crate::metadata::{Metadata, lost_footer};
use crate::open::Driver;
use crate::wants::Access;

/// Which disk is to have which size.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResizeSpec {
    /// Path of the VHD.
    pub path: String,
    /// Size of the virtual disk, bytes: a positive multiple of 512.
    pub size: u64,
    /// Fail rather than move blocks to make room for a larger BAT.
    #[serde(default)]
    pub fast: bool,
}

pub(super) async fn run(context: &Context, spec: &ResizeSpec) -> Result<()> {
    let mut file = context
        .open_file(&spec.path, Driver::Vhd, Access::Write)
        .await?;
    lost_footer::restore(&context.io, &mut file).await?;
    let mut metadata = Metadata::open(&context.io, &file).await?;
    let resized = resize(context, &mut metadata, spec).await;
    resized.map_err(|error| error.in_file(&spec.path))?;
    if metadata.blocks().is_none() || metadata.footer.current_size >= spec.size {
        return Ok(());
    }
    let file = metadata.file();
    let (chain, _) = chain::open(&context.io, &context.files, &file, |_| Access::Parent).await?;
    context.begin("growing", 0);
    let target = context.open_target(chain);
    let outcome = grow::grow(target.core(), &context.io, spec.size).await;
    let closed = context.close_target(target).await;
    outcome.and(closed)
}

/// Everything but the growing of a disk with a BAT.
async fn resize(context: &Context, metadata: &mut Metadata, spec: &ResizeSpec) -> Result<()> {
    let Layout::Blocks(blocks) = &metadata.image.layout else {
        check_size(spec.size, metadata.most_bytes().saturating_sub(512))?;
        context.begin("resizing", 0);
        return metadata.resize_fixed(spec.size).await;
    };
    check_size(spec.size, grow::most_bytes(blocks.header.block_size))?;
    let block_size = u64::from(blocks.header.block_size);
    let entries = spec.size.div_ceil(block_size) as u32;
    let room = blocks.header.max_table_entries;
    if spec.size > metadata.footer.current_size {
        if entries > room && spec.fast {
            return Err(Error::invalid("size", "the BAT has no room for it").found(
                spec.size,
                format!("at most {}", u64::from(room) * block_size),
            ));
        }
        if entries > room {
            make_room(context, metadata, entries).await?;
        }
        return Ok(());
    }
    context.begin("dropping blocks", 0);
    metadata.empty_batmap().await?;
    let footer = Footer {
        current_size: spec.size,
        geometry: Geometry::for_sectors(spec.size / 512),
        ..metadata.footer.clone()
    };
    if footer != metadata.footer || !metadata.primary_is_good || !metadata.backup_is_good {
        metadata.write_footer(&footer).await?;
    }
    metadata.cut_to(entries).await?;
    metadata.trim().await?;
    metadata.write_batmap().await
}

/// Makes room in an image's BAT for `entries` entries. What the disk holds and its size stay as they are, at every moment.
///
/// # Errors
/// Those of moving blocks, and an I/O error, after which it can be started again.
pub(super) async fn make_room(
    context: &Context,
    metadata: &mut Metadata,
    entries: u32,
) -> Result<()> {
    context.begin("moving blocks", 0);
    // What the BAT names behind the end of the disk would become a part of it.
    let count = metadata.blocks().map_or(0, |blocks| blocks.count);
    metadata.drop_blocks(count).await?;
    metadata.extend_table(entries).await
}
