//! What an image says of itself, without opening anything else; or every image of a chain.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::align::aligned;
use super::blockdev::{Below, Node};
use super::chain::Opener;
use super::create::beside;
use super::gate::{Gate, protocol};
use super::probe::probe;
use crate::error::Result;
use crate::format::{FormatInfo, FormatKind, FormatSpecificInfo, ImplicitReference, luks, qcow2};
use crate::storage::file::File;
use crate::storage::{Lock, Storage, StorageOpenOptions};

/// What `info` shows of an image.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// The image's file; empty where it is in none. In a chain it is spelt as that does it, and for an image that another one describes
    /// and that is in no file of its own it is the description.
    pub path: PathBuf,
    /// The file that it is in, if only a part of that; empty where there is none.
    pub file: PathBuf,
    /// Bytes of what the image is in.
    pub length: u64,
    /// Whether it is in a block device.
    pub on_device: bool,
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

impl ImageInfo {
    /// The name of the backing file from where the image's own name starts; a name with a protocol stays as it is.
    pub fn backing_path(&self) -> Option<PathBuf> {
        let name = &self.backing.as_ref()?.name;
        Some(if protocol(name).is_some() { name.clone() } else { beside(&self.path, name) })
    }
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
        file: storage.path().unwrap_or(Path::new("")).to_owned(),
        length: storage.len()?,
        on_device: storage.path().is_some_and(File::is_device),
        kind,
        virtual_size,
        actual_size: storage.allocated()?,
        backing,
        format,
    })
}

/// The same of the image in `storage` and of those below it that `gate` lets pass, topmost first; `lock` is for the files opened here.
pub fn info_chain(
    storage: Arc<dyn Storage>,
    kind: Option<FormatKind>,
    gate: &Gate,
    lock: Lock,
) -> Result<Vec<ImageInfo>> {
    let mut opener = Opener::new(gate, None, false, lock);
    opener.note(&*storage)?;
    let mut chain: Vec<ImageInfo> = Vec::new();
    let mut path = storage.path().map(Path::to_owned);
    // The image as the chain spells it, and its file.
    let mut spelt = path.clone().unwrap_or_default();
    let mut file = spelt.clone();
    let mut next = (storage, kind, Below::Named);
    loop {
        opener.count(1)?;
        let (storage, kind, below) = next;
        let image = ImageInfo { path: spelt, file, ..info_storage(&storage, kind)? };
        let node = match (below, &image.backing) {
            (Below::Node(node), _) => Some((*node, None)),
            (Below::Named, Some(reference)) => {
                Some((gate.backing(path.as_deref(), reference)?, Some(reference.name.clone())))
            }
            (Below::Nothing, _) | (Below::Named, None) => None,
        };
        let above = image.path.clone();
        chain.push(image);
        let Some((Node { kind, place, below, .. }, name)) = node else { return Ok(chain) };
        let whole = place.as_file().map(Path::to_owned);
        let storage = opener.open_place(place, false)?;
        path = storage.path().map(Path::to_owned);
        file = path.clone().unwrap_or_default();
        spelt = match (whole, name) {
            (Some(_), Some(name)) if protocol(&name).is_none() => {
                file = beside(&above, &name);
                file.clone()
            }
            (Some(file), _) => file,
            (None, Some(description)) => description,
            (None, None) => file.clone(),
        };
        next = (storage, kind, below);
    }
}
