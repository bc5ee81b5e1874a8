//! What is seen below the leaf: which level of the chain each sector is read from.
//!
//! The levels below the leaf are only read while a disk is open. So what they make together of a stretch of the disk is
//! found out once, from the bitmaps of all of them, and remembered as a [`View`]; from then on a read takes one look-up,
//! however long the chain is. Views share the memory of the bitmap cache, and are made again when they were evicted.
//!
//! Another process may merge images below the leaf into one of them meanwhile (`jobs/coalesce`). It writes, marks and
//! releases in the target only what an image above it hides, or the end of one. Such sectors belong to that image in every
//! view, whether the target's bitmap was read before, during or after the merge, and whatever is found at a place that the
//! BAT in memory still names; a sector that nothing hides keeps its bit and its place. So a view stays right.

use crate::format::bitmap;
use crate::image::{Image, Layout};
use crate::staging::Chunk;

/// Sectors in a stretch at most: a sector of a bitmap has so many bits.
const MAX_STRETCH: u32 = 512 * 8;

/// How the levels below the leaf are looked at: in stretches, none of which crosses a block of any level.
#[derive(Debug)]
pub(crate) struct Below {
    /// Sectors in a stretch, as a power of two.
    shift: u32,
    /// For each level the first sector of the disk that is not seen in it: its own end, or that of a smaller image above.
    ends: Vec<u64>,
}

impl Below {
    /// For a chain, leaf first.
    pub(crate) fn new(chain: &[Image]) -> Self {
        let mut end = u64::MAX;
        let mut sectors = MAX_STRETCH;
        let mut ends = vec![end];
        for image in chain.iter().skip(1) {
            end = end.min(image.sectors);
            ends.push(end);
            if let Layout::Blocks(blocks) = &image.layout {
                // A power of two, as the header was checked for.
                sectors = sectors.min(blocks.sectors_per_block);
            }
        }
        Self {
            shift: sectors.max(1).ilog2(),
            ends,
        }
    }

    /// The number of the stretch that a sector is in, and the sector's own in it.
    pub(crate) fn stretch_of(&self, sector: u64) -> (u32, u32) {
        // A disk with a BAT has at most 2^32 sectors, and a stretch at least eight.
        let stretch = (sector >> self.shift) as u32;
        (stretch, sector as u32 & (self.sectors() - 1))
    }

    /// Sectors from this one to the end of its stretch.
    pub(crate) fn rest_of_stretch(&self, sector: u64) -> u32 {
        self.sectors() - self.stretch_of(sector).1
    }

    /// The first sector of a stretch.
    pub(crate) fn start_of(&self, stretch: u32) -> u64 {
        u64::from(stretch) << self.shift
    }

    /// Sectors in a stretch.
    pub(crate) fn sectors(&self) -> u32 {
        1 << self.shift
    }

    /// How many sectors of a stretch, from its first on, can be seen in a level or below it.
    pub(crate) fn visible(&self, stretch: u32, level: usize) -> u32 {
        // Nothing is below the last level.
        let end = self.ends.get(level).copied().unwrap_or(0);
        let sectors = end.saturating_sub(self.start_of(stretch));
        sectors.min(u64::from(self.sectors())) as u32
    }

    /// A view of a stretch before anything is known of it.
    pub(crate) fn unknown(&self) -> View {
        View {
            levels: Box::new([0]),
            shift: self.shift,
            next: 1,
            open: self.sectors(),
            search: None,
        }
    }
}

/// Where a sector is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// In the image of this level.
    In(usize),
    /// In none: it reads as zeros.
    Nowhere,
}

/// Where the sectors of a stretch are seen, as far as that is known.
#[derive(Debug)]
pub(crate) struct View {
    /// For each group of `1 << shift` sectors the level that has them; 0 where none has that was looked at. A chain has at
    /// most 256 images.
    levels: Box<[u8]>,
    shift: u32,
    /// The first level that was not looked at.
    next: usize,
    /// What no level has and lies before this sector may be in a level that was not looked at.
    open: u32,
    /// Bitmaps that are on their way.
    pub(crate) search: Option<Box<Search>>,
}

/// A look at several levels together.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) stretch: u32,
    /// The levels before this one.
    pub(crate) until: usize,
    /// Bitmaps of those that need one, in the order of the levels.
    pub(crate) fetches: Vec<Fetch>,
    /// How many of them are not there yet.
    pub(crate) arriving: usize,
}

/// A sector of a level's bitmap, or what became of it.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) level: usize,
    pub(crate) block: u32,
    pub(crate) chunk: Chunk,
    /// The bit of the stretch's first sector.
    pub(crate) first: u32,
    /// Bytes that were read, or a negative errno value.
    pub(crate) result: i32,
}

impl View {
    /// Where sector `first` of the stretch is seen, if that is known, and how many of the next `limit` sectors (at least 1)
    /// it is so with.
    pub(crate) fn at(&self, first: u32, limit: u32) -> (Option<Seen>, u32) {
        let mut group = (first >> self.shift) as usize;
        let last = ((first + limit - 1) >> self.shift) as usize;
        let level = self.levels.get(group).copied().unwrap_or(0);
        while group < last && self.levels.get(group + 1) == Some(&level) {
            group += 1;
        }
        let count = (((group as u32 + 1) << self.shift) - first).min(limit);
        match level {
            0 if first < self.open => (None, count.min(self.open - first)),
            0 => (Some(Seen::Nowhere), count),
            _ => (Some(Seen::In(usize::from(level))), count),
        }
    }

    /// Whether all is known of `count` sectors from `first` on.
    pub(crate) fn knows(&self, mut first: u32, count: u32) -> bool {
        let end = first + count;
        while first < end {
            match self.at(first, end - first) {
                (None, _) => return false,
                (_, count) => first += count,
            }
        }
        true
    }

    /// The first level that was not looked at.
    pub(crate) fn next(&self) -> usize {
        self.next
    }

    /// Whether all is known of the whole stretch.
    pub(crate) fn is_complete(&self) -> bool {
        self.open == 0
    }

    /// Bytes that it takes at most until it is made again.
    pub(crate) fn bytes(&self) -> usize {
        if self.is_complete() {
            self.levels.len()
        } else {
            self.levels.len() << self.shift
        }
    }

    /// Only the first `sectors` sectors can be seen in the next level, and below it.
    pub(crate) fn narrow(&mut self, sectors: u32) {
        self.open = self.open.min(sectors);
        self.end_if_closed();
    }

    /// The next level has nothing of this.
    pub(crate) fn pass(&mut self) {
        self.next += 1;
    }

    /// The next level has all of it.
    pub(crate) fn fill(&mut self) {
        if self.open < self.sectors() {
            self.spread();
        }
        let groups = (self.open >> self.shift) as usize;
        let level = self.next as u8;
        for owner in self.levels.iter_mut().take(groups) {
            if *owner == 0 {
                *owner = level;
            }
        }
        self.next += 1;
        self.end();
    }

    /// The next level has the sectors whose bits are set, from bit `first` on.
    pub(crate) fn merge(&mut self, bits: &[u8], first: u32) {
        self.spread();
        let level = self.next as u8;
        let mut sector = 0;
        while sector < self.open {
            let (present, count) = bitmap::run(bits, first + sector, self.open - sector);
            if present {
                let owners = self.levels.iter_mut().skip(sector as usize);
                for owner in owners.take(count as usize) {
                    if *owner == 0 {
                        *owner = level;
                    }
                }
            }
            sector += count;
        }
        self.next += 1;
        self.end_if_closed();
    }

    /// No level is left.
    pub(crate) fn end(&mut self) {
        self.open = 0;
        self.compact();
    }

    fn end_if_closed(&mut self) {
        let open = (self.open >> self.shift) as usize;
        if !self
            .levels
            .iter()
            .take(open.max(1))
            .any(|level| *level == 0)
            || self.open == 0
        {
            self.end();
        }
    }

    fn sectors(&self) -> u32 {
        (self.levels.len() as u32) << self.shift
    }

    /// Makes groups of single sectors.
    fn spread(&mut self) {
        if self.shift > 0 {
            let group = 1 << self.shift;
            let levels = self.levels.iter();
            self.levels = levels
                .flat_map(|level| std::iter::repeat_n(*level, group))
                .collect();
            self.shift = 0;
        }
    }

    /// Makes the largest groups that there can be: where all fragments are whole pages, for example, these.
    fn compact(&mut self) {
        let mut levels = std::mem::take(&mut self.levels).into_vec();
        while levels.len() > 1 && levels.chunks_exact(2).all(|pair| pair[0] == pair[1]) {
            levels = levels.into_iter().step_by(2).collect();
            self.shift += 1;
        }
        self.levels = levels.into_boxed_slice();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECTORS: u32 = 64;

    /// What a level says of a stretch: how much of it is seen there, and what it has.
    #[derive(Clone, Debug)]
    struct Level {
        visible: u32,
        has: Has,
    }

    #[derive(Clone, Debug)]
    enum Has {
        Nothing,
        Everything,
        /// The bits of a word, each for `1 << shift` sectors, from this bit of a bitmap on.
        Bits(u64, u32, u32),
    }

    fn levels() -> impl Strategy<Value = Vec<Level>> {
        let bits = (any::<u64>(), any::<u64>(), 0_u32..7, 0_u32..20);
        let has = prop_oneof![
            2 => Just(Has::Nothing),
            1 => Just(Has::Everything),
            5 => bits.prop_map(|(one, two, shift, first)| Has::Bits(one & two, shift, first)),
        ];
        let visible = prop_oneof![4 => Just(SECTORS), 1 => 0..=SECTORS];
        let level = (visible, has).prop_map(|(visible, has)| Level { visible, has });
        prop::collection::vec(level, 0..20)
    }

    impl Level {
        fn has(&self, sector: u32) -> bool {
            match self.has {
                Has::Nothing => false,
                Has::Everything => true,
                Has::Bits(word, shift, _) => word >> (sector >> shift) & 1 == 1,
            }
        }

        fn look(&self, view: &mut View) {
            view.narrow(self.visible);
            match self.has {
                _ if view.is_complete() => {}
                Has::Nothing => view.pass(),
                Has::Everything => view.fill(),
                Has::Bits(_, _, first) => {
                    let mut bits = [0xa5; 16];
                    for sector in 0..SECTORS {
                        let (byte, mask) = ((first + sector) / 8, 0x80 >> ((first + sector) % 8));
                        bits[byte as usize] &= !mask;
                        if self.has(sector) {
                            bits[byte as usize] |= mask;
                        }
                    }
                    view.merge(&bits, first);
                }
            }
        }
    }

    /// Where a sector is seen, if the first `looked` levels, or all, tell.
    fn seen(levels: &[Level], looked: Option<usize>, sector: u32) -> Option<Seen> {
        for (index, level) in levels.iter().take(looked.unwrap_or(usize::MAX)).enumerate() {
            if sector >= level.visible {
                return Some(Seen::Nowhere);
            }
            if level.has(sector) {
                return Some(Seen::In(index + 1));
            }
        }
        looked.is_none().then_some(Seen::Nowhere)
    }

    fn check(view: &View, levels: &[Level], looked: Option<usize>) {
        let model: Vec<_> = (0..SECTORS)
            .map(|sector| seen(levels, looked, sector))
            .collect();
        for first in 0..SECTORS {
            let here = model[first as usize];
            let alike = model[first as usize..].iter();
            let run = alike.take_while(|seen| **seen == here).count() as u32;
            for limit in [1, 7, SECTORS].map(|limit| limit.min(SECTORS - first)) {
                assert_eq!(view.at(first, limit), (here, run.min(limit)));
                let known = model[first as usize..][..limit as usize]
                    .iter()
                    .all(Option::is_some);
                assert_eq!(view.knows(first, limit), known);
            }
        }
    }

    proptest! {
        #[test]
        fn a_view_names_the_first_level_that_has_a_sector(levels in levels()) {
            let below = Below { shift: SECTORS.ilog2(), ends: Vec::new() };
            let mut view = below.unknown();
            check(&view, &levels, Some(0));
            for (looked, level) in levels.iter().enumerate() {
                level.look(&mut view);
                if view.is_complete() {
                    break;
                }
                check(&view, &levels, Some(looked + 1));
                assert_eq!(view.next(), looked + 2);
            }
            view.end();
            check(&view, &levels, None);
        }
    }

    #[test]
    fn a_view_is_as_small_as_its_fragments_are_large() {
        let below = Below {
            shift: 12,
            ends: Vec::new(),
        };
        let mut view = below.unknown();
        assert_eq!(view.bytes(), 4096);
        view.merge(&[0xff, 0, 0, 0].repeat(128), 0);
        assert!(!view.is_complete());
        assert_eq!(view.bytes(), 4096);
        view.fill();
        assert_eq!((view.is_complete(), view.bytes()), (true, 512));
        let mut whole = below.unknown();
        whole.fill();
        assert_eq!(whole.bytes(), 1);
        let mut odd = below.unknown();
        odd.merge(&[vec![0x80], vec![0; 511]].concat(), 0);
        odd.end();
        assert_eq!(odd.bytes(), 4096);
    }
}
