//! A part of another storage.

use std::path::Path;
use std::sync::Arc;

use super::{Capabilities, Identity, Limits, Offload, RawRange, Run, Storage, ZeroMode};
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, ErrorKind, Result};

/// The bytes of another storage from an offset on: all of them, or so many.
///
/// One with a size keeps it: what is outside is neither read nor written, and a write past its end fails as one past the end of a
/// device does (`ENOSPC`). One without a size ends where the other storage does, and grows with it.
#[derive(Debug)]
pub struct Slice {
    inner: Arc<dyn Storage>,
    base: u64,
    size: Option<u64>,
}

impl Slice {
    /// The `size` bytes (`None`: all) of `inner` from `offset` on. They have to be there, and both numbers have to meet the
    /// storage's [`Limits`].
    pub fn new(inner: Arc<dyn Storage>, offset: u64, size: Option<u64>) -> Result<Self> {
        let named = |error: Error| match inner.path() {
            Some(path) => error.in_file(path),
            None => error,
        };
        let unit = u64::from(inner.limits().request_alignment);
        if !(offset | size.unwrap_or(0)).is_multiple_of(unit) {
            let text = format!("offset and size of a part have to be multiples of {unit} bytes here");
            return Err(named(Error::invalid_input(text)));
        }
        let len = inner.len()?;
        if offset.checked_add(size.unwrap_or(0)).is_none_or(|end| end > len) {
            let what = size.map_or_else(String::new, |size| format!("{size} bytes from "));
            let text = format!("{what}offset {offset} on are not there: the storage has {len} bytes");
            return Err(named(Error::invalid_input(text)));
        }
        Ok(Slice { inner, base: offset, size })
    }

    /// Where `offset` is in the other storage; `None` if that is no number.
    fn within(&self, offset: u64) -> Option<u64> {
        self.base.checked_add(offset)
    }

    /// Bytes of a request of `len` at `offset` that are inside the size, if there is one.
    fn room(&self, offset: u64, len: u64) -> u64 {
        self.size.map_or(len, |size| size.saturating_sub(offset).min(len))
    }

    /// The part of the range that is not outside of the size, as (offset in the other storage, length) above 0.
    fn clip(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let len = self.room(offset, len);
        self.within(offset).filter(|_| len > 0).map(|at| (at, len))
    }

    #[cold]
    fn no_room(&self, offset: u64) -> Error {
        let error =
            Error::io("write past the end of a part", std::io::Error::from_raw_os_error(libc::ENOSPC));
        let error = error.at(self.base.saturating_add(offset));
        match self.path() {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

impl Storage for Slice {
    fn readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        let inside = self.room(offset, bufs.len() as u64) as usize;
        let Some(at) = self.within(offset).filter(|_| inside > 0) else {
            bufs.fill_zero();
            return Ok(());
        };
        if inside == bufs.len() {
            return self.inner.readv_at(bufs, at);
        }
        let front = bufs.take_front(inside);
        bufs.fill_zero();
        self.inner.readv_at(front, at)
    }

    fn try_readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        let len = bufs.len() as u64;
        match self.within(offset) {
            Some(at) if self.room(offset, len) == len => self.inner.try_readv_at(bufs, at),
            _ => Ok(0),
        }
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        let len = bufs.len() as u64;
        match self.within(offset) {
            Some(at) if self.room(offset, len) == len => self.inner.writev_at(bufs, at),
            _ if len == 0 => Ok(()),
            _ => Err(self.no_room(offset)),
        }
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let Some((at, len)) = self.clip(offset, len) else { return Ok(()) };
        self.inner.write_zeroes_at(at, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        let Some((at, len)) = self.clip(offset, len) else { return Ok(()) };
        self.inner.discard_at(at, len)
    }

    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        let Some((at, len)) = self.clip(offset, len) else { return Ok(()) };
        self.inner.allocate_at(at, len)
    }

    fn len(&self) -> Result<u64> {
        self.size.map_or_else(|| Ok(self.inner.len()?.saturating_sub(self.base)), Ok)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.size.is_some() {
            return Err(Error::new(ErrorKind::Unsupported, "a part with a size of its own keeps it"));
        }
        let end = self.within(len).ok_or_else(|| Error::invalid_input("no storage is that long"))?;
        self.inner.set_len(end)
    }

    fn write_out(&self, offset: u64, len: u64) -> Result<()> {
        let Some((at, len)) = self.clip(offset, len) else { return Ok(()) };
        self.inner.write_out(at, len)
    }

    fn let_go(&self, offset: u64, len: u64) {
        if let Some((at, len)) = self.clip(offset, len) {
            self.inner.let_go(at, len);
        }
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn capabilities(&self) -> Capabilities {
        let inner = self.inner.capabilities();
        Capabilities { resize: inner.resize && self.size.is_none(), ..inner }
    }

    fn run_at(&self, offset: u64, len: u64) -> Result<Run> {
        let len = self.room(offset, len);
        self.within(offset).map_or(Ok(Run { len, data: false }), |at| self.inner.run_at(at, len))
    }

    /// Of the whole of the other storage: nobody can tell what of it this part takes.
    fn allocated(&self) -> Result<Option<u64>> {
        self.inner.allocated()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }

    fn position(&self, offset: u64) -> Option<u64> {
        self.within(offset).and_then(|at| self.inner.position(at))
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.inner.identity()?.part(self.base, self.size))
    }

    fn check_named(&self) -> Result<()> {
        self.inner.check_named()
    }

    fn unlock(&self) {
        self.inner.unlock();
    }

    #[cfg(unix)]
    fn copy_from(&self, source: RawRange, to: u64, how: Offload) -> u64 {
        match self.clip(to, source.len) {
            Some((at, len)) => self.inner.copy_from(RawRange { len, ..source }, at, how),
            None => 0,
        }
    }

    #[cfg(unix)]
    fn raw_fd(&self, offset: u64, len: u64) -> Option<(std::os::fd::RawFd, u64)> {
        let at = self.within(offset).filter(|_| self.room(offset, len) == len)?;
        self.inner.raw_fd(at, len)
    }

    fn raw_limits(&self) -> Limits {
        self.inner.raw_limits()
    }
}
