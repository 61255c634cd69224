//! Taking clusters that have to lie one behind the other: tables longer than a cluster.

use rustc_hash::FxHashSet;

use super::{Refcounts, read_count};
use crate::error::Result;
use crate::format::qcow2::header::Header;
use crate::storage::Storage;

impl Refcounts {
    /// Takes exactly `count` free clusters in a row; their refcounts become 1. `Ok(None)`: the table is too short
    /// for such a row, see [`grow_for`](Self::grow_for).
    ///
    /// Unlike [`take`](Self::take) it goes on past the end of a block. That a cluster of metadata (`reserved`) counts as free
    /// is corruption (I6).
    pub(in super::super) fn take_row(
        &mut self,
        storage: &dyn Storage,
        reserved: &FxHashSet<u64>,
        count: u64,
    ) -> Result<Option<u64>> {
        loop {
            let first = self.free_row(storage, count)?;
            let clusters = first..first + count;
            let blocks = first / self.per_block()..=(clusters.end - 1) / self.per_block();
            if *blocks.end() >= self.table.len() as u64 {
                return Ok(None);
            }
            let mut missing = None;
            for index in blocks {
                if self.block_offset(index)?.is_none() {
                    missing = Some(index);
                    break;
                }
            }
            if let Some(index) = missing {
                // It may stand in the row, which is then looked for again: there is one block more each time.
                self.place_block(storage, reserved, index)?;
                continue;
            }
            self.refuse_reserved(reserved, clusters.clone())?;
            for cluster in clusters.clone() {
                self.set(storage, cluster, 1)?;
            }
            self.untouched = self.untouched.max(clusters.end << self.cluster_bits);
            if self.cursor == first {
                self.cursor = clusters.end;
            }
            return Ok(Some(first));
        }
    }

    /// Where `count` free clusters in a row start; those that no block counts are free.
    fn free_row(&mut self, storage: &dyn Storage, count: u64) -> Result<u64> {
        let (per_block, order) = (self.per_block(), self.order);
        let mut first = self.cursor;
        let mut next = first;
        while next - first < count {
            let index = next / per_block;
            let end = (index + 1) * per_block;
            let Some(host) = self.block_offset(index)? else {
                next = end;
                continue;
            };
            let block = self.block(storage, index, host)?;
            while next < end && next - first < count {
                if read_count(&block.bytes, order, next % per_block) != 0 {
                    first = next + 1;
                }
                next += 1;
            }
        }
        Ok(first)
    }

    /// Makes the block number `index`, which is missing: in a free cluster that is counted already, or in the first one
    /// that it counts itself.
    fn place_block(&mut self, storage: &dyn Storage, reserved: &FxHashSet<u64>, index: u64) -> Result<()> {
        let free = self.first_free(storage)?;
        let counted_by = free / self.per_block();
        if self.block_offset(counted_by)?.is_some() {
            self.refuse_reserved(reserved, free..free + 1)?;
            return self.add_block(storage, index, free);
        }
        // The first free cluster has no block either: that one first, which counts itself.
        self.refuse_reserved(reserved, free..free + 1)?;
        self.add_block(storage, counted_by, free)
    }

    /// Makes the table longer unless it counts `count` free clusters in a row. It writes at once, and what a flush took before
    /// would land on top of that: the caller holds `flushing`.
    pub(in super::super) fn grow_for(
        &mut self,
        storage: &dyn Storage,
        header: &Header,
        reserved: &FxHashSet<u64>,
        count: u64,
    ) -> Result<()> {
        let end = self.free_row(storage, count)? + count;
        if end.div_ceil(self.per_block()) <= self.table.len() as u64 {
            return Ok(());
        }
        self.grow_table(storage, header, reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::super::write_count;
    use super::*;
    use crate::storage::memory::Memory;

    /// 512-byte clusters with 64-bit refcounts: a block counts 64 clusters.
    fn refcounts(storage: &Memory, blocks: usize, entries: usize) -> Refcounts {
        let mut table = vec![0; entries];
        for (index, entry) in table.iter_mut().take(blocks).enumerate() {
            *entry = (index as u64 * 64 + 1) << 9;
        }
        for index in 0..blocks as u64 {
            let mut bytes = vec![0; 512];
            write_count(&mut bytes, 6, 1, 1);
            storage.writev_at((&bytes).into(), (index * 64 + 1) << 9).unwrap();
        }
        Refcounts { cluster_bits: 9, order: 6, table, ..Refcounts::absent() }
    }

    #[test]
    fn a_row_is_longer_than_a_block_and_every_cluster_of_it_is_counted_once() {
        for count in [1, 62, 63, 64, 65, 200, 500] {
            let storage = Memory::new(1 << 20);
            let mut refcounts = refcounts(&storage, 2, 64);
            let none = FxHashSet::default();
            let first = refcounts.take_row(&storage, &none, count).unwrap().unwrap();
            for cluster in first..first + count {
                assert_eq!(refcounts.get(&storage, cluster).unwrap(), 1, "cluster {cluster} of {count}");
            }
            let blocks: Vec<u64> = refcounts.table.iter().filter(|e| **e != 0).map(|e| e >> 9).collect();
            assert!(blocks.iter().all(|block| !(first..first + count).contains(block)), "{blocks:?}");
            for &block in &blocks {
                assert_eq!(refcounts.get(&storage, block).unwrap(), 1, "block at {block}");
            }
            let next = refcounts.take(&storage, &none, 1).unwrap().unwrap().first;
            assert!(!(first..first + count).contains(&next) && !blocks.contains(&next));
        }
    }

    #[test]
    fn a_row_past_the_tables_reach_asks_for_a_longer_table() {
        let storage = Memory::new(1 << 20);
        let mut refcounts = refcounts(&storage, 2, 2);
        assert!(refcounts.take_row(&storage, &FxHashSet::default(), 100).unwrap().is_none());
        assert!(refcounts.take_row(&storage, &FxHashSet::default(), 62).unwrap().is_some());
    }

    #[test]
    fn free_clusters_that_are_no_row_are_passed_over() {
        let storage = Memory::new(1 << 20);
        let mut refcounts = refcounts(&storage, 1, 64);
        for cluster in (0..40).step_by(4) {
            refcounts.set(&storage, cluster, 1).unwrap();
        }
        assert_eq!(refcounts.take_row(&storage, &FxHashSet::default(), 4).unwrap(), Some(37));
        assert_eq!(refcounts.take_row(&storage, &FxHashSet::default(), 2).unwrap(), Some(2));
    }
}
