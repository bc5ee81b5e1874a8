//! Disks that become larger or smaller, and repaired ones: what was there stays, what is new is zeros, whatever happens.

mod support;

use std::collections::BTreeSet;

use proptest::prelude::*;
use support::batmap::{Parts, full_blocks, with_batmap};
use support::cuts::Explorer;
use support::images::{self, Parent, Spec, uuid};
use support::power::Left;
use support::{Host, jobs};
use vhd::format::footer::{DiskType, Footer};
use vhd::format::uuid::Uuid;
use vhd::jobs::{CheckSpec, Depth, FillSpec, Ignore, ModifySpec, RepairSpec, ResizeSpec};
use vhd::record::{OpKind, RequestKind};
use vhd::{Driver, Job, JobSpec, Outcome};

const BLOCK: u32 = 8192;
const PER_BLOCK: u64 = 16;
/// Not a whole number of blocks.
const SECTORS: u64 = 6 * PER_BLOCK + 4;
/// More entries than the BAT's sector has.
const MANY: u64 = 140 * PER_BLOCK + 8;

fn resize(sectors: u64) -> JobSpec {
    JobSpec::Resize(ResizeSpec {
        path: images::name(0),
        size: sectors * 512,
        fast: false,
    })
}

fn repair() -> JobSpec {
    JobSpec::Repair(RepairSpec {
        path: images::name(0),
        use_backup: false,
        uuid: None,
    })
}

/// What to resize.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Disk {
    Root,
    /// With a batmap.
    Batmap,
    /// Whose parent is larger, and not zeros anywhere.
    Child,
    Fixed,
}

const DISKS: [Disk; 4] = [Disk::Root, Disk::Batmap, Disk::Child, Disk::Fixed];

/// The files of a disk, and what it holds.
fn build(kind: Disk) -> (Vec<Vec<u8>>, Vec<u8>) {
    build_ending(kind, u64::MAX)
}

/// The same, with these bits in its last block.
fn build_ending(kind: Disk, bits: u64) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut disk = vec![0; SECTORS as usize * 512];
    if kind == Disk::Fixed {
        for (at, byte) in disk.iter_mut().enumerate() {
            *byte = 1 + (at / 512) as u8;
        }
        let footer = Footer::new(DiskType::Fixed, disk.len() as u64, uuid(0), 7);
        return (
            vec![[disk.clone(), footer.encode().to_vec()].concat()],
            disk,
        );
    }
    let parent = vec![0x99; 1000 * 512];
    if kind == Disk::Child {
        disk.fill(0x99);
    }
    let spec = Spec {
        uuid: uuid(0),
        size: disk.len() as u64,
        block_size: BLOCK,
        parent: (kind == Disk::Child).then(|| Parent {
            uuid: Uuid::NIL,
            locator: (*b"W2ku", images::name(1)),
        }),
        blocks: &[(6, bits), (0, u64::MAX), (3, 0x0ff0), (4, 0x7777)],
        fill: |sector| 1 + sector as u8,
    };
    let mut files = vec![images::build(&spec, &mut disk)];
    match kind {
        Disk::Batmap => files[0] = with_batmap(&files[0], &[0, 6]),
        Disk::Child => files.push(parent),
        _ => {}
    }
    (files, disk)
}

fn host(kind: Disk) -> Host {
    Host::new(build(kind).0, 64 << 10)
}

/// What a disk holds that had `disk` and was made `sectors` large.
fn resized(disk: &[u8], sectors: u64) -> Vec<u8> {
    let mut disk = disk.to_vec();
    disk.resize(sectors as usize * 512, 0);
    disk
}

fn read(host: &mut Host) -> Vec<u8> {
    let info = host.open(Driver::Vhd, true).expect("the image opens");
    let disk = host.read_disk(info.sectors);
    host.close().expect("the image closes");
    disk
}

/// Checks what a cut left while a disk that had `disk` was made `sectors` large.
fn check(left: &Left, state: jobs::State, disk: &[u8], sectors: u64) {
    let mut next = left.host(64 << 10);
    let expected = resized(disk, sectors);
    if next.open(Driver::Vhd, true).is_err() {
        // Of a fixed disk only the footer can be away.
        assert_eq!(state, jobs::State::Running);
        next.run_job(repair()).expect("it is repaired");
    } else {
        next.close().expect("the image closes");
    }
    let found = read(&mut next);
    let old = found.len() != expected.len();
    assert!(found == if old { disk } else { &expected });
    assert!(!old || state == jobs::State::Running);
    next.run_job(resize(sectors)).expect("it is resized again");
    assert!(read(&mut next) == expected);
    // Nothing comes back when it grows again.
    let more = sectors + 3 * PER_BLOCK;
    next.run_job(resize(more)).expect("it grows");
    assert!(read(&mut next) == resized(&expected, more));
}

fn explore(kind: Disk, sectors: u64) -> usize {
    let (files, disk) = build(kind);
    let mut explorer = Explorer::new(1);
    for seed in 0..2 {
        explorer.begin(seed);
        let mut host = Host::new(files.clone(), 64 << 10);
        let outcome = jobs::run(
            &mut explorer,
            &mut host,
            &mut |host| host.engine.start(resize(sectors)),
            &mut |left, state| check(left, state, &disk, sectors),
        );
        outcome.unwrap_or_else(|error| panic!("{kind:?} {sectors}: {error}"));
        let info = host.open(Driver::Vhd, false).expect("the image opens");
        assert_eq!(info.warnings, Vec::<String>::new());
        assert_eq!(host.files[1..], files[1..]);
        host.close().expect("the image closes");
        let file = &host.files[0];
        let footer = Footer::decode(&file[file.len() - 512..]).expect("a footer");
        assert_eq!(footer.current_size, sectors * 512);
        if kind == Disk::Fixed {
            assert_eq!(file.len() as u64, (sectors + 1) * 512);
        } else {
            assert_eq!(footer.data_offset, 512);
            assert_eq!(Footer::decode(file), Ok(footer));
        }
    }
    explorer.distinct()
}

#[test]
fn disks_grow_as_far_as_their_bat_has_room() {
    for kind in DISKS {
        assert!(explore(kind, 7 * PER_BLOCK) > 2);
    }
}

#[test]
fn disks_grow_further_than_their_bat_has_room() {
    for kind in DISKS {
        assert!(explore(kind, 9 * PER_BLOCK + 1) > 2);
        assert!(explore(kind, MANY) > 2);
    }
}

#[test]
fn disks_shrink() {
    for kind in DISKS {
        for sectors in [SECTORS - 1, 3 * PER_BLOCK + 6, 1, SECTORS] {
            explore(kind, sectors);
        }
    }
}

#[test]
fn a_larger_bat_is_where_other_programs_look_for_it() {
    let mut host = host(Disk::Batmap);
    host.run_job(resize(MANY)).expect("it grows");
    let parts = Parts::of(&host.files[0]);
    assert_eq!(parts.header.table_offset, 1536);
    assert_eq!(parts.header.max_table_entries, 141);
    assert_eq!(parts.batmap_at(), 1536 + 2 * 512);
    assert_eq!(full_blocks(&host.files[0]), Some(vec![0, 6]));
    let child = {
        let mut host = self::host(Disk::Child);
        host.run_job(resize(MANY)).expect("it grows");
        Parts::of(&host.files[0])
    };
    let locator = child.header.locators[0];
    assert_eq!(locator.data_offset, 1536 + 2 * 512);
}

#[test]
fn space_is_given_back() {
    for kind in [Disk::Root, Disk::Batmap, Disk::Child] {
        let mut host = host(kind);
        let before = host.files[0].len();
        host.run_job(resize(3 * PER_BLOCK)).expect("it shrinks");
        // Blocks 6, 3 and 4 are gone, and the last of them were at the end.
        assert!(host.files[0].len() <= before - 2 * 17 * 512);
    }
}

#[test]
fn failures_leave_the_old_size_or_the_new_one() {
    for kind in DISKS {
        let (files, disk) = build(kind);
        for sectors in [7 * PER_BLOCK, MANY, 2 * PER_BLOCK + 3] {
            for failing in 0.. {
                let mut host = Host::new(files.clone(), 64 << 10);
                host.fail_operation(failing, -5);
                let outcome = host.run_job(resize(sectors));
                host.fault = None;
                let names = host.names.clone();
                let left = Left {
                    files: host.files,
                    names,
                };
                check(&left, jobs::State::Running, &disk, sectors);
                match outcome {
                    Ok(_) => break,
                    Err(error) => assert_eq!(error.errno, 5, "{error}"),
                }
            }
        }
    }
}

/// Lets operations on the first file fail when they need more sectors than it has and `budget`: the file system is full.
fn fill_up(host: &mut Host, budget: usize) {
    let mut taken: BTreeSet<u64> = (0..host.files[0].len() as u64 / 512).collect();
    let limit = taken.len() + budget;
    host.fault = Some(Box::new(move |op| {
        if op.file != 0 {
            return None;
        }
        let sectors = op.offset / 512..(op.offset + op.length).div_ceil(512);
        match op.kind {
            OpKind::Truncate => taken.retain(|sector| *sector < op.offset / 512),
            OpKind::PunchHole => taken.retain(|sector| !sectors.contains(sector)),
            OpKind::Write | OpKind::WriteZeroes | OpKind::CopyRange => {
                for sector in sectors {
                    if !taken.contains(&sector) && taken.len() == limit {
                        return Some(-28);
                    }
                    taken.insert(sector);
                }
            }
            _ => {}
        }
        None
    }));
}

#[test]
fn a_full_file_system_leaves_the_image_as_it_was() {
    let check_spec = || CheckSpec {
        path: images::name(0),
        depth: Depth::Full,
        chain: false,
        stats: false,
        ignore: Ignore::default(),
        now: support::NOW,
    };
    let errors = |host: &mut Host| match host.run_job(JobSpec::Check(check_spec())) {
        Ok(Outcome::Checked(report)) => report.images[0].errors,
        other => panic!("{other:?}"),
    };
    // A BAT of 12 sectors.
    let sectors = 12 * 128 * PER_BLOCK;
    let fill = |bitmaps_only| {
        JobSpec::Fill(FillSpec {
            path: images::name(0),
            bitmaps_only,
            from: 0,
            to: None,
        })
    };
    for kind in [Disk::Root, Disk::Batmap, Disk::Child] {
        let (files, disk) = build(kind);
        for job in [resize(sectors), fill(true), fill(false)] {
            let mut refused = 0;
            for budget in 0.. {
                let mut host = Host::new(files.clone(), 64 << 10);
                fill_up(&mut host, budget);
                let outcome = host.run_job(job.clone());
                host.fault = None;
                if outcome.is_ok() {
                    break;
                }
                assert_eq!(outcome.expect_err("it is full").errno, 28);
                refused += 1;
                assert_eq!(errors(&mut host), 0, "{kind:?} {budget} {job:?}");
                assert!(read(&mut host) == disk);
                let names = host.names.clone();
                let left = Left {
                    files: host.files,
                    names,
                };
                check(&left, jobs::State::Running, &disk, sectors);
            }
            assert!(refused > 1);
        }
    }
}

#[test]
fn sizes_that_can_not_be_are_refused() {
    let mut host = host(Disk::Root);
    let before = host.files.clone();
    for sectors in [0, (vhd::MAX_DYNAMIC_SIZE >> 9) + 1] {
        let refused = host.run_job(resize(sectors)).expect_err("no such size");
        assert_eq!(refused.errno, 22);
    }
    // More blocks than an image can be opened with.
    let refused = host.run_job(resize(((1 << 24) + 1) * PER_BLOCK));
    assert_eq!(refused.expect_err("too many blocks").errno, 22);
    let fast = ResizeSpec {
        path: images::name(0),
        size: 8 * u64::from(BLOCK),
        fast: true,
    };
    let refused = host.run_job(JobSpec::Resize(fast)).expect_err("no room");
    assert_eq!(refused.errno, 22);
    assert!(host.files == before);
}

#[test]
fn a_guest_can_not_make_a_dynamic_image_pass_for_a_fixed_one_that_lost_its_footer() {
    for job in [repair(), resize(7 * PER_BLOCK)] {
        let (mut files, mut disk) = build(Disk::Root);
        let file = &mut files[0];
        // The footer at the end is lost, as while an extent is made; before the zeros is what the guest wrote.
        let end = file.len() - 512;
        let at = end - 512;
        let planted = Footer::new(DiskType::Fixed, at as u64, uuid(9), 7).encode();
        file[at..end].copy_from_slice(&planted);
        file[end..].fill(0);
        file.extend(vec![0; 9 * 512]);
        // The last block of the file is the fourth of the disk, of which the last sector is not there.
        let sector = (4 * PER_BLOCK + 15) as usize * 512;
        disk[sector..sector + 512].fill(0);
        let mut host = Host::new(files.clone(), 64 << 10);
        assert!(read(&mut host) == disk);
        host.run_job(job).expect("it is mended, or larger");
        let found = read(&mut host);
        assert!(found[..disk.len()] == disk);
    }
}

// ---- while a guest uses the disk ----

fn grow(host: &mut Host, sectors: u64) -> vhd::error::Result<()> {
    host.engine.grow(sectors * 512);
    host.job().map(|_| ())
}

#[test]
fn an_open_disk_grows_under_its_guest() {
    for kind in [Disk::Root, Disk::Batmap, Disk::Child] {
        let (files, mut disk) = build(kind);
        let sectors = 7 * PER_BLOCK;
        let mut host = Host::new(files, 64 << 10);
        host.open(Driver::Vhd, false).expect("the image opens");
        host.guest[..512].fill(0xee);
        // In flight all the time.
        host.submit(1, RequestKind::Write, 0, 2 * PER_BLOCK, 1, 0);
        host.submit(2, RequestKind::Write, 0, 5 * PER_BLOCK, 1, 0);
        grow(&mut host, sectors).expect("it grows");
        let beyond = grow(&mut host, sectors + 1).expect_err("there is no more room");
        assert_eq!(beyond.errno, 22);
        let smaller = grow(&mut host, SECTORS).expect_err("it doesn't shrink");
        assert_eq!(smaller.errno, 22);
        host.settle();
        assert_eq!(
            host.finished.drain(..).filter(|it| it.status == 0).count(),
            2
        );
        for sector in [2 * PER_BLOCK, 5 * PER_BLOCK] {
            disk[sector as usize * 512..][..512].fill(0xee);
        }
        assert_eq!(host.request(RequestKind::Write, sectors - 1, 1, 0), 0);
        let mut expected = resized(&disk, sectors);
        let last = expected.len() - 512;
        expected[last..].fill(0xee);
        assert!(host.read_disk(sectors) == expected);
        host.close().expect("the image closes");
        assert!(read(&mut host) == expected);
    }
}

#[test]
fn what_a_grown_disk_gets_behind_its_old_end_is_there_when_it_is_opened_again() {
    for kind in [Disk::Root, Disk::Batmap, Disk::Child] {
        // All that the disk has of its last block, and no bit of what it hasn't.
        let (files, disk) = build_ending(kind, 0xf);
        let mut host = Host::new(files, 64 << 10);
        host.open(Driver::Vhd, false).expect("the image opens");
        assert!(host.read_disk(SECTORS) == disk);
        grow(&mut host, 7 * PER_BLOCK).expect("it grows");
        host.guest[..512].fill(0xee);
        assert_eq!(host.request(RequestKind::Write, SECTORS, 1, 0), 0);
        let mut expected = resized(&disk, 7 * PER_BLOCK);
        expected[SECTORS as usize * 512..][..512].fill(0xee);
        // The batmap goes out of force, so that the bitmaps alone tell.
        assert_eq!(
            host.request(RequestKind::Discard, 0, PER_BLOCK as u32, 0),
            0
        );
        assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
        expected[..PER_BLOCK as usize * 512].fill(0);
        let mut next = Host::new(host.files.clone(), 64 << 10);
        assert!(read(&mut next) == expected, "{kind:?}");
        host.close().expect("the image closes");
        assert!(read(&mut host) == expected, "{kind:?}");
    }
}

#[test]
fn an_open_disk_that_fails_to_grow_has_its_old_size() {
    let (files, disk) = build(Disk::Child);
    for failing in 0.. {
        let mut host = Host::new(files.clone(), 64 << 10);
        host.open(Driver::Vhd, false).expect("the image opens");
        host.fail_operation(failing, -28);
        let outcome = grow(&mut host, 7 * PER_BLOCK);
        host.fault = None;
        if outcome.is_ok() {
            break;
        }
        assert_eq!(host.request(RequestKind::Read, SECTORS, 1, 0), -22);
        assert!(host.read_disk(SECTORS) == disk);
        if failing % 2 == 0 {
            grow(&mut host, 7 * PER_BLOCK).expect("it grows now");
        }
        host.close().ok();
        if host.engine.job() != Job::Over(Ok(vhd::Outcome::Done)) {
            host.close().expect("the image closes");
        }
        let sectors = if failing % 2 == 0 {
            7 * PER_BLOCK
        } else {
            SECTORS
        };
        assert!(read(&mut host) == resized(&disk, sectors));
    }
}

proptest! {
    #![proptest_config(support::cases(12))]

    #[test]
    fn growing_under_a_guest_survives_power_cuts(seed: u64, which in 0_usize..3) {
        let kind = DISKS[which];
        let (files, disk) = build(kind);
        let sectors = 7 * PER_BLOCK;
        let mut host = Host::new(files, 64 << 10);
        host.open(Driver::Vhd, false).expect("the image opens");
        let outcome = jobs::run(
            &mut Explorer::new(seed),
            &mut host,
            &mut |host| host.engine.grow(sectors * 512),
            &mut |left, state| check(left, state, &disk, sectors),
        );
        outcome.expect("it grows");
    }

    #[test]
    fn sizes_follow_each_other(kind in 0_usize..4, sizes in prop::collection::vec(1..600_u64, 1..8)) {
        let (files, mut disk) = build(DISKS[kind]);
        let mut host = Host::new(files, 64 << 10);
        for sectors in sizes {
            host.run_job(resize(sectors)).expect("it is resized");
            disk = resized(&disk, sectors);
            prop_assert!(read(&mut host) == disk);
            // A guest writes something at the end.
            host.open(Driver::Vhd, false).expect("the image opens");
            host.guest[..512].fill(0xab);
            prop_assert_eq!(host.request(RequestKind::Write, sectors - 1, 1, 0), 0);
            host.close().expect("the image closes");
            let last = disk.len() - 512;
            disk[last..].fill(0xab);
        }
    }
}

// ---- repair ----

type Damage<'a> = dyn Fn(&mut Vec<u8>) + 'a;

#[test]
fn repairing_puts_footers_in_order() {
    for kind in [Disk::Root, Disk::Batmap, Disk::Child] {
        let (files, disk) = build(kind);
        let good = {
            let mut host = host(kind);
            host.run_job(repair()).expect("it is in order");
            host.files.remove(0)
        };
        let end = files[0].len() - 512;
        let damages: [&Damage<'_>; 5] = [
            &|file| file[0] ^= 1,
            &|file| file[end] ^= 1,
            &|file| file.truncate(end),
            &|file| file.extend([7; 5000]),
            &|file| {
                file.truncate(end + 511);
                file[0] ^= 1;
            },
        ];
        for damage in damages {
            let mut damaged = files[0].clone();
            damage(&mut damaged);
            let mut host = Host::new([vec![damaged], files[1..].to_vec()].concat(), 64 << 10);
            host.run_job(repair()).expect("it is repaired");
            assert!(host.files[0] == good);
            assert!(read(&mut host) == disk);
        }
    }
}

#[test]
fn repairing_names_the_nameless_and_believes_the_copy_if_told() {
    let mut host = host(Disk::Root);
    let end = host.files[0].len() - 512;
    let mut footer = Footer::decode(&host.files[0]).expect("a footer");
    footer.uuid = Uuid::NIL;
    host.files[0][..512].copy_from_slice(&footer.encode());
    footer.set_hidden(true);
    host.files[0][end..].copy_from_slice(&footer.encode());
    let spec = RepairSpec {
        path: images::name(0),
        use_backup: true,
        uuid: Some(uuid(9)),
    };
    host.run_job(JobSpec::Repair(spec)).expect("it is repaired");
    let footer = Footer::decode(&host.files[0][end..]).expect("a footer");
    assert_eq!((footer.uuid, footer.is_hidden()), (uuid(9), false));
    assert_eq!(Footer::decode(&host.files[0]), Ok(footer));
}

#[test]
fn a_marker_is_kept_by_whatever_changes() {
    let mut host = host(Disk::Batmap);
    let set = |marker| {
        JobSpec::Set(vhd::jobs::SetSpec {
            path: images::name(0),
            hidden: None,
            marker,
        })
    };
    host.run_job(set(Some(5))).expect("the marker is set");
    assert_eq!(full_blocks(&host.files[0]), Some(vec![0, 6]));
    host.run_job(resize(MANY)).expect("it grows");
    host.run_job(resize(2 * PER_BLOCK)).expect("it shrinks");
    assert_eq!(full_blocks(&host.files[0]), Some(vec![0]));
    host.run_job(JobSpec::Modify(ModifySpec {
        path: images::name(0),
        parent: None,
        physical_size: None,
        drop_data: true,
    }))
    .expect("the data go");
    let at = Parts::of(&host.files[0]).batmap_at();
    let batmap = vhd::format::batmap::Batmap::decode(&host.files[0][at..]).expect("a batmap");
    assert_eq!(batmap.marker, 5);
    assert_eq!(full_blocks(&host.files[0]), Some(Vec::new()));
}
