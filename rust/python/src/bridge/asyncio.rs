//! The few things of asyncio that every operation needs, looked up once.

use std::ptr::NonNull;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple};

pub(super) struct Asyncio {
    get_running_loop: Py<PyAny>,
    future: Py<PyAny>,
    copy_context: Py<PyAny>,
    no_arguments: Py<PyTuple>,
    set_result: Py<PyString>,
    set_exception: Py<PyString>,
    done: Py<PyString>,
    running: Py<PyString>,
}

static ASYNCIO: PyOnceLock<Asyncio> = PyOnceLock::new();

impl Asyncio {
    #[inline]
    pub(super) fn get(py: Python<'_>) -> PyResult<&Self> {
        ASYNCIO.get_or_try_init(py, || {
            let asyncio = py.import("asyncio")?;
            Ok(Asyncio {
                get_running_loop: asyncio.getattr("get_running_loop")?.unbind(),
                copy_context: py.import("contextvars")?.getattr("copy_context")?.unbind(),
                future: asyncio.getattr("Future")?.unbind(),
                no_arguments: PyTuple::empty(py).unbind(),
                set_result: PyString::intern(py, "set_result").unbind(),
                set_exception: PyString::intern(py, "set_exception").unbind(),
                done: PyString::intern(py, "done").unbind(),
                running: PyString::intern(py, "__asyncio_running_event_loop__").unbind(),
            })
        })
    }

    /// The loop that runs in this thread; `RuntimeError` where none does.
    #[inline]
    pub(super) fn running_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: the callable is alive; the result is a new reference or null with an error set.
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyObject_CallNoArgs(self.get_running_loop.as_ptr())) }
    }

    /// An object that stands in this thread's state for the loop that runs, for as long as that runs.
    ///
    /// CPython up to 3.13 keeps it there; `None` elsewhere. Asking for the loop itself costs a system call (`getpid`) up to 3.11,
    /// which is a tenth of a small read.
    #[inline]
    pub(super) fn running_mark(&self, _: Python<'_>) -> Option<NonNull<ffi::PyObject>> {
        // SAFETY: the interpreter is attached; both results are borrowed or null, and neither call leaves an error.
        unsafe {
            let state = ffi::PyThreadState_GetDict();
            if state.is_null() {
                return None;
            }
            NonNull::new(ffi::PyDict_GetItem(state, self.running.as_ptr()))
        }
    }

    /// A copy of the current context.
    pub(super) fn copy_context<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: as in `running_loop`.
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyObject_CallNoArgs(self.copy_context.as_ptr())) }
    }

    /// A pending future of the loop in `arguments`.
    #[inline]
    pub(super) fn future<'py>(&self, py: Python<'py>, arguments: &Py<PyDict>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: all three are alive; the result is a new reference or null with an error set.
        unsafe {
            let future =
                ffi::PyObject_Call(self.future.as_ptr(), self.no_arguments.as_ptr(), arguments.as_ptr());
            Bound::from_owned_ptr_or_err(py, future)
        }
    }

    #[inline]
    pub(super) fn set_result(&self, future: &Bound<'_, PyAny>, result: &Bound<'_, PyAny>) -> PyResult<()> {
        call(future, &self.set_result, result)
    }

    /// Whether the future has a result, an exception, or was cancelled.
    pub(super) fn is_done(&self, future: &Bound<'_, PyAny>) -> PyResult<bool> {
        future.call_method0(&self.done)?.is_truthy()
    }

    /// Gives the future, which is not done, its result or exception.
    pub(super) fn settle(&self, future: &Bound<'_, PyAny>, outcome: PyResult<Py<PyAny>>) -> PyResult<()> {
        let py = future.py();
        match outcome {
            Ok(result) => self.set_result(future, result.bind(py)),
            Err(error) => call(future, &self.set_exception, error.value(py)),
        }
    }
}

/// `object.name(argument)`, with no tuple made for it.
#[inline]
fn call(object: &Bound<'_, PyAny>, name: &Py<PyString>, argument: &Bound<'_, PyAny>) -> PyResult<()> {
    // SAFETY: all are alive and the list of arguments ends with null; the result is a new reference or null with an error set.
    unsafe {
        let result = ffi::PyObject_CallMethodObjArgs(
            object.as_ptr(),
            name.as_ptr(),
            argument.as_ptr(),
            std::ptr::null_mut::<ffi::PyObject>(),
        );
        Bound::from_owned_ptr_or_err(object.py(), result).map(drop)
    }
}
