//! Checking images: each kind of corruption is found by its code, and what the original would say of it is known.

mod support;

use std::collections::BTreeSet;

use support::corrupt::{self, Corruption};
use support::{Host, images};
use vhd::jobs::{CheckReport, CheckSpec, Depth, Ignore, Severity, all_codes};
use vhd::record::OpKind;
use vhd::{JobSpec, Outcome};

/// 2026-11-25.
const NOW: u64 = 1_795_600_000;

fn spec(depth: Depth, chain: bool) -> CheckSpec {
    CheckSpec {
        path: images::name(0),
        depth,
        chain,
        stats: false,
        ignore: Ignore::default(),
        now: NOW,
    }
}

fn run(host: &mut Host, spec: CheckSpec) -> CheckReport {
    match host.run_job(JobSpec::Check(spec)) {
        Ok(Outcome::Checked(report)) => report,
        other => panic!("{other:?}"),
    }
}

fn check(files: Vec<Vec<u8>>, spec: CheckSpec) -> CheckReport {
    let mut host = Host::new(files.clone(), 0);
    let report = run(&mut host, spec);
    assert!(host.files == files, "a check changes nothing");
    report
}

fn codes(report: &CheckReport) -> BTreeSet<&'static str> {
    let findings = report.images.iter().flat_map(|image| &image.findings);
    findings.map(|finding| finding.code.name).collect()
}

/// The codes that are more than notes.
fn complaints(report: &CheckReport) -> Vec<&'static str> {
    let findings = report.images.iter().flat_map(|image| &image.findings);
    let complaints = findings.filter(|finding| finding.code.severity > Severity::Note);
    complaints.map(|finding| finding.code.name).collect()
}

#[test]
fn good_images_are_good() {
    let chain = vec![corrupt::child(), corrupt::parent()];
    for files in [
        vec![corrupt::dynamic()],
        vec![corrupt::without_batmap()],
        vec![corrupt::fixed()],
        chain,
    ] {
        let report = check(files, spec(Depth::Data, true));
        assert_eq!(complaints(&report), Vec::<&str>::new());
        for image in &report.images {
            assert_eq!((image.original.as_deref(), image.complete), (None, true));
            assert_eq!((image.plan.len(), image.left.len()), (0, 0));
        }
    }
}

#[test]
fn every_corruption_is_found_by_its_code_and_in_the_words_of_the_original() {
    let mut found = BTreeSet::new();
    let mut wrong = Vec::new();
    for Corruption {
        code,
        original,
        make,
        ..
    } in corrupt::all()
    {
        let report = check(make(), spec(Depth::Data, true));
        let codes = codes(&report);
        let says = report.images[0].original.as_deref();
        if !codes.contains(code) || says != original {
            wrong.push(format!("{code}: {codes:?}, {says:?} and not {original:?}"));
        }
        found.insert(code);
    }
    assert_eq!(wrong, Vec::<String>::new());
    // The ones that need something else than a file, and have a test of their own.
    found.extend(["file-unreadable", "chain-depth"]);
    let all: BTreeSet<&str> = all_codes().iter().map(|code| code.name).collect();
    assert_eq!(
        all.difference(&found).collect::<Vec<_>>(),
        Vec::<&&str>::new()
    );
}

#[test]
fn what_is_to_be_ignored_is() {
    let ignoring = |ignore: Ignore| CheckSpec {
        ignore,
        ..spec(Depth::Data, false)
    };
    let verdict = |files: Vec<Vec<u8>>, ignore: Ignore| {
        check(files, ignoring(ignore)).images[0].original.clone()
    };
    let make = |code: &str| {
        let all = corrupt::all();
        let corruption = all
            .iter()
            .find(|one| one.code == code)
            .expect("there is one");
        (corruption.make)()
    };
    let primary_footer = Ignore {
        primary_footer: true,
        ..Ignore::default()
    };
    assert_eq!(verdict(make("footer-primary-cookie"), primary_footer), None);
    assert_eq!(verdict(make("footer-copies-differ"), primary_footer), None);
    let parent_uuid = Ignore {
        parent_uuid: true,
        ..Ignore::default()
    };
    assert_eq!(verdict(make("parent-uuid"), parent_uuid), None);
    let timestamps = Ignore {
        timestamps: true,
        ..Ignore::default()
    };
    assert_eq!(verdict(make("footer-primary-timestamp"), timestamps), None);
    let overlaps = Ignore {
        overlaps: true,
        ..Ignore::default()
    };
    assert_eq!(verdict(make("blocks-duplicate"), overlaps), None);
}

#[test]
fn a_sector_that_can_not_be_read_is_found_and_the_check_goes_on() {
    let file = corrupt::dynamic();
    let bitmap = u64::from(corrupt::place(&file, 2)) * 512;
    for offset in [0, 512, corrupt::TABLE as u64, bitmap] {
        let mut host = Host::new(vec![file.clone()], 0);
        host.fault = Some(Box::new(move |op| {
            (op.kind == OpKind::Read && op.offset == offset).then_some(-5)
        }));
        let report = run(&mut host, spec(Depth::Full, false));
        let image = &report.images[0];
        let finding = image
            .findings
            .iter()
            .find(|finding| finding.code.name == "file-unreadable");
        assert_eq!(
            finding.and_then(|finding| finding.offset),
            Some(offset),
            "{:?}",
            image.findings
        );
        assert!(image.plan.is_empty());
        assert!(!image.complete);
    }
    let data = bitmap + 512;
    let mut host = Host::new(vec![corrupt::child(), corrupt::parent()], 0);
    host.fault = Some(Box::new(move |op| {
        (op.kind == OpKind::DataMap).then_some(-5)
    }));
    assert!(
        data > 0 && codes(&run(&mut host, spec(Depth::Data, false))).contains("file-unreadable")
    );
}

#[test]
fn a_long_chain_is_followed_to_its_end() {
    let length = 33;
    let files: Vec<Vec<u8>> = (0..length)
        .map(|index| {
            let parent = (index + 1 < length).then(|| images::Parent {
                uuid: images::uuid(index + 1),
                locator: (*b"MacX", images::name(index + 1)),
            });
            let spec = images::Spec {
                uuid: images::uuid(index),
                size: 64 << 10,
                block_size: 4096,
                parent,
                blocks: &[(0, u64::MAX)],
                fill: |_| 1,
            };
            images::build(&spec, &mut Vec::new())
        })
        .collect();
    let report = check(files.clone(), spec(Depth::Full, true));
    assert_eq!(report.images.len(), length);
    assert_eq!(complaints(&report), ["chain-depth"]);
    assert_eq!(check(files, spec(Depth::Full, false)).images.len(), 1);
}

#[test]
fn sectors_of_a_chain_are_counted() {
    let files = vec![corrupt::child(), corrupt::parent()];
    let report = check(
        files,
        CheckSpec {
            stats: true,
            ..spec(Depth::Quick, true)
        },
    );
    let stats: Vec<_> = report
        .images
        .iter()
        .map(|image| image.stats.expect("they are counted"))
        .collect();
    // The child has 8 sectors of block 1, which the parent doesn't have at all.
    assert_eq!((stats[0].allocated, stats[0].written), (16, 8));
    assert_eq!((stats[0].not_in_parent, stats[0].not_in_ancestors), (8, 8));
    // 16 + 16 + 8 + 15 of four blocks.
    assert_eq!((stats[1].allocated, stats[1].written), (64, 55));
}

#[test]
fn a_broken_table_is_described_within_bounds() {
    let mut file = corrupt::without_batmap();
    for block in 0..12 {
        corrupt::entry(&mut file, block, 9);
    }
    let blocks: Vec<(u32, u64)> = (0..512).map(|block| (block, 0)).collect();
    let spec_of = images::Spec {
        uuid: images::uuid(0),
        size: 512 * 4096,
        block_size: 4096,
        parent: None,
        blocks: &blocks,
        fill: |_| 1,
    };
    let mut large = images::build(&spec_of, &mut Vec::new());
    for block in 0..512 {
        corrupt::entry(&mut large, block, 9);
    }
    let report = check(vec![large], spec(Depth::Full, false));
    let image = &report.images[0];
    assert_eq!(
        image
            .findings
            .iter()
            .filter(|finding| finding.code.name == "blocks-duplicate")
            .count(),
        32
    );
    assert_eq!(
        image
            .unlisted
            .iter()
            .find(|one| one.code == "blocks-duplicate")
            .map(|one| one.count),
        Some(479)
    );
    assert_eq!(
        complaints(&check(vec![file], spec(Depth::Full, false))).len(),
        11
    );
}
