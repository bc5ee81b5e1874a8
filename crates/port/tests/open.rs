//! Opening, locks and errors of the file system.

mod common;

use std::ffi::CString;
use std::fs::FileTimes;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant, UNIX_EPOCH};

use common::{DIRECT, Host, READ_WRITE, Random, TempFile, on_both, op, read, write};
use port::file::{File, Lock, OpenOptions};
use port::reactor::BackendKind;
use vhd::record::OpKind;

const LOCKED: OpenOptions = OpenOptions {
    write: true,
    direct: false,
    lock: Lock::Write,
    create: false,
    exclusive: false,
};

on_both! {
    locks_conflict
    an_image_can_be_merged_under_its_children
    a_full_disk
    a_size_limit
    files_have_numbers
    closed_files_are_let_go
    more_files_than_are_registered
    direct_where_there_is_none
    reads_leave_the_access_time
}

fn errno(path: &str, options: OpenOptions) -> i32 {
    File::open(path, options).map(drop).unwrap_err().errno()
}

#[test]
fn what_cannot_be_opened() {
    let missing = TempFile::new();
    let error = File::open(missing.path(), LOCKED).map(drop).unwrap_err();
    assert_eq!(error.code(), "ENOENT");
    assert!(error.to_string().contains(missing.path()), "{error}");
    assert!(!std::path::Path::new(missing.path()).exists());
    assert_eq!(errno("/tmp", OpenOptions::default()), libc::EISDIR);
    assert_eq!(errno("/tmp", LOCKED), libc::EISDIR);
    assert_eq!(errno("/dev/null", LOCKED), libc::EINVAL);
    assert_eq!(errno("a\0b", LOCKED), libc::EINVAL);
    assert_eq!(errno("/proc/version/x", LOCKED), libc::ENOTDIR);
    let fifo = CString::new(missing.path()).unwrap();
    // SAFETY: a path that ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    // It doesn't block, and isn't taken for a file.
    assert_eq!(errno(missing.path(), OpenOptions::default()), libc::EINVAL);
}

/// An image may name any path as its parent's, and to open a device can be enough to set it going.
#[test]
fn what_is_no_file_is_not_even_opened() {
    let file = TempFile::new();
    let fifo = CString::new(file.path()).unwrap();
    // SAFETY: paths that end with NUL, and a descriptor that was just made.
    let mut notes = unsafe {
        assert_eq!(libc::mkfifo(fifo.as_ptr(), 0o600), 0);
        let notes = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
        assert!(notes >= 0);
        assert!(libc::inotify_add_watch(notes, fifo.as_ptr(), libc::IN_OPEN) >= 0);
        std::fs::File::from_raw_fd(notes)
    };
    assert_eq!(errno(file.path(), OpenOptions::default()), libc::EINVAL);
    let mut events = [0; 256];
    let kind = notes.read(&mut events).map_err(|error| error.kind());
    assert_eq!(kind, Err(ErrorKind::WouldBlock));
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(file.path())
        .unwrap();
    assert!(notes.read(&mut events).unwrap() > 0, "opening is seen");
}

/// Whoever holds a lock may change the size until he gives it up, and whoever gets it has to know the size of then.
#[test]
fn the_size_is_that_of_a_file_that_nobody_else_has() {
    let file = TempFile::with(&[]);
    let takes_turns = |step: u64| {
        let mut opened = 0;
        for _ in 0..10_000 {
            if let Ok(open) = File::open(file.path(), LOCKED) {
                opened += 1;
                let size = open.current_size();
                assert_eq!(open.size(), size, "of opening {opened}");
                let writer = std::fs::File::options().write(true).open(file.path());
                writer.unwrap().set_len((size + step) % 65_536).unwrap();
            }
        }
        opened
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| takes_turns(512));
        assert!(takes_turns(1024) > 0);
        assert!(other.join().unwrap() > 0);
    });
}

#[test]
fn what_is_known_of_a_file() {
    let file = TempFile::with(&[1; 1000]);
    let buffered = File::open(file.path(), READ_WRITE).unwrap();
    assert_eq!(
        (
            buffered.size(),
            buffered.alignment(),
            buffered.is_block_device()
        ),
        (1000, 1, false)
    );
    assert_eq!(buffered.direct(), None);
    let direct = File::open(file.path(), DIRECT).unwrap();
    assert!(direct.alignment().is_power_of_two());
    assert!(direct.direct().is_none() || direct.alignment() >= 512);
}

fn locks_conflict(backend: BackendKind) {
    let file = TempFile::with(&[1; 512]);
    let shared = OpenOptions {
        lock: Lock::Read,
        ..OpenOptions::default()
    };
    let (mut one, mut other) = (Host::new(backend), Host::new(backend));
    let number = one.open(file.path(), LOCKED);
    for options in [LOCKED, shared] {
        let error = other
            .reactor
            .open_file(file.path(), options)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.errno(), libc::EBUSY);
        assert!(
            error
                .to_string()
                .contains("is in use by another process (lock held)")
        );
    }
    // Without asking for a lock there is none in the way.
    let unlocked = other.open(file.path(), OpenOptions::default());
    one.reactor.close_file(number.into()).unwrap();
    other.open(file.path(), shared);
    one.open(file.path(), shared);
    // Closing another descriptor of the file doesn't give the lock up.
    other.reactor.close_file(unlocked.into()).unwrap();
    let error = one
        .reactor
        .open_file(file.path(), LOCKED)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY);
    drop(other);
    assert!(one.reactor.open_file(file.path(), LOCKED).is_err());
}

fn an_image_can_be_merged_under_its_children(backend: BackendKind) {
    let file = TempFile::with(&[1; 512]);
    let locked = |lock| OpenOptions {
        write: matches!(lock, Lock::Merge | Lock::Write),
        lock,
        ..OpenOptions::default()
    };
    // Which locks can be held beside which.
    let cases = [
        (
            Lock::Parent,
            vec![Lock::None, Lock::Read, Lock::Parent, Lock::Merge],
        ),
        (Lock::Merge, vec![Lock::None, Lock::Parent]),
        (Lock::Read, vec![Lock::None, Lock::Read, Lock::Parent]),
        (Lock::Write, vec![Lock::None]),
    ];
    for (held, beside) in cases {
        let (mut one, mut other) = (Host::new(backend), Host::new(backend));
        one.open(file.path(), locked(held));
        for lock in [
            Lock::None,
            Lock::Read,
            Lock::Parent,
            Lock::Merge,
            Lock::Write,
        ] {
            let opened = other.reactor.open_file(file.path(), locked(lock));
            let number = opened.map(|(number, _)| number);
            assert_eq!(
                number.is_ok(),
                beside.contains(&lock),
                "{held:?} and {lock:?}"
            );
            if let Ok(number) = number {
                other.reactor.close_file(number.into()).unwrap();
            }
        }
    }
}

#[test]
fn a_new_file_must_be_new() {
    let file = TempFile::new();
    let new = OpenOptions {
        exclusive: true,
        ..READ_WRITE
    };
    File::open(file.path(), new).unwrap();
    assert_eq!(errno(file.path(), new), libc::EEXIST);
}

/// A file system of 1 MiB, gone when dropped.
struct Tmpfs(CString);

impl Tmpfs {
    /// `None` where mounting isn't permitted.
    fn mount(name: &str) -> Option<Self> {
        let path = format!(
            "{}/port-tmpfs-{}-{name}",
            env!("CARGO_TARGET_TMPDIR"),
            std::process::id()
        );
        std::fs::create_dir_all(&path).unwrap();
        let target = CString::new(path).unwrap();
        let (kind, size) = (c"tmpfs", c"size=1m");
        // SAFETY: strings that end with NUL.
        let result = unsafe {
            libc::mount(
                kind.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                0,
                size.as_ptr().cast(),
            )
        };
        let mounted = Self(target);
        (result == 0).then_some(mounted)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // SAFETY: strings that end with NUL.
        unsafe {
            libc::umount2(self.0.as_ptr(), libc::MNT_DETACH);
            libc::rmdir(self.0.as_ptr());
        }
    }
}

fn a_full_disk(backend: BackendKind) {
    let Some(disk) = Tmpfs::mount(&format!("{backend:?}")) else {
        eprintln!("mounting is not permitted: not tested");
        return;
    };
    let path = format!("{}/file", disk.0.to_str().unwrap());
    let mut host = Host::new(backend);
    let number = host.open(&path, READ_WRITE);
    let results = host.run(&[write(number, 0, 2 << 20, 0, 0)]);
    assert_eq!(results, [-libc::ENOSPC]);
    assert_eq!(
        host.run_one(op(OpKind::WriteZeroes, number, 0, 2 << 20)),
        -libc::ENOSPC
    );
    assert_eq!(host.run_one(op(OpKind::Truncate, number, 0, 0)), 0);
    assert_eq!(
        host.run(&[write(number, 0, 1 << 19, 0, 0), read(number, 0, 4096, 0, 0)])[0],
        1 << 19
    );
    drop(host);
}

/// The limit is one for the process, so it is far above what other tests write.
fn a_size_limit(backend: BackendKind) {
    const LIMIT: u64 = 1 << 36;
    // SAFETY: plain system calls with a valid structure; nobody else sends this signal.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit {
            rlim_cur: LIMIT,
            rlim_max: libc::RLIM_INFINITY,
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    let file = TempFile::new();
    for options in [READ_WRITE, DIRECT] {
        let mut host = Host::new(backend);
        let number = host.open(file.path(), options);
        // The kernel writes a part first: only then there is an error.
        assert_eq!(
            host.run_one(write(number, LIMIT - 5000, 10_000, 0, 0)),
            -libc::EFBIG
        );
        assert_eq!(
            host.run_one(write(number, LIMIT - 4096, 12_288, 0, 0)),
            -libc::EFBIG
        );
        assert_eq!(host.run_one(write(number, LIMIT - 4096, 4096, 0, 0)), 4096);
        assert_eq!(
            host.run_one(op(OpKind::Truncate, number, LIMIT + 1, 0)),
            -libc::EFBIG
        );
    }
}

fn files_have_numbers(backend: BackendKind) {
    let files: Vec<_> = (0..5u8).map(|byte| TempFile::with(&[byte; 10])).collect();
    let mut host = Host::new(backend);
    let numbers: Vec<u16> = files
        .iter()
        .map(|file| host.open(file.path(), OpenOptions::default()))
        .collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    host.reactor.close_file(2).unwrap();
    assert_eq!(host.run_one(read(2, 0, 1, 0, 0)), -libc::EBADF);
    assert_eq!(host.open(files[4].path(), OpenOptions::default()), 2);
    assert_eq!(host.run_one(read(2, 0, 1, 0, 0)), 1);
    assert_eq!(host.staging(0, 1), [4]);
    assert_eq!(
        host.reactor.close_file(77).unwrap_err().errno(),
        libc::EBADF
    );
    assert_eq!(
        host.reactor.close_file(1 << 20).unwrap_err().errno(),
        libc::EBADF
    );
}

/// Whether nobody but the holder of this descriptor has its file open.
fn is_alone(file: &std::fs::File) -> bool {
    // SAFETY: F_SETLEASE takes no pointer.
    let lease = |kind: i32| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    let alone = lease(libc::F_WRLCK) == 0;
    if alone {
        assert_eq!(lease(libc::F_UNLCK), 0);
    }
    alone
}

/// In a loop that is longer than any table of files.
fn closed_files_are_let_go(backend: BackendKind) {
    let file = TempFile::with(&[0; 8192]);
    let probe = std::fs::File::options()
        .write(true)
        .open(file.path())
        .unwrap();
    let (mut one, mut other) = (Host::new(backend), Host::new(backend));
    for round in 0..600u32 {
        let options = OpenOptions {
            direct: round % 2 == 1,
            ..LOCKED
        };
        let number = one.open(file.path(), options);
        assert!(!is_alone(&probe));
        one.staging(0, 4096).fill(round as u8);
        assert_eq!(one.run_one(write(number, 0, 4096, 0, 0)), 4096);
        // Closed before the sync is over.
        let sync = op(OpKind::Sync, number, 0, 0);
        let mut turn = one.turn(&[sync], &[], Some(Duration::ZERO));
        one.reactor.close_file(number.into()).unwrap();
        if turn.completions == 0 {
            turn = one.turn(&[], &[], Some(Duration::from_secs(20)));
        }
        assert_eq!(turn.completions, 1);
        let number = other.open(file.path(), options);
        assert_eq!(other.run_one(read(number, 0, 4096, 0, 0)), 4096, "{round}");
        assert_eq!(other.staging(0, 4096), [round as u8; 4096]);
        other.reactor.close_file(number.into()).unwrap();
        // The kernel has the file open for the sync until it comes to tidy up, which is when it is called again.
        let end = Instant::now() + Duration::from_secs(20);
        while !is_alone(&probe) {
            assert!(Instant::now() < end, "{round}");
            one.turn(&[], &[], Some(Duration::from_millis(1)));
        }
    }
    one.open(file.path(), LOCKED);
    drop(one);
    assert!(is_alone(&probe));
}

fn more_files_than_are_registered(backend: BackendKind) {
    const FILES: usize = 300;
    let files: Vec<_> = (0..2 * FILES)
        .map(|index| TempFile::with(&(index as u32).to_le_bytes()))
        .collect();
    let mut host = Host::new(backend);
    let mut open: Vec<(u16, usize)> = (0..FILES)
        .map(|index| (host.open(files[index].path(), READ_WRITE), index))
        .collect();
    let mut random = Random(3);
    for round in 0..4 {
        let ops: Vec<_> = open
            .iter()
            .zip(0..)
            .map(|((number, _), index)| read(*number, 0, 4, 0, 4 * index))
            .collect();
        assert_eq!(host.run(&ops), [4; FILES]);
        for ((_, content), index) in open.iter().zip(0..) {
            let expected = (*content as u32).to_le_bytes();
            assert_eq!(host.staging(4 * index, 4), expected, "round {round}");
        }
        // Some are closed in any order, and others come in their place, not all with their descriptors.
        let mut contents = Vec::new();
        for _ in 0..FILES / 2 {
            let (number, content) = open.swap_remove(random.below(open.len() as u64) as usize);
            host.reactor.close_file(number.into()).unwrap();
            contents.push((content + FILES) % (2 * FILES));
        }
        let mut taken: Vec<_> = (0..FILES / 4)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        for (index, content) in contents.into_iter().enumerate() {
            if index == FILES / 4 {
                taken.clear();
            }
            let number = host.open(files[content].path(), READ_WRITE);
            open.push((number, content));
        }
    }
}

/// Whether or not the file system has direct I/O, operations work.
fn direct_where_there_is_none(backend: BackendKind) {
    for folder in ["/dev/shm", "/proc/self"] {
        let path = format!("{folder}/port-direct-{}-{backend:?}", std::process::id());
        let path = if folder == "/proc/self" {
            "/proc/self/stat".to_owned()
        } else {
            std::fs::write(&path, [9; 100]).unwrap();
            path
        };
        let mut host = Host::new(backend);
        let options = OpenOptions {
            direct: true,
            ..OpenOptions::default()
        };
        let number = host.open(&path, options);
        assert!(host.run_one(read(number, 0, 4096, 0, 0)) >= 100);
        if folder == "/dev/shm" {
            std::fs::remove_file(path).unwrap();
        }
    }
}

fn reads_leave_the_access_time(backend: BackendKind) {
    let file = TempFile::with(&[1; 8192]);
    let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let times = FileTimes::new().set_accessed(long_ago);
    std::fs::File::open(file.path())
        .and_then(|open| open.set_times(times))
        .unwrap();
    for options in [READ_WRITE, DIRECT] {
        let mut host = Host::new(backend);
        let number = host.open(file.path(), options);
        assert_eq!(host.run_one(read(number, 0, 4096, 0, 0)), 4096);
        let accessed = std::fs::metadata(file.path()).unwrap().accessed().unwrap();
        assert_eq!(accessed, long_ago);
    }
}
