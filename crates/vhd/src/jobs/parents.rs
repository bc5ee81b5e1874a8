//! Finding the file of a parent by what its child says of it, without looking into it.

use super::Context;
use crate::error::{Error, Result, errno};
use crate::format::header::Header;
use crate::format::locator::ParentLocator;
use crate::format::uuid::Uuid;
use crate::io::Io;
use crate::open::{Driver, FileSpec};
use crate::wants::Access;

/// Longer names than any file system has are not read.
const MAX_NAME: u32 = 64 << 10;

/// A parent's file, open for inspection.
pub(super) struct Found {
    /// An absolute name as the child has it; else the file's real path.
    pub(super) path: String,
    pub(super) file: FileSpec,
}

/// The name in a locator of an image that starts at byte `start` of its file, if it can be read.
pub(super) async fn locator_name(
    io: &Io,
    file: u16,
    start: u64,
    locator: &ParentLocator,
) -> Option<String> {
    let length = locator.data_length.min(MAX_NAME) as usize;
    let at = start.saturating_add(locator.data_offset);
    let data = io.read("parent locator", file, at, length).await.ok()?;
    locator.path(&data)
}

/// The first of the names in a child's locators that is there: absolute, or relative to the folder of the child.
///
/// # Errors
/// The host's error for the last name; `EINVAL` without names.
pub(super) async fn find(
    context: &Context,
    child: &FileSpec,
    header: &Header,
    names: impl Iterator<Item = String>,
) -> Result<Found> {
    let driver = if header.parent_uuid == Uuid::NIL {
        Driver::Aio
    } else {
        Driver::Vhd
    };
    let folder = match child.real_path.rsplit_once('/') {
        Some((folder, _)) => folder,
        None => ".",
    };
    let mut failures: Vec<String> = Vec::new();
    let mut worst = errno::EINVAL;
    for name in names {
        let absolute = name.starts_with('/').then(|| name.clone());
        let relative = format!("{folder}/{}", name.strip_prefix("./").unwrap_or(&name));
        for path in absolute.iter().cloned().chain([relative]) {
            match context.files.open(&path, driver, Access::Inspect).await {
                Ok(file) => {
                    let path = if absolute.as_ref() == Some(&path) {
                        path
                    } else {
                        file.real_path.clone()
                    };
                    return Ok(Found { path, file });
                }
                Err(error) => {
                    worst = error;
                    let failure = format!("{path} (errno {error})");
                    if !failures.contains(&failure) {
                        failures.push(failure);
                    }
                }
            }
        }
    }
    if failures.is_empty() {
        failures.push("no locator names one".to_owned());
    }
    Err(Error {
        errno: worst,
        ..Error::invalid(
            "parent locators",
            format!("the parent is not found: {}", failures.join(", ")),
        )
    })
}
