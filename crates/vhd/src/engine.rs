//! The engine of one virtual disk, as its host sees it: records in, records out, and a job now and then.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::chain::{self, Files, Want};
use crate::commit;
use crate::core::Core;
use crate::create::{self, CreateSpec};
use crate::discard;
use crate::error::{Error, Result, errno};
use crate::extend::{self, sync_leaf};
use crate::io::{Io, until};
use crate::open::{FileSpec, ImageInfo};
use crate::record::{Completion, Finished, Op, TdRequest};

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Outcome = Rc<RefCell<Option<Result<Option<ImageInfo>>>>>;

/// State of the job that was started last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// None was started.
    None,
    /// Operations of it are in the queue or in flight.
    Running,
    /// It is over; opening yields what was opened.
    Over(Result<Option<ImageInfo>>),
}

/// One virtual disk.
///
/// The host calls [`Engine::complete`] for each operation that ended and [`Engine::submit`] for each request, then
/// [`Engine::run`], then takes operations and finished requests until there are none; and so on.
pub struct Engine {
    io: Io,
    core: Rc<RefCell<Option<Rc<RefCell<Core>>>>>,
    tasks: Vec<Task>,
    job: Option<Outcome>,
    files: Rc<RefCell<Files>>,
    /// Requests that came while no disk was open, and those that ended as it was closed.
    refused: Rc<RefCell<VecDeque<Finished>>>,
    bitmap_cache_bytes: usize,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine with no disk, which will keep at most `bitmap_cache_bytes` bytes of sector bitmaps.
    #[must_use]
    pub fn new(bitmap_cache_bytes: usize) -> Self {
        Self {
            io: Io::new(),
            core: Rc::default(),
            tasks: Vec::new(),
            job: None,
            files: Rc::default(),
            refused: Rc::default(),
            bitmap_cache_bytes,
        }
    }

    /// Starts the job that opens a disk: the image in `spec`'s file and all its parents, for which it asks by
    /// [`Engine::want`].
    pub fn open(&mut self, spec: FileSpec) {
        let (io, files, opened) = (self.io.clone(), self.files.clone(), self.core.clone());
        let cache = self.bitmap_cache_bytes;
        self.start_job(async move {
            let (chain, info) = chain::open(&io, &files, &spec).await?;
            if spec.block_device && !spec.read_only && info.block_size != 0 {
                return Err(Error::invalid(
                    "file",
                    "writing to an image with a BAT on a block device is not supported yet",
                )
                .in_file(&spec.path));
            }
            *opened.borrow_mut() = Some(Rc::new(RefCell::new(Core::new(
                chain,
                spec.read_only,
                cache,
            ))));
            Ok(Some(info))
        });
    }

    /// What the running job wants of the host. Each want is told once.
    pub fn want(&mut self) -> Option<Want> {
        self.files.borrow_mut().want.take()
    }

    /// Answers the last want with the file that was opened (its `driver`, `path` and `read_only` don't count), or with a
    /// (positive) errno value.
    pub fn provide(&mut self, answer: std::result::Result<FileSpec, i32>) {
        self.files.borrow_mut().answer = Some(answer);
    }

    /// Starts the job that makes a new image in an empty file.
    pub fn create(&mut self, spec: CreateSpec) {
        let io = self.io.clone();
        self.start_job(async move { create::create(&io, &spec).await.map(|()| None) });
    }

    /// Starts the job that closes the disk: waits for all requests, makes everything durable and puts the footer right
    /// behind the last block. New requests fail with `ESHUTDOWN`. If the job fails, nothing that was written is forgotten:
    /// it can be started again.
    pub fn close(&mut self) {
        let (io, core) = (self.io.clone(), self.core());
        if let Some(core) = &core {
            core.borrow_mut().closing = true;
        }
        let (opened, refused) = (self.core.clone(), self.refused.clone());
        self.start_job(async move {
            let Some(core) = core else { return Ok(None) };
            let outcome = close(&core, &io)
                .await
                .map_err(|error| error.in_file(&core.borrow_mut().leaf().path));
            if outcome.is_ok() {
                refused.borrow_mut().append(&mut core.borrow_mut().finished);
                *opened.borrow_mut() = None;
            }
            outcome.map(|()| None)
        });
    }

    /// Asks for dirty metadata to be written now, though no request waits for it; for when the host is idle.
    pub fn sync_metadata(&mut self) {
        if let Some(core) = self.core() {
            let mut core = core.borrow_mut();
            core.commit.wanted |=
                !core.closing && (core.commit.is_dirty() || core.cache.is_dirty());
        }
    }

    /// The job that was started last.
    #[must_use]
    pub fn job(&self) -> Job {
        match &self.job {
            None => Job::None,
            Some(outcome) => outcome.borrow().clone().map_or(Job::Running, Job::Over),
        }
    }

    /// Takes on a request. Without an open disk it fails with `ESHUTDOWN`.
    pub fn submit(&mut self, request: &TdRequest) {
        match self.core() {
            Some(core) => core.borrow_mut().submit(&mut self.io.queue(), request),
            None => self.refused.borrow_mut().push_back(Finished {
                tag: request.tag,
                status: -errno::ESHUTDOWN,
            }),
        }
    }

    /// Takes in the outcome of an operation.
    pub fn complete(&mut self, completion: Completion) {
        match self.core() {
            Some(core) => core.borrow_mut().complete(&mut self.io.queue(), completion),
            None => {
                self.io.queue().complete(completion);
            }
        }
    }

    /// Moves on everything that can move.
    pub fn run(&mut self) {
        loop {
            if let Some(core) = self.core() {
                self.spawn_wanted(&core);
            }
            if self.tasks.is_empty() {
                return;
            }
            let mut context = Context::from_waker(Waker::noop());
            let before = self.tasks.len();
            self.tasks
                .retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            // A task that ended may be what another one, or a parked request, waited for.
            if self.tasks.len() == before {
                return;
            }
        }
    }

    fn spawn_wanted(&mut self, core: &Rc<RefCell<Core>>) {
        let mut state = core.borrow_mut();
        state.retry_starved(&mut self.io.queue());
        if state.allocator.wants_extent(state.releases.returning) && !state.read_only {
            state.allocator.extending = true;
            state.allocator.tasks += 1;
            self.tasks
                .push(Box::pin(extend::extend(core.clone(), self.io.clone())));
        }
        let oldest = state.oldest_request();
        if state.releases.can_reclaim(oldest) {
            state.releases.reclaiming = true;
            state.allocator.tasks += 1;
            self.tasks.push(Box::pin(discard::reclaim_task(
                core.clone(),
                self.io.clone(),
            )));
        }
        if (state.commit.wanted || !state.commit.waiters.is_empty()) && !state.commit.running {
            state.commit.running = true;
            self.tasks
                .push(Box::pin(commit::commit(core.clone(), self.io.clone())));
        }
    }

    /// The next operation for the host to carry out.
    pub fn take_op(&mut self) -> Option<Op> {
        self.io.queue().ops.pop_front()
    }

    /// The next finished request.
    pub fn take_finished(&mut self) -> Option<Finished> {
        self.refused
            .borrow_mut()
            .pop_front()
            .or_else(|| self.core()?.borrow_mut().finished.pop_front())
    }

    /// Calls `use_bytes` with the staging area, which is memory region 0 of all operations. It never moves.
    pub fn with_staging<R>(&mut self, use_bytes: impl FnOnce(&mut [u8]) -> R) -> R {
        use_bytes(self.io.queue().staging.bytes())
    }

    fn core(&self) -> Option<Rc<RefCell<Core>>> {
        self.core.borrow().clone()
    }

    fn start_job(&mut self, job: impl Future<Output = Result<Option<ImageInfo>>> + 'static) {
        let outcome = Outcome::default();
        self.job = Some(outcome.clone());
        self.tasks.push(Box::pin(async move {
            let result = job.await;
            *outcome.borrow_mut() = Some(result);
        }));
    }
}

/// Makes everything durable, and the file end with its footer right behind the last block.
async fn close(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    until(|| {
        let core = core.borrow();
        core.requests.is_empty() && core.allocator.tasks == 0 && !core.commit.running
    })
    .await;
    if !core.borrow().commit.modified {
        return Ok(());
    }
    if let Some(errno) = core.borrow_mut().commit.sync_error.take() {
        return Err(Error::io("file", 0, errno));
    }
    let outcome = make_durable(core, io).await;
    // Whoever closes is told.
    core.borrow_mut().commit.sync_error = None;
    outcome
}

async fn make_durable(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    commit::run(core, io).await?;
    discard::reclaim_all(core, io).await?;
    let (file, footer) = {
        let mut core = core.borrow_mut();
        let (file, end) = (core.leaf().file, core.allocator.end());
        let footer = core.leaf_blocks().and_then(|blocks| {
            let used_end = blocks.used_end();
            let moves = used_end != end || blocks.needs_footer || blocks.stale_tail;
            moves.then(|| {
                (
                    used_end * 512,
                    blocks.footer.encode(),
                    blocks.needs_backup_footer,
                )
            })
        });
        (file, footer)
    };
    let Some((offset, footer, write_backup)) = footer else {
        return Ok(());
    };
    if write_backup {
        io.write("backup footer", file, 0, &footer).await?;
        sync_leaf(core, io).await?;
        if let Some(blocks) = core.borrow_mut().leaf_blocks() {
            blocks.needs_backup_footer = false;
        }
    }
    // The file must never end with a sector of the guest's, which could look like a footer.
    io.write("footer", file, offset, &footer).await?;
    sync_leaf(core, io).await?;
    io.truncate(file, offset + footer.len() as u64).await?;
    sync_leaf(core, io).await
}
