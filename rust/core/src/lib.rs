//! VM disk images: storages, formats and access to them.
//!
//! The house has one way through it; arrows point down only:
//!
//! - [`access`]: a guest request becomes extents, extents become storage operations; chains, splitting,
//!   alignment, range locks, executors, whole-image verbs;
//! - [`format`]: what is where: metadata, allocation, ordering; never moves guest bytes;
//! - [`storage`]: bytes at offsets: files, memory, null.
//!
//! [`error`], [`units`], [`buffer`] and `ondisk` are leaves that all of them use.

pub mod access;
pub mod buffer;
pub mod error;
pub mod format;
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
