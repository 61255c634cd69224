//! `image.snapshots`: snapshots inside an image.

use std::sync::Arc;

use imago_core::access::image::Image;
use imago_core::format::qcow2_info::SnapshotInfo;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::access::Access;
use crate::errors::Failure;
use crate::operation::{Awaited, Blocking, Face, Venue};

const NANOSECONDS: u64 = 1_000_000_000;

/// A snapshot inside an image, with the names of QEMU's JSON.
#[pyclass(frozen, module = "pyimago")]
pub(crate) struct Snapshot(SnapshotInfo);

#[pymethods]
impl Snapshot {
    #[new]
    #[pyo3(signature = (id, name, vm_state_size=0, date_sec=0, date_nsec=0, vm_clock_sec=0, vm_clock_nsec=0, icount=None))]
    #[expect(clippy::too_many_arguments, clippy::similar_names, reason = "the fields, by name")]
    fn new(
        id: String,
        name: String,
        vm_state_size: u64,
        date_sec: u32,
        date_nsec: u32,
        vm_clock_sec: u64,
        vm_clock_nsec: u64,
        icount: Option<u64>,
    ) -> PyResult<Self> {
        let clock = vm_clock_sec.checked_mul(NANOSECONDS).and_then(|clock| clock.checked_add(vm_clock_nsec));
        let too_late = || PyValueError::new_err("vm_clock_sec is past what 64 bits of nanoseconds hold");
        let vm_clock_nsec = clock.ok_or_else(too_late)?;
        Ok(Snapshot(SnapshotInfo { id, name, vm_state_size, date_sec, date_nsec, vm_clock_nsec, icount }))
    }

    /// For pickle and copy.
    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let SnapshotInfo { vm_state_size, date_sec, date_nsec, icount, .. } = self.0;
        let clock = (self.vm_clock_sec(), self.vm_clock_nsec());
        (self.id(), self.name(), vm_state_size, date_sec, date_nsec, clock.0, clock.1, icount)
            .into_pyobject(py)
    }

    #[classattr]
    fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(
            py,
            ["id", "name", "vm_state_size", "date_sec", "date_nsec", "vm_clock_sec", "vm_clock_nsec"],
        )
    }

    /// Its id, unique in the image.
    #[getter]
    fn id(&self) -> &str {
        &self.0.id
    }

    /// Its name, which others may have too.
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    /// Bytes of the virtual machine's state.
    #[getter]
    fn vm_state_size(&self) -> u64 {
        self.0.vm_state_size
    }

    /// When it was taken: seconds since 1970.
    #[getter]
    fn date_sec(&self) -> u32 {
        self.0.date_sec
    }

    /// And nanoseconds.
    #[getter]
    fn date_nsec(&self) -> u32 {
        self.0.date_nsec
    }

    /// The virtual machine's clock: seconds.
    #[getter]
    fn vm_clock_sec(&self) -> u64 {
        self.0.vm_clock_nsec / NANOSECONDS
    }

    /// And nanoseconds.
    #[getter]
    fn vm_clock_nsec(&self) -> u64 {
        self.0.vm_clock_nsec % NANOSECONDS
    }

    /// Instruction count; None where none was recorded.
    #[getter]
    fn icount(&self) -> Option<u64> {
        self.0.icount
    }

    /// What `qemu-img info --output=json` prints of it.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        document(py, &self.0)
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Snapshot>().is_ok_and(|other| other.get().0 == self.0)
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        (self.id(), self.name(), self.date_sec()).into_pyobject(py)?.hash()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let texts = (self.id(), self.name()).into_pyobject(py)?;
        let text = |index| texts.get_item(index).and_then(|text| text.repr());
        Ok(format!("Snapshot(id={}, name={}, date_sec={})", text(0)?, text(1)?, self.date_sec()))
    }
}

/// QEMU's JSON of a snapshot.
pub(crate) fn document<'py>(py: Python<'py>, snapshot: &SnapshotInfo) -> PyResult<Bound<'py, PyDict>> {
    let document = PyDict::new(py);
    document.set_item("id", &snapshot.id)?;
    document.set_item("name", &snapshot.name)?;
    document.set_item("vm-state-size", snapshot.vm_state_size)?;
    document.set_item("date-sec", snapshot.date_sec)?;
    document.set_item("date-nsec", snapshot.date_nsec)?;
    document.set_item("vm-clock-sec", snapshot.vm_clock_nsec / NANOSECONDS)?;
    document.set_item("vm-clock-nsec", snapshot.vm_clock_nsec % NANOSECONDS)?;
    if let Some(icount) = snapshot.icount {
        document.set_item("icount", icount)?;
    }
    Ok(document)
}

fn change<F: Face>(
    py: Python<'_>,
    access: &Arc<Access>,
    change: impl FnOnce(&Image) -> imago_core::Result<()> + Send + 'static,
) -> PyResult<Py<PyAny>> {
    access.check_writable()?;
    F::on_image(py, access, move |access, image| access.resizing(image, change))
}

macro_rules! snapshots_class {
    ($(#[$doc:meta])* $name:ident, $face:ty) => {
        $(#[$doc])*
        #[pyclass(frozen, module = "pyimago")]
        pub(crate) struct $name {
            pub(crate) access: Arc<Access>,
            /// The object of the image, which would close it if it went.
            pub(crate) _owner: Py<PyAny>,
        }

        #[pymethods]
        impl $name {
            /// All of them, a list of `Snapshot`.
            fn list(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
                let lease = self.access.lease(py)?;
                let run = move || lease.image().snapshots().map_err(Failure::from);
                <$face>::call(py, Venue::Pool, run, |py, snapshots| {
                    let list = PyList::empty(py);
                    for snapshot in snapshots {
                        list.append(Snapshot(snapshot))?;
                    }
                    Ok(list.into_any().unbind())
                })
            }

            /// Keep the disk as it is now under a name of at most 255 bytes, which others may have too: a `Snapshot`. Its `id` is the next
            /// number unless given.
            #[pyo3(signature = (name, *, id = None))]
            fn create(&self, py: Python<'_>, name: String, id: Option<String>) -> PyResult<Py<PyAny>> {
                self.access.check_writable()?;
                let lease = self.access.lease(py)?;
                let run = move || lease.image().create_snapshot(&name, id.as_deref()).map_err(Failure::from);
                <$face>::call(py, Venue::Pool, run, |py, snapshot| Ok(Py::new(py, Snapshot(snapshot))?.into_any()))
            }

            /// Make the disk what it was when the snapshot (an id or a name) was taken, its size included. What was written since is lost.
            fn apply(&self, py: Python<'_>, snapshot: String) -> PyResult<Py<PyAny>> {
                change::<$face>(py, &self.access, move |image| image.apply_snapshot(&snapshot))
            }

            /// Remove the snapshot (an id or a name); the space that only it takes is free.
            fn delete(&self, py: Python<'_>, snapshot: String) -> PyResult<Py<PyAny>> {
                change::<$face>(py, &self.access, move |image| image.delete_snapshot(&snapshot))
            }

            /// Give the snapshot (an id or a name) another name.
            fn rename(&self, py: Python<'_>, snapshot: String, name: String) -> PyResult<Py<PyAny>> {
                change::<$face>(py, &self.access, move |image| image.rename_snapshot(&snapshot, &name))
            }
        }
    };
}

snapshots_class!(
    /// The snapshots inside an open image.
    Snapshots, Blocking
);

snapshots_class!(
    /// The snapshots inside an open image, awaited.
    AsyncSnapshots, Awaited
);
