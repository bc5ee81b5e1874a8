//! Giving all blocks of a disk their places in its file, so that no write has to find one: empty, or with all data that the
//! disk holds.

use serde::Deserialize;

use super::Context;
use crate::chain;
use crate::error::{Error, Result};
use crate::format::footer::DiskType;
use crate::map;
use crate::metadata::Metadata;
use crate::open::Driver;
use crate::wants::Access;

/// Which disk to fill.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FillSpec {
    /// Path of the VHD, which has a BAT.
    pub path: String,
    /// Only give places to blocks; the data of parents stay where they are.
    #[serde(default)]
    pub bitmaps_only: bool,
    /// The first sector of the disk that matters.
    #[serde(default)]
    pub from: u64,
    /// The sector behind the last that matters; the end of the disk by default.
    #[serde(default)]
    pub to: Option<u64>,
}

pub(super) async fn run(context: &Context, spec: &FillSpec) -> Result<()> {
    let file = context
        .open_file(&spec.path, Driver::Vhd, Access::Write)
        .await?;
    let mut metadata = Metadata::open(&context.io, &file).await?;
    let sectors = metadata.image.sectors;
    let (from, to) = (spec.from, spec.to.unwrap_or(sectors));
    let Some(blocks) = metadata.blocks() else {
        return Err(Error::invalid("footer", "all of a fixed disk is there").in_file(&spec.path));
    };
    if from >= to || to > sectors {
        return Err(Error::invalid("disk", "no such sectors")
            .found(format!("{from} to {to}"), format!("at most {sectors}"))
            .in_file(&spec.path));
    }
    let per_block = u64::from(blocks.sectors_per_block);
    let has_parent = metadata.footer.disk_type == DiskType::Differencing;
    let range = (from / per_block) as u32..to.div_ceil(per_block) as u32;
    context.begin("giving blocks places", 0);
    let allocated = metadata.allocate(range, !spec.bitmaps_only).await;
    allocated.map_err(|error| error.in_file(&spec.path))?;
    if spec.bitmaps_only || !has_parent {
        return Ok(());
    }
    let file = metadata.file();
    let (images, _) = chain::open(&context.io, &context.files, &file, |_| Access::Parent).await?;
    let (again, _) = chain::open(&context.io, &context.files, &file, |_| Access::Parent).await?;
    context.begin("copying", (to - from) * 512);
    let mut target = context.open_target(again);
    let mut outcome = Ok(());
    let mut start = from;
    while start < to && outcome.is_ok() {
        let window = start..to.min(start + map::WINDOW);
        start = window.end;
        outcome = async {
            for extent in map::resolve(&context.io, &images, window).await? {
                match extent.place {
                    Some(place) if place.level == 0 => {}
                    Some(place) => {
                        let file = images.get(place.level).map_or(0, |image| image.file);
                        target
                            .copy(extent.sector, extent.sectors, file, place.offset)
                            .await?;
                    }
                    None => target.zero(extent.sector, extent.sectors).await?,
                }
                context.advance(extent.sectors * 512)?;
            }
            Ok(())
        }
        .await;
    }
    let closed = context.close_target(target).await;
    outcome.and(closed)
}
