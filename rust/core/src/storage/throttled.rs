//! A storage that answers late.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Limits, Run, Storage, ZeroMode};
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::Result;

/// Another storage, each request of which takes at least a given time.
///
/// Requests wait each for itself, as those of a distant device with a deep queue do. Nothing is ever at hand: there is no
/// read without waiting and no descriptor to go round it.
#[derive(Debug)]
pub struct Throttled {
    inner: Arc<dyn Storage>,
    latency: Duration,
}

impl Throttled {
    /// `inner` with `latency` added to each request.
    pub fn new(inner: Arc<dyn Storage>, latency: Duration) -> Self {
        Throttled { inner, latency }
    }

    fn wait(&self) -> &dyn Storage {
        thread::sleep(self.latency);
        &*self.inner
    }
}

impl Storage for Throttled {
    answers_of_inner!();

    fn readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        self.wait().readv_at(bufs, offset)
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        self.wait().writev_at(bufs, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.wait().write_zeroes_at(offset, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.wait().discard_at(offset, len)
    }

    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        self.wait().allocate_at(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.wait().set_len(len)
    }

    fn grow(&self, len: u64) -> Result<()> {
        self.wait().grow(len)
    }

    fn write_out(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.write_out(offset, len)
    }

    fn let_go(&self, offset: u64, len: u64) {
        self.inner.let_go(offset, len);
    }

    fn sync(&self) -> Result<()> {
        self.wait().sync()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn run_at(&self, offset: u64, len: u64) -> Result<Run> {
        self.wait().run_at(offset, len)
    }
}
