//! Corruptions of images, one for each kind of finding.

use vhd::format::bat;
use vhd::format::batmap;
use vhd::format::footer::{DiskType, Footer};
use vhd::format::header::Header;
use vhd::format::uuid::Uuid;

use super::batmap::{Parts, change_header, with_batmap};
use super::images::{self, Parent, Spec, build, uuid};

/// Size of the disk.
pub const SIZE: u64 = 12 * BLOCK as u64 - 512;
/// Bytes in a block.
pub const BLOCK: u32 = 8192;
/// Sectors of the disk.
pub const SECTORS: u64 = SIZE / 512;
/// Byte offset of the BAT.
pub const TABLE: usize = 1536;
/// Byte offset of the header.
pub const HEADER: usize = 512;

const BLOCKS: &[(u32, u64)] = &[(2, u64::MAX), (0, u64::MAX), (5, 0xff00), (11, 0x7fff)];

fn fill(sector: u64) -> u8 {
    1 + (sector % 250) as u8
}

/// A dynamic image with a batmap, as blktap has them: blocks 2, 0, 5 and 11, the first two and the last full.
pub fn dynamic() -> Vec<u8> {
    with_batmap(&without_batmap(), &[0, 2, 11])
}

/// The same without a batmap.
pub fn without_batmap() -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(0),
        size: SIZE,
        block_size: BLOCK,
        parent: None,
        blocks: BLOCKS,
        fill,
    };
    let mut file = build(&spec, &mut Vec::new());
    // What is under clear bits is zeros, but where a test says otherwise.
    clear_unset(&mut file);
    file
}

/// A differencing image whose parent is `images::name(1)`.
pub fn child() -> Vec<u8> {
    child_of(uuid(1))
}

/// A differencing image whose parent has another UUID.
pub fn child_of(parent: Uuid) -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(0),
        size: SIZE,
        block_size: BLOCK,
        parent: Some(Parent {
            uuid: parent,
            locator: (*b"W2ku", images::name(1)),
        }),
        blocks: &[(1, 0xf0f0)],
        fill,
    };
    let mut file = build(&spec, &mut Vec::new());
    clear_unset(&mut file);
    file
}

/// The image that is [`child`]'s parent.
pub fn parent() -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(1),
        size: SIZE,
        block_size: BLOCK,
        parent: None,
        blocks: BLOCKS,
        fill,
    };
    let mut file = build(&spec, &mut Vec::new());
    clear_unset(&mut file);
    file
}

/// An image of blktap's that was empty when qemu wrote to it: the first block lies on the batmap. So many sectors that are
/// nobody's are behind the blocks.
pub fn written_by_qemu(rest: usize) -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(0),
        size: SIZE,
        block_size: BLOCK,
        parent: None,
        blocks: &[(7, u64::MAX), (1, u64::MAX)],
        fill,
    };
    let mut file = build(&spec, &mut Vec::new());
    let footer = file.split_off(file.len() - 512);
    file.resize(file.len() + rest * 512, 0xc7);
    file.extend(footer);
    footers(&mut file, 32, &[0, 1, 0, 3]);
    file
}

/// A fixed disk.
pub fn fixed() -> Vec<u8> {
    let mut file = vec![7; SIZE as usize];
    file.extend(Footer::new(DiskType::Fixed, SIZE, uuid(0), 7).encode());
    file
}

fn clear_unset(file: &mut [u8]) {
    let parts = Parts::of(file);
    for place in parts.bat.iter().filter(|place| **place != bat::UNUSED) {
        let start = *place as usize * 512;
        let bits = file[start..start + 512].to_vec();
        for sector in 0..BLOCK as usize / 512 {
            if bits[sector / 8] & 0x80 >> (sector % 8) == 0 {
                file[start + 512 + sector * 512..][..512].fill(0);
            }
        }
    }
}

fn sum(bytes: &mut [u8], field: usize) {
    bytes[field..field + 4].fill(0);
    let sum = bytes
        .iter()
        .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// Changes bytes of the footer at the end, and makes its checksum right.
pub fn primary(file: &mut [u8], at: usize, bytes: &[u8]) {
    let end = file.len() - 512;
    file[end + at..][..bytes.len()].copy_from_slice(bytes);
    sum(&mut file[end..], 64);
}

/// Changes bytes of the copy at offset 0, and makes its checksum right.
pub fn backup(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..][..bytes.len()].copy_from_slice(bytes);
    sum(&mut file[..512], 64);
}

/// Changes both copies of the footer.
pub fn footers(file: &mut [u8], at: usize, bytes: &[u8]) {
    primary(file, at, bytes);
    backup(file, at, bytes);
}

/// Changes bytes of the header, and makes its checksum right.
pub fn header(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[HEADER + at..][..bytes.len()].copy_from_slice(bytes);
    sum(&mut file[HEADER..HEADER + 1024], 36);
}

/// Changes fields of the header.
pub fn fields(file: &mut [u8], change: impl FnOnce(&mut Header)) {
    let mut header = Header::decode(&file[HEADER..]).expect("the header is good");
    change(&mut header);
    file[HEADER..HEADER + 1024].copy_from_slice(&header.encode());
}

/// Changes a BAT entry.
pub fn entry(file: &mut [u8], block: usize, sector: u32) {
    file[TABLE + block * 4..][..4].copy_from_slice(&sector.to_be_bytes());
}

/// The sector of a block's bitmap.
pub fn place(file: &[u8], block: usize) -> u32 {
    Parts::of(file).bat[block]
}

/// Byte offset of the batmap's map.
pub fn map_at(file: &[u8]) -> usize {
    Parts::of(file).batmap_at() + 512
}

/// Changes the map of the batmap, and makes its checksum right.
pub fn map(file: &mut [u8], change: impl FnOnce(&mut [u8])) {
    let at = map_at(file);
    change(&mut file[at..at + 512]);
    let checksum = batmap::checksum(&file[at..at + 512], batmap::VERSION);
    change_header(file, |header| header.checksum = checksum);
}

/// What comes of mending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is gone afterwards.
    Mended,
    /// It is left, and nothing is changed because of it.
    Left,
}

use Fate::{Left, Mended};

/// A kind of corruption.
pub struct Corruption {
    /// The code by which it is found.
    pub code: &'static str,
    pub fate: Fate,
    /// What `vhd-util check` would say, if it would notice.
    pub original: Option<&'static str>,
    /// Makes the files, the image first.
    pub make: fn() -> Vec<Vec<u8>>,
}

fn changed(mut file: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    change(&mut file);
    vec![file]
}

fn with_parent(change: impl FnOnce(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let mut files = changed(child(), change);
    files.push(parent());
    files
}

macro_rules! corruptions {
    ($($code:literal $fate:ident $original:expr, $make:expr;)*) => {
        /// Every kind of corruption.
        pub fn all() -> Vec<Corruption> {
            vec![$(Corruption { code: $code, fate: $fate, original: $original, make: $make }),*]
        }
    };
}

corruptions! {
    // The footer at the end: the copy at offset 0 makes up for it.
    "footer-primary-cookie" Mended Some("primary footer invalid: invalid cookie"),
        || changed(dynamic(), |file| { let end = file.len() - 512; file[end..].fill(0xaa); });
    "footer-primary-cookie" Mended Some("primary footer invalid: invalid cookie"),
        || changed(dynamic(), |file| { let end = file.len() - 512; file.truncate(end); });
    "footer-primary-cookie" Left Some("primary footer invalid: invalid cookie"),
        || changed(fixed(), |file| { let end = file.len() - 512; file.truncate(end); });
    "footer-primary-poison" Left Some("primary footer invalid: invalid cookie"),
        || changed(dynamic(), |file| { let end = file.len() - 512; file[end..end + 8].copy_from_slice(b"v_poison"); });
    "footer-primary-checksum" Mended Some("primary footer invalid: invalid checksum"),
        || changed(dynamic(), |file| { let end = file.len() - 512; file[end + 40] ^= 1; });
    "footer-primary-features" Left Some("primary footer invalid: invalid 'reserved' feature"),
        || changed(dynamic(), |file| footers(file, 8, &[0, 0, 0, 0]));
    "footer-primary-features" Left Some("primary footer invalid: invalid extra features"),
        || changed(dynamic(), |file| footers(file, 8, &[0, 0, 0, 6]));
    "footer-primary-version" Mended Some("primary footer invalid: invalid file format version"),
        || changed(dynamic(), |file| primary(file, 12, &[0, 2]));
    "footer-primary-data-offset" Mended Some("primary and backup footers do not match"),
        || changed(dynamic(), |file| primary(file, 16, &[0, 0, 0, 0, 0, 0, 0, 1]));
    "footer-primary-data-offset" Left Some("primary footer invalid: invalid data offset"),
        || changed(fixed(), |file| primary(file, 16, &[0; 8]));
    "footer-primary-size" Mended Some("primary and backup footers do not match"),
        || changed(dynamic(), |file| primary(file, 48, &[0; 8]));
    "footer-primary-type" Mended Some("primary footer invalid: invalid data offset"),
        || changed(dynamic(), |file| primary(file, 60, &[0, 0, 0, 9]));
    "footer-primary-timestamp" Left Some("primary footer invalid: creation time in future"),
        || changed(dynamic(), |file| footers(file, 24, &[0xff, 0, 0, 0]));
    "footer-primary-creator-version" Left Some("primary footer invalid: unsupported tap creator version"),
        || changed(dynamic(), |file| footers(file, 32, &[0, 9, 0, 0]));
    "footer-primary-geometry" Left Some("primary footer invalid: geometry too large"),
        || changed(dynamic(), |file| footers(file, 56, &[0xff, 0xff, 16, 255]));
    "footer-primary-saved-state" Left None,
        || changed(dynamic(), |file| footers(file, 84, &[1]));
    "footer-primary-saved-state" Left Some("primary footer invalid: invalid 'saved' state"),
        || changed(dynamic(), |file| footers(file, 84, &[2]));
    "footer-primary-hidden" Left Some("primary footer invalid: invalid 'hidden' state"),
        || changed(dynamic(), |file| footers(file, 85, &[2]));
    "footer-primary-reserved" Left Some("primary footer invalid: invalid 'reserved' bits"),
        || changed(dynamic(), |file| footers(file, 300, &[1]));
    "footer-primary-uuid" Left Some("primary footer invalid: invalid (NULL) uuid"),
        || changed(dynamic(), |file| footers(file, 68, &[0; 16]));

    // The copy at offset 0: the footer at the end makes up for it.
    "footer-backup-cookie" Mended Some("backup footer invalid: invalid cookie"),
        || changed(dynamic(), |file| file[..512].fill(0));
    "footer-backup-poison" Left Some("backup footer invalid: invalid cookie"),
        || changed(dynamic(), |file| file[..8].copy_from_slice(b"v_poison"));
    "footer-backup-checksum" Mended Some("backup footer invalid: invalid checksum"),
        || changed(dynamic(), |file| file[40] ^= 1);
    "footer-backup-version" Mended Some("backup footer invalid: invalid file format version"),
        || changed(dynamic(), |file| backup(file, 12, &[0, 2]));
    "footer-backup-data-offset" Mended Some("primary and backup footers do not match"),
        || changed(dynamic(), |file| backup(file, 16, &[0, 0, 0, 0, 0, 0, 0, 1]));
    "footer-backup-size" Mended Some("primary and backup footers do not match"),
        || changed(dynamic(), |file| backup(file, 48, &[0; 8]));
    "footer-backup-type" Mended Some("backup footer invalid: invalid data offset"),
        || changed(dynamic(), |file| backup(file, 60, &[0, 0, 0, 9]));
    "footer-backup-features" Mended Some("backup footer invalid: invalid extra features"),
        || changed(dynamic(), |file| backup(file, 8, &[0, 0, 0, 6]));
    "footer-backup-timestamp" Mended Some("backup footer invalid: creation time in future"),
        || changed(dynamic(), |file| backup(file, 24, &[0xff, 0, 0, 0]));
    "footer-backup-creator-version" Mended Some("backup footer invalid: unsupported tap creator version"),
        || changed(dynamic(), |file| backup(file, 32, &[0, 9, 0, 0]));
    "footer-backup-geometry" Mended Some("backup footer invalid: geometry too large"),
        || changed(dynamic(), |file| backup(file, 56, &[0xff, 0xff, 16, 255]));
    "footer-backup-saved-state" Mended Some("primary and backup footers do not match"),
        || changed(dynamic(), |file| backup(file, 84, &[1]));
    "footer-backup-hidden" Left Some("backup footer invalid: invalid 'hidden' state"),
        || changed(dynamic(), |file| backup(file, 85, &[2]));
    "footer-backup-reserved" Mended Some("backup footer invalid: invalid 'reserved' bits"),
        || changed(dynamic(), |file| backup(file, 300, &[1]));
    "footer-backup-uuid" Left Some("backup footer invalid: invalid (NULL) uuid"),
        || changed(dynamic(), |file| backup(file, 68, &[0; 16]));

    // Both.
    "footer-copies-differ" Mended Some("primary and backup footers do not match"),
        || changed(dynamic(), |file| backup(file, 24, &[0, 0, 0, 9]));
    "footer-copies-differ" Left Some("primary and backup footers do not match"),
        || changed(dynamic(), |file| backup(file, 68, &[9; 16]));
    "footer-copies-differ" Left Some("primary and backup footers do not match"),
        || changed(dynamic(), |file| primary(file, 85, &[1]));
    "footer-ambiguous" Left None,
        || changed(dynamic(), |file| {
            let footer = Footer::new(DiskType::Fixed, 4096, uuid(3), 7).encode();
            file.extend(footer);
        });
    "footer-legacy" Left None, || changed(fixed(), |file| { file.pop(); });
    "footer-displaced" Mended Some("primary footer invalid: invalid cookie"),
        || changed(dynamic(), |file| file.extend([0; 4096]));
    "footer-hidden-unsummed" Left None,
        || changed(without_batmap(), |file| { file[85] = 1; });
    "file-too-small" Left Some("error reading primary footer: -5"), || vec![vec![1; 300]];
    "file-size" Mended Some("error reading primary footer: -22"),
        || changed(dynamic(), |file| file.extend([0; 100]));
    "fixed-too-large" Left None, || changed(fixed(), |file| { file.drain(..1024); });
    "geometry-smaller" Left None,
        || changed(without_batmap(), |file| footers(file, 28, b"qemu"));
    "disk-too-large" Left Some("VHD size (1044992 blocks) exceeds BAT size (12)"),
        || changed(dynamic(), |file| footers(file, 48, &(2041_u64 << 30).to_be_bytes()));
    "disk-encrypted" Left None,
        || changed(dynamic(), |file| change_header(file, |header| {
            header.key_hash = Some(batmap::KeyHash { nonce: [1; 32], hash: [2; 32] });
        }));
    "bitmaps-little-endian" Left None,
        || changed(without_batmap(), |file| footers(file, 32, &[0, 0, 0, 1]));

    // The header.
    "header-place" Left Some("error reading header: -5"),
        || changed(dynamic(), |file| footers(file, 16, &(1_u64 << 40).to_be_bytes()));
    "header-cookie" Left Some("header is invalid: invalid cookie"),
        || changed(dynamic(), |file| file[HEADER] ^= 1);
    "header-checksum" Left Some("header is invalid: invalid checksum"),
        || changed(dynamic(), |file| file[HEADER + 600] ^= 1);
    "header-version" Left Some("header is invalid: invalid header version"),
        || changed(dynamic(), |file| header(file, 24, &[0, 2]));
    "header-data-offset" Left Some("header is invalid: invalid data offset"),
        || changed(dynamic(), |file| header(file, 8, &[0; 8]));
    "header-table-offset" Left Some("header is invalid: invalid table offset"),
        || changed(dynamic(), |file| header(file, 16, &[0, 0, 0, 0, 0, 0, 6, 1]));
    "header-block-size" Left Some("header is invalid: invalid block size"),
        || changed(dynamic(), |file| header(file, 32, &[0, 0, 0x30, 0]));
    "header-block-size-unusual" Left None, || vec![dynamic()];
    "header-reserved" Left Some("header is invalid: invalid reserved bits"),
        || changed(dynamic(), |file| header(file, 800, &[1]));
    "header-table-entries" Left None,
        || changed(without_batmap(), |file| fields(file, |header| header.max_table_entries = 11));
    "header-parent-timestamp" Left Some("differencing header is invalid: parent creation time in future"),
        || with_parent(|file| fields(file, |header| header.parent_timestamp = u32::MAX));
    "header-parent-name" Left Some("differencing header is invalid: invalid parent name"),
        || with_parent(|file| header(file, 64, &[0xdc, 0]));
    "header-parent-unused" Left Some("differencing header is invalid: invalid non-null parent uuid"),
        || changed(dynamic(), |file| fields(file, |header| header.parent_uuid = uuid(1)));

    // The BAT.
    "bat-place" Left Some("header is invalid: invalid table offset"),
        || changed(dynamic(), |file| fields(file, |header| header.max_table_entries = 1 << 20));
    "block-on-footer-copy" Left Some("block 1 (offset 0x0) clobbers headers"),
        || changed(without_batmap(), |file| entry(file, 1, 0));
    "block-on-header" Left Some("block 1 (offset 0x1) clobbers headers"),
        || changed(without_batmap(), |file| entry(file, 1, 1));
    "block-on-bat" Left Some("block 1 (offset 0x3) clobbers headers"),
        || changed(without_batmap(), |file| entry(file, 1, 3));
    "block-on-bat-reserve" Left Some("block 2 (offset 0x4) clobbers headers"),
        || changed(without_batmap(), |file| {
            fields(file, |header| header.max_table_entries = 129);
            // What is an entry now says that there is no block.
            file[2048..2560].fill(0xff);
        });
    "block-on-batmap" Left Some("block 1 (offset 0x4) clobbers headers"),
        || changed(dynamic(), |file| entry(file, 1, 4));
    "block-on-batmap" Mended Some("error calculating end of metadata: -22"), || vec![written_by_qemu(0)];
    "block-on-batmap" Mended Some("error calculating end of metadata: -22"), || vec![written_by_qemu(99)];
    "block-on-locator" Left Some("block 1 (offset 0x5) clobbers block 2 (offset 0x4)"),
        || with_parent(|file| { file[TABLE + 8..TABLE + 12].copy_from_slice(&[0, 0, 0, 4]); });
    "block-on-footer" Left Some("block 1 (offset 0x46) clobbers footer"),
        || changed(dynamic(), |file| entry(file, 1, 0x46));
    "block-past-end" Left Some("block 1 (offset 0x9999) clobbers footer"),
        || changed(dynamic(), |file| entry(file, 1, 0x9999));
    "block-cut-short" Left Some("primary footer invalid: invalid cookie"),
        || changed(dynamic(), |file| { let end = file.len() - 1024; file.truncate(end); });
    "blocks-duplicate" Left Some("block 0 (offset 0x17) clobbers block 3 (offset 0x17)"),
        || changed(dynamic(), |file| { let at = place(file, 0); entry(file, 3, at); });
    "blocks-overlap" Left Some("block 0 (offset 0x17) clobbers block 3 (offset 0x18)"),
        || changed(dynamic(), |file| { let at = place(file, 0); entry(file, 3, at + 1); });
    "block-beyond-disk" Left None,
        || changed(without_batmap(), |file| {
            fields(file, |header| header.max_table_entries = 14);
            entry(file, 5, bat::UNUSED);
            let at = Parts::of(&without_batmap()).bat[5];
            entry(file, 13, at);
        });
    "blocks-unaligned" Left None, || vec![dynamic()];
    "space-orphaned" Left None, || changed(without_batmap(), |file| entry(file, 0, bat::UNUSED));
    "space-behind-blocks" Left None, || changed(without_batmap(), |file| entry(file, 11, bat::UNUSED));

    // The batmap.
    "batmap-missing" Mended Some("error calculating end of metadata: -22"),
        || changed(dynamic(), |file| { let at = map_at(file) - 512; file[at] ^= 1; });
    "batmap-version" Mended Some("error calculating end of metadata: -22"),
        || changed(dynamic(), |file| change_header(file, |header| header.version = 0x10003));
    "batmap-checksum" Mended Some("error calculating end of metadata: -22"),
        || changed(dynamic(), |file| { let at = map_at(file); file[at..at + 512].fill(0); });
    "batmap-size" Left Some("batmap is invalid: invalid size zero"),
        || changed(dynamic(), |file| change_header(file, |header| header.sectors = 0));
    "batmap-place" Left Some("batmap is invalid: invalid batmap offset"),
        || changed(dynamic(), |file| change_header(file, |header| header.offset = 0));
    "batmap-place" Left Some("batmap is invalid: invalid batmap size"),
        || changed(dynamic(), |file| change_header(file, |header| header.offset = 1 << 30));
    "batmap-absent-block" Mended Some("batmap shows unallocated block 1 full"),
        || changed(dynamic(), |file| map(file, |map| map[0] |= 0x40));
    "batmap-not-full" Left None, || changed(dynamic(), |file| map(file, |map| map[0] |= 0x04));
    "batmap-misses-full" Left None, || changed(dynamic(), |file| map(file, |map| map[0] = 0));

    // The bitmaps.
    "bitmap-data-under-clear" Left
        Some("sector 0x9 of block 0x5 has data where bitmap is clear\nsector 0xb of block 0x5 has data where bitmap is clear"),
        || changed(dynamic(), |file| {
            let at = place(file, 5) as usize * 512;
            file[at + 1..at + 3].copy_from_slice(&[0xaf, 0]);
            for sector in [8, 10, 12, 13, 14, 15, 9, 11] { file[at + 512 + sector * 512] = 1; }
        });
    "blocks-empty" Left None,
        || changed(dynamic(), |file| { let at = place(file, 5) as usize * 512; file[at..at + 512].fill(0); file[at + 512..at + 512 + 8192].fill(0); });

    // Parent locators.
    "locator-platform" Left Some(""),
        || with_parent(|file| fields(file, |header| header.locators[1].platform = *b"Nope"));
    "locator-unused-nonzero" Left Some("invalid parent locator 1: non-zero locator"),
        || with_parent(|file| fields(file, |header| header.locators[1].data_length = 1));
    "locator-place" Left Some("block 1 (offset 0x5) clobbers headers"),
        || with_parent(|file| fields(file, |header| header.locators[0].data_offset = 1 << 40));
    "locator-length" Left Some("invalid parent locator 0: invalid data length"),
        || with_parent(|file| fields(file, |header| header.locators[0].data_length = 0));
    "locator-reserved" Left Some("invalid parent locator 0: invalid reserved bits"),
        || with_parent(|file| header(file, 576 + 12, &[1]));
    "locator-duplicate" Left Some("duplicate platform code in locator 1: 0x57326b75"),
        || with_parent(|file| fields(file, |header| header.locators[1] = header.locators[0]));
    "locator-text" Left Some("error reading parent locator 0: -22"),
        || with_parent(|file| {
            let at = Parts::of(file).header.locators[0].data_offset as usize;
            file[at..at + 2].fill(0);
        });
    "locator-name" Left Some("parent locator 0 name (parent1.vhd) does not match header name (other.vhd)"),
        || with_parent(|file| fields(file, |header| header.parent_name = "other.vhd".encode_utf16().collect()));
    "locator-space-bytes" Left None, || with_parent(|_| {});

    // Parents.
    "parent-missing" Left Some("error resolving /disks/base/parent1.vhd: -2"), || vec![child()];
    "parent-locator-missing" Left Some("error resolving /gone/parent1.vhd: -2"),
        || with_parent(|file| two_locators(file, "/gone/parent1.vhd"));
    "parent-unreadable" Left Some("invalid parent /disks/base/parent1.vhd: error opening parent"),
        || vec![child(), vec![1; 4096]];
    "parent-uuid" Left Some("invalid parent /disks/base/parent1.vhd: invalid parent uuid"),
        || vec![child_of(uuid(7)), parent()];
    "parent-locators-disagree" Left Some("parent locator 1 name (parent2.vhd) does not match header name (parent1.vhd)"),
        || {
            let mut files = with_parent(|file| two_locators(file, &images::name(2)));
            files.push(parent());
            files
        };
    "parent-modified" Left None,
        || with_parent(|file| fields(file, |header| header.parent_timestamp = 5));
    "parent-timestamp-zero" Left None, || with_parent(|_| {});
    "parent-smaller" Left None,
        || {
            let mut files = with_parent(|_| {});
            footers(&mut files[1], 48, &(SIZE - 512).to_be_bytes());
            files
        };
    "parent-larger" Left None,
        || {
            let mut files = with_parent(|_| {});
            footers(&mut files[1], 48, &(SIZE + 512).to_be_bytes());
            files
        };
    "parent-raw" Left None, || vec![child_of(Uuid::NIL), vec![3; SIZE as usize]];
    "chain-loop" Left None, || vec![child_of(uuid(1)), {
        let mut file = child_of(uuid(0));
        footers(&mut file, 68, &uuid(1).0);
        two_locators(&mut file, &images::name(0));
        fields(&mut file, |header| {
            header.locators[0] = header.locators[1];
            header.locators[1] = vhd::format::locator::ParentLocator::default();
            header.parent_name = "disk.vhd".encode_utf16().collect();
        });
        file
    }];
}

/// Gives a child a second locator, whose name has a sector of its own behind the first one's.
fn two_locators(file: &mut Vec<u8>, name: &str) {
    let mut parts = Parts::of(file);
    let at = parts.header.locators[0].data_offset + 512;
    let mut text = format!("file://{name}").into_bytes();
    parts.header.locators[1] = vhd::format::locator::ParentLocator {
        platform: *b"MacX",
        data_space: 1,
        data_length: text.len() as u32,
        data_offset: at,
    };
    text.resize(512, 0);
    file.splice(at as usize..at as usize, text);
    file[HEADER..HEADER + 1024].copy_from_slice(&parts.header.encode());
    for (block, place) in parts.bat.iter().enumerate() {
        if *place != bat::UNUSED {
            entry(file, block, place + 1);
        }
    }
}
