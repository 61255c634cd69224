//! The types that users hold, with imago's names: a format that is being opened, then access to it.

pub mod qcow2;
pub mod raw;
mod sync;
#[cfg(feature = "async")]
mod tokio;

use std::sync::Arc;

pub use self::sync::SyncFormatAccess;
#[cfg(feature = "async")]
pub use self::tokio::FormatAccess;
use super::image::Image;

/// What stands for an image: a format that was opened, or access to one.
pub trait IntoImage {
    /// The image.
    fn into_image(self) -> Arc<Image>;
}

impl IntoImage for Arc<Image> {
    fn into_image(self) -> Arc<Image> {
        self
    }
}

impl IntoImage for Arc<SyncFormatAccess> {
    fn into_image(self) -> Arc<Image> {
        Arc::clone(self.image())
    }
}
