//! Undoing a resize of blktap's that was interrupted, with the journal that it left.
//!
//! The journal holds what the image had in the places that the resize writes: its metadata first, then blocks before they
//! were moved. While the resize is at it, the image's footers say `v_poison` instead of their cookie. Everything goes back,
//! the copy of the footer at offset 0 last, so that the image is refused until all is there; then the journal is removed.
//! What is in it is checked before the first write. (It takes a guest's data in, for their checksums, which otherwise only
//! mending a displaced block does.)
//!
//! The journal: a header of 512 bytes, then entries of 32 bytes, each with its data behind it. Source: what `vhd-util resize`
//! of blktap 4.0.8 writes.

use serde::Deserialize;

use super::Context;
use crate::error::{Error, Result};
use crate::format::footer::{self, DiskType, Footer};
use crate::format::header;
use crate::format::uuid::Uuid;
use crate::io::Copier;
use crate::open::{Driver, FileSpec};
use crate::wants::Access;

const HEADER: u64 = 512;
const ENTRY: u64 = 32;
const COOKIE: [u8; 8] = *b"vjournal";
const ENTRY_COOKIE: u64 = 0xaaaa_1234_4321_aaaa;
/// Bytes of an entry's data that are in memory together.
const PIECE: u64 = 256 << 10;

/// Which image to revert.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevertSpec {
    /// Path of the VHD.
    pub path: String,
    /// Path of the journal, which is removed.
    pub journal: String,
}

/// Kinds of entries, by their numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Footer,
    FooterCopy,
    Header,
    /// Locators, BAT, batmap and blocks: nothing but their place matters.
    Other,
}

/// Something that goes back to its place.
#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    /// Byte offset of the data in the journal.
    data: u64,
    size: u64,
    /// Byte offset in the image.
    offset: u64,
}

#[derive(Clone, Copy, Debug)]
struct Journal {
    uuid: Uuid,
    footer_at: u64,
    blocks: u32,
    metadata: u32,
    blocks_at: u64,
}

pub(super) async fn run(context: &Context, spec: &RevertSpec) -> Result<()> {
    let journal = context
        .open_file(&spec.journal, Driver::Aio, Access::Write)
        .await?;
    let in_journal = |error: Error| error.in_file(&spec.journal);
    let header = read_header(context, &journal).await.map_err(in_journal)?;
    let image = context
        .open_file(&spec.path, Driver::Vhd, Access::Write)
        .await?;
    let poisoned = check_image(context, &image, header.uuid)
        .await
        .map_err(|error| error.in_file(&spec.path))?;
    if poisoned && header.metadata > 0 {
        let entries = read_entries(context, &journal, &header)
            .await
            .map_err(in_journal)?;
        restore(context, &journal, &image, &header, &entries)
            .await
            .map_err(|error| error.in_file(&spec.path))?;
    } else if poisoned {
        // The resize was complete but for that.
        lift(context, &image)
            .await
            .map_err(|error| error.in_file(&spec.path))?;
    }
    // An image that is not poisoned is as it was before the resize, or as it is after it.
    context.files.close(journal.file).await;
    context.files.remove(&spec.journal).await
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes
        .get(at..at + 8)
        .and_then(|field| field.try_into().ok());
    u64::from_be_bytes(field.unwrap_or_default())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok());
    u32::from_be_bytes(field.unwrap_or_default())
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let field = bytes
        .get(at..at + 16)
        .and_then(|field| field.try_into().ok());
    Uuid(field.unwrap_or_default())
}

async fn read_header(context: &Context, journal: &FileSpec) -> Result<Journal> {
    if journal.size < HEADER {
        return Err(Error::invalid("journal", "too short").found(journal.size, "at least 512"));
    }
    let bytes = context
        .io
        .read("journal", journal.file, 0, HEADER as usize)
        .await?;
    if !bytes.starts_with(&COOKIE) {
        return Err(Error::invalid("journal", "wrong cookie")
            .at(0)
            .found(bytes[..8].escape_ascii(), "vjournal"));
    }
    Ok(Journal {
        uuid: uuid_at(&bytes, 8),
        footer_at: u64_at(&bytes, 24),
        blocks: u32_at(&bytes, 32),
        metadata: u32_at(&bytes, 36),
        blocks_at: u64_at(&bytes, 40),
    })
}

/// Checks that the journal is this image's. Returns whether a footer is poisoned.
async fn check_image(context: &Context, image: &FileSpec, uuid: Uuid) -> Result<bool> {
    let mut poisoned = false;
    let mut ours = false;
    let last = (image.size / 512).saturating_sub(1) * 512;
    for at in [0, last] {
        let length = footer::LENGTH.min(image.size as usize);
        let bytes = context.io.read("footer", image.file, at, length).await?;
        let is_poison = bytes.starts_with(&footer::POISON);
        poisoned |= is_poison;
        ours |= (is_poison || bytes.starts_with(&footer::COOKIE)) && uuid_at(&bytes, 68) == uuid;
    }
    if ours {
        return Ok(poisoned);
    }
    Err(Error::invalid("footer", "the journal is another image's")
        .at(68)
        .found("another UUID, or no footer", uuid))
}

/// Reads and checks all entries.
async fn read_entries(
    context: &Context,
    journal: &FileSpec,
    header: &Journal,
) -> Result<Vec<Entry>> {
    let invalid = |at: u64, message: &str| Error::invalid("journal", message).at(at);
    let mut entries = Vec::new();
    let mut at = HEADER;
    context.begin("checking the journal", journal.size);
    for index in 0..u64::from(header.metadata) + u64::from(header.blocks) {
        let is_block = index >= u64::from(header.metadata);
        if index == u64::from(header.metadata) && at != header.blocks_at {
            return Err(
                invalid(40, "the blocks don't follow the metadata").found(header.blocks_at, at)
            );
        }
        if at + ENTRY > journal.size {
            return Err(invalid(at, "an entry is missing"));
        }
        let bytes = context
            .io
            .read("journal", journal.file, at, ENTRY as usize)
            .await?;
        let (kind, size, offset) = (
            u32_at(&bytes, 8),
            u64::from(u32_at(&bytes, 12)),
            u64_at(&bytes, 16),
        );
        let kind = match kind {
            1 => Kind::Footer,
            2 => Kind::FooterCopy,
            3 => Kind::Header,
            4..=7 if !is_block => Kind::Other,
            8 if is_block => Kind::Other,
            other => {
                return Err(invalid(at + 8, "an impossible kind of entry")
                    .found(other, "1 to 8, blocks last"));
            }
        };
        if u64_at(&bytes, 0) != ENTRY_COOKIE {
            return Err(invalid(at, "an entry has a wrong cookie"));
        }
        let fits = size > 0 && size.is_multiple_of(512) && size <= journal.size - at - ENTRY;
        let place = match kind {
            Kind::Footer => size == 512 && offset == header.footer_at,
            Kind::FooterCopy => size == 512 && offset == 0,
            Kind::Header => size == header::LENGTH as u64 && offset >= 512,
            Kind::Other => offset >= 512,
        };
        let limit = header.footer_at.saturating_add(512);
        if !fits || !place || offset.checked_add(size).is_none_or(|end| end > limit) {
            return Err(invalid(at, "an entry that has no such place").found(
                format!("{size} bytes for offset {offset}"),
                format!("whole sectors before {limit}"),
            ));
        }
        let entry = Entry {
            kind,
            data: at + ENTRY,
            size,
            offset,
        };
        let sum = checksum(context, journal, &entry, &bytes).await?;
        if sum != u32_at(&bytes, 24) {
            return Err(invalid(at + 24, "an entry has a wrong checksum")
                .found(format!("{:#x}", u32_at(&bytes, 24)), format!("{sum:#x}")));
        }
        at = entry.data + size;
        context.advance(ENTRY + size)?;
        entries.push(entry);
    }
    for (kind, name) in [
        (Kind::Footer, "the footer"),
        (Kind::FooterCopy, "the footer's copy"),
        (Kind::Header, "the header"),
    ] {
        if entries.iter().filter(|entry| entry.kind == kind).count() != 1 {
            return Err(Error::invalid(
                "journal",
                format!("{name} is not there once"),
            ));
        }
    }
    Ok(entries)
}

/// One's complement of the sum of all bytes of an entry and its data; the field itself counts as zero.
async fn checksum(
    context: &Context,
    journal: &FileSpec,
    entry: &Entry,
    bytes: &[u8],
) -> Result<u32> {
    let add = |sum: u32, byte: &u8| sum.wrapping_add(u32::from(*byte));
    let mut sum = bytes[..24].iter().chain(&bytes[28..]).fold(0, add);
    let mut at = 0;
    while at < entry.size {
        let length = (entry.size - at).min(PIECE);
        let data = context
            .io
            .read("journal", journal.file, entry.data + at, length as usize)
            .await?;
        sum = data.iter().fold(sum, add);
        at += length;
    }
    Ok(!sum)
}

/// Puts everything back: what a footer says last.
async fn restore(
    context: &Context,
    journal: &FileSpec,
    image: &FileSpec,
    header: &Journal,
    entries: &[Entry],
) -> Result<()> {
    let io = &context.io;
    for entry in entries {
        if matches!(entry.kind, Kind::Footer | Kind::FooterCopy) {
            let bytes = io.read("journal", journal.file, entry.data, 512).await?;
            let footer = Footer::decode(&bytes).map_err(|error| error.relative_to(entry.data))?;
            if footer.disk_type == DiskType::Fixed || footer.uuid != header.uuid {
                return Err(Error::invalid("journal", "a footer of another disk").at(entry.data));
            }
        }
    }
    context.begin("reverting", journal.size);
    // While both footers may be poison, or nothing, the image stays refused: its copy must not go before the rest is there.
    for kinds in [&[Kind::Header, Kind::Other][..], &[Kind::Footer]] {
        let mut copier = Copier::new(io, "journal");
        let mut outcome = Ok(());
        for entry in entries.iter().filter(|entry| kinds.contains(&entry.kind)) {
            let (from, to) = ((journal.file, entry.data), (image.file, entry.offset));
            outcome = outcome.and(copier.copy(from, to, entry.size).await);
        }
        copier.finish().await.and(outcome)?;
        io.sync(image.file).await?;
    }
    if !image.block_device {
        io.truncate(image.file, header.footer_at + footer::LENGTH as u64)
            .await?;
        io.sync(image.file).await?;
    }
    for entry in entries
        .iter()
        .filter(|entry| entry.kind == Kind::FooterCopy)
    {
        let bytes = io.read("journal", journal.file, entry.data, 512).await?;
        io.write("backup footer", image.file, 0, &bytes).await?;
    }
    io.sync(image.file).await
}

/// Gives poisoned footers their cookie back.
async fn lift(context: &Context, image: &FileSpec) -> Result<()> {
    let io = &context.io;
    for at in [(image.size / 512).saturating_sub(1) * 512, 0] {
        let mut bytes = io.read("footer", image.file, at, footer::LENGTH).await?;
        if bytes.starts_with(&footer::POISON) {
            let (found, sum) = (u32_at(&bytes, 64), footer::checksum_of(&bytes));
            if found != sum {
                return Err(Error::invalid("footer", "wrong checksum")
                    .at(at + 64)
                    .found(format!("{found:#x}"), format!("{sum:#x}")));
            }
            bytes[..8].copy_from_slice(&footer::COOKIE);
            let sum = footer::checksum_of(&bytes);
            bytes[64..68].copy_from_slice(&sum.to_be_bytes());
            Footer::decode(&bytes).map_err(|error| error.relative_to(at))?;
            io.write("footer", image.file, at, &bytes).await?;
            io.sync(image.file).await?;
        }
    }
    Ok(())
}
