//! Images as other programs leave them, made without the engine.

use vhd::format::bat;
use vhd::format::footer::{DiskType, Footer};
use vhd::format::header::Header;
use vhd::format::locator::ParentLocator;
use vhd::format::uuid::Uuid;

/// The path of the file with this index in a test's chain, leaf first.
pub fn name(index: usize) -> String {
    if index == 0 {
        "/disks/disk.vhd".to_owned()
    } else {
        format!("/disks/base/parent{index}.vhd")
    }
}

/// The UUID of the image with this index in a test's chain.
pub fn uuid(index: usize) -> Uuid {
    Uuid([index as u8 + 1; 16])
}

/// How a child names its parent.
pub struct Parent {
    pub uuid: Uuid,
    /// Platform code and path of its one locator.
    pub locator: ([u8; 4], String),
}

impl Parent {
    /// The image with this index in a test's chain, as Windows names it.
    pub fn named(index: usize) -> Self {
        Self {
            uuid: uuid(index),
            locator: (*b"W2ku", name(index)),
        }
    }
}

/// An image with a BAT.
pub struct Spec<'a> {
    pub uuid: Uuid,
    pub size: u64,
    pub block_size: u32,
    pub parent: Option<Parent>,
    /// Its blocks in file order, each with 64 bits that say, over and over, which sectors are present.
    pub blocks: &'a [(u32, u64)],
    /// The byte that fills a present sector.
    pub fill: fn(sector: u64) -> u8,
}

/// The byte size of the blocks of a [`small`] image.
pub const SMALL_BLOCK: u32 = 8192;
/// How many blocks it has.
pub const SMALL_BLOCKS: u32 = 20;
/// The byte size of its disk.
pub const SMALL_SIZE: u64 = SMALL_BLOCKS as u64 * SMALL_BLOCK as u64;

/// An image of a few small blocks, the one with this index in a test's chain.
pub fn small(
    index: usize,
    parent: Option<Parent>,
    blocks: &[(u32, u64)],
    fill: fn(u64) -> u8,
) -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(index),
        size: SMALL_SIZE,
        block_size: SMALL_BLOCK,
        parent,
        blocks,
        fill,
    };
    build(&spec, &mut [])
}

/// The bytes of an image, whose present sectors are put on top of `disk`. Blocks are unaligned and in no order; what lies
/// under clear bits is nobody's business.
pub fn build(spec: &Spec<'_>, disk: &mut [u8]) -> Vec<u8> {
    let disk_type = if spec.parent.is_some() {
        DiskType::Differencing
    } else {
        DiskType::Dynamic
    };
    let footer = Footer::new(disk_type, spec.size, spec.uuid, 7).encode();
    let count = spec.size.div_ceil(u64::from(spec.block_size)) as u32;
    let mut header = Header::new(1536, count, spec.block_size);
    let sectors_per_block = spec.block_size / 512;
    let bitmap_bytes = (sectors_per_block.div_ceil(8) as usize).next_multiple_of(512);
    let mut next = 1536 / 512 + count.div_ceil(128);
    let mut locator_data = Vec::new();
    if let Some(parent) = &spec.parent {
        let (platform, path) = &parent.locator;
        locator_data = match platform {
            b"MacX" => format!("file://{path}").into_bytes(),
            _ => path
                .replace('/', "\\")
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect(),
        };
        header.parent_uuid = parent.uuid;
        header.parent_name = path
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .encode_utf16()
            .collect();
        header.locators[0] = ParentLocator {
            platform: *platform,
            data_space: 512,
            data_length: locator_data.len() as u32,
            data_offset: u64::from(next) * 512,
        };
        locator_data.resize(512, 0);
        next += 1;
    }
    let mut table = vec![bat::UNUSED; count as usize];
    let mut data = Vec::new();
    for (block, bits) in spec.blocks {
        table[*block as usize] = next;
        let mut bitmap = vec![0; bitmap_bytes];
        let mut content = vec![0xdd; spec.block_size as usize];
        for sector in (0..sectors_per_block).filter(|sector| bits >> (sector % 64) & 1 == 1) {
            bitmap[sector as usize / 8] |= 0x80 >> (sector % 8);
            let at = u64::from(*block) * u64::from(sectors_per_block) + u64::from(sector);
            let fill = (spec.fill)(at);
            content[sector as usize * 512..][..512].fill(fill);
            if let Some(bytes) = disk.get_mut(at as usize * 512..) {
                bytes.iter_mut().take(512).for_each(|byte| *byte = fill);
            }
        }
        data.extend(bitmap);
        data.extend(content);
        next += (bitmap_bytes as u32 + spec.block_size) / 512;
    }
    let mut image = footer.to_vec();
    image.extend(header.encode());
    image.extend(bat::encode(&table));
    image.extend(locator_data);
    image.extend(data);
    image.extend(footer);
    image
}

/// An image whose BAT has more entries than the disk has blocks: as many as there is room for in its sectors.
pub fn with_room(image: &[u8]) -> Vec<u8> {
    let mut file = image.to_vec();
    let mut header = Header::decode(&file[512..]).expect("the header is good");
    header.max_table_entries = header
        .max_table_entries
        .next_multiple_of(bat::ENTRIES_PER_SECTOR as u32);
    file[512..1536].copy_from_slice(&header.encode());
    file
}

/// An image as it is on a block device of `bytes` bytes, which holds something else wherever nothing was written.
pub fn on_device(image: &[u8], bytes: usize) -> Vec<u8> {
    let (blocks, footer) = image.split_at(image.len() - 512);
    let mut device = blocks.to_vec();
    device.resize(bytes - footer.len(), 0xc7);
    device.extend(footer);
    device
}

/// An image with something between its blocks: before each, in file order, so many sectors that are nobody's.
pub fn with_gaps(image: &[u8], gaps: &[usize]) -> Vec<u8> {
    let header = Header::decode(&image[512..]).expect("the header is good");
    let at = header.table_offset as usize;
    let mut table = Vec::new();
    bat::decode(
        &image[at..][..header.max_table_entries as usize * 4],
        &mut table,
    );
    let mut blocks: Vec<(u32, usize)> = table
        .iter()
        .zip(0..)
        .filter(|(place, _)| **place != bat::UNUSED)
        .map(|(place, block)| (*place, block))
        .collect();
    blocks.sort_unstable();
    let end = image.len() - 512;
    let starts: Vec<usize> = blocks
        .iter()
        .map(|(place, _)| *place as usize * 512)
        .collect();
    let mut file = image[..starts.first().copied().unwrap_or(end)].to_vec();
    let stops = starts.iter().skip(1).copied().chain([end]);
    for ((start, stop), (gap, (_, block))) in starts.iter().zip(stops).zip(gaps.iter().zip(&blocks))
    {
        file.resize(file.len() + gap * 512, 0xc7);
        table[*block] = (file.len() / 512) as u32;
        file.extend(&image[*start..stop]);
    }
    file.extend(&image[end..]);
    let table = bat::encode(&table);
    file[at..at + table.len()].copy_from_slice(&table);
    file
}
