//! Creating an image.

use imago_core::access::create::{BackingCheck, CreateHow, CreateOptions, create_with as create_image};
use imago_core::crypt::Secret;
use imago_core::format::preallocation::Preallocation;
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{Compression, FormatKind, ImplicitReference};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};

use super::Format;
use super::encryption::Encryption;
use super::job::run_job;
use crate::buffers::kind;
use crate::errors::Failure;
use crate::operation::Face;
use crate::path::StrPath;
use crate::transfer::Offset;

/// The names of versions of qcow2.
pub(super) struct QcowVersion(pub(super) qcow2::Version);

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

/// What is set aside for the disk's bytes.
pub(crate) struct PreallocationMode(pub(crate) Preallocation);

impl<'py> FromPyObject<'_, 'py> for PreallocationMode {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let name = object.extract::<&str>()?;
        Preallocation::from_name(name).map(PreallocationMode).ok_or_else(|| {
            PyValueError::new_err(format!(
                "preallocation is 'off', 'metadata', 'falloc' or 'full', not {name:?}"
            ))
        })
    }
}

/// What a new image shall be, but for the secret, which is asked for when the rest is right.
pub(super) struct Layout {
    options: CreateOptions,
    encryption: Option<Encryption>,
}

impl Layout {
    /// All of it.
    pub(super) fn options(self) -> Result<CreateOptions, Failure> {
        self.with(None)
    }

    /// The same for a mere calculation, which needs no secret.
    pub(super) fn without_secret(self) -> Result<CreateOptions, Failure> {
        self.with(Some(Secret::new("none")))
    }

    fn with(self, secret: Option<Secret>) -> Result<CreateOptions, Failure> {
        let Layout { options, encryption } = self;
        Ok(match (options, encryption) {
            (CreateOptions::Qcow2(options), encryption) => {
                let encryption = encryption.map(|encryption| encryption.of_qcow2(secret)).transpose()?;
                CreateOptions::Qcow2(qcow2::CreateOptions { encryption, ..options })
            }
            (CreateOptions::Raw { size, .. }, Some(encryption)) => {
                CreateOptions::Luks { size, encryption: encryption.luks(secret)? }
            }
            (options, _) => options,
        })
    }
}

/// Whether an option says anything: None and False are what is taken where it is absent.
pub(super) fn is_given(value: &Bound<'_, PyAny>) -> bool {
    !value.is_none() && !value.is(PyBool::new(value.py(), false))
}

/// What was wrong with the value of the option `name`, which the error need not say itself: as for a function's arguments.
pub(super) fn of_option(value: &Bound<'_, PyAny>, name: &str, error: impl Into<PyErr>) -> PyErr {
    let error = error.into();
    // An error that takes no note is told without it.
    let _ = error.add_note(value.py(), format!("while processing '{name}'"));
    error
}

/// What a new image shall be: `layout` has keyword arguments of `pyimago.create`; those that are None or False are what
/// `qemu-img` takes where nothing is said.
pub(super) fn create_options(format: FormatKind, size: u64, layout: &Bound<'_, PyDict>) -> PyResult<Layout> {
    let mut encryption = Encryption::default();
    let mut encrypted = format == FormatKind::Luks;
    let mut first_of_encryption = None;
    let mut of_luks = None;
    let mut options = qcow2::CreateOptions { size, ..qcow2::CreateOptions::default() };
    let mut backing_format = None;
    let mut preallocation = Preallocation::Off;
    let mut take = |name: &str, value: &Bound<'_, PyAny>| {
        if encryption.take(name, value)? {
            first_of_encryption = first_of_encryption.take().or(Some(name.to_owned()));
            of_luks = of_luks.take().or((name != "secret").then(|| name.to_owned()));
            return Ok(());
        }
        if name == "encryption" {
            match value.extract::<&str>()? {
                "luks" => encrypted = true,
                "aes" => (encrypted, encryption.aes) = (true, true),
                other => {
                    return Err(PyValueError::new_err(format!(
                        "encryption is 'luks' or 'aes', not {other:?}"
                    )));
                }
            }
            return Ok(());
        }
        match name {
            "preallocation" => preallocation = value.extract::<PreallocationMode>()?.0,
            "version" => options.version = value.extract::<QcowVersion>()?.0,
            "cluster_size" => options.cluster_size = small(name, value)?,
            "refcount_bits" => options.refcount_bits = small(name, value)?,
            "lazy_refcounts" => options.lazy_refcounts = value.extract()?,
            "extended_l2" => options.extended_l2 = value.extract()?,
            "compression_type" => options.compression = value.extract::<CompressionType>()?.0,
            "backing" => {
                options.backing =
                    Some(ImplicitReference { name: value.extract::<StrPath>()?.0, format: None });
            }
            "backing_format" => backing_format = Some(value.extract::<String>()?),
            "data_file" => options.data_file = Some(value.extract::<StrPath>()?.0),
            "data_file_raw" => options.data_file_raw = value.extract()?,
            _ => return Err(PyTypeError::new_err(format!("a new image has no option {name}"))),
        }
        if format == FormatKind::Luks || format == FormatKind::Raw && name != "preallocation" {
            return Err(PyValueError::new_err(format!("a {format} image has no {name}")));
        }
        Ok(())
    };
    for (name, value) in layout {
        if is_given(&value) {
            let name = name.extract::<&str>()?;
            take(name, &value).map_err(|error| of_option(&value, name, error))?;
        }
    }
    match (&mut options.backing, backing_format) {
        (Some(backing), format) => backing.format = format,
        (None, Some(_)) => return Err(PyValueError::new_err("backing_format is given without backing")),
        (None, None) => {}
    }
    match first_of_encryption {
        Some(name) if !encrypted => {
            return Err(PyValueError::new_err(format!("{name} is given without encryption='luks'")));
        }
        _ if encryption.aes && format != FormatKind::Qcow2 => {
            return Err(PyValueError::new_err("encryption='aes' is qcow2's own"));
        }
        _ if encrypted && format == FormatKind::Raw => {
            return Err(PyValueError::new_err("a raw image that is encrypted has the format 'luks'"));
        }
        _ => {}
    }
    if let (true, Some(name)) = (encryption.aes, of_luks) {
        return Err(PyValueError::new_err(format!(
            "{name} is chosen for LUKS only, not with encryption='aes'"
        )));
    }
    let options = match format {
        FormatKind::Qcow2 => CreateOptions::Qcow2(qcow2::CreateOptions { preallocation, ..options }),
        _ => CreateOptions::Raw { size, preallocation },
    };
    Ok(Layout { options, encryption: encrypted.then_some(encryption) })
}

/// A number of bytes or bits; what does not fit is out of every range that the engine would allow.
pub(super) fn small(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    if !value.hasattr("__index__")? {
        return Err(PyTypeError::new_err(format!("{name} is a number, not {}", kind(value))));
    }
    value.extract().map_err(|_| PyValueError::new_err(format!("{name} cannot be {value}")))
}

faces! {
    /// Create an image; `layout` has the keyword arguments of `pyimago.create` about it that were given.
    create, create_awaited: Create<'py> {
        path: StrPath,
        size: Option<Offset>,
        format: Format,
        layout: &'py Bound<'py, PyDict>,
        overwrite: bool,
        unchecked: bool,
        progress: Option<Py<PyAny>>,
    }
}

impl Create<'_> {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Create { path, size, format, layout, overwrite, unchecked, progress } = self;
        let layout = create_options(format.0, size.as_ref().map_or(0, |size| size.0), layout)?;
        let has_backing =
            matches!(&layout.options, CreateOptions::Qcow2(options) if options.backing.is_some());
        let backing = match (size, unchecked) {
            (None, false) if has_backing => BackingCheck::TakeSize,
            (None, _) => {
                return Err(PyValueError::new_err(
                    "size is missing: only a backing file that is looked at can tell it",
                ));
            }
            (Some(_), false) => BackingCheck::Open,
            (Some(_), true) => BackingCheck::Skip,
        };
        let how = CreateHow { overwrite, backing };
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| Ok(create_image(path.0, layout.options()?, how, job)?),
            |py, ()| Ok(py.None()),
        )
    }
}
