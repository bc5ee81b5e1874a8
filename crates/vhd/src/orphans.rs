//! Orphaned space: places inside the file that no BAT entry names. A crash leaves them, a release that never finished, and
//! other programs that don't care. They are found when an image is opened for writing, and used again before it grows.

use crate::image::Blocks;

/// Gaps between blocks in which another one fits.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// First sector and the sector behind the last, the last gap first.
    gaps: Vec<(u32, u32)>,
    /// The BAT on disk is known to name no place in a gap either: a sync has made durable what was read at opening.
    pub(crate) durable: bool,
}

impl Orphans {
    /// Looks between blocks at `places` (ascending, none overlapping) from sector `start` on, behind which there are only
    /// blocks.
    pub(crate) fn find(blocks: &Blocks, places: &[u32], start: u64) -> Self {
        let mut gaps = Vec::new();
        let mut end = start;
        for place in places {
            let first = u64::from(*place);
            // A gap ends at a place, which is 32 bits wide, so that its beginning is, too.
            if first > end && fit(blocks, end, first).is_some() {
                gaps.push((end as u32, *place));
            }
            end = end.max(first + blocks.block_span());
        }
        gaps.reverse();
        Self {
            gaps,
            durable: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gaps.is_empty()
    }

    /// Takes up to `wanted` places for blocks, those at lower sectors first.
    pub(crate) fn take(&mut self, blocks: &Blocks, wanted: usize) -> Vec<u32> {
        let mut places = Vec::new();
        while places.len() < wanted
            && let Some((start, end)) = self.gaps.pop()
        {
            let Some(place) = fit(blocks, u64::from(start), u64::from(end)) else {
                continue;
            };
            // It lies before the end of the gap.
            places.push(place as u32);
            self.gaps.push((
                (place + blocks.block_span()).min(u64::from(end)) as u32,
                end,
            ));
        }
        places
    }
}

/// Where a block fits between two sectors: with its data aligned if there is room for that, as its neighbours are if not.
fn fit(blocks: &Blocks, start: u64, end: u64) -> Option<u64> {
    [blocks.place(start), start]
        .into_iter()
        .find(|place| place + blocks.block_span() <= end)
}
