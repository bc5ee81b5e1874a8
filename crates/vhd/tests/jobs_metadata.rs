//! Changing flags, parents, sizes on the disk: what readers see is the state before or after, whatever happens meanwhile.

mod support;

use proptest::prelude::*;
use support::cuts::Explorer;
use support::images::{self, Parent, Spec, uuid};
use support::{Host, jobs};
use vhd::format::footer::Footer;
use vhd::jobs::{ModifySpec, NewParent, SetSpec};
use vhd::record::OpKind;
use vhd::{Driver, JobSpec};

const SECTORS: u64 = 100;
const SIZE: u64 = SECTORS * 512;
const BLOCKS: [(u32, u64); 3] = [(2, 0xff0f), (0, 0x0ff0), (4, 0xffff)];

/// An image whose present sectors hold the number of the image and more.
fn image(index: usize, parent: Option<(usize, &str)>, disk: &mut [u8]) -> Vec<u8> {
    let fill = match index {
        0 => |sector: u64| 0x40 + sector as u8 % 16,
        1 => |sector: u64| 0x80 + sector as u8 % 16,
        _ => |sector: u64| 0xc0 + sector as u8 % 16,
    };
    let blocks: &[(u32, u64)] = if index == 0 {
        &BLOCKS
    } else {
        &[(0, u64::MAX), (1, 0x3333)]
    };
    let spec = Spec {
        uuid: uuid(index),
        size: SIZE,
        block_size: 8192,
        parent: parent.map(|(index, path)| Parent {
            uuid: uuid(index),
            locator: (*b"W2ru", path.to_owned()),
        }),
        blocks,
        fill,
    };
    images::build(&spec, disk)
}

/// A child, its parent, and another one at `path`, with what the disk holds with either.
fn family(path: &str) -> (Host, [Vec<u8>; 2]) {
    let mut disks = [1, 2].map(|parent| {
        let mut disk = vec![0; SIZE as usize];
        image(parent, None, &mut disk);
        disk
    });
    let mut unused = vec![0; SIZE as usize];
    let files = vec![
        image(0, Some((1, "./base/parent1.vhd")), &mut disks[0]),
        image(1, None, &mut unused),
        image(2, None, &mut unused),
    ];
    image(0, Some((1, "")), &mut disks[1]);
    let mut host = Host::new(files, 64 << 10);
    host.names[2] = path.to_owned();
    (host, disks)
}

fn read(host: &mut Host) -> Vec<u8> {
    let info = host.open(Driver::Vhd, true).expect("the image opens");
    assert!(info.depth <= 2);
    let disk = host.read_disk(SECTORS);
    host.close().expect("the image closes");
    disk
}

fn reparent(path: &str) -> JobSpec {
    JobSpec::Modify(ModifySpec {
        path: images::name(0),
        parent: Some(NewParent {
            path: path.to_owned(),
            driver: Driver::Vhd,
        }),
        physical_size: None,
        drop_data: false,
    })
}

fn modify(physical_size: Option<u64>, drop_data: bool) -> JobSpec {
    JobSpec::Modify(ModifySpec {
        path: images::name(0),
        parent: None,
        physical_size,
        drop_data,
    })
}

fn set(hidden: Option<u8>, marker: Option<u8>) -> JobSpec {
    JobSpec::Set(SetSpec {
        path: images::name(0),
        hidden,
        marker,
    })
}

/// The footers of the first file.
fn footers(host: &Host) -> [Footer; 2] {
    let file = &host.files[0];
    [&file[..512], &file[file.len() - 512..]].map(|bytes| Footer::decode(bytes).expect("a footer"))
}

/// Fails each operation of a job in turn. Calls `check` for what each failure leaves.
fn with_faults(make: impl Fn() -> Host, spec: &JobSpec, mut check: impl FnMut(&mut Host)) {
    for failing in 0.. {
        let mut host = make();
        host.fail_operation(failing, -5);
        let outcome = host.run_job(spec.clone());
        host.fault = None;
        check(&mut host);
        match outcome {
            Ok(_) => break,
            Err(error) => assert_eq!(error.errno, 5, "{error}"),
        }
    }
}

const NEAR: &str = "/disks/other/parent2.vhd";

fn far() -> String {
    format!("/disks/{}/parent2.vhd", "x".repeat(600))
}

#[test]
fn a_new_parent_is_there_at_one_instant() {
    for path in [NEAR.to_owned(), far()] {
        let spec = reparent(&path);
        let mut explorer = Explorer::new(5);
        for seed in 0..4 {
            explorer.begin(seed);
            let (mut host, disks) = family(&path);
            let outcome = jobs::run(
                &mut explorer,
                &mut host,
                &mut |host| host.engine.start(spec.clone()),
                &mut |left, state| {
                    let disk = read(&mut left.host(64 << 10));
                    match state {
                        jobs::State::Running => assert!(disks.contains(&disk)),
                        jobs::State::Over { .. } => assert!(disk == disks[1]),
                    }
                    // The same job finishes what another one began.
                    let mut next = left.host(64 << 10);
                    next.run_job(spec.clone()).expect("it is done again");
                    assert!(read(&mut next) == disks[1]);
                    assert_eq!(footers(&next)[0], footers(&next)[1]);
                    assert_eq!(footers(&next)[0].data_offset, 512);
                },
            );
            outcome.expect("the parent changes");
            let info = host.open(Driver::Vhd, false).expect("the image opens");
            assert_eq!(info.warnings, Vec::<String>::new());
        }
        assert!(explorer.distinct() > 20, "{}", explorer.distinct());
    }
}

#[test]
fn a_new_parent_costs_no_space() {
    let (mut host, _) = family(NEAR);
    host.run_job(reparent(NEAR)).expect("the parent changes");
    // A name more than before in three locators instead of one, behind the blocks since nothing is between.
    let grown = host.files[0].len();
    for path in [images::name(1), NEAR.to_owned()] {
        host.run_job(reparent(&path)).expect("the parent changes");
        assert_eq!(host.files[0].len(), grown);
    }
}

#[test]
fn failures_leave_the_old_parent_or_the_new_one() {
    let (_, disks) = family(NEAR);
    with_faults(
        || family(NEAR).0,
        &reparent(NEAR),
        |host| {
            let disk = read(host);
            assert!(disks.contains(&disk));
            host.run_job(reparent(NEAR)).expect("the parent changes");
            assert!(read(host) == disks[1]);
        },
    );
}

#[test]
fn parents_that_make_no_sense_are_refused() {
    let (host, _) = family(NEAR);
    let before = host.files.clone();
    let mut of_parent = host;
    of_parent.names.swap(0, 1);
    let dynamic = of_parent
        .run_job(reparent(NEAR))
        .expect_err("a dynamic image has no parent");
    assert!(
        dynamic.to_string().contains("only a differencing image"),
        "{dynamic}"
    );
    of_parent.names.swap(0, 1);
    let itself = of_parent
        .run_job(reparent(&images::name(0)))
        .expect_err("an image is not its own parent");
    assert!(itself.to_string().contains("ancestor"), "{itself}");
    let missing = of_parent
        .run_job(reparent("/nowhere"))
        .expect_err("no such file");
    assert_eq!(missing.errno, 2);
    assert!(of_parent.files == before);
}

#[test]
fn a_raw_parent_has_no_uuid() {
    let (mut host, _) = family(NEAR);
    let raw: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
    host.files[2].clone_from(&raw);
    let mut expected = raw;
    image(0, Some((1, "")), &mut expected);
    let JobSpec::Modify(mut spec) = reparent(NEAR) else {
        unreachable!()
    };
    spec.parent = Some(NewParent {
        path: NEAR.to_owned(),
        driver: Driver::Aio,
    });
    host.run_job(JobSpec::Modify(spec))
        .expect("the parent changes");
    assert!(read(&mut host) == expected);
}

#[test]
fn flags_are_set_in_both_footers_at_one_instant() {
    let mut explorer = Explorer::new(1);
    let (mut host, disks) = family(NEAR);
    let outcome = jobs::run(
        &mut explorer,
        &mut host,
        &mut |host| host.engine.start(set(Some(1), None)),
        &mut |left, _| {
            let mut next = left.host(64 << 10);
            assert!(read(&mut next) == disks[0]);
            next.run_job(set(Some(1), None)).expect("it is done again");
            assert!(footers(&next).iter().all(Footer::is_hidden));
        },
    );
    outcome.expect("the flag is set");
    assert!(footers(&host).iter().all(Footer::is_hidden));
    host.run_job(set(Some(0), None))
        .expect("the flag is cleared");
    assert!(host.files == family(NEAR).0.files);
    let refused = host
        .run_job(set(None, Some(3)))
        .expect_err("there is no batmap");
    assert_eq!(refused.errno, 95);
    with_faults(
        || family(NEAR).0,
        &set(Some(1), None),
        |host| {
            assert!(read(host) == disks[0]);
        },
    );
}

#[test]
fn a_footer_that_is_missing_is_put_behind_the_blocks() {
    let (mut host, disks) = family(NEAR);
    let good = host.files.clone();
    let length = host.files[0].len();
    host.files[0].truncate(length - 512);
    host.files[0].extend([0x55; 3000]);
    host.run_job(set(Some(0), None)).expect("the flag is set");
    assert!(host.files == good);
    assert!(read(&mut host) == disks[0]);
}

#[test]
fn the_footer_moves_to_the_size_that_is_asked_for() {
    let (mut host, disks) = family(NEAR);
    let length = host.files[0].len() as u64;
    for size in [length + 4096, length + 512, length] {
        let mut explorer = Explorer::new(size);
        let outcome = jobs::run(
            &mut explorer,
            &mut host,
            &mut |host| host.engine.start(modify(Some(size), false)),
            &mut |left, _| assert!(read(&mut left.host(64 << 10)) == disks[0]),
        );
        outcome.expect("the footer moves");
        assert_eq!(host.files[0].len() as u64, size);
        assert_eq!(footers(&host)[0], footers(&host)[1]);
    }
    for size in [length - 512, length + 1] {
        let refused = host
            .run_job(modify(Some(size), false))
            .expect_err("it does not fit");
        assert_eq!(refused.errno, 22);
    }
}

proptest! {
    #![proptest_config(support::cases(16))]

    #[test]
    fn data_are_dropped_and_their_space_with_them(seed: u64) {
        let (mut host, disks) = family(NEAR);
        let mut parent = vec![0; SIZE as usize];
        image(1, None, &mut parent);
        let outcome = jobs::run(
            &mut Explorer::new(seed),
            &mut host,
            &mut |host| host.engine.start(modify(None, true)),
            &mut |left, _| {
                let mut next = left.host(64 << 10);
                let disk = read(&mut next);
                for (sector, bytes) in disk.chunks(512).enumerate() {
                    let range = sector * 512..(sector + 1) * 512;
                    assert!(bytes == &disks[0][range.clone()] || bytes == &parent[range]);
                }
                next.run_job(modify(None, true)).expect("it is done again");
                assert!(read(&mut next) == parent);
            },
        );
        outcome.expect("the data are dropped");
        prop_assert!(read(&mut host) == parent);
        // Two footers, header, BAT and locator.
        prop_assert_eq!(host.files[0].len(), 512 + 1024 + 512 + 512 + 512);
        prop_assert!(host.counts[OpKind::Truncate as usize] > 0);
    }
}
