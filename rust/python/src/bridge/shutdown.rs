//! The end of the interpreter: operations in flight are waited for, and none begins any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use imago_core::storage::Storage;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::BRIDGES;
use crate::fork;

static BEGUN: AtomicBool = AtomicBool::new(false);

pub(super) fn refuse_if_begun() -> PyResult<()> {
    if BEGUN.load(Ordering::Relaxed) {
        return Err(PyRuntimeError::new_err("the interpreter is shutting down"));
    }
    Ok(())
}
