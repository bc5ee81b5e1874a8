//! Parents: whether they are there, whether they are the right ones, and the way to the next image of a chain.

use super::checkup::Checkup;
use super::codes;
use super::findings::{Finding, Rank, Stage};
use super::locators::Name;
use crate::chain::candidates_of;
use crate::format::footer::{self, Footer};
use crate::format::header::Header;
use crate::format::timestamp;
use crate::format::uuid::Uuid;
use crate::jobs::Context;
use crate::open::{Driver, FileSpec};
use crate::wants::Access;

/// A file that may be the parent.
struct Candidate {
    spec: FileSpec,
    /// Its footer; none if it has no good one, or is raw.
    footer: Option<Footer>,
}

/// The parent of an image.
#[derive(Clone, Debug)]
pub(crate) struct Parent {
    pub(crate) path: String,
    /// It is no VHD.
    pub(crate) raw: bool,
    pub(crate) real_path: String,
}

/// Looks for the parent of a differencing image by all of its names.
pub(crate) async fn check(
    context: &Context,
    checkup: &mut Checkup<'_>,
    footer: &Footer,
    header: &Header,
    names: &[Name],
) -> Option<Parent> {
    let mut search = Search {
        context,
        raw: header.parent_uuid == Uuid::NIL,
        header_at: footer.data_offset,
        found: Vec::new(),
    };
    let mut missing = Vec::new();
    for name in names {
        let rank = |sub| Rank(Stage::Locators, name.index, sub);
        match search.find(checkup.file, &name.path).await {
            Ok(candidate) => {
                let which = format!("parent locator {}", name.index);
                search.judge(checkup, header, &candidate, &which, rank(210));
                search.found.push(candidate);
            }
            Err(errno) => missing.push((name, errno)),
        }
    }
    let own_name = header.parent_name().replace('\\', "/");
    if search.found.is_empty()
        && !own_name.is_empty()
        && let Ok(candidate) = search.find(checkup.file, &own_name).await
    {
        search.judge(
            checkup,
            header,
            &candidate,
            "the parent's name in the header",
            Rank(Stage::Locators, 9, 0),
        );
        search.found.push(candidate);
    }
    for (name, errno) in missing {
        let words = format!("error resolving {}: -{errno}", name.path);
        let rank = Rank(Stage::Locators, name.index, 200);
        if search.found.is_empty() {
            checkup.findings.verdict(rank, || words);
        } else {
            let message = format!(
                "parent locator {}: '{}' does not exist",
                name.index, name.path
            );
            let finding = Finding::new(codes::PARENT_LOCATOR, "parent locator", message);
            checkup.findings.add_known(
                finding.at(search.header_at + 576 + name.index * 24),
                rank,
                words,
            );
        }
    }
    search.conclude(checkup, footer, header, names).await
}

struct Search<'a> {
    context: &'a Context,
    raw: bool,
    header_at: u64,
    found: Vec<Candidate>,
}

impl Search<'_> {
    /// The first file that a name leads to.
    async fn find(&self, child: &FileSpec, name: &str) -> Result<Candidate, i32> {
        let driver = if self.raw { Driver::Aio } else { Driver::Vhd };
        let mut failure = crate::error::errno::ENOENT;
        for path in candidates_of(child, name) {
            match self
                .context
                .files
                .open(&path, driver, Access::Inspect)
                .await
            {
                Ok(spec) => {
                    let footer = if self.raw {
                        None
                    } else {
                        self.footer(&spec).await
                    };
                    self.context.files.close(spec.file).await;
                    return Ok(Candidate { spec, footer });
                }
                Err(errno) => failure = errno,
            }
        }
        Err(failure)
    }

    async fn footer(&self, spec: &FileSpec) -> Option<Footer> {
        let size = spec.size;
        let at = match size % 512 {
            511 => size - footer::LEGACY_LENGTH as u64,
            _ => size.checked_sub(footer::LENGTH as u64)? / 512 * 512,
        };
        for at in [at, 0] {
            let length = (size - at).min(footer::LENGTH as u64) as usize;
            let bytes = self.context.io.read("footer", spec.file, at, length).await;
            if let Ok(footer) = bytes.and_then(|bytes| Footer::decode(&bytes)) {
                return Some(footer);
            }
        }
        None
    }

    /// Whether a candidate is the parent.
    fn judge(
        &self,
        checkup: &mut Checkup<'_>,
        header: &Header,
        candidate: &Candidate,
        which: &str,
        rank: Rank,
    ) {
        if self.raw {
            return;
        }
        let path = &candidate.spec.path;
        let structure = "dynamic header";
        let Some(footer) = &candidate.footer else {
            let message = format!("{which}: '{path}' has no good footer");
            let finding =
                Finding::new(codes::PARENT_UNREADABLE, structure, message).at(self.header_at + 40);
            if checkup.ignore.parent_uuid {
                return checkup.add(finding);
            }
            let words = format!(
                "invalid parent {}: error opening parent",
                candidate.spec.real_path
            );
            return checkup.findings.add_known(finding, rank, words);
        };
        if footer.uuid != header.parent_uuid && !checkup.ignore.parent_uuid {
            let message = format!("{which}: '{path}' is another image");
            let finding =
                Finding::new(codes::PARENT_UUID, structure, message).at(self.header_at + 40);
            let finding = finding.found(format!("UUID {}", footer.uuid), header.parent_uuid);
            let words = format!(
                "invalid parent {}: invalid parent uuid",
                candidate.spec.real_path
            );
            checkup.findings.add_known(finding, rank, words);
        }
    }

    /// What the candidates are together, and which of them is the parent.
    async fn conclude(
        self,
        checkup: &mut Checkup<'_>,
        footer: &Footer,
        header: &Header,
        names: &[Name],
    ) -> Option<Parent> {
        let structure = "dynamic header";
        let is_right = |candidate: &&Candidate| {
            self.raw
                || candidate
                    .footer
                    .as_ref()
                    .is_some_and(|footer| footer.uuid == header.parent_uuid)
        };
        let Some(parent) = self.found.iter().find(is_right).or(self.found.first()) else {
            let all: Vec<&str> = names.iter().map(|name| name.path.as_str()).collect();
            let name = header.parent_name();
            let message = format!("the parent '{name}' is not found");
            let finding =
                Finding::new(codes::PARENT_MISSING, structure, message).at(self.header_at + 40);
            let finding = finding.found(
                format!("no file by any of its names ({})", all.join(", ")),
                header.parent_uuid,
            );
            let words = format!("could not find parent {name}");
            checkup
                .findings
                .add_known(finding, Rank(Stage::Locators, 10, 0), words);
            return None;
        };
        let other = self
            .found
            .iter()
            .find(|candidate| candidate.spec.real_path != parent.spec.real_path);
        if let Some(other) = other {
            let message = "the parent locators lead to different files";
            let finding = Finding::new(codes::PARENT_DISAGREE, "parent locator", message)
                .at(self.header_at + 576);
            checkup.add(finding.found(&other.spec.real_path, &parent.spec.real_path));
        }
        if self.raw {
            let message = format!("the parent '{}' is a raw file", parent.spec.path);
            checkup
                .add(Finding::new(codes::PARENT_RAW, structure, message).at(self.header_at + 40));
        }
        let size = match &parent.footer {
            Some(footer) => footer.current_size,
            None => parent.spec.size / 512 * 512,
        };
        if size != footer.current_size && (self.raw || parent.footer.is_some()) {
            let (code, message) = if size < footer.current_size {
                (
                    codes::PARENT_SMALLER,
                    "the parent is smaller than the image",
                )
            } else {
                (codes::PARENT_LARGER, "the parent is larger than the image")
            };
            let finding = Finding::new(code, structure, message).at(self.header_at);
            checkup.add(finding.found(
                format!("{size} bytes"),
                format!("{} bytes", footer.current_size),
            ));
        }
        if header.parent_timestamp == 0 {
            let message = "the parent's time stamp is 0";
            checkup.add(
                Finding::new(codes::PARENT_NO_TIME, structure, message).at(self.header_at + 56),
            );
        } else if !checkup.ignore.timestamps {
            let modified = timestamp::from_unix(parent.spec.modified);
            if modified != header.parent_timestamp {
                let message = "the parent was modified at another time than the image says";
                let finding = Finding::new(codes::PARENT_MODIFIED, structure, message)
                    .at(self.header_at + 56);
                checkup.add(finding.found(modified, header.parent_timestamp));
            }
        }
        Some(Parent {
            path: parent.spec.path.clone(),
            raw: self.raw,
            real_path: parent.spec.real_path.clone(),
        })
    }
}
