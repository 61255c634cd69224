//! Jobs that several threads share.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, ErrorKind, Result};

/// How a check is done: with how many threads, who is told how far it is, and who may end it.
pub struct Control<'a> {
    /// Threads, the calling one included.
    pub workers: usize,
    /// Told, on the calling thread, how many of how many steps are done; a step is a table, or a part of one.
    pub progress: &'a mut dyn FnMut(u64, u64),
    /// Set by another thread to end it soon, as [`Interrupted`](io::ErrorKind::Interrupted).
    pub cancel: Option<&'a AtomicBool>,
}

impl Control<'_> {
    fn check_cancelled(cancel: Option<&AtomicBool>) -> Result<()> {
        match cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => {
                Err(Error::io("the check was cancelled", io::ErrorKind::Interrupted.into()))
            }
            _ => Ok(()),
        }
    }

    /// Does `job` for every number below `jobs`, on all threads; each has a state of its own. The first error ends it.
    pub(crate) fn spread<S: Default>(
        &mut self,
        jobs: usize,
        job: impl Fn(&mut S, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        let (next, failed, cancel) = (AtomicUsize::new(0), AtomicBool::new(false), self.cancel);
        let work = |progress: &mut dyn FnMut(u64, u64)| {
            let mut state = S::default();
            let result = loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= jobs || failed.load(Ordering::Relaxed) {
                    break Ok(());
                }
                if let Err(error) = Self::check_cancelled(cancel).and_then(|()| job(&mut state, number)) {
                    break Err(error);
                }
                progress(number as u64 + 1, jobs as u64);
            };
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            result
        };
        thread::scope(|scope| {
            let helpers: Vec<_> =
                (1..self.workers.min(jobs)).map(|_| scope.spawn(|| work(&mut |_, _| {}))).collect();
            let mut result = work(self.progress);
            for helper in helpers {
                let lost = |_| Err(Error::new(ErrorKind::Io, "a thread that checked died"));
                result = result.and(helper.join().unwrap_or_else(lost));
            }
            result
        })
    }
}
