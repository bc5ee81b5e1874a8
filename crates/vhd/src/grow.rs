//! Growing the open disk, while guests go on using it, as far as its BAT has room.
//!
//! What the new part of the BAT, of the batmap and of the last block hold in the file is nobody's, and made empty first; where
//! a larger parent would show through, zeros hide it. Only when all of that is durable the footers say the new size, which
//! is one sector at a time: so a power cut leaves a disk of the old size, or one of the new size that is zeros there.

use std::cell::RefCell;
use std::rc::Rc;

use crate::commit;
use crate::core::Core;
use crate::error::{Error, Result, errno};
use crate::extend;
use crate::format::bat;
use crate::format::batmap;
use crate::format::footer::DiskType;
use crate::image::{Blocks, Image, Layout, MAX_BAT_ENTRIES, MAX_DYNAMIC_SIZE};
use crate::io::Io;
use crate::planted::{self, Bug};
use crate::target::Target;

/// Bytes of the BAT that are written together.
const PIECE: usize = 64 << 10;

/// What is in the way of growing, in the file.
struct Plan {
    file: u16,
    /// Byte offset and length of what becomes unused BAT entries.
    table: (u64, u64),
    /// Byte offset and length of what becomes an empty part of the batmap.
    map: (u64, u64),
    /// Sectors of the disk that become zeros, first and behind the last.
    zeros: (u64, u64),
}

/// Makes the open disk `size` bytes large.
///
/// # Errors
/// `EINVAL` for a size that is smaller, impossible or larger than the BAT has room for; `EOPNOTSUPP` for a disk without a
/// BAT; an I/O error, after which the disk has the size that it had.
pub(crate) async fn grow(core: &Rc<RefCell<Core>>, io: &Io, size: u64) -> Result<()> {
    // Closing waits.
    core.borrow_mut().allocator.tasks += 1;
    let outcome = run(core, io, size).await;
    let mut core = core.borrow_mut();
    core.allocator.tasks -= 1;
    let path = core.leaf().path.clone();
    outcome.map_err(|error| error.in_file(&path))
}

async fn run(core: &Rc<RefCell<Core>>, io: &Io, size: u64) -> Result<()> {
    let old = {
        let mut core = core.borrow_mut();
        check(&mut core, size)?;
        core.leaf().sectors
    };
    if old * 512 == size {
        return Ok(());
    }
    let plan = plan(&mut core.borrow_mut(), size);
    let Some(plan) = plan else {
        return Ok(());
    };
    let (table, length) = plan.table;
    let unused = bat::encode(&vec![bat::UNUSED; PIECE / 4]);
    let pieces = (0..length).step_by(PIECE).map(|at| {
        let piece = (length - at).min(PIECE as u64) as usize;
        (table + at, &unused[..piece])
    });
    io.write_all("BAT", plan.file, pieces).await?;
    let (map, length) = plan.map;
    let empty = vec![0; length as usize];
    if !empty.is_empty() {
        io.write("batmap", plan.file, map, &empty).await?;
    }
    enlarge(&mut core.borrow_mut(), size);
    let outcome = fill(core, io, &plan, size).await;
    if outcome.is_err() {
        core.borrow_mut().leaf().sectors = old;
    }
    outcome
}

fn check(core: &mut Core, size: u64) -> Result<()> {
    let (read_only, closing, old) = (core.read_only, core.closing, core.leaf().sectors * 512);
    let refused = |errno, message: &str| {
        Err(Error {
            errno,
            ..Error::invalid("disk", message)
        })
    };
    if closing {
        return refused(errno::ESHUTDOWN, "it is being closed");
    }
    if read_only {
        return refused(errno::EPERM, "it is open for reading only");
    }
    let Some(blocks) = core.leaf_blocks() else {
        return refused(
            errno::EOPNOTSUPP,
            "only a disk with a BAT grows while it is open",
        );
    };
    let room = room(blocks);
    if !size.is_multiple_of(512) || size < old || size > room {
        return Err(Error::invalid("size", "the open disk can't have it")
            .found(size, format!("a multiple of 512 from {old} to {room}")));
    }
    Ok(())
}

/// Bytes to which a disk with such blocks can grow.
pub(crate) fn most_bytes(block_size: u32) -> u64 {
    (MAX_BAT_ENTRIES * u64::from(block_size)).min(MAX_DYNAMIC_SIZE)
}

/// Bytes to which a disk can grow with the BAT that it has.
pub(crate) fn room(blocks: &Blocks) -> u64 {
    let block_size = blocks.header.block_size;
    let entries = u64::from(blocks.header.max_table_entries);
    (entries * u64::from(block_size)).min(most_bytes(block_size))
}

/// Looks at what there is behind the end of the disk. BAT entries in memory become unused.
fn plan(core: &mut Core, size: u64) -> Option<Plan> {
    let parent_end = core.chain.get(1).map_or(0, |parent| parent.sectors);
    let (file, old) = (core.leaf().file, core.leaf().sectors);
    let blocks = core.leaf_blocks()?;
    let mut changed = Vec::new();
    for block in blocks.count..blocks.bat.len() as u32 {
        if let Some(entry) = blocks.bat.get_mut(block as usize)
            && *entry != bat::UNUSED
        {
            *entry = bat::UNUSED;
            changed.push(block);
        }
    }
    let block_size = u64::from(blocks.header.block_size);
    let loaded = blocks.bat.len() as u64 * 4;
    let needed = (size.div_ceil(block_size) * 4).next_multiple_of(512);
    let table = (
        blocks.header.table_offset + loaded,
        needed.saturating_sub(loaded),
    );
    let map_bytes = batmap::map_bytes(size, blocks.header.block_size);
    let map = blocks
        .batmap
        .as_mut()
        .and_then(|batmap| batmap.grow(map_bytes))
        .unwrap_or_default();
    // The rest of the last block, if it is there, and whatever a parent has.
    let new = size / 512;
    let last = old - 1;
    let per_block = u64::from(blocks.sectors_per_block);
    let last_block = (last / per_block) as u32;
    let mut block_end = old;
    if blocks.bitmap_sector(last_block).is_some() && !old.is_multiple_of(per_block) {
        block_end = old.next_multiple_of(per_block);
        // A batmap may call a block full that has all that the disk had of it. From here on its bitmap tells.
        blocks.forget_full(last_block);
        changed.push(last_block);
    }
    let parent_end = match blocks.footer.disk_type {
        DiskType::Differencing => parent_end,
        _ => 0,
    };
    let zeros = (old, block_end.max(parent_end).min(new));
    for block in changed {
        core.commit.changed(block);
    }
    Some(Plan {
        file,
        table,
        map,
        zeros,
    })
}

/// Makes the disk in memory larger. The footer stays as it is.
fn enlarge(core: &mut Core, size: u64) {
    let leaf: &mut Image = core.leaf();
    leaf.sectors = size / 512;
    if let Layout::Blocks(blocks) = &mut leaf.layout {
        blocks.enlarge(size.div_ceil(u64::from(blocks.header.block_size)) as u32);
    }
    core.allocator.blocks_released();
    core.commit.modified = true;
}

/// Makes zeros of what must be, durably, and then the footers say the size.
async fn fill(core: &Rc<RefCell<Core>>, io: &Io, plan: &Plan, size: u64) -> Result<()> {
    let (start, end) = plan.zeros;
    if start < end {
        let mut target = Target::new(core.clone(), io.clone());
        let zeroed = target.zero(start, end - start).await;
        zeroed.and(target.finish().await)?;
    }
    // Before the new entries count, those on disk must be right.
    if !planted::is(Bug::GrownBeforeCommit) {
        commit::run_alone(core, io).await?;
    }
    extend::replace_footer(core, io, size).await
}
