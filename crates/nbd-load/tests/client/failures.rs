//! What the client says when a server does what it must not, or can't do what is wanted.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ::load::{Options, Rw};
use nbd_load::bench::{Disk, run};

use crate::support::*;

const SIMPLE: u32 = 0x6744_6698;

/// What it says when a server does this.
fn failure(
    name: &str,
    options: &Options,
    work: impl FnOnce(&mut UnixStream) + Send + 'static,
) -> String {
    let (address, server) = serve(name, work);
    let failure = load(&address, options).unwrap_err().to_string();
    server.join().unwrap();
    failure
}

/// What it says when the first of several requests is answered so.
fn failure_of_reply(
    name: &str,
    options: &Options,
    answer: impl FnOnce(&Request) -> Vec<u8> + Send + 'static,
) -> String {
    failure(name, options, |stream| {
        shake_hands(stream, FLAGS);
        let request = next_request(stream).unwrap();
        stream.write_all(&answer(&request)).unwrap();
        // So that it doesn't matter whether the client reads first or sees the end first.
        wait_for_end(stream);
    })
}

#[test]
fn a_request_that_fails_is_named_with_its_error() {
    for (name, rw, words) in [
        (
            "error-read",
            Rw::Read,
            "Read of 4096 bytes at 0: Input/output error (os error 5)",
        ),
        (
            "error-write",
            Rw::Write,
            "Write of 4096 bytes at 0: Input/output error (os error 5)",
        ),
        (
            "error-trim",
            Rw::Trim,
            "Trim of 4096 bytes at 0: Input/output error (os error 5)",
        ),
    ] {
        let said = failure_of_reply(name, &Options { rw, ..OPTIONS }, |request| {
            reply_header(SIMPLE, 5, request.cookie)
        });
        assert_eq!(said, words);
    }
}

#[test]
fn replies_that_make_no_sense_are_refused() {
    let said = failure_of_reply("magic", &OPTIONS, |one| {
        reply_header(0x1234_5678, 0, one.cookie)
    });
    assert_eq!(said, "a reply begins with 0x12345678, not 0x67446698");
    let said = failure_of_reply("structured", &OPTIONS, |one| {
        reply_header(0x668e_33ef, 0, one.cookie)
    });
    assert_eq!(said, "a structured reply, which nobody asked for");
    // A slot that isn't there, one whose cookie is another, and one that was answered before.
    for (name, answer) in [
        (
            "no-slot",
            (|one| reply_header(SIMPLE, 0, one.cookie + 8)) as fn(&Request) -> Vec<u8>,
        ),
        ("no-use", |one| {
            reply_header(SIMPLE, 0, one.cookie + (1 << 32))
        }),
        ("twice", |one| [reply(one), reply(one)].concat()),
    ] {
        let said = failure_of_reply(name, &OPTIONS, answer);
        assert!(
            said.starts_with("a reply to 0x") && said.ends_with(", which isn't in flight"),
            "{said}"
        );
    }
}

#[test]
fn a_server_that_goes_away_is_an_error() {
    let closed = "the server closed the connection";
    // Before it greets, in the middle of the handshake, before it answers, in a header, in data.
    assert_eq!(failure("gone", &OPTIONS, |_| ()), closed);
    let said = failure("gone-greeting", &OPTIONS, |stream| {
        stream.write_all(b"NBDMAGICIH").unwrap();
    });
    assert_eq!(said, closed);
    for (name, bytes, poll) in [
        ("gone-idle", 0, 0),
        ("gone-header", 9, 0),
        ("gone-data", 1000, 0),
        ("gone-poll", 1000, 1000),
    ] {
        let options = Options {
            poll: Duration::from_micros(poll),
            ..OPTIONS
        };
        let said = failure(name, &options, move |stream| {
            shake_hands(stream, FLAGS);
            // All that come, because what is unread would be lost with a reset.
            let requests: Vec<_> = (0..8).map(|_| next_request(stream).unwrap()).collect();
            stream.write_all(&reply(&requests[0])[..bytes]).unwrap();
        });
        assert_eq!(said, closed);
    }
    // While it writes.
    let options = Options {
        rw: Rw::Write,
        bs: 4 << 20,
        ..OPTIONS
    };
    let said = failure("gone-writing", &options, |stream| {
        shake_hands(stream, FLAGS);
        stream.read_exact(&mut [0; 4096]).unwrap();
    });
    assert!(
        [closed, "sending: Broken pipe (os error 32)"].contains(&said.as_str())
            || said.contains("Connection reset"),
        "{said}"
    );
}

#[test]
fn nobody_is_waited_for_for_ever() {
    for (name, rw, bs, answers) in [
        ("mute", Rw::Read, 4096, false),
        ("mute-greeting", Rw::Read, 4096, true),
        // Its socket is full.
        ("mute-writing", Rw::Write, 4 << 20, false),
    ] {
        let (address, server) = serve(name, move |stream| {
            if !answers {
                shake_hands(stream, FLAGS);
            }
            wait_for_hang_up(stream);
        });
        let options = Options { rw, bs, ..OPTIONS };
        let disk = Disk {
            timeout: Duration::from_millis(300),
            ..disk(&address)
        };
        let failure = run(&[disk], &options).unwrap_err().to_string();
        assert_eq!(failure, "timed out");
        server.join().unwrap();
    }
}

#[test]
fn a_refused_export_is_told_with_the_servers_words() {
    let said = failure("refused", &OPTIONS, |stream| {
        greet(stream, 3);
        reply_to_option(stream, 1 << 31 | 6, b"not today");
        wait_for_end(stream);
    });
    assert_eq!(
        said,
        "the server refused the export '': there is no such export: not today"
    );
    let said = failure("too-old", &OPTIONS, |stream| {
        greet(stream, 1);
        reply_to_option(stream, 1 << 31 | 1, b"");
        wait_for_end(stream);
    });
    assert_eq!(
        said,
        "the server refused the export '': it doesn't know NBD_OPT_GO"
    );
}

#[test]
fn handshakes_that_make_no_sense_are_refused() {
    for (name, greeting, words) in [
        (
            "http",
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "the server says 'HTTP/1.1', not 'NBDMAGIC': does it speak NBD?",
        ),
        (
            "old",
            b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53",
            "the server shakes hands in the old style",
        ),
        (
            "odd",
            b"NBDMAGIC\0\0\0\0\0\0\0\x01",
            "the server's greeting goes on with 0x0000000000000001",
        ),
        (
            "not-fixed",
            b"NBDMAGICIHAVEOPT\0\x02",
            "the server doesn't shake hands in the fixed new style",
        ),
    ] {
        let said = failure(name, &OPTIONS, |stream| {
            stream.write_all(greeting).unwrap();
            wait_for_end(stream);
        });
        assert_eq!(said, words);
    }
    for (name, replies, words) in [
        (
            "no-export",
            vec![(1, vec![])],
            "the server told nothing of the export ''",
        ),
        (
            "short-export",
            vec![(3, vec![0; 11])],
            "the server tells of an export in 11 bytes",
        ),
        (
            "short-info",
            vec![(3, vec![0])],
            "the server answers with 1 bytes of an unknown kind 3",
        ),
        (
            "odd-kind",
            vec![(9, vec![1, 2])],
            "the server answers with 2 bytes of an unknown kind 9",
        ),
        (
            "long-ack",
            vec![(1, vec![0; 70_000])],
            "a reply to an option has 70000 bytes",
        ),
    ] {
        let said = failure(name, &OPTIONS, |stream| {
            greet(stream, 3);
            for (kind, data) in replies {
                reply_to_option(stream, kind, &data);
            }
            wait_for_end(stream);
        });
        assert_eq!(said, words);
    }
}

#[test]
fn what_the_disk_cannot_do_is_said_before_anything_is_done() {
    let writes = Options {
        rw: Rw::Randwrite,
        ..OPTIONS
    };
    let trims = Options {
        rw: Rw::Trim,
        ..OPTIONS
    };
    for (name, options, flags, flush_each, words) in [
        (
            "ro-write",
            writes,
            1 | 1 << 1,
            false,
            "the disk is read-only",
        ),
        (
            "ro-trim",
            trims,
            FLAGS | 1 << 1,
            false,
            "the disk is read-only",
        ),
        ("no-trim", trims, 1 | 1 << 2, false, "the server can't trim"),
        (
            "no-flush",
            writes,
            1 | 1 << 5,
            true,
            "the server can't flush",
        ),
        (
            "too-large",
            Options {
                bs: DISK_BYTES + 512,
                ..OPTIONS
            },
            FLAGS,
            false,
            "not one access of 67109376 bytes fits into 67108864 bytes",
        ),
    ] {
        let (address, server) = serve(name, move |stream| {
            shake_hands(stream, flags);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        });
        let disk = Disk {
            flush_each,
            ..disk(&address)
        };
        let failure = run(&[disk], &options).unwrap_err().to_string();
        assert_eq!(failure, words);
        server.join().unwrap();
    }
    let address = "/nowhere/nbd".into();
    let disk = Disk {
        flush_each: true,
        ..disk(&address)
    };
    let failure = run(&[disk], &OPTIONS).unwrap_err().to_string();
    assert_eq!(failure, "only writes are followed by flushes");
}
