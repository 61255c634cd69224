//! Another L1 table, and with it another disk, in the place of the active one; emptying the disk, which is one case of that.
//!
//! Recipes: docs/qcow2.md, "Applying a snapshot" and "Emptying the disk".

use std::sync::atomic::Ordering;

use rustc_hash::FxHashSet;

use super::Driver;
use super::header::l1_entries_for;
use super::l2::COPIED;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::HostOffset;

/// What becomes the disk.
pub(super) struct NewDisk {
    /// Its size in bytes.
    size: u64,
    /// The words of its L1 table.
    l1: Vec<u64>,
    /// The L2 tables of the new L1 table that the active one does not name.
    come: Vec<HostOffset>,
    /// And the other way round. What both have keeps all its references.
    gone: Vec<HostOffset>,
}

impl Driver {
    /// Sees that `l1` can take the active table's place as that of a disk of `size` bytes: all is counted, nothing overflows, and no new
    /// table is on top of other metadata (I6). Nothing has changed then. The caller holds `flushing` and has flushed.
    pub(super) fn new_disk(&self, l1: Vec<u64>, size: u64) -> Result<NewDisk> {
        let (mut come, mut gone) = (self.l2_tables(&l1)?, self.l2_tables(&self.active_l1())?);
        let set = |tables: &[HostOffset]| -> FxHashSet<HostOffset> { tables.iter().copied().collect() };
        let (in_new, in_old) = (set(&come), set(&gone));
        come.retain(|table| !in_old.contains(table));
        gone.retain(|table| !in_new.contains(table));
        {
            let reserved = self.reserved.read();
            let bits = self.geometry.cluster_bits;
            if let Some(table) = come.iter().find(|table| reserved.contains(&(table.0 >> bits))) {
                return Err(Error::corrupt("an L2 table of the snapshot overlaps other metadata").at(table.0));
            }
        }
        self.rehearse(|| {
            self.add_references(&come)?;
            self.drop_shared_references(&gone)
        })?;
        Ok(NewDisk { size, l1, come, gone })
    }

    /// Makes it the disk, durably; the caller does not hold `flushing`, and nobody has written since [`new_disk`](Driver::new_disk).
    pub(super) fn switch_disk(&self, new: NewDisk) -> Result<()> {
        let NewDisk { size, mut l1, come, gone } = new;
        let mut quarantine = self.flushing.lock();
        let header = self.header();
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
        })
    }

    fn swap_metadata(&self, come: &[HostOffset], gone: &[HostOffset]) {
        let bits = self.geometry.cluster_bits;
        let mut reserved = self.reserved.write();
        for table in gone {
            reserved.remove(&(table.0 >> bits));
        }
        reserved.extend(come.iter().map(|table| table.0 >> bits));
    }

    /// Takes everything out of the disk, so that it shows what is below it; recipe: docs/qcow2.md, "Emptying the disk".
    pub(super) fn empty_disk(&self) -> Result<()> {
        self.check_writable()?;
        let mut quarantine = self.flushing.lock();
        let header = self.header();
        if header.is_data_file_raw() {
            return Err(Error::unsupported(
                "the image's data file shows the disk to whoever reads it: what is in it stays",
            ));
        }
        self.write_back_held(&mut quarantine)?;
        let entries = l1_entries_for(header.size, header.cluster_bits, self.geometry.entry_size());
        let empty = vec![0; entries as usize];
        let new = self.new_disk(empty.clone(), header.size)?;
        if self.active_l1().iter().all(|word| *word == 0) {
            return Ok(());
        }
        self.clear_unknown_features(&mut quarantine)?;
        drop(quarantine);
        self.switch_disk(new)?;
        if self.geometry.external_data {
            let data = self.data()?;
            data.discard_at(0, data.len()?)?;
        }
        // Once more: the new table stands behind all that was freed, where it would keep the file long.
        let again = {
            let mut quarantine = self.flushing.lock();
            self.write_back_held(&mut quarantine)?;
            self.new_disk(empty, header.size)?
        };
        self.switch_disk(again)
    }
}
