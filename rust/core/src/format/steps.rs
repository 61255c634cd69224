//! How far a long piece of work is, for the parts of it that know no job.

use crate::error::Result;
use crate::interrupt;
use crate::storage::Storage;

/// Bytes that are waited for at a time: a slow disk takes some 50 milliseconds.
const WAIT: u64 = 8 << 20;

/// Times that a large file, of which the memory has a small part, is waited for at most, or a few more.
const WAITS: u64 = 1 << 16;

/// Bytes that are done of those that are to be done, and who is told of them.
#[derive(Default)]
pub struct Steps<'a> {
    done: u64,
    total: u64,
    report: Option<&'a mut dyn FnMut(u64, u64) -> Result<()>>,
}

impl<'a> Steps<'a> {
    /// `report` is told bytes done and all bytes; an error of its ends the work. By default nobody is told, and the work ends only when this
    /// [thread's](crate::interrupt) is not wanted any more.
    pub fn new(report: &'a mut dyn FnMut(u64, u64) -> Result<()>) -> Self {
        Steps { done: 0, total: 0, report: Some(report) }
    }

    /// So many bytes more are to be done.
    pub(crate) fn expect(&mut self, bytes: u64) -> Result<()> {
        self.total = self.total.saturating_add(bytes);
        self.tell()
    }

    /// So many bytes more are done.
    pub(crate) fn advance(&mut self, bytes: u64) -> Result<()> {
        self.done = self.done.saturating_add(bytes).min(self.total);
        self.tell()
    }

    /// Waits until what was written to `storage` is on its medium, as far as that can be given up.
    pub(crate) fn settle(&mut self, storage: &dyn Storage) -> Result<()> {
        settle(storage, || self.tell())
    }

    fn tell(&mut self) -> Result<()> {
        match &mut self.report {
            Some(report) => report(self.done, self.total),
            None => interrupt::check(),
        }
    }
}

/// Waits until what was written to `storage` is on its medium; `ask` may end that. What makes it durable comes behind this, and is short.
pub(crate) fn settle(storage: &dyn Storage, mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    let len = storage.len()?;
    let step = WAIT.max(storage.allocated()?.unwrap_or(len) / WAITS);
    let mut at = 0;
    while at < len {
        let run = storage.run_at(at, len - at)?;
        let end = at + run.len;
        while run.data && at < end {
            ask()?;
            let here = step.min(end - at);
            storage.write_out(at, here)?;
            at += here;
        }
        at = end;
    }
    ask()
}
