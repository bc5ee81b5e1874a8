//! Opening an image: find its footer, read header and BAT, and check that nothing in them can do harm.

use crate::error::{Error, Result};
use crate::format::footer::{self, DiskType, Footer};
use crate::format::header::{self, Header};
use crate::format::{bat, batmap};
use crate::image::{Blocks, Image, Layout, MAX_DYNAMIC_SIZE};
use crate::io::Io;

/// Most BAT entries that are read into memory (64 MiB), against hostile block sizes.
const MAX_BAT_ENTRIES: u64 = 1 << 24;

/// Which driver reads a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        Driver::Vhd => open_vhd(io, spec).await,
    }
    .map_err(|error| error.in_file(&spec.path))
}

fn image(spec: &FileSpec, sectors: u64, layout: Layout) -> Image {
    Image {
        file: spec.file,
        path: spec.path.clone(),
        sectors,
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
        allocated_blocks: 0,
        warnings,
    };
    Ok((image(spec, sectors, Layout::Flat), info))
}

/// The footers of a file, and where its payload ends because of them.
struct Footers {
    footer: Footer,
    /// First byte of the footer at the end, or the file's size without one.
    end: u64,
    primary_is_good: bool,
    backup: Option<Footer>,
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
    let mut warnings = Vec::new();
    if let Ok(footer) = &primary
        && footer.disk_type == DiskType::Fixed
    {
        let footer = footer.clone();
        return Ok(Footers {
            footer,
            end: primary_at,
            primary_is_good: true,
            backup: None,
            warnings,
        });
    }
    let bytes = io
        .read(
            "backup footer",
            spec.file,
            0,
            footer::LENGTH.min(spec.size as usize),
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
    match (primary, backup) {
        (Ok(footer), backup) => {
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
                end: spec.size,
                primary_is_good: false,
                backup,
                warnings,
            })
        }
        // The footer at the end is the one that every VHD has: its error is the one to tell.
        (Err(error), Err(_)) => Err(error),
    }
}

async fn open_vhd(io: &Io, spec: &FileSpec) -> Result<(Image, ImageInfo)> {
    let footers = read_footers(io, spec).await?;
    let footer = footers.footer.clone();
    let sectors = footer.current_size / 512;
    let mut info = ImageInfo {
        sectors,
        disk_type: Some(footer.disk_type),
        block_size: 0,
        uuid: footer.uuid.to_string(),
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
        DiskType::Dynamic => {
            let blocks = open_blocks(io, spec, &footers, &mut info.warnings).await?;
            info.block_size = blocks.header.block_size;
            let used = blocks
                .bat
                .iter()
                .take(blocks.count as usize)
                .filter(|entry| **entry != bat::UNUSED);
            info.allocated_blocks = used.count() as u32;
            Layout::Blocks(Box::new(blocks))
        }
        DiskType::Differencing => {
            return Err(
                Error::invalid("footer", "differencing images are not supported yet")
                    .at(60)
                    .found("type 4", "type 2 or 3"),
            );
        }
    };
    if footer.saved_state != 0 {
        info.warnings
            .push("the footer says that a machine state is saved with this disk".to_owned());
    }
    let mut warnings = footers.warnings;
    warnings.append(&mut info.warnings);
    Ok((image(spec, sectors, layout), ImageInfo { warnings, ..info }))
}

async fn open_blocks(
    io: &Io,
    spec: &FileSpec,
    footers: &Footers,
    warnings: &mut Vec<String>,
) -> Result<Blocks> {
    let footer = &footers.footer;
    if footer.current_size > MAX_DYNAMIC_SIZE {
        return Err(Error::invalid("footer", "too large for a disk with a BAT")
            .at(48)
            .found(footer.current_size, format!("at most {MAX_DYNAMIC_SIZE}")));
    }
    let header_end = inside(
        footers,
        "dynamic header",
        footer.data_offset,
        header::LENGTH as u64,
    )?;
    let bytes = io
        .read(
            "dynamic header",
            spec.file,
            footer.data_offset,
            header::LENGTH,
        )
        .await?;
    let header = Header::decode(&bytes).map_err(|error| error.relative_to(footer.data_offset))?;

    let count = footer.current_size.div_ceil(u64::from(header.block_size));
    if count > u64::from(header.max_table_entries) || count > MAX_BAT_ENTRIES {
        return Err(
            Error::invalid("dynamic header", "the BAT does not fit the disk's size")
                .at(footer.data_offset + 28)
                .found(
                    header.max_table_entries,
                    format!("at least {count}, at most {MAX_BAT_ENTRIES}"),
                ),
        );
    }
    // Only the sectors with entries of the disk's blocks; a BAT may be larger than the disk needs.
    let table_bytes = (count * 4).next_multiple_of(512);
    let table_end = inside(footers, "BAT", header.table_offset, table_bytes)?;
    if overlaps(
        (header.table_offset, table_end),
        (footer.data_offset, header_end),
    ) {
        return Err(
            Error::invalid("dynamic header", "the BAT overlaps the header")
                .at(footer.data_offset + 16)
                .found(header.table_offset, format!("at least {header_end}")),
        );
    }
    let bytes = io
        .read("BAT", spec.file, header.table_offset, table_bytes as usize)
        .await?;
    let mut table = Vec::with_capacity(bytes.len() / 4);
    bat::decode(&bytes, &mut table);

    let batmap_end = find_batmap(io, spec, footers, &header).await?;
    let mut blocks = Blocks::new(footer.clone(), header, table);
    blocks.data_end = check_blocks(&blocks, spec, footers, batmap_end, warnings)?;
    blocks.needs_backup_footer = footers.backup.as_ref() != Some(footer);
    blocks.stale_tail = footers.end > blocks.data_end * 512;
    blocks.needs_footer = !footers.primary_is_good || !spec.size.is_multiple_of(512);
    Ok(blocks)
}

/// First sector behind blktap's batmap, 0 if there is none. What the map says is only a hint, and what it claims about
/// full blocks stays true whatever is written; so it is left alone.
async fn find_batmap(io: &Io, spec: &FileSpec, footers: &Footers, header: &Header) -> Result<u64> {
    let at = (header
        .table_offset
        .saturating_add(u64::from(header.max_table_entries) * 4))
    .next_multiple_of(512);
    if at.saturating_add(batmap::HEADER_LENGTH as u64) > footers.end {
        return Ok(0);
    }
    let bytes = io
        .read("batmap", spec.file, at, batmap::HEADER_LENGTH)
        .await?;
    Ok(batmap::extent(&bytes).map_or(0, |map| {
        map.end.max(at + batmap::HEADER_LENGTH as u64).div_ceil(512)
    }))
}

/// Checks every BAT entry and returns the first sector behind all structures and blocks.
fn check_blocks(
    blocks: &Blocks,
    spec: &FileSpec,
    footers: &Footers,
    batmap_end: u64,
    warnings: &mut Vec<String>,
) -> Result<u64> {
    let (span, file_end) = (blocks.block_span(), footers.end.div_ceil(512));
    let end_of = |offset: u64, length: u64| offset.saturating_add(length).div_ceil(512);
    let metadata = [
        (0, 1),
        (
            blocks.footer.data_offset / 512,
            end_of(blocks.footer.data_offset, header::LENGTH as u64),
        ),
        (
            blocks.header.table_offset / 512,
            end_of(blocks.header.table_offset, u64::from(blocks.count) * 4),
        ),
    ];
    let locators = blocks
        .header
        .locators
        .iter()
        .filter(|locator| locator.is_used());
    let mut data_end = locators
        .map(|locator| end_of(locator.data_offset, locator.space_bytes()))
        .chain(metadata.map(|(_, end)| end))
        // The whole table counts, also the entries past the disk's size.
        .chain([
            end_of(
                blocks.header.table_offset,
                u64::from(blocks.header.max_table_entries) * 4,
            ),
            batmap_end,
        ])
        .map(|end| end.min(file_end))
        .fold(0, u64::max);
    let mut placed: Vec<(u32, u32)> = Vec::new();
    for (block, sector) in (0_u32..)
        .zip(blocks.bat.iter().copied())
        .filter(|(_, sector)| *sector != bat::UNUSED)
    {
        let place = blocks.header.table_offset + u64::from(block) * 4;
        if block >= blocks.count {
            warnings.push(format!("BAT entry {block} is past the end of the disk"));
        }
        let first = u64::from(sector);
        let wrong = |message: &str, expected: String| {
            Error::invalid("BAT", format!("block {block} {message}"))
                .at(place)
                .found(format!("sector {sector}"), expected)
        };
        if let Some((_, end)) = metadata
            .iter()
            .find(|range| overlaps(**range, (first, first + span)))
        {
            return Err(wrong(
                "lies on top of the metadata",
                format!("at least sector {end}"),
            ));
        }
        if first + span > file_end {
            if !spec.read_only || first >= file_end {
                return Err(wrong(
                    "ends behind the end of the file",
                    format!("at most sector {}", file_end.saturating_sub(span)),
                ));
            }
            warnings.push(format!(
                "block {block} ends behind the end of the file and is cut short"
            ));
        }
        data_end = data_end.max((first + span).min(file_end));
        placed.push((sector, block));
    }
    placed.sort_unstable();
    if let Some(pair) = placed
        .windows(2)
        .find(|pair| u64::from(pair[0].0) + span > u64::from(pair[1].0))
    {
        return Err(Error::invalid(
            "BAT",
            format!("blocks {} and {} overlap", pair[0].1, pair[1].1),
        )
        .at(blocks.header.table_offset + u64::from(pair[1].1) * 4)
        .found(
            format!("sector {}", pair[1].0),
            format!("at least sector {}", u64::from(pair[0].0) + span),
        ));
    }
    Ok(data_end)
}

/// Checks that `length` bytes at `offset` are before the footer at the end. Returns their end.
fn inside(footers: &Footers, structure: &'static str, offset: u64, length: u64) -> Result<u64> {
    let end = offset.saturating_add(length);
    if end > footers.end {
        return Err(Error::invalid(structure, "lies behind the end of the file")
            .at(offset)
            .found(format!("end at {end}"), format!("at most {}", footers.end)));
    }
    Ok(end)
}

fn overlaps(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}
