//! A small NBD server in the test's own process, which does what the test wants after shaking hands.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use ::load::{Options, Result, Rw};
use nbd_load::bench::{Disk, run};
use nbd_load::socket::Address;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub const DISK_BYTES: u64 = 64 << 20;
/// Can flush and trim.
pub const FLAGS: u16 = 1 | 1 << 2 | 1 << 5;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;

/// What a client asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
    /// Of a write.
    pub data: Vec<u8>,
}

/// Any stream that works both ways.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Serves one client on a new socket with what `work` does.
pub fn serve<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&mut UnixStream) -> T + Send + 'static,
) -> (Address, JoinHandle<T>) {
    let path = std::env::temp_dir().join(format!("nbd-load-{}-{name}", std::process::id()));
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(&path).unwrap();
    let address = Address::Unix(path.clone());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::fs::remove_file(&path).unwrap();
        work(&mut stream)
    });
    (address, server)
}

/// The same on loopback.
pub fn serve_tcp<T: Send + 'static>(
    work: impl FnOnce(&mut std::net::TcpStream) -> T + Send + 'static,
) -> (Address, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    let server = std::thread::spawn(move || work(&mut listener.accept().unwrap().0));
    (address, server)
}

/// Shakes hands, and offers a disk. Returns the name of the export that was asked for.
pub fn shake_hands(stream: &mut impl Stream, flags: u16) -> String {
    let name = greet(stream, 3);
    let mut export = vec![0, 0];
    export.extend(DISK_BYTES.to_be_bytes());
    export.extend(flags.to_be_bytes());
    // One that nobody asked for.
    reply_to_option(stream, 3, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
    reply_to_option(stream, 3, &export);
    reply_to_option(stream, 1, &[]);
    name
}

/// Says how it shakes hands, and takes the option, which must be NBD_OPT_GO. Returns the name of the export.
pub fn greet(stream: &mut impl Stream, flags: u16) -> String {
    stream.write_all(b"NBDMAGICIHAVEOPT").unwrap();
    stream.write_all(&flags.to_be_bytes()).unwrap();
    let words: [u8; 20] = take(stream);
    assert_eq!(&words[..4], u32::from(flags).to_be_bytes());
    assert_eq!(&words[4..16], b"IHAVEOPT\0\0\0\x07");
    let mut option = vec![0; u32_at(&words, 16) as usize];
    stream.read_exact(&mut option).unwrap();
    let length = u32_at(&option, 0) as usize;
    assert_eq!(option.len(), 4 + length + 2);
    assert!(option.ends_with(&[0, 0]));
    String::from_utf8(option[4..4 + length].to_vec()).unwrap()
}

pub fn reply_to_option(stream: &mut impl Stream, kind: u32, data: &[u8]) {
    let mut reply = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    reply.extend(7u32.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend((data.len() as u32).to_be_bytes());
    reply.extend(data);
    stream.write_all(&reply).unwrap();
}

/// The next request; nothing when the client takes its leave.
pub fn next_request(stream: &mut impl Stream) -> Option<Request> {
    let header: [u8; 28] = take(stream);
    assert_eq!(&header[..6], [0x25, 0x60, 0x95, 0x13, 0, 0]);
    let mut request = Request {
        command: u16::from_be_bytes([header[6], header[7]]),
        cookie: u64_at(&header, 8),
        offset: u64_at(&header, 16),
        length: u32_at(&header, 24),
        data: Vec::new(),
    };
    if request.command == 2 {
        assert_eq!(
            stream.read(&mut [0]).unwrap(),
            0,
            "it says good-bye and goes"
        );
        return None;
    }
    if request.command == WRITE {
        request.data = vec![0; request.length as usize];
        stream.read_exact(&mut request.data).unwrap();
    }
    Some(request)
}

/// Whether the client says something more, soon.
pub fn has_more(stream: &UnixStream) -> bool {
    let mut polls = [PollFd::new(stream, PollFlags::IN)];
    let soon = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    poll(&mut polls, Some(&soon)).unwrap() > 0
}

/// Waits until the client hangs up, reading nothing.
pub fn wait_for_hang_up(stream: &UnixStream) {
    poll(&mut [PollFd::new(stream, PollFlags::HUP)], None).unwrap();
}

/// A reply that tells of success, with data when it was a read. The data look like replies.
pub fn reply(request: &Request) -> Vec<u8> {
    let mut reply = reply_header(0x6744_6698, 0, request.cookie);
    if request.command == READ {
        let data = reply_header(0x6744_6698, 5, request.cookie);
        reply.extend(data.iter().cycle().take(request.length as usize));
    }
    reply
}

pub fn reply_header(magic: u32, error: u32, cookie: u64) -> Vec<u8> {
    let mut header = magic.to_be_bytes().to_vec();
    header.extend(error.to_be_bytes());
    header.extend(cookie.to_be_bytes());
    header
}

/// Answers everything at once, until the client goes. Returns what was asked.
pub fn answer_all(stream: &mut impl Stream) -> Vec<Request> {
    shake_hands(stream, FLAGS);
    let mut requests = Vec::new();
    while let Some(request) = next_request(stream) {
        stream.write_all(&reply(&request)).unwrap();
        requests.push(request);
    }
    requests
}

fn take<const COUNT: usize>(stream: &mut impl Stream) -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Waits until the client is gone, whatever it says.
pub fn wait_for_end(stream: &mut impl Stream) {
    match std::io::copy(stream, &mut std::io::sink()) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => {}
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Random reads for a short while.
pub const OPTIONS: Options = Options {
    rw: Rw::Randread,
    bs: 4096,
    depth: 8,
    time: Duration::from_millis(100),
    span: 0,
    align: 0,
    seed: 1,
    poll: Duration::ZERO,
};

pub fn disk(address: &Address) -> Disk<'_> {
    Disk {
        address,
        export: "",
        timeout: Duration::from_secs(60),
        flush_each: false,
    }
}

/// Puts a load on one disk.
pub fn load(address: &Address, options: &Options) -> Result<String> {
    run(&[disk(address)], options)
}

/// A number in the line.
pub fn number(line: &str, name: &str) -> u64 {
    let report: serde_json::Value = serde_json::from_str(line).unwrap();
    report[name].as_u64().unwrap()
}
