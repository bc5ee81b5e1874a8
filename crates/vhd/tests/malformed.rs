//! Hostile and damaged files: a clear error with its place, no panic, and nothing is written.

mod support;

use proptest::prelude::*;
use support::Host;
use vhd::error::Error;
use vhd::format::bat;
use vhd::format::footer::{DiskType, Footer};
use vhd::format::header::Header;
use vhd::format::uuid::Uuid;
use vhd::record::{OpKind, RequestKind};
use vhd::{Driver, ImageInfo};

const BLOCK: u32 = 8192;
const BLOCKS: u32 = 6;
const HEADER: usize = 512;
const TABLE: usize = 1536;
const FIRST_BLOCK: u32 = 4;
const SPAN: u32 = 1 + BLOCK / 512;

/// A dynamic image of six blocks of which the first three are allocated.
fn image() -> Vec<u8> {
    let size = u64::from(BLOCK) * u64::from(BLOCKS);
    let footer = Footer::new(DiskType::Dynamic, size, Uuid([1; 16]), 7).encode();
    let table: Vec<u32> = (0..BLOCKS)
        .map(|block| {
            if block < 3 {
                FIRST_BLOCK + block * SPAN
            } else {
                bat::UNUSED
            }
        })
        .collect();
    let mut file = footer.to_vec();
    file.extend(Header::new(TABLE as u64, BLOCKS, BLOCK).encode());
    file.extend(bat::encode(&table));
    for block in 0..3 {
        file.extend([0xff; 512]);
        file.extend(vec![block + 1; BLOCK as usize]);
    }
    file.extend(footer);
    file
}

/// Opens a file; nothing may be written whatever comes of it.
fn open(file: &[u8], read_only: bool) -> Result<ImageInfo, Error> {
    let mut host = Host::new(vec![file.to_vec()], 1 << 20);
    let result = host.open(Driver::Vhd, read_only);
    let writes: u64 = host.counts.iter().sum::<u64>() - host.counts[OpKind::Read as usize];
    assert_eq!(writes, 0);
    assert!(host.files[0] == file);
    if let Ok(info) = &result {
        // Whatever opens can be read, or says that it can't.
        let mut sector = 0;
        while sector < info.sectors.min(4096) {
            let status = host.request(RequestKind::Read, sector, 1, 0);
            assert!(status == 0 || status == -5, "status {status}");
            sector += 5;
        }
    }
    result
}

fn refused(file: &[u8], structure: &str) -> Error {
    let error = open(file, false).expect_err("the file is refused");
    assert_eq!(error.structure, structure, "{error}");
    assert_eq!(error.file.as_deref(), Some("/disks/disk.vhd"));
    assert!(
        error.offset.is_some() && error.found.is_some() && error.expected.is_some(),
        "{error}"
    );
    error
}

fn with_header(change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut file = image();
    let mut header = Header::decode(&file[HEADER..]).expect("the header is good");
    change(&mut header);
    file[HEADER..TABLE].copy_from_slice(&header.encode());
    file
}

fn with_footers(change: impl FnOnce(&mut Footer)) -> Vec<u8> {
    let mut file = image();
    let mut footer = Footer::decode(&file).expect("the footer is good");
    change(&mut footer);
    let at = file.len() - 512;
    file[..512].copy_from_slice(&footer.encode());
    file[at..].copy_from_slice(&footer.encode());
    file
}

fn with_entry(block: usize, sector: u32) -> Vec<u8> {
    let mut file = image();
    file[TABLE + block * 4..][..4].copy_from_slice(&sector.to_be_bytes());
    file
}

#[test]
fn the_image_itself_is_good() {
    let info = open(&image(), false).expect("the image opens");
    assert_eq!(
        (info.sectors, info.allocated_blocks, info.warnings.len()),
        (96, 3, 0)
    );
}

#[test]
fn one_bad_footer_is_survived_and_two_are_not() {
    for at in (0..512).step_by(3) {
        let mut file = image();
        let end = file.len() - 512;
        file[end + at] ^= 1;
        let info = open(&file, false).expect("the backup footer serves");
        assert!(
            info.warnings[0].contains("using the backup footer"),
            "{:?}",
            info.warnings
        );
        file[at] ^= 1;
        let error = refused(&file, "footer");
        assert!(error.offset >= Some(end as u64), "{error}");
        file[end + at] ^= 1;
        let info = open(&file, false).expect("the primary footer serves");
        assert!(
            info.warnings[0].starts_with("backup footer"),
            "{:?}",
            info.warnings
        );
    }
}

#[test]
fn every_damaged_header_is_refused() {
    for at in HEADER..TABLE {
        let mut file = image();
        file[at] ^= 1;
        let error = refused(&file, "dynamic header");
        assert!(
            (HEADER as u64..TABLE as u64).contains(&error.offset.unwrap_or(0)),
            "{error}"
        );
    }
}

#[test]
fn every_truncation_is_survived_or_refused() {
    let whole = image();
    // All but one byte is the footer's old form.
    for length in 0..whole.len() - 1 {
        match open(&whole[..length], true) {
            Ok(info) => assert!(!info.warnings.is_empty(), "{length}"),
            Err(error) => assert!(error.found.is_some(), "{length}: {error}"),
        }
    }
}

#[test]
fn impossible_tables_are_refused() {
    assert_eq!(
        refused(
            &with_header(|header| header.max_table_entries = 5),
            "dynamic header"
        )
        .offset,
        Some(512 + 28)
    );
    assert_eq!(
        refused(
            &with_header(|header| header.table_offset = 512),
            "dynamic header"
        )
        .offset,
        Some(512 + 16)
    );
    refused(&with_header(|header| header.table_offset = 1 << 40), "BAT");
    refused(
        &with_header(|header| header.table_offset = u64::MAX - 511),
        "BAT",
    );
    refused(
        &with_footers(|footer| footer.data_offset = 1 << 40),
        "dynamic header",
    );
    refused(
        &with_footers(|footer| footer.current_size = 1 << 62),
        "footer",
    );
    // A disk that small blocks cut into more entries than anyone would read into memory.
    refused(
        &with_footers(|footer| footer.current_size = 2040 << 30),
        "dynamic header",
    );
}

#[test]
fn impossible_entries_are_refused() {
    for sector in [
        0,
        1,
        2,
        3,
        FIRST_BLOCK + 1,
        FIRST_BLOCK + SPAN - 1,
        FIRST_BLOCK + 2 * SPAN + 1,
        u32::MAX - 1,
    ] {
        let error = refused(&with_entry(1, sector), "BAT");
        assert!(
            (TABLE as u64..TABLE as u64 + 12).contains(&error.offset.unwrap_or(0)),
            "{sector}: {error}"
        );
    }
    // The same block twice.
    refused(&with_entry(4, FIRST_BLOCK), "BAT");
}

#[test]
fn what_pads_the_table_is_no_entry() {
    let mut file = image();
    // blktap fills the last sector with zeros.
    file[TABLE + BLOCKS as usize * 4..TABLE + 512].fill(0);
    let info = open(&file, false).expect("the image opens");
    assert_eq!((info.allocated_blocks, info.warnings), (3, vec![]));
}

#[test]
fn a_fixed_disk_larger_than_its_file_is_refused() {
    let footer = Footer::new(DiskType::Fixed, 4096, Uuid([1; 16]), 7).encode();
    let mut file = vec![7; 3584];
    file.extend(footer);
    assert_eq!(refused(&file, "footer").offset, Some(3584 + 48));
    file.splice(0..0, [7; 512]);
    assert_eq!(open(&file, false).map(|info| info.sectors), Ok(8));
}

#[test]
fn the_511_byte_footer_is_read() {
    let mut file = vec![7; 4096];
    file.extend(Footer::new(DiskType::Fixed, 4096, Uuid([1; 16]), 7).encode());
    file.pop();
    assert_eq!(open(&file, false).map(|info| info.sectors), Ok(8));
}

proptest! {
    #[test]
    fn any_bytes_at_any_place(at in 0_usize..2048, bytes in prop::collection::vec(any::<u8>(), 1..64), fix: bool) {
        let mut file = image();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        if fix {
            // With right checksums the checks behind them are reached.
            for (start, length, field) in [(0, 512, 64), (HEADER, 1024, 36)] {
                file[start + field..][..4].fill(0);
                let sum = file[start..start + length].iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
                file[start + field..][..4].copy_from_slice(&(!sum).to_be_bytes());
            }
            let end = file.len() - 512;
            let footer = file[..512].to_vec();
            file[end..].copy_from_slice(&footer);
        }
        let _ = open(&file, false);
        let _ = open(&file, true);
    }
}
