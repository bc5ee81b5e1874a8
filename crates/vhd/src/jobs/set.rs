//! Setting what blktap's storage manager notes in an image: the hidden flag and the marker.

use serde::Deserialize;

use super::Context;
use crate::error::Result;
use crate::wants::Access;

/// What to set in which image. Each of the two is one sector, written whole or not at all.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetSpec {
    /// Path of the VHD.
    pub path: String,
    /// The hidden flag: 0, or another value for an image that is no disk of its own any more.
    #[serde(default)]
    pub hidden: Option<u8>,
    /// The marker, any value. It is kept in the header of the batmap, which blktap's own images have.
    #[serde(default)]
    pub marker: Option<u8>,
}

pub(super) async fn run(context: &Context, spec: &SetSpec) -> Result<()> {
    let mut metadata = context.open_metadata(&spec.path, Access::Merge).await?;
    if let Some(hidden) = spec.hidden {
        let mut footer = metadata.footer.clone();
        footer.reserved[0] = hidden;
        metadata
            .write_footer(&footer)
            .await
            .map_err(|error| error.in_file(&spec.path))?;
    }
    if let Some(marker) = spec.marker {
        metadata
            .set_marker(marker)
            .await
            .map_err(|error| error.in_file(&spec.path))?;
    }
    Ok(())
}
