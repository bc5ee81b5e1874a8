//! Putting an image's own structures in order: what a crash left of footers, of a header that was being replaced, of the
//! batmap. The data are not looked at; that is what `check` and `mend` are for.

use serde::Deserialize;

use super::Context;
use crate::error::{Error, Result};
use crate::format::uuid::Uuid;
use crate::metadata::{Metadata, lost_footer};
use crate::open::{self, Driver};
use crate::wants::Access;

/// Which image to put in order.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RepairSpec {
    /// Path of the VHD.
    pub path: String,
    /// Believe the copy of the footer at offset 0, though the footer at the end is good too.
    #[serde(default)]
    pub use_backup: bool,
    /// The identity that an image without one gets: which no child can name.
    #[serde(default)]
    pub uuid: Option<Uuid>,
}

pub(super) async fn run(context: &Context, spec: &RepairSpec) -> Result<()> {
    let mut file = context
        .open_file(&spec.path, Driver::Vhd, Access::Write)
        .await?;
    lost_footer::restore(&context.io, &mut file).await?;
    let mut metadata = Metadata::open(&context.io, &file).await?;
    let outcome = repair(&mut metadata, spec).await;
    outcome.map_err(|error| error.in_file(&spec.path))?;
    if metadata.blocks().is_none() {
        return Ok(());
    }
    // Closing an image makes its batmap true.
    let (image, _) = open::open(&context.io, &metadata.file()).await?;
    let target = context.open_target(vec![image]);
    context.close_target(target).await
}

async fn repair(metadata: &mut Metadata, spec: &RepairSpec) -> Result<()> {
    let mut footer = metadata.footer.clone();
    if spec.use_backup {
        let Some(backup) = &metadata.backup else {
            return Err(Error::invalid("backup footer", "it is bad, or the disk is fixed").at(0));
        };
        footer = backup.clone();
    }
    if let Some(uuid) = spec.uuid.filter(|_| footer.uuid == Uuid::NIL) {
        footer.uuid = uuid;
    }
    let has_blocks = metadata.blocks().is_some();
    if !metadata.primary_is_good
        || (has_blocks && !metadata.backup_is_good)
        || footer != metadata.footer
    {
        metadata.write_footer(&footer).await?;
    }
    if !has_blocks {
        return Ok(());
    }
    metadata.dissolve_copy().await?;
    metadata.trim().await
}
