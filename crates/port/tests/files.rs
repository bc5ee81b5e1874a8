//! Every file operation on both back ends, against plain bytes.

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use common::{
    DIRECT, Host, Memory, READ_WRITE, Random, STAGING, TempFile, on_both, op, read, write,
};
use port::event_fd;
use port::file::OpenOptions;
use port::reactor::{BackendKind, Turn};
use vhd::record::{Op, OpKind};

on_both! {
    staging_round_trip
    reads_end_at_the_end
    errors_are_results
    bad_records_are_refused
    more_operations_than_entries
    zeros_holes_and_sizes
    copies
    copies_holes_as_holes
    maps_data
    agrees_with_a_model_buffered
    agrees_with_a_model_direct
    wakes_from_another_thread
    waits_as_long_as_told
    closes_with_operations_in_flight
    zeroes_memory
    copies_from_staging
    holes_are_found
    zeros_are_made_fast_or_not_at_all
}

fn staging_round_trip(backend: BackendKind) {
    let file = TempFile::new();
    let mut host = Host::new(backend);
    let number = host.open(file.path(), READ_WRITE);
    host.staging(100, 5).copy_from_slice(b"hello");
    assert_eq!(host.run_one(write(number, 3, 5, 0, 100)), 5);
    assert_eq!(file.bytes(), b"\0\0\0hello");
    assert_eq!(host.run_one(read(number, 0, 8, 0, 5000)), 8);
    assert_eq!(host.staging(5000, 8), b"\0\0\0hello");
}

fn reads_end_at_the_end(backend: BackendKind) {
    let file = TempFile::with(&[7; 5000]);
    for options in [READ_WRITE, DIRECT] {
        let mut host = Host::new(backend);
        let number = host.open(file.path(), options);
        let results = host.run(&[
            read(number, 0, 8192, 0, 0),
            read(number, 4096, 8192, 0, 8192),
            read(number, 8192, 4096, 0, 16384),
            read(number, 4999, 10, 0, 20480),
            read(number, 1 << 40, 10, 0, 20480),
            read(number, 0, 0, 0, 0),
        ]);
        assert_eq!(results, [5000, 904, 0, 1, 0, 0]);
        assert_eq!(host.staging(0, 8192)[4999..5001], [7, 0]);
        assert_eq!(host.staging(20480, 2), [7, 0]);
    }
}

fn errors_are_results(backend: BackendKind) {
    let file = TempFile::with(&[1; 4096]);
    let mut host = Host::new(backend);
    let number = host.open(file.path(), OpenOptions::default());
    let results = host.run(&[
        write(number, 0, 512, 0, 0),
        op(OpKind::Truncate, number, 0, 0),
        op(OpKind::PunchHole, number, 0, 512),
        read(number, 0, 512, 0, 0),
    ]);
    assert_eq!(results[0], -libc::EBADF);
    assert!(results[1] < 0);
    assert_eq!(results[2], -libc::EBADF);
    assert_eq!(results[3], 512);
    assert_eq!(file.bytes(), [1; 4096]);
}

fn copy_to(region: u32, buffer: u32, source_offset: u64, length: u64) -> Op {
    Op {
        region,
        buffer,
        source_offset,
        ..op(OpKind::CopyToBuffer, 999, 0, length)
    }
}

fn bad_records_are_refused(backend: BackendKind) {
    let file = TempFile::with(&[1; 4096]);
    let mut host = Host::new(backend);
    let mut memory = Memory::new(2);
    let region = memory.add_to(&mut host);
    let number = host.open(file.path(), READ_WRITE);
    let most = i64::MAX.cast_unsigned();
    let cases = [
        (read(number, 0, 8192, region, 1), -libc::EFAULT),
        (read(number, 0, 1, region, 8192), -libc::EFAULT),
        (read(number, 0, 1, region, u32::MAX), -libc::EFAULT),
        (read(number, 0, 1, region + 1, 0), -libc::EFAULT),
        (read(number, 0, 1, u32::MAX, 0), -libc::EFAULT),
        (read(number, 0, 2, 0, STAGING - 1), -libc::EFAULT),
        (write(number, 0, 2, 0, STAGING - 1), -libc::EFAULT),
        (write(number, 0, 1, 0, u32::MAX), -libc::EFAULT),
        (read(number, 0, u64::MAX, region, 0), -libc::EINVAL),
        (read(number, most, 1, region, 0), -libc::EINVAL),
        (read(number, u64::MAX, 1, region, 0), -libc::EINVAL),
        (
            op(OpKind::PunchHole, number, u64::MAX, u64::MAX),
            -libc::EINVAL,
        ),
        (op(OpKind::Truncate, number, u64::MAX, 0), -libc::EINVAL),
        (read(number + 1, 0, 1, region, 0), -libc::EBADF),
        (read(u16::MAX, 0, 1, region, 0), -libc::EBADF),
        (
            Op {
                source_file: 77,
                ..op(OpKind::CopyRange, number, 0, 1)
            },
            -libc::EBADF,
        ),
        (op(OpKind::CopyRange, number, 0, 1 << 31), -libc::EINVAL),
        (
            Op {
                source_offset: 100,
                source_file: number,
                ..op(OpKind::CopyRange, number, 0, 101)
            },
            -libc::EINVAL,
        ),
        (
            Op {
                region,
                buffer: 8191,
                ..op(OpKind::ZeroBuffer, 0, 0, 2)
            },
            -libc::EFAULT,
        ),
        (
            Op {
                buffer: STAGING,
                ..op(OpKind::ZeroBuffer, 0, 0, 1)
            },
            -libc::EFAULT,
        ),
        (copy_to(region, 8191, 0, 2), -libc::EFAULT),
        (copy_to(region, 0, u64::from(STAGING) - 1, 2), -libc::EFAULT),
        (copy_to(region, 0, 1 << 32, 1), -libc::EFAULT),
        (copy_to(region + 1, 0, 0, 1), -libc::EFAULT),
        (copy_to(0, 0, 0, 1), -libc::EFAULT),
        (op(OpKind::SeekHole, number, most, 1), -libc::EINVAL),
        (op(OpKind::SeekHole, number, 0, 1 << 31), -libc::EINVAL),
        (op(OpKind::SeekHole, number + 1, 0, 512), -libc::EBADF),
    ];
    for (op, expected) in cases {
        assert_eq!(host.run_one(op), expected, "{op:?}");
    }
    // An unknown kind.
    host.put_words(
        host.layout.operations,
        0,
        &[9, 200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let turn = host.reactor.turn(&mut host.memory, 1, 0, None).unwrap();
    assert_eq!(host.completions(turn)[0].result, -libc::EINVAL);
    assert!(host.reactor.turn(&mut host.memory, 5000, 0, None).is_err());
    assert!(host.reactor.turn(&mut [0; 100], 0, 0, None).is_err());
    assert_eq!(file.bytes(), [1; 4096]);
    drop(host);
}

fn more_operations_than_entries(backend: BackendKind) {
    let file = TempFile::new();
    let mut host = Host::new(backend);
    let number = host.open(file.path(), READ_WRITE);
    let count = 2000u32;
    for index in 0..count {
        host.staging(index * 512, 512).fill(index as u8);
    }
    let ops: Vec<Op> = (0..count)
        .map(|i| write(number, u64::from(i) * 512, 512, 0, i * 512))
        .collect();
    assert_eq!(host.run(&ops), vec![512; count as usize]);
    host.staging(0, STAGING as usize).fill(0);
    let ops: Vec<Op> = (0..count)
        .map(|i| read(number, u64::from(i) * 512, 512, 0, i * 512))
        .collect();
    assert_eq!(host.run(&ops), vec![512; count as usize]);
    for index in 0..count {
        assert_eq!(host.staging(index * 512, 512), [index as u8; 512]);
    }
    assert_eq!(host.run(&[op(OpKind::Sync, number, 0, 0)]), [0]);
}

fn zeros_holes_and_sizes(backend: BackendKind) {
    for folder in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
        for options in [READ_WRITE, DIRECT] {
            let path = format!(
                "{folder}/port-zeros-{}-{backend:?}-{}",
                std::process::id(),
                options.direct
            );
            let mut model = vec![3u8; 3 << 20];
            std::fs::write(&path, &model).unwrap();
            let mut host = Host::new(backend);
            let number = host.open(&path, options);
            for (kind, offset, length) in [
                (OpKind::WriteZeroes, 100, 5000),
                (OpKind::WriteZeroes, 8192, 2 << 20),
                (OpKind::PunchHole, 512, 512),
                (OpKind::PunchHole, (2 << 20) + 4096, 65536),
                (OpKind::PunchHole, (3 << 20) - 100, 100_000),
                (OpKind::WriteZeroes, (3 << 20) - 100, 4196),
            ] {
                assert_eq!(
                    host.run_one(op(kind, number, offset, length)),
                    0,
                    "{kind:?} {offset} {length} {path}"
                );
                let end = (offset + length) as usize;
                if kind == OpKind::WriteZeroes && end > model.len() {
                    model.resize(end, 0);
                }
                let end = end.min(model.len());
                model[offset as usize..end].fill(0);
                assert!(
                    std::fs::read(&path).unwrap() == model,
                    "{kind:?} {offset} {length} {path}"
                );
            }
            for size in [100, 1 << 20] {
                assert_eq!(host.run_one(op(OpKind::Truncate, number, size, 0)), 0);
                assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
            }
            assert_eq!(
                host.run(&[
                    op(OpKind::Sync, number, 0, 0),
                    op(OpKind::PunchHole, number, 0, 0)
                ]),
                [0, 0]
            );
            std::fs::remove_file(&path).unwrap();
        }
    }
}

fn copies(backend: BackendKind) {
    let mut bytes = vec![0; 3 << 20];
    Random(5).fill(&mut bytes);
    let source = TempFile::with(&bytes);
    let shm = format!("/dev/shm/port-copy-{}-{backend:?}", std::process::id());
    let target = TempFile::new();
    for path in [target.path(), &shm] {
        let mut host = Host::new(backend);
        let from = host.open(source.path(), OpenOptions::default());
        let to = host.open(path, READ_WRITE);
        let copy = |offset, source_offset, length| Op {
            source_file: from,
            source_offset,
            ..op(OpKind::CopyRange, to, offset, length)
        };
        assert_eq!(host.run_one(copy(7, 100, 2_500_000)), 2_500_000);
        assert_eq!(host.run_one(copy(0, (3 << 20) - 10, 100)), 10);
        let copied = std::fs::read(path).unwrap();
        assert!(copied[10..] == bytes[103..2_500_100]);
        assert!(copied[..10] == bytes[(3 << 20) - 10..]);
    }
    std::fs::remove_file(shm).unwrap();
}

fn copies_holes_as_holes(backend: BackendKind) {
    const MIB: u64 = 1 << 20;
    let mut data = vec![0; 100_000];
    Random(6).fill(&mut data);
    // Data, a large hole, data, a small hole, data, and a hole up to the end.
    let source = TempFile::new();
    let file = std::fs::File::create(source.path()).unwrap();
    file.set_len(8 * MIB).unwrap();
    for at in [1000, 3 * MIB, 3 * MIB + 120_000] {
        file.write_all_at(&data, at).unwrap();
    }
    file.sync_all().unwrap();
    let old = vec![0xab; 9 << 20];
    let target = TempFile::with(&old);
    let blocks = |path: &str| std::fs::metadata(path).unwrap().blocks();
    let full = blocks(target.path());
    let mut host = Host::new(backend);
    let from = host.open(source.path(), OpenOptions::default());
    let to = host.open(target.path(), READ_WRITE);
    let copy = |offset, source_offset, length| Op {
        source_file: from,
        source_offset,
        ..op(OpKind::CopyRange, to, offset, length)
    };
    let all = 8 * MIB - 100;
    assert_eq!(host.run_one(copy(5000, 100, all)), all as i32);
    let expected = std::fs::read(source.path()).unwrap();
    let copied = std::fs::read(target.path()).unwrap();
    assert!(copied[5000..][..all as usize] == expected[100..]);
    assert!(
        copied[..5000] == old[..5000]
            && copied[5000 + all as usize..] == old[5000 + all as usize..]
    );
    assert!(blocks(target.path()) < full - 6 * MIB / 512);
    // What is behind the source's end is no hole, and a target that must grow does.
    assert_eq!(host.run_one(copy(0, 8 * MIB - 10, 100)), 10);
    assert_eq!(host.run_one(copy(20 * MIB, 4 * MIB, 4 * MIB)), 4 << 20);
    assert_eq!(std::fs::metadata(target.path()).unwrap().len(), 24 * MIB);
}

fn maps_data(backend: BackendKind) {
    let mut bytes = vec![0; 20_000];
    for at in [511, 512, 3 * 512 + 7, 19_999] {
        bytes[at] = 1;
    }
    let file = TempFile::with(&bytes);
    for options in [READ_WRITE, DIRECT] {
        let mut host = Host::new(backend);
        let number = host.open(file.path(), options);
        let map = |offset, length| op(OpKind::DataMap, number, offset, length);
        host.staging(0, 512).fill(0xff);
        assert_eq!(host.run_one(map(0, 2 << 20)), 20_000);
        let mut expected = vec![0; 512];
        expected[0] = 0b1101_0000;
        expected[39 / 8] = 1;
        assert_eq!(host.staging(0, 512), expected);
        // What is behind the end has no data.
        host.staging(0, 2).fill(0xff);
        assert_eq!(host.run_one(map(1 << 30, 8192)), 0);
        assert_eq!(host.staging(0, 2), [0, 0]);
        assert_eq!(host.run_one(map(0, (2 << 20) + 1)), -libc::EINVAL);
        let outside = Op {
            buffer: STAGING - 511,
            ..map(0, 2 << 20)
        };
        assert_eq!(host.run_one(outside), -libc::EFAULT);
    }
}

fn agrees_with_a_model_buffered(backend: BackendKind) {
    agrees_with_a_model(backend, READ_WRITE, 11);
}

fn agrees_with_a_model_direct(backend: BackendKind) {
    agrees_with_a_model(backend, DIRECT, 12);
}

/// Batches of operations on disjoint places, in which aligned and unaligned ones touch the same pages.
fn agrees_with_a_model(backend: BackendKind, options: OpenOptions, seed: u64) {
    const SIZE: usize = 1 << 20;
    let mut random = Random(seed);
    let file = TempFile::with(&vec![0; SIZE]);
    let mut host = Host::new(backend);
    let mut memory = Memory::new(SIZE / 4096 + 1);
    let region = memory.add_to(&mut host);
    let number = host.open(file.path(), options);
    let mut model = vec![0; SIZE];
    for _ in 0..150 {
        random.fill(memory.get());
        random.fill(host.staging(0, SIZE));
        let mut ops = Vec::new();
        let mut expected = Vec::new();
        let mut at = 0u64;
        let shift = if random.below(2) == 0 {
            0
        } else {
            random.below(600)
        };
        loop {
            at += [0, 512, 1000, 40_000][random.below(4) as usize];
            let length = match random.below(4) {
                0 => 512 * (1 + random.below(8)),
                1 => 4096 * (1 + random.below(8)),
                _ => 1 + random.below(9000),
            };
            if at + length > SIZE as u64 {
                break;
            }
            let range = at as usize..(at + length) as usize;
            let from = at as u32 + shift as u32;
            let staged = random.below(3) == 0;
            let region = if staged { 0 } else { region };
            let kind = match random.below(8) {
                0 => OpKind::WriteZeroes,
                1 => OpKind::PunchHole,
                2..5 => OpKind::Read,
                _ => OpKind::Write,
            };
            // Staging has no room for the shift.
            let from = if staged { at as u32 } else { from };
            ops.push(Op {
                region,
                buffer: from,
                ..op(kind, number, at, length)
            });
            let data = from as usize..from as usize + length as usize;
            match kind {
                OpKind::Write if staged => {
                    model[range].copy_from_slice(host.staging(at as u32, length as usize))
                }
                OpKind::Write => model[range].copy_from_slice(&memory.get()[data]),
                OpKind::Read => expected.push((staged, data, range)),
                _ => model[range].fill(0),
            }
            at += length;
        }
        for (op, result) in ops.iter().zip(host.run(&ops)) {
            let transfers = matches!(op.kind, OpKind::Read | OpKind::Write);
            assert_eq!(
                result,
                if transfers { op.length as i32 } else { 0 },
                "{op:?}"
            );
        }
        for (staged, data, range) in expected {
            let got = if staged {
                host.staging(data.start as u32, data.len())
            } else {
                &mut memory.get()[data]
            };
            assert!(*got == model[range]);
        }
    }
    assert!(file.bytes() == model);
    drop(host);
}

fn wakes_from_another_thread(backend: BackendKind) {
    let mut host = Host::new(backend);
    let fd = host.reactor.wake_fd();
    for _ in 0..3 {
        let start = Instant::now();
        let waker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(event_fd::add(fd), 8);
        });
        assert_eq!(
            host.turn(&[], &[], None),
            Turn {
                woken: true,
                ..Turn::default()
            }
        );
        assert!(start.elapsed() >= Duration::from_millis(25));
        waker.join().unwrap();
    }
    // Before the turn, and more than once.
    event_fd::add(fd);
    event_fd::add(fd);
    assert!(host.turn(&[], &[], None).woken);
    assert_eq!(
        host.turn(&[], &[], Some(Duration::from_millis(20))),
        Turn::default()
    );
}

fn waits_as_long_as_told(backend: BackendKind) {
    let mut host = Host::new(backend);
    for (millis, most) in [(0, 50), (40, 400)] {
        let start = Instant::now();
        assert_eq!(
            host.turn(&[], &[], Some(Duration::from_millis(millis))),
            Turn::default()
        );
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(millis) && took < Duration::from_millis(most),
            "{took:?}"
        );
    }
}

fn closes_with_operations_in_flight(backend: BackendKind) {
    let file = TempFile::new();
    let mut host = Host::new(backend);
    let number = host.open(file.path(), DIRECT);
    host.staging(0, 1 << 20).fill(9);
    let ops: Vec<Op> = (0..64)
        .map(|i| write(number, i << 16, 1 << 16, 0, 0))
        .collect();
    host.turn(&ops, &[], Some(Duration::ZERO));
    host.reactor.close_file(number.into()).unwrap();
    assert_eq!(
        host.reactor.close_file(number.into()).unwrap_err().errno(),
        libc::EBADF
    );
    drop(host);
    assert!(file.bytes() == vec![9; 4 << 20]);
}

fn zeroes_memory(backend: BackendKind) {
    let mut host = Host::new(backend);
    let mut memory = Memory::new(1);
    memory.get().fill(1);
    host.staging(0, 100).fill(1);
    let region = memory.add_to(&mut host);
    let zero = |region, buffer, length| Op {
        region,
        buffer,
        ..op(OpKind::ZeroBuffer, 999, 0, length)
    };
    assert_eq!(host.run(&[zero(region, 10, 20), zero(0, 50, 50)]), [0, 0]);
    assert_eq!(
        (
            memory.get()[9],
            memory.get()[10],
            memory.get()[29],
            memory.get()[30]
        ),
        (1, 0, 0, 1)
    );
    assert_eq!((host.staging(49, 2)[0], host.staging(49, 2)[1]), (1, 0));
    drop(host);
}

fn copies_from_staging(backend: BackendKind) {
    let mut host = Host::new(backend);
    let mut memory = Memory::new(1);
    memory.get().fill(1);
    host.staging(50, 7).copy_from_slice(b"extents");
    let region = memory.add_to(&mut host);
    assert_eq!(
        host.run(&[copy_to(region, 10, 50, 7), copy_to(region, 0, 50, 0)]),
        [0, 0]
    );
    assert_eq!(&memory.get()[9..18], b"\x01extents\x01");
    drop(host);
}

fn holes_are_found(backend: BackendKind) {
    const MIB: u64 = 1 << 20;
    let hole = |bytes: u64| (bytes / 512 * 2 + 1) as i32;
    let data = |bytes: u64| (bytes / 512 * 2) as i32;
    for options in [READ_WRITE, DIRECT] {
        let file = TempFile::new();
        let mut host = Host::new(backend);
        let mut memory = Memory::new(16);
        let region = memory.add_to(&mut host);
        let number = host.open(file.path(), options);
        // Holes, 64 KiB of data at 1 MiB, and at the end a part of a sector.
        assert_eq!(
            host.run(&[
                op(OpKind::Truncate, number, 4 * MIB + 100, 0),
                write(number, MIB, 65536, region, 0),
                write(number, 4 * MIB, 100, region, 0),
            ]),
            [0, 65536, 100]
        );
        for (offset, length, expected) in [
            (0, 4 * MIB, hole(MIB)),
            (0, 512, hole(512)),
            (MIB - 512, MIB, hole(512)),
            (MIB, MIB, data(65536)),
            (MIB + 512, 1024, data(1024)),
            (MIB + 65536, MIB, hole(MIB)),
            (4 * MIB, 512, data(512)),
            (8 * MIB, 512, hole(512)),
        ] {
            let found = host.run_one(op(OpKind::SeekHole, number, offset, length));
            assert_eq!(found, expected, "{length} bytes at {offset}");
        }
        drop(host);
    }
    // This file system has no holes and knows none.
    let mut host = Host::new(backend);
    let number = host.open("/proc/self/status", OpenOptions::default());
    let found = host.run_one(op(OpKind::SeekHole, number, 512, MIB));
    assert_eq!(found, data(MIB));
}

fn zeros_are_made_fast_or_not_at_all(backend: BackendKind) {
    let fast = |kind, number| Op {
        fast: true,
        ..op(kind, number, 4096, 8192)
    };
    let [disk, memory] = [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"].map(|folder| {
        let path = format!("{folder}/port-fast-{}-{backend:?}", std::process::id());
        std::fs::write(&path, [1; 16384]).unwrap();
        path
    });
    let mut zeroed = [1; 16384];
    zeroed[4096..12288].fill(0);
    let mut host = Host::new(backend);
    let [on_disk, in_memory] = [&disk, &memory].map(|path| host.open(path, READ_WRITE));
    // tmpfs makes holes, but no zeros in place.
    assert_eq!(
        host.run_one(fast(OpKind::WriteZeroes, in_memory)),
        -libc::EOPNOTSUPP
    );
    assert!(std::fs::read(&memory).unwrap() == [1; 16384]);
    assert_eq!(host.run_one(fast(OpKind::PunchHole, in_memory)), 0);
    assert!(std::fs::read(&memory).unwrap() == zeroed);
    assert_eq!(host.run_one(fast(OpKind::WriteZeroes, on_disk)), 0);
    assert!(std::fs::read(&disk).unwrap() == zeroed);
    std::fs::remove_file(disk).unwrap();
    std::fs::remove_file(memory).unwrap();
}
