//! The refcounts of an image once more, in another width.
//!
//! The new structure (table and blocks) stands behind everything in the file (in what keeps its size: behind all that is in use), where nothing names it: it is complete and
//! durable before one write of the header's first sector puts it in force. It counts itself, and it does not
//! count the old structure: with the switch the old clusters are free, and a crash leaves no leak on either side of it.

use rustc_hash::FxHashSet;

use super::structure::Structure;
use super::{Refcounts, TABLE_BYTES, read_count, write_count};
use crate::error::{Error, Result};
use crate::format::qcow2::l2::OFFSET_MASK;
use crate::ondisk::clusters_for;
use crate::storage::Storage;

/// Bytes gathered before they are written.
const WRITE_SIZE: usize = 1 << 20;

/// Refcounts in another width.
#[derive(Debug)]
pub(in super::super) struct Resized {
    pub(in super::super) structure: Structure,
    cluster_bits: u32,
    /// Base-2 logarithm of a refcount's bits.
    order: u32,
    released: Released,
    /// The clusters that are free once the structure is in force, ascending.
    pub(in super::super) freed: Vec<u64>,
}

/// What loses one reference with the switch.
#[derive(Debug)]
struct Released(FxHashSet<u64>);

impl Released {
    fn remaining(&self, cluster: u64, count: u64) -> u64 {
        count - u64::from(self.0.contains(&cluster))
    }
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

    /// Refuses a table in which one block counts several parts of the file.
    fn refuse_shared_blocks(&self) -> Result<()> {
        let mut blocks: Vec<_> =
            self.table.iter().map(|word| word & OFFSET_MASK).filter(|host| *host != 0).collect();
        blocks.sort_unstable();
        match blocks.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(()),
            Some(pair) => Err(Error::corrupt(
                "two entries of the refcount table name one block; repair the image first (a check with repair \"all\")",
            )
            .at(pair[0])),
        }
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
        let released = Released(released);
        let cluster_bits = old.cluster_bits;
        old.refuse_shared_blocks()?;
        let file_clusters = clusters_for(storage.len()?, cluster_bits);
        let mut used_end = 0;
        let (mut used, mut freed) = (Vec::new(), Vec::new());
        let empty = Structure::behind(0, &[], cluster_bits, order)?;
        old.for_each_used(storage, step, |cluster, count| {
            if cluster >= file_clusters {
                return Err(Error::corrupt(
                    "a refcount counts a cluster past the end of the file; repair the image first (a check with repair \"all\")",
                )
                .at(cluster << cluster_bits));
            }
            used_end = cluster + 1;
            if released.remaining(cluster, count) == 0 {
                freed.push(cluster);
                return Ok(());
            }
            if 64 - count.leading_zeros() > 1 << order {
                return Err(Error::invalid_input(format!(
                    "a cluster has a refcount of {count}, more than {} bits can hold",
                    1 << order
                ))
                .at(cluster << cluster_bits));
            }
            let number = cluster / empty.per_block();
            if number >= TABLE_BYTES / 8 {
                return Err(empty.too_long());
            }
            if used.last() != Some(&number) {
                used.push(number);
            }
            Ok(())
        })?;
        let grows = storage.capabilities().resize;
        let first = if grows { file_clusters } else { used_end };
        let structure = Structure::behind(first, &used, cluster_bits, order)?;
        let clusters = structure.clusters();
        if !grows && clusters.end << cluster_bits > storage.len()? {
            return Err(Error::unsupported(format!(
                "the refcounts would take {} bytes behind all that is in use, and what the image is in has no room for them",
                (clusters.end - clusters.start) << cluster_bits
            )));
        }
        Ok(Resized { structure, cluster_bits, order, released, freed })
    }

    /// Writes table and blocks, with no barrier. Calls `step` once for each old block.
    pub(in super::super) fn write(
        &self,
        old: &mut Refcounts,
        storage: &dyn Storage,
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut places = self.structure.blocks();
        let mut blocks =
            Blocks { resized: self, storage, places: &mut places, first: 0, last: 0, gathered: Vec::new() };
        old.for_each_used(storage, step, |cluster, count| match self.released.remaining(cluster, count) {
            0 => Ok(()),
            count => blocks.put(cluster, count),
        })?;
        for cluster in self.structure.clusters() {
            blocks.put(cluster, 1)?;
        }
        blocks.flush()?;
        storage.writev_at((&self.structure.table_bytes()).into(), self.structure.table_offset().0)
    }
}

/// The blocks, one after the other, written in big pieces.
struct Blocks<'a> {
    resized: &'a Resized,
    storage: &'a dyn Storage,
    /// Number and cluster of the blocks to come.
    places: &'a mut dyn Iterator<Item = (u64, u64)>,
    /// The cluster of the first gathered block, and the number of the last one.
    first: u64,
    last: u64,
    /// Whole blocks in a row.
    gathered: Vec<u8>,
}

impl Blocks<'_> {
    /// Sets the refcount of a cluster, which is not before the last one.
    fn put(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (size, per_block) = (1 << self.resized.cluster_bits, self.resized.structure.per_block());
        let number = cluster / per_block;
        if self.gathered.is_empty() || number != self.last {
            if self.gathered.len() >= WRITE_SIZE {
                self.flush()?;
            }
            let (planned, place) =
                self.places.next().expect("the blocks were planned from the same refcounts");
            debug_assert_eq!(planned, number);
            if self.gathered.is_empty() {
                self.first = place;
            }
            self.last = number;
            self.gathered.resize(self.gathered.len() + size, 0);
        }
        let start = self.gathered.len() - size;
        write_count(&mut self.gathered[start..], self.resized.order, cluster % per_block, count);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.gathered.is_empty() {
            self.storage.writev_at((&self.gathered).into(), self.first << self.resized.cluster_bits)?;
            self.gathered.clear();
        }
        Ok(())
    }
}
