//! Converting an image.

use imago_core::access::convert::{ConvertOptions, convert as convert_image};
use imago_core::access::pack::CompressionLevel;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Format;
use super::create::create_options;
use super::job::run_job;
use super::source::Source;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::transfer::Level;

/// How to compress, if that is asked for.
pub(super) fn compression(compress: bool, level: Option<Level>) -> PyResult<Option<CompressionLevel>> {
    match (compress, level) {
        (true, level) => Ok(Some(level.map_or(CompressionLevel::Default, |level| level.0))),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(PyValueError::new_err("compression_level is given without compress")),
    }
}

fn convert_with<F: Face>(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    target: StrPath,
    source_format: Option<Format>,
    format: Format,
    implicit: PyGate,
    source_secret: Option<PySecret>,
    progress: Option<Py<PyAny>>,
    compress: bool,
    level: Option<Level>,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let source = Source::new("source", source, source_format, source_secret)?;
    let layout = create_options(format.0, 0, layout)?;
    let compress = compression(compress, level)?;
    run_job::<F, _, _, _>(
        py,
        progress,
        move |job| {
            let mut options = ConvertOptions::new(layout.options()?);
            options.copying.compress = compress;
            let source = source.open(&implicit)?;
            let converted = convert_image(source.image(), target.0, options, job).map(drop);
            Ok(source.close().and(converted)?)
        },
        |py, ()| Ok(py.None()),
    )
}

faces! {
    /// Convert an image; `layout` has the keyword arguments of `pyimago.convert` about the target that were given.
    convert_with => convert, convert_awaited(
        source: &Bound<'_, PyAny>,
        target: StrPath,
        source_format: Option<Format>,
        format: Format,
        implicit: PyGate,
        source_secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
        compress: bool,
        level: Option<Level>,
        layout: &Bound<'_, PyDict>,
    )
}
