//! Measuring an image.

use imago_core::access::bench::{BenchOptions, Flush, Work, bench as bench_image};
use imago_core::access::open::OpenOptions;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::Format;
use super::job::run_job;
use super::source::Source;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::secret::PySecret;
use crate::storages::LockWord;
use crate::transfer::{Count, Offset};

/// The byte to write.
pub(crate) struct Pattern(u8);

impl<'py> FromPyObject<'_, 'py> for Pattern {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let Count(number) = object.extract()?;
        let byte = u8::try_from(number);
        byte.map(Pattern).map_err(|_| PyValueError::new_err(format!("a byte is 0 to 255, not {number}")))
    }
}

faces! {
    /// Seconds that the requests took; `pattern` is the byte to write, None to read.
    bench, bench_awaited: Bench<'py> {
        path: &'py Bound<'py, PyAny>,
        format: Option<Format>,
        pattern: Option<Pattern>,
        count: Offset,
        depth: Count,
        request_size: Count,
        offset: Offset,
        step: Offset,
        flush_interval: Option<Offset>,
        drain: bool,
        direct: bool,
        lock: LockWord,
        implicit: PyGate,
        secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
    }
}

impl Bench<'_> {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Bench {
            path,
            format,
            pattern,
            count,
            depth,
            request_size,
            offset,
            step,
            flush_interval,
            drain,
            direct,
            lock,
            implicit,
            secret,
            progress,
        } = self;
        let flush = match (flush_interval, drain) {
            (None, _) => Flush::Never,
            (Some(every), true) => Flush::Every(every.0),
            (Some(every), false) => Flush::Beside(every.0),
        };
        let pattern = pattern.map(|Pattern(byte)| byte);
        let work = match pattern {
            None if flush != Flush::Never => {
                return Err(PyValueError::new_err("flush_interval is for writing only"));
            }
            None => Work::Read,
            Some(pattern) => Work::Write { pattern, flush },
        };
        let options = BenchOptions {
            count: count.0,
            depth: depth.0,
            request_size: request_size.0,
            offset: offset.0,
            step: step.0,
            work,
        };
        let source = Source::new("path", path, format, secret)?;
        if let Source::Open(lease) = &source
            && pattern.is_some()
        {
            lease.access().check_writable()?;
        }
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let how =
                    OpenOptions { write: pattern.is_some(), direct, lock: lock.0, ..OpenOptions::default() };
                let image = source.open_as(&implicit, how)?;
                let took = bench_image(image.image(), &options, job);
                Ok(image.leave().and(took)?)
            },
            |py, took| Ok(took.as_secs_f64().into_pyobject(py)?.into_any().unbind()),
        )
    }
}
