//! Views of the records that cross between the host and the port, in WebAssembly memory.

use vhd::record::{
    COMPLETION_WORDS, Completion, FRONT_END_REQUEST_WORDS, FrontEndRequest, OP_WORDS,
    RESPONSE_WORDS, Response,
};

use crate::error::{Error, Result};

/// A place in WebAssembly memory for records of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// Where the first record starts, in bytes.
    pub offset: u32,
    /// How many records fit.
    pub capacity: u32,
}

/// Where everything is in WebAssembly memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Operations to submit.
    pub operations: Area,
    /// Completions that the port reports.
    pub completions: Area,
    /// Requests that the port reports.
    pub requests: Area,
    /// Responses to push.
    pub responses: Area,
    /// Where the staging area (region 0) starts, in bytes.
    pub staging_offset: u32,
    /// Length of the staging area in bytes.
    pub staging_length: u32,
}

/// Most records of a kind that a turn reports: their number has 15 bits in its result.
pub const MAX_REPORTED: u32 = (1 << 15) - 1;

impl Layout {
    /// Bytes of memory that the layout needs.
    fn end(&self) -> u64 {
        let area = |area: &Area, words: usize| {
            u64::from(area.offset) + u64::from(area.capacity) * words as u64 * 4
        };
        [
            area(&self.operations, OP_WORDS),
            area(&self.completions, COMPLETION_WORDS),
            area(&self.requests, FRONT_END_REQUEST_WORDS),
            area(&self.responses, RESPONSE_WORDS),
            u64::from(self.staging_offset) + u64::from(self.staging_length),
        ]
        .into_iter()
        .max()
        .unwrap_or(0)
    }
}

/// WebAssembly memory during one turn. All accesses are checked against its length.
#[derive(Debug)]
pub struct Batch<'a> {
    memory: &'a mut [u8],
    layout: Layout,
}

impl<'a> Batch<'a> {
    /// A view of `memory` by `layout`, for this many records from the host.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the layout reaches beyond the memory, `EINVAL` when there are more records than their area holds.
    pub fn new(
        memory: &'a mut [u8],
        layout: Layout,
        operations: u32,
        responses: u32,
    ) -> Result<Self> {
        if layout.end() > memory.len() as u64 {
            let message = format!(
                "the layout needs {} bytes, memory has {}",
                layout.end(),
                memory.len()
            );
            return Err(Error::new(libc::EFAULT, message));
        }
        if operations > layout.operations.capacity || responses > layout.responses.capacity {
            let message = format!(
                "{operations} operations and {responses} responses are more than their areas hold"
            );
            return Err(Error::new(libc::EINVAL, message));
        }
        Ok(Self { memory, layout })
    }

    /// The words of an operation.
    #[must_use]
    pub fn operation(&self, index: u32) -> [u32; OP_WORDS] {
        self.read(self.layout.operations, index)
    }

    /// A response.
    #[must_use]
    pub fn response(&self, index: u32) -> Response {
        Response::decode(&self.read::<RESPONSE_WORDS>(self.layout.responses, index))
    }

    /// How many completions can be reported.
    #[must_use]
    pub fn completions(&self) -> u32 {
        self.layout.completions.capacity.min(MAX_REPORTED)
    }

    /// How many requests can be reported.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.layout.requests.capacity.min(MAX_REPORTED)
    }

    /// Reports a completion.
    pub fn set_completion(&mut self, index: u32, completion: Completion) {
        self.write(self.layout.completions, index, &completion.encode());
    }

    /// Reports a request.
    pub fn set_request(&mut self, index: u32, request: &FrontEndRequest) {
        self.write(self.layout.requests, index, &request.encode());
    }

    /// `length` bytes at `offset` of the staging area, if they lie in it.
    pub fn staging(&mut self, offset: u32, length: u64) -> Option<&mut [u8]> {
        let end = u64::from(offset).checked_add(length)?;
        if end > u64::from(self.layout.staging_length) {
            return None;
        }
        let start = self.layout.staging_offset as usize + offset as usize;
        self.memory.get_mut(start..start + length as usize)
    }

    fn read<const WORDS: usize>(&self, area: Area, index: u32) -> [u32; WORDS] {
        let start = area.offset as usize + index as usize * WORDS * 4;
        let mut words = [0; WORDS];
        for (word, bytes) in words
            .iter_mut()
            .zip(self.memory[start..start + WORDS * 4].as_chunks().0)
        {
            *word = u32::from_le_bytes(*bytes);
        }
        words
    }

    fn write<const WORDS: usize>(&mut self, area: Area, index: u32, words: &[u32; WORDS]) {
        let start = area.offset as usize + index as usize * WORDS * 4;
        for (word, bytes) in words
            .iter()
            .zip(self.memory[start..start + WORDS * 4].as_chunks_mut().0)
        {
            *bytes = word.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        operations: Area {
            offset: 0,
            capacity: 1,
        },
        completions: Area {
            offset: 48,
            capacity: 2,
        },
        requests: Area {
            offset: 64,
            capacity: 1,
        },
        responses: Area {
            offset: 192,
            capacity: 1,
        },
        staging_offset: 208,
        staging_length: 16,
    };

    #[test]
    fn refuses_what_does_not_fit() {
        let mut memory = [0; 224];
        assert!(Batch::new(&mut memory, LAYOUT, 1, 1).is_ok());
        assert_eq!(
            Batch::new(&mut memory[..223], LAYOUT, 1, 1)
                .map(drop)
                .unwrap_err()
                .errno(),
            libc::EFAULT
        );
        assert_eq!(
            Batch::new(&mut memory, LAYOUT, 2, 0)
                .map(drop)
                .unwrap_err()
                .errno(),
            libc::EINVAL
        );
        assert_eq!(
            Batch::new(&mut memory, LAYOUT, 0, 2)
                .map(drop)
                .unwrap_err()
                .errno(),
            libc::EINVAL
        );
        let huge = Layout {
            requests: Area {
                offset: u32::MAX,
                capacity: u32::MAX,
            },
            ..LAYOUT
        };
        assert_eq!(
            Batch::new(&mut memory, huge, 0, 0)
                .map(drop)
                .unwrap_err()
                .errno(),
            libc::EFAULT
        );
    }

    #[test]
    fn staging_stays_in_its_bounds() {
        let mut memory = [0; 224];
        let mut batch = Batch::new(&mut memory, LAYOUT, 0, 0).unwrap();
        assert_eq!(batch.staging(4, 12).map(|bytes| bytes.len()), Some(12));
        assert!(batch.staging(4, 13).is_none());
        assert!(batch.staging(u32::MAX, u64::MAX).is_none());
        batch.set_completion(1, Completion { id: 7, result: -5 });
        assert_eq!(memory[56..64], [7, 0, 0, 0, 251, 255, 255, 255]);
    }
}
