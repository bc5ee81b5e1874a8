//! Who would notice if an image changed: the chain of an image, and which of other files are children of its images.

use serde::{Deserialize, Serialize};

use super::Context;
use crate::chain;
use crate::error::Result;
use crate::format::footer::{self, DiskType, Footer};
use crate::format::header::{self, Header};
use crate::format::uuid::Uuid;
use crate::image::Image;
use crate::open::{self, Driver, FileSpec};
use crate::wants::Access;

/// Which chain, and where its children may be.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChildrenSpec {
    /// Path of the leaf of the chain, a VHD.
    pub path: String,
    /// Paths of files of any kind, none of them in the chain.
    pub files: Vec<String>,
}

/// A chain and its children.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Children {
    /// The chain, leaf first.
    pub chain: Vec<Member>,
    /// Those of the files that are children of images of the chain.
    pub children: Vec<Child>,
}

/// An image of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The path by which it was opened.
    pub path: String,
    /// The same without symbolic links.
    pub real_path: String,
    /// How it is read.
    pub driver: Driver,
    /// Size of its virtual disk, bytes.
    pub size: u64,
}

/// A child of an image of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Child {
    /// Its path.
    pub path: String,
    /// Index of its parent in the chain.
    pub parent: usize,
}

pub(super) async fn run(context: &Context, spec: &ChildrenSpec) -> Result<Children> {
    let access = Access::Inspect;
    let (chain, _) = context
        .open_chain(&spec.path, Driver::Vhd, access, access)
        .await?;
    let mut children = Vec::new();
    context.begin("looking at files", spec.files.len() as u64);
    for path in &spec.files {
        // What can't be opened, or is no VHD, is no child that anybody can read.
        if let Ok(file) = context.open_file(path, Driver::Vhd, access).await {
            let parent = parent_in(context, &file, &chain).await;
            context.files.close(file.file).await;
            children.extend(parent.map(|parent| Child {
                path: path.clone(),
                parent,
            }));
        }
        context.advance(1)?;
    }
    Ok(Children {
        chain: chain.iter().map(member).collect(),
        children,
    })
}

fn member(image: &Image) -> Member {
    Member {
        path: image.path.clone(),
        real_path: image.real_path.clone(),
        driver: if image.uuid.is_some() {
            Driver::Vhd
        } else {
            Driver::Aio
        },
        size: image.sectors * 512,
    }
}

/// Which image of a chain a file has as its parent. It may be damaged otherwise.
async fn parent_in(context: &Context, file: &FileSpec, chain: &[Image]) -> Option<usize> {
    let length = footer::LENGTH as u64;
    if file.size < 3 * length {
        return None;
    }
    let mut footer = None;
    for offset in [0, (file.size - length) / 512 * 512] {
        let bytes = context.io.read("footer", file.file, offset, footer::LENGTH);
        footer = footer.or(Footer::decode(&bytes.await.ok()?).ok());
    }
    let footer = footer.filter(|footer| footer.disk_type == DiskType::Differencing)?;
    let offset = footer.data_offset;
    let bytes = context
        .io
        .read("dynamic header", file.file, offset, header::LENGTH);
    let header = Header::decode(&bytes.await.ok()?).ok()?;
    if header.parent_uuid != Uuid::NIL {
        return chain
            .iter()
            .position(|image| image.uuid == Some(header.parent_uuid));
    }
    // A raw parent has only its name.
    let raw = chain.iter().position(|image| image.uuid.is_none())?;
    let (image, _) = open::open(&context.io, file).await.ok()?;
    let names = chain::candidates(&context.io, &image, file).await.ok()?;
    let is_raw = |name: &String| [&chain[raw].path, &chain[raw].real_path].contains(&name);
    names.iter().any(is_raw).then_some(raw)
}
