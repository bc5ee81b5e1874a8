//! Opening a chain: a differencing image names its parent, which the host looks for, until an image has none.

use crate::error::{Error, Result, errno};
use crate::format::footer::DiskType;
use crate::format::uuid::Uuid;
use crate::image::{Image, Layout};
use crate::io::Io;
use crate::open::{self, Driver, FileSpec, ImageInfo};
use crate::wants::{Access, Files};

/// Most images in a chain. Storage managers stop at 30.
const MAX_DEPTH: usize = 256;

/// Most BAT entries of a chain that are held in memory (128 MiB): more than 30 of the largest disks have together.
const MAX_CHAIN_ENTRIES: u64 = 1 << 25;

/// Opens `leaf` and all its parents, each with the access that its level (1 and up) has. Returns the images, leaf first, and what the leaf is.
///
/// # Errors
/// Those of opening an image; a parent that can't be found or isn't the one that its child names; a loop.
pub(crate) async fn open(
    io: &Io,
    files: &Files,
    leaf: &FileSpec,
    access: impl Fn(usize) -> Access,
) -> Result<(Vec<Image>, ImageInfo)> {
    let (image, mut info) = open::open(io, leaf).await?;
    let mut uuids = vec![image.uuid];
    let mut chain = vec![image];
    let mut spec = leaf.clone();
    while let Some(child) = chain.last()
        && let Some(parent) = parent_of(child)
    {
        let loops = !parent.is_raw() && uuids.contains(&Some(parent.uuid));
        if loops || chain.len() == MAX_DEPTH {
            let message = if loops {
                "the chain of parents is a loop"
            } else {
                "the chain of parents is too long"
            };
            return Err(Error::invalid("dynamic header", message)
                .at(parent.header_offset + 40)
                .found(
                    format!("parent {}", parent.uuid),
                    format!("an image that is not in the chain, at most {MAX_DEPTH}"),
                )
                .in_file(&spec.path));
        }
        let candidates = candidates(io, child, &spec)
            .await
            .map_err(|error| error.in_file(&spec.path))?;
        let (image, parent_info, parent_spec) = find(
            io,
            files,
            &parent,
            &candidates,
            &spec.path,
            access(chain.len()),
        )
        .await?;
        let notes = parent_info
            .warnings
            .iter()
            .map(|warning| format!("parent {}: {warning}", parent_spec.path));
        info.warnings.extend(notes);
        uuids.push(image.uuid);
        chain.push(image);
        let entries: u64 = chain.iter().map(Image::bat_entries).sum();
        if entries > MAX_CHAIN_ENTRIES {
            return Err(
                Error::invalid("BAT", "the BATs of the chain are too large together")
                    .found(entries, format!("at most {MAX_CHAIN_ENTRIES} entries"))
                    .in_file(&parent_spec.path),
            );
        }
        spec = parent_spec;
    }
    info.depth = chain.len() as u32;
    Ok((chain, info))
}

/// Whom a child names.
struct Parent {
    uuid: Uuid,
    name: String,
    header_offset: u64,
}

impl Parent {
    /// blktap's way to name a parent that is no VHD and has no UUID.
    fn is_raw(&self) -> bool {
        self.uuid == Uuid::NIL
    }
}

fn parent_of(child: &Image) -> Option<Parent> {
    match &child.layout {
        Layout::Blocks(blocks) if blocks.footer.disk_type == DiskType::Differencing => {
            Some(Parent {
                uuid: blocks.header.parent_uuid,
                name: blocks.header.parent_name(),
                header_offset: blocks.footer.data_offset,
            })
        }
        _ => None,
    }
}

/// Paths at which the parent of `child` may be, in the order in which they are tried: each locator's as it is and in the
/// child's folder, then the name in the header. The folder is the one where the file really is, then the one of its path.
pub(crate) async fn candidates(io: &Io, child: &Image, spec: &FileSpec) -> Result<Vec<String>> {
    let Layout::Blocks(blocks) = &child.layout else {
        return Ok(Vec::new());
    };
    let mut paths: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        for path in candidates_of(spec, name) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    };
    for locator in blocks
        .header
        .locators
        .iter()
        .filter(|locator| locator.is_used())
    {
        // Longer names than any file system has are not read.
        let length = locator.data_length.min(64 << 10) as usize;
        let data = io
            .read("parent locator", child.file, locator.data_offset, length)
            .await?;
        if let Some(name) = locator.path(&data) {
            add(&name);
        }
    }
    add(&blocks.header.parent_name().replace('\\', "/"));
    Ok(paths)
}

/// Paths at which a parent may be that the child in `spec` knows by `name`, in the order in which they are tried.
pub(crate) fn candidates_of(spec: &FileSpec, name: &str) -> Vec<String> {
    let in_folder_of = |path: &str, name: &str| match path.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    };
    let base = name.rsplit('/').next().unwrap_or(name);
    let relative = name.strip_prefix("./").unwrap_or(name);
    let absolute = name.starts_with('/').then(|| name.to_owned());
    let names = if absolute.is_some() {
        [base, base]
    } else {
        [relative, base]
    };
    let in_folders = names.into_iter().flat_map(|name| {
        [&spec.real_path, &spec.path]
            .into_iter()
            .filter(|path| !path.is_empty())
            .map(move |path| in_folder_of(path, name))
    });
    let mut paths: Vec<String> = Vec::new();
    for path in absolute.into_iter().chain(in_folders) {
        if !base.is_empty() && !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// The first of the candidates that is the parent.
async fn find(
    io: &Io,
    files: &Files,
    parent: &Parent,
    candidates: &[String],
    child_path: &str,
    access: Access,
) -> Result<(Image, ImageInfo, FileSpec)> {
    let driver = if parent.is_raw() {
        Driver::Aio
    } else {
        Driver::Vhd
    };
    let mut failures = Vec::new();
    let mut worst = errno::ENOENT;
    for path in candidates {
        let spec = match files.open(path, driver, access).await {
            Ok(spec) => spec,
            Err(errno::ENOENT) => {
                failures.push(format!("{path} does not exist"));
                continue;
            }
            Err(error) => {
                worst = error;
                failures.push(format!("{path} can't be opened (errno {error})"));
                continue;
            }
        };
        match open::open(io, &spec).await {
            Ok((image, info)) if parent.is_raw() || image.uuid == Some(parent.uuid) => {
                return Ok((image, info, spec));
            }
            Ok((image, _)) => {
                worst = errno::EINVAL;
                let found = image.uuid.unwrap_or_default();
                failures.push(format!(
                    "{path} is another image (UUID {found}, expected {})",
                    parent.uuid
                ));
            }
            Err(error) => {
                worst = error.errno;
                failures.push(error.to_string());
            }
        }
        files.close(spec.file).await;
    }
    if failures.is_empty() {
        failures.push("the image names none".to_owned());
    }
    Err(Error {
        errno: worst,
        ..Error::invalid(
            "parent",
            format!("no parent is found for this image: {}", failures.join("; ")),
        )
        .at(parent.header_offset + 40)
        .found(
            format!("parent {} ({})", parent.uuid, parent.name),
            "an image with that UUID",
        )
        .in_file(child_path)
    })
}
