//! Neighbouring operations, which share calls, against the same ones executed one by one: on files that end, or may not
//! grow, or with memory that isn't there, in the middle of a run.

mod common;

use common::{DIRECT, Host, Memory, READ_WRITE, Random, TempFile, on_both, op, read, write};
use port::file::OpenOptions;
use port::reactor::BackendKind;
use vhd::record::{Op, OpKind};

on_both! {
    a_file_that_ends_in_a_member
    a_file_that_may_not_grow
    memory_that_is_not_there
    a_file_that_is_not_writable
    agrees_with_one_by_one_buffered
    agrees_with_one_by_one_direct
}

/// No file of this process may grow beyond this.
const LIMIT: usize = (1 << 20) + 700;

/// Bytes of memory that random operations name.
const MEMORY: usize = 2 << 20;

fn limit_files() {
    let limit = libc::rlimit {
        rlim_cur: LIMIT as u64,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit is a valid one, and ignoring a signal runs nothing.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
}

fn a_file_that_ends_in_a_member(backend: BackendKind) {
    let mut content = vec![0; 14_000];
    Random(1).fill(&mut content);
    let file = TempFile::with(&content);
    for options in [READ_WRITE, DIRECT] {
        let mut host = Host::new(backend);
        let mut memory = Memory::new(8);
        let region = memory.add_to(&mut host);
        let number = host.open(file.path(), options);
        memory.get().fill(0xee);
        // Behind the end, direct I/O may put anything into a read's memory. In memory, the second and the third are the other way round.
        let results = host.run(&[
            read(number, 0, 8192, region, 0),
            read(number, 8192, 8192, region, 16384),
            read(number, 16384, 8192, region, 8192),
        ]);
        assert_eq!(results, [8192, 14_000 - 8192, 0]);
        assert!(memory.get()[..8192] == content[..8192]);
        assert!(memory.get()[16384..][..14_000 - 8192] == content[8192..]);
        assert!(memory.get()[24576..].iter().all(|byte| *byte == 0xee));
        drop(host);
    }
}

fn a_file_that_may_not_grow(backend: BackendKind) {
    limit_files();
    for options in [READ_WRITE, DIRECT] {
        let file = TempFile::new();
        let mut host = Host::new(backend);
        let mut memory = Memory::new(8);
        let region = memory.add_to(&mut host);
        Random(2).fill(memory.get());
        let number = host.open(file.path(), options);
        let start: u64 = (1 << 20) - 8192;
        let results = host.run(&[
            write(number, start, 8192, region, 16384),
            write(number, start + 8192, 8192, region, 0),
            write(number, start + 16384, 8192, region, 8192),
        ]);
        assert_eq!(results, [8192, -libc::EFBIG, -libc::EFBIG]);
        let bytes = file.bytes();
        assert_eq!(bytes.len(), LIMIT);
        assert!(bytes[start as usize..][..8192] == memory.get()[16384..][..8192]);
        assert!(bytes[1 << 20..] == memory.get()[..700]);
        drop(host);
    }
}

fn memory_that_is_not_there(backend: BackendKind) {
    let mut content = vec![0; 5 * 4096];
    Random(3).fill(&mut content);
    for options in [READ_WRITE, DIRECT] {
        let file = TempFile::with(&content);
        let mut memory = Memory::new(5);
        let hole = memory.get()[2 * 4096..].as_mut_ptr();
        let protect = |protection| {
            // SAFETY: the page belongs to the memory, and nobody touches it until it is as it was.
            let result = unsafe { libc::mprotect(hole.cast(), 4096, protection) };
            assert_eq!(result, 0);
        };
        let mut host = Host::new(backend);
        let region = memory.add_to(&mut host);
        let number = host.open(file.path(), options);
        let pages = |make: fn(u16, u64, u64, u32, u32) -> Op| {
            [0, 1, 2, 3, 4].map(|page: u32| {
                let at = page * 4096;
                make(number, u64::from(at), 4096, region, at)
            })
        };
        protect(libc::PROT_NONE);
        let got = host.run(&pages(read));
        protect(libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(got, [4096, 4096, -libc::EFAULT, 4096, 4096]);
        for page in [0, 1, 3, 4] {
            let range = page * 4096..(page + 1) * 4096;
            assert!(memory.get()[range.clone()] == content[range]);
        }
        memory.get().fill(9);
        protect(libc::PROT_NONE);
        let put = host.run(&pages(write));
        protect(libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(put, [4096, 4096, -libc::EFAULT, 4096, 4096]);
        let bytes = file.bytes();
        assert!(bytes[2 * 4096..][..4096] == content[2 * 4096..][..4096]);
        let others = bytes[..8192].iter().chain(&bytes[3 * 4096..]);
        assert!(others.into_iter().all(|byte| *byte == 9));
        drop(host);
    }
}

fn a_file_that_is_not_writable(backend: BackendKind) {
    let file = TempFile::with(&[1; 4096]);
    let mut host = Host::new(backend);
    let number = host.open(file.path(), OpenOptions::default());
    let results = host.run(&[
        write(number, 0, 512, 0, 1024),
        write(number, 512, 512, 0, 0),
        read(number, 1024, 512, 0, 2048),
        read(number, 1536, 512, 0, 2560),
    ]);
    assert_eq!(results, [-libc::EBADF, -libc::EBADF, 512, 512]);
    assert_eq!(file.bytes(), [1; 4096]);
}

fn agrees_with_one_by_one_buffered(backend: BackendKind) {
    agrees_with_one_by_one(backend, READ_WRITE, 21);
}

fn agrees_with_one_by_one_direct(backend: BackendKind) {
    agrees_with_one_by_one(backend, DIRECT, 22);
}

/// A host with a file and memory of its own.
struct Side {
    host: Host,
    memory: Memory,
    region: u32,
    file: TempFile,
    number: u16,
}

impl Side {
    fn new(backend: BackendKind, options: OpenOptions, size: usize) -> Self {
        let file = TempFile::with(&vec![5; size]);
        let mut host = Host::new(backend);
        let mut memory = Memory::new(MEMORY / 4096);
        let region = memory.add_to(&mut host);
        let number = host.open(file.path(), options);
        Self {
            host,
            memory,
            region,
            file,
            number,
        }
    }

    /// Operations with the numbers of this side.
    fn named(&self, ops: &[Op]) -> Vec<Op> {
        let named = |op: &Op| Op {
            file: self.number,
            region: self.region,
            ..*op
        };
        ops.iter().map(named).collect()
    }

    fn run(&mut self, ops: &[Op]) -> Vec<i32> {
        let ops = self.named(ops);
        self.host.run(&ops)
    }

    fn run_one_by_one(&mut self, ops: &[Op]) -> Vec<i32> {
        let ops = self.named(ops);
        ops.iter().map(|op| self.host.run_one(*op)).collect()
    }
}

fn agrees_with_one_by_one(backend: BackendKind, options: OpenOptions, seed: u64) {
    limit_files();
    let mut random = Random(seed);
    let (mut failed, mut cut) = (0, 0);
    for _ in 0..6 {
        // The files grow up to the limit, and batches go beyond.
        let size = LIMIT - random.below(1 << 18) as usize;
        let mut together = Side::new(backend, options, size);
        let mut single = Side::new(backend, options, size);
        random.fill(together.memory.get());
        single.memory.get().copy_from_slice(together.memory.get());
        for _ in 0..12 {
            let ops = batch(&mut random);
            let results = together.run(&ops);
            assert_eq!(results, single.run_one_by_one(&ops), "{ops:?}");
            for (op, result) in ops.iter().zip(&results) {
                for memory in [&mut together.memory, &mut single.memory] {
                    forget_what_was_not_read(memory, op, *result);
                }
                failed += u32::from(*result < 0);
                cut += u32::from((0..op.length as i32).contains(result));
            }
            assert!(together.memory.get() == single.memory.get());
        }
        assert!(together.file.bytes() == single.file.bytes());
        drop((together.host, single.host));
    }
    assert!(failed > 10 && cut > 10, "{failed} failed, {cut} cut");
}

/// Direct I/O may put anything into a read's memory behind what it got.
fn forget_what_was_not_read(memory: &mut Memory, op: &Op, result: i32) {
    if op.kind == OpKind::Read {
        let got = usize::try_from(result).unwrap_or(0);
        let start = op.buffer as usize;
        memory.get()[start + got..start + op.length as usize].fill(0);
    }
}

/// Operations that mostly continue each other. Where a batch may make the file longer it doesn't read: what it would get
/// isn't said.
fn batch(random: &mut Random) -> Vec<Op> {
    let mixed = random.below(3) == 0;
    let kinds = [OpKind::Read, OpKind::Write];
    let mut kind = kinds[random.below(2) as usize];
    let unit = [512, 4096, 1][random.below(3) as usize];
    let end = if mixed { 3 << 18 } else { 5 << 18 };
    // There is room for one at least.
    let mut at = random.below((end - (32 << 10)) / 4096) * 4096;
    let (mut ops, mut place) = (Vec::new(), 0);
    loop {
        let length = unit * (1 + random.below((16 << 10) / unit));
        if random.below(12) == 0 {
            at += 4096;
        }
        // Mostly elsewhere in memory as well, sometimes right behind.
        if random.below(3) > 0 {
            place += 4096 - place % 4096;
        }
        if mixed && random.below(6) == 0 {
            kind = kinds[random.below(2) as usize];
        }
        if at + length > end || place + length > MEMORY as u64 {
            return ops;
        }
        ops.push(Op {
            buffer: place as u32,
            ..op(kind, 0, at, length)
        });
        at += length;
        place += length;
    }
}
