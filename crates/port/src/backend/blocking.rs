//! Calls on files as ordinary system calls that may block.

use std::os::fd::RawFd;

use vhd::record::SECTOR;

use super::{Direction, FileCall, Pieces, Transfer};
use crate::error::{last_errno, retried};

/// Executes a call. Its result is that of the system call, or a negative errno value.
///
/// # Safety
///
/// The memory that the call names must be valid.
pub unsafe fn execute(call: &FileCall) -> i32 {
    match *call {
        // SAFETY: the caller vouches for the memory.
        FileCall::Transfer(ref transfer) => unsafe { move_data(transfer) },
        FileCall::Allocate {
            fd,
            mode,
            offset,
            length,
        } => {
            // SAFETY: no memory is concerned.
            done(|| unsafe {
                libc::fallocate64(fd, mode, offset.cast_signed(), length.cast_signed())
            })
        }
        // SAFETY: no memory is concerned.
        FileCall::Sync { fd } => done(|| unsafe { libc::fdatasync(fd) }),
        FileCall::Truncate { fd, size } => {
            // SAFETY: no memory is concerned.
            done(|| unsafe { libc::ftruncate64(fd, size.cast_signed()) })
        }
        FileCall::SeekHole { fd, offset, length } => seek_hole(fd, offset, length),
        FileCall::Copy {
            from,
            from_offset,
            to,
            to_offset,
            length,
        } => copy(from, from_offset, to, to_offset, length),
    }
}

/// # Safety
///
/// The memory that the transfer names must be valid.
unsafe fn move_data(transfer: &Transfer) -> i32 {
    let Transfer { fd, length, .. } = *transfer;
    let offset = transfer.offset.cast_signed();
    // SAFETY: the caller vouches for the memory, and the list if there is one.
    retried(|| unsafe {
        match (transfer.direction, transfer.memory) {
            (Direction::Read, Pieces::One(buffer)) => {
                libc::pread64(fd, buffer.cast(), length, offset)
            }
            (Direction::Write, Pieces::One(buffer)) => {
                libc::pwrite64(fd, buffer.cast(), length, offset)
            }
            (Direction::Read, Pieces::List(vectors, count)) => {
                libc::preadv64(fd, vectors, count.cast_signed(), offset)
            }
            (Direction::Write, Pieces::List(vectors, count)) => {
                libc::pwritev64(fd, vectors, count.cast_signed(), offset)
            }
        }
    })
}

/// Executes a read of what is in the page cache; `None` if the call is something else or would block.
///
/// # Safety
///
/// The memory that the call names must be valid.
pub unsafe fn read_at_once(call: &FileCall) -> Option<i32> {
    let FileCall::Transfer(Transfer {
        fd,
        direction: Direction::Read,
        memory,
        length,
        offset,
        cached: true,
    }) = *call
    else {
        return None;
    };
    let one;
    let (vectors, count) = match memory {
        Pieces::One(buffer) => {
            one = libc::iovec {
                iov_base: buffer.cast(),
                iov_len: length,
            };
            (&raw const one, 1)
        }
        Pieces::List(vectors, count) => (vectors, count.cast_signed()),
    };
    let offset = offset.cast_signed();
    // SAFETY: the caller vouches for the memory, and the list if there is one.
    let result = retried(|| unsafe { libc::preadv2(fd, vectors, count, offset, libc::RWF_NOWAIT) });
    // What is missing at the end is better read by one call than by one for each piece's owner. Failures are left to the
    // call that may block, which repeats them if they are real; and so is the end of the file, which Linux 5.9 and 5.10 report
    // anywhere (preadv2(2), section BUGS).
    let suffices = match memory {
        Pieces::One(_) => result > 0,
        Pieces::List(..) => usize::try_from(result) == Ok(length),
    };
    suffices.then_some(result)
}

fn done(mut call: impl FnMut() -> i32) -> i32 {
    retried(|| call() as isize)
}

fn seek_hole(fd: RawFd, offset: u64, length: u64) -> i32 {
    // SAFETY: no memory is concerned.
    let seek = |whence| match unsafe { libc::lseek64(fd, offset.cast_signed(), whence) } {
        place @ 0.. => Ok(place.cast_unsigned().saturating_sub(offset)),
        _ => Err(last_errno()),
    };
    let (bytes, hole) = match seek(libc::SEEK_DATA) {
        // A sector of which a part is data is no hole.
        Ok(hole) if hole >= SECTOR => (hole, true),
        Err(error) if error == -libc::ENXIO => (length, true),
        Ok(data) => match seek(libc::SEEK_HOLE) {
            Ok(next) => (next.max(data + 1).next_multiple_of(SECTOR), false),
            Err(error) => return error,
        },
        Err(error) if error == -libc::EINVAL || error == -libc::EOPNOTSUPP => (length, false),
        Err(error) => return error,
    };
    // The caller asks for less than 2 GiB.
    (bytes.min(length) / SECTOR) as i32 * 2 + i32::from(hole)
}

/// Bytes that are copied at a time where `copy_file_range` isn't possible.
const COPY_BYTES: usize = 1 << 20;

/// Smaller holes are copied as the zeros that they are.
const HOLE_BYTES: u64 = 64 << 10;

/// Copies of so many bytes are handed to the disk at once, so that it works while more is copied, and a sync at the end has
/// little left to wait for.
const WRITE_BACK_BYTES: u64 = 1 << 20;

/// Copies a range; holes of the source are holes of the target.
fn copy(from: RawFd, from_offset: u64, to: RawFd, to_offset: u64, length: u64) -> i32 {
    let holes = holes_end(from, to, to_offset + length);
    let mut copied = 0;
    while copied < length {
        let (run, hole) = match holes {
            Some(end) => run_at(from, from_offset + copied, length - copied, end),
            None => (length - copied, false),
        };
        if hole && punch(to, to_offset + copied, run) {
            copied += run;
            continue;
        }
        let result = copy_data(from, from_offset + copied, to, to_offset + copied, run);
        if result < 0 {
            return result;
        }
        copied += u64::from(result.unsigned_abs());
        if u64::from(result.unsigned_abs()) < run {
            break;
        }
    }
    if copied >= WRITE_BACK_BYTES {
        // What can't be begun now is done by the sync.
        // SAFETY: no memory is concerned.
        unsafe {
            libc::sync_file_range(
                to,
                to_offset.cast_signed(),
                copied.cast_signed(),
                libc::SYNC_FILE_RANGE_WRITE,
            )
        };
    }
    i32::try_from(copied).unwrap_or(i32::MAX)
}

/// The end of the source, if it is a file with holes and the target is one that reaches up to `end`.
fn holes_end(from: RawFd, to: RawFd, end: u64) -> Option<u64> {
    let (source, target) = (file_status(from)?, file_status(to)?);
    let sparse = source.st_blocks.saturating_mul(512) < source.st_size;
    (sparse && target.st_size.cast_unsigned() >= end).then(|| source.st_size.cast_unsigned())
}

fn file_status(fd: RawFd) -> Option<libc::stat> {
    // SAFETY: all-zero bytes are a valid `stat`, and fstat writes one.
    let status = unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &raw mut status) == 0).then_some(status)?
    };
    (status.st_mode & libc::S_IFMT == libc::S_IFREG).then_some(status)
}

/// How many of the next `limit` bytes of a file that ends at `end` are data, or a hole that is worth keeping.
fn run_at(fd: RawFd, offset: u64, limit: u64, end: u64) -> (u64, bool) {
    let seek = |from: u64, whence| {
        // SAFETY: no memory is concerned.
        let place = unsafe { libc::lseek64(fd, from.cast_signed(), whence) };
        u64::try_from(place).map_err(|_| last_errno())
    };
    if offset >= end {
        return (limit, false);
    }
    let limit_end = offset + limit;
    let data = match seek(offset, libc::SEEK_DATA) {
        Ok(data) => data,
        Err(error) if error == -libc::ENXIO => end,
        Err(_) => return (limit, false),
    };
    if data.min(limit_end) - offset >= HOLE_BYTES {
        return (data.min(limit_end) - offset, true);
    }
    let mut at = data;
    // Up to the next hole that is large enough.
    while at < limit_end {
        let Ok(hole) = seek(at, libc::SEEK_HOLE) else {
            break;
        };
        let next = seek(hole, libc::SEEK_DATA).unwrap_or(end);
        if next.min(limit_end).saturating_sub(hole) >= HOLE_BYTES {
            return (hole - offset, false);
        }
        at = next.max(hole + 1);
    }
    (limit, false)
}

/// Makes a hole; false if it could not be made.
fn punch(fd: RawFd, offset: u64, length: u64) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is concerned.
    done(|| unsafe { libc::fallocate64(fd, mode, offset.cast_signed(), length.cast_signed()) }) == 0
}

/// Copies what is there.
fn copy_data(from: RawFd, from_offset: u64, to: RawFd, to_offset: u64, length: u64) -> i32 {
    let mut buffer = Vec::new();
    let mut copied = 0;
    while copied < length {
        let mut source = (from_offset + copied).cast_signed();
        let mut target = (to_offset + copied).cast_signed();
        let rest = (length - copied) as usize;
        let result = if buffer.is_empty() {
            // SAFETY: both offsets are places for an i64.
            retried(|| unsafe {
                libc::copy_file_range(from, &raw mut source, to, &raw mut target, rest, 0)
            })
        } else {
            copy_through(&mut buffer, from, source, to, target, rest)
        };
        match -result {
            0 => break,
            libc::EXDEV | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM
                if buffer.is_empty() =>
            {
                buffer = vec![0; COPY_BYTES];
            }
            1.. => return result,
            _ => copied += u64::from(result.unsigned_abs()),
        }
    }
    i32::try_from(copied).unwrap_or(i32::MAX)
}

fn copy_through(
    buffer: &mut [u8],
    from: RawFd,
    source: i64,
    to: RawFd,
    target: i64,
    rest: usize,
) -> i32 {
    let length = rest.min(buffer.len());
    // SAFETY: the buffer has room for `length` bytes.
    let got =
        retried(|| unsafe { libc::pread64(from, buffer.as_mut_ptr().cast(), length, source) });
    if got <= 0 {
        return got;
    }
    // SAFETY: as above, and `got` is not more than `length`.
    retried(|| unsafe { libc::pwrite64(to, buffer.as_ptr().cast(), got as usize, target) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_end_of_a_file_is_found_by_the_call_that_may_block() {
        let program = std::fs::File::open("/proc/self/exe").unwrap();
        let size = program.metadata().unwrap().len();
        let mut buffer = [0; 4096];
        let mut read = |offset| {
            let call = FileCall::Transfer(Transfer {
                fd: program.as_raw_fd(),
                direction: Direction::Read,
                memory: Pieces::One(buffer.as_mut_ptr()),
                length: buffer.len(),
                offset,
                cached: true,
            });
            // SAFETY: the buffer has so many bytes.
            unsafe { (read_at_once(&call), execute(&call)) }
        };
        // A file system may lack reading at once.
        assert!(matches!(read(0), (None | Some(4096), 4096)));
        assert_eq!(read(size), (None, 0));
    }
}
