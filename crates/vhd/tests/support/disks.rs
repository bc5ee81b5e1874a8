//! Small disks for a guest to work on.

use proptest::prelude::*;
use vhd::format::footer::DiskType;
use vhd::jobs::CreateSpec;

use super::Host;
use super::batmap;
use super::images::{self, Parent, Spec, uuid};

/// Sectors of every such disk.
pub const SECTORS: u64 = 300;
/// Bytes.
pub const SIZE: u64 = SECTORS * 512;

/// Bytes from one new block of 16 sectors to the next, at most.
pub const STRIDE: usize = 24 * 512;

/// An image, with its parents.
#[derive(Clone, Debug)]
pub enum Disk {
    /// New.
    Empty { block_size: u32 },
    /// As another program leaves it: bits of the blocks of each image, leaf first.
    Partial {
        levels: Vec<Vec<u64>>,
        block_size: u32,
    },
    /// The same, with images of different sizes and blocks.
    Mixed { levels: Vec<Level> },
    /// The same, with a batmap in the leaf that knows some of its full blocks, or is wrong.
    Batmap {
        levels: Vec<Vec<u64>>,
        known: u32,
        wrong: bool,
    },
    /// The same, with room in the leaf's BAT. The last block may have all that the disk has of it.
    Growing { levels: Vec<Level> },
    /// The same, with so many sectors that are nobody's before each block of the leaf.
    Gaps {
        levels: Vec<Vec<u64>>,
        gaps: Vec<usize>,
    },
    /// The same, with the leaf on a block device that has room for all blocks, or for so many more.
    OnDevice {
        levels: Vec<Vec<u64>>,
        room: Option<usize>,
    },
}

/// An image of a [`Disk::Mixed`].
#[derive(Clone, Debug)]
pub struct Level {
    bits: Vec<u64>,
    block_size: u32,
    sectors: u64,
}

impl Disk {
    /// Any disk with this many images.
    pub fn partial(depth: usize, block_size: u32) -> impl Strategy<Value = Self> {
        let blocks = SIZE.div_ceil(u64::from(block_size)) as usize;
        let bits = prop::collection::vec(any::<u64>(), blocks);
        prop::collection::vec(bits, depth)
            .prop_map(move |levels| Self::Partial { levels, block_size })
    }

    /// Its parents are smaller or larger than their children, with blocks of other sizes.
    pub fn mixed(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop::collection::vec(any::<u64>(), 50);
        let sectors = SECTORS * 3 / 4..SECTORS * 5 / 4;
        let level = (bits, 12_u32..15, sectors).prop_map(|(bits, shift, sectors)| Level {
            bits,
            block_size: 1 << shift,
            sectors,
        });
        prop::collection::vec(level, depth).prop_map(|mut levels| {
            levels[0].sectors = SECTORS;
            Self::Mixed { levels }
        })
    }

    fn usual(levels: &[Vec<u64>]) -> Self {
        Self::Partial {
            levels: levels.to_vec(),
            block_size: 8192,
        }
    }

    /// Some of its blocks have sectors that are nobody's before them.
    pub fn with_gaps(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop_oneof![2 => Just(0), 1 => any::<u64>()];
        let levels = prop::collection::vec(prop::collection::vec(bits, 18), depth);
        let gaps = prop::collection::vec(0_usize..80, 18);
        (levels, gaps).prop_map(|(levels, gaps)| Self::Gaps { levels, gaps })
    }

    /// It can grow while it is open, also beyond the end of a parent, or where a parent is larger.
    pub fn with_room_to_grow(depth: usize) -> impl Strategy<Value = Self> {
        let (last, whole) = (SIZE / 8192, SIZE / 512 % 16);
        (Self::mixed(depth), any::<bool>()).prop_map(move |(disk, fill)| {
            let Self::Mixed { mut levels } = disk else {
                return disk;
            };
            levels[0].block_size = 8192;
            if fill {
                levels[0].bits[last as usize] = (1 << whole) - 1;
            }
            Self::Growing { levels }
        })
    }

    /// Its leaf is on a block device.
    pub fn on_device(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop::collection::vec(any::<u64>(), 18);
        prop::collection::vec(bits, depth).prop_map(|levels| Self::OnDevice { levels, room: None })
    }

    /// Its leaf is on a block device with room for few more blocks.
    pub fn on_small_device(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop::collection::vec(any::<u64>(), 18);
        let room = (0_usize..4).prop_map(Some);
        (prop::collection::vec(bits, depth), room)
            .prop_map(|(levels, room)| Self::OnDevice { levels, room })
    }

    /// Its leaf has a batmap.
    pub fn with_batmap(depth: usize) -> impl Strategy<Value = Self> {
        let bits = prop_oneof![2 => Just(u64::MAX), 1 => any::<u64>()];
        let levels = prop::collection::vec(prop::collection::vec(bits, 18), depth);
        (levels, any::<u32>(), prop::bool::weighted(0.2)).prop_map(|(levels, known, wrong)| {
            Self::Batmap {
                levels,
                known,
                wrong,
            }
        })
    }

    /// The files, leaf first, and the disk's content.
    pub fn build(&self) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut disk = vec![0; SIZE as usize];
        match self {
            Self::Empty { block_size } => (vec![empty(*block_size)], disk),
            Self::Batmap {
                levels,
                known,
                wrong,
            } => {
                let (mut files, disk) = Self::usual(levels).build();
                let full: Vec<u32> = (0..)
                    .zip(&levels[0])
                    .filter(|(block, bits)| **bits == u64::MAX && known >> block & 1 == 1)
                    .map(|(block, _)| block)
                    .collect();
                files[0] = batmap::with_batmap(&files[0], &full);
                if *wrong {
                    batmap::change_header(&mut files[0], |header| header.checksum ^= 1);
                }
                (files, disk)
            }
            Self::Growing { levels } => {
                let levels = levels.clone();
                let (mut files, disk) = Self::Mixed { levels }.build();
                files[0] = images::with_room(&files[0]);
                (files, disk)
            }
            Self::Gaps { levels, gaps } => {
                let (mut files, disk) = Self::usual(levels).build();
                files[0] = images::with_gaps(&files[0], gaps);
                (files, disk)
            }
            Self::OnDevice { levels, room } => {
                let (mut files, disk) = Self::usual(levels).build();
                let bytes = match room {
                    None => 2 * SIZE as usize,
                    Some(blocks) => files[0].len() + blocks * STRIDE,
                };
                files[0] = images::on_device(&files[0], bytes);
                (files, disk)
            }
            Self::Partial { levels, block_size } => {
                let level = |bits: &Vec<u64>| Level {
                    bits: bits.clone(),
                    block_size: *block_size,
                    sectors: SECTORS,
                };
                let levels = levels.iter().map(level).collect();
                Self::Mixed { levels }.build()
            }
            Self::Mixed { levels } => {
                let mut files: Vec<Vec<u8>> = Vec::new();
                for (index, level) in levels.iter().enumerate().rev() {
                    // What is behind the end of a smaller image is not seen, whatever is below.
                    disk.resize(level.sectors as usize * 512, 0);
                    files.push(partial(index, level, index + 1 < levels.len(), &mut disk));
                }
                files.reverse();
                (files, disk)
            }
        }
    }
}

/// How a new disk is made.
pub fn create_spec(disk_type: DiskType, block_size: u32) -> CreateSpec {
    CreateSpec {
        path: images::name(0),
        disk_type,
        size: SIZE,
        block_size,
        uuid: uuid(0),
        now: super::NOW,
        max_size: None,
    }
}

fn empty(block_size: u32) -> Vec<u8> {
    let mut host = Host::new(Vec::new(), 0);
    host.create(create_spec(DiskType::Dynamic, block_size))
        .expect("the image is made");
    host.files.remove(0)
}

/// An image with partial bitmaps, its content put on top of `disk`.
fn partial(index: usize, level: &Level, has_parent: bool, disk: &mut [u8]) -> Vec<u8> {
    let size = level.sectors * 512;
    let count = size.div_ceil(u64::from(level.block_size)) as u32;
    let blocks: Vec<(u32, u64)> = (0..count)
        .zip(level.bits.iter().copied())
        .filter(|(_, bits)| bits % 4 != 0)
        .collect();
    let parent = has_parent.then(|| Parent::named(index + 1));
    const FILLS: [fn(u64) -> u8; 4] = [
        |sector| 0xa0 + sector as u8 % 16,
        |sector| 0xb0 + sector as u8 % 16,
        |sector| 0xc0 + sector as u8 % 16,
        |sector| 0xd0 + sector as u8 % 16,
    ];
    images::build(
        &Spec {
            uuid: uuid(index),
            size,
            block_size: level.block_size,
            parent,
            blocks: &blocks,
            fill: FILLS[index % 4],
        },
        disk,
    )
}
