//! Amending an image.

use imago_core::access::amend::{AmendOptions, BackingChange, DataFileChange, amend as amend_image};
use imago_core::format::ImplicitReference;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Format;
use super::create::{QcowVersion, small};
use super::job::run_job;
use crate::errors::Failure;
use crate::operation::Face;
use crate::path::StrPath;

/// What `changes`, keyword arguments of `pyimago.amend`, ask for: what is not among them stays as it is.
fn amend_options(changes: &Bound<'_, PyDict>) -> PyResult<AmendOptions> {
    let mut options = AmendOptions::default();
    let mut backing_format = None;
    for (name, value) in changes {
        match name.extract::<&str>()? {
            "backing" if value.is_none() => options.backing = Some(BackingChange::Drop),
            "backing" => {
                let name = value.extract::<StrPath>()?.0;
                options.backing = Some(BackingChange::Set(ImplicitReference { name, format: None }));
            }
            "data_file" if value.is_none() => options.data_file = Some(DataFileChange::Drop),
            "data_file" => options.data_file = Some(DataFileChange::Set(value.extract::<StrPath>()?.0)),
            _ if value.is_none() => {}
            "backing_format" => backing_format = Some(value.extract::<String>()?),
            "version" => options.version = Some(value.extract::<QcowVersion>()?.0),
            "lazy_refcounts" => options.lazy_refcounts = Some(value.extract()?),
            "refcount_bits" => options.refcount_bits = Some(small("refcount_bits", &value)?),
            "data_file_raw" => options.data_file_raw = Some(value.extract()?),
            "cluster_size" | "extended_l2" | "compression_type" | "preallocation" => {
                return Err(PyValueError::new_err(format!(
                    "{name} is chosen when an image is created: convert the image to change it"
                )));
            }
            _ => return Err(PyTypeError::new_err(format!("there is no {name} to amend"))),
        }
    }
    options.backing = match (options.backing, backing_format) {
        (backing, None) => backing,
        (None, Some(format)) => Some(BackingChange::Format(format)),
        (Some(BackingChange::Set(backing)), format) => {
            Some(BackingChange::Set(ImplicitReference { format, ..backing }))
        }
        (Some(_), Some(_)) => {
            return Err(PyValueError::new_err("backing_format is given, and no backing"));
        }
    };
    Ok(options)
}

fn amend_with<F: Face>(
    py: Python<'_>,
    path: StrPath,
    format: Option<Format>,
    progress: Option<Py<PyAny>>,
    changes: Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let options = amend_options(&changes)?;
    run_job::<F, _, _, _>(
        py,
        progress,
        move |job| amend_image(path.0, format.map(|format| format.0), &options, job).map_err(Failure::from),
        |py, ()| Ok(py.None()),
    )
}

faces! {
    /// Amend the image at `path`; `changes` has the keyword arguments of `pyimago.amend` that were given.
    amend_with => amend, amend_awaited(
        path: StrPath,
        format: Option<Format>,
        progress: Option<Py<PyAny>>,
        changes: Bound<'_, PyDict>,
    )
}
