//! One image, structure by structure, as far as each can be found.

use super::batmap::{self, BatmapState};
use super::bitmaps::{self, Bitmaps};
use super::chain::{self, Parent};
use super::checkup::Checkup;
use super::codes;
use super::footers::{self, Footers};
use super::header::{self, HeaderState};
use super::table::{self, Table};
use super::{Depth, locators, space};
use crate::error::Result;
use crate::format::footer::DiskType;
use crate::jobs::Context;

/// What is known of an image.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) footers: Footers,
    pub(crate) header: Option<HeaderState>,
    pub(crate) table: Option<Table>,
    pub(crate) batmap: Option<BatmapState>,
    /// What the bitmaps say, if they were read.
    pub(crate) bitmaps: Option<Bitmaps>,
    pub(crate) parent: Option<Parent>,
    /// Nothing kept the check from looking at everything that it was asked to.
    pub(crate) complete: bool,
}

/// Looks at an image. The findings are left in `checkup`.
///
/// # Errors
/// `ECANCELED`.
pub(crate) async fn examine(
    context: &Context,
    checkup: &mut Checkup<'_>,
    depth: Depth,
) -> Result<Examined> {
    context.begin("metadata", 0);
    let footers = footers::check(checkup).await;
    let mut examined = Examined {
        footers,
        header: None,
        table: None,
        batmap: None,
        bitmaps: None,
        parent: None,
        complete: false,
    };
    let Some(footer) = examined.footers.footer.clone() else {
        return Ok(examined);
    };
    if footer.disk_type == DiskType::Fixed {
        examined.complete = true;
        return Ok(examined);
    }
    context.advance(0)?;
    examined.header = header::check(checkup, &examined.footers, &footer).await;
    let Some(state) = &examined.header else {
        return Ok(examined);
    };
    let header = &state.header;
    let mut table = table::read(checkup, &footer, header).await;
    let batmap = batmap::check(checkup, &examined.footers, &footer, header).await;
    table::check(
        checkup,
        &examined.footers,
        &footer,
        header,
        &mut table,
        batmap.as_ref(),
    );
    space::check(checkup, &examined.footers, &table).await;
    if let Some(batmap) = &batmap {
        batmap::against_table(checkup, batmap, &table.entries, table.count);
    }
    if footer.disk_type == DiskType::Differencing {
        let names = locators::check(checkup, &examined.footers, &footer, header, &table).await;
        examined.parent = chain::check(context, checkup, &footer, header, &names).await;
    }
    // The bits of blktap's first version are in another order.
    if depth != Depth::Quick && !footer.has_old_bitmaps() {
        let data = depth == Depth::Data;
        let bitmaps = bitmaps::check(
            context,
            checkup,
            &examined.footers,
            &footer,
            &table,
            batmap.as_ref(),
            data,
        )
        .await?;
        examined.complete = bitmaps.complete;
        examined.bitmaps = Some(bitmaps);
    } else {
        examined.complete = true;
    }
    let count = footer.current_size.div_ceil(u64::from(header.block_size));
    examined.complete &=
        u64::from(table.count) == count && !checkup.findings.has(codes::FILE_UNREADABLE);
    examined.batmap = batmap;
    examined.table = Some(table);
    Ok(examined)
}
