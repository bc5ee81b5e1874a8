//! A buddy allocator over page numbers. It knows no memory: only which pages are free.

/// The largest block is 2^13 pages: 32 MiB.
pub(super) const MAX_ORDER: u8 = 13;

/// Free blocks, one set for each order. Everything takes O(log n).
#[derive(Debug)]
pub(super) struct Buddy {
    free: Vec<BitTree>,
    free_pages: u32,
}

impl Buddy {
    /// All pages free; their number is a multiple of the largest block's.
    pub(super) fn new(pages: u32) -> Self {
        debug_assert_eq!(pages % (1 << MAX_ORDER), 0);
        let mut free: Vec<_> = (0..=MAX_ORDER)
            .map(|order| BitTree::new(pages >> order))
            .collect();
        for block in 0..pages >> MAX_ORDER {
            free[usize::from(MAX_ORDER)].set(block);
        }
        Self {
            free,
            free_pages: pages,
        }
    }

    /// The order whose blocks hold this many pages; `None` if even the largest don't.
    pub(super) fn order(pages: u32) -> Option<u8> {
        let order = pages.max(1).checked_next_power_of_two()?.trailing_zeros() as u8;
        (order <= MAX_ORDER).then_some(order)
    }

    /// Takes the lowest of the smallest blocks that suffice. Returns its first page.
    pub(super) fn allocate(&mut self, order: u8) -> Option<u32> {
        let (mut from, mut block) = (order..=MAX_ORDER)
            .find_map(|order| Some((order, self.free[usize::from(order)].first()?)))?;
        self.free[usize::from(from)].clear(block);
        while from > order {
            from -= 1;
            block *= 2;
            self.free[usize::from(from)].set(block + 1);
        }
        self.free_pages -= 1 << order;
        Some(block << order)
    }

    /// Gives back what `allocate` returned for this order.
    pub(super) fn free(&mut self, page: u32, mut order: u8) {
        self.free_pages += 1 << order;
        let mut block = page >> order;
        while order < MAX_ORDER && self.free[usize::from(order)].has(block ^ 1) {
            self.free[usize::from(order)].clear(block ^ 1);
            block >>= 1;
            order += 1;
        }
        debug_assert!(!self.free[usize::from(order)].has(block));
        self.free[usize::from(order)].set(block);
    }

    pub(super) fn free_pages(&self) -> u32 {
        self.free_pages
    }
}

/// A set of small numbers that finds its least member fast: a bitmap, a bitmap of its words that aren't zero, and so on
/// up to a single word.
#[derive(Debug)]
struct BitTree {
    levels: Vec<Box<[u64]>>,
}

impl BitTree {
    fn new(bits: u32) -> Self {
        let mut levels = Vec::new();
        let mut words = bits as usize;
        loop {
            words = words.div_ceil(64).max(1);
            levels.push(vec![0; words].into_boxed_slice());
            if words == 1 {
                return Self { levels };
            }
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.levels[0]
            .get(bit as usize / 64)
            .is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn set(&mut self, bit: u32) {
        let mut bit = bit as usize;
        for level in &mut self.levels {
            level[bit / 64] |= 1 << (bit % 64);
            bit /= 64;
        }
    }

    fn clear(&mut self, bit: u32) {
        let mut bit = bit as usize;
        for level in &mut self.levels {
            level[bit / 64] &= !(1 << (bit % 64));
            if level[bit / 64] != 0 {
                return;
            }
            bit /= 64;
        }
    }

    fn first(&self) -> Option<u32> {
        let mut word = 0;
        for level in self.levels.iter().rev() {
            if level[word] == 0 {
                return None;
            }
            word = word * 64 + level[word].trailing_zeros() as usize;
        }
        Some(word as u32)
    }
}
