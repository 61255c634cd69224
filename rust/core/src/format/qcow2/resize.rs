//! Changing the size of the disk, and giving the file's tail back.
//!
//! Recipes: docs/qcow2.md, "Growing the disk" and "Shrinking the disk". Access zeroes what is behind the old end between the steps.

use std::sync::atomic::Ordering;

use super::Driver;
use super::header::{MAX_L1_LEN, l1_entries_for};
use super::l2::Entry;
use super::pending::Dropped;
use super::snapshots::SnapshotTable;
use crate::error::{Error, Result};
use crate::format::Resize;
use crate::format::steps::Steps;
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

/// What a disk's size is a multiple of, as QEMU knows no smaller unit.
const SECTOR: u64 = 512;

impl Resize for Driver {
    fn check(&self, size: u64) -> Result<()> {
        self.check_writable()
            .and_then(|()| self.check_size(size))
            .and_then(|()| self.check_bitmaps_for_resize(size))
            .map_err(|e| self.located(e))
    }

    fn make_room(&self, size: u64) -> Result<()> {
        self.hold_bitmaps_for_resize(size)
            .and_then(|()| self.start_writing())
            .and_then(|()| self.lengthen_l1(size))
            .map_err(|e| self.located(e))
    }

    fn set_size(&self, size: u64, steps: &mut Steps<'_>) -> Result<()> {
        self.hold_bitmaps_for_resize(size)
            .and_then(|()| self.start_writing())
            .and_then(|()| self.change_size(size, steps))
            .map_err(|e| self.located(e))
    }

    fn fills_places(&self) -> bool {
        self.header().is_data_file_raw()
    }
}

impl Driver {
    fn check_size(&self, size: u64) -> Result<()> {
        let header = self.header();
        if !size.is_multiple_of(SECTOR) {
            return Err(Error::invalid_input(format!(
                "a size of {size} bytes is not possible; multiples of {SECTOR} are"
            )));
        }
        let most = MAX_L1_LEN / 8 * self.geometry.table_span();
        if size > most {
            return Err(Error::invalid_input(format!(
                "a disk of {size} bytes is too big for clusters of {} bytes, where {most} bytes are the most",
                self.geometry.cluster_size()
            )));
        }
        let _one_flush = self.flushing.lock();
        let table = SnapshotTable::read(&*self.storage, &header)?;
        if table.snapshots.iter().any(|snapshot| snapshot.disk_size().is_none()) {
            return Err(Error::unsupported(
                "the image has snapshots that do not know the size of their disk: delete them first",
            ));
        }
        if header.version < 3 && !table.snapshots.is_empty() {
            return Err(Error::unsupported(
                "a version 2 image with snapshots keeps its size: delete them or make it version 3 first",
            ));
        }
        Ok(())
    }

    /// Makes the active L1 table long enough for a disk of `size` bytes.
    fn lengthen_l1(&self, size: u64) -> Result<()> {
        let mut quarantine = self.flushing.lock();
        let header = self.header();
        let entries = l1_entries_for(size, header.cluster_bits, self.geometry.entry_size());
        if entries <= u64::from(header.l1_entries) {
            return Ok(());
        }
        self.write_back_held(&mut quarantine)?;
        let mut words = self.active_l1();
        words.resize(entries as usize, 0);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let row = self.put_row(&bytes, &mut quarantine)?;
        self.or_latch(|| {
            self.write_changed_refcounts()?;
            self.metadata.sync()?;
            header.rewrite_disk(&self.metadata, header.size, row.host, entries as u32)?;
            self.metadata.sync()?;
            self.change_header(|header| (header.l1_offset, header.l1_entries) = (row.host, entries as u32));
            self.retire_l1(&header, &mut quarantine);
            self.take_off_dropped(&mut quarantine)
        })
    }

    /// Changes the size in the header, durably, and drops what is behind it then.
    fn change_size(&self, size: u64, steps: &mut Steps<'_>) -> Result<()> {
        let old = self.size.load(Ordering::Acquire);
        {
            let mut quarantine = self.flushing.lock();
            self.write_back_held(&mut quarantine)?;
            if size != old {
                let header = self.header();
                self.or_latch(|| {
                    header.rewrite_disk(&self.metadata, size, header.l1_offset, header.l1_entries)?;
                    self.metadata.sync()
                })?;
                self.change_header(|header| header.size = size);
                self.size.store(size, Ordering::Release);
                self.fit_slices(size);
            }
        }
        self.resize_bitmaps();
        if size <= old {
            self.drop_behind(size, steps)?;
            // Twice: what the first takes off may be free with the second.
            self.write_back()?;
            self.trim_file()?;
        }
        if let Some(data) =
            self.data.as_ref().filter(|data| self.geometry.external_data && data.capabilities().resize)
            && data.len()? != size
        {
            data.set_len(size)?;
        }
        Ok(())
    }

    /// Drops all that is mapped from the first whole cluster behind the disk's end `size` on.
    fn drop_behind(&self, size: u64, steps: &mut Steps<'_>) -> Result<()> {
        let geometry = self.geometry;
        let (cluster, span) = (geometry.cluster_size(), geometry.table_span());
        let end = GuestOffset(size.next_multiple_of(cluster));
        let entries = self.header().l1_entries as usize;
        let first = geometry.l1_index(end);
        steps.expect(entries.saturating_sub(first) as u64 * cluster)?;
        for index in first..entries {
            let start = GuestOffset(index as u64 * span);
            if start >= end {
                self.drop_table(index)?;
            } else if self.table(end)?.is_some() {
                self.drop_entries(end, start + span)?;
            }
            self.flush_if_crowded()?;
            steps.advance(cluster)?;
        }
        Ok(())
    }

    /// Takes an L2 table out of the L1 table, with all that it refers to.
    fn drop_table(&self, index: usize) -> Result<()> {
        let geometry = self.geometry;
        let Some(table) = self.table(GuestOffset(index as u64 * geometry.table_span()))? else {
            return Ok(());
        };
        let mut dropped = vec![Dropped { host: table.host, len: geometry.cluster_size() }];
        let keys = (table.host.0..).step_by(geometry.slice_bytes() as usize);
        let keys = keys.take((geometry.cluster_size() / geometry.slice_bytes()) as usize);
        for key in keys.clone() {
            let slice = self.slices.get(key, |bytes| self.storage.readv_at(bytes.into(), key))?;
            for index in 0..(geometry.slice_bytes() / geometry.entry_size()) as usize {
                dropped.extend(self.owned(slice.get(index, geometry.extended))?);
            }
        }
        let mut pending = self.pending.lock();
        // Changes of it are nobody's any more.
        keys.for_each(|key| drop(pending.slices.remove(&key)));
        self.l1[index].store(0, Ordering::Release);
        pending.l1.insert(index);
        pending.dropped.append(&mut dropped);
        drop(pending);
        self.slices.forget(table.host.0, geometry.cluster_size());
        self.reserved.write().remove(&(table.host.0 >> geometry.cluster_bits));
        Ok(())
    }

    /// Empties the entries of one L2 table from `guest` up to `end`.
    fn drop_entries(&self, mut guest: GuestOffset, end: GuestOffset) -> Result<()> {
        let geometry = self.geometry;
        let table = self.own_table(guest)?;
        while guest < end {
            let slice = self.slice(table, guest)?;
            let stop = guest.align_down(geometry.slice_span()) + geometry.slice_span();
            let mut pending = self.pending.lock();
            while guest < stop {
                let index = geometry.entry_index(guest);
                let old = slice.get(index, geometry.extended);
                if old != Entry::EMPTY {
                    pending.dropped.extend(self.owned(old)?);
                    slice.set(index, Entry::EMPTY, geometry.extended);
                    pending.slices.insert(table.0 + geometry.slice_offset(guest), slice.clone());
                }
                guest = guest + geometry.cluster_size();
            }
        }
        Ok(())
    }

    /// Cuts free clusters off the end of the image file. Nothing that was flushed names them.
    pub(super) fn trim_file(&self) -> Result<()> {
        if !self.storage.capabilities().resize {
            return Ok(());
        }
        let _one_flush = self.flushing.lock();
        let mut refcounts = self.refcounts.lock();
        let len = self.storage.len()?;
        let end = HostOffset(refcounts.end_to_keep(&*self.storage, len)? << self.geometry.cluster_bits);
        if end.0 < len {
            self.metadata.set_len(end.0)?;
            refcounts.note_cut(end);
        }
        Ok(())
    }
}
