//! Making a new, empty image.

use serde::Deserialize;

use super::Context;
use super::new_image::{BLOCK_SIZE, Empty, check_size, device_end};
use crate::error::{Error, Result, errno};
use crate::format::footer::{DiskType, Footer};
use crate::format::timestamp;
use crate::format::uuid::Uuid;
use crate::open::{Driver, FileSpec};

/// A new image.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSpec {
    /// Its path, where nothing is yet, or a block device whose content is lost.
    pub path: String,
    /// [`DiskType::Fixed`] or [`DiskType::Dynamic`]; a differencing image is made by `snapshot`.
    #[serde(rename = "type")]
    pub disk_type: DiskType,
    /// Size of the virtual disk, bytes: a positive multiple of 512, with a BAT at most [`crate::MAX_DYNAMIC_SIZE`].
    pub size: u64,
    /// Size, bytes, up to which the disk can grow without moving anything; of a disk with a BAT.
    #[serde(default)]
    pub max_size: Option<u64>,
    /// Bytes in a block: a power of two from 4 KiB to 256 MiB. Other programs expect the default, 2 MiB.
    #[serde(default = "default_block_size")]
    pub block_size: u32,
    /// The image's identity.
    pub uuid: Uuid,
    /// Time of creation, Unix time in seconds.
    pub now: u64,
}

pub(super) fn default_block_size() -> u32 {
    BLOCK_SIZE
}

pub(super) async fn run(context: &Context, spec: &CreateSpec) -> Result<()> {
    if spec.disk_type == DiskType::Differencing {
        return Err(Error::invalid(
            "type",
            "a differencing image needs a parent",
        ));
    }
    context
        .make_image(&spec.path, Driver::Vhd, async |file| {
            let timestamp = timestamp::from_unix(spec.now);
            let footer = Footer::new(spec.disk_type, spec.size, spec.uuid, timestamp);
            if spec.disk_type == DiskType::Fixed {
                return create_fixed(context, file, &footer).await;
            }
            let image = Empty {
                footer,
                max_size: spec.max_size.unwrap_or(spec.size),
                block_size: spec.block_size,
                parent: None,
            };
            context.write_empty(file, &image).await
        })
        .await
}

/// Makes all sectors of a fixed disk zeros, which take no space in a file, and writes the footer behind them.
async fn create_fixed(context: &Context, file: &FileSpec, footer: &Footer) -> Result<()> {
    let size = footer.current_size;
    check_size(size, i64::MAX.cast_unsigned() - 512)?;
    let end = fixed_end(file, size)?;
    if file.block_device {
        context.clear_footers(file).await?;
        context
            .io
            .punch_all(file.file, [0].into_iter(), end)
            .await?;
    } else {
        context.io.truncate(file.file, end + 512).await?;
    }
    context.write_footers(file, footer, end).await
}

/// Byte offset of the footer of a fixed disk of `size` bytes.
pub(super) fn fixed_end(file: &FileSpec, size: u64) -> Result<u64> {
    if !file.block_device {
        return Ok(size);
    }
    let end = device_end(file)?;
    if size > end {
        return Err(Error {
            errno: errno::ENOSPC,
            ..Error::invalid("file", "the block device is too small for the disk").found(
                file.size,
                format!("at least {} bytes", size.saturating_add(512)),
            )
        });
    }
    Ok(end)
}
