//! Converting an image.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use imago_core::access::convert::{ConvertOptions, Progress, convert as convert_image};
use imago_core::access::create::CreateOptions;
use imago_core::access::pack::CompressionLevel;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Format;
use super::create::create_options;
use super::open::open_plainly;
use crate::errors::Failure;
use crate::gate::PyGate;
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::path::StrPath;
use crate::transfer::Level;

/// A conversion that was asked for.
struct Conversion {
    source: PathBuf,
    target: PathBuf,
    source_format: Option<Format>,
    implicit: PyGate,
    create: CreateOptions,
    compress: Option<CompressionLevel>,
    progress: Option<Py<PyAny>>,
}

impl Conversion {
    fn run(self) -> Result<(), Failure> {
        let Conversion { source, target, source_format, implicit, create, compress, progress } = self;
        let source = open_plainly(source, source_format, &implicit)?;
        let cancel = AtomicBool::new(false);
        let mut raised = None;
        let mut report = |done: Progress| {
            let reported = Python::try_attach(|py| {
                // The caller's thread is here all the while: this is where Ctrl-C gets through.
                py.check_signals()?;
                progress.as_ref().map_or(Ok(()), |f| f.call1(py, (done.done, done.total)).map(drop))
            });
            if !matches!(reported, Some(Ok(()))) {
                cancel.store(true, Ordering::Relaxed);
                raised = raised.take().or_else(|| reported.and_then(Result::err));
            }
        };
        let options =
            ConvertOptions { target: create, compress, progress: Some(&mut report), cancel: Some(&cancel) };
        let converted = convert_image(&source, target, options);
        let closed = source.close();
        match raised {
            Some(raised) => Err(Failure::Python(raised)),
            None => converted.and(closed).map_err(Failure::from),
        }
    }
}

fn convert_with<F: Face>(py: Python<'_>, conversion: Conversion) -> PyResult<Py<PyAny>> {
    F::call(py, Venue::Thread, move || conversion.run(), |py, ()| Ok(py.None()))
}

/// How to compress, if that is asked for.
fn compression(compress: bool, level: Option<Level>) -> PyResult<Option<CompressionLevel>> {
    match (compress, level) {
        (true, level) => Ok(Some(level.map_or(CompressionLevel::Default, |level| level.0))),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(PyValueError::new_err("compression_level is given without compress")),
    }
}

/// Convert an image; `layout` has the keyword arguments of `pyimago.convert` about the target that were given.
#[pyfunction]
#[pyo3(signature = (source, target, source_format, format, implicit, progress, compress, level, layout))]
pub(crate) fn convert(
    py: Python<'_>,
    source: StrPath,
    target: StrPath,
    source_format: Option<Format>,
    format: Format,
    implicit: PyGate,
    progress: Option<Py<PyAny>>,
    compress: bool,
    level: Option<Level>,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let create = create_options(format.0, 0, layout)?;
    let compress = compression(compress, level)?;
    convert_with::<Blocking>(
        py,
        Conversion {
            source: source.0,
            target: target.0,
            source_format,
            implicit,
            create,
            compress,
            progress,
        },
    )
}

/// As `convert`, awaited; `progress` is called on another thread.
#[pyfunction]
#[pyo3(signature = (source, target, source_format, format, implicit, progress, compress, level, layout))]
pub(crate) fn convert_awaited(
    py: Python<'_>,
    source: StrPath,
    target: StrPath,
    source_format: Option<Format>,
    format: Format,
    implicit: PyGate,
    progress: Option<Py<PyAny>>,
    compress: bool,
    level: Option<Level>,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let create = create_options(format.0, 0, layout)?;
    let compress = compression(compress, level)?;
    convert_with::<Awaited>(
        py,
        Conversion {
            source: source.0,
            target: target.0,
            source_format,
            implicit,
            create,
            compress,
            progress,
        },
    )
}
