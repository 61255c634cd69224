//! Converting images.

use std::path::PathBuf;
use std::sync::Arc;

use imago_core::access::convert::{
    ConvertOptions, Converted, CopyBitmaps, Copying, Durability, Input, IntoOptions, OnError, SPARSE,
    convert as convert_image, convert_into, convert_to_stream,
};
use imago_core::access::create::CreateOptions;
use imago_core::access::image::Image;
use imago_core::access::job::Job;
use imago_core::access::open::OpenOptions;
use imago_core::access::pack::CompressionLevel;
use imago_core::error::{Error, ErrorKind};
use imago_core::format::FormatKind;
use imago_core::storage::Offload;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use super::Format;
use super::create::{Layout, create_options, is_given, of_option};
use super::job::run_job;
use super::source::{Reading, Source};
use crate::access::Lease;
use crate::buffers::kind;
use crate::errors::Failure;
use crate::gate::PyGate;
use crate::image::leased_image;
use crate::operation::Face;
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::transfer::{Level, Offset};

/// How to compress, if that is asked for.
pub(super) fn compression(compress: bool, level: Option<Level>) -> PyResult<Option<CompressionLevel>> {
    match (compress, level) {
        (true, level) => Ok(Some(level.map_or(CompressionLevel::Default, |level| level.0))),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(PyValueError::new_err("compression_level is given without compress")),
    }
}

/// Where the content goes.
enum Target {
    /// A new image in a file.
    New(PathBuf),
    /// An image that is open, from its start on.
    Open(Lease),
    /// What has a method `write`, first byte to last.
    Stream(Py<PyAny>),
}

impl Target {
    fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Some(lease) = leased_image(object) {
            return lease.map(Target::Open);
        }
        match object.extract::<StrPath>() {
            Ok(path) => Ok(Target::New(path.0)),
            Err(_) if object.hasattr("write")? => Ok(Target::Stream(object.clone().unbind())),
            Err(error) if error.is_instance_of::<PyTypeError>(object.py()) => {
                Err(PyTypeError::new_err(format!(
                    "target is a path, an open image (SyncFormatAccess or FormatAccess) or what has a method write, not {}",
                    kind(object)
                )))
            }
            Err(error) => Err(error),
        }
    }

    /// Refuses what only another target could be.
    fn check(&self, how: &How, layout: &Bound<'_, PyDict>) -> PyResult<()> {
        if !matches!(self, Target::Open(_)) {
            return match how {
                How { target_is_zero: true, .. } => {
                    Err(PyValueError::new_err("target_is_zero is for an open target"))
                }
                How { layer: true, .. } => Err(PyValueError::new_err(
                    "layer is for an open target; into a new one backing= copies one layer",
                )),
                _ => Ok(()),
            };
        }
        for (name, value) in layout {
            if is_given(&value) {
                return Err(PyValueError::new_err(format!(
                    "the target is open and stays what it is: it takes no {name}"
                )));
            }
        }
        Ok(())
    }
}

/// The value of an option that was given and is not None.
fn option<'py, T>(how: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py, Error: Into<PyErr>>,
{
    match how.get_item(name)? {
        Some(value) if !value.is_none() => {
            value.extract::<T>().map(Some).map_err(|error| of_option(&value, name, error))
        }
        _ => Ok(None),
    }
}

/// How it is to be done; the options have the names of `pyimago.convert`'s arguments.
struct How {
    copying: Copying,
    durability: Durability,
    target_is_zero: bool,
    layer: bool,
    /// Offset and length of the part that counts.
    part: Option<(u64, u64)>,
}

impl How {
    fn new(how: &Bound<'_, PyDict>) -> PyResult<Self> {
        let switch = |name| Ok::<_, PyErr>(option::<bool>(how, name)?.unwrap_or(false));
        let level = option::<Level>(how, "compression_level")?;
        let compress = compression(switch("compress")?, level)?;
        let sparse = option::<Offset>(how, "sparse")?.map(|bytes| bytes.0);
        let on_error = if switch("salvage")? { OnError::Salvage } else { OnError::Fail };
        let offload = match option::<String>(how, "offload")?.as_deref() {
            // Whoever says what zeroes are worth wants them looked for.
            None if sparse.is_some() => None,
            None | Some("share") => Some(Offload::Share),
            Some("off") => None,
            Some("copy") if sparse.is_some() || compress.is_some() || on_error == OnError::Salvage => {
                return Err(PyValueError::new_err(
                    "offload='copy' does not look at the bytes: it goes with none of sparse, compress and salvage",
                ));
            }
            Some("copy") => Some(Offload::Copy),
            Some(other) => {
                return Err(PyValueError::new_err(format!(
                    "offload is 'off', 'share' or 'copy', not {other:?}"
                )));
            }
        };
        let sparse = sparse.unwrap_or(u64::from(SPARSE));
        if !sparse.is_multiple_of(512) || sparse > SPARSE_MAX {
            return Err(PyValueError::new_err(format!(
                "sparse is a multiple of 512 up to {SPARSE_MAX}, not {sparse}; with 0 all is allocated"
            )));
        }
        let threads = option::<Offset>(how, "threads")?.map(|threads| threads.0);
        if threads.is_some_and(|threads| !(1..=16).contains(&threads)) {
            return Err(PyValueError::new_err("threads must be between 1 and 16"));
        }
        let bitmaps = match option::<String>(how, "bitmaps")?.as_deref() {
            None | Some("none") => CopyBitmaps::None,
            Some("all") => CopyBitmaps::All,
            Some("sound") => CopyBitmaps::Sound,
            Some(other) => {
                return Err(PyValueError::new_err(format!(
                    "bitmaps is 'none', 'all' or 'sound', not {other:?}"
                )));
            }
        };
        let part = option::<(Offset, Option<Offset>)>(how, "part")?;
        Ok(How {
            copying: Copying {
                compress,
                sparse: sparse as u32,
                threads: threads.map(|threads| threads as u32),
                rate: option::<Offset>(how, "rate")?.map(|rate| rate.0),
                on_error,
                bitmaps,
                offload,
            },
            durability: match option::<bool>(how, "durable")? {
                Some(false) => Durability::Unsynced,
                _ => Durability::Synced,
            },
            target_is_zero: switch("target_is_zero")?,
            layer: switch("layer")?,
            part: part.map(|(offset, len)| (offset.0, len.map_or(u64::MAX, |len| len.0))),
        })
    }
}

/// Bytes of zeroes that can be asked to be found, at most: QEMU's bound.
const SPARSE_MAX: u64 = 16 << 20;

/// A conversion that was asked for.
struct Conversion {
    sources: Vec<Source>,
    target: Target,
    layout: Layout,
    implicit: PyGate,
    how: How,
}

impl Conversion {
    fn run(self, job: &mut Job<'_>) -> Result<Converted, Failure> {
        let Conversion { sources, target, layout, implicit, how } = self;
        let layout = layout.options()?;
        let open = |source: Source| source.open(&implicit);
        let sources = sources.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let converted = convert_opened(&sources, target, layout, &implicit, how, job);
        let closed = sources.into_iter().map(Reading::close).fold(Ok(()), Result::and);
        let converted = converted?;
        Ok(closed.map(|()| converted)?)
    }
}

fn convert_opened(
    sources: &[Reading],
    target: Target,
    layout: CreateOptions,
    implicit: &PyGate,
    how: How,
    job: &mut Job<'_>,
) -> Result<Converted, Failure> {
    let How { copying, durability, target_is_zero, layer, part } = how;
    let input = match (sources, part) {
        ([source], Some((offset, len))) => Input::part(source.image(), offset, len),
        _ => Input::row(sources.iter().map(|source| Arc::clone(source.image()))),
    };
    match target {
        Target::New(path) => {
            let backing = backing_of(&path, &layout, implicit)?;
            let options = ConvertOptions { target: layout, backing, durability, copying };
            let backing = options.backing.clone();
            let converted = convert_image(input, path, options, job);
            let closed = backing.map_or(Ok(()), |backing| backing.close());
            Ok(converted.and_then(|converted| closed.map(|()| converted))?)
        }
        Target::Open(lease) => {
            let options = IntoOptions { target_is_zero, layer, copying };
            Ok(convert_into(input, lease.image(), options, job)?)
        }
        Target::Stream(stream) => {
            let mut raised = None;
            let mut put = |bytes: &[u8]| match Python::try_attach(|py| write(stream.bind(py), bytes)) {
                Some(Ok(())) => Ok(()),
                other => {
                    raised = other.and_then(Result::err);
                    Err(Error::new(ErrorKind::Io, "the stream takes no more"))
                }
            };
            let converted = convert_to_stream(input, layout, &copying, job, &mut put);
            match raised {
                Some(error) => Err(Failure::Python(error)),
                None => Ok(converted?),
            }
        }
    }
}

/// The backing file that a new image at `path` names, open.
fn backing_of(
    path: &std::path::Path,
    layout: &CreateOptions,
    implicit: &PyGate,
) -> Result<Option<Arc<Image>>, Failure> {
    let CreateOptions::Qcow2(options) = layout else { return Ok(None) };
    let Some(backing) = &options.backing else { return Ok(None) };
    if backing.format.as_deref().and_then(FormatKind::from_name).is_none() {
        return Err(PyValueError::new_err(
            "Use of backing file requires explicit backing format: give backing_format, 'raw', 'qcow2' or 'luks'",
        )
        .into());
    }
    let opened = implicit.pass(|gate| {
        OpenOptions { gate: gate.clone(), ..OpenOptions::default() }.open_named(path, backing)
    })?;
    Ok(Some(opened))
}

/// Writes all of `bytes` to an object with a method `write`, which may take less at a time and says how much.
fn write(stream: &Bound<'_, PyAny>, mut bytes: &[u8]) -> PyResult<()> {
    let py = stream.py();
    while !bytes.is_empty() {
        let taken = stream.call_method1("write", (PyBytes::new(py, bytes),))?;
        if taken.is_none() {
            return Ok(());
        }
        let taken = taken.extract::<i64>()?;
        bytes = match usize::try_from(taken) {
            Ok(0) => return Err(PyValueError::new_err("the stream took nothing of what it was to write")),
            Ok(taken) if taken <= bytes.len() => &bytes[taken..],
            _ => {
                let given = bytes.len();
                return Err(PyValueError::new_err(format!(
                    "the stream says that it took {taken} bytes of the {given} that it got"
                )));
            }
        };
    }
    Ok(())
}

/// The sources: one, or several in a list or tuple, which share what opens them.
fn sources(
    given: &Bound<'_, PyAny>,
    format: &Bound<'_, PyAny>,
    secret: &Bound<'_, PyAny>,
) -> PyResult<Vec<Source>> {
    let source = |object: &Bound<'_, PyAny>| {
        Source::new(
            "source",
            object,
            format.extract::<Option<Format>>()?,
            secret.extract::<Option<PySecret>>()?,
        )
    };
    if !given.is_instance_of::<PyList>() && !given.is_instance_of::<PyTuple>() {
        return Ok(vec![source(given)?]);
    }
    let sources = given.try_iter()?.map(|object| source(&object?)).collect::<PyResult<Vec<_>>>()?;
    if sources.is_empty() {
        return Err(PyValueError::new_err("there is no source"));
    }
    Ok(sources)
}

faces! {
    /// Convert an image, or several one behind the other; `how` and `layout` have the keyword arguments of `pyimago.convert` about the
    /// work and about the target that were given. Returns what could not be read, as offsets and lengths, and the bitmaps left out.
    convert, convert_awaited: Convert<'py> {
        source: &'py Bound<'py, PyAny>,
        target: &'py Bound<'py, PyAny>,
        source_format: &'py Bound<'py, PyAny>,
        format: Format,
        implicit: PyGate,
        source_secret: &'py Bound<'py, PyAny>,
        progress: Option<Py<PyAny>>,
        how: &'py Bound<'py, PyDict>,
        layout: &'py Bound<'py, PyDict>,
    }
}

impl Convert<'_> {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Convert { source, target, source_format, format, implicit, source_secret, progress, how, layout } =
            self;
        let (target, how) = (Target::new(target)?, How::new(how)?);
        target.check(&how, layout)?;
        let conversion = Conversion {
            sources: sources(source, source_format, source_secret)?,
            target,
            layout: create_options(format.0, 0, layout)?,
            implicit,
            how,
        };
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| conversion.run(job),
            |py, converted| {
                let Converted { unreadable, skipped_bitmaps } = converted;
                let unreadable: Vec<_> =
                    unreadable.into_iter().map(|range| (range.start, range.end - range.start)).collect();
                Ok((unreadable, skipped_bitmaps).into_pyobject(py)?.into_any().unbind())
            },
        )
    }
}
