//! What the parts of a check share: the file, what is asked for, and what was found so far. Reading goes on whatever is
//! found: what can't be read is a finding as well.

use super::Ignore;
use super::codes;
use super::findings::{Finding, Findings};
use crate::io::Io;
use crate::open::FileSpec;

/// Seconds by which a time stamp may be in the future, as the original has it.
const SLACK: u64 = 1800;

/// Bytes that are read at once at most.
const PART: u64 = 1 << 20;

/// An image that is being looked at.
pub(crate) struct Checkup<'a> {
    pub(crate) io: &'a Io,
    pub(crate) file: &'a FileSpec,
    pub(crate) ignore: Ignore,
    /// Unix time, seconds; 0 if it is not known.
    pub(crate) now: u64,
    pub(crate) findings: Findings,
}

impl Checkup<'_> {
    pub(crate) fn add(&mut self, finding: Finding) {
        self.findings.add(finding);
    }

    /// Reads what there is of `length` bytes at `offset`: less where the file ends, nothing where reading fails, which is
    /// noted.
    pub(crate) async fn read(
        &mut self,
        structure: &'static str,
        offset: u64,
        length: u64,
    ) -> Vec<u8> {
        let end = offset.saturating_add(length).min(self.file.size);
        let mut bytes = Vec::new();
        let mut at = offset;
        while at < end {
            let part = (end - at).min(PART);
            match self
                .io
                .read(structure, self.file.file, at, part as usize)
                .await
            {
                Ok(more) => bytes.extend(more),
                Err(error) => {
                    self.unreadable(structure, error.offset.unwrap_or(at), error.errno);
                    break;
                }
            }
            at += part;
        }
        bytes
    }

    /// Notes that something can't be read.
    pub(crate) fn unreadable(&mut self, structure: &str, offset: u64, errno: i32) {
        let message = format!("reading fails with errno {errno}");
        self.add(Finding::new(codes::FILE_UNREADABLE, structure, message).at(offset));
    }

    /// Whether a VHD time stamp is in the future.
    pub(crate) fn in_future(&self, stamp: u32) -> bool {
        self.now != 0
            && !self.ignore.timestamps
            && crate::format::timestamp::to_unix(stamp) > self.now + SLACK
    }
}

/// Sectors of the file: the first, and the one behind the last.
pub(crate) type Range = (u64, u64);

/// The sectors that hold any of `length` bytes at `offset`.
pub(crate) fn sectors(offset: u64, length: u64) -> Range {
    (offset / 512, offset.saturating_add(length).div_ceil(512))
}

/// Whether two ranges have a sector in common.
pub(crate) fn overlaps(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}
