//! A host for the reactor: memory with record areas, and operations by name.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "not every test file uses all of it"
)]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use port::batch::{Area, Layout};
use port::file::{Lock, OpenOptions};
use port::reactor::{BackendKind, Options, Reactor, Turn};
use vhd::record::{
    COMPLETION_WORDS, Completion, FRONT_END_REQUEST_WORDS, OP_WORDS, Op, OpKind, Response,
};

/// Runs a test on both back ends.
macro_rules! on_both {
    ($($(#[$meta:meta])* $name:ident)*) => {
        mod uring {
            $($(#[$meta])* #[test] fn $name() { super::$name(port::reactor::BackendKind::Uring); })*
        }
        mod threads {
            $($(#[$meta])* #[test] fn $name() { super::$name(port::reactor::BackendKind::Threads); })*
        }
    };
}
pub(crate) use on_both;

const OPERATIONS: u32 = 2048;
const COMPLETIONS: u32 = 512;
const REQUESTS: u32 = 64;
const RESPONSES: u32 = 512;
pub const STAGING: u32 = 4 << 20;

pub struct Host {
    pub reactor: Reactor,
    pub memory: Vec<u8>,
    pub layout: Layout,
    pub ids: u32,
}

pub fn layout() -> Layout {
    let operations = Area {
        offset: 0,
        capacity: OPERATIONS,
    };
    let completions = Area {
        offset: OPERATIONS * OP_WORDS as u32 * 4,
        capacity: COMPLETIONS,
    };
    let requests = Area {
        offset: completions.offset + COMPLETIONS * COMPLETION_WORDS as u32 * 4,
        capacity: REQUESTS,
    };
    let responses = Area {
        offset: requests.offset + REQUESTS * FRONT_END_REQUEST_WORDS as u32 * 4,
        capacity: RESPONSES,
    };
    let staging_offset = responses.offset + RESPONSES * 16;
    Layout {
        operations,
        completions,
        requests,
        responses,
        staging_offset,
        staging_length: STAGING,
    }
}

impl Host {
    pub fn new(backend: BackendKind) -> Self {
        Self::with(Options {
            backend,
            depth: 32,
            ..Options::default()
        })
    }

    pub fn with(options: Options) -> Self {
        let layout = layout();
        let mut reactor = Reactor::new(&options).unwrap();
        reactor.set_layout(layout);
        Self {
            reactor,
            memory: vec![0; (layout.staging_offset + STAGING) as usize],
            layout,
            ids: 0,
        }
    }

    pub fn open(&mut self, path: &str, options: OpenOptions) -> u16 {
        self.reactor.open_file(path, options).unwrap().0
    }

    pub fn staging(&mut self, offset: u32, length: usize) -> &mut [u8] {
        let start = (self.layout.staging_offset + offset) as usize;
        &mut self.memory[start..start + length]
    }

    pub fn put_words(&mut self, area: Area, index: usize, words: &[u32]) {
        let start = area.offset as usize + index * words.len() * 4;
        for (bytes, word) in self.memory[start..].as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
    }

    pub fn words(&self, area: Area, index: usize, count: usize) -> Vec<u32> {
        let start = area.offset as usize + index * count * 4;
        self.memory[start..start + count * 4]
            .as_chunks()
            .0
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect()
    }

    pub fn turn(&mut self, ops: &[Op], responses: &[Response], timeout: Option<Duration>) -> Turn {
        for (index, op) in ops.iter().enumerate() {
            self.put_words(self.layout.operations, index, &op.encode());
        }
        for (index, response) in responses.iter().enumerate() {
            let words = [
                response.front_end,
                response.slot,
                response.status.cast_unsigned(),
                response.payload,
            ];
            self.put_words(self.layout.responses, index, &words);
        }
        self.reactor
            .turn(
                &mut self.memory,
                ops.len() as u32,
                responses.len() as u32,
                timeout,
            )
            .unwrap()
    }

    pub fn completions(&self, turn: Turn) -> Vec<Completion> {
        (0..turn.completions as usize)
            .map(|index| {
                Completion::decode(
                    &self
                        .words(self.layout.completions, index, 2)
                        .try_into()
                        .unwrap(),
                )
            })
            .collect()
    }

    /// The requests of a turn, as their words.
    pub fn requests(&self, turn: Turn) -> Vec<Vec<u32>> {
        (0..turn.requests as usize)
            .map(|index| self.words(self.layout.requests, index, FRONT_END_REQUEST_WORDS))
            .collect()
    }

    /// Submits operations, waits for all of them, and returns their results in order.
    pub fn run(&mut self, ops: &[Op]) -> Vec<i32> {
        let ops: Vec<Op> = ops
            .iter()
            .map(|op| {
                self.ids += 1;
                Op {
                    id: self.ids,
                    ..*op
                }
            })
            .collect();
        let mut results = HashMap::new();
        let mut turn = self.turn(&ops, &[], Some(Duration::from_secs(20)));
        loop {
            for completion in self.completions(turn) {
                assert!(
                    results.insert(completion.id, completion.result).is_none(),
                    "completed twice"
                );
            }
            if results.len() >= ops.len() {
                break;
            }
            turn = self.turn(&[], &[], Some(Duration::from_secs(20)));
            assert_ne!(turn, Turn::default(), "operations are missing after 20 s");
        }
        ops.iter().map(|op| results[&op.id]).collect()
    }

    pub fn run_one(&mut self, op: Op) -> i32 {
        self.run(&[op])[0]
    }
}

pub const READ_WRITE: OpenOptions = OpenOptions {
    write: true,
    direct: false,
    lock: Lock::None,
    create: true,
    exclusive: false,
};
pub const DIRECT: OpenOptions = OpenOptions {
    write: true,
    direct: true,
    lock: Lock::None,
    create: true,
    exclusive: false,
};

pub fn op(kind: OpKind, file: u16, offset: u64, length: u64) -> Op {
    Op {
        id: 0,
        kind,
        fast: false,
        file,
        offset,
        length,
        region: 0,
        buffer: 0,
        source_offset: 0,
        source_file: 0,
    }
}

pub fn read(file: u16, offset: u64, length: u64, region: u32, buffer: u32) -> Op {
    Op {
        region,
        buffer,
        ..op(OpKind::Read, file, offset, length)
    }
}

pub fn write(file: u16, offset: u64, length: u64, region: u32, buffer: u32) -> Op {
    Op {
        region,
        buffer,
        ..op(OpKind::Write, file, offset, length)
    }
}

/// A path in a folder on a real file system, removed on drop.
pub struct TempFile(PathBuf);

impl TempFile {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "port-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    pub fn with(bytes: &[u8]) -> Self {
        let file = Self::new();
        fs::write(&file.0, bytes).unwrap();
        file
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.0).unwrap()
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) {
        fs::OpenOptions::new()
            .write(true)
            .open(&self.0)
            .unwrap()
            .write_all_at(bytes, offset)
            .unwrap();
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Memory as a region, aligned, freed after the host.
pub struct Memory {
    pub bytes: Box<[Page]>,
}

#[repr(align(4096))]
#[derive(Clone)]
pub struct Page([u8; 4096]);

impl Memory {
    pub fn new(pages: usize) -> Self {
        Self {
            bytes: vec![Page([0; 4096]); pages].into_boxed_slice(),
        }
    }

    pub fn add_to(&mut self, host: &mut Host) -> u32 {
        let length = self.bytes.len() * 4096;
        // SAFETY: tests drop the host first.
        unsafe {
            host.reactor
                .add_region(self.bytes.as_mut_ptr().cast(), length)
        }
    }

    pub fn get(&mut self) -> &mut [u8] {
        let length = self.bytes.len() * 4096;
        // SAFETY: pages are plain bytes.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast(), length) }
    }
}

/// Small, fast and repeatable.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next() as u8;
        }
    }
}
