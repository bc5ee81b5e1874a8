//! Making new images.

use crate::error::{Error, Result};
use crate::format::bat;
use crate::format::batmap::{self, Batmap};
use crate::format::footer::{self, DiskType, Footer};
use crate::format::header::{self, Header};
use crate::format::uuid::Uuid;
use crate::image::{MAX_BAT_ENTRIES, MAX_DYNAMIC_SIZE};
use crate::io::Io;

/// Bytes in the blocks of an image that gets a batmap.
const BATMAP_BLOCK_SIZE: u32 = 2 << 20;

/// A new image.
#[derive(Clone, Debug)]
pub struct CreateSpec {
    /// The host's number of the file, which is open for writing and empty.
    pub file: u16,
    /// [`DiskType::Fixed`] or [`DiskType::Dynamic`].
    pub disk_type: DiskType,
    /// Size of the virtual disk, bytes: a positive multiple of 512.
    pub size: u64,
    /// Bytes in a block: a power of two from 4 KiB to 256 MiB, usually 2 MiB.
    pub block_size: u32,
    /// The image's identity.
    pub uuid: Uuid,
    /// Time of creation, VHD time stamp.
    pub timestamp: u32,
}

/// Writes the structures of an empty image: backup footer, header, BAT, batmap, footer; for a fixed disk its sparse data and the
/// footer. The footer at the end comes last, so that what a crash leaves is not mistaken for a disk.
///
/// # Errors
/// A size or block size out of range, or an I/O error.
pub(crate) async fn create(io: &Io, spec: &CreateSpec) -> Result<()> {
    let limit = if spec.disk_type == DiskType::Fixed {
        i64::MAX.cast_unsigned() - 512
    } else {
        MAX_DYNAMIC_SIZE
    };
    if spec.size == 0 || !spec.size.is_multiple_of(512) || spec.size > limit {
        return Err(Error::invalid("size", "not a possible disk size").found(
            spec.size,
            format!("a positive multiple of 512, at most {limit}"),
        ));
    }
    let mut footer = Footer::new(spec.disk_type, spec.size, spec.uuid, spec.timestamp);
    if has_batmap(spec) {
        footer.promise_batmap();
    }
    let footer = footer.encode();
    let end = match spec.disk_type {
        DiskType::Fixed => spec.size,
        DiskType::Dynamic => create_blocks(io, spec, &footer).await?,
        DiskType::Differencing => {
            return Err(Error::invalid(
                "type",
                "a differencing image needs a parent",
            ));
        }
    };
    io.truncate(spec.file, end + footer.len() as u64).await?;
    io.sync(spec.file).await?;
    io.write("footer", spec.file, end, &footer).await?;
    io.sync(spec.file).await
}

/// Whether the image gets a batmap: blktap, for whom it is, has one for each image with blocks, which are of 2 MiB there.
fn has_batmap(spec: &CreateSpec) -> bool {
    spec.disk_type != DiskType::Fixed && spec.block_size == BATMAP_BLOCK_SIZE
}

/// Writes what is before the blocks. Returns the byte behind it.
async fn create_blocks(io: &Io, spec: &CreateSpec, footer: &[u8]) -> Result<u64> {
    if !spec.block_size.is_power_of_two()
        || !(header::MIN_BLOCK_SIZE..=header::MAX_BLOCK_SIZE).contains(&spec.block_size)
    {
        return Err(Error::invalid("block size", "not a possible block size")
            .found(spec.block_size, "a power of two, 4 KiB to 256 MiB"));
    }
    let table_offset = (footer::LENGTH + header::LENGTH) as u64;
    let count = spec.size.div_ceil(u64::from(spec.block_size));
    if count > MAX_BAT_ENTRIES {
        return Err(Error::invalid("block size", "too many blocks")
            .found(count, format!("at most {MAX_BAT_ENTRIES}")));
    }
    let header = Header::new(table_offset, count as u32, spec.block_size).encode();
    io.write("backup footer", spec.file, 0, footer).await?;
    io.write("dynamic header", spec.file, footer::LENGTH as u64, &header)
        .await?;
    let mut at = table_offset;
    let mut left = count;
    while left > 0 {
        let part = left.min(1 << 16);
        let bytes = bat::encode(&vec![bat::UNUSED; part as usize]);
        io.write("BAT", spec.file, at, &bytes).await?;
        at += bytes.len() as u64;
        left -= part;
    }
    if has_batmap(spec) {
        let map = vec![0; count.div_ceil(8).next_multiple_of(512) as usize];
        let map_at = at + batmap::HEADER_LENGTH as u64;
        let header = Batmap::new(map_at, (map.len() / 512) as u32);
        io.write("batmap", spec.file, at, &header.encode()).await?;
        io.write("batmap", spec.file, map_at, &map).await?;
        at = map_at + map.len() as u64;
    }
    Ok(at)
}
