//! `image.bitmaps`: persistent dirty bitmaps.

use std::iter;
use std::sync::Arc;

use imago_core::Result;
use imago_core::access::image::Image;
use imago_core::format::{DirtyBitmap, DirtyRange, DirtyRanges, Recording};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::access::Access;
use crate::cursor::{Cursor, Item, iterator_classes};
use crate::errors::Failure;
use crate::image::shared_image;
use crate::operation::{Awaited, Blocking, Face, Venue};
use crate::transfer::Offset;

/// A persistent dirty bitmap, with the names of QEMU's JSON.
#[pyclass(frozen, module = "pyimago")]
pub(crate) struct Bitmap(DirtyBitmap);

#[pymethods]
impl Bitmap {
    #[new]
    fn new(name: String, granularity: u64, flags: Vec<String>, count: Option<u64>) -> PyResult<Self> {
        if let Some(other) = flags.iter().find(|flag| !matches!(flag.as_str(), "in-use" | "auto")) {
            return Err(PyValueError::new_err(format!("flags are 'in-use' and 'auto', not {other:?}")));
        }
        let is_set = |name| flags.iter().any(|flag| flag == name);
        Ok(Bitmap(DirtyBitmap {
            name,
            granularity,
            enabled: is_set("auto"),
            inconsistent: is_set("in-use"),
            count,
        }))
    }

    /// For pickle and copy.
    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        (self.name(), self.granularity(), self.flags(), self.count()).into_pyobject(py)
    }

    #[classattr]
    fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(py, ["name", "granularity", "flags", "count"])
    }

    /// Its name, unique in the image.
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    /// Bytes of the disk that one bit stands for.
    #[getter]
    fn granularity(&self) -> u64 {
        self.0.granularity
    }

    /// "in-use": it was not stored after the last writes, nobody can tell what it should say, and it can only be removed.
    /// "auto": it is enabled and records writes.
    #[getter]
    fn flags(&self) -> Vec<&'static str> {
        let flags = [(self.0.inconsistent, "in-use"), (self.0.enabled, "auto")];
        flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect()
    }

    /// Bytes of the disk that are dirty; None where nobody can tell.
    #[getter]
    fn count(&self) -> Option<u64> {
        self.0.count
    }

    /// What `qemu-img info --output=json` prints of it; `count` is not there.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        document(py, &self.0.name, self.0.granularity, &self.flags())
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Bitmap>().is_ok_and(|other| other.get().0 == self.0)
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        (self.name(), self.granularity(), self.count()).into_pyobject(py)?.hash()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let fields = (self.name(), self.granularity(), self.flags(), self.count()).into_pyobject(py)?;
        let field = |index| fields.get_item(index).and_then(|field| field.repr());
        Ok(format!(
            "Bitmap(name={}, granularity={}, flags={}, count={})",
            field(0)?,
            field(1)?,
            field(2)?,
            field(3)?
        ))
    }
}

/// QEMU's JSON of a bitmap.
pub(crate) fn document<'py>(
    py: Python<'py>,
    name: &str,
    granularity: u64,
    flags: &[&str],
) -> PyResult<Bound<'py, PyDict>> {
    let document = PyDict::new(py);
    document.set_item("flags", flags)?;
    document.set_item("name", name)?;
    document.set_item("granularity", granularity)?;
    Ok(document)
}

impl Item for DirtyRange {
    fn object(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok((self.offset, self.length).into_pyobject(py)?.into_any().unbind())
    }
}

iterator_classes!(
    /// An iterator of the dirty ranges of a bitmap, pairs of offset and length in bytes, in the order of the disk.
    DirtyIterator,
    /// An asynchronous iterator of the dirty ranges of a bitmap, pairs of offset and length in bytes, in the order of the disk.
    AsyncDirtyIterator,
    DirtyRange
);

/// The ranges of a bitmap, which is read when the first one is asked for.
fn dirty_ranges(image: Arc<Image>, name: String) -> impl Iterator<Item = Result<DirtyRange>> + Send {
    let mut ranges: Option<DirtyRanges> = None;
    iter::from_fn(move || {
        if ranges.is_none() {
            match image.bitmaps().ranges(&name) {
                Ok(read) => ranges = Some(read),
                Err(error) => return Some(Err(error)),
            }
        }
        ranges.as_mut().and_then(Iterator::next).map(Ok)
    })
}

fn change<F: Face>(
    py: Python<'_>,
    access: &Arc<Access>,
    change: impl FnOnce(&Image) -> Result<()> + Send + 'static,
) -> PyResult<Py<PyAny>> {
    access.check_writable()?;
    F::on_image(py, access, move |_, image| change(image))
}

fn set_recording<F: Face>(
    py: Python<'_>,
    access: &Arc<Access>,
    name: String,
    state: Recording,
) -> PyResult<Py<PyAny>> {
    change::<F>(py, access, move |image| image.bitmaps().set_recording(&name, state))
}

macro_rules! bitmaps_class {
    ($(#[$doc:meta])* $name:ident, $face:ty, $ranges:ident) => {
        $(#[$doc])*
        #[pyclass(frozen, module = "pyimago")]
        pub(crate) struct $name {
            pub(crate) access: Arc<Access>,
            /// The object of the image, which would close it if it went.
            pub(crate) owner: Py<PyAny>,
        }

        #[pymethods]
        impl $name {
            /// All of them, a list of `Bitmap`.
            fn list(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
                let lease = self.access.lease(py)?;
                let run = move || lease.image().bitmaps().list().map_err(Failure::from);
                <$face>::call(py, Venue::Pool, run, |py, bitmaps| {
                    let list = PyList::empty(py);
                    for bitmap in bitmaps {
                        list.append(Bitmap(bitmap))?;
                    }
                    Ok(list.into_any().unbind())
                })
            }

            /// Make a bitmap in which nothing is dirty. `granularity` is a power of two from 512 to 2 GiB in bytes; None is what QEMU
            /// takes: the cluster size, but at least 4 KiB and at most 64 KiB.
            #[pyo3(signature = (name, *, granularity = None, enabled = true))]
            fn add(
                &self,
                py: Python<'_>,
                name: String,
                granularity: Option<Offset>,
                enabled: bool,
            ) -> PyResult<Py<PyAny>> {
                let granularity = granularity.map(|Offset(bytes)| bytes);
                let state = if enabled { Recording::Enabled } else { Recording::Disabled };
                change::<$face>(py, &self.access, move |image| image.bitmaps().add(&name, granularity, state))
            }

            /// Remove a bitmap, also an inconsistent one.
            fn remove(&self, py: Python<'_>, name: String) -> PyResult<Py<PyAny>> {
                change::<$face>(py, &self.access, move |image| image.bitmaps().remove(&name))
            }

            /// Make everything clean in a bitmap.
            fn clear(&self, py: Python<'_>, name: String) -> PyResult<Py<PyAny>> {
                change::<$face>(py, &self.access, move |image| image.bitmaps().clear(&name))
            }

            /// Let a bitmap record writes from now on.
            fn enable(&self, py: Python<'_>, name: String) -> PyResult<Py<PyAny>> {
                set_recording::<$face>(py, &self.access, name, Recording::Enabled)
            }

            /// Let a bitmap stay as it is from now on.
            fn disable(&self, py: Python<'_>, name: String) -> PyResult<Py<PyAny>> {
                set_recording::<$face>(py, &self.access, name, Recording::Disabled)
            }

            /// Make dirty in the bitmap `target` what is dirty in `source`, a bitmap of `image` (None: of this image). The disks have to
            /// be of the same size, the granularities need not be the same.
            #[pyo3(signature = (target, source, *, image = None))]
            fn merge(
                &self,
                py: Python<'_>,
                target: String,
                source: String,
                image: Option<&Bound<'_, PyAny>>,
            ) -> PyResult<Py<PyAny>> {
                let other = image.map(shared_image).transpose()?;
                change::<$face>(py, &self.access, move |image| {
                    let from = other.as_deref().unwrap_or(image);
                    image.bitmaps().merge(&target, from.bitmaps().ranges(&source)?)
                })
            }

            /// What is dirty in a bitmap: an iterator of pairs of offset and length in bytes.
            fn ranges(&self, py: Python<'_>, name: String) -> PyResult<$ranges> {
                let image = Arc::clone(self.access.image(py)?.get());
                Ok($ranges(Cursor::new(&self.access, self.owner.clone_ref(py), dirty_ranges(image, name))))
            }
        }
    };
}

bitmaps_class!(
    /// The persistent dirty bitmaps of an open image.
    Bitmaps, Blocking, DirtyIterator
);

bitmaps_class!(
    /// The persistent dirty bitmaps of an open image, awaited.
    AsyncBitmaps, Awaited, AsyncDirtyIterator
);
