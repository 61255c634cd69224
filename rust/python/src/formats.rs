//! `Raw` and `Qcow2`: what is being opened, before it becomes an access.

use std::sync::Arc;

use imago_core::access::image::{CHAIN_MAX, Image};
use imago_core::format::CacheSizes;
use imago_core::storage::file::File;
use imago_core::{Error, IntoImage, Storage as EngineStorage, StorageOpenOptions, qcow2, raw};
use parking_lot::Mutex;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::errors::{Failure, exception};
use crate::gate::PyGate;
use crate::image::shared_image;
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::storages::Storage;
use crate::transfer::Offset;

/// What the two arguments say.
pub(crate) fn sizes(l2: Option<Offset>, refcount: Option<Offset>) -> CacheSizes {
    CacheSizes { l2: l2.map(|bytes| bytes.0), refcount: refcount.map(|bytes| bytes.0) }
}

/// The engine's object until a `FormatAccess` takes it; locked while another thread is at it.
struct Slot<T>(Arc<Mutex<Option<T>>>);

impl<T> Slot<T> {
    fn new(opened: T) -> Self {
        Slot(Arc::new(Mutex::new(Some(opened))))
    }

    fn with<R>(&self, f: impl FnOnce(&mut Option<T>) -> R) -> PyResult<R> {
        let Some(mut slot) = self.0.try_lock() else {
            return Err(PyValueError::new_err("the dependencies of this image are just being opened"));
        };
        if slot.is_none() {
            return Err(taken());
        }
        Ok(f(&mut slot))
    }
}

fn taken() -> PyErr {
    PyValueError::new_err("this image belongs to a FormatAccess or SyncFormatAccess already")
}

macro_rules! format_class {
    ($(#[$doc:meta])* $name:ident, $engine:ty, $open:ident($($argument:ident: $type:ty),*), { $($own:tt)* }) => {
        $(#[$doc])*
        #[pyclass(frozen, module = "pyimago")]
        pub(crate) struct $name(Slot<$engine>);

        impl $name {
            fn open_with<F: Face>(
                py: Python<'_>,
                open: impl FnOnce() -> Result<$engine, Failure> + Send + 'static,
            ) -> PyResult<Py<PyAny>> {
                F::call(
                    py,
                    Venue::Thread,
                    open,
                    |py, opened| Ok(Py::new(py, $name(Slot::new(opened)))?.into_any()),
                )
            }
        }

        #[pymethods]
        impl $name {
            /// Open the file at `path` as an image of this format. No other file is opened.
            #[staticmethod]
            #[pyo3(signature = (path, *, write = false $(, $argument = None)*))]
            fn open_path_sync(py: Python<'_>, path: StrPath, write: bool $(, $argument: $type)*) -> PyResult<Py<PyAny>> {
                Self::open_with::<Blocking>(py, move || $open(file(path, write)?, write $(, $argument)*))
            }

            /// As `open_path_sync`, awaited.
            #[staticmethod]
            #[pyo3(signature = (path, *, write = false $(, $argument = None)*))]
            fn open_path(py: Python<'_>, path: StrPath, write: bool $(, $argument: $type)*) -> PyResult<Py<PyAny>> {
                Self::open_with::<Awaited>(py, move || $open(file(path, write)?, write $(, $argument)*))
            }

            /// Open `storage` as an image of this format. No other storage is opened.
            #[staticmethod]
            #[pyo3(signature = (storage, *, write = false $(, $argument = None)*))]
            fn open_image_sync(py: Python<'_>, storage: &Storage, write: bool $(, $argument: $type)*) -> PyResult<Py<PyAny>> {
                let storage = storage.shared();
                Self::open_with::<Blocking>(py, move || $open(storage, write $(, $argument)*))
            }

            /// As `open_image_sync`, awaited.
            #[staticmethod]
            #[pyo3(signature = (storage, *, write = false $(, $argument = None)*))]
            fn open_image(py: Python<'_>, storage: &Storage, write: bool $(, $argument: $type)*) -> PyResult<Py<PyAny>> {
                let storage = storage.shared();
                Self::open_with::<Awaited>(py, move || $open(storage, write $(, $argument)*))
            }

            $($own)*
        }
    };
}

fn file(path: StrPath, write: bool) -> imago_core::Result<Arc<dyn EngineStorage>> {
    Ok(Arc::new(File::open_sync(StorageOpenOptions::new().filename(path.0).write(write))?))
}

fn open_raw(storage: Arc<dyn EngineStorage>, write: bool) -> Result<raw::Raw, Failure> {
    Ok(raw::Raw::open_shared_sync(storage, write)?)
}

/// The image, or a snapshot in it, with its key if it is encrypted and there is a secret; without one nothing but its metadata is of use.
fn open_qcow2(
    storage: Arc<dyn EngineStorage>,
    write: bool,
    secret: Option<PySecret>,
    snapshot: Option<String>,
    l2_cache_size: Option<Offset>,
    refcount_cache_size: Option<Offset>,
) -> Result<qcow2::Qcow2, Failure> {
    let mut image = match snapshot {
        Some(_) if write => {
            return Err(
                PyValueError::new_err("a snapshot is only read; apply it to write to what it has").into()
            );
        }
        Some(snapshot) => qcow2::Qcow2::open_snapshot_sync(storage, &snapshot)?,
        None => qcow2::Qcow2::open_shared_sync(storage, write)?,
    };
    image.set_cache_sizes(sizes(l2_cache_size, refcount_cache_size));
    if image.needs_secret()
        && let Some(secret) = PySecret::get_some(secret)?
    {
        image.unlock_sync(&secret)?;
    }
    Ok(image)
}

format_class!(
    /// A raw image: the bytes of the disk as they are.
    Raw, raw::Raw, open_raw(), {}
);

format_class!(
    /// A qcow2 image whose metadata is open. What it names (backing file, data file) is set or opened before it is
    /// handed to a `FormatAccess` or `SyncFormatAccess`.
    Qcow2,
    qcow2::Qcow2,
    open_qcow2(secret: Option<PySecret>, snapshot: Option<String>, l2_cache_size: Option<Offset>, refcount_cache_size: Option<Offset>),
    {
        /// Put `backing`, an open image, below this one instead of what its header names; None: nothing is below.
        fn set_backing(&self, py: Python<'_>, backing: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
            let backing = backing.map(shared_image).transpose()?;
            // Reading goes down the chain by recursion.
            if backing.as_ref().is_some_and(|image| image.chain_len() >= CHAIN_MAX) {
                let error = Error::unsupported(format!("the chain has more than {CHAIN_MAX} images"));
                return Err(exception(py, &error));
            }
            self.0.with(|slot| {
                if let Some(qcow2) = slot {
                    qcow2.set_backing(backing);
                }
            })
        }

        /// Say how many bytes of metadata to keep in memory: of the mapping and of the refcounts. None leaves it as it is.
        #[pyo3(signature = (*, l2_cache_size = None, refcount_cache_size = None))]
        fn set_cache_sizes(
            &self,
            l2_cache_size: Option<Offset>,
            refcount_cache_size: Option<Offset>,
        ) -> PyResult<()> {
            let sizes = sizes(l2_cache_size, refcount_cache_size);
            self.0.with(|slot| {
                if let Some(qcow2) = slot {
                    qcow2.set_cache_sizes(sizes);
                }
            })
        }

        /// Say where the guest's data is, for an image with an external data file.
        fn set_data_file(&self, py: Python<'_>, data_file: &Storage) -> PyResult<()> {
            let set = self.0.with(|slot| slot.as_mut().map(|q| q.set_shared_data_file(data_file.shared())))?;
            set.unwrap_or(Ok(())).map_err(|error| exception(py, &error))
        }

        /// Open what the image names and was not set: its backing chain, read-only, and its external data file.
        ///
        /// `implicit` says which files may be opened: "beside" those beside or below the image, "deny" none, "allow" all,
        /// a function those for which it returns true; it is called with the file's name and "backing" or "data_file".
        #[pyo3(signature = (*, implicit = PyGate::default()), text_signature = "($self, *, implicit='beside')")]
        fn open_implicit_dependencies_sync(&self, py: Python<'_>, implicit: PyGate) -> PyResult<Py<PyAny>> {
            self.open_dependencies::<Blocking>(py, implicit)
        }

        /// As `open_implicit_dependencies_sync`, awaited. A function given as `implicit` is called on another thread.
        #[pyo3(signature = (*, implicit = PyGate::default()), text_signature = "($self, *, implicit='beside')")]
        fn open_implicit_dependencies(&self, py: Python<'_>, implicit: PyGate) -> PyResult<Py<PyAny>> {
            self.open_dependencies::<Awaited>(py, implicit)
        }
    }
);

impl Qcow2 {
    fn open_dependencies<F: Face>(&self, py: Python<'_>, implicit: PyGate) -> PyResult<Py<PyAny>> {
        let slot = Arc::clone(&self.0.0);
        self.0.with(|_| ())?;
        let run = move || {
            let mut slot = slot.lock();
            let Some(qcow2) = &mut *slot else { return Err(Failure::Python(taken())) };
            implicit.pass(|gate| qcow2.open_implicit_dependencies_gated_sync(gate))
        };
        F::call(py, Venue::Thread, run, |py, ()| Ok(py.None()))
    }
}

/// Takes the image out of a `Raw` or `Qcow2`.
pub(crate) fn into_image(object: &Bound<'_, PyAny>) -> PyResult<Arc<Image>> {
    fn take<T: IntoImage>(slot: &Slot<T>) -> PyResult<Arc<Image>> {
        slot.with(Option::take)?.map(IntoImage::into_image).ok_or_else(taken)
    }
    let image = if let Ok(qcow2) = object.cast::<Qcow2>() {
        take(&qcow2.get().0)?
    } else if let Ok(raw) = object.cast::<Raw>() {
        take(&raw.get().0)?
    } else {
        return Err(PyTypeError::new_err(format!(
            "a Raw or Qcow2 is needed, not {}",
            object.get_type().name()?
        )));
    };
    // A missing data file is said now and not by the first read.
    image.begin().map_err(|error| exception(object.py(), &error))?;
    Ok(image)
}
