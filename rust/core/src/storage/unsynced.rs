//! A storage that is not synced.

use std::sync::Arc;

use super::{Limits, Offload, RawRange, Run, Storage, ZeroMode};
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::Result;

/// Another storage, but for its syncs, which do nothing: of a file that counts only once it is whole, and is synced then.
#[derive(Debug)]
pub(crate) struct Unsynced {
    inner: Arc<dyn Storage>,
}

impl Unsynced {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Self {
        Unsynced { inner }
    }
}

impl Storage for Unsynced {
    answers_of_inner!();

    fn readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        self.inner.readv_at(bufs, offset)
    }

    fn try_readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        self.inner.try_readv_at(bufs, offset)
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        self.inner.writev_at(bufs, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.inner.write_zeroes_at(offset, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard_at(offset, len)
    }

    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.allocate_at(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len)
    }

    fn write_out(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.write_out(offset, len)
    }

    fn let_go(&self, offset: u64, len: u64) {
        self.inner.let_go(offset, len);
    }

    fn sync(&self) -> Result<()> {
        Ok(())
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
        self.inner.copy_from(source, to, how)
    }

    #[cfg(unix)]
    fn raw_fd(&self, offset: u64, len: u64) -> Option<(std::os::fd::RawFd, u64)> {
        self.inner.raw_fd(offset, len)
    }
}
