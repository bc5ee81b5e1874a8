//! The staging area: the one piece of memory through which metadata travels between the engine and the port.
//!
//! It is allocated once and never moves, so the port can be told its address. Two sizes of chunk serve everything: small
//! ones for a sector bitmap or a BAT sector, large ones for the rest.

/// Bytes of a small chunk.
pub(crate) const SMALL: usize = 512;
/// Bytes of a large chunk: the bitmap of the largest block.
pub(crate) const LARGE: usize = 64 << 10;

const SMALL_CHUNKS: usize = 512;
const LARGE_CHUNKS: usize = 12;
const LARGE_BASE: usize = SMALL * SMALL_CHUNKS;

/// A piece of the staging area. Not freed by itself: whoever gets the completion gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    offset: u32,
    size: u32,
}

impl Chunk {
    /// Byte offset in the staging area.
    pub(crate) fn offset(self) -> u32 {
        self.offset
    }
}

#[derive(Debug)]
pub(crate) struct Staging {
    bytes: Box<[u8]>,
    small: Vec<Chunk>,
    large: Vec<Chunk>,
}

impl Staging {
    pub(crate) fn new() -> Self {
        let chunks = |base: usize, size: usize, count: usize| {
            (0..count)
                .rev()
                .map(|index| Chunk {
                    offset: (base + index * size) as u32,
                    size: size as u32,
                })
                .collect()
        };
        Self {
            bytes: vec![0; LARGE_BASE + LARGE * LARGE_CHUNKS].into_boxed_slice(),
            small: chunks(0, SMALL, SMALL_CHUNKS),
            large: chunks(LARGE_BASE, LARGE, LARGE_CHUNKS),
        }
    }

    /// A free chunk of at least `length` bytes (at most [`LARGE`]), if there is one now.
    pub(crate) fn allocate(&mut self, length: usize) -> Option<Chunk> {
        if length <= SMALL {
            self.small.pop().or_else(|| self.large.pop())
        } else {
            self.large.pop()
        }
    }

    /// A free small chunk, if there are more than `reserve` of them now.
    pub(crate) fn allocate_small(&mut self, reserve: usize) -> Option<Chunk> {
        if self.small.len() > reserve {
            self.small.pop()
        } else {
            None
        }
    }

    pub(crate) fn free(&mut self, chunk: Chunk) {
        let list = if chunk.size as usize == SMALL {
            &mut self.small
        } else {
            &mut self.large
        };
        list.push(chunk);
    }

    /// The bytes of a chunk.
    pub(crate) fn chunk(&mut self, chunk: Chunk) -> &mut [u8] {
        let start = chunk.offset as usize;
        &mut self.bytes[start..start + chunk.size as usize]
    }

    /// The whole area.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
