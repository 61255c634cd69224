//! Comparing images, and hashing their content.

use imago_core::access::compare::{Comparison, Strictness, compare as compare_images};
use imago_core::access::hash::hash as hash_image;
use pyo3::prelude::*;

use super::Format;
use super::job::run_job;
use super::source::Source;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::secret::PySecret;

faces! {
    /// Compare the images `first` and `second`: what differs first ("size", "status", "content" or None), where, and
    /// whether the sizes differ.
    compare, compare_awaited: Compare<'py> {
        first: &'py Bound<'py, PyAny>,
        second: &'py Bound<'py, PyAny>,
        first_format: Option<Format>,
        second_format: Option<Format>,
        strict: bool,
        implicit: PyGate,
        first_secret: Option<PySecret>,
        second_secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
    }
}

impl Compare<'_> {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Compare {
            first,
            second,
            first_format,
            second_format,
            strict,
            implicit,
            first_secret,
            second_secret,
            progress,
        } = self;
        let strictness = if strict { Strictness::Layout } else { Strictness::Content };
        let first = Source::new("first", first, first_format, first_secret)?;
        let second = Source::new("second", second, second_format, second_secret)?;
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let first = first.open(&implicit)?;
                let second = second.open(&implicit)?;
                let compared = compare_images(first.image(), second.image(), strictness, job);
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
}

faces! {
    /// The hash of the content of `source`, 32 bytes.
    hash, hash_awaited: Hash<'py> {
        source: &'py Bound<'py, PyAny>,
        format: Option<Format>,
        implicit: PyGate,
        secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
    }
}

impl Hash<'_> {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Hash { source, format, implicit, secret, progress } = self;
        let source = Source::new("source", source, format, secret)?;
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let image = source.open(&implicit)?;
                let digest = hash_image(image.image(), job);
                Ok(image.close().and(digest)?)
            },
            |py, digest| Ok(digest.as_slice().into_pyobject(py)?.into_any().unbind()),
        )
    }
}
