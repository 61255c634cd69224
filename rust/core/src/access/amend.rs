//! Changing what an image in a file is.

use std::path::Path;
use std::sync::Arc;

use super::align::aligned;
use super::chain::named;
use super::job::Job;
use super::keys::KeyChange;
use super::open::OpenOptions;
use super::probe::probe;
use super::{image::Image, keys};
use crate::error::{Error, ErrorKind, Result};
use crate::format::FormatKind;
use crate::format::preallocation::Preallocation;
use crate::format::qcow2::amend as qcow2;
pub use crate::format::qcow2::amend::{AmendOptions, BackingChange, DataFileChange};
use crate::format::qcow2::create::Version;
use crate::storage::file::File;
use crate::storage::{Lock, Storage};

/// What of an image is to change; the default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Amendment {
    /// How the image is opened: for a change of its size with all it names, else its format and secret count. `write` and `snapshot` mean
    /// nothing here, and the image's own file is always locked.
    pub open: OpenOptions,
    /// What a qcow2 image is and names.
    pub header: AmendOptions,
    /// The disk's size in bytes, of a qcow2 image: see [`Image::resize`].
    pub size: Option<u64>,
    /// A key slot, of an image that is encrypted with LUKS.
    pub key: Option<KeyChange>,
}

/// Amends the image in the file at `path`, which nobody else may have open. Its content stays what it is, but for what a change of its size adds and cuts off.
///
/// Each of the three kinds of change is whole or not there after a crash; they are made in this order: key slot, header, size, but to version 2 the size first.
///
/// # Errors
/// [`Locked`](ErrorKind::Locked) for an image that is in use; what [`qcow2::amend`], [`Image::resize`] and [`KeyChange`] say, with the file untouched
/// where that says so; [`Interrupted`](std::io::ErrorKind::Interrupted) for a job that is not wanted any more, with the image as it was but for the place
/// of its tables.
pub fn amend(path: impl AsRef<Path>, amendment: &Amendment, job: &mut Job<'_>) -> Result<()> {
    let file = File::open_sync(amendment.open.files().filename(path.as_ref()).write(true).lock(Lock::Auto))?;
    amend_storage(Arc::new(file), amendment, job)
}

/// The same for an image in `storage`, which is unlocked at the end, as a data file is that the options bring.
pub fn amend_storage(storage: Arc<dyn Storage>, amendment: &Amendment, job: &mut Job<'_>) -> Result<()> {
    let storage = aligned(storage);
    let amended = amend_aligned(&storage, amendment, job);
    ended(&storage, &amendment.open, amended)
}

/// What a change of the image in `storage` came to, once the locks are gone of what was brought for it.
pub(super) fn ended(storage: &Arc<dyn Storage>, open: &OpenOptions, result: Result<()>) -> Result<()> {
    storage.unlock();
    if let Some(data) = &open.data_file {
        data.unlock();
    }
    result.map_err(|error| named(storage.path(), error))
}

pub(super) fn amend_aligned(
    storage: &Arc<dyn Storage>,
    amendment: &Amendment,
    job: &mut Job<'_>,
) -> Result<()> {
    let Amendment { header, key, size, .. } = amendment;
    let kind = amendment.open.format.map_or_else(|| probe(&**storage), Ok)?;
    let changes_header = *header != AmendOptions::default() || (size.is_none() && key.is_none());
    match kind {
        FormatKind::Luks if changes_header || size.is_some() => {
            return Err(Error::invalid_input("of a LUKS image only the key slots can be amended"));
        }
        FormatKind::Raw => {
            return Err(Error::unsupported(format!("a {kind} image has nothing that could be amended")));
        }
        FormatKind::Qcow2 | FormatKind::Luks => {}
    }
    if changes_header || size.is_some() {
        qcow2::check(storage, header)?;
    }
    let to_version_2 = header.version == Some(Version::V2);
    let image = size.map(|size| open_to_resize(storage, amendment, size)).transpose()?;
    if let Some(key) = key {
        keys::change(Arc::clone(storage), Some(kind), key, amendment.open.secret.as_ref())?;
    }
    let amend_header = |job: &mut Job<'_>| job.in_steps(|steps| qcow2::amend(storage, header, steps));
    match (size, image) {
        (Some(size), Some(image)) if !changes_header => resize(&image, *size, job),
        (Some(size), Some(image)) if to_version_2 => {
            resize(&image, *size, job)?;
            amend_header(job)
        }
        (Some(size), _) => {
            amend_header(job)?;
            let image = open_to_resize(storage, amendment, *size)?;
            resize(&image, *size, job)
        }
        (None, _) if changes_header => amend_header(job),
        (None, _) => Ok(()),
    }
}

/// The image, once it is clear that its disk can be made `size` bytes long.
fn open_to_resize(storage: &Arc<dyn Storage>, amendment: &Amendment, size: u64) -> Result<Arc<Image>> {
    let format = Some(FormatKind::Qcow2);
    let options = OpenOptions { write: true, format, snapshot: None, ..amendment.open.clone() };
    let image = options.open_storage(Arc::clone(storage))?;
    match image.check_resize(size) {
        // A version 2 image with snapshots keeps its size; as version 3 it need not.
        Err(error)
            if error.kind() == ErrorKind::Unsupported && amendment.header.version == Some(Version::V3) => {}
        checked => checked?,
    }
    Ok(image)
}

fn resize(image: &Image, size: u64, job: &mut Job<'_>) -> Result<()> {
    let resized = image.resize_with(size, Preallocation::Off, job);
    resized.and(image.close_locked())
}
