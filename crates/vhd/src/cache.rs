//! The cache of sector bitmaps of the leaf's blocks that are not full, and of views of what is below it (`below.rs`), with
//! a bound in bytes for all of them together.
//!
//! A bitmap in the cache is what counts: bits are set here when data are in the file, and go to disk with the next commit.
//! So an entry with bits that are not on disk yet (dirty), or that a write in flight will mark (pinned), is never evicted.

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::below::View;
use crate::planted::{self, Bug};
use crate::request::Piece;
use crate::sector_bitmap::SectorBitmap;

/// Fewer entries than this are never a reason to evict one.
const MIN_ENTRIES: usize = 16;

/// Bytes that an entry takes beside its content.
const ENTRY_BYTES: usize = size_of::<Entry>() + size_of::<(Key, u32)>();

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A block of the leaf.
    Block(u32),
    /// A stretch of the disk below it.
    Stretch(u32),
}

/// What an entry holds.
#[derive(Debug)]
pub(crate) enum Content {
    /// The sector bitmap of a block.
    Bitmap(SectorBitmap),
    /// A view of a stretch.
    View(View),
}

impl Content {
    fn bytes(&self) -> usize {
        match self {
            Self::Bitmap(bits) => bits.bytes(),
            Self::View(view) => view.bytes(),
        }
    }

    /// What it may grow to.
    fn most_bytes(&self) -> usize {
        match self {
            Self::Bitmap(bits) => bits.most_bytes(),
            Self::View(view) => view.bytes(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Entry {
    key: Key,
    content: Content,
    /// Bytes that it counts for.
    bytes: usize,
    /// Parts of requests that wait until bitmaps are loaded; `None` if none are on their way.
    pub(crate) loading: Option<Vec<Piece>>,
    /// Has bits that are not on disk.
    pub(crate) dirty: bool,
    /// Writes in flight that will set bits here, and commits that are writing the bitmap.
    pub(crate) pins: u32,
    /// Its block was released: it goes with its last pin.
    pub(crate) detached: bool,
    /// Used since the clock hand passed last.
    referenced: bool,
}

impl Entry {
    /// Bytes that it counts for. What can't go counts for all that it may become: so dirty bitmaps, which stay until they
    /// are written, don't outgrow the limit.
    fn weight(&self) -> usize {
        let content = if self.dirty || self.loading.is_some() {
            self.content.most_bytes()
        } else {
            self.content.bytes()
        };
        content + ENTRY_BYTES
    }

    /// The block and its bitmap, if it is about one.
    pub(crate) fn bitmap(&mut self) -> Option<(u32, &mut SectorBitmap)> {
        match (self.key, &mut self.content) {
            (Key::Block(block), Content::Bitmap(bits)) => Some((block, bits)),
            _ => None,
        }
    }
}

/// What the cache knows of a bitmap.
pub(crate) enum Lookup {
    /// In the cache under this index.
    Ready(u32),
    /// On its way; wait at this index.
    Loading(u32),
    /// Not there.
    Missing,
}

#[derive(Debug)]
pub(crate) struct BitmapCache {
    entries: Slab<Entry>,
    index: FxHashMap<Key, u32>,
    hand: usize,
    bytes: usize,
    limit: usize,
    /// Entries with bits that are not on disk.
    dirty: Vec<u32>,
}

impl BitmapCache {
    /// A cache for at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: Slab::new(),
            index: FxHashMap::default(),
            hand: 0,
            bytes: 0,
            limit,
            dirty: Vec::new(),
        }
    }

    /// The bitmap of a block of the leaf.
    pub(crate) fn lookup(&mut self, block: u32) -> Lookup {
        let Some(&index) = self.index.get(&Key::Block(block)) else {
            return Lookup::Missing;
        };
        match self.entries.get_mut(index as usize) {
            Some(Entry {
                loading: None,
                referenced,
                ..
            }) => {
                *referenced = true;
                Lookup::Ready(index)
            }
            _ => Lookup::Loading(index),
        }
    }

    /// The view of a stretch, and its index.
    pub(crate) fn find_view(&mut self, stretch: u32) -> Option<(u32, &View)> {
        let index = *self.index.get(&Key::Stretch(stretch))?;
        let entry = self.entries.get_mut(index as usize)?;
        entry.referenced = true;
        match &entry.content {
            Content::View(view) => Some((index, view)),
            Content::Bitmap(_) => None,
        }
    }

    /// A view.
    pub(crate) fn view(&mut self, index: u32) -> Option<&mut View> {
        match &mut self.get(index)?.content {
            Content::View(view) => Some(view),
            Content::Bitmap(_) => None,
        }
    }

    /// A bitmap.
    pub(crate) fn bits(&mut self, index: u32) -> Option<&SectorBitmap> {
        self.get(index)?.bitmap().map(|(_, bits)| &*bits)
    }

    /// Makes a bitmap that is clean as small as it can be.
    pub(crate) fn compact(&mut self, index: u32) {
        if let Some((_, bits)) = self.get(index).and_then(Entry::bitmap) {
            bits.compact();
        }
        self.weigh(index);
    }

    /// The parts of requests that wait for an entry, if bitmaps are on their way for it.
    pub(crate) fn waiting(&mut self, index: u32) -> Option<&mut Vec<Piece>> {
        self.get(index)?.loading.as_mut()
    }

    /// Lets parts of requests wait for an entry.
    pub(crate) fn set_waiting(&mut self, index: u32) {
        if let Some(entry) = self.get(index) {
            entry.loading.get_or_insert_default();
        }
    }

    /// Takes those that wait: what they wait for is there.
    pub(crate) fn take_waiting(&mut self, index: u32) -> Vec<Piece> {
        self.get(index)
            .and_then(|entry| entry.loading.take())
            .unwrap_or_default()
    }

    pub(crate) fn get(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize)
    }

    /// Adds a bitmap or a view, evicting others if need be; `None` if there is no room as long as nothing gets clean or
    /// unpinned.
    pub(crate) fn insert(
        &mut self,
        key: Key,
        content: Content,
        loading: Option<Vec<Piece>>,
    ) -> Option<u32> {
        let mut entry = Entry {
            key,
            content,
            bytes: 0,
            loading,
            dirty: false,
            pins: 0,
            detached: false,
            referenced: true,
        };
        entry.bytes = entry.weight();
        while self.bytes + entry.bytes > self.limit && self.entries.len() >= MIN_ENTRIES {
            let victim = self.victim()?;
            self.remove(victim);
        }
        self.bytes += entry.bytes;
        let index = self.entries.insert(entry) as u32;
        self.index.insert(key, index);
        Some(index)
    }

    /// Counts the bytes of an entry again, and evicts others if it got so large that they don't fit any more.
    pub(crate) fn weigh(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        let bytes = entry.weight();
        self.bytes = self.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        entry.pins += 1;
        while self.bytes > self.limit && self.entries.len() > MIN_ENTRIES {
            let Some(victim) = self.victim() else {
                break;
            };
            self.remove(victim);
        }
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.pins -= 1;
        }
    }

    pub(crate) fn remove(&mut self, index: u32) {
        if let Some(entry) = self.entries.try_remove(index as usize) {
            self.bytes -= entry.bytes;
            if !entry.detached {
                self.index.remove(&entry.key);
            }
        }
    }

    /// Keeps an entry from being evicted until it is unpinned.
    pub(crate) fn pin(&mut self, index: u32) {
        if let Some(entry) = self.get(index) {
            entry.pins += 1;
        }
    }

    /// Takes back a pin.
    pub(crate) fn unpin(&mut self, index: u32) {
        if let Some(entry) = self.get(index) {
            entry.pins = entry.pins.saturating_sub(1);
        }
        self.drop_if_detached(index);
    }

    /// Removes an entry that was detached and that nobody needs any more.
    pub(crate) fn drop_if_detached(&mut self, index: u32) {
        if let Some(entry) = self.get(index)
            && entry.detached
            && entry.pins == 0
            && entry.loading.is_none()
        {
            self.remove(index);
        }
    }

    /// Forgets the bitmap of a block that is no more. While it is pinned, those who did so may still use its index.
    pub(crate) fn detach(&mut self, block: u32) {
        let Some(index) = self.index.remove(&Key::Block(block)) else {
            return;
        };
        self.dirty.retain(|dirty| *dirty != index);
        if let Some(entry) = self.get(index) {
            entry.dirty = false;
            entry.detached = true;
        }
        self.drop_if_detached(index);
    }

    /// Sets bits of sectors whose data are in the file now.
    pub(crate) fn mark(&mut self, index: u32, first: u32, count: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize)
            && !entry.detached
            && let Some((_, bits)) = entry.bitmap()
            && bits.set_range(first, count)
        {
            self.mark_dirty(index);
        }
    }

    /// Makes an entry dirty whose bits are not on disk.
    pub(crate) fn mark_dirty(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize)
            && !entry.detached
            && !std::mem::replace(&mut entry.dirty, true)
        {
            self.dirty.push(index);
            self.weigh(index);
        }
    }

    /// Whether any bits are not on disk.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes at most `limit` dirty entries to be written: pins them and makes them clean.
    pub(crate) fn take_dirty(&mut self, limit: usize) -> Vec<u32> {
        let taken = self.dirty.split_off(self.dirty.len().saturating_sub(limit));
        for index in &taken {
            if let Some(entry) = self.entries.get_mut(*index as usize) {
                entry.dirty = false;
                entry.pins += 1;
            }
        }
        taken
    }

    /// The next entry that may go, second chance.
    fn victim(&mut self) -> Option<u32> {
        let capacity = self.entries.capacity();
        for _ in 0..2 * capacity {
            self.hand = (self.hand + 1) % capacity;
            if let Some(entry) = self.entries.get_mut(self.hand)
                && entry.loading.is_none()
                && (!entry.dirty || planted::is(Bug::DirtyBitmapEvicted))
                && (entry.pins == 0 || planted::is(Bug::PinnedBitmapEvicted))
                && !std::mem::take(&mut entry.referenced)
            {
                return Some(self.hand as u32);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u32 = 200;
    const BITMAP_BYTES: usize = 512;
    /// Room for this many bitmaps as large as they get.
    const ROOM: usize = 40;
    const LIMIT: usize = ROOM * (BITMAP_BYTES + ENTRY_BYTES);

    #[derive(Clone, Debug)]
    enum Step {
        /// Sectors of a block were written.
        Write(u32, u32, u32),
        /// All that is dirty was written to disk.
        Commit,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let write = |unit: u32| {
            let places = (0..BLOCKS, 0..4096 / unit);
            places.prop_map(move |(block, first)| Step::Write(block, first * unit, unit))
        };
        let step = prop_oneof![50 => write(8), 20 => write(1), 1 => Just(Step::Commit)];
        prop::collection::vec(step, 0..800)
    }

    fn commit(cache: &mut BitmapCache) {
        for index in cache.take_dirty(usize::MAX) {
            cache.unpin(index);
            cache.compact(index);
        }
    }

    proptest! {
        #[test]
        fn stays_within_its_limit_and_never_loses_what_is_not_on_disk(steps in steps()) {
            let mut cache = BitmapCache::new(LIMIT);
            let mut dirty = FxHashMap::default();
            for step in steps {
                match step {
                    Step::Write(block, first, count) => {
                        let index = match cache.lookup(block) {
                            Lookup::Ready(index) => Some(index),
                            _ => {
                                let clear = SectorBitmap::clear(BITMAP_BYTES);
                                cache.insert(Key::Block(block), Content::Bitmap(clear), None)
                            }
                        };
                        if let Some(index) = index {
                            cache.mark(index, first, count);
                            // Bits that are on disk already make nothing dirty.
                            if cache.get(index).is_some_and(|entry| entry.dirty) {
                                dirty.entry(block).or_insert_with(Vec::new).push(first);
                            }
                        } else {
                            prop_assert!(dirty.len() >= ROOM / 2, "refused while there was room");
                        }
                    }
                    Step::Commit => {
                        commit(&mut cache);
                        dirty.clear();
                    }
                }
                prop_assert_eq!(cache.bytes, cache.entries.iter().map(|(_, entry)| entry.weight()).sum::<usize>());
                // The last one may have got larger while all others were dirty.
                prop_assert!(cache.bytes <= LIMIT + BITMAP_BYTES);
                for (block, sectors) in &dirty {
                    let Lookup::Ready(index) = cache.lookup(*block) else {
                        return Err(TestCaseError::fail("a dirty bitmap is gone"));
                    };
                    let bits = cache.bits(index).unwrap();
                    prop_assert!(sectors.iter().all(|first| bits.run(*first, 1) == (true, 1)));
                }
            }
        }
    }

    #[test]
    fn bitmaps_of_pages_are_an_eighth() {
        let mut cache = BitmapCache::new(LIMIT);
        for block in 0..ROOM as u32 {
            let clear = Content::Bitmap(SectorBitmap::clear(BITMAP_BYTES));
            let index = cache.insert(Key::Block(block), clear, None).unwrap();
            cache.mark(index, 8 * block, 8);
        }
        assert_eq!(cache.bytes, LIMIT);
        commit(&mut cache);
        assert_eq!(cache.bytes, ROOM * (BITMAP_BYTES / 8 + ENTRY_BYTES));
    }
}
