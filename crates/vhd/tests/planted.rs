//! The tests of crash safety notice when a rule is broken: each bug that can be planted makes them fail before long.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use support::Host;
use support::cuts::Explorer;
use support::disks::{self, Disk};
use support::guest::{self, Guest, Mix};
use support::images;
use support::jobs;
use vhd::format::footer::DiskType;
use vhd::jobs::ResizeSpec;
use vhd::planted::{Bug, plant};
use vhd::{Driver, JobSpec};

/// Runs until which a bug must show.
const RUNS: u64 = 400;

/// What makes a bug show.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Guest's work on a new image.
    Empty,
    /// On one with partial bitmaps.
    Partial,
    /// Much of it, at the same sectors.
    EmptyLong,
    /// Much of it, with room for few bitmaps.
    SmallCache,
    /// While operations fail.
    Failures,
    /// On new images, while operations fail.
    FailuresOfAllocation,
    /// On an image whose copy of the footer is bad.
    BadBackup,
    /// On one with a batmap.
    Batmap,
    /// On a block device.
    Device,
    /// On one with space that is nobody's.
    Gaps,
    /// On a disk that grows.
    Growing,
    /// Making images.
    Create,
    /// Making a disk larger than its BAT has room for.
    Resize,
}

impl Work {
    fn run(self, seed: u64) {
        let empty = Just(Disk::Empty { block_size: 4096 }).boxed();
        let partial = Disk::partial(1, 8192).boxed();
        let usual = Mix::default();
        let faults = Mix {
            faults: 8,
            ..Mix::default()
        };
        let long = Mix {
            length: 40..100,
            restarts: false,
            bold: 0.4,
            ..Mix::default()
        };
        let (disk, cache, mix) = match self {
            Self::Create => return create(seed),
            Self::Resize => return resize(seed),
            Self::Batmap => (Disk::with_batmap(1).boxed(), 1 << 20, usual),
            Self::Device => (Disk::on_device(1).boxed(), 1 << 20, usual),
            Self::Growing => {
                let growing = Mix {
                    sectors: disks::SECTORS + 100,
                    growing: 10,
                    ..usual
                };
                (Disk::with_room_to_grow(2).boxed(), 1 << 20, growing)
            }
            Self::Gaps => (Disk::with_gaps(1).boxed(), 1 << 20, usual),
            Self::Empty => (empty, 1 << 20, usual),
            Self::EmptyLong => (empty, 1 << 20, long),
            Self::FailuresOfAllocation => (empty, 1 << 20, faults),
            Self::Partial | Self::BadBackup => (partial, 1 << 20, usual),
            Self::SmallCache => (Disk::partial(1, 4096).boxed(), 0, long),
            Self::Failures => (partial, 1 << 20, faults),
        };
        let strategy = (disk, guest::steps(&mix));
        let input = strategy.new_tree(&mut support::runner(seed));
        let (disk, steps) = input.expect("inputs can be made").current();
        let (mut files, disk) = disk.build();
        let mut explorer = Explorer::new(seed);
        if let Self::BadBackup = self {
            files[0][8] ^= 1;
        }
        let mut guest = match self {
            Self::Device => Guest::on_device(&mut explorer, files, &disk, cache),
            _ => Guest::new(&mut explorer, files, &disk, cache),
        };
        guest.bad_backup = matches!(self, Self::BadBackup);
        guest.steps(&steps);
    }
}

fn create(seed: u64) {
    let mut host = Host::new(Vec::new(), 0);
    let disk_type = [DiskType::Dynamic, DiskType::Fixed][seed as usize % 2];
    let outcome = jobs::run(
        &mut Explorer::new(seed),
        &mut host,
        &mut |host| {
            let spec = disks::create_spec(disk_type, 4096);
            host.engine.start(JobSpec::Create(spec));
        },
        &mut |left, state| {
            if state != jobs::State::Running {
                left.host(0).open(Driver::Vhd, true).expect("it opens");
            }
        },
    );
    outcome.expect("the image is made");
}

fn resize(seed: u64) {
    // Its locators move as well, so that both sectors of its header change.
    let strategy = Disk::partial(2, 8192);
    let input = strategy.new_tree(&mut support::runner(seed));
    let (files, disk) = input.expect("inputs can be made").current().build();
    let mut explorer = Explorer::new(seed);
    let mut guest = Guest::new(&mut explorer, files, &disk, 1 << 20);
    let spec = ResizeSpec {
        path: images::name(0),
        size: (disks::SECTORS + 4096) * 512,
        fast: false,
    };
    let resized = guest.job(&JobSpec::Resize(spec), &images::name(0));
    resized.expect("the size is changed");
}

fn shows(bug: Bug, work: Work) {
    plant(Some(bug));
    let run = (1..=RUNS).find(|seed| catch_unwind(AssertUnwindSafe(|| work.run(*seed))).is_err());
    plant(None);
    let run = run.unwrap_or_else(|| panic!("{bug:?} does not show in {RUNS} runs"));
    // So it is the bug that fails, and not the test.
    work.run(run);
}

/// A test for each bug, and one that there is one.
macro_rules! bugs {
    ($($test:ident: $bug:ident by $work:ident,)+) => {
        $(
            #[test]
            fn $test() {
                shows(Bug::$bug, Work::$work);
            }
        )+

        #[test]
        fn every_bug_is_planted() {
            // `tests/recovery.rs` plants that one.
            let elsewhere = Bug::FailedCommitLeavesWrites;
            assert_eq!(Bug::ALL, [$(Bug::$bug,)+ elsewhere]);
        }
    };
}

bugs! {
    no_barrier_for_bits: NoBarrierForBits by Partial,
    no_barrier_for_entries: NoBarrierForEntries by Empty,
    no_last_sync: NoLastSync by Partial,
    flush_joins_running_commit: FlushJoinsRunningCommit by Partial,
    fua_without_commit: FuaWithoutCommit by Empty,
    bit_before_data: BitBeforeData by Partial,
    dirty_bitmap_evicted: DirtyBitmapEvicted by SmallCache,
    pinned_bitmap_evicted: PinnedBitmapEvicted by SmallCache,
    sync_counts_too_much: SyncCountsTooMuch by Empty,
    footer_moves_without_backup: FooterMovesWithoutBackup by BadBackup,
    backup_not_synced: BackupNotSynced by BadBackup,
    stale_tail_kept: StaleTailKept by Empty,
    cut_at_guest_data: CutAtGuestData by Empty,
    close_cuts_at_guest_data: CloseCutsAtGuestData by Empty,
    close_without_commit: CloseWithoutCommit by Partial,
    reuse_before_commit: ReuseBeforeCommit by Empty,
    reuse_under_requests: ReuseUnderRequests by EmptyLong,
    reuse_unpunched: ReuseUnpunched by Partial,
    reuse_without_sync: ReuseWithoutSync by Empty,
    no_rewrite_after_failed_sync: NoRewriteAfterFailedSync by FailuresOfAllocation,
    failed_sync_untold: FailedSyncUntold by Failures,
    writes_trusted_after_failed_sync: WritesTrustedAfterFailedSync by Failures,
    failed_commit_forgotten: FailedCommitForgotten by Failures,
    create_not_synced: CreateNotSynced by Create,
    released_block_stays_full: ReleasedBlockStaysFull by Batmap,
    no_barrier_for_batmap: NoBarrierForBatmap by Batmap,
    born_full_on_device: BornFullOnDevice by Device,
    orphans_used_as_they_are: OrphansUsedAsTheyAre by Gaps,
    header_without_copy: HeaderWithoutCopy by Resize,
    moved_before_copied: MovedBeforeCopied by Resize,
    grown_before_commit: GrownBeforeCommit by Growing,
}
