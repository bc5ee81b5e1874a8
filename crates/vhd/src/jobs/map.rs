//! Where the data of a disk are: which image of its chain has which sectors.

use serde::{Deserialize, Serialize};

use super::Context;
use crate::error::{Error, Result};
use crate::map;
use crate::open::Driver;
use crate::wants::Access;

/// Extents that are told at once at most; whoever wants more asks again from where they end.
const MAX_EXTENTS: usize = 1 << 16;

/// Which part of a disk to map.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MapSpec {
    /// Path of the image.
    pub path: String,
    /// How to read it.
    pub driver: Driver,
    /// First sector.
    pub sector: u64,
    /// Sectors; those behind the end of the disk don't count.
    pub sectors: u64,
}

/// Extents that cover the part of the disk in order, or the first of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Map {
    /// The extents.
    pub extents: Vec<MapExtent>,
    /// The sector behind them.
    pub end: u64,
}

/// Sectors that are together in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapExtent {
    /// First sector on the virtual disk.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
    /// Image of the chain that has them, 0 for the leaf; none has zeros that were never written.
    pub level: Option<u32>,
    /// Byte offset in that image's file.
    pub offset: Option<u64>,
}

pub(super) async fn run(context: &Context, spec: &MapSpec) -> Result<Map> {
    let (chain, info) = context
        .open_chain(&spec.path, spec.driver, Access::Inspect, Access::Inspect)
        .await?;
    if spec.sector >= info.sectors {
        return Err(Error::invalid("disk", "no such sector")
            .found(spec.sector, format!("less than {}", info.sectors))
            .in_file(&spec.path));
    }
    let end = spec.sector.saturating_add(spec.sectors).min(info.sectors);
    let mut extents: Vec<MapExtent> = Vec::new();
    let mut start = spec.sector;
    context.begin("mapping", (end - start) * 512);
    while start < end && extents.len() < MAX_EXTENTS {
        let window = start..end.min(start + map::WINDOW);
        let found = map::resolve(&context.io, &chain, window.clone()).await?;
        for extent in found {
            let next = MapExtent {
                sector: extent.sector,
                sectors: extent.sectors,
                level: extent.place.map(|place| place.level as u32),
                offset: extent.place.map(|place| place.offset),
            };
            match extents.last_mut() {
                Some(last) if last.goes_on_with(&next) => last.sectors += next.sectors,
                _ => extents.push(next),
            }
        }
        context.advance((window.end - start) * 512)?;
        start = window.end;
    }
    Ok(Map {
        extents,
        end: start,
    })
}

impl MapExtent {
    fn goes_on_with(&self, next: &Self) -> bool {
        self.level == next.level
            && self.sector + self.sectors == next.sector
            && self.offset.map(|offset| offset + self.sectors * 512) == next.offset
    }
}
