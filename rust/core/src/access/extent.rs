//! What a run of the guest's disk is, as `extents` tells it.

use std::path::Path;
use std::sync::Arc;

/// One run of the disk with one answer; the facts are those of `qemu-img map --output=json`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a run, read by name")]
pub struct Extent {
    /// Start in the guest's disk, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Its bytes are stored somewhere.
    pub data: bool,
    /// It reads as zeroes, and that is known without reading.
    pub zero: bool,
    /// An image of the chain says what is here (QEMU's `present`); otherwise nobody does and it reads as zeroes.
    pub allocated: bool,
    /// It is stored in compressed clusters.
    pub compressed: bool,
    /// Which image of the chain answers: 0 is the image itself, 1 its backing file, and so on.
    pub depth: u32,
    /// The file that holds it, where there is space for it in one.
    pub host_file: Option<Arc<Path>>,
    /// Where in that file (bytes).
    pub host_offset: Option<u64>,
}

impl Extent {
    /// A run that nobody down to the image number `depth` says anything of.
    pub(crate) fn nothing(offset: u64, length: u64, depth: u32) -> Self {
        Extent {
            offset,
            length,
            data: false,
            zero: true,
            allocated: false,
            compressed: false,
            depth,
            host_file: None,
            host_offset: None,
        }
    }

    /// End in the guest's disk: the offset of the first byte behind it.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Whether `next` goes on where this one ends, with the same facts.
    pub(crate) fn continues_in(&self, next: &Extent) -> bool {
        self.end() == next.offset
            && self.data == next.data
            && self.zero == next.zero
            && self.allocated == next.allocated
            && self.compressed == next.compressed
            && self.depth == next.depth
            && self.host_file == next.host_file
            && match (self.host_offset, next.host_offset) {
                (Some(here), Some(there)) => here.checked_add(self.length) == Some(there),
                (None, None) => true,
                _ => false,
            }
    }
}
