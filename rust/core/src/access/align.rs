//! Storages that ask for aligned offsets, lengths and buffers (direct I/O): met here, once, for everything above.
//!
//! What is aligned goes through as it is; what is not goes through a buffer that is. An unaligned write reads the units at
//! its edges, changes them and writes them back, with the range locked. For the same reason every write locks its range:
//! one that changed a unit between another's read and write of it would be undone.

use std::sync::Arc;

use super::range_lock::RangeLocks;
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::Result;
use crate::storage::slice::Slice;
use crate::storage::{Limits, Run, Storage, ZeroMode, answers_of_inner};

/// Most bytes that one bounce buffer holds, so that a huge request does not ask for as much memory again.
const BOUNCE_MAX: u64 = 1 << 20;

/// `storage`, able to take any request.
pub(crate) fn aligned(storage: Arc<dyn Storage>) -> Arc<dyn Storage> {
    let limits = storage.limits();
    if limits == Limits::default() {
        return storage;
    }
    let unit = u64::from(limits.request_alignment);
    Arc::new(Aligned { inner: storage, limits, unit, ranges: RangeLocks::default() })
}

/// The `size` bytes (`None`: all) of `storage` from `offset` on, whatever alignment it asks for; see [`Slice`].
pub fn part(storage: Arc<dyn Storage>, offset: u64, size: Option<u64>) -> Result<Arc<dyn Storage>> {
    let unit = u64::from(storage.limits().request_alignment);
    let fits = (offset | size.unwrap_or(0)).is_multiple_of(unit);
    Ok(Arc::new(Slice::new(if fits { storage } else { aligned(storage) }, offset, size)?))
}

#[derive(Debug)]
struct Aligned {
    inner: Arc<dyn Storage>,
    limits: Limits,
    /// `request_alignment` of the limits, in bytes.
    unit: u64,
    ranges: RangeLocks,
}

/// A part of a request, widened to whole units.
struct Widened {
    start: u64,
    end: u64,
    /// Bytes of the request in it, and those before them.
    len: usize,
    skip: usize,
}

impl Aligned {
    fn fits(&self, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(self.unit)
    }

    /// The first part of `len` bytes at `offset` that a bounce buffer takes.
    fn widen(&self, offset: u64, len: usize) -> Widened {
        let start = offset & !(self.unit - 1);
        let skip = offset - start;
        let len = (len as u64).min(BOUNCE_MAX.max(self.unit) - skip);
        let end = (offset + len).next_multiple_of(self.unit);
        Widened { start, end, len: len as usize, skip: skip as usize }
    }

    fn buffer(&self, len: u64) -> Buffer {
        Buffer::new(len as usize, self.limits.memory_alignment as usize)
    }

    fn write_widened(&self, part: &IoVector<'_>, to: &Widened) -> Result<()> {
        let mut buffer = self.buffer(to.end - to.start);
        let bytes = buffer.bytes_mut();
        let unit = self.unit as usize;
        let last = bytes.len() - unit;
        let tail = to.skip + to.len < bytes.len();
        if to.skip > 0 {
            self.inner.readv_at((&mut bytes[..unit]).into(), to.start)?;
        }
        if tail && (to.skip == 0 || last > 0) {
            self.inner.readv_at((&mut bytes[last..]).into(), to.end - self.unit)?;
        }
        part.copy_to_slice(&mut bytes[to.skip..to.skip + to.len]);
        self.inner.writev_at(buffer.bytes().into(), to.start)
    }
}

impl Storage for Aligned {
    answers_of_inner!();

    fn readv_at(&self, mut bufs: IoVectorMut<'_>, mut offset: u64) -> Result<()> {
        if self.fits(offset, bufs.len() as u64) && bufs.is_aligned(self.limits.memory_alignment as usize) {
            return self.inner.readv_at(bufs, offset);
        }
        while !bufs.is_empty() {
            let from = self.widen(offset, bufs.len());
            let mut buffer = self.buffer(from.end - from.start);
            self.inner.readv_at(buffer.bytes_mut().into(), from.start)?;
            bufs.take_front(from.len).copy_from_slice(&buffer.bytes()[from.skip..from.skip + from.len]);
            offset += from.len as u64;
        }
        Ok(())
    }

    fn writev_at(&self, mut bufs: IoVector<'_>, mut offset: u64) -> Result<()> {
        let _range = self.ranges.lock(offset, bufs.len() as u64, self.unit);
        if self.fits(offset, bufs.len() as u64) && bufs.is_aligned(self.limits.memory_alignment as usize) {
            return self.inner.writev_at(bufs, offset);
        }
        while !bufs.is_empty() {
            let to = self.widen(offset, bufs.len());
            self.write_widened(&bufs.take_front(to.len), &to)?;
            offset += to.len as u64;
        }
        Ok(())
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        // What lies past the end is not written: the edges below must not make the storage longer.
        let end = self.inner.len()?.min(offset.saturating_add(len));
        if offset >= end {
            return Ok(());
        }
        let (first, last) = (offset.next_multiple_of(self.unit), end & !(self.unit - 1));
        if first >= last {
            return self.writev_at(IoVector::zeroes((end - offset) as usize), offset);
        }
        if offset < first {
            self.writev_at(IoVector::zeroes((first - offset) as usize), offset)?;
        }
        {
            let _range = self.ranges.lock(first, last - first, self.unit);
            self.inner.write_zeroes_at(first, last - first, mode)?;
        }
        if last < end {
            self.writev_at(IoVector::zeroes((end - last) as usize), last)?;
        }
        Ok(())
    }

    /// Discards the whole units of the range.
    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        let (first, last) = (offset.next_multiple_of(self.unit), (offset + len) & !(self.unit - 1));
        if first < last { self.inner.discard_at(first, last - first) } else { Ok(()) }
    }

    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.allocate_at(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len)
    }

    fn grow(&self, len: u64) -> Result<()> {
        self.inner.grow(len)
    }

    fn write_out(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.write_out(offset, len)
    }

    fn let_go(&self, offset: u64, len: u64) {
        self.inner.let_go(offset, len);
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn run_at(&self, offset: u64, len: u64) -> Result<Run> {
        self.inner.run_at(offset, len)
    }

    #[cfg(unix)]
    fn raw_fd(&self, offset: u64, len: u64) -> Option<(std::os::fd::RawFd, u64)> {
        self.inner.raw_fd(offset, len)
    }

    fn raw_limits(&self) -> Limits {
        self.inner.raw_limits()
    }
}

/// Bytes that start at an aligned address.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize, align: usize) -> Self {
        let memory = vec![0; len + align];
        let start = memory.as_ptr().align_offset(align);
        Buffer { memory, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Capabilities;
    use crate::storage::memory::Memory;

    /// A memory that insists on its limits.
    #[derive(Debug)]
    struct Strict(Memory);

    const UNIT: u32 = 512;

    fn check(offset: u64, iovecs: &[libc::iovec]) {
        assert!(offset.is_multiple_of(u64::from(UNIT)));
        for iovec in iovecs {
            assert!(iovec.iov_base.addr().is_multiple_of(64));
            assert!(iovec.iov_len.is_multiple_of(UNIT as usize));
        }
    }

    impl Storage for Strict {
        fn readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
            check(offset, bufs.as_iovecs());
            self.0.readv_at(bufs, offset)
        }
        fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
            check(offset, bufs.as_iovecs());
            self.0.writev_at(bufs, offset)
        }
        fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
            assert!((offset | len).is_multiple_of(u64::from(UNIT)));
            self.0.write_zeroes_at(offset, len, mode)
        }
        fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
            assert!((offset | len).is_multiple_of(u64::from(UNIT)));
            self.0.discard_at(offset, len)
        }
        fn len(&self) -> Result<u64> {
            self.0.len()
        }
        fn set_len(&self, len: u64) -> Result<()> {
            self.0.set_len(len)
        }
        fn sync(&self) -> Result<()> {
            Ok(())
        }
        fn limits(&self) -> Limits {
            Limits { request_alignment: UNIT, memory_alignment: 64 }
        }
        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }
    }

    #[test]
    fn any_request_behaves_as_on_plain_memory() {
        const LEN: usize = 8192;
        let storage = aligned(Arc::new(Strict(Memory::new(LEN as u64))));
        let mut model = vec![0_u8; LEN];
        let mut random = 1_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        for round in 0..2000 {
            let offset = next(LEN);
            let len = 1 + next((LEN - offset).min(2000));
            match next(4) {
                0 => {
                    storage.write_zeroes_at(offset as u64, len as u64, ZeroMode::Unmap).unwrap();
                    model[offset..offset + len].fill(0);
                }
                1 => {
                    let mut bytes = vec![0xee; len + 1];
                    storage.readv_at((&mut bytes[1..]).into(), offset as u64).unwrap();
                    assert_eq!(bytes[1..], model[offset..offset + len]);
                }
                _ => {
                    let bytes: Vec<u8> = (0..len).map(|i| (i + round) as u8).collect();
                    let (front, back) = bytes.split_at(len / 2);
                    storage.writev_at([front, back].into_iter().collect(), offset as u64).unwrap();
                    model[offset..offset + len].copy_from_slice(&bytes);
                }
            }
        }
        let mut all = vec![0; LEN];
        storage.readv_at((&mut all).into(), 0).unwrap();
        assert_eq!(all, model);
        assert_eq!(storage.len().unwrap(), LEN as u64);
    }

    #[test]
    fn unaligned_writers_of_one_unit_do_not_undo_each_other() {
        let storage = aligned(Arc::new(Strict(Memory::new(512))));
        std::thread::scope(|scope| {
            for byte in 0..8_u64 {
                let storage = &storage;
                scope.spawn(move || {
                    for value in 0..=200_u8 {
                        storage.writev_at((&[value]).into(), byte).unwrap();
                    }
                });
            }
        });
        let mut bytes = [0; 8];
        storage.readv_at((&mut bytes).into(), 0).unwrap();
        assert_eq!(bytes, [200; 8]);
    }

    #[test]
    fn a_storage_without_limits_is_not_wrapped() {
        let plain: Arc<dyn Storage> = Arc::new(Memory::new(1));
        assert!(Arc::ptr_eq(&plain, &aligned(Arc::clone(&plain))));
    }
}
