//! Images on block devices: the footer keeps its place, data may grow up to it, and what was never written is not zeros.

mod support;

use support::Host;
use support::images::{self, Parent, SMALL_BLOCK as BLOCK, SMALL_SIZE as SIZE};
use vhd::Driver;
use vhd::format::footer::Footer;
use vhd::record::{OpKind, RequestKind};

const PER_BLOCK: u64 = BLOCK as u64 / 512;
/// Sectors from one block to the next, with their data aligned.
const STRIDE: usize = 24;
/// Sector of the first block: behind footer, header and a sector of BAT.
const FIRST: usize = 7;
const ENOSPC: i32 = -28;

fn image(blocks: &[(u32, u64)], parent: Option<Parent>) -> Vec<u8> {
    images::small(0, parent, blocks, |_| 7)
}

/// A device with room for so many more blocks behind the image's.
fn device(image: &[u8], room: usize) -> Host {
    let end = FIRST + room * STRIDE + image.len() / 512;
    host(vec![images::on_device(image, end * 512)])
}

fn host(files: Vec<Vec<u8>>) -> Host {
    let mut host = Host::new(files, SIZE as usize);
    host.leaf_is_device = true;
    host
}

fn write(host: &mut Host, sector: u64, sectors: u32) -> i32 {
    host.guest.fill(9);
    host.request(RequestKind::Write, sector, sectors, 0)
}

#[test]
fn what_was_never_written_reads_as_zeros() {
    let mut host = device(&image(&[], None), 4);
    host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!(write(&mut host, 3, 2), 0);
    assert_eq!(write(&mut host, PER_BLOCK, PER_BLOCK as u32), 0);
    for _ in 0..2 {
        let disk = host.read_disk(SIZE / 512);
        let written = |sector: u64| (3..5).contains(&sector) || (16..32).contains(&sector);
        for (sector, bytes) in (0..).zip(disk.chunks(512)) {
            assert_eq!(
                bytes,
                [if written(sector) { 9 } else { 0 }; 512],
                "{sector}"
            );
        }
        host.close().expect("the image closes");
        let info = host
            .open(Driver::Vhd, false)
            .expect("the image opens again");
        assert_eq!((info.allocated_blocks, info.warnings), (2, Vec::new()));
    }
}

#[test]
fn data_grow_up_to_the_footer_and_no_further() {
    let first = image(&[], None);
    // Exactly three blocks: the last ends where the footer begins.
    let bytes = (FIRST + 2 * STRIDE + 1 + PER_BLOCK as usize + 1) * 512;
    let mut host = host(vec![images::on_device(&first, bytes)]);
    host.open(Driver::Vhd, false).expect("the image opens");
    let statuses: Vec<i32> = (0..5)
        .map(|block| write(&mut host, block * PER_BLOCK, 1))
        .collect();
    assert_eq!(statuses, [0, 0, 0, ENOSPC, ENOSPC]);
    // The image stays good, and space that comes back is used.
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    assert_eq!(
        host.request(RequestKind::Discard, 0, PER_BLOCK as u32, 0),
        0
    );
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    assert_eq!(write(&mut host, 4 * PER_BLOCK, 1), 0);
    assert_eq!(write(&mut host, 0, 1), ENOSPC);
    host.close().expect("the image closes");
    assert_eq!(host.files[0].len(), bytes);
    assert_eq!(host.files[0][bytes - 512..], first[first.len() - 512..]);
    let info = host
        .open(Driver::Vhd, false)
        .expect("the image opens again");
    assert_eq!((info.allocated_blocks, info.warnings), (3, Vec::new()));
    let disk = host.read_disk(SIZE / 512);
    let first_bytes: Vec<u8> = (0..5).map(|block| disk[block * BLOCK as usize]).collect();
    assert_eq!(first_bytes, [0, 9, 9, 0, 9]);
}

/// A device with three blocks, all of them in use, and no room for another.
fn full_device() -> Host {
    let bytes = (FIRST + 2 * STRIDE + 1 + PER_BLOCK as usize + 1) * 512;
    let mut host = host(vec![images::on_device(&image(&[], None), bytes)]);
    host.open(Driver::Vhd, false).expect("the image opens");
    for block in 0..3 {
        assert_eq!(write(&mut host, block * PER_BLOCK, 1), 0);
    }
    host
}

fn discard(host: &mut Host, block: u64) {
    let (sector, count) = (block * PER_BLOCK, PER_BLOCK as u32);
    assert_eq!(host.request(RequestKind::Discard, sector, count, 0), 0);
}

#[test]
fn a_full_device_takes_writes_in_the_place_of_what_was_just_discarded() {
    let mut host = full_device();
    for round in 0..3 {
        discard(&mut host, round);
        assert_eq!(write(&mut host, (3 + round) * PER_BLOCK, 1), 0);
        assert_eq!(write(&mut host, round * PER_BLOCK, 1), ENOSPC);
    }
    // Several writes wait for a place, and some get none.
    discard(&mut host, 3);
    discard(&mut host, 4);
    for block in 6..9 {
        let tag = block as u32;
        let sector = block * PER_BLOCK;
        host.submit(tag, RequestKind::Write, 0, sector, 1, 0);
    }
    host.settle();
    let mut statuses: Vec<i32> = host.finished.drain(..).map(|it| it.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [ENOSPC, 0, 0]);
    host.close().expect("the image closes");
    let info = host.open(Driver::Vhd, true).expect("it opens again");
    assert_eq!((info.allocated_blocks, info.warnings), (3, Vec::new()));
}

#[test]
fn a_write_that_is_older_than_the_discard_does_not_wait_for_its_space() {
    let mut host = full_device();
    // It needs a place, and until it is over none that a later request gives back can be used.
    host.submit(1, RequestKind::Write, 0, 4 * PER_BLOCK, 1, 0);
    host.submit(2, RequestKind::Discard, 0, 0, PER_BLOCK as u32, 0);
    host.submit(3, RequestKind::Write, 0, 5 * PER_BLOCK, 1, 0);
    host.settle();
    let mut finished: Vec<(u32, i32)> = host
        .finished
        .drain(..)
        .map(|it| (it.tag, it.status))
        .collect();
    finished.sort_unstable();
    assert_eq!(finished[..2], [(1, ENOSPC), (2, 0)]);
    assert_eq!(finished.len(), 3);
    host.close().expect("the image closes");
}

#[test]
fn a_write_that_waits_for_discarded_space_is_told_when_that_does_not_come() {
    let mut host = full_device();
    discard(&mut host, 0);
    host.fault = Some(Box::new(|op| (op.kind == OpKind::Sync).then_some(-5)));
    assert_eq!(write(&mut host, 4 * PER_BLOCK, 1), -5);
    host.fault = None;
    assert_eq!(write(&mut host, 4 * PER_BLOCK, 1), 0);
    host.close().ok();
    host.close().expect("the image closes");
}

#[test]
fn a_footer_that_is_gone_comes_back_to_its_place() {
    let mut device = device(&image(&[(0, u64::MAX)], None), 4);
    let end = device.files[0].len() - 512;
    // As after the device was made larger.
    device.files[0][end..].fill(0xc7);
    let info = device.open(Driver::Vhd, false).expect("the copy serves");
    assert!(
        info.warnings[0].contains("using the backup footer"),
        "{:?}",
        info.warnings
    );
    device.close().expect("the image closes");
    assert_eq!(
        Footer::decode(&device.files[0][end..]),
        Footer::decode(&device.files[0])
    );
    let info = device
        .open(Driver::Vhd, true)
        .expect("the image opens again");
    assert_eq!(info.warnings, Vec::<String>::new());
}

#[test]
fn a_block_where_the_footer_goes_is_refused() {
    let image = image(&[(0, u64::MAX)], None);
    let mut device = host(vec![image[..image.len() - 512].to_vec()]);
    let error = device
        .open(Driver::Vhd, false)
        .expect_err("there is no place for the footer");
    assert!(error.message.contains("ends behind the end"), "{error}");
    device.open(Driver::Vhd, true).expect("it can be read");
}

#[test]
fn a_child_keeps_its_parent_in_sight() {
    let parent = images::small(1, None, &[(0, u64::MAX), (1, u64::MAX)], |_| 7);
    let child = image(&[], Some(Parent::named(1)));
    let mut host = host(vec![images::on_device(&child, 200 * 512), parent]);
    host.open(Driver::Vhd, false).expect("the chain opens");
    assert_eq!(write(&mut host, 2, 1), 0);
    host.close().expect("the image closes");
    host.open(Driver::Vhd, true).expect("the chain opens again");
    let disk = host.read_disk(SIZE / 512);
    let expected: Vec<u8> = (0..SIZE / 512)
        .map(|sector| match sector {
            2 => 9,
            0..32 => 7,
            _ => 0,
        })
        .collect();
    assert!(
        disk.chunks(512)
            .zip(expected)
            .all(|(bytes, byte)| bytes == [byte; 512])
    );
}

#[test]
fn an_image_that_was_only_read_is_left_alone() {
    let mut host = device(&image(&[(0, 0xff), (3, u64::MAX)], None), 4);
    let before = host.files.clone();
    host.open(Driver::Vhd, false).expect("the image opens");
    host.read_disk(SIZE / 512);
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    host.close().expect("the image closes");
    assert!(host.files == before);
    assert_eq!(host.counts[OpKind::Write as usize], 0);
}
