//! What making images has in common: a file that is there only when the image is complete, and the structures of an empty
//! image.

use super::Context;
use crate::error::{Error, Result, errno};
use crate::format::bat;
use crate::format::batmap::{self, Batmap};
use crate::format::footer::{self, Footer};
use crate::format::header::{self, Header};
use crate::image::{MAX_BAT_ENTRIES, MAX_DYNAMIC_SIZE};
use crate::metadata::{padded, room, with_locators};
use crate::open::{Driver, FileSpec};
use crate::parent_link::ParentLink;
use crate::planted::{self, Bug};
use crate::wants::Access;

/// The block size of blktap's images, and the only one for which it has a batmap.
pub(super) const BLOCK_SIZE: u32 = 2 << 20;

/// Byte offset of the BAT.
const TABLE: u64 = (footer::LENGTH + header::LENGTH) as u64;
/// Bytes of the BAT that are written together.
const PIECE: usize = 64 << 10;

/// An empty image with a BAT.
pub(super) struct Empty<'a> {
    pub(super) footer: Footer,
    /// Bytes for which the BAT has room; at least the disk's size.
    pub(super) max_size: u64,
    pub(super) block_size: u32,
    /// For a differencing image.
    pub(super) parent: Option<&'a ParentLink>,
}

impl Context {
    /// Makes a file at `path` and lets `fill` make an image there; if that fails, the file is removed. A block device, which
    /// exists before, is taken as it is.
    ///
    /// # Errors
    /// `EEXIST` if there is something else; the host's error, or that of `fill`.
    pub(super) async fn make_image<T>(
        &self,
        path: &str,
        driver: Driver,
        fill: impl AsyncFnOnce(&FileSpec) -> Result<T>,
    ) -> Result<T> {
        let (file, made) = match self.files.open(path, driver, Access::Create).await {
            Ok(file) => (file, true),
            Err(errno::EEXIST) => {
                let file = self.open_file(path, driver, Access::Write).await?;
                if !file.block_device {
                    self.files.close(file.file).await;
                    return Err(Error::file(errno::EEXIST, "exists already").in_file(path));
                }
                (file, false)
            }
            Err(errno) => return Err(Error::file(errno, "can't be created").in_file(path)),
        };
        let outcome = fill(&file).await.map_err(|error| error.in_file(path));
        self.files.close(file.file).await;
        if outcome.is_err() && made {
            // The error that led here is the one to tell.
            let _ = self.files.remove(path).await;
        }
        outcome
    }

    /// Makes sure that nothing on a block device looks like a footer of an image to come, whose own are not there yet.
    pub(super) async fn clear_footers(&self, file: &FileSpec) -> Result<()> {
        if !file.block_device {
            return Ok(());
        }
        let last = device_end(file)?;
        let nothing = [0; 512];
        let pieces = [0, last].into_iter().map(|at| (at, nothing.as_slice()));
        self.io.write_all("footer", file.file, pieces).await?;
        self.io.sync(file.file).await
    }

    /// Writes an image's footers, behind everything else that is durable by then: the image is there.
    pub(super) async fn write_footers(
        &self,
        file: &FileSpec,
        footer: &Footer,
        end: u64,
    ) -> Result<()> {
        self.io.sync(file.file).await?;
        let bytes = footer.encode();
        if footer.data_offset != footer::NO_DATA_OFFSET {
            self.io.write("backup footer", file.file, 0, &bytes).await?;
        }
        self.io.write("footer", file.file, end, &bytes).await?;
        if planted::is(Bug::CreateNotSynced) {
            return Ok(());
        }
        self.io.sync(file.file).await
    }

    /// Writes an empty image: header, BAT, batmap and locators as blktap has them, and the footers when these are durable.
    ///
    /// # Errors
    /// A size or block size out of range, `ENOSPC` on a block device that is too small, or an I/O error.
    pub(super) async fn write_empty(&self, file: &FileSpec, image: &Empty<'_>) -> Result<()> {
        check_sizes(image)?;
        let io = &self.io;
        let entries = image.max_size.div_ceil(u64::from(image.block_size));
        let header = Header::new(TABLE, entries as u32, image.block_size);
        let mut footer = image.footer.clone();
        let mut end = batmap::header_offset(TABLE, header.max_table_entries);
        let mut metadata: Vec<(u64, Vec<u8>)> = Vec::new();
        if image.block_size == BLOCK_SIZE {
            footer.promise_batmap();
            let map_at = end + batmap::HEADER_LENGTH as u64;
            let sectors = entries.div_ceil(8 * 512).max(1);
            let batmap = Batmap::new(map_at, sectors as u32);
            metadata.push((end, batmap.encode().to_vec()));
            metadata.push((map_at, vec![0; sectors as usize * 512]));
            end = map_at + sectors * 512;
        }
        let names = image.parent.map(ParentLink::names).unwrap_or_default();
        let mut names_at = Vec::new();
        for (_, name) in &names {
            names_at.push(end);
            metadata.push((end, padded(name)));
            end += room(name);
        }
        let mut header = with_locators(&header, &names, &names_at);
        if let Some(parent) = image.parent {
            parent.name_in(&mut header);
        }
        metadata.push((footer::LENGTH as u64, header.encode().to_vec()));
        let used_end = end;
        if file.block_device {
            end = device_end(file)?;
            if used_end > end {
                return Err(Error {
                    errno: errno::ENOSPC,
                    ..Error::invalid("file", "the block device is too small for the image")
                        .found(file.size, format!("at least {} bytes", used_end + 512))
                });
            }
        } else {
            io.truncate(file.file, end + footer::LENGTH as u64).await?;
        }
        self.clear_footers(file).await?;
        let table = bat::encode(&vec![bat::UNUSED; PIECE / 4]);
        let table_bytes = (entries * 4).next_multiple_of(512) as usize;
        let pieces = (0..table_bytes).step_by(PIECE).map(|at| {
            let piece = &table[..(table_bytes - at).min(PIECE)];
            (TABLE + at as u64, piece)
        });
        io.write_all("BAT", file.file, pieces).await?;
        let pieces = metadata.iter().map(|(at, bytes)| (*at, bytes.as_slice()));
        io.write_all("metadata", file.file, pieces).await?;
        self.write_footers(file, &footer, end).await
    }
}

fn check_sizes(image: &Empty<'_>) -> Result<()> {
    let (size, block_size) = (image.footer.current_size, image.block_size);
    let range = header::MIN_BLOCK_SIZE..=header::MAX_BLOCK_SIZE;
    if !block_size.is_power_of_two() || !range.contains(&block_size) {
        return Err(Error::invalid("block size", "not a possible block size")
            .found(block_size, "a power of two, 4 KiB to 256 MiB"));
    }
    check_size(size, MAX_DYNAMIC_SIZE)?;
    if image.max_size < size || image.max_size > MAX_DYNAMIC_SIZE {
        return Err(Error::invalid("size", "not a possible size to grow to")
            .found(image.max_size, format!("from {size} to {MAX_DYNAMIC_SIZE}")));
    }
    let entries = image.max_size.div_ceil(u64::from(block_size));
    if entries > MAX_BAT_ENTRIES {
        return Err(Error::invalid("block size", "too many blocks")
            .found(entries, format!("at most {MAX_BAT_ENTRIES}")));
    }
    Ok(())
}

/// Checks the size of a virtual disk.
pub(super) fn check_size(size: u64, limit: u64) -> Result<()> {
    if size == 0 || !size.is_multiple_of(512) || size > limit {
        return Err(Error::invalid("size", "not a possible disk size")
            .found(size, format!("a positive multiple of 512, at most {limit}")));
    }
    Ok(())
}

/// Byte offset of the footer on a block device.
pub(super) fn device_end(file: &FileSpec) -> Result<u64> {
    let sectors = (file.size / 512).checked_sub(1);
    sectors.map(|sectors| sectors * 512).ok_or_else(|| Error {
        errno: errno::ENOSPC,
        ..Error::invalid("file", "the block device is too small for an image")
            .found(file.size, "at least 512 bytes")
    })
}
