//! The testkit's simulated medium as a storage of this crate: the testkit was built against another instance of it, whose trait
//! is not this one's.

use imago_testkit::imago_core as other;
use imago_testkit::sim::SimStorage;
use other::storage::Storage as _;

use super::{Capabilities, Storage, ZeroMode};
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, Result};

/// A simulated medium for unit tests.
#[derive(Debug)]
pub(crate) struct Simulated(pub(crate) SimStorage);

fn own<T>(result: other::Result<T>) -> Result<T> {
    result.map_err(|error| Error::io(error.to_string(), std::io::Error::other("simulated")))
}

impl Storage for Simulated {
    fn readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        let mut bytes = vec![0; bufs.len()];
        own(self.0.readv_at((&mut bytes).into(), offset))?;
        bufs.copy_from_slice(&bytes);
        Ok(())
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        let mut bytes = vec![0; bufs.len()];
        bufs.copy_to_slice(&mut bytes);
        own(self.0.writev_at((&bytes).into(), offset))
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        own(self.0.write_zeroes_at(offset, len, other::storage::ZeroMode::Keep))
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        own(self.0.discard_at(offset, len))
    }

    fn len(&self) -> Result<u64> {
        own(self.0.len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        own(self.0.set_len(len))
    }

    fn sync(&self) -> Result<()> {
        own(self.0.sync())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { write: true, resize: true, ..Capabilities::default() }
    }
}
