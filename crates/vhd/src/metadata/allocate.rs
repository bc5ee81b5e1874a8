//! Places for blocks, all at once.

use std::ops::Range;

use super::{Metadata, no_room};
use crate::error::{Result, errno};
use crate::format::bat;
use crate::image::Layout;

/// Bytes of the BAT that are written together.
const PIECE: usize = 64 << 10;

impl Metadata {
    /// Gives those of `range`'s blocks places behind the others that have none, as an open disk does it: zeros, with the
    /// bitmap of a new block. With `reserve`, the file system keeps space for their data.
    ///
    /// # Errors
    /// `ENOSPC` if there is no room; an I/O error, after which none of them has a place, or some have.
    pub(crate) async fn allocate(&mut self, range: Range<u32>, reserve: bool) -> Result<()> {
        let outcome = self.give_places(range, reserve).await;
        if outcome.is_err() && !self.primary_is_good {
            // A file that is longer now, without a footer at its end, is cut again.
            let _ = self.trim().await;
        }
        outcome
    }

    async fn give_places(&mut self, range: Range<u32>, reserve: bool) -> Result<()> {
        if !(self.primary_is_good && self.backup_is_good) {
            let footer = self.footer.clone();
            self.write_footer(&footer).await?;
        }
        // What lies behind the last block must not become a block's.
        self.trim().await?;
        let device_end = self.spec.block_device.then_some(self.end);
        let Layout::Blocks(blocks) = &mut self.image.layout else {
            return Ok(());
        };
        let (io, file) = (&self.io, self.spec.file);
        let span = blocks.block_span();
        let mut end = blocks.used_end();
        let mut places = Vec::new();
        for block in range.clone() {
            if blocks.bitmap_sector(block).is_some() {
                continue;
            }
            let place = blocks.place(end);
            end = place + span;
            let within = device_end.is_none_or(|limit| end * 512 <= limit);
            match u32::try_from(place) {
                Ok(place) if within && place != bat::UNUSED => places.push((block, place)),
                _ => {
                    let limit = device_end.unwrap_or(u64::from(u32::MAX) * 512);
                    return Err(no_room(errno::ENOSPC, end * 512, limit));
                }
            }
        }
        if places.is_empty() {
            return Ok(());
        }
        if device_end.is_none() {
            // The footer's copy covers until the footer is at its new place.
            self.primary_is_good = false;
            io.truncate(file, (end + 1) * 512).await?;
        }
        let data = u64::from(blocks.bitmap_sectors) * 512;
        if reserve || device_end.is_some() {
            let offsets = places
                .iter()
                .map(|(_, place)| u64::from(*place) * 512 + data);
            io.zero_all(file, offsets, span * 512 - data).await?;
        }
        let bitmap = blocks.new_bitmap();
        let bitmaps = places
            .iter()
            .map(|(_, place)| (u64::from(*place) * 512, bitmap.as_slice()));
        io.write_all("bitmap", file, bitmaps).await?;
        if device_end.is_none() {
            let bytes = self.footer.encode();
            io.write("footer", file, end * 512, &bytes).await?;
            self.end = end * 512;
        }
        io.sync(file).await?;
        self.primary_is_good = true;
        for (block, place) in &places {
            blocks.allocate(*block, *place);
        }
        let first = range.start as usize / bat::ENTRIES_PER_SECTOR * bat::ENTRIES_PER_SECTOR;
        let last = (range.end as usize).next_multiple_of(bat::ENTRIES_PER_SECTOR);
        let entries = blocks.bat.get(first..last).unwrap_or_default();
        for (index, entries) in entries.chunks(PIECE / 4).enumerate() {
            let at = blocks.header.table_offset + (first * 4 + index * PIECE) as u64;
            io.write("BAT", file, at, &bat::encode(entries)).await?;
        }
        io.sync(file).await
    }
}
