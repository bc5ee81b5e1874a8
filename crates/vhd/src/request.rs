//! Requests in the engine: what is known of one while its parts are on their way.

use std::cell::Cell;
use std::rc::Rc;

use crate::record::RequestKind;
use crate::status::Description;

/// A request that was taken on.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) tag: u32,
    pub(crate) kind: RequestKind,
    /// `FLAG_…` bits of the record.
    pub(crate) flags: u8,
    /// Counts requests, to tell which came before something else.
    pub(crate) sequence: u64,
    /// Memory region of its data.
    pub(crate) region: u32,
    /// Parts that are parked or in flight.
    pub(crate) parts: u32,
    /// 0, or the first error, a negative errno value.
    pub(crate) status: i32,
    /// What a block status request has found out.
    pub(crate) description: Option<Box<Description>>,
    /// For a write of a job's: its data are in another file.
    pub(crate) source: Option<Source>,
    /// For a request of a job's: who waits for its status; it is not reported to the host.
    pub(crate) waiter: Option<Rc<Cell<Option<i32>>>>,
}

/// Where the data of a job's write are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// The host's number of the file.
    pub(crate) file: u16,
    /// Byte offset of the data of the virtual disk's sector 0 in it, were it there: modulo 2^64.
    pub(crate) base: u64,
}

impl Source {
    /// Data at byte `offset` of a file for the virtual disk's `sector`.
    pub(crate) fn new(file: u16, offset: u64, sector: u64) -> Self {
        Self {
            file,
            base: offset.wrapping_sub(sector.wrapping_mul(512)),
        }
    }

    /// Byte offset of the data for `sector`.
    pub(crate) fn offset(self, sector: u64) -> u64 {
        self.base.wrapping_add(sector.wrapping_mul(512))
    }
}

impl Request {
    /// Whether it leaves something on the disk.
    pub(crate) fn changes_disk(&self) -> bool {
        matches!(
            self.kind,
            RequestKind::Write | RequestKind::WriteZeroes | RequestKind::Discard
        )
    }
}

/// A contiguous part of a request, to be looked up in the leaf or in what is below it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Index of the request.
    pub(crate) request: u32,
    /// The leaf doesn't have it.
    pub(crate) below: bool,
    /// First sector on the virtual disk.
    pub(crate) sector: u64,
    /// Number of sectors.
    pub(crate) count: u32,
    /// Byte offset of the data in the request's region.
    pub(crate) buffer: u32,
}

impl Piece {
    /// The part of this one that begins `skip` sectors in and has `count` sectors.
    pub(crate) fn part(self, skip: u32, count: u32) -> Self {
        Self {
            sector: self.sector + u64::from(skip),
            count,
            // A part of a request without data may be larger than memory.
            buffer: self.buffer.wrapping_add(skip.wrapping_mul(512)),
            ..self
        }
    }
}
