//! Images of every program that writes them: what is odd about each, and what is not to be touched.

mod support;

use support::Host;
use support::batmap::with_batmap;
use support::images::{self, Spec, uuid};
use vhd::Driver;
use vhd::format::footer::{DiskType, Footer, POISON};
use vhd::format::geometry::Geometry;
use vhd::record::RequestKind;

const BLOCK: u32 = 8192;
const SIZE: u64 = 20 * BLOCK as u64;

fn dynamic() -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(0),
        size: SIZE,
        block_size: BLOCK,
        parent: None,
        blocks: &[(0, u64::MAX), (3, 0xff)],
        fill: |_| 7,
    };
    images::build(&spec, &mut vec![0; SIZE as usize])
}

fn footers(file: &[u8]) -> [Footer; 2] {
    [file.len() - 512, 0].map(|at| Footer::decode(&file[at..]).expect("the footer is good"))
}

fn with_footers(mut file: Vec<u8>, change: impl Fn(&mut Footer)) -> Vec<u8> {
    let end = file.len() - 512;
    for at in [0, end] {
        let mut footer = Footer::decode(&file[at..]).expect("the footer is good");
        change(&mut footer);
        file[at..at + 512].copy_from_slice(&footer.encode());
    }
    file
}

/// Opens the image, writes something, closes it and opens it again; nobody may find anything odd.
fn worked_on(file: Vec<u8>) -> Vec<u8> {
    let mut host = Host::new(vec![file], SIZE as usize);
    let info = host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!((info.sectors, info.warnings), (SIZE / 512, Vec::new()));
    host.guest.fill(9);
    for sector in [1, 60, 160] {
        assert_eq!(host.request(RequestKind::Write, sector, 20, 0), 0);
    }
    host.close().expect("the image closes");
    let info = host.open(Driver::Vhd, true).expect("the image opens again");
    assert_eq!(info.warnings, Vec::<String>::new());
    let disk = host.read_disk(SIZE / 512);
    assert_eq!(
        [0, 1, 60, 179, 180].map(|sector| disk[sector * 512]),
        [7, 9, 9, 9, 0]
    );
    host.files.remove(0)
}

#[test]
fn every_program_s_images_are_written_and_keep_what_they_say_of_themselves() {
    let programs: [(&[u8; 4], u32, &[u8; 4]); 9] = [
        (b"win ", 0x000a_0000, b"Wi2k"),
        (b"vpc ", 0x0005_0000, b"Wi2k"),
        (b"vs  ", 0x0001_0000, b"Wi2k"),
        (b"vbox", 0x0007_0000, b"Wi2k"),
        (b"qemu", 0x0005_0003, b"Wi2k"),
        (b"qem2", 0x0005_0003, b"Wi2k"),
        (b"d2v ", 0x0001_0000, b"Wi2k"),
        (b"tap\0", 0x0001_0001, &[0; 4]),
        (b"\0\0\0\0", 0, b"Mac "),
    ];
    for (application, version, os) in programs {
        let file = with_footers(dynamic(), |footer| {
            footer.creator_application = *application;
            footer.creator_version = version;
            footer.creator_host_os = *os;
            // Never the size of the disk, and not every program sets the reserved feature.
            footer.geometry = Geometry {
                cylinders: 1,
                heads: 2,
                sectors_per_track: 3,
            };
            footer.features = 0;
            footer.original_size = 4096;
        });
        let [before, _] = footers(&file);
        assert_eq!(footers(&worked_on(file)), [before.clone(), before]);
    }
}

#[test]
fn blktap_s_versions_with_a_batmap_have_one_or_are_told() {
    for version in [0x0001_0002, 0x0001_0003] {
        let set = |footer: &mut Footer| footer.creator_version = version;
        let file = with_footers(with_batmap(&dynamic(), &[0]), set);
        worked_on(file);
    }
}

#[test]
fn blktap_s_first_version_is_refused_but_for_fixed_disks() {
    let set = |footer: &mut Footer| footer.creator_version = 0x0000_0001;
    let mut host = Host::new(vec![with_footers(dynamic(), set)], 512);
    for read_only in [true, false] {
        let error = host
            .open(Driver::Vhd, read_only)
            .expect_err("its bitmaps can't be read");
        assert!(error.message.contains("blktap's first version"), "{error}");
    }
    let mut footer = Footer::new(DiskType::Fixed, 4096, uuid(0), 7);
    set(&mut footer);
    let mut file = vec![7; 4096];
    file.extend(footer.encode());
    let mut host = Host::new(vec![file], 512);
    assert_eq!(
        host.open(Driver::Vhd, false).map(|info| info.sectors),
        Ok(8)
    );
}

#[test]
fn a_resize_that_was_interrupted_is_not_read_past() {
    let good = dynamic();
    let end = good.len() - 512;
    // blktap poisons the footer at the end first; the other one still looks good then.
    for places in [vec![end], vec![0], vec![0, end]] {
        let mut file = good.clone();
        for at in places {
            file[at..at + 8].copy_from_slice(&POISON);
        }
        let mut host = Host::new(vec![file.clone()], 512);
        for read_only in [true, false] {
            let error = host
                .open(Driver::Vhd, read_only)
                .expect_err("blocks may be on their way");
            assert!(error.message.contains("journal"), "{error}");
        }
        assert!(host.files[0] == file);
    }
    // The guest of a fixed disk may write what it likes.
    let mut file = vec![7; 4096];
    file[..8].copy_from_slice(&POISON);
    file.extend(Footer::new(DiskType::Fixed, 4096, uuid(0), 7).encode());
    let mut host = Host::new(vec![file], 512);
    assert_eq!(
        host.open(Driver::Vhd, false).map(|info| info.sectors),
        Ok(8)
    );
}

#[test]
fn a_hidden_image_stays_hidden() {
    let hidden = |file: &[u8]| footers(file).map(|footer| footer.is_hidden());
    let file = with_footers(dynamic(), |footer| footer.set_hidden(true));
    assert_eq!(hidden(&worked_on(file)), [true, true]);
    // As blktap's version 1.1 did it: in the copy alone, and not in the checksum.
    let mut file = dynamic();
    file[85] = 1;
    let mut host = Host::new(vec![file], 512);
    let info = host.open(Driver::Vhd, false).expect("the image opens");
    assert_eq!(info.warnings, Vec::<String>::new());
    // In a new block, so that the footer moves.
    assert_eq!(host.request(RequestKind::Write, 160, 1, 0), 0);
    host.close().expect("the image closes");
    assert_eq!(hidden(&host.files[0]), [true, true]);
}
