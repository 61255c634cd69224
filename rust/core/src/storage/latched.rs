//! A storage that is not written to any more once a write has failed.

use std::sync::{Arc, OnceLock};

use super::{Limits, Offload, RawRange, Run, Storage, ZeroMode};
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, ErrorKind, Result};

/// Passes everything on to another storage until the first failure of `writev_at`, `write_zeroes_at`, `set_len` or `sync`
/// through this wrapper. From then on these, `discard_at` and `allocate_at` answer [`ErrorKind::Latched`] and name that failure; reads go on.
///
/// Such a failure leaves it unknown what the medium holds (or, for `sync`, will hold after a crash), so nothing
/// may be put on top of it. What does not latch:
///
/// - a refusal, which has no effect by the storage's contract: [`ErrorKind::ReadOnly`], [`ErrorKind::InvalidInput`],
///   [`ErrorKind::Unsupported`];
/// - a failed discard or allocation: it leaves what was there or zeroes, which its caller has to reckon with anyway;
/// - a failed read.
///
/// A write that is running while another one fails is not stopped; none that starts later reaches the storage.
#[derive(Debug)]
pub struct Latched {
    inner: Arc<dyn Storage>,
    failure: OnceLock<Error>,
}

impl Latched {
    /// A latch before `inner`, open.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Latched { inner, failure: OnceLock::new() }
    }

    /// The failure that closed the latch, if one has.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.get()
    }

    /// Closes the latch for a failure elsewhere that leaves what is written here in doubt.
    pub fn close(&self, failure: &Error) {
        self.failure.get_or_init(|| failure.clone());
    }

    /// An error once the latch is closed.
    pub fn check(&self) -> Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some(first) => Err(self.refusal(first)),
        }
    }

    /// Does `change` unless the latch is closed.
    fn guarded(&self, change: impl FnOnce(&dyn Storage) -> Result<()>) -> Result<()> {
        self.check()?;
        change(&*self.inner)
    }

    /// As [`guarded`](Self::guarded), for what leaves an unknown state behind when it fails.
    fn latching(&self, change: impl FnOnce(&dyn Storage) -> Result<()>) -> Result<()> {
        self.guarded(|inner| {
            change(inner).inspect_err(|error| match error.kind() {
                ErrorKind::ReadOnly | ErrorKind::InvalidInput | ErrorKind::Unsupported => {}
                _ => self.close(error),
            })
        })
    }

    #[cold]
    fn refusal(&self, first: &Error) -> Error {
        let error = Error::new(
            ErrorKind::Latched,
            format!("nothing is written any more, since this failed: {first}"),
        );
        match self.path() {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

impl Storage for Latched {
    answers_of_inner!();

    fn readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        self.inner.readv_at(bufs, offset)
    }

    fn try_readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        self.inner.try_readv_at(bufs, offset)
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        self.latching(|inner| inner.writev_at(bufs, offset))
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.latching(|inner| inner.write_zeroes_at(offset, len, mode))
    }

    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        self.guarded(|inner| inner.allocate_at(offset, len))
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.guarded(|inner| inner.discard_at(offset, len))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.latching(|inner| inner.set_len(len))
    }

    fn grow(&self, len: u64) -> Result<()> {
        self.latching(|inner| inner.grow(len))
    }

    fn write_out(&self, offset: u64, len: u64) -> Result<()> {
        self.latching(|inner| inner.write_out(offset, len))
    }

    fn let_go(&self, offset: u64, len: u64) {
        self.inner.let_go(offset, len);
    }

    fn sync(&self) -> Result<()> {
        self.latching(|inner| inner.sync())
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn run_at(&self, offset: u64, len: u64) -> Result<Run> {
        self.inner.run_at(offset, len)
    }

    fn raw_limits(&self) -> Limits {
        self.inner.raw_limits()
    }

    #[cfg(unix)]
    fn copy_from(&self, source: RawRange, to: u64, how: Offload) -> u64 {
        if self.failure.get().is_some() { 0 } else { self.inner.copy_from(source, to, how) }
    }

    #[cfg(unix)]
    fn raw_fd(&self, offset: u64, len: u64) -> Option<(std::os::fd::RawFd, u64)> {
        self.inner.raw_fd(offset, len)
    }
}
