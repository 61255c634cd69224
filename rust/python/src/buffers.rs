//! Memory of Python objects, held by the buffer protocol for as long as an operation may touch it.

use imago_core::{IoVector, IoVectorMut};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// One exported buffer: contiguous bytes that neither move nor go away before this is dropped.
///
/// Only pointer and length are given out, never a slice: Python code may touch the bytes at any time.
pub(crate) struct Buffer {
    /// Asked for without shape and strides, it has no pointer into itself and may be moved.
    view: ffi::Py_buffer,
    /// The object lets itself be written: it was exported so, or nobody else has it yet.
    writable: bool,
}

// SAFETY: the pointer and length are plain values; the export itself is ended in `drop` with the
// interpreter attached, from whatever thread that is.
unsafe impl Send for Buffer {}
// SAFETY: shared access reads pointer and length only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// The bytes of `object`, to be filled. `TypeError` if it has none or is read-only, `ValueError` if they are not contiguous.
    pub(crate) fn writable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::export(object, ffi::PyBUF_WRITABLE).map_err(|cause| {
            let reason = if Self::export(object, ffi::PyBUF_SIMPLE).is_ok() {
                PyTypeError::new_err(format!(
                    "a writable buffer is needed; this {} is read-only",
                    kind(object)
                ))
            } else {
                unusable(object)
            };
            caused_by(reason, cause, object.py())
        })
    }

    /// The bytes of `object`, to be taken. `TypeError` if it has none, `ValueError` if they are not contiguous.
    pub(crate) fn readable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::export(object, ffi::PyBUF_SIMPLE)
            .map_err(|cause| caused_by(unusable(object), cause, object.py()))
    }

    fn export(object: &Bound<'_, PyAny>, flags: std::ffi::c_int) -> PyResult<Self> {
        let mut view = ffi::Py_buffer::new();
        // SAFETY: `view` is a fresh `Py_buffer`.
        let status = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut view, flags) };
        let writable = flags == ffi::PyBUF_WRITABLE;
        if status == 0 { Ok(Buffer { view, writable }) } else { Err(PyErr::fetch(object.py())) }
    }

    /// Lends the bytes of `object`, to be filled, for the time of one call that keeps the interpreter; nothing is allocated.
    /// `None` if it has no such bytes.
    #[inline]
    pub(crate) fn lend<R>(object: &Bound<'_, PyAny>, f: impl FnOnce(IoVectorMut<'_>) -> R) -> Option<R> {
        let mut lent = Lent(ffi::Py_buffer::new());
        // SAFETY: a fresh `Py_buffer` that is not moved before its release at the end of this function.
        let status =
            unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut lent.0, ffi::PyBUF_WRITABLE) };
        if status != 0 {
            drop(PyErr::take(object.py()));
            return None;
        }
        let mut memory = IoVectorMut::new();
        // SAFETY: as in `push_to`; `lent` outlives the call of `f`, which cannot keep the vector.
        unsafe { memory.push_raw(lent.0.buf.cast(), lent.0.len.cast_unsigned()) };
        Some(f(memory))
    }

    /// A new `bytes` object of `len` bytes, to be filled before anybody else sees it.
    pub(crate) fn of_new_bytes(py: Python<'_>, len: u64) -> PyResult<(Py<PyBytes>, Self)> {
        let len = ffi::Py_ssize_t::try_from(len)
            .map_err(|_| PyValueError::new_err("length is more than this machine can address"))?;
        // SAFETY: with no source the new object's bytes are left as they are; the result is a new `bytes` or null with an error set.
        let bytes = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), len))?
                .cast_into_unchecked::<PyBytes>()
        };
        let mut buffer = Self::readable(&bytes)?;
        buffer.writable = true;
        Ok((bytes.unbind(), buffer))
    }

    /// Adds the bytes to `memory`, to be filled.
    ///
    /// # Panics
    /// When the object does not let itself be written.
    pub(crate) fn push_to<'a>(&'a self, memory: &mut IoVectorMut<'a>) {
        assert!(self.writable, "reads are given writable memory");
        // SAFETY: it lets itself be written. The export keeps the bytes in place for as long as `self` is borrowed; no reference to them is
        // ever made here, and what Python code does to them meanwhile is its own affair.
        unsafe { memory.push_raw(self.view.buf.cast(), self.len()) };
    }

    /// Adds the bytes to `data`, to be taken.
    pub(crate) fn append_to<'a>(&'a self, data: &mut IoVector<'a>) {
        // SAFETY: as in `push_to`; the bytes are only read.
        unsafe { data.push_raw(self.view.buf.cast(), self.len()) };
    }

    /// The bytes, to be taken.
    pub(crate) fn data(&self) -> IoVector<'_> {
        let mut data = IoVector::new();
        self.append_to(&mut data);
        data
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.view.len.cast_unsigned()
    }
}

/// The view of [`Buffer::lend`].
struct Lent(ffi::Py_buffer);

impl Drop for Lent {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `lend` runs with the interpreter attached; a view that was not filled has no object, which is nothing to release.
        unsafe { ffi::PyBuffer_Release(&raw mut self.0) };
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Without an interpreter (it is finalising) there is nobody left to tell.
        Python::try_attach(|_| {
            // SAFETY: the view was filled by `PyObject_GetBuffer` and is released once; the interpreter is attached.
            unsafe { ffi::PyBuffer_Release(&raw mut self.view) };
        });
    }
}

pub(crate) fn kind(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string())
}

fn unusable(object: &Bound<'_, PyAny>) -> PyErr {
    // SAFETY: any object may be asked.
    if unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } == 0 {
        PyTypeError::new_err(format!("a bytes-like object is needed, not {}", kind(object)))
    } else {
        PyValueError::new_err(format!(
            "the memory of this {} is not contiguous or was released",
            kind(object)
        ))
    }
}

fn caused_by(reason: PyErr, cause: PyErr, py: Python<'_>) -> PyErr {
    reason.set_cause(py, Some(cause));
    reason
}
