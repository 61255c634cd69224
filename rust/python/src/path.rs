//! The names of files as Python gives them.

use std::path::PathBuf;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::buffers::kind;

/// The path of a file: a `str` or `os.PathLike`, of which what it raises comes out. Anything else is a `TypeError`, what no file can be called a
/// `ValueError`.
pub(crate) struct StrPath(pub(crate) PathBuf);

impl<'py> FromPyObject<'_, 'py> for StrPath {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let path: PathBuf = object.extract().map_err(|cause: PyErr| {
            if !cause.is_instance_of::<PyTypeError>(py) {
                return cause;
            }
            let error =
                PyTypeError::new_err(format!("a path is a str or os.PathLike, not {}", kind(&object)));
            error.set_cause(py, Some(cause));
            error
        })?;
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(PyValueError::new_err("a path has no null characters"));
        }
        Ok(StrPath(path))
    }
}
