//! Committing an image into one below it.

use imago_core::access::commit::{Committed, Merging, commit_into};
use imago_core::access::open::{OpenOptions, WriteBacking};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::Format;
use super::job::run_job;
use super::source::Source;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::transfer::Offset;

faces! {
    /// Write what the image at `path` holds into the one below it; see `pyimago.commit`.
    commit, commit_awaited: Commit<'py> {
        path: &'py Bound<'py, PyAny>,
        base: Option<StrPath>,
        format: Option<Format>,
        keep: bool,
        implicit: PyGate,
        secret: Option<PySecret>,
        rate_limit: Option<Offset>,
        progress: Option<Py<PyAny>>,
    }
}

impl Commit<'_> {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Commit { path, base, format, keep, implicit, secret, rate_limit, progress } = self;
        let source = Source::new("path", path, format, secret)?;
        if let Source::Open(lease) = &source {
            if base.is_some() {
                return Err(PyValueError::new_err(
                    "the image is open: its base is the image below that is open for writing, see write_backing of open",
                ));
            }
            if !keep {
                lease.access().check_writable()?;
            }
        }
        let merging = Merging {
            image: if keep { Committed::Keep } else { Committed::Empty },
            rate: rate_limit.map(|rate| rate.0),
        };
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let write_backing = base.map_or(WriteBacking::First, |base| WriteBacking::Named(base.0));
                let how = OpenOptions { write: !keep, write_backing, ..OpenOptions::default() };
                let image = source.open_as(&implicit, how)?;
                let committed = commit_into(image.image(), merging, job);
                Ok(committed.and(image.close())?)
            },
            |py, ()| Ok(py.None()),
        )
    }
}
