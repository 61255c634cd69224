//! Space that a new image has before anything is written to it.

use std::fmt;

use crate::buffer::IoVector;
use crate::error::Result;
use crate::interrupt;
use crate::storage::Storage;

/// Bytes of zeroes that one write has.
const WRITE_SIZE: u64 = 1 << 20;

/// What is set aside for the disk's bytes before they are written; the names are QEMU's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// A place for every cluster, in formats with metadata; the file is as long as it will be, and sparse.
    Metadata,
    /// The space too, without writing to it.
    Falloc,
    /// The space too, written full of zeroes.
    Full,
}

impl Preallocation {
    /// The name that QEMU uses for it.
    pub fn name(self) -> &'static str {
        match self {
            Preallocation::Off => "off",
            Preallocation::Metadata => "metadata",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        }
    }

    /// The one with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full]
            .into_iter()
            .find(|mode| mode.name() == name)
    }

    /// Sets the space of `len` bytes of `storage` from `offset` on aside, inside its length. They read as zeroes before and after.
    pub(crate) fn reserve(self, storage: &dyn Storage, offset: u64, len: u64) -> Result<()> {
        match self {
            Preallocation::Off | Preallocation::Metadata => Ok(()),
            Preallocation::Falloc => storage.allocate_at(offset, len),
            Preallocation::Full => {
                let end = offset + len;
                for at in (offset..end).step_by(WRITE_SIZE as usize) {
                    interrupt::check()?;
                    storage.writev_at(IoVector::zeroes(WRITE_SIZE.min(end - at) as usize), at)?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Preallocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
