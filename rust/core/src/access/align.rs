//! Requests to a storage whose limits ask for aligned offsets, lengths and buffers: met here, once, for all.
//!
//! A storage with limits of 1 is called as it is. Otherwise what is not aligned goes through a buffer that is; an
//! unaligned write reads the units at its edges, changes them and writes them back, with the range locked.
//! For the same reason every write to such a storage locks its range: one that changes a whole unit between
//! another's read and write of it would be undone.

use crate::buffer::{IoVector, IoVectorMut};
use crate::error::Result;
use crate::storage::{Limits, Storage, ZeroMode};

use super::range_lock::RangeLocks;

/// Most bytes that one bounce buffer holds, so that a huge request does not ask for as much memory again.
const BOUNCE_MAX: u64 = 1 << 20;

/// Bytes that start at an aligned address.
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: usize, align: usize) -> Self {
        let memory = vec![0; len + align];
        let start = memory.as_ptr().addr().next_multiple_of(align) - memory.as_ptr().addr();
        AlignedBuffer { memory, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

fn any(limits: Limits) -> bool {
    limits.request_alignment <= 1 && limits.memory_alignment <= 1
}

/// The aligned range around `len` bytes at `offset`.
fn around(offset: u64, len: u64, unit: u64) -> (u64, u64) {
    (offset & !(unit - 1), (offset + len).next_multiple_of(unit))
}

/// Fills `bufs` from `offset` of `storage` on, whatever its limits.
#[inline]
pub(crate) fn read(storage: &dyn Storage, bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
    let limits = storage.limits();
    if any(limits) { storage.readv_at(bufs, offset) } else { read_limited(storage, limits, bufs, offset) }
}

#[cold]
fn read_limited(
    storage: &dyn Storage,
    limits: Limits,
    mut bufs: IoVectorMut<'_>,
    mut offset: u64,
) -> Result<()> {
    let unit = u64::from(limits.request_alignment);
    let memory = limits.memory_alignment as usize;
    if fits(limits, offset, bufs.len() as u64) && bufs.is_aligned(memory) {
        return storage.readv_at(bufs, offset);
    }
    while !bufs.is_empty() {
        let len = (bufs.len() as u64).min(BOUNCE_MAX - offset % unit);
        let (start, end) = around(offset, len, unit);
        let mut bounce = AlignedBuffer::new((end - start) as usize, memory);
        storage.readv_at(bounce.bytes_mut().into(), start)?;
        let skip = (offset - start) as usize;
        bufs.take_front(len as usize).copy_from_slice(&bounce.bytes()[skip..skip + len as usize]);
        offset += len;
    }
    Ok(())
}

/// Writes `bufs` to `storage` from `offset` on, whatever its limits. `locks` are those of this image's host ranges.
#[inline]
pub(crate) fn write(
    storage: &dyn Storage,
    locks: &RangeLocks,
    bufs: IoVector<'_>,
    offset: u64,
) -> Result<()> {
    let limits = storage.limits();
    if any(limits) { storage.writev_at(bufs, offset) } else { write_limited(storage, limits, locks, bufs, offset) }
}

#[cold]
fn write_limited(
    storage: &dyn Storage,
    limits: Limits,
    locks: &RangeLocks,
    mut bufs: IoVector<'_>,
    mut offset: u64,
) -> Result<()> {
    let unit = u64::from(limits.request_alignment);
    let memory = limits.memory_alignment as usize;
    let _range = locks.lock(offset, bufs.len() as u64, unit);
    if fits(limits, offset, bufs.len() as u64) && bufs.is_aligned(memory) {
        return storage.writev_at(bufs, offset);
    }
    while !bufs.is_empty() {
        let len = (bufs.len() as u64).min(BOUNCE_MAX - offset % unit);
        let (start, end) = around(offset, len, unit);
        let mut bounce = AlignedBuffer::new((end - start) as usize, memory);
        let skip = (offset - start) as usize;
        let last = (end - start - unit) as usize;
        let bytes = bounce.bytes_mut();
        if start < offset {
            storage.readv_at((&mut bytes[..unit as usize]).into(), start)?;
        }
        if offset + len < end && (last > 0 || start == offset) {
            storage.readv_at((&mut bytes[last..]).into(), end - unit)?;
        }
        bufs.take_front(len as usize).copy_to_slice(&mut bytes[skip..skip + len as usize]);
        storage.writev_at(bounce.bytes().into(), start)?;
        offset += len;
    }
    Ok(())
}

/// Makes `len` bytes at `offset` of `storage` zeroes, whatever its limits.
pub(crate) fn zero(
    storage: &dyn Storage,
    locks: &RangeLocks,
    offset: u64,
    len: u64,
    mode: ZeroMode,
) -> Result<()> {
    let limits = storage.limits();
    if any(limits) {
        return storage.write_zeroes_at(offset, len, mode);
    }
    let unit = u64::from(limits.request_alignment);
    let (start, end) = (offset.next_multiple_of(unit), (offset + len) & !(unit - 1));
    if start >= end {
        return write(storage, locks, zeroes(len as usize), offset);
    }
    if offset < start {
        write(storage, locks, zeroes((start - offset) as usize), offset)?;
    }
    {
        let _range = locks.lock(start, end - start, unit);
        storage.write_zeroes_at(start, end - start, mode)?;
    }
    if end < offset + len {
        write(storage, locks, zeroes((offset + len - end) as usize), end)?;
    }
    Ok(())
}

/// Discards what whole units there are in `len` bytes at `offset` of `storage`.
pub(crate) fn discard(storage: &dyn Storage, offset: u64, len: u64) -> Result<()> {
    let unit = u64::from(storage.limits().request_alignment.max(1));
    let (start, end) = (offset.next_multiple_of(unit), (offset + len) & !(unit - 1));
    if start < end { storage.discard_at(start, end - start) } else { Ok(()) }
}

fn fits(limits: Limits, offset: u64, len: u64) -> bool {
    (offset | len).is_multiple_of(u64::from(limits.request_alignment))
}

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// `len` bytes of zeroes to write, without an allocation for the bytes themselves.
pub(crate) fn zeroes(len: usize) -> IoVector<'static> {
    let mut vector = IoVector::new();
    let mut rest = len;
    while rest > 0 {
        let part = rest.min(ZEROES.len());
        vector.push(&ZEROES[..part]);
        rest -= part;
    }
    vector
}
