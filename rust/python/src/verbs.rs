//! What is done with a path: opening an image.

use std::path::PathBuf;
use std::sync::Arc;

use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::FormatKind;
use imago_core::storage::file::File;
use imago_core::{Storage as EngineStorage, StorageOpenOptions};
use pyo3::PyClass;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::gate::PyGate;
use crate::image::{FormatAccess, SyncFormatAccess, shared_image};
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::storages::Storage;

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
