//! Reads: the leaf's part of them, and what is read from the images below it.

use crate::below::Seen;
use crate::core::Core;
use crate::error::errno;
use crate::image::{Layout, Place};
use crate::io::Queue;
use crate::record::OpKind;
use crate::request::Piece;

impl Core {
    /// Reads a piece.
    pub(crate) fn read(&mut self, queue: &mut Queue, piece: Piece) {
        if piece.below {
            return self.read_below(queue, piece);
        }
        let leaf = self.leaf();
        if let Layout::Flat = leaf.layout {
            let file = leaf.file;
            return self.transfer(queue, OpKind::Read, file, piece.sector * 512, piece, None);
        }
        self.each_block(queue, piece, Self::read_block);
    }

    fn read_block(&mut self, queue: &mut Queue, piece: Piece, _: u32, place: Option<Place>) {
        let Some(place) = place else {
            return self.read_below(queue, piece);
        };
        if place.full {
            return self.transfer(queue, OpKind::Read, place.file, place.data, piece, None);
        }
        let Some(index) = self.bitmap(queue, piece, &place) else {
            return;
        };
        let Some(bits) = self.cache.bits(index) else {
            return;
        };
        // Most pieces are small, and all in the leaf or not at all.
        match bits.run(place.first, piece.count) {
            (true, count) if count == piece.count => {
                self.transfer(queue, OpKind::Read, place.file, place.data, piece, None);
            }
            (false, count) if count == piece.count => self.read_below(queue, piece),
            _ => self.read_runs(queue, piece, &place, index),
        }
    }

    /// Reads a piece of which the leaf has some sectors, by the bitmap with this index.
    fn read_runs(&mut self, queue: &mut Queue, piece: Piece, place: &Place, index: u32) {
        // Looking below may load bitmaps and evict others: not this one.
        self.cache.pin(index);
        let mut done = 0;
        while done < piece.count
            && let Some(bits) = self.cache.bits(index)
        {
            let (present, count) = bits.run(place.first + done, piece.count - done);
            let part = piece.part(done, count);
            if present {
                let offset = place.data + u64::from(done) * 512;
                self.transfer(queue, OpKind::Read, place.file, offset, part, None);
            } else {
                self.read_below(queue, part);
            }
            done += count;
        }
        self.cache.unpin(index);
    }

    /// Reads a piece that the leaf doesn't have.
    fn read_below(&mut self, queue: &mut Queue, piece: Piece) {
        if self.chain.len() == 1 {
            return self.zero(queue, piece);
        }
        let piece = Piece {
            below: true,
            ..piece
        };
        let mut done = 0;
        while done < piece.count {
            let rest = piece.part(done, piece.count - done);
            let count = self.below.rest_of_stretch(rest.sector).min(rest.count);
            self.read_stretch(queue, rest.part(0, count));
            done += count;
        }
    }

    /// Reads a piece in one stretch of what is below the leaf.
    fn read_stretch(&mut self, queue: &mut Queue, piece: Piece) {
        let mut done = 0;
        while done < piece.count {
            let rest = piece.part(done, piece.count - done);
            let Some((seen, count)) = self.seen_below(queue, rest) else {
                return;
            };
            match seen {
                Seen::In(level) => self.read_level(queue, level, rest.part(0, count)),
                Seen::Nowhere => self.zero(queue, rest.part(0, count)),
            }
            done += count;
        }
    }

    /// Reads a piece that the image of this level has.
    fn read_level(&mut self, queue: &mut Queue, level: usize, piece: Piece) {
        let place = self
            .chain
            .get(level)
            .and_then(|image| Some((image.file, image.offset_of(piece.sector)?)));
        match (place, self.requests.get_mut(piece.request as usize)) {
            (Some((file, offset)), _) => {
                self.transfer(queue, OpKind::Read, file, offset, piece, None);
            }
            // A view names no level that doesn't have the block.
            (None, Some(request)) => request.status = -errno::EIO,
            (None, None) => {}
        }
    }
}
