//! How NBD looks on the wire: the numbers of its `proto.md`, and how requests and replies are laid out. All is big-endian.

/// What a server says first.
pub(crate) const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Comes next, and before each option.
pub(crate) const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Comes next where there are no options.
pub(crate) const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
pub(crate) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

pub(crate) const FIXED_NEWSTYLE: u16 = 1;
pub(crate) const NO_ZEROES: u16 = 2;

/// `NBD_OPT_GO`.
pub(crate) const GO: u32 = 7;

pub(crate) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const INFO: u32 = 3;
    /// Those with this bit are errors.
    pub(crate) const ERROR: u32 = 1 << 31;
}

/// `NBD_INFO_EXPORT`.
pub(crate) const INFO_EXPORT: u16 = 0;

/// What an export can do.
pub(crate) mod flag {
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
}

const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

pub(crate) const REQUEST_BYTES: usize = 28;
pub(crate) const REPLY_BYTES: usize = 16;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
}

/// The header of a request without flags.
pub(crate) fn request(
    command: Command,
    cookie: u64,
    offset: u64,
    length: u32,
) -> [u8; REQUEST_BYTES] {
    let mut header = [0; REQUEST_BYTES];
    header[..4].copy_from_slice(&REQUEST.to_be_bytes());
    header[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..].copy_from_slice(&length.to_be_bytes());
    header
}

/// The header of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// 0, or an errno.
    pub(crate) error: u32,
    pub(crate) cookie: u64,
}

/// Reads the header of a reply.
///
/// # Errors
/// When it is none, in words.
pub(crate) fn reply(header: &[u8; REPLY_BYTES]) -> Result<Reply, String> {
    let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = *header;
    match u32::from_be_bytes([m0, m1, m2, m3]) {
        SIMPLE_REPLY => Ok(Reply {
            error: u32::from_be_bytes([e0, e1, e2, e3]),
            cookie: u64::from_be_bytes(cookie),
        }),
        STRUCTURED_REPLY => Err("a structured reply, which nobody asked for".to_owned()),
        magic => Err(format!(
            "a reply begins with {magic:#010x}, not {SIMPLE_REPLY:#010x}"
        )),
    }
}
