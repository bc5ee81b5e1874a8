//! Mending an image: a check under a lock that keeps everybody else out, a plan, and its steps, each of which is saved to an
//! undo file before it is taken. It can be cut off after any operation: the same job, started again, goes on.

mod log;
pub(crate) mod plan;
mod undoing;

use serde::{Deserialize, Serialize};

pub use plan::{Left, Planned};
pub(super) use undoing::run as undo;
pub use undoing::{UndoSpec, Undone};

use self::log::{Change, Undo};
use self::plan::{Content, Step};
use super::Context;
use super::check::checkup::Checkup;
use super::check::examine::{self, Examined};
use super::check::findings::Findings;
use super::check::{self, Depth, Ignore, ImageReport};
use crate::error::{Error, Result, errno};
use crate::format::header;
use crate::open::{Driver, FileSpec};
use crate::wants::Access;

/// Which image to mend.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MendSpec {
    /// Path of the image.
    pub path: String,
    /// Path of the undo file, which must not exist but for an interrupted repair of the same image.
    pub undo: String,
    /// How much of the image to look at, before and after.
    #[serde(default)]
    pub depth: Depth,
    /// The time now, Unix time in seconds; 0 if it is not known.
    #[serde(default)]
    pub now: u64,
}

/// What was done to an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mended {
    /// What was found before, and what was planned because of it.
    pub before: ImageReport,
    /// What is found now; nothing if nothing was changed.
    pub after: Option<ImageReport>,
    /// Path of the file that undoes it; nothing if nothing was changed.
    pub undo: Option<String>,
}

pub(super) async fn run(context: &Context, spec: &MendSpec) -> Result<Mended> {
    let file = context
        .open_file(&spec.path, Driver::Vhd, Access::Write)
        .await?;
    let (examined, findings) = examine(context, &file, spec).await?;
    let plan = plan::plan(&file, &examined, &findings);
    let before = check::report(&file, &examined, findings);
    let guarded = guarded(&examined, &plan.steps);
    drop(examined);
    let mut log = open_log(context, spec, &file, guarded).await?;
    let Some(log) = &mut log else {
        return Ok(Mended {
            before,
            after: None,
            undo: None,
        });
    };
    let mut mender = Mender {
        context,
        file: file.clone(),
        log,
    };
    context.begin("mending", plan.steps.len() as u64);
    for step in &plan.steps {
        mender.take(step).await?;
        context.advance(1)?;
    }
    mender.end().await?;
    let (examined, findings) = examine(context, &mender.file, spec).await?;
    Ok(Mended {
        before,
        after: Some(check::report(&mender.file, &examined, findings)),
        undo: Some(spec.undo.clone()),
    })
}

async fn examine(
    context: &Context,
    file: &FileSpec,
    spec: &MendSpec,
) -> Result<(Examined, Findings)> {
    let mut checkup = Checkup {
        io: &context.io,
        file,
        ignore: Ignore::default(),
        now: spec.now,
        findings: Findings::default(),
    };
    let examined = examine::examine(context, &mut checkup, spec.depth).await?;
    Ok((examined, checkup.findings))
}

/// The structures that the steps leave alone: they tell whether somebody else has used the image since.
fn guarded(examined: &Examined, steps: &[Step]) -> Option<Vec<(u64, u64)>> {
    if steps.is_empty() {
        return None;
    }
    let footers = &examined.footers;
    let copies = [&footers.primary, &footers.backup];
    let mut ranges: Vec<(u64, u64)> = copies
        .iter()
        .map(|copy| (copy.at, copy.bytes.len() as u64))
        .collect();
    if let (Some(footer), Some(state)) = (&footers.footer, &examined.header) {
        ranges.push((footer.data_offset, header::LENGTH as u64));
        let entries = examined
            .table
            .as_ref()
            .map_or(0, |table| table.entries.len());
        ranges.push((state.header.table_offset, entries as u64 * 4));
    }
    for (at, content) in steps.iter().flat_map(|step| &step.pieces) {
        let end = at + content.length();
        let around = |(offset, length): (u64, u64)| {
            let before = (offset, length.min(at.saturating_sub(offset)));
            let start = end.max(offset);
            let after = (start, (offset + length).saturating_sub(start));
            [before, after]
                .into_iter()
                .filter(|(_, length)| *length > 0)
        };
        ranges = ranges.into_iter().flat_map(around).collect();
    }
    Some(ranges)
}

/// An undo file that is being written.
struct Log {
    file: u16,
    undo: Undo,
}

/// Makes the undo file if there is anything to do, so that something is to be guarded, or finds the one of a repair that was
/// interrupted.
async fn open_log(
    context: &Context,
    spec: &MendSpec,
    image: &FileSpec,
    guarded: Option<Vec<(u64, u64)>>,
) -> Result<Option<Log>> {
    let wanted = guarded.is_some();
    let log = match context
        .files
        .open(&spec.undo, Driver::Aio, Access::Write)
        .await
    {
        Ok(file) => file,
        Err(errno::ENOENT) if !wanted => return Ok(None),
        Err(errno::ENOENT) => {
            context
                .open_file(&spec.undo, Driver::Aio, Access::Create)
                .await?
        }
        Err(error) => return Err(Error::file(error, "can't be opened").in_file(&spec.undo)),
    };
    let undo = match read(context, &log).await {
        // Whatever it is, it is not needed.
        Err(_) if !wanted => return Ok(None),
        undo => undo?,
    };
    let name = name_of(image);
    match undo {
        None if !wanted => Ok(None),
        Some(undo) if undo.ended && !wanted => Ok(None),
        Some(undo) if undo.ended => Err(Error {
            errno: errno::EEXIST,
            ..Error::invalid(
                "undo file",
                "it is of an earlier repair: undo that one, or keep the file elsewhere",
            )
        }
        .in_file(&spec.undo)),
        Some(undo) if undo.name != name => {
            Err(Error::invalid("undo file", "it is of another image")
                .found(undo.name, name)
                .in_file(&spec.undo))
        }
        Some(undo) => {
            undoing::verify(context, image, &undo).await?;
            Ok(Some(Log {
                file: log.file,
                undo,
            }))
        }
        None => {
            let guarded = guarded.unwrap_or_default();
            let mut undo = Undo {
                size: image.size,
                name,
                guard: undoing::guard(context, image, &guarded).await?,
                guarded,
                ..Undo::default()
            };
            let bytes = log::encode_header(&undo);
            undo.end = bytes.len() as u64;
            context.io.truncate(log.file, 0).await?;
            if let Err(error) = write(context, log.file, 0, &bytes).await {
                // Nothing was changed that it could undo.
                context.files.close(log.file).await;
                let _ = context.files.remove(&spec.undo).await;
                return Err(error.in_file(&spec.undo));
            }
            Ok(Some(Log {
                file: log.file,
                undo,
            }))
        }
    }
}

/// Reads an undo file.
async fn read(context: &Context, file: &FileSpec) -> Result<Option<Undo>> {
    if file.size > log::MAX_SIZE {
        return Err(Error::invalid("undo file", "it is too large for one")
            .found(file.size, format!("at most {}", log::MAX_SIZE))
            .in_file(&file.path));
    }
    let bytes = context
        .io
        .read("undo file", file.file, 0, file.size as usize)
        .await;
    bytes
        .and_then(|bytes| log::decode(&bytes))
        .map_err(|error| error.in_file(&file.path))
}

/// Writes durably.
async fn write(context: &Context, file: u16, offset: u64, bytes: &[u8]) -> Result<()> {
    context.io.write("undo file", file, offset, bytes).await?;
    context.io.sync(file).await
}

/// An image's name in its folder.
fn name_of(image: &FileSpec) -> String {
    image.path.rsplit('/').next().unwrap_or_default().to_owned()
}

struct Mender<'a> {
    context: &'a Context,
    file: FileSpec,
    log: &'a mut Log,
}

impl Mender<'_> {
    /// Takes a step: first all of it goes to the undo file.
    async fn take(&mut self, step: &Step) -> Result<()> {
        let mut changes = self.log.undo.changes.clone();
        let first = changes.len();
        let mut records = Vec::new();
        for (offset, content) in &step.pieces {
            let before = self
                .current(*offset, content.length(), &changes[first..])
                .await?;
            let after = match content {
                Content::Bytes(bytes) => bytes.clone(),
                Content::CopyOf(from, length) => self.current(*from, *length, &[]).await?,
            };
            let change = Change {
                offset: *offset,
                before,
                after,
            };
            records.extend(log::encode_change(changes.len() as u32, &change));
            changes.push(change);
        }
        write(self.context, self.log.file, self.log.undo.end, &records).await?;
        self.log.undo.end += records.len() as u64;
        self.log.undo.changes = changes;
        for Change {
            offset,
            after: bytes,
            ..
        } in &self.log.undo.changes[first..]
        {
            let (io, file) = (&self.context.io, self.file.file);
            io.write("image", file, *offset, bytes)
                .await
                .map_err(|error| error.in_file(&self.file.path))?;
            io.sync(file)
                .await
                .map_err(|error| error.in_file(&self.file.path))?;
            self.file.size = self.file.size.max(offset + bytes.len() as u64);
        }
        Ok(())
    }

    /// What a range will have when it is overwritten: what the file has, under the earlier pieces of the same step.
    async fn current(&self, offset: u64, length: u64, earlier: &[Change]) -> Result<Vec<u8>> {
        let end = (offset + length).min(self.file.size).max(offset);
        let read = self
            .context
            .io
            .read("image", self.file.file, offset, (end - offset) as usize)
            .await;
        let mut bytes = read.map_err(|error| error.in_file(&self.file.path))?;
        if let Some(change) = earlier.iter().rev().find(|change| change.offset == offset) {
            bytes = change.after.clone();
        }
        Ok(bytes)
    }

    /// Notes that the repair came to its end.
    async fn end(&mut self) -> Result<()> {
        let bytes = log::encode_end(self.log.undo.changes.len() as u32);
        write(self.context, self.log.file, self.log.undo.end, &bytes).await
    }
}
