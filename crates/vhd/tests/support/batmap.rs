//! Batmaps put into images, and what images say in theirs.

use vhd::format::bat;
use vhd::format::batmap::{self, Batmap};
use vhd::format::bitmap;
use vhd::format::footer::Footer;
use vhd::format::header::Header;

/// The parts of an image with a BAT.
pub struct Parts {
    pub footer: Footer,
    pub header: Header,
    pub bat: Vec<u32>,
}

impl Parts {
    /// Those of a file whose copy of the footer is good.
    pub fn of(file: &[u8]) -> Self {
        let footer = Footer::decode(file).expect("the footer is good");
        let header =
            Header::decode(&file[footer.data_offset as usize..]).expect("the header is good");
        let mut table = Vec::new();
        let at = header.table_offset as usize;
        bat::decode(
            &file[at..][..header.max_table_entries as usize * 4],
            &mut table,
        );
        Self {
            footer,
            header,
            bat: table,
        }
    }

    /// Byte offset of the batmap's header.
    pub fn batmap_at(&self) -> usize {
        batmap::header_offset(self.header.table_offset, self.header.max_table_entries) as usize
    }

    fn map_bytes(&self) -> usize {
        batmap::map_bytes(self.footer.current_size, self.header.block_size) as usize
    }

    /// Whether the bitmap in the file has all bits that the disk has sectors for set.
    fn is_full(&self, file: &[u8], block: usize) -> bool {
        let sectors = u64::from(self.header.block_size / 512);
        let bits = (self.footer.current_size / 512 - block as u64 * sectors).min(sectors);
        self.bat[block] != bat::UNUSED
            && bitmap::is_full(&file[self.bat[block] as usize * 512..], bits as u32)
    }
}

/// Makes room behind the BAT for a batmap that calls the blocks in `full` full.
pub fn with_batmap(image: &[u8], full: &[u32]) -> Vec<u8> {
    let mut parts = Parts::of(image);
    let at = parts.batmap_at();
    let mut map = vec![0; parts.map_bytes()];
    for block in full {
        bitmap::set_range(&mut map, *block, 1);
    }
    let header = Batmap {
        checksum: batmap::checksum(&map, batmap::VERSION),
        ..Batmap::new(at as u64 + 512, map.len() as u32 / 512)
    };
    let moved = 512 + map.len() as u64;
    for place in parts.bat.iter_mut().filter(|place| **place != bat::UNUSED) {
        *place += (moved / 512) as u32;
    }
    for locator in &mut parts.header.locators {
        if locator.is_used() {
            locator.data_offset += moved;
        }
    }
    parts.footer.promise_batmap();
    let mut file = [&image[..at], &header.encode(), &map, &image[at..]].concat();
    let table = bat::encode(&parts.bat);
    file[parts.header.table_offset as usize..][..table.len()].copy_from_slice(&table);
    file[parts.footer.data_offset as usize..][..1024].copy_from_slice(&parts.header.encode());
    let end = file.len() - 512;
    for at in [0, end] {
        file[at..at + 512].copy_from_slice(&parts.footer.encode());
    }
    file
}

/// The blocks that a file's batmap calls full; `None` if there is no batmap, or a wrong one. Asserts that they are.
pub fn full_blocks(file: &[u8]) -> Option<Vec<u32>> {
    let parts = Parts::of(file);
    let header = Batmap::decode(file.get(parts.batmap_at()..)?.get(..512)?)?;
    let map = file
        .get(header.offset as usize..)?
        .get(..parts.map_bytes())?;
    if !header.matches(map) {
        return None;
    }
    let blocks = parts
        .footer
        .current_size
        .div_ceil(u64::from(parts.header.block_size)) as u32;
    let full: Vec<u32> = (0..blocks)
        .filter(|block| bitmap::is_set(map, *block))
        .collect();
    for block in &full {
        assert!(
            parts.is_full(file, *block as usize),
            "the batmap calls block {block} full, which is not"
        );
    }
    Some(full)
}

/// Changes the header of a file's batmap.
pub fn change_header(file: &mut [u8], change: impl FnOnce(&mut Batmap)) {
    let at = Parts::of(file).batmap_at();
    let mut header = Batmap::decode(&file[at..at + 512]).expect("there is a batmap");
    change(&mut header);
    file[at..at + 512].copy_from_slice(&header.encode());
}
