//! What can be mended without loss, decided before anything is changed. The rule: whoever reads the disk afterwards reads
//! what tapdisk read before. Whatever nobody can know for sure is left, with the reason.

mod displaced;

use serde::Serialize;

use crate::format::batmap::{self, Batmap};
use crate::format::footer::{self, DiskType};
use crate::jobs::check::codes::{self, Code};
use crate::jobs::check::examine::Examined;
use crate::jobs::check::findings::Findings;
use crate::jobs::check::footers::{self, Footers};
use crate::open::FileSpec;

/// A step of a plan, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// The codes of what it mends.
    pub codes: Vec<&'static str>,
    /// What it does.
    pub what: String,
    /// Byte offset of the first change in the file.
    pub offset: u64,
    /// Bytes that change.
    pub bytes: u64,
}

/// What a plan leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Left {
    /// Its code.
    pub code: &'static str,
    /// Why it is not mended, or what mends it.
    pub why: String,
}

/// What goes to an offset of the file.
pub(crate) type Piece = (u64, Content);

/// What a piece of the file gets.
#[derive(Debug)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// As many bytes as are at this other offset of the file, length last.
    CopyOf(u64, u64),
}

impl Content {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::CopyOf(_, length) => *length,
        }
    }
}

/// A step of a plan.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) planned: Planned,
    /// What to write, each piece durable before the next one.
    pub(crate) pieces: Vec<Piece>,
}

impl Step {
    fn new(found: &[&'static str], what: String, pieces: Vec<Piece>) -> Self {
        let offset = pieces
            .iter()
            .map(|(offset, _)| *offset)
            .min()
            .unwrap_or_default();
        let bytes = pieces.iter().map(|(_, content)| content.length()).sum();
        Self {
            planned: Planned {
                codes: found.to_vec(),
                what,
                offset,
                bytes,
            },
            pieces,
        }
    }
}

/// What would be done, and what wouldn't.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) left: Vec<Left>,
}

/// Blocks that lie where they can't: the BAT is wrong, or something else is.
const MISPLACED: [Code; 10] = [
    codes::BLOCK_ON_FOOTER_COPY,
    codes::BLOCK_ON_HEADER,
    codes::BLOCK_ON_BAT,
    codes::BLOCK_ON_BATMAP,
    codes::BLOCK_ON_LOCATOR,
    codes::BLOCK_ON_FOOTER,
    codes::BLOCK_PAST_END,
    codes::BLOCK_CUT,
    codes::BLOCKS_DUPLICATE,
    codes::BLOCKS_OVERLAP,
];

/// Blocks of which a footer at the end of the file could hide that they go on.
const AT_THE_END: [Code; 3] = [
    codes::BLOCK_ON_FOOTER,
    codes::BLOCK_PAST_END,
    codes::BLOCK_CUT,
];

/// Fields in which the copies of a footer may differ without changing what the disk contains, or what is done with it.
const HARMLESS: [&str; 10] = [
    "features",
    "format version",
    "time stamp",
    "creator application",
    "creator version",
    "creator host OS",
    "original size",
    "geometry",
    "saved state",
    "reserved bytes",
];

/// A checksum that no map of a batmap can have: it would have to have more than 8 million bytes.
const IMPOSSIBLE_CHECKSUM: u32 = 0x7fff_ffff;

/// Plans how to mend an image.
pub(crate) fn plan(file: &FileSpec, examined: &Examined, findings: &Findings) -> Plan {
    let mut planner = Planner {
        file,
        examined,
        findings,
        plan: Plan::default(),
        reasons: Vec::new(),
    };
    if let Some(why) = planner.hopeless() {
        planner.plan.left = findings
            .codes()
            .map(|code| Left {
                code,
                why: why.clone(),
            })
            .collect();
        return planner.plan;
    }
    planner.primary();
    planner.backup();
    planner.copies();
    planner.displaced();
    planner.missing_batmap();
    planner.batmap();
    planner.rest();
    planner.plan
}

struct Planner<'a> {
    file: &'a FileSpec,
    examined: &'a Examined,
    findings: &'a Findings,
    plan: Plan,
    reasons: Vec<(String, String)>,
}

impl Planner<'_> {
    /// Why nothing at all can be done.
    fn hopeless(&self) -> Option<String> {
        let footers = &self.examined.footers;
        let poisoned = [&footers.primary, &footers.backup]
            .iter()
            .any(|copy| copy.bytes.starts_with(&footer::POISON));
        let why = if poisoned {
            "an interrupted resize has to be reverted with its journal first"
        } else if self.findings.has(codes::FILE_UNREADABLE) {
            "a part of the file can't be read"
        } else if self.findings.has(codes::FOOTER_AMBIGUOUS) {
            "it is not certain what the image is"
        } else if !footers.reliable() {
            "no copy of the footer is good"
        } else {
            return self.without_header();
        };
        Some(why.to_owned())
    }

    fn without_header(&self) -> Option<String> {
        let footer = self.examined.footers.footer.as_ref()?;
        let good = self
            .examined
            .header
            .as_ref()
            .is_some_and(|state| state.good);
        (footer.disk_type != DiskType::Fixed && !(good && self.examined.table.is_some())).then(
            || {
                "the dynamic header is not good, so that nothing tells where the blocks are"
                    .to_owned()
            },
        )
    }

    /// The codes that begin so, among those that were found.
    fn found(&self, prefix: &str) -> Vec<&'static str> {
        self.findings
            .all_codes()
            .filter(|code| code.starts_with(prefix))
            .collect()
    }

    /// Whether what begins so is planned to be mended.
    fn mends(&self, prefix: &str) -> bool {
        let mut planned = self.plan.steps.iter().flat_map(|step| &step.planned.codes);
        planned.any(|code| code.starts_with(prefix))
    }

    fn leave(&mut self, prefix: &str, why: impl Into<String>) {
        self.reasons.push((prefix.to_owned(), why.into()));
    }

    /// The footer at the end, from the copy at offset 0.
    fn primary(&mut self) {
        let footers = &self.examined.footers;
        let odd_size = self.findings.has(codes::FILE_SIZE);
        let Some(table) = &self.examined.table else {
            return;
        };
        if footers.primary.good && !odd_size {
            return;
        }
        if self.findings.has_any(&AT_THE_END) {
            return self.leave(
                "footer-primary",
                "blocks go on past the end of the file, which may have been cut",
            );
        }
        let copy = if footers.primary.good {
            &footers.primary
        } else {
            &footers.backup
        };
        let bytes = copy.bytes.clone();
        let end = self.file.size.next_multiple_of(512);
        let data_end = table.data_end * 512;
        let at = if self.file.block_device {
            footers.primary.at
        } else if matches!(self.file.size % 512, 0 | 511) && end >= data_end + 512 {
            end - 512
        } else {
            end.max(data_end)
        };
        if at < data_end {
            return self.leave(
                "footer-primary",
                "the last block is where the footer has to be",
            );
        }
        let mut found = self.found("footer-primary");
        found.extend(self.found("footer-displaced"));
        found.extend(self.found("file-size"));
        let what = format!(
            "write the footer at offset {at}, as the copy at offset {} has it",
            copy.at
        );
        let pieces = vec![(at, Content::Bytes(bytes))];
        self.plan.steps.push(Step::new(&found, what, pieces));
    }

    /// The copy at offset 0, from the footer at the end.
    fn backup(&mut self) {
        let footers = &self.examined.footers;
        if footers.backup.good || !footers.primary.good || self.examined.table.is_none() {
            return;
        }
        if self.findings.has(codes::BLOCK_ON_FOOTER_COPY) {
            return self.leave("footer-backup", "a block lies there");
        }
        let what = "write the copy of the footer at offset 0, as the footer at the end has it";
        let step = Step::new(
            &self.found("footer-backup"),
            what.to_owned(),
            vec![(0, Content::Bytes(whole(footers)))],
        );
        self.plan.steps.push(step);
    }

    /// The copy at offset 0, where both are good and differ.
    fn copies(&mut self) {
        if !self.findings.has(codes::FOOTER_COPIES) {
            return;
        }
        let footers = &self.examined.footers;
        let differences = footers::differences(&footers.primary.bytes, &footers.backup.bytes);
        let names: Vec<&str> = differences
            .iter()
            .map(|index| footers::FIELDS[*index].0)
            .collect();
        if let Some(name) = names.iter().find(|name| !HARMLESS.contains(name)) {
            let why = format!(
                "they differ in the {name}, and nothing tells which is right: vhd-util repair keeps the one at the end, vhd-util repair -b the other"
            );
            self.leave("footer-backup", why.as_str());
            return self.leave("footer-copies", why);
        }
        let what = format!(
            "make the copy of the footer at offset 0 what the footer at the end is ({})",
            names.join(", ")
        );
        let mut found = self.found("footer-copies");
        found.extend(self.found("footer-backup"));
        let step = Step::new(&found, what, vec![(0, Content::Bytes(whole(footers)))]);
        self.plan.steps.push(step);
    }

    /// The batmap, from the bitmaps.
    fn batmap(&mut self) {
        let needed = [
            codes::BATMAP_CHECKSUM,
            codes::BATMAP_ABSENT_BLOCK,
            codes::BATMAP_VERSION,
        ];
        if !self.findings.has_any(&needed) {
            return;
        }
        let Some(state) = self.examined.batmap.as_ref().filter(|state| state.placed) else {
            return;
        };
        let Some(bitmaps) = self
            .examined
            .bitmaps
            .as_ref()
            .filter(|bitmaps| bitmaps.complete)
        else {
            return self.leave(
                "batmap",
                "not all bitmaps were read, of which it would be made",
            );
        };
        if self.findings.has_any(&MISPLACED) {
            return self.leave("batmap", "blocks are where they can't be");
        }
        if self.findings.has(codes::BATMAP_NOT_FULL) {
            return self.leave(
                "batmap",
                "it contradicts the bitmaps: what the disk reads would change",
            );
        }
        let mut header = state.header.clone();
        if self.findings.has(codes::BATMAP_VERSION) {
            header.version = batmap::VERSION;
        }
        let pieces = new_batmap(state.at, header, state.map.len(), &bitmaps.full);
        self.plan.steps.push(Step::new(
            &self.found("batmap"),
            NEW_BATMAP.to_owned(),
            pieces,
        ));
    }

    /// Everything else is left.
    fn rest(&mut self) {
        let mended: Vec<&str> = self
            .plan
            .steps
            .iter()
            .flat_map(|step| step.planned.codes.iter().copied())
            .collect();
        for code in self.findings.codes().filter(|code| !mended.contains(code)) {
            let reason = self
                .reasons
                .iter()
                .find(|(prefix, _)| code.starts_with(prefix.as_str()));
            let remedy = || {
                codes::all()
                    .into_iter()
                    .find(|one| one.name == code)
                    .map_or("", |one| one.remedy)
            };
            let why = reason.map_or_else(|| remedy().to_owned(), |(_, why)| why.clone());
            self.plan.left.push(Left { code, why });
        }
    }
}

const NEW_BATMAP: &str = "make the batmap anew from the bitmaps";

/// Writes a batmap of `bytes` bytes with a header like this one. In between the map has a checksum that fits nothing, so that
/// nobody goes by a map that is half the new one.
fn new_batmap(at: u64, mut header: Batmap, bytes: usize, full: &[u8]) -> Vec<Piece> {
    let mut map = vec![0; bytes];
    let known = map.len().min(full.len());
    map[..known].copy_from_slice(&full[..known]);
    header.checksum = IMPOSSIBLE_CHECKSUM;
    let invalid = header.encode().to_vec();
    header.checksum = batmap::checksum(&map, header.version);
    let valid = header.encode().to_vec();
    vec![
        (at, Content::Bytes(invalid)),
        (header.offset, Content::Bytes(map)),
        (at, Content::Bytes(valid)),
    ]
}

/// The footer at the end, or the copy if that one is bad, in 512 bytes.
fn whole(footers: &Footers) -> Vec<u8> {
    let copy = if footers.primary.good {
        &footers.primary
    } else {
        &footers.backup
    };
    let mut bytes = copy.bytes.clone();
    bytes.resize(footer::LENGTH, 0);
    bytes
}
