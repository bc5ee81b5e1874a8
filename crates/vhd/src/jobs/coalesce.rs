//! Coalescing: what a child has of its own moves into its parent, which then reads by itself as the child does.
//!
//! The parent is written the way a guest writes a disk, so its own promises hold at every moment; and whoever reads through
//! the child never sees a difference, since the child has all that is copied. Copying twice does no harm: after a crash
//! the job is simply started again.

use serde::{Deserialize, Serialize};

use super::Context;
use crate::chain;
use crate::error::{Error, Result, errno};
use crate::image::Layout;
use crate::map;
use crate::open::Driver;
use crate::wants::Access;

/// Which image to merge into its parent.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CoalesceSpec {
    /// Path of the child, a differencing VHD.
    pub path: String,
}

/// What was merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Coalesced {
    /// Sectors that were copied.
    pub sectors: u64,
}

pub(super) async fn run(context: &Context, spec: &CoalesceSpec) -> Result<Coalesced> {
    let child = context
        .open_file(&spec.path, Driver::Vhd, Access::Read)
        .await?;
    // The parent of the parent is read only where the parent has to be read.
    let access = |level| match level {
        1 => Access::Merge,
        _ => Access::Parent,
    };
    let (mut chain, _) = chain::open(&context.io, &context.files, &child, access).await?;
    let parents = chain.split_off(1);
    let (Some(image), Some(parent)) = (chain.first(), parents.first()) else {
        return Err(Error {
            errno: errno::EINVAL,
            ..Error::invalid("footer", "the image has no parent to be merged into")
        }
        .in_file(&spec.path));
    };
    let sectors = image.sectors;
    if parent.sectors < sectors {
        return Err(
            Error::invalid("footer", "the parent is smaller than its child")
                .found(parent.sectors * 512, format!("at least {}", sectors * 512))
                .in_file(&parent.path),
        );
    }
    let total = match &image.layout {
        Layout::Blocks(blocks) => {
            u64::from(blocks.allocated()) * u64::from(blocks.header.block_size)
        }
        Layout::Flat => sectors * 512,
    };
    context.begin("merging", total);
    let mut target = context.open_target(parents);
    let mut copied = 0;
    let mut start = 0;
    let outcome = loop {
        if start >= sectors {
            break Ok(());
        }
        let window = start..sectors.min(start + map::WINDOW);
        start = window.end;
        let extents = match map::resolve(&context.io, &chain, window).await {
            Ok(extents) => extents,
            Err(error) => break Err(error),
        };
        let mut failed = Ok(());
        for extent in extents {
            let Some(place) = extent.place else { continue };
            failed = target
                .copy(extent.sector, extent.sectors, child.file, place.offset)
                .await
                .and_then(|()| context.advance(extent.sectors * 512));
            if failed.is_err() {
                break;
            }
            copied += extent.sectors;
        }
        if failed.is_err() {
            break failed;
        }
    };
    let closed = context.close_target(target).await;
    outcome.and(closed)?;
    Ok(Coalesced { sectors: copied })
}
