//! Making a child of an image: a snapshot, or rather the disk that goes on after it.

use serde::{Deserialize, Serialize};

use super::Context;
use super::modify::NewParent;
use super::new_image::{BLOCK_SIZE, Empty};
use crate::chain;
use crate::error::{Error, Result, errno};
use crate::format::footer::{DiskType, Footer};
use crate::format::timestamp;
use crate::format::uuid::Uuid;
use crate::image::{Image, Layout};
use crate::open::Driver;
use crate::parent_link::ParentLink;
use crate::wants::Access;

/// A new child.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotSpec {
    /// Path of the child, where nothing is yet, or a block device whose content is lost.
    pub path: String,
    /// Its parent, which nobody may write any more.
    pub parent: NewParent,
    /// Size of the child, bytes, at least that of the parent, which is the default (for a raw one rounded up to whole
    /// blocks, as blktap does it).
    #[serde(default)]
    pub size: Option<u64>,
    /// Size, bytes, up to which the child can grow without moving anything.
    #[serde(default)]
    pub max_size: Option<u64>,
    /// Name the parent even if it holds nothing of its own, instead of the next of its own parents that does.
    #[serde(default)]
    pub keep_empty: bool,
    /// Fail with `ENOSPC` if the parent's chain has this many images already.
    #[serde(default)]
    pub depth_limit: Option<u32>,
    /// The child's identity.
    pub uuid: Uuid,
    /// Time of creation, Unix time in seconds.
    pub now: u64,
}

/// The child that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Path of its parent.
    pub parent: String,
    /// Size of the child, bytes.
    pub size: u64,
    /// Images in its chain, itself included.
    pub depth: u32,
}

pub(super) async fn run(context: &Context, spec: &SnapshotSpec) -> Result<Snapshot> {
    let (path, driver) = (&spec.parent.path, spec.parent.driver);
    let named = context.open_file(path, driver, Access::Parent).await?;
    let (chain, _) = chain::open(&context.io, &context.files, &named, |_| Access::Parent).await?;
    let skipped = if spec.keep_empty {
        0
    } else {
        empty_images(&chain)
    };
    let (Some(leaf), Some(target)) = (chain.first(), chain.get(skipped)) else {
        return Err(Error::invalid("parent", "there is none").in_file(path));
    };
    let depth = (chain.len() - skipped) as u32;
    if let Some(limit) = spec.depth_limit.filter(|limit| depth >= *limit) {
        return Err(Error {
            errno: errno::ENOSPC,
            ..Error::invalid("parent", "its chain is too deep for another snapshot")
                .found(format!("{depth} images"), format!("less than {limit}"))
        }
        .in_file(path));
    }
    let mut parent_file = named;
    if skipped > 0 {
        let driver = match target.uuid {
            Some(_) => Driver::Vhd,
            None => Driver::Aio,
        };
        parent_file = context
            .open_file(&target.path, driver, Access::Parent)
            .await?;
    }
    let least = leaf.sectors * 512;
    let default = match leaf.uuid {
        Some(_) => least,
        None => least.next_multiple_of(u64::from(BLOCK_SIZE)),
    };
    let size = spec.size.unwrap_or(default);
    if size < least {
        return Err(
            Error::invalid("size", "the child would be smaller than its parent")
                .found(size, format!("at least {least}"))
                .in_file(&spec.path),
        );
    }
    let outcome = context
        .make_image(&spec.path, Driver::Vhd, async |file| {
            let link = ParentLink::new(file, &parent_file, target);
            let timestamp = timestamp::from_unix(spec.now);
            let image = Empty {
                footer: Footer::new(DiskType::Differencing, size, spec.uuid, timestamp),
                max_size: spec.max_size.unwrap_or(size),
                block_size: BLOCK_SIZE,
                parent: Some(&link),
            };
            context.write_empty(file, &image).await
        })
        .await;
    outcome.map(|()| Snapshot {
        parent: target.path.clone(),
        size,
        depth: depth + 1,
    })
}

/// How many images at the leaf's end of a chain hold nothing of their own: each has a parent, of the same size.
fn empty_images(chain: &[Image]) -> usize {
    chain
        .windows(2)
        .take_while(|pair| match &pair[0].layout {
            Layout::Blocks(blocks) => blocks.allocated() == 0 && pair[0].sectors == pair[1].sectors,
            Layout::Flat => false,
        })
        .count()
}
