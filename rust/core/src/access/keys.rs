//! The key slots of an encrypted image, for changes.

use std::path::Path;
use std::sync::Arc;

use super::align::aligned;
use super::probe::probe;
use crate::error::{Error, Result};
use crate::format::FormatKind;
use crate::format::luks::Volume;
use crate::format::qcow2::Driver;
use crate::storage::file::File;
use crate::storage::{Storage, StorageOpenOptions};

/// Opens the key slots of the image in the file at `path`, bare LUKS or qcow2 with LUKS inside, to change them; without a `kind`
/// its first bytes decide. Nobody else can have the image open meanwhile.
pub fn open_key_slots(path: impl AsRef<Path>, kind: Option<FormatKind>) -> Result<Volume> {
    let file = File::open_sync(StorageOpenOptions::new().filename(path.as_ref()).write(true))?;
    key_slots(Arc::new(file), kind)
}

/// The same for an image in `storage`.
pub fn key_slots(storage: Arc<dyn Storage>, kind: Option<FormatKind>) -> Result<Volume> {
    let storage = aligned(storage);
    let path = storage.path().map(Path::to_owned);
    let volume = match kind.map_or_else(|| probe(&*storage), Ok)? {
        FormatKind::Raw => None,
        FormatKind::Luks => Some(Volume::open(storage)?),
        FormatKind::Qcow2 => Driver::open(storage, true)?.into_key_slots()?,
    };
    volume.ok_or_else(|| {
        let error = Error::invalid_input("the image has no key slots: it is not encrypted with LUKS");
        match path {
            Some(path) => error.in_file(path),
            None => error,
        }
    })
}
