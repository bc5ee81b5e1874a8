//! Room for a larger BAT: the blocks that are in the way move behind the last one.

use super::{Metadata, no_room, room};
use crate::areas;
use crate::error::{Error, Result, errno};
use crate::format::bat::{self, ENTRIES_PER_SECTOR};
use crate::format::batmap::{self, Batmap};
use crate::format::header::Header;
use crate::image::{Blocks, Layout};
use crate::io::Copier;
use crate::planted::{self, Bug};

impl Metadata {
    /// Makes room for `entries` BAT entries, all new ones unused, with the batmap and the parent locators behind them.
    /// Other programs, which expect the BAT where it is, see no difference but that.
    ///
    /// # Errors
    /// `ENOSPC` on a block device without room; `EOPNOTSUPP` if something else than the batmap and locators is behind the
    /// BAT; an I/O error, after which the image has its old BAT or the new one.
    pub(crate) async fn extend_table(&mut self, entries: u32) -> Result<()> {
        let names = self.names().await?;
        let Some(blocks) = self.blocks() else {
            return Ok(());
        };
        let old = blocks.header.clone();
        let table = old.table_offset;
        if self.footer.data_offset > table && self.footer.data_offset < blocks.used_end() * 512 {
            let behind_blocks =
                lowest(blocks).is_some_and(|first| first <= self.footer.data_offset);
            if !behind_blocks {
                return Err(Error {
                    errno: errno::EOPNOTSUPP,
                    ..Error::invalid("dynamic header", "it is behind the BAT, which can't grow")
                        .at(self.footer.data_offset)
                });
            }
        }
        let header = Header {
            max_table_entries: entries,
            ..old.clone()
        };
        let mut end = batmap::header_offset(table, entries);
        let mut in_place = Vec::new();
        let batmap = self.batmap.as_ref().map(|batmap| {
            let offset = end + batmap::HEADER_LENGTH as u64;
            let sectors = batmap::map_sectors(entries);
            let map = self.full_map(u64::from(sectors) * 512);
            let batmap = Batmap {
                offset,
                sectors,
                checksum: batmap::checksum(&map, batmap.version),
                ..batmap.clone()
            };
            in_place.push((end, batmap.encode().to_vec()));
            in_place.push((offset, map));
            end = offset + u64::from(sectors) * 512;
            batmap
        });
        let names_end = end + names.iter().map(|(_, name)| room(name)).sum::<u64>();
        if let Err(error) = self.make_way(names_end).await {
            // A file that is longer now, without a footer at its end, is cut again.
            let _ = self.trim().await;
            return Err(error);
        }
        self.batmap = batmap.or(self.batmap.take());
        in_place.extend(self.blocks().map(|blocks| table_end(blocks, &old, entries)));
        self.write_header(&header, &names, &in_place).await?;
        // What moved away is nobody's.
        let first = self.blocks().and_then(lowest).unwrap_or(0);
        if first > names_end {
            let gap = first - names_end;
            self.io
                .punch_all(self.spec.file, [names_end].into_iter(), gap)
                .await?;
        }
        Ok(())
    }

    /// Frees the file up to byte `limit`, but for the structures that are there, and has the file system keep that space:
    /// once the header has changed there is no way back from a full one.
    async fn make_way(&mut self, limit: u64) -> Result<()> {
        self.move_blocks(limit).await?;
        if self.spec.block_device {
            return Ok(());
        }
        if self.end < limit {
            self.move_footer(limit).await?;
        }
        let free = self
            .blocks()
            .map(|blocks| areas::free_before(blocks, limit / 512));
        for (first, end) in free.unwrap_or_default() {
            let offset = [first * 512].into_iter();
            self.io
                .zero_all(self.spec.file, offset, (end - first) * 512)
                .await?;
        }
        Ok(())
    }

    /// Moves all blocks that begin before byte `limit` behind the last one.
    async fn move_blocks(&mut self, limit: u64) -> Result<()> {
        if !(self.primary_is_good && self.backup_is_good) {
            let footer = self.footer.clone();
            self.write_footer(&footer).await?;
        }
        let device_end = self.spec.block_device.then_some(self.end);
        let Layout::Blocks(blocks) = &mut self.image.layout else {
            return Ok(());
        };
        let moving: Vec<u32> = (0..blocks.count)
            .filter(|block| {
                blocks
                    .bitmap_sector(*block)
                    .is_some_and(|at| at * 512 < limit)
            })
            .collect();
        if moving.is_empty() {
            return Ok(());
        }
        let span = blocks.block_span();
        let mut end = blocks.used_end();
        let mut moves = Vec::new();
        for block in moving {
            let place = blocks.place(end);
            end = place + span;
            match (u32::try_from(place), blocks.bitmap_sector(block)) {
                (Ok(to), Some(from)) if to != bat::UNUSED => moves.push((block, from, to)),
                _ => return Err(no_room(errno::ENOSPC, end * 512, u64::from(u32::MAX) * 512)),
            }
        }
        let end = end * 512;
        if let Some(limit) = device_end.filter(|limit| end > *limit) {
            return Err(no_room(errno::ENOSPC, end, limit));
        }
        let (io, file) = (&self.io, self.spec.file);
        if device_end.is_none() {
            // The footer's copy covers until the footer is at its new place.
            self.primary_is_good = false;
            io.truncate(file, end.max(self.end) + 512).await?;
        }
        let mut copier = Copier::new(io, "block");
        let mut outcome = Ok(());
        for (_, from, to) in &moves {
            let (from, to) = ((file, from * 512), (file, u64::from(*to) * 512));
            outcome = outcome.and(copier.copy(from, to, span * 512).await);
        }
        copier.finish().await.and(outcome)?;
        if !planted::is(Bug::MovedBeforeCopied) {
            io.sync(file).await?;
        }
        if device_end.is_none() {
            let end = end.max(self.end);
            let bytes = self.footer.encode();
            io.write("footer", file, end, &bytes).await?;
            if !planted::is(Bug::MovedBeforeCopied) {
                io.sync(file).await?;
            }
            self.end = end;
            self.primary_is_good = true;
        }
        // Either place has the same, whichever the table on disk names.
        let mut sectors = Vec::new();
        for (block, _, to) in &moves {
            if let Some(entry) = blocks.bat.get_mut(*block as usize) {
                *entry = *to;
            }
            sectors.push(*block as usize / ENTRIES_PER_SECTOR);
        }
        sectors.sort_unstable();
        sectors.dedup();
        let table = blocks.header.table_offset;
        let pieces: Vec<(u64, Vec<u8>)> = sectors
            .into_iter()
            .map(|sector| {
                let first = sector * ENTRIES_PER_SECTOR;
                let entries = blocks.bat.get(first..first + ENTRIES_PER_SECTOR);
                (
                    table + sector as u64 * 512,
                    bat::encode(entries.unwrap_or_default()),
                )
            })
            .collect();
        let pieces = pieces.iter().map(|(at, bytes)| (*at, bytes.as_slice()));
        io.write_all("BAT", file, pieces).await?;
        io.sync(file).await
    }
}

/// The end of a BAT that gets more entries, from the sector with the last old entry on: where it is, and its bytes.
fn table_end(blocks: &Blocks, old: &Header, entries: u32) -> (u64, Vec<u8>) {
    let first = old.max_table_entries as usize / ENTRIES_PER_SECTOR * ENTRIES_PER_SECTOR;
    let entries: Vec<u32> = (first..entries as usize)
        .map(|block| match blocks.bat.get(block) {
            Some(place) if block < blocks.count as usize => *place,
            _ => bat::UNUSED,
        })
        .collect();
    (old.table_offset + first as u64 * 4, bat::encode(&entries))
}

/// Byte offset of the first block in the file.
fn lowest(blocks: &Blocks) -> Option<u64> {
    let places = blocks.bat.iter().filter(|place| **place != bat::UNUSED);
    places.map(|place| u64::from(*place) * 512).min()
}
