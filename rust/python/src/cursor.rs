//! Sequences that the engine looks up as Python asks for them.

use std::collections::VecDeque;
use std::sync::Arc;

use imago_core::Result;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::access::Access;
use crate::errors::Failure;
use crate::operation::{Face, Venue};

/// Items that are looked up at a time.
const BATCH: usize = 256;

/// What such a sequence is of.
pub(crate) trait Item: Send + 'static {
    /// As Python sees it.
    fn object(self, py: Python<'_>) -> PyResult<Py<PyAny>>;
}

/// Items looked up ahead of who takes them.
struct Ahead<T> {
    ready: VecDeque<T>,
    /// None once the end was met.
    rest: Option<Box<dyn Iterator<Item = Result<T>> + Send>>,
}

impl<T> Ahead<T> {
    fn look_up(&mut self) -> Result<(), Failure> {
        while self.ready.len() < BATCH {
            match self.rest.as_mut().and_then(Iterator::next) {
                Some(Ok(item)) => self.ready.push_back(item),
                Some(Err(error)) if self.ready.is_empty() => {
                    self.rest = None;
                    return Err(error.into());
                }
                // What came before it goes out first; asking again meets it again.
                Some(Err(_)) => break,
                None => {
                    self.rest = None;
                    break;
                }
            }
        }
        Ok(())
    }
}

/// A sequence, and the image it is of.
pub(crate) struct Cursor<T> {
    access: Arc<Access>,
    /// The object of the image, which would close it if it went.
    _owner: Py<PyAny>,
    ahead: Arc<Mutex<Ahead<T>>>,
}

impl<T: Item> Cursor<T> {
    /// What `items` gives; an error is met again by who asks again.
    pub(crate) fn new(
        access: &Arc<Access>,
        owner: Py<PyAny>,
        items: impl Iterator<Item = Result<T>> + Send + 'static,
    ) -> Self {
        let ahead = Ahead { ready: VecDeque::new(), rest: Some(Box::new(items)) };
        Cursor { access: Arc::clone(access), _owner: owner, ahead: Arc::new(Mutex::new(ahead)) }
    }

    /// The next one that is at hand: `Some(None)` at the end.
    #[expect(clippy::option_option, reason = "nothing yet, and nothing more")]
    pub(crate) fn at_hand(&self) -> Option<Option<T>> {
        // Never waits: another task's look-up may hold it over I/O.
        let mut ahead = self.ahead.try_lock()?;
        match ahead.ready.pop_front() {
            None if ahead.rest.is_some() => None,
            next => Some(next),
        }
    }

    /// Looks the next ones up and gives the first to `finish`.
    pub(crate) fn look_up<F: Face>(
        &self,
        py: Python<'_>,
        finish: fn(Python<'_>, Option<T>) -> PyResult<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        self.access.image(py)?;
        let ahead = Arc::clone(&self.ahead);
        let run = move || {
            let mut ahead = ahead.lock();
            if ahead.ready.is_empty() {
                ahead.look_up()?;
            }
            Ok(ahead.ready.pop_front())
        };
        F::call(py, Venue::Pool, run, finish)
    }
}

/// The two classes that a sequence of `$item` is iterated with.
macro_rules! iterator_classes {
    ($(#[$doc:meta])* $name:ident, $(#[$async_doc:meta])* $async_name:ident, $item:ty) => {
        $(#[$doc])*
        #[pyclass(frozen, module = "pyimago._native")]
        pub(crate) struct $name(pub(crate) crate::cursor::Cursor<$item>);

        #[pymethods]
        impl $name {
            fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
                slf
            }

            fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
                if let Some(next) = self.0.at_hand() {
                    return next.map(|item| crate::cursor::Item::object(item, py)).transpose();
                }
                let next = self.0.look_up::<crate::operation::Blocking>(py, |py, next| {
                    next.map_or_else(|| Ok(py.None()), |item| crate::cursor::Item::object(item, py))
                })?;
                Ok((!next.is_none(py)).then_some(next))
            }
        }

        $(#[$async_doc])*
        #[pyclass(frozen, module = "pyimago._native")]
        pub(crate) struct $async_name(pub(crate) crate::cursor::Cursor<$item>);

        #[pymethods]
        impl $async_name {
            fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
                slf
            }

            fn __anext__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
                fn next_or_stop(py: Python<'_>, next: Option<$item>) -> PyResult<Py<PyAny>> {
                    match next {
                        Some(item) => crate::cursor::Item::object(item, py),
                        None => Err(pyo3::exceptions::PyStopAsyncIteration::new_err(())),
                    }
                }
                match self.0.at_hand() {
                    Some(next) => crate::bridge::Bridge::current(py)?.completed(py, Some(next_or_stop(py, next)?)),
                    None => self.0.look_up::<crate::operation::Awaited>(py, next_or_stop),
                }
            }
        }
    };
}

pub(crate) use iterator_classes;
