//! Python types over `imago-core`; no format logic here.
#![expect(clippy::doc_markdown, reason = "docstrings are Python's")]
#![expect(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "the arguments of Python's calls"
)]

mod access;
mod bitmaps;
mod bridge;
mod buffers;
mod cursor;
mod errors;
mod extents;
mod formats;
mod gate;
mod image;
mod operation;
mod path;
mod secret;
mod snapshots;
mod storages;
mod transfer;
mod verbs;

use pyo3::prelude::*;

/// Called at the interpreter's exit.
#[pyfunction]
fn wait_for_operations(py: Python<'_>) {
    bridge::wait_for_operations(py);
}

#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use crate::bitmaps::{AsyncBitmaps, AsyncDirtyIterator, Bitmap, Bitmaps, DirtyIterator};
    #[pymodule_export]
    use crate::bridge::CompletedFuture;
    #[pymodule_export]
    use crate::extents::{AsyncExtentIterator, Extent, ExtentIterator};
    #[pymodule_export]
    use crate::formats::{Qcow2, Raw};
    #[pymodule_export]
    use crate::image::{FormatAccess, SyncFormatAccess};
    #[pymodule_export]
    use crate::snapshots::{AsyncSnapshots, Snapshot, Snapshots};
    #[pymodule_export]
    use crate::storages::{Disk, File, Memory, Null, Slice, Storage, StorageOpenOptions, Throttled};
    #[pymodule_export]
    use crate::verbs::amend::{amend, amend_awaited};
    #[pymodule_export]
    use crate::verbs::bench::{bench, bench_awaited};
    #[pymodule_export]
    use crate::verbs::check::{check, check_awaited};
    #[pymodule_export]
    use crate::verbs::commit::{commit, commit_awaited};
    #[pymodule_export]
    use crate::verbs::compare::{compare, compare_awaited, hash, hash_awaited};
    #[pymodule_export]
    use crate::verbs::convert::{convert, convert_awaited};
    #[pymodule_export]
    use crate::verbs::create::{create, create_awaited};
    #[pymodule_export]
    use crate::verbs::info::{info, info_awaited};
    #[pymodule_export]
    use crate::verbs::keys::{
        add_key, add_key_awaited, change_key, change_key_awaited, erase_key, erase_key_awaited,
    };
    #[pymodule_export]
    use crate::verbs::map::{map, map_awaited};
    #[pymodule_export]
    use crate::verbs::measure::{measure, measure_awaited};
    #[pymodule_export]
    use crate::verbs::open::{open, open_awaited};
    #[pymodule_export]
    use crate::verbs::rebase::{rebase, rebase_awaited};
    use pyo3::prelude::*;
    use pyo3::wrap_pyfunction;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::bridge::interpreter::refuse_subinterpreter(module.py())?;
        crate::bridge::fork::watch();
        let wait = wrap_pyfunction!(crate::wait_for_operations, module)?;
        module.py().import("atexit")?.call_method1("register", (wait,))?;
        Ok(())
    }
}
