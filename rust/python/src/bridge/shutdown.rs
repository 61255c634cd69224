//! The end of the interpreter: operations in flight are waited for, and none begins any more.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::BRIDGES;

/// The interpreter is on its way out.
static BEGUN: AtomicBool = AtomicBool::new(false);

pub(super) fn refuse_if_begun() -> PyResult<()> {
    if BEGUN.load(Ordering::Relaxed) {
        return Err(PyRuntimeError::new_err("the interpreter is shutting down"));
    }
    Ok(())
}

/// Operations on other threads that have not ended.
static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);

/// One of them; it ends when dropped.
pub(super) struct Ticket;

pub(super) fn begin() -> Ticket {
    IN_FLIGHT.fetch_add(1, Ordering::Relaxed);
    Ticket
}

impl Drop for Ticket {
    fn drop(&mut self) {
        IN_FLIGHT.fetch_sub(1, Ordering::Release);
    }
}

/// A forked child has none of its parent's operations.
pub(crate) fn forget_operations() {
    IN_FLIGHT.store(0, Ordering::Relaxed);
}

/// Lets nothing begin any more and waits for what has begun: afterwards no thread of ours touches Python or memory of its objects.
///
/// First the loops' own share is let go: a closing on another thread may wait for reads that only a loop would see to their end.
pub(crate) fn wait_for_operations(py: Python<'_>) {
    BEGUN.store(true, Ordering::Relaxed);
    let bridges: Vec<_> = BRIDGES.lock().iter().filter_map(|(_, anchor)| anchor.bridge()).collect();
    for bridge in bridges {
        bridge.orphan();
    }
    py.detach(|| {
        while IN_FLIGHT.load(Ordering::Acquire) > 0 {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
