//! The raw format: the bytes of the disk as they are.

use std::path::Path;
use std::sync::Arc;

use super::IntoImage;
use crate::access::chain::Link;
use crate::access::image::{Base, Image};
use crate::error::Result;
use crate::format::FormatKind;
use crate::storage::file::File;
use crate::storage::{Storage, StorageOpenOptions};

/// A raw image.
#[derive(Debug)]
pub struct Raw(Link);

impl Raw {
    /// Opens the file at `path` as a raw image.
    pub fn open_path_sync(path: impl AsRef<Path>, writable: bool) -> Result<Self> {
        let options = StorageOpenOptions::new().filename(path.as_ref()).write(writable);
        Self::open_image_sync(Box::new(File::open_sync(options)?), writable)
    }

    /// Takes `storage` for a raw image.
    pub fn open_image_sync(storage: Box<dyn Storage>, writable: bool) -> Result<Self> {
        Self::open_shared_sync(Arc::from(storage), writable)
    }

    /// The same for a storage that others hold too.
    pub fn open_shared_sync(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        Link::open(storage, writable, Some(FormatKind::Raw), None).map(Raw)
    }

    /// A raw image names no other file.
    pub fn open_implicit_dependencies_sync(&mut self) -> Result<()> {
        Ok(())
    }
}

impl IntoImage for Raw {
    fn into_image(self) -> Arc<Image> {
        Arc::new(self.0.into_image(Base::None))
    }
}

#[cfg(feature = "async")]
impl Raw {
    /// As [`open_path_sync`](Raw::open_path_sync), off the runtime's thread.
    pub async fn open_path(path: impl AsRef<Path>, writable: bool) -> Result<Self> {
        let path = path.as_ref().to_owned();
        super::tokio::off_thread(move || Self::open_path_sync(path, writable)).await
    }

    /// As [`open_image_sync`](Raw::open_image_sync), off the runtime's thread.
    pub async fn open_image(storage: Box<dyn Storage>, writable: bool) -> Result<Self> {
        super::tokio::off_thread(move || Self::open_image_sync(storage, writable)).await
    }
}
