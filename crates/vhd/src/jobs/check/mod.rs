//! Checking an image, and on demand its parents. Unlike opening, a check goes on after what it finds, and reads the
//! structures themselves: what is wrong, where, what it means, and what mends it.
//!
//! `codes.rs` has the catalogue of findings; the other modules each look at one structure, in the order of `examine.rs`.
//! Everything that blktap's `vhd-util check` notices has its words as well, and what it would say first is worked out
//! ([`ImageReport::original`]), so that our `vhd-util` can say the same.

mod batmap;
pub(crate) mod bitmaps;
mod chain;
pub(crate) mod checkup;
pub(crate) mod codes;
pub(crate) mod examine;
pub(crate) mod findings;
pub(crate) mod footers;
mod header;
mod locators;
mod space;
mod stats;
pub(crate) mod table;

use serde::{Deserialize, Serialize};

pub use codes::{Code, Severity, all as all_codes};
pub use findings::{Finding, Unlisted};
pub use stats::Stats;

use self::checkup::Checkup;
use self::examine::Examined;
use self::findings::Findings;
use super::Context;
use super::mend::plan::{self, Left, Planned};
use crate::error::Result;
use crate::format::footer::DiskType;
use crate::open::{Driver, FileSpec};
use crate::wants::Access;

/// Most images of a chain that are looked at.
const MAX_DEPTH: usize = 256;
/// Images in a chain at which storage managers stop.
const USUAL_DEPTH: usize = 30;

/// How much of an image is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Depth {
    /// Footers, header, BAT, batmap and parent.
    Quick,
    /// The bitmaps of all blocks as well.
    #[default]
    Full,
    /// The data under clear bits as well.
    Data,
}

/// What is not to be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ignore {
    /// A primary footer that the original calls invalid is left to us alone (`vhd-util check -i`).
    pub primary_footer: bool,
    /// Parents of another identity (`-I`).
    pub parent_uuid: bool,
    /// Time stamps (`-t`).
    pub timestamps: bool,
    /// Blocks that overlap (`-B`).
    pub overlaps: bool,
}

/// What to check, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckSpec {
    /// Path of the image.
    pub path: String,
    /// How much to look at.
    #[serde(default)]
    pub depth: Depth,
    /// Check all parents as well.
    #[serde(default)]
    pub chain: bool,
    /// Count the sectors of all images that are checked.
    #[serde(default)]
    pub stats: bool,
    /// What not to find.
    #[serde(default)]
    pub ignore: Ignore,
    /// The time now, Unix time in seconds, with which time stamps are compared; 0: they are not.
    #[serde(default)]
    pub now: u64,
}

/// What was found in an image and its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// The image, and after it the parents that were checked, nearest first.
    pub images: Vec<ImageReport>,
}

/// What an image is, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskFacts {
    /// `fixed`, `dynamic` or `differencing`.
    #[serde(rename = "type")]
    pub disk_type: String,
    /// Size of the virtual disk, bytes.
    pub size: u64,
    /// The image's UUID.
    pub uuid: String,
    /// The program that made it, as the footer has it.
    pub creator: String,
    /// Bytes in a block; 0 without a BAT.
    pub block_size: u32,
    /// Blocks of the disk; 0 without a BAT.
    pub blocks: u32,
    /// Blocks that are in this file; 0 without a BAT.
    pub allocated_blocks: u32,
}

/// What was found in one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReport {
    /// Its path.
    pub path: String,
    /// Bytes in its file.
    pub file_size: u64,
    /// It was open for writing elsewhere: what was found may have changed meanwhile.
    pub in_use: bool,
    /// What it is; nothing if no footer can be read.
    pub disk: Option<DiskFacts>,
    /// Path of the parent that was found.
    pub parent: Option<String>,
    /// Nothing kept the check from looking at everything that it was asked to.
    pub complete: bool,
    /// How many findings there are, by severity.
    pub errors: u64,
    /// How many findings there are, by severity.
    pub warnings: u64,
    /// How many findings there are, by severity.
    pub notes: u64,
    /// The findings, worst first; not more than 32 of each code.
    pub findings: Vec<Finding>,
    /// How many others there are.
    pub unlisted: Vec<Unlisted>,
    /// What would be done to mend it.
    pub plan: Vec<Planned>,
    /// What would be left, and why.
    pub left: Vec<Left>,
    /// Sectors, where they were asked for.
    pub stats: Option<Stats>,
    /// What blktap's `vhd-util check` would say before it gives up, which is not much where it is empty; nothing if it finds
    /// the image valid.
    pub original: Option<String>,
}

pub(super) async fn run(context: &Context, spec: &CheckSpec) -> Result<CheckReport> {
    let mut images: Vec<ImageReport> = Vec::new();
    let mut counted = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    let mut next = Some(spec.path.clone());
    while let Some(path) = next.take() {
        let in_use = is_in_use(context, &path).await;
        let file = context
            .open_file(&path, Driver::Vhd, Access::Inspect)
            .await?;
        let mut checkup = Checkup {
            io: &context.io,
            file: &file,
            ignore: spec.ignore,
            now: spec.now,
            findings: Findings::default(),
        };
        seen.push(file.real_path.clone());
        let mut examined = examine::examine(context, &mut checkup, spec.depth).await?;
        if spec.chain
            && let Some(parent) = examined.parent.as_ref().filter(|parent| !parent.raw)
        {
            next = follow(&mut checkup, &seen, parent);
        }
        if seen.len() == USUAL_DEPTH + 1 {
            let message = format!("there are more than {USUAL_DEPTH} images in the chain");
            checkup.add(Finding::new(codes::CHAIN_DEPTH, "dynamic header", message));
        }
        let findings = checkup.findings;
        let mut report = report(&file, &examined, findings);
        report.in_use = in_use;
        images.push(report);
        if let Some(table) = examined.table.take().filter(|_| spec.stats) {
            counted.push(stats::Counted {
                file: file.file,
                size: file.size,
                table,
            });
        } else {
            context.files.close(file.file).await;
        }
    }
    if spec.stats {
        let stats = stats::count(context, &counted).await?;
        for (image, stats) in images.iter_mut().zip(stats) {
            image.stats = Some(stats);
        }
    }
    Ok(CheckReport { images })
}

/// The path of the next image of a chain, unless it was there before.
fn follow(checkup: &mut Checkup<'_>, seen: &[String], parent: &chain::Parent) -> Option<String> {
    let loops = seen.contains(&parent.real_path);
    if loops || seen.len() >= MAX_DEPTH {
        let message = if loops {
            format!("the parent '{}' is a child of this image", parent.path)
        } else {
            format!("there are more than {MAX_DEPTH} images in the chain")
        };
        checkup.add(Finding::new(codes::CHAIN_LOOP, "dynamic header", message));
        return None;
    }
    Some(parent.path.clone())
}

/// Whether somebody writes to a file, as far as locks tell. Asked for a moment only: a check keeps no disk from being used.
async fn is_in_use(context: &Context, path: &str) -> bool {
    const EBUSY: i32 = 16;
    match context.files.open(path, Driver::Vhd, Access::Read).await {
        Ok(file) => {
            context.files.close(file.file).await;
            false
        }
        Err(errno) => errno == EBUSY,
    }
}

/// What a check tells of an image.
pub(super) fn report(file: &FileSpec, examined: &Examined, findings: Findings) -> ImageReport {
    let plan = plan::plan(file, examined, &findings);
    let (errors, warnings) = (
        findings.count(Severity::Error),
        findings.count(Severity::Warning),
    );
    let notes = findings.count(Severity::Note);
    let original = findings.original().map(str::to_owned);
    let (findings, unlisted) = findings.into_parts();
    ImageReport {
        path: file.path.clone(),
        file_size: file.size,
        in_use: false,
        disk: facts(examined),
        parent: examined.parent.as_ref().map(|parent| parent.path.clone()),
        complete: examined.complete,
        errors,
        warnings,
        notes,
        findings,
        unlisted,
        plan: plan.steps.iter().map(|step| step.planned.clone()).collect(),
        left: plan.left,
        stats: None,
        original,
    }
}

fn facts(examined: &Examined) -> Option<DiskFacts> {
    let footer = examined.footers.footer.as_ref()?;
    let table = examined
        .table
        .as_ref()
        .filter(|_| footer.disk_type != DiskType::Fixed);
    let header = examined.header.as_ref();
    let creator = String::from_utf8_lossy(&footer.creator_application);
    Some(DiskFacts {
        disk_type: footer.disk_type.to_string(),
        size: footer.current_size,
        uuid: footer.uuid.to_string(),
        creator: creator.trim_end_matches(['\0', ' ']).to_owned(),
        block_size: header.map_or(0, |state| state.header.block_size),
        blocks: table.map_or(0, |table| table.count),
        allocated_blocks: table.map_or(0, table::Table::allocated),
    })
}
