//! blktap's batmap of an open image: believed when it is right, kept true, and made anew when it is wrong.
//!
//! A set bit lets a reader skip the block's bitmap, so a bit in the file must never say more than the file holds; a missing
//! one costs a read. While an image is open its batmap stays as it was: blocks that become full get their bits when the
//! image is closed, as blktap does it. Before a BAT entry goes to disk that would make a bit a lie (a block that the map
//! calls full is released, or the map is wrong and calls blocks full that don't exist), the header gets the checksum of
//! an empty map, durably: one sector, which is on disk or is not. From then on nobody believes the map until it is written
//! as a whole. So whatever part of these writes a power cut leaves, a map whose checksum is right tells the truth.

use std::cell::RefCell;
use std::rc::Rc;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::extend::sync_leaf;
use crate::format::batmap::{self, Batmap};
use crate::format::bitmap;
use crate::format::header::Header;
use crate::image::Blocks;
use crate::io::Io;
use crate::open::{FileSpec, Footers};
use crate::planted::{self, Bug};

/// What is known of the batmap of an open image.
#[derive(Debug)]
pub(crate) struct BatmapState {
    /// Byte offset of the header.
    at: u64,
    header: Batmap,
    /// The map in the file as far as it can be believed, [`batmap::map_bytes`] of it.
    map: Vec<u8>,
    /// What is wrong with the map in the file, when the image was opened.
    wrong: Option<String>,
    /// The header must be emptied before the next BAT entry goes to disk.
    must_empty: bool,
    /// The file has another map than [`BatmapState::map`], or none.
    stale: bool,
}

/// Empties the batmap in a file: first the header, and when that is durable the map.
#[derive(Debug)]
pub(crate) struct Emptying {
    pub(crate) header_at: u64,
    pub(crate) header: [u8; batmap::HEADER_LENGTH],
    pub(crate) map_at: u64,
    pub(crate) map: Vec<u8>,
}

impl BatmapState {
    /// The header as it is in the file, or should be.
    pub(crate) fn header(&self) -> &Batmap {
        &self.header
    }

    /// Bytes of the file that header and map take.
    pub(crate) fn areas(&self) -> [(u64, u64); 2] {
        let map_end = self.header.offset + u64::from(self.header.sectors) * 512;
        [
            (self.at, self.at + batmap::HEADER_LENGTH as u64),
            (self.header.offset, map_end),
        ]
    }

    /// Whether the file has no map that is as it must be.
    pub(crate) fn is_wrong(&self) -> bool {
        self.wrong.is_some()
    }

    /// Makes the map `bytes` long, if the file has room for that. Returns where in the file the new part is, and its length:
    /// it must become zeros, which leaves the checksum as it is.
    pub(crate) fn grow(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let old = self.map.len() as u64;
        if bytes <= old || bytes > u64::from(self.header.sectors) * 512 {
            return None;
        }
        self.map.resize(bytes as usize, 0);
        Some((self.header.offset + old, bytes - old))
    }

    /// The block is no more, or another one: a bit of it in the file would be a lie.
    pub(crate) fn forget(&mut self, block: u32) {
        self.must_empty |=
            bitmap::is_set(&self.map, block) && !planted::is(Bug::ReleasedBlockStaysFull);
    }

    /// How to empty the batmap in the file, if that must be done before a BAT entry goes there.
    pub(crate) fn emptying(&self) -> Option<Emptying> {
        self.must_empty.then(|| Emptying {
            header_at: self.at,
            header: self.header_for(&[]),
            map_at: self.header.offset,
            map: vec![0; self.map.len()],
        })
    }

    /// The header in the file is empty, durably.
    pub(crate) fn emptied(&mut self) {
        self.must_empty = false;
        self.stale = true;
        self.map.fill(0);
    }

    /// The map that the file should have, if it has another one.
    fn update(&self, blocks: &Blocks) -> Option<Vec<u8>> {
        let mut map = vec![0; self.map.len()];
        let bits = (map.len() as u64 * 8).min(u64::from(blocks.count)) as u32;
        for block in (0..bits).filter(|block| blocks.is_full(*block)) {
            bitmap::set_range(&mut map, block, 1);
        }
        (map != self.map || self.stale).then_some(map)
    }

    /// The header for a map.
    fn header_for(&self, map: &[u8]) -> [u8; batmap::HEADER_LENGTH] {
        let header = Batmap {
            checksum: batmap::checksum(map, self.header.version),
            ..self.header.clone()
        };
        header.encode()
    }
}

/// Writes the batmap of an image that is about to be closed, if the file has another one. All that its blocks hold is
/// durable already.
///
/// # Errors
/// An I/O error.
pub(crate) async fn write(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    let file = core.borrow_mut().leaf().file;
    let emptying = core
        .borrow_mut()
        .leaf_batmap()
        .and_then(|state| state.emptying());
    if let Some(emptying) = emptying {
        io.write("batmap", file, emptying.header_at, &emptying.header)
            .await?;
        sync_leaf(core, io).await?;
        if let Some(state) = core.borrow_mut().leaf_batmap() {
            state.emptied();
        }
    }
    let update = core.borrow_mut().leaf_blocks().and_then(|blocks| {
        let state = blocks.batmap.as_ref()?;
        let map = state.update(blocks)?;
        Some((state.at, state.header_for(&map), state.header.offset, map))
    });
    let Some((header_at, header, map_at, map)) = update else {
        return Ok(());
    };
    if let Some(state) = core.borrow_mut().leaf_batmap() {
        state.stale = true;
    }
    io.write("batmap", file, map_at, &map).await?;
    sync_leaf(core, io).await?;
    io.write("batmap", file, header_at, &header).await?;
    sync_leaf(core, io).await?;
    if let Some(state) = core.borrow_mut().leaf_batmap() {
        state.map = map;
        state.wrong = None;
        state.stale = false;
    }
    Ok(())
}

/// Looks for a batmap behind the BAT. What is wrong with it is noted, for [`adopt`].
///
/// # Errors
/// An I/O error; a disk that is encrypted.
pub(crate) async fn find(
    io: &Io,
    spec: &FileSpec,
    footers: &Footers,
    header: &Header,
    warnings: &mut Vec<String>,
) -> Result<Option<BatmapState>> {
    let footer = &footers.footer;
    // Where no other program has one, what is there may be a guest's doing.
    if !footer.may_have_batmap() {
        return Ok(None);
    }
    let at = batmap::header_offset(header.table_offset, header.max_table_entries);
    let header_end = at.saturating_add(batmap::HEADER_LENGTH as u64);
    let needed = batmap::map_bytes(footer.current_size, header.block_size);
    if header_end.saturating_add(needed) > footers.end {
        if footer.demands_batmap() {
            warnings.push("the image has no batmap, and no room for one".to_owned());
        }
        return Ok(None);
    }
    let bytes = io
        .read("batmap", spec.file, at, batmap::HEADER_LENGTH)
        .await?;
    let found = Batmap::decode(&bytes);
    if found.as_ref().is_some_and(|found| found.key_hash.is_some()) {
        return Err(
            Error::invalid("batmap", "the disk is encrypted, which is not supported")
                .at(at + 29)
                .found("the hash of a key", "none"),
        );
    }
    if found.is_none() && !footer.demands_batmap() {
        return Ok(None);
    }
    let wrong = match &found {
        None => Some("it has no header".to_owned()),
        Some(found) if found.version > batmap::VERSION => {
            Some(format!("its version is {:#x}", found.version))
        }
        Some(found) => misplaced(found, header, header_end, needed, footers.end),
    };
    let header = match found {
        Some(found) if wrong.is_none() => found,
        found => Batmap {
            marker: found.map_or(0, |found| found.marker),
            ..Batmap::new(
                header_end,
                map_sectors(header, needed, header_end, footers.end),
            )
        },
    };
    Ok(Some(BatmapState {
        at,
        header,
        map: vec![0; needed as usize],
        must_empty: wrong.is_some(),
        stale: wrong.is_some(),
        wrong,
    }))
}

/// What is wrong with the place of a map.
fn misplaced(
    found: &Batmap,
    header: &Header,
    header_end: u64,
    needed: u64,
    file_end: u64,
) -> Option<String> {
    let length = u64::from(found.sectors) * 512;
    let end = found.offset.saturating_add(length);
    if length < needed {
        return Some(format!("its map has {length} bytes, not {needed}"));
    }
    let overlaps = header.locators.iter().any(|locator| {
        let locator_end = locator.data_offset.saturating_add(locator.space_bytes());
        locator.is_used() && locator.data_offset < end && found.offset < locator_end
    });
    let impossible =
        !found.offset.is_multiple_of(512) || found.offset < header_end || end > file_end;
    (impossible || overlaps).then(|| format!("its map can't be at offset {}", found.offset))
}

/// Sectors for a new map at `at`: as many as the whole BAT has use for, if there is room.
fn map_sectors(header: &Header, needed: u64, at: u64, file_end: u64) -> u32 {
    let whole = u64::from(header.max_table_entries)
        .div_ceil(8)
        .next_multiple_of(512);
    let bytes = if at + whole.max(needed) <= file_end {
        whole.max(needed)
    } else {
        needed
    };
    (bytes / 512) as u32
}

/// Notes the blocks that the batmap calls full, if it is right; if it is wrong, it is not used, and made anew when the
/// image is closed.
///
/// # Errors
/// An I/O error.
pub(crate) async fn adopt(
    io: &Io,
    spec: &FileSpec,
    mut state: BatmapState,
    blocks: &mut Blocks,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if state.wrong.is_none() {
        let map = io
            .read("batmap", spec.file, state.header.offset, state.map.len())
            .await?;
        let absent = (0..blocks.count)
            .filter(|block| bitmap::is_set(&map, *block))
            .find(|block| blocks.bitmap_sector(*block).is_none());
        state.wrong = if !state.header.matches(&map) {
            Some("its checksum is not that of its map".to_owned())
        } else {
            // Once such a block exists, its other sectors would be taken for written.
            absent.map(|block| format!("it calls block {block} full, which does not exist"))
        };
        if state.wrong.is_none() {
            (0..blocks.count)
                .filter(|block| bitmap::is_set(&map, *block))
                .for_each(|block| blocks.set_full(block));
            state.map = map;
        } else {
            state.must_empty = true;
            state.stale = true;
        }
    }
    if let Some(wrong) = &state.wrong {
        warnings.push(format!("the batmap is wrong and not used: {wrong}"));
    }
    if !spec.read_only {
        blocks.batmap = Some(Box::new(state));
    }
    Ok(())
}
