//! File operations: from the host's record to system calls, and from their results to a completion.
//!
//! An operation becomes one call, and more where a call did only a part, was interrupted, or isn't possible on this
//! file system. Neighbours share a call where they can (`merging`).
//! Writes of a file that direct and buffered I/O share may have to wait for others (`parking`).

mod flight;
mod merging;
pub(crate) mod parking;

use std::collections::VecDeque;

use vhd::record::{Completion, MAX_DATA_MAP, OP_WORDS, Op, OpKind, REGION_STAGING};

use crate::backend::{FileBackend, FileCall, Token};
use crate::batch::Batch;
use crate::blocks::{Block, Blocks};
use crate::files::{Entry, Files};
use crate::regions::Regions;
use flight::{Flight, Memory, Next, Stage, ZEROS};
use merging::Merging;

/// What operations work on.
pub struct Context<'a> {
    /// Executes calls.
    pub backend: &'a mut dyn FileBackend,
    /// The memory that operations may name.
    pub regions: &'a mut Regions,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// All operations in flight, and those that are over and not yet reported.
#[derive(Debug, Default)]
pub struct Operations {
    /// The open files.
    pub files: Files,
    blocks: Blocks,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    done: VecDeque<Done>,
    merging: Merging,
}

/// An operation that is over.
#[derive(Debug)]
struct Done {
    completion: Completion,
    /// What goes into staging when the completion is reported.
    read: Option<StagedRead>,
}

/// Bytes at the start of a block, and where in staging they go.
#[derive(Debug)]
struct StagedRead {
    block: Block,
    length: usize,
    offset: u32,
}

impl Operations {
    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Whether there is something to report.
    #[must_use]
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Starts the operation in a record; it is with the back end after [`Operations::flush`] at the latest.
    pub fn start(
        &mut self,
        words: &[u32; OP_WORDS],
        batch: &mut Batch<'_>,
        context: &mut Context<'_>,
    ) {
        let Some(op) = Op::decode(words) else {
            return self.finished(words[0], -libc::EINVAL);
        };
        match op.kind {
            OpKind::ZeroBuffer => {
                let result = zero_buffer(&op, batch, context.regions);
                return self.finished(op.id, result);
            }
            OpKind::CopyToBuffer => {
                let result = copy_to_buffer(&op, batch, context.regions);
                return self.finished(op.id, result);
            }
            _ => {}
        }
        if let Err(result) = check(&op) {
            return self.finished(op.id, result);
        }
        if !self.files.hold(op.file) {
            return self.finished(op.id, -libc::EBADF);
        }
        if op.kind == OpKind::CopyRange && !self.files.hold(op.source_file) {
            self.files.release(op.file, context.backend);
            return self.finished(op.id, -libc::EBADF);
        }
        match self.prepare(op, batch, context.regions) {
            Ok(flight) => {
                let slot = self.insert(flight);
                if self.may_start(slot)
                    && let Some(call) = self.call(slot)
                {
                    let token = Token::from(slot);
                    // SAFETY: as in `launch`.
                    unsafe { self.merging.start(token, call, context.backend) };
                }
            }
            Err(result) => {
                self.release_files(&op, context.backend);
                self.finished(op.id, result);
            }
        }
    }

    /// Hands the back end what was started.
    pub fn flush(&mut self, backend: &mut dyn FileBackend) {
        self.merging.flush(backend);
    }

    /// Takes the result of a call.
    pub fn event(&mut self, token: Token, result: i32, context: &mut Context<'_>) {
        let Some(run) = self.merging.take(token) else {
            return self.called(token as u32, result, context);
        };
        for (member, result) in run.shares(result) {
            self.called(member as u32, result, context);
        }
        self.merging.give(token, run);
    }

    /// Goes on with an operation whose call is over.
    fn called(&mut self, slot: u32, result: i32, context: &mut Context<'_>) {
        let Some(Some(flight)) = self.flights.get_mut(slot as usize) else {
            debug_assert!(false, "an event of no operation");
            return;
        };
        let Some(entry) = self.files.entry(flight.op.file) else {
            return;
        };
        match flight.advance(result, &entry.file) {
            Next::Again => self.admit(slot, context.backend),
            Next::Zeros => {
                self.prepare_zeros(slot);
                self.admit(slot, context.backend);
            }
            Next::Buffered => {
                flight.buffered = true;
                self.admit(slot, context.backend);
            }
            Next::Finished(result) => self.finish(slot, result, context),
        }
    }

    /// Reports what is over, as far as there is room. Returns the number of completions.
    pub fn report(&mut self, batch: &mut Batch<'_>) -> u32 {
        let mut count = 0;
        while count < batch.completions() {
            let Some(Done {
                mut completion,
                read,
            }) = self.done.pop_front()
            else {
                break;
            };
            if let Some(StagedRead {
                block,
                length,
                offset,
            }) = read
            {
                match batch.staging(offset, length as u64) {
                    Some(staging) => {
                        // SAFETY: the block is at least as long as what was read into it, and the read is over.
                        let bytes =
                            unsafe { std::slice::from_raw_parts(block.as_ptr(), staging.len()) };
                        staging.copy_from_slice(bytes);
                    }
                    // The layout has changed since.
                    None => completion.result = -libc::EFAULT,
                }
                self.blocks.give(block);
            }
            batch.set_completion(count, completion);
            count += 1;
        }
        count
    }

    fn finished(&mut self, id: u32, result: i32) {
        self.done.push_back(Done {
            completion: Completion { id, result },
            read: None,
        });
    }

    /// Finds the memory of an operation whose record is valid.
    fn prepare(
        &mut self,
        op: Op,
        batch: &mut Batch<'_>,
        regions: &mut Regions,
    ) -> Result<Flight, i32> {
        let mut flight = Flight {
            op,
            stage: Stage::Single,
            done: 0,
            data: std::ptr::null_mut(),
            memory: Memory::None,
            buffered: false,
        };
        match op.kind {
            OpKind::Read | OpKind::Write => {
                flight.stage = Stage::Transfer;
                (flight.memory, flight.data) = self.memory(&op, batch, regions)?;
            }
            OpKind::DataMap => {
                flight.stage = Stage::Transfer;
                if op.region != REGION_STAGING
                    || batch
                        .staging(op.buffer, map_bytes(op.length) as u64)
                        .is_none()
                {
                    return Err(-libc::EFAULT);
                }
                // The data come into the block, and the map takes their place when they are there.
                let block = self.blocks.take(op.length as usize);
                flight.data = block.as_ptr();
                flight.memory = Memory::Staging(block);
            }
            OpKind::WriteZeroes => flight.stage = Stage::Allocate(libc::FALLOC_FL_ZERO_RANGE),
            OpKind::PunchHole => {
                flight.stage =
                    Stage::Allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
            }
            OpKind::CopyRange => flight.buffered = true,
            OpKind::Sync
            | OpKind::Truncate
            | OpKind::SeekHole
            | OpKind::ZeroBuffer
            | OpKind::CopyToBuffer => {}
        }
        // A block device that can't make zeros writes them when its space is to be kept.
        if op.kind == OpKind::WriteZeroes
            && op.fast
            && let Some(entry) = self.files.entry(op.file)
            && entry.file.is_block_device()
        {
            return Err(-libc::EOPNOTSUPP);
        }
        if op.length == 0 && !matches!(op.kind, OpKind::Sync | OpKind::Truncate) {
            self.drop_memory(std::mem::replace(&mut flight.memory, Memory::None), regions);
            return Err(0);
        }
        Ok(flight)
    }

    fn memory(
        &mut self,
        op: &Op,
        batch: &mut Batch<'_>,
        regions: &mut Regions,
    ) -> Result<(Memory, *mut u8), i32> {
        let length = op.length as usize;
        if op.region == REGION_STAGING {
            let staging = batch.staging(op.buffer, op.length).ok_or(-libc::EFAULT)?;
            let block = self.blocks.take(length);
            if op.kind == OpKind::Write {
                // SAFETY: the block has at least `length` bytes and is nobody else's.
                unsafe {
                    block
                        .as_ptr()
                        .copy_from_nonoverlapping(staging.as_ptr(), length)
                };
            }
            let data = block.as_ptr();
            return Ok((Memory::Staging(block), data));
        }
        let data = regions
            .resolve(op.region, op.buffer, op.length)
            .ok_or(-libc::EFAULT)?;
        regions.hold(op.region);
        let misaligned = self.files.entry(op.file).is_some_and(|entry| {
            entry.file.direct().is_some()
                && entry.file.place_is_aligned(op.offset, op.length)
                && !entry.file.memory_is_aligned(data)
        });
        if !misaligned {
            return Ok((Memory::Region(op.region), data));
        }
        let block = self.blocks.take(length);
        if op.kind == OpKind::Write {
            // SAFETY: `resolve` checked `length` bytes at `data`, and the block has as many. Should a client change them
            // meanwhile, then he wrote something in between.
            unsafe { block.as_ptr().copy_from_nonoverlapping(data, length) };
        }
        let aligned = block.as_ptr();
        Ok((Memory::Aligned(block, op.region, data), aligned))
    }

    fn drop_memory(&mut self, memory: Memory, regions: &mut Regions) {
        match memory {
            Memory::None => {}
            Memory::Region(region) => regions.release(region),
            Memory::Staging(block) | Memory::Zeros(block) => self.blocks.give(block),
            Memory::Aligned(block, region, _) => {
                regions.release(region);
                self.blocks.give(block);
            }
        }
    }

    fn insert(&mut self, flight: Flight) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.flights[slot as usize] = Some(flight);
                slot
            }
            None => {
                self.flights.push(Some(flight));
                u32::try_from(self.flights.len() - 1).expect("fewer than 2^32 operations in flight")
            }
        }
    }

    /// Goes on with a flight, unless it has to wait for others.
    fn admit(&mut self, slot: u32, backend: &mut dyn FileBackend) {
        if self.may_start(slot) {
            self.launch(slot, backend);
        }
    }

    /// Whether a flight may start its next call; it is parked if not.
    fn may_start(&mut self, slot: u32) -> bool {
        let Some(Some(flight)) = self.flights.get(slot as usize) else {
            return false;
        };
        let Some(Entry { file, parking, .. }) = self.files.entry(flight.op.file) else {
            return false;
        };
        if !flight.writes() || file.direct().is_none() {
            return true;
        }
        let pages = file.pages(flight.op.offset, flight.op.length);
        let (_, buffered) = flight.route(file);
        parking.admit(slot, pages, buffered)
    }

    /// Ends a flight's part in [`may_start`](Self::may_start), and goes on with those that waited for it.
    fn leave(&mut self, slot: u32, file: u16, backend: &mut dyn FileBackend) {
        if let Some(entry) = self.files.entry(file) {
            entry.parking.leave(slot);
        }
        while let Some(slot) = self
            .files
            .entry(file)
            .and_then(|entry| entry.parking.resume())
        {
            self.launch(slot, backend);
        }
    }

    fn launch(&mut self, slot: u32, backend: &mut dyn FileBackend) {
        if let Some(call) = self.call(slot) {
            // SAFETY: the flight keeps its memory until its event: blocks are its own, regions are held, and so are files.
            unsafe { backend.file(Token::from(slot), call) };
        }
    }

    /// The call that a flight makes next.
    fn call(&mut self, slot: u32) -> Option<FileCall> {
        let Some(Some(flight)) = self.flights.get(slot as usize) else {
            return None;
        };
        let source = match flight.op.kind {
            OpKind::CopyRange => self
                .files
                .entry(flight.op.source_file)
                .map(|entry| entry.file.buffered()),
            _ => None,
        };
        let entry = self.files.entry(flight.op.file)?;
        Some(flight.call(&entry.file, source.unwrap_or(-1)))
    }

    fn prepare_zeros(&mut self, slot: u32) {
        let Some(Some(flight)) = self.flights.get_mut(slot as usize) else {
            return;
        };
        let size = usize::try_from(flight.op.length)
            .unwrap_or(ZEROS)
            .min(ZEROS);
        let block = self.blocks.take(size);
        // SAFETY: the block has that many bytes.
        unsafe { block.as_ptr().write_bytes(0, block.size()) };
        flight.data = block.as_ptr();
        flight.memory = Memory::Zeros(block);
    }

    fn finish(&mut self, slot: u32, result: i32, context: &mut Context<'_>) {
        let Some(mut flight) = self.flights[slot as usize].take() else {
            return;
        };
        self.free.push(slot);
        let op = flight.op;
        let mut read = None;
        match std::mem::replace(&mut flight.memory, Memory::None) {
            Memory::Staging(block) if op.kind == OpKind::Read && result > 0 => {
                read = Some(StagedRead {
                    block,
                    length: result.unsigned_abs() as usize,
                    offset: op.buffer,
                });
            }
            Memory::Staging(block) if op.kind == OpKind::DataMap && result >= 0 => {
                // SAFETY: so many bytes were read into the block, and the read is over.
                let data = unsafe {
                    std::slice::from_raw_parts(block.as_ptr(), result.unsigned_abs() as usize)
                };
                let map = data_map(data, map_bytes(op.length));
                // SAFETY: a block is never smaller than the map of the largest operation, and nobody else uses it.
                unsafe { block.as_ptr().copy_from(map.as_ptr(), map.len()) };
                read = Some(StagedRead {
                    block,
                    length: map.len(),
                    offset: op.buffer,
                });
            }
            memory => {
                if let Memory::Aligned(block, _, to) = &memory
                    && op.kind == OpKind::Read
                    && let Ok(length) = usize::try_from(result)
                {
                    // SAFETY: at most the operation's length was read; the block has as many bytes, and so has the
                    // region there, which is still held.
                    unsafe { to.copy_from(block.as_ptr(), length) };
                }
                self.drop_memory(memory, context.regions);
            }
        }
        self.leave(slot, op.file, context.backend);
        self.release_files(&op, context.backend);
        self.done.push_back(Done {
            completion: Completion { id: op.id, result },
            read,
        });
    }

    fn release_files(&mut self, op: &Op, backend: &mut dyn FileBackend) {
        self.files.release(op.file, backend);
        if op.kind == OpKind::CopyRange {
            self.files.release(op.source_file, backend);
        }
    }
}

/// Refuses numbers that make no sense.
fn check(op: &Op) -> Result<(), i32> {
    let end = |offset: u64| {
        offset
            .checked_add(op.length)
            .filter(|end| i64::try_from(*end).is_ok())
    };
    let valid = match op.kind {
        OpKind::Sync | OpKind::ZeroBuffer | OpKind::CopyToBuffer => true,
        OpKind::DataMap => end(op.offset).is_some() && op.length <= MAX_DATA_MAP,
        OpKind::Truncate => i64::try_from(op.offset).is_ok(),
        OpKind::WriteZeroes | OpKind::PunchHole => end(op.offset).is_some(),
        OpKind::Read | OpKind::Write | OpKind::SeekHole => {
            end(op.offset).is_some() && i32::try_from(op.length).is_ok()
        }
        OpKind::CopyRange => {
            let overlap =
                op.file == op.source_file && op.offset.abs_diff(op.source_offset) < op.length;
            end(op.offset).and(end(op.source_offset)).is_some()
                && i32::try_from(op.length).is_ok()
                && !overlap
        }
    };
    if valid { Ok(()) } else { Err(-libc::EINVAL) }
}

/// Bytes of the map of so many bytes of data: a bit for each sector.
fn map_bytes(data: u64) -> usize {
    data.div_ceil(512 * 8) as usize
}

/// The map of data (see [`OpKind::DataMap`]) in so many bytes.
fn data_map(data: &[u8], bytes: usize) -> Vec<u8> {
    let mut map = vec![0; bytes];
    for (index, sector) in data.chunks(512).enumerate() {
        if sector.iter().any(|byte| *byte != 0) {
            map[index / 8] |= 0x80 >> (index % 8);
        }
    }
    map
}

const _: () = assert!(MAX_DATA_MAP / 512 / 8 <= crate::blocks::ALIGNMENT as u64);

fn zero_buffer(op: &Op, batch: &mut Batch<'_>, regions: &Regions) -> i32 {
    if op.region == REGION_STAGING {
        return match batch.staging(op.buffer, op.length) {
            Some(bytes) => {
                bytes.fill(0);
                0
            }
            None => -libc::EFAULT,
        };
    }
    match regions.resolve(op.region, op.buffer, op.length) {
        Some(bytes) => {
            // SAFETY: `resolve` checked that the region has these bytes.
            unsafe { bytes.write_bytes(0, op.length as usize) };
            0
        }
        None => -libc::EFAULT,
    }
}

fn copy_to_buffer(op: &Op, batch: &mut Batch<'_>, regions: &Regions) -> i32 {
    let source = u32::try_from(op.source_offset)
        .ok()
        .and_then(|offset| batch.staging(offset, op.length));
    let target = match op.region {
        REGION_STAGING => None,
        region => regions.resolve(region, op.buffer, op.length),
    };
    match (source, target) {
        (Some(source), Some(target)) => {
            // SAFETY: `resolve` checked that the region has these bytes; staging, in WebAssembly memory, lies elsewhere.
            unsafe { target.copy_from_nonoverlapping(source.as_ptr(), source.len()) };
            0
        }
        _ => -libc::EFAULT,
    }
}
