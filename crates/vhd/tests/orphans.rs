//! Orphaned space: gaps between blocks are found, made as good as new, and used before the file grows.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;
use support::Host;
use support::batmap::Parts;
use support::images::{self, SMALL_BLOCK as BLOCK, SMALL_BLOCKS as BLOCKS, SMALL_SIZE as SIZE};
use vhd::Driver;
use vhd::format::bat;
use vhd::record::{OpKind, RequestKind};

const PER_BLOCK: u32 = BLOCK / 512;
/// Sectors of a block with its bitmap.
const SPAN: u32 = PER_BLOCK + 1;

/// A dynamic image with full blocks, before each of which so many sectors are nobody's.
fn with_gaps(blocks: &[(u32, usize)]) -> Vec<u8> {
    let numbers: Vec<(u32, u64)> = blocks.iter().map(|(block, _)| (*block, u64::MAX)).collect();
    let image = images::small(0, None, &numbers, |_| 7);
    let gaps: Vec<usize> = blocks.iter().map(|(_, gap)| *gap).collect();
    images::with_gaps(&image, &gaps)
}

fn opened(image: Vec<u8>) -> Host {
    let mut host = Host::new(vec![image], SIZE as usize);
    let info = host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!(info.warnings, Vec::<String>::new());
    host
}

fn write_one(host: &mut Host, block: u32) -> i32 {
    host.guest[..512].fill(9);
    let sector = u64::from(block * PER_BLOCK) + 3;
    host.request(RequestKind::Write, sector, 1, 0)
}

fn check(host: &mut Host, written: &[u32], full: &[u32]) {
    let disk = host.read_disk(SIZE / 512);
    for (sector, bytes) in (0..).zip(disk.chunks(512)) {
        let block = sector / PER_BLOCK;
        let expected = if written.contains(&block) && sector % PER_BLOCK == 3 {
            9
        } else if full.contains(&block) {
            7
        } else {
            0
        };
        assert_eq!(bytes, [expected; 512], "sector {sector}");
    }
}

#[test]
fn gaps_are_filled_before_the_file_grows() {
    // Room for two blocks, for none, and for one.
    let image = with_gaps(&[(3, 2 * 24 + 8), (1, 16), (2, 24)]);
    let size = image.len();
    let mut host = opened(image);
    let written = [5, 6, 7];
    for block in written {
        assert_eq!(write_one(&mut host, block), 0);
        assert_eq!(
            host.files[0].len(),
            size,
            "the file grows though it has room"
        );
    }
    assert_eq!(write_one(&mut host, 8), 0);
    assert!(host.files[0].len() > size);
    host.close().expect("the image closes");
    let info = host.open(Driver::Vhd, true).expect("the image opens again");
    assert_eq!((info.allocated_blocks, info.warnings), (7, Vec::new()));
    check(&mut host, &[5, 6, 7, 8], &[1, 2, 3]);
}

#[test]
fn a_gap_as_large_as_a_block_takes_one_though_it_is_not_aligned() {
    let image = with_gaps(&[(3, 0), (1, SPAN as usize)]);
    let size = image.len();
    let mut host = opened(image);
    assert_eq!(write_one(&mut host, 5), 0);
    assert_eq!(host.files[0].len(), size);
    check(&mut host, &[5], &[1, 3]);
}

#[test]
fn a_sync_comes_before_the_first_use_and_nothing_is_used_that_can_not_be_cleaned() {
    let image = with_gaps(&[(3, 0), (1, 200)]);
    let size = image.len();
    let mut host = opened(image.clone());
    let order = Rc::new(RefCell::new(Vec::new()));
    let seen = order.clone();
    host.fault = Some(Box::new(move |op| {
        seen.borrow_mut().push(op.kind);
        None
    }));
    assert_eq!(write_one(&mut host, 5), 0);
    assert_eq!(order.borrow()[..2], [OpKind::Sync, OpKind::PunchHole]);
    assert_eq!(host.files[0].len(), size);

    // The kernel may have lost what makes the gap one.
    let mut host = opened(image.clone());
    host.fault = Some(Box::new(|op| (op.kind == OpKind::Sync).then_some(-5)));
    assert_eq!(write_one(&mut host, 5), -5);
    host.fault = None;
    assert_eq!(write_one(&mut host, 5), 0);
    assert!(host.files[0].len() > size);
    check(&mut host, &[5], &[1, 3]);

    let mut host = opened(image);
    host.fault = Some(Box::new(|op| (op.kind == OpKind::PunchHole).then_some(-5)));
    assert_eq!(write_one(&mut host, 5), 0);
    host.fault = None;
    check(&mut host, &[5], &[1, 3]);
}

#[test]
fn an_extent_is_smaller_where_there_is_no_space_for_a_large_one() {
    let image = with_gaps(&[(3, 0)]);
    let size = image.len();
    let mut host = opened(image);
    // A file system with room for two more blocks.
    let limit = size as u64 + 2 * 24 * 512;
    host.fault = Some(Box::new(move |op| {
        (op.kind == OpKind::Write && op.offset + op.length > limit).then_some(-28)
    }));
    let statuses: Vec<i32> = (5..9).map(|block| write_one(&mut host, block)).collect();
    let good = statuses.iter().take_while(|status| **status == 0).count();
    assert!(
        good > 0 && statuses[good..].iter().all(|status| *status == -28),
        "{statuses:?}"
    );
    host.fault = None;
    host.close().expect("the image closes");
    let info = host.open(Driver::Vhd, true).expect("the image opens again");
    assert_eq!(
        (info.allocated_blocks as usize, info.warnings),
        (1 + good, Vec::new())
    );
    let written: Vec<u32> = (5..5 + good as u32).collect();
    check(&mut host, &written, &[3]);
}

proptest! {
    #![proptest_config(support::cases(300))]

    #[test]
    fn any_layout(
        layout in prop::collection::vec((0..BLOCKS, 0_usize..120), 1..8),
        written in prop::collection::vec(0..BLOCKS, 1..20),
    ) {
        let mut blocks: Vec<(u32, usize)> = Vec::new();
        for (block, gap) in layout {
            if blocks.iter().all(|(other, _)| *other != block) {
                blocks.push((block, gap));
            }
        }
        let full: Vec<u32> = blocks.iter().map(|(block, _)| *block).collect();
        let image = with_gaps(&blocks);
        let size = image.len();
        // At least so many blocks have room in a gap, wherever it is.
        let room: usize = blocks.iter().map(|(_, gap)| gap / 24).sum();
        let mut host = opened(image);
        let mut new: Vec<u32> = Vec::new();
        for block in &written {
            prop_assert_eq!(write_one(&mut host, *block), 0);
            if !full.contains(block) && !new.contains(block) {
                new.push(*block);
            }
            prop_assert!(new.len() > room || host.files[0].len() == size, "the file grows though it has room");
        }
        check(&mut host, &written, &full);
        host.close().expect("the image closes");
        let info = host.open(Driver::Vhd, false).expect("the image opens again");
        prop_assert_eq!(info.allocated_blocks as usize, full.len() + new.len());
        prop_assert_eq!(info.warnings, Vec::<String>::new());
        check(&mut host, &written, &full);
        let used = Parts::of(&host.files[0]).bat.iter().filter(|place| **place != bat::UNUSED).count();
        prop_assert_eq!(used, full.len() + new.len());
    }
}
