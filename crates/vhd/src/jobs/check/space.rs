//! Space that nothing uses: between blocks, and between the last block and the footer.

use super::checkup::Checkup;
use super::codes;
use super::findings::{Finding, Rank, Stage};
use super::footers::Footers;
use super::table::Table;
use crate::format::footer::{self, Footer};
use crate::image::ALIGNMENT;

/// Looks for orphaned space. Structures before the first block are never given back, and don't count.
pub(crate) async fn check(checkup: &mut Checkup<'_>, footers: &Footers, table: &Table) {
    file_size(checkup);
    let (mut orphaned, mut places, mut first) = (0, 0_u64, None);
    let mut end = table.metadata_end;
    for (sector, _) in &table.placed {
        let start = u64::from(*sector);
        // Less than that is left for alignment.
        if start >= end + ALIGNMENT {
            orphaned += start - end;
            places += 1;
            first.get_or_insert(end * 512);
        }
        end = end.max(start + table.span());
    }
    if let Some(first) = first {
        let message = format!(
            "{} bytes in {places} places between blocks are not used",
            orphaned * 512
        );
        let finding = Finding::new(codes::SPACE_ORPHANED, "file", message).at(first);
        checkup.add(finding.found(orphaned * 512, 0));
    }
    displaced(checkup, footers, table).await;
    let behind = footers.end.saturating_sub(table.data_end * 512);
    // The footer of a device is at its end, whatever is before it.
    if behind >= ALIGNMENT * 512 && !checkup.file.block_device {
        let message = format!("{behind} bytes behind the last block are not used");
        let finding = Finding::new(codes::SPACE_BEHIND, "file", message).at(table.data_end * 512);
        checkup.add(finding.found(behind, 0));
    }
}

fn file_size(checkup: &mut Checkup<'_>) {
    let size = checkup.file.size;
    let rest = size % 512;
    if rest != 0 && rest != footer::LEGACY_LENGTH as u64 {
        let finding =
            Finding::new(codes::FILE_SIZE, "file", "the file ends within a sector").at(size - rest);
        let finding = finding.found(format!("{size} bytes"), "a multiple of 512");
        let words = format!("invalid file size: 0x{size:x}");
        checkup
            .findings
            .add_known(finding, Rank(Stage::Table, 0, 0), words);
    }
}

/// A footer that is not at the end of the file because something was appended.
async fn displaced(checkup: &mut Checkup<'_>, footers: &Footers, table: &Table) {
    let at = table.data_end * 512;
    if footers.primary.good || !footers.backup.good || at + 512 >= checkup.file.size {
        return;
    }
    let bytes = checkup.read("footer", at, footer::LENGTH as u64).await;
    if Footer::decode(&bytes).ok() == footers.backup.fields {
        let appended = checkup.file.size - at - 512;
        let message = format!("{appended} bytes are behind the footer");
        checkup.add(Finding::new(codes::FOOTER_DISPLACED, "file", message).at(at));
    }
}
