//! From a storage to an open image: the driver, and the files that the image names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::align::{aligned, part};
use super::blockdev::{Below, Node, Place};
use super::check;
use super::disk::Disk;
use super::gate::{Gate, resolve_beside};
use super::image::{Base, CHAIN_MAX, Image};
use super::probe::probe;
use super::target::resolve;
use crate::crypt::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::format::luks::Volume;
use crate::format::qcow2::{Driver, needs_cleaning};
use crate::format::raw::Raw;
use crate::format::{CacheSizes, Format, FormatKind, ImplicitReference};
use crate::storage::encrypted::Encrypted;
use crate::storage::file::File;
use crate::storage::{Identity, Lock, Storage, StorageOpenOptions};

/// An image whose driver is open and whose references have not been followed.
#[derive(Debug)]
pub(super) enum Link {
    Raw { driver: Raw, probed: bool },
    Qcow2(Box<Driver>),
}

impl Link {
    /// The disk as a snapshot inside the image in `storage` has it, read-only.
    pub(super) fn open_snapshot(
        storage: Arc<dyn Storage>,
        kind: Option<FormatKind>,
        secret: Option<&Secret>,
        id_or_name: &str,
    ) -> Result<Self> {
        let storage = aligned(storage);
        match kind.map_or_else(|| probe(&*storage), Ok)? {
            kind @ (FormatKind::Raw | FormatKind::Luks) => {
                Err(named(storage.path(), Error::unsupported(format!("{kind} images have no snapshots"))))
            }
            FormatKind::Qcow2 => {
                let driver = Driver::open_snapshot(Arc::clone(&storage), id_or_name)?;
                Self::unlocked(driver, storage, secret)
            }
        }
    }

    /// Opens the image in `storage`; without a `kind` its first bytes decide.
    pub(super) fn open(
        storage: Arc<dyn Storage>,
        writable: bool,
        kind: Option<FormatKind>,
        secret: Option<&Secret>,
    ) -> Result<Self> {
        let storage = aligned(storage);
        let found = match kind {
            Some(kind) => kind,
            None => probe(&*storage)?,
        };
        Ok(match found {
            FormatKind::Raw => Link::Raw { driver: Raw::open(storage, writable)?, probed: kind.is_none() },
            FormatKind::Qcow2 => {
                Self::unlocked(open_qcow2(Arc::clone(&storage), writable)?, storage, secret)?
            }
            FormatKind::Luks => {
                let volume = Volume::open(Arc::clone(&storage))?;
                let unlocked = volume.unlock(needed(secret, &*storage)?)?;
                let disk = Encrypted::new(storage, volume.cipher(&unlocked)?, volume.payload_offset());
                let driver = Raw::decrypted(aligned(Arc::new(disk)), writable, volume.info())?;
                Link::Raw { driver, probed: false }
            }
        })
    }

    /// The image of `driver`, in `storage`, with its key.
    fn unlocked(mut driver: Driver, storage: Arc<dyn Storage>, secret: Option<&Secret>) -> Result<Self> {
        if driver.needs_secret() {
            driver.unlock(needed(secret, &*storage)?)?;
            if !driver.needs_data_file() {
                set_data_storage(&mut driver, storage)?;
            }
        }
        Ok(Link::Qcow2(Box::new(driver)))
    }

    pub(super) fn backing_reference(&self) -> Option<ImplicitReference> {
        match self {
            Link::Raw { .. } => None,
            Link::Qcow2(driver) => driver.backing_reference(),
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Link::Raw { driver, .. } => driver.path(),
            Link::Qcow2(driver) => driver.path(),
        }
    }

    /// Says where the guest's data is, for an image with an external data file.
    pub(super) fn set_data_storage(&mut self, storage: Arc<dyn Storage>) -> Result<()> {
        match self {
            Link::Raw { .. } => Err(Error::invalid_input("a raw image has no external data file")),
            Link::Qcow2(driver) => set_data_storage(driver, aligned(storage)),
        }
    }

    /// Says how much the caches of metadata may hold.
    pub(super) fn set_cache_sizes(&mut self, sizes: CacheSizes) -> Result<()> {
        match self {
            _ if sizes == CacheSizes::default() => {}
            Link::Raw { .. } => return Err(Error::invalid_input("a raw image has no metadata to cache")),
            Link::Qcow2(driver) => driver.set_cache_sizes(sizes),
        }
        Ok(())
    }

    /// Repairs an image that has to be before it is written. Whatever it names is open by then: nothing is touched of one that cannot be used.
    pub(super) fn clean(&mut self) -> Result<()> {
        match self {
            Link::Raw { .. } => Ok(()),
            Link::Qcow2(driver) => clean(driver),
        }
    }

    pub(super) fn into_image(self, base: Base) -> Image {
        match self {
            Link::Raw { driver, probed: true } => Image::new(Arc::new(driver), base).probed_raw(),
            Link::Raw { driver, probed: false } => Image::new(Arc::new(driver), base),
            Link::Qcow2(mut driver) => {
                driver.set_has_backing(!matches!(base, Base::None));
                Image::new(Arc::from(driver as Box<dyn Format>), base)
            }
        }
    }
}

/// Says where guest data of `driver` is, which is unlocked if it needs that: in `storage`, which takes any request.
pub(super) fn set_data_storage(driver: &mut Driver, storage: Arc<dyn Storage>) -> Result<()> {
    let data = match driver.host_cipher() {
        Some(cipher) => aligned(Arc::new(Encrypted::new(storage, Arc::clone(cipher), 0))),
        None => storage,
    };
    driver.set_data_storage(data)
}

/// The secret of the encrypted image in `storage`.
fn needed<'a>(secret: Option<&'a Secret>, storage: &dyn Storage) -> Result<&'a Secret> {
    secret.ok_or_else(|| {
        named(
            storage.path(),
            Error::new(ErrorKind::WrongSecret, "the image is encrypted: give the secret that opens it"),
        )
    })
}

/// Opens a qcow2 image. One that is to be written and was not closed cleanly is read-only until it is repaired, see [`clean`].
pub(super) fn open_qcow2(storage: Arc<dyn Storage>, writable: bool) -> Result<Driver> {
    if writable && storage.capabilities().write && needs_cleaning(&*storage)? {
        return Driver::open_unclean(storage);
    }
    Driver::open(storage, writable)
}

/// Repairs the image of `driver`, if it has to be before it is written; an error if that cannot make it right.
pub(super) fn clean(driver: &mut Driver) -> Result<()> {
    if driver.is_unclean() {
        check::make_clean(&**driver.storage())?;
        driver.reopen()?;
    }
    Ok(())
}

/// What is to be opened below an image.
enum Next {
    /// By the image's word.
    Named(ImplicitReference),
    /// By the word of what described the image.
    Described(Node),
}

/// Opens what images name.
pub(super) struct Opener<'a> {
    pub(super) gate: &'a Gate,
    /// What opens encrypted images of the chain.
    pub(super) secret: Option<&'a Secret>,
    pub(super) direct: bool,
    pub(super) lock: Lock,
    /// What of which files was opened so far, to find cycles.
    seen: Vec<Identity>,
    /// Images opened so far.
    images: u32,
}

impl<'a> Opener<'a> {
    pub(super) fn new(gate: &'a Gate, secret: Option<&'a Secret>, direct: bool, lock: Lock) -> Self {
        Opener { gate, secret, direct, lock, seen: Vec::new(), images: 0 }
    }

    /// Opens what `link` needs beside itself and what is below it.
    pub(super) fn open_data_file_of(&mut self, link: &mut Link) -> Result<()> {
        match link {
            Link::Raw { .. } => Ok(()),
            Link::Qcow2(driver) => self.open_data_file(driver),
        }
    }

    /// Opens the external data file of `driver`, if it has one.
    pub(super) fn open_data_file(&mut self, driver: &mut Driver) -> Result<()> {
        if !driver.needs_data_file() {
            return Ok(());
        }
        let storage =
            self.open_data_file_named(driver.path(), driver.data_file_reference(), driver.will_write())?;
        set_data_storage(driver, storage)
    }

    /// Opens the external data file that `image` names, if it names one.
    pub(super) fn open_data_file_named(
        &mut self,
        image: Option<&Path>,
        reference: Option<ImplicitReference>,
        write: bool,
    ) -> Result<Arc<dyn Storage>> {
        let Some(reference) = reference else {
            return Err(named(
                image,
                Error::invalid_input(
                    "the image keeps its data in an external data file that it does not name: set one",
                ),
            ));
        };
        let path = self.gate.data_file(image, &reference.name)?;
        Ok(aligned(self.open_place(Place::File(path), write)?))
    }

    /// Opens the chain below an image: the backing file it names, and what that names in turn.
    pub(super) fn open_backing(
        &mut self,
        image: Option<&Path>,
        reference: ImplicitReference,
    ) -> Result<Base> {
        let links = self.open_links(image, reference, |_, _, _| false)?;
        Ok(stack(links, Base::None))
    }

    /// The same, with one image open for writing, which comes back too: the one that `wanted` means, or the first. It is none that is
    /// remembered of as only read, and whoever is on top closes it.
    pub(super) fn open_written_backing(
        &mut self,
        image: Option<&Path>,
        reference: ImplicitReference,
        wanted: Option<&Path>,
    ) -> Result<(Base, Arc<Image>)> {
        let (mut level, mut found) = (0, None);
        let mut links = self.open_links(image, reference, |from, name, file| {
            let is_it = found.is_none() && wanted.is_none_or(|wanted| is_called(wanted, from, name, file));
            found = found.or(is_it.then_some(level));
            level += 1;
            is_it
        })?;
        let Some(index) = found else {
            let wanted = wanted.unwrap_or(Path::new("")).to_string_lossy();
            return Err(Error::invalid_input(format!(
                "{wanted:?} is none of the backing files below the image"
            )));
        };
        links[index].clean()?;
        let mut rest = links.split_off(index).into_iter();
        let written = rest.next().expect("it was found");
        let written = Arc::new(written.into_image(stack(rest.collect(), Base::None)));
        let base = Base::Image { image: Arc::clone(&written), owned: false };
        Ok((stack(links, base), written))
    }

    /// The same, not yet put on top of each other: the topmost first. `writes` says of each image (as the one above it is called, as that
    /// spells it, and the file that it is, if it is one) whether it is to be written.
    pub(super) fn open_links(
        &mut self,
        image: Option<&Path>,
        reference: ImplicitReference,
        writes: impl FnMut(Option<&Path>, &Path, Option<&Path>) -> bool,
    ) -> Result<Vec<Link>> {
        self.open_from(image, Some(Next::Named(reference)), writes)
    }

    /// A loop, not a recursion: the depth is the images' word.
    fn open_from(
        &mut self,
        image: Option<&Path>,
        mut next: Option<Next>,
        mut writes: impl FnMut(Option<&Path>, &Path, Option<&Path>) -> bool,
    ) -> Result<Vec<Link>> {
        let mut links: Vec<Link> = Vec::new();
        while let Some(wanted) = next {
            let from = links.last().map_or(image, Link::path);
            let (link, below) = match wanted {
                Next::Described(node) => self.open_node(node, false)?,
                Next::Named(reference) => self.open_named(from, &reference, &mut writes)?,
            };
            next = below;
            links.push(link);
        }
        Ok(links)
    }

    fn open_named(
        &mut self,
        from: Option<&Path>,
        reference: &ImplicitReference,
        writes: impl FnOnce(Option<&Path>, &Path, Option<&Path>) -> bool,
    ) -> Result<(Link, Option<Next>)> {
        let opened = self.gate.backing(from, reference).and_then(|node| {
            let write = writes(from, &reference.name, node.place.as_file());
            self.open_node(node, write)
        });
        opened.map_err(|error| {
            if error.kind() == ErrorKind::ImplicitOpenDenied {
                // The gate names both files.
                return error;
            }
            let name = reference.name.to_string_lossy();
            error.within(&match from {
                Some(from) => format!("backing file {name:?} of {:?}", from.to_string_lossy()),
                None => format!("backing file {name:?}"),
            })
        })
    }

    /// Opens an image and its data file, and tells what is below it.
    fn open_node(&mut self, node: Node, write: bool) -> Result<(Link, Option<Next>)> {
        let Node { kind, place, data_file, below } = node;
        let storage = self.open_place(place, write)?;
        self.count(1)?;
        let mut link = Link::open(storage, write, kind, self.secret)?;
        match data_file {
            None => self.open_data_file_of(&mut link)?,
            Some(place) => link.set_data_storage(self.open_place(place, write)?)?,
        }
        let next = match below {
            Below::Nothing => None,
            Below::Named => link.backing_reference().map(Next::Named),
            Below::Node(_) if matches!(link, Link::Raw { .. }) => {
                return Err(named(link.path(), Error::invalid_input("a raw image has no backing file")));
            }
            Below::Node(node) => Some(Next::Described(*node)),
        };
        Ok((link, next))
    }

    /// Opens an image with all below it, read-only.
    pub(super) fn open_described(&mut self, node: Node) -> Result<Image> {
        let links = self.open_from(None, Some(Next::Described(node)), |_, _, _| false)?;
        let mut links = links.into_iter();
        let top = links.next().expect("what is described is opened");
        Ok(top.into_image(stack(links.collect(), Base::None)))
    }

    /// Opens what an image of the chain is in, which must not be in the chain yet.
    pub(super) fn open_place(&mut self, place: Place, write: bool) -> Result<Arc<dyn Storage>> {
        // Before its lock: one that is open here for writing would be told to be in use.
        self.refuse_again(place.identity(), place.files().first().copied())?;
        let storage = self.open_unnoted(place, write)?;
        self.note(&*storage)?;
        Ok(storage)
    }

    fn open_unnoted(&mut self, place: Place, write: bool) -> Result<Arc<dyn Storage>> {
        Ok(match place {
            Place::File(path) => self.open_file(path, write)?,
            Place::Part { of, offset, size } => part(self.open_unnoted(*of, write)?, offset, size)?,
            Place::Disk(_) if write => {
                return Err(Error::unsupported(
                    "an image within an image that is described by another's name is only read: open them yourself to write",
                ));
            }
            Place::Disk(node) => Arc::new(Disk::owning(Arc::new(self.open_described(*node)?))),
        })
    }

    /// Opens a file of the chain, which must not be in it yet.
    pub(super) fn open(&self, path: PathBuf, write: bool) -> Result<Arc<dyn Storage>> {
        self.refuse_again(File::identity_of(&path), Some(&path))?;
        self.open_file(path, write)
    }

    fn open_file(&self, path: PathBuf, write: bool) -> Result<Arc<dyn Storage>> {
        let options =
            StorageOpenOptions::new().filename(path).write(write).direct(self.direct).lock(self.lock);
        Ok(Arc::new(File::open_sync(options)?))
    }

    /// Notes a file of the chain, or a part of one; the same bytes a second time are a cycle.
    pub(super) fn note(&mut self, storage: &dyn Storage) -> Result<()> {
        self.refuse_again(storage.identity(), storage.path())?;
        self.seen.extend(storage.identity());
        Ok(())
    }

    fn refuse_again(&self, identity: Option<Identity>, path: Option<&Path>) -> Result<()> {
        match identity {
            Some(identity) if self.seen.iter().any(|seen| seen.overlaps(&identity)) => {
                Err(named(path, Error::invalid_image("the chain of images comes back to this file")))
            }
            _ => Ok(()),
        }
    }

    /// Counts images into the chain.
    pub(super) fn count(&mut self, images: u32) -> Result<()> {
        self.images = self.images.saturating_add(images);
        if self.images > CHAIN_MAX {
            return Err(Error::unsupported(format!("the chain has more than {CHAIN_MAX} images")));
        }
        Ok(())
    }

    /// Takes an image that the caller opened as the base of another.
    pub(super) fn adopt(&mut self, image: Arc<Image>) -> Result<Base> {
        let mut next = Some(&image);
        while let Some(image) = next {
            self.note(&**image.format().storage())?;
            next = image.backing();
        }
        self.count(image.chain_len())?;
        Ok(Base::Image { image, owned: false })
    }
}

/// Whether `wanted` means the backing file of the image `from` that this spells `name`, and that is in `file`, if it is in one.
fn is_called(wanted: &Path, from: Option<&Path>, name: &Path, file: Option<&Path>) -> bool {
    if wanted == name {
        return true;
    }
    let Some(Ok(file)) = file.map(resolve) else { return false };
    // As QEMU: a relative name starts where the image is that could spell it so.
    match resolve(&resolve_beside(from, wanted)) {
        Ok(beside) => beside == file,
        Err(_) => resolve(wanted).is_ok_and(|path| path == file),
    }
}

/// The images of `links`, the topmost first, above `base`.
pub(super) fn stack(links: Vec<Link>, base: Base) -> Base {
    let over = |base, link: Link| Base::Image { image: Arc::new(link.into_image(base)), owned: true };
    links.into_iter().rev().fold(base, over)
}

/// `error` with the file at `path`, unless it names one already.
pub(super) fn named(path: Option<&Path>, error: Error) -> Error {
    match path {
        Some(path) => error.in_file(path),
        None => error,
    }
}
