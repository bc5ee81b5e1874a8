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
    /// Describe sectors by [`StatusExtent`]s, which go to the buffer.
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
/// Request flag: fail with `EOPNOTSUPP` rather than write zeroes slowly (NBD `NBD_CMD_FLAG_FAST_ZERO`).
pub const FLAG_FAST_ZERO: u8 = 4;
/// Request flag: describe only the first extent (NBD `NBD_CMD_FLAG_REQ_ONE`).
pub const FLAG_REQ_ONE: u8 = 8;

/// Flag of a [`StatusExtent`]: the sectors take no space in any file (NBD `NBD_STATE_HOLE`).
pub const STATUS_HOLE: u32 = 1;
/// Flag of a [`StatusExtent`]: the sectors read as zeros (NBD `NBD_STATE_ZERO`).
pub const STATUS_ZERO: u32 = 2;
/// Most extents in the answer to one request.
pub const MAX_STATUS_EXTENTS: u32 = 4096;

/// Words in a [`TdRequest`].
pub const TD_REQUEST_WORDS: usize = 8;
/// Words in a [`Finished`].
pub const FINISHED_WORDS: usize = 2;
/// Words in an [`Op`].
pub const OP_WORDS: usize = 12;
/// Words in a [`Completion`].
pub const COMPLETION_WORDS: usize = 2;
/// Words in a [`StatusExtent`].
pub const STATUS_EXTENT_WORDS: usize = 2;
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
    /// Byte offset of the data in its region. A block status request has room there for [`max_status_extents`].
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
    /// 0, or a negative errno value. Of a block status request: the number of extents in its buffer, at least 1.
    pub status: i32,
}

impl Finished {
    /// Writes the outcome as its record.
    #[must_use]
    pub fn encode(&self) -> [u32; FINISHED_WORDS] {
        [self.tag, self.status.cast_unsigned()]
    }
}

/// What is known of neighbouring sectors. The extents in the answer to a block status request begin with the request's first
/// sector, each begins where the one before ends, and they may describe less than was asked for.
///
/// Words: sectors, flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Number of sectors, at least 1.
    pub sectors: u32,
    /// [`STATUS_HOLE`] and [`STATUS_ZERO`], or 0: data.
    pub flags: u32,
}

impl StatusExtent {
    /// Bytes of the record.
    pub const BYTES: u32 = STATUS_EXTENT_WORDS as u32 * 4;

    /// Reads an extent from its record.
    #[must_use]
    pub fn decode(words: &[u32; STATUS_EXTENT_WORDS]) -> Self {
        Self {
            sectors: words[0],
            flags: words[1],
        }
    }

    /// Writes an extent as its record.
    #[must_use]
    pub fn encode(&self) -> [u32; STATUS_EXTENT_WORDS] {
        [self.sectors, self.flags]
    }
}

/// Most extents that the answer to a block status request of so many sectors can have.
#[must_use]
pub fn max_status_extents(sectors: u32) -> u32 {
    sectors.min(MAX_STATUS_EXTENTS)
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
    /// Copy `length` bytes at `source_offset` of the staging area into the buffer; touches no file. Result: 0.
    CopyToBuffer = 8,
    /// Tell whether there are data or a hole at `offset`, and how far, at most `length` bytes. Result: sectors << 1, plus 1
    /// for a hole.
    SeekHole = 9,
    /// Look at `length` bytes at `offset`, at most [`MAX_DATA_MAP`], and store one bit for each of their sectors into the
    /// buffer, most significant bit first, set where a byte of the sector is not zero. Bits past the end of the file are
    /// clear. So jobs learn where data are without taking the data in. Staging only.
    DataMap = 10,
}

/// Most bytes that an [`OpKind::DataMap`] looks at: the data of a block of the usual size.
pub const MAX_DATA_MAP: u64 = 2 << 20;

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
            8 => Self::CopyToBuffer,
            9 => Self::SeekHole,
            10 => Self::DataMap,
            _ => return None,
        })
    }
}

/// Where [`Op::fast`] is in its word.
const OP_FAST: u32 = 1 << 8;

/// One file operation of an I/O plan: the only way in which anything of this project touches a file.
///
/// Words: id, kind | fast << 8 | file << 16, offset (2), length (2), region, buffer, source offset (2), source file, 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// The engine's number for the operation; comes back in [`Completion`].
    pub id: u32,
    /// What to do.
    pub kind: OpKind,
    /// Fail with `EOPNOTSUPP` rather than write zeros ([`OpKind::WriteZeroes`], [`OpKind::PunchHole`]).
    pub fast: bool,
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
    /// Byte offset in the source file ([`OpKind::CopyRange`]) or in the staging area ([`OpKind::CopyToBuffer`]).
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
            fast: words[1] & OP_FAST != 0,
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
            self.kind as u32 | if self.fast { OP_FAST } else { 0 } | u32::from(self.file) << 16,
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
    /// Bytes moved by a read, write or copy, or looked at (fewer than asked only at the end of the file), what its kind says
    /// for the others, or a negative errno value.
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
    /// The data, in order. A block status request has one, with all of its sectors: where the extents go.
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
    /// [`StatusExtent`]s in the request's buffer (block status), else 0.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_round_trip(tag: u32, kind: u8, flags: u8, sector: u64, sectors: u32, region: u32, buffer: u32) {
            let request = TdRequest { tag, kind, flags, sector, sectors, region, buffer };
            prop_assert_eq!(TdRequest::decode(&request.encode()), request);
        }

        #[test]
        fn operations_round_trip(
            id: u32, raw in 0_u8..=10, fast: bool, file: u16, offset: u64, length: u64, places: (u32, u32),
            source: (u64, u16),
        ) {
            let op = Op {
                id,
                kind: OpKind::from_raw(raw).expect("all kinds below 11 are known"),
                fast,
                file,
                offset,
                length,
                region: places.0,
                buffer: places.1,
                source_offset: source.0,
                source_file: source.1,
            };
            prop_assert_eq!(op.kind as u8, raw);
            prop_assert_eq!(Op::decode(&op.encode()), Some(op));
        }

        #[test]
        fn answers_round_trip(id: u32, result: i32, sectors: u32, flags: u32) {
            let completion = Completion { id, result };
            prop_assert_eq!(Completion::decode(&completion.encode()), completion);
            let extent = StatusExtent { sectors, flags };
            prop_assert_eq!(StatusExtent::decode(&extent.encode()), extent);
            let finished = Finished { tag: id, status: result };
            prop_assert_eq!(finished.encode(), [id, result.cast_unsigned()]);
            let response = Response::decode(&[id, sectors, result.cast_unsigned(), flags]);
            let expected = Response { front_end: id, slot: sectors, status: result, payload: flags };
            prop_assert_eq!(response, expected);
        }
    }

    #[test]
    fn a_front_ends_request_has_its_words_in_order() {
        let mut segments = [Segment::default(); MAX_SEGMENTS];
        segments[0] = Segment {
            buffer: 4096,
            sectors: 8,
        };
        segments[MAX_SEGMENTS - 1] = Segment {
            buffer: 8192,
            sectors: 1,
        };
        let words = FrontEndRequest {
            front_end: 3,
            slot: 4,
            operation: RequestKind::Write as u8,
            flags: FLAG_FUA,
            error: -22,
            sector: 5 << 32 | 6,
            sectors: 9,
            region: 7,
            segments,
            nr_segments: 12,
        }
        .encode();
        assert_eq!(
            words[..10],
            [
                3,
                4,
                12 << 16 | 1 << 8 | 1,
                22_u32.wrapping_neg(),
                6,
                5,
                9,
                7,
                4096,
                8
            ]
        );
        assert_eq!(words[30..], [8192, 1]);
    }

    #[test]
    fn unknown_kinds_are_none() {
        assert_eq!(OpKind::from_raw(11), None);
        assert_eq!(RequestKind::from_raw(6), None);
        assert_eq!(Op::decode(&[0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
