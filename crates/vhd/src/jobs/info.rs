//! Describing an image, and the parents below it as far as they can be found, though it be damaged: a structure that is wrong
//! is told as it is, with what is wrong. Nothing but what is asked for is read.

use serde::{Deserialize, Serialize};

use super::Context;
use super::parents::{self, Found};
use crate::error::{Error, Result, errno};
use crate::format::batmap::{self, Batmap};
use crate::format::dump::{self, FooterDump, HeaderDump, decimal};
use crate::format::footer;
use crate::format::header::{self, Header};
use crate::image::{Layout, MAX_BAT_ENTRIES};
use crate::io::Io;
use crate::open::{self, Driver, FileSpec};
use crate::wants::Access;

/// Most images of a chain that are described.
const MAX_DEPTH: usize = 256;
/// Types of disks in a footer.
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Which image to describe, and how much of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InfoSpec {
    /// Its path.
    pub path: String,
    /// How to read it.
    pub driver: Driver,
    /// Only the copy of the footer at the start and the header behind it, for looking at many images.
    #[serde(default)]
    pub fast: bool,
    /// With `fast`: where the image starts in the file, bytes. For logical volumes that are not active.
    #[serde(default)]
    pub start: u64,
    /// Use the copy of the footer at the start, whatever the one at the end says.
    #[serde(default)]
    pub backup: bool,
    /// What the BAT tells: how many blocks there are, and where the data end.
    #[serde(default)]
    pub bat: bool,
    /// The batmap's map as well as its header.
    #[serde(default)]
    pub batmap: bool,
    /// Look for the parent.
    #[serde(default)]
    pub parent: bool,
    /// Describe the parents too, all of them.
    #[serde(default)]
    pub parents: bool,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// With which structure.
    pub structure: &'static str,
    /// In words.
    pub message: String,
    /// The errno value (positive) that stands for it.
    pub errno: i32,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self {
            structure: error.structure,
            message: error.to_string(),
            errno: error.errno,
        }
    }
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDescription {
    /// The path by which it was opened.
    pub path: String,
    /// The same without symbolic links.
    pub real_path: String,
    /// Bytes of the file or block device.
    pub file_size: u64,
    /// Whether it is a block device.
    pub block_device: bool,
    /// `fixed`, `dynamic`, `differencing` or `raw`; empty if it is none of these.
    #[serde(rename = "type")]
    pub disk_type: &'static str,
    /// Size of the virtual disk, bytes.
    #[serde(serialize_with = "decimal")]
    pub size: u64,
    /// Why the image can't be used, if so.
    pub problem: Option<Problem>,
    /// Why the footer at the end can't be used, though the copy at the start can.
    pub footer_problem: Option<Problem>,
    /// The footer that counts; the one at the end if none is right. A raw file has none.
    pub footer: Option<FooterDump>,
    /// The dynamic header.
    pub header: Option<HeaderDump>,
    /// The parent locators that are used.
    pub locators: Vec<LocatorDescription>,
    /// blktap's batmap.
    pub batmap: Option<BatmapDescription>,
    /// What the BAT tells.
    pub bat: Option<BatDescription>,
    /// Why the BAT can't be read, if it was to be.
    pub bat_problem: Option<Problem>,
    /// Where the parent is, if it was looked for and found.
    pub parent: Option<String>,
    /// Why it was not found.
    pub parent_problem: Option<Problem>,
}

/// A parent locator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocatorDescription {
    /// Its place in the header's table.
    pub index: usize,
    /// Platform code, four characters.
    pub platform: String,
    /// Room for the name, as it is stored.
    pub data_space: u32,
    /// Bytes of the name.
    pub data_length: u32,
    /// Byte offset of the name in the file.
    #[serde(serialize_with = "decimal")]
    pub data_offset: u64,
    /// The name, if it can be read.
    pub name: Option<String>,
}

/// blktap's batmap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatmapDescription {
    /// Byte offset of the header in the file.
    #[serde(serialize_with = "decimal")]
    pub header_offset: u64,
    /// Byte offset of the map.
    #[serde(serialize_with = "decimal")]
    pub offset: u64,
    /// Sectors of the map.
    pub sectors: u32,
    /// Its version.
    pub version: u32,
    /// blktap's marker.
    pub marker: u8,
    /// Nonce and hash of the key of an encrypted disk, in hexadecimal digits.
    pub key_hash: Option<(String, String)>,
    /// Stored checksum.
    pub checksum: u32,
    /// What it should be, if the map was to be read and can be.
    pub computed_checksum: Option<u32>,
    /// The map in hexadecimal digits, if it was to be read and can be.
    pub map: Option<String>,
    /// What is wrong.
    pub problem: Option<Problem>,
}

/// What the BAT tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatDescription {
    /// Blocks of the virtual disk.
    pub blocks: u32,
    /// Blocks that are in the file.
    pub allocated: u32,
    /// Bytes up to the end of the last block and the last structure that is no footer.
    pub end: u64,
}

pub(super) async fn run(context: &Context, spec: &InfoSpec) -> Result<Vec<ImageDescription>> {
    let file = context
        .open_file(&spec.path, spec.driver, Access::Inspect)
        .await?;
    let mut images = Vec::new();
    let mut next = Some(file);
    while let Some(file) = next.take() {
        let (mut image, header) = describe(&context.io, &file, spec).await?;
        if let Some(header) = header
            && image.disk_type == "differencing"
            && (spec.parent || spec.parents)
        {
            let names = image
                .locators
                .iter()
                .filter_map(|locator| locator.name.clone());
            match parents::find(context, &file, &header, names).await {
                Ok(Found { path, file: parent }) => {
                    image.parent = Some(path);
                    if spec.parents && images.len() + 1 < MAX_DEPTH {
                        next = Some(parent);
                    } else {
                        context.files.close(parent.file).await;
                    }
                }
                Err(error) => image.parent_problem = Some(error.in_file(&file.path).into()),
            }
        }
        context.files.close(file.file).await;
        images.push(image);
    }
    if images.len() == MAX_DEPTH {
        return Err(Error::invalid("parent", "the chain of parents is too long")
            .found(images.len(), format!("less than {MAX_DEPTH}"))
            .in_file(&spec.path));
    }
    Ok(images)
}

/// Describes one image. Returns its header too, if that is right.
async fn describe(
    io: &Io,
    file: &FileSpec,
    spec: &InfoSpec,
) -> Result<(ImageDescription, Option<Header>)> {
    let mut image = ImageDescription {
        path: file.path.clone(),
        real_path: file.real_path.clone(),
        file_size: file.size,
        block_device: file.block_device,
        disk_type: "",
        size: 0,
        problem: None,
        footer_problem: None,
        footer: None,
        header: None,
        locators: Vec::new(),
        batmap: None,
        bat: None,
        bat_problem: None,
        parent: None,
        parent_problem: None,
    };
    if file.driver == Driver::Aio {
        image.disk_type = "raw";
        image.size = file.size / 512 * 512;
        return Ok((image, None));
    }
    let in_file = |error: Error| error.in_file(&file.path);
    find_footer(io, file, spec, &mut image)
        .await
        .map_err(in_file)?;
    let Some(footer) = image.footer.clone() else {
        return Ok((image, None));
    };
    image.size = footer.current_size;
    image.disk_type = match footer.disk_type {
        FIXED => "fixed",
        DYNAMIC => "dynamic",
        DIFFERENCING => "differencing",
        _ => "",
    };
    if image.disk_type == "fixed" && image.problem.is_none() {
        return Ok((image, None));
    }
    let start = if spec.fast { spec.start } else { 0 };
    let header = read_header(io, file, start, &footer, &mut image)
        .await
        .map_err(in_file)?;
    if let Some(header) = &header
        && image.problem.is_none()
    {
        read_locators(io, file, start, header, &mut image).await;
        if footer.creator_application == "tap" && footer.creator_version > 1 {
            image.batmap = read_batmap(io, file, (spec, start), header, &footer)
                .await
                .map_err(in_file)?;
        }
        if spec.bat {
            read_bat(io, file, &mut image).await;
        }
    }
    Ok((image, header))
}

/// Reads the part of `length` bytes at `offset` that is in the file.
async fn read_part(
    io: &Io,
    structure: &'static str,
    file: &FileSpec,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let there = file.size.saturating_sub(offset).min(length as u64) as usize;
    io.read(structure, file.file, offset, there).await
}

async fn find_footer(
    io: &Io,
    file: &FileSpec,
    spec: &InfoSpec,
    image: &mut ImageDescription,
) -> Result<()> {
    let legacy = footer::LEGACY_LENGTH as u64;
    let end = if file.size % 512 == legacy {
        file.size - legacy
    } else {
        file.size.saturating_sub(512) / 512 * 512
    };
    let start = if spec.fast { spec.start } else { 0 };
    let only_backup = spec.fast || spec.backup;
    for offset in if only_backup { vec![0] } else { vec![end, 0] } {
        let bytes = read_part(
            io,
            "footer",
            file,
            start.saturating_add(offset),
            footer::LENGTH,
        )
        .await?;
        let found = FooterDump::new(&bytes, offset);
        let checked = dump::check_footer(&bytes, &found).and_then(|()| {
            // A fixed disk's data may look like its footer; see `open`.
            if offset == 0 && found.disk_type == FIXED && end != 0 {
                return Err(Error::invalid(
                    "footer",
                    "a fixed disk's footer at the start of the file",
                )
                .at(0));
            }
            Ok(())
        });
        match checked {
            Ok(()) => {
                image.footer_problem = image.problem.take();
                image.footer = Some(found);
                return Ok(());
            }
            Err(error) if image.footer.is_none() => {
                image.problem = Some(error.in_file(&file.path).into());
                image.footer = Some(found);
            }
            Err(_) => {}
        }
    }
    Ok(())
}

async fn read_header(
    io: &Io,
    file: &FileSpec,
    start: u64,
    footer: &FooterDump,
    image: &mut ImageDescription,
) -> Result<Option<Header>> {
    let at = footer.data_offset;
    if image.disk_type.is_empty() || image.disk_type == "fixed" {
        image.header = Some(HeaderDump::new(&[], at));
        return Ok(None);
    }
    let place = start.saturating_add(at);
    let bytes = read_part(io, "dynamic header", file, place, header::LENGTH).await?;
    image.header = Some(HeaderDump::new(&bytes, at));
    match dump::check_header(&bytes, at) {
        Ok(header) => Ok(Some(header)),
        Err(error) => {
            image
                .problem
                .get_or_insert_with(|| error.in_file(&file.path).into());
            Ok(None)
        }
    }
}

async fn read_locators(
    io: &Io,
    file: &FileSpec,
    start: u64,
    header: &Header,
    image: &mut ImageDescription,
) {
    for (index, locator) in header.locators.iter().enumerate() {
        if locator.is_used() {
            image.locators.push(LocatorDescription {
                index,
                platform: String::from_utf8_lossy(&locator.platform).into_owned(),
                data_space: locator.data_space,
                data_length: locator.data_length,
                data_offset: locator.data_offset,
                name: parents::locator_name(io, file.file, start, locator).await,
            });
        }
    }
}

async fn read_batmap(
    io: &Io,
    file: &FileSpec,
    (spec, start): (&InfoSpec, u64),
    header: &Header,
    footer: &FooterDump,
) -> Result<Option<BatmapDescription>> {
    let at = batmap::header_offset(header.table_offset, header.max_table_entries);
    let place = start.saturating_add(at);
    let bytes = read_part(io, "batmap", file, place, batmap::HEADER_LENGTH).await?;
    let Some(found) = Batmap::decode(&bytes) else {
        return Ok(None);
    };
    let hex_pair = |key: &batmap::KeyHash| (hex(&key.nonce), hex(&key.hash));
    let mut description = BatmapDescription {
        header_offset: at,
        offset: found.offset,
        sectors: found.sectors,
        version: found.version,
        marker: found.marker,
        key_hash: found.key_hash.as_ref().map(hex_pair),
        checksum: found.checksum,
        computed_checksum: None,
        map: None,
        problem: None,
    };
    if !spec.batmap {
        return Ok(Some(description));
    }
    let counted = batmap::map_bytes(footer.current_size, header.block_size);
    let stored = u64::from(found.sectors) * 512;
    if stored < counted || stored > MAX_BAT_ENTRIES / 8 + 512 {
        let error = Error::invalid("batmap", "its size does not fit the disk")
            .at(at + 16)
            .found(found.sectors, format!("at least {} sectors", counted / 512));
        description.problem = Some(error.in_file(&file.path).into());
        return Ok(Some(description));
    }
    let place = start.saturating_add(found.offset);
    let map = read_part(io, "batmap", file, place, stored as usize).await?;
    let covered = &map[..map.len().min(counted as usize)];
    let computed = batmap::checksum(covered, found.version);
    if computed != found.checksum {
        let error = Error::invalid("batmap", "wrong checksum")
            .at(at + 24)
            .found(format!("{:#x}", found.checksum), format!("{computed:#x}"));
        description.problem = Some(error.in_file(&file.path).into());
    }
    description.computed_checksum = Some(computed);
    description.map = Some(hex(&map));
    Ok(Some(description))
}

async fn read_bat(io: &Io, file: &FileSpec, image: &mut ImageDescription) {
    match open::open(io, file).await {
        Ok((opened, _)) => {
            if let Layout::Blocks(blocks) = &opened.layout {
                image.bat = Some(BatDescription {
                    blocks: blocks.count,
                    allocated: blocks.allocated(),
                    end: blocks.used_end() * 512,
                });
            }
        }
        Err(error) => image.bat_problem = Some(error.into()),
    }
}

/// Bytes in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The error of an image that can't be used.
pub(super) fn no_blocks(path: &str) -> Error {
    Error {
        errno: errno::EINVAL,
        ..Error::invalid("footer", "the image has no blocks")
    }
    .in_file(path)
}
