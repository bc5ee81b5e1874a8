//! The BAT and blktap's batmap as jobs change them in an image that nobody has open as a disk.

use super::Metadata;
use crate::error::{Error, Result, errno};
use crate::format::bat::{self, ENTRIES_PER_SECTOR};
use crate::format::batmap;
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

    /// Makes the batmap call no block full, durably.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) async fn clear_batmap(&mut self) -> Result<()> {
        let (Some(at), Some(mut batmap)) = (self.batmap_at(), self.batmap.clone()) else {
            return Ok(());
        };
        batmap.checksum = batmap::checksum(&[], batmap.version);
        // Whatever a cut leaves of the map then, its checksum is wrong and nobody believes it.
        self.write_synced("batmap", at, &batmap.encode()).await?;
        let map = vec![0; 512];
        let sectors = (0..u64::from(batmap.sectors)).map(|sector| batmap.offset + sector * 512);
        let pieces = sectors.map(|offset| (offset, map.as_slice()));
        self.io.write_all("batmap", self.spec.file, pieces).await?;
        self.io.sync(self.spec.file).await?;
        self.batmap = Some(batmap);
        Ok(())
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
        (first..blocks.bat.len() as u32).for_each(|block| {
            blocks.release(block);
        });
        Ok(())
    }
}
