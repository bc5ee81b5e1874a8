//! The messages of the transmission phase: what a request says, what may be asked, what a reply looks like.
//!
//! Numbers and rules are those of the NBD project's protocol document (`doc/proto.md`, sections «Transmission phase», «Size
//! constraints» and «Error values»). Everything on the wire is big-endian.

use vhd::record::{
    FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE, RequestKind, SECTOR, StatusExtent,
    max_status_extents,
};

use super::NbdOptions;
use crate::pool::MAX_ALLOCATION;

/// Bytes of a request's header.
pub(super) const REQUEST_BYTES: usize = 28;
/// Bytes of the longest reply without its data: a structured reply's header (20) and an offset (8).
pub(super) const REPLY_BYTES: usize = 28;
/// The largest payload in either direction.
pub(super) const MAX_PAYLOAD: u32 = MAX_ALLOCATION;
/// Payloads of refused writes are read and dropped up to this length; beyond it the connection is.
pub(super) const MAX_DRAIN: u32 = 2 * MAX_PAYLOAD;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

const REPLY_FLAG_DONE: u16 = 1;
const REPLY_TYPE_NONE: u16 = 0;
const REPLY_TYPE_OFFSET_DATA: u16 = 1;
const REPLY_TYPE_BLOCK_STATUS: u16 = 5;
const REPLY_TYPE_ERROR: u16 = 1 << 15 | 1;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;

const CMD_FLAG_FUA: u16 = 1 << 0;
const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
const CMD_FLAG_DF: u16 = 1 << 2;
const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Header {
    /// `None` if the magic is wrong: nothing that follows can be understood.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) << 16 | u32::from(u16_at(at + 2));
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        (u32_at(0) == REQUEST_MAGIC).then(|| Self {
            flags: u16_at(4),
            command: u16_at(6),
            cookie: u64_at(8),
            offset: u64_at(16),
            length: u32_at(24),
        })
    }

    /// Bytes of memory that a request of this kind takes.
    pub fn memory(&self, kind: RequestKind) -> u32 {
        match kind {
            RequestKind::Read | RequestKind::Write => self.length,
            RequestKind::BlockStatus => status_bytes(self.length),
            _ => 0,
        }
    }

    /// Decides what is to become of the request.
    pub fn judge(&self, options: NbdOptions) -> Verdict {
        let kind = match self.command {
            CMD_READ => RequestKind::Read,
            CMD_WRITE => RequestKind::Write,
            CMD_DISC => return Verdict::Disconnect,
            CMD_FLUSH => RequestKind::Flush,
            CMD_TRIM => RequestKind::Discard,
            CMD_WRITE_ZEROES => RequestKind::WriteZeroes,
            CMD_BLOCK_STATUS
                if options.structured_replies && options.allocation_context.is_some() =>
            {
                RequestKind::BlockStatus
            }
            _ => {
                return Verdict::Refuse {
                    errno: libc::EINVAL,
                    drain: 0,
                };
            }
        };
        let drain = if kind == RequestKind::Write {
            self.length
        } else {
            0
        };
        if drain > MAX_DRAIN {
            return Verdict::Violation;
        }
        match self.check(kind, options) {
            Ok(flags) => Verdict::Serve { kind, flags },
            Err(errno) => Verdict::Refuse { errno, drain },
        }
    }

    /// The flags for the engine, or an errno value.
    fn check(&self, kind: RequestKind, options: NbdOptions) -> Result<u8, i32> {
        let writes = matches!(
            kind,
            RequestKind::Write | RequestKind::Discard | RequestKind::WriteZeroes
        );
        // FUA must be accepted with every command; it means something for those that write.
        let known = CMD_FLAG_FUA
            | match kind {
                // There is one content chunk in every reply, so this is always granted.
                RequestKind::Read if options.structured_replies => CMD_FLAG_DF,
                RequestKind::WriteZeroes => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
                RequestKind::BlockStatus => CMD_FLAG_REQ_ONE,
                _ => 0,
            };
        if self.flags & !known != 0 {
            return Err(libc::EINVAL);
        }
        if writes && options.read_only {
            return Err(libc::EPERM);
        }
        if kind == RequestKind::Flush {
            return if self.offset == 0 && self.length == 0 {
                Ok(0)
            } else {
                Err(libc::EINVAL)
            };
        }
        // The protocol leaves an empty range undefined.
        let aligned =
            self.offset.is_multiple_of(SECTOR) && u64::from(self.length).is_multiple_of(SECTOR);
        let transfers = matches!(kind, RequestKind::Read | RequestKind::Write);
        if !aligned
            || self.length == 0
            || (transfers && self.length > MAX_PAYLOAD)
            || self.offset.checked_add(u64::from(self.length)).is_none()
        {
            return Err(libc::EINVAL);
        }
        let flag = |bit, flag| if self.flags & bit != 0 { flag } else { 0 };
        let fua = if writes { FLAG_FUA } else { 0 };
        Ok(flag(CMD_FLAG_FUA, fua)
            | flag(CMD_FLAG_NO_HOLE, FLAG_NO_HOLE)
            | flag(CMD_FLAG_REQ_ONE, FLAG_REQ_ONE)
            | flag(CMD_FLAG_FAST_ZERO, FLAG_FAST_ZERO))
    }
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes to the host.
    Serve { kind: RequestKind, flags: u8 },
    /// It goes to the host to be answered with this errno value, after this many bytes of payload were dropped.
    Refuse { errno: i32, drain: u32 },
    /// The client takes its leave.
    Disconnect,
    /// The connection can't go on.
    Violation,
}

/// A reply without its data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    bytes: [u8; REPLY_BYTES],
    length: u8,
}

impl Reply {
    pub const EMPTY: Self = Self {
        bytes: [0; REPLY_BYTES],
        length: 0,
    };

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        let from = usize::from(self.length);
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
        self
    }

    /// A simple reply. `error` is an NBD error value; if it is 0 a read's data follows.
    pub fn simple(cookie: u64, error: u32) -> Self {
        Self::EMPTY
            .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
            .put(&error.to_be_bytes())
            .put(&cookie.to_be_bytes())
    }

    fn chunk(cookie: u64, kind: u16, length: u32) -> Self {
        Self::EMPTY
            .put(&STRUCTURED_REPLY_MAGIC.to_be_bytes())
            .put(&REPLY_FLAG_DONE.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&cookie.to_be_bytes())
            .put(&length.to_be_bytes())
    }

    /// The whole of a structured reply that has neither data nor an error.
    pub fn structured_none(cookie: u64) -> Self {
        Self::chunk(cookie, REPLY_TYPE_NONE, 0)
    }

    /// The whole of a structured reply to a read: this and `length` bytes of data.
    pub fn structured_data(cookie: u64, offset: u64, length: u32) -> Self {
        Self::chunk(cookie, REPLY_TYPE_OFFSET_DATA, 8 + length).put(&offset.to_be_bytes())
    }

    /// The whole of a structured reply to a block status request: this and `length` bytes of extents in one metadata context.
    pub fn structured_status(cookie: u64, context: u32, length: u32) -> Self {
        Self::chunk(cookie, REPLY_TYPE_BLOCK_STATUS, 4 + length).put(&context.to_be_bytes())
    }

    /// The whole of a structured reply with an error, without a message. An error with an offset would say that the rest of
    /// the range is fine, which nobody here knows.
    pub fn structured_error(cookie: u64, error: u32) -> Self {
        Self::chunk(cookie, REPLY_TYPE_ERROR, 6)
            .put(&error.to_be_bytes())
            .put(&0u16.to_be_bytes())
    }
}

/// Bytes of the longest answer to a block status request for `length` bytes.
pub(super) fn status_bytes(length: u32) -> u32 {
    max_status_extents(length / SECTOR as u32) * StatusExtent::BYTES
}

/// Makes the engine's extents, little-endian in sectors, those of the wire: big-endian in bytes. The flags are the same.
pub(super) fn encode_extents(records: &mut [u8]) {
    for record in records
        .as_chunks_mut::<{ StatusExtent::BYTES as usize }>()
        .0
    {
        let [a, b, c, d, e, f, g, h] = *record;
        let words = [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes);
        let StatusExtent { sectors, flags } = StatusExtent::decode(&words);
        let bytes = sectors.wrapping_mul(SECTOR as u32);
        record[..4].copy_from_slice(&bytes.to_be_bytes());
        record[4..].copy_from_slice(&flags.to_be_bytes());
    }
}

/// The NBD error value for a negative errno value. It is not 0 unless the status is.
pub(super) fn error_value(status: i32) -> u32 {
    match -status {
        0 => 0,
        libc::EPERM | libc::EROFS => 1,
        libc::ENOMEM => 12,
        libc::EINVAL => 22,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => 28,
        libc::EOVERFLOW => 75,
        libc::EOPNOTSUPP => 95,
        libc::ESHUTDOWN => 108,
        _ => 5,
    }
}
