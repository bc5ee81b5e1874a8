//! Images that are made: complete or not there, laid out as the original lays them out, and reading as what they come from.

mod support;

use support::batmap::{Parts, full_blocks, with_batmap};
use support::cuts::Explorer;
use support::images::{self, Parent, Spec, uuid};
use support::{Host, NOW, jobs};
use vhd::format::footer::{DiskType, Footer};
use vhd::format::header::Header;
use vhd::jobs::{CloneSpec, CreateSpec, NewParent, Snapshot, SnapshotSpec};
use vhd::{Driver, JobSpec, MAX_DYNAMIC_SIZE, Outcome};

const MIB: u64 = 1 << 20;
const SECTORS: u64 = 100;
const SIZE: u64 = SECTORS * 512;
const NEW: &str = "/disks/new/child.vhd";

fn create(size: u64, max_size: Option<u64>) -> CreateSpec {
    CreateSpec {
        path: NEW.to_owned(),
        disk_type: DiskType::Dynamic,
        size,
        max_size,
        block_size: 2 << 20,
        uuid: uuid(7),
        now: NOW,
    }
}

fn snapshot(parent: &str, driver: Driver) -> SnapshotSpec {
    SnapshotSpec {
        path: NEW.to_owned(),
        parent: NewParent {
            path: parent.to_owned(),
            driver,
        },
        size: None,
        max_size: None,
        keep_empty: false,
        depth_limit: None,
        uuid: uuid(7),
        now: NOW,
    }
}

/// A chain of two images, or of three whose leaf is empty, and what its disk holds.
fn chain(depth: usize) -> (Host, Vec<u8>) {
    let mut disk = vec![0; SIZE as usize];
    let mut files: Vec<Vec<u8>> = Vec::new();
    for index in (0..depth).rev() {
        let parent = (index + 1 < depth).then(|| Parent::named(index + 1));
        let blocks: &[(u32, u64)] = match (index, depth) {
            (0, 3) => &[],
            (1, 2) => &[(0, u64::MAX), (5, 0x7777)],
            _ => &[(3, 0xff0f), (0, 0x0ff0)],
        };
        let spec = Spec {
            uuid: uuid(index),
            size: SIZE,
            block_size: 8192,
            parent,
            blocks,
            fill: |sector| 1 + sector as u8,
        };
        files.push(images::build(&spec, &mut disk));
    }
    files.reverse();
    (Host::new(files, 64 << 10), disk)
}

/// The number of the file with this path.
fn file(host: &Host, path: &str) -> usize {
    let place = host.names.iter().position(|name| name == path);
    place.expect("the file is there")
}

/// Opens the image at a path and reads it.
fn read(host: &Host, path: &str, sectors: u64) -> Vec<u8> {
    let mut files = host.files.clone();
    let mut names = host.names.clone();
    let at = file(host, path);
    files.swap(0, at);
    names.swap(0, at);
    let mut reader = Host::new(files, 64 << 10);
    reader.names = names;
    let info = reader.open(Driver::Vhd, true).expect("the image opens");
    assert_eq!(info.warnings, Vec::<String>::new());
    reader.read_disk(sectors)
}

/// Whether a file is there and opens.
fn is_there(host: &Host, path: &str) -> bool {
    let Some(at) = host.names.iter().position(|name| name == path) else {
        return false;
    };
    let (mut files, mut names) = (host.files.clone(), host.names.clone());
    files.swap(0, at);
    names.swap(0, at);
    let mut reader = Host::new(files, 64 << 10);
    reader.names = names;
    reader.open(Driver::Vhd, true).is_ok()
}

/// Runs a job that makes an image at [`NEW`], under power cuts and failures: nothing that others have changes, and the
/// image is not there, or as it must be.
fn explore(make: impl Fn() -> Host, spec: &JobSpec, sectors: u64, expected: &[u8]) {
    let mut explorer = Explorer::new(3);
    for seed in 0..5 {
        explorer.begin(seed);
        let mut host = make();
        let before = host.files.clone();
        let outcome = jobs::run(
            &mut explorer,
            &mut host,
            &mut |host| host.engine.start(spec.clone()),
            &mut |left, state| {
                assert!(left.files[..before.len()] == before);
                let next = left.host(64 << 10);
                if is_there(&next, NEW) {
                    let mut reader = left.host(64 << 10);
                    let at = file(&reader, NEW);
                    reader.files.swap(0, at);
                    reader.names.swap(0, at);
                    reader.open(Driver::Vhd, true).expect("the image opens");
                    assert!(reader.read_disk(sectors) == expected);
                } else {
                    assert_eq!(state, jobs::State::Running);
                }
            },
        );
        outcome.expect("the image is made");
        assert!(read(&host, NEW, sectors) == expected);
    }
    for failing in 0.. {
        let mut host = make();
        let before = (host.files.clone(), host.names.clone());
        host.fail_operation(failing, -28);
        match host.run_job(spec.clone()) {
            Ok(_) => break,
            Err(error) => assert_eq!(error.errno, 28, "{error}"),
        }
        assert!(host.files[..before.0.len()] == before.0);
        assert!(host.names[..before.1.len()] == before.1);
        assert!(host.names[before.1.len()..].iter().all(String::is_empty));
    }
}

#[test]
fn an_empty_image_is_laid_out_as_the_originals() {
    for (size, max_size, bytes) in [(100, None, 3584), (100, Some(4096), 11264), (2, None, 3584)] {
        let mut host = Host::new(Vec::new(), 64 << 10);
        host.create(create(size * MIB, max_size.map(|size: u64| size * MIB)))
            .expect("the image is made");
        assert_eq!(host.files[0].len(), bytes);
        let parts = Parts::of(&host.files[0]);
        assert_eq!(parts.footer.current_size, size * MIB);
        assert_eq!(parts.footer.timestamp, 7);
        assert!(parts.footer.demands_batmap());
        assert_eq!(host.files[0][..512], host.files[0][bytes - 512..]);
        let header = Header::decode(&host.files[0][512..]).expect("a header");
        assert_eq!(
            u64::from(header.max_table_entries),
            max_size.unwrap_or(size) / 2
        );
        assert!(read(&host, NEW, 4096).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn sizes_that_no_image_can_have_are_refused() {
    for (size, max_size) in [
        (0, None),
        (513, None),
        (MAX_DYNAMIC_SIZE + 512, None),
        (MIB, Some(512)),
        (MIB, Some(MAX_DYNAMIC_SIZE + 1)),
    ] {
        let mut host = Host::new(Vec::new(), 0);
        let refused = host
            .create(create(size, max_size))
            .expect_err("no such size");
        assert_eq!(refused.errno, 22);
        assert_eq!(host.names, [""]);
    }
    let mut host = Host::new(Vec::new(), 0);
    host.create(create(MAX_DYNAMIC_SIZE, None))
        .expect("as large as can be");
    let refused = host
        .run_job(JobSpec::Create(create(MIB, None)))
        .expect_err("it is there already");
    assert_eq!(refused.errno, 17);
    assert_eq!(host.names, [NEW]);
}

#[test]
fn new_images_are_complete_or_not_there() {
    for disk_type in [DiskType::Dynamic, DiskType::Fixed] {
        let spec = CreateSpec {
            disk_type,
            ..create(MIB, None)
        };
        let zeros = vec![0; MIB as usize];
        explore(|| chain(1).0, &JobSpec::Create(spec), MIB / 512, &zeros);
    }
}

#[test]
fn snapshots_read_as_their_parent_and_are_laid_out_as_the_originals() {
    let (_, disk) = chain(2);
    let spec = JobSpec::Snapshot(snapshot(&images::name(0), Driver::Vhd));
    explore(|| chain(2).0, &spec, SECTORS, &disk);
    let (mut host, _) = chain(2);
    let outcome = host.run_job(spec).expect("the child is made");
    let expected = Snapshot {
        parent: images::name(0),
        size: SIZE,
        depth: 3,
    };
    assert_eq!(outcome, Outcome::Snapshot(expected));
    let child = &host.files[file(&host, NEW)];
    assert_eq!(child.len(), 5120);
    let header = Header::decode(&child[512..]).expect("a header");
    assert_eq!(header.parent_name(), "disk.vhd");
    assert_eq!(header.parent_timestamp, 1_700_000_000 - 946_684_800);
    let locators: Vec<_> = header
        .locators
        .iter()
        .filter(|locator| locator.is_used())
        .collect();
    assert_eq!(locators.len(), 3);
    for (locator, offset) in locators.iter().zip([3072, 3584, 4096]) {
        assert_eq!((locator.data_space, locator.data_offset), (512, offset));
        let at = offset as usize;
        let name = locator.path(&child[at..at + locator.data_length as usize]);
        assert_eq!(name.as_deref(), Some("../disk.vhd"));
    }
}

#[test]
fn empty_parents_are_skipped_unless_told_not_to() {
    let (mut host, disk) = chain(3);
    let spec = snapshot(&images::name(0), Driver::Vhd);
    match host.run_job(JobSpec::Snapshot(spec.clone())) {
        Ok(Outcome::Snapshot(made)) => {
            assert_eq!((made.parent, made.depth), (images::name(1), 3));
        }
        other => panic!("{other:?}"),
    }
    assert!(read(&host, NEW, SECTORS) == disk);
    let (mut host, disk) = chain(3);
    let spec = SnapshotSpec {
        keep_empty: true,
        size: Some(SIZE + 8192),
        max_size: Some(MIB),
        depth_limit: Some(4),
        ..spec
    };
    match host.run_job(JobSpec::Snapshot(spec)) {
        Ok(Outcome::Snapshot(made)) => {
            assert_eq!((made.parent, made.depth), (images::name(0), 4));
        }
        other => panic!("{other:?}"),
    }
    let zeros = vec![0; 8192];
    assert!(read(&host, NEW, SECTORS + 16) == [disk, zeros].concat());
}

#[test]
fn snapshots_that_make_no_sense_are_refused() {
    let (mut host, _) = chain(3);
    let before = host.files.clone();
    let spec = snapshot(&images::name(0), Driver::Vhd);
    let deep = SnapshotSpec {
        depth_limit: Some(2),
        ..spec.clone()
    };
    let refused = host.run_job(JobSpec::Snapshot(deep)).expect_err("too deep");
    assert_eq!(refused.errno, 28);
    assert!(refused.to_string().contains("found 2 images"), "{refused}");
    let small = SnapshotSpec {
        size: Some(SIZE - 512),
        ..spec.clone()
    };
    let refused = host
        .run_job(JobSpec::Snapshot(small))
        .expect_err("too small");
    assert_eq!(refused.errno, 22);
    let itself = SnapshotSpec {
        path: images::name(1),
        ..spec
    };
    let refused = host
        .run_job(JobSpec::Snapshot(itself))
        .expect_err("it is there");
    assert_eq!(refused.errno, 17);
    assert!(host.files == before);
}

#[test]
fn a_raw_parent_has_whole_blocks_of_child() {
    let raw: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
    let mut host = Host::new(vec![raw.clone()], 64 << 10);
    let spec = snapshot(&images::name(0), Driver::Aio);
    match host.run_job(JobSpec::Snapshot(spec)) {
        Ok(Outcome::Snapshot(made)) => assert_eq!(made.size, 2 * MIB),
        other => panic!("{other:?}"),
    }
    let disk = read(&host, NEW, 4096);
    assert!(disk[..raw.len()] == raw);
    assert!(disk[raw.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn clones_read_as_what_they_come_from() {
    for depth in [1, 2, 3] {
        let (_, disk) = chain(depth);
        let spec = JobSpec::Clone(CloneSpec {
            path: images::name(0),
            target: NEW.to_owned(),
            uuid: uuid(7),
        });
        explore(|| chain(depth).0, &spec, SECTORS, &disk);
        let (mut host, _) = chain(depth);
        host.run_job(spec).expect("the copy is made");
        let copy = &host.files[file(&host, NEW)];
        let footer = Footer::decode(&copy[copy.len() - 512..]).expect("a footer");
        let original = Footer::decode(&host.files[0]).expect("a footer");
        assert_eq!(footer.uuid, uuid(7));
        assert_eq!(
            Footer {
                uuid: uuid(0),
                ..footer
            },
            original
        );
    }
}

#[test]
fn clones_have_the_batmap_of_what_they_come_from() {
    let (mut host, disk) = chain(2);
    host.files[0] = with_batmap(&host.files[0], &[]);
    let image = &host.files[0];
    let full = full_blocks(image).expect("a batmap");
    let spec = JobSpec::Clone(CloneSpec {
        path: images::name(0),
        target: NEW.to_owned(),
        uuid: uuid(7),
    });
    host.run_job(spec).expect("the copy is made");
    let copy = &host.files[file(&host, NEW)];
    assert_eq!(full_blocks(copy), Some(full));
    assert_eq!(Parts::of(copy).batmap_at(), 2048);
    assert!(read(&host, NEW, SECTORS) == disk);
}

#[test]
fn fixed_disks_are_cloned() {
    let fixed = || {
        let mut file: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
        file.extend(Footer::new(DiskType::Fixed, SIZE, uuid(0), 7).encode());
        Host::new(vec![file], 64 << 10)
    };
    let spec = JobSpec::Clone(CloneSpec {
        path: images::name(0),
        target: NEW.to_owned(),
        uuid: uuid(7),
    });
    let disk = fixed().files[0][..SIZE as usize].to_vec();
    explore(fixed, &spec, SECTORS, &disk);
}

/// A block device full of what was there before.
fn device(bytes: u64) -> Host {
    let mut host = Host::new(vec![vec![0xaa; bytes as usize]], 64 << 10);
    host.names = vec![NEW.to_owned()];
    host.leaf_is_device = true;
    host
}

#[test]
fn images_are_made_on_block_devices() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let mut host = device(4 * MIB);
        let spec = CreateSpec {
            disk_type,
            block_size: 8192,
            ..create(MIB, None)
        };
        host.run_job(JobSpec::Create(spec))
            .expect("the image is made");
        assert_eq!(host.files[0].len() as u64, 4 * MIB);
        let info = host.open(Driver::Vhd, false).expect("the image opens");
        assert_eq!((info.disk_type, info.warnings.len()), (Some(disk_type), 0));
        assert!(host.read_disk(MIB / 512) == vec![0; MIB as usize]);
    }
}

#[test]
fn devices_that_are_too_small_are_left_alone() {
    let fixed = CreateSpec {
        disk_type: DiskType::Fixed,
        ..create(MIB, None)
    };
    let dynamic = CreateSpec {
        block_size: 4096,
        ..create(1 << 30, None)
    };
    for spec in [fixed, dynamic] {
        let mut host = device(MIB);
        let error = host
            .run_job(JobSpec::Create(spec))
            .expect_err("it does not fit");
        assert_eq!(error.errno, 28, "{error}");
        assert!(host.files[0].iter().all(|byte| *byte == 0xaa));
    }
}

#[test]
fn a_child_needs_a_parent() {
    let spec = CreateSpec {
        disk_type: DiskType::Differencing,
        ..create(MIB, None)
    };
    let mut host = Host::new(Vec::new(), 0);
    let error = host
        .run_job(JobSpec::Create(spec))
        .expect_err("it has none");
    assert!(error.to_string().contains("needs a parent"), "{error}");
    assert!(host.files.is_empty());
}
