//! Comparing images, and hashing their content.

use imago_core::access::compare::{Comparison, Strictness, compare as compare_images};
use imago_core::access::hash::hash as hash_image;
use pyo3::prelude::*;

use super::Format;
use super::job::run_job;
use super::open::open_plainly;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::path::StrPath;
use crate::secret::PySecret;

fn compare_with<F: Face>(
    py: Python<'_>,
    first: StrPath,
    second: StrPath,
    first_format: Option<Format>,
    second_format: Option<Format>,
    strict: bool,
    implicit: PyGate,
    first_secret: Option<PySecret>,
    second_secret: Option<PySecret>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let strictness = if strict { Strictness::Layout } else { Strictness::Content };
    run_job::<F, _, _, _>(
        py,
        progress,
        move |job| {
            let first = open_plainly(first.0, first_format, &implicit, first_secret)?;
            let second = open_plainly(second.0, second_format, &implicit, second_secret)?;
            let compared = compare_images(&first, &second, strictness, job);
            Ok(first.close().and(second.close()).and(compared)?)
        },
        |py, comparison| {
            // What differs first, where, and whether the sizes do.
            let answer: (Option<&str>, Option<u64>, bool) = match comparison {
                Comparison::Identical { sizes_differ } => (None, None, sizes_differ),
                Comparison::Content { offset } => (Some("content"), Some(offset), false),
                Comparison::Size => (Some("size"), None, true),
                Comparison::Status { offset } => (Some("status"), Some(offset), false),
            };
            Ok(answer.into_pyobject(py)?.into_any().unbind())
        },
    )
}

faces! {
    /// Compare the images at `first` and `second`: what differs first ("size", "status", "content" or None), where, and
    /// whether the sizes differ.
    compare_with => compare, compare_awaited(
        first: StrPath,
        second: StrPath,
        first_format: Option<Format>,
        second_format: Option<Format>,
        strict: bool,
        implicit: PyGate,
        first_secret: Option<PySecret>,
        second_secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
    )
}

fn hash_with<F: Face>(
    py: Python<'_>,
    path: StrPath,
    format: Option<Format>,
    implicit: PyGate,
    secret: Option<PySecret>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    run_job::<F, _, _, _>(
        py,
        progress,
        move |job| {
            let image = open_plainly(path.0, format, &implicit, secret)?;
            let digest = hash_image(&image, job);
            Ok(image.close().and(digest)?)
        },
        |py, digest| Ok(digest.as_slice().into_pyobject(py)?.into_any().unbind()),
    )
}

faces! {
    /// The hash of the content of the image at `path`, 32 bytes.
    hash_with => hash, hash_awaited(
        path: StrPath,
        format: Option<Format>,
        implicit: PyGate,
        secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
    )
}
