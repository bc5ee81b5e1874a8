//! Power cuts at every step of random work: whatever is left of the file opens and holds what was promised.

mod support;

use std::cell::RefCell;
use std::io::Write;

use proptest::prelude::*;
use support::Host;
use support::batmap;
use support::cuts::Explorer;
use support::guest::{self, Guest};
use support::images::{self, Parent, Spec, uuid};
use support::jobs;
use vhd::format::footer::DiskType;
use vhd::jobs::CreateSpec;
use vhd::{Driver, JobSpec};

const SECTORS: u64 = 300;
const SIZE: u64 = SECTORS * 512;

fn spec(disk_type: DiskType, block_size: u32) -> CreateSpec {
    CreateSpec {
        path: images::name(0),
        disk_type,
        size: SIZE,
        block_size,
        uuid: uuid(0),
        now: support::NOW,
        max_size: None,
    }
}

fn empty(block_size: u32) -> Vec<u8> {
    let mut host = Host::new(Vec::new(), 0);
    host.create(spec(DiskType::Dynamic, block_size))
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

/// Says how many states were explored.
fn report(name: &str, explorer: &Explorer) {
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {} crash states, {} checks",
        explorer.distinct(),
        explorer.checks()
    );
}

/// A chain that a guest works on.
#[derive(Clone, Debug)]
enum Disk {
    Empty {
        block_size: u32,
    },
    /// Bits of the blocks of each image, leaf first.
    Partial(Vec<Vec<u64>>),
    /// The same, with a batmap in the leaf that knows some of its full blocks, or is wrong.
    Batmap {
        levels: Vec<Vec<u64>>,
        known: u32,
        wrong: bool,
    },
    /// The same, with so many sectors that are nobody's before each block of the leaf.
    Gaps {
        levels: Vec<Vec<u64>>,
        gaps: Vec<usize>,
    },
    /// The same, with the leaf on a block device that has room for all blocks.
    OnDevice(Vec<Vec<u64>>),
}

impl Disk {
    /// The files, leaf first, and the disk's content.
    fn build(&self) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut disk = vec![0; SIZE as usize];
        match self {
            Self::Empty { block_size } => (vec![empty(*block_size)], disk),
            Self::Batmap {
                levels,
                known,
                wrong,
            } => {
                let (mut files, disk) = Self::Partial(levels.clone()).build();
                let full: Vec<u32> = (0..)
                    .zip(&levels[0])
                    .filter(|(block, bits)| **bits == u64::MAX && known >> block & 1 == 1)
                    .map(|(block, _)| block)
                    .collect();
                files[0] = batmap::with_batmap(&files[0], &full);
                if *wrong {
                    batmap::change_header(&mut files[0], |header| header.checksum ^= 1);
                }
                (files, disk)
            }
            Self::Gaps { levels, gaps } => {
                let (mut files, disk) = Self::Partial(levels.clone()).build();
                files[0] = images::with_gaps(&files[0], gaps);
                (files, disk)
            }
            Self::OnDevice(levels) => {
                let (mut files, disk) = Self::Partial(levels.clone()).build();
                files[0] = images::on_device(&files[0], 2 * SIZE as usize);
                (files, disk)
            }
            Self::Partial(levels) => {
                let mut files: Vec<Vec<u8>> = Vec::new();
                for (index, bits) in levels.iter().enumerate().rev() {
                    let has_parent = index + 1 < levels.len();
                    files.push(partial(index, bits, has_parent, &mut disk));
                }
                files.reverse();
                (files, disk)
            }
        }
    }

    fn chain(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop::collection::vec(any::<u64>(), 18);
        prop::collection::vec(bits, depth).prop_map(Self::Partial)
    }

    fn with_gaps(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop_oneof![2 => Just(0), 1 => any::<u64>()];
        let levels = prop::collection::vec(prop::collection::vec(bits, 18), depth);
        let gaps = prop::collection::vec(0_usize..80, 18);
        (levels, gaps).prop_map(|(levels, gaps)| Self::Gaps { levels, gaps })
    }

    fn on_device(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop::collection::vec(any::<u64>(), 18);
        prop::collection::vec(bits, depth).prop_map(Self::OnDevice)
    }

    fn with_batmap(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop_oneof![2 => Just(u64::MAX), 1 => any::<u64>()];
        let levels = prop::collection::vec(prop::collection::vec(bits, 18), depth);
        (levels, any::<u32>(), prop::bool::weighted(0.2)).prop_map(|(levels, known, wrong)| {
            Self::Batmap {
                levels,
                known,
                wrong,
            }
        })
    }
}

fn explore(name: &str, enough: usize, faults: bool, disk: impl Strategy<Value = Disk>) {
    let explorer = RefCell::new(Explorer::new(0));
    let strategy = (disk, guest::steps(SECTORS, faults), any::<u64>());
    support::until(strategy, |(disk, steps, seed)| {
        let mut explorer = explorer.borrow_mut();
        explorer.begin(seed);
        let on_device = matches!(disk, Disk::OnDevice(_));
        let (files, disk) = disk.build();
        if on_device {
            Guest::on_device(&mut explorer, files, &disk).steps(&steps);
        } else {
            Guest::new(&mut explorer, files, &disk, 1 << 20).steps(&steps);
        }
        explorer.distinct() < enough
    });
    report(name, &explorer.borrow());
}

#[test]
fn of_allocations() {
    explore(
        "allocations",
        50_000,
        false,
        Just(Disk::Empty { block_size: 4096 }),
    );
}

#[test]
fn of_partial_blocks() {
    explore("partial blocks", 50_000, false, Disk::chain(1));
}

#[test]
fn of_a_differencing_image() {
    explore("a differencing image", 50_000, false, Disk::chain(2));
}

#[test]
fn of_partial_blocks_while_operations_fail() {
    explore("failing operations", 50_000, true, Disk::chain(1));
}

#[test]
fn of_an_image_with_a_batmap() {
    explore("a batmap", 15_000, false, Disk::with_batmap(1));
}

#[test]
fn of_a_differencing_image_with_a_batmap() {
    explore("a child's batmap", 15_000, false, Disk::with_batmap(2));
}

#[test]
fn of_an_image_on_a_block_device() {
    explore("a block device", 15_000, false, Disk::on_device(1));
}

#[test]
fn of_a_child_on_a_block_device_while_operations_fail() {
    explore("a child's block device", 15_000, true, Disk::on_device(2));
}

#[test]
fn of_orphaned_space() {
    explore("orphaned space", 15_000, false, Disk::with_gaps(1));
}

#[test]
fn of_orphaned_space_while_operations_fail() {
    explore("orphaned space, failing", 15_000, true, Disk::with_gaps(2));
}

#[test]
fn of_creation() {
    let mut explorer = Explorer::new(1);
    for (seed, disk_type) in [DiskType::Dynamic, DiskType::Fixed]
        .into_iter()
        .cycle()
        .zip(0..40)
        .map(|(a, b)| (b, a))
    {
        explorer.begin(seed);
        let mut host = Host::new(Vec::new(), 0);
        let outcome = jobs::run(
            &mut explorer,
            &mut host,
            &mut |host| host.engine.start(JobSpec::Create(spec(disk_type, 4096))),
            &mut |left, state| {
                let mut next = left.host(64 << 10);
                if next.names.is_empty() || next.names[0].is_empty() {
                    return assert_eq!(state, jobs::State::Running);
                }
                match next.open(Driver::Vhd, false) {
                    Ok(info) => {
                        assert_eq!((info.sectors, info.disk_type), (SECTORS, Some(disk_type)));
                        assert_eq!(next.read_disk(SECTORS), vec![0; SIZE as usize]);
                    }
                    Err(error) => assert_eq!(state, jobs::State::Running, "{error}"),
                }
            },
        );
        outcome.expect("the image is made");
    }
    report("creation", &explorer);
}
