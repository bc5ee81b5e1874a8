//! The engine of one virtual disk, as its host sees it: records in, records out, and a job now and then.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::batmap_state;
use crate::chain;
use crate::commit;
use crate::core::Core;
use crate::discard;
use crate::error::{Error, Result, errno};
use crate::extend::{self, sync_leaf};
use crate::grow;
use crate::io::{Io, until};
use crate::jobs::{self, Context as JobContext, DiskSlot, JobSpec, Outcome, Progress};
use crate::open::FileSpec;
use crate::planted::{self, Bug};
use crate::record::{Completion, Finished, Op, TdRequest};
use crate::wants::{Access, Answer, Files, Want};

type Task = Pin<Box<dyn Future<Output = ()>>>;
type JobResult = Rc<RefCell<Option<Result<Outcome>>>>;

/// State of the job that was started last.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// None was started.
    None,
    /// Operations of it are in the queue or in flight.
    Running,
    /// It is over.
    Over(Result<Outcome>),
}

/// One virtual disk.
///
/// The host calls [`Engine::complete`] for each operation that ended and [`Engine::submit`] for each request, then
/// [`Engine::run`], then takes operations and finished requests until there are none; and so on.
pub struct Engine {
    io: Io,
    core: DiskSlot,
    tasks: Vec<Task>,
    job: Option<JobResult>,
    /// Of the job that was started last.
    context: Option<JobContext>,
    files: Files,
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
            context: None,
            files: Files::default(),
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
            let (chain, info) = chain::open(&io, &files, &spec, |_| Access::Parent).await?;
            *opened.borrow_mut() = Some(Rc::new(RefCell::new(Core::new(
                chain,
                spec.read_only,
                cache,
            ))));
            Ok(Outcome::Opened(info))
        });
    }

    /// What the running job wants of the host. Each want is told once.
    pub fn want(&mut self) -> Option<Want> {
        self.files.take_want()
    }

    /// Answers the last want, or fails it with a (positive) errno value.
    pub fn provide(&mut self, answer: std::result::Result<Answer, i32>) {
        self.files.answer(answer);
    }

    /// Starts a job. One that works on a disk of its own takes the place of the open one: there must be none.
    pub fn start(&mut self, spec: JobSpec) {
        let context = self.job_context();
        self.context = Some(context.clone());
        self.start_job(jobs::run(context, spec));
    }

    /// How far the job is that was started last.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.context
            .as_ref()
            .map(JobContext::progress)
            .unwrap_or_default()
    }

    /// Asks the job to stop as soon as it safely can; it fails with `ECANCELED` then.
    pub fn cancel(&mut self) {
        if let Some(context) = &self.context {
            context.cancel();
        }
    }

    fn job_context(&self) -> JobContext {
        let (io, files, disk) = (self.io.clone(), self.files.clone(), self.core.clone());
        JobContext::new(io, files, disk, self.bitmap_cache_bytes)
    }

    /// Starts the job that makes the open disk `size` bytes large, as far as its BAT has room, while it is in use.
    pub fn grow(&mut self, size: u64) {
        let (io, core) = (self.io.clone(), self.core());
        self.start_job(async move {
            let Some(core) = core else {
                return Err(Error {
                    errno: errno::ESHUTDOWN,
                    ..Error::invalid("disk", "none is open")
                });
            };
            grow::grow(&core, &io, size).await.map(|()| Outcome::Done)
        });
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
            let Some(core) = core else {
                return Ok(Outcome::Done);
            };
            let outcome = close_disk(&core, &io)
                .await
                .map_err(|error| error.in_file(&core.borrow_mut().leaf().path));
            if outcome.is_ok() {
                refused.borrow_mut().append(&mut core.borrow_mut().finished);
                *opened.borrow_mut() = None;
            }
            outcome.map(|()| Outcome::Done)
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
        self.spawn_wanted();
        while !self.tasks.is_empty() {
            let mut context = Context::from_waker(Waker::noop());
            let before = self.tasks.len();
            self.tasks
                .retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            // A task that ended may be what another one, or a parked request, waited for; and what a job asked of the
            // disk may need tasks.
            let ended = self.tasks.len() < before;
            if !self.spawn_wanted() && !ended {
                return;
            }
        }
    }

    /// Starts the tasks that the open disk needs. Returns whether there were any.
    fn spawn_wanted(&mut self) -> bool {
        let Some(core) = self.core() else {
            return false;
        };
        let before = self.tasks.len();
        let mut state = core.borrow_mut();
        state.retry_starved(&mut self.io.queue());
        // Closing ends when nothing is going on any more: so nothing begins ahead of need.
        let ahead = !state.closing;
        if state
            .allocator
            .wants_extent(state.releases.returning, ahead)
            && !state.read_only
        {
            state.allocator.extending = true;
            state.allocator.tasks += 1;
            self.tasks
                .push(Box::pin(extend::extend(core.clone(), self.io.clone())));
        }
        let oldest = state.oldest_request();
        if ahead && state.releases.can_reclaim(oldest) {
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
        drop(state);
        self.tasks.len() > before
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

    fn start_job(&mut self, job: impl Future<Output = Result<Outcome>> + 'static) {
        let outcome = JobResult::default();
        self.job = Some(outcome.clone());
        self.tasks.push(Box::pin(async move {
            let result = job.await;
            *outcome.borrow_mut() = Some(result);
        }));
    }
}

/// Makes everything durable, and the file end with its footer right behind the last block.
pub(crate) async fn close_disk(core: &Rc<RefCell<Core>>, io: &Io) -> Result<()> {
    until(|| {
        let core = core.borrow();
        core.requests.is_empty()
            && core.allocator.tasks == 0
            && core.loading == 0
            && !core.commit.running
    })
    .await;
    if !core.borrow_mut().needs_close() {
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
    if !planted::is(Bug::CloseWithoutCommit) {
        commit::run(core, io).await?;
    }
    discard::reclaim_all(core, io).await?;
    let footer = plan_footer(&mut core.borrow_mut());
    if let Some(plan) = footer {
        let file = core.borrow_mut().leaf().file;
        if plan.write_backup && !planted::is(Bug::FooterMovesWithoutBackup) {
            io.write("backup footer", file, 0, &plan.footer).await?;
            if !planted::is(Bug::BackupNotSynced) {
                sync_leaf(core, io).await?;
            }
            if let Some(blocks) = core.borrow_mut().leaf_blocks() {
                blocks.needs_backup_footer = false;
            }
        }
        // The file must never end with a sector of the guest's, which could look like a footer.
        if plan.cut && planted::is(Bug::CloseCutsAtGuestData) {
            io.truncate(file, plan.offset).await?;
        }
        io.write("footer", file, plan.offset, &plan.footer).await?;
        sync_leaf(core, io).await?;
        if plan.cut {
            io.truncate(file, plan.offset + plan.footer.len() as u64)
                .await?;
            sync_leaf(core, io).await?;
        }
    }
    batmap_state::write(core, io).await
}

/// The footer's last move.
struct FooterPlan {
    offset: u64,
    footer: [u8; 512],
    write_backup: bool,
    /// What is behind it goes.
    cut: bool,
}

fn plan_footer(core: &mut Core) -> Option<FooterPlan> {
    let end = core.allocator.end();
    let blocks = core.leaf_blocks()?;
    let used_end = blocks.used_end();
    let (at, moves) = match blocks.device_end {
        None => (used_end, used_end != end || blocks.stale_tail),
        Some(at) => (at, false),
    };
    (moves || blocks.needs_footer || blocks.needs_backup_footer).then(|| FooterPlan {
        offset: at * 512,
        footer: blocks.footer.encode(),
        write_backup: blocks.needs_backup_footer,
        cut: blocks.device_end.is_none(),
    })
}
