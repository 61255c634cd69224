//! An open image as the Python classes hold it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use imago_core::access::image::Image;
use imago_core::format::FormatKind;
use imago_core::{Error, ErrorKind};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::bridge::fork;
use crate::errors::{UnsupportedOperation, exception};

/// An open image, and what stays known of it once it is closed.
///
/// An operation that outlives the call holds a [`Lease`], and closing waits for those first: what was begun before is done, even if
/// no thread has come to it yet. Afterwards the engine's image is let go, so that its files are closed even while Python
/// still holds the object.
pub(crate) struct Access {
    image: RwLock<Option<Arc<Image>>>,
    closing: AtomicBool,
    leases: Mutex<usize>,
    idle: Condvar,
    unflushed: AtomicBool,
    birth: fork::Generation,
    path: Option<PathBuf>,
    /// The disk's, as it was last: known when the image is closed, too.
    size: AtomicU64,
    kind: FormatKind,
    writable: bool,
}

/// An operation that is not over; its image stays open until this is dropped.
pub(crate) struct Lease {
    access: Arc<Access>,
    image: Arc<Image>,
}

/// An image that is open for as long as this lives.
pub(crate) struct OpenImage<'a>(RwLockReadGuard<'a, Option<Arc<Image>>>);

impl Access {
    pub(crate) fn new(image: Arc<Image>) -> Arc<Self> {
        Arc::new(Access {
            path: image.path().map(Into::into),
            size: AtomicU64::new(image.size()),
            kind: image.kind(),
            writable: image.writable(),
            closing: AtomicBool::new(false),
            leases: Mutex::default(),
            idle: Condvar::new(),
            unflushed: AtomicBool::new(image.writable()),
            birth: fork::Generation::now(),
            image: RwLock::new(Some(image)),
        })
    }

    /// What messages call the image.
    pub(crate) fn name(&self) -> String {
        self.path
            .as_ref()
            .map_or_else(|| "an image without a file".to_owned(), |path| path.display().to_string())
    }

    pub(crate) fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Carries out what may change the size of the disk.
    pub(crate) fn resizing<T>(&self, image: &Image, change: impl FnOnce(&Image) -> T) -> T {
        let changed = change(image);
        self.size.store(image.size(), Ordering::Relaxed);
        changed
    }

    pub(crate) fn kind(&self) -> FormatKind {
        self.kind
    }

    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Whether something may have been written that no flush has made durable.
    pub(crate) fn is_unflushed(&self) -> bool {
        self.unflushed.load(Ordering::Relaxed)
    }

    /// Nobody has to remember what was written: a closing is under way.
    pub(crate) fn forget_unflushed(&self) {
        self.unflushed.store(false, Ordering::Relaxed);
    }

    /// Whether a range is inside the image.
    #[inline]
    pub(crate) fn holds(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.size())
    }

    /// Refuses a range that is not inside the image.
    #[inline]
    pub(crate) fn check_range(&self, what: &str, offset: u64, len: u64) -> PyResult<()> {
        if self.holds(offset, len) {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "{what} of {len} bytes at offset {offset} goes past the end of {} ({} bytes)",
            self.name(),
            self.size()
        )))
    }

    /// Refuses to change an image that was opened for reading.
    pub(crate) fn check_writable(&self) -> PyResult<()> {
        if self.writable {
            self.unflushed.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(UnsupportedOperation::new_err(format!(
            "{} is open for reading only: open it with write=True to write",
            self.name()
        )))
    }

    /// The image. `ValueError` when it is closed or being closed, `RuntimeError` in a forked child: there the engine's
    /// locks may be held by threads that do not exist, and the file is the parent's too.
    #[inline]
    pub(crate) fn image(&self, py: Python<'_>) -> PyResult<OpenImage<'_>> {
        if !self.birth.is_now() {
            return Err(PyRuntimeError::new_err(format!(
                "{} was opened before this process was forked; open it again here",
                self.name()
            )));
        }
        if let Some(open) = self.open_image(py) {
            return Ok(open);
        }
        let closed = Error::new(ErrorKind::Closed, format!("{} is closed", self.name()));
        Err(exception(py, &closed))
    }

    /// The image, unless [`image`](Self::image) has an error to tell.
    #[inline]
    pub(crate) fn open_image(&self, _: Python<'_>) -> Option<OpenImage<'_>> {
        if !self.is_ours_and_open() {
            return None;
        }
        // Never waits: the only writer is a closing.
        self.image.try_read().filter(|image| image.is_some()).map(OpenImage)
    }

    /// The image, for an operation that outlives the call.
    pub(crate) fn lease(self: &Arc<Self>, py: Python<'_>) -> PyResult<Lease> {
        // Counted first, so that a closing either sees the lease or is seen.
        *self.leases.lock() += 1;
        match self.image(py) {
            Ok(open) => Ok(Lease { image: Arc::clone(open.get()), access: Arc::clone(self) }),
            Err(error) => {
                self.end_lease();
                Err(error)
            }
        }
    }

    fn end_lease(&self) {
        let mut leases = self.leases.lock();
        *leases -= 1;
        if *leases == 0 {
            self.idle.notify_all();
        }
    }

    /// Makes all that was written durable.
    pub(crate) fn flush(&self, image: &Image) -> imago_core::Result<()> {
        // First: what is written while this runs must be remembered.
        let unflushed = self.unflushed.swap(false, Ordering::Relaxed);
        image.flush().inspect_err(|_| {
            self.unflushed.fetch_or(unflushed, Ordering::Relaxed);
        })
    }

    /// Waits for the operations in flight, flushes, leaves the image clean and lets it go. Closing again does nothing.
    pub(crate) fn close(&self) -> imago_core::Result<()> {
        self.close_by(Image::close)
    }

    /// The same with a way of its own to close the image.
    pub(crate) fn close_by(
        &self,
        close: impl FnOnce(&Image) -> imago_core::Result<()>,
    ) -> imago_core::Result<()> {
        self.closing.store(true, Ordering::SeqCst);
        self.idle.wait_while(&mut self.leases.lock(), |leases| *leases > 0);
        let Some(image) = self.image.read().clone() else { return Ok(()) };
        let result = close(&image);
        self.forget_unflushed();
        *self.image.write() = None;
        result
    }

    /// Lets the image go without a word from its user: closed if nobody else has it (as its backing), flushed anyway.
    pub(crate) fn release(&self) -> imago_core::Result<()> {
        let shared = self.image.read().as_ref().filter(|image| Arc::strong_count(image) > 1).cloned();
        match shared {
            Some(image) if self.is_unflushed() => image.flush(),
            Some(_) => Ok(()),
            None => self.close(),
        }
    }

    /// Whether it was opened in this process.
    pub(crate) fn is_ours(&self) -> bool {
        self.birth.is_now()
    }

    /// Whether this process has it open.
    pub(crate) fn is_ours_and_open(&self) -> bool {
        self.is_ours() && !self.is_closed()
    }
}

impl OpenImage<'_> {
    #[inline]
    pub(crate) fn get(&self) -> &Arc<Image> {
        self.0.as_ref().expect("only an open image is handed out")
    }
}

impl Lease {
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.access.end_lease();
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        if !self.birth.is_now() {
            // The parent's image: dropping it here could write to its file, or wait for a lock that nobody will open.
            std::mem::forget(self.image.get_mut().take());
        }
    }
}
