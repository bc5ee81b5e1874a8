//! Calls for several neighbours that fail, or move only a part: an error meets whom it belongs to, and nobody else.

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use common::{Memory, READ_WRITE, Random, TempFile, read, write};
use port::backend::{Event, FileBackend, FileCall, Pieces, Token, Transfer, blocking};
use port::batch::{Batch, Layout};
use port::file::File;
use port::operations::{Context, Operations};
use port::regions::Regions;
use vhd::record::{OP_WORDS, Op, OpKind};

/// Pages of the memory that requests share, and bytes of it.
const PAGES: usize = 300;
const BYTES: u64 = PAGES as u64 * 4096;

/// In every other round the file ends before the operations do; they are reads then, since what a read finds behind the end
/// depends on when a write there is done.
fn random_size(round: u64) -> u64 {
    if round.is_multiple_of(2) {
        BYTES
    } else {
        BYTES - 3001 * (round % 100)
    }
}

fn random_bytes(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// Reads, and writes if wanted, that cover a part of the file, most of them neighbours, each with memory of its own.
fn random_ops(random: &mut Random, writes: bool) -> Vec<Op> {
    let aligned = random.below(3) > 0;
    let mut ops = Vec::new();
    let mut at = 0;
    let mut make: fn(u16, u64, u64, u32, u32) -> Op = read;
    loop {
        if random.below(6) == 0 {
            make = if writes && random.below(2) == 0 {
                write
            } else {
                read
            };
            at += [0, 4096, 8192][random.below(3) as usize];
        }
        let length = if aligned {
            4096 * (1 + random.below(12))
        } else {
            1 + random.below(30_000)
        };
        if at + length > BYTES {
            break;
        }
        ops.push(make(0, at, length, 0, at as u32));
        at += length;
    }
    // Scattered in memory: those of the same length change places.
    for index in 1..ops.len() {
        let other = random.below(index as u64) as usize;
        if ops[other].length == ops[index].length && ops[other].kind == ops[index].kind {
            let buffer = ops[index].buffer;
            ops[index].buffer = ops[other].buffer;
            ops[other].buffer = buffer;
        }
    }
    ops
}

/// What a [`Faulty`] back end does with the calls that it gets, and has seen of them.
#[derive(Debug, Default)]
struct Faults {
    /// The disk's bad places: bytes from and to.
    bad: Vec<(u64, u64)>,
    /// Seed of what goes wrong besides; 0: nothing.
    seed: u64,
    /// Pieces of memory of each read and write.
    calls: Vec<usize>,
}

/// A back end that executes calls on a real file at once, but for what is planted: bad places where nothing can be read or
/// written, calls that move only a part, or are to be repeated.
#[derive(Debug, Default)]
struct Faulty {
    faults: Rc<RefCell<Faults>>,
    events: Vec<Event>,
}

fn vectors(transfer: &Transfer) -> Vec<libc::iovec> {
    match transfer.memory {
        Pieces::One(base) => vec![libc::iovec {
            iov_base: base.cast(),
            iov_len: transfer.length,
        }],
        // SAFETY: the list of a call in flight is as long as it says.
        Pieces::List(list, count) => unsafe {
            std::slice::from_raw_parts(list, count as usize).to_vec()
        },
    }
}

impl Faulty {
    fn result(&self, call: &FileCall) -> i32 {
        let FileCall::Transfer(transfer) = call else {
            // SAFETY: the call is in flight.
            return unsafe { blocking::execute(call) };
        };
        let Transfer { length, offset, .. } = *transfer;
        let mut vectors = vectors(transfer);
        let faults = &mut *self.faults.borrow_mut();
        faults.calls.push(vectors.len());
        let mut limit = length;
        if faults.seed > 0 {
            let mut random = Random(faults.seed);
            match random.below(6) {
                0 => limit = 1 + random.below(length as u64) as usize,
                1 => {
                    faults.seed = random.next();
                    return [-libc::EINTR, -libc::EAGAIN][random.below(2) as usize];
                }
                _ => {}
            }
            faults.seed = random.next();
        }
        let end = offset + limit as u64;
        for &(from, to) in &faults.bad {
            if from < end && offset < to {
                // As an ordinary file does it if the first byte is fine; one with direct I/O may fail at once.
                if from <= offset || faults.seed % 2 == 1 {
                    return -libc::EIO;
                }
                limit = limit.min((from - offset) as usize);
            }
        }
        for vector in &mut vectors {
            vector.iov_len = vector.iov_len.min(limit);
            limit -= vector.iov_len;
        }
        let call = FileCall::Transfer(Transfer {
            memory: Pieces::List(vectors.as_ptr(), vectors.len() as u32),
            length: vectors.iter().map(|vector| vector.iov_len).sum(),
            ..*transfer
        });
        // SAFETY: the memory is that of a call in flight, and the list lives up to here.
        unsafe { blocking::execute(&call) }
    }
}

impl FileBackend for Faulty {
    unsafe fn file(&mut self, token: Token, call: FileCall) {
        let result = self.result(&call);
        self.events.push(Event { token, result });
    }
}

/// Operations on a file, over a faulty back end.
struct Bench {
    operations: Operations,
    backend: Faulty,
    regions: Regions,
    memory: Memory,
    file: TempFile,
    records: Vec<u8>,
    layout: Layout,
}

impl Bench {
    fn new(content: &[u8]) -> Self {
        let layout = common::layout();
        let mut bench = Self {
            operations: Operations::default(),
            backend: Faulty::default(),
            regions: Regions::default(),
            memory: Memory::new(PAGES),
            file: TempFile::with(content),
            records: vec![0; layout.staging_offset as usize + layout.staging_length as usize],
            layout,
        };
        // SAFETY: nothing uses the memory when it goes with the rest.
        let region = unsafe {
            bench
                .regions
                .add(bench.memory.bytes.as_mut_ptr().cast(), BYTES as usize)
        };
        assert_eq!(region, 1);
        let file = File::open(bench.file.path(), READ_WRITE).unwrap();
        let number = bench.operations.files.insert(file, &mut bench.backend);
        assert_eq!(number.unwrap(), 0);
        bench
    }

    /// Executes operations in one turn; the id of each becomes its index. Returns their results, and the number of pieces of
    /// memory in each call.
    fn run(&mut self, ops: &[Op]) -> (Vec<i32>, Vec<usize>) {
        let mut batch = Batch::new(&mut self.records, self.layout, 0, 0).unwrap();
        let mut context = Context {
            backend: &mut self.backend,
            regions: &mut self.regions,
        };
        for (id, op) in ops.iter().enumerate() {
            let words: [u32; OP_WORDS] = Op {
                id: id as u32,
                ..*op
            }
            .encode();
            self.operations.start(&words, &mut batch, &mut context);
        }
        self.operations.flush(context.backend);
        while self.operations.in_flight() > 0 {
            let events = std::mem::take(&mut self.backend.events);
            assert!(!events.is_empty(), "something is in flight for ever");
            let mut context = Context {
                backend: &mut self.backend,
                regions: &mut self.regions,
            };
            for Event { token, result } in events {
                self.operations.event(token, result, &mut context);
            }
        }
        let count = self.operations.report(&mut batch) as usize;
        assert_eq!(count, ops.len());
        let mut results = vec![i32::MIN; count];
        let completions = self.layout.completions.offset as usize;
        let words: Vec<i32> = self.records[completions..completions + count * 8]
            .as_chunks()
            .0
            .iter()
            .map(|bytes| i32::from_le_bytes(*bytes))
            .collect();
        for pair in words.chunks_exact(2) {
            results[pair[0] as usize] = pair[1];
        }
        let calls = std::mem::take(&mut self.backend.faults.borrow_mut().calls);
        (results, calls)
    }
}

/// Calls that fail or move a part, anywhere: an error meets those that touch a bad place, and nobody else.
#[test]
fn faults_meet_whom_they_belong_to() {
    let mut random = Random(31);
    let mut merged = 0;
    for round in 0..400 {
        let size = random_size(round);
        let content = random_bytes(&mut random, size as usize);
        let mut bench = Bench::new(&content);
        random.fill(bench.memory.get());
        let before = bench.memory.get().to_vec();
        let bad: Vec<(u64, u64)> = (0..random.below(3))
            .map(|_| {
                let from = random.below(size);
                (from, size.min(from + 1 + random.below(20_000)))
            })
            .collect();
        *bench.backend.faults.borrow_mut() = Faults {
            bad: bad.clone(),
            seed: if round % 4 == 0 { 0 } else { random.next() },
            calls: Vec::new(),
        };
        let ops: Vec<Op> = random_ops(&mut random, size == BYTES)
            .iter()
            .map(|op| Op { region: 1, ..*op })
            .collect();
        let (results, calls) = bench.run(&ops);
        merged += calls.iter().filter(|pieces| **pieces > 1).count();
        let file = bench.file.bytes();
        for (op, result) in ops.iter().zip(results) {
            let end = op.offset + op.length;
            if bad.iter().any(|(from, to)| *from < end && op.offset < *to) {
                assert_eq!(result, -libc::EIO, "round {round}: {op:?}");
                continue;
            }
            let moved = end.min(size).saturating_sub(op.offset) as usize;
            assert_eq!(result, moved as i32, "round {round}: {op:?}");
            let place = op.offset as usize..op.offset as usize + moved;
            let memory = op.buffer as usize..op.buffer as usize + moved;
            if op.kind == OpKind::Write {
                assert!(file[place] == before[memory], "round {round}: {op:?}");
            } else if moved > 0 {
                let read = &bench.memory.get()[memory];
                assert!(*read == content[place], "round {round}: {op:?}");
            }
        }
    }
    assert!(merged > 400, "only {merged} calls were merged");
}
