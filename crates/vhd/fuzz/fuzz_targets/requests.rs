//! Any requests in any completion order with any failures: the engine ends them all, and its content is right where
//! nothing failed.
#![no_main]

mod limit;
#[path = "../../tests/support/mod.rs"]
mod support;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use support::Host;
use support::images::{self, Spec, uuid};
use vhd::Driver;
use vhd::record::{OpKind, TdRequest, max_status_extents};

const SECTORS: u64 = 256;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Anything at all, as a hostile host might say it.
    Any {
        kind: u8,
        flags: u8,
        sector: u64,
        sectors: u32,
        buffer: u32,
    },
    /// Something that can be.
    Fitting {
        kind: u8,
        flags: u8,
        sector: u8,
        sectors: u8,
    },
    Complete(u8),
    /// The next operation fails.
    Fail(u8),
    SyncMetadata,
    /// A completion that nobody waits for.
    Stray(u32, i32),
    Reopen,
}

#[derive(Arbitrary, Debug)]
struct Input {
    blocks: Vec<(u8, u64)>,
    steps: Vec<Step>,
}

fuzz_target!(|input: Input| {
    let mut seen = Vec::new();
    let mut blocks = Vec::new();
    for (block, bits) in input.blocks {
        let block = u32::from(block) % 16;
        if !seen.contains(&block) {
            seen.push(block);
            blocks.push((block, bits));
        }
    }
    let spec = Spec {
        uuid: uuid(0),
        size: SECTORS * 512,
        block_size: 8192,
        parent: None,
        blocks: &blocks,
        fill: |_| 1,
    };
    let file = images::build(&spec, &mut vec![0; SECTORS as usize * 512]);
    let mut host = Host::with_cache(vec![file], 256 << 10, 0);
    host.capacity = limit::CAPACITY;
    host.open(Driver::Vhd, false).expect("a good image opens");
    let mut failures = 0_u32;
    for (tag, step) in (0..).zip(input.steps) {
        match step {
            Step::Any {
                kind,
                flags,
                sector,
                sectors,
                buffer,
            } => {
                // The port refuses what lies outside guest memory; this host has no such check.
                let needed = match kind {
                    5 => u64::from(max_status_extents(sectors)) * 8,
                    _ => u64::from(sectors) * 512,
                };
                let fits = u64::from(buffer) + needed <= 256 << 10;
                let buffer = if fits { buffer } else { u32::MAX };
                let region = support::GUEST;
                if fits || kind > 1 {
                    host.engine.submit(&TdRequest {
                        tag,
                        kind,
                        flags,
                        sector,
                        sectors,
                        region,
                        buffer,
                    });
                    host.run();
                }
            }
            Step::Fitting {
                kind,
                flags,
                sector,
                sectors,
            } => {
                let count = u32::from(sectors).min((SECTORS - u64::from(sector)) as u32);
                let (kind, sector, region) = (kind % 6, u64::from(sector), support::GUEST);
                host.engine.submit(&TdRequest {
                    tag,
                    kind,
                    flags,
                    sector,
                    sectors: count,
                    region,
                    buffer: 0,
                });
                host.run();
            }
            Step::Complete(index) => {
                if !host.in_flight.is_empty() {
                    host.complete(usize::from(index) % host.in_flight.len());
                }
            }
            Step::Fail(errno) => {
                failures += 1;
                let mut left = 1;
                host.fault = Some(Box::new(move |op| {
                    let fails = left > 0 && op.kind != OpKind::ZeroBuffer;
                    left -= i32::from(fails);
                    fails.then_some(-1 - i32::from(errno % 100))
                }));
            }
            Step::SyncMetadata => {
                host.engine.sync_metadata();
                host.run();
            }
            Step::Stray(id, result) => {
                if host.in_flight.iter().all(|op| op.id != id) {
                    host.engine.complete(vhd::record::Completion { id, result });
                    host.run();
                }
            }
            Step::Reopen => {
                host.settle();
                if host.close().is_err() {
                    assert!(failures > 0, "closing fails though nothing else did");
                    host.fault = None;
                    host.close()
                        .expect("closing succeeds at the second attempt");
                }
                host.fault = None;
                host.open(Driver::Vhd, false)
                    .expect("the image opens again");
            }
        }
    }
    host.settle();
    host.fault = None;
    if host.close().is_err() {
        assert!(failures > 0, "closing fails though nothing else did");
        host.close()
            .expect("closing succeeds at the second attempt");
    }
    host.open(Driver::Vhd, true).expect("the image opens again");
});
