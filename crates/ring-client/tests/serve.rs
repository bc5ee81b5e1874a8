//! The client against a small server in this process, made of the port's own ring and a byte vector.

#![allow(missing_docs)]

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use load::{Options, Rw};
use port::front_end::{FrontEnd, Transport};
use port::ring::{Ring, receive_ring};
use ring_client::client::Connect;
use ring_client::{bench, malformed, verify};
use vhd::record::{FrontEndRequest, RequestKind, Response};

const SECTORS: u64 = 20_000;

/// Serves one client on a new socket. With `shuffle`, requests are answered in another order than they came.
fn serve(name: &str, shuffle: bool, read_only: bool) -> (PathBuf, std::thread::JoinHandle<()>) {
    let path = std::env::temp_dir().join(format!("ring-client-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let socket_path = path.clone();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        std::fs::remove_file(&socket_path).unwrap();
        let fds = receive_ring(socket.as_raw_fd(), Duration::from_secs(10)).unwrap();
        let mut ring = Ring::new(fds.memory, fds.kick, fds.notify).unwrap();
        ring.set_region(7);
        let mut answer = [0; 32];
        answer[..8].copy_from_slice(b"TAPRING1");
        answer[12..16].copy_from_slice(&512u32.to_le_bytes());
        answer[16..24].copy_from_slice(&SECTORS.to_le_bytes());
        answer[24] = read_only.into();
        std::io::Write::write_all(&mut socket, &answer).unwrap();
        serve_ring(&mut ring, &socket, shuffle);
    });
    (path, server)
}

fn serve_ring(ring: &mut Ring, socket: &std::os::unix::net::UnixStream, shuffle: bool) {
    let mut disk = vec![0u8; SECTORS as usize * 512];
    disk.iter_mut()
        .enumerate()
        .for_each(|(at, byte)| *byte = (at / 512 * 7 + at) as u8);
    let mut waiting = VecDeque::new();
    let mut state = 1u32;
    let Transport::Doorbell { kick, notify } = ring.transport() else {
        unreachable!()
    };
    loop {
        let mut batch = Vec::new();
        ring.pull(5, &mut batch, 8);
        let more = batch.len() == 8;
        waiting.extend(batch);
        for _ in 0..waiting.len().min(if shuffle { 3 } else { 64 }) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pick = if shuffle {
                (state >> 8) as usize % waiting.len()
            } else {
                0
            };
            let Some(request) = waiting.remove(pick) else {
                continue;
            };
            let status = execute(ring, &mut disk, &request);
            ring.push(&Response {
                front_end: 5,
                slot: request.slot,
                status,
                payload: 0,
            });
        }
        if ring.kick() {
            let one = 1u64;
            // SAFETY: eight bytes of `one` are read.
            let written = unsafe { libc::write(notify, (&raw const one).cast(), 8) };
            assert_eq!(written, 8);
        }
        if more || !waiting.is_empty() || ring.arm() {
            continue;
        }
        let poll = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut polls = [poll(kick), poll(socket.as_raw_fd())];
        // SAFETY: `polls` are two valid, writable structures.
        let woken = unsafe { libc::poll(polls.as_mut_ptr(), 2, 10_000) };
        assert!(woken > 0, "a wake-up was lost");
        if polls[1].revents != 0 {
            ring.detach();
            let mut batch = Vec::new();
            ring.pull(5, &mut batch, 8);
            assert_eq!(batch[0].operation, vhd::record::FRONT_END_CLOSED);
            return;
        }
        let mut count = 0u64;
        // SAFETY: eight bytes are written into `count`.
        unsafe { libc::read(kick, (&raw mut count).cast(), 8) };
    }
}

fn execute(ring: &Ring, disk: &mut [u8], request: &FrontEndRequest) -> i32 {
    if request.error != 0 {
        return request.error;
    }
    if request
        .sector
        .checked_add(request.sectors.into())
        .is_none_or(|end| end > SECTORS)
    {
        return -libc::EINVAL;
    }
    let mut at = request.sector as usize * 512;
    for segment in &request.segments[..usize::from(request.nr_segments)] {
        let length = segment.sectors as usize * 512;
        assert!(segment.buffer as usize >= 4096 && segment.buffer as usize + length <= ring.len());
        // SAFETY: the range was checked; the client doesn't touch the pages of a request in flight.
        unsafe {
            let data = ring.base().add(segment.buffer as usize);
            match RequestKind::from_raw(request.operation) {
                Some(RequestKind::Read) => {
                    data.copy_from_nonoverlapping(disk[at..at + length].as_ptr(), length)
                }
                Some(RequestKind::Write) => {
                    data.copy_to_nonoverlapping(disk[at..at + length].as_mut_ptr(), length)
                }
                _ => unreachable!(),
            }
        }
        at += length;
    }
    0
}

fn connect(socket: &PathBuf, start_index: u32) -> Connect<'_> {
    Connect {
        socket,
        start_index,
        timeout: Duration::from_secs(60),
    }
}

#[test]
fn verify_in_and_out_of_order() {
    for (name, shuffle, start) in [
        ("order", false, 0),
        ("shuffle", true, 0),
        ("wrap", true, u32::MAX - 5_000),
    ] {
        let (socket, server) = serve(name, shuffle, false);
        let options = verify::Options {
            requests: 12_000,
            depth: 32,
            seed: 7,
            sectors_limit: 10_000,
            writes: 50,
            flush_every: 100,
        };
        let outcome = verify::run(&connect(&socket, start), &options).unwrap();
        assert!(
            outcome.reads > 5_000 && outcome.writes > 5_000 && outcome.flushes > 100,
            "{outcome:?}"
        );
        server.join().unwrap();
    }
}

#[test]
fn verify_at_depth_1_and_read_only() {
    let (socket, server) = serve("depth1", false, true);
    let options = verify::Options {
        requests: 5_000,
        depth: 1,
        seed: 3,
        sectors_limit: 500,
        writes: 50,
        flush_every: 0,
    };
    let outcome = verify::run(&connect(&socket, 0), &options).unwrap();
    assert_eq!(outcome.writes, 0);
    server.join().unwrap();
}

#[test]
fn malformed_requests() {
    let (socket, server) = serve("malformed", false, false);
    assert!(malformed::run(&connect(&socket, 0)).unwrap() > 30);
    server.join().unwrap();
}

#[test]
fn benchmarks() {
    for (name, rw, bs, depth) in [
        ("b1", Rw::Randread, 4096, 32),
        ("b2", Rw::Write, 1 << 20, 3),
        ("b3", Rw::Randwrite, 44 << 10, 64),
    ] {
        let (socket, server) = serve(name, true, false);
        let time = Duration::from_millis(200);
        let options = Options {
            rw,
            bs,
            depth,
            time,
            span: 0,
            align: if rw.is_write() { 0 } else { 12288 },
            seed: 1,
            poll: Duration::from_micros(if rw.is_write() { 50 } else { 0 }),
        };
        let line = bench::run(&[connect(&socket, 0)], &options).unwrap();
        println!("{line}");
        assert!(line.starts_with("{\"rw\":\"") && line.ends_with('}'));
        server.join().unwrap();
    }
}

#[test]
fn several_disks_at_once() {
    let options = Options {
        rw: Rw::Randread,
        bs: 4096,
        depth: 4,
        time: Duration::from_millis(200),
        span: 0,
        align: 0,
        seed: 1,
        poll: Duration::ZERO,
    };
    let (sockets, servers): (Vec<_>, Vec<_>) = ["m1", "m2", "m3"]
        .map(|name| serve(name, true, false))
        .into_iter()
        .unzip();
    let rings: Vec<_> = sockets.iter().map(|socket| connect(socket, 0)).collect();
    let line = bench::run(&rings, &options).unwrap();
    assert!(line.contains("\"depth\":4,"), "{line}");
    servers
        .into_iter()
        .for_each(|server| server.join().unwrap());

    // One of them isn't there: the others end as well.
    let (socket, server) = serve("m4", true, false);
    let missing = std::env::temp_dir().join("ring-client-nobody");
    let failure = bench::run(&[connect(&socket, 0), connect(&missing, 0)], &options).unwrap_err();
    assert!(
        failure.to_string().contains("ring-client-nobody"),
        "{failure}"
    );
    server.join().unwrap();
}

#[test]
fn accesses_do_not_overlap() {
    let (socket, server) = serve("align", false, false);
    let options = Options {
        rw: Rw::Randread,
        bs: 8192,
        depth: 1,
        time: Duration::ZERO,
        span: 0,
        align: 4096,
        seed: 1,
        poll: Duration::ZERO,
    };
    let failure = bench::run(&[connect(&socket, 0)], &options).unwrap_err();
    assert!(
        failure.to_string().contains("multiples of 4096"),
        "{failure}"
    );
    server.join().unwrap();
}

#[test]
fn a_server_that_goes_away_is_an_error() {
    let path = std::env::temp_dir().join(format!("ring-client-{}-gone", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let failure = malformed::run(&connect(&path, 0)).unwrap_err();
    assert!(failure.to_string().contains("the ring"), "{failure}");
    server.join().unwrap();
    std::fs::remove_file(&path).unwrap();
}
