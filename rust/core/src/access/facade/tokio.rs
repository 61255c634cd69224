//! Asynchronous access, on tokio: what is at hand inline, the rest on a blocking thread.

use std::future::Future;
use std::sync::Arc;

use super::IntoImage;
use crate::access::image::Image;
use crate::access::map::Extents;
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, ErrorKind, Result};
use crate::format::ZeroIntent;
use crate::storage::StorageOpenOptions;
use crate::storage::file::File;

/// Bytes of a read that are tried on the runtime's thread; more are not copied there.
const INLINE_MAX: usize = 64 << 10;

/// An image to read and write from asynchronous code.
///
/// What is written is durable after [`flush`](FormatAccess::flush), which dropping does not call: it would have to wait.
/// A future that is dropped before it is done leaves a read's buffer as it may be, and a write to run to its end.
#[derive(Debug)]
pub struct FormatAccess {
    image: Arc<Image>,
}

impl FormatAccess {
    /// Access to an image.
    pub fn new(image: impl IntoImage) -> Self {
        FormatAccess { image: image.into_image() }
    }

    /// The image itself.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Size of the guest's disk in bytes.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// Fills `bufs` from `offset` on; see [`Image::read`].
    ///
    /// What has to be waited for is read into a buffer of ours: the future may be dropped while a thread still reads.
    pub fn read<'a>(
        &self,
        bufs: impl Into<IoVectorMut<'a>>,
        offset: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        let mut bufs = bufs.into();
        async move {
            let mut offset = offset;
            if bufs.len() <= INLINE_MAX {
                let filled = self.image.try_read(bufs.reborrow(), offset)?;
                let _ = bufs.take_front(filled);
                offset += filled as u64;
                if bufs.is_empty() {
                    return Ok(());
                }
            }
            let image = Arc::clone(&self.image);
            let mut bytes = vec![0; bufs.len()];
            let bytes = off_thread(move || image.read(&mut bytes, offset).map(|()| bytes)).await?;
            bufs.copy_from_slice(&bytes);
            Ok(())
        }
    }

    /// Writes `bufs` from `offset` on; see [`Image::write`]. The bytes are copied when this is first polled.
    pub fn write<'a>(
        &self,
        bufs: impl Into<IoVector<'a>>,
        offset: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        let bufs = bufs.into();
        async move {
            let image = Arc::clone(&self.image);
            image.check_write(offset, bufs.len() as u64)?;
            let mut bytes = vec![0; bufs.len()];
            bufs.copy_to_slice(&mut bytes);
            off_thread(move || image.write(&bytes, offset)).await
        }
    }

    /// Makes `len` bytes at `offset` read as zeroes; their space goes back where that is possible.
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let image = Arc::clone(&self.image);
        off_thread(move || image.write_zeroes(offset, len, ZeroIntent::Unmap)).await
    }

    /// See [`Image::discard`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let image = Arc::clone(&self.image);
        off_thread(move || image.discard(offset, len)).await
    }

    /// See [`Image::extents`]; the iterator loads metadata as it goes, on the thread that asks it.
    pub fn extents(&self, offset: u64, len: u64) -> Result<Extents> {
        self.image.extents(offset, len)
    }

    /// See [`Image::flush`].
    pub async fn flush(&self) -> Result<()> {
        let image = Arc::clone(&self.image);
        off_thread(move || image.flush()).await
    }

    /// See [`Image::close`].
    pub async fn close(&self) -> Result<()> {
        let image = Arc::clone(&self.image);
        off_thread(move || image.close()).await
    }
}

impl File {
    /// As [`open_sync`](File::open_sync), off the runtime's thread.
    pub async fn open(options: StorageOpenOptions) -> Result<Self> {
        off_thread(move || Self::open_sync(options)).await
    }
}

impl IntoImage for Arc<FormatAccess> {
    fn into_image(self) -> Arc<Image> {
        Arc::clone(&self.image)
    }
}

/// Runs `work`, which may block, on one of the runtime's threads for that.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorKind::Io, format!("the operation did not end: {error}"))),
    }
}
