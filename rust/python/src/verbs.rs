//! What is done with a path: opening, creating, converting an image.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago_core::access::convert::{ConvertOptions, Progress, convert as convert_image};
use imago_core::access::create::{CreateOptions, create as create_image};
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{Compression, FormatKind, ImplicitReference};
use imago_core::storage::file::File;
use imago_core::{Storage as EngineStorage, StorageOpenOptions};
use pyo3::PyClass;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::errors::Failure;
use crate::gate::PyGate;
use crate::image::{FormatAccess, SyncFormatAccess, shared_image};
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::storages::Storage;
use crate::transfer::Offset;

/// The name of a format.
pub(crate) struct Format(pub(crate) FormatKind);

impl<'py> FromPyObject<'_, 'py> for Format {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let name = object.extract::<&str>()?;
        FormatKind::from_name(name)
            .map(Format)
            .ok_or_else(|| PyValueError::new_err(format!("no format {name:?}: there are 'raw' and 'qcow2'")))
    }
}

/// `backing=`: "implicit", None or an open image.
pub(crate) struct Below(Backing);

impl<'py> FromPyObject<'_, 'py> for Below {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.is_none() {
            return Ok(Below(Backing::None));
        }
        if let Ok(word) = object.extract::<&str>() {
            return match word {
                "implicit" => Ok(Below(Backing::Implicit)),
                _ => Err(PyValueError::new_err(format!(
                    "backing is 'implicit', None or an open image, not {word:?}"
                ))),
            };
        }
        shared_image(&object).map(|image| Below(Backing::Image(image)))
    }
}

/// `data_file=`: a storage, or the path of a file.
pub(crate) enum DataFile {
    Open(Arc<dyn EngineStorage>),
    Path(PathBuf),
}

impl<'py> FromPyObject<'_, 'py> for DataFile {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(storage) = object.cast::<Storage>() {
            return Ok(DataFile::Open(storage.get().shared()));
        }
        object.extract().map(DataFile::Path).map_err(|_| {
            PyTypeError::new_err("data_file is a storage, the path of a file, or None for what the image names")
        })
    }
}

impl DataFile {
    fn open(self, write: bool) -> imago_core::Result<Arc<dyn EngineStorage>> {
        match self {
            DataFile::Open(storage) => Ok(storage),
            DataFile::Path(path) => {
                let options = StorageOpenOptions::new().filename(path).write(write);
                Ok(Arc::new(File::open_sync(options)?))
            }
        }
    }
}

/// What `open` takes beside the path.
struct Opening {
    write: bool,
    format: Option<Format>,
    backing: Below,
    data_file: Option<DataFile>,
    implicit: PyGate,
}

impl Opening {
    fn open<F: Face, A>(self, py: Python<'_>, path: PathBuf, access: fn(Arc<imago_core::Image>) -> A) -> PyResult<Py<PyAny>>
    where
        A: Into<PyClassInitializer<A>> + PyClass + Send + 'static,
    {
        let run = move || {
            let Opening { write, format, backing, data_file, implicit } = self;
            let data_file = data_file.map(|file| file.open(write)).transpose()?;
            implicit.pass(|gate| {
                let format = format.map(|format| format.0);
                let options =
                    OpenOptions { write, format, backing: backing.0, data_file, gate: gate.clone(), ..OpenOptions::default() };
                options.open(path)
            })
        };
        F::call(py, Venue::Thread, run, move |py, image| Ok(Py::new(py, access(image))?.into_any()))
    }
}
/// Open the image at `path` with what it names, for synchronous use.
#[pyfunction]
#[pyo3(signature = (path, *, write = false, format = None, backing = Below(Backing::Implicit), data_file = None, implicit = PyGate::default()))]
pub(crate) fn open(
    py: Python<'_>,
    path: PathBuf,
    write: bool,
    format: Option<Format>,
    backing: Below,
    data_file: Option<DataFile>,
    implicit: PyGate,
) -> PyResult<Py<PyAny>> {
    Opening { write, format, backing, data_file, implicit }.open::<Blocking, _>(py, path, SyncFormatAccess::of)
}

/// As `open`, awaited, for awaited use.
#[pyfunction]
#[pyo3(signature = (path, *, write = false, format = None, backing = Below(Backing::Implicit), data_file = None, implicit = PyGate::default()))]
pub(crate) fn open_awaited(
    py: Python<'_>,
    path: PathBuf,
    write: bool,
    format: Option<Format>,
    backing: Below,
    data_file: Option<DataFile>,
    implicit: PyGate,
) -> PyResult<Py<PyAny>> {
    Opening { write, format, backing, data_file, implicit }.open::<Awaited, _>(py, path, FormatAccess::of)
}

/// The names of versions of qcow2.
struct QcowVersion(qcow2::Version);

impl<'py> FromPyObject<'_, 'py> for QcowVersion {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.str()?.to_str()? {
            "2" | "0.10" => Ok(QcowVersion(qcow2::Version::V2)),
            "3" | "1.1" => Ok(QcowVersion(qcow2::Version::V3)),
            other => Err(PyValueError::new_err(format!(
                "version is 2 (\"0.10\") or 3 (\"1.1\"), not {other:?}"
            ))),
        }
    }
}

/// How compressed clusters are packed.
struct CompressionType(Compression);

impl<'py> FromPyObject<'_, 'py> for CompressionType {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<&str>()? {
            "zlib" => Ok(CompressionType(Compression::Deflate)),
            "zstd" => Ok(CompressionType(Compression::Zstd)),
            other => {
                Err(PyValueError::new_err(format!("compression_type is 'zlib' or 'zstd', not {other:?}")))
            }
        }
    }
}

/// What a new image shall be, as keyword arguments; those left out are what `qemu-img` takes.
#[derive(Default, FromPyObject)]
#[pyo3(from_item_all)]
struct Layout {
    #[pyo3(default)]
    cluster_size: Option<u32>,
    #[pyo3(default)]
    refcount_bits: Option<u32>,
    #[pyo3(default)]
    version: Option<QcowVersion>,
    #[pyo3(default)]
    compression_type: Option<CompressionType>,
    #[pyo3(default)]
    extended_l2: Option<bool>,
    #[pyo3(default)]
    lazy_refcounts: Option<bool>,
    #[pyo3(default)]
    backing: Option<PathBuf>,
    #[pyo3(default)]
    backing_format: Option<String>,
    #[pyo3(default)]
    data_file: Option<String>,
    #[pyo3(default)]
    data_file_raw: Option<bool>,
}

impl Layout {
    fn is_default(&self) -> bool {
        let Layout {
            cluster_size,
            refcount_bits,
            version,
            compression_type,
            extended_l2,
            lazy_refcounts,
            backing,
            backing_format,
            data_file,
            data_file_raw,
        } = self;
        let set = [
            cluster_size.is_some(),
            refcount_bits.is_some(),
            version.is_some(),
            compression_type.is_some(),
            extended_l2.is_some(),
            lazy_refcounts.is_some(),
            backing.is_some(),
            backing_format.is_some(),
            data_file.is_some(),
            data_file_raw.is_some(),
        ];
        !set.contains(&true)
    }

    fn options(self, format: FormatKind, size: u64) -> PyResult<CreateOptions> {
        if format == FormatKind::Raw {
            return if self.is_default() {
                Ok(CreateOptions::raw(size))
            } else {
                Err(PyValueError::new_err("a raw image has a size and no other option"))
            };
        }
        if self.backing.is_none() && self.backing_format.is_some() {
            return Err(PyValueError::new_err("backing_format without backing"));
        }
        let default = qcow2::CreateOptions::default();
        Ok(CreateOptions::Qcow2(qcow2::CreateOptions {
            size,
            version: self.version.map_or(default.version, |version| version.0),
            cluster_size: self.cluster_size.unwrap_or(default.cluster_size),
            refcount_bits: self.refcount_bits.unwrap_or_else(|| default.refcount_bits),
            lazy_refcounts: self.lazy_refcounts.unwrap_or(default.lazy_refcounts),
            extended_l2: self.extended_l2.unwrap_or(default.extended_l2),
            compression: self.compression_type.map_or(default.compression, |kind| kind.0),
            backing: self.backing.map(|name| ImplicitReference { name, format: self.backing_format }),
            data_file: self.data_file,
            data_file_raw: self.data_file_raw.unwrap_or(default.data_file_raw),
        }))
    }
}

fn create_with<F: Face>(
    py: Python<'_>,
    path: PathBuf,
    Offset(size): Offset,
    format: &Format,
    layout: Layout,
) -> PyResult<Py<PyAny>> {
    let options = layout.options(format.0, size)?;
    F::call(
        py,
        Venue::Thread,
        move || create_image(path, &options).map_err(Failure::from),
        |py, ()| Ok(py.None()),
    )
}

/// Create an image; `layout` has the keyword arguments of `pyimago.create` that were given.
#[pyfunction]
pub(crate) fn create(
    py: Python<'_>,
    path: PathBuf,
    size: Offset,
    format: Format,
    layout: Layout,
) -> PyResult<Py<PyAny>> {
    create_with::<Blocking>(py, path, size, &format, layout)
}

/// As `create`, awaited.
#[pyfunction]
pub(crate) fn create_awaited(
    py: Python<'_>,
    path: PathBuf,
    size: Offset,
    format: Format,
    layout: Layout,
) -> PyResult<Py<PyAny>> {
    create_with::<Awaited>(py, path, size, &format, layout)
}

/// A conversion that was asked for.
struct Conversion {
    source: PathBuf,
    target: PathBuf,
    source_format: Option<Format>,
    implicit: PyGate,
    create: CreateOptions,
    progress: Option<Py<PyAny>>,
}

impl Conversion {
    fn run(self) -> Result<(), Failure> {
        let Conversion { source, target, source_format, implicit, create, progress } = self;
        let source = implicit.pass(|gate| {
            let format = source_format.map(|format| format.0);
            OpenOptions { format, gate: gate.clone(), ..OpenOptions::default() }.open(source)
        })?;
        let cancel = AtomicBool::new(false);
        let mut raised = None;
        let mut report = |done: Progress| {
            let reported = Python::try_attach(|py| {
                // The caller's thread is here all the while: this is where Ctrl-C gets through.
                py.check_signals()?;
                progress.as_ref().map_or(Ok(()), |f| f.call1(py, (done.done, done.total)).map(drop))
            });
            if !matches!(reported, Some(Ok(()))) {
                cancel.store(true, Ordering::Relaxed);
                raised = raised.take().or_else(|| reported.and_then(Result::err));
            }
        };
        let options = ConvertOptions { target: create, progress: Some(&mut report), cancel: Some(&cancel) };
        let converted = convert_image(&source, target, options);
        let closed = source.close();
        match raised {
            Some(raised) => Err(Failure::Python(raised)),
            None => converted.and(closed).map_err(Failure::from),
        }
    }
}

fn convert_with<F: Face>(py: Python<'_>, conversion: Conversion) -> PyResult<Py<PyAny>> {
    F::call(py, Venue::Thread, move || conversion.run(), |py, ()| Ok(py.None()))
}

/// Convert an image; `layout` has the keyword arguments of `pyimago.convert` about the target that were given.
#[pyfunction]
#[pyo3(signature = (source, target, source_format, format, implicit, progress, layout))]
pub(crate) fn convert(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    source_format: Option<Format>,
    format: Format,
    implicit: PyGate,
    progress: Option<Py<PyAny>>,
    layout: Layout,
) -> PyResult<Py<PyAny>> {
    let create = layout.options(format.0, 0)?;
    convert_with::<Blocking>(py, Conversion { source, target, source_format, implicit, create, progress })
}

/// As `convert`, awaited; `progress` is called on another thread.
#[pyfunction]
#[pyo3(signature = (source, target, source_format, format, implicit, progress, layout))]
pub(crate) fn convert_awaited(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    source_format: Option<Format>,
    format: Format,
    implicit: PyGate,
    progress: Option<Py<PyAny>>,
    layout: Layout,
) -> PyResult<Py<PyAny>> {
    let create = layout.options(format.0, 0)?;
    convert_with::<Awaited>(py, Conversion { source, target, source_format, implicit, create, progress })
}
