//! What comes before requests: the fixed newstyle handshake.

use load::{Result, fail};

use crate::socket::Socket;
use crate::wire::{
    FIXED_NEWSTYLE, GO, GREETING, INFO_EXPORT, NO_ZEROES, OLDSTYLE, OPTION, OPTION_REPLY, flag,
    option_reply,
};

/// Names aren't longer.
const MOST_NAME_BYTES: usize = 4096;
/// What a server has to say isn't longer.
const MOST_REPLY_BYTES: u32 = 1 << 16;

/// What the server says of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) bytes: u64,
    flags: u16,
}

impl Export {
    pub(crate) fn is_read_only(self) -> bool {
        self.flags & flag::READ_ONLY != 0
    }

    pub(crate) fn can_flush(self) -> bool {
        self.flags & flag::SEND_FLUSH != 0
    }

    pub(crate) fn can_trim(self) -> bool {
        self.flags & flag::SEND_TRIM != 0
    }
}

/// Asks for an export. After that the server takes requests.
pub(crate) fn shake_hands(socket: &Socket, name: &str) -> Result<Export> {
    if name.len() > MOST_NAME_BYTES {
        fail!("the export's name has more than {MOST_NAME_BYTES} bytes");
    }
    let greeting: [u8; 8] = socket.receive_exactly()?;
    if u64::from_be_bytes(greeting) != GREETING {
        fail!(
            "the server says '{}', not 'NBDMAGIC': does it speak NBD?",
            greeting.escape_ascii()
        );
    }
    match u64::from_be_bytes(socket.receive_exactly()?) {
        OPTION => {}
        OLDSTYLE => fail!("the server shakes hands in the old style"),
        magic => fail!("the server's greeting goes on with {magic:#018x}"),
    }
    let flags = u16::from_be_bytes(socket.receive_exactly()?);
    if flags & FIXED_NEWSTYLE == 0 {
        fail!("the server doesn't shake hands in the fixed new style");
    }
    let mut words = Vec::new();
    words.extend(u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes());
    words.extend(OPTION.to_be_bytes());
    words.extend(GO.to_be_bytes());
    // A name, its length before it, and no wishes for more than what is told anyhow.
    words.extend((name.len() as u32 + 6).to_be_bytes());
    words.extend((name.len() as u32).to_be_bytes());
    words.extend(name.as_bytes());
    words.extend(0u16.to_be_bytes());
    socket.send_all(&words)?;
    let mut export = None;
    loop {
        let (kind, text) = receive_reply(socket)?;
        match (kind, text.as_slice()) {
            (option_reply::ACK, []) => break,
            (option_reply::INFO, [i0, i1, rest @ ..]) => {
                if u16::from_be_bytes([*i0, *i1]) == INFO_EXPORT {
                    let [size @ .., f0, f1] = rest else {
                        fail!("the server tells of an export in {} bytes", text.len());
                    };
                    let Ok(size) = size.try_into() else {
                        fail!("the server tells of an export in {} bytes", text.len());
                    };
                    export = Some(Export {
                        bytes: u64::from_be_bytes(size),
                        flags: u16::from_be_bytes([*f0, *f1]),
                    });
                }
            }
            _ if kind & option_reply::ERROR != 0 => fail!(
                "the server refused the export '{name}': {}{}{}",
                error_name(kind),
                if text.is_empty() { "" } else { ": " },
                String::from_utf8_lossy(&text)
            ),
            _ => fail!(
                "the server answers with {} bytes of an unknown kind {kind}",
                text.len()
            ),
        }
    }
    match export {
        Some(export) => Ok(export),
        None => fail!("the server told nothing of the export '{name}'"),
    }
}

/// A reply to the option: its kind, and what it brings.
fn receive_reply(socket: &Socket) -> Result<(u32, Vec<u8>)> {
    let magic = u64::from_be_bytes(socket.receive_exactly()?);
    if magic != OPTION_REPLY {
        fail!("a reply to an option begins with {magic:#018x}, not {OPTION_REPLY:#018x}");
    }
    let option = u32::from_be_bytes(socket.receive_exactly()?);
    if option != GO {
        fail!("a reply to option {option}, but {GO} was asked");
    }
    let kind = u32::from_be_bytes(socket.receive_exactly()?);
    let length = u32::from_be_bytes(socket.receive_exactly()?);
    if length > MOST_REPLY_BYTES {
        fail!("a reply to an option has {length} bytes");
    }
    let mut text = vec![0; length as usize];
    socket.fill(&mut text)?;
    Ok((kind, text))
}

fn error_name(kind: u32) -> String {
    let name = match kind & !option_reply::ERROR {
        1 => "it doesn't know NBD_OPT_GO",
        2 => "forbidden by its policy",
        3 => "an invalid request",
        4 => "not supported here",
        5 => "it wants TLS",
        6 => "there is no such export",
        7 => "it is shutting down",
        8 => "it wants to tell its block sizes first",
        9 => "too long",
        _ => return format!("error {kind:#010x}"),
    };
    name.to_owned()
}
