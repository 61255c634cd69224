//! Jobs that several threads share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, ErrorKind, Result};

/// How a check is done: with how many threads, who is told how far it is, and who may end it.
pub struct Control<'a> {
    workers: usize,
    progress: &'a mut dyn FnMut(u64, u64),
    wanted: &'a (dyn Fn() -> Result<()> + Sync),
    /// Passes over all tables, those that are done and those that there may be.
    done: u64,
    passes: u64,
}

impl<'a> Control<'a> {
    /// Work on so many threads, the calling one included, in at most so many `passes` over all tables. `progress` is told on the calling
    /// thread how many bytes of tables are done, and all; `wanted` says, on any thread, if it is to end: with which error.
    pub(crate) fn new(
        workers: usize,
        passes: u64,
        progress: &'a mut dyn FnMut(u64, u64),
        wanted: &'a (dyn Fn() -> Result<()> + Sync),
    ) -> Self {
        Control { workers, progress, wanted, done: 0, passes }
    }

    /// Does `job` for every number below `jobs`, on all threads; each has a state of its own. The first error ends it.
    pub(super) fn spread<S: Default>(
        &mut self,
        jobs: usize,
        job: impl Fn(&mut S, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        self.share(jobs, job, |_, _| {})
    }

    /// The same for a pass over tables of so many `bytes`.
    pub(crate) fn pass<S: Default>(
        &mut self,
        bytes: u64,
        jobs: usize,
        job: impl Fn(&mut S, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        let passes = self.passes.max(self.done + 1);
        self.share(jobs, job, |control, number| {
            let part = bytes / jobs as u64 * number as u64;
            (control.progress)(control.done * bytes + part, passes * bytes);
        })?;
        self.done += 1;
        (self.progress)(self.done * bytes, passes * bytes);
        Ok(())
    }

    fn share<S: Default>(
        &mut self,
        jobs: usize,
        job: impl Fn(&mut S, usize) -> Result<()> + Sync,
        mut report: impl FnMut(&mut Self, usize),
    ) -> Result<()> {
        let (next, failed, wanted) = (AtomicUsize::new(0), AtomicBool::new(false), self.wanted);
        let work = |report: &mut dyn FnMut(usize)| {
            let mut state = S::default();
            let result = loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= jobs || failed.load(Ordering::Relaxed) {
                    break Ok(());
                }
                report(number);
                if let Err(error) = wanted().and_then(|()| job(&mut state, number)) {
                    break Err(error);
                }
            };
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            result
        };
        thread::scope(|scope| {
            let helpers: Vec<_> =
                (1..self.workers.min(jobs)).map(|_| scope.spawn(|| work(&mut |_| {}))).collect();
            let mut result = work(&mut |number| report(self, number));
            for helper in helpers {
                let lost = |_| Err(Error::new(ErrorKind::Io, "a thread that checked died"));
                result = result.and(helper.join().unwrap_or_else(lost));
            }
            result
        })
    }
}
