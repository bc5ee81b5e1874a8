//! What making images has in common: a file that is there only when the image is complete, and the structures of an empty
//! image.

use super::Context;
use crate::error::{Error, Result, errno};
use crate::format::bat;
use crate::format::batmap::{self, Batmap};
use crate::format::bitmap;
use crate::format::footer::{self, Footer};
use crate::format::header::{self, Header};
use crate::image::{self, MAX_BAT_ENTRIES, MAX_DYNAMIC_SIZE, bitmap_sectors};
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

    /// Makes everything of a new file or block device zeros that is before byte `end`, and the file `size` bytes long.
    pub(super) async fn make_zeros(&self, file: &FileSpec, end: u64, size: u64) -> Result<()> {
        if file.block_device {
            return self.io.punch_all(file.file, [0].into_iter(), end).await;
        }
        self.io.truncate(file.file, size).await
    }

    /// Writes an empty image: header, BAT, batmap and locators as blktap has them, and the footers when these are durable.
    ///
    /// # Errors
    /// A size or block size out of range, `ENOSPC` on a block device that is too small, or an I/O error.
    pub(super) async fn write_empty(&self, file: &FileSpec, image: &Empty<'_>) -> Result<()> {
        self.write_blank(file, Blank::new(image)?).await
    }

    /// Writes the structures of an image whose blocks have their data already.
    ///
    /// # Errors
    /// `ENOSPC` on a block device that is too small, or an I/O error.
    pub(super) async fn write_blank(&self, file: &FileSpec, blank: Blank) -> Result<()> {
        let io = &self.io;
        let mut end = blank.end * 512;
        if file.block_device {
            let used_end = end;
            end = device_end(file)?;
            if used_end > end {
                return Err(too_small(file, used_end + 512));
            }
        } else {
            io.truncate(file.file, end + footer::LENGTH as u64).await?;
        }
        self.clear_footers(file).await?;
        for (index, entries) in blank.table.chunks(PIECE / 4).enumerate() {
            let at = TABLE + (index * PIECE) as u64;
            io.write("BAT", file.file, at, &bat::encode(entries))
                .await?;
        }
        let full = vec![0xff; blank.bitmap_sectors as usize * 512];
        let places = blank.table.iter().filter(|place| **place != bat::UNUSED);
        let bitmaps = places.map(|place| (u64::from(*place) * 512, full.as_slice()));
        io.write_all("bitmap", file.file, bitmaps).await?;
        let mut metadata = blank.metadata;
        if let Some((at, mut batmap)) = blank.batmap {
            let mut map = vec![0; batmap.sectors as usize * 512];
            for (block, place) in (0..).zip(&blank.table) {
                if *place != bat::UNUSED {
                    bitmap::set_range(&mut map, block, 1);
                }
            }
            batmap.checksum = batmap::checksum(&map, batmap.version);
            metadata.push((at, batmap.encode().to_vec()));
            metadata.push((batmap.offset, map));
        }
        let pieces = metadata.iter().map(|(at, bytes)| (*at, bytes.as_slice()));
        io.write_all("metadata", file.file, pieces).await?;
        self.write_footers(file, &blank.footer, end).await
    }
}

/// An image with a BAT before it is written: blocks may get places, and the data there, before the rest.
pub(super) struct Blank {
    footer: Footer,
    table: Vec<u32>,
    bitmap_sectors: u32,
    block_sectors: u64,
    /// Byte offset of the batmap's header, and what it says of its place.
    batmap: Option<(u64, Batmap)>,
    /// Header and locators, with their byte offsets.
    metadata: Vec<(u64, Vec<u8>)>,
    /// First sector behind everything.
    end: u64,
}

impl Blank {
    /// An image without blocks.
    ///
    /// # Errors
    /// A size or block size out of range.
    pub(super) fn new(image: &Empty<'_>) -> Result<Self> {
        check_sizes(image)?;
        let entries = image.max_size.div_ceil(u64::from(image.block_size));
        let header = Header::new(TABLE, entries as u32, image.block_size);
        let mut footer = image.footer.clone();
        let mut end = batmap::header_offset(TABLE, header.max_table_entries);
        let mut metadata: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut batmap = None;
        if image.block_size == BLOCK_SIZE {
            footer.promise_batmap();
            let map_at = end + batmap::HEADER_LENGTH as u64;
            let sectors = batmap::map_sectors(header.max_table_entries);
            batmap = Some((end, Batmap::new(map_at, sectors)));
            end = map_at + u64::from(sectors) * 512;
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
        let sectors = image.block_size / 512;
        Ok(Self {
            footer,
            table: vec![bat::UNUSED; entries as usize],
            bitmap_sectors: bitmap_sectors(sectors),
            block_sectors: u64::from(sectors),
            batmap,
            metadata,
            end: end / 512,
        })
    }

    /// The sector of a block's bitmap; if it has no place, it gets one behind the others, before byte `limit`.
    ///
    /// # Errors
    /// `ENOSPC` if there is no more room.
    pub(super) fn place(&mut self, block: usize, limit: Option<u64>) -> Result<u64> {
        let no_room = || Error {
            errno: errno::ENOSPC,
            ..Error::invalid("BAT", "no room is left for a block")
        };
        let entry = self.table.get_mut(block).ok_or_else(no_room)?;
        if *entry == bat::UNUSED {
            let place = image::place(self.end, self.bitmap_sectors);
            let end = place + u64::from(self.bitmap_sectors) + self.block_sectors;
            let fits = limit.is_none_or(|limit| end * 512 <= limit);
            *entry = u32::try_from(place)
                .ok()
                .filter(|place| fits && *place != bat::UNUSED)
                .ok_or_else(no_room)?;
            self.end = end;
        }
        Ok(u64::from(*entry))
    }
}

fn too_small(file: &FileSpec, bytes: u64) -> Error {
    Error {
        errno: errno::ENOSPC,
        ..Error::invalid("file", "the block device is too small for the image")
            .found(file.size, format!("at least {bytes} bytes"))
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
