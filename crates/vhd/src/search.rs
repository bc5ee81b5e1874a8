//! Finding out what is seen below the leaf.
//!
//! A stretch of the disk is looked at when something of it is first read through the leaf. Whatever bitmaps that takes, of
//! all levels down to the first that has all of the stretch, are requested together: so a long chain costs one wait, not
//! one for each level. They stay where they arrive until all are there, and are merged from the top. What no bitmap above
//! leaves open is not asked of those below, errors included.

use crate::below::{Fetch, Search, Seen, View};
use crate::cache::{Content, Key};
use crate::core::Core;
use crate::error::errno;
use crate::format::bitmap;
use crate::image::Part;
use crate::io::{Owner, Queue, plain_op};
use crate::record::{Op, OpKind};
use crate::request::Piece;

/// Bytes of a bitmap that are fetched for a stretch: a sector, which has the bits of all of it.
const FETCH: usize = 512;

/// Small chunks of the staging area that searches leave to others.
const RESERVE: usize = 128;

/// What a search has come to.
enum Progress {
    /// All is known of the stretch.
    Over,
    /// Bitmaps are on their way.
    Waits,
    /// There is no memory for a bitmap now.
    Starved,
}

impl Core {
    /// Where the first sectors of a piece, which lies in one stretch, are seen below the leaf, and how many of them; or
    /// `None` after parking the piece until that is known.
    pub(crate) fn seen_below(&mut self, queue: &mut Queue, piece: Piece) -> Option<(Seen, u32)> {
        let (stretch, first) = self.below.stretch_of(piece.sector);
        if let Some((_, view)) = self.cache.find_view(stretch)
            && let (Some(seen), count) = view.at(first, piece.count)
        {
            return Some((seen, count));
        }
        self.look_deeper(queue, piece)
    }

    /// As [`Core::seen_below`], where it is not known yet.
    fn look_deeper(&mut self, queue: &mut Queue, piece: Piece) -> Option<(Seen, u32)> {
        let (stretch, first) = self.below.stretch_of(piece.sector);
        if let Some(index) = self.view_of(stretch) {
            match self.search(queue, index, stretch) {
                Progress::Over => {
                    if let Some(view) = self.cache.view(index)
                        && let (Some(seen), count) = view.at(first, piece.count)
                    {
                        return Some((seen, count));
                    }
                }
                Progress::Waits => {
                    let piece = self.park(piece);
                    if let Some(waiting) = self.cache.waiting(index) {
                        waiting.push(piece);
                    }
                    return None;
                }
                Progress::Starved => {}
            }
        }
        let piece = self.park(piece);
        self.starved.push_back(piece);
        None
    }

    /// Begins to look at a stretch that will be asked about. Returns whether there is memory for that now.
    pub(crate) fn search_ahead(&mut self, queue: &mut Queue, stretch: u32) -> bool {
        match self.view_of(stretch) {
            Some(index) => !matches!(self.search(queue, index, stretch), Progress::Starved),
            None => false,
        }
    }

    /// The index of the view of a stretch, of which perhaps nothing is known yet; `None` if there is no room for one.
    fn view_of(&mut self, stretch: u32) -> Option<u32> {
        if let Some((index, _)) = self.cache.find_view(stretch) {
            return Some(index);
        }
        let view = Content::View(self.below.unknown());
        let index = self.cache.insert(Key::Stretch(stretch), view, None);
        // Dirty bitmaps may be in the way.
        self.commit.wanted |= index.is_none();
        index
    }

    /// Looks at further levels: all that it may take, or as many as there is memory for.
    fn search(&mut self, queue: &mut Queue, index: u32, stretch: u32) -> Progress {
        if self.cache.waiting(index).is_some() {
            return Progress::Waits;
        }
        let next = match self.cache.view(index) {
            Some(view) if !view.is_complete() => view.next(),
            _ => return Progress::Over,
        };
        let start = self.below.start_of(stretch);
        let (mut until, mut starved) = (next, false);
        let mut fetches = Vec::new();
        while let Some(image) = self.chain.get(until)
            && self.below.visible(stretch, until) > 0
        {
            match image.part_at(start) {
                Part::Absent => {}
                Part::Whole => {
                    until += 1;
                    break;
                }
                Part::Partial(place) => {
                    let Some(chunk) = queue.staging.allocate_small(RESERVE) else {
                        starved = true;
                        break;
                    };
                    let sector = place.bitmap + u64::from(place.first) / (FETCH as u64 * 8);
                    let op = plain_op(OpKind::Read, place.file, sector * 512, FETCH as u64);
                    let buffer = chunk.offset();
                    let fetch = fetches.len();
                    queue.push(
                        Op { buffer, ..op },
                        Owner::Fetch {
                            entry: index,
                            fetch,
                        },
                    );
                    fetches.push(Fetch {
                        level: until,
                        block: place.block,
                        chunk,
                        first: place.first % (FETCH as u32 * 8),
                        result: 0,
                    });
                }
            }
            until += 1;
        }
        if fetches.is_empty() && starved {
            return Progress::Starved;
        }
        let arriving = fetches.len();
        self.loading += arriving;
        if let Some(view) = self.cache.view(index) {
            view.search = Some(Box::new(Search {
                stretch,
                until,
                fetches,
                arriving,
            }));
        }
        if arriving == 0 {
            self.end_search(queue, index);
            return Progress::Over;
        }
        self.cache.set_waiting(index);
        Progress::Waits
    }

    /// A sector of a bitmap has arrived, or has not.
    pub(crate) fn fetched(&mut self, queue: &mut Queue, index: u32, fetch: usize, result: i32) {
        self.loading -= 1;
        let Some(search) = self.cache.view(index).and_then(|view| view.search.as_mut()) else {
            return;
        };
        if let Some(fetch) = search.fetches.get_mut(fetch) {
            fetch.result = result;
        }
        search.arriving -= 1;
        if search.arriving > 0 {
            return;
        }
        let waiting = self.cache.take_waiting(index);
        let errno = self.end_search(queue, index);
        for piece in waiting {
            // An error concerns those alone for whom the levels above were not enough.
            let (_, first) = self.below.stretch_of(piece.sector);
            let knows = |view: &mut View| view.knows(first, piece.count);
            match errno {
                Some(errno) if !self.cache.view(index).is_some_and(knows) => {
                    self.part_done(piece.request, -errno);
                }
                _ => self.resume(queue, vec![piece]),
            }
        }
    }

    /// Merges what was found. Returns the (positive) errno value of the first level that could not be looked at, if those
    /// above it don't have everything.
    fn end_search(&mut self, queue: &mut Queue, index: u32) -> Option<i32> {
        let view = self.cache.view(index)?;
        let search = view.search.take()?;
        let (stretch, start) = (search.stretch, self.below.start_of(search.stretch));
        let mut fetches = search.fetches.iter().peekable();
        let mut failed = None;
        while !view.is_complete() {
            let level = view.next();
            view.narrow(self.below.visible(stretch, level));
            let Some(image) = self.chain.get_mut(level).filter(|_| level < search.until) else {
                break;
            };
            let Some(fetch) = fetches.next_if(|fetch| fetch.level == level) else {
                match image.part_at(start) {
                    Part::Absent => view.pass(),
                    Part::Whole => view.fill(),
                    // It would have been fetched.
                    Part::Partial(_) => break,
                }
                continue;
            };
            if fetch.result.cast_unsigned() as usize != FETCH {
                // It may also be that the file ended where it should not have.
                failed = Some(match fetch.result {
                    ..0 => fetch.result.saturating_neg(),
                    _ => errno::EIO,
                });
                break;
            }
            let bits = &queue.staging.chunk(fetch.chunk)[..FETCH];
            // Of larger blocks these are not all bits.
            image.note_if_full(fetch.block, |sectors| bitmap::is_full(bits, sectors));
            view.merge(bits, fetch.first);
        }
        for fetch in &search.fetches {
            queue.staging.free(fetch.chunk);
        }
        self.cache.weigh(index);
        failed
    }
}
