//! Taking clusters of the image file, and giving them back.

use parking_lot::MutexGuard;

use super::Driver;
use super::pending::{Dropped, Quarantine};
use super::refcounts::{Refcounts, Taken};
use crate::error::Result;

impl Driver {
    /// Takes up to `wanted` free clusters in a row, at least one.
    pub(super) fn take_clusters(&self, wanted: u64) -> Result<Taken> {
        loop {
            let mut refcounts = self.refcounts.lock();
            // Past the latch: what this writes nothing names yet, and a failure leaves all as it was.
            let taken = refcounts.take(&*self.storage, &self.reserved.read(), wanted);
            self.note_moved_metadata(&mut refcounts);
            if let Some(taken) = taken? {
                return Ok(taken);
            }
            drop(refcounts);
            self.grow_refcount_table()?;
        }
    }

    /// Takes exactly `count` free clusters in a row, at least one; the number of the first.
    pub(super) fn take_row(&self, count: u64) -> Result<u64> {
        let mut one_flush = self.flushing.lock();
        self.take_row_held(count, &mut one_flush)
    }

    /// The same, of a caller that holds `flushing`.
    pub(super) fn take_row_held(&self, count: u64, _: &mut Quarantine) -> Result<u64> {
        loop {
            let mut refcounts = self.refcounts.lock();
            // Past the latch, as above.
            let first = refcounts.take_row(&*self.storage, &self.reserved.read(), count);
            self.note_moved_metadata(&mut refcounts);
            if let Some(first) = first? {
                return Ok(first);
            }
            self.grow_refcounts(refcounts, count)?;
        }
    }

    pub(super) fn grow_refcount_table(&self) -> Result<()> {
        let one_flush = self.flushing.lock();
        let grown = self.grow_refcounts(self.refcounts.lock(), 1);
        drop(one_flush);
        grown
    }

    /// Makes the refcount table longer unless it counts `count` free clusters in a row. The caller holds `flushing`.
    fn grow_refcounts(&self, mut refcounts: MutexGuard<'_, Refcounts>, count: u64) -> Result<()> {
        let grown = refcounts.grow_for(&self.metadata, &self.header(), &self.reserved.read(), count);
        self.change_header(|header| {
            (header.refcount_table_offset, header.refcount_table_clusters) = refcounts.table_place();
        });
        self.note_moved_metadata(&mut refcounts);
        grown
    }

    pub(super) fn note_moved_metadata(&self, refcounts: &mut Refcounts) {
        if refcounts.new_metadata.is_empty() && refcounts.old_metadata.is_empty() {
            return;
        }
        let mut reserved = self.reserved.write();
        for cluster in refcounts.old_metadata.drain(..) {
            reserved.remove(&cluster);
        }
        reserved.extend(refcounts.new_metadata.drain(..));
    }

    /// Takes one reference off each range, but for last ones: those are returned, to wait for whoever may still follow them.
    pub(super) fn drop_shared(&self, ranges: &[Dropped]) -> Result<Vec<Dropped>> {
        let mut last = Vec::new();
        let mut refcounts = self.refcounts.lock();
        for &range in ranges {
            // Checked when the entry lost it, but where refcounts are wrong metadata may have moved there since (I6).
            self.refuse_metadata(range.host, range.len)?;
            refcounts.drop_shared(&self.metadata, range, &mut last)?;
        }
        Ok(last)
    }

    /// Takes one reference off each range; what is free then goes back to the host.
    pub(super) fn drop_references(&self, ranges: &[Dropped]) -> Result<()> {
        let mut free = Vec::new();
        {
            let mut refcounts = self.refcounts.lock();
            for &range in ranges {
                // As above.
                self.refuse_metadata(range.host, range.len)?;
                free.extend(refcounts.drop_reference(&self.metadata, range)?);
            }
            // Punched while the allocator is locked: nobody has taken one of them yet.
            free.sort_unstable();
            for run in free.chunk_by(|a, b| a + 1 == *b) {
                let (offset, len) = (run[0], run.len() as u64);
                self.storage
                    .discard_at(offset << self.geometry.cluster_bits, len << self.geometry.cluster_bits)?;
            }
        }
        Ok(())
    }
}
