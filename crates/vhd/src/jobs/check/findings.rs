//! Findings, and the list that a check fills: bounded, however broken an image is.

use std::collections::BTreeMap;

use serde::Serialize;

use super::codes::{Code, Severity};

/// Findings of one kind that are listed; the others are only counted.
const LISTED_PER_CODE: u64 = 32;

/// Something that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What kind it is of.
    #[serde(flatten)]
    pub code: Code,
    /// The structure of the file where it is.
    pub structure: String,
    /// Byte offset in the file.
    pub offset: Option<u64>,
    /// Block of the disk.
    pub block: Option<u32>,
    /// What is the matter, in words.
    pub message: String,
    /// What is there.
    pub found: Option<String>,
    /// What should be there.
    pub expected: Option<String>,
    /// What blktap's `vhd-util check` says of it, if it would notice; one line or more.
    pub original: Option<String>,
}

impl Finding {
    /// A finding of this kind in a structure.
    pub(crate) fn new(
        code: Code,
        structure: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            code,
            structure: structure.into(),
            offset: None,
            block: None,
            message: message.into(),
            found: None,
            expected: None,
            original: None,
        }
    }

    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    pub(crate) fn of_block(mut self, block: u32) -> Self {
        self.block = Some(block);
        self
    }

    pub(crate) fn found(mut self, found: impl ToString, expected: impl ToString) -> Self {
        self.found = Some(found.to_string());
        self.expected = Some(expected.to_string());
        self
    }
}

/// Where blktap's `vhd-util check` comes across something: it stops at the first thing that it doesn't like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(pub(crate) Stage, pub(crate) u64, pub(crate) u8);

/// The parts of `vhd-util check`, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Footers,
    Header,
    /// It opens the image, and says nothing when that fails.
    Opening,
    Parent,
    Table,
    Blocks,
    Batmap,
    Locators,
}

/// How many findings of a kind were not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unlisted {
    /// Their code.
    pub code: &'static str,
    /// How many there are besides the listed ones.
    pub count: u64,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
    counts: BTreeMap<&'static str, (u64, Severity)>,
    original: Option<(Rank, String)>,
}

impl Findings {
    /// Adds what the original doesn't notice.
    pub(crate) fn add(&mut self, finding: Finding) {
        let (count, _) = self
            .counts
            .entry(finding.code.name)
            .or_insert((0, finding.code.severity));
        *count += 1;
        if *count <= LISTED_PER_CODE {
            self.list.push(finding);
        }
    }

    /// Adds what the original notices at `rank`, in its words.
    pub(crate) fn add_known(&mut self, finding: Finding, rank: Rank, original: impl Into<String>) {
        let original = original.into();
        self.verdict(rank, || original.clone());
        self.add(Finding {
            original: Some(original),
            ..finding
        });
    }

    /// Notes what the original says, whether or not it is right.
    pub(crate) fn verdict(&mut self, rank: Rank, original: impl FnOnce() -> String) {
        if self
            .original
            .as_ref()
            .is_none_or(|(first, _)| rank < *first)
        {
            self.original = Some((rank, original()));
        }
    }

    /// What the original would say before it gives up.
    pub(crate) fn original(&self) -> Option<&str> {
        self.original.as_ref().map(|(_, text)| text.as_str())
    }

    pub(crate) fn has(&self, code: Code) -> bool {
        self.counts.contains_key(code.name)
    }

    pub(crate) fn has_any(&self, codes: &[Code]) -> bool {
        codes.iter().any(|code| self.has(*code))
    }

    /// How many there are of this severity.
    pub(crate) fn count(&self, severity: Severity) -> u64 {
        let counts = self.counts.values();
        counts
            .filter(|(_, of)| *of == severity)
            .map(|(count, _)| count)
            .sum()
    }

    /// The codes that were found, notes as well.
    pub(crate) fn all_codes(&self) -> impl Iterator<Item = &'static str> {
        self.counts.keys().copied()
    }

    /// The codes that were found, which are not just notes.
    pub(crate) fn codes(&self) -> impl Iterator<Item = &'static str> {
        let codes = self.counts.iter();
        codes
            .filter(|(_, (_, severity))| *severity > Severity::Note)
            .map(|(code, _)| *code)
    }

    /// The listed findings, worst first, and how many are not listed.
    pub(crate) fn into_parts(self) -> (Vec<Finding>, Vec<Unlisted>) {
        let mut list = self.list;
        list.sort_by_key(|finding| std::cmp::Reverse(finding.code.severity));
        let counts = self.counts.into_iter();
        let unlisted = counts.filter(|(_, (count, _))| *count > LISTED_PER_CODE);
        let unlisted = unlisted.map(|(code, (count, _))| Unlisted {
            code,
            count: count - LISTED_PER_CODE,
        });
        (list, unlisted.collect())
    }
}
