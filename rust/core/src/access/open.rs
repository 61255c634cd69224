//! Opening an image from a path or a storage, with everything it names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use super::align::part as slice;
use super::chain::{Link, Opener};
pub use super::gate::{Ask, Gate, ReferenceKind};
use super::image::{Base, Image};
use crate::crypt::Secret;
use crate::error::{Error, Result};
use crate::format::{CacheSizes, FormatKind};
use crate::storage::{Lock, Storage};

/// What is below the image.
#[derive(Clone, Debug, Default)]
pub enum Backing {
    /// The backing file that the image names, if the gate lets it be opened.
    #[default]
    Implicit,
    /// Nothing, whatever the image says: what it does not hold reads as zeroes.
    None,
    /// This image. Closing the one above leaves it open.
    Image(Arc<Image>),
}

/// How to open an image; the default is read-only, format probed, implicit references beside the image.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Open for writing.
    pub write: bool,
    /// The format; without one the image's first bytes decide, and only where that is asked for: a guest can
    /// write any bytes to the start of a raw disk.
    pub format: Option<FormatKind>,
    /// The snapshot (id or name) to show instead of the disk as it is now, read-only.
    pub snapshot: Option<String>,
    /// What is below the image.
    pub backing: Backing,
    /// The external data file, instead of the one that the image names.
    pub data_file: Option<Arc<dyn Storage>>,
    /// Who decides on the files that the image names.
    pub gate: Gate,
    /// What opens the image if it is encrypted, and encrypted backing files opened here.
    pub secret: Option<Secret>,
    /// Bytes that the image's caches of metadata may hold; those of the images below keep the format's choice.
    pub cache_sizes: CacheSizes,
    /// Bypass the page cache (`O_DIRECT`), for the files opened here.
    pub direct: bool,
    /// Whether the files opened here are locked.
    pub lock: Lock,
}

impl OpenOptions {
    /// Opens the image in the file at `path`.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Arc<Image>> {
        let opener = self.opener();
        let storage = opener.open(path.as_ref().to_owned(), self.write)?;
        self.open_with(opener, storage)
    }

    /// The same of an image that is to be put below `above`: neither it nor what it names may be a file of that.
    pub(super) fn open_below(&self, path: PathBuf, above: &Image) -> Result<Arc<Image>> {
        let mut opener = self.opener();
        opener.note(&**above.format().storage())?;
        let storage = opener.open(path, self.write)?;
        self.open_with(opener, storage)
    }

    /// Opens the image in `storage`.
    pub fn open_storage(&self, storage: Arc<dyn Storage>) -> Result<Arc<Image>> {
        self.open_with(self.opener(), storage)
    }

    fn opener(&self) -> Opener<'_> {
        Opener::new(&self.gate, self.secret.as_ref(), self.direct, self.lock)
    }

    fn open_with(&self, mut opener: Opener<'_>, storage: Arc<dyn Storage>) -> Result<Arc<Image>> {
        opener.note(&*storage)?;
        opener.count(1)?;
        let path = storage.path().map(Path::to_owned);
        let secret = self.secret.as_ref();
        let mut link = match &self.snapshot {
            None => Link::open(storage, self.write, self.format, secret)?,
            Some(_) if self.write => {
                return Err(Error::invalid_input(
                    "a snapshot is only read; apply it to write to what it has",
                ));
            }
            Some(id_or_name) => Link::open_snapshot(storage, self.format, secret, id_or_name)?,
        };
        link.set_cache_sizes(self.cache_sizes).map_err(|error| match &path {
            Some(path) => error.in_file(path),
            None => error,
        })?;
        match &self.data_file {
            Some(data) => link.set_data_storage(Arc::clone(data))?,
            None => opener.open_data_file_of(&mut link)?,
        }
        let base = match (&self.backing, link.backing_reference()) {
            (Backing::Image(image), _) => opener.adopt(Arc::clone(image))?,
            (Backing::None, _) | (Backing::Implicit, None) => Base::None,
            (Backing::Implicit, Some(reference)) => opener.open_backing(path.as_deref(), reference)?,
        };
        link.clean()?;
        Ok(Arc::new(link.into_image(base)))
    }
}
