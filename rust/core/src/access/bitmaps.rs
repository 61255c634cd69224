//! Persistent dirty bitmaps of an open image.

use crate::error::{Error, Result};
use crate::format::{self, DirtyBitmap, DirtyRanges, Format, Recording};

use super::image::Image;

/// The bitmaps of an open image; see [`format::Bitmaps`] for what each method does and which errors it has.
///
/// What changes one waits until no write is in flight, and lets none begin meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Bitmaps<'a> {
    image: &'a Image,
}

impl Image {
    /// The persistent dirty bitmaps. Of an image whose format has none every method is
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    pub fn bitmaps(&self) -> Bitmaps<'_> {
        Bitmaps { image: self }
    }
}

impl Bitmaps<'_> {
    /// All of them, in the order of the image.
    pub fn list(self) -> Result<Vec<DirtyBitmap>> {
        self.look(|bitmaps| bitmaps.list())
    }

    /// What is dirty in a bitmap.
    pub fn ranges(self, name: &str) -> Result<DirtyRanges> {
        self.look(|bitmaps| bitmaps.ranges(name))
    }

    /// Makes a bitmap in which nothing is dirty; `granularity` in bytes, `None` is what QEMU would take.
    pub fn add(self, name: &str, granularity: Option<u64>, state: Recording) -> Result<()> {
        self.change(|bitmaps| bitmaps.add(name, granularity, state))
    }

    /// Removes a bitmap, also an inconsistent one.
    pub fn remove(self, name: &str) -> Result<()> {
        self.change(|bitmaps| bitmaps.remove(name))
    }

    /// Makes everything clean in a bitmap.
    pub fn clear(self, name: &str) -> Result<()> {
        self.change(|bitmaps| bitmaps.clear(name))
    }

    /// Lets a bitmap follow writes from now on, or no more.
    pub fn set_recording(self, name: &str, state: Recording) -> Result<()> {
        self.change(|bitmaps| bitmaps.set_recording(name, state))
    }

    /// Makes dirty in `name` what is dirty in `source`, of this image or another one of the same size.
    pub fn merge(self, name: &str, source: DirtyRanges) -> Result<()> {
        self.change(|bitmaps| bitmaps.merge(name, source))
    }

    fn look<T>(self, look: impl FnOnce(&dyn format::Bitmaps) -> Result<T>) -> Result<T> {
        let _operation = self.image.enter()?;
        capability(&*self.image.format).and_then(look).map_err(|e| self.image.name(e))
    }

    fn change(self, change: impl FnOnce(&dyn format::Bitmaps) -> Result<()>) -> Result<()> {
        self.image.exclusively(|format| change(capability(format)?))
    }
}

fn capability(format: &dyn Format) -> Result<&dyn format::Bitmaps> {
    let none = || Error::unsupported(format!("images of the format {} have no bitmaps", format.kind()));
    format.bitmaps().ok_or_else(none)
}
