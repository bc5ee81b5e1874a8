//! Making a copy of one image: another disk that begins with what this one holds, with the same parent and a UUID of its own.

use serde::Deserialize;

use super::Context;
use super::create::fixed_end;
use super::new_image::device_end;
use crate::chain;
use crate::error::{Error, Result};
use crate::format::footer::{DiskType, Footer};
use crate::format::uuid::Uuid;
use crate::io::Copier;
use crate::metadata::{Metadata, padded};
use crate::open::{Driver, FileSpec};
use crate::parent_link::{LocatorName, ParentLink};
use crate::wants::Access;

/// Bytes that are searched for a hole at once.
const SEARCH: u64 = 1 << 30;

/// Which image to copy.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloneSpec {
    /// Path of the VHD, which nobody may write meanwhile.
    pub path: String,
    /// Path of the copy, where nothing is yet, or a block device whose content is lost.
    pub target: String,
    /// The copy's identity.
    pub uuid: Uuid,
}

pub(super) async fn run(context: &Context, spec: &CloneSpec) -> Result<()> {
    let file = context
        .open_file(&spec.path, Driver::Vhd, Access::Read)
        .await?;
    let source = Metadata::open(&context.io, &file).await?;
    let footer = Footer {
        uuid: spec.uuid,
        ..source.footer.clone()
    };
    // The copy may be in another folder than its parent's other child.
    let mut parent = None;
    if footer.disk_type == DiskType::Differencing {
        let (chain, _) =
            chain::open(&context.io, &context.files, &file, |_| Access::Parent).await?;
        if let Some(image) = chain.into_iter().nth(1) {
            let driver = match image.uuid {
                Some(_) => Driver::Vhd,
                None => Driver::Aio,
            };
            let file = context
                .open_file(&image.path, driver, Access::Parent)
                .await?;
            parent = Some((file, image));
        }
    }
    context
        .make_image(&spec.target, Driver::Vhd, async |target| {
            if footer.disk_type == DiskType::Fixed {
                return copy_fixed(context, &file, target, &footer).await;
            }
            let link = parent
                .as_ref()
                .map(|(file, image)| ParentLink::new(target, file, image));
            copy_blocks(context, (&file, &source), target, &footer, link.as_ref()).await
        })
        .await
}

async fn copy_fixed(
    context: &Context,
    file: &FileSpec,
    target: &FileSpec,
    footer: &Footer,
) -> Result<()> {
    let end = fixed_end(target, footer.current_size)?;
    prepare(context, target, end).await?;
    context.begin("copying", footer.current_size);
    copy_data(context, file, target, 0..footer.current_size).await?;
    context.write_footers(target, footer, end).await
}

/// Copies everything but the footers to the same places, and puts a header of its own there.
async fn copy_blocks(
    context: &Context,
    (file, source): (&FileSpec, &Metadata),
    target: &FileSpec,
    footer: &Footer,
    link: Option<&ParentLink>,
) -> Result<()> {
    let Some(blocks) = source.blocks() else {
        return Err(Error::invalid("footer", "the image has no blocks"));
    };
    let mut header = blocks.header.clone();
    let mut names: Vec<LocatorName> = Vec::new();
    if let Some(link) = link {
        link.name_in(&mut header);
        names = link.names();
    }
    let limit = if target.block_device {
        Some(device_end(target)?)
    } else {
        None
    };
    let plan = source.plan(&header, &names, limit)?;
    prepare(context, target, plan.end).await?;
    let used = source.used_end();
    context.begin("copying", used);
    // Whole pages are shared where the file system can; the footer's copy at the start must not be there yet.
    copy_data(context, file, target, 512..used.min(4096)).await?;
    copy_data(context, file, target, 4096..used).await?;
    let io = &context.io;
    let names = names.iter().map(|(_, name)| padded(name));
    let mut pieces: Vec<(u64, Vec<u8>)> = plan.names_at.iter().copied().zip(names).collect();
    pieces.push((plan.header_at, plan.header.encode().to_vec()));
    let pieces = pieces.iter().map(|(at, bytes)| (*at, bytes.as_slice()));
    io.write_all("metadata", target.file, pieces).await?;
    let footer = Footer {
        data_offset: plan.header_at,
        ..footer.clone()
    };
    context.write_footers(target, &footer, plan.end).await
}

/// Makes the target zeros up to its footer.
async fn prepare(context: &Context, target: &FileSpec, end: u64) -> Result<()> {
    context.clear_footers(target).await?;
    context.make_zeros(target, end, end + 512).await
}

/// Copies what is no hole in a range of a file to the same place in another one.
async fn copy_data(
    context: &Context,
    source: &FileSpec,
    target: &FileSpec,
    range: std::ops::Range<u64>,
) -> Result<()> {
    let mut copier = Copier::new(&context.io, "data");
    let mut at = range.start;
    let mut outcome = Ok(());
    while at < range.end && outcome.is_ok() {
        let left = (range.end - at).min(SEARCH);
        outcome = match context.io.seek_hole(source.file, at, left).await {
            Ok((true, bytes)) => {
                at += bytes;
                context.advance(bytes)
            }
            Ok((false, bytes)) => {
                let from = at;
                at += bytes;
                match copier
                    .copy((source.file, from), (target.file, from), bytes)
                    .await
                {
                    Ok(()) => context.advance(bytes),
                    failed => failed,
                }
            }
            Err(error) => Err(error),
        };
    }
    copier.finish().await.and(outcome)
}
