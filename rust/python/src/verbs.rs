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
use pyo3::types::{PyBool, PyDict};

use crate::buffers::kind;
use crate::errors::Failure;
use crate::gate::PyGate;
use crate::image::{FormatAccess, SyncFormatAccess, shared_image};
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::path::StrPath;
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
                    "backing is 'implicit', None or an open image, not {word:?}; open that image first"
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
        object.extract::<StrPath>().map(|path| DataFile::Path(path.0)).map_err(|_| {
            PyTypeError::new_err(
                "data_file is a storage, the path of a file, or None for what the image names",
            )
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
    fn open<F: Face, A>(
        self,
        py: Python<'_>,
        path: PathBuf,
        access: fn(Arc<imago_core::Image>) -> A,
    ) -> PyResult<Py<PyAny>>
    where
        A: Into<PyClassInitializer<A>> + PyClass + Send + 'static,
    {
        let run = move || {
            let Opening { write, format, backing, data_file, implicit } = self;
            let data_file = data_file.map(|file| file.open(write)).transpose()?;
            implicit.pass(|gate| {
                let format = format.map(|format| format.0);
                let options = OpenOptions {
                    write,
                    format,
                    backing: backing.0,
                    data_file,
                    gate: gate.clone(),
                    ..OpenOptions::default()
                };
                options.open(path)
            })
        };
        F::call(py, Venue::Thread, run, move |py, image| Ok(Py::new(py, access(image))?.into_any()))
    }
}
/// Open the image at `path` with what it names: a `SyncFormatAccess`, to be used in `with` or closed.
///
/// Args:
///     path: The image's file.
///     write: Open it for writing too; what is below it is only ever read.
///     format: "raw" or "qcow2"; None looks at the file's first bytes. A guest can write any bytes to a raw disk, so give the
///         format where it is known: a raw image whose format was guessed refuses writes that make it look like another.
///     backing: "implicit" opens the backing file that the image names, an open image is used instead of it, None leaves
///         it out: what the image does not hold reads as zeroes.
///     data_file: A storage or path to use as the external data file instead of the one that the image names.
///     implicit: Which files that the image names may be opened: "beside" those beside or below it and not through
///         symbolic links out of there, "deny" none, "allow" all, a function those for which it returns true; it is called with
///         the file's name and "backing" or "data_file".
///
/// Raises:
///     OSError: A file cannot be opened or read.
///     InvalidImageError, CorruptImageError, UnsupportedFeatureError: It is no image that can be opened; the message says why.
///     ImplicitOpenDeniedError: `implicit` does not allow a file that the image needs.
///     ImageLockedError: Somebody else uses the image in a way that excludes this.
#[pyfunction]
#[pyo3(
    signature = (path, *, write = false, format = None, backing = Below(Backing::Implicit), data_file = None,
                 implicit = PyGate::default()),
    text_signature = "(path, *, write=False, format=None, backing='implicit', data_file=None, implicit='beside')"
)]
pub(crate) fn open(
    py: Python<'_>,
    path: StrPath,
    write: bool,
    format: Option<Format>,
    backing: Below,
    data_file: Option<DataFile>,
    implicit: PyGate,
) -> PyResult<Py<PyAny>> {
    Opening { write, format, backing, data_file, implicit }.open::<Blocking, _>(
        py,
        path.0,
        SyncFormatAccess::of,
    )
}

/// As `open`, awaited, for awaited use.
#[pyfunction]
#[pyo3(
    signature = (path, *, write = false, format = None, backing = Below(Backing::Implicit), data_file = None,
                 implicit = PyGate::default()),
    text_signature = "(path, *, write=False, format=None, backing='implicit', data_file=None, implicit='beside')"
)]
pub(crate) fn open_awaited(
    py: Python<'_>,
    path: StrPath,
    write: bool,
    format: Option<Format>,
    backing: Below,
    data_file: Option<DataFile>,
    implicit: PyGate,
) -> PyResult<Py<PyAny>> {
    Opening { write, format, backing, data_file, implicit }.open::<Awaited, _>(py, path.0, FormatAccess::of)
}

/// The names of versions of qcow2.
struct QcowVersion(qcow2::Version);

impl<'py> FromPyObject<'_, 'py> for QcowVersion {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.str()?.to_str()? {
            "2" | "0.10" => Ok(QcowVersion(qcow2::Version::V2)),
            "3" | "1.1" => Ok(QcowVersion(qcow2::Version::V3)),
            other => {
                Err(PyValueError::new_err(format!("version is 2 (\"0.10\") or 3 (\"1.1\"), not {other:?}")))
            }
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

/// What a new image shall be: `layout` has keyword arguments of `pyimago.create`; those that are None or False are what
/// `qemu-img` takes where nothing is said.
fn create_options(format: FormatKind, size: u64, layout: &Bound<'_, PyDict>) -> PyResult<CreateOptions> {
    let mut options = qcow2::CreateOptions { size, ..qcow2::CreateOptions::default() };
    let mut backing_format = None;
    for (name, value) in layout {
        if value.is_none() || value.is(PyBool::new(layout.py(), false)) {
            continue;
        }
        if format == FormatKind::Raw {
            return Err(PyValueError::new_err(format!("a raw image has no {name}")));
        }
        match name.extract::<&str>()? {
            "version" => options.version = value.extract::<QcowVersion>()?.0,
            "cluster_size" => options.cluster_size = small(&name, &value)?,
            "refcount_bits" => options.refcount_bits = small(&name, &value)?,
            "lazy_refcounts" => options.lazy_refcounts = value.extract()?,
            "extended_l2" => options.extended_l2 = value.extract()?,
            "compression_type" => options.compression = value.extract::<CompressionType>()?.0,
            "backing" => {
                options.backing =
                    Some(ImplicitReference { name: value.extract::<StrPath>()?.0, format: None });
            }
            "backing_format" => backing_format = Some(value.extract::<String>()?),
            "data_file" => {
                options.data_file = Some(value.extract::<StrPath>()?.0.to_string_lossy().into_owned());
            }
            "data_file_raw" => options.data_file_raw = value.extract()?,
            _ => return Err(PyTypeError::new_err(format!("a new image has no option {name}"))),
        }
    }
    match (&mut options.backing, backing_format) {
        (Some(backing), format) => backing.format = format,
        (None, Some(_)) => return Err(PyValueError::new_err("backing_format is given without backing")),
        (None, None) => {}
    }
    Ok(match format {
        FormatKind::Raw => CreateOptions::raw(size),
        _ => CreateOptions::Qcow2(options),
    })
}

/// A number of bytes or bits; what does not fit is out of every range that the engine would allow.
fn small(name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    if !value.hasattr("__index__")? {
        return Err(PyTypeError::new_err(format!("{name} is a number, not {}", kind(value))));
    }
    value.extract().map_err(|_| PyValueError::new_err(format!("{name} cannot be {value}")))
}

fn create_with<F: Face>(
    py: Python<'_>,
    path: PathBuf,
    Offset(size): Offset,
    format: &Format,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let options = create_options(format.0, size, layout)?;
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
    path: StrPath,
    size: Offset,
    format: Format,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    create_with::<Blocking>(py, path.0, size, &format, layout)
}

/// As `create`, awaited.
#[pyfunction]
pub(crate) fn create_awaited(
    py: Python<'_>,
    path: StrPath,
    size: Offset,
    format: Format,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    create_with::<Awaited>(py, path.0, size, &format, layout)
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
    source: StrPath,
    target: StrPath,
    source_format: Option<Format>,
    format: Format,
    implicit: PyGate,
    progress: Option<Py<PyAny>>,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let create = create_options(format.0, 0, layout)?;
    convert_with::<Blocking>(
        py,
        Conversion { source: source.0, target: target.0, source_format, implicit, create, progress },
    )
}

/// As `convert`, awaited; `progress` is called on another thread.
#[pyfunction]
#[pyo3(signature = (source, target, source_format, format, implicit, progress, layout))]
pub(crate) fn convert_awaited(
    py: Python<'_>,
    source: StrPath,
    target: StrPath,
    source_format: Option<Format>,
    format: Format,
    implicit: PyGate,
    progress: Option<Py<PyAny>>,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let create = create_options(format.0, 0, layout)?;
    convert_with::<Awaited>(
        py,
        Conversion { source: source.0, target: target.0, source_format, implicit, create, progress },
    )
}
