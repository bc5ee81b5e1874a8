//! A guest that works on a disk, what it may rely on, and power cuts at every step of that.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use vhd::Driver;
use vhd::format::footer::{DiskType, Footer};
use vhd::format::uuid::Uuid;
use vhd::record::{FLAG_FUA, FLAG_NO_HOLE, OpKind, RequestKind};

use super::Host;
use super::batmap;
use super::cuts::Explorer;
use super::power::{Left, PowerLog};

/// Sectors of the largest write.
const MAX_COUNT: u32 = 12;
/// Most requests that move data at a time.
const SLOTS: usize = 8;
const SLOT_BYTES: usize = MAX_COUNT as usize * 512;
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
    },
    /// Write zeroes, or discard.
    Erase {
        sector: u64,
        count: u32,
        flags: u8,
        discard: bool,
    },
    Flush,
    /// So many operations end.
    Complete(usize),
    SyncMetadata,
    Close,
    /// The next operation that touches a file fails with this (positive) errno value.
    Fail(i32),
    /// The next transfer moves all but this many sectors.
    Short(u32),
}

/// Steps on a disk of `sectors` sectors; with `faults`, operations fail now and then.
pub fn steps(sectors: u64, faults: bool) -> impl Strategy<Value = Vec<Step>> {
    let blocks = (0..sectors / 16, 1_u64..4).prop_map(move |(block, blocks)| {
        let sector = block * 16;
        (sector, (blocks * 16).min(sectors - sector) as u32)
    });
    let range = (0..sectors, 1..=MAX_COUNT)
        .prop_map(move |(sector, count)| (sector, count.min((sectors - sector) as u32)));
    let erased = prop_oneof![3 => blocks, 1 => range.clone()];
    let flags = prop_oneof![3 => Just(0), 1 => Just(FLAG_FUA), 1 => Just(FLAG_NO_HOLE)];
    let fault = prop_oneof![
        Just(Step::Fail(5)),
        Just(Step::Fail(28)),
        (1_u32..3).prop_map(Step::Short)
    ];
    let step = prop_oneof![
        12 => (erased, flags, any::<bool>()).prop_map(|((sector, count), flags, discard)| Step::Erase {
            sector, count, flags, discard,
        }),
        24 => (range, prop::bool::weighted(0.2)).prop_map(|((sector, count), fua)| Step::Write { sector, count, fua }),
        8 => Just(Step::Flush),
        36 => (1_usize..6).prop_map(Step::Complete),
        4 => Just(Step::SyncMetadata),
        4 => Just(Step::Close),
        if faults { 6 } else { 0 } => fault,
    ];
    prop::collection::vec(step, 1..60)
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

/// What each sector may hold.
#[derive(Debug)]
pub struct Model {
    /// Numbers of the writes to each sector, oldest first; the first is the last that is surely durable (or what was
    /// there before any).
    sectors: Vec<Vec<u32>>,
    in_flight: [Option<Change>; SLOTS],
    /// When each write was acknowledged.
    acknowledged: HashMap<u32, u32>,
    clock: u32,
    writes: u32,
    /// Those of the writes that wrote zeros.
    zeroes: HashSet<u32>,
    /// Discards where a parent is: they may have no effect.
    vague: HashSet<u32>,
    /// Times at which the flushes in flight were submitted, by tag.
    flushes: HashMap<u32, u32>,
    /// Statuses that a request may have beside 0.
    failures: HashSet<i32>,
    /// How many syncs failed, and of how many the guest knows.
    failed_syncs: u32,
    told: u32,
    /// The image is on a block device.
    on_device: bool,
}

impl Model {
    fn new(disk: &[u8], on_device: bool) -> Self {
        Self {
            on_device,
            sectors: disk
                .chunks(512)
                .map(|sector| vec![number(sector)])
                .collect(),
            in_flight: [None; SLOTS],
            acknowledged: HashMap::new(),
            clock: 0,
            writes: 0,
            zeroes: HashSet::new(),
            vague: HashSet::new(),
            flushes: HashMap::new(),
            failures: HashSet::new(),
            failed_syncs: 0,
            told: 0,
        }
    }

    fn free_slot(&self, sector: u64, count: u32) -> Option<usize> {
        let overlaps = |other: &Change| {
            sector < other.sector + u64::from(other.count)
                && other.sector < sector + u64::from(count)
        };
        // Overlapping requests in flight have no defined order: the model has none either.
        if self.in_flight.iter().flatten().any(overlaps) {
            return None;
        }
        self.in_flight.iter().position(Option::is_none)
    }

    fn begin(&mut self, slot: usize, sector: u64, count: u32, fua: bool) -> u32 {
        self.writes += 1;
        let write = self.writes;
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
        self.clock += 1;
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
        if status != 0 || self.vague.contains(&change.write) {
            return false;
        }
        self.acknowledged.insert(change.write, self.clock);
        if change.fua {
            for history in &mut self.sectors[change.sector as usize..][..change.count as usize] {
                let durable = history
                    .iter()
                    .position(|other| *other == change.write)
                    .expect("its own write is known");
                history.drain(..durable);
            }
        }
        change.fua
    }

    /// Everything that was acknowledged before the time `submitted` is durable.
    fn flushed(&mut self, submitted: u32) -> bool {
        let mut more = false;
        for history in &mut self.sectors {
            let durable = history.iter().rposition(|write| {
                self.acknowledged
                    .get(write)
                    .is_some_and(|time| *time < submitted)
            });
            let gone = durable.unwrap_or(0);
            more |= gone > 0;
            history.drain(..gone);
            // A flush that succeeds after a sync failed, and nobody was told, promises as much as any other.
            let told = ANYTHING + self.told;
            while gone > 0 && history.get(1).is_some_and(|next| *next >= told) {
                history.remove(1);
            }
        }
        more
    }

    /// A flush failed, and the guest knows: what was acknowledged may be lost, and a later flush does not mend that.
    fn doubt(&mut self) {
        self.acknowledged.clear();
        self.told = self.failed_syncs;
    }

    /// A sync failed: data that were not durable may never be, while the bits that show them will.
    fn sync_failed(&mut self) {
        for history in self.sectors.iter_mut().filter(|history| history.len() > 1) {
            history.push(ANYTHING + self.failed_syncs);
        }
        self.failed_syncs += 1;
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

    /// Checks the content of an open disk, but for the sectors that `except` names.
    fn check_content(&self, host: &mut Host, except: &[usize]) {
        let disk = host.read_disk(self.sectors.len() as u64);
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

    /// Checks what a power cut left.
    fn check(&self, left: &Left, work_on: bool) {
        // A batmap that would be believed tells the truth.
        batmap::full_blocks(&left.files[0]);
        let mut host = self.host(left);
        let info = host.open(Driver::Vhd, !work_on);
        let info = info.unwrap_or_else(|error| panic!("the image does not open: {error}"));
        let backup = |warning: &String| warning.starts_with("backup");
        assert!(!info.warnings.iter().any(backup), "{:?}", info.warnings);
        self.check_content(&mut host, &[]);
        if !work_on {
            return;
        }
        // The next owner allocates and closes: nothing that the cut left behind may show up.
        let untouched = |(_, history): &(usize, &Vec<u32>)| history.as_slice() == [0];
        let first = self.sectors.iter().enumerate().find(untouched);
        let last = self.sectors.iter().enumerate().rfind(untouched);
        let free: Vec<usize> = [first, last].into_iter().flatten().map(|it| it.0).collect();
        host.guest[..512].fill(0xab);
        for sector in &free {
            assert_eq!(host.request(RequestKind::Write, *sector as u64, 1, 0), 0);
        }
        self.check_content(&mut host, &free);
        host.close().expect("the image closes");
        let info = host.open(Driver::Vhd, true).expect("the image opens again");
        assert_eq!(info.warnings, Vec::<String>::new());
        self.check_content(&mut host, &free);
    }
}

/// A guest, its disk and what power cuts leave of that.
pub struct Guest<'a> {
    pub host: Host,
    pub model: Model,
    pub explorer: &'a mut Explorer,
    tag: u32,
}

impl<'a> Guest<'a> {
    /// A guest of the chain in `files`, leaf first, with the content `disk` and a bitmap cache of `cache` bytes.
    pub fn new(explorer: &'a mut Explorer, files: Vec<Vec<u8>>, disk: &[u8], cache: usize) -> Self {
        Self::with_host(
            explorer,
            Host::with_cache(files, SLOTS * SLOT_BYTES, cache),
            disk,
        )
    }

    /// A guest of a chain whose leaf is on a block device.
    pub fn on_device(explorer: &'a mut Explorer, files: Vec<Vec<u8>>, disk: &[u8]) -> Self {
        let mut host = Host::new(files, SLOTS * SLOT_BYTES);
        host.leaf_is_device = true;
        Self::with_host(explorer, host, disk)
    }

    fn with_host(explorer: &'a mut Explorer, mut host: Host, disk: &[u8]) -> Self {
        host.power = Some(PowerLog::new(&host.files, &host.names));
        host.open(Driver::Vhd, false).expect("the image opens");
        explorer.promises_changed();
        Self {
            model: Model::new(disk, host.leaf_is_device),
            host,
            explorer,
            tag: FLUSH,
        }
    }

    pub fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
            self.cut();
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { sector, count, fua } => {
                let Some(slot) = self.model.free_slot(sector, count) else {
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
            } => {
                let Some(slot) = self.model.free_slot(sector, count) else {
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
                self.model.clock += 1;
                self.model.flushes.insert(self.tag, self.model.clock);
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
            Step::Close => self.reopen(),
            Step::Fail(errno) => {
                self.model.failures.insert(-errno);
                self.fail_one(move |op| (op.kind != OpKind::ZeroBuffer).then_some(-errno));
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
        let index = self.explorer.random().below(self.host.in_flight.len());
        let (op, result) = self.host.complete(index);
        if op.kind == OpKind::Sync && result < 0 {
            self.model.sync_failed();
        }
        self.take_finished();
        self.cut();
    }

    fn take_finished(&mut self) {
        while let Some(finished) = self.host.finished.pop_front() {
            if self.model.finished(finished.tag, finished.status) {
                self.explorer.promises_changed();
            }
        }
    }

    /// Cuts the power now, and checks what it leaves.
    pub fn cut(&mut self) {
        let power = self.host.power.as_mut().expect("the log is kept");
        let model = &self.model;
        let mut count = 0;
        self.explorer.cut(power, &mut |left| {
            count += 1;
            model.check(left, count % 4 == 1);
        });
    }

    /// Closes the disk, which is a flush, and opens it again.
    pub fn reopen(&mut self) {
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
                    // The second attempt finds a disk that works again.
                    self.host.fault = None;
                }
                job => panic!("closing is {job:?} though nothing is in flight"),
            }
        }
        self.host.fault = None;
        self.model.clock += 1;
        self.model.flushed(self.model.clock);
        self.explorer.promises_changed();
        self.cut();
        self.host
            .open(Driver::Vhd, false)
            .expect("the image opens again");
        let model = &self.model;
        let mut next = model.host(&Left {
            files: self.host.files.clone(),
            names: self.host.names.clone(),
        });
        next.open(Driver::Vhd, true).expect("the image opens");
        model.check_content(&mut next, &[]);
    }
}
