//! The memory into which the socket's bytes go, other than the data of large writes.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes received and not yet used are those from `start` to `end`. The kernel may be writing behind `end`, so that part is never
/// behind a reference.
#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    base: NonNull<u8>,
    capacity: usize,
    start: usize,
    end: usize,
}

impl ReceiveBuffer {
    /// A buffer that has received these bytes already.
    pub fn new(capacity: usize, received: &[u8]) -> Self {
        let capacity = capacity.max(received.len());
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size isn't 0.
        let base = unsafe { alloc(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout)
        };
        // SAFETY: the memory is new and large enough.
        unsafe {
            base.as_ptr()
                .copy_from_nonoverlapping(received.as_ptr(), received.len())
        };
        Self {
            base,
            capacity,
            start: 0,
            end: received.len(),
        }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity.max(1), 64).expect("a small size")
    }

    /// What was received and not used.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: from `start` to `end` everything was written, and the kernel writes only behind `end`.
        unsafe {
            std::slice::from_raw_parts(self.base.as_ptr().add(self.start), self.end - self.start)
        }
    }

    /// The first `count` bytes are used.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// Where the next bytes go. Nothing is outstanding, so what is left over (less than a header, as a rule) may be moved.
    pub fn room(&mut self) -> (*mut u8, usize) {
        if self.start > 0 {
            // SAFETY: both ranges lie in the buffer.
            unsafe {
                self.base
                    .as_ptr()
                    .copy_from(self.base.as_ptr().add(self.start), self.end - self.start)
            };
            self.end -= self.start;
            self.start = 0;
        }
        // SAFETY: `end` is at most `capacity`.
        (
            unsafe { self.base.as_ptr().add(self.end) },
            self.capacity - self.end,
        )
    }

    /// `count` bytes were written where `room` said.
    ///
    /// # Safety
    /// They were, since the last call of `room`.
    pub unsafe fn filled(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.capacity);
    }
}

impl Drop for ReceiveBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout. Who might have a receive outstanding doesn't drop the buffer.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity)) };
    }
}
