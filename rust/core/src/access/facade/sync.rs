//! Synchronous access.

use std::sync::Arc;

use super::IntoImage;
use crate::access::image::Image;
use crate::access::map::Extents;
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::Result;
use crate::format::ZeroIntent;

/// An image to read and write on the calling thread. Flushes when dropped.
#[derive(Debug)]
pub struct SyncFormatAccess {
    image: Arc<Image>,
}

impl SyncFormatAccess {
    /// Access to an image whose dependencies are there: an external data file that was not opened is an error.
    pub fn new(image: impl IntoImage) -> Result<Self> {
        let image = image.into_image();
        drop(image.begin()?);
        Ok(SyncFormatAccess { image })
    }

    /// The image itself.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Size of the guest's disk in bytes.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// See [`Image::read`].
    pub fn read<'a>(&self, bufs: impl Into<IoVectorMut<'a>>, offset: u64) -> Result<()> {
        self.image.read(bufs, offset)
    }

    /// See [`Image::write`].
    pub fn write<'a>(&self, bufs: impl Into<IoVector<'a>>, offset: u64) -> Result<()> {
        self.image.write(bufs, offset)
    }

    /// Makes `len` bytes at `offset` read as zeroes; their space goes back where that is possible.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.image.write_zeroes(offset, len, ZeroIntent::Unmap)
    }

    /// See [`Image::discard`].
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.image.discard(offset, len)
    }

    /// See [`Image::extents`].
    pub fn extents(&self, offset: u64, len: u64) -> Result<Extents> {
        self.image.extents(offset, len)
    }

    /// See [`Image::flush`].
    pub fn flush(&self) -> Result<()> {
        self.image.flush()
    }

    /// See [`Image::close`].
    pub fn close(&self) -> Result<()> {
        self.image.close()
    }
}

impl Drop for SyncFormatAccess {
    fn drop(&mut self) {
        // Nobody is there to hear of a failure; who wants to know calls `flush` or `close`.
        if !self.image.is_closed() {
            let _ = self.image.flush();
        }
    }
}
