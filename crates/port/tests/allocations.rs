//! Once it has warmed up, a turn allocates nothing.
//!
//! Only the first use of one more thread of the pool does, which may come late.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::{DIRECT, Host, Memory, READ_WRITE, TempFile, on_both, read, write};
use port::nbd::NbdOptions;
use port::reactor::BackendKind;
use vhd::record::{Op, Response};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WARM: u32 = 200;
const ROUNDS: u32 = WARM + 500;

/// Far less than one a turn.
const MOST: u64 = 100;

on_both! { files_take_none connections_take_none }

/// Allocations of turns only: what the test itself needs isn't counted.
fn turn(host: &mut Host, operations: u32, responses: u32) -> (u32, u32, u64) {
    let before = ALLOCATIONS.get();
    let turn = host
        .reactor
        .turn(&mut host.memory, operations, responses, None)
        .unwrap();
    (turn.completions, turn.requests, ALLOCATIONS.get() - before)
}

fn files_take_none(backend: BackendKind) {
    let file = TempFile::with(&vec![1; 1 << 20]);
    for options in [READ_WRITE, DIRECT] {
        let mut host = Host::new(backend);
        let mut memory = Memory::new(64);
        let region = memory.add_to(&mut host);
        let number = host.open(file.path(), options);
        let mut allocations = 0;
        for round in 0..ROUNDS {
            for index in 0..48u32 {
                // Neighbours by four, which share calls.
                let at = u64::from(index / 4) * 65536 + u64::from(index % 4) * 4096;
                // Every third through staging, and some that aren't aligned.
                let region = if index % 3 == 0 { 0 } else { region };
                let length = if index % 7 == 0 && round % 2 == 0 {
                    4000
                } else {
                    4096
                };
                let make = if index / 4 % 2 == 0 { read } else { write };
                let op = Op {
                    id: index,
                    ..make(number, at, length, region, index * 4096)
                };
                host.put_words(host.layout.operations, index as usize, &op.encode());
            }
            let mut submitted = 48;
            let mut missing = 48;
            while missing > 0 {
                let (completions, _, count) = turn(&mut host, submitted, 0);
                missing -= completions;
                submitted = 0;
                if round >= WARM {
                    allocations += count;
                }
            }
        }
        assert!(allocations < MOST, "{allocations}");
        drop(host);
    }
}

fn connections_take_none(backend: BackendKind) {
    let mut host = Host::new(backend);
    let (ours, theirs) = UnixStream::pair().unwrap();
    host.reactor
        .attach_nbd(ours.into(), &[], NbdOptions::default())
        .unwrap();
    let mut allocations = 0;
    for round in 0..ROUNDS {
        for cookie in 0..20u64 {
            let mut request = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0];
            request.extend(cookie.to_be_bytes());
            request.extend((cookie * 4096).to_be_bytes());
            request.extend(4096u32.to_be_bytes());
            (&theirs).write_all(&request).unwrap();
        }
        let (mut missing, mut responses) = (20, 0);
        while missing > 0 {
            let (_, requests, count) = turn(&mut host, 0, responses);
            missing -= requests;
            responses = requests;
            for index in 0..requests as usize {
                let words = host.words(host.layout.requests, index, 32);
                let response = Response {
                    front_end: words[0],
                    slot: words[1],
                    status: 0,
                    payload: 0,
                };
                host.put_words(
                    host.layout.responses,
                    index,
                    &[response.front_end, response.slot, 0, 0],
                );
            }
            if round >= WARM {
                allocations += count;
            }
        }
        let before = ALLOCATIONS.get();
        host.reactor
            .turn(
                &mut host.memory,
                0,
                responses,
                Some(std::time::Duration::ZERO),
            )
            .unwrap();
        if round >= WARM {
            allocations += ALLOCATIONS.get() - before;
        }
        let mut replies = vec![0; 20 * (16 + 4096)];
        (&theirs).read_exact(&mut replies).unwrap();
    }
    assert_eq!(allocations, 0);
}
