//! Merging of neighbours: reads, or writes, that follow each other both in a turn and in a file become one call.
//!
//! A guest's sequential I/O comes in small pieces: a ring's request has at most 44 KiB, and one whose memory is scattered is
//! an operation for each piece of memory. So calls are handed over here rather than to the back end when a turn starts
//! them. They go on in the order in which they came, and what a turn starts is in flight together anyway, so that nothing is
//! ordered anew. Random I/O costs a comparison for each call.
//!
//! Each member gets the result that it would have had alone. Mostly all bytes are moved. When only a part of them is, members
//! up to there have theirs, and the others are executed by themselves; when the call fails, all are. So an error meets only
//! those that it belongs to. To do again what a failed call may have done is harmless: its members are in flight for as
//! long, and nobody was told that they were over.

use std::os::fd::RawFd;

use crate::backend::{Direction, FileBackend, FileCall, Pieces, Token, Transfer, patience};

/// Most calls in a run, and so the most pieces of memory in a merged call. The kernel takes 1024.
const MEMBERS: usize = 128;

/// Most bytes of a run, so that merging keeps no write from being done at once.
const BYTES: u64 = patience::LENGTH as u64;

/// Set in the tokens of runs. Those of flights are smaller.
const RUN: Token = 1 << 40;

/// Merged calls in flight, and the one that is being put together.
#[derive(Debug)]
pub(super) struct Merging {
    /// Neighbours that are not with the back end yet: none between turns.
    gathered: Run,
    runs: Vec<Run>,
    free: Vec<usize>,
}

/// Calls that follow each other in a file.
#[derive(Debug)]
pub(super) struct Run {
    kind: Kind,
    /// First byte in the file, and the byte after the last.
    start: u64,
    end: u64,
    members: Vec<Member>,
    /// The memory, neighbours joined. The kernel may read this list for as long as the call is in flight.
    vectors: Vec<libc::iovec>,
}

/// What members of a run have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    fd: RawFd,
    direction: Direction,
    cached: bool,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    token: Token,
    length: usize,
}

impl Default for Merging {
    fn default() -> Self {
        Self {
            gathered: Run::new(),
            runs: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl Merging {
    /// Takes a call. It is with the back end after [`Merging::flush`] at the latest.
    ///
    /// # Safety
    ///
    /// Memory and descriptors in the call must stay valid until its event.
    pub(super) unsafe fn start(
        &mut self,
        token: Token,
        call: FileCall,
        backend: &mut dyn FileBackend,
    ) {
        let Some((kind, vector, offset)) = transfer(&call) else {
            self.flush(backend);
            // SAFETY: the caller vouches for the call.
            return unsafe { backend.file(token, call) };
        };
        if !self.gathered.takes(kind, vector, offset) {
            self.flush(backend);
            self.gathered.begin(kind, offset);
        }
        self.gathered.push(token, vector);
    }

    /// Hands what was gathered to the back end.
    pub(super) fn flush(&mut self, backend: &mut dyn FileBackend) {
        let token = match self.gathered.members.as_slice() {
            [] => return,
            [Member { token, .. }] => *token,
            _ => RUN | self.free_run() as Token,
        };
        let run = if token & RUN == 0 {
            &mut self.gathered
        } else {
            let run = &mut self.runs[index(token)];
            std::mem::swap(run, &mut self.gathered);
            run
        };
        // SAFETY: who started the members vouches for their memory and descriptor, and the list of vectors stays as it is
        // until the event.
        unsafe { backend.file(token, run.call()) };
        self.gathered.members.clear();
    }

    /// The run of a token, if it is one's. It must be given back.
    pub(super) fn take(&mut self, token: Token) -> Option<Run> {
        if token & RUN == 0 {
            return None;
        }
        let run = self.runs.get_mut(index(token))?;
        Some(std::mem::replace(run, Run::none()))
    }

    /// Gives a run back whose members have their results.
    pub(super) fn give(&mut self, token: Token, run: Run) {
        if let Some(place) = self.runs.get_mut(index(token)) {
            *place = run;
            self.free.push(index(token));
        }
    }

    fn free_run(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.runs.push(Run::new());
            self.runs.len() - 1
        })
    }
}

fn index(token: Token) -> usize {
    (token & !RUN) as usize
}

/// A read or write of one piece of memory: what it is, its memory, and its place in the file.
fn transfer(call: &FileCall) -> Option<(Kind, libc::iovec, u64)> {
    let FileCall::Transfer(Transfer {
        fd,
        direction,
        memory: Pieces::One(buffer),
        length,
        offset,
        cached,
    }) = *call
    else {
        return None;
    };
    let kind = Kind {
        fd,
        direction,
        cached,
    };
    let vector = libc::iovec {
        iov_base: buffer.cast(),
        iov_len: length,
    };
    Some((kind, vector, offset))
}

impl Run {
    fn new() -> Self {
        Self {
            members: Vec::with_capacity(MEMBERS),
            vectors: Vec::with_capacity(MEMBERS),
            ..Self::none()
        }
    }

    /// A run without room for members.
    fn none() -> Self {
        Self {
            kind: Kind {
                fd: -1,
                direction: Direction::Read,
                cached: false,
            },
            start: 0,
            end: 0,
            members: Vec::new(),
            vectors: Vec::new(),
        }
    }

    fn takes(&self, kind: Kind, vector: libc::iovec, offset: u64) -> bool {
        offset == self.end
            && kind == self.kind
            && (1..MEMBERS).contains(&self.members.len())
            && self.end - self.start + vector.iov_len as u64 <= BYTES
    }

    fn begin(&mut self, kind: Kind, offset: u64) {
        self.kind = kind;
        (self.start, self.end) = (offset, offset);
        self.members.clear();
        self.vectors.clear();
    }

    fn push(&mut self, token: Token, vector: libc::iovec) {
        let length = vector.iov_len;
        self.end += length as u64;
        self.members.push(Member { token, length });
        match self.vectors.last_mut() {
            Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == vector.iov_base => {
                last.iov_len += length;
            }
            _ => self.vectors.push(vector),
        }
    }

    fn call(&self) -> FileCall {
        let Kind {
            fd,
            direction,
            cached,
        } = self.kind;
        let memory = match self.vectors.as_slice() {
            [vector] => Pieces::One(vector.iov_base.cast()),
            vectors => Pieces::List(vectors.as_ptr(), vectors.len() as u32),
        };
        FileCall::Transfer(Transfer {
            fd,
            direction,
            memory,
            length: (self.end - self.start) as usize,
            offset: self.start,
            cached,
        })
    }

    /// The members' tokens, and what each has of the run's result: bytes, or `-EAGAIN` for who is to be executed by itself.
    pub(super) fn shares(&self, result: i32) -> impl Iterator<Item = (Token, i32)> {
        let mut left = usize::try_from(result).unwrap_or(0);
        self.members.iter().map(move |member| {
            let share = left.min(member.length);
            left -= share;
            // A share is part of an i32.
            let share = if share == 0 {
                -libc::EAGAIN
            } else {
                share as i32
            };
            (member.token, share)
        })
    }
}

#[cfg(test)]
mod tests;
