//! The footer of a fixed disk that is not at the end of its file, because a power cut came while the file grew: whoever resizes
//! or repairs the image finds it behind the disk's data, with nothing but zeros after it.

use std::collections::VecDeque;

use crate::error::Result;
use crate::format::bitmap;
use crate::format::footer::{self, DiskType, Footer};
use crate::format::header;
use crate::io::Io;
use crate::open::FileSpec;
use crate::record::MAX_DATA_MAP;

/// Bytes that are searched for a hole at once.
const SEARCH: u64 = 1 << 30;
/// Pieces at the end of a file that may be zeros though they are no holes.
const PIECES: usize = 64;

/// If `file` does not begin like an image with a BAT and ends with zeros, and the last sector before them is the footer of a
/// fixed disk that ends there, cuts them off. Returns whether it did.
///
/// # Errors
/// An I/O error.
pub(crate) async fn restore(io: &Io, file: &mut FileSpec) -> Result<bool> {
    if file.block_device || file.size < 1024 || !is_zeros(io, file, file.size - 512).await? {
        return Ok(false);
    }
    // A dynamic image ends with what its guest wrote if its footer is lost, which could be a fixed disk's footer.
    let first = io
        .read("backup footer", file.file, 0, footer::LENGTH + 8)
        .await?;
    let (copy, header) = first.split_at(footer::LENGTH);
    let cookies = [footer::COOKIE, footer::POISON];
    if cookies.iter().any(|cookie| copy.starts_with(cookie)) || header == header::COOKIE {
        return Ok(false);
    }
    let Some(end) = data_end(io, file).await? else {
        return Ok(false);
    };
    let at = end - footer::LENGTH as u64;
    let bytes = io.read("footer", file.file, at, footer::LENGTH).await?;
    let found = Footer::decode(&bytes)
        .ok()
        .filter(|footer| footer.disk_type == DiskType::Fixed && footer.current_size == at);
    if found.is_none() {
        return Ok(false);
    }
    io.truncate(file.file, end).await?;
    io.sync(file.file).await?;
    file.size = end;
    Ok(true)
}

async fn is_zeros(io: &Io, file: &FileSpec, at: u64) -> Result<bool> {
    let bytes = io.read("footer", file.file, at, 512).await?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// The byte behind the last sector of a file that is not zeros.
async fn data_end(io: &Io, file: &FileSpec) -> Result<Option<u64>> {
    // The last piece that is no hole, and then its last sector that is not zeros.
    let mut at = 0;
    let mut pieces = VecDeque::new();
    while at < file.size {
        let (hole, bytes) = io
            .seek_hole(file.file, at, (file.size - at).min(SEARCH))
            .await?;
        if !hole {
            pieces.push_back(at..at + bytes);
            if pieces.len() > PIECES {
                pieces.pop_front();
            }
        }
        at += bytes.max(512);
    }
    while let Some(piece) = pieces.pop_back() {
        let mut end = piece.end;
        while end > piece.start {
            let length = (end - piece.start).min(MAX_DATA_MAP);
            let start = end - length;
            let map = io.data_map(file.file, start, length).await?;
            let sectors = (length / 512) as u32;
            let last = (0..sectors)
                .rev()
                .find(|sector| bitmap::is_set(&map, *sector));
            if let Some(sector) = last {
                return Ok(Some(start + (u64::from(sector) + 1) * 512));
            }
            end = start;
        }
    }
    Ok(None)
}
