//! What needs a process of its own: being killed, and limits that hold for a whole process.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use common::{Host, READ_WRITE, TempFile, on_both, read, write};
use port::file::{Lock, OpenOptions};
use port::reactor::BackendKind;

on_both! {
    a_killed_process_holds_no_locks
    few_descriptors_do
}

const LOCKED: OpenOptions = OpenOptions {
    lock: Lock::Write,
    ..READ_WRITE
};

/// Tells a test that it runs in a child: on which file.
const FILE: &str = "PORT_TEST_FILE";
/// What the child says when it has the file open.
const READY: &str = "ready";

/// This program once more, to run one test on a file.
fn this_program(backend: BackendKind, test: &str, path: &str) -> Command {
    let test = format!("{backend:?}::{test}").to_lowercase();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &test, "--nocapture"])
        .env(FILE, path);
    command
}

/// Whoever starts anew after a crash finds no locks, also if it comes at once.
fn a_killed_process_holds_no_locks(backend: BackendKind) {
    if let Ok(path) = std::env::var(FILE) {
        let mut host = Host::new(backend);
        let number = host.open(&path, LOCKED);
        assert_eq!(host.run_one(write(number, 0, 4096, 0, 0)), 4096);
        println!("{READY}");
        // Up to the end of the parent, should it not come to killing.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let file = TempFile::with(&[1; 4096]);
    let mut host = Host::new(backend);
    for _ in 0..5 {
        let mut holder = this_program(backend, "a_killed_process_holds_no_locks", file.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap().ends_with(READY)));
        assert!(host.reactor.open_file(file.path(), LOCKED).is_err());
        holder.kill().unwrap();
        holder.wait().unwrap();
        let number = host.open(file.path(), LOCKED);
        host.reactor.close_file(number.into()).unwrap();
    }
}

/// With fewer than the table of registered files has slots, and with so many that the last file can't be opened once more.
fn few_descriptors_do(backend: BackendKind) {
    let Ok(path) = std::env::var(FILE) else {
        let file = TempFile::with(&[7; 4096]);
        let child = this_program(backend, "few_descriptors_do", file.path())
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        return;
    };
    for most in [100, 300] {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: 300,
        };
        // SAFETY: a valid structure.
        let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        assert_eq!(result, 0);
        let mut host = Host::new(backend);
        let mut files = Vec::new();
        let error = loop {
            match host.reactor.open_file(&path, OpenOptions::default()) {
                Ok((number, _)) => files.push(number),
                Err(error) => break error,
            }
        };
        assert_eq!(error.errno(), libc::EMFILE);
        assert!(files.len() > most as usize / 2);
        for number in &files {
            host.staging(0, 4096).fill(0);
            assert_eq!(host.run_one(read(*number, 0, 4096, 0, 0)), 4096);
            assert_eq!(host.staging(0, 4096), [7; 4096]);
        }
    }
}
