//! Jobs of the engine under power cuts.
//!
//! A test of a job that must survive a crash looks like this:
//!
//! ```ignore
//! let mut explorer = Explorer::new(seed);
//! let mut host = Host::new(files, 64 << 10);          // files by number, named `images::name(number)`
//! let outcome = jobs::run(
//!     &mut explorer,
//!     &mut host,
//!     &mut |host| host.engine.start(spec.clone()),    // starts the job
//!     &mut |left, state| {                            // called for each state that a power cut leaves
//!         let mut next = left.host(64 << 10);         // another host with these files
//!         match next.open(Driver::Vhd, false) {       // recovers, opens, looks
//!             Ok(_) => assert_eq!(next.read_disk(SECTORS), expected),
//!             Err(error) => assert!(state == State::Running, "{error}"),
//!         }
//!     },
//! );
//! outcome.expect("the job succeeds");                 // `host` now has the files as the job left them
//! println!("{} states", explorer.distinct());
//! ```
//!
//! `check` panics when a state is not as it must be. It gets each state once for as long as the same is promised; when
//! the job has told its outcome ([`State::Over`]) all states are shown to it again, since then its result must be there.
//! Operations end in an order that follows from the explorer's seed: run a job with several seeds, and let several jobs
//! (or guest's work, `guest.rs`) follow each other on the same host. With `host.fault` set, operations fail as well.
//!
//! What the host does with names for the job (`Host::fulfil`) is durable when the job is told; a cut in between may find
//! it done or not. Files that are removed or replaced keep their numbers and are empty in what a cut leaves.

use vhd::{Job, Outcome};

use super::Host;
use super::cuts::Explorer;
use super::power::{Left, PowerLog};

/// How far the job was when the power was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody was told of an outcome.
    Running,
    /// It was over, and had succeeded if the flag says so.
    Over { succeeded: bool },
}

/// Runs a job with the power cut whenever something happens. All files of the host count as durable at the beginning.
pub fn run(
    explorer: &mut Explorer,
    host: &mut Host,
    start: &mut dyn FnMut(&mut Host),
    check: &mut dyn FnMut(&Left, State),
) -> vhd::error::Result<Outcome> {
    host.power = Some(PowerLog::new(&host.files, &host.names));
    explorer.promises_changed();
    start(host);
    host.run();
    loop {
        let running = &mut |left: &Left| check(left, State::Running);
        explorer.cut(log(host), running);
        if !host.in_flight.is_empty() {
            let index = explorer.pick(host.in_flight.len());
            host.complete(index);
        } else if let Some(want) = host.engine.want() {
            let answer = host.fulfil(want);
            explorer.cut(log(host), running);
            log(host).names_synced();
            host.engine.provide(answer);
            host.run();
        } else {
            break;
        }
    }
    let Job::Over(outcome) = host.engine.job() else {
        panic!("the job is not over though nothing is in flight");
    };
    let succeeded = outcome.is_ok();
    explorer.promises_changed();
    explorer.cut(log(host), &mut |left| {
        check(left, State::Over { succeeded });
    });
    outcome
}

fn log(host: &mut Host) -> &mut PowerLog {
    host.power.as_mut().expect("the log is kept")
}
