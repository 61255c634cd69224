//! Which interpreter of the process this is, and what its collector is spared.

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Leaves `object` out of what the garbage collector goes through, again and again while there are many. For classes that refer to no object of Python's
/// and so are part of no cycle.
pub(crate) fn untrack<T>(object: &Bound<'_, T>) {
    let object = object.as_ptr().cast();
    // SAFETY: the object is alive. One that the collector goes through has what it is to be taken out of; others are never asked to go.
    unsafe {
        if ffi::PyObject_GC_IsTracked(object) == 1 {
            ffi::PyObject_GC_UnTrack(object.cast());
        }
    }
}

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
