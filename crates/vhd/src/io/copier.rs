//! Copying from file to file, with many operations in flight.

use super::{Flight, Io, plain_op};
use crate::error::Result;
use crate::record::{Op, OpKind};

/// Bytes that one operation copies at most.
const PART: u64 = 8 << 20;
/// Operations in flight.
const DEPTH: usize = 16;

/// Copies from file to file; to be finished by [`Copier::finish`].
pub(crate) struct Copier {
    io: Io,
    flight: Flight,
}

impl Copier {
    /// Copies of `structure`, as errors are to name it.
    pub(crate) fn new(io: &Io, structure: &'static str) -> Self {
        Self {
            io: io.clone(),
            flight: Flight::new(structure),
        }
    }

    /// Copies `length` bytes at an offset of a file to one of another. Returns as soon as there is room for more.
    ///
    /// # Errors
    /// That of an earlier copy; nothing is in flight any more then.
    pub(crate) async fn copy(
        &mut self,
        (source_file, source_offset): (u16, u64),
        (file, offset): (u16, u64),
        length: u64,
    ) -> Result<()> {
        let mut done = 0;
        while done < length {
            self.flight.make_room(DEPTH).await;
            if self.flight.error.is_some() {
                self.flight.make_room(1).await;
                return self.flight.error.take().map_or(Ok(()), Err);
            }
            let part = (length - done).min(PART);
            let op = Op {
                source_file,
                source_offset: source_offset + done,
                ..plain_op(OpKind::CopyRange, file, offset + done, part)
            };
            let pending = self.io.start(op, None);
            self.flight.push(pending, offset + done, part as usize);
            done += part;
        }
        Ok(())
    }

    /// Waits for all copies.
    ///
    /// # Errors
    /// The first error of one.
    pub(crate) async fn finish(self) -> Result<()> {
        self.flight.finish().await
    }
}
