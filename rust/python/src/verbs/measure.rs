//! How large a file a new image would need.

use imago_core::access::measure::measure as measure_image;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Format;
use super::create::create_options;
use super::job::run_job;
use super::source::Source;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::secret::PySecret;
use crate::transfer::Offset;

faces! {
    /// Bytes that an image would need, of its own size or with the content of `source`; when it is full; and for bitmaps.
    measure, measure_awaited: Measure<'py> {
        source: Option<&'py Bound<'py, PyAny>>,
        size: Option<Offset>,
        source_format: Option<Format>,
        format: Format,
        implicit: PyGate,
        source_secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
        layout: &'py Bound<'py, PyDict>,
    }
}

impl Measure<'_> {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Measure { source, size, source_format, format, implicit, source_secret, progress, layout } = self;
        let size = match (&source, size) {
            (Some(_), None) => 0,
            (None, Some(Offset(size))) => size,
            _ => return Err(PyValueError::new_err("measure takes either a source or a size")),
        };
        let source =
            source.map(|source| Source::new("source", source, source_format, source_secret)).transpose()?;
        let target = create_options(format.0, size, layout)?;
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let target = target.without_secret()?;
                let Some(source) = source else { return Ok(measure_image(None, &target, job)?) };
                let source = source.open(&implicit)?;
                let measured = measure_image(Some(source.image()), &target, job);
                Ok(source.close().and(measured)?)
            },
            |py, measured| {
                Ok((measured.required, measured.fully_allocated, measured.bitmaps)
                    .into_pyobject(py)?
                    .into_any()
                    .unbind())
            },
        )
    }
}
