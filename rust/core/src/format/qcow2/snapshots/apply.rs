//! Making a snapshot the disk.

use std::sync::atomic::Ordering;

use rustc_hash::FxHashSet;

use super::SnapshotTable;
use crate::error::{Error, Result};
use crate::format::qcow2::Driver;
use crate::format::qcow2::header::{MAX_L1_LEN, l1_entries_for};
use crate::format::qcow2::l2::COPIED;
use crate::storage::Storage;
use crate::units::HostOffset;

impl Driver {
    /// Recipe: docs/qcow2.md, "Applying a snapshot".
    pub(super) fn apply_snapshot(&self, id_or_name: &str) -> Result<()> {
        self.check_snapshots()?;
        let mut quarantine = self.flushing.lock();
        self.write_back_held(&mut quarantine)?;
        let header = self.header();
        let all = SnapshotTable::read(&*self.storage, &header)?;
        let snapshot = &all.snapshots[all.find(id_or_name)?];
        let size = snapshot.disk_size().unwrap_or(header.size);
        let mut l1 = self.snapshot_l1(snapshot)?;
        let needed = l1_entries_for(size, header.cluster_bits, self.geometry.entry_size());
        if needed * 8 > MAX_L1_LEN || (snapshot.disk_size().is_some() && (l1.len() as u64) < needed) {
            return Err(Error::corrupt("the snapshot's L1 table is too short for its disk"));
        }
        l1.resize(l1.len().max(needed as usize), 0);
        let (come, gone) = self.exchanged(self.l2_tables(&l1)?, self.l2_tables(&self.active_l1())?)?;
        self.rehearse(|| {
            self.add_references(&come)?;
            self.drop_shared_references(&gone)
        })?;

        drop(quarantine);
        if size != header.size {
            self.hold_bitmaps_for_resize(size)?;
        }
        // To a bitmap all of the disk is written.
        self.mark_written(0, header.size)?;
        let mut quarantine = self.flushing.lock();
        let words: Vec<u8> = l1.iter().flat_map(|word| (word & !COPIED).to_be_bytes()).collect();
        let row = self.put_row(&words, &mut quarantine)?;
        self.or_latch(|| {
            self.flag_copied(&mut l1, |_| Ok(false))?;
            self.add_references(&come)?;
            self.write_changed_refcounts()?;
            self.metadata.sync()?;
            header.rewrite_disk(&self.metadata, size, row.host, l1.len() as u32)?;
            self.metadata.sync()
        })?;

        self.change_header(|header| {
            (header.size, header.l1_offset, header.l1_entries) = (size, row.host, l1.len() as u32);
        });
        // A smaller size before what is behind it goes, a larger one after what is there has come.
        self.size.fetch_min(size, Ordering::AcqRel);
        for (index, entry) in self.l1[..l1.len().max(header.l1_entries as usize)].iter().enumerate() {
            entry.store(l1.get(index).copied().unwrap_or(0), Ordering::Release);
        }
        self.size.store(size, Ordering::Release);
        self.slices.clear();
        self.fit_slices(size);
        self.or_latch(|| {
            // While the old tables are still known as metadata no data may be taken for one of them.
            let last = self.drop_shared_references(&gone)?;
            self.swap_metadata(&come, &gone);
            self.retire_l1(&header, &mut quarantine);
            quarantine.add(last);
            self.take_off_dropped(&mut quarantine)
        })?;
        drop(quarantine);
        self.resize_bitmaps();
        self.mark_written(0, size)
    }

    /// The L2 tables of `new` that are not among `old`, and the other way round; those that both have keep all their references. A new one on top of
    /// other metadata is corruption (I6).
    fn exchanged(
        &self,
        mut new: Vec<HostOffset>,
        mut old: Vec<HostOffset>,
    ) -> Result<(Vec<HostOffset>, Vec<HostOffset>)> {
        let set = |tables: &[HostOffset]| -> FxHashSet<HostOffset> { tables.iter().copied().collect() };
        let (in_new, in_old) = (set(&new), set(&old));
        new.retain(|table| !in_old.contains(table));
        old.retain(|table| !in_new.contains(table));
        let reserved = self.reserved.read();
        if let Some(table) =
            new.iter().find(|table| reserved.contains(&(table.0 >> self.geometry.cluster_bits)))
        {
            return Err(Error::corrupt("an L2 table of the snapshot overlaps other metadata").at(table.0));
        }
        Ok((new, old))
    }

    fn swap_metadata(&self, come: &[HostOffset], gone: &[HostOffset]) {
        let bits = self.geometry.cluster_bits;
        let mut reserved = self.reserved.write();
        for table in gone {
            reserved.remove(&(table.0 >> bits));
        }
        reserved.extend(come.iter().map(|table| table.0 >> bits));
    }
}
