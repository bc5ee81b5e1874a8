//! blktap's batmap: used where it is right, kept true, made anew where it is wrong.

mod support;

use support::Host;
use support::batmap::{Parts, change_header, full_blocks, with_batmap};
use support::images::{
    self, Parent, SMALL_BLOCK as BLOCK, SMALL_BLOCKS as BLOCKS, SMALL_SIZE as SIZE, uuid,
};
use vhd::Driver;
use vhd::format::batmap::{self, Batmap, KeyHash};
use vhd::format::footer::DiskType;
use vhd::jobs::CreateSpec;
use vhd::record::{OpKind, RequestKind};

const PER_BLOCK: u32 = BLOCK / 512;
const HALF: u64 = 0xff;

/// A dynamic image, or a child of one that is all fives.
fn files(blocks: &[(u32, u64)], full: &[u32], has_parent: bool) -> Vec<Vec<u8>> {
    let parent = has_parent.then(|| Parent::named(1));
    let whole: Vec<(u32, u64)> = (0..BLOCKS).map(|block| (block, u64::MAX)).collect();
    let mut files = vec![with_batmap(&images::small(0, parent, blocks, |_| 7), full)];
    if has_parent {
        files.push(images::small(1, None, &whole, |_| 5));
    }
    files
}

fn host(files: Vec<Vec<u8>>) -> Host {
    Host::new(files, SIZE as usize)
}

fn opened(files: Vec<Vec<u8>>) -> Host {
    let mut host = host(files);
    let info = host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!(info.warnings, Vec::<String>::new());
    host
}

fn write(host: &mut Host, sector: u32, sectors: u32) {
    host.guest.fill(9);
    assert_eq!(
        host.request(RequestKind::Write, u64::from(sector), sectors, 0),
        0
    );
}

#[test]
fn full_blocks_are_read_without_their_bitmaps() {
    let mut host = opened(files(&[(0, u64::MAX), (1, u64::MAX)], &[0], false));
    let before = host.counts[OpKind::Read as usize];
    assert_eq!(host.request(RequestKind::Read, 0, PER_BLOCK, 0), 0);
    assert_eq!(host.counts[OpKind::Read as usize] - before, 1);
    assert_eq!(
        host.request(RequestKind::Read, u64::from(PER_BLOCK), PER_BLOCK, 0),
        0
    );
    assert_eq!(host.counts[OpKind::Read as usize] - before, 3);
}

#[test]
fn blocks_that_become_full_get_their_bits_at_closing() {
    for has_parent in [false, true] {
        let mut host = opened(files(&[(0, HALF), (3, HALF)], &[], has_parent));
        // The rest of block 0, a part of block 1, all of block 2.
        write(&mut host, 8, 8);
        write(&mut host, PER_BLOCK, 1);
        write(&mut host, 2 * PER_BLOCK, PER_BLOCK);
        assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
        assert_eq!(full_blocks(&host.files[0]), Some(vec![]));
        host.close().expect("the image closes");
        // Without a parent, blocks are full from the beginning.
        let expected = if has_parent {
            vec![0, 2]
        } else {
            vec![0, 1, 2]
        };
        assert_eq!(full_blocks(&host.files[0]), Some(expected));
    }
}

#[test]
fn an_image_that_was_only_read_is_left_alone() {
    let before = files(&[(0, u64::MAX), (1, u64::MAX)], &[0], false);
    let mut host = opened(before.clone());
    // Now it is known that block 1 is full, too.
    host.read_disk(SIZE / 512);
    host.close().expect("the image closes");
    assert!(host.files == before);
}

#[test]
fn blocks_that_the_batmap_calls_full_are_released() {
    let whole: Vec<(u32, u64)> = (0..4).map(|block| (block, u64::MAX)).collect();
    let mut host = opened(files(&whole, &[0, 1, 2, 3], false));
    let size = host.files[0].len();
    assert_eq!(host.request(RequestKind::Discard, 0, 2 * PER_BLOCK, 0), 0);
    // The map is in force until the entry's removal is to become durable.
    assert_eq!(full_blocks(&host.files[0]), Some(vec![0, 1, 2, 3]));
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    assert_eq!(full_blocks(&host.files[0]), Some(vec![]));
    // Once is enough.
    let writes = host.counts[OpKind::Write as usize];
    assert_eq!(
        host.request(RequestKind::Discard, u64::from(2 * PER_BLOCK), PER_BLOCK, 0),
        0
    );
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    assert_eq!(
        host.counts[OpKind::Write as usize] - writes,
        2,
        "the BAT and a freed place's bitmap"
    );
    host.close().expect("the image closes");
    assert_eq!(full_blocks(&host.files[0]), Some(vec![3]));
    assert!(host.files[0].len() <= size);
    let info = host.open(Driver::Vhd, true).expect("the image opens again");
    assert_eq!((info.allocated_blocks, info.warnings), (1, Vec::new()));
    let disk = host.read_disk(SIZE / 512);
    assert!(disk[..3 * BLOCK as usize].iter().all(|byte| *byte == 0));
    assert!(
        disk[3 * BLOCK as usize..][..BLOCK as usize]
            .iter()
            .all(|byte| *byte == 7)
    );
}

type Damage = fn(&mut Vec<u8>);

/// Ways to make a batmap wrong, and what is said of them.
const WRONG: [(&str, Damage); 7] = [
    ("checksum", |file| {
        change_header(file, |header| header.checksum ^= 1)
    }),
    ("map has", |file| {
        change_header(file, |header| header.sectors = 0)
    }),
    ("can't be at", |file| {
        change_header(file, |header| header.offset = 1 << 40)
    }),
    ("can't be at", |file| {
        change_header(file, |header| header.offset = 512)
    }),
    ("version", |file| {
        change_header(file, |header| header.version = 0x0001_0003)
    }),
    ("no header", |file| {
        let at = Parts::of(file).batmap_at();
        file[at] ^= 1;
    }),
    ("block 19 full, which does not exist", |file| {
        let at = Parts::of(file).batmap_at();
        file[at + 512 + 19 / 8] |= 0x80 >> (19 % 8);
        let sum = batmap::checksum(&file[at + 512..at + 1024], batmap::VERSION);
        change_header(file, |header| header.checksum = sum);
    }),
];

#[test]
fn a_wrong_batmap_is_not_used_and_made_anew() {
    for has_parent in [false, true] {
        for (text, damage) in WRONG {
            let mut files = files(&[(0, u64::MAX), (2, HALF)], &[0], has_parent);
            change_header(&mut files[0], |header| header.marker = 3);
            damage(&mut files[0]);
            for read_only in [true, false] {
                let mut host = host(files.clone());
                let info = host.open(Driver::Vhd, read_only).expect("the image opens");
                assert!(
                    info.warnings.len() == 1 && info.warnings[0].contains(text),
                    "{:?}",
                    info.warnings
                );
                let expected = host.read_disk(SIZE / 512);
                assert_eq!(&expected[..512], [7; 512]);
                host.close().expect("the image closes");
                if read_only {
                    assert!(host.files == files);
                    continue;
                }
                assert!(full_blocks(&host.files[0]).is_some(), "{text}");
                let info = host
                    .open(Driver::Vhd, false)
                    .expect("the image opens again");
                assert_eq!(info.warnings, Vec::<String>::new());
                assert!(host.read_disk(SIZE / 512) == expected);
                let at = Parts::of(&host.files[0]).batmap_at();
                let header = Batmap::decode(&host.files[0][at..]).expect("there is a batmap");
                // A header that is gone takes its marker along.
                assert_eq!(header.marker, if text == "no header" { 0 } else { 3 });
            }
        }
    }
}

#[test]
fn a_wrong_batmap_never_becomes_right_by_itself() {
    // It calls block 19 full: a part of it is written, in a child, where the rest is the parent's.
    let (_, damage) = WRONG[6];
    let mut files = files(&[(0, u64::MAX)], &[0], true);
    damage(&mut files[0]);
    let mut host = host(files);
    host.open(Driver::Vhd, false).expect("the image opens");
    write(&mut host, 19 * PER_BLOCK, 1);
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    // As after a crash.
    let mut next = Host::new(host.files.clone(), SIZE as usize);
    next.open(Driver::Vhd, true).expect("the image opens");
    let disk = next.read_disk(SIZE / 512);
    assert_eq!(disk[19 * BLOCK as usize], 9);
    assert_eq!(disk[19 * BLOCK as usize + 512..][..512], [5; 512]);
    full_blocks(&host.files[0]);
}

#[test]
fn an_image_without_a_batmap_is_none_of_ours_to_give_one() {
    // What a guest could make of the first bitmap behind the BAT of another program's image.
    let mut image = files(&[(0, u64::MAX)], &[0, 5], false).remove(0);
    let end = image.len() - 512;
    for at in [0, end] {
        let mut footer = Parts::of(&image).footer;
        footer.creator_application = *b"win ";
        image[at..at + 512].copy_from_slice(&footer.encode());
    }
    let info = host(vec![image.clone()]).open(Driver::Vhd, false);
    assert_eq!(
        info.expect("the image opens").warnings,
        Vec::<String>::new()
    );
    let mut host = opened(vec![image.clone()]);
    write(&mut host, 0, PER_BLOCK);
    host.close().expect("the image closes");
    let at = Parts::of(&image).batmap_at();
    assert!(host.files[0][at..at + 1024] == image[at..at + 1024]);
}

#[test]
fn new_images_with_blktap_s_block_size_have_one() {
    for (size, sectors) in [(2 << 20, 1), (4097 * (2 << 20), 2)] {
        let mut host = Host::new(Vec::new(), 0);
        let spec = CreateSpec {
            path: images::name(0),
            disk_type: DiskType::Dynamic,
            size,
            block_size: 2 << 20,
            uuid: uuid(0),
            now: support::NOW,
            max_size: None,
        };
        host.create(spec).expect("the image is made");
        let parts = Parts::of(&host.files[0]);
        assert!(parts.footer.demands_batmap());
        let at = parts.batmap_at();
        let header = Batmap::decode(&host.files[0][at..]).expect("there is a batmap");
        assert_eq!(header, Batmap::new(at as u64 + 512, sectors));
        assert_eq!(full_blocks(&host.files[0]), Some(vec![]));
        let info = host.open(Driver::Vhd, false).expect("the image opens");
        assert_eq!(info.warnings, Vec::<String>::new());
    }
}

#[test]
fn old_versions_checksum_signed_bytes() {
    let mut files = files(&[(0, u64::MAX), (2, HALF)], &[0], false);
    change_header(&mut files[0], |header| {
        header.version = batmap::SIGNED_VERSION;
        header.checksum = batmap::checksum(&[0x80], batmap::SIGNED_VERSION);
    });
    let mut host = opened(files);
    write(&mut host, 2 * PER_BLOCK, PER_BLOCK);
    host.close().expect("the image closes");
    assert_eq!(full_blocks(&host.files[0]), Some(vec![0, 2]));
    let at = Parts::of(&host.files[0]).batmap_at();
    let header = Batmap::decode(&host.files[0][at..]).expect("there is a batmap");
    assert_eq!(header.version, batmap::SIGNED_VERSION);
}

#[test]
fn an_encrypted_image_is_refused_though_its_map_is_wrong() {
    let mut files = files(&[], &[], false);
    change_header(&mut files[0], |header| {
        header.checksum = 5;
        header.key_hash = Some(KeyHash {
            nonce: [1; 32],
            hash: [2; 32],
        });
    });
    let error = host(files)
        .open(Driver::Vhd, true)
        .expect_err("the image is encrypted");
    assert!(error.message.contains("encrypted"), "{error}");
}
