//! A guest that works on a disk, what it may rely on, and power cuts at every step of that.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use proptest::prelude::*;
use vhd::format::footer::{DiskType, Footer};
use vhd::format::uuid::Uuid;
use vhd::jobs::{CheckReport, CheckSpec, Depth, Ignore, MendSpec};
use vhd::record::{FLAG_FUA, FLAG_NO_HOLE, OpKind, REGION_STAGING, RequestKind};
use vhd::{Driver, JobSpec, Outcome};

use super::Host;
use super::batmap;
use super::cuts::Explorer;
use super::jobs;
use super::power::{Left, PowerLog};

/// Sectors of the largest write.
const MAX_COUNT: u32 = 12;
/// Most requests that move data at a time.
const SLOTS: usize = 8;
const SLOT_BYTES: usize = MAX_COUNT as usize * 512;
/// `-ENOSPC`.
const NO_SPACE: i32 = -28;
/// Tags of flushes begin here; smaller ones are slots.
const FLUSH: u32 = 1 << 20;
/// In place of a write: anything may be there, since a sync failed. The failed syncs are numbered from here.
const ANYTHING: u32 = u32::MAX - (1 << 16);

#[derive(Clone, Debug)]
pub enum Step {
    Write {
        sector: u64,
        count: u32,
        fua: bool,
        /// Though others change these sectors: which one will be there in the end is open.
        bold: bool,
    },
    /// Write zeroes, or discard.
    Erase {
        sector: u64,
        count: u32,
        flags: u8,
        discard: bool,
        bold: bool,
    },
    Flush,
    /// So many operations end.
    Complete(usize),
    SyncMetadata,
    /// All requests end, and the whole disk is read.
    Look,
    Close,
    /// The power is cut, and the disk opened again.
    Crash,
    /// The disk begins to grow by so many sectors, while the guest goes on.
    Grow(u64),
    /// The next such operation fails with this (positive) errno value.
    Fail {
        errno: i32,
        target: Target,
    },
    /// The next transfer moves all but this many sectors.
    Short(u32),
}

/// Which operations fail.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Any that touches a file.
    Any,
    Sync,
    /// Writes of the engine's own.
    Metadata,
}

/// What a guest's work is made of.
#[derive(Clone, Debug)]
pub struct Mix {
    /// It goes on in this many sectors of the disk.
    pub sectors: u64,
    /// Sectors of the largest write.
    pub count: u32,
    /// How many steps there are.
    pub length: Range<usize>,
    /// How many of a hundred steps let an operation fail.
    pub faults: u32,
    /// The disk is closed, or the power cut, now and then.
    pub restarts: bool,
    /// How many of the requests don't care whether others change the same sectors.
    pub bold: f64,
    /// How many of a hundred steps let the disk grow.
    pub growing: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            sectors: super::disks::SECTORS,
            count: MAX_COUNT,
            length: 1..60,
            faults: 0,
            restarts: true,
            bold: 0.1,
            growing: 0,
        }
    }
}

/// Random work.
pub fn steps(mix: &Mix) -> impl Strategy<Value = Vec<Step>> + use<> {
    let sectors = mix.sectors;
    let blocks = (0..sectors / 16, 1_u64..4).prop_map(move |(block, blocks)| {
        let sector = block * 16;
        (sector, (blocks * 16).min(sectors - sector) as u32)
    });
    let range = (0..sectors, 1..=mix.count.min(MAX_COUNT))
        .prop_map(move |(sector, count)| (sector, count.min((sectors - sector) as u32)));
    let erased = prop_oneof![3 => blocks, 1 => range.clone()];
    let flags = prop_oneof![3 => Just(0), 1 => Just(FLAG_FUA), 1 => Just(FLAG_NO_HOLE)];
    let bold = || prop::bool::weighted(mix.bold);
    let target = prop_oneof![
        Just(Target::Any),
        Just(Target::Sync),
        Just(Target::Metadata)
    ];
    let fault = prop_oneof![
        3 => (prop_oneof![Just(5), Just(28)], target).prop_map(|(errno, target)| Step::Fail { errno, target }),
        1 => (1_u32..3).prop_map(Step::Short)
    ];
    let restarts = u32::from(mix.restarts);
    let step = prop_oneof![
        12 => (erased, flags, any::<bool>(), bold()).prop_map(|((sector, count), flags, discard, bold)| Step::Erase {
            sector, count, flags, discard, bold,
        }),
        24 => (range, prop::bool::weighted(0.2), bold()).prop_map(|((sector, count), fua, bold)| Step::Write {
            sector, count, fua, bold,
        }),
        8 => Just(Step::Flush),
        36 => (1_usize..6).prop_map(Step::Complete),
        4 => Just(Step::SyncMetadata),
        2 => Just(Step::Look),
        4 * restarts => Just(Step::Close),
        2 * restarts => Just(Step::Crash),
        mix.faults => fault,
        mix.growing => (1_u64..40).prop_map(Step::Grow),
    ];
    prop::collection::vec(step, mix.length.clone())
}

/// What a sector holds after the write with this number. Some writes look like the footer of a fixed disk.
fn content(write: u32) -> [u8; 512] {
    let mut sector = [0; 512];
    if write % 4 == 1 && write < 1 << 24 {
        return Footer::new(DiskType::Fixed, 4096, Uuid([9; 16]), write).encode();
    }
    for word in sector.as_chunks_mut::<4>().0 {
        *word = write.to_le_bytes();
    }
    sector
}

/// The number of the write that a sector comes from.
fn number(sector: &[u8]) -> u32 {
    let word = |at: usize| [sector[at], sector[at + 1], sector[at + 2], sector[at + 3]];
    let write = if sector.starts_with(b"conectix") {
        u32::from_be_bytes(word(24))
    } else {
        u32::from_le_bytes(word(0))
    };
    assert!(sector == content(write), "a sector is torn or foreign");
    write
}

/// A request in flight that changes sectors.
#[derive(Clone, Copy, Debug)]
struct Change {
    write: u32,
    sector: u64,
    count: u32,
    fua: bool,
}

/// What the guest knows of a write.
#[derive(Clone, Copy, Debug)]
struct Write {
    submitted: u32,
    /// [`NEVER`] while it is in flight.
    ended: u32,
    /// It succeeded, and nothing made that doubtful since.
    acknowledged: bool,
    /// When it was promised to be durable.
    durable: u32,
}

const NEVER: u32 = u32::MAX;

/// What was there before any write.
const BEFORE: Write = Write {
    submitted: 0,
    ended: 0,
    acknowledged: true,
    durable: 0,
};

/// What each sector may hold.
#[derive(Debug)]
pub struct Model {
    /// Numbers of the writes to each sector that it may hold, in the order in which they were submitted.
    sectors: Vec<Vec<u32>>,
    in_flight: [Option<Change>; SLOTS],
    /// By number; the first is what was there before.
    writes: Vec<Write>,
    clock: u32,
    /// Those of the writes that wrote zeros.
    zeroes: HashSet<u32>,
    /// Discards where a parent is: they may have no effect.
    vague: HashSet<u32>,
    /// Times at which the flushes in flight were submitted, by tag.
    flushes: HashMap<u32, u32>,
    /// Statuses that a request may have beside 0.
    failures: HashSet<i32>,
    /// When syncs failed.
    failed_syncs: Vec<u32>,
    /// The image is on a block device.
    on_device: bool,
    /// There may be no room for all blocks.
    may_be_full: bool,
    /// Sectors that the disk has.
    size: u64,
    /// What it may have instead, since it is growing, or failed to.
    sizes: Vec<u64>,
}

impl Model {
    fn new(disk: &[u8], on_device: bool) -> Self {
        Self {
            on_device,
            may_be_full: false,
            size: disk.len() as u64 / 512,
            sizes: Vec::new(),
            sectors: disk
                .chunks(512)
                .map(|sector| vec![number(sector)])
                .collect(),
            in_flight: [None; SLOTS],
            writes: vec![BEFORE],
            clock: 0,
            zeroes: HashSet::new(),
            vague: HashSet::new(),
            flushes: HashMap::new(),
            failures: HashSet::new(),
            failed_syncs: Vec::new(),
        }
    }

    fn tick(&mut self) -> u32 {
        self.clock += 1;
        self.clock
    }

    /// A slot for a request on these sectors; unless it is `bold`, none while another one changes some of them.
    fn free_slot(&self, sector: u64, count: u32, bold: bool) -> Option<usize> {
        let overlaps = |other: &Change| {
            sector < other.sector + u64::from(other.count)
                && other.sector < sector + u64::from(count)
        };
        if !bold && self.in_flight.iter().flatten().any(overlaps) {
            return None;
        }
        self.in_flight.iter().position(Option::is_none)
    }

    fn begin(&mut self, slot: usize, sector: u64, count: u32, fua: bool) -> u32 {
        let write = self.writes.len() as u32;
        let submitted = self.tick();
        self.writes.push(Write {
            submitted,
            ended: NEVER,
            acknowledged: false,
            durable: NEVER,
        });
        for history in &mut self.sectors[sector as usize..][..count as usize] {
            history.push(write);
        }
        self.in_flight[slot] = Some(Change {
            write,
            sector,
            count,
            fua,
        });
        write
    }

    /// A request is over. Returns whether more is promised than before.
    fn finished(&mut self, tag: u32, status: i32) -> bool {
        assert!(
            status == 0 || self.failures.contains(&status),
            "a request failed with {status}"
        );
        let now = self.tick();
        if let Some(submitted) = self.flushes.remove(&tag) {
            if status == 0 {
                return self.flushed(submitted);
            }
            self.doubt();
            return false;
        }
        let change = self.in_flight[tag as usize]
            .take()
            .expect("a write was in flight");
        let write = &mut self.writes[change.write as usize];
        write.ended = now;
        write.acknowledged = status == 0 && !self.vague.contains(&change.write);
        write.acknowledged && change.fua && self.promise(|number, _| number == change.write)
    }

    /// Everything that was acknowledged before the time `submitted` is durable.
    fn flushed(&mut self, submitted: u32) -> bool {
        self.promise(|_, write| write.acknowledged && write.ended < submitted)
    }

    /// The writes that `durable` names are durable. Returns whether that is news.
    fn promise(&mut self, durable: impl Fn(u32, &Write) -> bool) -> bool {
        let Self {
            sectors,
            writes,
            failed_syncs,
            ..
        } = self;
        let write = |number: &u32| *writes.get(*number as usize).unwrap_or(&BEFORE);
        let mut news = false;
        for history in sectors.iter_mut().filter(|history| history.len() > 1) {
            let (mut newest, mut promised) = (0, 0);
            for number in history.iter().filter(|number| **number < ANYTHING) {
                let it = write(number);
                if durable(*number, &it) {
                    newest = newest.max(it.submitted);
                    promised = promised.max(it.durable);
                }
            }
            let before = history.len();
            history.retain(|number| match number.checked_sub(ANYTHING) {
                // What a failed sync lost is over when something newer is durable, or what should have been lost is.
                Some(failed) => newest.max(promised) <= failed_syncs[failed as usize],
                None => newest <= write(number).ended,
            });
            news |= history.len() < before;
        }
        let now = self.clock;
        for (number, write) in (0..).zip(&mut self.writes) {
            if write.durable == NEVER && durable(number, write) {
                write.durable = now;
            }
        }
        news
    }

    /// A flush failed, and the guest knows: what was acknowledged may be lost, and a later flush does not mend that.
    fn doubt(&mut self) {
        for write in self
            .writes
            .iter_mut()
            .filter(|write| write.durable == NEVER)
        {
            write.acknowledged = false;
        }
    }

    /// A sync failed: data that were not durable may never be, while the bits that show them will.
    fn sync_failed(&mut self) {
        let number = ANYTHING + self.failed_syncs.len() as u32;
        for history in self.sectors.iter_mut().filter(|history| history.len() > 1) {
            history.push(number);
        }
        let now = self.tick();
        self.failed_syncs.push(now);
    }

    /// The disk begins to become as large or small as this.
    fn may_have_size(&mut self, size: u64) {
        self.sizes.push(size);
        // What it gets is zeros.
        self.sectors
            .resize(self.sectors.len().max(size as usize), vec![0]);
    }

    /// Whether the disk has begun to grow, now or before.
    fn may_grow(&self) -> bool {
        self.sectors.len() as u64 > self.size
    }

    /// The disk has this many sectors, for certain.
    fn has_size(&mut self, size: u64) {
        assert!(
            size == self.size || self.sizes.contains(&size),
            "the disk has {size} sectors"
        );
        self.size = size;
        self.sizes.clear();
    }

    /// The power was cut and this is what the disk holds now.
    fn crashed(&mut self, disk: &[u8]) {
        for (sector, bytes) in disk.chunks(512).enumerate() {
            self.check_sector(sector, bytes);
            let anything = |write: &&u32| **write >= ANYTHING;
            let history = &mut self.sectors[sector];
            *history = match history.iter().find(anything) {
                Some(anything) => vec![*anything],
                None => vec![number(bytes)],
            };
        }
        let now = self.tick();
        for write in &mut self.writes {
            write.ended = write.ended.min(now);
            write.durable = write.durable.min(now);
        }
        self.in_flight = [None; SLOTS];
        self.flushes.clear();
    }

    fn check_sector(&self, sector: usize, bytes: &[u8]) {
        let allowed = &self.sectors[sector];
        if allowed.iter().any(|write| *write >= ANYTHING) {
            return;
        }
        let write = number(bytes);
        let zeroed = write == 0 && allowed.iter().any(|write| self.zeroes.contains(write));
        assert!(
            allowed.contains(&write) || zeroed,
            "sector {sector} holds write {write}, may hold {allowed:?}"
        );
    }

    /// Checks the content of an open disk of `size` sectors, but for the sectors that `except` names.
    fn check_content(&self, host: &mut Host, size: u64, except: &[usize]) {
        let disk = host.read_disk(size);
        for (sector, bytes) in disk.chunks(512).enumerate() {
            if !except.contains(&sector) {
                self.check_sector(sector, bytes);
            }
        }
    }

    /// A host with what is left.
    fn host(&self, left: &Left) -> Host {
        let mut host = left.host(64 << 10);
        host.leaf_is_device = self.on_device;
        host
    }

    /// Checks what a power cut left, and sometimes what the engine's own check says of that.
    fn check(&self, left: &Left, bad_backup: bool, count: u64) {
        if count % 16 == 2 && !bad_backup {
            let mended = self.check_by_job(left);
            self.check_content_of(&mended, bad_backup, true);
        }
        self.check_content_of(left, bad_backup, count % 4 == 1);
    }

    /// Lets the engine check what a power cut left, and mend it if there is something wrong. Returns what is left then.
    fn check_by_job(&self, left: &Left) -> Left {
        let mut host = self.host(left);
        let path = host.names[0].clone();
        let before = check_job(&mut host, &path);
        if before.images[0].errors > 0 {
            let spec = MendSpec {
                path: path.clone(),
                undo: "/undo".to_owned(),
                depth: Depth::Full,
                now: 0,
            };
            let outcome = host.run_job(JobSpec::Mend(spec));
            outcome.unwrap_or_else(|error| panic!("{error}: {before:?}"));
            let after = check_job(&mut host, &path);
            assert_eq!(after.images[0].errors, 0, "{before:?} {after:?}");
            host.files.truncate(left.files.len());
            host.names.truncate(left.names.len());
        }
        Left {
            files: host.files,
            names: host.names,
        }
    }

    fn check_content_of(&self, left: &Left, bad_backup: bool, work_on: bool) {
        if !bad_backup {
            // A batmap that would be believed tells the truth.
            batmap::full_blocks(&left.files[0]);
        }
        let mut host = self.host(left);
        let info = host.open(Driver::Vhd, !work_on);
        let info = info.unwrap_or_else(|error| panic!("the image does not open: {error}"));
        let backup = |warning: &String| warning.starts_with("backup") && !bad_backup;
        assert!(!info.warnings.iter().any(backup), "{:?}", info.warnings);
        let sizes = || [self.size].into_iter().chain(self.sizes.iter().copied());
        assert!(
            sizes().any(|size| size == info.sectors),
            "the disk has {} sectors",
            info.sectors
        );
        self.check_content(&mut host, info.sectors, &[]);
        if !work_on {
            return;
        }
        // The next owner allocates and closes: nothing that the cut left behind may show up.
        let untouched = |(sector, history): &(usize, &Vec<u32>)| {
            history.as_slice() == [0] && (*sector as u64) < info.sectors
        };
        let first = self.sectors.iter().enumerate().find(untouched);
        let last = self.sectors.iter().enumerate().rfind(untouched);
        let free: Vec<usize> = [first, last].into_iter().flatten().map(|it| it.0).collect();
        host.guest[..512].fill(0xab);
        for sector in &free {
            let status = host.request(RequestKind::Write, *sector as u64, 1, 0);
            assert!(status == 0 || self.may_be_full && status == NO_SPACE);
        }
        self.check_content(&mut host, info.sectors, &free);
        host.close().expect("the image closes");
        let info = host.open(Driver::Vhd, true).expect("the image opens again");
        // Parents are not written, so what a job left there stays. Growing that was cut off leaves blocks of zeros.
        let own = |warning: &&String| {
            let beyond = warning.contains("past the end of the disk") && self.may_grow();
            !warning.starts_with("parent ") && !beyond
        };
        assert_eq!(info.warnings.iter().find(own), None);
        self.check_content(&mut host, info.sectors, &free);
    }
}

/// What the engine's check says of an image and its parents.
fn check_job(host: &mut Host, path: &str) -> CheckReport {
    let spec = CheckSpec {
        path: path.to_owned(),
        depth: Depth::Full,
        chain: false,
        stats: false,
        ignore: Ignore::default(),
        now: 0,
    };
    match host.run_job(JobSpec::Check(spec)) {
        Ok(Outcome::Checked(report)) => report,
        other => panic!("{other:?}"),
    }
}

/// The same files, the one with this name first: that is the one which is opened.
fn leaf_first(left: &Left, leaf: &str) -> Left {
    let mut left = left.clone();
    let at = left.names.iter().position(|name| name == leaf);
    let at = at.expect("the job has made its image");
    left.names.swap(0, at);
    left.files.swap(0, at);
    left
}

/// A guest, its disk and what power cuts leave of that.
pub struct Guest<'a> {
    pub host: Host,
    pub model: Model,
    pub explorer: &'a mut Explorer,
    /// The copy of the footer was bad at the beginning.
    pub bad_backup: bool,
    /// The power is cut only when asked for.
    pub quiet: bool,
    cache: usize,
    tag: u32,
    /// The size that the disk is growing to, sectors.
    growing: Option<u64>,
}

impl<'a> Guest<'a> {
    /// A guest of the chain in `files`, leaf first, with the content `disk` and a bitmap cache of `cache` bytes.
    pub fn new(explorer: &'a mut Explorer, files: Vec<Vec<u8>>, disk: &[u8], cache: usize) -> Self {
        let host = Host::with_cache(files, SLOTS * SLOT_BYTES, cache);
        Self::with_host(explorer, host, disk, cache)
    }

    /// A guest of a chain whose leaf is on a block device.
    pub fn on_device(
        explorer: &'a mut Explorer,
        files: Vec<Vec<u8>>,
        disk: &[u8],
        cache: usize,
    ) -> Self {
        let mut host = Host::with_cache(files, SLOTS * SLOT_BYTES, cache);
        host.leaf_is_device = true;
        Self::with_host(explorer, host, disk, cache)
    }

    fn with_host(explorer: &'a mut Explorer, mut host: Host, disk: &[u8], cache: usize) -> Self {
        host.power = Some(PowerLog::new(&host.files, &host.names));
        host.open(Driver::Vhd, false).expect("the image opens");
        explorer.promises_changed();
        Self {
            model: Model::new(disk, host.leaf_is_device),
            host,
            explorer,
            bad_backup: false,
            quiet: false,
            cache,
            tag: FLUSH,
            growing: None,
        }
    }

    pub fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
            self.cut_if_watched();
        }
    }

    pub fn step(&mut self, step: &Step) {
        match *step {
            Step::Write {
                sector,
                count,
                fua,
                bold,
            } => {
                let Some((slot, count)) = self.free_slot(sector, count, bold) else {
                    return;
                };
                let write = self.model.begin(slot, sector, count, fua);
                let buffer = slot * SLOT_BYTES;
                for bytes in self.host.guest[buffer..][..count as usize * 512].chunks_mut(512) {
                    bytes.copy_from_slice(&content(write));
                }
                let flags = if fua { FLAG_FUA } else { 0 };
                let kind = RequestKind::Write;
                self.host
                    .submit(slot as u32, kind, flags, sector, count, buffer as u32);
            }
            Step::Erase {
                sector,
                count,
                flags,
                discard,
                bold,
            } => {
                let Some((slot, count)) = self.free_slot(sector, count, bold) else {
                    return;
                };
                let fua = flags & FLAG_FUA != 0;
                let write = self.model.begin(slot, sector, count, fua);
                self.model.zeroes.insert(write);
                if discard && self.host.names.len() > 1 {
                    self.model.vague.insert(write);
                }
                let kind = if discard {
                    RequestKind::Discard
                } else {
                    RequestKind::WriteZeroes
                };
                self.host.submit(slot as u32, kind, flags, sector, count, 0);
            }
            Step::Flush => {
                self.tag += 1;
                let now = self.model.tick();
                self.model.flushes.insert(self.tag, now);
                self.host.submit(self.tag, RequestKind::Flush, 0, 0, 0, 0);
            }
            Step::Complete(count) => {
                for _ in 0..count {
                    self.complete_one();
                }
            }
            Step::SyncMetadata => {
                self.host.engine.sync_metadata();
                self.host.run();
            }
            Step::Look => self.look(),
            Step::Close => self.reopen(),
            Step::Crash => self.crash(),
            Step::Grow(sectors) => {
                if self.growing.is_none() {
                    let size = self.model.size + sectors;
                    self.growing = Some(size);
                    self.model.may_have_size(size);
                    self.host.engine.grow(size * 512);
                    self.host.run();
                }
            }
            Step::Fail { errno, target } => {
                self.model.failures.insert(-errno);
                self.fail_one(move |op| {
                    let fails = match target {
                        Target::Any => op.kind != OpKind::ZeroBuffer,
                        Target::Sync => op.kind == OpKind::Sync,
                        Target::Metadata => op.kind == OpKind::Write && op.region == REGION_STAGING,
                    };
                    fails.then_some(-errno)
                });
            }
            Step::Short(sectors) => {
                self.model.failures.insert(-5);
                self.fail_one(move |op| {
                    let moves = matches!(op.kind, OpKind::Read | OpKind::Write);
                    moves.then_some(op.length as i32 - (sectors * 512).min(op.length as u32) as i32)
                });
            }
        }
        self.take_finished();
    }

    /// A slot for a request, and the sectors that the disk has for it; see [`Model::free_slot`].
    fn free_slot(&self, sector: u64, count: u32, bold: bool) -> Option<(usize, u32)> {
        let count = self.model.size.saturating_sub(sector).min(u64::from(count)) as u32;
        if count == 0 {
            return None;
        }
        let slot = self.model.free_slot(sector, count, bold)?;
        Some((slot, count))
    }

    /// Whether a request may fail with this (positive) errno value from now on.
    pub fn may_fail(&mut self, errno: i32) {
        self.model.failures.insert(-errno);
    }

    /// Files can't grow beyond this many bytes from now on. A device may have no room either.
    pub fn limit(&mut self, capacity: usize) {
        self.host.capacity = capacity;
        self.model.may_be_full = true;
        self.may_fail(-NO_SPACE);
    }

    /// Lets one operation fail, the first to which `fault` gives a result.
    pub fn fail_one(&mut self, fault: impl Fn(&vhd::record::Op) -> Option<i32> + 'static) {
        let mut left = 1;
        self.host.fault = Some(Box::new(move |op| {
            let result = if left > 0 { fault(op) } else { None };
            left -= i32::from(result.is_some());
            result
        }));
    }

    /// Carries out an operation in flight, if there is one, and cuts the power.
    pub fn complete_one(&mut self) {
        if self.host.in_flight.is_empty() {
            return;
        }
        let index = self.explorer.pick(self.host.in_flight.len());
        self.complete(index);
    }

    /// Carries out the operation in flight with this index, and cuts the power.
    pub fn complete(&mut self, index: usize) {
        let (op, result) = self.host.complete(index);
        if op.kind == OpKind::Sync && result < 0 {
            self.model.sync_failed();
        }
        self.take_finished();
        self.cut_if_watched();
    }

    fn take_finished(&mut self) {
        if let (Some(size), vhd::Job::Over(outcome)) = (self.growing, self.host.engine.job()) {
            self.growing = None;
            match outcome {
                Ok(_) => {
                    self.model.has_size(size);
                    self.explorer.promises_changed();
                }
                // Its footers may have the new size as long as it is open.
                Err(error) => {
                    assert!(self.model.failures.contains(&-error.errno), "{error}");
                }
            }
        }
        while let Some(finished) = self.host.finished.pop_front() {
            if self.model.finished(finished.tag, finished.status) {
                self.explorer.promises_changed();
            }
        }
    }

    fn cut_if_watched(&mut self) {
        if !self.quiet {
            self.cut();
        }
    }

    /// Cuts the power now, and checks what it leaves.
    pub fn cut(&mut self) {
        let power = self.host.power.as_mut().expect("the log is kept");
        let model = &self.model;
        let bad_backup = self.bad_backup;
        let mut count = 0;
        self.explorer.cut(power, &mut |left| {
            count += 1;
            model.check(left, bad_backup, count);
        });
    }

    /// Closes the disk, which is a flush.
    pub fn close(&mut self) {
        // What comes of growing is seen when it is opened again.
        self.growing = None;
        loop {
            self.host.engine.close();
            self.host.run();
            while !self.host.in_flight.is_empty() {
                self.complete_one();
            }
            self.take_finished();
            match self.host.engine.job() {
                vhd::Job::Over(Ok(_)) => break,
                vhd::Job::Over(Err(error)) => {
                    assert!(self.model.failures.contains(&-error.errno), "{error}");
                    self.model.doubt();
                }
                job => panic!("closing is {job:?} though nothing is in flight"),
            }
        }
        let now = self.model.tick();
        self.model.flushed(now);
        self.explorer.promises_changed();
        self.cut_if_watched();
    }

    /// Closes the disk and opens it again.
    pub fn reopen(&mut self) {
        self.close();
        let info = loop {
            match self.host.open(Driver::Vhd, false) {
                Ok(info) => break info,
                Err(error) => assert!(self.model.failures.contains(&-error.errno), "{error}"),
            }
        };
        self.model.has_size(info.sectors);
        self.explorer.promises_changed();
        let model = &self.model;
        let mut next = model.host(&Left {
            files: self.host.files.clone(),
            names: self.host.names.clone(),
        });
        next.open(Driver::Vhd, true).expect("the image opens");
        model.check_content(&mut next, model.size, &[]);
    }

    /// Closes the disk, runs a job with the power cut at every step, and opens the image at `leaf` as the disk. The disk
    /// reads the same before, during and after the job; what is left of a job that was over opens at `leaf`.
    pub fn job(&mut self, spec: &JobSpec, leaf: &str) -> vhd::error::Result<Outcome> {
        self.close();
        if let JobSpec::Resize(spec) = spec {
            self.model.may_have_size(spec.size / 512);
        }
        let (model, mut count) = (&self.model, 0);
        let outcome = jobs::run(
            self.explorer,
            &mut self.host,
            &mut |host| host.engine.start(spec.clone()),
            &mut |left, state| {
                count += 1;
                let over = matches!(state, jobs::State::Over { succeeded: true });
                let left = if over {
                    leaf_first(left, leaf)
                } else {
                    left.clone()
                };
                model.check(&left, false, count);
            },
        );
        let left = Left {
            files: std::mem::take(&mut self.host.files),
            names: std::mem::take(&mut self.host.names),
        };
        let left = match &outcome {
            Ok(_) => leaf_first(&left, leaf),
            Err(_) => left,
        };
        self.host = left.host_with_cache(SLOTS * SLOT_BYTES, self.cache);
        self.host.leaf_is_device = self.model.on_device;
        self.host.power = Some(PowerLog::new(&self.host.files, &self.host.names));
        let info = self.host.open(Driver::Vhd, false).expect("the image opens");
        self.model.has_size(info.sectors);
        self.explorer.promises_changed();
        self.cut_if_watched();
        outcome
    }

    /// Cuts the power and goes on with what that left.
    pub fn crash(&mut self) {
        let power = self.host.power.as_mut().expect("the log is kept");
        let left = self.explorer.one(power);
        let (fault, capacity) = (self.host.fault.take(), self.host.capacity);
        self.host = left.host_with_cache(SLOTS * SLOT_BYTES, self.cache);
        self.host.leaf_is_device = self.model.on_device;
        self.host.capacity = capacity;
        self.host.power = Some(PowerLog::new(&self.host.files, &self.host.names));
        let info = self.host.open(Driver::Vhd, false).expect("the image opens");
        self.growing = None;
        self.model.has_size(info.sectors);
        let disk = self.host.read_disk(info.sectors);
        self.host.fault = fault;
        self.model.crashed(&disk);
        self.explorer.promises_changed();
    }

    /// Waits for all requests and reads the whole disk.
    pub fn look(&mut self) {
        while !self.host.in_flight.is_empty() {
            self.complete_one();
        }
        let fault = self.host.fault.take();
        let size = self.model.size;
        self.model.check_content(&mut self.host, size, &[]);
        self.host.fault = fault;
    }
}
