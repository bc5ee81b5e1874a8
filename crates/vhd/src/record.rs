//! The flat records in which requests, operations and completions cross between the engine, its host and the native port.
//!
//! Every record is a fixed number of little-endian `u32` words, so that one typed array over WebAssembly memory holds a
//! whole batch and nothing is allocated or serialised for a request. 64-bit fields are two words, low word first.
//! The TypeScript views of the same records are in `ts/engine/records.ts`; a test compares the two.

/// Bytes in a sector, the unit of guest requests and of every structure in a VHD.
pub const SECTOR: u64 = 512;

/// The memory region that is the engine's own metadata staging area. Every other region number names guest memory that
/// only the port knows: the data pages of a ring, or the buffer pool of the NBD front end.
pub const REGION_STAGING: u32 = 0;

/// What a request asks of a virtual disk. The same numbers serve front ends, the vbd and the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RequestKind {
    /// Read sectors into a buffer.
    Read = 0,
    /// Write sectors from a buffer.
    Write = 1,
    /// Make every acknowledged write durable.
    Flush = 2,
    /// Give sectors back; they read as zeros, or as before, afterwards.
    Discard = 3,
    /// Make sectors read as zeros.
    WriteZeroes = 4,
    /// Report which sectors are allocated (front ends that offer block status).
    BlockStatus = 5,
}

impl RequestKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Flush,
            3 => Self::Discard,
            4 => Self::WriteZeroes,
            5 => Self::BlockStatus,
            _ => return None,
        })
    }
}

/// Number in the operation field of a [`FrontEndRequest`] that tells the host that a front end has gone: its client
/// disconnected and every request it had in flight was answered or dropped. It takes no response.
pub const FRONT_END_CLOSED: u8 = 255;

/// Request flag: the write must be durable before it is acknowledged (NBD `NBD_CMD_FLAG_FUA`).
pub const FLAG_FUA: u8 = 1;
/// Request flag: write zeroes without giving the space back (NBD `NBD_CMD_FLAG_NO_HOLE`).
pub const FLAG_NO_HOLE: u8 = 2;
/// Request flag: fail with `ENOTSUP` rather than write zeroes slowly (NBD `NBD_CMD_FLAG_FAST_ZERO`). Servers don't offer it
/// yet, and the engine does not look at it.
pub const FLAG_FAST_ZERO: u8 = 4;

/// Words in a [`TdRequest`].
pub const TD_REQUEST_WORDS: usize = 8;
/// Words in a [`Finished`].
pub const FINISHED_WORDS: usize = 2;
/// Words in an [`Op`].
pub const OP_WORDS: usize = 12;
/// Words in a [`Completion`].
pub const COMPLETION_WORDS: usize = 2;
/// Words in a [`FrontEndRequest`].
pub const FRONT_END_REQUEST_WORDS: usize = 32;
/// Words in a [`Response`].
pub const RESPONSE_WORDS: usize = 4;
/// Segments that fit into a [`FrontEndRequest`].
pub const MAX_SEGMENTS: usize = 12;

fn lo(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn hi(value: u64) -> u32 {
    (value >> 32) as u32
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// One contiguous piece of a vbd request, as the vbd hands it to the engine.
///
/// Words: tag, kind | flags << 8, sector (2), sectors, region, buffer, 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdRequest {
    /// The host's own number for this request; comes back in [`Finished`].
    pub tag: u32,
    /// What to do; a number and not a [`RequestKind`] since it comes from outside.
    pub kind: u8,
    /// `FLAG_…` bits.
    pub flags: u8,
    /// First sector (512 bytes each) on the virtual disk.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u32,
    /// Memory region of the data.
    pub region: u32,
    /// Byte offset of the data in its region.
    pub buffer: u32,
}

impl TdRequest {
    /// Reads a request from its record.
    #[must_use]
    pub fn decode(words: &[u32; TD_REQUEST_WORDS]) -> Self {
        Self {
            tag: words[0],
            kind: (words[1] & 0xff) as u8,
            flags: (words[1] >> 8 & 0xff) as u8,
            sector: join(words[2], words[3]),
            sectors: words[4],
            region: words[5],
            buffer: words[6],
        }
    }

    /// Writes a request as its record.
    #[must_use]
    pub fn encode(&self) -> [u32; TD_REQUEST_WORDS] {
        [
            self.tag,
            u32::from(self.kind) | u32::from(self.flags) << 8,
            lo(self.sector),
            hi(self.sector),
            self.sectors,
            self.region,
            self.buffer,
            0,
        ]
    }
}

/// A [`TdRequest`] that is over. Words: tag, status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The request's tag.
    pub tag: u32,
    /// 0, or a negative errno value.
    pub status: i32,
}

impl Finished {
    /// Writes the outcome as its record.
    #[must_use]
    pub fn encode(&self) -> [u32; FINISHED_WORDS] {
        [self.tag, self.status.cast_unsigned()]
    }
}

/// What an [`Op`] does to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpKind {
    /// Read `length` bytes at `offset` into the buffer.
    Read = 0,
    /// Write `length` bytes at `offset` from the buffer.
    Write = 1,
    /// Make `length` bytes at `offset` zero, keeping the space allocated where the file system can.
    WriteZeroes = 2,
    /// Make `length` bytes at `offset` zero and give the space back.
    PunchHole = 3,
    /// Make all completed writes to the file durable (`fdatasync`).
    Sync = 4,
    /// Set the file's size to `offset` bytes.
    Truncate = 5,
    /// Copy `length` bytes at `source_offset` of `source_file` to `offset`.
    CopyRange = 6,
    /// Make `length` bytes of the buffer zero; touches no file. Result: 0.
    ZeroBuffer = 7,
}

impl OpKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::WriteZeroes,
            3 => Self::PunchHole,
            4 => Self::Sync,
            5 => Self::Truncate,
            6 => Self::CopyRange,
            7 => Self::ZeroBuffer,
            _ => return None,
        })
    }
}

/// One file operation of an I/O plan: the only way in which anything of this project touches a file.
///
/// Words: id, kind | file << 16, offset (2), length (2), region, buffer, source offset (2), source file, 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// The engine's number for the operation; comes back in [`Completion`].
    pub id: u32,
    /// What to do.
    pub kind: OpKind,
    /// The host's number of the file.
    pub file: u16,
    /// Byte offset in the file; the new size for [`OpKind::Truncate`].
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Memory region of the data.
    pub region: u32,
    /// Byte offset of the data in its region.
    pub buffer: u32,
    /// Byte offset in the source file ([`OpKind::CopyRange`]).
    pub source_offset: u64,
    /// The host's number of the source file ([`OpKind::CopyRange`]).
    pub source_file: u16,
}

impl Op {
    /// Reads an operation from its record; `None` if its kind is unknown.
    #[must_use]
    pub fn decode(words: &[u32; OP_WORDS]) -> Option<Self> {
        Some(Self {
            id: words[0],
            kind: OpKind::from_raw((words[1] & 0xff) as u8)?,
            file: (words[1] >> 16) as u16,
            offset: join(words[2], words[3]),
            length: join(words[4], words[5]),
            region: words[6],
            buffer: words[7],
            source_offset: join(words[8], words[9]),
            source_file: (words[10] & 0xffff) as u16,
        })
    }

    /// Writes an operation as its record.
    #[must_use]
    pub fn encode(&self) -> [u32; OP_WORDS] {
        [
            self.id,
            self.kind as u32 | u32::from(self.file) << 16,
            lo(self.offset),
            hi(self.offset),
            lo(self.length),
            hi(self.length),
            self.region,
            self.buffer,
            lo(self.source_offset),
            hi(self.source_offset),
            u32::from(self.source_file),
            0,
        ]
    }
}

/// An [`Op`] that is over. Words: id, result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The operation's id.
    pub id: u32,
    /// Bytes moved by a read, write or copy (fewer than asked only at the end of the file), 0 for the other kinds, or a
    /// negative errno value.
    pub result: i32,
}

impl Completion {
    /// Reads a completion from its record.
    #[must_use]
    pub fn decode(words: &[u32; COMPLETION_WORDS]) -> Self {
        Self {
            id: words[0],
            result: words[1].cast_signed(),
        }
    }

    /// Writes a completion as its record.
    #[must_use]
    pub fn encode(&self) -> [u32; COMPLETION_WORDS] {
        [self.id, self.result.cast_unsigned()]
    }
}

/// A contiguous part of a request's data: byte offset in the request's region, and number of sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Byte offset in the region.
    pub buffer: u32,
    /// Number of sectors.
    pub sectors: u32,
}

/// A request as a front end pulled it from its client, copied out of shared memory and decoded, not yet checked against
/// the disk.
///
/// Words: front end, slot, operation | flags << 8 | segments << 16, error, sector (2), sectors, region, then up to
/// [`MAX_SEGMENTS`] pairs of buffer and sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontEndRequest {
    /// The port's number of the front end.
    pub front_end: u32,
    /// The front end's handle of the request; goes back in [`Response`].
    pub slot: u32,
    /// A [`RequestKind`] or [`FRONT_END_CLOSED`].
    pub operation: u8,
    /// `FLAG_…` bits.
    pub flags: u8,
    /// 0, or a negative errno value with which the host must answer: the request is malformed.
    pub error: i32,
    /// First sector on the virtual disk.
    pub sector: u64,
    /// Number of sectors: the sum over the segments where there are any.
    pub sectors: u32,
    /// Memory region of the data.
    pub region: u32,
    /// The data, in order.
    pub segments: [Segment; MAX_SEGMENTS],
    /// How many of `segments` count.
    pub nr_segments: u8,
}

impl FrontEndRequest {
    /// Writes a request as its record.
    #[must_use]
    pub fn encode(&self) -> [u32; FRONT_END_REQUEST_WORDS] {
        let mut words = [0; FRONT_END_REQUEST_WORDS];
        words[0] = self.front_end;
        words[1] = self.slot;
        words[2] = u32::from(self.operation)
            | u32::from(self.flags) << 8
            | u32::from(self.nr_segments) << 16;
        words[3] = self.error.cast_unsigned();
        words[4] = lo(self.sector);
        words[5] = hi(self.sector);
        words[6] = self.sectors;
        words[7] = self.region;
        for (pair, segment) in words[8..].chunks_exact_mut(2).zip(&self.segments) {
            pair[0] = segment.buffer;
            pair[1] = segment.sectors;
        }
        words
    }
}

/// The answer to a [`FrontEndRequest`]. Words: front end, slot, status, payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The port's number of the front end.
    pub front_end: u32,
    /// The front end's handle of the request.
    pub slot: u32,
    /// 0, or a negative errno value.
    pub status: i32,
    /// Bytes that the host put into the request's buffer (block status), else 0.
    pub payload: u32,
}

impl Response {
    /// Reads a response from its record.
    #[must_use]
    pub fn decode(words: &[u32; RESPONSE_WORDS]) -> Self {
        Self {
            front_end: words[0],
            slot: words[1],
            status: words[2].cast_signed(),
            payload: words[3],
        }
    }
}
