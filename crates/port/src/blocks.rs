//! Aligned memory of the port's own, so that asynchronous I/O never touches WebAssembly memory and direct I/O finds
//! the alignment that it needs.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of every block, and the size of the smallest, in bytes.
pub const ALIGNMENT: usize = 4096;

/// Sizes of blocks that are kept when they come back: 4 KiB to 1 MiB.
const CLASSES: usize = 9;

/// Bytes that are kept at most.
const KEPT: usize = 8 << 20;

/// A piece of aligned memory, freed on drop.
#[derive(Debug)]
pub struct Block {
    memory: NonNull<u8>,
    size: usize,
}

impl Block {
    fn new(size: usize) -> Self {
        let layout = layout(size);
        // SAFETY: the layout's size isn't zero.
        let memory = unsafe { alloc(layout) };
        Self {
            memory: NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout)),
            size,
        }
    }

    /// Where the memory is.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Bytes of memory.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.memory.as_ptr(), layout(self.size)) }
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, ALIGNMENT).expect("sizes are far below the limit")
}

/// Blocks that wait for their next use.
#[derive(Debug, Default)]
pub struct Blocks {
    free: [Vec<Block>; CLASSES],
    kept: usize,
}

impl Blocks {
    /// A block of at least `length` bytes; its content is anything.
    #[must_use]
    pub fn take(&mut self, length: usize) -> Block {
        let size = length.max(ALIGNMENT).next_power_of_two();
        match self.free.get_mut(class(size)).and_then(Vec::pop) {
            Some(block) => {
                self.kept -= block.size;
                block
            }
            None => Block::new(size),
        }
    }

    /// Takes a block back.
    pub fn give(&mut self, block: Block) {
        if self.kept + block.size <= KEPT
            && let Some(free) = self.free.get_mut(class(block.size))
        {
            self.kept += block.size;
            free.push(block);
        }
    }
}

fn class(size: usize) -> usize {
    (size / ALIGNMENT).trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_come_back() {
        let mut blocks = Blocks::default();
        let block = blocks.take(5000);
        let address = block.as_ptr();
        assert_eq!((address.addr() % ALIGNMENT, block.size()), (0, 8192));
        blocks.give(block);
        assert_eq!(blocks.take(8192).as_ptr(), address);
        assert_eq!(blocks.take(0).size(), ALIGNMENT);
        let large = blocks.take(9 << 20);
        blocks.give(large);
        assert_eq!(blocks.kept, 0);
    }
}
