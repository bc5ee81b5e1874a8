//! Block status against a list of which image has which sector.

mod support;

use proptest::prelude::*;
use support::images::{self, Parent, Spec, uuid};
use support::{GUEST, Host};
use vhd::Driver;
use vhd::format::footer::DiskType;
use vhd::format::uuid::Uuid;
use vhd::jobs::CreateSpec;
use vhd::record::{
    FLAG_NO_HOLE, FLAG_REQ_ONE, MAX_STATUS_EXTENTS, OpKind, RequestKind, STATUS_HOLE, STATUS_ZERO,
    StatusExtent, TdRequest,
};

const DATA: u32 = 0;
const NOTHING: u32 = STATUS_HOLE | STATUS_ZERO;

/// Room in guest memory for one answer.
const ROOM: u32 = MAX_STATUS_EXTENTS * StatusExtent::BYTES;

/// The extents that the engine put into guest memory at `buffer`.
fn extents(host: &Host, buffer: u32, count: i32) -> Vec<(u32, u32)> {
    let bytes = &host.guest[buffer as usize..][..count as usize * 8];
    let words: Vec<u32> = bytes
        .chunks(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect();
    let extent = |words: &[u32]| StatusExtent::decode(words.try_into().unwrap());
    words
        .chunks(2)
        .map(extent)
        .map(|extent| (extent.sectors, extent.flags))
        .collect()
}

/// One block status request alone.
fn status_with(host: &mut Host, flags: u8, sector: u64, sectors: u32) -> Vec<(u32, u32)> {
    host.submit(1, RequestKind::BlockStatus, flags, sector, sectors, 0);
    host.settle();
    let finished = host.finished.pop_front().expect("the request is finished");
    assert!(finished.status > 0, "it failed with {}", finished.status);
    extents(host, 0, finished.status)
}

fn status(host: &mut Host, sector: u64, sectors: u32) -> Vec<(u32, u32)> {
    status_with(host, 0, sector, sectors)
}

/// Neighbours that are alike as one.
fn runs(flags: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for flags in flags {
        match runs.last_mut() {
            Some(last) if last.1 == flags => last.0 += 1,
            _ => runs.push((1, flags)),
        }
    }
    runs
}

fn created(disk_type: DiskType, sectors: u64, block_size: u32) -> Vec<u8> {
    let mut host = Host::new(Vec::new(), 0);
    host.create(CreateSpec {
        path: images::name(0),
        disk_type,
        size: sectors * 512,
        block_size,
        uuid: Uuid([1; 16]),
        now: support::NOW,
        max_size: None,
    })
    .expect("the image is made");
    std::mem::take(&mut host.files[0])
}

// ---- chains ----

const SECTORS: u64 = 609;

/// The leaf of a chain, block by block: which of its sectors are there.
struct Leaf {
    blocks: Vec<Option<Vec<bool>>>,
    per_block: u64,
    has_parent: bool,
}

impl Leaf {
    fn has(&self, sector: u64) -> bool {
        self.blocks[(sector / self.per_block) as usize]
            .as_ref()
            .is_some_and(|bits| bits[(sector % self.per_block) as usize])
    }

    fn write(&mut self, sector: u64, count: u32) {
        for sector in sector..sector + u64::from(count) {
            let absent = vec![!self.has_parent; self.per_block as usize];
            let bits = self.blocks[(sector / self.per_block) as usize].get_or_insert(absent);
            bits[(sector % self.per_block) as usize] = true;
        }
    }

    fn erase(&mut self, kind: RequestKind, flags: u8, sector: u64, count: u32) {
        let end = sector + u64::from(count);
        if self.has_parent {
            // Zeros hide the parent; a discard leaves everything where it is.
            if kind == RequestKind::WriteZeroes {
                self.write(sector, count);
            }
            return;
        }
        if kind == RequestKind::WriteZeroes && flags & FLAG_NO_HOLE != 0 {
            return;
        }
        for block in sector / self.per_block..end.div_ceil(self.per_block) {
            let first = block * self.per_block;
            if sector <= first && (first + self.per_block).min(SECTORS) <= end {
                self.blocks[block as usize] = None;
            }
        }
    }
}

/// What a chain's files are, whether any of the leaf's parents has a sector, and what the leaf has.
struct Chain {
    files: Vec<Vec<u8>>,
    below: Vec<bool>,
    leaf: Leaf,
}

/// A chain of differencing images, each with its own blocks and smaller than its child, on a dynamic one or on a raw file.
fn chain(levels: &[Vec<u64>], raw: Option<&[bool]>) -> Chain {
    let mut disk = vec![0; (SECTORS as usize + 32) * 512];
    let mut below = vec![false; SECTORS as usize];
    let mut files = Vec::new();
    if let Some(pages) = raw {
        let file = pages.iter().flat_map(|data| [u8::from(*data); 4096]);
        files.push(file.collect());
        for (sector, below) in below.iter_mut().enumerate().take(pages.len() * 8) {
            *below = pages[sector / 8];
        }
    }
    let mut leaf = None;
    for (index, bits) in levels.iter().enumerate().rev() {
        let block_size = 4096 << (index % 3);
        let per_block = u64::from(block_size) / 512;
        let sectors = SECTORS - index as u64 * 24;
        let count = sectors.div_ceil(per_block) as u32;
        let blocks: Vec<(u32, u64)> = (0..count)
            .zip(bits.iter().cycle().copied())
            .filter(|(_, bits)| bits % 5 != 0)
            .map(|(block, bits)| {
                (
                    block,
                    [0, u64::MAX, 0, bits, bits & bits >> 7][(bits % 5) as usize],
                )
            })
            .collect();
        let is_last = index + 1 == levels.len();
        let parent = (!is_last || raw.is_some()).then(|| Parent {
            uuid: if is_last { Uuid::NIL } else { uuid(index + 1) },
            locator: (*b"W2ku", images::name(index + 1)),
        });
        let mut present: Vec<Option<Vec<bool>>> = vec![None; count as usize];
        for (block, bits) in &blocks {
            let bits = (0..per_block).map(|sector| bits >> (sector % 64) & 1 == 1);
            present[*block as usize] = Some(bits.collect());
        }
        let image = Leaf {
            blocks: present,
            per_block,
            has_parent: parent.is_some(),
        };
        files.push(images::build(
            &Spec {
                uuid: uuid(index),
                size: sectors * 512,
                block_size,
                parent,
                blocks: &blocks,
                fill: |_| 1,
            },
            &mut disk,
        ));
        if index == 0 {
            leaf = Some(image);
        } else {
            // What lies behind a parent's end is not seen through it.
            for sector in 0..SECTORS {
                let below = &mut below[sector as usize];
                *below = sector < sectors && (*below || image.has(sector));
            }
        }
    }
    files.reverse();
    let leaf = leaf.expect("a chain has a leaf");
    Chain { files, below, leaf }
}

#[derive(Clone, Debug)]
enum Step {
    /// Ask for the status of sectors, or of their first extent.
    Status {
        sector: u64,
        count: u32,
        one: bool,
    },
    Read {
        sector: u64,
        count: u32,
    },
    /// Carry out that many operations, each chosen by the seed.
    Complete(usize),
    /// Change sectors after everything else was done.
    Write {
        sector: u64,
        count: u32,
    },
    Erase {
        sector: u64,
        count: u32,
        kind: RequestKind,
        flags: u8,
    },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || {
        (0..SECTORS, 1_u32..=SECTORS as u32)
            .prop_map(|(sector, count)| (sector, count.min((SECTORS - sector) as u32)))
    };
    let short = (0..SECTORS, 1_u32..40)
        .prop_map(|(sector, count)| (sector, count.min((SECTORS - sector) as u32)));
    let kinds = prop_oneof![
        Just((RequestKind::WriteZeroes, 0)),
        Just((RequestKind::WriteZeroes, FLAG_NO_HOLE)),
        Just((RequestKind::Discard, 0)),
    ];
    let step = prop_oneof![
        8 => (range(), any::<bool>()).prop_map(|((sector, count), one)| Step::Status { sector, count, one }),
        4 => range().prop_map(|(sector, count)| Step::Read { sector, count }),
        8 => (1_usize..8).prop_map(Step::Complete),
        1 => short.prop_map(|(sector, count)| Step::Write { sector, count }),
        1 => (range(), kinds).prop_map(|((sector, count), (kind, flags))| Step::Erase { sector, count, kind, flags }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

/// Runs the steps on a chain. Status requests and reads are in flight together in any number and end in any order.
fn run(chain: Chain, cache: usize, steps: &[Step], seed: u64) {
    let Chain {
        files,
        below,
        mut leaf,
    } = chain;
    // For each request in flight its own room, and behind it some for reads and writes.
    let data = steps.len() as u32 * ROOM;
    let mut host = Host::with_cache(files, (data + SECTORS as u32 * 512) as usize, cache);
    host.open(Driver::Vhd, false).expect("the chain opens");
    let mut random = support::Random(seed);
    let mut expected: Vec<Option<Vec<(u32, u32)>>> = vec![None; steps.len()];
    for (tag, step) in (0..).zip(steps) {
        let changes = matches!(step, Step::Write { .. } | Step::Erase { .. } | Step::Reopen);
        while changes && !host.in_flight.is_empty() {
            let index = random.below(host.in_flight.len());
            host.complete(index);
        }
        match *step {
            Step::Status { sector, count, one } => {
                let flags = (sector..sector + u64::from(count)).map(|sector| {
                    let data = leaf.has(sector) || below[sector as usize];
                    if data { DATA } else { NOTHING }
                });
                let mut runs = runs(flags);
                runs.truncate(if one { 1 } else { usize::MAX });
                expected[tag as usize] = Some(runs);
                let flags = if one { FLAG_REQ_ONE } else { 0 };
                host.submit(
                    tag,
                    RequestKind::BlockStatus,
                    flags,
                    sector,
                    count,
                    tag * ROOM,
                );
            }
            Step::Read { sector, count } => {
                expected[tag as usize] = Some(Vec::new());
                host.submit(tag, RequestKind::Read, 0, sector, count, data);
            }
            Step::Complete(count) => {
                for _ in 0..count {
                    if !host.in_flight.is_empty() {
                        let index = random.below(host.in_flight.len());
                        host.complete(index);
                    }
                }
            }
            Step::Write { sector, count } => {
                leaf.write(sector, count);
                expected[tag as usize] = Some(Vec::new());
                host.submit(tag, RequestKind::Write, 0, sector, count, data);
                host.settle();
            }
            Step::Erase {
                sector,
                count,
                kind,
                flags,
            } => {
                leaf.erase(kind, flags, sector, count);
                expected[tag as usize] = Some(Vec::new());
                host.submit(tag, kind, flags, sector, count, 0);
                host.settle();
            }
            Step::Reopen => {
                check(&mut host, &mut expected);
                host.close().expect("the chain closes");
                host.open(Driver::Vhd, false)
                    .expect("the chain opens again");
            }
        }
        check(&mut host, &mut expected);
    }
    while !host.in_flight.is_empty() {
        let index = random.below(host.in_flight.len());
        host.complete(index);
    }
    check(&mut host, &mut expected);
    assert!(expected.iter().all(Option::is_none), "a request was lost");
    host.close().expect("the chain closes");
}

fn check(host: &mut Host, expected: &mut [Option<Vec<(u32, u32)>>]) {
    while let Some(finished) = host.finished.pop_front() {
        let expected = expected[finished.tag as usize]
            .take()
            .expect("it is answered once");
        if expected.is_empty() {
            assert_eq!(finished.status, 0);
        } else {
            let found = extents(host, finished.tag * ROOM, finished.status);
            assert_eq!(found, expected, "request {}", finished.tag);
        }
    }
}

proptest! {
    #![proptest_config(support::cases(150))]

    #[test]
    fn chains(
        levels in prop::collection::vec(prop::collection::vec(any::<u64>(), 8..20), 1..6),
        raw in prop::option::of(prop::collection::vec(any::<bool>(), 1..60)),
        steps in steps(),
        seed: u64,
        cache in prop_oneof![Just(0_usize), Just(1 << 20)],
    ) {
        run(chain(&levels, raw.as_deref()), cache, &steps, seed);
    }
}

// ---- what is special ----

#[test]
fn new_blocks_and_released_ones() {
    let mut host = Host::new(vec![created(DiskType::Dynamic, 4096, 64 << 10)], 1 << 20);
    host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!(status(&mut host, 0, 4096), [(4096, NOTHING)]);
    // One sector makes its whole block one of data: nothing else is said of it on disk either.
    assert_eq!(host.request(RequestKind::Write, 200, 1, 0), 0);
    assert_eq!(host.request(RequestKind::Write, 256, 1, 0), 0);
    assert_eq!(
        status(&mut host, 0, 4096),
        [(128, NOTHING), (256, DATA), (3712, NOTHING)]
    );
    assert_eq!(status(&mut host, 130, 100), [(100, DATA)]);
    assert_eq!(host.request(RequestKind::Discard, 100, 284, 0), 0);
    // Whether or not that is on disk already.
    assert_eq!(status(&mut host, 0, 4096), [(4096, NOTHING)]);
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    assert_eq!(status(&mut host, 0, 4096), [(4096, NOTHING)]);
}

#[test]
fn holes_of_raw_and_fixed_files() {
    let mut file = vec![0; 1 << 20];
    file[8192..16384].fill(1);
    let mut host = Host::new(vec![file], 1 << 20);
    host.open(Driver::Aio, false).expect("the image opens");
    let all = [(16, NOTHING), (16, DATA), (2016, NOTHING)];
    assert_eq!(status(&mut host, 0, 2048), all);
    assert_eq!(status_with(&mut host, FLAG_REQ_ONE, 17, 2000), [(15, DATA)]);

    let mut host = Host::new(vec![created(DiskType::Fixed, 2048, 2 << 20)], 1 << 20);
    host.open(Driver::Vhd, false).expect("the image opens");
    host.guest.fill(1);
    assert_eq!(host.request(RequestKind::Write, 16, 16, 0), 0);
    assert_eq!(status(&mut host, 0, 2048), all);
    // A file system that can't say ends the request; one that says nonsense doesn't make it go on for ever.
    for (result, expected) in [
        (-5, None),
        (0, Some((2048, DATA))),
        (i32::MAX, Some((2048, NOTHING))),
    ] {
        host.fault = Some(Box::new(move |op| {
            (op.kind == OpKind::SeekHole).then_some(result)
        }));
        host.submit(1, RequestKind::BlockStatus, 0, 0, 2048, 0);
        host.settle();
        let finished = host.finished.pop_front().expect("it is finished");
        match expected {
            None => assert_eq!(finished.status, result),
            Some(expected) => assert_eq!(extents(&host, 0, finished.status), [expected]),
        }
    }
}

/// A dynamic image with a block of every second sector, over and over.
fn striped(sectors: u64) -> Host {
    let block_size = 2 << 20;
    let blocks: Vec<(u32, u64)> = (0..sectors.div_ceil(4096) as u32)
        .map(|block| (block, 0x5555_5555_5555_5555))
        .collect();
    let spec = Spec {
        uuid: uuid(0),
        size: sectors * 512,
        block_size,
        parent: None,
        blocks: &blocks,
        fill: |_| 1,
    };
    let image = images::build(&spec, &mut vec![0; sectors as usize * 512]);
    let mut host = Host::new(vec![image], 8 << 20);
    host.open(Driver::Vhd, true).expect("the image opens");
    host
}

#[test]
fn bitmaps_of_the_next_blocks_are_fetched_along() {
    for (sectors, bitmaps) in [(1, 1), (4096, 1), (4097, 2), (4096 * 20, 9)] {
        let mut host = striped(4096 * 20);
        host.submit(1, RequestKind::BlockStatus, 0, 0, sectors, 0);
        let mut offsets: Vec<u64> = host.in_flight.iter().map(|op| op.offset).collect();
        offsets.dedup();
        assert_eq!(offsets.len(), bitmaps, "for {sectors} sectors");
        host.settle();
        assert_eq!(host.counts[OpKind::CopyToBuffer as usize], 1);
    }
}

#[test]
fn a_full_answer_ends_early() {
    let mut host = striped(16384);
    let found = status(&mut host, 1, 16383);
    assert_eq!(found.len(), MAX_STATUS_EXTENTS as usize);
    assert_eq!(found[..2], [(1, NOTHING), (1, DATA)]);
    let rest = status(&mut host, 1 + u64::from(MAX_STATUS_EXTENTS), 3);
    assert_eq!(rest, [(1, NOTHING), (1, DATA), (1, NOTHING)]);
}

#[test]
fn answers_wait_for_staging_memory() {
    let mut host = striped(16384);
    for tag in 0..200 {
        host.submit(tag, RequestKind::BlockStatus, 0, 0, 4096, tag * ROOM);
    }
    host.settle();
    assert_eq!(host.finished.len(), 200);
    while let Some(finished) = host.finished.pop_front() {
        let found = extents(&host, finished.tag * ROOM, finished.status);
        assert_eq!(found.len(), 4096);
        assert!(found.iter().all(|(sectors, _)| *sectors == 1));
    }
}

#[test]
fn a_long_search_ends_early() {
    let blocks = 40_000;
    let mut host = Host::new(vec![created(DiskType::Dynamic, blocks * 8, 4096)], 4096);
    host.open(Driver::Vhd, true).expect("the image opens");
    let mut sector = 0;
    let mut answers = 0;
    while sector < blocks * 8 {
        let found = status(&mut host, sector, (blocks * 8 - sector) as u32);
        assert!(found.len() == 1 && found[0].1 == NOTHING, "{found:?}");
        sector += u64::from(found[0].0);
        answers += 1;
    }
    assert_eq!((sector, answers), (blocks * 8, 2));
}

#[test]
fn reads_and_block_status_wait_for_the_same_bitmap() {
    // The original aborts here.
    let chain = chain(&[vec![3], vec![8], vec![13]], None);
    for order in 0..8 {
        let mut host = Host::with_cache(chain.files.clone(), 1 << 20, 0);
        host.open(Driver::Vhd, false).expect("the chain opens");
        let kinds = [
            RequestKind::Read,
            RequestKind::BlockStatus,
            RequestKind::Write,
        ];
        for tag in 0..9 {
            let kind = kinds[(tag as usize + order) % 3];
            host.submit(tag, kind, 0, 0, 64, tag * ROOM);
        }
        while !host.in_flight.is_empty() {
            let last = host.in_flight.len() - 1;
            host.complete(if order < 4 { 0 } else { last });
        }
        assert_eq!(host.finished.len(), 9);
        assert!(host.finished.iter().all(|finished| finished.status >= 0));
    }
}

#[test]
fn failures_are_reported_and_forgotten() {
    let mut host = striped(16384);
    let found = status(&mut host, 0, 4096);
    host.close().expect("the image closes");
    host.open(Driver::Vhd, true).expect("the image opens again");
    for kind in [OpKind::Read, OpKind::CopyToBuffer] {
        let mut left = 1;
        host.fault = Some(Box::new(move |op| {
            left -= i32::from(op.kind == kind);
            (op.kind == kind && left == 0).then_some(-5)
        }));
        assert_eq!(host.request(RequestKind::BlockStatus, 0, 4096, 0), -5);
        assert_eq!(status(&mut host, 0, 4096), found);
    }
}

#[test]
fn what_can_not_be_is_refused() {
    let mut host = striped(16384);
    let mut ask = |sector: u64, sectors: u32, buffer: u32| {
        host.engine.submit(&TdRequest {
            tag: 9,
            kind: RequestKind::BlockStatus as u8,
            flags: 0,
            sector,
            sectors,
            region: GUEST,
            buffer,
        });
        host.settle();
        host.finished.pop_front().map(|finished| finished.status)
    };
    assert_eq!(ask(0, 0, 0), Some(-22));
    assert_eq!(ask(16384, 1, 0), Some(-22));
    assert_eq!(ask(1, 16384, 0), Some(-22));
    assert_eq!(ask(u64::MAX, u32::MAX, 0), Some(-22));
    assert_eq!(ask(0, 16384, u32::MAX - 100), Some(-22));
    assert_eq!(ask(16383, 1, 0), Some(1));
}
