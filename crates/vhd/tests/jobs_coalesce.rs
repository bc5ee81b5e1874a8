//! Merging a child into its parent: the parent reads as the child did, and the child never reads otherwise.

mod support;

use proptest::prelude::*;
use support::Host;
use support::images::{self, Parent, Spec, uuid};
use vhd::jobs::{CoalesceSpec, MapSpec};
use vhd::{Driver, JobSpec, Outcome};

const SECTORS: u64 = 300;
const SIZE: u64 = SECTORS * 512;

/// An image of a chain with the sectors that `bits` name, one word for each block.
fn image(index: usize, bits: &[u64], has_parent: bool, disk: &mut [u8]) -> Vec<u8> {
    let blocks: Vec<(u32, u64)> = (0..)
        .zip(bits.iter().copied())
        .filter(|(_, bits)| bits % 4 != 0)
        .collect();
    let parent = has_parent.then(|| Parent {
        uuid: uuid(index + 1),
        locator: (*b"W2ku", images::name(index + 1)),
    });
    let fill = match index {
        0 => |sector: u64| 0x40 + sector as u8 % 16,
        1 => |sector: u64| 0x80 + sector as u8 % 16,
        _ => |sector: u64| 0xc0 + sector as u8 % 16,
    };
    let spec = Spec {
        uuid: uuid(index),
        size: SIZE,
        block_size: 8192,
        parent,
        blocks: &blocks,
        fill,
    };
    images::build(&spec, disk)
}

fn bits() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(any::<u64>(), 19)
}

fn read(files: Vec<Vec<u8>>, driver: Driver) -> Vec<u8> {
    let mut host = Host::new(files, 64 << 10);
    host.open(driver, true).expect("the image opens");
    host.read_disk(SECTORS)
}

fn coalesce(host: &mut Host) -> u64 {
    let path = images::name(0);
    match host.run_job(JobSpec::Coalesce(CoalesceSpec { path })) {
        Ok(Outcome::Coalesced(coalesced)) => coalesced.sectors,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(support::cases(64))]

    #[test]
    fn the_parent_reads_as_the_child(child in bits(), parent in bits(), root in bits()) {
        let mut disk = vec![0; SIZE as usize];
        let root = image(2, &root, false, &mut disk);
        let parent = image(1, &parent, true, &mut disk);
        let child = image(0, &child, true, &mut disk);
        let mut host = Host::new(vec![child, parent, root.clone()], 64 << 10);
        let copied = coalesce(&mut host);
        prop_assert!(copied <= SECTORS);
        prop_assert!(read(host.files.clone(), Driver::Vhd) == disk);
        prop_assert!(host.files[2] == root);
        // The parent and the root are a chain of their own.
        let mut parents = Host::new(host.files[1..].to_vec(), 64 << 10);
        parents.names = vec![images::name(0), images::name(2)];
        parents.open(Driver::Vhd, true).expect("the parent opens");
        prop_assert!(parents.read_disk(SECTORS) == disk);
    }

    #[test]
    fn a_map_names_the_owner_of_each_sector(child in bits(), parent in bits(), from in 0..SECTORS) {
        let mut disk = vec![0; SIZE as usize];
        let files = vec![image(1, &parent, false, &mut disk)];
        let files = [vec![image(0, &child, true, &mut disk)], files].concat();
        let mut host = Host::new(files, 0);
        let spec = MapSpec { path: images::name(0), driver: Driver::Vhd, sector: from, sectors: u64::MAX };
        let map = match host.run_job(JobSpec::Map(spec)) {
            Ok(Outcome::Map(map)) => map,
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(map.end, SECTORS);
        let mut next = from;
        for extent in map.extents {
            prop_assert_eq!(extent.sector, next);
            next += extent.sectors;
            for index in 0..extent.sectors {
                let expected = disk[(extent.sector + index) as usize * 512];
                let found = match (extent.level, extent.offset) {
                    (Some(level), Some(offset)) => host.files[level as usize][(offset + index * 512) as usize],
                    _ => 0,
                };
                prop_assert_eq!(found, expected);
            }
        }
        prop_assert_eq!(next, SECTORS);
    }
}

#[test]
fn into_a_raw_parent() {
    let mut disk = vec![7; SIZE as usize];
    let raw = disk.clone();
    let blocks: Vec<(u32, u64)> = vec![(0, 0xff0f), (3, 1)];
    let spec = Spec {
        uuid: uuid(0),
        size: SIZE,
        block_size: 8192,
        parent: Some(Parent {
            uuid: vhd::format::uuid::Uuid::NIL,
            locator: (*b"W2ku", images::name(1)),
        }),
        blocks: &blocks,
        fill: |sector| sector as u8,
    };
    let child = images::build(&spec, &mut disk);
    let mut host = Host::new(vec![child, raw], 64 << 10);
    assert_eq!(coalesce(&mut host), 13);
    assert!(host.files[1] == disk);
}
