//! Merging a child into its parent: the parent reads as the child did, and the child never reads otherwise.

mod support;

use proptest::prelude::*;
use support::Host;
use support::chains::{Chain, Level, Root, chains};
use support::disks::{Disk, SECTORS};
use support::images::{self, Parent, Spec, uuid};
use vhd::format::uuid::Uuid;
use vhd::jobs::{Child, ChildrenSpec, CoalesceSpec, Coalesced, MapSpec, OutputSpec, RecordSpec};
use vhd::record::OpKind;
use vhd::{Driver, JobSpec, Outcome};

fn spec() -> CoalesceSpec {
    CoalesceSpec {
        path: images::name(0),
        into: None,
        output: None,
        sparse: false,
        dry_run: false,
        record: None,
    }
}

fn coalesce(host: &mut Host, spec: CoalesceSpec) -> vhd::error::Result<Coalesced> {
    host.run_job(JobSpec::Coalesce(spec))
        .map(|outcome| match outcome {
            Outcome::Coalesced(coalesced) => coalesced,
            other => panic!("{other:?}"),
        })
}

fn into(level: usize) -> CoalesceSpec {
    CoalesceSpec {
        into: Some(images::name(level)),
        ..spec()
    }
}

proptest! {
    #![proptest_config(support::cases(256))]

    #[test]
    fn the_ancestor_reads_as_the_child(
        chain in chains(2..5, SECTORS), level in 1_usize..4, sparse: bool, named: bool,
    ) {
        let level = level.min(chain.levels.len() - 1);
        let (files, contents) = chain.build();
        let mut host = Host::new(files.clone(), 64 << 10);
        let spec = CoalesceSpec { sparse, ..if level > 1 || named { into(level) } else { spec() } };
        let estimate = coalesce(&mut host, CoalesceSpec { dry_run: true, ..spec.clone() });
        prop_assert!(host.files == files);
        let outcome = coalesce(&mut host, spec);
        prop_assert_eq!(estimate.is_ok(), outcome.is_ok());
        prop_assert!(chain.read(&host.files, 0).expect("the child opens") == contents[0]);
        let target = chain.read(&host.files, level).expect("the target opens");
        let (child, before) = (&contents[0], &contents[level]);
        match outcome {
            Ok(coalesced) => {
                prop_assert_eq!(&coalesced.target, &images::name(level));
                prop_assert!(target[..child.len()] == child[..]);
                prop_assert!(target.get(child.len()..) == before.get(child.len()..).or(Some(&[])));
                let estimate = estimate.expect("it was estimated").estimate;
                prop_assert_eq!(estimate.bytes, coalesced.estimate.bytes);
                let sectors = (estimate.bytes + estimate.zero_bytes) / 512;
                prop_assert!(coalesced.sectors <= sectors);
                if !sparse && estimate.zero_bytes == 0 {
                    prop_assert_eq!(coalesced.sectors, sectors);
                }
            }
            Err(error) => {
                prop_assert!(before.len() < child.len() && !chain.grows(level), "{}", error);
                prop_assert!(host.files == files);
            }
        }
        for (index, file) in files.iter().enumerate().filter(|(index, _)| *index != level) {
            prop_assert!(host.files[index] == *file, "file {} is as it was", index);
        }
    }

    #[test]
    fn a_new_image_takes_in_a_chain(chain in chains(2..5, SECTORS), level in 1_usize..5, sparse: bool, raw: bool) {
        let level = level.min(chain.levels.len());
        let (files, contents) = chain.build();
        let mut host = Host::new(files.clone(), 64 << 10);
        let path = "/disks/new.vhd".to_owned();
        let sectors = chain.levels[0].sectors;
        let into = (level < chain.levels.len()).then(|| images::name(level));
        let driver = if raw && into.is_none() { Driver::Aio } else { Driver::Vhd };
        host.names.push(path.clone());
        host.files.push(match driver {
            Driver::Aio => vec![0; sectors as usize * 512],
            Driver::Vhd => new_image(&chain, level),
        });
        let spec = CoalesceSpec { into, sparse, output: Some(OutputSpec { path: path.clone(), driver }), ..spec() };
        let coalesced = coalesce(&mut host, spec).expect("the chain is copied");
        prop_assert_eq!(coalesced.target, path);
        prop_assert!(host.files[..files.len()] == files);
        let below: Vec<usize> = [files.len()].into_iter().chain(level..files.len()).collect();
        let mut reader = Host::new(below.iter().map(|index| host.files[*index].clone()).collect(), 64 << 10);
        reader.names = below.iter().map(|index| host.names[*index].clone()).collect();
        reader.open(driver, true).expect("the new image opens");
        prop_assert!(reader.read_disk(sectors) == contents[0]);
    }

    #[test]
    fn a_map_names_the_owner_of_each_sector(disk in Disk::partial(2, 8192), from in 0..SECTORS) {
        let (files, disk) = disk.build();
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

/// An empty image for the upper levels of a chain.
fn new_image(chain: &Chain, level: usize) -> Vec<u8> {
    let levels = [chain.levels[..1].to_vec(), chain.levels[level..].to_vec()].concat();
    let parent = levels.get(1).map(|_| Parent {
        uuid: match chain.driver(level) {
            Driver::Aio => Uuid::NIL,
            Driver::Vhd => uuid(level),
        },
        locator: (*b"W2ku", images::name(level)),
    });
    let size = chain.levels[0].sectors * 512;
    let spec = Spec {
        uuid: uuid(77),
        size,
        block_size: 4096,
        parent,
        blocks: &[],
        fill: |_| 0,
    };
    images::build(&spec, &mut [])
}

#[test]
fn the_target_must_be_an_ancestor_that_can_take_it() {
    let bits = vec![u64::MAX; 40];
    let level = |sectors| Level {
        bits: bits.clone(),
        sectors,
        room: false,
    };
    let chain = Chain {
        levels: vec![level(SECTORS), level(SECTORS), level(SECTORS - 1)],
        root: Root::Fixed,
    };
    let (mut files, _) = chain.build();
    files.push(vec![0; 512]);
    let mut host = Host::new(files.clone(), 0);
    for (spec, errno, words) in [
        (into(0), 22, "no ancestor"),
        (
            into(3),
            22,
            "no ancestor: found /disks/base/parent3.vhd, expected one of: /disks/base/parent1.vhd",
        ),
        (into(9), 2, "/disks/base/parent9.vhd"),
        (into(2), 22, "smaller than its child"),
        (
            CoalesceSpec {
                path: images::name(2),
                ..spec()
            },
            22,
            "no parent",
        ),
    ] {
        let error = coalesce(&mut host, spec).expect_err("it is refused");
        assert_eq!(error.errno, errno, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(
            host.counts[OpKind::Write as usize] + host.counts[OpKind::Truncate as usize],
            0
        );
    }
}

#[test]
fn too_little_space_is_noticed_before_it_begins() {
    let full = Level {
        bits: vec![u64::MAX; 40],
        sectors: SECTORS,
        room: false,
    };
    let empty = Level {
        bits: vec![0; 40],
        sectors: SECTORS,
        room: false,
    };
    let root = Root::Dynamic;
    let levels = vec![full.clone(), empty, full];
    let chain = Chain { levels, root };
    let (files, _) = chain.build();
    for spec in [spec(), into(2)] {
        let mut host = Host::new(files.clone(), 0);
        let dry_run = CoalesceSpec {
            dry_run: true,
            ..spec.clone()
        };
        let estimate = coalesce(&mut host, dry_run)
            .expect("it is estimated")
            .estimate;
        host.free_space = estimate.space - 1;
        let error = coalesce(&mut host, spec.clone()).expect_err("there is no space");
        assert_eq!(error.errno, 28, "{error}");
        assert!(host.files == files);
        host.free_space = estimate.space;
        coalesce(&mut host, spec).expect("it is merged");
    }
}

#[test]
fn children_are_told_by_what_they_say_of_their_parent() {
    let level = |bits| Level {
        bits: vec![bits; 40],
        sectors: SECTORS,
        room: false,
    };
    for root in [Root::Dynamic, Root::Raw] {
        let levels = vec![level(3), level(3), level(3)];
        let chain = Chain { levels, root };
        let (mut files, _) = chain.build();
        // Siblings of the leaf and of its parent, the second without its footer at the end; and what is no VHD.
        let mut sibling = files[1].clone();
        sibling.truncate(sibling.len() - 512);
        files.extend([files[0].clone(), sibling, vec![7; 4096], Vec::new()]);
        let mut host = Host::new(files.clone(), 0);
        let spec = ChildrenSpec {
            path: images::name(0),
            files: (3..9).map(images::name).collect(),
        };
        let outcome = host.run_job(JobSpec::Children(spec));
        let Ok(Outcome::Children(found)) = outcome else {
            panic!("{outcome:?}");
        };
        let paths: Vec<String> = found.chain.into_iter().map(|member| member.path).collect();
        assert_eq!(paths, (0..3).map(images::name).collect::<Vec<_>>());
        let child = |index, parent| Child {
            path: images::name(index),
            parent,
        };
        assert_eq!(found.children, [child(3, 1), child(4, 2)]);
        assert!(host.files == files);
    }
}

#[test]
fn sparse_copies_leave_zeros_out() {
    let bits = vec![u64::MAX; 40];
    let levels = vec![
        Level {
            bits,
            sectors: SECTORS,
            room: false,
        },
        Level {
            bits: vec![0; 40],
            sectors: SECTORS,
            room: false,
        },
    ];
    let chain = Chain {
        levels,
        root: Root::Dynamic,
    };
    let (files, contents) = chain.build();
    let zeros = contents[0]
        .chunks(512)
        .filter(|sector| sector.iter().all(|byte| *byte == 0))
        .count() as u64;
    assert!(zeros >= 100);
    let mut host = Host::new(files, 0);
    let coalesced = coalesce(
        &mut host,
        CoalesceSpec {
            sparse: true,
            ..spec()
        },
    )
    .expect("it is merged");
    assert_eq!(coalesced.zeroed, 0);
    // But for those few that are alone among data.
    assert!((SECTORS - zeros..SECTORS - zeros / 2).contains(&coalesced.sectors));
    assert!(chain.read(&host.files, 1).expect("the parent opens") == contents[0]);
}

#[test]
fn a_smaller_target_grows_whatever_fails_on_the_way() {
    let level = |bits, sectors, room| Level {
        bits: vec![bits; 40],
        sectors,
        room,
    };
    for room in [false, true] {
        // What is below the target is larger, and must not show behind the target's old end.
        let levels = vec![
            level(0x0ff1, SECTORS, false),
            level(0xf00f, SECTORS - 100, room),
            level(u64::MAX, SECTORS, false),
        ];
        let root = Root::Dynamic;
        let chain = Chain { levels, root };
        let (files, contents) = chain.build();
        for failing in 0.. {
            let mut host = Host::new(files.clone(), 64 << 10);
            host.fail_operation(failing, -5);
            let outcome = coalesce(&mut host, spec());
            host.fault = None;
            host.names.truncate(files.len());
            host.files.truncate(files.len());
            assert!(chain.read(&host.files, 0).expect("the child opens") == contents[0]);
            chain.read(&host.files, 1).expect("the target opens");
            if let Err(error) = &outcome {
                assert_eq!(error.errno, 5, "{error}");
                let mut next = Host::new(host.files.clone(), 64 << 10);
                coalesce(&mut next, spec()).expect("it is merged");
                host.files = next.files;
            }
            assert!(chain.read(&host.files, 0).expect("the child opens") == contents[0]);
            assert!(chain.read(&host.files, 1).expect("the target opens") == contents[0]);
            assert!(host.files[2] == files[2]);
            if outcome.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn a_cancelled_merge_goes_on_where_it_was() {
    let bits = vec![u64::MAX; 400];
    let level = |sectors| Level {
        bits: bits.clone(),
        sectors,
        room: false,
    };
    let chain = Chain {
        levels: vec![level(4000), level(4000)],
        root: Root::Dynamic,
    };
    let (files, contents) = chain.build();
    let record = RecordSpec {
        path: "/disks/record".to_owned(),
        resume: true,
        now: 1_800_000_000,
        interval: 1 << 20,
    };
    let spec = CoalesceSpec {
        record: Some(record),
        ..spec()
    };
    let mut host = Host::new(files, 0);
    host.engine.start(JobSpec::Coalesce(spec.clone()));
    while host.counts[OpKind::CopyRange as usize] < 5 {
        host.run();
        if host.in_flight.is_empty() {
            let want = host.engine.want().expect("it wants something");
            let answer = host.fulfil(want);
            host.engine.provide(answer);
        } else {
            host.complete(0);
        }
    }
    host.engine.cancel();
    let error = host.job().expect_err("it stops");
    assert_eq!(error.errno, 125);
    assert!(chain.read(&host.files, 0).expect("the child opens") == contents[0]);
    let coalesced = coalesce(&mut host, spec).expect("it goes on");
    assert!(coalesced.resumed_at >= 5 * 16, "{coalesced:?}");
    assert_eq!(coalesced.resumed_at + coalesced.sectors, 4000);
    assert!(!host.names.contains(&"/disks/record".to_owned()));
    assert!(chain.read(&host.files, 1).expect("the parent opens") == contents[0]);
}
