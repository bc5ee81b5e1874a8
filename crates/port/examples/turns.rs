//! Measures the port alone: 4 KiB random operations on a file, a fixed number in flight, no JavaScript around it.
//!
//!     cargo run --release --example turns -- <file> <uring|threads> <read|write> <buffered|direct> <depth> <seconds>
//!
//! The file must exist; writing destroys its content. Compare with fio on the same file in the same minute.

use std::time::{Duration, Instant};

use port::batch::{Area, Layout};
use port::file::OpenOptions;
use port::reactor::{BackendKind, Options, Reactor};
use vhd::record::{Op, OpKind};

const SIZE: u32 = 4096;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, backend, kind, mode, depth, seconds] = arguments.as_slice() else {
        eprintln!(
            "usage: turns <file> <uring|threads> <read|write> <buffered|direct> <depth> <seconds>"
        );
        std::process::exit(2);
    };
    let backend = if backend == "uring" {
        BackendKind::Uring
    } else {
        BackendKind::Threads
    };
    let kind = if kind == "read" {
        OpKind::Read
    } else {
        OpKind::Write
    };
    let depth: u32 = depth.parse().expect("the depth is a number");
    let time = Duration::from_secs_f64(seconds.parse().expect("the time is a number of seconds"));

    let mut reactor = Reactor::new(&Options {
        backend,
        ..Options::default()
    })
    .expect("there is such a back end");
    let options = OpenOptions {
        write: true,
        direct: mode == "direct",
        ..OpenOptions::default()
    };
    let (file, blocks) = {
        let (number, file) = reactor
            .open_file(path, options)
            .expect("the file can be opened");
        (number, file.size() / u64::from(SIZE))
    };
    let mut data = vec![0u8; (depth as usize + 1) * SIZE as usize];
    let start = data.as_mut_ptr();
    let aligned = start.wrapping_add(start.align_offset(SIZE as usize));
    // SAFETY: `data` is dropped after the reactor, and nothing else uses it.
    let region = unsafe { reactor.add_region(aligned, depth as usize * SIZE as usize) };
    let mut memory = vec![0u8; 1 << 20];
    reactor.set_layout(Layout {
        operations: Area {
            offset: 0,
            capacity: 4096,
        },
        completions: Area {
            offset: 1 << 19,
            capacity: 4096,
        },
        ..Layout::default()
    });

    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut submit = |memory: &mut [u8], index: u32, id: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let op = Op {
            id,
            kind,
            fast: false,
            file,
            offset: random % blocks * u64::from(SIZE),
            length: SIZE.into(),
            region,
            buffer: id * SIZE,
            source_offset: 0,
            source_file: 0,
        };
        for (at, word) in op.encode().iter().enumerate() {
            let at = index as usize * 48 + at * 4;
            memory[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
    };
    for id in 0..depth {
        submit(&mut memory, id, id);
    }
    let (mut operations, mut turns, mut submitted) = (0u64, 0u64, depth);
    let start = Instant::now();
    while start.elapsed() < time {
        let turn = reactor
            .turn(&mut memory, submitted, 0, None)
            .expect("turns work");
        turns += 1;
        submitted = turn.completions;
        operations += u64::from(submitted);
        for index in 0..submitted {
            let at = (1 << 19) + index as usize * 8;
            let word =
                |at: usize| u32::from_le_bytes(memory[at..at + 4].try_into().expect("four bytes"));
            let (id, result) = (word(at), word(at + 4));
            assert_eq!(result, SIZE, "operation {id}");
            submit(&mut memory, index, id);
        }
    }
    let took = start.elapsed().as_secs_f64();
    println!(
        "{:8.0} op/s  {:5.2} op/turn  {:6.2} us/turn",
        operations as f64 / took,
        operations as f64 / turns as f64,
        took * 1e6 / turns as f64
    );
}
