//! A block's sector bitmap in memory: as small as what was written to the block is regular.
//!
//! Guests write whole pages, so nearly always the eight bits of a byte are alike and one bit says the same. A bitmap that
//! takes 512 bytes on disk takes 64 so, and one byte while the block is empty.

use crate::format::bitmap;

/// Bits that are one when they are alike, as a power of two.
const STEP: u32 = 3;

/// The sector bitmap of a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SectorBitmap {
    /// One bit for each `1 << shift` sectors, of which all or none are there.
    map: Box<[u8]>,
    /// A multiple of [`STEP`].
    shift: u32,
}

impl SectorBitmap {
    /// The bitmap of a block that has nothing, which takes so many bytes on disk.
    pub(crate) fn clear(bytes: usize) -> Self {
        let (mut length, mut shift) = (bytes, 0);
        while length > 0 && length.is_multiple_of(8) {
            length /= 8;
            shift += STEP;
        }
        Self {
            map: vec![0; length].into_boxed_slice(),
            shift,
        }
    }

    /// A bitmap as it is on disk.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut bitmap = Self {
            map: bytes.into(),
            shift: 0,
        };
        bitmap.compact();
        bitmap
    }

    /// As it is on disk.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut map = self.map.to_vec();
        for _ in 0..self.shift / STEP {
            map = spread(&map);
        }
        map
    }

    /// Bytes that it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.map.len()
    }

    /// Bytes that it takes on disk, and in memory at most.
    pub(crate) fn most_bytes(&self) -> usize {
        self.map.len() << self.shift
    }

    /// Whether sector `first` is there, and with how many from there on it is so, at most `limit`.
    pub(crate) fn run(&self, first: u32, limit: u32) -> (bool, u32) {
        let within = first & ((1 << self.shift) - 1);
        let groups = (within + limit).div_ceil(1 << self.shift);
        let (present, groups) = bitmap::run(&self.map, first >> self.shift, groups);
        (present, limit.min((groups << self.shift) - within))
    }

    /// Whether the first `sectors` sectors are all there.
    pub(crate) fn is_full(&self, sectors: u32) -> bool {
        self.run(0, sectors) == (true, sectors)
    }

    /// Notes that `count` sectors from `first` on are there. Returns true if any of them was not.
    pub(crate) fn set_range(&mut self, first: u32, count: u32) -> bool {
        if self.run(first, count) == (true, count) {
            return false;
        }
        while (first | count) & ((1 << self.shift) - 1) != 0 {
            self.map = spread(&self.map).into_boxed_slice();
            self.shift -= STEP;
        }
        bitmap::set_range(&mut self.map, first >> self.shift, count >> self.shift);
        true
    }

    /// Makes it as small as it can be.
    pub(crate) fn compact(&mut self) {
        while self.map.len().is_multiple_of(8)
            && self.map.iter().all(|byte| matches!(byte, 0 | 0xff))
            && !self.map.is_empty()
        {
            let eights = self.map.chunks_exact(8).map(|eight| {
                let bits = eight.iter().map(|byte| byte & 1);
                bits.fold(0, |byte, bit| byte << 1 | bit)
            });
            self.map = eights.collect();
            self.shift += STEP;
        }
    }
}

/// A byte for each bit.
fn spread(map: &[u8]) -> Vec<u8> {
    let bits = |byte: &u8| {
        let byte = *byte;
        (0..8)
            .rev()
            .map(move |bit| 0u8.wrapping_sub(byte >> bit & 1))
    };
    map.iter().flat_map(bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: usize = 512;
    const SECTORS: u32 = BYTES as u32 * 8;

    /// Stretches as guests write them: pages, and what isn't.
    fn stretches() -> impl Strategy<Value = Vec<(u32, u32)>> {
        let stretch = (0..4_u32, 0..SECTORS, 1..SECTORS).prop_map(|(kind, first, count)| {
            let unit = [1, 8, 64, 512][kind as usize];
            let first = first / unit * unit;
            (
                first,
                (count / 16)
                    .next_multiple_of(unit)
                    .clamp(1, SECTORS - first),
            )
        });
        prop::collection::vec(stretch, 0..12)
    }

    proptest! {
        #[test]
        fn says_the_same_as_the_bitmap_on_disk(stretches in stretches(), compact in 0_usize..12, first in 0..SECTORS, limit in 1..SECTORS) {
            let mut bitmap = SectorBitmap::clear(BYTES);
            let mut model = vec![0; BYTES];
            for (index, (first, count)) in stretches.into_iter().enumerate() {
                prop_assert_eq!(bitmap.set_range(first, count), bitmap::set_range(&mut model, first, count));
                if index == compact {
                    bitmap.compact();
                }
            }
            let limit = limit.min(SECTORS - first);
            for bitmap in [&bitmap, &SectorBitmap::new(&model)] {
                prop_assert_eq!(bitmap.to_vec(), &model[..]);
                prop_assert_eq!(bitmap.run(first, limit), bitmap::run(&model, first, limit));
                prop_assert_eq!(bitmap.is_full(limit), bitmap::is_full(&model, limit));
                prop_assert_eq!(bitmap.most_bytes(), BYTES);
            }
        }
    }

    #[test]
    fn is_as_small_as_what_was_written_is_regular() {
        let mut bitmap = SectorBitmap::clear(BYTES);
        assert_eq!(bitmap.bytes(), 1);
        bitmap.set_range(8, 8);
        assert_eq!(bitmap.bytes(), 64);
        bitmap.set_range(17, 7);
        assert_eq!(bitmap.bytes(), 512);
        bitmap.set_range(16, 1);
        bitmap.compact();
        assert_eq!(bitmap.bytes(), 64);
        bitmap.set_range(0, SECTORS);
        bitmap.compact();
        assert_eq!((bitmap.bytes(), bitmap.is_full(SECTORS)), (1, true));
        assert!(!bitmap.set_range(3, 2));
        assert_eq!(bitmap.bytes(), 1);
    }

    #[test]
    fn bitmaps_of_any_length_are_kept() {
        for bytes in [0, 1, 7, 8, 24, 1024, 4096] {
            assert_eq!(SectorBitmap::clear(bytes).to_vec(), vec![0; bytes]);
            let map: Vec<u8> = (0..bytes)
                .map(|byte| 0u8.wrapping_sub(byte as u8 & 1))
                .collect();
            assert_eq!(SectorBitmap::new(&map).to_vec(), map);
        }
    }
}
