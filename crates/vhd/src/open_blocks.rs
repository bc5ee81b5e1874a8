//! Opening an image with a BAT: its header, its table, and what they say of the rest of the file.

use crate::areas::{self, overlaps};
use crate::batmap_state;
use crate::error::{Error, Result};
use crate::format::bat;
use crate::format::header::{self, Header};
use crate::image::{Blocks, MAX_BAT_ENTRIES, MAX_DYNAMIC_SIZE};
use crate::io::Io;
use crate::open::{FileSpec, Footers};

/// Bytes of the BAT that are in memory twice while it is read.
const TABLE_PART: u64 = 256 << 10;

/// Reads the header, BAT and batmap of an image that has them.
///
/// # Errors
/// An I/O error, or the first structure that can't be accepted, with its place.
pub(crate) async fn open(
    io: &Io,
    spec: &FileSpec,
    footers: &Footers,
    warnings: &mut Vec<String>,
) -> Result<Blocks> {
    let footer = &footers.footer;
    if footer.has_old_bitmaps() {
        return Err(Error::invalid(
            "footer",
            "the image is of blktap's first version, whose bitmaps have their bits in another order",
        )
        .at(32)
        .found("creator version 0.1", "1.1 or later"));
    }
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
    let mut table = Vec::with_capacity(table_bytes as usize / 4);
    while (table.len() as u64) * 4 < table_bytes {
        let done = table.len() as u64 * 4;
        let part = (table_bytes - done).min(TABLE_PART) as usize;
        let bytes = io
            .read("BAT", spec.file, header.table_offset + done, part)
            .await?;
        bat::decode(&bytes, &mut table);
    }
    // What fills the table's last sector is no entry, and often zeros.
    if let Some(padding) = table.get_mut(header.max_table_entries as usize..) {
        padding.fill(bat::UNUSED);
    }

    let mut batmap = batmap_state::find(io, spec, footers, &header, warnings).await?;
    let mut blocks = Blocks::new(footer.clone(), header, table);
    let space = areas::check(&mut blocks, spec, footers, &mut batmap, warnings)?;
    blocks.metadata_end = space.metadata_end;
    blocks.data_end = space.data_end;
    blocks.orphans = space.orphans;
    if let Some(batmap) = batmap {
        batmap_state::adopt(io, spec, batmap, &mut blocks, warnings).await?;
    }
    blocks.needs_backup_footer = footers.backup.as_ref() != Some(footer);
    blocks.footers_are_damaged = !footers.primary_is_good || blocks.needs_backup_footer;
    if spec.block_device {
        // What is behind the data of a device is not ours to cut off, and its footer stays where it is.
        blocks.device_end = Some(footers.end / 512);
        blocks.needs_footer = !footers.primary_is_good;
    } else {
        blocks.stale_tail = footers.end > blocks.data_end * 512;
        blocks.needs_footer = !footers.primary_is_good || !spec.size.is_multiple_of(512);
    }
    Ok(blocks)
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
