//! The largest disks: opening reads what it needs and no more, memory is that of the BAT, and where no sector number is
//! left, writes fail and the image stays good.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use support::Host;
use support::images::{self, Parent, Spec, uuid};
use support::sparse::SparseFile;
use vhd::format::bat;
use vhd::format::batmap::{self, Batmap};
use vhd::format::footer::{DiskType, Footer};
use vhd::format::header::Header;
use vhd::format::locator::ParentLocator;
use vhd::record::{FLAG_NO_HOLE, RequestKind, TdRequest};
use vhd::{Driver, Engine, MAX_DYNAMIC_SIZE};

thread_local! {
    /// Bytes that this thread has allocated and not freed, and the most that it had.
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

fn change(more: usize, less: usize) {
    // Nothing is counted any more when the thread ends.
    let _ = LIVE.try_with(|live| {
        live.set((live.get() + more).saturating_sub(less));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: everything is left to the system's allocator; the counters take no memory of their own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        change(layout.size(), 0);
        // SAFETY: the caller keeps to the rules of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        change(0, layout.size());
        // SAFETY: as above; the memory came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BLOCK: u32 = 2 << 20;
const ENOSPC: i32 = -28;
/// Sectors from one block to the next, with data aligned.
const STRIDE: u64 = 4104;

/// A dynamic image of 2040 GiB in which all blocks but those in `absent` are allocated, as close as they can be.
fn largest(absent: &[u32]) -> SparseFile {
    let count = (MAX_DYNAMIC_SIZE / u64::from(BLOCK)) as u32;
    assert!(count > 1_000_000);
    let mut footer = Footer::new(DiskType::Dynamic, MAX_DYNAMIC_SIZE, uuid(0), 7);
    footer.promise_batmap();
    let mut file = SparseFile::default();
    file.put(0, &footer.encode());
    file.put(1, &Header::new(1536, count, BLOCK).encode());
    let at = batmap::header_offset(1536, count);
    let map = vec![0; batmap::map_bytes(MAX_DYNAMIC_SIZE, BLOCK) as usize];
    file.put(
        at / 512,
        &Batmap::new(at + 512, (map.len() / 512) as u32).encode(),
    );
    file.put(at / 512 + 1, &map);
    let first = (at / 512 + 1 + map.len() as u64 / 512 + 1).next_multiple_of(8) - 1;
    let mut place = first;
    let table: Vec<u32> = (0..count)
        .map(|block| {
            if absent.contains(&block) {
                return bat::UNUSED;
            }
            place += STRIDE;
            u32::try_from(place - STRIDE).expect("all blocks have room")
        })
        .collect();
    file.put(3, &bat::encode(&table));
    // Behind the last block, which ends where its data end.
    file.put(place - STRIDE + 4097, &footer.encode());
    file
}

#[test]
fn the_largest_disk_takes_memory_and_reads_for_its_table_alone() {
    let mut file = largest(&[7]);
    let mut engine = Engine::new(1 << 20);
    let before = LIVE.get();
    PEAK.set(before);
    let info = file.open(&mut engine, false).expect("the image opens");
    let (live, peak) = (LIVE.get() - before, PEAK.get() - before);
    let blocks = 1_044_480;
    assert_eq!(
        (info.sectors, info.allocated_blocks),
        (2040 << 21, blocks as u32 - 1)
    );
    assert_eq!(info.warnings, Vec::<String>::new());
    // Two footers, the header, the batmap's header, the table and the map.
    assert_eq!(file.read, 512 + 512 + 1024 + 512 + 4 * blocks + 130_560);
    assert!(file.operations < 100, "{} operations", file.operations);
    // The table, two bits a block, and what does not depend on it.
    assert!(
        live < 4 * blocks as usize + blocks as usize / 4 + (64 << 10),
        "{live} bytes"
    );
    // Twice the table while it is checked.
    assert!(peak < 8 * blocks as usize + (1 << 20), "{peak} bytes");

    for sector in [0, 7 * 4096, (2040 << 21) - 8] {
        for kind in [RequestKind::Write, RequestKind::Read] {
            assert_eq!(file.request(&mut engine, kind, sector, 8), 0);
        }
    }
    assert_eq!(file.request(&mut engine, RequestKind::Flush, 0, 0), 0);
    assert!(LIVE.get() - before < 4 * blocks as usize + blocks as usize / 4 + (128 << 10));
    file.close(&mut engine);
    let info = file.open(&mut engine, true).expect("the image opens again");
    assert_eq!(
        (info.allocated_blocks, info.warnings),
        (blocks as u32, Vec::new())
    );
}

/// What a guest does that zeroes or discards a disk at once, of 255 GiB here. Each block waits for its bitmap, and nearly all
/// for memory to load it. With a look at all of them whenever one bitmap is there, this takes minutes.
#[test]
fn requests_for_all_of_a_large_disk_at_once_end() {
    let mut file = largest(&[]);
    let mut engine = Engine::new(1 << 20);
    file.open(&mut engine, false).expect("the image opens");
    let before = file.operations;
    let sectors = 1 << 21;
    let requests = 255;
    for index in 0..requests {
        engine.submit(&TdRequest {
            tag: index as u32,
            kind: RequestKind::WriteZeroes as u8,
            flags: FLAG_NO_HOLE,
            sector: index * u64::from(sectors),
            sectors,
            region: support::GUEST,
            buffer: 0,
        });
    }
    let finished = file.drive(&mut engine);
    assert_eq!(finished.len() as u64, requests);
    assert!(finished.iter().all(|finished| finished.status == 0));
    // A bitmap each: what is clear in it reads as zeros already.
    let blocks = requests * u64::from(sectors) / u64::from(BLOCK / 512);
    assert_eq!(file.operations - before, blocks);
}

#[test]
fn writes_fail_when_no_sector_number_is_left_and_the_image_stays_good() {
    let (block_size, count) = (4096_u32, 64_u32);
    let footer = Footer::new(DiskType::Dynamic, u64::from(block_size * count), uuid(0), 7).encode();
    // The first block is so far behind that only a few others have room.
    let high = 0xffff_ffff_u64 - 16 * 8;
    let mut table = vec![bat::UNUSED; count as usize];
    table[0] = high as u32;
    let mut header = Header::new(1536, count, block_size);
    // So that there is no room between the table and that block.
    header.locators[0] = ParentLocator {
        platform: *b"W2ru",
        data_space: 512,
        data_length: 2,
        data_offset: (high - 1) * 512,
    };
    let mut file = SparseFile::default();
    file.put(0, &footer);
    file.put(1, &header.encode());
    file.put(3, &bat::encode(&table));
    file.put(high, &[0xff; 512]);
    file.put(high + 9, &footer);
    let mut engine = Engine::new(1 << 20);
    file.open(&mut engine, false).expect("the image opens");
    let mut write = |file: &mut SparseFile, block: u32| {
        file.request(&mut engine, RequestKind::Write, u64::from(block) * 8, 8)
    };
    let statuses: Vec<i32> = (1..count).map(|block| write(&mut file, block)).collect();
    let good = statuses.iter().take_while(|status| **status == 0).count();
    assert!((1..10).contains(&good), "{good} blocks had room");
    assert!(statuses[good..].iter().all(|status| *status == ENOSPC));
    // What is there is written as before; what comes back is used again.
    assert_eq!(write(&mut file, 1), 0);
    for kind in [RequestKind::Discard, RequestKind::Flush] {
        let sectors = if kind == RequestKind::Flush { 0 } else { 8 };
        assert_eq!(file.request(&mut engine, kind, 8, sectors), 0);
    }
    let mut write = |file: &mut SparseFile, block: u32| {
        file.request(&mut engine, RequestKind::Write, u64::from(block) * 8, 8)
    };
    assert_eq!(write(&mut file, count - 1), 0);
    assert_eq!(write(&mut file, 1), ENOSPC);
    file.close(&mut engine);
    let info = file
        .open(&mut engine, false)
        .expect("the image opens again");
    assert_eq!(info.allocated_blocks, good as u32 + 1);
    assert_eq!(info.warnings, Vec::<String>::new());
}

#[test]
fn what_is_remembered_of_a_chain_takes_no_more_memory_than_it_may() {
    const LIMIT: usize = 64 << 10;
    let block_size = 4096;
    let blocks: Vec<(u32, u64)> = (0..8192).map(|block| (block, 0b11)).collect();
    let image = |index: usize| {
        let spec = Spec {
            uuid: uuid(index),
            size: 8192 * u64::from(block_size),
            block_size,
            parent: (index == 0).then(|| Parent::named(1)),
            blocks: if index == 0 { &[] } else { &blocks },
            fill: |_| 1,
        };
        images::build(&spec, &mut [])
    };
    let mut host = Host::with_cache(vec![image(0), image(1)], 64 << 10, LIMIT);
    host.open(Driver::Vhd, true).expect("the chain opens");
    let mut read = |blocks: std::ops::Range<u64>| {
        for block in blocks {
            assert_eq!(host.request(RequestKind::Read, block * 8, 8, 0), 0);
        }
    };
    let opened = LIVE.get();
    read(0..1024);
    // With the room that queues and the index of the cache keep.
    let first = LIVE.get() - opened;
    assert!(first < 2 * LIMIT, "{first} bytes");
    read(1024..8192);
    let more = (LIVE.get() - opened).saturating_sub(first);
    assert!(more < 1024, "{more} bytes more");
}
