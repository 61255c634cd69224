//! Committing an image into one below it.

use std::path::PathBuf;

use imago_core::access::commit::{CommitOptions, Committed, Merging, commit as commit_image};
use pyo3::prelude::*;

use super::Format;
use super::job::run_job;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::transfer::Offset;

fn commit_with<F: Face>(
    py: Python<'_>,
    path: StrPath,
    base: Option<StrPath>,
    format: Option<Format>,
    keep: bool,
    implicit: PyGate,
    secret: Option<PySecret>,
    rate_limit: Option<Offset>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let path: PathBuf = path.0;
    run_job::<F, _, _, _>(
        py,
        progress,
        move |job| {
            let secret = PySecret::get_some(secret)?;
            implicit.pass(|gate| {
                let options = CommitOptions {
                    format: format.map(|format| format.0),
                    base: base.map(|base| base.0),
                    merging: Merging {
                        image: if keep { Committed::Keep } else { Committed::Empty },
                        rate: rate_limit.map(|rate| rate.0),
                    },
                    gate: gate.clone(),
                    secret,
                    ..CommitOptions::default()
                };
                commit_image(path, &options, job)
            })
        },
        |py, ()| Ok(py.None()),
    )
}

faces! {
    /// Write what the image at `path` holds into the one below it; see `pyimago.commit`.
    commit_with => commit, commit_awaited(
        path: StrPath,
        base: Option<StrPath>,
        format: Option<Format>,
        keep: bool,
        implicit: PyGate,
        secret: Option<PySecret>,
        rate_limit: Option<Offset>,
        progress: Option<Py<PyAny>>,
    )
}
