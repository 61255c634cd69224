//! Space that a new image has before anything is written to it.

use std::fmt;

use crate::buffer::IoVector;
use crate::error::Result;
use crate::format::steps::Steps;
use crate::storage::Storage;

/// Bytes of zeroes that one write has.
const WRITE_SIZE: u64 = 1 << 20;

/// Bytes that are sent to the medium at a time, and those that are on their way.
const SENT: u64 = 8 << 20;
const AHEAD: u64 = 4 * SENT;

/// Bytes that are set aside at a time without writing: nothing ends that once it is begun.
const ALLOCATE_SIZE: u64 = 1 << 30;

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

    /// Bytes that [`reserve`](Self::reserve) tells of, of `len`.
    pub(crate) fn work(self, len: u64) -> u64 {
        match self {
            Preallocation::Off | Preallocation::Metadata => 0,
            Preallocation::Falloc | Preallocation::Full => len,
        }
    }

    /// Sets the space of `len` bytes of `storage` from `offset` on aside, inside its length. They read as zeroes before and after.
    pub(crate) fn reserve(
        self,
        storage: &dyn Storage,
        offset: u64,
        len: u64,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        let end = offset + self.work(len);
        let step = if self == Preallocation::Full { WRITE_SIZE } else { ALLOCATE_SIZE };
        for at in (offset..end).step_by(step as usize) {
            let len = step.min(end - at);
            if self == Preallocation::Full {
                storage.writev_at(IoVector::zeroes(len as usize), at)?;
                keep_up(storage, offset, at + len)?;
            } else {
                storage.allocate_at(at, len)?;
            }
            steps.advance(len)?;
        }
        Ok(())
    }
}

/// Has the medium keep up with zeroes that are written from `start` on and have got to `end`: who gives up then waits for little, and
/// memory is left to what somebody reads.
fn keep_up(storage: &dyn Storage, start: u64, end: u64) -> Result<()> {
    let written = end - start;
    if !written.is_multiple_of(SENT) {
        return Ok(());
    }
    storage.begin_sync();
    if written > AHEAD {
        let at = end - AHEAD - SENT;
        storage.write_out(at, SENT)?;
        storage.let_go(at, SENT);
    }
    Ok(())
}

impl fmt::Display for Preallocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
