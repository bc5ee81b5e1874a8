//! The catalogue of findings: for each its code, which never changes once it is published, how bad it is, what it means
//! and what mends it.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Something is wrong that does no harm yet, or only with some programs.
    Warning,
    /// Data are lost or at risk, or programs refuse the image.
    Error,
}

/// A kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Code {
    /// Its name, stable.
    #[serde(rename = "code")]
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it means.
    pub meaning: &'static str,
    /// What mends it.
    pub remedy: &'static str,
}

/// The codes for the same thing in the two copies of a footer.
#[derive(Debug)]
pub(crate) struct FooterCode {
    pub(crate) primary: Code,
    pub(crate) backup: Code,
}

macro_rules! codes {
    ($list:ident: $($(#[$doc:meta])* $constant:ident $name:literal $severity:ident $meaning:literal, $remedy:literal;)*) => {
        $($(#[$doc])* pub(crate) const $constant: Code = Code {
            name: $name,
            severity: Severity::$severity,
            meaning: $meaning,
            remedy: $remedy,
        };)*
        const $list: &[Code] = &[$($constant),*];
    };
}

macro_rules! footer_codes {
    ($list:ident: $($constant:ident $field:literal $severity:ident $meaning:literal, $remedy:literal;)*) => {
        $(pub(crate) const $constant: FooterCode = FooterCode {
            primary: Code {
                name: concat!("footer-primary-", $field),
                severity: Severity::$severity,
                meaning: $meaning,
                remedy: $remedy,
            },
            backup: Code {
                name: concat!("footer-backup-", $field),
                severity: Severity::$severity,
                meaning: $meaning,
                remedy: $remedy,
            },
        };)*
        const $list: &[FooterCode] = &[$($constant),*];
    };
}

footer_codes! { FOOTERS:
    FOOTER_COOKIE "cookie" Error
        "There is no footer where one has to be. A program that was killed leaves the end of the file so, as long as the copy at offset 0 is good.",
        "vhd-check --repair writes it again from the other copy, if that one is good.";
    FOOTER_POISON "poison" Error
        "blktap was resizing the disk and did not finish: blocks may be on their way from one place to another.",
        "vhd-util revert with the journal of that resize. Nothing else is safe.";
    FOOTER_CHECKSUM "checksum" Error
        "The footer was damaged, or changed by a program that did not care for its checksum.",
        "vhd-check --repair writes it again from the other copy, if that one is good.";
    FOOTER_FEATURES "features" Warning
        "The footer's feature bits are not those that every writer sets; blktap refuses the image.",
        "vhd-util repair, or copy the disk into a new image.";
    FOOTER_VERSION "version" Error
        "The image says that it has another format than version 1, or the footer was damaged.",
        "vhd-check --repair writes the footer again from the other copy, if that one is good.";
    FOOTER_DATA_OFFSET "data-offset" Error
        "The footer says that the dynamic header is where none can be, or that a fixed disk has one.",
        "vhd-check --repair writes the footer again from the other copy, if that one is good.";
    FOOTER_SIZE "size" Error
        "The footer says that the disk has a size that none can have.",
        "vhd-check --repair writes the footer again from the other copy, if that one is good.";
    FOOTER_TYPE "type" Error
        "The footer says that the disk is neither fixed nor dynamic nor differencing.",
        "vhd-check --repair writes the footer again from the other copy, if that one is good.";
    FOOTER_TIMESTAMP "timestamp" Note
        "The image says that it was made in the future; blktap refuses it until then. A clock was wrong, or the program counts from another year, as vhd-lib does.",
        "Set the clock right, if that was it; nothing has to be done to the image.";
    FOOTER_CREATOR "creator-version" Warning
        "The image says that a later version of blktap made it than is known; blktap refuses it.",
        "Look for the program that made it.";
    FOOTER_GEOMETRY "geometry" Note
        "The cylinders, heads and sectors in the footer are more than the disk has, as qemu writes them; blktap refuses the image. The size of the disk is in another field.",
        "Copy the disk into a new image, if blktap is to use it.";
    FOOTER_SAVED_STATE "saved-state" Warning
        "The footer says that a machine state is saved with the disk: the disk belongs to it, as it is.",
        "Restore or discard the state in the program that saved it.";
    FOOTER_HIDDEN "hidden" Warning
        "blktap's hidden flag is neither 0 nor 1; blktap refuses the image.",
        "vhd-util set -f hidden.";
    FOOTER_RESERVED "reserved" Warning
        "Reserved bytes of the footer are not zero; blktap refuses the image.",
        "Look for the program that made it; copy the disk into a new image.";
    FOOTER_UUID "uuid" Warning
        "The image has no identity: no child can name it, and blktap refuses it.",
        "vhd-util repair gives it one.";
}

codes! { OTHERS:
    FILE_TOO_SMALL "file-too-small" Error
        "The file is smaller than the smallest VHD: it was truncated, or is none.",
        "Restore it from a backup.";
    FILE_UNREADABLE "file-unreadable" Error
        "A part of the file can't be read: the storage below is failing.",
        "Copy what can be read to other storage at once (ddrescue), and check the copy.";
    FILE_SIZE "file-size" Warning
        "The file ends within a sector: it was truncated, or something was put behind its end.",
        "vhd-check --repair puts the footer on a sector's boundary, if nothing else is wrong with it.";
    FOOTER_COPIES "footer-copies-differ" Warning
        "Both copies of the footer are good, but they are not the same: a program changed one of them.",
        "vhd-check --repair makes the backup what the primary is, where what differs can't change what the disk contains.";
    FOOTER_AMBIGUOUS "footer-ambiguous" Error
        "The file ends like a fixed disk and begins like a dynamic one. A guest can write the end of a file whose footer is lost, in order to be shown the file in place of its disk.",
        "Find out what the image was; never let a guest decide.";
    FOOTER_LEGACY "footer-legacy" Note
        "The footer has 511 bytes, as Microsoft's programs wrote it before Virtual PC 2004.",
        "Nothing has to be done.";
    FOOTER_DISPLACED "footer-displaced" Warning
        "The footer is right behind the last block, with something else behind it: bytes were appended to the file.",
        "vhd-check --repair writes the footer to the end of the file.";
    FOOTER_UNSUMMED "footer-hidden-unsummed" Note
        "The hidden flag was set without a new checksum, as blktap's first versions did.",
        "Nothing has to be done.";
    GEOMETRY_SMALLER "geometry-smaller" Note
        "qemu takes the size of the disk from cylinders, heads and sectors for this creator, and they are fewer than the disk has: its end is out of qemu's reach.",
        "Use qemu with force_size=on, or make the disk's size one that cylinders, heads and sectors can tell.";
    FIXED_TOO_LARGE "fixed-too-large" Error
        "The fixed disk is larger than its file: the end of its data is missing.",
        "Restore it from a backup.";
    DISK_TOO_LARGE "disk-too-large" Warning
        "The disk is larger than 2040 GiB, to which programs limit disks with a BAT; the last blocks may have no place.",
        "Copy the disk into another format.";
    DISK_ENCRYPTED "disk-encrypted" Note
        "blktap encrypts the data of this disk; its metadata are readable all the same.",
        "Nothing has to be done.";
    OLD_BITMAPS "bitmaps-little-endian" Warning
        "blktap's version 0.1 made the image; its bitmaps have their bits in another order and are not looked at.",
        "vhd-util of an old blktap converts it (vhd-update).";

    HEADER_PLACE "header-place" Error
        "The dynamic header would be past the end of the file.",
        "Restore the file from a backup.";
    HEADER_COOKIE "header-cookie" Error
        "There is no dynamic header where the footer says: nothing tells where the blocks are.",
        "Restore the file from a backup; there is no second copy of the header.";
    HEADER_CHECKSUM "header-checksum" Error
        "The dynamic header was damaged: no field of it can be relied on.",
        "Restore the header from a backup; there is no second copy of it.";
    HEADER_VERSION "header-version" Error
        "The dynamic header has another version than 1.",
        "Look for the program that made it.";
    HEADER_DATA_OFFSET "header-data-offset" Warning
        "The dynamic header names a structure behind it, which the format doesn't have; blktap refuses the image.",
        "Look for the program that made it.";
    HEADER_TABLE_OFFSET "header-table-offset" Error
        "The BAT is where none can be.",
        "Restore the header from a backup.";
    HEADER_BLOCK_SIZE "header-block-size" Error
        "The size of blocks is not a power of two from 4 KiB to 256 MiB.",
        "Restore the header from a backup.";
    HEADER_ODD_BLOCK_SIZE "header-block-size-unusual" Note
        "Blocks are not of 2 MiB: blktap can't use the image.",
        "Copy the disk into a new image, if blktap is to use it.";
    HEADER_RESERVED "header-reserved" Warning
        "Reserved bytes of the dynamic header are not zero; blktap refuses the image.",
        "Look for the program that made it.";
    HEADER_TABLE_ENTRIES "header-table-entries" Error
        "The BAT has fewer entries than the disk has blocks: the end of the disk is nowhere.",
        "Restore the header from a backup.";
    HEADER_PARENT_TIME "header-parent-timestamp" Note
        "The image says that its parent was modified in the future; blktap refuses it until then. A clock was wrong.",
        "Set the clock right, or link the parent again: vhd-util modify -p.";
    HEADER_PARENT_NAME "header-parent-name" Warning
        "The parent's name in the header is no text.",
        "Link the parent again: vhd-util modify -p.";
    HEADER_PARENT_UNUSED "header-parent-unused" Warning
        "The image is dynamic and names a parent all the same; blktap refuses it. Its type may be wrong.",
        "Find out whether the image was a differencing one.";

    BAT_PLACE "bat-place" Error
        "The BAT goes on past the end of the file, or lies on another structure: the place of some blocks is lost.",
        "Restore the file from a backup.";
    BLOCK_ON_FOOTER_COPY "block-on-footer-copy" Error
        "A block lies on the copy of the footer at offset 0: one of the two overwrites the other.",
        "Restore the BAT from a backup.";
    BLOCK_ON_HEADER "block-on-header" Error
        "A block lies on the dynamic header: writing to it destroys the image.",
        "Restore the BAT from a backup.";
    BLOCK_ON_BAT "block-on-bat" Error
        "A block lies on the BAT: writing to it destroys the image.",
        "Restore the BAT from a backup.";
    BLOCK_ON_BAT_RESERVE "block-on-bat-reserve" Warning
        "A block lies on the part of the BAT that the disk does not need yet; growing the disk would destroy the block.",
        "Never grow the disk in place; copy it into a new image.";
    BLOCK_ON_BATMAP "block-on-batmap" Error
        "A block lies on blktap's batmap, which is closed with the image: the one overwrites the other. qemu puts the first block there when it writes to an image of blktap's.",
        "vhd-check --repair moves the block that qemu puts there, and makes the batmap anew. Never write to such images with qemu.";
    BLOCK_ON_LOCATOR "block-on-locator" Error
        "A block lies on the name of the parent: one of the two overwrites the other. qemu does that when it writes to a differencing image.",
        "Link the parent again in a copy; never write to differencing images with qemu.";
    BLOCK_ON_FOOTER "block-on-footer" Error
        "A block lies on the footer at the end: one of the two overwrites the other, or the file was cut.",
        "Restore the file from a backup.";
    BLOCK_PAST_END "block-past-end" Error
        "A block is past the end of the file: its data are lost, or its BAT entry is wrong.",
        "Restore the file from a backup.";
    BLOCK_CUT "block-cut-short" Error
        "A block goes on past the end of the file: its last data are lost, if they ever were there.",
        "Restore the file from a backup.";
    BLOCKS_DUPLICATE "blocks-duplicate" Error
        "Two blocks of the disk are in the same place: writing to one changes the other, and the data of one are lost.",
        "Restore the file from a backup; nothing tells which of the two is right.";
    BLOCKS_OVERLAP "blocks-overlap" Error
        "Two blocks of the disk overlap: writing to one destroys the other.",
        "Restore the file from a backup; nothing tells which of the two is right.";
    BLOCK_BEYOND_DISK "block-beyond-disk" Warning
        "The BAT has blocks past the end of the disk: they take space that nothing uses.",
        "Copy the disk into a new image.";
    BLOCKS_UNALIGNED "blocks-unaligned" Note
        "The data of blocks do not begin at multiples of 4 KiB: slower on most storage.",
        "Copy the disk into a new image, if speed matters.";

    SPACE_ORPHANED "space-orphaned" Note
        "The file has space between its blocks that no structure names: what programs left that were killed, or discarded blocks.",
        "Nothing has to be done: tapdisk uses it again. Copying the disk into a new image gives it back.";
    SPACE_BEHIND "space-behind-blocks" Note
        "The file has space between its last block and its footer: what programs left that were killed, or room for new blocks.",
        "Nothing has to be done: tapdisk gives it back when it closes the image.";

    BATMAP_MISSING "batmap-missing" Error
        "The image must have a batmap, says its creator version, and has none: blktap refuses it. A program that doesn't know of batmaps may have overwritten it.",
        "vhd-check --repair makes it anew from the bitmaps, if nothing else lies in its place; tapdisk serves the image without a batmap.";
    BATMAP_VERSION "batmap-version" Error
        "The batmap has a version that is not known: blktap refuses the image.",
        "vhd-check --repair makes it anew from the bitmaps.";
    BATMAP_CHECKSUM "batmap-checksum" Error
        "The batmap is not the one that was checksummed: blktap refuses to write to the image. Its vhd-util set -f marker leaves images so.",
        "vhd-check --repair makes it anew from the bitmaps.";
    BATMAP_SIZE "batmap-size" Error
        "The batmap is too small for the BAT: blktap refuses the image.",
        "Copy the disk into a new image.";
    BATMAP_PLACE "batmap-place" Error
        "The batmap lies where it can't be: on another structure, or past the end of the file.",
        "Copy the disk into a new image.";
    BATMAP_ABSENT_BLOCK "batmap-absent-block" Error
        "The batmap says that a block is full which the image doesn't have: once it has, unwritten sectors would pass for written.",
        "vhd-check --repair makes the batmap anew from the bitmaps.";
    BATMAP_NOT_FULL "batmap-not-full" Error
        "The batmap says that a block is full, and its bitmap says that it isn't: programs read different data there.",
        "Nothing tells which of the two is right; compare what the disk reads with a backup.";
    BATMAP_MISSES "batmap-misses-full" Note
        "Blocks are full without the batmap saying so, which is only a hint: a program that was killed leaves it so.",
        "Nothing has to be done.";

    BITMAP_DATA "bitmap-data-under-clear" Warning
        "A block has data in sectors that its bitmap says are not in this file. They don't belong to the disk, but programs that ignore bitmaps (qemu, libvhdi) show them. A write that a crash interrupted leaves them, and so does qemu.",
        "Find out whether qemu wrote to the image: then its data are what the guest has seen. Else nothing has to be done.";
    BLOCKS_EMPTY "blocks-empty" Note
        "Blocks take space of which no sector was written.",
        "Copying the disk into a new image gives it back.";

    LOCATOR_PLATFORM "locator-platform" Warning
        "A parent locator is of a platform that the format doesn't know; blktap refuses the image.",
        "Link the parent again: vhd-util modify -p.";
    LOCATOR_UNUSED "locator-unused-nonzero" Warning
        "A parent locator that is not used is not zero; blktap refuses the image.",
        "Link the parent again: vhd-util modify -p.";
    LOCATOR_PLACE "locator-place" Warning
        "The name that a parent locator has lies where it can't be: on another structure, or past the end of the file.",
        "Link the parent again: vhd-util modify -p.";
    LOCATOR_LENGTH "locator-length" Warning
        "The name that a parent locator has is empty, or longer than its space.",
        "Link the parent again: vhd-util modify -p.";
    LOCATOR_RESERVED "locator-reserved" Warning
        "Reserved bytes of a parent locator are not zero; blktap refuses the image.",
        "Link the parent again: vhd-util modify -p.";
    LOCATOR_DUPLICATE "locator-duplicate" Warning
        "Two parent locators are of the same platform; blktap refuses the image.",
        "Link the parent again: vhd-util modify -p.";
    LOCATOR_TEXT "locator-text" Warning
        "The name that a parent locator has is no text.",
        "Link the parent again: vhd-util modify -p.";
    LOCATOR_NAME "locator-name" Warning
        "A parent locator has another name than the header; blktap refuses the image.",
        "Link the parent again: vhd-util modify -p.";
    LOCATOR_SPACE_BYTES "locator-space-bytes" Note
        "The space of parent locators is in bytes, as Windows and blktap write it, though the format counts sectors.",
        "Nothing has to be done.";

    PARENT_MISSING "parent-missing" Error
        "The parent is not found by any of the names that the image has for it: what it doesn't have itself can't be read.",
        "Bring the parent back to one of these places, or link it: vhd-util modify -p.";
    PARENT_LOCATOR "parent-locator-missing" Warning
        "A parent locator names a file that is not there, though the parent is found otherwise; some programs refuse the image.",
        "Link the parent again: vhd-util modify -p.";
    PARENT_UNREADABLE "parent-unreadable" Error
        "The parent is there and can't be opened, or has no good footer.",
        "Check the parent.";
    PARENT_UUID "parent-uuid" Error
        "The file that the image names as its parent has another identity than it should have: with another parent, other data are read.",
        "Bring the right parent back, or, if it is this one, link it: vhd-util modify -p.";
    PARENT_DISAGREE "parent-locators-disagree" Warning
        "The parent locators lead to different files: programs may read different data.",
        "Link the parent again: vhd-util modify -p.";
    PARENT_MODIFIED "parent-modified" Note
        "The parent's file was modified at another time than the image says. Its content has changed if something else than metadata was written; Windows refuses such chains.",
        "Compare the disk's content with a backup, if nobody knows why the parent was touched.";
    PARENT_NO_TIME "parent-timestamp-zero" Note
        "The image doesn't say when its parent was modified, as Windows leaves it.",
        "Nothing has to be done.";
    PARENT_SMALLER "parent-smaller" Note
        "The parent is smaller than the image: what is behind its end reads as zeros.",
        "Nothing has to be done.";
    PARENT_LARGER "parent-larger" Warning
        "The parent is larger than the image: its end is not part of the disk.",
        "Find out whether the image names the right parent.";
    PARENT_RAW "parent-raw" Note
        "The parent is a raw file: it has no identity that could be compared.",
        "Nothing has to be done.";
    CHAIN_LOOP "chain-loop" Error
        "The chain of parents is a loop: the disk can't be read.",
        "Link the right parent: vhd-util modify -p.";
    CHAIN_DEPTH "chain-depth" Warning
        "The chain has more than 30 images, at which storage managers stop: reading becomes slow.",
        "Coalesce it: vhd-coalesce.";
}

/// Every kind of finding, in no order.
#[must_use]
pub fn all() -> Vec<Code> {
    let footers = FOOTERS.iter().flat_map(|code| [code.primary, code.backup]);
    footers.chain(OTHERS.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_stands_for_two_things() {
        let mut names: Vec<&str> = all().iter().map(|code| code.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
