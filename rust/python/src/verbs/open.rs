//! Opening an image with what it names.

use std::sync::Arc;

use imago_core::StorageOpenOptions;
use imago_core::access::image::Image;
use imago_core::access::open::{Backing, OpenOptions, WriteBacking};
use imago_core::access::pool::Pool;
use imago_core::format::CacheSizes;
use imago_core::storage::Storage as EngineStorage;
use pyo3::PyClass;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::Format;
use super::source::Place;
use crate::formats::sizes;
use crate::gate::PyGate;
use crate::image::{FormatAccess, SyncFormatAccess, shared_image};
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::storages::LockWord;
use crate::transfer::Offset;

/// `backing=`: "implicit", None or an open image.
pub(crate) struct Below(pub(super) Backing);

impl Default for Below {
    fn default() -> Self {
        Below(Backing::Implicit)
    }
}

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

/// `write_backing=`: no, the image right below, or the one of that name.
#[derive(Default)]
pub(crate) struct Written(WriteBacking);

impl<'py> FromPyObject<'_, 'py> for Written {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Written(match object.extract::<bool>() {
            Ok(false) => WriteBacking::No,
            Ok(true) => WriteBacking::First,
            Err(_) => WriteBacking::Named(object.extract::<StrPath>()?.0),
        }))
    }
}

/// `data_file=`: where it is.
pub(crate) struct DataFile(Place);

impl<'py> FromPyObject<'_, 'py> for DataFile {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract::<Place>().map(DataFile).map_err(|_| {
            PyTypeError::new_err(
                "data_file is a storage, the path of a file, or None for what the image names",
            )
        })
    }
}

impl DataFile {
    /// The storage, opened as `files` says if it was not open.
    pub(super) fn storage(
        given: Option<Self>,
        files: StorageOpenOptions,
    ) -> imago_core::Result<Option<Arc<dyn EngineStorage>>> {
        given.map(|file| file.0.storage(files)).transpose()
    }
}

/// What `open` takes beside the place.
struct Opening {
    write: bool,
    format: Option<Format>,
    snapshot: Option<String>,
    backing: Below,
    write_backing: Written,
    data_file: Option<DataFile>,
    implicit: PyGate,
    secret: Option<PySecret>,
    lock: LockWord,
    direct: bool,
    cache_sizes: CacheSizes,
}

impl Opening {
    fn open<F: Face, A>(
        self,
        py: Python<'_>,
        place: Place,
        access: fn(Arc<Image>) -> A,
    ) -> PyResult<Py<PyAny>>
    where
        A: Into<PyClassInitializer<A>> + PyClass + Send + 'static,
    {
        let run = move || {
            let Opening { write, direct, backing, implicit, cache_sizes, .. } = self;
            let lock = self.lock.0;
            let files = StorageOpenOptions::new().write(write).direct(direct).lock(lock);
            let secret = PySecret::get_some(self.secret)?;
            let data_file = DataFile::storage(self.data_file, files.clone())?;
            implicit.pass(|gate| {
                let options = OpenOptions {
                    write,
                    format: self.format.map(|format| format.0),
                    snapshot: self.snapshot,
                    backing: backing.0,
                    write_backing: self.write_backing.0,
                    data_file,
                    gate: gate.clone(),
                    secret,
                    cache_sizes,
                    direct,
                    lock,
                };
                options.open_storage(place.storage(files)?).map(|image| Unclaimed(Some(image)))
            })
        };
        F::call(py, Venue::Thread, run, move |py, mut opened| {
            let image = opened.0.take().expect("nobody else takes it");
            Ok(Py::new(py, access(image))?.into_any())
        })
    }
}

/// An image that was opened for who waits for it; it is closed if nobody does any more.
struct Unclaimed(Option<Arc<Image>>);

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(image) = self.0.take() {
            // By another thread, as it may wait; and there is nobody to tell of an error.
            Pool::global().spawn(move || drop(image.close()));
        }
    }
}

/// One of the two faces of `open`: pyo3 wants the signature thrice.
macro_rules! open_function {
    ($(#[$doc:meta])* $name:ident, $face:ty, $access:ty) => {
        $(#[$doc])*
        #[pyfunction]
        #[pyo3(
            signature = (path, *, write = false, format = None, snapshot = None, backing = Below::default(), write_backing = Written::default(), data_file = None,
                         implicit = PyGate::default(), secret = None, lock = LockWord::default(), direct = false,
                         l2_cache_size = None, refcount_cache_size = None),
            text_signature = "(path, *, write=False, format=None, snapshot=None, backing='implicit', write_backing=False, data_file=None, implicit='beside', secret=None, lock='auto', direct=False, l2_cache_size=None, refcount_cache_size=None)"
        )]
        pub(crate) fn $name(
            py: Python<'_>,
            path: Place,
            write: bool,
            format: Option<Format>,
            snapshot: Option<String>,
            backing: Below,
            write_backing: Written,
            data_file: Option<DataFile>,
            implicit: PyGate,
            secret: Option<PySecret>,
            lock: LockWord,
            direct: bool,
            l2_cache_size: Option<Offset>,
            refcount_cache_size: Option<Offset>,
        ) -> PyResult<Py<PyAny>> {
            let cache_sizes = sizes(l2_cache_size, refcount_cache_size);
            Opening { write, format, snapshot, backing, write_backing, data_file, implicit, secret, lock, direct, cache_sizes }
                .open::<$face, _>(py, path, <$access>::of)
        }
    };
}

open_function!(
    /// Open the image at `path` with what it names: a `SyncFormatAccess`, to be used in `with` or closed.
    ///
    /// Args:
    ///     path: The image's file, or a storage that holds the image.
    ///     write: Open it for writing too; what is below it is only ever read. A storage has to be open for that.
    ///     format: "raw", "qcow2" or "luks"; None looks at the file's first bytes. A guest can write any bytes to a raw disk, so give the
    ///         format where it is known: a raw image whose format was guessed refuses writes that make it look like another.
    ///     snapshot: The snapshot (an id or a name) to show instead of the disk as it is now, with its own size; it is only read.
    ///     backing: "implicit" opens the backing file that the image names, an open image is used instead of it, None leaves
    ///         it out: what the image does not hold reads as zeroes.
    ///     write_backing: Open an image below for writing, too, for `commit`: True the one right below, a name or path that one. Nobody else
    ///         may have it open, and what it is written shows through every image above it.
    ///     data_file: A storage or path to use as the external data file instead of the one that the image names.
    ///     implicit: Which files that the image names may be opened: "beside" those beside or below it and not through
    ///         symbolic links out of there, "deny" none, "allow" all, a function those for which it returns true; it is called with
    ///         the file's name and "backing" or "data_file".
    ///     secret: What opens an encrypted image, and encrypted backing files that it names: bytes, str (as UTF-8), a function
    ///         that returns one of them, or an `os.PathLike` for a file whose whole content counts.
    ///     lock: "auto" takes the locks that keep QEMU and others out of all files that are opened, "off" takes none: for looking at
    ///         an image that somebody else writes to, whose state may be caught halfway.
    ///     direct: Open all files past the page cache (`O_DIRECT`).
    ///     l2_cache_size: Bytes of the mapping to keep in memory (qcow2); None keeps up to 32 MiB, as QEMU does. Images below keep that, too.
    ///     refcount_cache_size: Bytes of refcounts to keep in memory (qcow2, opened for writing); None keeps 4 MiB.
    ///
    /// Raises:
    ///     OSError: A file cannot be opened or read.
    ///     InvalidImageError, CorruptImageError, UnsupportedFeatureError: It is no image that can be opened; the message says why.
    ///     ImplicitOpenDeniedError: `implicit` does not allow a file that the image needs.
    ///     WrongSecretError: The image is encrypted, and `secret` is missing or does not open it.
    ///     ImageLockedError: Somebody else uses the image in a way that excludes this.
    open, Blocking, SyncFormatAccess
);

open_function!(
    /// As `open`, awaited, for awaited use.
    open_awaited, Awaited, FormatAccess
);
