//! What is seen through the leaf: reads of random chains, with little memory, while bitmaps can't be read, and while other
//! images of the chain are merged.

mod support;

use proptest::prelude::*;
use support::chains::{Root, chains};
use support::images::{self, Parent, Spec, uuid};
use support::{GUEST, Host, Random};
use vhd::format::uuid::Uuid;
use vhd::jobs::CoalesceSpec;
use vhd::record::{FLAG_REQ_ONE, Op, OpKind, REGION_STAGING, RequestKind, TdRequest};
use vhd::{Driver, Job, JobSpec};

const SECTORS: u64 = 600;
const EIO: i32 = -5;

/// What an image has of the disk.
#[derive(Clone, Debug)]
struct Level {
    /// A word for each block, which says over and over which sectors are present; the block is absent if none is.
    bits: Vec<u64>,
    block_size: u32,
    sectors: u64,
}

fn level() -> impl Strategy<Value = Level> {
    // Few bits, so that much is looked for in lower levels; or all of them.
    let word = prop_oneof![
        3 => (any::<u64>(), any::<u64>()).prop_map(|(one, two)| one & two),
        1 => any::<u8>().prop_map(|byte| 0xff << (byte % 8 * 8)),
        1 => Just(0),
        1 => Just(u64::MAX),
        // In a small block there are none then.
        1 => Just(1 << 63),
    ];
    let size = prop_oneof![4 => Just(SECTORS), 1 => SECTORS / 2..SECTORS * 2];
    (prop::collection::vec(word, 1..30), 12_u32..17, size).prop_map(|(bits, shift, sectors)| {
        Level {
            bits,
            block_size: 1 << shift,
            sectors,
        }
    })
}

fn root() -> impl Strategy<Value = Root> {
    prop_oneof![2 => Just(Root::Dynamic), 1 => Just(Root::Raw)]
}

/// The files of a chain, leaf first, and what it reads as.
fn build(levels: &[Level], root: Root) -> (Vec<Vec<u8>>, Vec<u8>) {
    const FILLS: [fn(u64) -> u8; 5] = [
        |sector| 0x20 | (sector as u8 % 31),
        |sector| 0x40 | (sector as u8 % 29),
        |sector| 0x60 | (sector as u8 % 23),
        |sector| 0x80 | (sector as u8 % 19),
        |sector| 0xa0 | (sector as u8 % 17),
    ];
    let (mut files, mut disk) = (Vec::new(), Vec::new());
    for (index, level) in levels.iter().enumerate().rev() {
        // What is behind the end of a smaller image is not seen, whatever is below.
        disk.resize(level.sectors as usize * 512, 0);
        let below = index + 1;
        let is_root = below == levels.len();
        if is_root && root == Root::Raw {
            for (sector, bytes) in (0..).zip(disk.chunks_mut(512)) {
                bytes.fill(FILLS[index % 5](sector));
            }
            files.push(disk.clone());
            continue;
        }
        let parent_is_raw = below + 1 == levels.len() && root == Root::Raw;
        let parent = (!is_root).then(|| Parent {
            uuid: if parent_is_raw {
                Uuid::NIL
            } else {
                uuid(below)
            },
            locator: (*b"W2ku", images::name(below)),
        });
        let count = (level.sectors * 512).div_ceil(u64::from(level.block_size)) as u32;
        let blocks: Vec<(u32, u64)> = (0..count)
            .zip(level.bits.iter().cycle().copied())
            .filter(|(_, bits)| *bits != 0)
            .collect();
        let spec = Spec {
            uuid: uuid(index),
            size: level.sectors * 512,
            block_size: level.block_size,
            parent,
            blocks: &blocks,
            fill: FILLS[index % 5],
        };
        files.push(images::build(&spec, &mut disk));
    }
    files.reverse();
    (files, disk)
}

/// Reads of these sectors, many in flight, whose operations end in random order. Each is right, or fails if `may_fail`.
fn read(host: &mut Host, disk: &[u8], reads: &[(u64, u32)], random: &mut Random, may_fail: bool) {
    const DEPTH: usize = 24;
    const ROOM: usize = 64 << 10;
    let mut waiting = reads.iter().copied();
    let mut slots: [Option<(u64, u32)>; DEPTH] = [None; DEPTH];
    loop {
        while let Some(slot) = slots.iter().position(Option::is_none)
            && let Some((sector, count)) = waiting.next()
        {
            let count = count.min((disk.len() as u64 / 512 - sector) as u32);
            slots[slot] = Some((sector, count));
            host.guest[slot * ROOM..][..ROOM].fill(0xee);
            let buffer = (slot * ROOM) as u32;
            host.submit(slot as u32, RequestKind::Read, 0, sector, count, buffer);
        }
        if !host.in_flight.is_empty() {
            let index = random.below(host.in_flight.len());
            host.complete(index);
        } else if host.finished.is_empty() {
            break;
        }
        while let Some(finished) = host.finished.pop_front() {
            let slot = finished.tag as usize;
            let (sector, count) = slots[slot].take().expect("it was asked for");
            if may_fail && finished.status == EIO {
                continue;
            }
            assert_eq!(finished.status, 0);
            let (at, bytes) = (sector as usize * 512, count as usize * 512);
            assert!(
                host.guest[slot * ROOM..][..bytes] == disk[at..at + bytes],
                "wrong data at sector {sector}"
            );
        }
    }
    assert!(slots.iter().all(Option::is_none), "a read was lost");
}

fn reads(sectors: u64) -> impl Strategy<Value = Vec<(u64, u32)>> {
    prop::collection::vec((0..sectors, 1_u32..100), 1..60)
}

fn host(files: Vec<Vec<u8>>, cache: usize) -> Host {
    let mut host = Host::with_cache(files, 24 * (64 << 10), cache);
    host.open(Driver::Vhd, true).expect("the chain opens");
    host
}

proptest! {
    #![proptest_config(support::cases(300))]

    #[test]
    fn any_chain_reads_as_its_images_make_it(
        levels in prop::collection::vec(level(), 2..9), root in root(), cache in 0_usize..8192, seed: u64,
        reads in reads(SECTORS / 2),
    ) {
        let (files, disk) = build(&levels, root);
        let mut host = host(files, cache);
        let mut random = Random(seed);
        read(&mut host, &disk, &reads, &mut random, false);
        // Once more, with what is remembered.
        read(&mut host, &disk, &reads, &mut random, false);
        assert!(host.read_disk(disk.len() as u64 / 512) == disk);
    }

    #[test]
    fn reads_are_right_or_fail_while_bitmaps_can_not_be_read(
        levels in prop::collection::vec(level(), 2..6), root in root(), cache in 0_usize..8192, seed: u64,
        reads in reads(SECTORS / 2), bad in 2_usize..9,
    ) {
        let (files, disk) = build(&levels, root);
        let mut host = host(files, cache);
        let mut random = Random(seed);
        let mut luck = Random(!seed);
        host.fault = Some(Box::new(move |op| {
            let is_bitmap = op.kind == OpKind::Read && op.region == REGION_STAGING;
            (is_bitmap && luck.below(bad) == 0).then(|| [EIO, 0, 511][luck.below(3)])
        }));
        read(&mut host, &disk, &reads, &mut random, true);
        host.fault = None;
        read(&mut host, &disk, &reads, &mut random, false);
    }

    #[test]
    fn what_is_remembered_stays_right_while_images_below_are_merged(
        chain in chains(3..6, SECTORS / 2), level in 2_usize..5, cache in 0_usize..8192, seed: u64, before: bool,
    ) {
        let level = level.min(chain.levels.len() - 1);
        let (files, contents) = chain.build();
        let disk = &contents[0];
        let mut reader = host(files.clone(), cache);
        let mut random = Random(seed);
        if before {
            assert!(reader.read_disk(disk.len() as u64 / 512) == *disk);
        }
        let mut merger = Host::new(files, 64 << 10);
        merger.engine.start(JobSpec::Coalesce(CoalesceSpec {
            path: images::name(1),
            into: Some(images::name(level)),
            output: None,
            sparse: false,
            dry_run: false,
            record: None,
        }));
        merger.run();
        loop {
            if let Some(want) = merger.engine.want() {
                let answer = merger.fulfil(want);
                merger.engine.provide(answer);
                merger.run();
            } else if !merger.in_flight.is_empty() {
                let index = random.below(merger.in_flight.len());
                merger.complete(index);
            } else {
                break;
            }
            // The files are the same; those of the reader are as the merge has left them so far.
            std::mem::swap(&mut reader.files, &mut merger.files);
            let sector = random.below(disk.len() / 512) as u64;
            let count = 1 + random.below(20) as u32;
            read(&mut reader, disk, &[(sector, count)], &mut random, false);
            std::mem::swap(&mut reader.files, &mut merger.files);
        }
        assert!(matches!(merger.engine.job(), Job::Over(_)));
        reader.files = merger.files;
        assert!(reader.read_disk(disk.len() as u64 / 512) == *disk);
    }
}

/// A chain of `depth` images of `blocks` blocks, each of which has one sector in so many of every block.
fn interleaved(depth: usize, blocks: usize) -> (Vec<Vec<u8>>, Vec<u8>) {
    const BLOCK: usize = 32 << 10;
    let (mut files, mut disk) = (Vec::new(), vec![0; blocks * BLOCK]);
    let fill = |sector: u64| sector as u8;
    for index in (0..depth).rev() {
        let bits = (0..64)
            .filter(|sector| sector % depth == index)
            .fold(0, |bits, sector| bits | (1_u64 << sector));
        let list: Vec<(u32, u64)> = (0..blocks as u32).map(|block| (block, bits)).collect();
        let parent = (index + 1 < depth).then(|| Parent::named(index + 1));
        let spec = Spec {
            uuid: uuid(index),
            size: (blocks * BLOCK) as u64,
            block_size: BLOCK as u32,
            parent,
            blocks: &list,
            fill,
        };
        files.push(images::build(&spec, &mut disk));
    }
    files.reverse();
    (files, disk)
}

fn total(host: &Host) -> u64 {
    host.counts.iter().sum()
}

#[test]
fn a_cold_read_waits_for_the_bitmaps_of_all_levels_together() {
    let (files, disk) = interleaved(30, 2);
    let mut host = host(files, 1 << 20);
    // Only the last image has it.
    host.submit(1, RequestKind::Read, 0, 29, 1, 0);
    assert_eq!(host.in_flight.len(), 1, "the bitmap of the leaf");
    host.complete(0);
    assert_eq!(host.in_flight.len(), 29, "the bitmaps of all other images");
    assert!(host.in_flight.iter().all(|op| op.length == 512));
    // Another one of the block needs the same.
    host.submit(2, RequestKind::Read, 0, 7, 1, 512);
    assert_eq!(host.in_flight.len(), 29);
    while host.in_flight.len() > 1 {
        host.complete(host.in_flight.len() / 2);
    }
    host.complete(0);
    assert_eq!(host.in_flight.len(), 2, "the data of both");
    host.settle();
    assert_eq!(host.finished.len(), 2);
    host.finished.clear();
    assert!(host.guest[..512] == disk[29 * 512..][..512]);
    assert!(host.guest[512..1024] == disk[7 * 512..][..512]);
}

#[test]
fn what_was_looked_for_once_is_found_at_once() {
    let (files, disk) = interleaved(30, 2);
    let mut host = host(files, 1 << 20);
    assert!(host.read_disk(128) == disk);
    for sector in 0..128 {
        let before = total(&host);
        assert_eq!(host.request(RequestKind::Read, sector, 1, 0), 0);
        assert_eq!(total(&host) - before, 1, "sector {sector}");
    }
}

#[test]
fn images_without_a_block_are_not_asked_about_it() {
    let absent = |block_size| Level {
        bits: vec![0],
        block_size,
        sectors: SECTORS,
    };
    let mut levels = vec![absent(1 << 14); 40];
    levels[20] = Level {
        bits: vec![1 << 3],
        ..absent(1 << 14)
    };
    let (files, disk) = build(&levels, Root::Dynamic);
    let mut host = host(files, 1 << 20);
    let before = total(&host);
    assert_eq!(host.request(RequestKind::Read, 3, 1, 0), 0);
    assert_eq!(total(&host) - before, 2, "one bitmap and the data");
    assert!(host.guest[..512] == disk[3 * 512..][..512]);
    levels[20].bits = vec![0];
    let (files, _) = build(&levels, Root::Dynamic);
    host = self::host(files, 1 << 20);
    let before = total(&host);
    assert_eq!(host.request(RequestKind::Read, 0, 64, 0), 0);
    assert_eq!(total(&host) - before, 1, "zeros");
}

#[test]
fn more_bitmaps_than_there_is_memory_for_come_one_after_the_other() {
    for cache in [0, 1 << 20] {
        let (files, disk) = interleaved(60, 40);
        let mut host = host(files, cache);
        let reads: Vec<(u64, u32)> = (0..40).map(|block| (block * 64 + 3, 60)).collect();
        read(&mut host, &disk, &reads, &mut Random(7), false);
    }
}

#[test]
fn an_error_concerns_those_reads_alone_that_need_the_level() {
    let (files, disk) = interleaved(4, 1);
    let mut host = host(files, 1 << 20);
    host.fault = Some(Box::new(|op| {
        (op.file == 2 && op.region == REGION_STAGING).then_some(EIO)
    }));
    for (sector, status) in [(1, 0), (2, EIO), (0, 0), (3, EIO), (5, 0), (6, EIO)] {
        assert_eq!(host.request(RequestKind::Read, sector, 1, 0), status);
    }
    // Both wait for the same bitmaps.
    let mut other = self::host(interleaved(4, 1).0, 1 << 20);
    other.fault = host.fault.take();
    other.submit(1, RequestKind::Read, 0, 1, 1, 0);
    other.submit(2, RequestKind::Read, 0, 3, 1, 512);
    other.settle();
    let mut finished: Vec<(u32, i32)> = other
        .finished
        .drain(..)
        .map(|finished| (finished.tag, finished.status))
        .collect();
    finished.sort_unstable();
    assert_eq!(finished, [(1, 0), (2, EIO)]);
    assert!(host.read_disk(64) == disk);
}

#[test]
fn an_error_below_what_has_everything_is_no_error() {
    let levels = [0, u64::MAX, 1].map(|bits| Level {
        bits: vec![bits],
        block_size: 1 << 14,
        sectors: SECTORS,
    });
    let (files, disk) = build(&levels, Root::Dynamic);
    let mut host = host(files, 1 << 20);
    // Nobody knows yet that the second image has all of it.
    host.fault = Some(Box::new(|op| {
        (op.file == 2 && op.region == REGION_STAGING).then_some(EIO)
    }));
    assert!(host.read_disk(SECTORS) == disk);
    assert_eq!(host.finished.len(), 0);
}

#[test]
fn closing_waits_for_bitmaps_that_nobody_waits_for() {
    let levels = [0, 15, 15].map(|bits| Level {
        bits: vec![bits],
        block_size: 1 << 13,
        sectors: SECTORS,
    });
    let mut host = host(build(&levels, Root::Dynamic).0, 1 << 20);
    let request = TdRequest {
        tag: 1,
        kind: RequestKind::BlockStatus as u8,
        flags: FLAG_REQ_ONE,
        sector: 0,
        sectors: SECTORS as u32,
        region: GUEST,
        buffer: 0,
    };
    host.engine.submit(&request);
    host.run();
    while host.finished.is_empty() {
        let answer = |op: &Op| op.kind == OpKind::CopyToBuffer;
        host.complete(host.in_flight.iter().position(answer).unwrap_or(0));
    }
    assert!(
        !host.in_flight.is_empty(),
        "bitmaps are fetched ahead of need"
    );
    host.engine.close();
    host.run();
    assert_eq!(host.engine.job(), Job::Running);
    host.settle();
    assert!(matches!(host.engine.job(), Job::Over(Ok(_))));
}
