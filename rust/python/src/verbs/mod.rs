//! What is done with a path: opening, creating, converting, comparing, amending images.

/// The synchronous and the awaited function of Python's, over a struct of their arguments, whose `carry_out` is generic over the `Face`.
macro_rules! faces {
    ($(#[$doc:meta])* $name:ident, $awaited:ident: $arguments:ident$(<$lifetime:lifetime>)? { $($argument:ident: $type:ty),* $(,)? }) => {
        struct $arguments$(<$lifetime>)? {
            $($argument: $type),*
        }

        $(#[$doc])*
        #[pyfunction]
        #[pyo3(signature = ($($argument),*))]
        pub(crate) fn $name$(<$lifetime>)?(py: Python<'_>, $($argument: $type),*) -> PyResult<Py<PyAny>> {
            $arguments { $($argument),* }.carry_out::<$crate::operation::Blocking>(py)
        }

        /// The same, awaited.
        #[pyfunction]
        #[pyo3(signature = ($($argument),*))]
        pub(crate) fn $awaited$(<$lifetime>)?(py: Python<'_>, $($argument: $type),*) -> PyResult<Py<PyAny>> {
            $arguments { $($argument),* }.carry_out::<$crate::operation::Awaited>(py)
        }
    };
}

pub(crate) mod amend;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod create;
mod encryption;
pub(crate) mod info;
pub(crate) mod job;
pub(crate) mod keys;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod open;
pub(crate) mod rebase;
pub(crate) mod source;

use imago_core::format::FormatKind;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The name of a format.
pub(crate) struct Format(pub(crate) FormatKind);

impl<'py> FromPyObject<'_, 'py> for Format {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let name = object.extract::<&str>()?;
        FormatKind::from_name(name).map(Format).ok_or_else(|| {
            PyValueError::new_err(format!("no format {name:?}: there are 'raw', 'qcow2' and 'luks'"))
        })
    }
}
