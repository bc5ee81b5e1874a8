//! The undo file: every byte that a repair overwrites, saved durably before it is overwritten.
//!
//! It is made of 512-byte sectors, numbers big-endian. The first sector has the cookie, the size of the image before the
//! repair, the image's name in its folder, and ranges of the image that the repair leaves alone, with a hash of them: if
//! they are not the same any more, somebody has used the image since. Records follow, each one sector with its cookie, a number that counts up,
//! its kind, the offset and length of the bytes, how many of them there were before (the others were past the end of the
//! file), and a hash; behind it the bytes before and the bytes after, each padded to whole sectors. The last record of a
//! repair that came to its end has nothing but its kind. What is cut off or torn at the end was not yet acted upon.

use crate::error::{Error, Result};
use crate::format::bytes::{array, put, u32_at, u64_at};

const SECTOR: usize = 512;
const COOKIE: [u8; 16] = *b"tapvhd undo 1\n\0\0";
const RECORD: [u8; 8] = *b"undo rec";
const GUARDED: usize = 40;
const GUARD: usize = 48;
const NAME: usize = 64;
const RANGES: usize = 320;
/// Most ranges that are guarded.
const MAX_RANGES: usize = 8;
const MAX_NAME: usize = 255;
/// Largest undo file that is read: a batmap and some sectors make much smaller ones.
pub(crate) const MAX_SIZE: u64 = 64 << 20;

const KIND_WRITE: u32 = 1;
const KIND_END: u32 = 2;

/// Bytes that a repair overwrites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Byte offset in the image.
    pub(crate) offset: u64,
    /// What was there; shorter than `after` where the file ended.
    pub(crate) before: Vec<u8>,
    pub(crate) after: Vec<u8>,
}

/// The content of an undo file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Undo {
    /// Size of the image before the repair, bytes.
    pub(crate) size: u64,
    /// Name of the image in its folder.
    pub(crate) name: String,
    /// Ranges of the image that the repair leaves alone: offset and length in bytes.
    pub(crate) guarded: Vec<(u64, u64)>,
    /// Their hash, [`fingerprint`] of all of them.
    pub(crate) guard: u64,
    pub(crate) changes: Vec<Change>,
    /// The repair came to its end.
    pub(crate) ended: bool,
    /// Bytes of the file that are good; the next record goes there.
    pub(crate) end: u64,
}

/// The first sector.
pub(crate) fn encode_header(undo: &Undo) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    put(&mut bytes, 0, &COOKIE);
    put(&mut bytes, 16, &undo.size.to_be_bytes());
    let name = undo.name.as_bytes();
    let length = name.len().min(MAX_NAME);
    put(&mut bytes, 24, &(length as u32).to_be_bytes());
    let ranges = &undo.guarded[..undo.guarded.len().min(MAX_RANGES)];
    put(&mut bytes, GUARDED, &(ranges.len() as u64).to_be_bytes());
    put(&mut bytes, GUARD, &undo.guard.to_be_bytes());
    put(&mut bytes, NAME, &name[..length]);
    for (index, (offset, length)) in ranges.iter().enumerate() {
        put(&mut bytes, RANGES + 16 * index, &offset.to_be_bytes());
        put(&mut bytes, RANGES + 16 * index + 8, &length.to_be_bytes());
    }
    let hash = hash(&bytes, &[]);
    put(&mut bytes, 32, &hash.to_be_bytes());
    bytes
}

/// The record of a change, the `index`th.
pub(crate) fn encode_change(index: u32, change: &Change) -> Vec<u8> {
    let length = change.after.len();
    let mut data = change.before.clone();
    data.resize(length.next_multiple_of(SECTOR), 0);
    data.extend(&change.after);
    data.resize(length.next_multiple_of(SECTOR) * 2, 0);
    let mut bytes = record(index, KIND_WRITE);
    put(&mut bytes, 16, &change.offset.to_be_bytes());
    put(&mut bytes, 24, &(length as u64).to_be_bytes());
    put(&mut bytes, 40, &(change.before.len() as u64).to_be_bytes());
    let hash = hash(&bytes, &data);
    put(&mut bytes, 32, &hash.to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The record that ends a repair.
pub(crate) fn encode_end(index: u32) -> Vec<u8> {
    let mut bytes = record(index, KIND_END);
    let hash = hash(&bytes, &[]);
    put(&mut bytes, 32, &hash.to_be_bytes());
    bytes
}

fn record(index: u32, kind: u32) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    put(&mut bytes, 0, &RECORD);
    put(&mut bytes, 8, &index.to_be_bytes());
    put(&mut bytes, 12, &kind.to_be_bytes());
    bytes
}

/// Hash of a sector, its own hash counted as zeros, and the data behind it.
fn hash(sector: &[u8], data: &[u8]) -> u64 {
    let parts = [
        sector.get(..32).unwrap_or_default(),
        &[0; 8],
        sector.get(40..SECTOR).unwrap_or_default(),
        data,
    ];
    parts
        .iter()
        .fold(FINGERPRINT, |hash, part| fingerprint(hash, part))
}

/// The fingerprint of nothing.
pub(crate) const FINGERPRINT: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a of `bytes` that follow what has the fingerprint `before`.
pub(crate) fn fingerprint(before: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(before, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Reads an undo file. `None` if it was cut off before its first record: nothing was changed because of it.
///
/// # Errors
/// It is something else.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Undo>> {
    if bytes.len() < SECTOR && COOKIE.starts_with(&bytes[..bytes.len().min(COOKIE.len())]) {
        return Ok(None);
    }
    let first = bytes.get(..SECTOR).unwrap_or_default();
    if first.iter().all(|byte| *byte == 0) && bytes.len() == SECTOR {
        return Ok(None);
    }
    let wrong = |message: &str| Error::invalid("undo file", message).at(0);
    if array(first, 0) != COOKIE {
        let found = first
            .get(..16)
            .unwrap_or_default()
            .escape_ascii()
            .to_string();
        return Err(wrong("this is no undo file").found(found, "tapvhd undo 1"));
    }
    let (stored, computed) = (u64_at(first, 32), hash(first, &[]));
    if stored != computed {
        return Err(wrong("its first sector is damaged")
            .found(format!("{stored:#x}"), format!("{computed:#x}")));
    }
    let length = (u32_at(first, 24) as usize).min(MAX_NAME);
    let name = first.get(NAME..NAME + length).unwrap_or_default();
    let mut undo = Undo {
        size: u64_at(first, 16),
        name: String::from_utf8_lossy(name).into_owned(),
        guarded: (0..(u64_at(first, GUARDED) as usize).min(MAX_RANGES))
            .map(|index| RANGES + 16 * index)
            .map(|at| (u64_at(first, at), u64_at(first, at + 8)))
            .collect(),
        guard: u64_at(first, GUARD),
        end: SECTOR as u64,
        ..Undo::default()
    };
    let mut rest = &bytes[SECTOR..];
    while let Some((change, length)) = decode_record(rest, undo.changes.len() as u32) {
        rest = &rest[length..];
        undo.end += length as u64;
        match change {
            Some(change) => undo.changes.push(change),
            None => {
                undo.ended = true;
                break;
            }
        }
    }
    Ok(Some(undo))
}

/// The record at the beginning of `bytes` if it is a whole one, without a change if it ends the file, and its length.
fn decode_record(bytes: &[u8], index: u32) -> Option<(Option<Change>, usize)> {
    let (head, rest) = bytes.split_at_checked(SECTOR)?;
    if array(head, 0) != RECORD || u32_at(head, 8) != index {
        return None;
    }
    if u32_at(head, 12) == KIND_END {
        return (u64_at(head, 32) == hash(head, &[])).then_some((None, SECTOR));
    }
    let length = usize::try_from(u64_at(head, 24)).ok()?;
    let before = usize::try_from(u64_at(head, 40)).ok()?;
    let padded = length.checked_next_multiple_of(SECTOR)?;
    let data = rest.get(..padded.checked_mul(2)?)?;
    if u32_at(head, 12) != KIND_WRITE || before > length || u64_at(head, 32) != hash(head, data) {
        return None;
    }
    let change = Change {
        offset: u64_at(head, 16),
        before: data[..before].to_vec(),
        after: data[padded..padded + length].to_vec(),
    };
    Some((Some(change), SECTOR + 2 * padded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Undo, Vec<u8>) {
        let changes = vec![
            Change {
                offset: 512,
                before: vec![1; 700],
                after: vec![2; 700],
            },
            Change {
                offset: 4096,
                before: Vec::new(),
                after: vec![3; 512],
            },
        ];
        let mut undo = Undo {
            size: 4096,
            name: "disk.vhd".to_owned(),
            guarded: vec![(512, 1024), (1536, 8)],
            guard: 7,
            ..Undo::default()
        };
        let mut bytes = encode_header(&undo);
        for (index, change) in (0..).zip(&changes) {
            bytes.extend(encode_change(index, change));
        }
        undo.changes = changes;
        undo.end = bytes.len() as u64;
        (undo, bytes)
    }

    #[test]
    fn round_trips_with_and_without_an_end() {
        let (mut undo, mut bytes) = sample();
        assert_eq!(decode(&bytes), Ok(Some(undo.clone())));
        bytes.extend(encode_end(2));
        undo.ended = true;
        undo.end += 512;
        assert_eq!(decode(&bytes), Ok(Some(undo)));
    }

    #[test]
    fn whatever_is_cut_off_or_torn_at_the_end_does_not_count() {
        let (undo, bytes) = sample();
        for length in 0..bytes.len() {
            let changes = decode(&bytes[..length])
                .expect("a part of an undo file")
                .map_or(0, |it| it.changes.len());
            assert!(changes < undo.changes.len(), "{length}");
            let mut torn = bytes.clone();
            torn[length] ^= 1;
            if let Ok(Some(it)) = decode(&torn) {
                assert!(it.changes.len() < undo.changes.len(), "{length}");
            }
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert!(decode(&[7; 2048]).is_err());
        assert!(decode(&[0; 2048]).is_err());
        assert_eq!(decode(&[]), Ok(None));
    }
}
