//! Putting another backing file below an image.

use imago_core::access::open::OpenOptions;
use imago_core::access::rebase::{RebaseMode, RebaseOptions, rebase_storage};
use imago_core::format::ImplicitReference;
use imago_core::storage::Lock;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::Format;
use super::convert::compression;
use super::job::run_job;
use super::open::{Below, DataFile};
use super::source::Place;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::storages::LockWord;
use crate::transfer::Level;

faces! {
    /// Put `backing` below the image at `path`; see `pyimago.rebase`.
    rebase, rebase_awaited: Rebase {
        path: Place,
        backing: Option<StrPath>,
        backing_format: Option<String>,
        format: Option<Format>,
        name_only: bool,
        compress: bool,
        level: Option<Level>,
        implicit: PyGate,
        secret: Option<PySecret>,
        opened_backing: Below,
        opened_data_file: Option<DataFile>,
        direct: bool,
        lock: LockWord,
        progress: Option<Py<PyAny>>,
    }
}

impl Rebase {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Rebase {
            path: place,
            backing,
            backing_format,
            format,
            name_only,
            compress,
            level,
            implicit,
            secret,
            opened_backing,
            opened_data_file,
            direct,
            lock,
            progress,
        } = self;
        let backing = match (backing, backing_format) {
            (Some(name), format) => Some(ImplicitReference { name: name.0, format }),
            (None, None) => None,
            (None, Some(_)) => return Err(PyValueError::new_err("backing_format is given without backing")),
        };
        let compress = compression(compress, level)?;
        let mode = if name_only { RebaseMode::Unsafe } else { RebaseMode::Safe };
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let mut open = OpenOptions {
                    write: true,
                    format: format.map(|format| format.0),
                    backing: opened_backing.0,
                    secret: PySecret::get_some(secret)?,
                    direct,
                    lock: lock.0,
                    ..OpenOptions::default()
                };
                let files = open.files().lock(Lock::Auto);
                open.data_file = DataFile::storage(opened_data_file, files.clone())?;
                implicit.pass(|gate| {
                    open.gate = gate.clone();
                    let options = RebaseOptions { open, backing, mode, compress };
                    rebase_storage(place.storage(files)?, &options, job)
                })
            },
            |py, ()| Ok(py.None()),
        )
    }
}
