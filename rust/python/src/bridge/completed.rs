//! What stands for an operation that was done where it was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyKeyboardInterrupt, PyStopIteration, PySystemExit};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Bridge;

/// A future that has its result from the start.
///
/// It is a future for asyncio (`asyncio.isfuture`): it can be awaited any number of times, gathered, waited for and shielded. An
/// `asyncio.Future` would cost half as much as the read whose result it brings.
#[pyclass(frozen, weakref, module = "pyimago._native")]
pub(crate) struct CompletedFuture {
    bridge: Arc<Bridge>,
    /// `None` for Python's None.
    result: Option<Py<PyAny>>,
    /// Whoever awaits it first yields to the loop once.
    yields: AtomicBool,
    /// It was yielded to a task, which is to wait for it.
    blocking: AtomicBool,
}

impl CompletedFuture {
    #[inline]
    pub(super) fn new(bridge: Arc<Bridge>, result: Option<Py<PyAny>>, yields: bool) -> Self {
        CompletedFuture { bridge, result, yields: AtomicBool::new(yields), blocking: AtomicBool::new(false) }
    }

    /// Makes it one of another operation.
    #[inline]
    pub(super) fn renew(&self, yields: bool) {
        self.yields.store(yields, Ordering::Relaxed);
        self.blocking.store(false, Ordering::Relaxed);
    }
}

#[pymethods]
impl CompletedFuture {
    /// The mark by which asyncio knows futures, and by which a task knows one that was awaited and not merely yielded.
    #[getter(_asyncio_future_blocking)]
    fn blocking(&self) -> bool {
        self.blocking.load(Ordering::Relaxed)
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, blocking: bool) {
        self.blocking.store(blocking, Ordering::Relaxed);
    }

    fn __await__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[inline]
    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let this = slf.get();
        if this.yields.load(Ordering::Relaxed) {
            this.yields.store(false, Ordering::Relaxed);
            // Its task waits for it as for any future and is called back in the next turn, together with others. To yield None, as
            // `asyncio.sleep(0)` does, would cost the loop a handle for each task, which is more than a read.
            this.set_blocking(true);
            return Ok(Some(slf.clone().into_any().unbind()));
        }
        let py = slf.py();
        match &this.result {
            // To the interpreter an iterator's end with no word is that of a function without `return`.
            None => Ok(None),
            Some(result) => Err(PyStopIteration::new_err((result.clone_ref(py),))),
        }
    }

    /// What came of the operation.
    fn result(&self, py: Python<'_>) -> Py<PyAny> {
        self.result.as_ref().map_or_else(|| py.None(), |result| result.clone_ref(py))
    }

    /// None: what failed at once was raised at once.
    #[expect(clippy::unused_self, reason = "a method of futures")]
    fn exception(&self) {}

    /// True.
    #[expect(clippy::unused_self, reason = "a method of futures")]
    fn done(&self) -> bool {
        true
    }

    /// False: it was done before it could be.
    #[expect(clippy::unused_self, reason = "a method of futures")]
    fn cancelled(&self) -> bool {
        false
    }

    /// False: there is nothing left to cancel.
    #[pyo3(signature = (msg = None))]
    #[expect(clippy::unused_self, reason = "a method of futures")]
    fn cancel(&self, msg: Option<&Bound<'_, PyAny>>) -> bool {
        let _ = msg;
        false
    }

    /// The event loop that the operation was asked for in.
    fn get_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.bridge.event_loop.clone_ref(py)
    }

    /// Have `callback` called with this future in the loop's next iteration.
    #[pyo3(signature = (callback, /, *, context = None))]
    fn add_done_callback(
        slf: Bound<'_, Self>,
        callback: Bound<'_, PyAny>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let context = match context {
            Some(context) => context,
            None => super::Asyncio::get(py)?.copy_context(py)?,
        };
        let bridge = Arc::clone(&slf.get().bridge);
        let callback = Callback {
            context: context.unbind(),
            function: callback.unbind(),
            future: slf.into_any().unbind(),
        };
        bridge.call_back(py, callback)
    }

    /// How many times `callback` was to be called and is not any more: it cannot be stopped.
    #[pyo3(signature = (callback, /))]
    #[expect(clippy::unused_self, reason = "a method of futures")]
    fn remove_done_callback(&self, callback: &Bound<'_, PyAny>) -> usize {
        let _ = callback;
        0
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<CompletedFuture result={}>", self.result(py).bind(py).repr()?))
    }
}

/// A call that was asked for when its future was done already.
pub(super) struct Callback {
    context: Py<PyAny>,
    function: Py<PyAny>,
    future: Py<PyAny>,
}

impl Callback {
    /// Calls it; what it raises goes to the loop's handler, as with callbacks of asyncio's own, unless it is to end the loop.
    pub(super) fn call(self, py: Python<'_>, event_loop: &Py<PyAny>) -> PyResult<()> {
        let Callback { context, function, future } = self;
        let Err(error) = context.call_method1(py, pyo3::intern!(py, "run"), (&function, &future)) else {
            return Ok(());
        };
        if error.is_instance_of::<PyKeyboardInterrupt>(py) || error.is_instance_of::<PySystemExit>(py) {
            return Err(error);
        }
        let told = PyDict::new(py);
        let reported = told
            .set_item("message", "Exception in callback of a completed future")
            .and_then(|()| told.set_item("exception", error.value(py)))
            .and_then(|()| told.set_item("future", &future))
            .and_then(|()| event_loop.call_method1(py, "call_exception_handler", (told,)));
        if reported.is_err() {
            error.write_unraisable(py, Some(function.bind(py)));
        }
        Ok(())
    }
}
