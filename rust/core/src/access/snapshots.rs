//! Snapshots of an open image.

use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::format::qcow2_info::SnapshotInfo;
use crate::format::{Format, Snapshots};

use super::image::Image;

fn of(format: &dyn Format) -> Result<&dyn Snapshots> {
    format
        .snapshots()
        .ok_or_else(|| Error::unsupported(format!("{} images have no snapshots", format.kind())))
}

impl Image {
    /// The snapshots inside the image, see [`Snapshots`].
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        let _operation = self.enter()?;
        of(&*self.format).and_then(Snapshots::list).map_err(|e| self.name(e))
    }

    /// Keeps the disk as it is now. Writes wait meanwhile; what they wrote before is in it.
    pub fn create_snapshot(&self, name: &str, id: Option<&str>) -> Result<SnapshotInfo> {
        let date = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.exclusively(|format| of(format)?.create(name, id, date))
    }

    /// Makes the disk what it was when that snapshot was taken, its size included. What was written since is lost.
    pub fn apply_snapshot(&self, id_or_name: &str) -> Result<()> {
        self.exclusively(|format| {
            let applied = of(format)?.apply(id_or_name);
            self.unpacked.forget(0, u64::MAX);
            applied
        })
    }

    /// Removes a snapshot; the space that only it takes goes back to the host where that is possible.
    pub fn delete_snapshot(&self, id_or_name: &str) -> Result<()> {
        self.exclusively(|format| of(format)?.delete(id_or_name))
    }

    /// Gives a snapshot another name.
    pub fn rename_snapshot(&self, id_or_name: &str, name: &str) -> Result<()> {
        self.exclusively(|format| of(format)?.rename(id_or_name, name))
    }
}
