//! Putting another backing file below an image.

use imago_core::access::rebase::{RebaseMode, RebaseOptions, rebase as rebase_image};
use imago_core::format::ImplicitReference;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::Format;
use super::convert::compression;
use super::job::run_job;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::transfer::Level;

fn rebase_with<F: Face>(
    py: Python<'_>,
    path: StrPath,
    backing: Option<StrPath>,
    backing_format: Option<String>,
    format: Option<Format>,
    name_only: bool,
    compress: bool,
    level: Option<Level>,
    implicit: PyGate,
    secret: Option<PySecret>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let backing = match (backing, backing_format) {
        (Some(name), format) => Some(ImplicitReference { name: name.0, format }),
        (None, None) => None,
        (None, Some(_)) => return Err(PyValueError::new_err("backing_format is given without backing")),
    };
    let compress = compression(compress, level)?;
    let mode = if name_only { RebaseMode::Unsafe } else { RebaseMode::Safe };
    run_job::<F, _, _, _>(
        py,
        progress,
        move |job| {
            let format = format.map(|format| format.0);
            let secret = PySecret::get_some(secret)?;
            implicit.pass(|gate| {
                let options = RebaseOptions { format, backing, mode, compress, secret, gate: gate.clone() };
                rebase_image(path.0, &options, job)
            })
        },
        |py, ()| Ok(py.None()),
    )
}

faces! {
    /// Put `backing` below the image at `path`; see `pyimago.rebase`.
    rebase_with => rebase, rebase_awaited(
        path: StrPath,
        backing: Option<StrPath>,
        backing_format: Option<String>,
        format: Option<Format>,
        name_only: bool,
        compress: bool,
        level: Option<Level>,
        implicit: PyGate,
        secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
    )
}
