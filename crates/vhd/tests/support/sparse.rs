//! A file of any size, of which only the sectors that were written are in memory; guest data are ignored.

use std::collections::BTreeMap;

use vhd::record::{Completion, Finished, OpKind, REGION_STAGING, RequestKind, TdRequest};
use vhd::{Driver, Engine, FileSpec, ImageInfo, Job, Outcome};

use super::GUEST;

#[derive(Default)]
pub struct SparseFile {
    pub sectors: BTreeMap<u64, [u8; 512]>,
    /// Its size, sectors.
    pub size: u64,
    /// Bytes of metadata that were read.
    pub read: u64,
    /// Operations that were carried out.
    pub operations: u64,
}

impl SparseFile {
    pub fn put(&mut self, sector: u64, bytes: &[u8]) {
        for (index, chunk) in (sector..).zip(bytes.as_chunks::<512>().0) {
            self.sectors.insert(index, *chunk);
            self.size = self.size.max(index + 1);
        }
    }

    pub fn sector(&self, sector: u64) -> &[u8; 512] {
        self.sectors.get(&sector).unwrap_or(&[0; 512])
    }

    /// Lets the engine work until it wants nothing more.
    pub fn drive(&mut self, engine: &mut Engine) -> Vec<Finished> {
        let mut finished = Vec::new();
        loop {
            engine.run();
            finished.extend(std::iter::from_fn(|| engine.take_finished()));
            let Some(op) = engine.take_op() else {
                return finished;
            };
            self.operations += 1;
            let range = op.buffer as usize..op.buffer as usize + op.length as usize;
            let metadata = op.region == REGION_STAGING;
            match op.kind {
                OpKind::Read if metadata => {
                    self.read += op.length;
                    engine.with_staging(|staging| {
                        for (sector, chunk) in
                            (op.offset / 512..).zip(staging[range].chunks_mut(512))
                        {
                            chunk.copy_from_slice(self.sector(sector));
                        }
                    });
                }
                OpKind::Write if metadata => {
                    let bytes = engine.with_staging(|staging| staging[range].to_vec());
                    self.put(op.offset / 512, &bytes);
                }
                OpKind::Truncate => {
                    self.size = op.offset / 512;
                    self.sectors.split_off(&self.size);
                }
                _ => {}
            }
            let moves = matches!(op.kind, OpKind::Read | OpKind::Write);
            engine.complete(Completion {
                id: op.id,
                result: if moves { op.length as i32 } else { 0 },
            });
        }
    }

    pub fn open(&mut self, engine: &mut Engine, read_only: bool) -> vhd::error::Result<ImageInfo> {
        engine.open(FileSpec {
            driver: Driver::Vhd,
            path: "/disks/large.vhd".to_owned(),
            file: 0,
            size: self.size * 512,
            block_device: false,
            read_only,
            real_path: String::new(),
            modified: 0,
        });
        self.drive(engine);
        match engine.job() {
            Job::Over(outcome) => outcome.map(|outcome| match outcome {
                Outcome::Opened(info) => info,
                other => panic!("opening comes to {other:?}"),
            }),
            other => panic!("the job is {other:?} though nothing is in flight"),
        }
    }

    pub fn close(&mut self, engine: &mut Engine) {
        engine.close();
        self.drive(engine);
        assert!(
            matches!(engine.job(), Job::Over(Ok(_))),
            "{:?}",
            engine.job()
        );
    }

    /// Carries out one request; returns its status.
    pub fn request(
        &mut self,
        engine: &mut Engine,
        kind: RequestKind,
        sector: u64,
        sectors: u32,
    ) -> i32 {
        engine.submit(&TdRequest {
            tag: 0,
            kind: kind as u8,
            flags: 0,
            sector,
            sectors,
            region: GUEST,
            buffer: 0,
        });
        let finished = self.drive(engine);
        assert_eq!(finished.len(), 1, "the request does not end");
        finished[0].status
    }
}
