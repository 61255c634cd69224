//! Version 2 has no clusters that only read as zeroes: they become what it has instead, in the active tables and in those of snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::Driver;
use super::super::l2::{Entry, Unit};
use super::super::pending::Dropped;
use super::super::refcounts::uncounted;
use super::super::snapshots::SnapshotTable;
use crate::error::{Error, Result};
use crate::format::Compression;
use crate::format::steps::Steps;
use crate::storage::ZeroMode;
use crate::units::{GuestOffset, HostOffset};

/// One L2 table, whoever names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    host: HostOffset,
    /// The active L1 table names it.
    active: bool,
}

/// Every L2 table of the image, once, in the file's order.
pub(super) fn all_tables(driver: &Driver) -> Result<Vec<Table>> {
    let mut tables = BTreeMap::new();
    for snapshot in SnapshotTable::read(&*driver.storage, &driver.header())?.snapshots {
        let named = driver.l2_tables(&driver.snapshot_l1(&snapshot)?)?;
        tables.extend(named.into_iter().map(|host| (host, false)));
    }
    let named = driver.l2_tables(&driver.active_l1())?;
    tables.extend(named.into_iter().map(|host| (host, true)));
    Ok(tables.into_iter().map(|(host, active)| Table { host, active }).collect())
}

/// Refuses snapshots that a reader of version 2 would misread, as QEMU does: with a disk of another size or 4 GiB of VM state.
pub(super) fn check_snapshots(driver: &Driver) -> Result<()> {
    let header = driver.header();
    for snapshot in SnapshotTable::read(&*driver.storage, &header)?.snapshots {
        let info = snapshot.info();
        let problem = if snapshot.disk_size().is_some_and(|size| size != header.size) {
            "is of a disk of another size"
        } else if u32::try_from(info.vm_state_size).is_err() {
            "has 4 GiB of VM state or more"
        } else {
            continue;
        };
        return Err(Error::unsupported(format!(
            "snapshot {:?} {problem}, which version 2 cannot say; delete the snapshot first",
            info.id
        )));
    }
    Ok(())
}

/// Reads every entry: refuses those that version 2 cannot have and those that make no sense, before anything is changed.
pub(super) fn check(driver: &Driver, tables: &[Table], steps: &mut Steps<'_>) -> Result<()> {
    let geometry = driver.geometry;
    let mut bytes = vec![0; geometry.cluster_size() as usize];
    for table in tables {
        driver.storage.readv_at((&mut bytes).into(), table.host.0)?;
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let entry = Entry { descriptor: u64::from_be_bytes(*word), bitmap: 0 };
            let at = table.host.0 + index as u64 * 8;
            entry.unit(0, geometry).map_err(|error| error.at(at))?;
            if entry.is_compressed() && geometry.compression != Compression::Deflate {
                return Err(Error::unsupported(
                    "the image has clusters that are compressed with zstd, which version 2 cannot have; convert it \
                     (qemu-img convert -o compat=0.10)",
                )
                .at(at));
            }
        }
        steps.advance(driver.geometry.cluster_size())?;
    }
    Ok(())
}

/// Replaces the zero flag in every entry. The driver has started writing; what is changed here is in memory until it is flushed, by the
/// recipe of every flush.
///
/// A table that snapshots share is changed where it stands: the new entry means the same to all of them. A cluster
/// that it gets has as many references as the table.
pub(super) fn expand(driver: &Driver, tables: &[Table], steps: &mut Steps<'_>) -> Result<()> {
    let geometry = driver.geometry;
    let mut end = 0;
    for table in tables {
        let references = driver.refcount(table.host)?;
        for start in (0..geometry.table_span()).step_by(geometry.slice_span() as usize).map(GuestOffset) {
            let slice = driver.slice(table.host, start)?;
            for index in 0..geometry.slice_bytes() as usize / 8 {
                let old = slice.get(index, false);
                let Unit::Zero { reserved } = old.unit(0, geometry)? else { continue };
                let new = driver.without_zero_flag(old, reserved, *table, references)?;
                let kept = new.owned(geometry)?.map(|(host, len)| (host + len).0);
                end = end.max(kept.unwrap_or(0));
                // A leaked reference of the table's is none of the cluster's.
                let drops = reserved.map_or(Ok(0), |host| driver.refcount(host))?.min(references);
                let mut pending = driver.pending.lock();
                slice.set(index, new, false);
                pending.slices.insert(table.host.0 + geometry.slice_offset(start), Arc::clone(&slice));
                let let_go = reserved.filter(|host| Some((*host + geometry.cluster_size()).0) != kept);
                let dropped = let_go.map(|host| Dropped { host, len: geometry.cluster_size() });
                (0..drops).for_each(|_| pending.dropped.extend(dropped));
            }
            driver.flush_if_crowded()?;
        }
        steps.advance(driver.geometry.cluster_size())?;
    }
    // New clusters at the end read as zeroes without being written; the file covers them all the same.
    if driver.storage.capabilities().resize && driver.storage.len()? < end {
        driver.storage.set_len(end)?;
    }
    Ok(())
}

impl Driver {
    fn refcount(&self, host: HostOffset) -> Result<u64> {
        let count = self.refcounts.lock().count(&*self.storage, host.0 >> self.geometry.cluster_bits)?;
        if count == 0 {
            return Err(uncounted(host.0));
        }
        Ok(count)
    }

    /// What an entry with the zero flag becomes in a table with so many references: nothing, its own space zeroed, or a new cluster.
    fn without_zero_flag(
        &self,
        old: Entry,
        reserved: Option<HostOffset>,
        table: Table,
        references: u64,
    ) -> Result<Entry> {
        let size = self.geometry.cluster_size();
        if let Some(host) = reserved {
            self.refuse_metadata(host, size)?;
        }
        if !self.has_backing {
            return Ok(Entry::EMPTY);
        }
        // With more references than the table has, somebody else may see the cluster's old content.
        if let Some(host) = reserved
            && self.refcount(host)? == references
        {
            self.storage.write_zeroes_at(host.0, size, ZeroMode::Unmap)?;
            return Ok(Entry::data(host, old.is_copied()));
        }
        let taken = self.take_clusters(1)?;
        let host = HostOffset(taken.first << self.geometry.cluster_bits);
        self.refcounts.lock().set_count(&*self.storage, taken.first, references)?;
        if !taken.reads_zero {
            self.storage.write_zeroes_at(host.0, size, ZeroMode::Unmap)?;
        }
        Ok(Entry::data(host, table.active && references == 1))
    }
}
