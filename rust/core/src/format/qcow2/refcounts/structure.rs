//! Where a refcount structure goes that takes the place of another one: a table and its blocks in a row of clusters behind
//! everything else, which they count too.

use std::ops::Range;

use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::TABLE_BYTES;
use crate::error::{Error, Result};
use crate::format::qcow2::l2::OFFSET_MASK;
use crate::ondisk::clusters_for;
use crate::units::HostOffset;

/// A new structure, laid out.
#[derive(Debug)]
pub(in super::super) struct Structure {
    cluster_bits: u32,
    /// Base-2 logarithm of a refcount's bits.
    order: u32,
    /// The first cluster of the table; the blocks follow it.
    first: u64,
    table_clusters: u64,
    /// The numbers of the blocks that count anything, ascending.
    blocks: Vec<u64>,
}

impl Structure {
    /// One from cluster `first` on, with the blocks of these numbers (ascending) and those that count itself.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where no refcount table is long enough, or no offset.
    pub(in super::super) fn behind(first: u64, used: &[u64], cluster_bits: u32, order: u32) -> Result<Self> {
        let mut structure = Structure { cluster_bits, order, first, table_clusters: 0, blocks: Vec::new() };
        let reach = OFFSET_MASK.next_power_of_two() >> cluster_bits;
        // It grows until it counts all of itself.
        loop {
            let own = structure.clusters();
            let per_block = structure.per_block();
            let mut blocks = used.to_vec();
            blocks.extend(own.start / per_block..own.end.div_ceil(per_block));
            blocks.sort_unstable();
            blocks.dedup();
            let entries = blocks.last().map_or(1, |last| last + 1);
            if entries > TABLE_BYTES / 8 || own.end > reach {
                return Err(structure.too_long());
            }
            let table_clusters = clusters_for(entries * 8, cluster_bits);
            if (blocks.len(), table_clusters) == (structure.blocks.len(), structure.table_clusters) {
                return Ok(structure);
            }
            (structure.blocks, structure.table_clusters) = (blocks, table_clusters);
        }
    }

    pub(super) fn too_long(&self) -> Error {
        Error::unsupported(format!(
            "refcounts of {} bits for this file do not fit in a refcount table of {TABLE_BYTES} bytes; use fewer bits, or \
             convert the image to one with larger clusters",
            1 << self.order
        ))
    }

    pub(super) fn per_block(&self) -> u64 {
        (8 << self.cluster_bits) >> self.order
    }

    /// Its own clusters.
    pub(in super::super) fn clusters(&self) -> Range<u64> {
        self.first..self.first + self.table_clusters + self.blocks.len() as u64
    }

    /// The blocks: number and cluster, both ascending.
    pub(in super::super) fn blocks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.blocks.iter().copied().zip(self.first + self.table_clusters..)
    }

    /// Where the table is.
    pub(in super::super) fn table_offset(&self) -> HostOffset {
        HostOffset(self.first << self.cluster_bits)
    }

    /// Clusters of the table.
    pub(in super::super) fn table_clusters(&self) -> u32 {
        self.table_clusters as u32
    }

    /// The table as it is in the file.
    pub(in super::super) fn table_bytes(&self) -> Vec<u8> {
        let mut table = vec![U64::ZERO; (self.table_clusters << self.cluster_bits) as usize / 8];
        for (number, cluster) in self.blocks() {
            table[number as usize] = (cluster << self.cluster_bits).into();
        }
        table.as_bytes().to_vec()
    }
}
