//! The disk that an image holds, as a storage: for an image within an image.

use std::path::Path;
use std::sync::Arc;

use super::image::Image;
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, Result};
use crate::format::ZeroIntent;
use crate::storage::{Capabilities, Run, Storage, ZeroMode};

/// The bytes of an open image's disk. It has the size that the image has and keeps it, as a device does, and whoever opened the
/// image closes it, after what uses this.
#[derive(Debug)]
pub struct Disk {
    image: Arc<Image>,
    /// It was opened for this, and closes with it.
    owned: bool,
}

impl Disk {
    /// The disk of `image`.
    pub fn new(image: Arc<Image>) -> Self {
        Disk { image, owned: false }
    }

    /// The same of a read-only image that nobody else uses and that closes with what uses this.
    pub(super) fn owning(image: Arc<Image>) -> Self {
        Disk { image, owned: true }
    }

    /// Bytes of a request of `len` at `offset` that are on the disk.
    fn room(&self, offset: u64, len: u64) -> u64 {
        self.image.size().saturating_sub(offset).min(len)
    }
}

impl Storage for Disk {
    fn readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        let front = bufs.take_front(self.room(offset, bufs.len() as u64) as usize);
        bufs.fill_zero();
        if front.is_empty() { Ok(()) } else { self.image.read(front, offset) }
    }

    fn try_readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        let len = bufs.len() as u64;
        if self.room(offset, len) == len { self.image.try_read(bufs, offset) } else { Ok(0) }
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        let len = bufs.len() as u64;
        if len == 0 {
            return Ok(());
        }
        if self.room(offset, len) < len {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(self.image.name(Error::io("write past the end of the disk", full)).at(offset));
        }
        self.image.write(bufs, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let intent = match mode {
            ZeroMode::Keep => ZeroIntent::Keep,
            ZeroMode::Unmap => ZeroIntent::Unmap,
        };
        match self.room(offset, len) {
            0 => Ok(()),
            len => self.image.write_zeroes(offset, len, intent),
        }
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        match self.room(offset, len) {
            0 => Ok(()),
            len => self.image.discard(offset, len),
        }
    }

    fn len(&self) -> Result<u64> {
        Ok(self.image.size())
    }

    fn set_len(&self, _: u64) -> Result<()> {
        Err(self.image.name(Error::unsupported("the disk of an image has the size that the image has")))
    }

    fn sync(&self) -> Result<()> {
        self.image.flush()
    }

    fn capabilities(&self) -> Capabilities {
        let write = self.image.writable();
        Capabilities { write, fast_zeroes: write, discard_zeroes: false, resize: false }
    }

    fn run_at(&self, offset: u64, len: u64) -> Result<Run> {
        let len = self.room(offset, len);
        let Some(extent) = self.image.extents(offset, len)?.next().transpose()? else {
            return Ok(Run { len, data: false });
        };
        Ok(Run { len: extent.length, data: !extent.zero })
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.image.format().storage().allocated()
    }

    fn position(&self, _: u64) -> Option<u64> {
        None
    }

    fn path(&self) -> Option<&Path> {
        self.image.path()
    }

    fn unlock(&self) {
        if self.owned {
            // Nothing was written that could be lost.
            let _ = self.image.close();
        }
    }
}
