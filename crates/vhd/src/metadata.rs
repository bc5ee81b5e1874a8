//! Changing what an image says of itself: its footers, its header and its parent locators, each at one instant.
//!
//! A footer is one sector, which a disk writes whole or not at all; while one of the two changes, the other one covers
//! for it. A header is two sectors, and its locators are elsewhere. So a new header is first written as a copy behind
//! everything else, with a footer behind it that names the copy; only when both footers do, the header is rewritten at
//! its place, and then the footers name that again. A power cut leaves the old header, the new one, or the copy of the new
//! one, each as good as the others; the copy is dissolved by the next change, or by the job that repairs.

mod allocate;
mod extend_table;
mod fixed;
mod header;
pub(crate) mod lost_footer;
mod table;

use crate::error::{Error, Result};
use crate::format::batmap::Batmap;
use crate::format::footer::{self, Footer};
use crate::image::{Blocks, Image, Layout};
use crate::io::Io;
use crate::open::{self, FileSpec};
use crate::parent_link::ParentLink;

use header::no_room;
pub(crate) use header::{padded, room, with_locators};

/// Bytes of the largest file that makes sense.
const MAX_FILE: u64 = 1 << 62;

/// A VHD, alone, that is open for changes of its metadata. Whoever uses it has the file for itself, but for readers who see
/// the image as a parent.
#[derive(Debug)]
pub(crate) struct Metadata {
    io: Io,
    spec: FileSpec,
    pub(crate) image: Image,
    pub(crate) footer: Footer,
    /// The copy at offset 0, if it is good.
    pub(crate) backup: Option<Footer>,
    /// Its batmap's header, if it has one.
    pub(crate) batmap: Option<Batmap>,
    /// Byte offset of the footer at the end, or where it belongs if it is bad.
    pub(crate) end: u64,
    pub(crate) primary_is_good: bool,
    /// The copy at offset 0 is right, or the image is fixed and has none.
    pub(crate) backup_is_good: bool,
}

impl Metadata {
    /// Opens the image in `spec`'s file, which is open for writing.
    ///
    /// # Errors
    /// Those of opening an image.
    pub(crate) async fn open(io: &Io, spec: &FileSpec) -> Result<Self> {
        Self::read(io, spec)
            .await
            .map_err(|error| error.in_file(&spec.path))
    }

    async fn read(io: &Io, spec: &FileSpec) -> Result<Self> {
        // What only readers overlook matters to who works on metadata, also of an image that is to be copied.
        let strict = FileSpec {
            read_only: false,
            ..spec.clone()
        };
        let (image, _, footers) = open::open_vhd(io, &strict).await?;
        let mut end = footers.end;
        let mut batmap = None;
        let mut backup_is_good = true;
        if let Layout::Blocks(blocks) = &image.layout {
            batmap = blocks.batmap.as_ref().map(|state| state.header().clone());
            backup_is_good = footers.backup.as_ref() == Some(&footers.footer);
            if !footers.primary_is_good {
                end = blocks.used_end() * 512;
            }
        }
        if spec.block_device {
            end = (spec.size / 512).saturating_sub(1) * 512;
        }
        Ok(Self {
            io: io.clone(),
            spec: spec.clone(),
            image,
            footer: footers.footer,
            backup: footers.backup,
            batmap,
            end,
            primary_is_good: footers.primary_is_good,
            backup_is_good,
        })
    }

    /// The image's blocks, if it has a BAT.
    pub(crate) fn blocks(&self) -> Option<&Blocks> {
        match &self.image.layout {
            Layout::Blocks(blocks) => Some(blocks),
            Layout::Flat => None,
        }
    }

    /// The file as it is now.
    pub(crate) fn file(&self) -> FileSpec {
        let mut file = self.spec.clone();
        if !file.block_device {
            file.size = self.end + footer::LENGTH as u64;
        }
        file
    }

    /// Makes `footer` what both copies say, durably. At every moment before, the image opens with the old footer or with
    /// this one.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) async fn write_footer(&mut self, footer: &Footer) -> Result<()> {
        let bytes = footer.encode();
        if !self.primary_is_good {
            self.write_primary(&bytes).await?;
        }
        if self.blocks().is_some() {
            self.backup_is_good = false;
            self.write_synced("backup footer", 0, &bytes).await?;
            self.backup_is_good = true;
        }
        if self.primary_is_good {
            self.primary_is_good = false;
            self.write_primary(&bytes).await?;
        }
        self.primary_is_good = true;
        self.footer = footer.clone();
        Ok(())
    }

    /// Writes the footer at the end, and makes that the file's end.
    async fn write_primary(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_synced("footer", self.end, bytes).await?;
        self.cut(self.end + bytes.len() as u64).await
    }

    /// Moves the footer to byte `end`, behind everything that is in use, and makes that the file's end: it grows, or gives
    /// space back.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) async fn move_footer(&mut self, end: u64) -> Result<()> {
        if !self.backup_is_good {
            let footer = self.footer.clone();
            self.write_footer(&footer).await?;
        }
        let bytes = self.footer.encode();
        let grows = end > self.end;
        self.end = end;
        self.primary_is_good = false;
        if grows && !self.spec.block_device {
            // A footer that becomes durable after the file's size leaves the file without one: the copy covers.
            self.io
                .truncate(self.spec.file, end + bytes.len() as u64)
                .await?;
        }
        self.write_primary(&bytes).await?;
        self.primary_is_good = true;
        Ok(())
    }

    /// Makes the image a child of another parent, durably, at one instant.
    ///
    /// # Errors
    /// `EINVAL` if it is not a differencing image, `ENAMETOOLONG` or `ENOSPC` on a block device without room for it, or an
    /// I/O error.
    pub(crate) async fn set_parent(&mut self, link: &ParentLink) -> Result<()> {
        let Some(blocks) = self
            .blocks()
            .filter(|blocks| blocks.footer.disk_type == footer::DiskType::Differencing)
        else {
            return Err(
                Error::invalid("footer", "only a differencing image has a parent")
                    .at(60)
                    .found(self.footer.disk_type, footer::DiskType::Differencing),
            );
        };
        let mut header = blocks.header.clone();
        link.name_in(&mut header);
        self.write_header(&header, &link.names(), &[]).await
    }

    /// Most bytes that the image's file can have.
    pub(crate) fn most_bytes(&self) -> u64 {
        if self.spec.block_device {
            self.spec.size
        } else {
            MAX_FILE
        }
    }

    /// Makes a file end right behind what is in use, giving space back. A block device keeps its footer where it is.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) async fn trim(&mut self) -> Result<()> {
        let end = self.used_end();
        if self.spec.block_device || (end == self.end && self.primary_is_good) {
            return Ok(());
        }
        self.move_footer(end).await
    }

    /// Byte behind everything that is in use.
    pub(crate) fn used_end(&self) -> u64 {
        match &self.image.layout {
            Layout::Blocks(blocks) => blocks.used_end() * 512,
            Layout::Flat => self.image.sectors * 512,
        }
    }

    /// Makes a file end at byte `size`, durably. A block device stays as it is.
    async fn cut(&self, size: u64) -> Result<()> {
        if self.spec.block_device {
            return Ok(());
        }
        self.io.truncate(self.spec.file, size).await?;
        self.io.sync(self.spec.file).await
    }

    async fn write_synced(&self, structure: &'static str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.io
            .write(structure, self.spec.file, offset, bytes)
            .await?;
        self.io.sync(self.spec.file).await
    }
}
