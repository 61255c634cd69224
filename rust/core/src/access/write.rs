//! Writing: in place where the space is there, otherwise into new space that is then published.

use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, Result};
use crate::format::{Allocation, InPlace, WriteStep};
use crate::storage::Storage;
#[cfg(unix)]
use crate::storage::{Offload, RawRange};
use crate::units::GuestOffset;

use super::image::Image;
use super::probe;

/// Bytes that devices write whole.
const SECTOR: u64 = 512;

impl Image {
    /// Writes `bufs` to the disk from `offset` on (bytes).
    ///
    /// A range that passes the end of the disk is [`ErrorKind::InvalidInput`], an image that was opened read-only
    /// [`ErrorKind::ReadOnly`]; nothing is written then. Durable after the next [`flush`](Image::flush).
    pub fn write<'a>(&self, bufs: impl Into<IoVector<'a>>, offset: u64) -> Result<()> {
        let bufs = bufs.into();
        let _writing = self.begin_write(offset, bufs.len() as u64)?;
        if self.probed_raw && offset < probe::LEN as u64 && !bufs.is_empty() {
            return self.write_start(bufs, offset);
        }
        if self.cipher.is_some() {
            // A sector that is written in part is read first: nobody else changes it meanwhile.
            let _range = self.ranges.lock(offset, bufs.len() as u64, self.format.write_alignment());
            return self.write_locked(bufs, offset);
        }
        self.write_range(bufs, offset)
    }

    /// Fills the disk from `offset` on with bytes of a file, in a way that does not move them through memory, and says how many from the front that
    /// were: what it did not do the caller reads and writes.
    ///
    /// # Errors
    /// As of [`write`](Image::write). That the bytes cannot be had this way is none.
    #[cfg(unix)]
    pub(super) fn copy_in(&self, source: RawRange, offset: u64, how: Offload) -> Result<u64> {
        let _writing = self.begin_write(offset, source.len)?;
        if self.probed_raw || self.cipher.is_some() {
            return Ok(0);
        }
        let _range = self.ranges.lock(offset, source.len, self.format.write_alignment());
        let mut done = 0;
        while done < source.len {
            let rest = RawRange { offset: source.offset + done, len: source.len - done, ..source };
            let step = self.format.prepare_write(GuestOffset(offset + done), rest.len);
            let (asked, copied) = match step.map_err(|e| self.name(e))? {
                WriteStep::InPlace(InPlace { len, storage, offset: host }) => {
                    self.reach_sector_end(&**storage, host.0 + len, offset + done + len)?;
                    (len, storage.copy_from(RawRange { len, ..rest }, host.0, how))
                }
                WriteStep::Allocate(allocation) => {
                    let len = allocation.request_len;
                    let (start, covered) = (allocation.guest.0, allocation.len);
                    // Space that holds more than these bytes is for who can write them all at once.
                    let alone = (start, covered) == (offset + done, len);
                    let part = RawRange { len, ..rest };
                    let storage = self.format.data_storage();
                    if !alone || storage.copy_from(part, allocation.host.0, how) < len {
                        self.format.abandon(allocation);
                        break;
                    }
                    self.format.commit(allocation).map_err(|e| self.name(e))?;
                    self.unpacked.forget(start, covered);
                    (len, len)
                }
            };
            done += copied;
            if copied < asked {
                break;
            }
        }
        Ok(done)
    }

    /// Overwrites what is in place with no lock; the first byte that is not takes the range lock for the rest.
    #[inline]
    fn write_range(&self, mut bufs: IoVector<'_>, mut offset: u64) -> Result<()> {
        while !bufs.is_empty() {
            let len = bufs.len() as u64;
            let place = self.format.in_place(GuestOffset(offset), len);
            let Some(InPlace { len, storage, offset: host }) = place.map_err(|e| self.name(e))? else {
                let _range = self.ranges.lock(offset, len, self.format.write_alignment());
                return self.write_locked(bufs, offset);
            };
            let part = bufs.take_front(len as usize);
            self.reach_sector_end(&**storage, host.0 + len, offset + len)?;
            storage.writev_at(part, host.0).map_err(|e| self.name(e))?;
            offset += len;
        }
        Ok(())
    }

    /// Writes while the caller holds the range.
    pub(super) fn write_locked(&self, mut bufs: IoVector<'_>, mut offset: u64) -> Result<()> {
        while !bufs.is_empty() {
            let step = self.format.prepare_write(GuestOffset(offset), bufs.len() as u64);
            match step.map_err(|e| self.name(e))? {
                WriteStep::InPlace(InPlace { len, storage, offset: host }) => {
                    let part = bufs.take_front(len as usize);
                    self.reach_sector_end(&**storage, host.0 + len, offset + len)?;
                    self.write_data(&**storage, part, host, offset).map_err(|e| self.name(e))?;
                    offset += len;
                }
                WriteStep::Allocate(allocation) => {
                    let len = allocation.request_len;
                    let part = bufs.take_front(len as usize);
                    if let Err(error) = self.fill(&allocation, part, offset) {
                        self.format.abandon(allocation);
                        return Err(error);
                    }
                    let (start, covered) = (allocation.guest.0, allocation.len);
                    self.format.commit(allocation).map_err(|e| self.name(e))?;
                    self.unpacked.forget(start, covered);
                    offset += len;
                }
            }
        }
        Ok(())
    }

    /// Sees to it that a write in place up to `host_end`, which is `guest_end` of the disk, leaves no storage that ends within a sector of the disk: a
    /// later write of that sector would need it longer, and a loss of power could leave half of it.
    #[inline]
    fn reach_sector_end(&self, storage: &dyn Storage, host_end: u64, guest_end: u64) -> Result<()> {
        if host_end.is_multiple_of(SECTOR) {
            return Ok(());
        }
        let of_disk = self.size().saturating_sub(guest_end);
        let end = host_end + (host_end.next_multiple_of(SECTOR) - host_end).min(of_disk);
        let grow = || if storage.len()? < end { storage.grow(end) } else { Ok(()) };
        grow().map_err(|e| self.name(e))
    }

    /// Fills new space: `part` at `offset`, around it what the guest has there now. (I3: published only afterwards)
    fn fill(&self, allocation: &Allocation, part: IoVector<'_>, offset: u64) -> Result<()> {
        let (start, end) = (allocation.guest.0, allocation.guest.0 + allocation.len);
        let after = offset + part.len() as u64;
        let head = self.surroundings(start, offset, allocation.reads_zero)?;
        let tail = match self.surroundings(after, end, allocation.reads_zero)? {
            // The storage does not end within a sector of data, see `reach_sector_end`.
            Around::Skip => Around::Zero((after.next_multiple_of(SECTOR).min(end) - after) as usize),
            tail => tail,
        };
        let from = match head {
            Around::Skip => offset,
            Around::Zero(_) | Around::Bytes(_) => start,
        };
        let mut bufs = head.vector();
        bufs.append(part);
        bufs.append(tail.vector());
        let storage = self.format.data_storage();
        self.write_data(&**storage, bufs, allocation.host + (from - start), from).map_err(|e| self.name(e))
    }

    /// What has to be written to new space for the guest range from `start` to `end`, whose content does not change.
    fn surroundings(&self, start: u64, end: u64, space_reads_zero: bool) -> Result<Around> {
        if start >= end {
            return Ok(Around::Skip);
        }
        // Behind the end of the disk there is nothing but zeroes.
        let within = self.size().min(end).saturating_sub(start);
        if within == 0 || self.reads_zero(start, within)? {
            return Ok(if space_reads_zero { Around::Skip } else { Around::Zero((end - start) as usize) });
        }
        let mut bytes = vec![0; (end - start) as usize];
        self.read_range(IoVectorMut::from(&mut bytes[..within as usize]), start)?;
        Ok(Around::Bytes(bytes))
    }

    /// A write to the first bytes of an image whose format was guessed to be raw.
    fn write_start(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        let mut sector = [0; probe::LEN];
        let size = self.size().min(probe::LEN as u64) as usize;
        let _range = self.ranges.lock(0, probe::LEN as u64, self.format.write_alignment());
        self.read_range(IoVectorMut::from(&mut sector[..size]), 0)?;
        let start = offset as usize;
        let mut first = bufs.clone();
        let first = first.take_front(bufs.len().min(size - start));
        first.copy_to_slice(&mut sector[start..start + first.len()]);
        if let Some(name) = probe::signature(&sector[..size]) {
            return Err(self.name(Error::invalid_input(format!(
                "the write would make this image look like {name}, and its format was not given but taken to be raw: \
                 open it with the format raw to write anything to it"
            ))));
        }
        self.write_locked(bufs, offset)
    }
}

/// What is around the data in new space.
enum Around {
    /// Nothing, or what the space reads as anyway.
    Skip,
    /// This many zeroes.
    Zero(usize),
    /// The guest's bytes.
    Bytes(Vec<u8>),
}

impl Around {
    fn vector(&self) -> IoVector<'_> {
        match self {
            Around::Skip => IoVector::new(),
            Around::Zero(len) => IoVector::zeroes(*len),
            Around::Bytes(bytes) => bytes.into(),
        }
    }
}
