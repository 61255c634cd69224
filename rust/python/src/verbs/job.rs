//! Long operations: progress to a callable, Ctrl-C and cancelled tasks to the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use imago_core::access::job::{Job, Progress};
use pyo3::prelude::*;

use crate::errors::Failure;
use crate::operation::{Face, Venue};

/// How often `progress` is called, beside the start and the end.
const INTERVAL: Duration = Duration::from_millis(50);

/// Carries `run` out as a job that tells `progress`, a callable, how far it is. What that raises ends the job, as Ctrl-C does
/// and the cancelling of the task that awaits it.
pub(crate) fn run_job<F, T, R, E>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    run: R,
    finish: E,
) -> PyResult<Py<PyAny>>
where
    F: Face,
    T: Send + 'static,
    R: FnOnce(&mut Job<'_>) -> Result<T, Failure> + Send + 'static,
    E: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
{
    let cancel = Arc::new(AtomicBool::new(false));
    let unwanted = Arc::clone(&cancel);
    let run = move || {
        let mut raised = None;
        let mut next = Instant::now();
        let mut report = |Progress { done, total }| {
            let reported = Python::try_attach(|py| {
                // A synchronous caller's thread is here all the while: this is where Ctrl-C gets through.
                py.check_signals()?;
                let Some(progress) = &progress else { return Ok(()) };
                if done != 0 && done != total && Instant::now() < next {
                    return Ok(());
                }
                next = Instant::now() + INTERVAL;
                progress.call1(py, (done, total)).map(drop)
            });
            if !matches!(reported, Some(Ok(()))) {
                unwanted.store(true, Ordering::Relaxed);
                raised = raised.take().or_else(|| reported.and_then(Result::err));
            }
        };
        let result = run(&mut Job::default().progress(&mut report).cancel(&unwanted));
        match raised {
            Some(raised) => Err(Failure::Python(raised)),
            None => result,
        }
    };
    F::call_until(py, Venue::Thread, cancel, run, finish)
}
