//! Power cuts at every step of random work: whatever is left of the file opens and holds what was promised.

mod support;

use std::cell::RefCell;

use proptest::prelude::*;
use support::Host;
use support::cuts::{self, Explorer};
use support::disks::{self, Disk, SECTORS, SIZE};
use support::guest::{self, Guest, Mix};
use support::jobs;
use vhd::Driver;
use vhd::JobSpec;
use vhd::format::footer::DiskType;

fn explore(name: &str, mix: &Mix, cache: usize, disk: impl Strategy<Value = Disk>) {
    explore_limited(name, mix, cache, disk, None);
}

/// The same, where the leaf's file can grow by so many blocks.
fn explore_limited(
    name: &str,
    mix: &Mix,
    cache: usize,
    disk: impl Strategy<Value = Disk>,
    room: Option<usize>,
) {
    let (explorer, enough) = (RefCell::new(Explorer::new(0)), cuts::enough_states());
    let strategy = (disk, guest::steps(mix), any::<u64>());
    support::until(strategy, |(disk, steps, seed)| {
        let mut explorer = explorer.borrow_mut();
        explorer.begin(seed);
        let on_device = matches!(disk, Disk::OnDevice { .. });
        let (files, disk) = disk.build();
        let bytes = files[0].len();
        let mut guest = if on_device {
            Guest::on_device(&mut explorer, files, &disk, cache)
        } else {
            Guest::new(&mut explorer, files, &disk, cache)
        };
        if let Some(room) = room {
            guest.limit(bytes + room * disks::STRIDE);
        }
        guest.steps(&steps);
        explorer.distinct() < enough
    });
    explorer.borrow().report(name);
}

const LARGE_CACHE: usize = 1 << 20;

fn failing() -> Mix {
    Mix {
        faults: 8,
        ..Mix::default()
    }
}

fn new_disk() -> impl Strategy<Value = Disk> {
    Just(Disk::Empty { block_size: 4096 })
}

#[test]
fn of_allocations() {
    explore("allocations", &Mix::default(), LARGE_CACHE, new_disk());
}

#[test]
fn of_partial_blocks() {
    let disk = Disk::partial(1, 8192);
    explore("partial blocks", &Mix::default(), LARGE_CACHE, disk);
}

#[test]
fn of_a_small_bitmap_cache() {
    let mix = Mix {
        length: 40..100,
        restarts: false,
        ..Mix::default()
    };
    explore("a small bitmap cache", &mix, 0, Disk::partial(1, 4096));
}

#[test]
fn of_a_chain() {
    let disk = (2_usize..5).prop_flat_map(Disk::mixed);
    explore("a chain", &Mix::default(), LARGE_CACHE, disk);
}

#[test]
fn of_partial_blocks_while_operations_fail() {
    let disk = Disk::partial(1, 8192);
    explore("failing operations", &failing(), LARGE_CACHE, disk);
}

#[test]
fn of_allocations_while_operations_fail() {
    explore("failing allocations", &failing(), LARGE_CACHE, new_disk());
}

#[test]
fn of_an_image_with_a_batmap() {
    explore(
        "a batmap",
        &Mix::default(),
        LARGE_CACHE,
        Disk::with_batmap(1),
    );
}

#[test]
fn of_a_differencing_image_with_a_batmap() {
    explore(
        "a child's batmap",
        &Mix::default(),
        LARGE_CACHE,
        Disk::with_batmap(2),
    );
}

#[test]
fn of_an_image_on_a_block_device() {
    explore(
        "a block device",
        &Mix::default(),
        LARGE_CACHE,
        Disk::on_device(1),
    );
}

#[test]
fn of_a_child_on_a_block_device_while_operations_fail() {
    explore(
        "a child's block device",
        &failing(),
        LARGE_CACHE,
        Disk::on_device(2),
    );
}

#[test]
fn of_a_full_block_device() {
    let disk = (1_usize..3).prop_flat_map(Disk::on_small_device);
    explore_limited(
        "a full block device",
        &Mix::default(),
        LARGE_CACHE,
        disk,
        Some(0),
    );
}

#[test]
fn of_a_disk_that_grows_while_it_is_used() {
    let disk = (1_usize..4).prop_flat_map(Disk::with_room_to_grow);
    let mix = Mix {
        sectors: SECTORS + 100,
        growing: 10,
        ..Mix::default()
    };
    explore("a growing disk", &mix, LARGE_CACHE, disk);
}

#[test]
fn of_a_disk_that_grows_while_operations_fail() {
    let disk = (1_usize..3).prop_flat_map(Disk::with_room_to_grow);
    let mix = Mix {
        sectors: SECTORS + 100,
        growing: 10,
        ..failing()
    };
    explore("a growing disk, failing", &mix, LARGE_CACHE, disk);
}

#[test]
fn of_a_full_file_system() {
    explore_limited(
        "a full file system",
        &Mix::default(),
        LARGE_CACHE,
        new_disk(),
        Some(3),
    );
}

#[test]
fn of_orphaned_space() {
    explore(
        "orphaned space",
        &Mix::default(),
        LARGE_CACHE,
        Disk::with_gaps(1),
    );
}

#[test]
fn of_orphaned_space_while_operations_fail() {
    explore(
        "orphaned space, failing",
        &failing(),
        LARGE_CACHE,
        Disk::with_gaps(2),
    );
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
            &mut |host| {
                let spec = disks::create_spec(disk_type, 4096);
                host.engine.start(JobSpec::Create(spec));
            },
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
    explorer.report("creation");
}
