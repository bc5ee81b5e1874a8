//! The record of how far a merge is, a small file beside the target, so that a run can go on where another one was cut off.
//!
//! A merge needs none to be safe: whoever starts it over copies everything again, with the same result. The record saves
//! the time that this takes. It is only written when all that it speaks of is durable, which is made sure of now and then
//! while copying goes on; a record that is lost or older than it could be costs time and nothing else. It is one sector,
//! which a power cut doesn't tear.
//!
//! It holds for images that are the same as when it was made: their UUIDs, file sizes and times of modification are part of
//! it. A time of modification is only good for that if it was over when the merge began; if not, no record is kept.
//! That nobody but the merge writes to the target in between is for its user to know.

use serde::Deserialize;

use super::{CoalesceSpec, Cut};
use crate::error::{Error, Result, errno};
use crate::image::Image;
use crate::jobs::Context;
use crate::open::Driver;
use crate::target::{Target, Waiter};
use crate::wants::Access;

const LENGTH: usize = 512;
const TITLE: &str = "tapvhd coalesce record 1";
/// Seconds for which a time of modification may still be given to something new, clocks being as coarse as they are.
const YOUNG: u64 = 2;

/// Where a record is kept, and when it is good.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordSpec {
    /// Path of its file.
    pub path: String,
    /// Go on where the record says that another run has come to, if it is of this merge.
    #[serde(default)]
    pub resume: bool,
    /// The time now, Unix time in seconds.
    pub now: u64,
    /// Bytes that are copied before the record is brought up to date.
    #[serde(default = "usual_interval")]
    pub interval: u64,
}

fn usual_interval() -> u64 {
    1 << 30
}

/// Keeps the record of a merge.
pub(super) struct Keeper(Option<Record>);

struct Record {
    path: String,
    interval: u64,
    /// Tells this merge from others.
    fingerprint: u64,
    /// It is of no use since something is too young, or it can't be written.
    useless: bool,
    /// The host's number of its file, once it is open.
    file: Option<u16>,
    /// Sectors that were copied up to the last one.
    copied: u64,
    state: State,
}

/// On its way to the disk is, that everything before `sector` is durable.
enum State {
    Idle,
    /// So many requests must end first.
    Copying {
        sector: u64,
        requests: u64,
    },
    Flushing {
        sector: u64,
        waiter: Waiter,
    },
}

impl Keeper {
    /// Opens or prepares the record. Returns the sector from which the merge has to be done.
    ///
    /// # Errors
    /// A file that is there but can't be read. With an output, which must be as the record says: there is none that fits.
    pub(super) async fn open(
        context: &Context,
        spec: &CoalesceSpec,
        cut: &Cut,
    ) -> Result<(Self, u64)> {
        let Some(wanted) = &spec.record else {
            return Ok((Self(None), 0));
        };
        let youngest = cut.upper.iter().map(|image| image.modified).max();
        let mut record = Record {
            path: wanted.path.clone(),
            interval: wanted.interval.max(512),
            fingerprint: fingerprint(cut),
            useless: youngest.unwrap_or(0).saturating_add(YOUNG) > wanted.now,
            file: None,
            copied: 0,
            state: State::Idle,
        };
        let mut done = None;
        if wanted.resume && !record.useless {
            done = record.load(context, spec.dry_run).await?;
        }
        if wanted.resume && spec.output.is_some() && !spec.dry_run && done.is_none() {
            return Err(Error::invalid(
                "record",
                "it is not of this merge, or there is none: the output must be made anew",
            )
            .in_file(&record.path));
        }
        let done = done.unwrap_or(0).min(cut.sectors);
        Ok((Self(Some(record)), done))
    }

    /// Sectors after which it should be looked at.
    pub(super) fn interval(&self) -> u64 {
        match &self.0 {
            Some(record) => record.interval.div_ceil(512),
            None => u64::MAX,
        }
    }

    /// Brings the record up to date if it is time. Everything before `reached` was handed to the target, which so far copied
    /// `copied` sectors.
    pub(super) async fn tick(
        &mut self,
        context: &Context,
        target: &Target,
        reached: u64,
        copied: u64,
    ) {
        let Some(record) = self.0.as_mut().filter(|record| !record.useless) else {
            return;
        };
        match &record.state {
            State::Idle if (copied - record.copied) * 512 >= record.interval => {
                record.copied = copied;
                record.state = State::Copying {
                    sector: reached,
                    requests: target.submitted(),
                };
            }
            State::Copying { sector, requests } if target.ended() >= *requests => {
                record.state = State::Flushing {
                    sector: *sector,
                    waiter: target.start_flush(),
                };
            }
            State::Flushing { sector, waiter } => match waiter.get() {
                Some(0) => {
                    let sector = *sector;
                    record.state = State::Idle;
                    self.put(context, sector).await;
                }
                // The merge is told of it by the target.
                Some(_) => record.state = State::Idle,
                None => {}
            },
            _ => {}
        }
    }

    /// Records that everything before `sector` is durable. Where that isn't possible, there is no record from now on.
    pub(super) async fn put(&mut self, context: &Context, sector: u64) {
        if let Some(record) = self.0.as_mut().filter(|record| !record.useless)
            && record.save(context, sector).await.is_err()
        {
            record.useless = true;
        }
    }

    /// The merge is over: removes the record.
    ///
    /// # Errors
    /// It can't be removed.
    pub(super) async fn finish(self, context: &Context) -> Result<()> {
        let Some(record) = self.0 else { return Ok(()) };
        if let Some(file) = record.file {
            context.files.close(file).await;
        }
        match context.files.remove(&record.path).await {
            Err(error) if error.errno != errno::ENOENT => Err(error),
            _ => Ok(()),
        }
    }
}

impl Record {
    /// What an earlier run recorded, if it was of this merge.
    async fn load(&mut self, context: &Context, read_only: bool) -> Result<Option<u64>> {
        let access = if read_only {
            Access::Read
        } else {
            Access::Write
        };
        let opened = context.open_file(&self.path, Driver::Aio, access).await;
        let spec = match opened {
            Err(error) if error.errno == errno::ENOENT => return Ok(None),
            opened => opened?,
        };
        if spec.size != LENGTH as u64 {
            context.files.close(spec.file).await;
            return Ok(None);
        }
        self.file = Some(spec.file);
        let bytes = context
            .io
            .read("record", spec.file, 0, LENGTH)
            .await
            .map_err(|error| error.in_file(&self.path))?;
        Ok(decode(&bytes, self.fingerprint))
    }

    async fn save(&mut self, context: &Context, sector: u64) -> Result<()> {
        let file = match self.file {
            Some(file) => file,
            None => self.create(context).await?,
        };
        let bytes = encode(self.fingerprint, sector);
        context.io.write("record", file, 0, &bytes).await
    }

    async fn create(&mut self, context: &Context) -> Result<u16> {
        // One of an earlier run, which was not gone on with, makes room.
        match context.files.remove(&self.path).await {
            Err(error) if error.errno != errno::ENOENT => return Err(error),
            _ => {}
        }
        let spec = context
            .open_file(&self.path, Driver::Aio, Access::Create)
            .await?;
        self.file = Some(spec.file);
        Ok(spec.file)
    }
}

fn encode(fingerprint: u64, sector: u64) -> Vec<u8> {
    let mut text = format!("{TITLE}\nmerge {fingerprint:016x}\ndone {sector}\n");
    let sum = hash(HASH_START, text.as_bytes());
    text.push_str(&format!("sum {sum:016x}\n"));
    let mut bytes = text.into_bytes();
    bytes.resize(LENGTH - 1, b' ');
    bytes.push(b'\n');
    bytes
}

fn decode(bytes: &[u8], fingerprint: u64) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let line = text.split('\n').nth(2)?;
    let sector = line.strip_prefix("done ")?.parse().ok()?;
    (encode(fingerprint, sector) == bytes).then_some(sector)
}

/// A number for all that a record depends on.
fn fingerprint(cut: &Cut) -> u64 {
    let mut sum = HASH_START;
    let identity = |sum: u64, image: &Image| {
        let uuid = image.uuid.unwrap_or_default();
        hash(hash(sum, &uuid.0), image.real_path.as_bytes())
    };
    for image in &cut.upper {
        sum = identity(sum, image);
        sum = hash(sum, &image.file_size.to_le_bytes());
        sum = hash(sum, &image.modified.to_le_bytes());
    }
    // The target itself changes.
    cut.lower.iter().fold(sum, identity)
}

const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a.
fn hash(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_sector_and_of_one_merge() {
        let bytes = encode(7, 12_345);
        assert_eq!(bytes.len(), LENGTH);
        assert_eq!(decode(&bytes, 7), Some(12_345));
        assert_eq!(decode(&bytes, 8), None);
        for index in 0..LENGTH {
            let mut other = bytes.clone();
            other[index] ^= 1;
            assert_eq!(decode(&other, 7), None, "byte {index}");
        }
        assert_eq!(decode(&[0; LENGTH], 7), None);
    }
}
