//! Opening a chain: a differencing image names its parent, which the host looks for, until an image has none.

use std::cell::RefCell;
use std::rc::Rc;

use crate::error::{Error, Result, errno};
use crate::format::footer::DiskType;
use crate::format::uuid::Uuid;
use crate::image::{Image, Layout, MAX_BAT_ENTRIES};
use crate::io::{Io, until};
use crate::open::{self, Driver, FileSpec, ImageInfo};

/// Most images in a chain. Storage managers stop at 30.
const MAX_DEPTH: usize = 256;

/// What a job wants of the host that only the host can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// Open this file, a candidate for a parent, for reading; answer with [`crate::Engine::provide`].
    Open {
        /// Path of the file, absolute if the leaf's was.
        path: String,
        /// How it will be read.
        driver: Driver,
    },
    /// Close this file, which turned out not to be the parent; answer with [`crate::Engine::provide`] and any error.
    Close {
        /// The host's number of it.
        file: u16,
    },
}

/// Where a job and the host exchange wants and answers.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) want: Option<Want>,
    pub(crate) answer: Option<std::result::Result<FileSpec, i32>>,
}

async fn ask(files: &Rc<RefCell<Files>>, want: Want) -> std::result::Result<FileSpec, i32> {
    *files.borrow_mut() = Files {
        want: Some(want),
        answer: None,
    };
    until(|| files.borrow().answer.is_some()).await;
    files.borrow_mut().answer.take().unwrap_or(Err(errno::EIO))
}

/// Opens `leaf` and all its parents. Returns the images, leaf first, and what the leaf is.
///
/// # Errors
/// Those of opening an image; a parent that can't be found or isn't the one that its child names; a loop.
pub(crate) async fn open(
    io: &Io,
    files: &Rc<RefCell<Files>>,
    leaf: &FileSpec,
) -> Result<(Vec<Image>, ImageInfo)> {
    let (image, mut info) = open::open(io, leaf).await?;
    let mut uuids = vec![image.uuid];
    let mut chain = vec![image];
    let mut path = leaf.path.clone();
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
                .in_file(&path));
        }
        let candidates = candidates(io, child, &path)
            .await
            .map_err(|error| error.in_file(&path))?;
        let (image, parent_info, parent_path) =
            find(io, files, &parent, &candidates, &path).await?;
        let notes = parent_info
            .warnings
            .iter()
            .map(|warning| format!("parent {parent_path}: {warning}"));
        info.warnings.extend(notes);
        uuids.push(image.uuid);
        chain.push(image);
        let entries: u64 = chain.iter().map(Image::bat_entries).sum();
        if entries > MAX_BAT_ENTRIES {
            return Err(
                Error::invalid("BAT", "the BATs of the chain are too large together")
                    .found(entries, format!("at most {MAX_BAT_ENTRIES} entries"))
                    .in_file(&parent_path),
            );
        }
        path = parent_path;
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
/// child's folder, then the name in the header.
async fn candidates(io: &Io, child: &Image, child_path: &str) -> Result<Vec<String>> {
    let Layout::Blocks(blocks) = &child.layout else {
        return Ok(Vec::new());
    };
    let folder = child_path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut paths: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        let base = name.rsplit('/').next().unwrap_or(name);
        let relative = name.strip_prefix("./").unwrap_or(name);
        let in_folder = |name: &str| {
            if child_path.contains('/') {
                format!("{folder}/{name}")
            } else {
                name.to_owned()
            }
        };
        let tries = if name.starts_with('/') {
            [name.to_owned(), in_folder(base)]
        } else {
            [in_folder(relative), in_folder(base)]
        };
        for path in tries {
            if !base.is_empty() && !paths.contains(&path) {
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

/// The first of the candidates that is the parent.
async fn find(
    io: &Io,
    files: &Rc<RefCell<Files>>,
    parent: &Parent,
    candidates: &[String],
    child_path: &str,
) -> Result<(Image, ImageInfo, String)> {
    let driver = if parent.is_raw() {
        Driver::Aio
    } else {
        Driver::Vhd
    };
    let mut failures = Vec::new();
    let mut worst = errno::ENOENT;
    for path in candidates {
        let spec = match ask(
            files,
            Want::Open {
                path: path.clone(),
                driver,
            },
        )
        .await
        {
            Ok(spec) => FileSpec {
                driver,
                path: path.clone(),
                read_only: true,
                ..spec
            },
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
                return Ok((image, info, path.clone()));
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
        // Whatever closing comes to, the file is of no more use.
        let _ = ask(files, Want::Close { file: spec.file }).await;
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
