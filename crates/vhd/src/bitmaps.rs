//! The sector bitmaps of the leaf's blocks: loading them, and letting parts of requests wait for that.

use crate::cache::{Content, Entry, Key, Lookup};
use crate::core::Core;
use crate::error::errno;
use crate::image::Place;
use crate::io::{Owner, Queue, plain_op};
use crate::record::{Op, OpKind};
use crate::request::Piece;
use crate::sector_bitmap::SectorBitmap;
use crate::staging::Chunk;

impl Core {
    /// The bitmap of a block of the leaf, or `None` after parking `piece` until it is there.
    pub(crate) fn bitmap(&mut self, queue: &mut Queue, piece: Piece, place: &Place) -> Option<u32> {
        match self.cache.lookup(place.block) {
            Lookup::Ready(index) => return Some(index),
            Lookup::Loading(index) => {
                let piece = self.park(piece);
                if let Some(waiting) = self.cache.waiting(index) {
                    waiting.push(piece);
                }
            }
            Lookup::Missing => {
                let piece = self.park(piece);
                if !self.load_bitmap(queue, place, vec![piece]) {
                    self.starved.push_back(piece);
                }
            }
        }
        None
    }

    /// Starts loading a bitmap on behalf of parked pieces; false if there is no memory for it now.
    pub(crate) fn load_bitmap(
        &mut self,
        queue: &mut Queue,
        place: &Place,
        waiting: Vec<Piece>,
    ) -> bool {
        let Some(chunk) = queue.staging.allocate(place.bitmap_bytes) else {
            return false;
        };
        let bits = Content::Bitmap(SectorBitmap::clear(place.bitmap_bytes));
        let Some(entry) = self
            .cache
            .insert(Key::Block(place.block), bits, Some(waiting))
        else {
            queue.staging.free(chunk);
            self.commit.wanted = true;
            return false;
        };
        let op = plain_op(
            OpKind::Read,
            place.file,
            place.bitmap * 512,
            place.bitmap_bytes as u64,
        );
        queue.push(
            Op {
                buffer: chunk.offset(),
                ..op
            },
            Owner::Bitmap { entry, chunk },
        );
        self.loading += 1;
        true
    }

    /// A bitmap has arrived, or has not.
    pub(crate) fn bitmap_loaded(
        &mut self,
        queue: &mut Queue,
        index: u32,
        chunk: Chunk,
        result: i32,
    ) {
        self.loading -= 1;
        let waiting = self.cache.take_waiting(index);
        let length = match self.cache.get(index).and_then(Entry::bitmap) {
            Some((_, bits)) => {
                let length = bits.most_bytes();
                *bits = SectorBitmap::new(&queue.staging.chunk(chunk)[..length]);
                length
            }
            None => 0,
        };
        queue.staging.free(chunk);
        if result.cast_unsigned() as usize != length {
            self.cache.remove(index);
            return self.fail(
                waiting,
                if result < 0 {
                    result.saturating_neg()
                } else {
                    errno::EIO
                },
            );
        }
        self.settle(index);
        self.cache.drop_if_detached(index);
        self.resume(queue, waiting);
    }

    /// Makes a cached bitmap that is on disk as small as it can be; if the block is full, one bit elsewhere says so.
    pub(crate) fn settle(&mut self, index: u32) {
        let Some(leaf) = self.chain.first_mut() else {
            return;
        };
        if let Some(entry) = self.cache.get(index)
            && !entry.dirty
            && !entry.detached
            && entry.pins == 0
            && let Some((block, bits)) = entry.bitmap()
        {
            if leaf.note_if_full(block, |sectors| bits.is_full(sectors)) {
                self.cache.remove(index);
            } else {
                self.cache.compact(index);
            }
        }
    }
}
