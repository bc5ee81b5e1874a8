//! The batmap of an image in which a program that minds none put a block: qemu puts the first block of an image of blktap's
//! where the batmap's header is. The block moves behind the others, and the batmap is made anew.

use super::{Content, MISPLACED, NEW_BATMAP, Piece, Planner, Step, new_batmap, whole};
use crate::format::bat::{self, ENTRIES_PER_SECTOR};
use crate::format::batmap::{self, Batmap};
use crate::format::header::{self, Header};
use crate::image;
use crate::jobs::check::bitmaps::Bitmaps;
use crate::jobs::check::checkup::{Range, overlaps, sectors};
use crate::jobs::check::codes;
use crate::jobs::check::table::Table;

/// Sectors of the largest block that is moved, all of which goes to the undo file first. Images with batmaps have blocks of
/// 2 MiB.
const MAX_SPAN: u64 = 8192;

/// Where a batmap goes that isn't there.
struct Room {
    /// Byte offset of its header.
    at: u64,
    /// Sectors of the map, which follows.
    sectors: u32,
}

impl Room {
    fn new(header: &Header) -> Self {
        let entries = header.max_table_entries;
        Self {
            at: batmap::header_offset(header.table_offset, entries),
            sectors: batmap::map_sectors(entries),
        }
    }

    fn range(&self) -> Range {
        let map = u64::from(self.sectors) * 512;
        sectors(self.at, batmap::HEADER_LENGTH as u64 + map)
    }
}

impl Planner<'_> {
    /// A block where the batmap's header belongs.
    pub(super) fn displaced(&mut self) {
        if !self.findings.has(codes::BLOCK_ON_BATMAP) {
            return;
        }
        match self.moved_block() {
            Ok(step) => self.plan.steps.push(step),
            Err(why) => self.leave("block-on-batmap", why),
        }
    }

    fn moved_block(&self) -> Result<Step, &'static str> {
        let (Some(state), Some(table)) = (&self.examined.header, &self.examined.table) else {
            return Err("nothing tells where the blocks are");
        };
        let footers = &self.examined.footers;
        let odd_footers = [codes::FOOTER_COPIES, codes::FILE_SIZE];
        let ends_well = footers.primary.good || self.mends("footer-primary");
        if !ends_well || !footers.backup.good || self.findings.has_any(&odd_footers) {
            return Err("the footers have to be in order before the block moves");
        }
        if self.file.block_device {
            return Err("a block device may have no room for the block elsewhere");
        }
        let others = |code: &codes::Code| code.name != codes::BLOCK_ON_BATMAP.name;
        if MISPLACED
            .into_iter()
            .chain([codes::BLOCK_ON_BAT_RESERVE])
            .filter(others)
            .any(|code| self.findings.has(code))
        {
            return Err("blocks lie on other structures as well");
        }
        let bitmaps = self.all_bitmaps()?;
        let room = Room::new(&state.header);
        let mut there = table.placed.iter().copied().filter(|(place, _)| {
            let first = u64::from(*place);
            overlaps((first, first + table.span()), room.range())
        });
        let (Some((from, block)), None) = (there.next(), there.next()) else {
            return Err("more than one block lies there");
        };
        // What lies on the header then is the block's bitmap, not a guest's data, which could look like a batmap while the
        // block is not there any more and the new batmap not yet.
        if u64::from(from) * 512 != room.at || self.examined.batmap.is_some() {
            return Err("the block does not begin where the batmap's header belongs");
        }
        if block >= table.count || table.span() > MAX_SPAN || !self.is_free(&room, table, true) {
            return Err("something else lies there too, or the block is none that is moved");
        }
        let mut pieces = self
            .moving(table, &state.header, block, from)
            .ok_or("no sector number is left for the block")?;
        pieces.extend(batmap_in(&room, bitmaps));
        let mut found = self.found("block-on-batmap");
        found.extend(self.found("batmap-missing"));
        let what = format!("move block {block} behind the others, and {NEW_BATMAP}");
        Ok(Step::new(&found, what, pieces))
    }

    /// Moves a block behind all others. The file gets a footer behind the place to be first, so that it never ends with what
    /// a guest wrote; then the block, then its BAT entry.
    fn moving(&self, table: &Table, header: &Header, block: u32, from: u32) -> Option<Vec<Piece>> {
        let footers = &self.examined.footers;
        let place = image::place(table.data_end, table.bitmap_sectors);
        let to = u32::try_from(place).ok().filter(|to| *to != bat::UNUSED)?;
        let (length, end) = (table.span() * 512, (place + table.span()) * 512);
        let mut pieces = Vec::new();
        if end > footers.end {
            pieces.push((end, Content::Bytes(whole(footers))));
        }
        pieces.push((place * 512, Content::CopyOf(u64::from(from) * 512, length)));
        let sector = block as usize / ENTRIES_PER_SECTOR;
        let first = sector * ENTRIES_PER_SECTOR;
        let last = table.entries.len().min(first + ENTRIES_PER_SECTOR);
        let mut entries = table.entries.get(first..last)?.to_vec();
        *entries.get_mut(block as usize - first)? = to;
        let at = header.table_offset + sector as u64 * 512;
        pieces.push((at, Content::Bytes(bat::encode(&entries))));
        Some(pieces)
    }

    /// A batmap that must be there, and of which there is no trace.
    pub(super) fn missing_batmap(&mut self) {
        if !self.findings.has(codes::BATMAP_MISSING) || self.findings.has(codes::BLOCK_ON_BATMAP) {
            return;
        }
        let (Some(state), Some(table)) = (&self.examined.header, &self.examined.table) else {
            return;
        };
        let room = Room::new(&state.header);
        let bitmaps = match self.all_bitmaps() {
            Ok(bitmaps) => bitmaps,
            Err(why) => return self.leave("batmap-missing", why),
        };
        if self.findings.has_any(&MISPLACED) || !self.is_free(&room, table, false) {
            return self.leave("batmap-missing", "something else lies in its place");
        }
        let pieces = batmap_in(&room, bitmaps);
        let found = self.found("batmap-missing");
        let step = Step::new(&found, NEW_BATMAP.to_owned(), pieces);
        self.plan.steps.push(step);
    }

    fn all_bitmaps(&self) -> Result<&Bitmaps, &'static str> {
        let bitmaps = self.examined.bitmaps.as_ref();
        bitmaps
            .filter(|bitmaps| bitmaps.complete)
            .ok_or("not all bitmaps were read, of which the batmap would be made")
    }

    /// Whether nothing lies where a batmap is to be, but for blocks if these may be there.
    fn is_free(&self, room: &Room, table: &Table, blocks_may: bool) -> bool {
        let Some(state) = &self.examined.header else {
            return false;
        };
        let range = room.range();
        let locators = state.header.locators.iter().filter(|one| one.is_used());
        let mut taken: Vec<Range> = locators
            .map(|one| sectors(one.data_offset, one.space_bytes()))
            .collect();
        let footer = self.examined.footers.footer.iter();
        taken.extend(footer.map(|footer| sectors(footer.data_offset, header::LENGTH as u64)));
        if !blocks_may {
            let places = table.placed.iter().map(|(place, _)| u64::from(*place));
            taken.extend(places.map(|place| (place, place + table.span())));
        }
        range.1 * 512 <= self.examined.footers.end
            && !taken.iter().any(|other| overlaps(*other, range))
    }
}

fn batmap_in(room: &Room, bitmaps: &Bitmaps) -> Vec<Piece> {
    let map_at = room.at + batmap::HEADER_LENGTH as u64;
    let header = Batmap::new(map_at, room.sectors);
    new_batmap(room.at, header, room.sectors as usize * 512, &bitmaps.full)
}
