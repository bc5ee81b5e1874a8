//! Front ends on both back ends: NBD connections over real sockets, rings over real shared memory.

mod common;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{DIRECT, Host, READ_WRITE, Random, TempFile, on_both};
use port::event_fd;
use port::file::OpenOptions;
use port::nbd::NbdOptions;
use port::reactor::{BackendKind, Options};
use port::ring::{ENTRIES, MAPPING_BYTES};
use vhd::record::{FRONT_END_CLOSED, Op, OpKind, Response};

on_both! {
    nbd_over_unix
    nbd_over_unix_direct
    nbd_over_tcp
    nbd_bytes_received_before
    nbd_with_polling
    many_connections_under_back_pressure
    nobody_is_left_out
    a_client_that_goes_away
    a_client_that_never_reads
    detaching
    numbers_rest
    a_ring
    a_ring_with_polling
    rings_one_after_another_and_many_at_once
    a_ring_that_breaks_the_rules
    a_ring_detached_with_operations_in_flight
}

const SIZE: usize = 4 << 20;

/// Serves a file as front ends ask for it.
struct Server {
    host: Host,
    file: u16,
    /// By operation: the front end's number and slot.
    requests: HashMap<u32, (u32, u32)>,
    /// By front end and slot: operations left, and status.
    left: HashMap<(u32, u32), (usize, i32)>,
    ops: Vec<Op>,
    responses: Vec<Response>,
    closed: Vec<(u32, i32)>,
    woken: bool,
}

impl Server {
    fn new(options: Options, file: &TempFile, open: OpenOptions) -> Self {
        let mut host = Host::with(options);
        let file = host.open(file.path(), open);
        Self {
            host,
            file,
            requests: HashMap::new(),
            left: HashMap::new(),
            ops: Vec::new(),
            responses: Vec::new(),
            closed: Vec::new(),
            woken: false,
        }
    }

    fn nbd(&mut self, socket: impl Into<OwnedFd>) -> u32 {
        self.host
            .reactor
            .attach_nbd(socket.into(), &[], NbdOptions::default())
            .unwrap()
    }

    /// One turn. False if nothing happened for ten seconds.
    fn turn(&mut self) -> bool {
        let ops = std::mem::take(&mut self.ops);
        let responses = std::mem::take(&mut self.responses);
        let turn = self
            .host
            .turn(&ops, &responses, Some(Duration::from_secs(10)));
        for completion in self.host.completions(turn) {
            let key = self.requests.remove(&completion.id).unwrap();
            let (left, status) = self.left.get_mut(&key).unwrap();
            *left -= 1;
            *status = (*status).min(completion.result.min(0));
            if *left == 0 {
                let (_, status) = self.left.remove(&key).unwrap();
                self.responses.push(Response {
                    front_end: key.0,
                    slot: key.1,
                    status,
                    payload: 0,
                });
            }
        }
        for words in self.host.requests(turn) {
            self.request(&words);
        }
        self.woken |= turn.woken;
        turn.completions + turn.requests > 0 || turn.woken
    }

    fn request(&mut self, words: &[u32]) {
        let (front_end, slot, kind, error) =
            (words[0], words[1], words[2] as u8, words[3].cast_signed());
        if kind == FRONT_END_CLOSED {
            self.closed.push((front_end, error));
            return;
        }
        let sector = u64::from(words[4]) | u64::from(words[5]) << 32;
        let beyond = sector + u64::from(words[6]) > SIZE as u64 / 512;
        if error != 0 || beyond {
            let status = if error != 0 { error } else { -libc::EINVAL };
            self.responses.push(Response {
                front_end,
                slot,
                status,
                payload: 0,
            });
            return;
        }
        let mut ops = Vec::new();
        let template = common::op(OpKind::Sync, self.file, 0, 0);
        if kind == 2 {
            ops.push(template);
        }
        let mut at = sector * 512;
        for pair in words[8..8 + 2 * (words[2] >> 16 & 0xff) as usize].chunks(2) {
            let length = u64::from(pair[1]) * 512;
            let kind = if kind == 0 {
                OpKind::Read
            } else {
                OpKind::Write
            };
            ops.push(Op {
                kind,
                offset: at,
                length,
                region: words[7],
                buffer: pair[0],
                ..template
            });
            at += length;
        }
        self.left.insert((front_end, slot), (ops.len(), 0));
        for op in ops {
            self.host.ids += 1;
            self.requests.insert(self.host.ids, (front_end, slot));
            self.ops.push(Op {
                id: self.host.ids,
                ..op
            });
        }
    }

    fn serve(&mut self, clients: usize) {
        while self.closed.len() < clients {
            assert!(self.turn(), "nothing happened for ten seconds");
        }
    }
}

fn options(backend: BackendKind) -> Options {
    Options {
        backend,
        depth: 64,
        ..Options::default()
    }
}

fn nbd_request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// A stream whose two directions can be used by two threads.
trait Duplex: Sync {
    fn read_exact(&self, bytes: &mut [u8]);
    fn write_all(&self, bytes: &[u8]);
}

macro_rules! duplex {
    ($($stream:ty)*) => {
        $(impl Duplex for $stream {
            fn read_exact(&self, bytes: &mut [u8]) {
                Read::read_exact(&mut &*self, bytes).unwrap();
            }
            fn write_all(&self, bytes: &[u8]) {
                Write::write_all(&mut &*self, bytes).unwrap();
            }
        })*
    };
}
duplex!(UnixStream TcpStream);

/// Random verified reads and writes on some sectors of the disk, many at a time, then a disconnect.
fn nbd_client(stream: &dyn Duplex, seed: u64, first: u64, sectors: u64, rounds: usize) {
    let mut random = Random(seed);
    let mut model = vec![0u8; sectors as usize * 512];
    for round in 0..rounds {
        let mut bytes = Vec::new();
        let mut missing = HashMap::new();
        let mut at = 0;
        // Requests in flight together don't overlap.
        for cookie in 0.. {
            at += random.below(3) as usize;
            let count = [1, 2, 8, 8, 8, 40][random.below(6) as usize];
            let mut range = at * 512..(at + count) * 512;
            at += count;
            if round == 0 {
                range = 0..model.len();
            }
            if range.end > model.len() {
                bytes.extend(nbd_request(3, u64::MAX, 0, 0));
                missing.insert(u64::MAX, Vec::new());
                break;
            }
            let offset = first * 512 + range.start as u64;
            if round == 0 || random.below(2) == 0 {
                random.fill(&mut model[range.clone()]);
                bytes.extend(nbd_request(1, cookie, offset, range.len() as u32));
                bytes.extend(&model[range.clone()]);
                missing.insert(cookie, Vec::new());
            } else {
                bytes.extend(nbd_request(0, cookie, offset, range.len() as u32));
                missing.insert(cookie, model[range].to_vec());
            }
            if round == 0 {
                break;
            }
        }
        std::thread::scope(|scope| {
            scope.spawn(|| stream.write_all(&bytes));
            while !missing.is_empty() {
                let mut header = [0; 16];
                stream.read_exact(&mut header);
                assert_eq!(header[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
                let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
                let expected = missing.remove(&cookie).expect("a request in flight");
                let mut data = vec![0; expected.len()];
                stream.read_exact(&mut data);
                assert!(
                    data == expected,
                    "wrong data for request {cookie} of round {round}"
                );
            }
        });
    }
    stream.write_all(&nbd_request(2, 0, 0, 0));
}

fn serve_one(options: Options, open: OpenOptions) {
    let file = TempFile::with(&vec![0; SIZE]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = std::thread::spawn(move || {
        nbd_client(&theirs, 3, 100, 3000, 30);
        assert_eq!((&theirs).read(&mut [0]).unwrap(), 0);
    });
    let mut server = Server::new(options, &file, open);
    let number = server.nbd(ours);
    server.serve(1);
    assert_eq!(server.closed, [(number, 0)]);
    client.join().unwrap();
}

fn nbd_over_unix(backend: BackendKind) {
    serve_one(options(backend), READ_WRITE);
}

fn nbd_over_unix_direct(backend: BackendKind) {
    serve_one(options(backend), DIRECT);
}

fn nbd_with_polling(backend: BackendKind) {
    serve_one(
        Options {
            poll: Duration::from_micros(200),
            ..options(backend)
        },
        READ_WRITE,
    );
}

fn nbd_over_tcp(backend: BackendKind) {
    let file = TempFile::with(&vec![0; SIZE]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || {
        nbd_client(&TcpStream::connect(address).unwrap(), 4, 0, 2000, 20)
    });
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    let socket = listener.accept().unwrap().0;
    socket.set_nonblocking(true).unwrap();
    server.nbd(socket);
    server.serve(1);
    client.join().unwrap();
}

fn nbd_bytes_received_before(backend: BackendKind) {
    let file = TempFile::with(&vec![7; SIZE]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    let request = nbd_request(0, 5, 0, 512);
    server
        .host
        .reactor
        .attach_nbd(ours.into(), &request, NbdOptions::default())
        .unwrap();
    theirs.write_all(&nbd_request(2, 0, 0, 0));
    server.serve(1);
    let mut reply = Vec::new();
    (&theirs).read_to_end(&mut reply).unwrap();
    assert_eq!(
        (reply.len(), reply[16..].iter().all(|byte| *byte == 7)),
        (528, true)
    );
}

fn set_buffers(stream: &UnixStream) {
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        let size: libc::c_int = 4096;
        // SAFETY: the option takes an int.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                4,
            )
        };
        assert_eq!(result, 0);
    }
}

fn many_connections_under_back_pressure(backend: BackendKind) {
    const CLIENTS: u64 = 12;
    let file = TempFile::with(&vec![0; SIZE]);
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            set_buffers(&ours);
            set_buffers(&theirs);
            server.nbd(ours);
            std::thread::spawn(move || nbd_client(&theirs, 10 + client, client * 600, 600, 25))
        })
        .collect();
    server.serve(CLIENTS as usize);
    for client in clients {
        client.join().unwrap();
    }
}

/// Three clients, each with more requests than a turn reports.
fn nobody_is_left_out(backend: BackendKind) {
    let file = TempFile::with(&[]);
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            for cookie in 0..200 {
                theirs.write_all(&nbd_request(0, cookie, 0, 512));
            }
            (server.nbd(ours), theirs)
        })
        .collect();
    let mut seen = Vec::new();
    for _ in 0..6 {
        let turn = server.host.turn(&[], &[], Some(Duration::from_secs(1)));
        seen.extend(server.host.requests(turn).iter().map(|words| words[0]));
    }
    for (number, _) in &clients {
        assert!(
            seen.iter().filter(|other| *other == number).count() >= 64,
            "{seen:?}"
        );
    }
}

fn a_client_that_goes_away(backend: BackendKind) {
    let file = TempFile::with(&vec![0; SIZE]);
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    for cut in [0, 10, 28, 1000, 28 + 4096, 100_000] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        server.nbd(ours);
        let mut bytes = nbd_request(1, 0, 0, 4096);
        bytes.extend([1; 4096]);
        for cookie in 1..50 {
            bytes.extend(nbd_request(0, cookie, cookie * 65536, 65536));
        }
        theirs.write_all(&bytes[..cut.min(bytes.len())]);
        if cut > 1000 {
            // It goes while replies are on their way.
            server.turn();
        }
        drop(theirs);
        let before = server.closed.len();
        server.serve(before + 1);
    }
}

/// Neither other clients nor the end wait for it.
fn a_client_that_never_reads(backend: BackendKind) {
    let file = TempFile::with(&vec![0; SIZE]);
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    let (ours, stuck) = UnixStream::pair().unwrap();
    let number = server.nbd(ours);
    for cookie in 0..60 {
        stuck.write_all(&nbd_request(0, cookie, 0, 65536));
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    server.nbd(ours);
    let client = std::thread::spawn(move || nbd_client(&theirs, 8, 1000, 1000, 10));
    server.serve(1);
    client.join().unwrap();
    server.host.reactor.detach(number).unwrap();
    server.host.turn(&[], &[], Some(Duration::from_millis(50)));
    let start = Instant::now();
    drop(server);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(
        (&stuck).write(&[0; 10]).unwrap_err().kind(),
        std::io::ErrorKind::BrokenPipe
    );
}

fn detaching(backend: BackendKind) {
    let file = TempFile::with(&vec![0; SIZE]);
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let number = server.nbd(ours);
    server.host.turn(&[], &[], Some(Duration::ZERO));
    server.host.reactor.detach(number).unwrap();
    server.serve(1);
    assert_eq!((&theirs).read(&mut [0]).unwrap(), 0);
    assert_eq!(
        server.host.reactor.detach(number).unwrap_err().errno(),
        libc::EBADF
    );
    // A late response means nobody.
    server.responses.push(Response {
        front_end: number,
        slot: 0,
        status: 0,
        payload: 0,
    });
    server.responses.push(Response {
        front_end: 12345,
        slot: 0,
        status: 0,
        payload: 0,
    });
    let responses = std::mem::take(&mut server.responses);
    server.host.turn(&[], &responses, Some(Duration::ZERO));
}

fn numbers_rest(backend: BackendKind) {
    let file = TempFile::with(&[]);
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    let mut numbers = Vec::new();
    for round in 0..50 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let number = server.nbd(ours);
        assert!(!numbers.iter().rev().take(32).any(|other| *other == number));
        numbers.push(number);
        drop(theirs);
        server.serve(round + 1);
    }
    assert!(numbers.iter().all(|number| *number < 40));
}

/// The guest's side of a ring, just good enough.
struct Guest {
    base: *mut u8,
    kick: OwnedFd,
    notify: OwnedFd,
    produced: u32,
    consumed: u32,
}

// SAFETY: the mapping may be used from any thread.
unsafe impl Send for Guest {}

fn guest() -> (Guest, [OwnedFd; 3]) {
    // SAFETY: plain system calls; the descriptors are new, and the mapping too.
    unsafe {
        let memory = libc::memfd_create(
            c"ring".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        );
        assert_eq!(libc::ftruncate(memory, MAPPING_BYTES as i64), 0);
        assert_eq!(
            libc::fcntl(memory, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK),
            0
        );
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let base = libc::mmap(
            std::ptr::null_mut(),
            MAPPING_BYTES,
            access,
            libc::MAP_SHARED,
            memory,
            0,
        );
        assert_ne!(base, libc::MAP_FAILED);
        let memory = OwnedFd::from_raw_fd(memory);
        let (kick, notify) = (event_fd::create().unwrap(), event_fd::create().unwrap());
        let ours = [
            memory,
            kick.try_clone().unwrap(),
            notify.try_clone().unwrap(),
        ];
        (
            Guest {
                base: base.cast(),
                kick,
                notify,
                produced: 0,
                consumed: 0,
            },
            ours,
        )
    }
}

impl Guest {
    fn index(&self, at: usize) -> &std::sync::atomic::AtomicU32 {
        // SAFETY: an aligned place in the mapping.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(self.base.add(at).cast()) }
    }

    fn page(&mut self, id: u32, segment: u32) -> &mut [u8] {
        // SAFETY: the page lies in the mapping, and nobody uses it unless a request with this id is in flight.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.base.add(4096 * (1 + 11 * id + segment) as usize),
                4096,
            )
        }
    }

    fn put(&mut self, operation: u8, id: u32, sector: u64, segments: u8) {
        let mut entry = [0u8; 112];
        entry[0] = operation;
        entry[1] = segments;
        entry[8..16].copy_from_slice(&u64::from(id).to_le_bytes());
        entry[16..24].copy_from_slice(&sector.to_le_bytes());
        for segment in 0..usize::from(segments.min(11)) {
            entry[24 + segment * 8 + 5] = 7;
        }
        let at = 64 + 112 * (self.produced % ENTRIES) as usize;
        // SAFETY: the entry lies in the ring page.
        unsafe {
            self.base
                .add(at)
                .copy_from_nonoverlapping(entry.as_ptr(), 112)
        };
        self.produced += 1;
    }

    fn kick(&self) {
        use std::sync::atomic::Ordering::SeqCst;
        self.index(0).store(self.produced, SeqCst);
        let event = self.index(4).load(SeqCst);
        if self.produced.wrapping_sub(event) < ENTRIES {
            event_fd::add(self.kick.as_raw_fd());
        }
    }

    /// Waits for a response: id and status.
    fn response(&mut self) -> (u32, i16) {
        use std::sync::atomic::Ordering::SeqCst;
        while self.index(8).load(SeqCst) == self.consumed {
            self.index(12).store(self.consumed + 1, SeqCst);
            if self.index(8).load(SeqCst) == self.consumed {
                let mut poll = libc::pollfd {
                    fd: self.notify.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one pollfd.
                let count = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
                assert_eq!(count, 1, "no notification");
                event_fd::take(self.notify.as_raw_fd());
            }
        }
        let at = 64 + 112 * (self.consumed % ENTRIES) as usize;
        self.consumed += 1;
        let mut entry = [0u8; 16];
        // SAFETY: the entry lies in the ring page.
        unsafe {
            entry
                .as_mut_ptr()
                .copy_from_nonoverlapping(self.base.add(at), 16)
        };
        (
            u64::from_le_bytes(entry[..8].try_into().unwrap()) as u32,
            i16::from_le_bytes(entry[10..12].try_into().unwrap()),
        )
    }

    /// Writes a value with 32 requests of 11 pages, and reads it into pages that had another.
    fn write_and_read(&mut self, value: u8) {
        for operation in [1, 0] {
            for id in 0..32 {
                for segment in 0..11 {
                    self.page(id, segment).fill(value * operation);
                }
                self.put(operation, id, u64::from(id) * 88, 11);
            }
            self.kick();
            for _ in 0..32 {
                assert_eq!(self.response().1, 0);
            }
        }
        for id in 0..32 {
            for segment in 0..11 {
                assert!(self.page(id, segment).iter().all(|byte| *byte == value));
            }
        }
    }

    /// Random verified reads and writes, 32 at a time.
    fn work(&mut self) {
        let mut random = Random(77);
        let mut model = vec![0u8; SIZE];
        for round in 0..200 {
            let mut reads = HashMap::new();
            let mut sector = 0;
            let count = 1 + random.below(32) as u32;
            for id in 0..count {
                sector += random.below(20);
                let segments = 1 + random.below(11) as u8;
                let start = sector as usize * 512;
                if random.below(2) == 0 {
                    for segment in 0..u32::from(segments) {
                        let at = start + segment as usize * 4096;
                        random.fill(self.page(id, segment));
                        model[at..at + 4096].copy_from_slice(self.page(id, segment));
                    }
                    self.put(1, id, sector, segments);
                } else {
                    self.put(0, id, sector, segments);
                    reads.insert(id, (start, segments));
                }
                sector += u64::from(segments) * 8;
                if random.below(8) == 0 {
                    self.kick();
                }
            }
            self.kick();
            for _ in 0..count {
                let (id, status) = self.response();
                assert_eq!(status, 0, "round {round}");
                if let Some((start, segments)) = reads.remove(&id) {
                    for segment in 0..u32::from(segments) {
                        let at = start + segment as usize * 4096;
                        assert!(
                            *self.page(id, segment) == model[at..at + 4096],
                            "round {round}"
                        );
                    }
                }
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `guest`.
        unsafe { libc::munmap(self.base.cast(), MAPPING_BYTES) };
    }
}

fn ring_works(options: Options) {
    let file = TempFile::with(&vec![0; SIZE]);
    let mut server = Server::new(options, &file, READ_WRITE);
    let (mut guest, [memory, kick, notify]) = guest();
    let number = server
        .host
        .reactor
        .attach_ring(memory, kick, notify)
        .unwrap();
    let wake = server.host.reactor.wake_fd();
    let client = std::thread::spawn(move || {
        guest.work();
        event_fd::add(wake);
        guest
    });
    while !server.woken {
        assert!(server.turn());
    }
    drop(client.join().unwrap());
    server.host.reactor.detach(number).unwrap();
    server.serve(1);
    assert_eq!(server.closed, [(number, 0)]);
}

fn a_ring(backend: BackendKind) {
    ring_works(options(backend));
}

fn a_ring_with_polling(backend: BackendKind) {
    ring_works(Options {
        poll: Duration::from_micros(100),
        ..options(backend)
    });
}

/// Their memory may be mapped where that of others was, and there may be more of it than can be registered.
fn rings_one_after_another_and_many_at_once(backend: BackendKind) {
    for open in [READ_WRITE, DIRECT] {
        let file = TempFile::with(&vec![0; SIZE]);
        let mut server = Server::new(options(backend), &file, open);
        let wake = server.host.reactor.wake_fd();
        let mut value = 0;
        for count in [1, 1, 1, 20, 1] {
            let (guests, numbers): (Vec<_>, Vec<_>) = (0..count)
                .map(|_| {
                    let (guest, [memory, kick, notify]) = guest();
                    let attached = server.host.reactor.attach_ring(memory, kick, notify);
                    (guest, attached.unwrap())
                })
                .unzip();
            let first = value + 1;
            value += count;
            let client = std::thread::spawn(move || {
                for (mut guest, value) in guests.into_iter().zip(first..) {
                    guest.write_and_read(value);
                }
                event_fd::add(wake);
            });
            while !server.woken {
                assert!(server.turn());
            }
            client.join().unwrap();
            server.woken = false;
            assert!(
                file.bytes()[..32 * 11 * 4096]
                    .iter()
                    .all(|byte| *byte == value)
            );
            server.closed.clear();
            for number in numbers {
                server.host.reactor.detach(number).unwrap();
            }
            server.serve(usize::from(count));
        }
    }
}

fn a_ring_that_breaks_the_rules(backend: BackendKind) {
    let file = TempFile::with(&vec![0; SIZE]);
    let mut server = Server::new(options(backend), &file, READ_WRITE);
    let (mut guest, [memory, kick, notify]) = guest();
    let number = server
        .host
        .reactor
        .attach_ring(memory, kick, notify)
        .unwrap();
    guest.produced = 1000;
    guest
        .index(0)
        .store(1000, std::sync::atomic::Ordering::SeqCst);
    event_fd::add(guest.kick.as_raw_fd());
    server.serve(1);
    assert_eq!(server.closed, [(number, -libc::EPROTO)]);
    // Its memory is of no use any more.
    server.host.turn(&[], &[], Some(Duration::ZERO));
    assert_eq!(
        server
            .host
            .run_one(common::read(server.file, 0, 512, 1, 4096)),
        -libc::EFAULT
    );
}

fn a_ring_detached_with_operations_in_flight(backend: BackendKind) {
    let file = TempFile::with(&vec![5; SIZE]);
    let mut server = Server::new(options(backend), &file, DIRECT);
    let (mut guest, [memory, kick, notify]) = guest();
    let number = server
        .host
        .reactor
        .attach_ring(memory, kick, notify)
        .unwrap();
    for id in 0..32 {
        guest.put(0, id, u64::from(id) * 88, 11);
    }
    guest.kick();
    while server.ops.is_empty() {
        server.turn();
    }
    // A host that answers before the operations are over: the memory must outlive them.
    let ops = std::mem::take(&mut server.ops);
    let responses: Vec<_> = (0..32)
        .map(|slot| Response {
            front_end: number,
            slot,
            status: 0,
            payload: 0,
        })
        .collect();
    server.host.reactor.detach(number).unwrap();
    server.host.turn(&ops, &responses, Some(Duration::ZERO));
    for _ in 0..ops.len() {
        server.host.turn(&[], &[], Some(Duration::from_millis(20)));
    }
    assert_eq!(
        server
            .host
            .run_one(common::read(server.file, 0, 512, 1, 4096)),
        -libc::EFAULT
    );
    assert_eq!(guest.page(31, 10)[4095], 5);
}
