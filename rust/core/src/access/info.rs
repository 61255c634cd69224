//! What an image says of itself, without opening anything else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::align::aligned;
use super::probe::probe;
use crate::error::Result;
use crate::format::{FormatInfo, FormatKind, FormatSpecificInfo, ImplicitReference, luks, qcow2};
use crate::storage::file::File;
use crate::storage::{Lock, Storage, StorageOpenOptions};

/// What `info` shows of an image.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// The image's file; empty where it is in none.
    pub path: PathBuf,
    /// Its format.
    pub kind: FormatKind,
    /// Size of the guest's disk in bytes.
    pub virtual_size: u64,
    /// Bytes that the file takes up on its medium, where that can be told.
    pub actual_size: Option<u64>,
    /// The backing file, as the image spells it. Untrusted, and not looked at.
    pub backing: Option<ImplicitReference>,
    /// What the format has to say.
    pub format: FormatInfo,
}

/// Reads what the image in the file at `path` says of itself; without a `kind` its first bytes decide.
///
/// Nothing but that file is opened, and no lock is taken: the image may be in use. Images that cannot be opened are shown too
/// (encrypted ones, ones whose backing file is missing), as long as their header can be read.
pub fn info(path: impl AsRef<Path>, kind: Option<FormatKind>) -> Result<ImageInfo> {
    let file = File::open_sync(StorageOpenOptions::new().filename(path.as_ref()).lock(Lock::Off))?;
    info_storage(&Arc::<dyn Storage>::from(Box::new(file) as Box<dyn Storage>), kind)
}

/// The same of the image in `storage`.
pub fn info_storage(storage: &Arc<dyn Storage>, kind: Option<FormatKind>) -> Result<ImageInfo> {
    let storage = aligned(Arc::clone(storage));
    let storage = &*storage;
    let kind = match kind {
        Some(kind) => kind,
        None => probe(storage)?,
    };
    let (virtual_size, backing, format) = match kind {
        FormatKind::Raw => (storage.len()?, None, FormatInfo::default()),
        FormatKind::Luks => {
            let (info, size) = luks::inspect(storage)?;
            let specific = Some(FormatSpecificInfo::Luks(info));
            (size, None, FormatInfo { specific, ..FormatInfo::default() })
        }
        FormatKind::Qcow2 => {
            let inspected = qcow2::inspect(storage)?;
            (inspected.size, inspected.backing, inspected.info)
        }
    };
    Ok(ImageInfo {
        path: storage.path().unwrap_or(Path::new("")).to_owned(),
        kind,
        virtual_size,
        actual_size: storage.allocated()?,
        backing,
        format,
    })
}
