//! VM disk images: storages, formats and access to them.
//!
//! A qcow2 image, read on the calling thread:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # std::env::set_current_dir(&directory)?;
//! # imago_core::access::create::create("image.qcow2", &imago_core::access::create::CreateOptions::qcow2(1 << 20))?;
//! use imago_core::SyncFormatAccess;
//! use imago_core::qcow2::Qcow2;
//!
//! // Produce read-only qcow2 instance using purely `File` for storage
//! let mut qcow2 = Qcow2::open_path_sync("image.qcow2", false)?;
//! qcow2.open_implicit_dependencies_sync()?;
//! let qcow2 = SyncFormatAccess::new(qcow2)?;
//!
//! let mut buf = vec![0u8; 512];
//! qcow2.read(&mut buf, 0)?;
//! # Ok(())
//! # }
//! ```
//!
//! The same with the asynchronous calls (feature `async`), with what the image names overridden, and with two kinds of storage:
//!
//! ```
//! # #[cfg(not(feature = "async"))]
//! # fn main() {}
//! # #[cfg(feature = "async")]
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # std::env::set_current_dir(&directory)?;
//! # imago_core::access::create::create("image.qcow2", &imago_core::access::create::CreateOptions::qcow2(1 << 20))?;
//! use imago_core::file::File;
//! use imago_core::null::Null;
//! use imago_core::qcow2::Qcow2;
//! use imago_core::raw::Raw;
//! use imago_core::{DynStorage, FormatAccess, StorageOpenOptions};
//! use std::sync::Arc;
//!
//! let qcow2_file_opts = StorageOpenOptions::new()
//!     .write(true)
//!     .filename(String::from("image.qcow2"));
//! let qcow2_file = File::open(qcow2_file_opts).await?;
//!
//! // Produce qcow2 instance with arbitrary (and potentially mixed) storage instances
//! let mut qcow2 = Qcow2::open_image(Box::new(qcow2_file), true).await?;
//!
//! let backing_storage: Box<dyn DynStorage> = Box::new(Null::new(0));
//! let backing = Raw::open_image(backing_storage, false).await?;
//! let backing = Arc::new(FormatAccess::new(backing));
//! qcow2.set_backing(Some(Arc::clone(&backing)));
//!
//! // Open potentially remaining dependencies (like an external data file)
//! qcow2.open_implicit_dependencies().await?;
//!
//! let qcow2 = FormatAccess::new(qcow2);
//!
//! let mut buf = vec![0u8; 512];
//! qcow2.read(&mut buf, 0).await?;
//!
//! qcow2.flush().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Dropping a `FormatAccess` does not flush it, as that would have to wait; [`SyncFormatAccess`] flushes when dropped.
//!
//! The house has one way through it; arrows point down only:
//!
//! - [`access`]: a guest request becomes extents, extents become storage operations; chains, splitting,
//!   alignment, range locks, executors, whole-image verbs;
//! - [`format`]: what is where: metadata, allocation, ordering; never moves guest bytes;
//! - [`storage`]: bytes at offsets: files, memory, null.
//!
//! [`error`], [`units`], [`buffer`], [`interrupt`] and `ondisk` are leaves that all of them use.

pub mod access;
pub mod buffer;
pub mod crypt;
pub mod error;
pub mod format;
pub mod interrupt;
mod ondisk;
pub mod storage;
pub mod units;

#[cfg(feature = "async")]
pub use access::facade::FormatAccess;
pub use access::facade::{IntoImage, SyncFormatAccess, qcow2, raw};
pub use access::image::Image;
pub use buffer::{IoVector, IoVectorMut};
pub use error::{Error, ErrorKind, Result};
pub use storage::{Storage, Storage as DynStorage, StorageOpenOptions, file, null};
