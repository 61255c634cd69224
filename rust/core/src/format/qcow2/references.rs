//! All that an L1 table refers to: counting it once more or once less, and the COPIED flags that follow from that.
//!
//! An L1 table counts one reference to every L2 table that it names and to every cluster that those name, shared or not.
//! Callers hold `flushing` and have flushed: the file has the tables' latest state, and nobody changes them.

use std::collections::HashSet;

use super::Driver;
use super::l2::{COPIED, Entry, OFFSET_MASK};
use super::pending::Dropped;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::HostOffset;

/// What an L1 table refers to.
#[derive(Clone, Copy, Debug)]
enum Reference {
    Table(Dropped),
    /// Guest data: a row of clusters, or the bytes of a compressed cluster.
    Data(Dropped),
}

impl Reference {
    fn range(self) -> Dropped {
        let (Reference::Table(range) | Reference::Data(range)) = self;
        range
    }
}

impl Driver {
    /// The L2 tables that `l1` names, in order. One past the end of the file, or that is named twice, is corruption.
    pub(super) fn l2_tables(&self, l1: &[u64]) -> Result<Vec<HostOffset>> {
        let file_end = self.storage.len()?;
        let mut seen = HashSet::new();
        let mut tables = Vec::new();
        for word in l1 {
            let host = HostOffset(word & OFFSET_MASK);
            if host.0 == 0 {
                continue;
            }
            if !host.is_aligned(self.geometry.cluster_size()) || host.0 >= file_end {
                return Err(Error::corrupt(format!("L1 entry {word:#x} names no cluster of the file")));
            }
            if !seen.insert(host) {
                return Err(Error::corrupt("an L1 table names the same L2 table twice").at(host.0));
            }
            tables.push(host);
        }
        Ok(tables)
    }

    /// Calls `each` for all that L2 tables refer to, themselves included.
    fn follow(&self, tables: &[HostOffset], mut each: impl FnMut(Reference) -> Result<()>) -> Result<()> {
        let geometry = self.geometry;
        let words_per_entry = geometry.entry_size() as usize / 8;
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        for &table in tables {
            self.storage.readv_at((&mut bytes).into(), table.0)?;
            each(Reference::Table(Dropped { host: table, len: geometry.cluster_size() }))?;
            // Clusters in a row are one reference: most are.
            let mut row: Option<Dropped> = None;
            for word in bytes.as_chunks::<8>().0.iter().step_by(words_per_entry) {
                let entry = Entry { descriptor: u64::from_be_bytes(*word), bitmap: 0 };
                let Some((host, len)) = entry.owned(geometry).map_err(|e| e.at(table.0))? else { continue };
                match &mut row {
                    Some(row) if !entry.is_compressed() && row.host + row.len == host => row.len += len,
                    _ => {
                        if let Some(row) = row.take() {
                            each(Reference::Data(row))?;
                        }
                        if entry.is_compressed() {
                            each(Reference::Data(Dropped { host, len }))?;
                        } else {
                            row = Some(Dropped { host, len });
                        }
                    }
                }
            }
            if let Some(row) = row {
                each(Reference::Data(row))?;
            }
        }
        Ok(())
    }

    /// Counts all that the tables refer to once more, in memory.
    pub(super) fn add_references(&self, tables: &[HostOffset]) -> Result<()> {
        let mut refcounts = self.refcounts.lock();
        self.follow(tables, |reference| {
            if let Reference::Data(range) = reference {
                self.refuse_metadata(range.host, range.len)?;
            }
            refcounts.add_reference(&*self.storage, reference.range())
        })
    }

    /// Counts all that the tables refer to once less, in memory, but for last references: those are returned.
    pub(super) fn drop_shared_references(&self, tables: &[HostOffset]) -> Result<Vec<Dropped>> {
        let mut last = Vec::new();
        let mut refcounts = self.refcounts.lock();
        self.follow(tables, |reference| {
            if let Reference::Data(range) = reference {
                self.refuse_metadata(range.host, range.len)?;
            }
            refcounts.drop_shared(&*self.storage, reference.range(), &mut last)
        })?;
        last.sort_unstable_by_key(|range| range.host);
        if let Some(twice) = last.windows(2).find(|pair| pair[0].host + pair[0].len > pair[1].host) {
            return Err(
                Error::corrupt("a cluster is in use more often than its refcount says").at(twice[1].host.0)
            );
        }
        Ok(last)
    }

    /// Does `change` to the refcounts in memory to see that it can be done, and forgets it: nothing has changed afterwards.
    /// The caller has flushed and taken nothing since.
    pub(super) fn rehearse<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = change();
        self.refcounts.lock().forget_changes();
        done
    }

    /// Makes COPIED what `copied` says for each cluster, in the L2 tables in the file and in the words of the L1 table that name
    /// them. No barrier. Returns whether a word of `l1` changed.
    ///
    /// Cached slices are forgotten, and whoever loads one meanwhile does so for a read, which does not look at the flag.
    pub(super) fn flag_copied(
        &self,
        l1: &mut [u64],
        mut copied: impl FnMut(HostOffset) -> Result<bool>,
    ) -> Result<bool> {
        let geometry = self.geometry;
        let words_per_entry = geometry.entry_size() as usize / 8;
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        let mut l1_changed = false;
        for word in l1 {
            let table = HostOffset(*word & OFFSET_MASK);
            if table.0 == 0 {
                continue;
            }
            self.storage.readv_at((&mut bytes).into(), table.0)?;
            let mut changed = false;
            for chunk in bytes.as_chunks_mut::<8>().0.iter_mut().step_by(words_per_entry) {
                let entry = Entry { descriptor: u64::from_be_bytes(*chunk), bitmap: 0 };
                if entry.is_compressed() || entry.descriptor & OFFSET_MASK == 0 {
                    continue;
                }
                let flagged =
                    set_copied(entry.descriptor, copied(HostOffset(entry.descriptor & OFFSET_MASK))?);
                if flagged != entry.descriptor {
                    *chunk = flagged.to_be_bytes();
                    changed = true;
                }
            }
            if changed {
                self.metadata.writev_at((&bytes).into(), table.0)?;
            }
            let flagged = set_copied(*word, copied(table)?);
            l1_changed |= flagged != *word;
            *word = flagged;
        }
        self.slices.clear();
        Ok(l1_changed)
    }
}

fn set_copied(word: u64, copied: bool) -> u64 {
    if copied { word | COPIED } else { word & !COPIED }
}
