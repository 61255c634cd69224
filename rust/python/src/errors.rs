//! The engine's errors as Python's exceptions.

use std::any::Any;

use imago_core::{Error, ErrorKind};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

pyo3::import_exception!(io, UnsupportedOperation);

/// The exceptions are Python classes, so that they have typed attributes: `pyimago/_errors.py`.
mod classes {
    pyo3::import_exception!(pyimago._errors, ImagoError);
    pyo3::import_exception!(pyimago._errors, InvalidImageError);
    pyo3::import_exception!(pyimago._errors, CorruptImageError);
    pyo3::import_exception!(pyimago._errors, UnsupportedFeatureError);
    pyo3::import_exception!(pyimago._errors, ImplicitOpenDeniedError);
    pyo3::import_exception!(pyimago._errors, ImageLockedError);
    pyo3::import_exception!(pyimago._errors, ImageClosedError);
    pyo3::import_exception!(pyimago._errors, LatchedError);
    pyo3::import_exception!(pyimago._errors, WrongSecretError);
}

/// Why an operation failed.
pub(crate) enum Failure {
    /// The engine says so.
    Engine(Error),
    /// A callable of the user's raised.
    Python(PyErr),
    /// A bug: the engine panicked with this message.
    Panic(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Engine(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Failure::Python(error)
    }
}

impl Failure {
    /// What [`std::panic::catch_unwind`] caught.
    pub(crate) fn from_panic(payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Failure::Panic(message)
    }

    /// The exception to raise.
    pub(crate) fn into_exception(self, py: Python<'_>) -> PyErr {
        match self {
            Failure::Engine(error) => exception(py, &error),
            Failure::Python(error) => error,
            Failure::Panic(message) => {
                classes::ImagoError::new_err((format!("internal error, please report it: {message}"),))
            }
        }
    }
}

/// The exception that stands for `error`.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let filename = error.path().map(|path| path.as_os_str().to_owned());
    let arguments = (error.to_string(), filename, error.offset());
    match error.kind() {
        ErrorKind::Io => os_error(py, error),
        ErrorKind::InvalidInput => PyValueError::new_err(error.to_string()),
        ErrorKind::ReadOnly => UnsupportedOperation::new_err(error.to_string()),
        ErrorKind::InvalidImage => classes::InvalidImageError::new_err(arguments),
        ErrorKind::Corrupt => classes::CorruptImageError::new_err(arguments),
        ErrorKind::Unsupported => classes::UnsupportedFeatureError::new_err(arguments),
        ErrorKind::ImplicitOpenDenied => classes::ImplicitOpenDeniedError::new_err(arguments),
        ErrorKind::WrongSecret => classes::WrongSecretError::new_err(arguments),
        ErrorKind::Locked => classes::ImageLockedError::new_err(arguments),
        ErrorKind::Closed => classes::ImageClosedError::new_err(arguments),
        ErrorKind::Latched => classes::LatchedError::new_err(arguments),
        _ => classes::ImagoError::new_err(arguments),
    }
}

/// The `OSError` subclass of the error's number, with the file's name; what was being done goes into a note.
fn os_error(py: Python<'_>, error: &Error) -> PyErr {
    let Some(errno) = error.os_error() else {
        return PyOSError::new_err(error.to_string());
    };
    let text = py
        .import("os")
        .and_then(|os| os.call_method1("strerror", (errno,)))
        .and_then(|text| text.extract::<String>())
        .unwrap_or_else(|_| error.message().to_owned());
    let exception = match error.path() {
        Some(path) => PyOSError::new_err((errno, text, path.as_os_str().to_owned())),
        None => PyOSError::new_err((errno, text)),
    };
    let place = error.offset().map_or_else(String::new, |offset| format!(" at offset {offset:#x}"));
    // A note is a help only: the exception goes out without it where it cannot be added.
    let _ = exception.add_note(py, format!("{}{place}", error.message()));
    exception
}
