//! Connections without a socket: bytes are put where `receive_into` says and taken from where `send_from` says, in pieces
//! of any size, and the requests are served from a byte vector in any order.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use vhd::record::{
    FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE, FRONT_END_CLOSED, FrontEndRequest,
    RequestKind, Response, StatusExtent, max_status_extents,
};

use super::{FrontEnd, MAX_IN_FLIGHT, NbdConnection, NbdOptions, Stream};
use crate::pool::tests::Random;
use crate::pool::{MAX_ALLOCATION, Pool};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// A command as it goes over the wire.
fn command(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn pool() -> Rc<RefCell<Pool>> {
    let mut pool = Pool::new(0).unwrap();
    pool.set_region(3);
    Rc::new(RefCell::new(pool))
}

fn connection(options: NbdOptions, received: &[u8], pool: &Rc<RefCell<Pool>>) -> NbdConnection {
    let socket = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    NbdConnection::new(socket, received, options, Rc::clone(pool))
}

const SIMPLE: NbdOptions = NbdOptions {
    structured_replies: false,
    allocation_context: None,
    read_only: false,
};
const STRUCTURED: NbdOptions = NbdOptions {
    structured_replies: true,
    ..SIMPLE
};
const WITH_STATUS: NbdOptions = NbdOptions {
    allocation_context: Some(CONTEXT),
    ..STRUCTURED
};
/// The id of the metadata context.
const CONTEXT: u32 = 0x0102_0304;

/// Puts bytes in, at most `piece` at a time, as long as the connection takes them. Returns how many it took.
fn feed(connection: &mut NbdConnection, bytes: &[u8], piece: usize) -> usize {
    let mut fed = 0;
    while fed < bytes.len() {
        let Some((at, room)) = connection.receive_into() else {
            break;
        };
        assert_eq!(
            connection.receive_into(),
            Some((at, room)),
            "asked again, it says the same"
        );
        assert!(room > 0);
        let count = room.min(piece).min(bytes.len() - fed);
        // SAFETY: the connection says that there is room.
        unsafe { at.copy_from_nonoverlapping(bytes[fed..].as_ptr(), count) };
        connection.received(count);
        fed += count;
    }
    fed
}

fn pull(connection: &mut NbdConnection) -> Vec<FrontEndRequest> {
    let mut out = Vec::new();
    connection.pull(8, &mut out, 1000);
    out
}

fn answer(connection: &mut NbdConnection, request: &FrontEndRequest, status: i32) {
    answer_with(connection, request, status, 0);
}

fn answer_with(
    connection: &mut NbdConnection,
    request: &FrontEndRequest,
    status: i32,
    payload: u32,
) {
    connection.push(&Response {
        front_end: 8,
        slot: request.slot,
        status,
        payload,
    });
}

/// Puts extents where a block status request wants them, as the engine does.
fn put_extents(pool: &Rc<RefCell<Pool>>, request: &FrontEndRequest, extents: &[StatusExtent]) {
    let words = extents.iter().flat_map(StatusExtent::encode);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    // SAFETY: there is room for them, and the memory is ours until the request is answered.
    unsafe { data(pool, request).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

/// Takes up to `most` bytes of what is to be sent.
fn send(connection: &mut NbdConnection, vectors: usize, most: usize) -> Vec<u8> {
    let mut list = Vec::new();
    connection.send_from(&mut list, vectors);
    assert!(list.len() <= vectors);
    let mut bytes = Vec::new();
    for vector in list {
        assert!(vector.iov_len > 0);
        // SAFETY: the connection says that there are so many bytes.
        bytes.extend(unsafe {
            std::slice::from_raw_parts(vector.iov_base.cast::<u8>(), vector.iov_len)
        });
    }
    bytes.truncate(most);
    if !bytes.is_empty() {
        connection.sent(bytes.len());
    }
    bytes
}

fn send_all(connection: &mut NbdConnection) -> Vec<u8> {
    send(connection, 1024, usize::MAX)
}

fn data(pool: &Rc<RefCell<Pool>>, request: &FrontEndRequest) -> *mut u8 {
    assert_eq!((request.nr_segments, request.region), (1, 3));
    let segment = request.segments[0];
    assert_eq!(segment.sectors, request.sectors);
    assert!(
        segment.buffer.is_multiple_of(4096),
        "file I/O wants aligned memory"
    );
    let bytes = match request.operation {
        operation if operation == RequestKind::BlockStatus as u8 => {
            max_status_extents(segment.sectors) * StatusExtent::BYTES
        }
        _ => segment.sectors * 512,
    };
    assert!((segment.buffer + bytes) as usize <= pool.borrow().len());
    // SAFETY: the segment lies in the pool.
    unsafe { pool.borrow().base().add(segment.buffer as usize) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A reply as a client understands it.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    cookie: u64,
    error: u32,
    data: Vec<u8>,
}

/// Takes one whole reply from the front of `stream`. `reads` says which cookies belong to reads: where, and how long.
fn parse_reply(
    stream: &mut Vec<u8>,
    structured: bool,
    reads: &HashMap<u64, (u64, u32)>,
) -> Option<Reply> {
    if stream.len() < if structured { 20 } else { 16 } {
        return None;
    }
    let cookie = u64_at(stream, 8);
    let (head, length, error);
    if structured {
        assert_eq!(u32_at(stream, 0), 0x668e_33ef);
        let (flags, kind) = (u32_at(stream, 4) >> 16, u32_at(stream, 4) & 0xffff);
        assert_eq!(flags, 1, "one chunk is the whole reply");
        let payload = u32_at(stream, 16) as usize;
        if stream.len() < 20 + payload {
            return None;
        }
        match kind {
            0 => {
                assert_eq!(payload, 0);
                assert!(!reads.contains_key(&cookie), "a read has data");
                (head, length, error) = (20, 0, 0);
            }
            1 => {
                assert_eq!((u64_at(stream, 20), payload as u32 - 8), reads[&cookie]);
                (head, length, error) = (28, payload - 8, 0);
            }
            5 => {
                assert!(!reads.contains_key(&cookie), "a read has data");
                assert_eq!(u32_at(stream, 20), CONTEXT);
                assert!(payload > 4 && payload % 8 == 4, "whole extents");
                (head, length, error) = (24, payload - 4, 0);
            }
            0x8001 => {
                assert_eq!(payload, 6);
                assert_eq!(stream[24..26], [0, 0], "no message");
                (head, length, error) = (26, 0, u32_at(stream, 20));
                assert_ne!(error, 0);
            }
            _ => panic!("chunk type {kind}"),
        }
    } else {
        assert_eq!(u32_at(stream, 0), 0x6744_6698);
        error = u32_at(stream, 4);
        head = 16;
        length = if error == 0 {
            reads.get(&cookie).map_or(0, |&(_, length)| length as usize)
        } else {
            0
        };
        if stream.len() < head + length {
            return None;
        }
    }
    let data = stream[head..head + length].to_vec();
    stream.drain(..head + length);
    Some(Reply {
        cookie,
        error,
        data,
    })
}

// ---- a random conversation ----

const DISK: u64 = 1 << 20;

/// What a command of the random client must lead to.
#[derive(Clone, Debug)]
enum Expected {
    /// A request like this, with this payload if it writes.
    Served {
        kind: RequestKind,
        flags: u8,
        offset: u64,
        length: u32,
        payload: Vec<u8>,
    },
    /// This error.
    Refused(u32),
}

struct Client {
    random: Random,
    options: NbdOptions,
    stream: Vec<u8>,
    expected: Vec<Expected>,
    reads: HashMap<u64, (u64, u32)>,
}

impl Client {
    fn speak(&mut self) {
        let random = &mut self.random;
        let cookie = self.expected.len() as u64 ^ 0xfeed_0000_0000_0000;
        let kind = [
            READ, READ, READ, WRITE, WRITE, WRITE, FLUSH, TRIM, ZEROES, CACHE, STATUS, 9, 0xffff,
        ][random.below(13) as usize];
        let mut length = random.size(300) as u32 * 512;
        let mut offset = random.below((DISK - u64::from(length)) / 512 + 1) * 512;
        if kind == FLUSH {
            (offset, length) = (0, 0);
        }
        let mut flags = 0;
        let mut expected = None;
        let mut refuse = |error| expected = Some(Expected::Refused(error));
        let has_status = self.options.allocation_context.is_some();
        match kind {
            CACHE | 9 | 0xffff => refuse(EINVAL),
            STATUS if !has_status => refuse(EINVAL),
            WRITE | TRIM | ZEROES if self.options.read_only => refuse(EPERM),
            FLUSH => match random.below(8) {
                0 => (offset, _) = (512, refuse(EINVAL)),
                1 => (length, _) = (512, refuse(EINVAL)),
                _ => {}
            },
            _ => match random.below(12) {
                0 => (offset, _) = (offset | 1, refuse(EINVAL)),
                1 => (length, _) = (length - 1, refuse(EINVAL)),
                2 => (length, _) = (0, refuse(EINVAL)),
                3 => {
                    (offset, _) = (
                        (u64::MAX - u64::from(length)) / 512 * 512 + 512,
                        refuse(EINVAL),
                    )
                }
                4 if kind == READ => (length, _) = (MAX_ALLOCATION + 512, refuse(EINVAL)),
                _ => {}
            },
        }
        let mut engine_flags = 0;
        for (bit, flag) in [
            (0, FLAG_FUA),
            (1, FLAG_NO_HOLE),
            (2, 0),
            (4, FLAG_FAST_ZERO),
            (3, FLAG_REQ_ONE),
            (5, 0),
            (15, 0),
        ] {
            if random.below(8) != 0 {
                continue;
            }
            let valid = match bit {
                0 => true,
                1 | 4 => kind == ZEROES,
                2 => kind == READ && self.options.structured_replies,
                3 => kind == STATUS && has_status,
                _ => false,
            };
            flags |= 1 << bit;
            if !valid {
                // Flags are looked at first.
                expected = Some(Expected::Refused(EINVAL));
            } else if bit == 3 || matches!(kind, WRITE | TRIM | ZEROES) {
                engine_flags |= flag;
            }
        }
        let mut payload = Vec::new();
        if kind == WRITE {
            let seed = random.next();
            payload = (0..length)
                .map(|at| (u64::from(at) ^ seed >> (at % 56)) as u8)
                .collect();
        }
        self.stream
            .extend(command(flags, kind, cookie, offset, length));
        self.stream.extend(&payload);
        if kind == READ {
            self.reads.insert(cookie, (offset, length));
        }
        self.expected.push(expected.unwrap_or(Expected::Served {
            kind: match kind {
                READ => RequestKind::Read,
                WRITE => RequestKind::Write,
                FLUSH => RequestKind::Flush,
                TRIM => RequestKind::Discard,
                STATUS => RequestKind::BlockStatus,
                _ => RequestKind::WriteZeroes,
            },
            flags: engine_flags,
            offset,
            length,
            payload,
        }));
    }
}

/// Serves a request: its status and payload, and what the client must be told.
fn serve(
    disk: &mut [u8],
    pool: &Rc<RefCell<Pool>>,
    request: &FrontEndRequest,
    expected: &Expected,
    random: &mut Random,
) -> (i32, u32, u32, Vec<u8>) {
    let Expected::Served {
        kind,
        flags,
        offset,
        length,
        payload,
    } = expected
    else {
        let Expected::Refused(error) = expected else {
            unreachable!()
        };
        assert_eq!(request.error, -(error.cast_signed()));
        return (request.error, 0, *error, Vec::new());
    };
    assert_eq!(
        (request.error, request.operation, request.flags),
        (0, *kind as u8, *flags)
    );
    assert_eq!(
        (request.sector * 512, request.sectors * 512),
        (*offset, *length)
    );
    let range = *offset as usize..*offset as usize + *length as usize;
    if *kind == RequestKind::Write {
        // SAFETY: the request's memory is ours until it is answered.
        let arrived = unsafe { std::slice::from_raw_parts(data(pool, request), range.len()) };
        assert_eq!(arrived, payload);
    }
    let failures = [
        (libc::EIO, EIO),
        (libc::ENOSPC, 28),
        (libc::EROFS, EPERM),
        (libc::EDQUOT, 28),
        (libc::ENOENT, EIO),
    ];
    if random.below(10) == 0 {
        let (errno, error) = failures[random.below(5) as usize];
        return (-errno, 0, error, Vec::new());
    }
    match kind {
        RequestKind::Read => {
            // SAFETY: as above.
            unsafe {
                data(pool, request)
                    .copy_from_nonoverlapping(disk[range.clone()].as_ptr(), range.len())
            };
            return (0, 0, 0, disk[range].to_vec());
        }
        RequestKind::BlockStatus => {
            let count = 1 + random.below(u64::from(max_status_extents(request.sectors)));
            let extents: Vec<StatusExtent> = (0..count)
                .map(|_| StatusExtent {
                    sectors: 1 + random.below(1000) as u32,
                    flags: random.below(4) as u32,
                })
                .collect();
            put_extents(pool, request, &extents);
            let words = extents
                .iter()
                .flat_map(|extent| [extent.sectors * 512, extent.flags]);
            return (
                0,
                count as u32,
                0,
                words.flat_map(u32::to_be_bytes).collect(),
            );
        }
        RequestKind::Write => disk[range].copy_from_slice(payload),
        RequestKind::WriteZeroes | RequestKind::Discard => disk[range].fill(0),
        _ => assert_eq!(request.nr_segments, 0),
    }
    (0, 0, 0, Vec::new())
}

/// How a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Disconnect,
    Hangup,
    WrongMagic,
    Broken,
    Detach,
}

fn converse(seed: u64) {
    let mut random = Random(seed);
    let structured_replies = random.below(2) == 0;
    let options = NbdOptions {
        structured_replies,
        allocation_context: (structured_replies && random.below(2) == 0).then_some(CONTEXT),
        read_only: random.below(6) == 0,
    };
    let end = [
        End::Disconnect,
        End::Hangup,
        End::WrongMagic,
        End::Broken,
        End::Detach,
    ][random.below(5) as usize];
    let mut client = Client {
        random: Random(seed + 1000),
        options,
        stream: Vec::new(),
        expected: Vec::new(),
        reads: HashMap::new(),
    };
    for _ in 0..random.size(400) {
        client.speak();
    }
    let mut input = std::mem::take(&mut client.stream);
    match end {
        End::Disconnect => input.extend(command(0, DISC, 0, 0, 0)),
        End::WrongMagic => input.extend([0x25, 0x60, 0x95, 0x14].iter().chain(&[0; 40])),
        _ => {}
    }
    let early = random.size(input.len() as u64).min(input.len() as u64) as usize
        * usize::from(random.below(2) == 0);
    let pool = pool();
    let mut connection = connection(options, &input[..early], &pool);
    let mut fed = early;
    let mut disk: Vec<u8> = (0..DISK).map(|at| ((at * 7) >> 3) as u8).collect();
    let mut held: Vec<FrontEndRequest> = Vec::new();
    let mut order = HashMap::new();
    let (mut pulled, mut answered, mut closed) = (0, HashMap::new(), false);
    let (mut output, mut replies, mut ended) = (Vec::new(), HashMap::new(), false);
    let stop_at = random.below(input.len() as u64 + 1) as usize;
    let lazy = random.below(3);
    for round in 0..200_000 {
        if closed {
            break;
        }
        assert!(round < 199_999, "seed {seed}: nothing happens any more");
        match random.below(if lazy == 0 { 8 } else { 4 }) {
            0 if !ended => {
                let piece = random.size(200_000) as usize;
                fed += feed(
                    &mut connection,
                    &input[fed..(fed + piece).min(input.len())],
                    piece,
                );
                let stop = match end {
                    End::Broken | End::Detach => fed >= stop_at,
                    End::Hangup => fed == input.len(),
                    _ => false,
                };
                if stop {
                    ended = true;
                    match end {
                        End::Broken => connection.broken(),
                        End::Detach => connection.detach(),
                        _ => {
                            if connection.receive_into().is_some() {
                                connection.received(0);
                            } else {
                                ended = false;
                            }
                        }
                    }
                }
            }
            1 => {
                let mut batch = Vec::new();
                connection.pull(8, &mut batch, random.size(300) as usize);
                for request in batch {
                    assert!(!closed, "nothing follows the closing record");
                    if request.operation == FRONT_END_CLOSED {
                        closed = true;
                        continue;
                    }
                    assert!(
                        order
                            .insert(request.slot, pulled)
                            .is_none_or(|old| answered.contains_key(&old))
                    );
                    pulled += 1;
                    held.push(request);
                    assert!(held.len() <= MAX_IN_FLIGHT);
                }
            }
            2 => {
                for _ in 0..random.below(held.len() as u64 + 1) {
                    let request = held.swap_remove(random.below(held.len() as u64) as usize);
                    let number = order[&request.slot];
                    let (status, payload, error, bytes) = serve(
                        &mut disk,
                        &pool,
                        &request,
                        &client.expected[number],
                        &mut random,
                    );
                    answered.insert(number, (error, bytes));
                    answer_with(&mut connection, &request, status, payload);
                }
            }
            _ => {
                let most = random.size(200_000) as usize;
                output.extend(send(&mut connection, random.size(1024) as usize, most));
                while let Some(reply) =
                    parse_reply(&mut output, options.structured_replies, &client.reads)
                {
                    let number = (reply.cookie ^ 0xfeed_0000_0000_0000) as usize;
                    assert!(
                        replies.insert(number, (reply.error, reply.data)).is_none(),
                        "two replies to one request"
                    );
                }
            }
        }
    }
    assert!(pull(&mut connection).is_empty() && connection.receive_into().is_none());
    if end != End::Broken {
        assert!(output.is_empty());
        let shut_down = (108, Vec::new());
        for (number, reply) in &replies {
            let expected = answered.get(number).unwrap_or(&shut_down);
            assert!(
                reply == expected,
                "seed {seed}, command {number}: {} instead of {}",
                reply.0,
                expected.0
            );
        }
        assert!(answered.keys().all(|number| replies.contains_key(number)));
    }
    if matches!(end, End::Disconnect | End::Hangup | End::WrongMagic) {
        assert_eq!(
            (pulled, replies.len()),
            (client.expected.len(), client.expected.len()),
            "seed {seed}"
        );
    }
    let all = pool.borrow().len();
    assert_eq!(
        pool.borrow().available() as usize,
        all,
        "seed {seed}: {end:?}"
    );
    drop(connection);
    assert_eq!(pool.borrow().available() as usize, all);
}

#[test]
fn random_conversations() {
    (0..150).for_each(converse);
}

// ---- one thing at a time ----

#[test]
fn simple_replies_to_the_byte() {
    let pool = pool();
    let mut connection = connection(
        SIMPLE,
        &command(0, READ, 0x0102_0304_0506_0708, 1024, 512),
        &pool,
    );
    let [read] = pull(&mut connection).try_into().unwrap();
    assert_eq!((read.front_end, read.sector, read.sectors), (8, 2, 1));
    // SAFETY: the request's memory is ours until it is answered.
    unsafe { data(&pool, &read).write_bytes(0x5a, 512) };
    answer(&mut connection, &read, 0);
    feed(&mut connection, &command(0, READ, 9, 0, 512), 100);
    let [failed] = pull(&mut connection).try_into().unwrap();
    answer(&mut connection, &failed, -libc::EIO);
    assert!(!connection.kick());
    let mut expected = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    expected.extend([0x5a; 512]);
    // The error is positive, and no data follow it.
    expected.extend([0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9]);
    assert_eq!(send_all(&mut connection), expected);
}

#[test]
fn structured_replies_to_the_byte() {
    let pool = pool();
    let mut connection = connection(STRUCTURED, &[], &pool);
    let mut input = command(0, READ, 1, 0x1_0000_0200, 512);
    input.extend(command(0, READ, 2, 0, 512));
    input.extend(command(0, FLUSH, 3, 0, 0));
    input.extend(command(0, 77, 4, 0, 0));
    feed(&mut connection, &input, 7);
    let requests = pull(&mut connection);
    // SAFETY: the request's memory is ours until it is answered.
    unsafe { data(&pool, &requests[0]).write_bytes(0xa5, 512) };
    for (request, status) in requests.iter().zip([0, -libc::EIO, 0, requests[3].error]) {
        answer(&mut connection, request, status);
    }
    let mut expected = vec![
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 8,
    ];
    expected.extend([0, 0, 0, 1, 0, 0, 2, 0]);
    expected.extend([0xa5; 512]);
    expected.extend([
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 6, 0, 0, 0, 5, 0, 0,
    ]);
    expected.extend([
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0,
    ]);
    expected.extend([
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 22, 0,
        0,
    ]);
    assert_eq!(send_all(&mut connection), expected);
}

#[test]
fn block_status_to_the_byte() {
    let pool = pool();
    let mut connection = connection(WITH_STATUS, &[], &pool);
    let all = [
        command(0, STATUS, 1, 512, 1536),
        command(1 << 3, STATUS, 2, 0, 0xffff_fe00),
        command(0, STATUS, 3, 0, 512),
        command(0, STATUS, 4, 0, 512),
    ];
    feed(&mut connection, &all.concat(), usize::MAX);
    let requests = pull(&mut connection);
    let seen = |request: &FrontEndRequest| (request.flags, request.sector, request.sectors);
    assert_eq!(
        requests.iter().map(seen).collect::<Vec<_>>(),
        [
            (0, 1, 3),
            (FLAG_REQ_ONE, 0, 0x007f_ffff),
            (0, 0, 1),
            (0, 0, 1)
        ]
    );
    let extent = |sectors, flags| StatusExtent { sectors, flags };
    put_extents(&pool, &requests[0], &[extent(2, 3), extent(1, 0)]);
    put_extents(&pool, &requests[1], &[extent(0x007f_ffff, 0)]);
    answer_with(&mut connection, &requests[0], 0, 2);
    answer_with(&mut connection, &requests[1], 0, 1);
    // An answer without extents is none, and more than there is room for are not believed.
    answer_with(&mut connection, &requests[2], 0, 0);
    put_extents(&pool, &requests[3], &[extent(1, 1)]);
    answer_with(&mut connection, &requests[3], 0, u32::MAX);
    let header = |kind: u16, cookie: u64, length: u32| {
        let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
        bytes.extend([0, 1]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|w| w.to_be_bytes()).collect() };
    let expected = [
        header(5, 1, 20),
        words(&[CONTEXT, 1024, 3, 512, 0]),
        header(5, 2, 12),
        words(&[CONTEXT, 0xffff_fe00, 0]),
        header(0x8001, 3, 6),
        vec![0, 0, 0, 5, 0, 0],
        header(5, 4, 12),
        words(&[CONTEXT, 512, 1]),
    ];
    assert_eq!(send_all(&mut connection), expected.concat());
    let all = pool.borrow().len();
    assert_eq!(pool.borrow().available() as usize, all);
}

#[test]
fn block_status_needs_its_context_and_a_sensible_range() {
    let refused = |options, flags, offset, length| {
        let pool = pool();
        let bytes = command(flags, STATUS, 1, offset, length);
        let mut connection = connection(options, &bytes, &pool);
        let requests = pull(&mut connection);
        assert_eq!(requests.len(), 1);
        requests[0].error == -libc::EINVAL
    };
    assert!(!refused(WITH_STATUS, 0, 0, 512));
    assert!(refused(STRUCTURED, 0, 0, 512));
    assert!(refused(SIMPLE, 0, 0, 512));
    let without_structure = NbdOptions {
        structured_replies: false,
        ..WITH_STATUS
    };
    assert!(refused(without_structure, 0, 0, 512));
    assert!(refused(WITH_STATUS, 0, 0, 0));
    assert!(refused(WITH_STATUS, 0, 0, 513));
    assert!(refused(WITH_STATUS, 0, 1, 512));
    assert!(refused(WITH_STATUS, 0, u64::MAX - 511, 512));
    assert!(refused(WITH_STATUS, 1 << 2, 0, 512));
    // FUA means nothing here, and is allowed with everything.
    assert!(!refused(WITH_STATUS, 1, 0, 512));
}

#[test]
fn error_values() {
    for (errno, error) in [
        (0, 0),
        (libc::EPERM, 1),
        (libc::EROFS, 1),
        (libc::EIO, 5),
        (libc::ENOMEM, 12),
        (libc::EINVAL, 22),
        (libc::ENOSPC, 28),
        (libc::EDQUOT, 28),
        (libc::EFBIG, 28),
        (libc::EOVERFLOW, 75),
        (libc::ENOTSUP, 95),
        (libc::ESHUTDOWN, 108),
        (libc::ENOENT, 5),
        (libc::ETIMEDOUT, 5),
    ] {
        assert_eq!(super::wire::error_value(-errno), error);
    }
    assert_eq!(
        super::wire::error_value(7),
        5,
        "whatever isn't 0 is an error"
    );
}

#[test]
fn a_large_write_goes_straight_into_its_place() {
    let pool = pool();
    let length = MAX_ALLOCATION;
    let mut connection = connection(SIMPLE, &[], &pool);
    assert_eq!(
        feed(&mut connection, &command(0, WRITE, 1, 0, length), 1000),
        28
    );
    let (at, room) = connection.receive_into().unwrap();
    assert_eq!(room, length as usize);
    let base = pool.borrow().base().addr();
    assert!((base..base + pool.borrow().len()).contains(&at.addr()));
    connection.received(1000);
    let (next, room) = connection.receive_into().unwrap();
    assert_eq!(
        (next.addr(), room),
        (at.addr() + 1000, length as usize - 1000)
    );
    assert!(pull(&mut connection).is_empty());
    connection.received(room - 100);
    let (next, _) = connection.receive_into().unwrap();
    assert!(
        !(base..base + pool.borrow().len()).contains(&next.addr()),
        "a short rest comes with what follows it"
    );
    let mut rest = vec![7; 100];
    rest.extend(command(0, FLUSH, 2, 0, 0));
    feed(&mut connection, &rest, 1000);
    let requests = pull(&mut connection);
    assert_eq!((requests.len(), requests[0].sectors), (2, length / 512));
    // SAFETY: the request's memory is ours until it is answered.
    let last = unsafe { data(&pool, &requests[0]).add(length as usize - 1).read() };
    assert_eq!(last, 7);
}

#[test]
fn writes_that_are_too_large() {
    let pool = pool();
    let mut one = connection(
        STRUCTURED,
        &command(0, WRITE, 1, 0, 2 * MAX_ALLOCATION),
        &pool,
    );
    let waste = vec![0; 1 << 20];
    (0..64).for_each(|_| assert_eq!(feed(&mut one, &waste, usize::MAX), waste.len()));
    feed(&mut one, &command(0, FLUSH, 2, 0, 0), 100);
    let errors: Vec<_> = pull(&mut one).iter().map(|request| request.error).collect();
    assert_eq!(errors, [-libc::EINVAL, 0]);
    let mut two = connection(
        STRUCTURED,
        &command(0, WRITE, 1, 0, 2 * MAX_ALLOCATION + 512),
        &pool,
    );
    assert_eq!(pull(&mut two)[0].operation, FRONT_END_CLOSED);
}

#[test]
fn requests_in_flight_are_bounded_and_go_on() {
    let pool = pool();
    let mut connection = connection(SIMPLE, &[], &pool);
    let input: Vec<u8> = (0..1000)
        .flat_map(|cookie| command(0, READ, cookie, 0, 4096))
        .collect();
    assert_eq!(feed(&mut connection, &input, usize::MAX), input.len());
    let mut requests = pull(&mut connection);
    let mut served = 0;
    loop {
        served += requests.len();
        assert!(pull(&mut connection).is_empty());
        assert!(connection.receive_into().is_none() || served == 1000);
        requests
            .iter()
            .for_each(|request| answer(&mut connection, request, 0));
        assert!(
            !pool.borrow_mut().take_wakeup(),
            "replies aren't sent: nothing is free"
        );
        send_all(&mut connection);
        if served == 1000 {
            return;
        }
        assert!(pool.borrow_mut().take_wakeup());
        requests = pull(&mut connection);
        assert_eq!(requests.len(), MAX_IN_FLIGHT.min(1000 - served));
    }
}

#[test]
fn a_connection_that_ends_leaves_the_line() {
    let pool = pool();
    let input = command(0, READ, 1, 0, MAX_ALLOCATION);
    let mut holder = connection(SIMPLE, &input, &pool);
    let mut quitter = connection(SIMPLE, &input, &pool);
    let mut patient = connection(SIMPLE, &input, &pool);
    let [held] = pull(&mut holder).try_into().unwrap();
    assert!(pull(&mut quitter).is_empty() && pull(&mut patient).is_empty());
    quitter.detach();
    answer(&mut holder, &held, -libc::EIO);
    assert!(pool.borrow_mut().take_wakeup());
    assert_eq!(pull(&mut quitter)[0].operation, FRONT_END_CLOSED);
    assert_eq!(pull(&mut patient).len(), 1);
}

#[test]
fn a_client_that_reads_nothing_does_not_stall_the_others() {
    let pool = pool();
    let read = |cookie| command(0, READ, cookie, 0, 1 << 20);
    let greedy_input: Vec<u8> = (0..200).flat_map(read).collect();
    let mut greedy = connection(SIMPLE, &greedy_input, &pool);
    let stalled = pull(&mut greedy);
    assert!((8..40).contains(&stalled.len()), "{}", stalled.len());
    stalled
        .iter()
        .for_each(|request| answer(&mut greedy, request, 0));
    assert!(greedy.receive_into().is_none());
    let mut other = connection(SIMPLE, &[], &pool);
    let mut served = 0;
    let input: Vec<u8> = (0..500)
        .flat_map(|cookie| command(0, READ, cookie, 0, 1 << (9 + cookie % 13)))
        .collect();
    let mut fed = 0;
    while served < 500 {
        fed += feed(&mut other, &input[fed..], usize::MAX);
        let requests = pull(&mut other);
        assert!(!requests.is_empty());
        served += requests.len();
        requests
            .iter()
            .for_each(|request| answer(&mut other, request, 0));
        send_all(&mut other);
    }
    // The greedy one's memory comes back when it goes.
    greedy.broken();
    assert_eq!(pull(&mut greedy)[0].operation, FRONT_END_CLOSED);
    assert_eq!(pool.borrow().available() as usize, pool.borrow().len());
}

#[test]
fn several_stalled_clients_leave_room_for_ordinary_requests() {
    let pool = pool();
    let small: Vec<u8> = (0..300)
        .flat_map(|cookie| command(0, READ, cookie, 0, 1 << 20))
        .collect();
    let mut stalled: Vec<_> = (0..6).map(|_| connection(SIMPLE, &small, &pool)).collect();
    stalled.push(connection(
        SIMPLE,
        &command(0, READ, 1, 0, MAX_ALLOCATION),
        &pool,
    ));
    for hog in &mut stalled {
        assert!(!pull(hog).is_empty());
    }
    let mut other = connection(SIMPLE, &[], &pool);
    for power in 9..=20 {
        feed(&mut other, &command(0, READ, power, 0, 1 << power), 28);
        let [request] = pull(&mut other).try_into().unwrap();
        answer(&mut other, &request, 0);
        send_all(&mut other);
    }
}

#[test]
fn connections_that_wait_for_large_memory_take_turns() {
    let pool = pool();
    let input: Vec<u8> = (0..3)
        .flat_map(|cookie| command(0, READ, cookie, 0, MAX_ALLOCATION))
        .collect();
    let mut all: Vec<_> = (0..4)
        .map(|_| connection(STRUCTURED, &input, &pool))
        .collect();
    let mut served = [0; 4];
    pool.borrow_mut().wake();
    while served.iter().sum::<u32>() < 12 {
        assert!(pool.borrow_mut().take_wakeup(), "{served:?}");
        let requests: Vec<_> = all.iter_mut().map(pull).collect();
        for (index, requests) in requests.iter().enumerate() {
            for request in requests {
                answer(&mut all[index], request, 0);
                served[index] += 1;
                let mut vectors = Vec::new();
                all[index].send_from(&mut vectors, 10);
                assert_eq!(
                    vectors.iter().map(|vector| vector.iov_len).sum::<usize>(),
                    28 + (32 << 20)
                );
                all[index].sent(28 + (32 << 20));
            }
        }
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(most - least <= 1, "{served:?}");
    }
}

#[test]
fn after_a_disconnect_nothing_is_read() {
    let pool = pool();
    let mut input = command(0, FLUSH, 1, 0, 0);
    input.extend(command(0, DISC, 2, 0, 0));
    input.extend(command(0, FLUSH, 3, 0, 0));
    let mut connection = connection(SIMPLE, &input, &pool);
    let [flush] = pull(&mut connection).try_into().unwrap();
    assert!(connection.receive_into().is_none());
    assert!(pull(&mut connection).is_empty(), "a request is in flight");
    answer(&mut connection, &flush, 0);
    assert!(pull(&mut connection).is_empty(), "its reply isn't sent");
    assert_eq!(send_all(&mut connection).len(), 16);
    assert_eq!(pull(&mut connection)[0].operation, FRONT_END_CLOSED);
}

#[test]
fn detaching_waits_for_a_receive_into_the_pool() {
    let pool = pool();
    let mut connection = connection(SIMPLE, &[], &pool);
    let mut input = command(0, FLUSH, 1, 0, 0);
    input.extend(command(0, WRITE, 2, 0, 1 << 20));
    feed(&mut connection, &input, 1000);
    assert!(connection.receive_into().unwrap().1 == 1 << 20);
    connection.detach();
    let reply = send_all(&mut connection);
    assert_eq!(reply[4..8], [0, 0, 0, 108]);
    assert!(pull(&mut connection).is_empty());
    assert_eq!(
        pool.borrow().available() as usize,
        pool.borrow().len() - (1 << 20),
        "the kernel may be writing there"
    );
    connection.received(0);
    assert_eq!(pool.borrow().available() as usize, pool.borrow().len());
    assert_eq!(pull(&mut connection)[0].operation, FRONT_END_CLOSED);
}

#[test]
fn dropping_early_leaks_rather_than_reuses() {
    let pool = pool();
    let mut input = command(0, READ, 1, 0, 4096);
    input.extend(command(0, WRITE, 2, 0, 1 << 20));
    let mut connection = connection(SIMPLE, &[], &pool);
    feed(&mut connection, &input, 1000);
    assert_eq!(pull(&mut connection).len(), 1);
    assert!(connection.receive_into().is_some());
    drop(connection);
    assert_eq!(
        pool.borrow().available() as usize,
        pool.borrow().len() - (1 << 20) - 4096
    );
}
