//! What a power cut leaves of a file: everything that a sync covered, and any part of what came later.

use vhd::record::{Op, OpKind};

/// A change that no sync covered yet.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { size: usize },
}

/// Records the changes of one file.
#[derive(Debug)]
pub struct PowerLog {
    durable: Vec<u8>,
    /// Changes since, in the order in which they were handed out, each with the id of its operation.
    pending: Vec<(u32, Change, bool)>,
    /// For each sync in flight its id and the ids of the changes that were complete when it was handed out.
    syncs: Vec<(u32, Vec<u32>)>,
    next: u32,
    ids: Vec<(u32, u32)>,
}

impl PowerLog {
    pub fn new(file: &[u8]) -> Self {
        Self {
            durable: file.to_vec(),
            pending: Vec::new(),
            syncs: Vec::new(),
            next: 0,
            ids: Vec::new(),
        }
    }

    /// An operation was handed out; `bytes` are those that a write carries.
    pub fn issued(&mut self, op: &Op, bytes: Option<&[u8]>) {
        // Only the leaf is ever written.
        assert!(op.kind == OpKind::Read || op.file == 0);
        let change = match op.kind {
            OpKind::Write => Change::Write {
                offset: op.offset as usize,
                bytes: bytes.expect("a write carries bytes").to_vec(),
            },
            OpKind::WriteZeroes | OpKind::PunchHole => Change::Write {
                offset: op.offset as usize,
                bytes: vec![0; op.length as usize],
            },
            OpKind::Truncate => Change::Truncate {
                size: op.offset as usize,
            },
            OpKind::Sync => {
                let covered = self
                    .pending
                    .iter()
                    .filter(|(_, _, complete)| *complete)
                    .map(|(id, ..)| *id)
                    .collect();
                self.syncs.push((op.id, covered));
                return;
            }
            _ => return,
        };
        self.next += 1;
        self.ids.push((op.id, self.next));
        self.pending.push((self.next, change, false));
    }

    /// An operation has ended well.
    pub fn completed(&mut self, op: &Op) {
        if let Some(at) = self.syncs.iter().position(|(id, _)| *id == op.id) {
            let (_, covered) = self.syncs.swap_remove(at);
            let (settled, pending) = std::mem::take(&mut self.pending)
                .into_iter()
                .partition(|(id, ..)| covered.contains(id));
            let settled: Vec<(u32, Change, bool)> = settled;
            self.pending = pending;
            for (_, change, _) in &settled {
                apply(&mut self.durable, change, &mut |_| true);
            }
        } else if let Some(at) = self.ids.iter().position(|(id, _)| *id == op.id) {
            let (_, change) = self.ids.swap_remove(at);
            for (id, _, complete) in &mut self.pending {
                *complete |= *id == change;
            }
        }
    }

    /// A file that a power cut now could leave. `random` draws a number below its argument.
    pub fn cut(&self, random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
        let mut file = self.durable.clone();
        let mut changes: Vec<&Change> = self.pending.iter().map(|(_, change, _)| change).collect();
        // 0: nothing more, 1: everything, 2: whole changes or none, 3: torn at sectors; the last two in any order.
        let style = random(4);
        if style >= 2 {
            for index in (1..changes.len()).rev() {
                changes.swap(index, random(index + 1));
            }
        }
        for change in changes {
            match style {
                0 => {}
                1 => apply(&mut file, change, &mut |_| true),
                2 => {
                    if random(2) == 0 {
                        apply(&mut file, change, &mut |_| true);
                    }
                }
                _ => apply(&mut file, change, &mut |_| random(2) == 0),
            }
        }
        file
    }
}

/// Applies a change, sector by sector as `keep` says.
fn apply(file: &mut Vec<u8>, change: &Change, keep: &mut impl FnMut(usize) -> bool) {
    match change {
        Change::Truncate { size } => {
            if keep(0) {
                file.resize(*size, 0);
            }
        }
        Change::Write { offset, bytes } => {
            for (index, sector) in bytes.chunks(512).enumerate() {
                let at = offset + index * 512;
                if keep(index) {
                    if file.len() < at + sector.len() {
                        file.resize(at + sector.len(), 0);
                    }
                    file[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}
