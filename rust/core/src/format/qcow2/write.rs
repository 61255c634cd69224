//! Writing: where data may be overwritten in place, and new space for what may not.
//!
//! Recipe (docs/qcow2.md, "Allocating write"): take clusters in memory; the caller writes the data and what stood around
//! it; then [`Driver::publish`] changes the L2 entries in memory. A flush makes data and refcounts durable before the entries.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Driver;
use super::cache::Slice;
use super::features;
use super::l2::{Entry, Unit};
use super::pending::{Dropped, Quarantine};
use crate::error::{Error, Result};
use crate::format::{Allocation, InPlace, Lookup, WriteStep};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

/// Bytes that devices write whole.
const SECTOR: u64 = 512;

/// What an allocation's `ticket` says: its space was taken for it (or the entry named it already).
const TAKEN: u64 = 1;
const OWN: u64 = 0;

impl Driver {
    /// What has to be in the file before the first change of guest data.
    pub(super) fn start_writing(&self) -> Result<()> {
        self.check_writable()?;
        if self.started.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut bitmaps = self.bitmaps.lock();
        if !self.started.load(Ordering::Acquire) {
            self.clear_unknown_features(&mut self.flushing.lock())?;
            self.end_with_a_sector()?;
            self.hold_enabled(&mut bitmaps)?;
            // Whoever sees that writing has started marks what it writes.
            let none = self.publish_recorder(&bitmaps);
            self.started.store(true, Ordering::Release);
            self.recorder.set_idle(none);
        }
        Ok(())
    }

    /// Lets the file end with a sector, as it does from here on: where data is in the last one, half of it could survive a loss of power with the file's
    /// old length.
    fn end_with_a_sector(&self) -> Result<()> {
        let len = self.metadata.len()?;
        if len.is_multiple_of(SECTOR) || !self.metadata.capabilities().resize {
            return Ok(());
        }
        self.metadata.grow(len.next_multiple_of(SECTOR))?;
        self.metadata.sync()
    }

    /// Clears the autoclear bits that are not known, which comes before any other change of the file. The caller holds `flushing`.
    pub(super) fn clear_unknown_features(&self, _: &mut Quarantine) -> Result<()> {
        let header = self.header();
        let known = header.autoclear & features::AUTOCLEAR_KNOWN;
        if header.version >= 3 && known != header.autoclear {
            header.rewrite_features(&self.metadata, header.incompatible, header.compatible, known)?;
            self.metadata.sync()?;
            self.change_header(|header| header.autoclear = known);
        }
        Ok(())
    }

    pub(super) fn find_in_place(&self, guest: GuestOffset, len: u64) -> Result<Option<InPlace<'_>>> {
        self.check_writable()?;
        if !self.started.load(Ordering::Acquire) {
            return Ok(None);
        }
        let Some(table) = self.table(guest)?.filter(|table| table.copied) else {
            return Ok(None);
        };
        let own = |slice: &Slice| self.own_data(slice, table.host, guest, len);
        Ok(self.look_up(table.host, guest, Lookup::Load, own)?.flatten())
    }

    /// The run of `slice` at `guest` that holds data nobody shares.
    fn own_data(
        &self,
        slice: &Slice,
        table: HostOffset,
        guest: GuestOffset,
        len: u64,
    ) -> Result<Option<InPlace<'_>>> {
        let own = |entry: Entry, unit| Ok(entry.is_copied() && matches!(unit, Unit::Data { .. }));
        let Some(run) = self.units(slice, table, guest, len).run(own)? else {
            return Ok(None);
        };
        let host = run.unit.space().expect("data has space");
        let storage = self.data_at(guest, host)?;
        let len = run.end - guest;
        let offset = host + guest.within(self.geometry.unit_size());
        self.refuse_metadata(offset, len)?;
        Ok(Some(InPlace { len, storage, offset }))
    }

    /// Refuses guest data in a cluster of metadata (I6).
    pub(super) fn refuse_metadata(&self, host: HostOffset, len: u64) -> Result<()> {
        if self.geometry.external_data {
            return Ok(());
        }
        let bits = self.geometry.cluster_bits;
        let reserved = self.reserved.read();
        match (host.0 >> bits..=(host.0 + len - 1) >> bits).find(|cluster| reserved.contains(cluster)) {
            None => Ok(()),
            Some(cluster) => Err(Error::corrupt(
                "an L2 entry maps guest data onto metadata, which was left alone; repair the image (a check with repair \"all\")",
            )
            .at(cluster << bits)),
        }
    }

    /// What dropping an entry releases; an entry that names metadata is corruption, and nothing may be freed by it (I6).
    pub(super) fn owned(&self, entry: Entry) -> Result<Option<Dropped>> {
        let Some((host, len)) = entry.owned(self.geometry)? else {
            return Ok(None);
        };
        self.refuse_metadata(host, len)?;
        Ok(Some(Dropped { host, len }))
    }

    pub(super) fn plan_write(&self, guest: GuestOffset, len: u64) -> Result<WriteStep<'_>> {
        let table = self.own_table(guest)?;
        let slice = self.slice(table, guest)?;
        if let Some(place) = self.own_data(&slice, table, guest, len)? {
            return Ok(WriteStep::InPlace(place));
        }
        let first = slice.get(self.geometry.entry_index(guest), self.geometry.extended);
        if first.has_own_space(self.geometry)? {
            return self.plan_own_space(&slice, table, guest, len).map(WriteStep::Allocate);
        }
        self.plan_new_clusters(&slice, guest, len).map(WriteStep::Allocate)
    }

    /// Data for units of one cluster that have space of their own but show something else.
    fn plan_own_space(
        &self,
        slice: &Slice,
        table: HostOffset,
        guest: GuestOffset,
        len: u64,
    ) -> Result<Allocation> {
        let (unit_size, cluster_size) = (self.geometry.unit_size(), self.geometry.cluster_size());
        let start = guest.align_down(unit_size);
        let end = (guest + len).min(guest.align_down(cluster_size) + cluster_size);
        let no_data = |_, unit| Ok(!matches!(unit, Unit::Data { .. }));
        let run = self.units(slice, table, start, end - start).run(no_data)?.expect("checked by the caller");
        let host = run.unit.space().expect("checked by the caller");
        let len = (run.end - start).div_ceil(unit_size) * unit_size;
        self.data_at(start, host)?;
        self.refuse_metadata(host, len)?;
        Ok(Allocation {
            guest: start,
            len,
            request_len: run.end - guest,
            host,
            reads_zero: false,
            ticket: OWN,
        })
    }

    /// New clusters for units whose clusters are missing, shared or compressed.
    fn plan_new_clusters(&self, slice: &Slice, guest: GuestOffset, len: u64) -> Result<Allocation> {
        let geometry = self.geometry;
        let cluster_size = geometry.cluster_size();
        let first_cluster = guest.align_down(cluster_size);
        let slice_end = guest.align_down(geometry.slice_span()) + geometry.slice_span();
        let end = (guest + len).min(slice_end);
        let entry_at = |guest| slice.get(geometry.entry_index(guest), geometry.extended);

        let mut wanted = 1;
        while first_cluster + wanted * cluster_size < end
            && !entry_at(first_cluster + wanted * cluster_size).has_own_space(geometry)?
        {
            wanted += 1;
        }
        let (host, count, reads_zero) = if geometry.external_data {
            (HostOffset(first_cluster.0), wanted, false)
        } else {
            let taken = self.take_clusters(wanted)?;
            // What the file has zeroes for is no zeroes once it is decrypted.
            let reads_zero = taken.reads_zero && !self.needs_secret();
            (HostOffset(taken.first << geometry.cluster_bits), taken.count, reads_zero)
        };
        let end = end.min(first_cluster + count * cluster_size);
        let last_cluster = GuestOffset(end.0 - 1).align_down(cluster_size);
        let unit_size = geometry.unit_size();
        let start = if entry_at(first_cluster).moves_content(geometry) {
            first_cluster
        } else {
            guest.align_down(unit_size)
        };
        let covered_end = if entry_at(last_cluster).moves_content(geometry) {
            last_cluster + cluster_size
        } else {
            GuestOffset(end.0.div_ceil(unit_size) * unit_size)
        };
        Ok(Allocation {
            guest: start,
            len: covered_end - start,
            request_len: end - guest,
            host: host + (start - first_cluster),
            reads_zero,
            ticket: TAKEN,
        })
    }

    /// Makes the data of an allocation visible: its L2 entries change, in memory.
    pub(super) fn publish(&self, allocation: &Allocation) -> Result<()> {
        let geometry = self.geometry;
        let cluster_size = geometry.cluster_size();
        let table = self.own_table(allocation.guest)?;
        let slice = self.slice(table, allocation.guest)?;
        let end = allocation.guest + allocation.len;
        let mut pending = self.pending.lock();
        pending.slices.insert(table.0 + geometry.slice_offset(allocation.guest), Arc::clone(&slice));
        let mut guest = allocation.guest;
        while guest < end {
            let cluster = guest.align_down(cluster_size);
            let last_byte = GuestOffset(end.0.min(cluster.0 + cluster_size) - 1);
            let (first, last) = (Entry::unit_index(guest, geometry), Entry::unit_index(last_byte, geometry));
            let host =
                HostOffset(allocation.host.0 + (guest - allocation.guest) - guest.within(cluster_size));
            let index = geometry.entry_index(guest);
            let old = slice.get(index, geometry.extended);
            let owned = self.owned(old)?;
            let base =
                if allocation.ticket == TAKEN && old.moves_content(geometry) { Entry::EMPTY } else { old };
            slice.set(index, base.with_data(host, first, last, geometry), geometry.extended);
            if allocation.ticket == TAKEN
                && let Some(owned) = owned
            {
                pending.dropped.push(owned);
            }
            guest = cluster + cluster_size;
        }
        drop(pending);
        self.flush_if_crowded()
    }

    /// Takes back what [`Driver::plan_write`] set aside; nothing of it was published.
    pub(super) fn give_back(&self, allocation: &Allocation) {
        // Where nothing is written any more nothing is freed either: the refcounts may be what is wrong.
        if allocation.ticket != TAKEN || self.geometry.external_data || self.metadata.failure().is_some() {
            return;
        }
        let size = self.geometry.cluster_size();
        let host = allocation.host.align_down(size);
        let len = (allocation.host + allocation.len - host).div_ceil(size) * size;
        // An error leaves a leak, which harms nothing, and the failure that led here is the one to report.
        let _ = self.drop_references(&[Dropped { host, len }]);
    }
}
