//! A target that is smaller than the child's disk becomes as large, before anything is merged: zeros show behind its old
//! end, as they did through the child.
//!
//! A raw file grows as such, and a disk with a BAT as one that is open does (`grow.rs`), which those who read the target as a
//! parent don't notice. Where its BAT has no room, blocks move first (`resize.rs`), for which the job must have the target for
//! itself. All of that leaves a chain that reads as before, whenever it is cut off; the job, started again, goes on.

use super::{CoalesceSpec, Cut};
use crate::chain;
use crate::error::{Error, Result};
use crate::grow::{self, most_bytes};
use crate::image::Layout;
use crate::jobs::{Context, resize};
use crate::metadata::Metadata;
use crate::open::Driver;
use crate::target::Target;
use crate::wants::Access;

/// Refuses targets that are too small and can't grow.
pub(super) fn check(cut: &Cut) -> Result<()> {
    let Some(target) = cut.lower.first() else {
        return Ok(());
    };
    let size = cut.sectors * 512;
    let most = match &target.layout {
        Layout::Blocks(blocks) => most_bytes(blocks.header.block_size),
        Layout::Flat if target.uuid.is_none() && !target.block_device => u64::MAX,
        // A fixed VHD has one footer, without which, if it is cut off while that moves, its children don't open.
        Layout::Flat => target.sectors * 512,
    };
    if most < size {
        return Err(
            Error::invalid("footer", "the parent is smaller than its child")
                .found(
                    format!("{} bytes", target.sectors * 512),
                    format!("at least {size}; resize it first"),
                )
                .in_file(&target.path),
        );
    }
    Ok(())
}

/// Makes a raw target as large as the child's disk, or room for that in the BAT of a VHD.
pub(super) async fn prepare(context: &Context, spec: &CoalesceSpec, cut: &mut Cut) -> Result<()> {
    let sectors = cut.sectors;
    let Some(target) = cut
        .lower
        .first_mut()
        .filter(|target| target.sectors < sectors)
    else {
        return Ok(());
    };
    match &target.layout {
        Layout::Flat => {
            context
                .io
                .truncate(target.file, sectors * 512)
                .await
                .map_err(|error| error.in_file(&target.path))?;
            target.sectors = sectors;
            Ok(())
        }
        Layout::Blocks(blocks) if grow::room(blocks) < sectors * 512 => {
            let entries = (sectors * 512).div_ceil(u64::from(blocks.header.block_size));
            // `check` has seen to it that there are not too many.
            extend_table(context, spec, cut, entries as u32).await
        }
        Layout::Blocks(_) => Ok(()),
    }
}

/// Makes room in the target's BAT, for which the target is opened alone and then again as it was. What is copied stays
/// open, so that nobody changes it meanwhile.
async fn extend_table(
    context: &Context,
    spec: &CoalesceSpec,
    cut: &mut Cut,
    entries: u32,
) -> Result<()> {
    for image in &cut.lower {
        context.files.close(image.file).await;
    }
    let file = context
        .files
        .open(&cut.target, Driver::Vhd, Access::Write)
        .await
        .map_err(|errno| in_the_way(errno, &cut.target))?;
    let outcome = async {
        let mut metadata = Metadata::open(&context.io, &file).await?;
        resize::make_room(context, &mut metadata, entries).await
    };
    let outcome = outcome.await;
    context.files.close(file.file).await;
    outcome.map_err(|error| error.in_file(&cut.target))?;
    let access = match spec.output {
        None => Access::Merge,
        Some(_) => Access::Write,
    };
    let file = context.open_file(&cut.target, Driver::Vhd, access).await?;
    let before = cut.lower.first().and_then(|image| image.uuid);
    (cut.lower, _) = chain::open(&context.io, &context.files, &file, |_| Access::Parent).await?;
    if cut.lower.first().and_then(|image| image.uuid) != before {
        return Err(Error::invalid("footer", "it was replaced meanwhile").in_file(&cut.target));
    }
    Ok(())
}

fn in_the_way(errno: i32, path: &str) -> Error {
    let message = "can't be opened alone, to make room for its child's size in its BAT";
    Error::file(errno, message).in_file(path)
}

/// Makes the open target as large as the child's disk.
///
/// # Errors
/// Those of growing an open disk.
pub(super) async fn open_target(context: &Context, target: &Target, sectors: u64) -> Result<()> {
    if target.core().borrow_mut().leaf().sectors >= sectors {
        return Ok(());
    }
    context.begin("growing", 0);
    grow::grow(target.core(), &context.io, sectors * 512).await
}
