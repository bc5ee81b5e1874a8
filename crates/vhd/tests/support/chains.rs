//! Random chains, and what each of their images reads as.

use proptest::prelude::*;
use vhd::Driver;
use vhd::format::footer::{DiskType, Footer};
use vhd::format::uuid::Uuid;

use super::Host;
use super::images::{self, Parent, Spec, uuid};

/// The byte size of all blocks: 16 sectors.
pub const BLOCK: u32 = 8192;

/// What the last image of a chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    Dynamic,
    Fixed,
    Raw,
}

/// An image of a chain.
#[derive(Clone, Debug)]
pub struct Level {
    /// A word for each block, which says over and over which sectors are present; none if it's a multiple of 4.
    pub bits: Vec<u64>,
    pub sectors: u64,
    /// Its BAT has room for more blocks.
    pub room: bool,
}

/// A chain, leaf first.
#[derive(Clone, Debug)]
pub struct Chain {
    pub levels: Vec<Level>,
    pub root: Root,
}

/// Chains of `depth` images of about `sectors` sectors.
pub fn chains(
    depth: impl Into<prop::collection::SizeRange>,
    sectors: u64,
) -> impl Strategy<Value = Chain> {
    let size = prop_oneof![3 => Just(sectors), 1 => sectors * 3 / 4..sectors * 5 / 4];
    let bits = prop::collection::vec(any::<u64>(), sectors as usize / 8);
    let level = (bits, size, any::<bool>()).prop_map(|(bits, sectors, room)| Level {
        bits,
        sectors,
        room,
    });
    let root = prop_oneof![2 => Just(Root::Dynamic), 1 => Just(Root::Fixed), 1 => Just(Root::Raw)];
    (prop::collection::vec(level, depth), root).prop_map(|(levels, root)| Chain { levels, root })
}

/// What an image has in a sector, by its index; some of it is zeros.
fn fill(index: usize) -> fn(u64) -> u8 {
    const fn data(level: u8, sector: u64) -> u8 {
        if (sector / 10).is_multiple_of(3) {
            0
        } else {
            level + sector as u8 % 16
        }
    }
    match index {
        0 => |sector| data(0x40, sector),
        1 => |sector| data(0x60, sector + 10),
        2 => |sector| data(0x80, sector + 20),
        _ => |sector| data(0xa0, sector),
    }
}

impl Chain {
    /// The files, leaf first, and what each reads as with those below it.
    pub fn build(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (mut files, mut contents) = (Vec::new(), Vec::new());
        let mut disk = Vec::new();
        for (index, level) in self.levels.iter().enumerate().rev() {
            // What is behind the end of a smaller image is not seen, whatever is below.
            disk.resize(level.sectors as usize * 512, 0);
            let is_root = index + 1 == self.levels.len();
            files.push(match self.root {
                Root::Raw | Root::Fixed if is_root => self.flat(index, level, &mut disk),
                _ => self.blocks(index, level, &mut disk),
            });
            contents.push(disk.clone());
        }
        files.reverse();
        contents.reverse();
        (files, contents)
    }

    fn flat(&self, index: usize, level: &Level, disk: &mut [u8]) -> Vec<u8> {
        for (sector, bytes) in (0..).zip(disk.chunks_mut(512)) {
            bytes.fill(fill(index)(sector));
        }
        let mut file = disk.to_vec();
        if self.root == Root::Fixed {
            let size = level.sectors * 512;
            file.extend(Footer::new(DiskType::Fixed, size, uuid(index), 7).encode());
        }
        file
    }

    fn blocks(&self, index: usize, level: &Level, disk: &mut [u8]) -> Vec<u8> {
        let count = level.sectors.div_ceil(u64::from(BLOCK) / 512) as usize;
        let blocks: Vec<(u32, u64)> = (0..)
            .zip(level.bits.iter().copied().take(count))
            .filter(|(_, bits)| bits % 4 != 0)
            .collect();
        let below = index + 1;
        let parent_uuid = match self.root {
            Root::Raw if below + 1 == self.levels.len() => Uuid::NIL,
            _ => uuid(below),
        };
        let parent = (below < self.levels.len()).then(|| Parent {
            uuid: parent_uuid,
            locator: (*b"W2ku", images::name(below)),
        });
        let spec = Spec {
            uuid: uuid(index),
            size: level.sectors * 512,
            block_size: BLOCK,
            parent,
            blocks: &blocks,
            fill: fill(index),
        };
        let image = images::build(&spec, disk);
        if level.room {
            images::with_room(&image)
        } else {
            image
        }
    }

    /// Whether an image of the chain can become as large as those above it.
    pub fn grows(&self, index: usize) -> bool {
        self.root != Root::Fixed || index + 1 < self.levels.len()
    }

    /// How an image of the chain is read.
    pub fn driver(&self, index: usize) -> Driver {
        match self.root {
            Root::Raw if index + 1 == self.levels.len() => Driver::Aio,
            _ => Driver::Vhd,
        }
    }

    /// What the image with this index reads as, with those below it, in the given files.
    pub fn read(&self, files: &[Vec<u8>], index: usize) -> vhd::error::Result<Vec<u8>> {
        let files = &files[..self.levels.len()];
        let mut host = Host::new(files[index..].to_vec(), 64 << 10);
        host.names = (index..files.len()).map(images::name).collect();
        let info = host.open(self.driver(index), true)?;
        Ok(host.read_disk(info.sectors))
    }
}
