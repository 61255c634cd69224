//! `SyncFormatAccess` and `FormatAccess`: one set of operations with two faces.

use std::sync::Arc;

use imago_core::access::image::Image;
use imago_core::access::job::Job;
use imago_core::format::preallocation::Preallocation;
use imago_core::format::{CacheUse, ZeroIntent};
use pyo3::exceptions::{PyResourceWarning, PyTypeError};
use pyo3::prelude::*;

use crate::access::{Access, Lease};
use crate::bitmaps::{AsyncBitmaps, Bitmaps};
use crate::buffers::kind;
use crate::errors::{Failure, exception};
use crate::extents::{self, AsyncExtentIterator, ExtentIterator};
use crate::formats;
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::snapshots::{AsyncSnapshots, Snapshots};
use crate::transfer::{Level, Offset, Transfer};
use crate::verbs::create::PreallocationMode;
use crate::verbs::job::run_job;

fn zero<F: Face>(
    py: Python<'_>,
    access: &Arc<Access>,
    Offset(offset): Offset,
    Offset(length): Offset,
    intent: ZeroIntent,
) -> PyResult<Py<PyAny>> {
    access.check_writable()?;
    access.check_range(
        if intent == ZeroIntent::Unmap { "write_zeroes" } else { "discard" },
        offset,
        length,
    )?;
    F::on_image(py, access, move |_, image| image.write_zeroes(offset, length, intent))
}

/// On a thread of its own, and so that it can be ended: packing takes long.
fn write_compressed<F: Face>(
    py: Python<'_>,
    access: &Arc<Access>,
    mut transfer: Transfer,
) -> PyResult<Py<PyAny>> {
    transfer.check(access)?;
    let lease = access.lease(py)?;
    let run = move || {
        let result = transfer.run(lease.image());
        // The memory goes back where the interpreter is at hand.
        Ok((transfer, result))
    };
    F::call(py, Venue::Thread, run, |py, (_, result)| {
        result.map(|()| py.None()).map_err(|error| exception(py, &error))
    })
}

fn cache_stats<'py>(py: Python<'py>, access: &Arc<Access>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(stats) = access.image(py)?.get().cache_stats() else { return Ok(None) };
    let types = py.import("pyimago._types")?;
    let cache = types.getattr("CacheUse")?;
    let usage = |cache_use: CacheUse| {
        let CacheUse { hits, misses, capacity, used } = cache_use;
        cache.call1((hits, misses, capacity, used))
    };
    types.getattr("CacheStats")?.call1((usage(stats.l2)?, usage(stats.refcount)?)).map(Some)
}

fn close<F: Face>(
    py: Python<'_>,
    access: &Arc<Access>,
    close: fn(&Image) -> imago_core::Result<()>,
) -> PyResult<Py<PyAny>> {
    let closed = Arc::clone(access);
    // A thread of its own: it waits for operations that the pool may have yet to begin.
    let run = move || if closed.is_ours() { closed.close_by(close).map_err(Failure::from) } else { Ok(()) };
    let closing = F::call(py, Venue::Thread, run, |py, ()| Ok(py.None()))?;
    // It comes, whoever waits for it.
    access.forget_unflushed();
    Ok(closing)
}

macro_rules! image_class {
    ($(#[$doc:meta])* $name:ident, $face:ty, $extents:ident, $bitmaps:ident, $snapshots:ident, { $($own:tt)* }) => {
        $(#[$doc])*
        #[pyclass(frozen, weakref, module = "pyimago")]
        pub(crate) struct $name {
            pub(crate) access: Arc<Access>,
        }

        impl $name {
            pub(crate) fn of(image: Arc<Image>) -> Self {
                $name { access: Access::new(image) }
            }
        }

        #[pymethods]
        impl $name {
            /// Access to the image that `image` (a `Raw` or `Qcow2`) was opened as. It belongs to this object from now on.
            #[new]
            fn new(image: &Bound<'_, PyAny>) -> PyResult<Self> {
                formats::into_image(image).map(Self::of)
            }

            /// Fill `buf`, any writable buffer, with the disk's bytes from `offset` (bytes) on.
            fn read(&self, py: Python<'_>, buf: &Bound<'_, PyAny>, offset: Offset) -> PyResult<Py<PyAny>> {
                <$face>::read(py, &self.access, buf, offset)
            }

            /// Fill the buffers `bufs`, one after the other, with the disk's bytes from `offset` (bytes) on.
            fn readv(&self, py: Python<'_>, bufs: &Bound<'_, PyAny>, offset: Offset) -> PyResult<Py<PyAny>> {
                <$face>::transfer(py, &self.access, Transfer::readv(bufs, offset)?)
            }

            /// The `length` bytes of the disk from `offset` (bytes) on, as a new `bytes`.
            fn pread(&self, py: Python<'_>, length: Offset, offset: Offset) -> PyResult<Py<PyAny>> {
                <$face>::transfer(py, &self.access, Transfer::pread(py, &self.access, length, offset)?)
            }

            /// Fill many buffers, each from its own offset: `requests` are pairs of buffer and offset (bytes).
            fn read_many(&self, py: Python<'_>, requests: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
                <$face>::transfer(py, &self.access, Transfer::read_many(requests)?)
            }

            /// Write the bytes of `data`, any buffer, to the disk from `offset` (bytes) on.
            fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>, offset: Offset) -> PyResult<Py<PyAny>> {
                <$face>::transfer(py, &self.access, Transfer::write(data, offset)?)
            }

            /// Write the bytes of the buffers `bufs`, one after the other, to the disk from `offset` (bytes) on.
            fn writev(&self, py: Python<'_>, bufs: &Bound<'_, PyAny>, offset: Offset) -> PyResult<Py<PyAny>> {
                <$face>::transfer(py, &self.access, Transfer::writev(bufs, offset)?)
            }

            /// Write many buffers, each to its own offset: `requests` are pairs of buffer and offset (bytes).
            fn write_many(&self, py: Python<'_>, requests: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
                <$face>::transfer(py, &self.access, Transfer::write_many(requests)?)
            }

            /// How the caches of the metadata have been used since the image was opened: a `CacheStats`; None for raw images.
            fn cache_stats<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
                cache_stats(py, &self.access)
            }

            /// Write the bytes of `data`, any buffer, to the disk from `offset` (bytes) on, in compressed clusters (qcow2 only). `offset` and length are
            /// multiples of the cluster size, but for the disk's end. `level` is 1 to 9 (zlib) or 1 to 22 (zstd); None is `qemu-img`'s.
            #[pyo3(signature = (data, offset, *, level = None))]
            fn write_compressed(
                &self,
                py: Python<'_>,
                data: &Bound<'_, PyAny>,
                offset: Offset,
                level: Option<Level>,
            ) -> PyResult<Py<PyAny>> {
                write_compressed::<$face>(py, &self.access, Transfer::write_compressed(data, offset, level)?)
            }

            /// Make `length` bytes from `offset` (bytes) on read as zeroes; the space for them goes back to the host where that is possible.
            fn write_zeroes(&self, py: Python<'_>, offset: Offset, length: Offset) -> PyResult<Py<PyAny>> {
                zero::<$face>(py, &self.access, offset, length, ZeroIntent::Unmap)
            }

            /// Give up `length` bytes from `offset` (bytes) on; what is a whole cluster goes back to the host.
            fn discard(&self, py: Python<'_>, offset: Offset, length: Offset) -> PyResult<Py<PyAny>> {
                zero::<$face>(py, &self.access, offset, length, ZeroIntent::Discard)
            }

            /// What the `length` bytes (None: all) from `offset` (bytes) on are: an iterator of `Extent`.
            #[pyo3(signature = (offset = Offset(0), length = None), text_signature = "($self, offset=0, length=None)")]
            fn extents(slf: &Bound<'_, Self>, offset: Offset, length: Option<Offset>) -> PyResult<$extents> {
                let owner = slf.clone().into_any().unbind();
                extents::cursor(slf.py(), &slf.get().access, owner, offset, length).map($extents)
            }

            /// Make everything that was written durable.
            fn flush(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
                <$face>::on_image(py, &self.access, Access::flush)
            }

            /// Wait for the operations in flight, flush, and let the image go. Closing again does nothing.
            ///
            /// `durable`: with False guest data that no metadata waits for is left to the system, and a loss of power soon afterwards may take
            /// it away: for what can be made again.
            #[pyo3(signature = (*, durable = true))]
            fn close(&self, py: Python<'_>, durable: bool) -> PyResult<Py<PyAny>> {
                close::<$face>(py, &self.access, if durable { Image::close } else { Image::leave })
            }

            /// The persistent dirty bitmaps.
            #[getter]
            fn bitmaps(slf: &Bound<'_, Self>) -> $bitmaps {
                $bitmaps { access: Arc::clone(&slf.get().access), owner: slf.clone().into_any().unbind() }
            }

            /// The snapshots inside the image.
            #[getter]
            fn snapshots(slf: &Bound<'_, Self>) -> $snapshots {
                $snapshots { access: Arc::clone(&slf.get().access), _owner: slf.clone().into_any().unbind() }
            }

            /// Make the disk `size` bytes long, for qcow2 a multiple of 512. What is new reads as zeroes, what is cut off is gone.
            ///
            /// `preallocation` sets space aside for what is new, as in `create`: "off", "metadata" (a place in the image), "falloc" (space on the medium
            /// too), "full" (written full of zeroes). `progress` is called now and then with the bytes that are set aside and all of them, or, where the disk
            /// shrinks, with the bytes of tables that were gone through; what it raises ends the work. A disk that was to grow has its old size then, one that
            /// was to shrink its new one.
            #[pyo3(
                signature = (size, *, preallocation = PreallocationMode(Preallocation::Off), progress = None),
                text_signature = "($self, size, *, preallocation='off', progress=None)"
            )]
            fn resize(
                &self,
                py: Python<'_>,
                size: Offset,
                preallocation: PreallocationMode,
                progress: Option<Py<PyAny>>,
            ) -> PyResult<Py<PyAny>> {
                self.access.check_writable()?;
                let lease = self.access.lease(py)?;
                let run = move |job: &mut Job<'_>| {
                    let resize = |image: &Image| image.resize_with(size.0, preallocation.0, job);
                    Ok(lease.access().resizing(lease.image(), resize)?)
                };
                run_job::<$face, _, _, _>(py, progress, run, |py, ()| Ok(py.None()))
            }

            /// Size of the disk in bytes.
            #[getter]
            fn size(&self) -> u64 {
                self.access.size()
            }

            /// The image's format: "raw", "qcow2" or "luks".
            #[getter]
            fn format(&self) -> &'static str {
                self.access.kind().name()
            }

            /// The image's file, where it is in one.
            #[getter]
            fn filename(&self) -> Option<&std::ffi::OsStr> {
                self.access.path().map(|path| path.as_os_str())
            }

            /// Whether the image was opened for writing.
            #[getter]
            fn writable(&self) -> bool {
                self.access.writable()
            }

            /// Whether the image was closed.
            #[getter]
            fn closed(&self) -> bool {
                self.access.is_closed()
            }

            fn __repr__(&self) -> String {
                let Self { access } = self;
                let state = match (access.is_closed(), access.writable()) {
                    (true, _) => "closed",
                    (false, true) => "writable",
                    (false, false) => "read-only",
                };
                format!("<{} of {} ({}, {} bytes, {state})>", stringify!($name), access.name(), access.kind(), access.size())
            }

            $($own)*
        }
    };
}

image_class!(
    /// An open image, read and written at once.
    ///
    /// Any number of threads may use it. Used in a `with` statement it is closed at the end; dropped without that it is flushed.
    SyncFormatAccess, Blocking, ExtentIterator, Bitmaps, Snapshots, {
        /// The disk as a standard file object, an `io.RawIOBase` with a position of its own.
        fn file(slf: Bound<'_, Self>) -> PyResult<Bound<'_, PyAny>> {
            slf.py().import("pyimago._file")?.getattr("ImageFile")?.call1((slf,))
        }

        fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
            slf.get().access.image(slf.py())?;
            Ok(slf)
        }

        #[pyo3(signature = (*_args))]
        fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<Py<PyAny>> {
            self.close(py, true)
        }
    }
);

image_class!(
    /// An open image whose operations are awaited, in any event loop.
    ///
    /// Each method returns a future of the running loop, a completed one where the answer was at hand. Used in an `async with` statement the image is closed at
    /// the end; otherwise flush or close one that was opened for writing: dropping it cannot, and warns.
    FormatAccess, Awaited, AsyncExtentIterator, AsyncBitmaps, AsyncSnapshots, {
        fn __aenter__(slf: Bound<'_, Self>) -> PyResult<Py<PyAny>> {
            let py = slf.py();
            slf.get().access.image(py)?;
            crate::bridge::Bridge::current(py)?.completed(py, Some(slf.into_any().unbind()))
        }

        #[pyo3(signature = (*_args))]
        fn __aexit__(&self, py: Python<'_>, _args: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<Py<PyAny>> {
            self.close(py, true)
        }
    }
);

/// The access of a `FormatAccess` or `SyncFormatAccess`.
fn access_of<'a>(object: &'a Bound<'_, PyAny>) -> Option<&'a Arc<Access>> {
    if let Ok(image) = object.cast::<SyncFormatAccess>() {
        return Some(&image.get().access);
    }
    object.cast::<FormatAccess>().ok().map(|image| &image.get().access)
}

/// The image of a `FormatAccess` or `SyncFormatAccess`, to be used beside or below another one.
pub(crate) fn shared_image(object: &Bound<'_, PyAny>) -> PyResult<Arc<Image>> {
    let access = access_of(object).ok_or_else(|| {
        PyTypeError::new_err(format!(
            "an image is a FormatAccess or SyncFormatAccess, not {}; open it first",
            kind(object)
        ))
    })?;
    access.image(object.py()).map(|open| Arc::clone(open.get()))
}

/// The image of a `FormatAccess` or `SyncFormatAccess`, for an operation on it; `None` if the object is neither.
pub(crate) fn leased_image(object: &Bound<'_, PyAny>) -> Option<PyResult<Lease>> {
    access_of(object).map(|access| access.lease(object.py()))
}

/// Runs `f` from a destructor: whatever exception is on its way stays that.
fn while_dropping(f: impl FnOnce(Python<'_>) -> PyResult<()>) {
    Python::try_attach(|py| {
        let raised = PyErr::take(py);
        if let Err(error) = f(py) {
            error.write_unraisable(py, None);
        }
        if let Some(raised) = raised {
            raised.restore(py);
        }
    });
}

impl Drop for SyncFormatAccess {
    fn drop(&mut self) {
        if self.access.is_ours_and_open() {
            while_dropping(|py| py.detach(|| self.access.release()).map_err(|error| exception(py, &error)));
        }
    }
}

impl Drop for FormatAccess {
    fn drop(&mut self) {
        if self.access.is_ours_and_open() && self.access.is_unflushed() {
            while_dropping(|py| {
                let text =
                    format!("{} was open for writing and is dropped without a flush", self.access.name());
                let text = std::ffi::CString::new(text)?;
                PyErr::warn(py, &py.get_type::<PyResourceWarning>(), &text, 1)
            });
        }
    }
}
