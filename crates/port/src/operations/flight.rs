//! An operation in flight: which call it makes next, and what the call's result means for it.

use vhd::record::{Op, OpKind};

use crate::backend::{Direction, FileCall, Pieces, Transfer};
use crate::blocks::Block;
use crate::file::File;

/// Zeros that are written at a time where the file system can't do better, in bytes.
pub(super) const ZEROS: usize = 1 << 20;

/// An operation in flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub op: Op,
    pub stage: Stage,
    /// Bytes that are done.
    pub done: u64,
    /// Where the data are.
    pub data: *mut u8,
    pub memory: Memory,
    /// It may not use direct I/O.
    pub buffered: bool,
}

/// What a flight does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Moves the data.
    Transfer,
    /// Has the file system make zeros, in this mode.
    Allocate(i32),
    /// Writes zeros.
    Zeros,
    /// Makes a single call.
    Single,
}

/// What keeps the memory of a flight alive.
#[derive(Debug)]
pub(super) enum Memory {
    /// It has none.
    None,
    /// A region other than staging.
    Region(u32),
    /// A block; what was read goes from there to the operation's place in staging when the completion is reported.
    Staging(Block),
    /// A block, since the operation's place in this region isn't aligned for direct I/O; what was read goes there.
    Aligned(Block, u32, *mut u8),
    /// A block of zeros.
    Zeros(Block),
}

/// What comes after a call.
pub(super) enum Next {
    /// Another call.
    Again,
    /// Writing zeros.
    Zeros,
    /// The same without direct I/O.
    Buffered,
    /// Nothing.
    Finished(i32),
}

impl Flight {
    /// Whether it writes through the page cache or past it; what `fallocate` does isn't meant, since the kernel sees to
    /// that.
    pub fn writes(&self) -> bool {
        match self.op.kind {
            OpKind::Write | OpKind::CopyRange => true,
            OpKind::WriteZeroes | OpKind::PunchHole => self.stage == Stage::Zeros,
            OpKind::Read
            | OpKind::DataMap
            | OpKind::Sync
            | OpKind::Truncate
            | OpKind::SeekHole
            | OpKind::ZeroBuffer
            | OpKind::CopyToBuffer => false,
        }
    }

    /// Where the rest of the data is.
    fn rest(&self) -> (u64, u64) {
        (self.op.offset + self.done, self.op.length - self.done)
    }

    /// The descriptor for the rest, and whether that is the buffered one.
    pub fn route(&self, file: &File) -> (i32, bool) {
        let (offset, length) = self.rest();
        match file.direct() {
            Some(direct)
                if !self.buffered
                    && file.place_is_aligned(offset, length)
                    && file.memory_is_aligned(self.data.wrapping_add(self.in_memory())) =>
            {
                (direct, false)
            }
            _ => (file.buffered(), true),
        }
    }

    /// How far the rest is into the memory.
    fn in_memory(&self) -> usize {
        if self.stage == Stage::Zeros {
            0
        } else {
            self.done as usize
        }
    }

    /// The call that it makes next. `source` is the file that a copy comes from.
    pub fn call(&self, file: &File, source: i32) -> FileCall {
        let (offset, length) = self.rest();
        let buffered = file.buffered();
        match (self.stage, self.op.kind) {
            (Stage::Transfer, OpKind::Read | OpKind::DataMap) => {
                self.transfer(file, Direction::Read, length as usize)
            }
            (Stage::Transfer, _) => self.transfer(file, Direction::Write, length as usize),
            (Stage::Zeros, _) => {
                let length = usize::try_from(length).unwrap_or(ZEROS).min(ZEROS);
                self.transfer(file, Direction::Write, length)
            }
            (Stage::Allocate(mode), _) => FileCall::Allocate {
                fd: buffered,
                mode,
                offset,
                length,
            },
            (Stage::Single, OpKind::Truncate) => FileCall::Truncate {
                fd: buffered,
                size: offset,
            },
            (Stage::Single, OpKind::SeekHole) => FileCall::SeekHole {
                fd: buffered,
                offset,
                length,
            },
            (Stage::Single, OpKind::CopyRange) => FileCall::Copy {
                from: source,
                from_offset: self.op.source_offset,
                to: buffered,
                to_offset: offset,
                length,
            },
            (Stage::Single, _) => FileCall::Sync { fd: buffered },
        }
    }

    fn transfer(&self, file: &File, direction: Direction, length: usize) -> FileCall {
        let (fd, cached) = self.route(file);
        FileCall::Transfer(Transfer {
            fd,
            direction,
            memory: Pieces::One(self.data.wrapping_add(self.in_memory())),
            length,
            offset: self.rest().0,
            cached,
        })
    }

    pub fn advance(&mut self, result: i32, file: &File) -> Next {
        match -result {
            libc::EINTR | libc::EAGAIN => return Next::Again,
            libc::EINVAL
                if matches!(self.stage, Stage::Transfer | Stage::Zeros) && !self.route(file).1 =>
            {
                return Next::Buffered;
            }
            _ => {}
        }
        match self.stage {
            Stage::Allocate(mode) => self.allocated(mode, result, file),
            Stage::Single => Next::Finished(result),
            Stage::Transfer | Stage::Zeros => self.transferred(result),
        }
    }

    fn transferred(&mut self, result: i32) -> Next {
        let is_read = matches!(self.op.kind, OpKind::Read | OpKind::DataMap);
        match result {
            // Nothing at all is written only when something is badly wrong.
            0 if !is_read => return Next::Finished(-libc::EIO),
            1.. => self.done += u64::from(result.unsigned_abs()),
            0 => {}
            _ => return Next::Finished(result),
        }
        if result > 0 && self.done < self.op.length {
            return Next::Again;
        }
        // Reads and writes are at most i32::MAX bytes long.
        Next::Finished(if self.stage == Stage::Zeros {
            0
        } else {
            self.done as i32
        })
    }

    fn allocated(&mut self, mode: i32, result: i32, file: &File) -> Next {
        match -result {
            libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV => {}
            _ => return Next::Finished(result),
        }
        let punching = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        // What is left is writing them, or having a block device's driver do it.
        if self.op.fast && (!punching || file.is_block_device()) {
            return Next::Finished(-libc::EOPNOTSUPP);
        }
        if punching {
            self.stage = Stage::Allocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE);
            return Next::Again;
        }
        if self.op.kind == OpKind::PunchHole {
            // Making a hole doesn't make the file longer.
            self.op.length = self
                .op
                .length
                .min(file.current_size().saturating_sub(self.op.offset));
            if self.op.length == 0 {
                return Next::Finished(0);
            }
        }
        self.stage = Stage::Zeros;
        Next::Zeros
    }
}
