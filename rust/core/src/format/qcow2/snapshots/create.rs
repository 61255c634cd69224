//! Taking a snapshot.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Snapshot, SnapshotTable};
use crate::error::{Error, Result};
use crate::format::qcow2::Driver;
use crate::format::qcow2::l2::COPIED;
use crate::format::qcow2_info::SnapshotInfo;
use crate::storage::Storage;
use crate::units::HostOffset;

impl Driver {
    /// Recipe: docs/qcow2.md, "Taking a snapshot".
    pub(super) fn take_snapshot(&self, name: &str, id: Option<&str>, date: Duration) -> Result<SnapshotInfo> {
        self.check_snapshots()?;
        let mut quarantine = self.flushing.lock();
        self.write_back_held(&mut quarantine)?;
        let header = self.header();
        let old = SnapshotTable::read(&*self.storage, &header)?;
        let id = new_id(&old, id)?;
        let date = (u32::try_from(date.as_secs()).unwrap_or(u32::MAX), date.subsec_nanos());
        let mut l1 = self.active_l1();
        let tables = self.l2_tables(&l1)?;
        let mut new = old.clone();
        // Where its L1 table is does not change how long the entry is.
        new.snapshots.push(Snapshot::new(&id, name, date, header.size, (HostOffset(0), header.l1_entries))?);
        new.to_bytes(&header)?;
        self.rehearse(|| self.add_references(&tables))?;

        drop(quarantine);
        self.start_writing()?;
        let mut quarantine = self.flushing.lock();
        let copy: Vec<u8> = l1.iter().flat_map(|word| (word & !COPIED).to_be_bytes()).collect();
        let l1_row = self.put_row(&copy, &mut quarantine)?;
        let entry = new.snapshots.last_mut().expect("just pushed");
        entry.l1_offset = l1_row.host;
        let info = entry.info();
        let put_table = new.to_bytes(&header).and_then(|bytes| self.put_row(&bytes, &mut quarantine));
        let table_row = put_table.inspect_err(|_| self.give_back_row(l1_row))?;

        self.or_latch(|| {
            self.set_dirty(true)?;
            if self.has_dirty_bit() {
                self.metadata.sync()?;
            }
            if self.flag_copied(&mut l1, |_| Ok(false))? {
                self.rewrite_l1(&l1)?;
            }
            self.metadata.sync()?;
            self.add_references(&tables)?;
            self.write_changed_refcounts()?;
            self.metadata.sync()?;
            self.switch_table(&old, &new, table_row, &mut quarantine)?;
            self.take_off_dropped(&mut quarantine)?;
            self.set_dirty(false)
        })?;
        Ok(info)
    }

    /// Writes the active L1 table's words, of which only flags changed, to the file and to memory.
    pub(super) fn rewrite_l1(&self, l1: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = l1.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.metadata.writev_at((&bytes).into(), self.header().l1_offset.0)?;
        for (entry, word) in self.l1.iter().zip(l1) {
            entry.store(*word, Ordering::Release);
        }
        Ok(())
    }
}

/// The id of a new snapshot: `wanted`, which nobody may have, or the next number.
fn new_id(table: &SnapshotTable, wanted: Option<&str>) -> Result<String> {
    let next = || {
        let highest = table.snapshots.iter().map(Snapshot::number).max().unwrap_or(0);
        highest.saturating_add(1).to_string()
    };
    let id = wanted.map_or_else(next, str::to_owned);
    let problem = if table.snapshots.iter().any(|snapshot| snapshot.has_id(&id)) {
        format!("there is a snapshot with the id {id:?} already")
    } else if id.is_empty() || id.contains('\0') {
        "the id is empty or has a NUL in it".to_owned()
    } else {
        return Ok(id);
    };
    Err(Error::invalid_input(problem))
}
