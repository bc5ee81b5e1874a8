//! Changing an image's place in the world: its parent, the size of the file or device that it is in; and dropping its data.

use serde::Deserialize;

use super::Context;
use crate::chain;
use crate::error::{Error, Result};
use crate::image::Layout;
use crate::metadata::Metadata;
use crate::open::{self, Driver};
use crate::parent_link::ParentLink;
use crate::wants::Access;

/// What to change. What is given is done in the order of the fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModifySpec {
    /// Path of the VHD.
    pub path: String,
    /// Make a differencing image the child of another parent. Whether the disk still reads the same is the caller's to know.
    #[serde(default)]
    pub parent: Option<NewParent>,
    /// Bytes that the file, or the part of the block device that is to be kept, has: the footer moves to its end.
    #[serde(default)]
    pub physical_size: Option<u64>,
    /// Drop all blocks: nothing that was written is there any more, and the space is given back.
    #[serde(default)]
    pub drop_data: bool,
}

/// A parent to be.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewParent {
    /// Its path.
    pub path: String,
    /// How to read it; a raw parent has no UUID.
    pub driver: Driver,
}

pub(super) async fn run(context: &Context, spec: &ModifySpec) -> Result<()> {
    // Who reads the image as a parent does not see where its footer is, but would miss its data.
    let access = if spec.drop_data {
        Access::Write
    } else {
        Access::Merge
    };
    let file = context.open_file(&spec.path, Driver::Vhd, access).await?;
    let mut metadata = Metadata::open(&context.io, &file).await?;
    let outcome = async {
        if let Some(parent) = &spec.parent {
            let parent_file = context
                .open_file(&parent.path, parent.driver, Access::Parent)
                .await?;
            let (image, _) = open::open(&context.io, &parent_file).await?;
            // All parents must be there, and the image itself not among them.
            let (chain, _) = chain::open(&context.io, &context.files, &parent_file, |_| {
                Access::Parent
            })
            .await?;
            if chain
                .iter()
                .any(|parent| parent.uuid == metadata.image.uuid)
            {
                return Err(
                    Error::invalid("parent", "the image would be its own ancestor")
                        .found(&parent.path, "an image that has other parents"),
                );
            }
            let link = ParentLink::new(&file, &parent_file, &image);
            metadata.set_parent(&link).await?;
        }
        if let Some(size) = spec.physical_size {
            set_physical_size(&mut metadata, size).await?;
        }
        if spec.drop_data {
            drop_data(context, &mut metadata).await?;
        }
        Ok(())
    };
    outcome.await.map_err(|error| error.in_file(&spec.path))
}

/// Moves the footer to the end of `size` bytes.
async fn set_physical_size(metadata: &mut Metadata, size: u64) -> Result<()> {
    let least = metadata.used_end() + 512;
    let most = metadata.most_bytes();
    if !size.is_multiple_of(512) || size < least || size > most {
        return Err(Error::invalid("size", "the image does not fit")
            .found(size, format!("a multiple of 512 from {least} to {most}")));
    }
    if matches!(metadata.image.layout, Layout::Flat) {
        return Err(Error::invalid(
            "size",
            "the footer of a fixed disk is right behind its data",
        ));
    }
    metadata.move_footer(size - 512).await
}

async fn drop_data(context: &Context, metadata: &mut Metadata) -> Result<()> {
    if matches!(metadata.image.layout, Layout::Flat) {
        return Err(
            Error::invalid("footer", "a fixed disk has no blocks to drop")
                .at(60)
                .found("fixed", "dynamic or differencing"),
        );
    }
    context.begin("dropping blocks", 0);
    // What the batmap calls full must be there: it goes first.
    metadata.empty_batmap().await?;
    metadata.cut_to(0).await?;
    metadata.trim().await?;
    metadata.write_batmap().await
}
