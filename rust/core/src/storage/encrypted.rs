//! A part of another storage, encrypted there and plain here.

use std::path::Path;
use std::sync::Arc;

use super::{Capabilities, Identity, Limits, Storage, ZeroMode};
use crate::buffer::{IoVector, IoVectorMut};
use crate::crypt::{SECTOR, SectorCipher};
use crate::error::{Error, Result};

/// Bytes that are encrypted or decrypted between two requests to the storage inside: they stay in the processor's cache, and
/// are as many as an event loop's thread may be kept with.
const PIECE: usize = 64 << 10;

/// The bytes of `inner` from `base` on, decrypted. The IV of a sector of 512 bytes is its number here, not in `inner`.
///
/// The length is rounded up to whole sectors. What nobody wrote is not zeroes: sectors between the end and a write past it, and those that
/// [`set_len`](Storage::set_len) adds, decrypt to anything, as do those of a hole.
#[derive(Debug)]
pub(crate) struct Encrypted {
    inner: Arc<dyn Storage>,
    cipher: Arc<SectorCipher>,
    base: u64,
}

impl Encrypted {
    /// `inner` has to take any request (see `access::align`).
    pub(crate) fn new(inner: Arc<dyn Storage>, cipher: Arc<SectorCipher>, base: u64) -> Self {
        debug_assert_eq!(inner.limits(), Limits::default());
        Encrypted { inner, cipher, base }
    }

    fn check(offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|_| (offset | len).is_multiple_of(SECTOR as u64));
        end.map(|_| ()).ok_or_else(|| {
            Error::invalid_input(format!("{len} bytes at {offset} are not whole sectors of {SECTOR} bytes"))
        })
    }
}

/// Fills `bufs` with the whole sectors at `offset` of `storage`, decrypted. `number` is that of the first one, for the IV.
pub(crate) fn read_sectors(
    storage: &dyn Storage,
    cipher: &SectorCipher,
    mut bufs: IoVectorMut<'_>,
    mut offset: u64,
    mut number: u64,
) -> Result<()> {
    let mut piece = vec![0; bufs.len().min(PIECE)];
    while !bufs.is_empty() {
        let mut part = bufs.take_front(PIECE.min(bufs.len()));
        let bytes = &mut piece[..part.len()];
        storage.readv_at((&mut *bytes).into(), offset)?;
        cipher.decrypt(number, bytes);
        part.copy_from_slice(bytes);
        offset += bytes.len() as u64;
        number += (bytes.len() / SECTOR) as u64;
    }
    Ok(())
}

/// Writes `bufs`, whole sectors from `number` on, encrypted, to `offset` of `storage`.
pub(crate) fn write_sectors(
    storage: &dyn Storage,
    cipher: &SectorCipher,
    mut bufs: IoVector<'_>,
    mut offset: u64,
    mut number: u64,
) -> Result<()> {
    let mut piece = vec![0; bufs.len().min(PIECE)];
    while !bufs.is_empty() {
        let part = bufs.take_front(PIECE.min(bufs.len()));
        let bytes = &mut piece[..part.len()];
        part.copy_to_slice(bytes);
        cipher.encrypt(number, bytes);
        storage.writev_at((&*bytes).into(), offset)?;
        offset += bytes.len() as u64;
        number += (bytes.len() / SECTOR) as u64;
    }
    Ok(())
}

impl Encrypted {
    /// How long the storage inside is with a disk of `len` bytes.
    fn inner_len(&self, len: u64) -> Result<u64> {
        let len = len.checked_next_multiple_of(SECTOR as u64).and_then(|len| self.base.checked_add(len));
        len.ok_or_else(|| Error::invalid_input("no storage is that long"))
    }
}

impl Storage for Encrypted {
    fn readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        Self::check(offset, bufs.len() as u64)?;
        let within = self.len()?.saturating_sub(offset).min(bufs.len() as u64) as usize;
        let there = bufs.take_front(within);
        bufs.fill_zero();
        read_sectors(&*self.inner, &self.cipher, there, self.base + offset, offset / SECTOR as u64)
    }

    fn try_readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        Self::check(offset, bufs.len() as u64)?;
        if bufs.len() > PIECE || self.len()? < offset + bufs.len() as u64 {
            return Ok(0);
        }
        let mut piece = vec![0; bufs.len()];
        let there = self.inner.try_readv_at((&mut piece).into(), self.base + offset)?;
        let bytes = &mut piece[..there - there % SECTOR];
        self.cipher.decrypt(offset / SECTOR as u64, bytes);
        bufs.take_front(bytes.len()).copy_from_slice(bytes);
        Ok(bytes.len())
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        Self::check(offset, bufs.len() as u64)?;
        write_sectors(&*self.inner, &self.cipher, bufs, self.base + offset, offset / SECTOR as u64)
    }

    fn write_zeroes_at(&self, mut offset: u64, len: u64, _: ZeroMode) -> Result<()> {
        Self::check(offset, len)?;
        let end = self.len()?.min(offset + len);
        while offset < end {
            let part = (end - offset).min(PIECE as u64);
            self.writev_at(IoVector::zeroes(part as usize), offset)?;
            offset += part;
        }
        Ok(())
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        Self::check(offset, len)?;
        // A hole would read as anything, where old bytes or zeroes are promised.
        Ok(())
    }

    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.allocate_at(self.base + offset, len)
    }

    fn len(&self) -> Result<u64> {
        Ok(self.inner.len()?.saturating_sub(self.base).next_multiple_of(SECTOR as u64))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(self.inner_len(len)?)
    }

    fn grow(&self, len: u64) -> Result<()> {
        self.inner.grow(self.inner_len(len)?)
    }

    fn write_out(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.write_out(self.base + offset, len)
    }

    fn let_go(&self, offset: u64, len: u64) {
        self.inner.let_go(self.base + offset, len);
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: SECTOR as u32, memory_alignment: 1 }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { fast_zeroes: false, discard_zeroes: false, ..self.inner.capabilities() }
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.inner.allocated()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }

    fn position(&self, _: u64) -> Option<u64> {
        None
    }

    fn identity(&self) -> Option<Identity> {
        self.inner.identity()
    }

    fn check_named(&self) -> Result<()> {
        self.inner.check_named()
    }

    fn unlock(&self) {
        self.inner.unlock();
    }
}
