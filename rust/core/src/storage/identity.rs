//! What tells one storage from another.

use std::ops::Range;

/// The bytes of a file that a storage is: all, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its device and inode.
    file: (u64, u64),
    bytes: Range<u64>,
}

impl Identity {
    /// All of the file with this device and inode, however long it becomes.
    pub(crate) fn of_file(device: u64, inode: u64) -> Self {
        Identity { file: (device, inode), bytes: 0..u64::MAX }
    }

    /// The `size` bytes of it (`None`: all) from `offset` on.
    #[must_use]
    pub(crate) fn part(self, offset: u64, size: Option<u64>) -> Self {
        let start = self.bytes.start.saturating_add(offset).min(self.bytes.end);
        let end = size.map_or(u64::MAX, |size| start.saturating_add(size)).min(self.bytes.end);
        Identity { bytes: start..end, ..self }
    }

    /// Whether what is written to the one may show in the other.
    pub fn overlaps(&self, other: &Identity) -> bool {
        self.file == other.file && self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end
    }
}
