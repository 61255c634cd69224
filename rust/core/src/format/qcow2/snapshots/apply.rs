//! Making a snapshot the disk.

use super::SnapshotTable;
use crate::error::{Error, Result};
use crate::format::qcow2::Driver;
use crate::format::qcow2::header::{MAX_L1_LEN, l1_entries_for};

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
        let new = self.new_disk(l1, size)?;

        drop(quarantine);
        if size != header.size {
            self.hold_bitmaps_for_resize(size)?;
        }
        // To a bitmap all of the disk is written.
        self.mark_written(0, header.size)?;
        self.switch_disk(new)?;
        self.resize_bitmaps();
        self.mark_written(0, size)
    }
}
