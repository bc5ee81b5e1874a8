//! Opening an image with a BAT: its header, its table, blktap's batmap, and the places of all blocks.

use crate::error::{Error, Result};
use crate::format::batmap::{self, Batmap};
use crate::format::header::{self, Header};
use crate::format::{bat, bitmap};
use crate::image::{Blocks, MAX_BAT_ENTRIES, MAX_DYNAMIC_SIZE};
use crate::io::Io;
use crate::open::{FileSpec, Footers};

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
    // What fills the table's last sector is no entry, and often zeros.
    if let Some(padding) = table.get_mut(header.max_table_entries as usize..) {
        padding.fill(bat::UNUSED);
    }

    let batmap = find_batmap(io, spec, footers, &header).await?;
    let mut blocks = Blocks::new(footer.clone(), header, table);
    (blocks.metadata_end, blocks.data_end) =
        check_blocks(&blocks, spec, footers, batmap.as_ref(), warnings)?;
    if let Some(batmap) = &batmap {
        use_batmap(io, spec, footers, batmap, &mut blocks, warnings).await?;
    }
    blocks.needs_backup_footer = footers.backup.as_ref() != Some(footer);
    blocks.stale_tail = footers.end > blocks.data_end * 512;
    blocks.needs_footer = !footers.primary_is_good || !spec.size.is_multiple_of(512);
    Ok(blocks)
}

/// blktap's batmap behind the BAT, if there is one.
async fn find_batmap(
    io: &Io,
    spec: &FileSpec,
    footers: &Footers,
    header: &Header,
) -> Result<Option<Batmap>> {
    let table_end = header.table_offset + u64::from(header.max_table_entries) * 4;
    let at = table_end.next_multiple_of(512);
    if at + batmap::HEADER_LENGTH as u64 > footers.end {
        return Ok(None);
    }
    let bytes = io
        .read("batmap", spec.file, at, batmap::HEADER_LENGTH)
        .await?;
    let found = Batmap::decode(&bytes);
    if found
        .as_ref()
        .is_some_and(|batmap| batmap.key_hash.is_some())
    {
        return Err(
            Error::invalid("batmap", "the disk is encrypted, which is not supported")
                .at(at + 29)
                .found("the hash of a key", "none"),
        );
    }
    Ok(found)
}

/// Notes the blocks that the batmap calls full. It is a hint that blktap brings up to date when it closes an image, and
/// what it says of full blocks stays true whatever is written: so it is used where its checksum is right, and left alone.
async fn use_batmap(
    io: &Io,
    spec: &FileSpec,
    footers: &Footers,
    batmap: &Batmap,
    blocks: &mut Blocks,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let length = u64::from(blocks.count).div_ceil(8).next_multiple_of(512);
    let fits = length <= u64::from(batmap.sectors) * 512
        && batmap.offset.saturating_add(length) <= footers.end;
    let map = if fits {
        io.read("batmap", spec.file, batmap.offset, length as usize)
            .await?
    } else {
        Vec::new()
    };
    if !fits || !batmap.matches(&map) {
        warnings.push("the batmap is wrong and not used".to_owned());
        return Ok(());
    }
    let full = |block: &u32| bitmap::is_set(&map, *block);
    let absent = (0..blocks.count)
        .filter(full)
        .find(|block| blocks.bitmap_sector(*block).is_none());
    if let Some(block) = absent {
        // Once such a block exists, its other sectors would be taken for written.
        if !spec.read_only {
            return Err(Error::invalid(
                "batmap",
                format!("block {block} is called full and does not exist"),
            )
            .at(batmap.offset + u64::from(block) / 8)
            .found("a set bit", "a clear one"));
        }
        warnings.push(format!(
            "the batmap calls block {block} full, which does not exist, and is not used"
        ));
        return Ok(());
    }
    (0..blocks.count)
        .filter(full)
        .for_each(|block| blocks.set_full(block));
    blocks.batmap = map;
    Ok(())
}

/// Checks every BAT entry. Returns the first sectors behind all structures, and behind all structures and blocks.
fn check_blocks(
    blocks: &Blocks,
    spec: &FileSpec,
    footers: &Footers,
    batmap: Option<&Batmap>,
    warnings: &mut Vec<String>,
) -> Result<(u64, u64)> {
    // A sector that is there in part holds nothing of a block.
    let (span, file_end) = (blocks.block_span(), footers.end / 512);
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
    // The whole table counts, also the entries past the disk's size, and the batmap with its header behind that.
    let table_end = end_of(
        blocks.header.table_offset,
        u64::from(blocks.header.max_table_entries) * 4,
    );
    let batmap_end = batmap.map_or(0, |map| {
        end_of(map.offset, u64::from(map.sectors) * 512).max(table_end + 1)
    });
    let metadata_end = locators
        .map(|locator| end_of(locator.data_offset, locator.space_bytes()))
        .chain(metadata.map(|(_, end)| end))
        .chain([table_end, batmap_end])
        .map(|end| end.min(file_end))
        .fold(0, u64::max);
    let mut data_end = metadata_end;
    let mut cut_short = None;
    let mut placed: Vec<(u32, u32)> = Vec::new();
    for (block, sector) in (0_u32..)
        .zip(blocks.bat.iter().copied())
        .filter(|(_, sector)| *sector != bat::UNUSED)
    {
        let place = blocks.header.table_offset + u64::from(block) * 4;
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
            cut_short = Some(block);
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
    if let Some(block) = cut_short {
        warnings.push(format!(
            "block {block} ends behind the end of the file and is cut short"
        ));
    }
    if placed.iter().any(|(_, block)| *block >= blocks.count) {
        warnings.push("the BAT names blocks past the end of the disk".to_owned());
    }
    Ok((metadata_end, data_end))
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
