//! Internal snapshots: listing, taking, applying, deleting, renaming.
//!
//! The recipes are in docs/qcow2.md ("Taking a snapshot" and what follows it). All of them run while nobody writes to the image: after the
//! flush at their start what they look at in the file is the latest state. They hold `flushing` whenever refcounts change, so that no flush writes
//! what is only being tried.

mod apply;
mod create;
mod delete;
mod table;

pub(crate) use self::table::{MAX_EXTRA_LEN, MAX_TABLE_LEN, Snapshot, SnapshotTable};

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Driver;
use super::header::{Header, l1_entries_for};
use super::pending::{Dropped, Quarantine};
use super::tables::read_words;
use crate::error::{Error, Result};
use crate::format::Snapshots;
use crate::format::qcow2::features::INCOMPATIBLE_DIRTY;
use crate::format::qcow2_info::SnapshotInfo;
use crate::storage::Storage;
use crate::units::HostOffset;

impl Snapshots for Driver {
    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        // The table moves when it changes.
        let _one_flush = self.flushing.lock();
        let table = SnapshotTable::read(&*self.storage, &self.header())?;
        Ok(table.snapshots.iter().map(Snapshot::info).collect())
    }

    fn create(&self, name: &str, id: Option<&str>, date: Duration) -> Result<SnapshotInfo> {
        self.take_snapshot(name, id, date).map_err(|e| self.located(e))
    }

    fn apply(&self, id_or_name: &str) -> Result<()> {
        self.apply_snapshot(id_or_name).map_err(|e| self.located(e))
    }

    fn delete(&self, id_or_name: &str) -> Result<()> {
        self.delete_snapshot(id_or_name).map_err(|e| self.located(e))
    }

    fn rename(&self, id_or_name: &str, name: &str) -> Result<()> {
        self.rename_snapshot(id_or_name, name).map_err(|e| self.located(e))
    }
}

/// Makes `header` one whose disk is that of a snapshot, to be read and never written.
pub(super) fn show(storage: &dyn Storage, header: &mut Header, id_or_name: &str) -> Result<()> {
    let table = SnapshotTable::read(storage, header)?;
    let snapshot = &table.snapshots[table.find(id_or_name)?];
    let size = snapshot.disk_size().unwrap_or(header.size);
    let entry_size = if header.is_extended_l2() { 16 } else { 8 };
    if u64::from(snapshot.l1_entries) < l1_entries_for(size, header.cluster_bits, entry_size) {
        return Err(
            Error::corrupt("the snapshot's L1 table is too short for its disk").at(snapshot.l1_offset.0)
        );
    }
    (header.size, header.l1_offset, header.l1_entries) = (size, snapshot.l1_offset, snapshot.l1_entries);
    // They are of the disk as it is now.
    header.bitmaps = None;
    Ok(())
}

/// Clusters in a row that a new table is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Where it starts; 0 if there is nothing to put there.
    pub(super) host: HostOffset,
    /// Bytes of the table.
    len: u64,
}

impl Row {
    fn dropped(self) -> Option<Dropped> {
        (self.len > 0).then_some(Dropped { host: self.host, len: self.len })
    }
}

impl Driver {
    /// Refuses what has no snapshots.
    fn check_snapshots(&self) -> Result<()> {
        if self.geometry.external_data {
            return Err(Error::unsupported(
                "an image with an external data file has no snapshots: its data has no refcounts",
            ));
        }
        self.check_writable()
    }

    /// The words of the active L1 table.
    pub(super) fn active_l1(&self) -> Vec<u64> {
        let entries = self.header().l1_entries as usize;
        self.l1[..entries].iter().map(|word| word.load(Ordering::Acquire)).collect()
    }

    /// The words of a snapshot's L1 table.
    pub(super) fn snapshot_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>> {
        // The last cluster of a file may end early and reads as zeroes there.
        let entries = u64::from(snapshot.l1_entries);
        let file_len = self.storage.len()?;
        let there = (file_len.saturating_sub(snapshot.l1_offset.0) / 8).min(entries);
        let mut words = read_words(&*self.storage, snapshot.l1_offset, there)?;
        words.resize(entries as usize, 0);
        Ok(words)
    }

    /// Writes `bytes` to clusters of their own, which nothing names: after a failure they are free again.
    pub(super) fn put_row(&self, bytes: &[u8], quarantine: &mut Quarantine) -> Result<Row> {
        let len = bytes.len() as u64;
        if len == 0 {
            return Ok(Row { host: HostOffset(0), len });
        }
        let count = len.div_ceil(self.geometry.cluster_size());
        let host = HostOffset(self.take_row_held(count, quarantine)? << self.geometry.cluster_bits);
        let row = Row { host, len };
        // Past the latch, to the row's end: a table past the end of the file would be refused.
        let mut padded = bytes.to_vec();
        padded.resize((count << self.geometry.cluster_bits) as usize, 0);
        if let Err(error) = self.storage.writev_at((&padded).into(), host.0) {
            self.give_back_row(row);
            return Err(error);
        }
        let first = host.0 >> self.geometry.cluster_bits;
        self.reserved.write().extend(first..first + count);
        Ok(row)
    }

    /// Takes back a row that nothing names.
    fn give_back_row(&self, row: Row) {
        if let Some(range) = row.dropped() {
            self.forget_metadata(range);
            // An error leaves a leak, which harms nothing, and the failure that led here is the one to report.
            let _ = self.drop_references(&[range]);
        }
    }

    /// The range holds metadata no more.
    pub(super) fn forget_metadata(&self, range: Dropped) {
        let bits = self.geometry.cluster_bits;
        let mut reserved = self.reserved.write();
        for cluster in range.host.0 >> bits..(range.host.0 + range.len).div_ceil(1 << bits) {
            reserved.remove(&cluster);
        }
    }

    /// Notes that metadata in that range lost its last pointer.
    fn retire(&self, range: Option<Dropped>, quarantine: &mut Quarantine) {
        if let Some(range) = range {
            self.forget_metadata(range);
            quarantine.add(vec![range]);
        }
    }

    /// The same of the active L1 table that `header` names.
    pub(super) fn retire_l1(&self, header: &Header, quarantine: &mut Quarantine) {
        let row = Row { host: header.l1_offset, len: u64::from(header.l1_entries) * 8 };
        self.retire(row.dropped(), quarantine);
    }

    /// Writes the refcount blocks that changed.
    pub(super) fn write_changed_refcounts(&self) -> Result<()> {
        let writes = self.refcounts.lock().take_dirty();
        self.write_refcounts(&writes)
    }

    /// Whether the header can say that refcounts and COPIED flags need not agree.
    fn has_dirty_bit(&self) -> bool {
        self.header().version >= 3
    }

    /// Says that they need not, or that they do again, where that can be said; no barrier.
    fn set_dirty(&self, dirty: bool) -> Result<()> {
        if !self.has_dirty_bit() {
            return Ok(());
        }
        let header = self.header();
        let others = header.incompatible & !INCOMPATIBLE_DIRTY;
        let incompatible = if dirty { others | INCOMPATIBLE_DIRTY } else { others };
        header.rewrite_features(&self.metadata, incompatible, header.compatible, header.autoclear)?;
        self.change_header(|header| header.incompatible = incompatible);
        Ok(())
    }

    /// Points the header to the table in `row`, durably; the old table goes into quarantine.
    fn switch_table(
        &self,
        old: &SnapshotTable,
        new: &SnapshotTable,
        row: Row,
        quarantine: &mut Quarantine,
    ) -> Result<()> {
        let header = self.header();
        let count = new.snapshots.len() as u32;
        header.rewrite_snapshots(&self.metadata, row.host, count)?;
        self.metadata.sync()?;
        self.change_header(|header| {
            (header.snapshot_offset, header.snapshot_count) = (row.host, count);
        });
        let old = Row { host: header.snapshot_offset, len: old.len };
        self.retire(old.dropped(), quarantine);
        Ok(())
    }

    /// Does what cannot be undone: a failure leaves it unknown what the file holds, and nothing is written on top of that.
    pub(super) fn or_latch<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        change().inspect_err(|error| self.metadata.close(error))
    }

    /// Writes the table once more with the extra data that version 3 wants, where entries lack it: named by nobody yet, and
    /// durable with the next flush. Returns where it is, and where the old one is.
    pub(super) fn put_version_3_table(&self) -> Result<Option<(HostOffset, Dropped)>> {
        let mut quarantine = self.flushing.lock();
        let header = Header { version: 3, ..Header::clone(&self.header()) };
        let table = SnapshotTable::read(&*self.storage, &header)?;
        if table.snapshots.iter().all(|snapshot| snapshot.disk_size().is_some()) {
            return Ok(None);
        }
        let row = self.put_row(&table.to_bytes(&header)?, &mut quarantine)?;
        Ok(Some((row.host, Dropped { host: header.snapshot_offset, len: table.len })))
    }

    fn rename_snapshot(&self, id_or_name: &str, name: &str) -> Result<()> {
        self.check_snapshots()?;
        let mut quarantine = self.flushing.lock();
        self.write_back_held(&mut quarantine)?;
        let header = self.header();
        let old = SnapshotTable::read(&*self.storage, &header)?;
        let mut new = old.clone();
        let index = new.find(id_or_name)?;
        new.snapshots[index].rename(name)?;
        let bytes = new.to_bytes(&header)?;
        self.clear_unknown_features(&mut quarantine)?;
        let row = self.put_row(&bytes, &mut quarantine)?;
        self.or_latch(|| {
            self.write_changed_refcounts()?;
            self.metadata.sync()?;
            self.switch_table(&old, &new, row, &mut quarantine)?;
            self.take_off_dropped(&mut quarantine)
        })
    }
}
