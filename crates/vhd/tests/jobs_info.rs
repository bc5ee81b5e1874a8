//! Describing images: what is there is told though other parts be damaged, and nothing that a file holds is too much.

mod support;

use proptest::prelude::*;
use support::Host;
use support::images::{self, Parent, Spec, uuid};
use vhd::format::footer::DiskType;
use vhd::jobs::{BlockTable, BlocksSpec, CreateSpec, ImageDescription, InfoSpec};
use vhd::{Driver, JobSpec, Outcome};

const SIZE: u64 = 300 * 512;
const BLOCKS: [(u32, u64); 2] = [(3, 0xff0f), (0, u64::MAX)];

fn image(index: usize, parent: Option<&str>) -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(index),
        size: SIZE,
        block_size: 8192,
        parent: parent.map(|path| Parent {
            uuid: uuid(index + 1),
            locator: (*b"W2ru", path.to_owned()),
        }),
        blocks: &BLOCKS,
        fill: |_| 1,
    };
    images::build(&spec, &mut vec![0; SIZE as usize])
}

fn chain() -> Host {
    let files = vec![
        image(0, Some("./base/parent1.vhd")),
        image(1, Some("./parent2.vhd")),
        image(2, None),
    ];
    Host::new(files, 64 << 10)
}

fn spec() -> InfoSpec {
    InfoSpec {
        path: images::name(0),
        driver: Driver::Vhd,
        fast: false,
        start: 0,
        backup: false,
        bat: false,
        batmap: false,
        parent: false,
        parents: false,
    }
}

fn info(host: &mut Host, spec: InfoSpec) -> Vec<ImageDescription> {
    match host.run_job(JobSpec::Info(spec)) {
        Ok(Outcome::Info(images)) => images,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chain_is_told_level_by_level() {
    let images = info(
        &mut chain(),
        InfoSpec {
            bat: true,
            parents: true,
            ..spec()
        },
    );
    let types: Vec<&str> = images.iter().map(|image| image.disk_type).collect();
    assert_eq!(types, ["differencing", "differencing", "dynamic"]);
    for (index, image) in images.iter().enumerate() {
        assert_eq!(image.path, images::name(index));
        assert_eq!(image.size, SIZE);
        assert_eq!(image.problem, None);
        let footer = image.footer.as_ref().expect("there is a footer");
        assert_eq!(footer.uuid, uuid(index).to_string());
        let bat = image.bat.expect("the BAT was asked for");
        assert_eq!((bat.blocks, bat.allocated), (19, 2));
        assert_eq!(bat.end + 512, image.file_size);
        let parent = images.get(index + 1).map(|parent| parent.path.clone());
        assert_eq!(image.parent, parent);
    }
    assert_eq!(
        images[0].locators[0].name.as_deref(),
        Some("./base/parent1.vhd")
    );
}

#[test]
fn a_parent_that_is_missing_is_told() {
    let mut host = chain();
    host.names[2] = "/elsewhere".to_owned();
    let images = info(
        &mut host,
        InfoSpec {
            parents: true,
            ..spec()
        },
    );
    assert_eq!(images.len(), 2);
    let problem = images[1].parent_problem.as_ref().expect("it is missing");
    assert_eq!(problem.errno, 2);
    assert!(
        problem.message.contains("/disks/base/parent2.vhd"),
        "{}",
        problem.message
    );
}

#[test]
fn chains_that_go_round_have_an_end() {
    let files = vec![image(0, Some("./disk.vhd"))];
    let mut host = Host::new(files, 64 << 10);
    let error = host
        .run_job(JobSpec::Info(InfoSpec {
            parents: true,
            ..spec()
        }))
        .expect_err("the chain has no end");
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn the_copy_of_the_footer_stands_in() {
    let mut host = chain();
    let end = host.files[0].len() - 512;
    host.files[0][end + 3] ^= 1;
    let told = info(&mut host, spec()).remove(0);
    assert_eq!(told.problem, None);
    assert!(told.footer_problem.is_some());
    assert_eq!(told.footer.expect("there is a copy").offset, 0);

    host.files[0][3] ^= 1;
    let told = info(&mut host, spec()).remove(0);
    assert_eq!(told.problem.expect("both are damaged").errno, 22);
    let footer = told.footer.expect("what is there is shown");
    assert_eq!(
        (footer.offset, footer.cookie.as_str()),
        (end as u64, "condctix")
    );
}

#[test]
fn an_image_inside_a_device_is_found() {
    let mut host = chain();
    let mut device = vec![7; 4096];
    device.append(&mut host.files[0]);
    host.files[0] = device;
    let told = info(
        &mut host,
        InfoSpec {
            fast: true,
            start: 4096,
            ..spec()
        },
    )
    .remove(0);
    assert_eq!(told.problem, None);
    assert_eq!(told.locators[0].name.as_deref(), Some("./base/parent1.vhd"));
}

#[test]
fn entries_and_bitmaps_are_told() {
    let mut host = chain();
    let told = host.run_job(JobSpec::Blocks(BlocksSpec {
        path: images::name(0),
        block: 2,
        count: 99,
        bitmaps: true,
    }));
    let Ok(Outcome::Blocks(BlockTable {
        blocks,
        entries,
        bitmaps,
        ..
    })) = told
    else {
        panic!("{told:?}");
    };
    assert_eq!((blocks, entries.len(), bitmaps.len()), (19, 17, 17));
    let allocated: Vec<usize> = (0..17)
        .filter(|index| entries[*index] != u32::MAX)
        .collect();
    assert_eq!(allocated, [1]);
    assert!(bitmaps[0].is_empty());
    assert_eq!(bitmaps[1].len(), 1024);
    let at = entries[1] as usize * 512;
    assert_eq!(bitmaps[1][..2], format!("{:02x}", host.files[0][at]));
}

proptest! {
    #![proptest_config(support::cases(256))]

    #[test]
    fn damage_is_told_or_refused(
        damage in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 1..40),
        length in 0.0..1.2_f64,
        flags in any::<[bool; 4]>(),
    ) {
        let mut host = chain();
        let file = &mut host.files[0];
        for (place, value) in damage {
            // Metadata are at both ends.
            let at = if place < 0.5 { (place * 2.0 * 2600.0) as usize } else { ((place - 0.5) * 2.0 * file.len() as f64) as usize };
            let at = at.min(file.len() - 1);
            file[at] = value;
        }
        file.truncate((file.len() as f64 * length) as usize);
        let [bat, batmap, fast, parents] = flags;
        let asked = InfoSpec { bat, batmap, fast, parents, ..spec() };
        if let Ok(Outcome::Info(images)) = host.run_job(JobSpec::Info(asked)) {
            prop_assert!(!images.is_empty());
        }
        let _ = host.run_job(JobSpec::Blocks(BlocksSpec { path: images::name(0), block: 0, count: 50, bitmaps: true }));
    }
}

/// A host with a new image, which has a batmap, and a description of that.
fn new_image() -> (Host, ImageDescription) {
    let mut host = Host::new(Vec::new(), 0);
    let spec = CreateSpec {
        path: images::name(0),
        disk_type: DiskType::Dynamic,
        size: 8 << 20,
        max_size: None,
        block_size: 2 << 20,
        uuid: uuid(0),
        now: 1_700_000_000,
    };
    host.run_job(JobSpec::Create(spec))
        .expect("the image is made");
    let told = batmap_told(&mut host);
    (host, told)
}

fn batmap_told(host: &mut Host) -> ImageDescription {
    let spec = InfoSpec {
        bat: true,
        batmap: true,
        ..spec()
    };
    info(host, spec).remove(0)
}

#[test]
fn a_batmap_is_told_with_what_is_wrong_with_it() {
    let (mut host, image) = new_image();
    let batmap = image.batmap.expect("a new image has a batmap");
    assert_eq!(batmap.computed_checksum, Some(batmap.checksum));
    assert_eq!(batmap.map, Some("00".repeat(512)));
    assert!(batmap.problem.is_none() && batmap.key_hash.is_none());
    assert_eq!(
        image.bat.map(|bat| (bat.blocks, bat.allocated)),
        Some((4, 0))
    );

    host.files[0][batmap.offset as usize] = 0x80;
    let wrong = batmap_told(&mut host).batmap.expect("it is there");
    let problem = wrong.problem.expect("the sum is wrong");
    assert!(
        problem.message.contains("wrong checksum"),
        "{}",
        problem.message
    );
    assert_ne!(wrong.computed_checksum, Some(wrong.checksum));

    host.files[0][batmap.header_offset as usize + 16..][..4].fill(0);
    let empty = batmap_told(&mut host).batmap.expect("it is there");
    let problem = empty.problem.expect("the size is wrong");
    assert!(problem.message.contains("size"), "{}", problem.message);
    assert_eq!(empty.map, None);

    // Where no batmap is, none is told.
    host.files[0][batmap.header_offset as usize..][..8].fill(0);
    assert!(batmap_told(&mut host).batmap.is_none());
}

#[test]
fn raw_and_fixed_images_are_told() {
    let mut host = Host::new(vec![vec![1; 5000]], 0);
    let raw = InfoSpec {
        driver: Driver::Aio,
        ..spec()
    };
    let told = info(&mut host, raw).remove(0);
    assert_eq!((told.disk_type, told.size), ("raw", 4608));

    let mut host = Host::new(Vec::new(), 0);
    let fixed = CreateSpec {
        path: images::name(0),
        disk_type: DiskType::Fixed,
        size: 4096,
        max_size: None,
        block_size: 2 << 20,
        uuid: uuid(0),
        now: 1_700_000_000,
    };
    host.run_job(JobSpec::Create(fixed))
        .expect("the image is made");
    let told = info(&mut host, spec()).remove(0);
    assert_eq!((told.disk_type, told.size), ("fixed", 4096));
    assert!(told.bat.is_none());
}
