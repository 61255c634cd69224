//! A storage with a length and nothing in it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Capabilities, Run, Storage, ZeroMode};
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::Result;

/// Reads as zeroes; what is written vanishes. Only [`set_len`](Storage::set_len) changes its length.
#[derive(Debug, Default)]
pub struct Null {
    len: AtomicU64,
}

impl Null {
    /// `len` bytes of nothing.
    pub fn new(len: u64) -> Self {
        Null { len: AtomicU64::new(len) }
    }
}

impl Storage for Null {
    fn readv_at(&self, mut bufs: IoVectorMut<'_>, _offset: u64) -> Result<()> {
        bufs.fill_zero();
        Ok(())
    }

    fn try_readv_at(&self, mut bufs: IoVectorMut<'_>, _offset: u64) -> Result<usize> {
        bufs.fill_zero();
        Ok(bufs.len())
    }

    fn writev_at(&self, _bufs: IoVector<'_>, _offset: u64) -> Result<()> {
        Ok(())
    }

    fn write_zeroes_at(&self, _offset: u64, _len: u64, _mode: ZeroMode) -> Result<()> {
        Ok(())
    }

    fn discard_at(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn allocate_at(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len.load(Ordering::Relaxed))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn grow(&self, len: u64) -> Result<()> {
        self.len.fetch_max(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { write: true, fast_zeroes: true, discard_zeroes: true, resize: true }
    }

    fn run_at(&self, _offset: u64, len: u64) -> Result<Run> {
        Ok(Run { len, data: false })
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_vanishes() {
        let null = Null::new(100);
        null.writev_at(b"gone".into(), 98).expect("write");
        let mut bytes = [1; 8];
        null.readv_at((&mut bytes).into(), 96).expect("read");
        assert_eq!(bytes, [0; 8]);
        assert_eq!(null.len().expect("len"), 100, "a write makes it no longer");
        assert_eq!(null.run_at(0, 100).expect("run"), Run { len: 100, data: false });
    }
}
