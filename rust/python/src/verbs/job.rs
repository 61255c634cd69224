//! Long operations: progress to a callable, Ctrl-C and cancelled tasks to the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imago_core::access::job::{Job, Progress};
use pyo3::prelude::*;

use crate::errors::Failure;
use crate::operation::{Face, Venue};

/// How often `progress` is called, beside the start and the end.
const INTERVAL: Duration = Duration::from_millis(50);
/// How often signals are looked for.
const SIGNALS: Duration = Duration::from_millis(10);

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
    let caller = thread::current().id();
    let run = move || {
        let mut raised = None;
        let mut next = Instant::now();
        let mut look = next;
        // A synchronous caller's thread is here all the while: this is where Ctrl-C gets through. Another thread never has a signal to handle.
        let signals = thread::current().id() == caller;
        // Who takes the interpreter may be off the processor before it is given back, and with many operations at once for long: the event loop
        // waits all the while. So it is taken only for what is due.
        let mut report = |Progress { done, total }| {
            let now = Instant::now();
            let due = now >= next || done == 0 || done == total;
            let tell = progress.as_ref().filter(|_| due);
            let look_up = signals && now >= look;
            if tell.is_none() && !look_up {
                return;
            }
            let reported = Python::try_attach(|py| {
                if look_up {
                    look = now + SIGNALS;
                    py.check_signals()?;
                }
                let Some(progress) = tell else { return Ok(()) };
                next = now + INTERVAL;
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
