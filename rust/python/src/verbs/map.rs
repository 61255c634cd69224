//! Where the bytes of an image are.

use imago_core::access::map::gather;
use imago_core::access::open::OpenOptions;
use imago_core::storage::StorageOpenOptions;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::Format;
use super::job::run_job;
use super::source::Place;
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
                Ok(image.close().and(extents)?)
            },
            |py, extents| {
                let list = PyList::empty(py);
                for extent in extents {
                    list.append(Extent::from(extent))?;
                }
                Ok(list.into_any().unbind())
            },
        )
    }
}
