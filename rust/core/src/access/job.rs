//! A long operation and who asked for it: how far it is, and whether it is still wanted.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;
use crate::format::steps::Steps;
use crate::interrupt;

/// Bytes that are done, and all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// All bytes.
    pub total: u64,
}

/// What a long operation tells and asks while it runs; the default tells nobody and goes on to its end.
#[derive(Default)]
pub struct Job<'a> {
    progress: Option<&'a mut dyn FnMut(Progress)>,
    cancel: Option<&'a AtomicBool>,
}

impl<'a> Job<'a> {
    /// `progress` is told on the calling thread, at the start, after every piece that this thread did, and at the end.
    #[must_use]
    pub fn progress(mut self, progress: &'a mut dyn FnMut(Progress)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Once another thread has set `cancel` the operation ends soon, with [`Interrupted`](std::io::ErrorKind::Interrupted).
    #[must_use]
    pub fn cancel(mut self, cancel: &'a AtomicBool) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Tells how far it is.
    pub(super) fn report(&mut self, done: u64, total: u64) {
        if let Some(progress) = &mut self.progress {
            progress(Progress { done, total });
        }
    }

    /// Tells that all is done, and asks whether it is still wanted: who gave up meanwhile, while what was written became durable, is noticed.
    pub(super) fn finish(&mut self, total: u64) -> Result<()> {
        self.report(total, total);
        self.wanted().check()
    }

    /// Does `work`, which tells its steps and ends where the operation is not wanted any more.
    pub(super) fn in_steps<R>(&mut self, work: impl FnOnce(&mut Steps<'_>) -> R) -> R {
        let wanted = self.wanted();
        work(&mut Steps::new(&mut |done, total| {
            self.report(done, total);
            wanted.check()
        }))
    }

    /// What threads of the operation ask.
    pub(super) fn wanted(&self) -> Wanted<'a> {
        Wanted(self.cancel)
    }
}

/// Whether an operation is still wanted.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a>(Option<&'a AtomicBool>);

impl Wanted<'_> {
    /// An error if it is not.
    pub(super) fn check(self) -> Result<()> {
        if self.0.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(interrupt::interrupted());
        }
        interrupt::check()
    }
}
