//! Extents as Python sees them.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use imago_core::access::extent::Extent as Facts;
use imago_core::access::map::Extents;
use parking_lot::Mutex;
use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::access::Access;
use crate::bridge::Bridge;
use crate::errors::{Failure, exception};
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::transfer::Offset;

/// Extents that are looked up at a time.
const BATCH: usize = 256;

/// One run of the disk with one answer; the facts are those of `qemu-img map`.
#[pyclass(frozen, module = "pyimago")]
pub(crate) struct Extent(Facts);

#[pymethods]
impl Extent {
    #[classattr]
    fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        let names = [
            "offset",
            "length",
            "data",
            "zero",
            "allocated",
            "compressed",
            "depth",
            "host_file",
            "host_offset",
        ];
        PyTuple::new(py, names)
    }

    /// Start in the disk, in bytes.
    #[getter]
    fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Length in bytes.
    #[getter]
    fn length(&self) -> u64 {
        self.0.length
    }

    /// Whether its bytes are stored somewhere.
    #[getter]
    fn data(&self) -> bool {
        self.0.data
    }

    /// Whether it is known without reading that it reads as zeroes.
    #[getter]
    fn zero(&self) -> bool {
        self.0.zero
    }

    /// Whether an image of the chain says what is here; otherwise nobody does and it reads as zeroes.
    #[getter]
    fn allocated(&self) -> bool {
        self.0.allocated
    }

    /// Whether it is stored in compressed clusters.
    #[getter]
    fn compressed(&self) -> bool {
        self.0.compressed
    }

    /// Which image of the chain answers: 0 is the image itself, 1 its backing file, and so on.
    #[getter]
    fn depth(&self) -> u32 {
        self.0.depth
    }

    /// The file that holds it, where there is space for it in one.
    #[getter]
    fn host_file(&self) -> Option<&OsStr> {
        self.0.host_file.as_ref().map(|path| path.as_os_str())
    }

    /// Where in that file, in bytes.
    #[getter]
    fn host_offset(&self) -> Option<u64> {
        self.0.host_offset
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Extent>().is_ok_and(|other| other.get().0 == self.0)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.0.offset, self.0.length, self.0.depth, self.0.host_offset).hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        let Facts { offset, length, data, zero, allocated, compressed, depth, host_file, host_offset } =
            &self.0;
        let python = |fact: bool| if fact { "True" } else { "False" };
        format!(
            "Extent(offset={offset}, length={length}, data={}, zero={}, allocated={}, compressed={}, depth={depth}, \
             host_file={}, host_offset={})",
            python(*data),
            python(*zero),
            python(*allocated),
            python(*compressed),
            host_file
                .as_ref()
                .map_or_else(|| "None".to_owned(), |path| format!("{:?}", path.display().to_string())),
            host_offset.map_or_else(|| "None".to_owned(), |offset| offset.to_string()),
        )
    }
}

/// Extents looked up ahead of who takes them.
struct Ahead {
    ready: VecDeque<Facts>,
    /// None once the end was met.
    rest: Option<Extents>,
}

impl Ahead {
    fn look_up(&mut self) -> Result<(), Failure> {
        while self.ready.len() < BATCH {
            match self.rest.as_mut().and_then(Iterator::next) {
                Some(Ok(facts)) => self.ready.push_back(facts),
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

/// The extents of a range, and the image they are of.
struct Cursor {
    access: Arc<Access>,
    ahead: Arc<Mutex<Ahead>>,
}

impl Cursor {
    fn new(
        py: Python<'_>,
        access: &Arc<Access>,
        Offset(offset): Offset,
        length: Option<Offset>,
    ) -> PyResult<Self> {
        let length = length.map_or_else(|| access.size().saturating_sub(offset), |length| length.0);
        access.check_range("extents", offset, length)?;
        let open = access.image(py)?;
        let extents = open.get().extents(offset, length).map_err(|error| exception(py, &error))?;
        let ahead = Ahead { ready: VecDeque::new(), rest: Some(extents) };
        Ok(Cursor { access: Arc::clone(access), ahead: Arc::new(Mutex::new(ahead)) })
    }

    /// The next one that is at hand: `Some(None)` at the end.
    #[expect(clippy::option_option, reason = "nothing yet, and nothing more")]
    fn at_hand(&self) -> Option<Option<Facts>> {
        // Never waits: another task's look-up may hold it over I/O.
        let mut ahead = self.ahead.try_lock()?;
        match ahead.ready.pop_front() {
            None if ahead.rest.is_some() => None,
            next => Some(next),
        }
    }

    /// Looks the next ones up and gives the first to `finish`.
    fn look_up<F: Face>(
        &self,
        py: Python<'_>,
        finish: fn(Python<'_>, Option<Facts>) -> PyResult<Py<PyAny>>,
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

/// An iterator of `Extent`, in the order of the disk.
#[pyclass(frozen, module = "pyimago._native")]
pub(crate) struct ExtentIterator(Cursor);

impl ExtentIterator {
    pub(crate) fn new(
        py: Python<'_>,
        access: &Arc<Access>,
        offset: Offset,
        length: Option<Offset>,
    ) -> PyResult<Self> {
        Cursor::new(py, access, offset, length).map(Self)
    }
}

#[pymethods]
impl ExtentIterator {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        if let Some(next) = self.0.at_hand() {
            return next.map(|facts| object(py, facts)).transpose();
        }
        let next = self.0.look_up::<Blocking>(py, |py, next| {
            next.map_or_else(|| Ok(py.None()), |facts| object(py, facts))
        })?;
        Ok((!next.is_none(py)).then_some(next))
    }
}

/// An asynchronous iterator of `Extent`, in the order of the disk.
#[pyclass(frozen, module = "pyimago._native")]
pub(crate) struct AsyncExtentIterator(Cursor);

impl AsyncExtentIterator {
    pub(crate) fn new(
        py: Python<'_>,
        access: &Arc<Access>,
        offset: Offset,
        length: Option<Offset>,
    ) -> PyResult<Self> {
        Cursor::new(py, access, offset, length).map(Self)
    }
}

#[pymethods]
impl AsyncExtentIterator {
    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        fn next_or_stop(py: Python<'_>, next: Option<Facts>) -> PyResult<Py<PyAny>> {
            next.map_or_else(|| Err(PyStopAsyncIteration::new_err(())), |facts| object(py, facts))
        }
        match self.0.at_hand() {
            Some(next) => Bridge::current(py)?.completed(py, Some(next_or_stop(py, next)?)),
            None => self.0.look_up::<Awaited>(py, next_or_stop),
        }
    }
}

fn object(py: Python<'_>, facts: Facts) -> PyResult<Py<PyAny>> {
    Ok(Py::new(py, Extent(facts))?.into_any())
}
