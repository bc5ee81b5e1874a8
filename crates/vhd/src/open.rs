//! Opening an image: find its footer, read header and BAT, and check that nothing in them can do harm.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::footer::{self, DiskType, Footer};
use crate::format::uuid::Uuid;
use crate::image::{Image, Layout};
use crate::io::Io;
use crate::open_blocks;

/// Which driver reads a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A VHD.
    Vhd,
    /// A raw file, tapdisk's `aio`.
    Aio,
}

/// What the host knows of a file that it has opened.
#[derive(Clone, Debug)]
pub struct FileSpec {
    /// How to read it.
    pub driver: Driver,
    /// Its name, for errors.
    pub path: String,
    /// The host's number of the file.
    pub file: u16,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it is a block device, which can't grow.
    pub block_device: bool,
    /// Whether nothing may be written to it.
    pub read_only: bool,
    /// Its path without symbolic links, if the host knows it: names of parents are relative to the folder there.
    pub real_path: String,
    /// When it was modified last, Unix time in seconds; 0 if the host doesn't tell.
    pub modified: u64,
}

/// What an open image is, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Size of the virtual disk, sectors.
    pub sectors: u64,
    /// The VHD's type; `None` for a raw file.
    pub disk_type: Option<DiskType>,
    /// Bytes in a block; 0 without a BAT.
    pub block_size: u32,
    /// The image's UUID, empty for a raw file.
    pub uuid: String,
    /// Images in the chain, itself included.
    pub depth: u32,
    /// Blocks that are allocated; 0 without a BAT.
    pub allocated_blocks: u32,
    /// What is odd about the image, though it can be used.
    pub warnings: Vec<String>,
}

/// Reads what is needed to use `spec`'s image.
///
/// # Errors
/// An I/O error, or the first structure that can't be accepted, with its place. Nothing is written.
pub(crate) async fn open(io: &Io, spec: &FileSpec) -> Result<(Image, ImageInfo)> {
    match spec.driver {
        Driver::Aio => open_raw(spec),
        Driver::Vhd => open_vhd(io, spec)
            .await
            .map(|(image, info, _)| (image, info)),
    }
    .map_err(|error| error.in_file(&spec.path))
}

fn image(spec: &FileSpec, sectors: u64, uuid: Option<Uuid>, layout: Layout) -> Image {
    Image {
        file: spec.file,
        path: spec.path.clone(),
        real_path: spec.real_path.clone(),
        file_size: spec.size,
        modified: spec.modified,
        block_device: spec.block_device,
        sectors,
        uuid,
        layout,
    }
}

fn open_raw(spec: &FileSpec) -> Result<(Image, ImageInfo)> {
    if spec.size < 512 {
        return Err(Error::invalid("raw image", "smaller than a sector")
            .found(spec.size, "at least 512 bytes"));
    }
    let sectors = spec.size / 512;
    let mut warnings = Vec::new();
    if !spec.size.is_multiple_of(512) {
        warnings.push(format!(
            "the last {} bytes are less than a sector and are not served",
            spec.size % 512
        ));
    }
    let info = ImageInfo {
        sectors,
        disk_type: None,
        block_size: 0,
        uuid: String::new(),
        depth: 1,
        allocated_blocks: 0,
        warnings,
    };
    Ok((image(spec, sectors, None, Layout::Flat), info))
}

/// The footers of a file, and where its payload ends because of them.
pub(crate) struct Footers {
    pub(crate) footer: Footer,
    /// First byte of the footer at the end, or the file's size without one.
    pub(crate) end: u64,
    pub(crate) primary_is_good: bool,
    pub(crate) backup: Option<Footer>,
    warnings: Vec<String>,
}

async fn read_footers(io: &Io, spec: &FileSpec) -> Result<Footers> {
    let (legacy, rest) = (footer::LEGACY_LENGTH as u64, spec.size % 512);
    let length = if rest == legacy {
        legacy
    } else {
        footer::LENGTH as u64
    };
    if spec.size < length {
        return Err(
            Error::invalid("file", "too small for a VHD").found(spec.size, "at least 511 bytes")
        );
    }
    let primary_at = if rest == legacy {
        spec.size - legacy
    } else {
        (spec.size - length) / 512 * 512
    };
    let bytes = io
        .read("footer", spec.file, primary_at, length as usize)
        .await?;
    let primary = Footer::decode(&bytes).map_err(|error| error.relative_to(primary_at));
    let primary_is_poisoned = bytes.starts_with(&footer::POISON);
    let mut warnings = Vec::new();
    let bytes = io
        .read(
            "backup footer",
            spec.file,
            0,
            (footer::LENGTH as u64).min(spec.size) as usize,
        )
        .await?;
    let backup = Footer::decode(&bytes).and_then(|footer| {
        if footer.disk_type == DiskType::Fixed {
            return Err(
                Error::invalid("footer", "a fixed disk's footer at the start of the file").at(0),
            );
        }
        Ok(footer)
    });
    if let Ok(footer) = &primary
        && footer.disk_type == DiskType::Fixed
    {
        // A dynamic image that lost its footer ends with data of its guest, who may have put this footer there to be
        // shown the image's file instead of its disk.
        if backup.is_ok() {
            return Err(Error::invalid(
                "footer",
                "the file ends like a fixed disk and begins like a dynamic one",
            )
            .at(primary_at + 60)
            .found("type 2", "the type of the footer at offset 0"));
        }
        let footer = footer.clone();
        return Ok(Footers {
            footer,
            end: primary_at,
            primary_is_good: true,
            backup: None,
            warnings,
        });
    }
    // Blocks may be on their way from one place to another, though the other footer tells nothing of it.
    if let (true, Err(error)) = (primary_is_poisoned, &primary) {
        return Err(error.clone());
    }
    if let (true, Err(error)) = (bytes.starts_with(&footer::POISON), &backup) {
        return Err(error.clone());
    }
    match (primary, backup) {
        (Ok(mut footer), backup) => {
            if let Ok(backup) = &backup
                && backup.hides_in_backup()
            {
                footer.set_hidden(backup.is_hidden());
            }
            match &backup {
                Err(error) => warnings.push(format!("backup {error}")),
                Ok(backup) if *backup != footer => {
                    warnings.push("primary and backup footers differ".to_owned())
                }
                Ok(_) => {}
            }
            Ok(Footers {
                footer,
                end: primary_at,
                primary_is_good: true,
                backup: backup.ok(),
                warnings,
            })
        }
        (Err(error), Ok(backup)) => {
            warnings.push(format!("primary {error}; using the backup footer"));
            let (footer, backup) = (backup.clone(), Some(backup));
            Ok(Footers {
                footer,
                // On a device the place of the footer stays its place.
                end: if spec.block_device {
                    primary_at
                } else {
                    spec.size
                },
                primary_is_good: false,
                backup,
                warnings,
            })
        }
        // The footer at the end is the one that every VHD has: its error is the one to tell.
        (Err(error), Err(_)) => Err(error),
    }
}

/// Reads what is needed to use a VHD, and where its footers are.
pub(crate) async fn open_vhd(io: &Io, spec: &FileSpec) -> Result<(Image, ImageInfo, Footers)> {
    let mut footers = read_footers(io, spec).await?;
    let footer = footers.footer.clone();
    let sectors = footer.current_size / 512;
    let mut info = ImageInfo {
        sectors,
        disk_type: Some(footer.disk_type),
        block_size: 0,
        uuid: footer.uuid.to_string(),
        depth: 1,
        allocated_blocks: 0,
        warnings: Vec::new(),
    };
    let layout = match footer.disk_type {
        DiskType::Fixed => {
            if footer.current_size > footers.end {
                return Err(Error::invalid("footer", "the disk is larger than its file")
                    .at(footers.end + 48)
                    .found(footer.current_size, format!("at most {}", footers.end)));
            }
            Layout::Flat
        }
        DiskType::Dynamic | DiskType::Differencing => {
            let blocks = open_blocks::open(io, spec, &footers, &mut info.warnings).await?;
            info.block_size = blocks.header.block_size;
            info.allocated_blocks = blocks.allocated();
            Layout::Blocks(Box::new(blocks))
        }
    };
    if footer.saved_state != 0 {
        info.warnings
            .push("the footer says that a machine state is saved with this disk".to_owned());
    }
    let mut warnings = std::mem::take(&mut footers.warnings);
    warnings.append(&mut info.warnings);
    Ok((
        image(spec, sectors, Some(footer.uuid), layout),
        ImageInfo { warnings, ..info },
        footers,
    ))
}
