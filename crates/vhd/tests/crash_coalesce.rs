//! Power cuts at every step of a merge: the child always reads as before, and whoever starts the merge again, from the start
//! or from its record, ends it.

mod support;

use std::cell::RefCell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use support::chains::{Chain, Level, Root, chains};
use support::cuts::Explorer;
use support::jobs::{self, State};
use support::power::Left;
use support::{Host, images};
use vhd::jobs::{CoalesceSpec, Coalesced, OutputSpec, RecordSpec};
use vhd::{Driver, JobSpec, Outcome};

const SECTORS: u64 = 300;
const RECORD: &str = "/disks/record";
/// One of so many states is worked on.
const TRIES: usize = 6;

fn merge(level: usize, sparse: bool, interval: u64) -> CoalesceSpec {
    CoalesceSpec {
        path: images::name(0),
        into: Some(images::name(level)),
        output: None,
        sparse,
        dry_run: false,
        record: Some(RecordSpec {
            path: RECORD.to_owned(),
            resume: false,
            now: 1_800_000_000,
            interval,
        }),
    }
}

fn resumed(spec: &CoalesceSpec) -> CoalesceSpec {
    let mut spec = spec.clone();
    if let Some(record) = &mut spec.record {
        record.resume = true;
    }
    spec
}

/// A chain in which the image with index `child` fits into those below, or they grow; with `in_use`, without moving blocks.
fn fitting(mut chain: Chain, child: usize, in_use: bool) -> Chain {
    let sectors = chain.levels[child].sectors;
    for index in child + 1..chain.levels.len() {
        let grows = chain.grows(index);
        let level = &mut chain.levels[index];
        if !grows {
            level.sectors = level.sectors.max(sectors);
        }
        level.room |= in_use;
    }
    chain
}

struct Merge<'a> {
    chain: &'a Chain,
    contents: &'a [Vec<u8>],
    spec: CoalesceSpec,
    /// Index of the target.
    level: usize,
}

impl Merge<'_> {
    fn check(&self, files: &[Vec<u8>], over: bool) {
        let read = |index| {
            self.chain
                .read(files, index)
                .unwrap_or_else(|error| panic!("image {index} does not open: {error}"))
        };
        assert!(read(0) == self.contents[0], "the child reads otherwise");
        let target = read(self.level);
        if over {
            let child = &self.contents[0];
            assert!(
                target[..child.len()] == child[..],
                "the target lacks something"
            );
        }
    }

    /// Another run ends what is left, and tells where it went on.
    fn end(&self, left: &Left, resume: bool) -> u64 {
        let mut next = left.host(64 << 10);
        let spec = if resume {
            resumed(&self.spec)
        } else {
            self.spec.clone()
        };
        let coalesced = coalesce(&mut next, spec);
        self.check(&next.files, true);
        assert!(!next.names.iter().any(|name| name == RECORD));
        coalesced.resumed_at
    }
}

fn coalesce(host: &mut Host, spec: CoalesceSpec) -> Coalesced {
    match host.run_job(JobSpec::Coalesce(spec)) {
        Ok(Outcome::Coalesced(coalesced)) => coalesced,
        other => panic!("{other:?}"),
    }
}

fn report(name: &str, explorer: &Explorer, resumed: usize) {
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {} crash states, {resumed} of them gone on with from a record",
        explorer.distinct(),
    );
}

#[test]
fn of_merges() {
    let explorer = RefCell::new(Explorer::new(0));
    let from_record = RefCell::new(0);
    let intervals = prop_oneof![Just(1 << 30), Just(16 << 10), Just(4 << 10)];
    let strategy = (
        chains(2..5, SECTORS),
        1_usize..4,
        any::<bool>(),
        intervals,
        any::<u64>(),
    );
    support::until(strategy, |(chain, level, sparse, interval, seed)| {
        let mut explorer = explorer.borrow_mut();
        explorer.begin(seed);
        let level = level.min(chain.levels.len() - 1);
        let chain = fitting(chain, 0, false);
        let (files, contents) = chain.build();
        let spec = merge(level, sparse, interval);
        let merge = Merge {
            chain: &chain,
            contents: &contents,
            spec: spec.clone(),
            level,
        };
        let mut host = Host::new(files, 64 << 10);
        let mut states = 0;
        let outcome = jobs::run(
            &mut explorer,
            &mut host,
            &mut |host| host.engine.start(JobSpec::Coalesce(spec.clone())),
            &mut |left, state| {
                let over = matches!(state, State::Over { .. });
                merge.check(&left.files, over);
                states += 1;
                if states % TRIES == 0 {
                    let resumed_at = merge.end(left, states % (2 * TRIES) == 0);
                    *from_record.borrow_mut() += usize::from(resumed_at > 0);
                }
            },
        );
        outcome.expect("the merge succeeds");
        explorer.distinct() < 20_000
    });
    assert!(*from_record.borrow() > 100, "records are of use");
    report("merges", &explorer.borrow(), *from_record.borrow());
}

/// The simulator sees it when a record says more than is durable: it is moved ahead in every state, which must come out.
#[test]
fn a_record_that_runs_ahead_is_noticed() {
    let level = |bits| Level {
        bits: vec![bits; 40],
        sectors: SECTORS,
        room: false,
    };
    let chain = Chain {
        levels: vec![level(0xffff), level(0x0ff1)],
        root: Root::Dynamic,
    };
    let (files, contents) = chain.build();
    let spec = merge(1, false, 4 << 10);
    let merge = Merge {
        chain: &chain,
        contents: &contents,
        spec: spec.clone(),
        level: 1,
    };
    let mut explorer = Explorer::new(1);
    let mut host = Host::new(files.clone(), 64 << 10);
    let mut noticed = false;
    let record = record_of(&merge);
    let outcome = jobs::run(
        &mut explorer,
        &mut host,
        &mut |host| host.engine.start(JobSpec::Coalesce(spec.clone())),
        &mut |left, state| {
            if noticed || state != State::Running {
                return;
            }
            let mut left = left.clone();
            let file = left.names.iter().position(|name| name == RECORD);
            match file {
                Some(file) => left.files[file] = record.clone(),
                None => {
                    left.names.push(RECORD.to_owned());
                    left.files.push(record.clone());
                }
            }
            noticed = catch_unwind(AssertUnwindSafe(|| merge.end(&left, true))).is_err();
        },
    );
    outcome.expect("the merge succeeds");
    assert!(noticed, "a merge that ends too early is not seen");
}

/// The last record that a run of a merge makes.
fn record_of(merge: &Merge<'_>) -> Vec<u8> {
    let (files, _) = merge.chain.build();
    let mut host = Host::new(files, 0);
    host.engine.start(JobSpec::Coalesce(merge.spec.clone()));
    let mut record = Vec::new();
    loop {
        host.run();
        if let Some(file) = host.names.iter().position(|name| name == RECORD) {
            record.clone_from(&host.files[file]);
        }
        if !host.in_flight.is_empty() {
            host.complete(0);
        } else if let Some(want) = host.engine.want() {
            let answer = host.fulfil(want);
            host.engine.provide(answer);
        } else {
            assert_eq!(record.len(), 512);
            return record;
        }
    }
}

/// A guest reads through the child while its parents are merged: at every operation.
#[test]
fn a_reader_sees_nothing_of_a_merge() {
    let runner = &mut proptest::test_runner::TestRunner::new(support::cases(48));
    let strategy = (chains(3..5, SECTORS), any::<bool>(), any::<u64>());
    let outcome = runner.run(&strategy, |(chain, sparse, seed)| {
        // The reader's leaf is not concerned: its parents are merged.
        let chain = fitting(chain, 1, true);
        let (files, contents) = chain.build();
        let mut spec = merge(2, sparse, 8 << 10);
        spec.path = images::name(1);
        let mut host = Host::new(files.clone(), 64 << 10);
        let mut reader = Host::new(files, 64 << 10);
        reader.open(Driver::Vhd, true).expect("the leaf opens");
        host.engine.start(JobSpec::Coalesce(spec));
        host.run();
        let mut random = support::Random(seed);
        loop {
            if !host.in_flight.is_empty() {
                let index = random.below(host.in_flight.len());
                host.complete(index);
            } else if let Some(want) = host.engine.want() {
                let answer = host.fulfil(want);
                host.engine.provide(answer);
                host.run();
            } else {
                break;
            }
            // It opened the files before the merge began, and looks at them as they are now.
            let count = reader.files.len();
            reader.files.clone_from_slice(&host.files[..count]);
            prop_assert!(reader.read_disk(chain.levels[0].sectors) == contents[0]);
        }
        prop_assert!(matches!(host.job(), Ok(Outcome::Coalesced(_))));
        Ok(())
    });
    outcome.expect("a reader sees nothing");
}

#[test]
fn of_copies_into_a_new_image() {
    let explorer = RefCell::new(Explorer::new(0));
    let from_record = RefCell::new(0);
    support::until((chains(2..4, SECTORS), any::<u64>()), |(chain, seed)| {
        let mut explorer = explorer.borrow_mut();
        explorer.begin(seed);
        let (mut files, contents) = chain.build();
        let sectors = chain.levels[0].sectors;
        let output = files.len();
        let path = images::name(output);
        files.push(vec![0; sectors as usize * 512]);
        let spec = CoalesceSpec {
            into: None,
            output: Some(OutputSpec {
                path,
                driver: Driver::Aio,
            }),
            ..merge(1, false, 8 << 10)
        };
        let mut host = Host::new(files, 64 << 10);
        let mut states = 0;
        let outcome = jobs::run(
            &mut explorer,
            &mut host,
            &mut |host| host.engine.start(JobSpec::Coalesce(spec.clone())),
            &mut |left, state| {
                assert!(chain.read(&left.files, 0).expect("the child opens") == contents[0]);
                if matches!(state, State::Over { .. }) {
                    assert!(left.files[output] == contents[0]);
                }
                states += 1;
                if states % TRIES == 0 && left.names.iter().any(|name| name == RECORD) {
                    let mut next = left.host(64 << 10);
                    next.engine.start(JobSpec::Coalesce(resumed(&spec)));
                    match next.job() {
                        Ok(Outcome::Coalesced(coalesced)) => {
                            *from_record.borrow_mut() += usize::from(coalesced.resumed_at > 0);
                            assert!(next.files[output] == contents[0]);
                        }
                        Ok(other) => panic!("{other:?}"),
                        Err(error) => assert_eq!(error.structure, "record"),
                    }
                }
            },
        );
        outcome.expect("the copy succeeds");
        explorer.distinct() < 5_000
    });
    assert!(*from_record.borrow() > 50, "records are of use");
    report("copies", &explorer.borrow(), *from_record.borrow());
}
