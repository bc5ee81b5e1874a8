//! Power cuts at every step of random work: whatever is left of the file opens and holds what was promised.

mod support;

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use support::Host;
use support::images::{self, Parent, Spec, uuid};
use support::power::PowerLog;
use vhd::format::footer::DiskType;
use vhd::record::{FLAG_FUA, RequestKind};
use vhd::{CreateSpec, Driver};

const SECTORS: u64 = 300;
const MAX_COUNT: u32 = 12;
const SLOTS: usize = 8;
const FLUSH: u32 = 1 << 20;

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u64,
        count: u32,
        fua: bool,
    },
    /// Write zeroes, or discard.
    Erase {
        sector: u64,
        count: u32,
        fua: bool,
        discard: bool,
    },
    Flush,
    Complete(usize),
    SyncMetadata,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blocks = (0..SECTORS / 16, 1_u64..4).prop_map(|(block, blocks)| {
        let sector = block * 16;
        (sector, (blocks * 16).min(SECTORS - sector) as u32)
    });
    let step = prop_oneof![
        3 => (blocks, prop::bool::weighted(0.2), any::<bool>()).prop_map(|((sector, count), fua, discard)| Step::Erase {
            sector, count, fua, discard,
        }),
        6 => (0..SECTORS, 1..=MAX_COUNT, prop::bool::weighted(0.2)).prop_map(|(sector, count, fua)| Step::Write {
            sector, count: count.min((SECTORS - sector) as u32), fua,
        }),
        2 => Just(Step::Flush),
        9 => (1_usize..6).prop_map(Step::Complete),
        1 => Just(Step::SyncMetadata),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..60)
}

fn first_word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// What each sector may hold: numbers of the writes to it, oldest first; the first is the last that is surely durable
/// (or what was there before any). A write fills its sectors with its number.
struct Model {
    sectors: Vec<Vec<u32>>,
    /// The files of the parents, which nothing changes.
    parents: Vec<Vec<u8>>,
    in_flight: [Option<(u32, u64, u32, bool)>; SLOTS],
    /// When each write was acknowledged.
    acknowledged: HashMap<u32, u32>,
    clock: u32,
    writes: u32,
    /// Those of the writes that wrote zeros.
    zeroes: HashSet<u32>,
    /// Times at which the flushes in flight were submitted, by tag.
    flushes: HashMap<u32, u32>,
}

impl Model {
    fn free_slot(&self, sector: u64, count: u32) -> Option<usize> {
        let overlaps = |(_, other, others, _): &(u32, u64, u32, bool)| {
            sector < other + u64::from(*others) && *other < sector + u64::from(count)
        };
        if self.in_flight.iter().flatten().any(overlaps) {
            return None;
        }
        self.in_flight.iter().position(Option::is_none)
    }

    fn finished(&mut self, tag: u32, status: i32) {
        assert_eq!(status, 0);
        self.clock += 1;
        if let Some(submitted) = self.flushes.remove(&tag) {
            for history in &mut self.sectors {
                let durable = history.iter().rposition(|write| {
                    self.acknowledged
                        .get(write)
                        .is_some_and(|time| *time < submitted)
                });
                history.drain(..durable.unwrap_or(0));
            }
            return;
        }
        let (write, sector, count, fua) = self.in_flight[tag as usize]
            .take()
            .expect("a write was in flight");
        self.acknowledged.insert(write, self.clock);
        if fua {
            for history in &mut self.sectors[sector as usize..][..count as usize] {
                let durable = history
                    .iter()
                    .position(|other| *other == write)
                    .expect("its own write is known");
                history.drain(..durable);
            }
        }
    }

    /// Checks a file that a power cut left.
    fn check(&self, file: Vec<u8>, work_on: bool) {
        let files = [vec![file], self.parents.clone()].concat();
        let mut host = Host::new(files, 64 << 10);
        let info = host.open(Driver::Vhd, !work_on);
        let info = info.unwrap_or_else(|error| panic!("the image does not open: {error}"));
        assert!(
            !info
                .warnings
                .iter()
                .any(|warning| warning.starts_with("backup")),
            "{:?}",
            info.warnings
        );
        self.check_content(&mut host, None);
        if work_on {
            // The next owner allocates and closes: nothing that the cut left behind may show up.
            let free = self
                .sectors
                .iter()
                .position(|history| history.len() == 1)
                .unwrap_or(0);
            host.guest[..512].fill(0xab);
            assert_eq!(host.request(RequestKind::Write, free as u64, 1, 0), 0);
            self.check_content(&mut host, Some(free));
            host.close().expect("the image closes");
            let info = host.open(Driver::Vhd, true).expect("the image opens again");
            assert_eq!(info.warnings, Vec::<String>::new());
            self.check_content(&mut host, Some(free));
        }
    }

    fn check_content(&self, host: &mut Host, except: Option<usize>) {
        let disk = host.read_disk(SECTORS);
        for (sector, bytes) in disk
            .chunks(512)
            .enumerate()
            .filter(|(sector, _)| Some(*sector) != except)
        {
            let write = first_word(bytes);
            assert!(
                bytes.chunks(4).all(|word| word == write.to_le_bytes()),
                "sector {sector} is torn"
            );
            let allowed = &self.sectors[sector];
            let zeroed = write == 0 && allowed.iter().any(|write| self.zeroes.contains(write));
            assert!(
                allowed.contains(&write) || zeroed,
                "sector {sector} holds write {write}, may hold {allowed:?}"
            );
        }
    }
}

/// Runs the steps on a chain with the content `disk`, cutting the power all the time.
fn run(files: Vec<Vec<u8>>, disk: &[u8], steps: &[Step], seed: u64) {
    let slot_bytes = MAX_COUNT as usize * 512;
    let mut host = Host::new(files, SLOTS * slot_bytes);
    host.power = Some(PowerLog::new(&host.files[0]));
    host.open(Driver::Vhd, false).expect("the image opens");
    let mut model = Model {
        sectors: disk
            .chunks(512)
            .map(|sector| vec![first_word(sector)])
            .collect(),
        parents: host.files[1..].to_vec(),
        in_flight: [None; SLOTS],
        acknowledged: HashMap::new(),
        clock: 0,
        writes: 0,
        zeroes: HashSet::new(),
        flushes: HashMap::new(),
    };
    let mut random = support::random_numbers(seed);
    let mut tag = FLUSH;
    for step in steps {
        match *step {
            Step::Write { sector, count, fua } => {
                if let Some(slot) = model.free_slot(sector, count) {
                    model.writes += 1;
                    let write = model.writes;
                    for word in
                        host.guest[slot * slot_bytes..][..count as usize * 512].chunks_mut(4)
                    {
                        word.copy_from_slice(&write.to_le_bytes());
                    }
                    for history in &mut model.sectors[sector as usize..][..count as usize] {
                        history.push(write);
                    }
                    model.in_flight[slot] = Some((write, sector, count, fua));
                    let flags = if fua { FLAG_FUA } else { 0 };
                    host.submit(
                        slot as u32,
                        RequestKind::Write,
                        flags,
                        sector,
                        count,
                        (slot * slot_bytes) as u32,
                    );
                }
            }
            Step::Erase {
                sector,
                count,
                fua,
                discard,
            } => {
                if let Some(slot) = model.free_slot(sector, count) {
                    model.writes += 1;
                    let write = model.writes;
                    model.zeroes.insert(write);
                    for history in &mut model.sectors[sector as usize..][..count as usize] {
                        history.push(write);
                    }
                    model.in_flight[slot] = Some((write, sector, count, fua));
                    let flags = if fua { FLAG_FUA } else { 0 };
                    // A discard leaves alone what is in a parent, which the model does not know.
                    let discard = discard && model.parents.is_empty();
                    let kind = if discard {
                        RequestKind::Discard
                    } else {
                        RequestKind::WriteZeroes
                    };
                    host.submit(slot as u32, kind, flags, sector, count, 0);
                }
            }
            Step::Flush => {
                tag += 1;
                model.clock += 1;
                model.flushes.insert(tag, model.clock);
                host.submit(tag, RequestKind::Flush, 0, 0, 0, 0);
            }
            Step::Complete(count) => {
                for _ in 0..count {
                    complete_one(&mut host, &mut model, &mut random);
                }
            }
            Step::SyncMetadata => {
                host.engine.sync_metadata();
                host.run();
            }
            Step::Close => {
                host.engine.close();
                host.run();
                while !host.in_flight.is_empty() {
                    complete_one(&mut host, &mut model, &mut random);
                }
                // Closing is a flush.
                for history in &mut model.sectors {
                    history.drain(..history.len() - 1);
                }
                host.open(Driver::Vhd, false)
                    .expect("the image opens again");
            }
        }
    }
}

/// Completes an operation in flight, if there is one, and cuts the power.
fn complete_one(host: &mut Host, model: &mut Model, random: &mut impl FnMut(usize) -> usize) {
    if host.in_flight.is_empty() {
        return;
    }
    let index = random(host.in_flight.len());
    host.complete(index);
    while let Some(finished) = host.finished.pop_front() {
        model.finished(finished.tag, finished.status);
    }
    let power = host.power.as_ref().expect("the log is kept");
    model.check(power.cut(random), random(4) == 0);
}

const SIZE: u64 = SECTORS * 512;

fn empty(block_size: u32) -> Vec<u8> {
    let mut host = Host::new(vec![Vec::new()], 0);
    let disk_type = DiskType::Dynamic;
    host.create(CreateSpec {
        file: 0,
        disk_type,
        size: SIZE,
        block_size,
        uuid: uuid(0),
        timestamp: 7,
    })
    .expect("the image is made");
    host.files.remove(0)
}

/// An image with partial bitmaps, its content put on top of `disk`.
fn partial(index: usize, bits: &[u64], has_parent: bool, disk: &mut [u8]) -> Vec<u8> {
    let blocks: Vec<(u32, u64)> = (0..)
        .zip(bits.iter().copied())
        .filter(|(_, bits)| bits % 4 != 0)
        .collect();
    let locator = (*b"W2ku", images::name(index + 1));
    let parent = has_parent.then(|| Parent {
        uuid: uuid(index + 1),
        locator,
    });
    let fill = if has_parent { |_| 0xa0 } else { |_| 0xb0 };
    images::build(
        &Spec {
            uuid: uuid(index),
            size: SIZE,
            block_size: 8192,
            parent,
            blocks: &blocks,
            fill,
        },
        disk,
    )
}

proptest! {
    #![proptest_config(support::cases(150))]

    #[test]
    fn of_allocations(steps in steps(), seed: u64) {
        run(vec![empty(4096)], &[0; SIZE as usize], &steps, seed);
    }

    #[test]
    fn of_partial_blocks(bits in prop::collection::vec(any::<u64>(), 18), steps in steps(), seed: u64) {
        let mut disk = vec![0; SIZE as usize];
        let image = partial(0, &bits, false, &mut disk);
        run(vec![image], &disk, &steps, seed);
    }

    #[test]
    fn of_a_differencing_image(
        parent in prop::collection::vec(any::<u64>(), 18), bits in prop::collection::vec(any::<u64>(), 18),
        steps in steps(), seed: u64,
    ) {
        let mut disk = vec![0; SIZE as usize];
        let parent = partial(1, &parent, false, &mut disk);
        let leaf = partial(0, &bits, true, &mut disk);
        run(vec![leaf, parent], &disk, &steps, seed);
    }
}
