//! Coalescing: what a child has of its own, and the images between it and one of its ancestors have, moves into that
//! ancestor, which then reads by itself as the child does; or sideways into a new image.
//!
//! For each sector the topmost image that has it is copied, once. The target is written the way a guest writes a disk, so
//! its own promises hold at every moment; and whoever reads through the child never sees a difference, since the child, or
//! an image between, has all that is copied. Copying twice does no harm: after a crash the job is simply started again,
//! and goes on where a record of it says that everything before is durable (`progress.rs`).
//!
//! Other children of the target, and of the images between, would see a difference: who starts the job has to know that
//! there are none.

mod estimate;
mod grow;
mod merge;
mod progress;

use serde::{Deserialize, Serialize};

use super::Context;
use crate::chain;
use crate::error::{Error, Result, errno};
use crate::image::Image;
use crate::open::Driver;
use crate::wants::Access;

pub use estimate::Estimate;
pub use progress::RecordSpec;

/// What to merge into what.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CoalesceSpec {
    /// Path of the child, a differencing VHD.
    pub path: String,
    /// Path of the ancestor that is the target: the child's parent if none is given. With an output, the ancestor that the
    /// output has as its parent; without one then, all of the chain is copied.
    #[serde(default)]
    pub into: Option<String>,
    /// A new image that takes in the data in the place of an ancestor.
    #[serde(default)]
    pub output: Option<OutputSpec>,
    /// Don't copy zeros: what reads as zeros already is left alone, and the rest gives its space back.
    #[serde(default)]
    pub sparse: bool,
    /// Only estimate: nothing is written.
    #[serde(default)]
    pub dry_run: bool,
    /// Where to keep a record of what is done, so that another run can go on; `None` to start over each time.
    #[serde(default)]
    pub record: Option<RecordSpec>,
}

/// An image that takes in what a chain has.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputSpec {
    /// Its path. It exists already, unless this is a dry run, and is empty, unless a record tells what is in it.
    pub path: String,
    /// What it is.
    pub driver: Driver,
}

/// What was merged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Coalesced {
    /// Path of the image that took the data in.
    pub target: String,
    /// Sectors that were copied or made zeros.
    pub sectors: u64,
    /// Those of them that were made zeros.
    pub zeroed: u64,
    /// The sector before which everything was done by an earlier run.
    pub resumed_at: u64,
    /// What it was going to take.
    pub estimate: Estimate,
}

/// A chain cut in two.
struct Cut {
    /// What is copied: the child, and the images above the target.
    upper: Vec<Image>,
    /// The target and its parents; none where a dry run has no target yet.
    lower: Vec<Image>,
    /// Path of the target.
    target: String,
    /// Size of the child's disk, sectors.
    sectors: u64,
}

pub(super) async fn run(context: &Context, spec: &CoalesceSpec) -> Result<Coalesced> {
    context.begin("opening", 0);
    let mut cut = match &spec.output {
        None => open_in_place(context, spec).await?,
        Some(output) => open_sideways(context, spec, output).await?,
    };
    grow::check(&cut)?;
    let (mut progress, resumed_at) = progress::Keeper::open(context, spec, &cut).await?;
    let estimate = estimate::run(context, spec, &cut, resumed_at).await?;
    let mut coalesced = Coalesced {
        target: cut.target.clone(),
        sectors: 0,
        zeroed: 0,
        resumed_at,
        estimate,
    };
    if spec.dry_run {
        return Ok(coalesced);
    }
    estimate::check_space(&cut, &estimate)?;
    grow::prepare(context, spec, &mut cut).await?;
    let work = estimate.bytes + estimate.zero_bytes;
    let done = merge::run(context, spec, cut, work, resumed_at, &mut progress).await?;
    progress.finish(context).await?;
    coalesced.sectors = done.sectors;
    coalesced.zeroed = done.zeroed;
    Ok(coalesced)
}

/// Opens a chain whose target is the child's parent or another ancestor.
async fn open_in_place(context: &Context, spec: &CoalesceSpec) -> Result<Cut> {
    let level = match &spec.into {
        Some(ancestor) => level_of(context, &spec.path, ancestor).await?,
        None => 1,
    };
    let target_access = if spec.dry_run {
        Access::Parent
    } else {
        Access::Merge
    };
    // What is copied must stay as it is. What is below the target is read only where the target has to be read.
    let mut chain = open_chain(context, &spec.path, |other| match other {
        _ if other < level => Access::Read,
        _ if other == level => target_access,
        _ => Access::Parent,
    })
    .await?;
    if chain.len() <= level {
        return Err(Error {
            errno: errno::EINVAL,
            ..Error::invalid("footer", "the image has no parent to be merged into")
        }
        .in_file(&spec.path));
    }
    let lower = chain.split_off(level);
    Ok(cut(chain, lower))
}

/// Opens a chain, and a new image that is to take in all of it or its upper part.
async fn open_sideways(context: &Context, spec: &CoalesceSpec, output: &OutputSpec) -> Result<Cut> {
    let level = match &spec.into {
        Some(ancestor) => level_of(context, &spec.path, ancestor).await?,
        None => usize::MAX,
    };
    let access = |other| {
        if other < level {
            Access::Read
        } else {
            Access::Parent
        }
    };
    let mut chain = open_chain(context, &spec.path, access).await?;
    let base = chain.split_off(level.min(chain.len()));
    let lower = if spec.dry_run {
        Vec::new()
    } else {
        let (path, driver) = (&output.path, output.driver);
        let (lower, _) = context
            .open_chain(path, driver, Access::Write, Access::Parent)
            .await?;
        let (found, expected) = (
            lower.get(1).map(|image| image.uuid),
            base.first().map(|image| image.uuid),
        );
        if found != expected {
            let name = |uuid: Option<Option<crate::format::uuid::Uuid>>| {
                uuid.map_or("none".to_owned(), |uuid| {
                    uuid.map_or("a raw file".to_owned(), |uuid| uuid.to_string())
                })
            };
            return Err(
                Error::invalid("dynamic header", "the new image has another parent")
                    .found(name(found), name(expected))
                    .in_file(path),
            );
        }
        lower
    };
    Ok(Cut {
        target: output.path.clone(),
        ..cut(chain, lower)
    })
}

fn cut(upper: Vec<Image>, lower: Vec<Image>) -> Cut {
    Cut {
        sectors: upper.first().map_or(0, |image| image.sectors),
        target: lower
            .first()
            .map(|image| image.path.clone())
            .unwrap_or_default(),
        upper,
        lower,
    }
}

async fn open_chain(
    context: &Context,
    path: &str,
    access: impl Fn(usize) -> Access,
) -> Result<Vec<Image>> {
    let child = context.open_file(path, Driver::Vhd, access(0)).await?;
    let (chain, _) = chain::open(&context.io, &context.files, &child, access).await?;
    Ok(chain)
}

/// Which level of a chain an ancestor is.
async fn level_of(context: &Context, path: &str, ancestor: &str) -> Result<usize> {
    let wanted = context
        .open_file(ancestor, Driver::Aio, Access::Inspect)
        .await?;
    let chain = open_chain(context, path, |_| Access::Inspect).await?;
    let is_wanted = |image: &Image| match wanted.real_path.as_str() {
        "" => image.path == ancestor,
        real_path => image.real_path == real_path,
    };
    let level = chain.iter().position(is_wanted);
    // They are opened again, with the access that their level needs.
    context.files.close(wanted.file).await;
    for image in &chain {
        context.files.close(image.file).await;
    }
    match level {
        Some(level) if level > 0 => Ok(level),
        _ => {
            let parents: Vec<&str> = chain[1..].iter().map(|image| image.path.as_str()).collect();
            Err(Error::invalid("chain", "the target is no ancestor")
                .found(ancestor, format!("one of: {}", parents.join(", ")))
                .in_file(path))
        }
    }
}
