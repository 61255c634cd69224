//! Opening an image with what it names.

use std::path::PathBuf;
use std::sync::Arc;

use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::CacheSizes;
use imago_core::storage::file::File;
use imago_core::{Storage as EngineStorage, StorageOpenOptions};
use pyo3::PyClass;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::Format;
use crate::errors::Failure;
use crate::gate::PyGate;
use crate::image::{FormatAccess, SyncFormatAccess, shared_image};
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::storages::Storage;
use crate::transfer::Offset;

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

/// Opens an image to be read, with what it names.
pub(super) fn open_plainly(
    path: PathBuf,
    format: Option<Format>,
    implicit: &PyGate,
    secret: Option<PySecret>,
) -> Result<Arc<imago_core::Image>, Failure> {
    let secret = PySecret::get_some(secret)?;
    implicit.pass(|gate| {
        let format = format.map(|format| format.0);
        OpenOptions { format, secret, gate: gate.clone(), ..OpenOptions::default() }.open(path)
    })
}

/// What the two arguments say.
fn sizes(l2: Option<Offset>, refcount: Option<Offset>) -> CacheSizes {
    CacheSizes { l2: l2.map(|bytes| bytes.0), refcount: refcount.map(|bytes| bytes.0) }
}

/// What `open` takes beside the path.
struct Opening {
    write: bool,
    format: Option<Format>,
    snapshot: Option<String>,
    backing: Below,
    data_file: Option<DataFile>,
    implicit: PyGate,
    secret: Option<PySecret>,
    cache_sizes: CacheSizes,
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
            let Opening { write, format, snapshot, backing, data_file, implicit, secret, cache_sizes } = self;
            let secret = PySecret::get_some(secret)?;
            let data_file = data_file.map(|file| file.open(write)).transpose()?;
            implicit.pass(|gate| {
                let format = format.map(|format| format.0);
                let options = OpenOptions {
                    write,
                    format,
                    snapshot,
                    backing: backing.0,
                    data_file,
                    gate: gate.clone(),
                    secret,
                    cache_sizes,
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
///     format: "raw", "qcow2" or "luks"; None looks at the file's first bytes. A guest can write any bytes to a raw disk, so give the
///         format where it is known: a raw image whose format was guessed refuses writes that make it look like another.
///     snapshot: The snapshot (an id or a name) to show instead of the disk as it is now, with its own size; it is only read.
///     backing: "implicit" opens the backing file that the image names, an open image is used instead of it, None leaves
///         it out: what the image does not hold reads as zeroes.
///     data_file: A storage or path to use as the external data file instead of the one that the image names.
///     implicit: Which files that the image names may be opened: "beside" those beside or below it and not through
///         symbolic links out of there, "deny" none, "allow" all, a function those for which it returns true; it is called with
///         the file's name and "backing" or "data_file".
///     secret: What opens an encrypted image, and encrypted backing files that it names: bytes, str (as UTF-8), a function
///         that returns one of them, or an `os.PathLike` for a file whose whole content counts.
///     l2_cache_size: Bytes of the mapping to keep in memory (qcow2); None keeps up to 32 MiB, as QEMU does. Images below keep that, too.
///     refcount_cache_size: Bytes of refcounts to keep in memory (qcow2, opened for writing); None keeps 4 MiB.
///
/// Raises:
///     OSError: A file cannot be opened or read.
///     InvalidImageError, CorruptImageError, UnsupportedFeatureError: It is no image that can be opened; the message says why.
///     ImplicitOpenDeniedError: `implicit` does not allow a file that the image needs.
///     WrongSecretError: The image is encrypted, and `secret` is missing or does not open it.
///     ImageLockedError: Somebody else uses the image in a way that excludes this.
#[pyfunction]
#[pyo3(
    signature = (path, *, write = false, format = None, snapshot = None, backing = Below(Backing::Implicit), data_file = None,
                 implicit = PyGate::default(), secret = None, l2_cache_size = None, refcount_cache_size = None),
    text_signature = "(path, *, write=False, format=None, snapshot=None, backing='implicit', data_file=None, implicit='beside', secret=None, l2_cache_size=None, refcount_cache_size=None)"
)]
pub(crate) fn open(
    py: Python<'_>,
    path: StrPath,
    write: bool,
    format: Option<Format>,
    snapshot: Option<String>,
    backing: Below,
    data_file: Option<DataFile>,
    implicit: PyGate,
    secret: Option<PySecret>,
    l2_cache_size: Option<Offset>,
    refcount_cache_size: Option<Offset>,
) -> PyResult<Py<PyAny>> {
    let cache_sizes = sizes(l2_cache_size, refcount_cache_size);
    Opening { write, format, snapshot, backing, data_file, implicit, secret, cache_sizes }
        .open::<Blocking, _>(py, path.0, SyncFormatAccess::of)
}

/// As `open`, awaited, for awaited use.
#[pyfunction]
#[pyo3(
    signature = (path, *, write = false, format = None, snapshot = None, backing = Below(Backing::Implicit), data_file = None,
                 implicit = PyGate::default(), secret = None, l2_cache_size = None, refcount_cache_size = None),
    text_signature = "(path, *, write=False, format=None, snapshot=None, backing='implicit', data_file=None, implicit='beside', secret=None, l2_cache_size=None, refcount_cache_size=None)"
)]
pub(crate) fn open_awaited(
    py: Python<'_>,
    path: StrPath,
    write: bool,
    format: Option<Format>,
    snapshot: Option<String>,
    backing: Below,
    data_file: Option<DataFile>,
    implicit: PyGate,
    secret: Option<PySecret>,
    l2_cache_size: Option<Offset>,
    refcount_cache_size: Option<Offset>,
) -> PyResult<Py<PyAny>> {
    let cache_sizes = sizes(l2_cache_size, refcount_cache_size);
    Opening { write, format, snapshot, backing, data_file, implicit, secret, cache_sizes }.open::<Awaited, _>(
        py,
        path.0,
        FormatAccess::of,
    )
}
