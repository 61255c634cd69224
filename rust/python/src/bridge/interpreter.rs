//! Which interpreter of the process this is.

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Refuses to be loaded by any but the main interpreter: what is looked up once and kept here are its objects.
pub(crate) fn refuse_subinterpreter(_: Python<'_>) -> PyResult<()> {
    // SAFETY: a thread that is attached has an interpreter.
    let id = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    if id == 0 {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "pyimago does not work in a subinterpreter; import it in the main interpreter only",
    ))
}
