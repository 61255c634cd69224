//! Creating an image.

use std::path::PathBuf;

use imago_core::access::create::{CreateOptions, create as create_image};
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{Compression, FormatKind, ImplicitReference};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};

use super::Format;
use crate::buffers::kind;
use crate::errors::Failure;
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::path::StrPath;
use crate::transfer::Offset;

/// The names of versions of qcow2.
struct QcowVersion(qcow2::Version);

impl<'py> FromPyObject<'_, 'py> for QcowVersion {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.str()?.to_str()? {
            "2" | "0.10" => Ok(QcowVersion(qcow2::Version::V2)),
            "3" | "1.1" => Ok(QcowVersion(qcow2::Version::V3)),
            other => {
                Err(PyValueError::new_err(format!("version is 2 (\"0.10\") or 3 (\"1.1\"), not {other:?}")))
            }
        }
    }
}

/// How compressed clusters are packed.
struct CompressionType(Compression);

impl<'py> FromPyObject<'_, 'py> for CompressionType {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<&str>()? {
            "zlib" => Ok(CompressionType(Compression::Deflate)),
            "zstd" => Ok(CompressionType(Compression::Zstd)),
            other => {
                Err(PyValueError::new_err(format!("compression_type is 'zlib' or 'zstd', not {other:?}")))
            }
        }
    }
}

/// What a new image shall be: `layout` has keyword arguments of `pyimago.create`; those that are None or False are what
/// `qemu-img` takes where nothing is said.
pub(super) fn create_options(
    format: FormatKind,
    size: u64,
    layout: &Bound<'_, PyDict>,
) -> PyResult<CreateOptions> {
    let mut options = qcow2::CreateOptions { size, ..qcow2::CreateOptions::default() };
    let mut backing_format = None;
    for (name, value) in layout {
        if value.is_none() || value.is(PyBool::new(layout.py(), false)) {
            continue;
        }
        if format == FormatKind::Raw {
            return Err(PyValueError::new_err(format!("a raw image has no {name}")));
        }
        match name.extract::<&str>()? {
            "version" => options.version = value.extract::<QcowVersion>()?.0,
            "cluster_size" => options.cluster_size = small(&name, &value)?,
            "refcount_bits" => options.refcount_bits = small(&name, &value)?,
            "lazy_refcounts" => options.lazy_refcounts = value.extract()?,
            "extended_l2" => options.extended_l2 = value.extract()?,
            "compression_type" => options.compression = value.extract::<CompressionType>()?.0,
            "backing" => {
                options.backing =
                    Some(ImplicitReference { name: value.extract::<StrPath>()?.0, format: None });
            }
            "backing_format" => backing_format = Some(value.extract::<String>()?),
            "data_file" => {
                options.data_file = Some(value.extract::<StrPath>()?.0.to_string_lossy().into_owned());
            }
            "data_file_raw" => options.data_file_raw = value.extract()?,
            _ => return Err(PyTypeError::new_err(format!("a new image has no option {name}"))),
        }
    }
    match (&mut options.backing, backing_format) {
        (Some(backing), format) => backing.format = format,
        (None, Some(_)) => return Err(PyValueError::new_err("backing_format is given without backing")),
        (None, None) => {}
    }
    Ok(match format {
        FormatKind::Raw => CreateOptions::raw(size),
        _ => CreateOptions::Qcow2(options),
    })
}

/// A number of bytes or bits; what does not fit is out of every range that the engine would allow.
fn small(name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    if !value.hasattr("__index__")? {
        return Err(PyTypeError::new_err(format!("{name} is a number, not {}", kind(value))));
    }
    value.extract().map_err(|_| PyValueError::new_err(format!("{name} cannot be {value}")))
}

fn create_with<F: Face>(
    py: Python<'_>,
    path: PathBuf,
    Offset(size): Offset,
    format: &Format,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let options = create_options(format.0, size, layout)?;
    F::call(
        py,
        Venue::Thread,
        move || create_image(path, &options).map_err(Failure::from),
        |py, ()| Ok(py.None()),
    )
}

/// Create an image; `layout` has the keyword arguments of `pyimago.create` that were given.
#[pyfunction]
pub(crate) fn create(
    py: Python<'_>,
    path: StrPath,
    size: Offset,
    format: Format,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    create_with::<Blocking>(py, path.0, size, &format, layout)
}

/// As `create`, awaited.
#[pyfunction]
pub(crate) fn create_awaited(
    py: Python<'_>,
    path: StrPath,
    size: Offset,
    format: Format,
    layout: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    create_with::<Awaited>(py, path.0, size, &format, layout)
}
