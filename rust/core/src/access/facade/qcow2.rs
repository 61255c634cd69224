//! The qcow2 format.

use std::path::Path;
use std::sync::Arc;

use super::IntoImage;
use crate::access::align::aligned;
use crate::access::chain::{Link, Opener, clean, open_qcow2, set_data_storage};
use crate::access::gate::Gate;
use crate::access::image::{Base, Image};
use crate::crypt::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::Driver;
use crate::format::{CacheSizes, Format};
use crate::storage::file::File;
use crate::storage::{Lock, Storage, StorageOpenOptions};

/// A qcow2 image whose metadata is open; what it names is set or opened before it becomes a `FormatAccess`.
///
/// A backing file that is neither set nor opened is no silent hole: reading through to it is an error.
#[derive(Debug)]
pub struct Qcow2 {
    driver: Box<Driver>,
    /// What is below, once that is decided.
    base: Option<Base>,
    has_data_file: bool,
}

impl Qcow2 {
    /// Opens the qcow2 image in the file at `path`. Nothing it names is opened, and nothing written: one that was not closed cleanly
    /// and is to be written is repaired when what it names was opened.
    pub fn open_path_sync(path: impl AsRef<Path>, writable: bool) -> Result<Self> {
        let options = StorageOpenOptions::new().filename(path.as_ref()).write(writable);
        Self::open_image_sync(Box::new(File::open_sync(options)?), writable)
    }

    /// Opens the qcow2 image in `storage`. Nothing it names is opened.
    pub fn open_image_sync(storage: Box<dyn Storage>, writable: bool) -> Result<Self> {
        Self::open_shared_sync(Arc::from(storage), writable)
    }

    /// The same for a storage that others hold too.
    pub fn open_shared_sync(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        Ok(Self::of(open_qcow2(aligned(storage), writable)?))
    }

    /// Opens a snapshot (an id or a name) inside the image in `storage` as a disk of its own, with its own size, to be read.
    pub fn open_snapshot_sync(storage: Arc<dyn Storage>, id_or_name: &str) -> Result<Self> {
        Ok(Self::of(Driver::open_snapshot(aligned(storage), id_or_name)?))
    }

    fn of(driver: Driver) -> Self {
        let driver = Box::new(driver);
        let base = driver.backing_reference().is_none().then_some(Base::None);
        let has_data_file = !driver.needs_data_file() && !driver.needs_secret();
        Qcow2 { driver, base, has_data_file }
    }

    /// Puts `backing` below the image instead of what its header names; `None`: nothing, unallocated ranges read as zeroes.
    pub fn set_backing<I: IntoImage>(&mut self, backing: Option<I>) {
        self.base = Some(match backing {
            Some(image) => Base::Image { image: image.into_image(), owned: false },
            None => Base::None,
        });
    }

    /// Says how many bytes its caches of metadata may hold.
    pub fn set_cache_sizes(&mut self, sizes: CacheSizes) {
        self.driver.set_cache_sizes(sizes);
    }

    /// Finds the key of an encrypted image. Before that no data file is set or opened.
    pub fn unlock_sync(&mut self, secret: &Secret) -> Result<()> {
        self.driver.unlock(secret)?;
        if !self.driver.needs_data_file() {
            let file = Arc::clone(self.driver.storage());
            set_data_storage(&mut self.driver, file)?;
            self.has_data_file = true;
        }
        Ok(())
    }

    /// Whether the image is encrypted and [`unlock_sync`](Qcow2::unlock_sync) is needed.
    pub fn needs_secret(&self) -> bool {
        self.driver.needs_secret()
    }

    fn check_unlocked(&self) -> Result<()> {
        if self.driver.is_locked() {
            return Err(Error::new(ErrorKind::WrongSecret, "the image is encrypted: unlock it first"));
        }
        Ok(())
    }

    /// Says where the guest's data is, for an image with an external data file.
    pub fn set_data_file(&mut self, data_file: Box<dyn Storage>) -> Result<()> {
        self.set_shared_data_file(Arc::from(data_file))
    }

    /// The same for a storage that others hold too.
    pub fn set_shared_data_file(&mut self, data_file: Arc<dyn Storage>) -> Result<()> {
        self.check_unlocked()?;
        set_data_storage(&mut self.driver, aligned(data_file))?;
        self.has_data_file = true;
        Ok(())
    }

    /// Opens what the image names and was not set: the backing chain (read-only) and the external data file. They are
    /// opened only beside or below the image's directory, see [`Gate::Beside`]. Then an image that is to be written and was not closed cleanly is repaired.
    pub fn open_implicit_dependencies_sync(&mut self) -> Result<()> {
        self.open_implicit_dependencies_gated_sync(&Gate::default())
    }

    /// The same with another word on what may be opened.
    pub fn open_implicit_dependencies_gated_sync(&mut self, gate: &Gate) -> Result<()> {
        let mut opener = Opener::new(gate, None, false, Lock::Auto);
        opener.note(&**self.driver.storage())?;
        opener.count(1)?;
        self.check_unlocked()?;
        if !self.has_data_file {
            opener.open_data_file(&mut self.driver)?;
            self.has_data_file = true;
        }
        match (self.driver.backing_reference(), &self.base) {
            (Some(reference), None) => self.base = Some(opener.open_backing(self.driver.path(), reference)?),
            (_, Some(Base::Image { image, owned: false })) => {
                opener.adopt(Arc::clone(image))?;
            }
            _ => {}
        }
        clean(&mut self.driver)
    }
}

impl IntoImage for Qcow2 {
    fn into_image(self) -> Arc<Image> {
        let base = match (self.base, self.driver.backing_reference()) {
            (Some(base), _) => base,
            (None, Some(reference)) => Base::Unopened(reference),
            (None, None) => Base::None,
        };
        let (locked, unclean) = (self.driver.is_locked(), self.driver.is_unclean());
        let image = Link::Qcow2(self.driver).into_image(base);
        Arc::new(match (self.has_data_file, locked) {
            (true, _) if unclean => image.unclean(),
            (true, _) => image,
            (false, true) => image.locked(),
            (false, false) => image.without_data_file(),
        })
    }
}

#[cfg(feature = "async")]
impl Qcow2 {
    /// As [`open_path_sync`](Qcow2::open_path_sync), off the runtime's thread.
    pub async fn open_path(path: impl AsRef<Path>, writable: bool) -> Result<Self> {
        let path = path.as_ref().to_owned();
        super::tokio::off_thread(move || Self::open_path_sync(path, writable)).await
    }

    /// As [`open_image_sync`](Qcow2::open_image_sync), off the runtime's thread.
    pub async fn open_image(storage: Box<dyn Storage>, writable: bool) -> Result<Self> {
        super::tokio::off_thread(move || Self::open_image_sync(storage, writable)).await
    }

    /// As [`open_implicit_dependencies_sync`](Qcow2::open_implicit_dependencies_sync). A few small files are opened and their headers read, on this thread.
    #[expect(clippy::unused_async, reason = "the name and shape of imago's call")]
    pub async fn open_implicit_dependencies(&mut self) -> Result<()> {
        self.open_implicit_dependencies_sync()
    }
}
