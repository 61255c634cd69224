//! Making changes durable in the order of the invariants.
//!
//! Recipe (docs/qcow2.md, "Flush"):
//! 1. the data file's barrier, where there is one (I3);
//! 2. changed refcount blocks; if new blocks are among them a barrier, then the table's entries (I1);
//! 3. barrier: guest data, new L2 tables, refcounts are durable (I1, I3, I4);
//! 4. changed L2 slices and L1 entries; every cluster that they name became durable in step 3;
//! 5. barrier: what those entries do not name any more has no durable pointer (I2);
//! 6. references dropped in step 4 are taken off in memory, last ones once no operation in flight can follow the old mapping, and
//!    written without a barrier: until they land there are leaks, nothing else.

use std::sync::atomic::Ordering;

use super::Driver;
use super::pending::{Pending, Quarantine};
use super::refcounts::RefcountWrites;
use crate::error::Result;
use crate::storage::Storage;

/// Dropped ranges that are remembered before a flush takes them off.
const DROPPED_MAX: usize = 1 << 16;

impl Driver {
    /// Flushes when what is pending would crowd the caches: changed slices stay in memory until then. Where all tables of the disk
    /// have room they crowd nothing out, and a flush, which waits for the device, is the caller's to ask for.
    pub(super) fn flush_if_crowded(&self) -> Result<()> {
        let crowded = {
            let pending = self.pending.lock();
            let slices = pending.slices.len() > self.slices.capacity() / 2
                && !self.slices.covers(self.geometry.l2_bytes(self.size.load(Ordering::Relaxed)));
            slices || pending.dropped.len() > DROPPED_MAX
        };
        if crowded { self.write_back() } else { Ok(()) }
    }

    pub(super) fn write_back(&self) -> Result<()> {
        self.write_back_held(&mut self.flushing.lock())
    }

    /// The same by whoever holds `flushing`.
    pub(super) fn write_back_held(&self, quarantine: &mut Quarantine) -> Result<()> {
        self.metadata.check()?;
        // Entries that change from here on belong to the next flush: their data may land after step 3.
        let (pending, slices, l1, refcounts) = {
            let mut pending = self.pending.lock();
            let taken = std::mem::take(&mut *pending);
            let slices: Vec<_> =
                taken.slices.iter().map(|(&offset, slice)| (offset, slice.to_disk())).collect();
            let l1 = self.l1_bytes(&taken);
            let refcounts = self.refcounts.lock().take_dirty();
            (taken, slices, l1, refcounts)
        };
        if let Err(error) = self.write_ordered(&refcounts, &slices, &l1) {
            // Nothing is written any more, whichever file failed: a part of this state may be on disk, and a later flush would
            // take the rest for written. Reads go on and must see what was acknowledged: the changed slices stay held in the cache.
            self.metadata.close(&error);
            self.pending.lock().slices.extend(pending.slices);
            return Err(error);
        }
        quarantine.add(self.drop_shared(&pending.dropped)?);
        self.take_off_dropped(quarantine)
    }

    /// Whether no table has changed since it was written last, and nothing is to be freed.
    pub(super) fn has_written_back(&self) -> bool {
        let quarantine = self.flushing.lock();
        let pending = self.pending.lock();
        let refcounts = self.refcounts.lock();
        quarantine.is_empty() && pending.is_empty() && !refcounts.is_dirty() && !refcounts.has_freed()
    }

    fn write_ordered(
        &self,
        refcounts: &RefcountWrites,
        slices: &[(u64, Vec<u8>)],
        l1: &[(u64, [u8; 8])],
    ) -> Result<()> {
        self.refcounts.lock().pad(&self.metadata)?;
        if self.geometry.external_data {
            self.data()?.sync()?;
        }
        self.write_refcounts(refcounts)?;
        self.metadata.sync()?;
        if slices.is_empty() && l1.is_empty() {
            return Ok(());
        }
        for (offset, bytes) in slices {
            self.metadata.writev_at(bytes.into(), *offset)?;
        }
        for (offset, bytes) in l1 {
            self.metadata.writev_at(bytes.into(), *offset)?;
        }
        self.metadata.sync()
    }

    pub(super) fn write_refcounts(&self, writes: &RefcountWrites) -> Result<()> {
        for (offset, bytes) in &writes.blocks {
            self.metadata.writev_at(bytes.into(), offset.0)?;
        }
        if !writes.table.is_empty() {
            self.metadata.sync()?;
            for (offset, word) in &writes.table {
                self.metadata.writev_at((&word.to_be_bytes()).into(), offset.0)?;
            }
        }
        self.refcounts.lock().landed();
        Ok(())
    }

    fn l1_bytes(&self, pending: &Pending) -> Vec<(u64, [u8; 8])> {
        let entry = |&index: &usize| {
            let word = self.l1[index].load(Ordering::Acquire);
            (self.l1_entry_offset(index).0, word.to_be_bytes())
        };
        pending.l1.iter().map(entry).collect()
    }

    /// Step 6: takes the references off that can be, and writes the blocks.
    pub(super) fn take_off_dropped(&self, quarantine: &mut Quarantine) -> Result<()> {
        let released = quarantine.release(&self.inflight);
        if !released.is_empty() {
            self.drop_references(&released)?;
        }
        let writes = self.refcounts.lock().take_dirty();
        if writes.blocks.is_empty() { Ok(()) } else { self.write_refcounts(&writes) }
    }
}
