//! Space for compressed clusters: byte by byte, one behind the other, and on into the next host cluster where that is the first free one.
//!
//! Every compressed cluster counts as one reference to each host cluster that it touches.

use rustc_hash::FxHashSet;

use super::{Dropped, Refcounts};
use crate::buffer::IoVector;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::HostOffset;

/// What a descriptor counts packed bytes in, and what some readers read at least.
const SECTOR: u64 = 512;

impl Refcounts {
    /// Takes `len` bytes (at most a cluster) that end at `limit` or before. `None`: the table is full, see
    /// [`grow_if_full`](Self::grow_if_full).
    pub(in super::super) fn take_bytes(
        &mut self,
        storage: &dyn Storage,
        reserved: &FxHashSet<u64>,
        len: u64,
        limit: u64,
    ) -> Result<Option<HostOffset>> {
        if let Some(host) = self.take_behind(storage, reserved, len, limit)? {
            return Ok(Some(host));
        }
        // Nobody comes back to what is left of the old cluster.
        self.pad(storage)?;
        self.packed_end = None;
        let Some(taken) = self.take(storage, reserved, 1)? else {
            return Ok(None);
        };
        let host = HostOffset(taken.first << self.cluster_bits);
        if host.0 + len > limit {
            self.drop_reference(storage, Dropped { host, len })?;
            return Err(Error::unsupported(format!(
                "the image file has outgrown what compressed clusters of this size can be in ({limit} bytes): \
                 write without compression"
            )));
        }
        self.packed_until(host.0 + len);
        Ok(Some(host))
    }

    /// Takes the bytes behind those that were taken last.
    fn take_behind(
        &mut self,
        storage: &dyn Storage,
        reserved: &FxHashSet<u64>,
        len: u64,
        limit: u64,
    ) -> Result<Option<HostOffset>> {
        let Some(start) = self.packed_end else {
            return Ok(None);
        };
        let (cluster, next) = (start >> self.cluster_bits, (start >> self.cluster_bits) + 1);
        let count = self.get(storage, cluster)?;
        if count == 0 || count == self.max() || start + len > limit {
            return Ok(None);
        }
        if start + len > next << self.cluster_bits {
            // Not past space that is free farther in front, so that the file grows only when it has to.
            let free = self.first_free(storage)?;
            if free != next || self.block_offset(next / self.per_block())?.is_none() {
                return Ok(None);
            }
            self.refuse_reserved(reserved, next..next + 1)?;
            self.set(storage, next, 1)?;
            self.cursor = next + 1;
            self.untouched = self.untouched.max((next + 1) << self.cluster_bits);
        }
        self.set(storage, cluster, count + 1)?;
        self.packed_until(start + len);
        Ok(Some(HostOffset(start)))
    }

    fn packed_until(&mut self, end: u64) {
        self.packed_end = (!end.is_multiple_of(self.cluster_size())).then_some(end);
    }

    /// Lets the file reach to the end of the sector that the last packed bytes end in. What is written there belongs to
    /// nobody while the allocator is locked.
    pub(in super::super) fn pad(&self, storage: &dyn Storage) -> Result<()> {
        let Some(end) = self.packed_end else {
            return Ok(());
        };
        let padded = end.next_multiple_of(SECTOR);
        if padded > end && storage.len()? < padded {
            storage.writev_at(IoVector::zeroes((padded - end) as usize), end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;

    const BITS: u32 = 16;
    const CLUSTER: u64 = 1 << BITS;
    const LIMIT: u64 = 1 << 54;

    /// Refcounts with one block, in cluster 1, of an image with two clusters.
    fn refcounts(order: u32) -> (Memory, Refcounts) {
        let storage = Memory::new(2 << BITS);
        let refcounts =
            Refcounts { cluster_bits: BITS, order, table: vec![CLUSTER], cursor: 2, ..Refcounts::absent() };
        (storage, refcounts)
    }

    fn take(refcounts: &mut Refcounts, storage: &Memory, len: u64) -> u64 {
        refcounts.take_bytes(storage, &FxHashSet::default(), len, LIMIT).unwrap().unwrap().0
    }

    fn counts(refcounts: &mut Refcounts, storage: &Memory, clusters: std::ops::Range<u64>) -> Vec<u64> {
        clusters.map(|cluster| refcounts.get(storage, cluster).unwrap()).collect()
    }

    #[test]
    fn packed_clusters_stand_one_behind_the_other_and_cross_into_the_next_cluster() {
        let (storage, mut refcounts) = refcounts(4);
        let mut at = 2 * CLUSTER;
        for len in [1, 30_000, 511, 40_000, 65_535, 7] {
            assert_eq!(take(&mut refcounts, &storage, len), at);
            at += len;
        }
        // 1, 30,000, 511 and the start of 40,000; its end and the start of 65,535; the end of that, and 7.
        assert_eq!(counts(&mut refcounts, &storage, 2..6), [4, 2, 2, 0]);
        assert_eq!(refcounts.cursor, 5);
    }

    #[test]
    fn a_full_count_or_a_taken_neighbour_begins_a_new_cluster() {
        for (order, per_cluster) in [(0, 1), (1, 3), (2, 15)] {
            let (storage, mut refcounts) = refcounts(order);
            for index in 0..40 {
                let host = take(&mut refcounts, &storage, 100);
                let (cluster, inside) = (index / per_cluster, index % per_cluster);
                assert_eq!(host, (2 + cluster) * CLUSTER + inside * 100);
            }
        }
        let (storage, mut refcounts) = refcounts(4);
        take(&mut refcounts, &storage, 60_000);
        let other = refcounts.take(&storage, &FxHashSet::default(), 1).unwrap().unwrap();
        assert_eq!(other.first, 3);
        assert_eq!(take(&mut refcounts, &storage, 10_000), 4 * CLUSTER);
        // What was left behind ends with a sector all the same.
        assert_eq!(storage.len().unwrap(), (2 * CLUSTER + 60_000).next_multiple_of(512));
    }

    #[test]
    fn a_cluster_that_became_free_is_not_packed_into() {
        let (storage, mut refcounts) = refcounts(4);
        let host = HostOffset(take(&mut refcounts, &storage, 1000));
        refcounts.drop_reference(&storage, Dropped { host, len: 1000 }).unwrap();
        let taken = refcounts.take(&storage, &FxHashSet::default(), 1).unwrap().unwrap();
        assert_eq!(taken.first, 2);
        assert_eq!(take(&mut refcounts, &storage, 1000), 3 * CLUSTER);
    }

    #[test]
    fn what_a_descriptor_cannot_name_is_refused_and_given_back() {
        let (storage, mut refcounts) = refcounts(4);
        let refused = refcounts.take_bytes(&storage, &FxHashSet::default(), 1000, 2 * CLUSTER + 999);
        assert_eq!(refused.unwrap_err().kind(), crate::ErrorKind::Unsupported);
        assert_eq!(counts(&mut refcounts, &storage, 2..3), [0]);
        assert_eq!(
            refcounts.take_bytes(&storage, &FxHashSet::default(), 999, 2 * CLUSTER + 999).unwrap().unwrap().0,
            2 * CLUSTER
        );
    }

    #[test]
    fn a_cluster_of_metadata_that_counts_as_free_is_corruption() {
        let (storage, mut refcounts) = refcounts(4);
        take(&mut refcounts, &storage, 60_000);
        let reserved = FxHashSet::from_iter([3]);
        let refused = refcounts.take_bytes(&storage, &reserved, 10_000, LIMIT);
        assert_eq!(refused.unwrap_err().kind(), crate::ErrorKind::Corrupt);
        assert_eq!(counts(&mut refcounts, &storage, 2..4), [1, 0]);
    }
}
