//! Extents as Python sees them.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use imago_core::access::extent::Extent as Facts;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::access::Access;
use crate::bridge::interpreter::untrack;
use crate::cursor::{Cursor, Item, iterator_classes};
use crate::errors::exception;
use crate::path::StrPath;
use crate::transfer::Offset;

/// One run of the disk with one answer; the facts are those of `qemu-img map`.
#[pyclass(frozen, module = "pyimago")]
pub(crate) struct Extent(Facts);

#[pymethods]
impl Extent {
    #[new]
    #[pyo3(signature = (offset, length, data, zero, allocated, compressed=false, depth=0, host_file=None, host_offset=None))]
    #[expect(clippy::fn_params_excessive_bools, clippy::too_many_arguments, reason = "the fields, by name")]
    fn new(
        offset: u64,
        length: u64,
        data: bool,
        zero: bool,
        allocated: bool,
        compressed: bool,
        depth: u32,
        host_file: Option<StrPath>,
        host_offset: Option<u64>,
    ) -> Self {
        Extent(Facts {
            offset,
            length,
            data,
            zero,
            allocated,
            compressed,
            depth,
            host_file: host_file.map(|path| path.0.into()),
            host_offset,
        })
    }

    /// For pickle and copy.
    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let Facts { offset, length, data, zero, allocated, compressed, depth, host_offset, .. } = self.0;
        (offset, length, data, zero, allocated, compressed, depth, self.host_file(), host_offset)
            .into_pyobject(py)
    }

    #[classattr]
    fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        let names = [
            "offset",
            "length",
            "data",
            "zero",
            "allocated",
            "compressed",
            "depth",
            "host_file",
            "host_offset",
        ];
        PyTuple::new(py, names)
    }

    /// Start in the disk, in bytes.
    #[getter]
    fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Length in bytes.
    #[getter]
    fn length(&self) -> u64 {
        self.0.length
    }

    /// Whether its bytes are stored somewhere.
    #[getter]
    fn data(&self) -> bool {
        self.0.data
    }

    /// Whether it is known without reading that it reads as zeroes.
    #[getter]
    fn zero(&self) -> bool {
        self.0.zero
    }

    /// Whether an image of the chain says what is here; otherwise nobody does and it reads as zeroes.
    #[getter]
    fn allocated(&self) -> bool {
        self.0.allocated
    }

    /// Whether it is stored in compressed clusters.
    #[getter]
    fn compressed(&self) -> bool {
        self.0.compressed
    }

    /// Which image of the chain answers: 0 is the image itself, 1 its backing file, and so on.
    #[getter]
    fn depth(&self) -> u32 {
        self.0.depth
    }

    /// The file that holds it, where there is space for it in one.
    #[getter]
    fn host_file(&self) -> Option<&OsStr> {
        self.0.host_file.as_ref().map(|path| path.as_os_str())
    }

    /// Where in that file, in bytes.
    #[getter]
    fn host_offset(&self) -> Option<u64> {
        self.0.host_offset
    }

    /// What `qemu-img map --output=json` prints of it.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Facts { offset, length, data, zero, allocated, compressed, depth, host_offset, .. } = self.0;
        let document = PyDict::new(py);
        document.set_item("start", offset)?;
        document.set_item("length", length)?;
        document.set_item("depth", depth)?;
        for (name, fact) in
            [("present", allocated), ("zero", zero), ("data", data), ("compressed", compressed)]
        {
            document.set_item(name, fact)?;
        }
        if let Some(offset) = host_offset {
            document.set_item("offset", offset)?;
        }
        Ok(document)
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Extent>().is_ok_and(|other| other.get().0 == self.0)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.0.offset, self.0.length, self.0.depth, self.0.host_offset).hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let Facts { offset, length, data, zero, allocated, compressed, depth, host_offset, .. } = &self.0;
        let host_file = self.host_file().into_pyobject(py)?.repr()?;
        let python = |fact: bool| if fact { "True" } else { "False" };
        Ok(format!(
            "Extent(offset={offset}, length={length}, data={}, zero={}, allocated={}, compressed={}, depth={depth}, \
             host_file={host_file}, host_offset={})",
            python(*data),
            python(*zero),
            python(*allocated),
            python(*compressed),
            host_offset.map_or_else(|| "None".to_owned(), |offset| offset.to_string()),
        ))
    }
}

impl Extent {
    /// The extent as an object of Python's.
    pub(crate) fn object(py: Python<'_>, facts: Facts) -> PyResult<Py<Self>> {
        let object = Bound::new(py, Extent(facts))?;
        untrack(&object);
        Ok(object.unbind())
    }
}

impl Item for Facts {
    fn object(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(Extent::object(py, self)?.into_any())
    }
}

/// The extents of a range.
pub(crate) fn cursor(
    py: Python<'_>,
    access: &Arc<Access>,
    owner: Py<PyAny>,
    Offset(offset): Offset,
    length: Option<Offset>,
) -> PyResult<Cursor<Facts>> {
    let length = length.map_or_else(|| access.size().saturating_sub(offset), |length| length.0);
    access.check_range("extents", offset, length)?;
    let open = access.image(py)?;
    let extents = open.get().extents(offset, length).map_err(|error| exception(py, &error))?;
    Ok(Cursor::new(access, owner, extents))
}

iterator_classes!(
    /// An iterator of `Extent`, in the order of the disk.
    ExtentIterator,
    /// An asynchronous iterator of `Extent`, in the order of the disk.
    AsyncExtentIterator,
    Facts
);
