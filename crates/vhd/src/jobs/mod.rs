//! Jobs: work on whole images, such as making, checking and merging them, apart from the requests of an open disk.
//!
//! A job is an `async fn` over a [`Context`], one file for each kind; the engine polls it, and whatever it awaits is
//! an operation, or a want, for the host. So it reads like a program, does no I/O of its own, and a test can fail any of its
//! steps. A job that writes is written so that it can be cut off after any operation: what it leaves is the state before
//! it or after it, or one that the same job finishes when it is started again.

mod blocks;
mod check;
mod children;
mod clone;
mod coalesce;
mod convert;
mod create;
mod fill;
mod info;
mod map;
mod mend;
mod modify;
mod new_image;
mod parents;
mod repair;
mod resize;
mod revert;
mod set;
mod snapshot;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::chain;
use crate::core::Core;
use crate::engine::close_disk;
use crate::error::{Error, Result, errno};
use crate::image::Image;
use crate::io::Io;
use crate::metadata::Metadata;
use crate::open::{self, Driver, FileSpec, ImageInfo};
use crate::target::Target;
use crate::wants::{Access, Files};

pub use blocks::{BlockTable, BlocksSpec};
pub use check::{
    CheckReport, CheckSpec, Code, Depth, DiskFacts, Finding, Ignore, ImageReport, Severity, Stats,
    Unlisted, all_codes,
};
pub use children::{Child, Children, ChildrenSpec, Member};
pub use clone::CloneSpec;
pub use coalesce::{CoalesceSpec, Coalesced, Estimate, OutputSpec, RecordSpec};
pub use convert::{ConvertSpec, Format};
pub use create::CreateSpec;
pub use fill::FillSpec;
pub use info::{
    BatDescription, BatmapDescription, ImageDescription, InfoSpec, LocatorDescription, Problem,
};
pub use map::{Map, MapExtent, MapSpec};
pub use mend::{Left, MendSpec, Mended, Planned, UndoSpec, Undone};
pub use modify::{ModifySpec, NewParent};
pub use repair::RepairSpec;
pub use resize::ResizeSpec;
pub use revert::RevertSpec;
pub use set::SetSpec;
pub use snapshot::{Snapshot, SnapshotSpec};

/// What a job is to do. As JSON: an object whose `job` names the variant, with the fields of its spec beside it.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "job", rename_all = "camelCase")]
pub enum JobSpec {
    /// Describe an image, and its parents if that is wanted.
    Info(InfoSpec),
    /// Tell what BAT and bitmaps say.
    Blocks(BlocksSpec),
    /// Tell where the data of a disk are.
    Map(MapSpec),
    /// Tell the children of a chain's images.
    Children(ChildrenSpec),
    /// Merge an image into its parent.
    Coalesce(CoalesceSpec),
    /// Look for everything that is wrong with an image and its parents.
    Check(CheckSpec),
    /// Mend what can be mended without loss.
    Mend(MendSpec),
    /// Undo what [`JobSpec::Mend`] did.
    Undo(UndoSpec),
    /// Tell what a check can find.
    Findings {},
    /// Make a new, empty image.
    Create(CreateSpec),
    /// Make a child of an image.
    Snapshot(SnapshotSpec),
    /// Make a copy of one image of a chain.
    Clone(CloneSpec),
    /// Make a new image of what a disk holds.
    Convert(ConvertSpec),
    /// Give all blocks of a disk their places.
    Fill(FillSpec),
    /// Undo an interrupted resize of blktap's.
    Revert(RevertSpec),
    /// Make a disk larger or smaller.
    Resize(ResizeSpec),
    /// Put an image's footers, header and batmap in order.
    Repair(RepairSpec),
    /// Set blktap's flags of an image.
    Set(SetSpec),
    /// Change an image's parent or its size on the disk, or drop its data.
    Modify(ModifySpec),
}

/// What a job yields.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Nothing but its success.
    Done,
    /// What was opened.
    #[serde(skip)]
    Opened(ImageInfo),
    /// The images of a chain, leaf first.
    Info(Vec<ImageDescription>),
    /// What BAT and bitmaps say.
    Blocks(BlockTable),
    /// Where data are.
    Map(Map),
    /// Who has which parent.
    Children(Children),
    /// What was merged.
    Coalesced(Coalesced),
    /// What was found.
    Checked(CheckReport),
    /// What was mended.
    Mended(Box<Mended>),
    /// What was undone.
    Undone(Undone),
    /// What a check can find.
    Findings(Vec<Code>),
    /// What child was made.
    Snapshot(Snapshot),
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What it is at, a word or two; empty before it has begun.
    pub phase: &'static str,
    /// How much of that is done.
    pub done: u64,
    /// How much it is in all, 0 if that is not known. Bytes, unless the phase's name says something else.
    pub total: u64,
}

/// The disk that is open in an engine, if one is.
pub(crate) type DiskSlot = Rc<RefCell<Option<Rc<RefCell<Core>>>>>;

/// What a job works with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) io: Io,
    pub(crate) files: Files,
    disk: DiskSlot,
    bitmap_cache_bytes: usize,
    progress: Rc<Cell<Progress>>,
    cancelled: Rc<Cell<bool>>,
}

impl Context {
    pub(crate) fn new(io: Io, files: Files, disk: DiskSlot, bitmap_cache_bytes: usize) -> Self {
        Self {
            io,
            files,
            disk,
            bitmap_cache_bytes,
            progress: Rc::default(),
            cancelled: Rc::default(),
        }
    }

    /// How far the job is.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.get()
    }

    /// Asks the job to stop where it can do so safely.
    pub(crate) fn cancel(&self) {
        self.cancelled.set(true);
    }

    /// Begins a part of the job.
    pub(crate) fn begin(&self, phase: &'static str, total: u64) {
        self.progress.set(Progress {
            phase,
            done: 0,
            total,
        });
    }

    /// More of the part of the job is done, and here it could stop.
    ///
    /// # Errors
    /// `ECANCELED` if it shall.
    pub(crate) fn advance(&self, done: u64) -> Result<()> {
        let progress = self.progress.get();
        self.progress.set(Progress {
            done: progress.done.saturating_add(done),
            ..progress
        });
        if self.cancelled.get() {
            return Err(Error {
                errno: errno::ECANCELED,
                ..Error::invalid("job", "cancelled")
            });
        }
        Ok(())
    }

    /// Opens a file; the host closes it when the job is over, if the job doesn't.
    ///
    /// # Errors
    /// The host's error.
    pub(crate) async fn open_file(
        &self,
        path: &str,
        driver: Driver,
        access: Access,
    ) -> Result<FileSpec> {
        let failure = match access {
            Access::Create => "can't be created",
            _ => "can't be opened",
        };
        self.files
            .open(path, driver, access)
            .await
            .map_err(|errno| Error::file(errno, failure).in_file(path))
    }

    /// Opens an image alone, without its parents.
    ///
    /// # Errors
    /// The host's error, or what is wrong with the image.
    pub(crate) async fn open_image(
        &self,
        path: &str,
        driver: Driver,
        access: Access,
    ) -> Result<(FileSpec, Image, ImageInfo)> {
        let spec = self.open_file(path, driver, access).await?;
        let (image, info) = open::open(&self.io, &spec).await?;
        Ok((spec, image, info))
    }

    /// Opens an image with `access`, and all its parents with `parents`: leaf first.
    ///
    /// # Errors
    /// The host's error, or what is wrong with one of the images.
    pub(crate) async fn open_chain(
        &self,
        path: &str,
        driver: Driver,
        access: Access,
        parents: Access,
    ) -> Result<(Vec<Image>, ImageInfo)> {
        let spec = self.open_file(path, driver, access).await?;
        chain::open(&self.io, &self.files, &spec, |_| parents).await
    }

    /// Opens a VHD alone, for changes of its metadata.
    ///
    /// # Errors
    /// The host's error, or what is wrong with the image.
    pub(crate) async fn open_metadata(&self, path: &str, access: Access) -> Result<Metadata> {
        let spec = self.open_file(path, Driver::Vhd, access).await?;
        Metadata::open(&self.io, &spec).await
    }

    /// Makes `chain` the engine's open disk, to which the job can write; see [`Context::close_target`].
    pub(crate) fn open_target(&self, chain: Vec<Image>) -> Target {
        let core = Core::new(chain, false, self.bitmap_cache_bytes);
        let core = Rc::new(RefCell::new(core));
        *self.disk.borrow_mut() = Some(core.clone());
        Target::new(core, self.io.clone())
    }

    /// Waits for all requests to the target, makes everything durable, and closes it.
    ///
    /// # Errors
    /// The first error of a request, or of closing.
    pub(crate) async fn close_target(&self, mut target: Target) -> Result<()> {
        let outcome = target.finish().await;
        let core = target.core().clone();
        core.borrow_mut().closing = true;
        let closed = close_disk(&core, &self.io).await;
        *self.disk.borrow_mut() = None;
        outcome.and(closed)
    }
}

/// Runs a job to its end.
pub(crate) async fn run(context: Context, spec: JobSpec) -> Result<Outcome> {
    match spec {
        JobSpec::Info(spec) => info::run(&context, &spec).await.map(Outcome::Info),
        JobSpec::Blocks(spec) => blocks::run(&context, &spec).await.map(Outcome::Blocks),
        JobSpec::Map(spec) => map::run(&context, &spec).await.map(Outcome::Map),
        JobSpec::Children(spec) => children::run(&context, &spec).await.map(Outcome::Children),
        JobSpec::Coalesce(spec) => coalesce::run(&context, &spec).await.map(Outcome::Coalesced),
        JobSpec::Check(spec) => check::run(&context, &spec).await.map(Outcome::Checked),
        JobSpec::Mend(spec) => mend::run(&context, &spec)
            .await
            .map(|mended| Outcome::Mended(Box::new(mended))),
        JobSpec::Undo(spec) => mend::undo(&context, &spec).await.map(Outcome::Undone),
        JobSpec::Findings {} => Ok(Outcome::Findings(all_codes())),
        JobSpec::Create(spec) => create::run(&context, &spec).await.map(|()| Outcome::Done),
        JobSpec::Snapshot(spec) => snapshot::run(&context, &spec).await.map(Outcome::Snapshot),
        JobSpec::Clone(spec) => clone::run(&context, &spec).await.map(|()| Outcome::Done),
        JobSpec::Convert(spec) => convert::run(&context, &spec).await.map(|()| Outcome::Done),
        JobSpec::Fill(spec) => fill::run(&context, &spec).await.map(|()| Outcome::Done),
        JobSpec::Revert(spec) => revert::run(&context, &spec).await.map(|()| Outcome::Done),
        JobSpec::Resize(spec) => resize::run(&context, &spec).await.map(|()| Outcome::Done),
        JobSpec::Repair(spec) => repair::run(&context, &spec).await.map(|()| Outcome::Done),
        JobSpec::Set(spec) => set::run(&context, &spec).await.map(|()| Outcome::Done),
        JobSpec::Modify(spec) => modify::run(&context, &spec).await.map(|()| Outcome::Done),
    }
}
