//! Changing what an image in a file is.

use std::path::Path;
use std::sync::Arc;

use super::align::aligned;
use super::job::Job;
use super::probe::probe;
use crate::error::{Error, Result};
use crate::format::FormatKind;
use crate::format::qcow2::amend as qcow2;
pub use crate::format::qcow2::amend::{AmendOptions, BackingChange, DataFileChange};
use crate::storage::file::File;
use crate::storage::{Storage, StorageOpenOptions};

/// Amends the image in the file at `path`, which nobody else may have open; without a `kind` its first bytes decide. Its content stays what it is.
///
/// # Errors
/// [`Locked`](crate::ErrorKind::Locked) for an image that is in use; what [`qcow2::amend`] says, with the file untouched where that says so;
/// [`Interrupted`](std::io::ErrorKind::Interrupted) for a job that is not wanted any more, with the image as it was but for the place of its tables.
pub fn amend(
    path: impl AsRef<Path>,
    kind: Option<FormatKind>,
    options: &AmendOptions,
    job: &mut Job<'_>,
) -> Result<()> {
    let options_of_file = StorageOpenOptions::new().filename(path.as_ref()).write(true);
    let storage: Arc<dyn Storage> = aligned(Arc::new(File::open_sync(options_of_file)?));
    let kind = match kind {
        Some(kind) => kind,
        None => probe(&*storage)?,
    };
    if kind != FormatKind::Qcow2 {
        return Err(Error::unsupported(format!("a {kind} image has nothing that could be amended"))
            .in_file(path.as_ref()));
    }
    let wanted = job.wanted();
    let amended = qcow2::amend(&storage, options, &mut |done, total| {
        job.report(done, total);
        wanted.check()
    });
    storage.unlock();
    amended
}
