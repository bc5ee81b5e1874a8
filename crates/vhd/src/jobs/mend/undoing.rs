//! Undoing a repair: what was overwritten goes back, the last change first, if nothing else has changed the image since.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::log::{FINGERPRINT, Undo, fingerprint};
use super::{Context, read};
use crate::error::{Error, Result};
use crate::open::{Driver, FileSpec};
use crate::wants::Access;

/// Which repair to undo.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoSpec {
    /// Path of the undo file.
    pub undo: String,
    /// Path of the image, if it is not in the folder of the undo file by the name that it had.
    #[serde(default)]
    pub path: Option<String>,
}

/// What was undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Undone {
    /// Path of the image.
    pub path: String,
    /// Changes that were taken back.
    pub changes: u64,
}

pub(crate) async fn run(context: &Context, spec: &UndoSpec) -> Result<Undone> {
    let log = context
        .open_file(&spec.undo, Driver::Aio, Access::Write)
        .await?;
    let undo = read(context, &log).await?.unwrap_or_default();
    let path = match &spec.path {
        Some(path) => path.clone(),
        None => beside(&spec.undo, &undo.name)?,
    };
    let changes = undo.changes.len() as u64;
    if changes > 0 {
        let image = context.open_file(&path, Driver::Vhd, Access::Write).await?;
        verify(context, &image, &undo).await?;
        restore(context, &image, &undo)
            .await
            .map_err(|error| error.in_file(&path))?;
    }
    context.files.close(log.file).await;
    context.files.remove(&spec.undo).await?;
    Ok(Undone { path, changes })
}

/// The image beside an undo file.
fn beside(undo: &str, name: &str) -> Result<String> {
    if name.is_empty() || name.contains('/') || name == ".." {
        return Err(Error::invalid("undo file", "it has no name of an image").in_file(undo));
    }
    Ok(match undo.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    })
}

/// Checks that an image is in a state that the repair left, whether or not it came to its end: each sector that it changed is
/// as one of the changes left or found it, and what the repair left alone is as it was.
///
/// # Errors
/// Something else has changed the image.
pub(super) async fn verify(context: &Context, image: &FileSpec, undo: &Undo) -> Result<()> {
    let end = undo
        .changes
        .iter()
        .map(|change| change.offset.saturating_add(change.after.len() as u64))
        .fold(undo.size, u64::max);
    if image.size < undo.size || image.size > end {
        return Err(Error::invalid(
            "image",
            "it has changed since the repair: its size is another one",
        )
        .found(image.size, format!("{} to {end}", undo.size))
        .in_file(&image.path));
    }
    if guard(context, image, &undo.guarded).await? != undo.guard {
        return Err(Error::invalid(
            "image",
            "it has changed since the repair: somebody has used it",
        )
        .in_file(&image.path));
    }
    let mut allowed: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for change in &undo.changes {
        for (index, after) in (0_u64..).zip(change.after.chunks(512)) {
            let at = index as usize * 512;
            let before = change.before.get(at..).unwrap_or_default();
            let before = &before[..before.len().min(after.len())];
            let states = allowed.entry(change.offset + index * 512).or_default();
            states.extend([before.to_vec(), after.to_vec()]);
            // A file that grew without this sector has zeros there.
            if before.len() < after.len() {
                let mut grown = before.to_vec();
                grown.resize(after.len(), 0);
                states.push(grown);
            }
        }
    }
    for (offset, states) in allowed {
        let length = image.size.saturating_sub(offset).min(512) as usize;
        let length = length.min(states.iter().map(Vec::len).max().unwrap_or_default());
        let bytes = context.io.read("image", image.file, offset, length).await;
        let bytes = bytes.map_err(|error| error.in_file(&image.path))?;
        let fits = |state: &Vec<u8>| {
            *state == bytes || state.len() < bytes.len() && bytes.starts_with(state)
        };
        if !states.iter().any(fits) {
            return Err(Error::invalid("image", "it has changed since the repair")
                .at(offset)
                .found("other bytes", "those before or after the repair")
                .in_file(&image.path));
        }
    }
    Ok(())
}

/// The fingerprint of ranges of an image.
///
/// # Errors
/// An I/O error.
pub(super) async fn guard(
    context: &Context,
    image: &FileSpec,
    ranges: &[(u64, u64)],
) -> Result<u64> {
    const PART: u64 = 1 << 20;
    let mut sum = FINGERPRINT;
    for (offset, length) in ranges {
        let end = offset.saturating_add(*length).min(image.size);
        let mut at = *offset;
        while at < end {
            let part = (end - at).min(PART);
            let bytes = context
                .io
                .read("image", image.file, at, part as usize)
                .await
                .map_err(|error| error.in_file(&image.path))?;
            sum = fingerprint(sum, &bytes);
            at += part;
        }
    }
    Ok(sum)
}

/// Puts back what was overwritten, each change durable before the next one.
async fn restore(context: &Context, image: &FileSpec, undo: &Undo) -> Result<()> {
    context.begin("undoing", undo.changes.len() as u64);
    let io = &context.io;
    for change in undo.changes.iter().rev() {
        if !change.before.is_empty() {
            io.write("image", image.file, change.offset, &change.before)
                .await?;
            io.sync(image.file).await?;
        }
        context.advance(1)?;
    }
    if image.size > undo.size && !image.block_device {
        io.truncate(image.file, undo.size).await?;
        io.sync(image.file).await?;
    }
    Ok(())
}
