//! How parents are found, and what is said of chains that can't be opened.

mod support;

use support::Host;
use support::images::{self, Parent, Spec, uuid};
use vhd::Driver;
use vhd::format::header::Header;
use vhd::format::uuid::Uuid;
use vhd::record::RequestKind;

const SIZE: u64 = 64 << 10;

fn image(index: usize, parent: Option<Parent>) -> Vec<u8> {
    let blocks = [(index as u32, u64::MAX)];
    let fill: fn(u64) -> u8 = [|_| 1, |_| 2, |_| 3, |_| 4][index % 4];
    images::build(
        &Spec {
            uuid: uuid(index),
            size: SIZE,
            block_size: 4096,
            parent,
            blocks: &blocks,
            fill,
        },
        &mut vec![0; SIZE as usize],
    )
}

fn child(index: usize, platform: &[u8; 4], path: &str) -> Vec<u8> {
    image(
        index,
        Some(Parent {
            uuid: uuid(index + 1),
            locator: (*platform, path.to_owned()),
        }),
    )
}

/// The first bytes of the first blocks: which image each of them is from.
fn origins(host: &mut Host, blocks: u64) -> Vec<u8> {
    (0..blocks)
        .map(|block| {
            assert_eq!(host.request(RequestKind::Read, block * 8, 1, 0), 0);
            host.guest[0]
        })
        .collect()
}

#[test]
fn a_parent_is_found_by_every_kind_of_locator() {
    let cases: [(&[u8; 4], &str, &str); 7] = [
        (b"W2ru", "./base.vhd", "/disks/base.vhd"),
        (b"W2ru", "../other/base.vhd", "/other/base.vhd"),
        (b"W2ku", "C:/Users/x/base.vhd", "/Users/x/base.vhd"),
        // Moved together to another folder.
        (b"W2ku", "C:/Users/x/base.vhd", "/disks/base.vhd"),
        (b"MacX", "./base%20one.vhd", "/disks/base one.vhd"),
        (b"MacX", "/elsewhere/base.vhd", "/elsewhere/base.vhd"),
        // No locator that can be read: only the name in the header is left.
        (b"Wi2r", "base.vhd", "/disks/base.vhd"),
    ];
    for (platform, path, found_at) in cases {
        let mut host = Host::new(vec![child(0, platform, path), image(1, None)], 512);
        host.names[1] = found_at.to_owned();
        let info = host
            .open(Driver::Vhd, true)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(
            (info.depth, origins(&mut host, 3)),
            (2, vec![1, 2, 0]),
            "{path}"
        );
    }
}

#[test]
fn a_long_chain_is_served() {
    const DEPTH: usize = 64;
    let image = |index: usize| {
        let last = index + 1 == DEPTH;
        let blocks = match index {
            0..15 => vec![(index as u32, u64::MAX)],
            _ if last => vec![(15, u64::MAX)],
            _ => Vec::new(),
        };
        let parent = Parent::named(index + 1);
        let fill: fn(u64) -> u8 = |sector| (sector / 8) as u8 + 1;
        images::build(
            &Spec {
                uuid: uuid(index),
                size: SIZE,
                block_size: 4096,
                parent: (!last).then_some(parent),
                blocks: &blocks,
                fill,
            },
            &mut vec![0; SIZE as usize],
        )
    };
    let mut host = Host::new((0..DEPTH).map(image).collect(), 512);
    assert_eq!(
        host.open(Driver::Vhd, false).map(|info| info.depth),
        Ok(DEPTH as u32)
    );
    assert_eq!(origins(&mut host, 16), (1..=16).collect::<Vec<u8>>());
}

#[test]
fn thirty_of_the_largest_images_are_a_chain() {
    const DEPTH: usize = 30;
    let image = |index: usize| {
        let last = index + 1 == DEPTH;
        let parent = Parent::named(index + 1);
        let blocks = [(1_000_000, u64::MAX)];
        images::build(
            &Spec {
                uuid: uuid(index),
                size: vhd::MAX_DYNAMIC_SIZE,
                block_size: 2 << 20,
                parent: (!last).then_some(parent),
                blocks: if last { &blocks } else { &[] },
                fill: |_| 7,
            },
            &mut [],
        )
    };
    let mut host = Host::new((0..DEPTH).map(image).collect(), 1024);
    let info = host.open(Driver::Vhd, false).expect("the chain opens");
    assert_eq!(info.depth, DEPTH as u32);
    let sector = 1_000_000 * 4096;
    assert_eq!(host.request(RequestKind::Read, sector - 1, 2, 0), 0);
    assert_eq!((host.guest[511], host.guest[512]), (0, 7));
}

#[test]
fn a_raw_parent_is_served() {
    let mut file = child(0, b"W2ru", "./raw.img");
    let mut header = Header::decode(&file[512..]).expect("the header is good");
    header.parent_uuid = Uuid::NIL;
    file[512..1536].copy_from_slice(&header.encode());
    // Shorter than its child: behind it there are zeros.
    let mut host = Host::new(vec![file, vec![7; 8192]], 512);
    host.names[1] = "/disks/raw.img".to_owned();
    host.open(Driver::Vhd, false).expect("the chain opens");
    assert_eq!(origins(&mut host, 4), [1, 7, 0, 0]);
}

#[test]
fn a_missing_or_wrong_parent_is_named() {
    let mut host = Host::new(vec![child(0, b"W2ru", "./base.vhd")], 512);
    let error = host
        .open(Driver::Vhd, false)
        .expect_err("there is no parent");
    assert_eq!(
        (error.errno, error.structure, error.offset),
        (2, "parent", Some(552))
    );
    assert_eq!(error.file.as_deref(), Some("/disks/disk.vhd"));
    assert!(
        error.message.contains("/disks/base.vhd does not exist"),
        "{error}"
    );

    let mut host = Host::new(vec![child(0, b"W2ru", "./base.vhd"), image(2, None)], 512);
    host.names[1] = "/disks/base.vhd".to_owned();
    let error = host
        .open(Driver::Vhd, false)
        .expect_err("it is another image");
    assert!(
        error.errno == 22 && error.message.contains("is another image (UUID 03030303"),
        "{error}"
    );

    let mut host = Host::new(vec![child(0, b"W2ru", "./base.vhd"), vec![7; 4096]], 512);
    host.names[1] = "/disks/base.vhd".to_owned();
    let error = host.open(Driver::Vhd, false).expect_err("it is no image");
    assert!(
        error
            .message
            .contains("/disks/base.vhd: footer: wrong cookie"),
        "{error}"
    );
}

#[test]
fn a_loop_is_noticed() {
    let back = Parent::named(0);
    let files = vec![child(0, b"W2ku", &images::name(1)), image(1, Some(back))];
    let error = Host::new(files, 512)
        .open(Driver::Vhd, true)
        .expect_err("the chain is a loop");
    assert!(error.message.contains("loop"), "{error}");
}
