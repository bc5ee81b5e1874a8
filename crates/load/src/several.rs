//! Several disks under the same load at the same time.

use std::sync::Barrier;
use std::thread::ScopedJoinHandle;

use crate::{Failure, Options, Outcome, Result};

/// Puts the load on all of these disks, each in a thread of its own with a seed of its own, and returns the line about all of
/// them. When all of them are prepared, all start.
///
/// # Errors
/// When one of them fails.
pub fn run<Disk: Sync, Job>(
    disks: &[Disk],
    options: &Options,
    prepare: impl Fn(&Disk, &Options) -> Result<Job> + Sync,
    work: impl Fn(Job) -> Result<Outcome> + Sync,
) -> Result<String> {
    let everybody = Barrier::new(disks.len());
    let outcomes = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (seed, disk) in (options.seed..).zip(disks) {
            let (everybody, prepare, work) = (&everybody, &prepare, &work);
            threads.push(scope.spawn(move || {
                let job = prepare(disk, &Options { seed, ..*options });
                everybody.wait();
                job.and_then(work)
            }));
        }
        let outcome = |thread: ScopedJoinHandle<'_, Result<Outcome>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure("a thread failed".to_owned())))
        };
        threads
            .into_iter()
            .map(outcome)
            .collect::<Result<Vec<Outcome>>>()
    })?;
    let all = outcomes.into_iter().reduce(Outcome::with);
    Ok(all.map_or_else(String::new, |all| all.report(options)))
}
