//! Any completion order: a guest's work on any good image, with power cuts and failures, against a model of what the guest
//! may rely on.
#![no_main]

#[allow(dead_code)]
mod limit;
#[path = "../../tests/support/mod.rs"]
mod support;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use support::cuts::Explorer;
use support::disks::{Disk, SECTORS};
use support::guest::{Guest, Step, Target};
use vhd::record::{FLAG_FUA, FLAG_NO_HOLE};

#[derive(Arbitrary, Debug)]
enum Move {
    Write {
        sector: u16,
        count: u8,
        fua: bool,
        bold: bool,
    },
    Erase {
        sector: u16,
        count: u8,
        flags: u8,
        discard: bool,
        bold: bool,
    },
    Flush,
    /// The operation in flight with this number ends.
    Complete(u8),
    SyncMetadata,
    Close,
    Crash,
    /// What the guest may rely on is checked in some of the states that a power cut leaves.
    Cut,
    Fail {
        errno: u8,
        target: u8,
    },
    Short(u8),
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// Bits of the blocks of each image, leaf first; none is a new image.
    levels: Vec<Vec<u64>>,
    block_size: u8,
    small_cache: bool,
    moves: Vec<Move>,
}

fn within(sector: u16, count: u32) -> (u64, u32) {
    let sector = u64::from(sector) % SECTORS;
    (sector, count.clamp(1, (SECTORS - sector) as u32))
}

fuzz_target!(|input: Input| {
    let block_size = 4096 << (input.block_size % 3);
    let blocks = (SECTORS as usize * 512).div_ceil(block_size as usize);
    let mut levels = input.levels;
    levels.truncate(3);
    levels.iter_mut().for_each(|bits| bits.truncate(blocks));
    let disk = match levels.is_empty() {
        true => Disk::Empty { block_size },
        false => Disk::Partial { levels, block_size },
    };
    let (files, content) = disk.build();
    let mut explorer = Explorer::new(1);
    let cache = if input.small_cache { 0 } else { 1 << 20 };
    let mut guest = Guest::new(&mut explorer, files, &content, cache);
    guest.quiet = true;
    let mut cuts = 0;
    for step in input.moves {
        match step {
            Move::Write {
                sector,
                count,
                fua,
                bold,
            } => {
                let (sector, count) = within(sector, u32::from(count) % 12);
                guest.step(&Step::Write {
                    sector,
                    count,
                    fua,
                    bold,
                });
            }
            Move::Erase {
                sector,
                count,
                flags,
                discard,
                bold,
            } => {
                let (sector, count) = within(sector, u32::from(count));
                let flags = flags & (FLAG_FUA | FLAG_NO_HOLE);
                guest.step(&Step::Erase {
                    sector,
                    count,
                    flags,
                    discard,
                    bold,
                });
            }
            Move::Flush => guest.step(&Step::Flush),
            Move::Complete(index) => {
                let in_flight = guest.host.in_flight.len();
                if in_flight > 0 {
                    guest.complete(usize::from(index) % in_flight);
                }
            }
            Move::SyncMetadata => guest.step(&Step::SyncMetadata),
            Move::Close => guest.step(&Step::Close),
            Move::Crash => guest.step(&Step::Crash),
            Move::Cut if cuts < 4 => {
                cuts += 1;
                guest.cut();
            }
            Move::Cut => {}
            Move::Fail { errno, target } => guest.step(&Step::Fail {
                errno: [5, 28][usize::from(errno) % 2],
                target: [Target::Any, Target::Sync, Target::Metadata][usize::from(target) % 3],
            }),
            Move::Short(sectors) => guest.step(&Step::Short(u32::from(sectors) % 4 + 1)),
        }
    }
    guest.step(&Step::Close);
});
