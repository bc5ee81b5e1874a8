//! Calls on files as ordinary system calls that may block.

use std::os::fd::RawFd;

use vhd::record::SECTOR;

use super::FileCall;
use crate::error::last_errno;

/// Executes a call. Its result is that of the system call, or a negative errno value.
///
/// # Safety
///
/// The memory that the call names must be valid.
pub unsafe fn execute(call: &FileCall) -> i32 {
    match *call {
        FileCall::Read {
            fd,
            buffer,
            length,
            offset,
            ..
        } => {
            // SAFETY: the caller vouches for the memory.
            transferred(|| unsafe {
                libc::pread64(fd, buffer.cast(), length, offset.cast_signed())
            })
        }
        FileCall::Write {
            fd,
            buffer,
            length,
            offset,
            ..
        } => {
            // SAFETY: the caller vouches for the memory.
            transferred(|| unsafe {
                libc::pwrite64(fd, buffer.cast(), length, offset.cast_signed())
            })
        }
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

/// Executes a read of what is in the page cache; `None` if the call is something else or would block.
///
/// # Safety
///
/// The memory that the call names must be valid.
pub unsafe fn read_at_once(call: &FileCall) -> Option<i32> {
    let result = match *call {
        FileCall::Read {
            fd,
            buffer,
            length,
            offset,
            cached: true,
        } => {
            let vector = libc::iovec {
                iov_base: buffer.cast(),
                iov_len: length,
            };
            // SAFETY: the caller vouches for the memory.
            transferred(|| unsafe {
                libc::preadv2(
                    fd,
                    &raw const vector,
                    1,
                    offset.cast_signed(),
                    libc::RWF_NOWAIT,
                )
            })
        }
        _ => return None,
    };
    // Failures are left to the call that may block, which repeats them if they are real.
    (result >= 0).then_some(result)
}

fn transferred(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let result = call();
        if result >= 0 {
            // The kernel transfers less than 2 GiB at a time.
            return i32::try_from(result).unwrap_or(i32::MAX);
        }
        let error = last_errno();
        if error != -libc::EINTR {
            return error;
        }
    }
}

fn done(mut call: impl FnMut() -> i32) -> i32 {
    transferred(|| call() as isize)
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

fn copy(from: RawFd, from_offset: u64, to: RawFd, to_offset: u64, length: u64) -> i32 {
    let mut buffer = Vec::new();
    let mut copied = 0;
    while copied < length {
        let mut source = (from_offset + copied).cast_signed();
        let mut target = (to_offset + copied).cast_signed();
        let rest = (length - copied) as usize;
        let result = if buffer.is_empty() {
            // SAFETY: both offsets are places for an i64.
            transferred(|| unsafe {
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
        transferred(|| unsafe { libc::pread64(from, buffer.as_mut_ptr().cast(), length, source) });
    if got <= 0 {
        return got;
    }
    // SAFETY: as above, and `got` is not more than `length`.
    transferred(|| unsafe { libc::pwrite64(to, buffer.as_ptr().cast(), got as usize, target) })
}
