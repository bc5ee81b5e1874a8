//! What a disk holds in another format, all of it in its own file, or as it was before a resize of the original's.

mod support;

use proptest::prelude::*;
use support::cuts::Explorer;
use support::images::{self, Parent, Spec, uuid};
use support::{Host, NOW, jobs};
use vhd::format::footer::{DiskType, Footer, POISON};
use vhd::jobs::{ConvertSpec, FillSpec, Format, RevertSpec};
use vhd::{Driver, JobSpec};

const SECTORS: u64 = 300;
const NEW: &str = "/disks/new.vhd";

/// A chain, and what its disk holds.
fn chain(levels: &[Vec<u64>]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut disk = vec![0; SECTORS as usize * 512];
    let mut files = Vec::new();
    for (index, bits) in levels.iter().enumerate().rev() {
        let blocks: Vec<(u32, u64)> = (0..)
            .zip(bits.iter().copied())
            .filter(|(_, bits)| bits % 4 != 0)
            .collect();
        let parent = (index + 1 < levels.len()).then(|| Parent::named(index + 1));
        let spec = Spec {
            uuid: uuid(index),
            size: disk.len() as u64,
            block_size: 8192,
            parent,
            blocks: &blocks,
            fill: |sector| sector as u8 % 7,
        };
        files.push(images::build(&spec, &mut disk));
    }
    files.reverse();
    (files, disk)
}

fn levels(depth: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<u64>>> {
    prop::collection::vec(prop::collection::vec(any::<u64>(), 19), depth)
}

fn convert(format: Format, driver: Driver) -> JobSpec {
    JobSpec::Convert(ConvertSpec {
        path: images::name(0),
        driver,
        target: NEW.to_owned(),
        format,
        uuid: uuid(7),
        now: NOW,
    })
}

/// What the new image holds, if there is one that opens.
fn read_new(host: &Host, format: Format) -> Option<Vec<u8>> {
    let at = host.names.iter().position(|name| name == NEW)?;
    if format == Format::Raw {
        return Some(host.files[at].clone());
    }
    let mut reader = Host::new(vec![host.files[at].clone()], 64 << 10);
    let info = reader.open(Driver::Vhd, true).ok()?;
    // While the two footers are written, one may be missing.
    let footers_only = |warning: &String| warning.contains("footer");
    assert!(
        info.warnings.iter().all(footers_only),
        "{:?}",
        info.warnings
    );
    let expected = match format {
        Format::Fixed => DiskType::Fixed,
        _ => DiskType::Dynamic,
    };
    assert_eq!(info.disk_type, Some(expected));
    Some(reader.read_disk(info.sectors))
}

const FORMATS: [Format; 3] = [Format::Raw, Format::Fixed, Format::Dynamic];

proptest! {
    #![proptest_config(support::cases(24))]

    #[test]
    fn a_new_image_holds_what_the_disk_holds(levels in levels(1..4), which in 0_usize..3) {
        let (files, disk) = chain(&levels);
        let mut host = Host::new(files.clone(), 64 << 10);
        host.run_job(convert(FORMATS[which], Driver::Vhd)).expect("it is converted");
        prop_assert!(read_new(&host, FORMATS[which]) == Some(disk));
        prop_assert!(host.files[..files.len()] == files);
    }

    #[test]
    fn raw_files_are_converted(mut data in prop::collection::vec(0_u8..4, 1..600), which in 0_usize..3) {
        // Whole sectors of one byte, many of them zeros.
        let raw: Vec<u8> = data.drain(..).flat_map(|byte| [byte / 2 * 7; 512]).collect();
        let mut host = Host::new(vec![raw.clone()], 64 << 10);
        host.run_job(convert(FORMATS[which], Driver::Aio)).expect("it is converted");
        prop_assert!(read_new(&host, FORMATS[which]) == Some(raw));
    }

    #[test]
    fn a_full_image_reads_as_before(levels in levels(1..4), bitmaps_only: bool, from in 0..SECTORS, count in 1..SECTORS) {
        let (files, disk) = chain(&levels);
        let mut host = Host::new(files.clone(), 64 << 10);
        let to = (from + count).min(SECTORS);
        let spec = FillSpec { path: images::name(0), bitmaps_only, from, to: Some(to) };
        host.run_job(JobSpec::Fill(spec)).expect("it is filled");
        let info = host.open(Driver::Vhd, false).expect("the image opens");
        prop_assert_eq!(info.warnings, Vec::<String>::new());
        prop_assert!(u64::from(info.allocated_blocks) >= (to - from) / 16);
        prop_assert!(host.read_disk(SECTORS) == disk);
        host.close().expect("the image closes");
        prop_assert!(host.files[1..] == files[1..]);
    }
}

#[test]
fn a_disk_without_data_takes_no_blocks() {
    let mut host = Host::new(vec![vec![0; 5 << 20]], 64 << 10);
    host.run_job(convert(Format::Dynamic, Driver::Aio))
        .expect("it is converted");
    assert_eq!(host.files[1].len(), 3584);
}

#[test]
fn new_images_are_complete_or_not_there() {
    let (files, disk) = chain(&[vec![0x7777; 19], vec![0xff0f; 19]]);
    for format in FORMATS {
        let mut explorer = Explorer::new(2);
        let mut host = Host::new(files.clone(), 64 << 10);
        let outcome = jobs::run(
            &mut explorer,
            &mut host,
            &mut |host| host.engine.start(convert(format, Driver::Vhd)),
            &mut |left, state| {
                assert!(left.files[..2] == files);
                let found = read_new(&left.host(0), format);
                // A raw file says nothing of whether it is complete.
                if state != jobs::State::Running || (format != Format::Raw && found.is_some()) {
                    assert!(found.as_ref() == Some(&disk));
                }
            },
        );
        outcome.expect("it is converted");
        for failing in 0.. {
            let mut host = Host::new(files.clone(), 64 << 10);
            host.fail_operation(failing, -28);
            match host.run_job(convert(format, Driver::Vhd)) {
                Ok(_) => break,
                Err(error) => assert_eq!(error.errno, 28, "{error}"),
            }
            assert!(host.files[..2] == files);
            assert!(host.names[2..].iter().all(String::is_empty));
        }
    }
}

#[test]
fn filling_survives_power_cuts_and_failures() {
    let (files, disk) = chain(&[vec![0x7770; 19], vec![0xff0f; 10]]);
    for bitmaps_only in [true, false] {
        let spec = JobSpec::Fill(FillSpec {
            path: images::name(0),
            bitmaps_only,
            from: 0,
            to: None,
        });
        let read = |files: &[Vec<u8>]| {
            let mut host = Host::new(files.to_vec(), 64 << 10);
            host.open(Driver::Vhd, false).expect("the image opens");
            host.read_disk(SECTORS)
        };
        let mut host = Host::new(files.clone(), 64 << 10);
        let outcome = jobs::run(
            &mut Explorer::new(4),
            &mut host,
            &mut |host| host.engine.start(spec.clone()),
            &mut |left, _| assert!(read(&left.files) == disk),
        );
        outcome.expect("it is filled");
        for failing in 0.. {
            let mut host = Host::new(files.clone(), 64 << 10);
            host.fail_operation(failing, -5);
            let outcome = host.run_job(spec.clone());
            assert!(read(&host.files) == disk);
            if outcome.is_ok() {
                break;
            }
        }
    }
}

// ---- revert ----

const JOURNAL: &str = "/disks/journal";

/// An entry of a journal.
fn entry(kind: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0xaaaa_1234_4321_aaaa_u64.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    // The last word is whatever it was, and summed up.
    bytes.extend([0, 0, 0, 0, 1, 2, 3, 4]);
    bytes.extend(data);
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
    bytes[24..28].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

/// The journal of a resize of `image`, which saved its metadata and then `blocks` (offsets and lengths).
fn journal(image: &[u8], blocks: &[(usize, usize)]) -> Vec<u8> {
    let end = image.len() - 512;
    let mut entries = Vec::new();
    let metadata = [(1, end, 512), (2, 0, 512), (3, 512, 1024), (5, 1536, 512)];
    for (kind, at, length) in metadata {
        entries.extend(entry(kind, at as u64, &image[at..at + length]));
    }
    let blocks_at = 512 + entries.len() as u64;
    for (at, length) in blocks {
        entries.extend(entry(8, *at as u64, &image[*at..at + length]));
    }
    let mut header = b"vjournal".to_vec();
    header.extend(uuid(0).0);
    header.extend((end as u64).to_be_bytes());
    header.extend((blocks.len() as u32).to_be_bytes());
    header.extend((metadata.len() as u32).to_be_bytes());
    header.extend(blocks_at.to_be_bytes());
    header.extend(512_u64.to_be_bytes());
    header.extend((512 + entries.len() as u64).to_le_bytes());
    header.resize(512, 0);
    header.extend(entries);
    header
}

/// A footer as it is while the original resizes.
fn poisoned(image: &[u8]) -> Vec<u8> {
    let mut bytes = image[..512].to_vec();
    bytes[..8].copy_from_slice(&POISON);
    bytes[64..68].fill(0);
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
    bytes[64..68].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

/// An image, and what an interrupted resize made of it and left as its journal.
fn interrupted() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (files, _) = chain(&[vec![0x7777; 19]]);
    let image = files[0].clone();
    let journal = journal(
        &image,
        &[(2048, 512), (2560, 8192), (2048 + 17 * 512, 17 * 512)],
    );
    let mut broken = image.clone();
    broken[512..2048 + 30 * 512].fill(0x5a);
    let end = broken.len() - 512;
    broken[..512].copy_from_slice(&poisoned(&image));
    broken[end..].fill(0x5a);
    broken.extend(vec![0x5a; 9000]);
    broken.truncate(broken.len() / 512 * 512);
    broken.extend(poisoned(&image));
    (image, broken, journal)
}

fn revert() -> JobSpec {
    JobSpec::Revert(RevertSpec {
        path: images::name(0),
        journal: JOURNAL.to_owned(),
    })
}

fn with_journal(image: &[u8], journal: &[u8]) -> Host {
    let mut host = Host::new(vec![image.to_vec(), journal.to_vec()], 64 << 10);
    host.names[1] = JOURNAL.to_owned();
    host
}

#[test]
fn an_interrupted_resize_is_undone() {
    let (image, mut broken, journal) = interrupted();
    // What the journal doesn't have was not touched.
    let kept = 2048 + 34 * 512;
    broken[kept..image.len() - 512].copy_from_slice(&image[kept..image.len() - 512]);
    let mut host = with_journal(&broken, &journal);
    let outcome = jobs::run(
        &mut Explorer::new(6),
        &mut host,
        &mut |host| host.engine.start(revert()),
        &mut |left, state| {
            let mut next = left.host(0);
            if next.open(Driver::Vhd, true).is_ok() {
                assert!(left.files[0] == image);
            } else {
                assert_eq!(state, jobs::State::Running);
            }
            if !next.names[1].is_empty() {
                next.run_job(revert()).expect("it is reverted");
            }
            assert!(next.files[0] == image);
            assert!(next.names[1].is_empty());
        },
    );
    outcome.expect("it is reverted");
    assert!(host.files[0] == image);
    for failing in 0.. {
        let mut host = with_journal(&broken, &journal);
        host.fail_operation(failing, -5);
        let outcome = host.run_job(revert());
        host.fault = None;
        if outcome.is_ok() {
            break;
        }
        host.run_job(revert()).expect("it is reverted");
        assert!(host.files[0] == image);
    }
}

#[test]
fn a_journal_of_nothing_is_only_removed() {
    let (image, _, journal) = interrupted();
    let mut host = with_journal(&image, &journal);
    host.run_job(revert()).expect("there is nothing to revert");
    assert!(host.files[0] == image);
    assert!(host.names[1].is_empty());
    // A resize that is complete but for its last step.
    let mut done = image.clone();
    let end = done.len() - 512;
    done[..512].copy_from_slice(&poisoned(&image));
    done[end..].copy_from_slice(&poisoned(&image));
    let mut committed = journal[..512].to_vec();
    committed[32..56].fill(0);
    let mut host = with_journal(&done, &committed);
    host.run_job(revert()).expect("the poison goes");
    assert!(host.files[0] == image);
    assert!(Footer::decode(&host.files[0]).is_ok());
}

proptest! {
    #![proptest_config(support::cases(200))]

    #[test]
    fn a_wrong_journal_changes_nothing(at: prop::sample::Index, byte: u8) {
        let (_, broken, journal) = interrupted();
        let mut damaged = journal.clone();
        let at = at.index(damaged.len());
        damaged[at] ^= byte;
        let mut host = with_journal(&broken, &damaged);
        if host.run_job(revert()).is_err() {
            prop_assert!(host.files[0] == broken);
            prop_assert!(host.files[1] == damaged);
            prop_assert!(!host.names[1].is_empty());
        } else {
            // The header's room that nothing is in, or its end of the file.
            prop_assert!(damaged == journal || (48..512).contains(&at));
        }
    }
}
