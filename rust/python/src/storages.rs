//! Storages: where an image's bytes are.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imago_core::access::disk::Disk as EngineDisk;
use imago_core::storage::file::File as EngineFile;
use imago_core::storage::memory::Memory as EngineMemory;
use imago_core::storage::null::Null as EngineNull;
use imago_core::storage::throttled::Throttled as EngineThrottled;
use imago_core::storage::{Lock, Storage as EngineStorage, StorageOpenOptions as EngineOptions};
use pyo3::PyClass;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt};

use crate::buffers::{Buffer, kind};
use crate::errors::{Failure, exception};
use crate::image::shared_image;
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::path::StrPath;
use crate::transfer::Offset;

/// How to open a `File`.
///
/// `write`: for writing too. `direct`: past the page cache. `lock`: "auto" takes the locks that keep QEMU and others
/// out, "off" takes none. `durable`: False has flushes not wait for the medium: a loss of power may then leave anything of
/// what was written.
#[pyclass(frozen, module = "pyimago")]
pub(crate) struct StorageOpenOptions(EngineOptions);

#[pymethods]
impl StorageOpenOptions {
    #[new]
    #[pyo3(
        signature = (*, filename, write = false, direct = false, lock = LockWord::default(), durable = true),
        text_signature = "(*, filename, write=False, direct=False, lock='auto', durable=True)"
    )]
    fn new(filename: StrPath, write: bool, direct: bool, lock: LockWord, durable: bool) -> Self {
        let options = EngineOptions::new().filename(filename.0).write(write).direct(direct);
        StorageOpenOptions(options.lock(lock.0).durable(durable))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let options = slf.get();
        let word = |is_so| if is_so { "True" } else { "False" };
        Ok(format!(
            "StorageOpenOptions(filename={}, write={}, direct={}, lock='{}', durable={})",
            options.filename().into_pyobject(slf.py())?.repr()?,
            word(options.write()),
            word(options.direct()),
            options.lock(),
            word(options.durable())
        ))
    }

    /// The file to open.
    #[getter]
    fn filename(&self) -> Option<&OsStr> {
        self.0.get_filename().map(Path::as_os_str)
    }

    /// Whether it is opened for writing too.
    #[getter]
    fn write(&self) -> bool {
        self.0.get_write()
    }

    /// Whether the page cache is bypassed.
    #[getter]
    fn direct(&self) -> bool {
        self.0.get_direct()
    }

    /// Whether image locks are taken: "auto" or "off".
    #[getter]
    fn lock(&self) -> &'static str {
        match self.0.get_lock() {
            Lock::Auto => "auto",
            Lock::Off => "off",
        }
    }

    /// Whether flushes wait for the medium.
    #[getter]
    fn durable(&self) -> bool {
        self.0.get_durable()
    }
}

/// `lock=`: "auto" or "off".
#[derive(Default)]
pub(crate) struct LockWord(pub(crate) Lock);

impl<'py> FromPyObject<'_, 'py> for LockWord {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<&str>()? {
            "auto" => Ok(LockWord(Lock::Auto)),
            "off" => Ok(LockWord(Lock::Off)),
            name => Err(PyValueError::new_err(format!("lock is 'auto' or 'off', not {name:?}"))),
        }
    }
}

/// Bytes at offsets: what an image is opened on.
#[pyclass(frozen, subclass, module = "pyimago")]
pub(crate) struct Storage(Arc<dyn EngineStorage>);

impl Storage {
    pub(crate) fn shared(&self) -> Arc<dyn EngineStorage> {
        Arc::clone(&self.0)
    }

    fn with<S>(self, subclass: S) -> PyClassInitializer<S>
    where
        S: PyClass<BaseType = Storage>,
    {
        PyClassInitializer::from(self).add_subclass(subclass)
    }
}

#[pymethods]
impl Storage {
    /// Length in bytes.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        self.0.len().map_err(|error| exception(py, &error))
    }

    /// The file behind it, where there is one.
    #[getter]
    fn filename(&self) -> Option<&OsStr> {
        self.0.path().map(Path::as_os_str)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let storage = &slf.get().0;
        let name = storage.path().map_or_else(String::new, |path| format!(" of {}", path.display()));
        let size = storage.len().map_or_else(|error| error.to_string(), |len| format!("{len} bytes"));
        format!("<{}{name} ({size})>", kind(slf))
    }
}

/// A file or block device.
#[pyclass(frozen, extends = Storage, module = "pyimago")]
pub(crate) struct File;

fn open_file<F: Face>(py: Python<'_>, options: &StorageOpenOptions) -> PyResult<Py<PyAny>> {
    let options = options.0.clone();
    F::call(
        py,
        Venue::Thread,
        move || EngineFile::open_sync(options).map_err(Failure::from),
        |py, file| Ok(Py::new(py, Storage(Arc::new(file)).with(File))?.into_any()),
    )
}

#[pymethods]
impl File {
    /// Open the file that `options` name. `OSError`, or `ImageLockedError` where somebody else uses it.
    #[staticmethod]
    fn open_sync(py: Python<'_>, options: &StorageOpenOptions) -> PyResult<Py<PyAny>> {
        open_file::<Blocking>(py, options)
    }

    /// As `open_sync`, awaited.
    #[staticmethod]
    fn open(py: Python<'_>, options: &StorageOpenOptions) -> PyResult<Py<PyAny>> {
        open_file::<Awaited>(py, options)
    }
}

/// `size` bytes (default none) that read as zeroes; what is written is forgotten.
#[pyclass(frozen, extends = Storage, module = "pyimago")]
pub(crate) struct Null;

#[pymethods]
impl Null {
    #[new]
    #[pyo3(signature = (size = Offset(0)), text_signature = "(size=0)")]
    fn new(size: Offset) -> PyClassInitializer<Self> {
        Storage(Arc::new(EngineNull::new(size.0))).with(Null)
    }
}

/// Bytes in memory: `content` to begin with, either a number of zeroes or a buffer to copy. It grows where it is written.
#[pyclass(frozen, extends = Storage, module = "pyimago")]
pub(crate) struct Memory(Arc<EngineMemory>);

#[pymethods]
impl Memory {
    #[new]
    #[pyo3(signature = (content = None))]
    fn new(py: Python<'_>, content: Option<&Bound<'_, PyAny>>) -> PyResult<PyClassInitializer<Self>> {
        let memory = match content {
            None => EngineMemory::new(0),
            Some(size) if size.is_instance_of::<PyInt>() => EngineMemory::new(size.extract::<Offset>()?.0),
            Some(bytes) => {
                let bytes = Buffer::readable(bytes)?;
                let memory = EngineMemory::new(0);
                py.detach(|| memory.writev_at(bytes.data(), 0)).map_err(|error| exception(py, &error))?;
                memory
            }
        };
        let memory = Arc::new(memory);
        Ok(Storage(Arc::clone(&memory) as Arc<dyn EngineStorage>).with(Memory(memory)))
    }

    /// All its bytes.
    fn getvalue<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.0.to_vec()).map_err(|error| exception(py, &error))?;
        Ok(PyBytes::new(py, &bytes))
    }
}

/// Another storage, slowed down: each request takes at least `latency` seconds. For tests and for trying things out.
#[pyclass(frozen, extends = Storage, module = "pyimago")]
pub(crate) struct Throttled;

#[pymethods]
impl Throttled {
    #[new]
    #[pyo3(signature = (storage, *, latency))]
    fn new(storage: &Storage, latency: f64) -> PyResult<PyClassInitializer<Self>> {
        let latency = Duration::try_from_secs_f64(latency)
            .map_err(|_| PyValueError::new_err(format!("{latency} is no number of seconds to wait")))?;
        Ok(Storage(Arc::new(EngineThrottled::new(storage.shared(), latency))).with(Throttled))
    }
}

/// A part of another storage: `size` bytes (None: all) from `offset` (bytes) on. One with a size keeps it, one without grows with
/// the other storage.
#[pyclass(frozen, extends = Storage, module = "pyimago")]
pub(crate) struct Slice;

#[pymethods]
impl Slice {
    #[new]
    #[pyo3(
        signature = (storage, *, offset = Offset(0), size = None),
        text_signature = "(storage, *, offset=0, size=None)"
    )]
    fn new(
        py: Python<'_>,
        storage: &Storage,
        offset: Offset,
        size: Option<Offset>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let slice = imago_core::access::open::slice(storage.shared(), offset.0, size.map(|size| size.0));
        Ok(Storage(slice.map_err(|error| exception(py, &error))?).with(Slice))
    }
}

/// The disk of an open image, for an image within it: of its size, and readable and writable as it is. The image stays open; close it
/// after what was opened on this.
#[pyclass(frozen, extends = Storage, module = "pyimago")]
pub(crate) struct Disk;

#[pymethods]
impl Disk {
    #[new]
    fn new(image: &Bound<'_, PyAny>) -> PyResult<PyClassInitializer<Self>> {
        Ok(Storage(Arc::new(EngineDisk::new(shared_image(image)?))).with(Disk))
    }
}
