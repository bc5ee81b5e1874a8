use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use vhd::record::{FRONT_END_CLOSED, FrontEndRequest, RequestKind, Response};

use super::{
    MAPPING_BYTES, Mapping, PAGE, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, Ring, receive_ring,
};
use crate::front_end::FrontEnd;

fn memfd(bytes: usize, seals: i32) -> OwnedFd {
    memfd_of(0, bytes, seals)
}

fn memfd_of(kind: libc::c_uint, bytes: usize, seals: i32) -> OwnedFd {
    // SAFETY: plain system calls with a C string and numbers.
    unsafe {
        let fd = libc::memfd_create(
            c"ring".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | kind,
        );
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, bytes as libc::off_t), 0);
        assert_eq!(libc::fcntl(fd, libc::F_ADD_SEALS, seals), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn event() -> OwnedFd {
    // SAFETY: a plain system call whose result is checked.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

/// A guest without judgement: it does what it is told.
struct Guest {
    page: Mapping,
    memory: OwnedFd,
}

impl Guest {
    fn new(start: u32) -> Self {
        let memory = memfd(MAPPING_BYTES, libc::F_SEAL_SHRINK);
        let page = Mapping::new(&memory).unwrap();
        let guest = Self { page, memory };
        for (index, value) in [
            (REQ_PROD, start),
            (REQ_EVENT, start + 1),
            (RSP_PROD, start),
            (RSP_EVENT, start + 1),
        ] {
            guest.index(index).store(value, Ordering::Relaxed);
        }
        guest
    }

    fn ring(&self) -> Ring {
        let mut ring = Ring::new(self.memory.try_clone().unwrap(), event(), event()).unwrap();
        ring.set_region(9);
        ring
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        self.page.index(offset)
    }

    fn words(&self, index: u32) -> &[AtomicU64; 14] {
        self.page.entry(index)
    }

    fn put(
        &self,
        index: u32,
        operation: u8,
        second: u8,
        id: u64,
        sector: u64,
        segments: &[(u8, u8)],
    ) {
        let words = self.words(index);
        words[0].store(
            u64::from(operation) | u64::from(second) << 8 | 0xabcd << 16,
            Ordering::Relaxed,
        );
        words[1].store(id, Ordering::Relaxed);
        words[2].store(sector, Ordering::Relaxed);
        for (word, (first, last)) in words[3..].iter().zip(segments) {
            word.store(
                0x1234_5678 | u64::from(*first) << 32 | u64::from(*last) << 40,
                Ordering::Relaxed,
            );
        }
        self.index(REQ_PROD)
            .store(index.wrapping_add(1), Ordering::Release);
    }

    fn response(&self, index: u32) -> (u64, u8, i16) {
        let words = self.words(index);
        let tail = words[1].load(Ordering::Relaxed);
        (
            words[0].load(Ordering::Relaxed),
            tail as u8,
            (tail >> 16) as i16,
        )
    }
}

fn pull(ring: &mut Ring) -> Vec<FrontEndRequest> {
    let mut out = Vec::new();
    ring.pull(4, &mut out, 100);
    out
}

fn answer(ring: &mut Ring, request: &FrontEndRequest, status: i32) {
    ring.push(&Response {
        front_end: 4,
        slot: request.slot,
        status,
        payload: 0,
    });
}

#[test]
fn a_request_and_its_response() {
    let guest = Guest::new(0);
    let mut ring = guest.ring();
    assert!(pull(&mut ring).is_empty());
    assert!(!ring.arm() && !ring.has_requests());
    assert_eq!(guest.index(REQ_EVENT).load(Ordering::Relaxed), 1);
    guest.put(0, 1, 3, 30, 1000, &[(0, 7), (2, 2), (5, 7)]);
    assert!(ring.has_requests());
    let [request] = pull(&mut ring).try_into().unwrap();
    assert_eq!(
        (request.front_end, request.region, request.error),
        (4, 9, 0)
    );
    assert_eq!(
        (request.operation, request.flags),
        (RequestKind::Write as u8, 0)
    );
    assert_eq!(
        (request.sector, request.sectors, request.nr_segments),
        (1000, 12, 3)
    );
    let segments: Vec<_> = request.segments[..3]
        .iter()
        .map(|one| (one.buffer, one.sectors))
        .collect();
    let page = |segment: u32| (1 + 30 * 11 + segment) * 4096;
    assert_eq!(
        segments,
        [(page(0), 8), (page(1) + 1024, 1), (page(2) + 2560, 3)]
    );
    assert_eq!(
        guest.index(REQ_EVENT).load(Ordering::Relaxed),
        1,
        "not before sleeping"
    );
    assert!(!ring.kick(), "nothing to publish");
    answer(&mut ring, &request, 0);
    assert_eq!(
        guest.index(RSP_PROD).load(Ordering::Relaxed),
        0,
        "not before the kick"
    );
    assert!(ring.kick());
    assert_eq!(guest.index(RSP_PROD).load(Ordering::Relaxed), 1);
    assert_eq!(guest.response(0), (30, 1, 0));
    assert!(!ring.kick());
    // SAFETY: the last byte of the mapping.
    unsafe { ring.base().add(ring.len() - 1).write_volatile(1) };
    assert_eq!(ring.len(), 353 * PAGE);
}

#[test]
fn what_is_accepted() {
    let full: Vec<_> = vec![(0, 7); 11];
    let einval = -libc::EINVAL;
    let unknown = -libc::EOPNOTSUPP;
    // operation, second byte, id, sector, segments; error, kind
    type Case<'a> = (u8, u8, u64, u64, &'a [(u8, u8)], i32, RequestKind);
    let cases: &[Case<'_>] = &[
        (0, 11, 31, 7, &full, 0, RequestKind::Read),
        (0, 1, 0, 0, &[(7, 7)], 0, RequestKind::Read),
        (0, 0, 0, 0, &full, einval, RequestKind::Read),
        (1, 12, 0, 0, &full, einval, RequestKind::Write),
        (1, 255, 0, 0, &full, einval, RequestKind::Write),
        (0, 1, 0, 0, &[(4, 3)], einval, RequestKind::Read),
        (0, 1, 0, 0, &[(0, 8)], einval, RequestKind::Read),
        (0, 1, 0, 0, &[(255, 255)], einval, RequestKind::Read),
        (0, 2, 0, 0, &[(0, 7), (0, 8)], einval, RequestKind::Read),
        (0, 1, 32, 0, &full, einval, RequestKind::Flush),
        (0, 1, 1 << 32, 0, &full, einval, RequestKind::Flush),
        (0, 1, u64::MAX, 0, &full, einval, RequestKind::Flush),
        (0, 1, 0, u64::MAX - 7, &full, einval, RequestKind::Read),
        (0, 1, 0, u64::MAX - 8, &full, 0, RequestKind::Read),
        (2, 1, 0, 0, &full, unknown, RequestKind::Flush),
        (3, 0, 5, 77, &full, 0, RequestKind::Flush),
        (3, 1, 5, 0, &full, einval, RequestKind::Flush),
        (4, 1, 0, 0, &full, unknown, RequestKind::Flush),
        (5, 0, 5, 8, &[(0, 0)], 0, RequestKind::Discard),
        (5, 1, 5, 8, &[(0, 0)], unknown, RequestKind::Discard),
        (5, 2, 5, 8, &[(0, 0)], einval, RequestKind::Discard),
        (5, 0, 5, u64::MAX, &[(0, 0)], einval, RequestKind::Discard),
        (5, 0, 5, 0, &[(1, 0)], einval, RequestKind::Discard),
        (6, 1, 0, 0, &full, unknown, RequestKind::Flush),
        (255, 1, 0, 0, &full, unknown, RequestKind::Flush),
    ];
    let guest = Guest::new(0);
    let mut ring = guest.ring();
    for (index, &(operation, second, id, sector, segments, error, kind)) in cases.iter().enumerate()
    {
        let index = index as u32;
        guest.put(index, operation, second, id, sector, segments);
        let [request] = pull(&mut ring).try_into().unwrap();
        assert_eq!(request.error, error, "{index}");
        assert_eq!(request.operation, kind as u8, "{index}");
        if error != 0 {
            assert_eq!((request.sectors, request.nr_segments), (0, 0), "{index}");
        } else if kind == RequestKind::Discard {
            assert_eq!(
                (request.sector, request.sectors, request.nr_segments),
                (8, 0x1234_5678, 0)
            );
        } else if kind == RequestKind::Flush {
            assert_eq!(
                (request.sector, request.sectors, request.nr_segments),
                (0, 0, 0)
            );
        }
        answer(&mut ring, &request, error);
        ring.kick();
        let status = if error == 0 {
            0
        } else if error == unknown {
            -2
        } else {
            -1
        };
        assert_eq!(guest.response(index), (id, operation, status));
    }
}

#[test]
fn an_entry_is_reused_while_its_first_request_is_in_flight() {
    let guest = Guest::new(0);
    let mut ring = guest.ring();
    for index in 0..32 {
        guest.put(index, 0, 1, index.into(), 0, &[(0, 7)]);
    }
    let first = pull(&mut ring);
    assert_eq!(first.len(), 32);
    // All but the first are answered; entry 0 gets a response although request 0 is in flight, and is then reused.
    first[1..]
        .iter()
        .for_each(|request| answer(&mut ring, request, 0));
    ring.kick();
    guest.put(32, 0, 1, 1, 0, &[(0, 7)]);
    guest.put(33, 0, 1, 0, 0, &[(0, 7)]);
    let second = pull(&mut ring);
    assert_eq!(second[0].error, 0);
    assert_eq!(second[0].segments[0].buffer, (1 + 11) * 4096);
    assert_eq!(
        second[1].error,
        -libc::EINVAL,
        "the data pages of id 0 are in use"
    );
    answer(&mut ring, &second[1], -libc::EINVAL);
    answer(&mut ring, &first[0], 0);
    ring.kick();
    guest.put(34, 0, 1, 0, 0, &[(0, 7)]);
    assert_eq!(pull(&mut ring)[0].error, 0, "id 0 is free again");
}

#[test]
fn an_impossible_index_ends_the_ring() {
    for (answered, beyond) in [(0, 33), (0, 1 << 31), (1, 34), (0, u32::MAX)] {
        let guest = Guest::new(0);
        let mut ring = guest.ring();
        guest.put(0, 0, 1, 0, 0, &[(0, 7)]);
        let [request] = pull(&mut ring).try_into().unwrap();
        if answered == 1 {
            answer(&mut ring, &request, 0);
            ring.kick();
        }
        guest.index(REQ_PROD).store(beyond, Ordering::Release);
        let mut closing = pull(&mut ring);
        if answered == 0 {
            assert!(closing.is_empty(), "a request is in flight");
            answer(&mut ring, &request, 0);
            assert!(pull(&mut ring).is_empty(), "its response isn't published");
            ring.kick();
            closing = pull(&mut ring);
        }
        let [closing] = closing.try_into().unwrap();
        assert_eq!(
            (closing.operation, closing.error),
            (FRONT_END_CLOSED, -libc::EPROTO)
        );
        guest.put(1, 0, 1, 0, 0, &[(0, 7)]);
        assert!(pull(&mut ring).is_empty());
    }
}

#[test]
fn detaching() {
    let guest = Guest::new(0);
    let mut ring = guest.ring();
    guest.put(0, 0, 1, 0, 0, &[(0, 7)]);
    let [request] = pull(&mut ring).try_into().unwrap();
    guest.put(1, 0, 1, 1, 0, &[(0, 7)]);
    ring.detach();
    assert!(pull(&mut ring).is_empty());
    answer(&mut ring, &request, 0);
    ring.kick();
    assert_eq!(pull(&mut ring)[0].operation, FRONT_END_CLOSED);
    assert!(pull(&mut ring).is_empty());
}

#[test]
fn the_limit_of_a_pull() {
    let guest = Guest::new(u32::MAX - 3);
    let mut ring = guest.ring();
    for index in 0..10u32 {
        guest.put(
            (u32::MAX - 3).wrapping_add(index),
            3,
            0,
            index.into(),
            0,
            &[],
        );
    }
    let mut out = Vec::new();
    ring.pull(4, &mut out, 4);
    assert_eq!(out.len(), 4);
    ring.pull(4, &mut out, 4);
    assert_eq!(out.len(), 4);
    ring.pull(4, &mut out, 20);
    assert_eq!(out.len(), 10);
}

#[test]
fn notifications_as_the_guest_asked() {
    // published before, published now, rsp_event; notification?
    for (old, new, event, expected) in [
        (0u32, 1u32, 1u32, true),
        (0, 1, 2, false),
        (0, 3, 2, true),
        (0, 3, 3, true),
        (0, 3, 4, false),
        (5, 6, 5, false),
        (5, 6, 1, false),
        (u32::MAX, 1, u32::MAX, false),
        (u32::MAX, 1, 0, true),
        (u32::MAX, 1, 1, true),
        (u32::MAX, 1, 2, false),
    ] {
        let guest = Guest::new(0);
        for index in [REQ_PROD, RSP_PROD] {
            guest.index(index).store(old, Ordering::Relaxed);
        }
        let mut ring = guest.ring();
        guest.index(RSP_EVENT).store(event, Ordering::Relaxed);
        for index in 0..new.wrapping_sub(old) {
            guest.put(old.wrapping_add(index), 3, 0, index.into(), 0, &[]);
        }
        for request in pull(&mut ring) {
            answer(&mut ring, &request, 0);
        }
        assert_eq!(ring.kick(), expected, "{old} {new} {event}");
    }
}

#[test]
fn the_ring_message() {
    let guest = Guest::new(0);
    let ring = guest.ring();
    assert_eq!(ring.message(), 0);
    guest.page.message().store(3, Ordering::Relaxed);
    assert_eq!(ring.message(), 3);
}

#[test]
fn memory_that_is_refused() {
    let try_with = |memory: OwnedFd| {
        Ring::new(memory, event(), event())
            .map(drop)
            .map_err(|error| error.kind())
    };
    assert_eq!(try_with(memfd(MAPPING_BYTES, libc::F_SEAL_SHRINK)), Ok(()));
    assert_eq!(
        try_with(memfd(
            MAPPING_BYTES + 1,
            libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL
        )),
        Ok(())
    );
    let refused = Err(io::ErrorKind::InvalidInput);
    assert_eq!(
        try_with(memfd(MAPPING_BYTES - 1, libc::F_SEAL_SHRINK)),
        refused
    );
    assert_eq!(try_with(memfd(MAPPING_BYTES, libc::F_SEAL_GROW)), refused);
    assert_eq!(try_with(memfd(MAPPING_BYTES, 0)), refused);
    let huge = memfd_of(libc::MFD_HUGETLB, 4 << 20, libc::F_SEAL_SHRINK);
    assert_eq!(
        try_with(huge),
        refused,
        "huge pages that its client punches out may not come back"
    );
    assert_eq!(try_with(event()), refused);
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert_eq!(
        try_with(file.into()),
        refused,
        "an ordinary file can be truncated"
    );
    let (socket, _) = UnixStream::pair().unwrap();
    assert_eq!(try_with(socket.into()), refused);
}

// ---- the handover ----

const GREETING: &[u8; 16] = b"TAPRING1\x01\0\0\0\0\0\0\0";

fn send(socket: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    let mut control = [0u64; 32];
    let payload = size_of_val(fds) as u32;
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the message is zeroed and then names buffers that live until it is sent; `control` has room for 60 descriptors.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        if !fds.is_empty() {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(payload) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            libc::CMSG_DATA(header).copy_from_nonoverlapping(fds.as_ptr().cast(), payload as usize);
        }
        assert_eq!(
            libc::sendmsg(socket.as_raw_fd(), &raw const message, 0),
            bytes.len() as isize
        );
    }
}

#[test]
fn a_ring_is_handed_over() {
    let (client, server) = UnixStream::pair().unwrap();
    let (memory, kick, notify) = (memfd(MAPPING_BYTES, libc::F_SEAL_SHRINK), event(), event());
    send(
        &client,
        &GREETING[..5],
        &[memory.as_raw_fd(), kick.as_raw_fd(), notify.as_raw_fd()],
    );
    send(&client, &GREETING[5..], &[]);
    send(&client, b"more", &[]);
    let fds = receive_ring(server.as_raw_fd(), Duration::from_secs(5)).unwrap();
    for fd in [&fds.memory, &fds.kick, &fds.notify] {
        // SAFETY: reads the descriptor's flags.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }
    Ring::new(fds.memory, fds.kick, fds.notify).unwrap();
    let mut rest = [0; 4];
    io::Read::read_exact(&mut &server, &mut rest).unwrap();
    assert_eq!(&rest, b"more", "not a byte too many was taken");
}

#[test]
fn what_is_not_a_ring_is_refused_and_closed() {
    let (memory, kick) = (memfd(MAPPING_BYTES, libc::F_SEAL_SHRINK), event());
    let (memory, kick) = (memory.as_raw_fd(), kick.as_raw_fd());
    let mut other_version = *GREETING;
    other_version[8] = 2;
    let mut other_end = *GREETING;
    other_end[15] = 1;
    type Case<'a> = (&'a [u8], Vec<RawFd>, io::ErrorKind);
    let cases: Vec<Case<'_>> = vec![
        (GREETING, vec![], io::ErrorKind::InvalidData),
        (GREETING, vec![memory, kick], io::ErrorKind::InvalidData),
        (
            GREETING,
            vec![memory, kick, kick, kick],
            io::ErrorKind::InvalidData,
        ),
        (GREETING, vec![kick; 50], io::ErrorKind::InvalidData),
        (
            GREETING,
            vec![memory, kick, memory],
            io::ErrorKind::InvalidData,
        ),
        (
            GREETING,
            vec![memory, memory, kick],
            io::ErrorKind::InvalidData,
        ),
        // The first one is a socket in truth.
        (
            GREETING,
            vec![memory, kick, kick],
            io::ErrorKind::InvalidInput,
        ),
        (
            &other_version,
            vec![memory, kick, kick],
            io::ErrorKind::InvalidData,
        ),
        (
            &other_end,
            vec![memory, kick, kick],
            io::ErrorKind::InvalidData,
        ),
        (b"GET / HTTP/1.1\r\n", vec![], io::ErrorKind::InvalidData),
        (
            &GREETING[..15],
            vec![memory, kick, kick],
            io::ErrorKind::TimedOut,
        ),
    ];
    for (bytes, mut fds, expected) in cases {
        // One more socket goes along, in place of the first: its other end sees when all its copies are closed.
        let (witness, sent) = UnixStream::pair().unwrap();
        if !fds.is_empty() {
            fds[0] = sent.as_raw_fd();
        }
        let (client, server) = UnixStream::pair().unwrap();
        send(&client, bytes, &fds);
        drop(sent);
        let error = receive_ring(server.as_raw_fd(), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), expected, "{bytes:?} {fds:?}");
        drop((client, server));
        witness
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        assert_eq!(
            io::Read::read(&mut &witness, &mut [0]).unwrap(),
            0,
            "a descriptor leaked: {bytes:?} {fds:?}"
        );
    }
    let (client, server) = UnixStream::pair().unwrap();
    send(&client, &GREETING[..7], &[]);
    drop(client);
    let error = receive_ring(server.as_raw_fd(), Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

// ---- two threads ----

fn ring_bell(fd: RawFd) {
    let one = 1u64;
    // SAFETY: eight bytes of `one` are read.
    assert_eq!(unsafe { libc::write(fd, (&raw const one).cast(), 8) }, 8);
}

/// Waits for a bell. Whoever waits in vain has lost a wake-up.
fn hear_bell(fd: RawFd, whose: &str) {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut count = 0u64;
    // SAFETY: one valid structure; then eight bytes are written into `count`.
    unsafe {
        assert_eq!(
            libc::poll(&raw mut poll, 1, 20_000),
            1,
            "{whose}: a wake-up was lost"
        );
        assert_eq!(libc::read(fd, (&raw mut count).cast(), 8), 8);
    }
}

/// What request number `n` says; everything in it follows from `n`, so that a stale or torn entry shows.
fn sector_of(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1
}

/// A guest and a back end in two threads, without any synchronisation but the ring's own.
#[test]
fn millions_of_requests_between_two_threads() {
    const REQUESTS: u64 = 2_000_000;
    let start = u32::MAX - 1_000_000;
    let guest = Guest::new(start);
    let (kick, notify) = (event(), event());
    let fds = (
        guest.memory.try_clone().unwrap(),
        kick.try_clone().unwrap(),
        notify.try_clone().unwrap(),
    );
    let back_end = std::thread::spawn(move || serve(fds, REQUESTS));

    let (mut prod, mut cons, mut sent, mut done) = (start, start, 0u64, 0u64);
    let mut in_flight = [None; 32];
    let (mut kicks, mut sleeps) = (0u64, 0u64);
    while done < REQUESTS {
        let old = prod;
        // Bursts of changing length: sometimes one, sometimes all that fit.
        let burst = (sector_of(sent + done) >> 40) % 40 + u64::from(prod == cons);
        for _ in 0..burst {
            if sent == REQUESTS || prod.wrapping_sub(cons) == 32 {
                break;
            }
            let id = in_flight.iter().position(Option::is_none).unwrap();
            in_flight[id] = Some(sent);
            let words = guest.words(prod);
            words[0].store(1 << 8 | sent & 1, Ordering::Relaxed);
            words[1].store(id as u64, Ordering::Relaxed);
            words[2].store(sector_of(sent), Ordering::Relaxed);
            words[3].store((sent % 8) << 40, Ordering::Relaxed);
            prod = prod.wrapping_add(1);
            sent += 1;
        }
        if prod != old {
            guest.index(REQ_PROD).store(prod, Ordering::Release);
            fence(Ordering::SeqCst);
            let event = guest.index(REQ_EVENT).load(Ordering::Relaxed);
            if prod.wrapping_sub(event) < prod.wrapping_sub(old) {
                kicks += 1;
                ring_bell(kick.as_raw_fd());
            }
        }
        let before = done;
        while guest.index(RSP_PROD).load(Ordering::Acquire) != cons {
            let (id, operation, status) = guest.response(cons);
            let n = in_flight[id as usize]
                .take()
                .expect("the response is to a request in flight");
            assert_eq!(
                (operation, status),
                ((n & 1) as u8, if n.is_multiple_of(3) { -1 } else { 0 }),
                "request {n}"
            );
            cons = cons.wrapping_add(1);
            done += 1;
        }
        if done == before
            && prod != cons
            && (prod.wrapping_sub(cons) == 32 || sent == REQUESTS || burst < 4)
        {
            // Now and then more than one response is waited for.
            let wanted = 1 + (sector_of(done) >> 50) as u32 % prod.wrapping_sub(cons);
            guest
                .index(RSP_EVENT)
                .store(cons.wrapping_add(wanted), Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if guest
                .index(RSP_PROD)
                .load(Ordering::Relaxed)
                .wrapping_sub(cons)
                < wanted
            {
                sleeps += 1;
                hear_bell(notify.as_raw_fd(), "guest");
            }
        }
    }
    let (notifications, back_end_sleeps) = back_end.join().unwrap();
    println!(
        "{kicks} kicks, {sleeps} sleeps; {notifications} notifications, {back_end_sleeps} sleeps"
    );
    assert!(
        kicks < REQUESTS && notifications < REQUESTS,
        "nothing was ever suppressed"
    );
}

fn serve(fds: (OwnedFd, OwnedFd, OwnedFd), requests: u64) -> (u64, u64) {
    let (kick, notify) = (fds.1.try_clone().unwrap(), fds.2.try_clone().unwrap());
    let mut ring = Ring::new(fds.0, fds.1, fds.2).unwrap();
    let (mut next, mut done, mut notifications, mut sleeps) = (0u64, 0u64, 0, 0);
    let mut waiting: Vec<(u32, u64)> = Vec::new();
    let mut batch = Vec::new();
    while done < requests {
        let limit = 1 + (sector_of(done) >> 45) as usize % 40;
        batch.clear();
        ring.pull(0, &mut batch, limit);
        for request in &batch {
            let n = next;
            next += 1;
            assert_eq!(request.error, 0);
            assert_eq!(u64::from(request.operation), n & 1, "request {n}");
            assert_eq!(request.sector, sector_of(n), "request {n}");
            assert_eq!(
                (request.sectors, request.nr_segments),
                ((n % 8) as u32 + 1, 1),
                "request {n}"
            );
            waiting.push((request.slot, n));
        }
        // Out of order, and some are left for later.
        let keep = if batch.is_empty() {
            0
        } else {
            (sector_of(next) >> 30) as usize % 5
        };
        while waiting.len() > keep {
            let pick = (sector_of(done + next) >> 33) as usize % waiting.len();
            let (slot, n) = waiting.swap_remove(pick);
            let status = if n.is_multiple_of(3) { -libc::EIO } else { 0 };
            ring.push(&Response {
                front_end: 0,
                slot,
                status,
                payload: 0,
            });
            done += 1;
        }
        if ring.kick() {
            notifications += 1;
            ring_bell(notify.as_raw_fd());
        }
        if batch.is_empty() && waiting.is_empty() && done < requests && !ring.arm() {
            sleeps += 1;
            hear_bell(kick.as_raw_fd(), "back end");
        }
    }
    (notifications, sleeps)
}

/// A bell that costs nothing, so that two threads meet within nanoseconds.
#[derive(Default)]
struct Bell(AtomicU32);

impl Bell {
    fn ring(&self) {
        self.0.store(1, Ordering::Release);
    }

    fn hear(&self, whose: &str) {
        for round in 0u64.. {
            if self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::AcqRel) != 0 {
                return;
            }
            std::hint::spin_loop();
            if round > 1000 {
                std::thread::yield_now();
            }
            assert!(round < 3_000_000, "{whose}: a wake-up was lost");
        }
    }
}

fn dawdle(state: &mut u64) {
    *state = sector_of(*state + 1);
    for _ in 0..(*state >> 40) % 32 {
        std::hint::spin_loop();
    }
}

/// Requests published just when the back end falls asleep, and responses just when the guest does: the instant in which
/// a wake-up gets lost if a barrier or the last look is missing.
#[test]
fn nobody_sleeps_through_the_other_one() {
    const REQUESTS: u32 = 200_000;
    let guest = Guest::new(0);
    let memory = guest.memory.try_clone().unwrap();
    let (kick, notify) = (Bell::default(), Bell::default());
    let serve = || {
        let mut ring = Ring::new(memory, event(), event()).unwrap();
        let (mut state, mut batch, mut done) = (1, Vec::new(), 0);
        while done < REQUESTS {
            batch.clear();
            ring.pull(0, &mut batch, 32);
            for request in &batch {
                done += 1;
                ring.push(&Response {
                    front_end: 0,
                    slot: request.slot,
                    status: 0,
                    payload: 0,
                });
            }
            if ring.kick() {
                notify.ring();
            }
            if done % 4 == 0 {
                dawdle(&mut state);
            }
            // Armed only before sleeping, as the reactor does it.
            if batch.len() < 32 && done < REQUESTS && !ring.arm() {
                kick.hear("back end");
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(serve);
        let mut state = 2;
        for index in 0..REQUESTS {
            guest.put(index, 3, 0, u64::from(index % 32), 0, &[]);
            fence(Ordering::SeqCst);
            if guest.index(REQ_EVENT).load(Ordering::Relaxed) == index + 1 {
                kick.ring();
            }
            dawdle(&mut state);
            let in_flight = index + 1 - guest.index(RSP_PROD).load(Ordering::Acquire);
            if in_flight < 16 && !state.is_multiple_of(3) {
                continue;
            }
            loop {
                guest.index(RSP_EVENT).store(index + 1, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                if guest.index(RSP_PROD).load(Ordering::Acquire) == index + 1 {
                    break;
                }
                notify.hear("guest");
            }
        }
    });
}
