//! What the client does on the wire, seen by a small server in this process.

use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;

use ::load::{Options, Rw};
use nbd_load::bench::{Disk, run};

use crate::support::*;

#[test]
fn keeps_so_many_reads_in_flight_in_whatever_order_they_are_answered() {
    for (name, poll) in [("order", 0), ("order-poll", 50)] {
        let (address, server) = serve(name, |stream| {
            shake_hands(stream, FLAGS);
            let (mut waiting, mut seen, mut most) = (Vec::new(), HashSet::new(), 0);
            loop {
                // At the end no more come, and it must not wait for them.
                let answers = if waiting.len() == 8 {
                    1 + seen.len() % 8
                } else if has_more(stream) {
                    0
                } else {
                    waiting.len()
                };
                let mut replies = Vec::new();
                for _ in 0..answers {
                    replies.extend(reply(&waiting.swap_remove(seen.len() * 5 % waiting.len())));
                }
                stream.write_all(&replies).unwrap();
                let Some(request) = next_request(stream) else {
                    assert_eq!((waiting.len(), most), (0, 8));
                    return seen.len() as u64;
                };
                assert_eq!((request.command, request.length), (READ, 4096));
                assert_eq!(request.offset % 12_288, 0);
                assert!(request.offset + 4096 <= 1 << 20);
                assert!(seen.insert(request.cookie), "a cookie is used once");
                waiting.push(request);
                most = most.max(waiting.len());
            }
        });
        let options = Options {
            span: 1 << 20,
            align: 12_288,
            time: Duration::from_millis(300),
            poll: Duration::from_micros(poll),
            ..OPTIONS
        };
        let line = load(&address, &options).unwrap();
        assert_eq!(number(&line, "ios"), server.join().unwrap());
        assert_eq!(number(&line, "span"), 1 << 20);
        assert!(number(&line, "sends") > 0 && number(&line, "receives") > 0);
    }
}

#[test]
fn replies_may_come_byte_by_byte() {
    for (name, rw) in [("torn-read", Rw::Randread), ("torn-write", Rw::Randwrite)] {
        let (address, server) = serve(name, |stream| {
            shake_hands(stream, FLAGS);
            let mut count = 0;
            while let Some(request) = next_request(stream) {
                for byte in reply(&request) {
                    stream.write_all(&[byte]).unwrap();
                }
                count += 1;
            }
            count
        });
        let options = Options {
            rw,
            bs: 512,
            ..OPTIONS
        };
        let line = load(&address, &options).unwrap();
        assert_eq!(number(&line, "ios"), server.join().unwrap());
    }
}

#[test]
fn writes_are_random_and_whole() {
    for (name, bs, depth, poll) in [
        ("write-small", 4096, 8, 0),
        // More than a socket takes at once.
        ("write-large", 1 << 20, 4, 0),
        ("write-poll", 1 << 20, 4, 100),
    ] {
        let (address, server) = serve(name, answer_all);
        let options = Options {
            rw: Rw::Write,
            bs,
            depth,
            poll: Duration::from_micros(poll),
            ..OPTIONS
        };
        let line = load(&address, &options).unwrap();
        let requests = server.join().unwrap();
        assert_eq!(number(&line, "ios"), requests.len() as u64);
        assert!(requests.len() > depth as usize, "{line}");
        for (index, request) in requests.iter().enumerate() {
            assert_eq!(request.command, WRITE);
            assert_eq!(request.offset, index as u64 * bs % DISK_BYTES);
            for sector in request.data.chunks(512) {
                let ones: u32 = sector.iter().map(|byte| byte.count_ones()).sum();
                assert!((1500..2600).contains(&ones), "{ones} ones of 4096 bits");
            }
        }
        assert_ne!(requests[0].data, requests[1].data);
    }
}

#[test]
fn large_reads_pass() {
    let (address, server) = serve("read-large", answer_all);
    let options = Options {
        rw: Rw::Read,
        bs: 1 << 20,
        ..OPTIONS
    };
    let line = load(&address, &options).unwrap();
    assert_eq!(number(&line, "ios"), server.join().unwrap().len() as u64);
}

#[test]
fn a_flush_follows_each_write_once_it_is_answered() {
    let (address, server) = serve("flush", |stream| {
        shake_hands(stream, FLAGS);
        let (mut writes, mut flushes) = (0, 0);
        while let Some(request) = next_request(stream) {
            match request.command {
                WRITE => writes += 1,
                FLUSH => {
                    assert_eq!((request.offset, request.length), (0, 0));
                    flushes += 1;
                    assert!(flushes <= writes);
                }
                other => panic!("command {other}"),
            }
            stream.write_all(&reply(&request)).unwrap();
        }
        (writes, flushes)
    });
    let options = Options {
        rw: Rw::Randwrite,
        ..OPTIONS
    };
    let disk = Disk {
        flush_each: true,
        ..disk(&address)
    };
    let line = run(&[disk], &options).unwrap();
    let ios = number(&line, "ios");
    assert_eq!(server.join().unwrap(), (ios, ios));
}

#[test]
fn trimming_is_over_when_everything_is_trimmed_once() {
    let (address, server) = serve("trim", answer_all);
    let options = Options {
        rw: Rw::Trim,
        bs: 1 << 20,
        time: Duration::ZERO,
        ..OPTIONS
    };
    let line = load(&address, &options).unwrap();
    assert_eq!(number(&line, "ios"), DISK_BYTES >> 20);
    let requests = server.join().unwrap();
    for (index, request) in requests.iter().enumerate() {
        assert_eq!((request.command, request.length), (TRIM, 1 << 20));
        assert_eq!(request.offset, (index as u64) << 20);
    }
}

#[test]
fn several_disks_at_once_each_with_a_seed_of_its_own() {
    let (first, one) = serve("m1", answer_all);
    let (second, other) = serve("m2", answer_all);
    let line = run(&[disk(&first), disk(&second)], &OPTIONS).unwrap();
    let (one, other) = (one.join().unwrap(), other.join().unwrap());
    assert_eq!(number(&line, "ios"), (one.len() + other.len()) as u64);
    let offsets = |requests: &[Request]| -> Vec<u64> {
        requests.iter().take(20).map(|one| one.offset).collect()
    };
    assert_ne!(offsets(&one), offsets(&other));

    // One of them isn't there: the other ends as well.
    let (address, server) = serve("m3", answer_all);
    let missing = "/nowhere/nbd".into();
    let failure = run(&[disk(&address), disk(&missing)], &OPTIONS).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "connecting to /nowhere/nbd: No such file or directory (os error 2)"
    );
    server.join().unwrap();
}

#[test]
fn tcp_will_do() {
    let (address, server) = serve_tcp(answer_all);
    let line = load(&address, &OPTIONS).unwrap();
    assert_eq!(number(&line, "ios"), server.join().unwrap().len() as u64);
}

#[test]
fn an_export_can_be_named() {
    let (address, server) = serve("named", |stream| {
        let name = shake_hands(stream, FLAGS);
        assert!(next_request(stream).is_none());
        name
    });
    let disk = Disk {
        export: "a disk",
        ..disk(&address)
    };
    let options = Options {
        time: Duration::ZERO,
        ..OPTIONS
    };
    run(&[disk], &options).unwrap();
    assert_eq!(server.join().unwrap(), "a disk");
}
