//! Mending images: what was readable reads the same afterwards, at every moment in between, and everything can be undone.

mod support;

use proptest::prelude::*;
use support::corrupt::{self, Corruption, Fate, SECTORS};
use support::cuts::Explorer;
use support::jobs::{self, State};
use support::{Host, images};
use vhd::error::Result;
use vhd::jobs::{CheckSpec, Depth, Ignore, ImageReport, MendSpec, Mended, Severity, UndoSpec};
use vhd::record::OpKind;
use vhd::{Driver, JobSpec, Outcome};

/// 2026-11-25.
const NOW: u64 = 1_795_600_000;
const UNDO: &str = "/disks/disk.vhd.undo";

fn mend_spec() -> JobSpec {
    JobSpec::Mend(MendSpec {
        path: images::name(0),
        undo: UNDO.to_owned(),
        depth: Depth::Full,
        now: NOW,
    })
}

fn undo_spec() -> JobSpec {
    JobSpec::Undo(UndoSpec {
        undo: UNDO.to_owned(),
        path: None,
    })
}

fn mend(host: &mut Host) -> Result<Mended> {
    match host.run_job(mend_spec())? {
        Outcome::Mended(mended) => Ok(*mended),
        other => panic!("{other:?}"),
    }
}

/// What the disk reads, where it can be opened.
fn content(files: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut host = Host::new(files.to_vec(), 64 << 10);
    host.open(Driver::Vhd, true).ok()?;
    Some(host.read_disk(SECTORS))
}

fn codes(image: &ImageReport) -> Vec<&'static str> {
    image
        .findings
        .iter()
        .map(|finding| finding.code.name)
        .collect()
}

fn is_note(image: &ImageReport, code: &str) -> bool {
    let finding = image
        .findings
        .iter()
        .find(|finding| finding.code.name == code);
    finding.is_none_or(|finding| finding.code.severity == Severity::Note)
}

fn mendable() -> impl Iterator<Item = Corruption> {
    corrupt::all()
        .into_iter()
        .filter(|one| one.fate == Fate::Mended)
}

#[test]
fn each_corruption_is_mended_or_left_with_a_reason_and_reads_as_before() {
    let mut wrong = Vec::new();
    for Corruption {
        code, fate, make, ..
    } in corrupt::all()
    {
        // Needs the data to be looked at, which mending doesn't.
        if code == "bitmap-data-under-clear" || code == "chain-loop" {
            continue;
        }
        let files = make();
        let before = content(&files);
        let mut host = Host::new(files.clone(), 0);
        let mended = mend(&mut host).expect("the job succeeds");
        let planned = mended
            .before
            .plan
            .iter()
            .any(|step| step.codes.contains(&code));
        let left = mended
            .before
            .left
            .iter()
            .any(|left| left.code == code && !left.why.is_empty());
        let gone = mended
            .after
            .as_ref()
            .is_some_and(|after| !codes(after).contains(&code));
        let good = match fate {
            Fate::Mended => planned && gone && !left,
            Fate::Left => !planned && (left || is_note(&mended.before, code)),
        };
        if !good {
            wrong.push(format!(
                "{code}: planned {planned}, left {left}, gone {gone}: {:?}",
                mended.before.plan
            ));
        }
        if before.is_some() {
            assert_eq!(content(&host.files[..files.len()]), before, "{code}");
        }
        assert!(
            host.files[1..files.len()] == files[1..],
            "{code}: parents are left alone"
        );
        assert_eq!(
            mended.undo.is_some(),
            !mended.before.plan.is_empty(),
            "{code}"
        );
        if mended.undo.is_none() {
            assert!(host.files == files, "{code}: nothing was changed");
            continue;
        }
        match host.run_job(undo_spec()) {
            Ok(Outcome::Undone(undone)) => assert_eq!(undone.path, images::name(0)),
            other => panic!("{code}: {other:?}"),
        }
        assert!(host.files[..files.len()] == files, "{code}: undone");
        assert!(
            !host.names.iter().any(|name| name == UNDO),
            "{code}: the undo file is gone"
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_power_cut_while_mending_loses_nothing_and_the_rest_is_mended_by_the_same_job() {
    let mut explorer = Explorer::new(1);
    for Corruption { code, make, .. } in mendable() {
        let files = make();
        let before = content(&files);
        for seed in 0..4 {
            explorer.begin(seed);
            let mut host = Host::new(files.clone(), 64 << 10);
            let outcome = jobs::run(
                &mut explorer,
                &mut host,
                &mut |host| host.engine.start(mend_spec()),
                &mut |left, state| {
                    let mut next = left.host(64 << 10);
                    if before.is_some() {
                        assert_eq!(content(&next.files), before, "{code}, {state:?}");
                    }
                    match mend(&mut next) {
                        Ok(mended) => {
                            let last = mended.after.unwrap_or(mended.before);
                            assert!(!codes(&last).contains(&code), "{code}, {state:?}");
                        }
                        // There is nothing to mend any more.
                        Err(error) => panic!("{code}, {state:?}: {error}"),
                    }
                    if before.is_some() {
                        assert_eq!(content(&next.files), before, "{code}, {state:?}");
                    }
                    if next.names.iter().any(|name| name == UNDO) {
                        next.run_job(undo_spec()).expect("it is undone");
                        assert!(next.files[0] == files[0], "{code}, {state:?}: undone");
                    }
                },
            );
            outcome.expect("the image is mended");
        }
    }
    assert!(explorer.distinct() > 200, "{}", explorer.distinct());
}

#[test]
fn nothing_is_left_of_an_undo_file_that_there_is_no_space_for() {
    for one in mendable() {
        let files = (one.make)();
        let mut host = Host::new(files.clone(), 0);
        let undo = files.len() as u16;
        host.fault = Some(Box::new(move |op| {
            (op.file == undo && op.kind == OpKind::Write).then_some(-28)
        }));
        let error = mend(&mut host).expect_err("it is full");
        assert_eq!(error.errno, 28, "{}: {error}", one.code);
        assert!(!host.names.contains(&UNDO.to_owned()), "{}", one.code);
        assert!(host.files[..files.len()] == files[..], "{}", one.code);
    }
}

#[test]
fn a_power_cut_while_undoing_is_made_up_for_by_the_same_job() {
    let mut explorer = Explorer::new(2);
    for Corruption { code, make, .. } in mendable() {
        let files = make();
        let before = content(&files);
        let mut host = Host::new(files.clone(), 64 << 10);
        mend(&mut host).expect("it is mended");
        let outcome = jobs::run(
            &mut explorer,
            &mut host,
            &mut |host| host.engine.start(undo_spec()),
            &mut |left, state| {
                let mut next = left.host(64 << 10);
                if before.is_some() {
                    assert_eq!(content(&next.files), before, "{code}, {state:?}");
                }
                if next.names.iter().any(|name| name == UNDO) {
                    assert_eq!(state, State::Running);
                    next.run_job(undo_spec()).expect("it is undone");
                }
                assert!(next.files[0] == files[0], "{code}, {state:?}");
            },
        );
        outcome.expect("it is undone");
    }
}

#[test]
fn an_operation_that_fails_leaves_an_image_that_reads_as_before() {
    for Corruption { code, make, .. } in mendable() {
        let files = make();
        let before = content(&files);
        for failing in 0.. {
            let mut host = Host::new(files.clone(), 64 << 10);
            let mut count = 0;
            host.fault = Some(Box::new(move |op| {
                let writes = matches!(op.kind, OpKind::Write | OpKind::Sync | OpKind::Truncate);
                count += usize::from(writes);
                (writes && count == failing + 1).then_some(-5)
            }));
            let outcome = mend(&mut host);
            if before.is_some() {
                assert_eq!(
                    content(&host.files),
                    before,
                    "{code}: operation {failing} fails"
                );
            }
            host.fault = None;
            if outcome.is_ok() {
                break;
            }
            mend(&mut host).expect("it is mended then");
            host.run_job(undo_spec()).expect("and undone");
            assert!(host.files[0] == files[0], "{code}");
        }
    }
}

#[test]
fn nothing_is_undone_that_something_else_has_changed_since() {
    let files = vec![{
        let mut file = corrupt::dynamic();
        file[..512].fill(0);
        file
    }];
    let mut host = Host::new(files, 0);
    mend(&mut host).expect("it is mended");
    host.files[0][100] ^= 1;
    let error = host
        .run_job(undo_spec())
        .expect_err("the image has changed");
    assert!(error.message.contains("changed since"), "{error}");
    // Nor is an undo file overwritten.
    let error = mend(&mut host).expect_err("there is an undo file");
    assert_eq!(error.errno, 17);
    host.files[0][100] ^= 1;
    // A block is allocated: whatever the repair changed need not be right any more.
    corrupt::entry(&mut host.files[0], 1, 99);
    let error = host
        .run_job(undo_spec())
        .expect_err("somebody has used the image");
    assert!(error.message.contains("changed since"), "{error}");
    corrupt::entry(&mut host.files[0], 1, u32::MAX);
    host.run_job(undo_spec()).expect("now it is undone");
}

#[test]
fn undo_files_are_not_believed() {
    let files = vec![corrupt::dynamic(), vec![9; 4096]];
    let mut host = Host::new(files.clone(), 0);
    host.names[1] = UNDO.to_owned();
    assert!(host.run_job(undo_spec()).is_err());
    // It is in the way only where there is something to mend.
    assert!(mend(&mut host).expect("nothing is wrong").undo.is_none());
    assert!(host.files == files);
    host.files[0][..512].fill(0);
    let damaged = host.files.clone();
    assert!(mend(&mut host).is_err());
    assert!(host.files == damaged);
}

proptest! {
    #![proptest_config(support::cases(256))]

    #[test]
    fn several_corruptions_at_once(
        damages in prop::collection::vec((0_usize..4096, any::<u8>()), 1..4),
        cut in 0_usize..3,
        summed: bool,
    ) {
        let mut file = corrupt::dynamic();
        let size = file.len();
        for (at, value) in damages {
            // The structures at the beginning, and the footer.
            let at = if at < 3072 { at } else { size - 512 + at % 512 };
            file[at] = value;
        }
        if summed {
            corrupt::primary(&mut file, 84, &[0]);
            corrupt::backup(&mut file, 84, &[0]);
            corrupt::header(&mut file, 60, &[0]);
        }
        file.truncate(size - [0, 512, 700][cut]);
        let files = vec![file];
        let before = content(&files);
        let mut host = Host::new(files.clone(), 0);
        let mended = mend(&mut host).expect("the job succeeds");
        if before.is_some() {
            prop_assert_eq!(content(&host.files[..1]), before);
        }
        for left in &mended.before.left {
            prop_assert!(!left.why.is_empty());
        }
        if let Some(after) = &mended.after {
            prop_assert_eq!(&after.plan, &Vec::new(), "once is enough");
            host.run_job(undo_spec()).expect("it is undone");
        }
        prop_assert!(host.files[0] == files[0]);
        let check = JobSpec::Check(CheckSpec {
            path: images::name(0),
            depth: Depth::Data,
            chain: true,
            stats: true,
            ignore: Ignore::default(),
            now: NOW,
        });
        prop_assert!(host.run_job(check).is_ok());
    }
}
