//! Python types over `imago-core`; no format logic here.

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _native {}
