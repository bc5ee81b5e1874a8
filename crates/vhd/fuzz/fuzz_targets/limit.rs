//! An allocator that ends the program when more memory is asked for than a small input can be a reason for.

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes of the largest allocation: the files of these tests stay below that as well.
const LIMIT: usize = 64 << 20;

struct Limited;

fn check(size: usize) {
    if size > LIMIT {
        // Not a panic: that would allocate.
        eprintln!("an allocation of {size} bytes");
        std::process::abort();
    }
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promises are those that it asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// Bytes to which a file may grow: a disk that is full.
pub const CAPACITY: usize = 16 << 20;
