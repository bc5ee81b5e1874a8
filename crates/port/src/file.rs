//! Opening files: descriptors for direct and buffered I/O, locks, and what direct I/O demands.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Error, Result};

/// How to open a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// For writing as well as for reading.
    pub write: bool,
    /// With direct I/O (`O_DIRECT`), where the file system has it.
    pub direct: bool,
    /// The lock that is held on the file.
    pub lock: Lock,
    /// Create the file if there is none.
    pub create: bool,
    /// With `create`: a file that exists already is an error.
    pub exclusive: bool,
}

/// A lock on a file. It keeps those out that would be in the way, in this process and others.
///
/// The lock's first byte stands for what whoever reads the whole image sees, the others for what its children see: so
/// an image can be merged into its parent, or a footer be changed, while the parent is read through its children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// None: others may be writing.
    #[default]
    None,
    /// Keeps all writers out.
    Read,
    /// Keeps those out that write what children see.
    Parent,
    /// For writing what children don't see: keeps other writers out, and those who read more than children do.
    Merge,
    /// Keeps everybody out.
    Write,
}

/// An open regular file or block device.
#[derive(Debug)]
pub struct File {
    buffered: OwnedFd,
    direct: Option<OwnedFd>,
    size: u64,
    block_device: bool,
    offset_alignment: u32,
    memory_alignment: u32,
    page: u32,
}

/// The alignment demanded by direct I/O when nobody says what it is.
const SAFE_ALIGNMENT: u32 = 4096;

impl File {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// What `open(2)` says; `EISDIR` or `EINVAL` for what is neither a regular file nor a block device; `EBUSY` when
    /// another process holds a lock that conflicts. Messages name the path.
    pub fn open(path: &str, options: OpenOptions) -> Result<Self> {
        let what = |text: &str, cause: &io::Error| Error::os(format_args!("{path}: {text}"), cause);
        let name = CString::new(path)
            .map_err(|_| Error::new(libc::EINVAL, format!("{path:?} has a NUL in it")))?;
        let access = if options.write {
            libc::O_RDWR
        } else {
            libc::O_RDONLY
        };
        let create = match (options.create, options.exclusive) {
            (false, _) => 0,
            (true, false) => libc::O_CREAT,
            (true, true) => libc::O_CREAT | libc::O_EXCL,
        };
        // Opening some devices sets them going: what is neither a file nor a block device isn't even opened.
        if let Ok(status) = stat(&name) {
            is_block_device(path, &status)?;
        }
        // O_NONBLOCK keeps a FIFO from blocking the call should there be one now.
        let buffered = open(&name, access | create | libc::O_NONBLOCK | libc::O_NOCTTY)
            .map_err(|error| what("can't be opened", &error))?;
        let status = fstat(&buffered).map_err(|error| what("no status", &error))?;
        let block_device = is_block_device(path, &status)?;
        set_flags(&buffered, access).map_err(|error| what("can't be set up", &error))?;
        if options.lock != Lock::None {
            lock(&buffered, options.lock).map_err(|error| match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => Error::new(
                    libc::EBUSY,
                    format!("{path} is in use by another process (lock held)"),
                ),
                _ => what("can't be locked", &error),
            })?;
        }
        // Only now: who had the file locked may have changed its size until he gave it up.
        let size = if block_device {
            device_size(&buffered)
        } else {
            fstat(&buffered).map(|status| status.st_size.cast_unsigned())
        };
        let size = size.map_err(|error| what("no size", &error))?;
        let direct = if options.direct {
            open_direct(&buffered, &name, access, &status)
        } else {
            None
        };
        let (offset_alignment, memory_alignment) = match &direct {
            Some(direct) => direct_alignment(direct, block_device),
            None => (1, 1),
        };
        let page = u32::try_from(status.st_blksize)
            .unwrap_or(0)
            .clamp(4096, 1 << 16)
            .next_power_of_two();
        Ok(Self {
            buffered,
            direct,
            size,
            block_device,
            offset_alignment,
            memory_alignment,
            page,
        })
    }

    /// Bytes in the file when it was opened.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes in the file now; its size when opened if it can't be had.
    #[must_use]
    pub fn current_size(&self) -> u64 {
        match fstat(&self.buffered) {
            Ok(status) if !self.block_device => status.st_size.cast_unsigned(),
            _ => self.size,
        }
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Bytes to a multiple of which offset, length and memory of an operation are best aligned; 1 for buffered I/O.
    #[must_use]
    pub fn alignment(&self) -> u32 {
        self.offset_alignment.max(self.memory_alignment)
    }

    /// The descriptor for buffered I/O and everything that isn't reading or writing.
    #[must_use]
    pub fn buffered(&self) -> RawFd {
        self.buffered.as_raw_fd()
    }

    /// The descriptor for direct I/O.
    #[must_use]
    pub fn direct(&self) -> Option<RawFd> {
        self.direct.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The descriptor by which most is read and written.
    #[must_use]
    pub fn main(&self) -> RawFd {
        self.direct().unwrap_or(self.buffered())
    }

    /// Whether direct I/O may have this place in the file.
    #[must_use]
    pub fn place_is_aligned(&self, offset: u64, length: u64) -> bool {
        (offset | length) & u64::from(self.offset_alignment - 1) == 0
    }

    /// Whether direct I/O may have memory at this address.
    #[must_use]
    pub fn memory_is_aligned(&self, address: *const u8) -> bool {
        address.addr() & (self.memory_alignment as usize - 1) == 0
    }

    /// The place, rounded out to what the page cache reads and writes as a whole: first byte and the byte after the
    /// last.
    #[must_use]
    pub fn pages(&self, offset: u64, length: u64) -> Range<u64> {
        let page = u64::from(self.page);
        let end = offset.saturating_add(length).saturating_add(page - 1);
        offset & !(page - 1)..end & !(page - 1)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // The kernel may hold the file open for a moment more, for a call whose end it has told us already.
        let _ = set_lock(&self.buffered, libc::F_UNLCK, 0, 0);
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn open(name: &CString, flags: i32) -> io::Result<OwnedFd> {
    loop {
        // SAFETY: `name` is a string that ends with NUL.
        match check(unsafe { libc::open(name.as_ptr(), flags | libc::O_CLOEXEC, 0o666) }) {
            // SAFETY: the descriptor was just made and nobody else has it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens the file of a descriptor once more.
///
/// # Errors
///
/// What `open(2)` says, also because /proc isn't mounted.
pub(crate) fn reopen(fd: RawFd, flags: i32) -> io::Result<OwnedFd> {
    open(&CString::new(format!("/proc/self/fd/{fd}"))?, flags)
}

/// Whether it is a block device rather than a file; nothing else will do.
fn is_block_device(path: &str, status: &libc::stat) -> Result<bool> {
    match status.st_mode & libc::S_IFMT {
        libc::S_IFREG => Ok(false),
        libc::S_IFBLK => Ok(true),
        libc::S_IFDIR => Err(Error::new(libc::EISDIR, format!("{path} is a directory"))),
        _ => Err(Error::new(
            libc::EINVAL,
            format!("{path} is neither a file nor a block device"),
        )),
    }
}

fn stat(name: &CString) -> io::Result<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `name` is a string that ends with NUL, and `status` has room for what stat writes.
    check(unsafe { libc::stat(name.as_ptr(), status.as_mut_ptr()) })?;
    // SAFETY: stat succeeded, so it has written all of it.
    Ok(unsafe { status.assume_init() })
}

fn fstat(fd: &OwnedFd) -> io::Result<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `status` has room for what fstat writes.
    check(unsafe { libc::fstat(fd.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded, so it has written all of it.
    Ok(unsafe { status.assume_init() })
}

/// A lock that belongs to the open file description: it conflicts with those of other opens in this process as well, and
/// isn't lost when some other descriptor of the file is closed.
fn lock(fd: &OwnedFd, wanted: Lock) -> io::Result<()> {
    // Length 0 is up to the end of the file, wherever that is.
    let (kind, start, length) = match wanted {
        Lock::None => return Ok(()),
        Lock::Read => (libc::F_RDLCK, 0, 0),
        Lock::Parent => (libc::F_RDLCK, 1, 0),
        Lock::Merge => (libc::F_WRLCK, 0, 1),
        Lock::Write => (libc::F_WRLCK, 0, 0),
    };
    set_lock(fd, kind, start, length)
}

fn set_lock(fd: &OwnedFd, kind: i32, start: i64, length: i64) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_start = start;
    lock.l_len = length;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: F_OFD_SETLK reads a `flock`.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }).map(drop)
}

const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

fn device_size(fd: &OwnedFd) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes eight bytes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Makes a descriptor block, and keep reads from being noted in the file's access time, which costs each of them a few percent.
/// Only the file's owner and root may ask for that.
fn set_flags(fd: &OwnedFd, access: i32) -> io::Result<()> {
    let set = |flags: i32| {
        // SAFETY: F_SETFL takes flags and no pointer.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) })
    };
    set(access | libc::O_NOATIME)
        .or_else(|_| set(access))
        .map(drop)
}

/// A second descriptor of the same file, for direct I/O; `None` if the file system has none.
fn open_direct(
    buffered: &OwnedFd,
    name: &CString,
    access: i32,
    status: &libc::stat,
) -> Option<OwnedFd> {
    let flags = access | libc::O_DIRECT | libc::O_NOCTTY;
    // Where /proc isn't mounted the path must do, if it still leads to the same file.
    let direct = reopen(buffered.as_raw_fd(), flags)
        .or_else(|_| open(name, flags))
        .ok()?;
    set_flags(&direct, access | libc::O_DIRECT).ok()?;
    let other = fstat(&direct).ok()?;
    ((other.st_dev, other.st_ino) == (status.st_dev, status.st_ino)).then_some(direct)
}

/// What direct I/O demands of offsets and lengths, and of memory.
fn direct_alignment(fd: &OwnedFd, block_device: bool) -> (u32, u32) {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string, and `status` has room for what statx writes.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            status.as_mut_ptr(),
        )
    };
    // SAFETY: all-zero bytes are a valid `statx`.
    let status = unsafe { status.assume_init() };
    let (offset, memory) = (status.stx_dio_offset_align, status.stx_dio_mem_align);
    if result == 0
        && status.stx_mask & libc::STATX_DIOALIGN != 0
        && offset.is_power_of_two()
        && memory.is_power_of_two()
    {
        return (offset, memory);
    }
    let mut sector: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes an int.
    if block_device && unsafe { libc::ioctl(fd.as_raw_fd(), libc::BLKSSZGET, &raw mut sector) } == 0
    {
        let sector = u32::try_from(sector).unwrap_or(0);
        if sector.is_power_of_two() {
            return (sector, sector);
        }
    }
    (SAFE_ALIGNMENT, SAFE_ALIGNMENT)
}
