//! The BAT and blktap's batmap as jobs change them in an image that nobody has open as a disk.

use super::Metadata;
use crate::error::{Error, Result, errno};
use crate::format::bat::{self, ENTRIES_PER_SECTOR};
use crate::format::{batmap, bitmap};
use crate::image::{Layout, MAX_BAT_ENTRIES};

/// Bytes of the BAT that are looked at together.
const PIECE: u64 = 64 << 10;

impl Metadata {
    /// Writes blktap's marker, which is in the batmap's header: one sector.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the image has no batmap, or an I/O error.
    pub(crate) async fn set_marker(&mut self, marker: u8) -> Result<()> {
        let (Some(at), Some(mut batmap)) = (self.batmap_at(), self.batmap.clone()) else {
            return Err(Error {
                errno: errno::EOPNOTSUPP,
                ..Error::invalid("batmap", "the image has none to keep a marker in")
            });
        };
        batmap.marker = marker;
        self.write_synced("batmap", at, &batmap.encode()).await?;
        self.batmap = Some(batmap);
        Ok(())
    }

    /// Byte offset of the batmap's header.
    fn batmap_at(&self) -> Option<u64> {
        self.blocks().map(|blocks| {
            let header = &blocks.header;
            batmap::header_offset(header.table_offset, header.max_table_entries)
        })
    }

    /// Makes nobody believe the batmap, durably: its header gets the checksum of an empty map. What it calls full may go then.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) async fn empty_batmap(&mut self) -> Result<()> {
        let (Some(at), Some(mut batmap)) = (self.batmap_at(), self.batmap.clone()) else {
            return Ok(());
        };
        batmap.checksum = batmap::checksum(&[], batmap.version);
        self.write_synced("batmap", at, &batmap.encode()).await
    }

    /// Writes the batmap anew, durably, from what is known of the blocks. [`Metadata::empty_batmap`] came before.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) async fn write_batmap(&mut self) -> Result<()> {
        let (Some(at), Some(mut batmap)) = (self.batmap_at(), self.batmap.clone()) else {
            return Ok(());
        };
        let map = self.full_map(u64::from(batmap.sectors) * 512);
        self.write_synced("batmap", batmap.offset, &map).await?;
        let block_size = self.blocks().map_or(0, |blocks| blocks.header.block_size);
        let counted = batmap::map_bytes(self.footer.current_size, block_size) as usize;
        let counted = map.get(..counted).unwrap_or(&map);
        batmap.checksum = batmap::checksum(counted, batmap.version);
        self.write_synced("batmap", at, &batmap.encode()).await?;
        self.batmap = Some(batmap);
        Ok(())
    }

    /// A batmap of `bytes` bytes, or as many as blocks can have use for.
    pub(super) fn full_map(&self, bytes: u64) -> Vec<u8> {
        let mut map = vec![0; bytes.min(MAX_BAT_ENTRIES / 8) as usize];
        if let Some(blocks) = self.blocks() {
            for block in (0..blocks.count).filter(|block| blocks.is_full(*block)) {
                bitmap::set_range(&mut map, block, 1);
            }
        }
        map
    }

    /// Takes everything away that is behind `count` blocks, or behind the end of the disk in the last of them, and gives its
    /// space back. The footers say a size by then for which that is nothing.
    ///
    /// # Errors
    /// An I/O error, after which the job can be started again.
    pub(crate) async fn cut_to(&mut self, count: u32) -> Result<()> {
        let (file, mut places) = (self.spec.file, Vec::new());
        let mut tail = None;
        let sectors = self.footer.current_size / 512;
        if let Some(blocks) = self.blocks() {
            let dropped = blocks.bat.iter().skip(count as usize);
            places.extend(dropped.copied().filter(|place| *place != bat::UNUSED));
            let per_block = u64::from(blocks.sectors_per_block);
            let first = sectors % per_block;
            if let Some(place) = blocks.place_of(file, sectors.saturating_sub(1))
                && first > 0
            {
                let start = place.bitmap + u64::from(blocks.bitmap_sectors) + first;
                tail = Some((start * 512, (per_block - first) * 512));
            }
        }
        self.drop_blocks(count).await?;
        let span = self.blocks().map_or(0, |blocks| blocks.block_span()) * 512;
        let offsets = places.iter().map(|place| u64::from(*place) * 512);
        self.io.punch_all(file, offsets, span).await?;
        if let Some((start, length)) = tail {
            self.io.punch_all(file, [start].into_iter(), length).await?;
        }
        self.io.sync(file).await
    }

    /// Takes all blocks from `first` on out of the BAT, durably, also those past the end of the disk. Their places are in
    /// nobody's use afterwards.
    ///
    /// # Errors
    /// An I/O error, after which the job can be started again; a BAT that does not fit the file.
    pub(crate) async fn drop_blocks(&mut self, first: u32) -> Result<()> {
        self.check_table()?;
        let Layout::Blocks(blocks) = &mut self.image.layout else {
            return Ok(());
        };
        let entries = blocks.header.max_table_entries;
        if u64::from(entries) > MAX_BAT_ENTRIES {
            return Err(Error::invalid("dynamic header", "the BAT is too large")
                .at(self.footer.data_offset + 28)
                .found(entries, format!("at most {MAX_BAT_ENTRIES} entries")));
        }
        let (io, file) = (self.io.clone(), self.spec.file);
        let table = blocks.header.table_offset;
        let end = u64::from(entries) * 4;
        let mut at = u64::from(first) * 4 / 512 * 512;
        let mut changed = false;
        while at < end {
            let length = (end - at).next_multiple_of(512).min(PIECE);
            let bytes = io.read("BAT", file, table + at, length as usize).await?;
            let mut found = Vec::with_capacity(bytes.len() / 4);
            bat::decode(&bytes, &mut found);
            let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
            for (sector, offset) in found
                .chunks_mut(ENTRIES_PER_SECTOR)
                .zip((at..).step_by(512))
            {
                // Neither the blocks that stay nor what fills the table's last sector.
                let stays = |block: u64| block < u64::from(first) || block >= u64::from(entries);
                let mut any = false;
                for (place, block) in sector.iter_mut().zip(offset / 4..) {
                    if *place != bat::UNUSED && !stays(block) {
                        *place = bat::UNUSED;
                        any = true;
                    }
                }
                if any {
                    pieces.push((table + offset, bat::encode(sector)));
                }
            }
            changed |= !pieces.is_empty();
            let pieces = pieces.iter();
            io.write_all(
                "BAT",
                file,
                pieces.map(|(at, bytes)| (*at, bytes.as_slice())),
            )
            .await?;
            at += length;
        }
        if changed {
            io.sync(file).await?;
        }
        for block in first..blocks.count {
            blocks.release(block);
        }
        let past_end = blocks.bat.iter_mut().skip(first.max(blocks.count) as usize);
        past_end.for_each(|entry| *entry = bat::UNUSED);
        Ok(())
    }
}
