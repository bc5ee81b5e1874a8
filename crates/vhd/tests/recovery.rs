//! What follows a failure: nothing hangs, nothing that failed is taken for done, and nothing is put on top of newer data.

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::rc::Rc;

use support::Host;
use support::cuts::Explorer;
use support::images::{self, Spec, uuid};
use support::jobs;
use vhd::format::footer::{DiskType, Footer};
use vhd::jobs::CreateSpec;
use vhd::planted::{Bug, plant};
use vhd::record::{FLAG_FUA, Finished, OpKind, RequestKind};
use vhd::{Driver, Job};

const EIO: i32 = -5;

fn created(size: u64, block_size: u32) -> Vec<u8> {
    let mut host = Host::new(Vec::new(), 0);
    let disk_type = DiskType::Dynamic;
    host.create(CreateSpec {
        path: images::name(0),
        disk_type,
        size,
        block_size,
        uuid: uuid(0),
        now: support::NOW,
        max_size: None,
    })
    .expect("the image is made");
    host.files.remove(0)
}

fn partial(blocks: &[(u32, u64)], size: u64, block_size: u32) -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(0),
        size,
        block_size,
        parent: None,
        blocks,
        fill: |_| 7,
    };
    images::build(&spec, &mut vec![0; size as usize])
}

fn opened(image: Vec<u8>, cache: usize) -> Host {
    let mut host = Host::with_cache(vec![image], 16384, cache);
    host.open(Driver::Vhd, false).expect("the image opens");
    host
}

fn failing_syncs(host: &mut Host) {
    host.fault = Some(Box::new(|op| (op.kind == OpKind::Sync).then_some(EIO)));
}

#[test]
fn a_commit_of_many_long_runs_ends() {
    // Two neighbouring BAT sectors, a gap, and so on: more pieces than there are large chunks of staging memory.
    let mut host = opened(created(45 * 128 * 4096, 4096), 1 << 20);
    for block in (0..14_u64).flat_map(|run| [run * 3 * 128, (run * 3 + 1) * 128]) {
        assert_eq!(host.request(RequestKind::Write, block * 8, 8, 0), 0);
    }
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
}

#[test]
fn extents_of_large_blocks_are_made() {
    let mut host = opened(created(40 * (4 << 20), 4 << 20), 1 << 20);
    for block in 0..32_u64 {
        assert_eq!(host.request(RequestKind::Write, block * 8192, 8, 0), 0);
    }
}

#[test]
fn a_request_that_ends_as_the_disk_is_closed_is_answered() {
    let mut host = opened(partial(&[(0, u64::MAX)], 64 << 10, 4096), 1 << 20);
    host.submit(5, RequestKind::Read, 0, 0, 8, 0);
    host.engine.close();
    host.settle();
    assert!(matches!(host.engine.job(), Job::Over(Ok(_))));
    assert_eq!(host.finished, [Finished { tag: 5, status: 0 }]);
}

/// One of the writes of a commit fails, another one of them is slow, and the guest goes on meanwhile.
fn a_commit_with_a_slow_write_fails() {
    let mut host = opened(partial(&[(0, 0xf), (1, 0xf)], 64 << 10, 16384), 1 << 20);
    host.guest.fill(9);
    for sector in [8, 32 + 8] {
        assert_eq!(host.request(RequestKind::Write, sector, 1, 0), 0);
    }
    host.submit(1, RequestKind::Flush, 0, 0, 0, 0);
    host.complete(0);
    // The bitmaps of two blocks are on their way. One fails; the other is slow.
    let [first, held] = [host.in_flight[0].id, host.in_flight[1].id];
    host.fault = Some(Box::new(move |op| (op.id == first).then_some(EIO)));
    host.complete(0);
    host.fault = None;
    let others = |host: &mut Host| {
        while let Some(index) = host.in_flight.iter().position(|op| op.id != held) {
            host.complete(index);
        }
    };
    for (tag, sector) in [(2, 9), (3, 32 + 9)] {
        host.submit(tag, RequestKind::Write, 0, sector, 1, 0);
        others(&mut host);
    }
    host.submit(4, RequestKind::Flush, 0, 0, 0, 0);
    others(&mut host);
    host.settle();
    let statuses: BTreeMap<u32, i32> = host
        .finished
        .drain(..)
        .map(|it| (it.tag, it.status))
        .collect();
    assert_eq!(statuses, BTreeMap::from([(1, EIO), (2, 0), (3, 0), (4, 0)]));
    host.close().expect("the image closes");
    host.open(Driver::Vhd, true).expect("the image opens again");
    let disk = host.read_disk(64);
    assert_eq!(
        (disk[9 * 512], disk[41 * 512]),
        (9, 9),
        "what was flushed is gone"
    );
}

#[test]
fn a_failed_commit_ends_only_when_all_its_writes_have() {
    a_commit_with_a_slow_write_fails();
    plant(Some(Bug::FailedCommitLeavesWrites));
    let noticed = catch_unwind(a_commit_with_a_slow_write_fails);
    plant(None);
    assert!(noticed.is_err(), "a planted bug does not show");
}

#[test]
fn a_guest_s_fake_footer_is_never_at_the_end_of_the_file() {
    let mut image = partial(&[(0, u64::MAX)], 64 << 10, 16384);
    let fake = Footer::new(DiskType::Fixed, 4096, uuid(9), 1).encode();
    let footer_at = image.len() - 512;
    // The last sector of the last block, and an extent behind it that a crash orphaned.
    image[footer_at - 512..footer_at].copy_from_slice(&fake);
    let real = image.split_off(footer_at);
    image.resize(image.len() + 32768, 0);
    image.extend(real);
    let mut host = opened(image, 1 << 20);
    host.submit(1, RequestKind::Write, 0, 64, 1, 0);
    while !host.in_flight.is_empty() {
        host.complete(0);
        let mut next = Host::new(vec![host.files[0].clone()], 512);
        let info = next.open(Driver::Vhd, true).expect("the image opens");
        assert_eq!(info.disk_type, Some(DiskType::Dynamic));
    }
    // What other programs leave may end so: it is not taken for a fixed disk.
    let mut left = partial(&[(0, u64::MAX)], 64 << 10, 16384);
    left.truncate(left.len() - 1024);
    left.extend(fake);
    let error = Host::new(vec![left], 512)
        .open(Driver::Vhd, true)
        .expect_err("the file is ambiguous");
    assert!(
        error.message.contains("begins like a dynamic one"),
        "{error}"
    );
}

#[test]
fn an_extent_is_made_after_one_whose_sync_failed() {
    let good = partial(&[(0, u64::MAX)], 64 << 10, 16384);
    let mut bad_backup = good.clone();
    bad_backup[0] ^= 1;
    // Space behind the last block that a crash orphaned.
    let mut orphaned = good[..good.len() - 512].to_vec();
    orphaned.resize(good.len() + 32768, 0);
    orphaned.extend(&good[good.len() - 512..]);
    for image in [bad_backup, orphaned] {
        let mut host = opened(image, 1 << 20);
        failing_syncs(&mut host);
        assert_eq!(host.request(RequestKind::Write, 64, 1, 0), EIO);
        host.fault = None;
        host.guest.fill(9);
        assert_eq!(host.request(RequestKind::Write, 64, 1, 0), 0);
        // The failure was told to the write; a flush that comes later covers what it covers.
        host.request(RequestKind::Flush, 0, 0, 0);
        assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
        host.close().expect("the image closes");
        host.open(Driver::Vhd, true).expect("the image opens again");
        assert_eq!(host.read_disk(128)[64 * 512..65 * 512], [9; 512]);
    }
}

#[test]
fn the_failed_sync_of_a_commit_that_nobody_waits_for_is_told_to_the_next_flush() {
    let mut host = opened(partial(&[(0, 0xf)], 64 << 10, 16384), 1 << 20);
    assert_eq!(host.request(RequestKind::Write, 8, 1, 0), 0);
    failing_syncs(&mut host);
    host.engine.sync_metadata();
    host.settle();
    host.fault = None;
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), EIO);
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
}

#[test]
fn the_failed_sync_of_a_commit_that_nobody_waits_for_is_told_to_whoever_closes() {
    let mut host = opened(partial(&[(0, 0xf)], 64 << 10, 16384), 1 << 20);
    assert_eq!(host.request(RequestKind::Write, 8, 1, 0), 0);
    failing_syncs(&mut host);
    host.engine.sync_metadata();
    host.settle();
    host.fault = None;
    assert_eq!(host.close().map_err(|error| error.errno), Err(-EIO));
    assert_eq!(host.close(), Ok(()));
}

#[test]
fn a_failed_sync_is_told_to_the_next_flush_though_a_write_with_fua_was_told() {
    let mut host = opened(partial(&[(0, 0xf)], 64 << 10, 16384), 1 << 20);
    // Acknowledged, and perhaps lost with the sync that the other write needs.
    assert_eq!(host.request(RequestKind::Write, 8, 1, 0), 0);
    failing_syncs(&mut host);
    host.submit(1, RequestKind::Write, FLAG_FUA, 9, 1, 0);
    host.settle();
    host.fault = None;
    assert_eq!(host.finished.pop_front().map(|it| it.status), Some(EIO));
    // A write that comes later has nothing to do with it.
    host.submit(2, RequestKind::Write, FLAG_FUA, 10, 1, 0);
    host.settle();
    assert_eq!(host.finished.pop_front().map(|it| it.status), Some(0));
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), EIO);
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
}

#[test]
fn a_write_in_flight_when_a_sync_fails_fails_as_well() {
    let mut host = opened(created(64 << 10, 16384), 1 << 20);
    assert_eq!(host.request(RequestKind::Write, 31, 2, 0), 0);
    failing_syncs(&mut host);
    host.submit(1, RequestKind::Flush, 0, 0, 0, 0);
    // Two parts, one before and one after the sync: the first may be lost with it.
    host.submit(2, RequestKind::Write, 0, 31, 2, 0);
    let position = |host: &Host, kind| host.in_flight.iter().position(|op| op.kind == kind);
    let part = position(&host, OpKind::Write).expect("the write is on its way");
    host.complete(part);
    let sync = position(&host, OpKind::Sync).expect("the flush is on its way");
    host.complete(sync);
    host.settle();
    let statuses: Vec<(u32, i32)> = host.finished.iter().map(|it| (it.tag, it.status)).collect();
    assert_eq!(statuses, [(1, EIO), (2, EIO)]);
}

#[test]
fn closing_takes_along_what_the_last_commit_released() {
    let blocks = [(0, u64::MAX), (1, u64::MAX)];
    let mut host = opened(partial(&blocks, 64 << 10, 16384), 1 << 20);
    host.submit(1, RequestKind::Discard, 0, 32, 32, 0);
    host.submit(2, RequestKind::Flush, 0, 0, 0, 0);
    host.engine.close();
    host.settle();
    assert!(matches!(host.engine.job(), Job::Over(Ok(_))));
    let info = host.open(Driver::Vhd, true).expect("the image opens again");
    assert_eq!((info.allocated_blocks, info.warnings), (1, Vec::new()));
    assert_eq!(
        host.files[0].len(),
        partial(&blocks[..1], 64 << 10, 16384).len()
    );
}

#[test]
fn writes_that_need_room_in_the_cache_fail_when_commits_do() {
    let blocks: Vec<(u32, u64)> = (0..40).map(|block| (block, 0xf)).collect();
    let mut host = opened(partial(&blocks, 40 * 16384, 16384), 0);
    failing_syncs(&mut host);
    for block in 0..20 {
        host.submit(
            block,
            RequestKind::Write,
            0,
            u64::from(block) * 32 + 8,
            1,
            0,
        );
        host.settle();
        let finished = host.finished.pop_front().expect("the write ends");
        assert_eq!(finished.status, if block < 16 { 0 } else { EIO });
    }
}

#[test]
fn a_failed_commit_is_repeated_with_everything_in_it() {
    let count = 1100;
    let blocks: Vec<(u32, u64)> = (0..count).map(|block| (block, 0xf)).collect();
    let mut host = opened(partial(&blocks, u64::from(count) * 8192, 8192), 8 << 20);
    for block in 0..u64::from(count) {
        assert_eq!(host.request(RequestKind::Write, block * 16 + 8, 1, 0), 0);
    }
    let counts = Rc::new(RefCell::new((0, 0)));
    let seen = counts.clone();
    host.fault = Some(Box::new(move |op| {
        let (writes, syncs) = &mut *seen.borrow_mut();
        *writes += u32::from(op.kind == OpKind::Write);
        *syncs += u32::from(op.kind == OpKind::Sync);
        // The first is the barrier of the first round, the second that of the second.
        (op.kind == OpKind::Sync && *syncs == 2).then_some(EIO)
    }));
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), EIO);
    let first = counts.borrow().0;
    assert_eq!(host.request(RequestKind::Flush, 0, 0, 0), 0);
    assert_eq!(
        counts.borrow().0 - first,
        count + 1,
        "writes of the second flush: all bitmaps, and the footer again"
    );
}

#[test]
fn closing_mends_a_bad_backup_footer_before_it_moves_the_other() {
    let mut image = partial(&[(0, u64::MAX), (1, u64::MAX)], 64 << 10, 16384);
    image[0] ^= 1;
    let mut host = opened(image, 1 << 20);
    assert_eq!(host.request(RequestKind::Discard, 32, 32, 0), 0);
    let outcome = jobs::run(
        &mut Explorer::new(1),
        &mut host,
        &mut |host| host.engine.close(),
        &mut |left, _| {
            let opened = left.host(0).open(Driver::Vhd, true);
            opened.expect("the image opens");
        },
    );
    outcome.expect("the image closes");
}
