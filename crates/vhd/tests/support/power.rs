//! The disk below the files, as a power cut sees it: what syncs covered, and what came later and may be lost.
//!
//! The rules are those of a disk with a volatile cache below a file system, read against us wherever there is a doubt:
//!
//! * A sync covers the changes of its file that had ended when it was handed out. Everything else is *pending*: a cut
//!   loses it, keeps it, or keeps some of its sectors, in any order. A write behind the end of the file may leave the
//!   file's new size without the data. One before the end does not make a file larger, also where the change of the size
//!   before it is lost: its data then are lost as well.
//! * A write that failed may have reached any of its sectors. A sync that failed makes nothing durable, and the data that it
//!   should have covered never will be by another one: the kernel takes such pages for clean. (Sizes and holes are not
//!   data: a file system that can't write its journal stops.)
//! * Names (made, removed) become durable in the order of the changes, all of them at the latest with the
//!   directory's sync, and whether or not the files' content is.

pub mod state;

use std::collections::BTreeMap;

use super::Host;
use state::{State, mix};
use vhd::record::{Op, OpKind};

const SECTOR: usize = 512;

/// A part of a change that reaches the disk as a whole or not at all: bytes within a sector.
#[derive(Clone, Copy, Debug)]
struct Piece {
    offset: usize,
    length: usize,
    /// Where its bytes begin in [`Change::Data`]'s; `None` for zeros.
    source: Option<usize>,
}

#[derive(Clone, Debug)]
enum Change {
    Data {
        bytes: Vec<u8>,
        pieces: Vec<Piece>,
        /// The byte behind it if the file grew for it.
        grows_to: Option<usize>,
    },
    Size(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    InFlight,
    Complete,
    /// It failed, or a sync that should have covered it did: some of it may be there, and no sync will see to the rest.
    Lost,
}

#[derive(Clone, Debug)]
struct Pending {
    /// The operation's id while it is in flight.
    op: u32,
    file: usize,
    change: Change,
    issued: u64,
    ended: u64,
    fate: Fate,
}

#[derive(Clone, Debug)]
struct Sync {
    op: u32,
    file: usize,
    issued: u64,
}

/// A change of the directory.
#[derive(Clone, Debug)]
enum NameChange {
    Set(String, usize),
    Removed(String),
}

/// Records the changes of all files of a host.
#[derive(Clone, Debug)]
pub struct PowerLog {
    /// What is durable.
    state: State,
    pending: Vec<Pending>,
    syncs: Vec<Sync>,
    clock: u64,
    names: BTreeMap<String, usize>,
    names_sum: u64,
    name_changes: Vec<NameChange>,
}

/// What a power cut leaves: files by the host's numbers. Those that have no name any more, or not yet, are empty and
/// their name is.
#[derive(Clone, Debug)]
pub struct Left {
    pub files: Vec<Vec<u8>>,
    pub names: Vec<String>,
}

impl Left {
    /// A host with these files.
    pub fn host(&self, guest_bytes: usize) -> Host {
        self.host_with_cache(guest_bytes, 1 << 20)
    }

    /// The same, with a bitmap cache of this size.
    pub fn host_with_cache(&self, guest_bytes: usize, bitmap_cache_bytes: usize) -> Host {
        let mut host = Host::with_cache(self.files.clone(), guest_bytes, bitmap_cache_bytes);
        host.names.clone_from(&self.names);
        host
    }
}

impl PowerLog {
    /// A log that begins with these files, all durable.
    pub fn new(files: &[Vec<u8>], names: &[String]) -> Self {
        let mut state = State::default();
        files.iter().for_each(|bytes| state.add_file(bytes));
        let named = names.iter().cloned().zip(0..);
        let names = named.filter(|(name, _)| !name.is_empty()).collect();
        Self {
            state,
            pending: Vec::new(),
            syncs: Vec::new(),
            clock: 0,
            names_sum: names_sum(&names),
            names,
            name_changes: Vec::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// An operation on a file of `size` bytes was handed out; `bytes` are those that a write or copy carries.
    pub fn issued(&mut self, op: &Op, size: usize, bytes: Option<Vec<u8>>) {
        let file = usize::from(op.file);
        let (offset, length) = (op.offset as usize, op.length as usize);
        let issued = self.tick();
        let change = match op.kind {
            OpKind::Write | OpKind::CopyRange => {
                let bytes = bytes.expect("a write carries bytes");
                Change::Data {
                    pieces: pieces(offset, bytes.len(), true),
                    grows_to: Some(offset + bytes.len()).filter(|end| *end > size),
                    bytes,
                }
            }
            // Neither makes a file larger.
            OpKind::WriteZeroes | OpKind::PunchHole => Change::Data {
                bytes: Vec::new(),
                pieces: pieces(offset, length, false),
                grows_to: None,
            },
            OpKind::Truncate => Change::Size(offset),
            OpKind::Sync => {
                self.syncs.push(Sync {
                    op: op.id,
                    file,
                    issued,
                });
                return;
            }
            OpKind::Read
            | OpKind::ZeroBuffer
            | OpKind::SeekHole
            | OpKind::DataMap
            | OpKind::CopyToBuffer => return,
        };
        self.pending.push(Pending {
            op: op.id,
            file,
            change,
            issued,
            ended: 0,
            fate: Fate::InFlight,
        });
    }

    /// An operation has ended; `good` when it did all of what it should.
    pub fn ended(&mut self, op: &Op, good: bool) {
        let now = self.tick();
        if op.kind == OpKind::Sync {
            if let Some(at) = self.syncs.iter().position(|sync| sync.op == op.id) {
                let sync = self.syncs.swap_remove(at);
                if good {
                    self.synced(&sync);
                } else {
                    self.sync_failed(&sync);
                }
            }
            return;
        }
        let in_flight = |change: &Pending| change.fate == Fate::InFlight && change.op == op.id;
        let Some(at) = self.pending.iter().position(in_flight) else {
            return;
        };
        if !good && matches!(self.pending[at].change, Change::Size(_)) {
            self.pending.remove(at);
            return;
        }
        self.pending[at].ended = now;
        self.pending[at].fate = if good { Fate::Complete } else { Fate::Lost };
    }

    fn synced(&mut self, sync: &Sync) {
        let covered = |change: &Pending| {
            change.file == sync.file && change.fate == Fate::Complete && change.ended < sync.issued
        };
        let (mut settled, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(covered);
        self.pending = pending;
        settled.sort_by_key(|change| change.ended);
        for change in &settled {
            apply(&mut self.state, change, None);
            self.state.commit();
            // What was lost before can't come back on top of it.
            for other in &mut self.pending {
                if other.file == change.file
                    && other.fate == Fate::Lost
                    && other.ended < change.issued
                {
                    hide(&mut other.change, &change.change);
                }
            }
        }
        self.pending.retain(
            |change| !matches!(&change.change, Change::Data { pieces, .. } if pieces.is_empty()),
        );
    }

    fn sync_failed(&mut self, sync: &Sync) {
        for change in &mut self.pending {
            let data = matches!(&change.change, Change::Data { bytes, .. } if !bytes.is_empty());
            if change.file == sync.file && change.fate == Fate::Complete && data {
                change.fate = Fate::Lost;
            }
        }
    }

    /// A file was made, with the host's next number, and is empty.
    pub fn created(&mut self, name: &str) {
        self.name_changes
            .push(NameChange::Set(name.to_owned(), self.state.files()));
        self.state.add_file(&[]);
    }

    /// A name was removed.
    pub fn removed(&mut self, name: &str) {
        self.name_changes.push(NameChange::Removed(name.to_owned()));
    }

    /// The directory was synced.
    pub fn names_synced(&mut self) {
        self.names = self.names_after(self.name_changes.len());
        self.names_sum = names_sum(&self.names);
        self.name_changes.clear();
    }

    /// The names when this many of the changes are durable.
    fn names_after(&self, changes: usize) -> BTreeMap<String, usize> {
        let mut names = self.names.clone();
        for change in &self.name_changes[..changes] {
            match change {
                NameChange::Set(name, file) => {
                    names.insert(name.clone(), *file);
                }
                NameChange::Removed(name) => {
                    names.remove(name);
                }
            }
        }
        names
    }

    /// How many changes no sync covered yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// How many states of the directory are possible.
    pub fn directories(&self) -> usize {
        self.name_changes.len() + 1
    }

    /// Whether two pending changes come to the same in either order.
    pub fn commute(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.pending[a], &self.pending[b]);
        match (&a.change, &b.change) {
            _ if a.file != b.file => true,
            (Change::Data { pieces: a, .. }, Change::Data { pieces: b, .. }) => {
                let end = |pieces: &[Piece]| pieces.last().map_or(0, |it| it.offset + it.length);
                let start = |pieces: &[Piece]| pieces.first().map_or(0, |it| it.offset);
                end(a) <= start(b) || end(b) <= start(a)
            }
            _ => false,
        }
    }

    /// A point to which [`PowerLog::back`] returns.
    pub fn mark(&self) -> usize {
        self.state.mark()
    }

    /// Lets a pending change reach the disk: all of it, or the sectors for which `keep` says so.
    pub fn keep(&mut self, change: usize, keep: Option<&mut dyn FnMut() -> bool>) {
        apply(&mut self.state, &self.pending[change], keep);
    }

    /// Undoes what [`PowerLog::keep`] did since the mark.
    pub fn back(&mut self, mark: usize) {
        self.state.back(mark);
    }

    /// The same for the same files and names only.
    pub fn fingerprint(&self, directory: usize) -> u64 {
        let names = match directory {
            0 => self.names_sum,
            _ => names_sum(&self.names_after(directory)),
        };
        self.state.fingerprint() ^ names
    }

    /// The files as they are now, with the directory's first so many changes.
    pub fn left(&self, directory: usize) -> Left {
        let names = self.names_after(directory);
        let mut left = Left {
            files: vec![Vec::new(); self.state.files()],
            names: vec![String::new(); self.state.files()],
        };
        for (name, file) in names {
            left.files[file] = self.state.bytes(file).to_vec();
            left.names[file] = name;
        }
        left
    }
}

fn names_sum(names: &BTreeMap<String, usize>) -> u64 {
    names.iter().fold(0, |sum, (name, file)| {
        name.bytes().fold(mix(sum ^ *file as u64), |sum, byte| {
            mix(sum ^ u64::from(byte))
        })
    })
}

fn pieces(offset: usize, length: usize, data: bool) -> Vec<Piece> {
    let end = offset + length;
    let mut pieces = Vec::with_capacity(length / SECTOR + 2);
    let mut at = offset;
    while at < end {
        let next = ((at / SECTOR + 1) * SECTOR).min(end);
        pieces.push(Piece {
            offset: at,
            length: next - at,
            source: data.then_some(at - offset),
        });
        at = next;
    }
    pieces
}

fn apply(state: &mut State, pending: &Pending, mut keep: Option<&mut dyn FnMut() -> bool>) {
    let mut kept = || keep.as_mut().is_none_or(|keep| keep());
    match &pending.change {
        Change::Size(size) => {
            if kept() {
                state.resize(pending.file, *size);
            }
        }
        Change::Data {
            bytes,
            pieces,
            grows_to,
        } => {
            if let Some(end) = *grows_to
                && end > state.bytes(pending.file).len()
                && kept()
            {
                state.resize(pending.file, end);
            }
            for piece in pieces {
                let size = state.bytes(pending.file).len();
                let end = piece.offset + piece.length;
                if !kept() {
                    continue;
                }
                if grows_to.is_some() && end > size {
                    state.resize(pending.file, end);
                } else if piece.offset >= size {
                    continue;
                }
                let length = piece
                    .length
                    .min(state.bytes(pending.file).len() - piece.offset);
                let bytes = piece.source.map(|source| &bytes[source..source + length]);
                state.put(pending.file, piece.offset, length, bytes);
            }
        }
    }
}

/// Takes out of a lost change what a later one has replaced.
fn hide(lost: &mut Change, by: &Change) {
    let Change::Data {
        pieces, grows_to, ..
    } = lost
    else {
        return;
    };
    match by {
        Change::Size(size) => {
            pieces.retain(|piece| piece.offset < *size);
            *grows_to = None;
        }
        Change::Data { pieces: newer, .. } => pieces.retain(|piece| {
            let end = piece.offset + piece.length;
            !newer
                .iter()
                .any(|new| new.offset <= piece.offset && end <= new.offset + new.length)
        }),
    }
}
