//! Power cuts in a disk's whole life: a guest's work, and between it snapshots, merges and changes of size.

mod support;

use std::cell::RefCell;

use proptest::prelude::*;
use support::cuts::{self, Explorer};
use support::disks::{Disk, SECTORS};
use support::guest::{self, Guest, Mix, Step};
use support::images::{self, uuid};
use vhd::jobs::{CoalesceSpec, NewParent, ResizeSpec, SnapshotSpec};
use vhd::{Driver, JobSpec};

/// What happens to a disk while no guest works.
#[derive(Clone, Copy, Debug)]
enum Change {
    Snapshot,
    Coalesce,
    /// To the size that the disk had in the beginning, and so many blocks.
    Resize(u64),
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Snapshot),
        Just(Change::Coalesce),
        prop_oneof![Just(0), 1_u64..200].prop_map(Change::Resize),
    ]
}

/// A disk that changes while nobody has it open.
struct Life {
    /// The image that is the disk.
    leaf: String,
    snapshots: usize,
}

impl Life {
    fn change(&mut self, guest: &mut Guest, change: Change) {
        let path = self.leaf.clone();
        match change {
            Change::Snapshot => {
                self.snapshots += 1;
                let child = images::name(100 + self.snapshots);
                let spec = SnapshotSpec {
                    path: child.clone(),
                    parent: NewParent {
                        path,
                        driver: Driver::Vhd,
                    },
                    size: None,
                    max_size: None,
                    keep_empty: true,
                    depth_limit: None,
                    uuid: uuid(100 + self.snapshots),
                    now: 1_800_000_000,
                };
                let made = guest.job(&JobSpec::Snapshot(spec), &child);
                made.expect("the child is made");
                self.leaf = child;
            }
            Change::Coalesce => {
                let spec = CoalesceSpec {
                    path,
                    into: None,
                    output: None,
                    sparse: false,
                    dry_run: false,
                    record: None,
                };
                let merged = guest.job(&JobSpec::Coalesce(spec), &self.leaf);
                if let Err(error) = merged {
                    let why = error.to_string();
                    assert!(why.contains("no parent"), "{why}");
                }
            }
            Change::Resize(blocks) => {
                let spec = ResizeSpec {
                    path,
                    size: (SECTORS + blocks * 16) * 512,
                    fast: false,
                };
                let resized = guest.job(&JobSpec::Resize(spec), &self.leaf);
                resized.expect("the size is changed");
            }
        }
    }
}

fn lives() -> impl Strategy<Value = Vec<(Vec<Step>, Change)>> {
    let mix = Mix {
        length: 1..20,
        restarts: false,
        ..Mix::default()
    };
    prop::collection::vec((guest::steps(&mix), changes()), 1..6)
}

#[test]
fn of_a_whole_life() {
    let enough = cuts::enough_states();
    let explorer = RefCell::new(Explorer::new(0));
    let disk = (1_usize..3).prop_flat_map(|depth| Disk::partial(depth, 8192));
    support::until((disk, lives(), any::<u64>()), |(disk, life, seed)| {
        let mut explorer = explorer.borrow_mut();
        explorer.begin(seed);
        let (files, disk) = disk.build();
        let mut guest = Guest::new(&mut explorer, files, &disk, 1 << 20);
        let mut whole = Life {
            leaf: images::name(0),
            snapshots: 0,
        };
        for (steps, change) in life {
            guest.steps(&steps);
            whole.change(&mut guest, change);
        }
        explorer.distinct() < enough
    });
    explorer.borrow().report("a whole life");
}
