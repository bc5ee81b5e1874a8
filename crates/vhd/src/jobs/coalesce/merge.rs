//! The merge itself: window after window of the disk, what the images above the target have is copied into it, many large
//! copies at a time, without a pause where a record of the progress is due.

use super::progress::Keeper;
use super::{CoalesceSpec, Cut, grow};
use crate::chain;
use crate::error::{Result, errno};
use crate::format::bitmap;
use crate::image::Image;
use crate::jobs::Context;
use crate::map::{self, Extent};
use crate::open::{Driver, FileSpec};
use crate::record::MAX_DATA_MAP;
use crate::target::Target;
use crate::wants::Access;

/// Fewer zeros than this are copied with the data around them: a page.
const ZERO_SECTORS: u32 = 8;

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub(super) sectors: u64,
    pub(super) zeroed: u64,
}

/// Merges the sectors from `from` on, with `work` bytes to write. When it returns, what was written is durable, and the
/// target is closed, also after an error where that was possible.
///
/// # Errors
/// An I/O error; that the job was cancelled.
pub(super) async fn run(
    context: &Context,
    spec: &CoalesceSpec,
    cut: Cut,
    work: u64,
    from: u64,
    keeper: &mut Keeper,
) -> Result<Done> {
    let Cut {
        upper,
        lower,
        sectors,
        ..
    } = cut;
    let smaller = upper.iter().any(|image| image.sectors < sectors);
    let before = if spec.sparse || smaller {
        open_again(context, &lower).await?
    } else {
        Vec::new()
    };
    let mut merge = Merge {
        context,
        upper,
        before,
        sparse: spec.sparse,
        target: context.open_target(lower),
        reached: from,
        done: Done::default(),
    };
    let mut outcome = match grow::open_target(context, &merge.target, sectors).await {
        Ok(()) => {
            context.begin("merging", work);
            merge.windows(sectors, keeper).await
        }
        failed => failed,
    };
    if outcome
        .as_ref()
        .is_err_and(|error| error.errno == errno::ECANCELED)
    {
        // Another run may go on from here.
        match merge.target.flush().await {
            Ok(()) => keeper.put(context, merge.reached).await,
            Err(error) => outcome = Err(error),
        }
    }
    let closed = context.close_target(merge.target).await;
    outcome.and(closed)?;
    Ok(merge.done)
}

/// The target and its parents as they are before the merge: for telling what reads as zeros there. A sector is looked up
/// before it is written, and only once, so what the merge has done since doesn't count.
async fn open_again(context: &Context, lower: &[Image]) -> Result<Vec<Image>> {
    let Some(target) = lower.first() else {
        return Ok(Vec::new());
    };
    let (driver, size) = match target.uuid {
        Some(_) => (Driver::Vhd, target.file_size),
        // It may have grown.
        None => (Driver::Aio, target.sectors * 512),
    };
    let spec = FileSpec {
        driver,
        path: target.path.clone(),
        file: target.file,
        size,
        block_device: target.block_device,
        read_only: true,
        real_path: target.real_path.clone(),
        modified: target.modified,
    };
    let (chain, _) = chain::open(&context.io, &context.files, &spec, |_| Access::Parent).await?;
    Ok(chain)
}

struct Merge<'a> {
    context: &'a Context,
    upper: Vec<Image>,
    /// See [`open_again`]; empty if it isn't needed.
    before: Vec<Image>,
    sparse: bool,
    target: Target,
    /// Everything before this sector was handed to the target.
    reached: u64,
    done: Done,
}

impl Merge<'_> {
    async fn windows(&mut self, sectors: u64, keeper: &mut Keeper) -> Result<()> {
        while self.reached < sectors {
            let end = sectors.min(self.reached + map::WINDOW.min(keeper.interval()));
            let found = map::look_up(&self.context.io, &self.upper, self.reached..end).await?;
            let mut extents = found.extents;
            if self.sparse {
                extents = self.without_zeros(extents).await?;
            }
            for extent in extents {
                self.extent(&extent).await?;
                self.reached = extent.sector + extent.sectors;
            }
            self.reached = end;
            let copied = self.done.sectors;
            keeper.tick(self.context, &self.target, end, copied).await;
        }
        // All of it is durable before the target is closed, which moves its footer.
        self.target.flush().await
    }

    async fn extent(&mut self, extent: &Extent) -> Result<()> {
        let bytes = extent.sectors * 512;
        let source = extent
            .place
            .and_then(|place| Some((self.upper.get(place.level)?.file, place.offset)));
        match source {
            Some((file, offset)) => {
                self.target
                    .copy(extent.sector, extent.sectors, file, offset)
                    .await?;
                self.done.sectors += extent.sectors;
            }
            None => self.zero(extent).await?,
        }
        self.context.advance(bytes)
    }

    /// Makes those sectors zeros that don't read as zeros anyway.
    async fn zero(&mut self, extent: &Extent) -> Result<()> {
        let range = extent.sector..extent.sector + extent.sectors;
        for part in map::resolve(&self.context.io, &self.before, range).await? {
            if part.place.is_some() {
                self.target.zero(part.sector, part.sectors).await?;
                self.done.sectors += part.sectors;
                self.done.zeroed += part.sectors;
            }
        }
        Ok(())
    }

    /// Cuts what holds nothing but zeros out of extents.
    async fn without_zeros(&self, extents: Vec<Extent>) -> Result<Vec<Extent>> {
        let mut pieces = Vec::new();
        for extent in &extents {
            let mut done = 0;
            while done < extent.sectors {
                let sectors = (extent.sectors - done).min(MAX_DATA_MAP / 512);
                let place = extent.place.map(|place| map::Place {
                    offset: place.offset + done * 512,
                    ..place
                });
                pieces.push(Extent {
                    sector: extent.sector + done,
                    sectors,
                    place,
                });
                done += sectors;
            }
        }
        let file_of = |extent: &Extent| {
            let place = extent.place?;
            let image = self.upper.get(place.level)?;
            Some((image.file, place.offset, extent.sectors * 512))
        };
        let mut kept = Vec::new();
        let mut with_data = pieces.iter().filter(|piece| piece.place.is_some());
        self.context
            .io
            .data_map_each(pieces.iter().filter_map(file_of), |map| {
                if let Some(piece) = with_data.next() {
                    split(piece, map, &mut kept);
                }
            })
            .await?;
        kept.extend(extents.iter().filter(|extent| extent.place.is_none()));
        map::join(&mut kept);
        Ok(kept)
    }
}

/// Splits an extent into data and zeros, as `map` says.
fn split(extent: &Extent, map: &[u8], into: &mut Vec<Extent>) {
    let count = extent.sectors as u32;
    let (mut start, mut at) = (0, 0);
    let mut push = |first: u32, end: u32, data: bool| {
        if first < end {
            into.push(Extent {
                sector: extent.sector + u64::from(first),
                sectors: u64::from(end - first),
                place: extent.place.filter(|_| data).map(|place| map::Place {
                    offset: place.offset + u64::from(first) * 512,
                    ..place
                }),
            });
        }
    };
    while at < count {
        let (data, run) = bitmap::run(map, at, count - at);
        if !data && (run >= ZERO_SECTORS || run == count) {
            push(start, at, true);
            push(at, at + run, false);
            start = at + run;
        }
        at += run;
    }
    push(start, count, true);
}
