//! Any single operation fails: the request that needed it fails with that error, the image stays good, and later
//! requests succeed.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use support::cuts::Explorer;
use support::disks::Disk;
use support::guest::{self, Guest, Mix, Step};
use support::{Host, images};
use vhd::Driver;
use vhd::format::footer::DiskType;
use vhd::format::uuid::Uuid;
use vhd::jobs::CreateSpec;
use vhd::record::{OpKind, RequestKind};

const SECTORS: u64 = 400;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The operation has no effect and ends with this (positive) errno value.
    Errno(i32),
    /// A transfer moves nothing, or all but a sector, and says so.
    Short,
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Errno(5)),
        Just(Fault::Errno(28)),
        Just(Fault::Short)
    ]
}

fn run(requests: &[(u8, u64, u32)], at: u64, fault: Fault) {
    let mut host = Host::with_cache(Vec::new(), 64 << 10, 0);
    let (disk_type, size, uuid) = (DiskType::Dynamic, SECTORS * 512, Uuid([1; 16]));
    host.create(CreateSpec {
        path: images::name(0),
        disk_type,
        size,
        block_size: 4096,
        uuid,
        now: support::NOW,
        max_size: None,
    })
    .expect("the image is made");
    host.open(Driver::Vhd, false).expect("the image opens");
    let mut countdown = at;
    host.fault = Some(Box::new(move |op| {
        let moves = matches!(op.kind, OpKind::Read | OpKind::Write);
        if countdown > 0 || matches!(fault, Fault::Short) && !moves || op.kind == OpKind::ZeroBuffer
        {
            countdown = countdown.saturating_sub(1);
            return None;
        }
        countdown = u64::MAX;
        match fault {
            Fault::Errno(errno) => Some(-errno),
            Fault::Short => Some((op.length as i32 - 512).max(0)),
        }
    }));
    let expected_status = match fault {
        Fault::Errno(errno) => -errno,
        Fault::Short => -5,
    };
    // What each sector may hold: the byte of the last acknowledged write, and those of failed ones since.
    let mut model: Vec<Vec<u8>> = vec![vec![0]; SECTORS as usize];
    let mut failures = 0;
    for (index, (kind, sector, count)) in requests.iter().copied().enumerate() {
        let count = count.min((SECTORS - sector) as u32);
        let range = sector as usize..sector as usize + count as usize;
        let fill = (index % 250) as u8 + 1;
        let status = match kind {
            0 => {
                host.guest[..count as usize * 512].fill(fill);
                let status = host.request(RequestKind::Write, sector, count, 0);
                for bytes in &mut model[range] {
                    if status == 0 {
                        bytes.clear();
                    }
                    bytes.push(fill);
                }
                status
            }
            2 => {
                let status = host.request(RequestKind::WriteZeroes, sector, count, 0);
                for bytes in &mut model[range] {
                    if status == 0 {
                        bytes.clear();
                    }
                    bytes.push(0);
                }
                status
            }
            1 => {
                let status = host.request(RequestKind::Read, sector, count, 0);
                if status == 0 {
                    check(&host.guest, &model[range]);
                }
                status
            }
            _ => host.request(RequestKind::Flush, 0, 0, 0),
        };
        if status != 0 {
            assert_eq!(status, expected_status);
            failures += 1;
        }
    }
    assert!(failures <= 1, "{failures} requests failed by one fault");
    if let Err(error) = host.close() {
        assert_eq!((-error.errno, failures), (expected_status, 0));
        host.close()
            .expect("the image closes at the second attempt");
    }
    host.fault = None;
    host.open(Driver::Vhd, false)
        .expect("the image opens again");
    let disk = host.read_disk(SECTORS);
    check(&disk, &model);
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
}

fn check(data: &[u8], model: &[Vec<u8>]) {
    for (sector, (bytes, allowed)) in data.chunks(512).zip(model).enumerate() {
        assert!(
            bytes.iter().all(|byte| *byte == bytes[0]),
            "sector {sector} is torn"
        );
        assert!(
            allowed.contains(&bytes[0]),
            "sector {sector} holds {}, may hold {allowed:?}",
            bytes[0]
        );
    }
}

/// How the operations of a run fail.
#[derive(Clone, Copy, Debug)]
struct Failure {
    fault: Fault,
    /// How many in a row.
    count: u64,
}

const FAILURES: [Failure; 6] = [
    Failure {
        fault: Fault::Errno(5),
        count: 1,
    },
    Failure {
        fault: Fault::Errno(28),
        count: 1,
    },
    Failure {
        fault: Fault::Errno(5),
        count: 2,
    },
    Failure {
        fault: Fault::Errno(28),
        count: 5,
    },
    Failure {
        fault: Fault::Short,
        count: 1,
    },
    Failure {
        fault: Fault::Short,
        count: 2,
    },
];

/// A guest's work during which operations fail from one on, and the power is cut at some points after that. Returns how
/// many operations there were.
fn work(explorer: &mut Explorer, disk: &Disk, steps: &[Step], at: u64, failure: Failure) -> u64 {
    let (files, content) = disk.build();
    let mut guest = Guest::new(explorer, files, &content, 0);
    guest.quiet = true;
    guest.may_fail(match failure.fault {
        Fault::Errno(errno) => errno,
        Fault::Short => 5,
    });
    let seen = Rc::new(Cell::new(0));
    let counter = seen.clone();
    guest.host.fault = Some(Box::new(move |op| {
        let moves = matches!(op.kind, OpKind::Read | OpKind::Write);
        if op.kind == OpKind::ZeroBuffer || matches!(failure.fault, Fault::Short) && !moves {
            return None;
        }
        let number = counter.replace(counter.get() + 1);
        (at..at + failure.count)
            .contains(&number)
            .then_some(match failure.fault {
                Fault::Errno(errno) => -errno,
                Fault::Short => (op.length as i32 - 512).max(0),
            })
    }));
    let mut cuts = 0;
    for (index, step) in steps.iter().enumerate() {
        guest.step(step);
        if seen.get() > at && (cuts < 2 || index + 1 == steps.len()) {
            cuts += 1;
            guest.cut();
        }
    }
    guest.look();
    guest.reopen();
    seen.get()
}

/// Lets each operation of several works fail in each way.
fn each_operation(disk: impl Strategy<Value = Disk>, works: u64) {
    let mut explorer = Explorer::new(1);
    for seed in 0..works {
        let mut runner = support::runner(support::seed() + seed);
        let input = (&disk, guest::steps(&Mix::default())).new_tree(&mut runner);
        let (disk, steps) = input.expect("inputs can be made").current();
        let (mut at, mut operations) = (0, 1);
        while at < operations {
            for failure in FAILURES {
                explorer.begin(seed);
                operations = work(&mut explorer, &disk, &steps, at, failure).max(operations);
            }
            at += 1;
        }
    }
}

#[test]
fn each_operation_of_a_new_disk() {
    each_operation(Just(Disk::Empty { block_size: 4096 }), 4);
}

#[test]
fn each_operation_of_partial_blocks() {
    each_operation(Disk::partial(1, 8192), 4);
}

#[test]
fn each_operation_of_a_chain() {
    each_operation(Disk::partial(3, 8192), 4);
}

proptest! {
    #![proptest_config(support::cases(600))]

    #[test]
    fn one_operation_fails(
        requests in prop::collection::vec((0_u8..4, 0..SECTORS, 1_u32..20), 1..60), at in 0_u64..150, fault in faults(),
    ) {
        run(&requests, at, fault);
    }
}
