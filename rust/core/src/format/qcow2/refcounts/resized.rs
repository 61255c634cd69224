//! The refcounts of an image once more, in another width.
//!
//! The new structure (table and blocks) stands behind everything in the file, where nothing names it: it is complete and
//! durable before one write of the header's first sector puts it in force. It counts itself, and it does not
//! count the old structure: with the switch the old clusters are free, and a crash leaves no leak on either side of it.

use std::ops::Range;

use rustc_hash::FxHashSet;
use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::{Refcounts, TABLE_BYTES, read_count, write_count};
use crate::error::{Error, Result};
use crate::format::qcow2::l2::OFFSET_MASK;
use crate::ondisk::clusters_for;
use crate::storage::Storage;
use crate::units::HostOffset;

/// Bytes gathered before they are written.
const WRITE_SIZE: usize = 1 << 20;

/// Where a structure of another width goes.
#[derive(Debug)]
pub(in super::super) struct Resized {
    cluster_bits: u32,
    /// Base-2 logarithm of a refcount's bits.
    order: u32,
    /// The first cluster of the table; the blocks follow it.
    first: u64,
    table_clusters: u64,
    /// The numbers of the blocks that count anything, ascending.
    blocks: Vec<u64>,
    /// What loses one reference with the switch.
    released: FxHashSet<u64>,
    /// Those of them that nobody else holds, ascending.
    freed: Vec<u64>,
}

impl Refcounts {
    /// Refcount blocks that the table names.
    pub(in super::super) fn block_count(&self) -> u64 {
        self.table.iter().filter(|word| **word != 0).count() as u64
    }

    /// The refcount of a cluster.
    pub(in super::super) fn count(&mut self, storage: &dyn Storage, cluster: u64) -> Result<u64> {
        self.get(storage, cluster)
    }

    /// Sets the refcount of a cluster that was taken.
    pub(in super::super) fn set_count(
        &mut self,
        storage: &dyn Storage,
        cluster: u64,
        count: u64,
    ) -> Result<()> {
        self.set(storage, cluster, count)
    }

    /// Calls `f` with every cluster in use and its refcount, in ascending order, and `step` after each block.
    fn for_each_used(
        &mut self,
        storage: &dyn Storage,
        step: &mut dyn FnMut() -> Result<()>,
        mut f: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let (order, per_block) = (self.order, self.per_block());
        for index in 0..self.table.len() as u64 {
            let Some(host) = self.block_offset(index)? else { continue };
            let block = self.block(storage, index, host)?;
            for i in 0..per_block {
                match read_count(&block.bytes, order, i) {
                    0 => {}
                    count => f(index * per_block + i, count)?,
                }
            }
            step()?;
        }
        Ok(())
    }
}

impl Resized {
    /// Lays out the structure for refcounts of 2 to the power of `order` bits, without the old structure and with one reference less on
    /// each cluster of `released`. Calls `step` once for each old block. Nothing is written.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) at the first cluster whose refcount is too large for the width.
    pub(in super::super) fn plan(
        old: &mut Refcounts,
        storage: &dyn Storage,
        order: u32,
        mut released: FxHashSet<u64>,
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        released.extend(old.metadata_clusters());
        let mut resized = Resized {
            cluster_bits: old.cluster_bits,
            order,
            first: 0,
            table_clusters: 0,
            blocks: Vec::new(),
            released,
            freed: Vec::new(),
        };
        let per_block = resized.per_block();
        let mut used = Vec::new();
        let mut first = clusters_for(storage.len()?, old.cluster_bits);
        old.for_each_used(storage, step, |cluster, count| {
            first = first.max(cluster + 1);
            if resized.remaining(cluster, count) == 0 {
                resized.freed.push(cluster);
                return Ok(());
            }
            if 64 - count.leading_zeros() > 1 << order {
                return Err(Error::invalid_input(format!(
                    "a cluster has a refcount of {count}, more than {} bits can hold",
                    1 << order
                ))
                .at(cluster << resized.cluster_bits));
            }
            let index = cluster / per_block;
            if index >= TABLE_BYTES / 8 {
                return Err(resized.too_long());
            }
            if used.last() != Some(&index) {
                used.push(index);
            }
            Ok(())
        })?;
        resized.first = first;
        // The structure counts itself: it grows until it counts all of it.
        loop {
            let own = resized.clusters();
            let own_blocks = own.start / per_block..own.end.div_ceil(per_block);
            let mut blocks = used.clone();
            blocks.extend(own_blocks.filter(|index| used.last() != Some(index)));
            let entries = blocks.last().map_or(1, |last| last + 1);
            let table_clusters = clusters_for(entries * 8, resized.cluster_bits);
            if (blocks.len(), table_clusters) == (resized.blocks.len(), resized.table_clusters) {
                break;
            }
            (resized.blocks, resized.table_clusters) = (blocks, table_clusters);
        }
        let reach = OFFSET_MASK.next_power_of_two() >> resized.cluster_bits;
        if resized.table_clusters << resized.cluster_bits > TABLE_BYTES || resized.clusters().end > reach {
            return Err(resized.too_long());
        }
        Ok(resized)
    }

    fn too_long(&self) -> Error {
        Error::unsupported(format!(
            "refcounts of {} bits for this file do not fit in a refcount table of {TABLE_BYTES} bytes; use fewer bits, or \
             convert the image to one with larger clusters",
            1 << self.order
        ))
    }

    /// Where the table is.
    pub(in super::super) fn table_offset(&self) -> HostOffset {
        HostOffset(self.first << self.cluster_bits)
    }

    /// Clusters of the table.
    pub(in super::super) fn table_clusters(&self) -> u32 {
        self.table_clusters as u32
    }

    /// The clusters that are free once the structure is in force, ascending.
    pub(in super::super) fn freed(&self) -> &[u64] {
        &self.freed
    }

    fn per_block(&self) -> u64 {
        (8 << self.cluster_bits) >> self.order
    }

    /// Its own clusters.
    fn clusters(&self) -> Range<u64> {
        self.first..self.first + self.table_clusters + self.blocks.len() as u64
    }

    fn remaining(&self, cluster: u64, count: u64) -> u64 {
        count - u64::from(self.released.contains(&cluster))
    }

    /// Writes table and blocks, with no barrier. Calls `step` once for each old block.
    pub(in super::super) fn write(
        &self,
        old: &mut Refcounts,
        storage: &dyn Storage,
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut blocks = Blocks {
            resized: self,
            storage,
            at: self.first + self.table_clusters,
            written: 0,
            gathered: Vec::new(),
        };
        old.for_each_used(storage, step, |cluster, count| match self.remaining(cluster, count) {
            0 => Ok(()),
            count => blocks.put(cluster, count),
        })?;
        for cluster in self.clusters() {
            blocks.put(cluster, 1)?;
        }
        blocks.flush()?;

        let mut table = vec![U64::ZERO; (self.table_clusters << self.cluster_bits) as usize / 8];
        for (index, host) in self.blocks.iter().zip(self.first + self.table_clusters..) {
            table[*index as usize] = (host << self.cluster_bits).into();
        }
        storage.writev_at(table.as_bytes().into(), self.table_offset().0)
    }
}

/// The blocks, one after the other, written in big pieces.
struct Blocks<'a> {
    resized: &'a Resized,
    storage: &'a dyn Storage,
    /// The cluster of the first gathered block.
    at: u64,
    /// Blocks that are written.
    written: usize,
    /// Those behind them, whole.
    gathered: Vec<u8>,
}

impl Blocks<'_> {
    /// Sets the refcount of a cluster, which is not before the last one.
    fn put(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (size, per_block) = (1 << self.resized.cluster_bits, self.resized.per_block());
        let gathered = |blocks: &Self| blocks.gathered.len() / size;
        let index = cluster / per_block;
        let current = |blocks: &Self| {
            gathered(blocks).checked_sub(1).map(|last| blocks.resized.blocks[blocks.written + last])
        };
        if current(self) != Some(index) {
            if self.gathered.len() >= WRITE_SIZE {
                self.flush()?;
            }
            self.gathered.resize(self.gathered.len() + size, 0);
            debug_assert_eq!(current(self), Some(index), "the blocks were planned from the same refcounts");
        }
        let start = self.gathered.len() - size;
        write_count(&mut self.gathered[start..], self.resized.order, cluster % per_block, count);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.gathered.is_empty() {
            self.storage.writev_at((&self.gathered).into(), self.at << self.resized.cluster_bits)?;
            let blocks = self.gathered.len() >> self.resized.cluster_bits;
            self.at += blocks as u64;
            self.written += blocks;
            self.gathered.clear();
        }
        Ok(())
    }
}
