//! Fixed disks: all sectors, and one footer behind them.

use super::Metadata;
use crate::error::Result;
use crate::format::footer::{self, Footer};
use crate::format::geometry::Geometry;

impl Metadata {
    /// Makes a fixed disk `size` bytes large. New sectors are zeros.
    ///
    /// # Errors
    /// An I/O error: the disk has its old size or the new one. If its file grew and could not get its footer, see
    /// [`super::lost_footer`].
    pub(crate) async fn resize_fixed(&mut self, size: u64) -> Result<()> {
        let (file, old) = (self.spec.file, self.footer.current_size);
        let footer = Footer {
            current_size: size,
            geometry: Geometry::for_sectors(size / 512),
            ..self.footer.clone()
        };
        if size > self.end {
            // The footer of the old size goes first, so that the one before, which becomes the disk's, can be zeroed.
            let bytes = self.footer.encode();
            self.write_synced("footer", size, &bytes).await?;
            self.end = size;
        }
        if size > old {
            self.io
                .punch_all(file, [old].into_iter(), self.end - old)
                .await?;
            self.io.sync(file).await?;
        }
        let bytes = footer.encode();
        self.write_synced("footer", self.end, &bytes).await?;
        self.footer = footer;
        if size == self.end {
            return self.cut(size + footer::LENGTH as u64).await;
        }
        if self.spec.block_device {
            return self
                .io
                .punch_all(file, [size].into_iter(), self.end - size)
                .await;
        }
        self.end = size;
        self.write_primary(&bytes).await
    }
}
