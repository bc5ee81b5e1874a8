//! Blocks that lie on other structures, as other programs put them: reading goes without what they lie on, writing is
//! refused.

mod support;

use support::Host;
use support::batmap::{Parts, with_batmap};
use support::images::{Parent, SMALL_BLOCK as BLOCK, SMALL_SIZE as SIZE, small, uuid};
use vhd::error::Error;
use vhd::format::bat;
use vhd::format::header::Header;
use vhd::record::RequestKind;
use vhd::{Driver, ImageInfo};

const TABLE: usize = 1536;
/// Behind footer, header and BAT.
const TABLE_END: usize = 2048;

/// Puts a full block 0 where it does not belong: at `sector`, and the footer behind it.
fn with_block_at(image: &[u8], sector: usize) -> Vec<u8> {
    let footer = &image[image.len() - 512..];
    let mut file = image[..sector * 512].to_vec();
    file.extend([0xff; 512]);
    file.extend(vec![8; BLOCK as usize]);
    file.extend(footer);
    file[TABLE..TABLE + 4].copy_from_slice(&(sector as u32).to_be_bytes());
    file
}

fn change_header(file: &mut [u8], change: impl FnOnce(&mut Header)) {
    let mut header = Header::decode(&file[512..]).expect("the header is good");
    change(&mut header);
    file[512..TABLE].copy_from_slice(&header.encode());
}

/// Opens a chain for reading, which must go with a warning, and for writing, which must not.
fn opened(files: &[Vec<u8>], what: &str) -> (Host, ImageInfo, Error) {
    let mut host = Host::new(files.to_vec(), SIZE as usize);
    let error = host
        .open(Driver::Vhd, false)
        .expect_err("it is not to be written");
    assert!(error.message.contains(what), "{error}");
    assert_eq!((error.structure, error.offset), ("BAT", Some(TABLE as u64)));
    assert!(error.found.is_some() && error.expected.is_some(), "{error}");
    let info = host.open(Driver::Vhd, true).expect("it can be read");
    assert!(
        info.warnings.iter().any(|warning| warning.contains(what)),
        "{:?}",
        info.warnings
    );
    assert!(host.files == files);
    (host, info, error)
}

#[test]
fn on_a_parent_locator() {
    let parent = |index| small(index, None, &[(5, u64::MAX)], |_| 5);
    let child = small(
        0,
        Some(Parent {
            uuid: uuid(1),
            locator: (*b"W2ku", "base/parent1.vhd".to_owned()),
        }),
        &[],
        |_| 7,
    );
    let mut child = with_block_at(&child, TABLE_END / 512);
    // What the guest makes of the block's bitmap is a path to another image with the parent's UUID.
    let path: Vec<u8> = "evil.vhd\0"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    child[TABLE_END..][..path.len()].copy_from_slice(&path);
    let evil = small(1, None, &[(5, u64::MAX)], |_| 6);
    let files = [child, parent(1), evil];
    let what = "block 0 lies on the data of parent locator 0";
    let mut host = Host::new(files.to_vec(), SIZE as usize);
    host.names = ["/disks/disk.vhd", "/disks/parent1.vhd", "/disks/evil.vhd"]
        .map(str::to_owned)
        .to_vec();
    let error = host
        .open(Driver::Vhd, false)
        .expect_err("it is not to be written");
    assert!(error.message.contains(what), "{error}");
    let info = host.open(Driver::Vhd, true).expect("it can be read");
    assert!(
        info.warnings.iter().any(|warning| warning == what),
        "{:?}",
        info.warnings
    );
    let disk = host.read_disk(SIZE / 512);
    assert_eq!(
        disk[5 * BLOCK as usize],
        5,
        "the parent is not the one that the header names"
    );
}

#[test]
fn on_the_batmap() {
    let image = with_batmap(&small(0, None, &[], |_| 7), &[]);
    let at = Parts::of(&image).batmap_at() / 512;
    // As qemu does it with an image of blktap's.
    let (mut host, info, _) = opened(
        &[with_block_at(&image, at)],
        "block 0 lies on the batmap's header",
    );
    assert_eq!(info.allocated_blocks, 1);
    assert_eq!(host.read_disk(16), vec![8; BLOCK as usize]);
    let (mut host, ..) = opened(
        &[with_block_at(&image, at + 1)],
        "block 0 lies on the batmap",
    );
    assert_eq!(host.read_disk(16), vec![8; BLOCK as usize]);
}

#[test]
fn on_the_unused_part_of_the_table() {
    let mut image = small(0, None, &[], |_| 7);
    change_header(&mut image, |header| header.max_table_entries = 1000);
    let mut file = with_block_at(&image, TABLE_END / 512 + 1);
    let (mut host, ..) = opened(
        &[file.clone()],
        "block 0 lies on the unused part of the BAT",
    );
    assert_eq!(host.read_disk(16), vec![8; BLOCK as usize]);
    // On the part that is used, nothing goes.
    file[TABLE..TABLE + 4].copy_from_slice(&3_u32.to_be_bytes());
    let error = Host::new(vec![file], 0).open(Driver::Vhd, true);
    assert!(
        error
            .expect_err("it is refused")
            .message
            .contains("lies on the footer's copy")
    );
}

#[test]
fn nothing_is_put_on_a_table_larger_than_the_disk_needs() {
    let image = small(0, None, &[], |_| 7);
    let mut file = image[..TABLE_END].to_vec();
    // 2000 entries: 16 sectors.
    let end = TABLE + 16 * 512;
    file.resize(end, 0xff);
    file.extend(&image[TABLE_END..]);
    change_header(&mut file, |header| header.max_table_entries = 2000);
    let mut host = Host::new(vec![file], SIZE as usize);
    let info = host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!(info.warnings, Vec::<String>::new());
    assert_eq!(
        host.request(RequestKind::Write, 0, (SIZE / 512) as u32, 0),
        0
    );
    host.close().expect("the image closes");
    let parts = Parts::of(&host.files[0]);
    assert!(
        parts.bat[..20]
            .iter()
            .all(|place| *place as usize * 512 >= end)
    );
    assert!(parts.bat[20..].iter().all(|place| *place == bat::UNUSED));
    let info = host
        .open(Driver::Vhd, false)
        .expect("the image opens again");
    assert_eq!((info.allocated_blocks, info.warnings), (20, Vec::new()));
}
