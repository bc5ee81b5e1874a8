//! Random requests in random completion order against a plain byte vector.

mod support;

use proptest::prelude::*;
use support::Host;
use support::images::{self, Parent, Spec, uuid};
use vhd::Driver;
use vhd::format::footer::DiskType;
use vhd::format::uuid::Uuid;
use vhd::jobs::CreateSpec;
use vhd::record::{FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, OpKind, RequestKind};

const SLOT_SECTORS: u32 = 64;
const SLOTS: usize = 16;

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u64,
        count: u32,
        fua: bool,
    },
    Read {
        sector: u64,
        count: u32,
    },
    /// Write zeroes, or discard, which come to the same without a parent.
    Erase {
        sector: u64,
        count: u32,
        kind: RequestKind,
        flags: u8,
    },
    Flush,
    /// Carry out that many operations, each chosen by the seed.
    Complete(usize),
    SyncMetadata,
    Reopen,
}

fn steps(sectors: u64) -> impl Strategy<Value = Vec<Step>> {
    let range = (0..sectors, 1..=SLOT_SECTORS)
        .prop_map(move |(sector, count)| (sector, count.min((sectors - sector) as u32)));
    // Sometimes whole blocks of the sizes that are used, and more than one.
    let long = (0..sectors / 16, 1_u64..9).prop_map(move |(block, blocks)| {
        (block * 16, (blocks * 16).min(sectors - block * 16) as u32)
    });
    let kinds = prop_oneof![
        Just((RequestKind::WriteZeroes, 0)),
        Just((RequestKind::WriteZeroes, FLAG_NO_HOLE)),
        Just((RequestKind::WriteZeroes, FLAG_FUA)),
        Just((RequestKind::Discard, 0)),
    ];
    let step = prop_oneof![
        2 => (prop_oneof![range.clone(), long], kinds).prop_map(|((sector, count), (kind, flags))| Step::Erase { sector, count, kind, flags }),
        6 => (range.clone(), prop::bool::weighted(0.1)).prop_map(|((sector, count), fua)| Step::Write { sector, count, fua }),
        4 => range.prop_map(|(sector, count)| Step::Read { sector, count }),
        1 => Just(Step::Flush),
        8 => (1_usize..8).prop_map(Step::Complete),
        1 => Just(Step::SyncMetadata),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..120)
}

/// A request in flight: its sectors, and for a write the byte that fills them.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    sector: u64,
    count: u32,
    write: Option<u8>,
}

struct Model {
    disk: Vec<u8>,
    slots: [Option<InFlight>; SLOTS],
    fill: u8,
}

impl Model {
    fn free_slot(&self, sector: u64, count: u32, write: bool) -> Option<usize> {
        // Overlapping requests in flight have no defined order: the model has none either.
        let overlaps = |other: &InFlight| {
            (write || other.write.is_some())
                && sector < other.sector + u64::from(other.count)
                && other.sector < sector + u64::from(count)
        };
        if self.slots.iter().flatten().any(overlaps) {
            return None;
        }
        self.slots.iter().position(Option::is_none)
    }

    fn finish(&mut self, host: &Host, tag: u32, status: i32) {
        assert_eq!(status, 0, "request {tag} failed");
        let slot = tag as usize;
        let Some(request) = self.slots[slot].take() else {
            return;
        };
        let (start, bytes) = (request.sector as usize * 512, request.count as usize * 512);
        let range = start..start + bytes;
        match request.write {
            Some(fill) => self.disk[range].fill(fill),
            None => {
                let buffer = slot * SLOT_SECTORS as usize * 512;
                assert!(
                    host.guest[buffer..buffer + bytes] == self.disk[range],
                    "wrong data at sector {}",
                    request.sector
                );
            }
        }
    }
}

/// Runs the steps on an image, then closes it and compares all of it with the model.
fn run(
    files: Vec<Vec<u8>>,
    start: Vec<u8>,
    driver: Driver,
    cache: usize,
    steps: &[Step],
    seed: u64,
) -> Vec<u8> {
    let guest = SLOTS * SLOT_SECTORS as usize * 512;
    let mut host = Host::with_cache(files, guest, cache);
    let sectors = start.len() as u64 / 512;
    let mut model = Model {
        disk: start,
        slots: [None; SLOTS],
        fill: 0,
    };
    let mut random = support::Random(seed);
    assert_eq!(
        host.open(driver, false).expect("the image opens").sectors,
        sectors
    );
    for step in steps {
        match *step {
            Step::Write { sector, count, fua } => {
                if let Some(slot) = model.free_slot(sector, count, true) {
                    model.fill = model.fill % 250 + 1;
                    let buffer = slot * SLOT_SECTORS as usize * 512;
                    host.guest[buffer..buffer + count as usize * 512].fill(model.fill);
                    model.slots[slot] = Some(InFlight {
                        sector,
                        count,
                        write: Some(model.fill),
                    });
                    let flags = if fua { FLAG_FUA } else { 0 };
                    host.submit(
                        slot as u32,
                        RequestKind::Write,
                        flags,
                        sector,
                        count,
                        buffer as u32,
                    );
                }
            }
            Step::Read { sector, count } => {
                if let Some(slot) = model.free_slot(sector, count, false) {
                    model.slots[slot] = Some(InFlight {
                        sector,
                        count,
                        write: None,
                    });
                    let buffer = slot * SLOT_SECTORS as usize * 512;
                    host.guest[buffer..buffer + count as usize * 512].fill(0xee);
                    host.submit(
                        slot as u32,
                        RequestKind::Read,
                        0,
                        sector,
                        count,
                        buffer as u32,
                    );
                }
            }
            Step::Erase {
                sector,
                count,
                kind,
                flags,
            } => {
                // A discard leaves alone what is in a parent, which the model does not know.
                let kind = if host.files.len() > 1 {
                    RequestKind::WriteZeroes
                } else {
                    kind
                };
                if let Some(slot) = model.free_slot(sector, count, true) {
                    model.slots[slot] = Some(InFlight {
                        sector,
                        count,
                        write: Some(0),
                    });
                    host.submit(slot as u32, kind, flags, sector, count, 0);
                }
            }
            Step::Flush => host.submit(SLOTS as u32 - 1 + 1000, RequestKind::Flush, 0, 0, 0, 0),
            Step::Complete(count) => {
                for _ in 0..count {
                    if !host.in_flight.is_empty() {
                        let index = random.below(host.in_flight.len());
                        host.complete(index);
                    }
                }
            }
            Step::SyncMetadata => {
                host.engine.sync_metadata();
                host.run();
            }
            Step::Reopen => {
                while !host.in_flight.is_empty() {
                    let index = random.below(host.in_flight.len());
                    host.complete(index);
                }
                drain(&mut host, &mut model);
                host.close().expect("the image closes");
                host.open(driver, false).expect("the image opens again");
            }
        }
        drain(&mut host, &mut model);
    }
    host.settle();
    drain(&mut host, &mut model);
    assert!(
        model.slots.iter().all(Option::is_none),
        "a request was lost: {:?}",
        model.slots
    );
    assert!(
        host.read_disk(sectors) == model.disk,
        "wrong content before closing"
    );
    host.close().expect("the image closes");
    let info = host.open(driver, true).expect("the image opens again");
    assert_eq!(info.warnings, Vec::<String>::new());
    assert!(
        host.read_disk(sectors) == model.disk,
        "wrong content after reopening"
    );
    std::mem::take(&mut host.files[0])
}

fn drain(host: &mut Host, model: &mut Model) {
    while let Some(finished) = host.finished.pop_front() {
        if finished.tag < SLOTS as u32 {
            model.finish(host, finished.tag, finished.status);
        } else {
            assert_eq!(finished.status, 0);
        }
    }
}

fn created(disk_type: DiskType, size: u64, block_size: u32) -> Vec<u8> {
    let mut host = Host::new(Vec::new(), 0);
    host.create(CreateSpec {
        path: images::name(0),
        disk_type,
        size,
        block_size,
        uuid: Uuid([1; 16]),
        now: support::NOW,
        max_size: None,
    })
    .expect("the image is made");
    std::mem::take(&mut host.files[0])
}

/// A dynamic image as blktap leaves it, and its content.
fn with_partial_bitmaps(blocks: &[(u32, u64)], size: u64, block_size: u32) -> (Vec<u8>, Vec<u8>) {
    let mut disk = vec![0; size as usize];
    let fill = |sector| 0x80 | (sector % 100) as u8;
    let spec = Spec {
        uuid: uuid(0),
        size,
        block_size,
        parent: None,
        blocks,
        fill,
    };
    (images::build(&spec, &mut disk), disk)
}

/// A chain of differencing images, each with its own blocks, on a dynamic one; and its content. Parents are smaller than
/// their children.
fn chain(levels: &[Vec<u64>], sectors: u64) -> (Vec<Vec<u8>>, Vec<u8>) {
    const FILLS: [fn(u64) -> u8; 4] = [
        |sector| 0x10 | (sector % 7) as u8,
        |sector| 0x20 | (sector % 11) as u8,
        |sector| 0x40 | (sector % 13) as u8,
        |sector| 0x80 | (sector % 3) as u8,
    ];
    let mut disk = vec![0; sectors as usize * 512];
    let mut files = Vec::new();
    for (index, bits) in levels.iter().enumerate().rev() {
        let block_size = 4096 << (index % 3);
        let size = (sectors - index as u64 * 24) * 512;
        let count = size.div_ceil(u64::from(block_size)) as u32;
        // Some blocks are absent, some have no sector or all of them.
        let blocks: Vec<(u32, u64)> = (0..count)
            .zip(bits.iter().cycle().copied())
            .filter(|(_, bits)| bits % 5 != 0)
            .map(|(block, bits)| {
                (
                    block,
                    [bits, u64::MAX, 0, bits, bits & bits >> 7][(bits % 5) as usize],
                )
            })
            .collect();
        let platform = [*b"W2ru", *b"W2ku", *b"MacX"][index % 3];
        let path = match &platform {
            b"W2ku" => format!("C:{}", images::name(index + 1)),
            _ if index == 0 => "./base/parent1.vhd".to_owned(),
            _ => format!("./parent{}.vhd", index + 1),
        };
        let locator = (platform, path);
        let parent = (index + 1 < levels.len()).then(|| Parent {
            uuid: uuid(index + 1),
            locator,
        });
        let spec = Spec {
            uuid: uuid(index),
            size,
            block_size,
            parent,
            blocks: &blocks,
            fill: FILLS[index % 4],
        };
        files.push(images::build(&spec, &mut disk[..size as usize]));
    }
    files.reverse();
    (files, disk)
}

proptest! {
    #![proptest_config(support::cases(200))]

    #[test]
    fn dynamic(steps in steps(600), seed: u64, block_shift in 12_u32..16) {
        let image = created(DiskType::Dynamic, 600 * 512, 1 << block_shift);
        run(vec![image], vec![0; 600 * 512], Driver::Vhd, 1 << 20, &steps, seed);
    }

    #[test]
    fn dynamic_with_partial_bitmaps_and_a_small_cache(
        steps in steps(4096), seed: u64, bits in prop::collection::vec(any::<u64>(), 40), cache in 0_usize..4096,
    ) {
        let blocks: Vec<(u32, u64)> = (0..).step_by(3).zip(bits).collect();
        let (image, disk) = with_partial_bitmaps(&blocks, 4096 * 512, 16 << 10);
        run(vec![image], disk, Driver::Vhd, cache, &steps, seed);
    }

    #[test]
    fn chains(
        levels in prop::collection::vec(prop::collection::vec(any::<u64>(), 8..20), 1..6), steps in steps(600), seed: u64,
    ) {
        let (files, disk) = chain(&levels, 600);
        run(files, disk, Driver::Vhd, 1 << 12, &steps, seed);
    }

    #[test]
    fn fixed_and_raw(steps in steps(600), seed: u64) {
        let image = created(DiskType::Fixed, 600 * 512, 2 << 20);
        run(vec![image], vec![0; 600 * 512], Driver::Vhd, 1 << 20, &steps, seed);
        let image = vec![0; 600 * 512];
        run(vec![image.clone()], image, Driver::Aio, 1 << 20, &steps, seed);
    }
}

/// Sectors of disks with blocks so large that their bitmaps take several sectors.
const LARGE: u64 = (20 << 20) / 512 - 99;

/// A chain with such blocks, of 4 MiB in the leaf and of 8 and 16 MiB below; and its content. Parents are smaller.
fn large_chain(levels: &[Vec<u64>]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut disk = vec![0; LARGE as usize * 512];
    let mut files = Vec::new();
    for (index, bits) in levels.iter().enumerate().rev() {
        let size = (LARGE - index as u64 * 5000) * 512;
        let block_size = (4 << 20) << index;
        let count = size.div_ceil(u64::from(block_size)) as u32;
        let blocks: Vec<(u32, u64)> = (0..count)
            .zip(bits.iter().copied())
            .filter(|(_, bits)| bits % 3 != 0)
            .collect();
        let spec = Spec {
            uuid: uuid(index),
            size,
            block_size,
            parent: (index + 1 < levels.len()).then(|| Parent::named(index + 1)),
            blocks: &blocks,
            fill: [|_| 0xa1, |_| 0xb2, |_| 0xc3][index % 3],
        };
        files.push(images::build(&spec, &mut disk[..size as usize]));
    }
    files.reverse();
    (files, disk)
}

proptest! {
    #![proptest_config(support::cases(24))]

    #[test]
    fn bitmaps_of_several_sectors(
        levels in prop::collection::vec(prop::collection::vec(any::<u64>(), 5), 1..4),
        steps in steps(LARGE), whole in prop::collection::vec((0_u64..4, 0_usize..100), 0..4), seed: u64, small_cache: bool,
    ) {
        let (files, disk) = large_chain(&levels);
        let mut steps = steps;
        // Now and then a block as a whole.
        for (block, at) in whole {
            let (sector, count) = (block * 8192, 8192);
            let step = Step::Erase { sector, count, kind: RequestKind::Discard, flags: 0 };
            steps.insert(at.min(steps.len()), step);
        }
        run(files, disk, Driver::Vhd, if small_cache { 0 } else { 1 << 20 }, &steps, seed);
    }
}

#[test]
fn large_blocks_and_requests_across_many_blocks() {
    let size = 9 << 20;
    let image = created(DiskType::Dynamic, size, 2 << 20);
    let mut host = Host::new(vec![image], size as usize);
    host.open(Driver::Vhd, false).expect("the image opens");
    let sectors = (size / 512) as u32;
    for (index, chunk) in host.guest.chunks_mut(512).enumerate() {
        chunk.fill((index % 251) as u8);
    }
    let expected = host.guest.clone();
    assert_eq!(host.request(RequestKind::Write, 0, sectors, 0), 0);
    host.guest.fill(0);
    assert_eq!(host.request(RequestKind::Read, 0, sectors, 0), 0);
    assert!(host.guest == expected);
    host.close().expect("the image closes");
    // Five blocks, each behind its bitmap, aligned to 4 KiB; nothing else.
    let info = host.open(Driver::Vhd, true).expect("the image opens again");
    assert_eq!(
        (info.allocated_blocks, host.files[0].len()),
        (5, 4096 + 5 * (4096 + (2 << 20)) - 4096 + 512)
    );
}

#[test]
fn reads_of_neighbours_are_joined() {
    let (image, disk) = with_partial_bitmaps(&[(0, u64::MAX)], 8 << 12, 4096);
    let mut host = Host::new(vec![image], disk.len());
    host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!(host.request(RequestKind::Read, 0, 8, 0), 0);
    let before = host.counts;
    assert_eq!(
        host.request(RequestKind::Read, 0, (disk.len() / 512) as u32, 0),
        0
    );
    assert_eq!(host.guest, disk);
    // One read of the block, and one zeroing of everything behind it.
    assert_eq!(
        host.counts.iter().sum::<u64>() - before.iter().sum::<u64>(),
        2
    );
}

#[test]
fn requests_that_can_not_be_are_refused() {
    let image = created(DiskType::Dynamic, 1 << 20, 2 << 20);
    let mut host = Host::new(vec![image.clone()], 4096);
    host.open(Driver::Vhd, true).expect("the image opens");
    assert_eq!(host.request(RequestKind::Write, 0, 1, 0), -1);
    assert_eq!(host.request(RequestKind::Read, 2047, 2, 0), -22);
    assert_eq!(host.request(RequestKind::Read, u64::MAX, 1, 0), -22);
    assert_eq!(host.request(RequestKind::Read, 0, 0, 0), -22);
    assert_eq!(host.request(RequestKind::Read, 0, u32::MAX, 0), -22);
    assert_eq!(host.request(RequestKind::Read, 0, 8, u32::MAX - 512), -22);
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    host.close().expect("the image closes");
    assert_eq!(host.request(RequestKind::Read, 0, 1, 0), -108);
    assert!(
        host.files[0] == image,
        "a disk that was not written is not touched"
    );
}

#[test]
fn released_blocks_give_their_space_back_and_are_used_again() {
    let mut host = Host::new(
        vec![created(DiskType::Dynamic, 1 << 20, 64 << 10)],
        64 << 10,
    );
    host.open(Driver::Vhd, false).expect("the image opens");
    let write = |host: &mut Host, block: u64| {
        host.guest.fill(block as u8 + 1);
        assert_eq!(host.request(RequestKind::Write, block * 128, 128, 0), 0);
    };
    for block in 0..8 {
        write(&mut host, block);
    }
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    let size = host.files[0].len();
    for block in 2..8 {
        assert_eq!(host.request(RequestKind::Discard, block * 128, 128, 0), 0);
    }
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    assert_eq!(host.counts[OpKind::PunchHole as usize], 6);
    for block in 8..14 {
        write(&mut host, block);
    }
    assert_eq!(
        host.files[0].len(),
        size,
        "the file grows though it has room"
    );
    assert_eq!(host.request(RequestKind::Discard, 0, 2048, 0), 0);
    host.close().expect("the image closes");
    let info = host.open(Driver::Vhd, true).expect("the image opens again");
    assert_eq!((info.allocated_blocks, info.warnings), (0, Vec::new()));
    assert_eq!(
        host.files[0].len(),
        created(DiskType::Dynamic, 1 << 20, 64 << 10).len()
    );
    assert!(host.read_disk(2048).iter().all(|byte| *byte == 0));
}

#[test]
fn zeroes_are_refused_that_would_have_to_be_fast_and_are_not() {
    let mut host = Host::new(vec![created(DiskType::Dynamic, 1 << 20, 64 << 10)], 1 << 20);
    host.open(Driver::Vhd, false).expect("the image opens");
    host.guest.fill(7);
    assert_eq!(host.request(RequestKind::Write, 0, 512, 0), 0);
    // A file system that can do nothing but write.
    host.fault = Some(Box::new(|op| op.fast.then_some(-95)));
    let mut zero = |flags, sector, sectors| {
        host.submit(1, RequestKind::WriteZeroes, flags, sector, sectors, 0);
        host.settle();
        host.finished.pop_front().map(|finished| finished.status)
    };
    // What is nowhere, or leaves the BAT, takes no writing.
    assert_eq!(zero(FLAG_FAST_ZERO, 1024, 100), Some(0));
    assert_eq!(zero(FLAG_FAST_ZERO, 128, 256), Some(0));
    assert_eq!(zero(FLAG_FAST_ZERO, 1, 100), Some(-95));
    assert_eq!(zero(FLAG_FAST_ZERO | FLAG_NO_HOLE, 0, 128), Some(-95));
    assert_eq!(zero(0, 400, 100), Some(0));
    assert_eq!(zero(FLAG_NO_HOLE, 500, 12), Some(0));
    let disk = host.read_disk(2048);
    let expected = |sector| {
        if sector < 128 || (384..400).contains(&sector) {
            7
        } else {
            0
        }
    };
    assert!((0..2048).all(|sector| disk[sector * 512] == expected(sector)));
}

#[test]
fn a_place_is_not_used_again_while_a_request_may_still_write_there() {
    let block = 64 << 10;
    let mut host = Host::new(
        vec![created(DiskType::Dynamic, 16 * block, block as u32)],
        2 * block as usize,
    );
    host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!(host.request(RequestKind::Write, 0, 128, 0), 0);
    host.guest[..512].fill(0xba);
    host.submit(1, RequestKind::Write, 0, 0, 1, 0);
    let held = host.in_flight[0].id;
    host.submit(2, RequestKind::Discard, 0, 0, 128, 0);
    host.submit(3, RequestKind::Flush, 0, 0, 0, 0);
    let settle_others = |host: &mut Host| {
        while let Some(index) = host.in_flight.iter().position(|op| op.id != held) {
            host.complete(index);
        }
    };
    settle_others(&mut host);
    host.guest[block as usize..].fill(7);
    for other in 1..16 {
        host.submit(
            3 + other,
            RequestKind::Write,
            0,
            u64::from(other) * 128,
            128,
            block as u32,
        );
        settle_others(&mut host);
    }
    host.settle();
    assert!(host.finished.iter().all(|finished| finished.status == 0));
    host.finished.clear();
    let disk = host.read_disk(16 * 128);
    assert!(
        disk[block as usize..].iter().all(|byte| *byte == 7),
        "a write went into another block"
    );
}
