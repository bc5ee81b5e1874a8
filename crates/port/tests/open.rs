//! Opening, locks and errors of the file system.

mod common;

use std::ffi::CString;

use common::{DIRECT, Host, READ_WRITE, TempFile, on_both, op, read, write};
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
    direct_where_there_is_none
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
