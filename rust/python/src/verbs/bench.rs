//! Measuring an image.

use imago_core::access::bench::{BenchOptions, Flush, Work, bench as bench_image};
use imago_core::access::open::OpenOptions;
use imago_core::storage::StorageOpenOptions;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::Format;
use super::job::run_job;
use super::source::Place;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::secret::PySecret;
use crate::storages::LockWord;
use crate::transfer::Offset;

fn bench_with<F: Face>(
    py: Python<'_>,
    place: Place,
    format: Option<Format>,
    pattern: Option<u8>,
    count: Offset,
    depth: u32,
    request_size: u32,
    offset: Offset,
    step: Offset,
    flush_interval: Option<Offset>,
    drain: bool,
    direct: bool,
    lock: LockWord,
    implicit: PyGate,
    secret: Option<PySecret>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let flush = match (flush_interval, drain) {
        (None, _) => Flush::Never,
        (Some(every), true) => Flush::Every(every.0),
        (Some(every), false) => Flush::Beside(every.0),
    };
    let work = match pattern {
        None if flush != Flush::Never => {
            return Err(PyValueError::new_err("flush_interval is for writing only"));
        }
        None => Work::Read,
        Some(pattern) => Work::Write { pattern, flush },
    };
    let options = BenchOptions { count: count.0, depth, request_size, offset: offset.0, step: step.0, work };
    run_job::<F, _, _, _>(
        py,
        progress,
        move |job| {
            let secret = PySecret::get_some(secret)?;
            let image = implicit.pass(|gate| {
                let opening = OpenOptions {
                    write: pattern.is_some(),
                    format: format.map(|format| format.0),
                    gate: gate.clone(),
                    secret,
                    direct,
                    lock: lock.0,
                    ..OpenOptions::default()
                };
                let files = StorageOpenOptions::new().write(opening.write).direct(direct).lock(lock.0);
                opening.open_storage(place.storage(files)?)
            })?;
            let took = bench_image(&image, &options, job);
            Ok(image.close().and(took)?)
        },
        |py, took| Ok(took.as_secs_f64().into_pyobject(py)?.into_any().unbind()),
    )
}

faces! {
    /// Seconds that the requests took; `pattern` is the byte to write, None to read.
    bench_with => bench, bench_awaited(
        place: Place,
        format: Option<Format>,
        pattern: Option<u8>,
        count: Offset,
        depth: u32,
        request_size: u32,
        offset: Offset,
        step: Offset,
        flush_interval: Option<Offset>,
        drain: bool,
        direct: bool,
        lock: LockWord,
        implicit: PyGate,
        secret: Option<PySecret>,
        progress: Option<Py<PyAny>>,
    )
}
