//! Checking images, and repairing them.

use std::path::Path;

use imago_core::StorageOpenOptions;
use imago_core::access::check::{CheckOptions, Finding, Repair, Report, check_storage};
use imago_core::format::FormatKind;
use imago_core::storage::Lock;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Format;
use super::job::run_job;
use super::open::DataFile;
use super::source::Place;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::storages::LockWord;

/// What is to be repaired.
pub(crate) struct WhatToRepair(Repair);

impl<'py> FromPyObject<'_, 'py> for WhatToRepair {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<&str>()? {
            "none" => Ok(WhatToRepair(Repair::None)),
            "leaks" => Ok(WhatToRepair(Repair::Leaks)),
            "all" => Ok(WhatToRepair(Repair::All)),
            other => Err(PyValueError::new_err(format!("repair is 'none', 'leaks' or 'all', not {other:?}"))),
        }
    }
}

/// The document that `qemu-img check --output=json` prints: what is 0 is left out.
fn document<'py>(py: Python<'py>, path: &Path, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let document = PyDict::new(py);
    document.set_item("filename", path.as_os_str())?;
    document.set_item("format", FormatKind::Qcow2.name())?;
    document.set_item("check-errors", report.check_errors)?;
    for (name, number) in [
        ("image-end-offset", report.image_end_offset),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ] {
        if number != 0 {
            document.set_item(name, number)?;
        }
    }
    Ok(document)
}

type FindingTuple = (&'static str, &'static str, Option<u64>, Option<u64>, String);

fn finding(finding: Finding) -> FindingTuple {
    let Finding { kind, severity, offset, guest, message } = finding;
    (kind.name(), severity.name(), offset.map(|at| at.0), guest.map(|at| at.0), message)
}

faces! {
    /// Check the image at `path`: the document of `qemu-img check`, and the findings as tuples.
    check, check_awaited: Check {
        path: Place,
        format: Option<Format>,
        repair: WhatToRepair,
        deep: bool,
        data_file: Option<DataFile>,
        implicit: PyGate,
        lock: LockWord,
        progress: Option<Py<PyAny>>,
    }
}

impl Check {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Check { path: place, format, repair, deep, data_file, implicit, lock, progress } = self;
        if repair.0 != Repair::None && lock.0 == Lock::Off {
            return Err(PyValueError::new_err("a repair without locks could meet another writer"));
        }
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let path = place.path().unwrap_or(Path::new("")).to_owned();
                let files = StorageOpenOptions::new().write(repair.0 != Repair::None).lock(lock.0);
                let data_file = DataFile::storage(data_file, files.clone())?;
                let report = implicit.pass(|gate| {
                    let options = CheckOptions {
                        format: format.map(|format| format.0),
                        repair: repair.0,
                        deep,
                        data_file,
                        gate: gate.clone(),
                        lock: lock.0,
                    };
                    check_storage(place.storage(files)?, options, job)
                })?;
                Ok((path, report))
            },
            |py, (path, report)| {
                let document = document(py, &path, &report)?;
                let findings: Vec<FindingTuple> = report.findings.into_iter().map(finding).collect();
                Ok((document, findings).into_pyobject(py)?.into_any().unbind())
            },
        )
    }
}
