//! `implicit=`: which of the files that an image names may be opened.

use std::path::Path;
use std::sync::Arc;

use imago_core::access::open::{Gate, ReferenceKind};
use imago_core::{Error, ErrorKind};
use parking_lot::Mutex;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::errors::Failure;

/// A gate that a function of Python's may keep; what that raised is kept to be raised again.
#[derive(Default)]
pub(crate) struct PyGate {
    gate: Gate,
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl PyGate {
    /// Does `open` behind this gate.
    pub(crate) fn pass<T>(&self, open: impl FnOnce(&Gate) -> imago_core::Result<T>) -> Result<T, Failure> {
        open(&self.gate).map_err(|error| match self.raised.lock().take() {
            Some(raised) => Failure::Python(raised),
            None => Failure::Engine(error),
        })
    }
}

impl<'py> FromPyObject<'_, 'py> for PyGate {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.is_callable() {
            let raised = Arc::default();
            let gate = Gate::Ask(Arc::new(asker(object.to_owned().unbind(), Arc::clone(&raised))));
            return Ok(PyGate { gate, raised });
        }
        let word = object
            .extract::<&str>()
            .map_err(|_| PyTypeError::new_err("implicit is 'beside', 'deny', 'allow' or a function"))?;
        let gate = match word {
            "beside" => Gate::Beside,
            "deny" => Gate::Deny,
            "allow" => Gate::Allow,
            _ => {
                let text = format!("implicit is 'beside', 'deny', 'allow' or a function, not {word:?}");
                return Err(PyValueError::new_err(text));
            }
        };
        Ok(PyGate { gate, raised: Arc::default() })
    }
}

fn asker(
    function: Py<PyAny>,
    raised: Arc<Mutex<Option<PyErr>>>,
) -> impl Fn(&Path, ReferenceKind) -> imago_core::Result<bool> + Send + Sync {
    move |path, kind| {
        let kind = match kind {
            ReferenceKind::Backing => "backing",
            ReferenceKind::DataFile => "data_file",
        };
        let answer = Python::try_attach(|py| {
            let answer = function.call1(py, (path.as_os_str(), kind))?.into_bound(py);
            // A coroutine is true, whatever it would come to: every file would be allowed.
            if answer.hasattr("__await__")? {
                return Err(PyTypeError::new_err(
                    "implicit is a function that answers: what it returned would have to be awaited",
                ));
            }
            answer.is_truthy()
        });
        match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => {
                *raised.lock() = Some(error);
                Err(Error::new(ErrorKind::ImplicitOpenDenied, "the function that was to decide failed"))
            }
            None => Ok(false),
        }
    }
}
