//! What is given to a verb: the place of an image, or an image that is open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago_core::access::image::Image;
use imago_core::access::open::OpenOptions;
use imago_core::storage::file::File;
use imago_core::storage::{Storage as EngineStorage, StorageOpenOptions};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::Format;
use crate::access::Lease;
use crate::buffers::kind;
use crate::errors::Failure;
use crate::gate::PyGate;
use crate::image::leased_image;
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::storages::Storage;

/// Where an image is: in the file of a path, or in a storage.
pub(crate) enum Place {
    Path(PathBuf),
    Storage(Arc<dyn EngineStorage>),
}

impl<'py> FromPyObject<'_, 'py> for Place {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(storage) = object.cast::<Storage>() {
            return Ok(Place::Storage(storage.get().shared()));
        }
        object.extract::<StrPath>().map(|path| Place::Path(path.0))
    }
}

impl Place {
    /// The storage. `options` are those for a file that is opened here; who made a storage has decided on its own.
    pub(crate) fn storage(self, options: StorageOpenOptions) -> imago_core::Result<Arc<dyn EngineStorage>> {
        match self {
            Place::Storage(storage) => Ok(storage),
            Place::Path(path) => Ok(Arc::new(File::open_sync(options.filename(path))?)),
        }
    }

    /// The file it is, where it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Place::Path(path) => Some(path),
            Place::Storage(storage) => storage.path(),
        }
    }
}

/// An image: one that is open and stays so, or one to open, with what opens it.
pub(crate) enum Source {
    Open(Lease),
    ToOpen { place: Place, format: Option<Format>, secret: Option<PySecret> },
}

impl Source {
    /// What `object`, the argument `name` of a verb, is.
    pub(crate) fn new(
        name: &str,
        object: &Bound<'_, PyAny>,
        format: Option<Format>,
        secret: Option<PySecret>,
    ) -> PyResult<Self> {
        if let Some(lease) = leased_image(object) {
            if format.is_some() || secret.is_some() {
                return Err(PyValueError::new_err(format!(
                    "{name} is open: it takes no format and no secret"
                )));
            }
            return Ok(Source::Open(lease?));
        }
        let place = object.extract::<Place>().map_err(|error| {
            if error.is_instance_of::<PyTypeError>(object.py()) {
                let kind = kind(object);
                return PyTypeError::new_err(format!(
                    "{name} is a path, a storage or an open image (SyncFormatAccess or FormatAccess), not {kind}"
                ));
            }
            error
        })?;
        Ok(Source::ToOpen { place, format, secret })
    }

    /// The image, opened with what it names if it was not open.
    pub(crate) fn open(self, implicit: &PyGate) -> Result<Reading, Failure> {
        self.open_as(implicit, OpenOptions::default())
    }

    /// The same, where it is opened as `how` says; format, secret and gate are those that were given for it.
    pub(crate) fn open_as(self, implicit: &PyGate, how: OpenOptions) -> Result<Reading, Failure> {
        let (place, format, secret) = match self {
            Source::Open(lease) => {
                return Ok(Reading { image: Arc::clone(lease.image()), lease: Some(lease) });
            }
            Source::ToOpen { place, format, secret } => (place, format, secret),
        };
        let secret = PySecret::get_some(secret)?;
        let image = implicit.pass(|gate| {
            let format = format.map(|format| format.0);
            let options = OpenOptions { format, secret, gate: gate.clone(), ..how };
            options.open_storage(place.storage(options.files())?)
        })?;
        Ok(Reading { image, lease: None })
    }
}

/// An image that is worked on.
pub(crate) struct Reading {
    image: Arc<Image>,
    /// Where it was open before: it stays so, and whoever closes it waits for this.
    lease: Option<Lease>,
}

impl Reading {
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Closes what was opened here.
    pub(crate) fn close(self) -> imago_core::Result<()> {
        if self.lease.is_some() { Ok(()) } else { self.image.close() }
    }

    /// The same of what nobody will miss that was written.
    pub(crate) fn leave(self) -> imago_core::Result<()> {
        if self.lease.is_some() { Ok(()) } else { self.image.leave() }
    }
}
