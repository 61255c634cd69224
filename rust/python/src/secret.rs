//! `secret=`: what opens an encrypted image.

use std::io::Read;
use std::path::PathBuf;

use imago_core::crypt::Secret;
use imago_core::{Error, Result as EngineResult};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::buffers::{Buffer, kind};
use crate::errors::Failure;
use crate::path::StrPath;

/// Bytes of a secret's file at most, which is cryptsetup's limit too.
const FILE_MAX: u64 = 8 << 20;

/// A secret, or where to get it once it is needed. What it is appears in no message.
pub(crate) enum PySecret {
    Known(Secret),
    /// A callable that returns it.
    Ask(Py<PyAny>),
    /// A file, all of whose bytes count.
    File(PathBuf),
}

impl PySecret {
    /// The secret itself.
    pub(crate) fn get(self) -> Result<Secret, Failure> {
        match self {
            PySecret::Known(secret) => Ok(secret),
            PySecret::File(path) => Ok(read_file(&path).map_err(|error| error.in_file(path))?),
            PySecret::Ask(function) => {
                let asked = Python::try_attach(|py| {
                    let answer = function.call0(py)?;
                    let answer = answer.bind(py);
                    known(answer)?.ok_or_else(|| {
                        PyTypeError::new_err(format!("a secret is bytes or str, not {}", kind(answer)))
                    })
                });
                let gone = || Failure::Engine(Error::invalid_input("nobody is left to ask for the secret"));
                Ok(asked.ok_or_else(gone)??)
            }
        }
    }

    /// The secret itself, where there is one.
    pub(crate) fn get_some(secret: Option<Self>) -> Result<Option<Secret>, Failure> {
        secret.map(Self::get).transpose()
    }
}

fn read_file(path: &PathBuf) -> EngineResult<Secret> {
    let failed = |error| Error::io("read the secret's file", error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let read = file.take(FILE_MAX + 1).read_to_end(&mut bytes);
    let secret = Secret::new(bytes);
    if read.map_err(failed)? as u64 > FILE_MAX {
        return Err(Error::invalid_input(format!("a secret has {FILE_MAX} bytes at most")));
    }
    Ok(secret)
}

/// The secret that an object is itself: bytes, or text in UTF-8.
fn known(object: &Bound<'_, PyAny>) -> PyResult<Option<Secret>> {
    if let Ok(text) = object.cast::<pyo3::types::PyString>() {
        // Not the cause's own message: it shows the text.
        let text =
            text.to_str().map_err(|_| PyValueError::new_err("the secret is no text that UTF-8 has"))?;
        return Ok(Some(Secret::new(text)));
    }
    let Ok(buffer) = Buffer::readable(object) else { return Ok(None) };
    let mut bytes = vec![0; buffer.len()];
    buffer.data().copy_to_slice(&mut bytes);
    Ok(Some(Secret::new(bytes)))
}

impl<'py> FromPyObject<'_, 'py> for PySecret {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Some(secret) = known(&object)? {
            return Ok(PySecret::Known(secret));
        }
        if object.is_callable() {
            return Ok(PySecret::Ask(object.to_owned().unbind()));
        }
        object.extract::<StrPath>().map(|path| PySecret::File(path.0)).map_err(|_| {
            PyTypeError::new_err(format!(
                "a secret is bytes, str, a function that returns one of them, or an os.PathLike that names a file, not {}",
                kind(&object)
            ))
        })
    }
}
