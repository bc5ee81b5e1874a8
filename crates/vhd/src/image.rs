//! An open image: its geometry in sectors, its BAT in memory, and what is known of its blocks.

use crate::batmap_state::BatmapState;
use crate::format::bat;
use crate::format::footer::{DiskType, Footer};
use crate::format::header::Header;
use crate::format::uuid::Uuid;
use crate::orphans::Orphans;
use crate::planted::{self, Bug};

/// Largest virtual size of an image with a BAT, bytes: 2040 GiB, as in every other implementation.
pub const MAX_DYNAMIC_SIZE: u64 = 2040 << 30;

/// Most BAT entries of an image that are held in memory (64 MiB), against hostile block sizes.
pub(crate) const MAX_BAT_ENTRIES: u64 = 1 << 24;

/// Data of blocks begin at multiples of this many sectors (4 KiB), so that direct I/O to them is aligned.
pub(crate) const ALIGNMENT: u64 = 8;

/// One image of a chain.
#[derive(Debug)]
pub(crate) struct Image {
    /// The host's number of the file.
    pub(crate) file: u16,
    /// The file's name, for errors.
    pub(crate) path: String,
    /// The same without symbolic links, if the host knows it.
    pub(crate) real_path: String,
    /// Bytes in the file when it was opened.
    pub(crate) file_size: u64,
    /// When the file was modified last before, Unix time in seconds; 0 if the host doesn't tell.
    pub(crate) modified: u64,
    pub(crate) block_device: bool,
    /// Size of the virtual disk, sectors.
    pub(crate) sectors: u64,
    /// Its identity; a raw file has none.
    pub(crate) uuid: Option<Uuid>,
    pub(crate) layout: Layout,
}

impl Image {
    /// Entries of its BAT in memory.
    pub(crate) fn bat_entries(&self) -> u64 {
        match &self.layout {
            Layout::Blocks(blocks) => blocks.bat.len() as u64,
            Layout::Flat => 0,
        }
    }

    /// Byte offset of a sector of the disk in the file, if the file has a place for it.
    pub(crate) fn offset_of(&self, sector: u64) -> Option<u64> {
        match &self.layout {
            Layout::Flat => Some(sector * 512),
            Layout::Blocks(blocks) => Some(blocks.place_of(self.file, sector)?.data),
        }
    }

    /// What it has of sectors from `sector` to the end of their block at most.
    pub(crate) fn part_at(&self, sector: u64) -> Part {
        match &self.layout {
            Layout::Flat => Part::Whole,
            Layout::Blocks(blocks) => match blocks.place_of(self.file, sector) {
                None => Part::Absent,
                Some(place) if place.full => Part::Whole,
                Some(place) => Part::Partial(place),
            },
        }
    }

    /// Remembers that a block is full, if its bitmap `has` as many sectors as it is about. Returns whether it is.
    pub(crate) fn note_if_full(&mut self, block: u32, has: impl FnOnce(u32) -> bool) -> bool {
        let Layout::Blocks(blocks) = &mut self.layout else {
            return false;
        };
        // Those behind the end of the disk count, too: when it grows, their sectors are written as those of a full block are.
        let is_full = has(blocks.sectors_per_block);
        if is_full {
            blocks.set_full(block);
        }
        is_full
    }
}

/// What an image has of sectors of the disk that lie in one of its blocks.
pub(crate) enum Part {
    Absent,
    Whole,
    /// The block's bitmap tells, which is at the place of the first of these sectors.
    Partial(Place),
}

/// How an image maps sectors onto its file.
#[derive(Debug)]
pub(crate) enum Layout {
    /// Sector n is at byte 512 × n: raw files and fixed VHDs.
    Flat,
    /// Through a BAT.
    Blocks(Box<Blocks>),
}

/// Where a part of a block's data is, and what the block's bitmap says.
pub(crate) struct Place {
    pub(crate) file: u16,
    /// Sector of the bitmap in the file.
    pub(crate) bitmap: u64,
    pub(crate) bitmap_bytes: usize,
    /// Byte offset of the part's first sector.
    pub(crate) data: u64,
    pub(crate) block: u32,
    /// The part's first sector in the block.
    pub(crate) first: u32,
    pub(crate) full: bool,
}

/// The state of an image with a BAT.
#[derive(Debug)]
pub(crate) struct Blocks {
    pub(crate) footer: Footer,
    pub(crate) header: Header,
    /// The BAT, whole sectors of it: at least one entry for each block.
    pub(crate) bat: Vec<u32>,
    /// Number of blocks of the virtual disk.
    pub(crate) count: u32,
    /// Sectors of data in a block.
    pub(crate) sectors_per_block: u32,
    /// Sectors of the bitmap before a block's data.
    pub(crate) bitmap_sectors: u32,
    /// Blocks whose bitmap is known to have all bits set, one bit each.
    full: Vec<u64>,
    /// First sector of the file behind every structure that is no block.
    pub(crate) metadata_end: u64,
    /// First sector of the file behind every structure and block when the image was opened.
    pub(crate) data_end: u64,
    /// The file has bytes behind `data_end` that are not just the footer: they must go before blocks are put there.
    pub(crate) stale_tail: bool,
    /// The copy of the footer at offset 0 is missing or wrong, and must be put right before the footer at the end moves.
    pub(crate) needs_backup_footer: bool,
    /// The footer at the end is missing, wrong or has moved.
    pub(crate) needs_footer: bool,
    /// blktap's batmap of an image that is open for writing, if it has one.
    pub(crate) batmap: Option<Box<BatmapState>>,
    /// One of the footers was missing or wrong when the image was opened.
    pub(crate) footers_are_damaged: bool,
    /// Places between blocks where others fit.
    pub(crate) orphans: Orphans,
    /// Sector of the footer on a block device, where it stays; everything before may have blocks. What was never written
    /// is anything there, not zeros. `None` in a file, which ends with its footer and grows.
    pub(crate) device_end: Option<u64>,
    /// Blocks of the virtual disk that are not in this file.
    absent: u32,
}

impl Blocks {
    pub(crate) fn new(footer: Footer, header: Header, bat: Vec<u32>) -> Self {
        let sectors_per_block = header.block_size / 512;
        // The caller has checked that there are at most u32::MAX blocks.
        let count = footer.current_size.div_ceil(u64::from(header.block_size)) as u32;
        let entries = bat.iter().take(count as usize);
        let absent = entries.filter(|entry| **entry == bat::UNUSED).count() as u32;
        Self {
            footer,
            header,
            bat,
            count,
            sectors_per_block,
            bitmap_sectors: bitmap_sectors(sectors_per_block),
            full: vec![0; count.div_ceil(64) as usize],
            metadata_end: 0,
            data_end: 0,
            stale_tail: false,
            needs_backup_footer: false,
            needs_footer: false,
            batmap: None,
            footers_are_damaged: false,
            orphans: Orphans::default(),
            device_end: None,
            absent,
        }
    }

    /// Whether a new block can be written without its bitmap: in an image without a parent sectors that were never
    /// written read as zeros with their bit set as well as clear, since new space in a file is zero. On a block device it
    /// is not.
    pub(crate) fn born_full(&self) -> bool {
        self.footer.disk_type == DiskType::Dynamic
            && (self.device_end.is_none() || planted::is(Bug::BornFullOnDevice))
    }

    /// Blocks of the virtual disk that are in this file.
    pub(crate) fn allocated(&self) -> u32 {
        self.count - self.absent
    }

    /// Blocks of the virtual disk that are not in this file.
    pub(crate) fn absent(&self) -> u32 {
        self.absent
    }

    /// Makes room for `count` blocks; the new ones are absent.
    pub(crate) fn enlarge(&mut self, count: u32) {
        if count <= self.count {
            return;
        }
        let entries = (count as usize).next_multiple_of(bat::ENTRIES_PER_SECTOR);
        self.bat.resize(entries.max(self.bat.len()), bat::UNUSED);
        self.full.resize(count.div_ceil(64) as usize, 0);
        self.absent += count - self.count;
        self.count = count;
    }

    /// Whether a footer or the batmap is not as it must be.
    pub(crate) fn has_fault(&self) -> bool {
        let batmap = self.batmap.as_ref();
        self.footers_are_damaged || batmap.is_some_and(|batmap| batmap.is_wrong())
    }

    /// Gives an absent block a place.
    pub(crate) fn allocate(&mut self, block: u32, place: u32) {
        if let Some(entry) = self.bat.get_mut(block as usize) {
            *entry = place;
            self.absent -= 1;
        }
    }

    /// The bitmap that a new block has.
    pub(crate) fn new_bitmap(&self) -> Vec<u8> {
        vec![if self.born_full() { 0xff } else { 0 }; self.bitmap_bytes()]
    }

    /// Takes a block out of the BAT in memory. Returns the place that it had.
    pub(crate) fn release(&mut self, block: u32) -> Option<u32> {
        let entry = self.bat.get_mut(block as usize)?;
        let place = std::mem::replace(entry, bat::UNUSED);
        if place == bat::UNUSED {
            return None;
        }
        self.absent += 1;
        self.forget_full(block);
        Some(place)
    }

    /// Takes it back that a block is full. The batmap says so no more before the block's BAT entry is written again.
    pub(crate) fn forget_full(&mut self, block: u32) {
        if let Some(batmap) = &mut self.batmap {
            batmap.forget(block);
        }
        if let Some(word) = self.full.get_mut(block as usize / 64) {
            *word &= !(1 << (block % 64));
        }
    }

    /// First sector of the file behind everything that is in use.
    pub(crate) fn used_end(&self) -> u64 {
        let places = self.bat.iter().filter(|entry| **entry != bat::UNUSED);
        places
            .map(|place| u64::from(*place) + self.block_span())
            .fold(self.metadata_end, u64::max)
    }

    /// Sector of the file where the bitmap of `block` is, if the block is in this file.
    pub(crate) fn bitmap_sector(&self, block: u32) -> Option<u64> {
        match self.bat.get(block as usize) {
            None | Some(&bat::UNUSED) => None,
            Some(sector) => Some(u64::from(*sector)),
        }
    }

    /// The block that `sector` of the disk is in, and its number there.
    pub(crate) fn block_of(&self, sector: u64) -> (u32, u32) {
        // A power of two, as the header was checked for, and 64-bit divisions are slow.
        let shift = self.sectors_per_block.trailing_zeros();
        (
            (sector >> shift) as u32,
            sector as u32 & (self.sectors_per_block - 1),
        )
    }

    /// Where `sector` of the disk is, if its block is in this file, which the host knows as `file`.
    pub(crate) fn place_of(&self, file: u16, sector: u64) -> Option<Place> {
        let (block, first) = self.block_of(sector);
        self.bitmap_sector(block).map(|bitmap| Place {
            file,
            bitmap,
            bitmap_bytes: self.bitmap_bytes(),
            data: (bitmap + u64::from(self.bitmap_sectors) + u64::from(first)) * 512,
            block,
            first,
            full: self.is_full(block),
        })
    }

    /// Sectors that a block takes in the file: bitmap and data.
    pub(crate) fn block_span(&self) -> u64 {
        u64::from(self.bitmap_sectors) + u64::from(self.sectors_per_block)
    }

    pub(crate) fn is_full(&self, block: u32) -> bool {
        self.full
            .get(block as usize / 64)
            .is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    pub(crate) fn set_full(&mut self, block: u32) {
        if let Some(word) = self.full.get_mut(block as usize / 64) {
            *word |= 1 << (block % 64);
        }
    }

    /// Bytes of a block's bitmap that hold bits of sectors.
    pub(crate) fn bitmap_bytes(&self) -> usize {
        self.bitmap_sectors as usize * 512
    }

    /// Where the bitmap of a new block goes that is placed at or behind `sector`.
    pub(crate) fn place(&self, sector: u64) -> u64 {
        place(sector, self.bitmap_sectors)
    }
}

/// Where a bitmap of so many sectors goes that is placed at or behind `sector`, so that the data behind it are aligned.
pub(crate) fn place(sector: u64, bitmap_sectors: u32) -> u64 {
    let bitmap = u64::from(bitmap_sectors);
    (sector + bitmap).next_multiple_of(ALIGNMENT) - bitmap
}

/// Sectors of the bitmap of a block of `sectors_per_block` sectors: one bit a sector, whole sectors.
pub(crate) fn bitmap_sectors(sectors_per_block: u32) -> u32 {
    sectors_per_block.div_ceil(8 * 512)
}
