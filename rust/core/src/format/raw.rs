//! The bytes of the disk as they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::storage::latched::Latched;
use crate::units::{GuestOffset, HostOffset};

use super::steps::Steps;
use super::{
    Allocation, Format, FormatInfo, FormatKind, FormatSpecificInfo, InPlace, Lookup, Mapping, Place, Resize,
    WriteStep, ZeroIntent, ZeroStep, luks,
};

/// Bytes that are encrypted together.
const SECTOR: u64 = 512;

/// A disk whose bytes are those of one storage, offset by offset.
///
/// Its size is the storage's length when it was opened, which need not be a multiple of anything. [`Format::map`] calls all of it data:
/// reading a hole costs the storage no more than asking it where its holes are. `extents` asks.
#[derive(Debug)]
pub struct Raw {
    storage: Arc<dyn Storage>,
    /// The same for flushes: after one that failed no later one says that all is durable.
    flushed: Latched,
    size: AtomicU64,
    writable: bool,
    /// What the LUKS header says, where the storage decrypts what is behind one.
    luks: Option<luks::LuksInfo>,
}

impl Raw {
    /// The raw image in `storage`.
    pub fn open(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        if writable && !storage.capabilities().write {
            return Err(Error::new(ErrorKind::ReadOnly, "the storage was opened read-only"));
        }
        let size = AtomicU64::new(storage.len()?);
        Ok(Raw { flushed: Latched::new(Arc::clone(&storage)), storage, size, writable, luks: None })
    }

    /// The disk that `storage` decrypts, of an image whose header says `info`.
    pub fn decrypted(storage: Arc<dyn Storage>, writable: bool, info: luks::LuksInfo) -> Result<Self> {
        Ok(Raw { luks: Some(info), ..Self::open(storage, writable)? })
    }

    /// Where to write: every byte is where the guest sees it.
    fn place(&self, offset: GuestOffset, len: u64) -> Result<InPlace<'_>> {
        self.flushed.check()?;
        Ok(InPlace { len, storage: &self.storage, offset: HostOffset(offset.0) })
    }
}

impl Raw {
    /// Direct I/O writes whole sectors: the last one may have carried the file past the disk's end.
    fn cut_carried(&self) -> Result<()> {
        let size = self.size();
        if self.storage.len()? > size && self.storage.capabilities().resize {
            self.flushed.set_len(size)?;
        }
        Ok(())
    }
}

impl Resize for Raw {
    fn check(&self, _: u64) -> Result<()> {
        self.flushed.check()?;
        if self.storage.capabilities().resize {
            return Ok(());
        }
        Err(Error::unsupported("the storage that the raw image is in has a length of its own"))
    }

    fn is_flat(&self) -> bool {
        true
    }

    fn make_room(&self, _: u64) -> Result<()> {
        // What is behind the end now must not show.
        self.cut_carried()
    }

    fn set_size(&self, size: u64, _: &mut Steps<'_>) -> Result<()> {
        // Only whole sectors are encrypted.
        let unit = if self.luks.is_some() { SECTOR } else { 1 };
        let size = size.checked_next_multiple_of(unit).unwrap_or(size);
        // Before the length: a flush meanwhile cuts the file to this. What is not in the file yet, or any more, reads as zeroes.
        let old = self.size.swap(size, Ordering::AcqRel);
        let set = self.flushed.set_len(size).and_then(|()| self.flushed.sync());
        if set.is_err() {
            self.size.store(old, Ordering::Release);
        }
        set
    }
}

impl Format for Raw {
    fn kind(&self) -> FormatKind {
        if self.luks.is_some() { FormatKind::Luks } else { FormatKind::Raw }
    }

    fn is_encrypted(&self) -> bool {
        self.luks.is_some()
    }

    fn info(&self) -> Result<FormatInfo> {
        let specific = self.luks.clone().map(FormatSpecificInfo::Luks);
        Ok(FormatInfo { specific, ..FormatInfo::default() })
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn map(&self, offset: GuestOffset, len: u64, _: Lookup) -> Result<Option<Mapping<'_>>> {
        let place = Place::Data { storage: &self.storage, offset: HostOffset(offset.0) };
        Ok(Some(Mapping { len, place }))
    }

    fn mapping_unit(&self) -> u64 {
        // All of it is one run.
        1 << 63
    }

    fn may_be_hollow(&self) -> Result<bool> {
        Ok(self.luks.is_none())
    }

    fn prepare_write(&self, offset: GuestOffset, len: u64) -> Result<WriteStep<'_>> {
        self.place(offset, len).map(WriteStep::InPlace)
    }

    fn in_place(&self, offset: GuestOffset, len: u64) -> Result<Option<InPlace<'_>>> {
        self.place(offset, len).map(Some)
    }

    fn commit(&self, _: Allocation) -> Result<()> {
        unreachable!("raw never allocates")
    }

    fn abandon(&self, _: Allocation) {}

    fn zero(&self, offset: GuestOffset, len: u64, _: ZeroIntent) -> Result<ZeroStep<'_>> {
        self.place(offset, len).map(ZeroStep::InPlace)
    }

    fn is_settled(&self) -> bool {
        self.storage.len().is_ok_and(|len| len <= self.size())
    }

    fn flush(&self) -> Result<()> {
        self.cut_carried()?;
        self.flushed.sync()
    }

    fn resize(&self) -> Option<&dyn Resize> {
        Some(self)
    }
}
