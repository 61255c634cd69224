//! Opening an image from a path or a storage, with everything it names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use super::align::part as slice;
use super::chain::{Link, Opener, named};
pub use super::gate::{Ask, Gate, ReferenceKind};
use super::image::{Base, Image};
use crate::crypt::Secret;
use crate::error::{Error, Result};
use crate::format::{CacheSizes, FormatKind, ImplicitReference};
use crate::storage::{Lock, Storage, StorageOpenOptions};

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

/// Which of the images below is opened for writing, too: the base of a [`commit_into`](super::commit::commit_into).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WriteBacking {
    /// None.
    #[default]
    No,
    /// The one right below.
    First,
    /// The one of that name: as the image above it spells it, or the path of its file.
    Named(PathBuf),
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
    /// What of it is opened for writing; not of images that the caller opened.
    pub write_backing: WriteBacking,
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

    /// Opens what an image at `path` is going to name so as its backing file, read-only: whose name or description (`json:{...}`) is the caller's word, but
    /// what it names in turn is the gate's affair.
    pub fn open_named(&self, path: &Path, reference: &ImplicitReference) -> Result<Arc<Image>> {
        let node = Gate::by_the_caller(Some(path), reference)?;
        self.opener().open_described(node).map(Arc::new)
    }

    /// The same of an image `above` that is open: neither it nor what it names may be a file of that.
    pub(super) fn open_below(&self, reference: &ImplicitReference, above: &Image) -> Result<Arc<Image>> {
        let mut opener = self.opener();
        opener.note(&**above.format().storage())?;
        opener.open_described(Gate::by_the_caller(above.path(), reference)?).map(Arc::new)
    }

    /// Opens the image in `storage`.
    pub fn open_storage(&self, storage: Arc<dyn Storage>) -> Result<Arc<Image>> {
        self.open_with(self.opener(), storage)
    }

    /// How the image's own file is opened.
    pub fn files(&self) -> StorageOpenOptions {
        StorageOpenOptions::new().write(self.write).direct(self.direct).lock(self.lock)
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
        link.set_cache_sizes(self.cache_sizes).map_err(|error| named(path.as_deref(), error))?;
        match &self.data_file {
            Some(data) => link.set_data_storage(Arc::clone(data))?,
            None => opener.open_data_file_of(&mut link)?,
        }
        let (base, written) = self
            .open_base(&mut opener, link.backing_reference(), path.as_deref())
            .map_err(|error| named(path.as_deref(), error))?;
        link.clean()?;
        Ok(Arc::new(link.into_image(base).bringing(written)))
    }

    /// What is below the image in `path`, which names `reference`, and the image of that which is to be written.
    fn open_base(
        &self,
        opener: &mut Opener<'_>,
        reference: Option<ImplicitReference>,
        path: Option<&Path>,
    ) -> Result<(Base, Option<Arc<Image>>)> {
        let wanted = match &self.write_backing {
            WriteBacking::No => None,
            WriteBacking::First => Some(None),
            WriteBacking::Named(name) => Some(Some(&**name)),
        };
        let reference = match (&self.backing, wanted) {
            (Backing::Image(image), None) => return Ok((opener.adopt(Arc::clone(image))?, None)),
            (Backing::Image(_), Some(_)) => {
                let text = "the image below is open already: whoever opened it said whether it is written";
                return Err(Error::invalid_input(text));
            }
            (Backing::None, _) => None,
            (Backing::Implicit, _) => reference,
        };
        match (reference, wanted) {
            (None, None) => Ok((Base::None, None)),
            (None, Some(_)) => Err(Error::invalid_input("the image has no backing file to write to")),
            (Some(reference), None) => Ok((opener.open_backing(path, reference)?, None)),
            (Some(reference), Some(wanted)) => {
                let (base, written) = opener.open_written_backing(path, reference, wanted)?;
                Ok((base, Some(written)))
            }
        }
    }
}
