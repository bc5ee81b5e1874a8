//! The engine's own tiny I/O interface: operations go into a queue for the host, and completions find their way back.
//!
//! The request path queues operations directly and keeps what it must know about each in an [`Owner`]. Everything that
//! is not hot (opening, allocation extents, commits, jobs) is an `async fn` over [`Io`]: awaiting an operation hands it
//! to the host, so that such code reads like straight-line code and still does no I/O of its own. There is no waker:
//! tasks are few, and the engine polls all of them whenever completions came in.

mod copier;

pub(crate) use copier::Copier;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use slab::Slab;

use crate::error::{Error, Result, errno};
use crate::planted::{self, Bug};
use crate::record::{Completion, MAX_DATA_MAP, Op, OpKind, REGION_STAGING};
use crate::request::Piece;
use crate::staging::{Chunk, LARGE, SMALL, Staging};

/// Who waits for an operation.
#[derive(Debug)]
pub(crate) enum Owner {
    /// The request path moves a part of a request's data.
    Transfer(Transfer),
    /// The request path loads the sector bitmap of a block of the leaf.
    Bitmap {
        /// Index in the bitmap cache.
        entry: u32,
        /// Where the bitmap arrives.
        chunk: Chunk,
    },
    /// The request path loads a sector of the bitmap of a block below the leaf.
    Fetch {
        /// Index of the view in the bitmap cache.
        entry: u32,
        /// Index of what is fetched for it.
        fetch: usize,
    },
    /// The request path looks for holes of a file, for this part of a block status request.
    SeekHole(Piece),
    /// The request path copies the answer to a block status request into its buffer.
    Answer {
        /// Index of the request.
        request: u32,
        /// Where the answer is.
        chunk: Chunk,
    },
    /// A task awaits it.
    Task(Rc<Slot>),
}

/// A part of a request's data on its way between guest memory and a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// Index of the request.
    pub(crate) request: u32,
    /// The result of a success: bytes.
    pub(crate) expected: u64,
    /// For a write into a block whose bitmap isn't full: the bits to set when the data are there.
    pub(crate) mark: Option<Mark>,
}

/// Bits of a cached bitmap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// Index in the bitmap cache.
    pub(crate) entry: u32,
    /// First sector in the block.
    pub(crate) first: u32,
    /// Number of sectors.
    pub(crate) count: u32,
}

/// Where a task finds the outcome of its operation.
#[derive(Debug)]
pub(crate) struct Slot {
    result: Cell<Option<i32>>,
    chunk: Cell<Option<Chunk>>,
    /// Nobody looks into the chunk when the operation is over: it is a write's.
    is_write: bool,
}

/// Operations on their way to the host, and who waits for them.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) ops: VecDeque<Op>,
    pub(crate) staging: Staging,
    owners: Slab<Owner>,
}

impl Queue {
    /// Queues an operation, all of which but its id is given. Returns the id.
    pub(crate) fn push(&mut self, op: Op, owner: Owner) -> u32 {
        let id = self.owners.insert(owner) as u32;
        self.ops.push_back(Op { id, ..op });
        id
    }

    /// The owner of an operation in the queue or in flight.
    pub(crate) fn owner_mut(&mut self, id: u32) -> Option<&mut Owner> {
        self.owners.get_mut(id as usize)
    }

    /// Ends an operation. Tasks' operations are dealt with here; others are returned to the request path. A completion
    /// of an operation that isn't in flight is ignored: the host is trusted, but not with memory safety.
    pub(crate) fn complete(&mut self, completion: Completion) -> Option<Owner> {
        match self.owners.try_remove(completion.id as usize)? {
            Owner::Task(slot) => {
                slot.result.set(Some(completion.result));
                // A write needs its chunk no longer: others may wait for one, its own task among them. And a task that
                // gave up left its chunk to be freed when the port no longer uses it.
                if (slot.is_write || Rc::strong_count(&slot) == 1)
                    && let Some(chunk) = slot.chunk.take()
                {
                    self.staging.free(chunk);
                }
                None
            }
            owner => Some(owner),
        }
    }
}

/// An operation with no buffer.
pub(crate) fn plain_op(kind: OpKind, file: u16, offset: u64, length: u64) -> Op {
    Op {
        id: 0,
        kind,
        fast: false,
        file,
        offset,
        length,
        region: REGION_STAGING,
        buffer: 0,
        source_offset: 0,
        source_file: 0,
    }
}

/// A handle on the queue for tasks.
#[derive(Clone, Debug)]
pub(crate) struct Io(Rc<RefCell<Queue>>);

/// A task's operation in flight.
struct Pending {
    io: Io,
    slot: Rc<Slot>,
}

impl Future for Pending {
    type Output = i32;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<i32> {
        self.slot.result.get().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.slot.result.get().is_some()
            && let Some(chunk) = self.slot.chunk.take()
        {
            self.io.queue().staging.free(chunk);
        }
    }
}

/// Waits until `condition` holds; it is asked again whenever tasks are polled.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    std::future::poll_fn(|_| {
        if condition() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

impl Io {
    pub(crate) fn new() -> Self {
        Self(Rc::new(RefCell::new(Queue {
            ops: VecDeque::new(),
            staging: Staging::new(),
            owners: Slab::new(),
        })))
    }

    pub(crate) fn queue(&self) -> std::cell::RefMut<'_, Queue> {
        self.0.borrow_mut()
    }

    fn start(&self, op: Op, chunk: Option<Chunk>) -> Pending {
        let slot = Rc::new(Slot {
            result: Cell::new(None),
            chunk: Cell::new(chunk),
            is_write: op.kind == OpKind::Write,
        });
        self.queue().push(op, Owner::Task(slot.clone()));
        Pending {
            io: self.clone(),
            slot,
        }
    }

    /// A free chunk for `length` bytes, waiting for one if need be.
    async fn chunk(&self, length: usize) -> Chunk {
        let allocate = |_: &mut Context<'_>| match self.queue().staging.allocate(length) {
            Some(chunk) => Poll::Ready(chunk),
            None => Poll::Pending,
        };
        std::future::poll_fn(allocate).await
    }

    /// Reads `length` bytes at `offset`, several transfers at a time. `structure` names what is read, for errors.
    pub(crate) async fn read(
        &self,
        structure: &'static str,
        file: u16,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        let mut in_flight = VecDeque::new();
        let mut started = 0;
        while bytes.len() < length {
            while started < length && in_flight.len() < 4 {
                let part = (length - started).min(LARGE);
                let chunk = self.chunk(part).await;
                let at = offset + started as u64;
                let op = Op {
                    buffer: chunk.offset(),
                    ..plain_op(OpKind::Read, file, at, part as u64)
                };
                in_flight.push_back((self.start(op, Some(chunk)), chunk, at, part));
                started += part;
            }
            // The inner loop has put something in flight whenever bytes are missing.
            let Some((mut pending, chunk, at, part)) = in_flight.pop_front() else {
                break;
            };
            let got = transferred(structure, at, part, (&mut pending).await)?;
            bytes.extend_from_slice(&self.queue().staging.chunk(chunk)[..got]);
        }
        Ok(bytes)
    }

    /// Reads `length` bytes (at most [`LARGE`]) at each of `offsets` of a file, many in flight together, and hands each
    /// to `take` in order.
    ///
    /// # Errors
    /// The first I/O error; nothing is in flight any more then.
    pub(crate) async fn read_each(
        &self,
        structure: &'static str,
        file: u16,
        offsets: impl Iterator<Item = u64>,
        length: usize,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        // Never all chunks of a size: they are free again only when they were taken in here.
        let depth = if length <= SMALL { 64 } else { 4 };
        let mut offsets = offsets.fuse();
        let mut in_flight = VecDeque::new();
        let mut error = None;
        loop {
            while in_flight.len() < depth
                && error.is_none()
                && let Some(offset) = offsets.next()
            {
                let chunk = self.chunk(length).await;
                let op = Op {
                    buffer: chunk.offset(),
                    ..plain_op(OpKind::Read, file, offset, length as u64)
                };
                in_flight.push_back((self.start(op, Some(chunk)), chunk, offset));
            }
            let Some((mut pending, chunk, offset)) = in_flight.pop_front() else {
                return error.map_or(Ok(()), Err);
            };
            match transferred(structure, offset, length, (&mut pending).await) {
                Ok(got) if error.is_none() => take(&self.queue().staging.chunk(chunk)[..got]),
                Ok(_) => {}
                Err(failed) => {
                    error.get_or_insert(failed);
                }
            }
        }
    }

    /// Which sectors of `length` bytes (at most [`MAX_DATA_MAP`]) at `offset` have data other than zeros: a bitmap, most
    /// significant bit first, whole bytes of it.
    pub(crate) async fn data_map(&self, file: u16, offset: u64, length: u64) -> Result<Vec<u8>> {
        let bytes = (length.div_ceil(512 * 8) as usize).min(LARGE);
        let chunk = self.chunk(bytes).await;
        let op = Op {
            buffer: chunk.offset(),
            ..plain_op(OpKind::DataMap, file, offset, length.min(MAX_DATA_MAP))
        };
        let mut pending = self.start(op, Some(chunk));
        match (&mut pending).await {
            result if result < 0 => Err(Error::io("data", offset, result.saturating_neg())),
            _ => Ok(self.queue().staging.chunk(chunk)[..bytes].to_vec()),
        }
    }

    /// Looks at each of `pieces` (file, offset and bytes, at most [`MAX_DATA_MAP`]) as [`Io::data_map`] does, several at a
    /// time, and hands the bitmaps to `take` in order.
    ///
    /// # Errors
    /// The first I/O error; nothing is in flight any more then.
    pub(crate) async fn data_map_each(
        &self,
        pieces: impl Iterator<Item = (u16, u64, u64)>,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut pieces = pieces.fuse();
        let mut in_flight = VecDeque::new();
        let mut error = None;
        loop {
            while in_flight.len() < 8
                && error.is_none()
                && let Some((file, offset, length)) = pieces.next()
            {
                let chunk = self.chunk(SMALL).await;
                let op = Op {
                    buffer: chunk.offset(),
                    ..plain_op(OpKind::DataMap, file, offset, length.min(MAX_DATA_MAP))
                };
                in_flight.push_back((self.start(op, Some(chunk)), chunk, offset));
            }
            let Some((mut pending, chunk, offset)) = in_flight.pop_front() else {
                return error.map_or(Ok(()), Err);
            };
            match (&mut pending).await {
                result if result < 0 => {
                    error.get_or_insert(Error::io("data", offset, result.saturating_neg()));
                }
                _ if error.is_none() => take(self.queue().staging.chunk(chunk)),
                _ => {}
            }
        }
    }

    /// Tells whether there are data or a hole at `offset` of `file`, and how many of the next `length` bytes (less than
    /// 2 GiB) are of the same kind, at least a sector: true for a hole.
    pub(crate) async fn seek_hole(
        &self,
        file: u16,
        offset: u64,
        length: u64,
    ) -> Result<(bool, u64)> {
        let op = plain_op(OpKind::SeekHole, file, offset, length);
        match self.start(op, None).await {
            result if result < 0 => Err(Error::io("file", offset, result.saturating_neg())),
            result => {
                let bytes = u64::from(result.cast_unsigned() >> 1) * 512;
                Ok((result & 1 == 1, bytes.clamp(512, length.max(512))))
            }
        }
    }

    /// Writes `bytes` at `offset`, several transfers at a time.
    pub(crate) async fn write(
        &self,
        structure: &'static str,
        file: u16,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        self.write_all(structure, file, [(offset, bytes)].into_iter())
            .await
    }

    /// Writes pieces at their offsets, many in flight together. When it returns, nothing is in flight any more, also
    /// after an error: a write that ended later could undo a newer one.
    pub(crate) async fn write_all(
        &self,
        structure: &'static str,
        file: u16,
        pieces: impl Iterator<Item = (u64, &[u8])>,
    ) -> Result<()> {
        let mut flight = Flight::new(structure);
        for (offset, bytes) in pieces {
            for (index, part) in bytes.chunks(LARGE).enumerate() {
                // Leave most of the staging area to the request path.
                flight.make_room(64).await;
                if flight.error.is_none() {
                    let at = offset + (index * LARGE) as u64;
                    flight.push(self.start_write(file, at, part).await, at, part.len());
                }
            }
        }
        flight.finish().await
    }

    async fn start_write(&self, file: u16, offset: u64, bytes: &[u8]) -> Pending {
        let chunk = self.chunk(bytes.len()).await;
        self.queue().staging.chunk(chunk)[..bytes.len()].copy_from_slice(bytes);
        let op = Op {
            buffer: chunk.offset(),
            ..plain_op(OpKind::Write, file, offset, bytes.len() as u64)
        };
        self.start(op, Some(chunk))
    }

    /// Makes completed writes to `file` durable.
    pub(crate) async fn sync(&self, file: u16) -> Result<()> {
        self.simple("file", plain_op(OpKind::Sync, file, 0, 0))
            .await
    }

    /// Sets the size of `file` to `size` bytes.
    pub(crate) async fn truncate(&self, file: u16, size: u64) -> Result<()> {
        self.simple("file size", plain_op(OpKind::Truncate, file, size, 0))
            .await
    }

    /// Makes `length` bytes at each of `offsets` zero, giving their space back, a few at a time.
    pub(crate) async fn punch_all(
        &self,
        file: u16,
        offsets: impl Iterator<Item = u64>,
        length: u64,
    ) -> Result<()> {
        self.erase_all(OpKind::PunchHole, file, offsets, length)
            .await
    }

    /// As [`Io::punch_all`], keeping space for them.
    pub(crate) async fn zero_all(
        &self,
        file: u16,
        offsets: impl Iterator<Item = u64>,
        length: u64,
    ) -> Result<()> {
        self.erase_all(OpKind::WriteZeroes, file, offsets, length)
            .await
    }

    async fn erase_all(
        &self,
        kind: OpKind,
        file: u16,
        offsets: impl Iterator<Item = u64>,
        length: u64,
    ) -> Result<()> {
        let mut flight = Flight::new("block");
        for offset in offsets {
            flight.make_room(4).await;
            if flight.error.is_none() {
                let op = plain_op(kind, file, offset, length);
                flight.push(self.start(op, None), offset, 0);
            }
        }
        flight.finish().await
    }

    async fn simple(&self, structure: &'static str, op: Op) -> Result<()> {
        match self.start(op, None).await {
            result if result < 0 => Err(Error::io(structure, op.offset, result.saturating_neg())),
            _ => Ok(()),
        }
    }
}

/// Operations of one task that are in flight together, and the first error among those that ended.
struct Flight {
    structure: &'static str,
    in_flight: VecDeque<(Pending, u64, usize)>,
    error: Option<Error>,
}

impl Flight {
    fn new(structure: &'static str) -> Self {
        Self {
            structure,
            in_flight: VecDeque::new(),
            error: None,
        }
    }

    fn push(&mut self, pending: Pending, offset: u64, length: usize) {
        self.in_flight.push_back((pending, offset, length));
    }

    /// Waits until fewer than `limit` are in flight.
    async fn make_room(&mut self, limit: usize) {
        while self.in_flight.len() >= limit
            && let Some((pending, at, length)) = self.in_flight.pop_front()
        {
            if let Err(error) = transferred(self.structure, at, length, pending.await) {
                self.error.get_or_insert(error);
                if planted::is(Bug::FailedCommitLeavesWrites) {
                    self.in_flight.clear();
                }
            }
        }
    }

    /// Waits for all of them.
    async fn finish(mut self) -> Result<()> {
        self.make_room(1).await;
        self.error.map_or(Ok(()), Err)
    }
}

/// Checks the result of a transfer of `length` bytes: all of them, or an error.
fn transferred(structure: &'static str, offset: u64, length: usize, result: i32) -> Result<usize> {
    match usize::try_from(result) {
        Err(_) => Err(Error::io(structure, offset, result.saturating_neg())),
        Ok(got) if got != length => Err(Error {
            errno: errno::EIO,
            ..Error::invalid(structure, "the file ends too early")
                .at(offset)
                .found(got, format!("{length} bytes"))
        }),
        Ok(got) => Ok(got),
    }
}
