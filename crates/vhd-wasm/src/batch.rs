//! Areas of records in WebAssembly memory, which the host reads and writes between calls.

use crate::json::Place;

/// Operations, completions, finished requests and responses in a batch.
pub(crate) const OPERATIONS: usize = 1024;
/// Requests of front ends in a batch.
pub(crate) const REQUESTS: usize = 256;

/// Room for a number of records of the same size. It never moves.
#[derive(Debug)]
pub(crate) struct Area {
    words: Box<[u32]>,
    words_per_record: usize,
}

impl Area {
    pub(crate) fn new(capacity: usize, words_per_record: usize) -> Self {
        Self {
            words: vec![0; capacity * words_per_record].into_boxed_slice(),
            words_per_record,
        }
    }

    /// Records that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.words.len() / self.words_per_record
    }

    /// Where the host finds it.
    pub(crate) fn place(&self) -> Place {
        Place {
            offset: self.words.as_ptr() as usize,
            capacity: self.capacity(),
        }
    }

    /// The first `count` records, each of `N` words, or all if there are fewer.
    pub(crate) fn records<const N: usize>(&self, count: u32) -> &[[u32; N]] {
        let records = self.words.as_chunks::<N>().0;
        &records[..records.len().min(count as usize)]
    }

    /// Stores a record; one past the area's end is dropped.
    pub(crate) fn put(&mut self, index: usize, record: &[u32]) {
        let start = index * self.words_per_record;
        if let Some(target) = self.words.get_mut(start..start + record.len()) {
            target.copy_from_slice(record);
        }
    }
}
