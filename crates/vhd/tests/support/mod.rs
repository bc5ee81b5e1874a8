//! A host for the engine in memory: files and guest memory are byte vectors, and the test decides in which order
//! operations end and which of them fail.
//!
//! | to test | use |
//! |---|---|
//! | requests one by one | [`Host`]: `request`, `read_disk`, `open`, `close` |
//! | failing operations | [`Host::fault`] |
//! | a job that must survive power cuts | [`jobs::run`], with an example |
//! | a guest's work under power cuts | [`guest::Guest`]: `steps`, then perhaps a job on its host, then more steps |
//! | anything else under power cuts | [`Host::power`] with [`cuts::Explorer::cut`] after every step |
//! | with random input | [`until`] an explorer has seen enough, or proptest with [`cases`] |
//!
//! `power.rs` says what a power cut may do to files, `images.rs` builds images as other programs leave them.

// Each test program uses its own part of this.
#![allow(dead_code)]

pub mod batmap;
pub mod chains;
pub mod corrupt;
pub mod cuts;
pub mod disks;
pub mod guest;
pub mod images;
pub mod jobs;
pub mod power;
pub mod sparse;

use std::cell::Cell;
use std::collections::VecDeque;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use vhd::jobs::CreateSpec;
use vhd::record::{Completion, Finished, Op, OpKind, REGION_STAGING, RequestKind, TdRequest};
use vhd::{
    Access, Answer, Driver, Engine, FileSpec, ImageInfo, Job, JobSpec, OpenedFile, Outcome, Want,
};

/// How often a property is tried: `cases` times, multiplied by what `TAPVHD_CASES` says.
pub fn cases(cases: u32) -> Config {
    let factor = std::env::var("TAPVHD_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    Config {
        cases: cases.saturating_mul(factor),
        failure_persistence: None,
        ..Config::default()
    }
}

/// Tries a property with one input after the other until it says `false`: enough. The inputs follow from a seed, which
/// `TAPVHD_SEED` sets; an input with which the property fails is made smaller, and both are told.
pub fn until<S: Strategy>(strategy: S, property: impl Fn(S::Value) -> bool) {
    let seed = seed();
    let mut runner = runner(seed);
    let more = Cell::new(true);
    while more.get() {
        let input = strategy.new_tree(&mut runner).expect("inputs can be made");
        let outcome = runner.run_one(input, |input| {
            more.set(property(input));
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("TAPVHD_SEED={seed}: {error}");
        }
    }
}

/// The seed of this run: that of `TAPVHD_SEED`, or always the same.
pub fn seed() -> u64 {
    let given = std::env::var("TAPVHD_SEED").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What makes the same inputs for the same seed.
pub fn runner(seed: u64) -> TestRunner {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &key))
}

/// Random numbers, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// When the images of tests are made: seven seconds after the beginning of VHD time.
pub const NOW: u64 = vhd::format::timestamp::EPOCH + 7;

/// The region number of the guest's memory.
pub const GUEST: u32 = 1;

/// Decides about an operation: `Some(result)` is what it comes to. It is not carried out then, but for the bytes that a
/// short transfer says it moved.
pub type Fault = Box<dyn FnMut(&Op) -> Option<i32>>;

/// An engine, its files and its guest's memory.
pub struct Host {
    pub engine: Engine,
    pub files: Vec<Vec<u8>>,
    /// Paths of the files.
    pub names: Vec<String>,
    pub guest: Vec<u8>,
    /// Operations that were handed out and not carried out yet.
    pub in_flight: Vec<Op>,
    pub fault: Option<Fault>,
    /// Bytes to which a file can grow before the disk is full.
    pub capacity: usize,
    /// Operations that were carried out, by kind.
    pub counts: [u64; 11],
    pub finished: VecDeque<Finished>,
    /// What a power cut would leave, for tests that ask.
    pub power: Option<power::PowerLog>,
    /// The first file is a block device: it keeps its size, and what was never written there can be anything.
    pub leaf_is_device: bool,
    /// Bytes that are free in the file system.
    pub free_space: u64,
}

impl Host {
    /// Lets one operation fail, by its number in the order in which they come, with a negative errno value.
    pub fn fail_operation(&mut self, failing: usize, result: i32) {
        let mut count = 0;
        self.fault = Some(Box::new(move |_| {
            count += 1;
            (count - 1 == failing).then_some(result)
        }));
    }

    pub fn new(files: Vec<Vec<u8>>, guest_bytes: usize) -> Self {
        Self::with_cache(files, guest_bytes, 1 << 20)
    }

    pub fn with_cache(files: Vec<Vec<u8>>, guest_bytes: usize, bitmap_cache_bytes: usize) -> Self {
        Self {
            engine: Engine::new(bitmap_cache_bytes),
            names: (0..files.len()).map(images::name).collect(),
            files,
            guest: vec![0; guest_bytes],
            in_flight: Vec::new(),
            fault: None,
            capacity: usize::MAX,
            counts: [0; 11],
            finished: VecDeque::new(),
            power: None,
            leaf_is_device: false,
            free_space: 1 << 40,
        }
    }

    /// Lets the engine move on and collects what it hands out.
    pub fn run(&mut self) {
        self.engine.run();
        while let Some(op) = self.engine.take_op() {
            if self.power.is_some() {
                let carried = self.carried(&op);
                let size = self.files.get(usize::from(op.file)).map_or(0, Vec::len);
                if let Some(power) = &mut self.power {
                    power.issued(&op, size, carried);
                }
            }
            self.in_flight.push(op);
        }
        while let Some(finished) = self.engine.take_finished() {
            self.finished.push_back(finished);
        }
    }

    /// Carries out the operation in flight with this index and tells the engine. Returns the operation and its result.
    pub fn complete(&mut self, index: usize) -> (Op, i32) {
        let op = self.in_flight.remove(index);
        let fault = self.fault.as_mut().and_then(|fault| fault(&op));
        let moves = matches!(op.kind, OpKind::Read | OpKind::Write | OpKind::CopyRange);
        let result = match fault {
            Some(moved) if moves && moved > 0 => self.carry_out(&Op {
                length: op.length.min(moved as u64),
                ..op
            }),
            Some(failed) => failed,
            None => self.carry_out(&op),
        };
        self.counts[op.kind as usize] += 1;
        let expected = if moves { op.length as i32 } else { 0 };
        if let Some(power) = &mut self.power {
            power.ended(&op, result == expected);
        }
        self.engine.complete(Completion { id: op.id, result });
        self.run();
        (op, result)
    }

    /// The bytes that an operation brings into a file.
    fn carried(&mut self, op: &Op) -> Option<Vec<u8>> {
        let length = op.length as usize;
        let range = op.buffer as usize..op.buffer as usize + length;
        match (op.kind, op.region) {
            (OpKind::CopyRange, _) => {
                let source = &self.files[usize::from(op.source_file)];
                let start = (op.source_offset as usize).min(source.len());
                Some(source[start..source.len().min(start + length)].to_vec())
            }
            (OpKind::Write, REGION_STAGING) => {
                Some(self.engine.with_staging(|bytes| bytes[range].to_vec()))
            }
            (OpKind::Write, _) => Some(self.guest[range].to_vec()),
            _ => None,
        }
    }

    fn carry_out(&mut self, op: &Op) -> i32 {
        let (offset, length, buffer) = (op.offset as usize, op.length as usize, op.buffer as usize);
        if op.kind == OpKind::CopyRange {
            let bytes = self.carried(op).unwrap_or_default();
            let file = &mut self.files[usize::from(op.file)];
            file.resize(file.len().max(offset + bytes.len()), 0);
            file[offset..offset + bytes.len()].copy_from_slice(&bytes);
            return bytes.len() as i32;
        }
        let end = match op.kind {
            OpKind::Write => offset.saturating_add(length),
            OpKind::Truncate => offset,
            _ => 0,
        };
        if end > self.capacity {
            return -28;
        }
        let Self {
            files,
            guest,
            engine,
            leaf_is_device,
            ..
        } = self;
        if op.kind == OpKind::ZeroBuffer {
            guest[buffer..buffer + length].fill(0);
            return 0;
        }
        if op.kind == OpKind::CopyToBuffer {
            let source = op.source_offset as usize;
            let target = &mut guest[buffer..buffer + length];
            engine.with_staging(|bytes| target.copy_from_slice(&bytes[source..source + length]));
            return 0;
        }
        let file = &mut files[usize::from(op.file)];
        if *leaf_is_device && op.file == 0 {
            assert_ne!(op.kind, OpKind::Truncate);
            assert!(op.kind == OpKind::Sync || offset + length <= file.len());
        }
        let mut with_buffer = |action: &mut dyn FnMut(&mut [u8])| match op.region {
            REGION_STAGING => {
                engine.with_staging(|bytes| action(&mut bytes[buffer..buffer + length]))
            }
            _ => action(&mut guest[buffer..buffer + length]),
        };
        match op.kind {
            OpKind::Read => {
                let offset = offset.min(file.len());
                let available = (file.len() - offset).min(length);
                with_buffer(&mut |bytes| {
                    bytes[..available].copy_from_slice(&file[offset..offset + available])
                });
                available as i32
            }
            OpKind::Write => {
                if file.len() < offset + length {
                    file.resize(offset + length, 0);
                }
                with_buffer(&mut |bytes| file[offset..offset + length].copy_from_slice(bytes));
                length as i32
            }
            OpKind::WriteZeroes | OpKind::PunchHole => {
                let end = (offset + length).min(file.len());
                file[offset.min(end)..end].fill(0);
                0
            }
            OpKind::Truncate => {
                file.resize(offset, 0);
                0
            }
            OpKind::Sync => 0,
            OpKind::SeekHole => seek_hole(file, offset, length),
            OpKind::DataMap => {
                let start = offset.min(file.len());
                let data = &file[start..file.len().min(start + length)];
                let mut map = vec![0; length.div_ceil(512 * 8)];
                for (sector, bytes) in data.chunks(512).enumerate() {
                    if bytes.iter().any(|byte| *byte != 0) {
                        map[sector / 8] |= 0x80 >> (sector % 8);
                    }
                }
                engine
                    .with_staging(|bytes| bytes[buffer..buffer + map.len()].copy_from_slice(&map));
                data.len() as i32
            }
            OpKind::CopyRange | OpKind::ZeroBuffer | OpKind::CopyToBuffer => {
                unreachable!("dealt with above")
            }
        }
    }

    /// Carries out operations in order until the engine wants nothing more.
    pub fn settle(&mut self) {
        self.run();
        while !self.in_flight.is_empty() {
            self.complete(0);
        }
    }

    /// Runs the job that was started to its end.
    pub fn job(&mut self) -> vhd::error::Result<Outcome> {
        self.settle();
        while let Some(want) = self.engine.want() {
            let answer = self.fulfil(want);
            if let Some(power) = &mut self.power {
                power.names_synced();
            }
            self.engine.provide(answer);
            self.settle();
        }
        match self.engine.job() {
            Job::Over(result) => result,
            other => panic!("the job is {other:?} though nothing is in flight"),
        }
    }

    /// Does what a job wants. Files that are removed keep their numbers, without a name.
    pub fn fulfil(&mut self, want: Want) -> Result<Answer, i32> {
        let power = self.power.as_mut();
        let named = |path: &str| self.names.iter().position(|name| name == path);
        match want {
            Want::Open { path, access, .. } => {
                let path = without_dots(&path);
                let file = match (named(&path), access) {
                    (Some(_), Access::Create) => return Err(17),
                    (Some(file), _) => file,
                    (None, Access::Create) => {
                        self.names.push(path.clone());
                        self.files.push(Vec::new());
                        if let Some(power) = power {
                            power.created(&path);
                        }
                        self.files.len() - 1
                    }
                    (None, _) => return Err(2),
                };
                Ok(Answer::Opened(OpenedFile {
                    file: file as u16,
                    size: self.files[file].len() as u64,
                    block_device: self.leaf_is_device && file == 0,
                    real_path: path,
                    modified: 1_700_000_000,
                }))
            }
            Want::Close { .. } => Ok(Answer::Done),
            Want::Remove { path } => {
                let file = named(&path).ok_or(2)?;
                self.names[file].clear();
                if let Some(power) = power {
                    power.removed(&path);
                }
                Ok(Answer::Done)
            }
            Want::FreeSpace { .. } => Ok(Answer::FreeSpace(self.free_space)),
        }
    }

    /// Runs a job.
    pub fn run_job(&mut self, spec: JobSpec) -> vhd::error::Result<Outcome> {
        self.engine.start(spec);
        self.job()
    }

    fn spec(&self, file: u16, driver: Driver) -> FileSpec {
        let size = self.files[usize::from(file)].len() as u64;
        let path = self.names[usize::from(file)].clone();
        FileSpec {
            driver,
            path,
            file,
            size,
            block_device: self.leaf_is_device && file == 0,
            read_only: true,
            real_path: String::new(),
            modified: 0,
        }
    }

    pub fn open(&mut self, driver: Driver, read_only: bool) -> vhd::error::Result<ImageInfo> {
        self.engine.open(FileSpec {
            read_only,
            ..self.spec(0, driver)
        });
        match self.job()? {
            Outcome::Opened(info) => Ok(info),
            other => panic!("opening yields {other:?}"),
        }
    }

    pub fn close(&mut self) -> vhd::error::Result<()> {
        self.engine.close();
        self.job().map(|_| ())
    }

    /// Makes an image, which is to be the first file.
    pub fn create(&mut self, spec: CreateSpec) -> vhd::error::Result<()> {
        assert!(self.files.is_empty());
        self.run_job(JobSpec::Create(spec)).map(|_| ())
    }

    pub fn submit(
        &mut self,
        tag: u32,
        kind: RequestKind,
        flags: u8,
        sector: u64,
        sectors: u32,
        buffer: u32,
    ) {
        let kind = kind as u8;
        self.engine.submit(&TdRequest {
            tag,
            kind,
            flags,
            sector,
            sectors,
            region: GUEST,
            buffer,
        });
        self.run();
    }

    /// Carries out one request alone; returns its status.
    pub fn request(&mut self, kind: RequestKind, sector: u64, sectors: u32, buffer: u32) -> i32 {
        self.submit(u32::MAX, kind, 0, sector, sectors, buffer);
        self.settle();
        let finished = self.finished.pop_front().expect("the request is finished");
        assert_eq!(finished.tag, u32::MAX);
        assert!(self.finished.is_empty());
        finished.status
    }

    /// Reads the whole disk through the engine, in requests of up to 1 MiB.
    pub fn read_disk(&mut self, sectors: u64) -> Vec<u8> {
        let step = (self.guest.len() / 512).min(2048) as u64;
        let mut disk = Vec::with_capacity(sectors as usize * 512);
        let mut sector = 0;
        while sector < sectors {
            let count = step.min(sectors - sector);
            self.guest.fill(0xee);
            assert_eq!(self.request(RequestKind::Read, sector, count as u32, 0), 0);
            disk.extend_from_slice(&self.guest[..count as usize * 512]);
            sector += count;
        }
        disk
    }
}

/// A path without `..`.
fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// A file system that keeps no page of zeros.
fn seek_hole(file: &[u8], offset: usize, length: usize) -> i32 {
    const PAGE: usize = 4096;
    let is_hole = |page: usize| {
        let bytes = file.get(page * PAGE..).unwrap_or_default();
        bytes.iter().take(PAGE).all(|byte| *byte == 0)
    };
    let hole = is_hole(offset / PAGE);
    let mut page = offset / PAGE + 1;
    while page * PAGE < offset + length && is_hole(page) == hole {
        page += 1;
    }
    let bytes = (page * PAGE - offset).min(length);
    (bytes / 512) as i32 * 2 + i32::from(hole)
}
