//! Where the bytes of an image are.

use imago_core::access::extent::Extent as Facts;
use imago_core::access::map::gather;
use imago_core::access::open::OpenOptions;
use imago_core::storage::StorageOpenOptions;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::Format;
use super::job::run_job;
use super::source::Place;
use crate::errors::Failure;
use crate::extents::Extent;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::secret::PySecret;
use crate::transfer::Offset;

faces! {
    /// The extents of `length` bytes (None: all) at `offset` of the image at `path`; see `pyimago.map`.
    map, map_awaited: Map {
        path: Place,
        offset: Offset,
        length: Option<Offset>,
        format: Option<Format>,
        snapshot: Option<String>,
        implicit: PyGate,
        secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
    }
}

impl Map {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Map { path: place, offset, length, format, snapshot, implicit, secret, progress } = self;
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let secret = PySecret::get_some(secret)?;
                let image = implicit.pass(|gate| {
                    let format = format.map(|format| format.0);
                    let opening = OpenOptions {
                        format,
                        snapshot,
                        gate: gate.clone(),
                        secret,
                        ..OpenOptions::default()
                    };
                    opening.open_storage(place.storage(StorageOpenOptions::new())?)
                })?;
                let length = length.map_or_else(|| image.size().saturating_sub(offset.0), |length| length.0);
                let extents = gather(&image, offset.0, length, job);
                objects(image.close().and(extents)?)
            },
            |py, extents| Ok(PyList::new(py, extents)?.into_any().unbind()),
        )
    }
}

/// Extents that are made objects while the interpreter is held: about a millisecond's worth.
const BATCH: usize = 4096;

/// The extents as Python has them, made on this thread: of a million of them an event loop would hear nothing for a third of a second.
fn objects(extents: Vec<Facts>) -> Result<Vec<Py<Extent>>, Failure> {
    let mut made = Vec::with_capacity(extents.len());
    let mut left = extents.into_iter().peekable();
    while left.peek().is_some() {
        let batch = Python::try_attach(|py| {
            left.by_ref().take(BATCH).try_for_each(|facts| {
                made.push(Extent::object(py, facts)?);
                Ok(())
            })
        });
        batch.unwrap_or_else(|| Err(PyRuntimeError::new_err("the interpreter ends")))?;
    }
    Ok(made)
}
