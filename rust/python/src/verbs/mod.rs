//! What is done with a path: opening, creating, converting an image.

pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod open;

use imago_core::format::FormatKind;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

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
