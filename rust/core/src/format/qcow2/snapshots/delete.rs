//! Deleting a snapshot.

use super::{Row, SnapshotTable};
use crate::error::Result;
use crate::format::qcow2::Driver;
use crate::storage::Storage;

impl Driver {
    /// Recipe: docs/qcow2.md, "Deleting a snapshot".
    pub(super) fn delete_snapshot(&self, id_or_name: &str) -> Result<()> {
        self.check_snapshots()?;
        let mut quarantine = self.flushing.lock();
        self.write_back_held(&mut quarantine)?;
        let header = self.header();
        let old = SnapshotTable::read(&*self.storage, &header)?;
        let mut new = old.clone();
        let snapshot = new.snapshots.remove(old.find(id_or_name)?);
        let tables = self.l2_tables(&self.snapshot_l1(&snapshot)?)?;
        self.rehearse(|| self.drop_shared_references(&tables))?;
        let bytes = new.to_bytes(&header)?;

        drop(quarantine);
        self.start_writing()?;
        let mut quarantine = self.flushing.lock();
        let row = self.put_row(&bytes, &mut quarantine)?;
        self.or_latch(|| {
            self.write_changed_refcounts()?;
            self.set_dirty(true)?;
            self.metadata.sync()?;
            self.switch_table(&old, &new, row, &mut quarantine)?;
            let last = self.drop_shared_references(&tables)?;
            self.write_changed_refcounts()?;
            self.metadata.sync()?;
            let mut l1 = self.active_l1();
            let changed = {
                let mut refcounts = self.refcounts.lock();
                self.flag_copied(&mut l1, |host| refcounts.is_single(&*self.storage, host))?
            };
            if changed {
                self.rewrite_l1(&l1)?;
            }
            let l1_row = Row { host: snapshot.l1_offset, len: u64::from(snapshot.l1_entries) * 8 };
            self.retire(l1_row.dropped(), &mut quarantine);
            quarantine.add(last);
            self.take_off_dropped(&mut quarantine)?;
            if self.has_dirty_bit() {
                self.metadata.sync()?;
            }
            self.set_dirty(false)
        })
    }
}
