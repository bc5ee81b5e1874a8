//! Replacing the header and the parent locators of an image, and where they go.

use super::Metadata;
use crate::error::{Error, Result, errno};
use crate::format::bat;
use crate::format::batmap::{self, Batmap};
use crate::format::footer::{self, Footer};
use crate::format::header::{self, Header, LOCATORS};
use crate::format::locator::ParentLocator;
use crate::image::Blocks;
use crate::parent_link::LocatorName;
use crate::planted::{self, Bug};

/// Where the header is in almost every image.
const HEADER_AT: u64 = footer::LENGTH as u64;
/// Names of parents longer than any file system's are not kept.
const MAX_NAME: u32 = 64 << 10;

/// Where a header, its locators and the footer go.
pub(crate) struct Plan {
    pub(crate) header_at: u64,
    pub(crate) header: Header,
    /// Byte offset of each name's room.
    pub(crate) names_at: Vec<u64>,
    /// Byte offset of the footer.
    pub(crate) end: u64,
}

impl Metadata {
    /// The names in the locators, to be kept.
    ///
    /// # Errors
    /// A name that can't be read.
    pub(crate) async fn names(&self) -> Result<Vec<LocatorName>> {
        let locators = self.blocks().map(|blocks| blocks.header.locators);
        let mut names = Vec::new();
        for locator in locators.iter().flatten().filter(|entry| entry.is_used()) {
            if locator.data_length > MAX_NAME {
                return Err(Error::invalid("parent locator", "too long")
                    .at(locator.data_offset)
                    .found(locator.data_length, format!("at most {MAX_NAME} bytes")));
            }
            let name = self
                .io
                .read(
                    "parent locator",
                    self.spec.file,
                    locator.data_offset,
                    locator.data_length as usize,
                )
                .await?;
            names.push((locator.platform, name));
        }
        Ok(names)
    }

    /// Replaces the header, with locators for `names`, and what it says of `in_place`: pieces of the file that only the new
    /// header gives a meaning. Durable, at one instant. Afterwards the file ends right behind what is in use.
    ///
    /// # Errors
    /// `ENOSPC` or `ENAMETOOLONG` on a block device without room; an I/O error, after which the image has the old header,
    /// or the new one.
    pub(crate) async fn write_header(
        &mut self,
        header: &Header,
        names: &[LocatorName],
        in_place: &[(u64, Vec<u8>)],
    ) -> Result<()> {
        self.check_table()?;
        let device_end = self.spec.block_device.then_some(self.end);
        let plan = self.plan(header, names, device_end)?;
        if !(self.primary_is_good && self.backup_is_good) {
            let footer = self.footer.clone();
            self.write_footer(&footer).await?;
        }
        let room: u64 = names.iter().map(|(_, name)| room(name)).sum();
        let copy_length = header::LENGTH as u64 + room;
        let (copy_at, copy_end) = if self.spec.block_device {
            let at = plan.names_end(names).max(self.used_end());
            if at + copy_length > self.end {
                return Err(no_room(errno::ENOSPC, at + copy_length, self.end));
            }
            (at, self.end)
        } else {
            let at = plan.end.max(self.end) + footer::LENGTH as u64;
            (at, at + copy_length)
        };
        let old = self.footer.clone();
        let copied = if planted::is(Bug::HeaderWithoutCopy) {
            Ok(())
        } else {
            self.write_copy(&plan, names, copy_at, copy_end).await
        };
        if let Err(error) = copied {
            // Whatever was done of that, the old footers undo it.
            if self
                .write_synced("backup footer", 0, &old.encode())
                .await
                .is_ok()
            {
                let _ = self.write_primary(&old.encode()).await;
            }
            return Err(error);
        }
        // From here on there is only forward.
        for (offset, bytes) in in_place {
            self.io
                .write("metadata", self.spec.file, *offset, bytes)
                .await?;
        }
        for ((_, name), at) in names.iter().zip(&plan.names_at) {
            self.io
                .write("parent locator", self.spec.file, *at, &padded(name))
                .await?;
        }
        self.write_synced("dynamic header", plan.header_at, &plan.header.encode())
            .await?;
        let footer = Footer {
            data_offset: plan.header_at,
            ..old
        };
        self.write_synced("backup footer", 0, &footer.encode())
            .await?;
        self.end = plan.end;
        self.write_primary(&footer.encode()).await?;
        self.footer = footer;
        Ok(())
    }

    /// A BAT that is said to be larger than its file would make room for locators where none is.
    pub(super) fn check_table(&self) -> Result<()> {
        let Some(header) = self.blocks().map(|blocks| &blocks.header) else {
            return Ok(());
        };
        let end = batmap::header_offset(header.table_offset, header.max_table_entries);
        if end > self.end {
            return Err(
                Error::invalid("dynamic header", "the BAT does not fit the file")
                    .at(self.footer.data_offset + 28)
                    .found(
                        format!("{} entries, end at {end}", header.max_table_entries),
                        format!("an end at {} or before", self.end),
                    ),
            );
        }
        Ok(())
    }

    /// Puts a header that is a copy behind the data back to its place, which an interrupted change left there.
    ///
    /// # Errors
    /// Those of [`Metadata::write_header`].
    pub(crate) async fn dissolve_copy(&mut self) -> Result<()> {
        let Some(blocks) = self.blocks() else {
            return Ok(());
        };
        let behind = blocks
            .bat
            .iter()
            .filter(|place| **place != bat::UNUSED)
            .map(|place| (u64::from(*place) + blocks.block_span()) * 512)
            .fold(blocks.header.table_offset, u64::max);
        if self.footer.data_offset == HEADER_AT || self.footer.data_offset < behind {
            return Ok(());
        }
        let header = blocks.header.clone();
        let names = self.names().await?;
        self.write_header(&header, &names, &[]).await
    }

    /// Writes a copy of the header and its names, and makes the footers name it.
    async fn write_copy(
        &mut self,
        plan: &Plan,
        names: &[LocatorName],
        copy_at: u64,
        copy_end: u64,
    ) -> Result<()> {
        let file = self.spec.file;
        let mut names_at = Vec::new();
        let mut bytes = vec![0; header::LENGTH];
        for (_, name) in names {
            names_at.push(copy_at + bytes.len() as u64);
            bytes.extend(padded(name));
        }
        // The copy has the old BAT: entries behind that are not in the file yet.
        let entries = self.blocks().map(|blocks| blocks.header.max_table_entries);
        let copy = Header {
            max_table_entries: entries.unwrap_or(plan.header.max_table_entries),
            ..with_locators(&plan.header, names, &names_at)
        };
        bytes[..header::LENGTH].copy_from_slice(&copy.encode());
        if !self.spec.block_device {
            self.io
                .truncate(file, copy_end + footer::LENGTH as u64)
                .await?;
        }
        self.write_synced("dynamic header", copy_at, &bytes).await?;
        let footer = Footer {
            data_offset: copy_at,
            ..self.footer.clone()
        }
        .encode();
        self.write_synced("footer", copy_end, &footer).await?;
        self.write_synced("backup footer", 0, &footer).await
    }

    /// Chooses where a new header and its locators go: as blktap has them, the names between the BAT (or its batmap) and
    /// the first block, if they fit there; else behind the last block. The footer follows, or is at `device_end`.
    ///
    /// # Errors
    /// `ENAMETOOLONG` if there is no room before `device_end`.
    pub(crate) fn plan(
        &self,
        header: &Header,
        names: &[LocatorName],
        device_end: Option<u64>,
    ) -> Result<Plan> {
        let blocks = self.blocks();
        let places = || {
            let table = blocks.into_iter().flat_map(|blocks| &blocks.bat);
            table
                .filter(|place| **place != bat::UNUSED)
                .map(|place| u64::from(*place) * 512)
        };
        let span = blocks.map_or(0, Blocks::block_span) * 512;
        let first_block = places().min().unwrap_or(u64::MAX);
        let blocks_end = places().map(|place| place + span).max().unwrap_or(0);

        let header_end = HEADER_AT + header::LENGTH as u64;
        let header_at = if first_block >= header_end && header.table_offset >= header_end {
            HEADER_AT
        } else {
            self.footer.data_offset
        };
        let table_end = batmap::header_offset(header.table_offset, header.max_table_entries);
        let batmap_end = self.batmap.as_ref().map_or(0, |batmap| {
            map_end(batmap).max(table_end + batmap::HEADER_LENGTH as u64)
        });
        let front_end = table_end
            .max(batmap_end)
            .max(header_at + header::LENGTH as u64);
        let room: u64 = names.iter().map(|(_, name)| room(name)).sum();
        let start = if front_end + room <= first_block {
            front_end
        } else {
            blocks_end.max(front_end)
        };
        let used_end = (start + room).max(blocks_end);
        if let Some(limit) = device_end.filter(|limit| used_end > *limit) {
            return Err(no_room(errno::ENAMETOOLONG, used_end, limit));
        }
        if names.len() > LOCATORS {
            return Err(Error::invalid("parent locator", "too many"));
        }
        let mut next = start;
        let names_at: Vec<u64> = names
            .iter()
            .map(|(_, name)| {
                let at = next;
                next += self::room(name);
                at
            })
            .collect();
        Ok(Plan {
            header_at,
            header: with_locators(header, names, &names_at),
            names_at,
            end: device_end.unwrap_or(used_end),
        })
    }
}

impl Plan {
    /// Byte behind the last name.
    fn names_end(&self, names: &[LocatorName]) -> u64 {
        let ends = self.names_at.iter().zip(names);
        ends.map(|(at, (_, name))| at + room(name))
            .max()
            .unwrap_or(0)
    }
}

/// Byte behind a batmap.
fn map_end(batmap: &Batmap) -> u64 {
    let end = batmap
        .offset
        .saturating_add(u64::from(batmap.sectors) * 512);
    end.checked_next_multiple_of(512).unwrap_or(u64::MAX)
}

/// The header with locators that say that the names are at these byte offsets.
pub(crate) fn with_locators(header: &Header, names: &[LocatorName], at: &[u64]) -> Header {
    let mut header = Header {
        locators: [ParentLocator::default(); LOCATORS],
        ..header.clone()
    };
    for ((locator, (platform, name)), at) in header.locators.iter_mut().zip(names).zip(at) {
        *locator = ParentLocator {
            platform: *platform,
            data_space: room(name) as u32,
            data_length: name.len() as u32,
            data_offset: *at,
        };
    }
    header
}

/// Bytes that a name takes in a file: whole sectors, at least one.
pub(crate) fn room(name: &[u8]) -> u64 {
    (name.len() as u64).max(1).next_multiple_of(512)
}

/// A name as it is in a file.
pub(crate) fn padded(name: &[u8]) -> Vec<u8> {
    let mut bytes = name.to_vec();
    bytes.resize(room(name) as usize, 0);
    bytes
}

pub(super) fn no_room(errno: i32, end: u64, limit: u64) -> Error {
    Error {
        errno,
        ..Error::invalid("file", "no room behind the data for a new header").found(
            format!("{limit} bytes before the footer"),
            format!("at least {end}"),
        )
    }
}
