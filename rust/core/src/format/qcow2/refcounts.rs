//! Refcount table and blocks: which clusters of the image file are free, and taking them.
//!
//! Everything here is in memory until a flush takes [`Refcounts::take_dirty`]; only the table's growth writes at once.

mod contiguous;
mod packed;
mod resized;
mod structure;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustc_hash::{FxHashMap, FxHashSet};

pub(super) use self::resized::Resized;
pub(super) use self::structure::Structure;
use super::header::Header;
use super::l2::OFFSET_MASK;
use super::pending::Dropped;
use crate::error::{Error, Result};
use crate::format::CacheUse;
use crate::storage::Storage;
use crate::units::HostOffset;

/// Memory that clean blocks may take, in bytes, before they are dropped, where nobody says how much: with 64 KiB clusters this covers 128 GiB.
const CLEAN_BYTES: u64 = 4 << 20;
/// Ranges of clusters that became free and are remembered, 16 bytes each.
const FREED_MAX: usize = 1 << 16;
/// The refcount table is at most 8 MiB (QEMU's limit).
const TABLE_BYTES: u64 = 8 << 20;

/// Refcount blocks that are looked through for the end of the file.
const END_BLOCKS: u32 = 1024;

/// One refcount block.
#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    /// The bytes that differ from what is on disk.
    dirty: Range<usize>,
    /// A flush took changes of it and has yet to write them: the disk's bytes are not its own.
    landing: bool,
}

impl Block {
    fn new(bytes: Box<[u8]>, dirty: Range<usize>) -> Self {
        Block { bytes, dirty, landing: false }
    }

    fn note_dirty(&mut self, touched: &Range<usize>) {
        self.dirty = if self.dirty.is_empty() {
            touched.clone()
        } else {
            self.dirty.start.min(touched.start)..self.dirty.end.max(touched.end)
        };
    }
}

/// How the blocks have been used, to be read without the lock that their user holds over I/O.
#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    used: AtomicU64,
    budget: AtomicU64,
}

impl Counters {
    pub(super) fn stats(&self) -> CacheUse {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheUse {
            hits: read(&self.hits),
            misses: read(&self.misses),
            capacity: read(&self.budget),
            used: read(&self.used),
        }
    }

    /// The one user of the refcounts counts, under their lock.
    fn count(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// The refcounts of an image that is open for writing.
#[derive(Debug)]
pub(super) struct Refcounts {
    cluster_bits: u32,
    /// Base-2 logarithm of a refcount's bits.
    order: u32,
    table_offset: HostOffset,
    table: Vec<u64>,
    dirty_entries: BTreeSet<usize>,
    blocks: FxHashMap<u64, Block>,
    counters: Arc<Counters>,
    /// No cluster below is known to be free.
    cursor: u64,
    /// What the image file reads as zeroes from here on (bytes): nothing was ever written there.
    untouched: u64,
    /// Clusters that became free here, from a first one up to a last one; those at the file's end are kept.
    freed: BTreeMap<u64, u64>,
    /// Where the compressed clusters that were packed last end, inside a cluster that at least one of them holds (bytes).
    packed_end: Option<u64>,
    /// Clusters that became refcount blocks or table, and ceased to be, since the driver last asked.
    pub(super) new_metadata: Vec<u64>,
    pub(super) old_metadata: Vec<u64>,
}

/// Clusters taken, one behind the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) first: u64,
    pub(super) count: u64,
    /// They read as zeroes.
    pub(super) reads_zero: bool,
}

/// Changed parts of blocks and of the table, to be written in this order with a barrier between.
#[derive(Debug, Default)]
pub(super) struct RefcountWrites {
    pub(super) blocks: Vec<(HostOffset, Vec<u8>)>,
    pub(super) table: Vec<(HostOffset, u64)>,
}

impl Refcounts {
    /// Of a read-only image: none, and nothing asks for them.
    pub(super) fn absent() -> Self {
        Refcounts {
            cluster_bits: 16,
            order: 4,
            table_offset: HostOffset(0),
            table: Vec::new(),
            dirty_entries: BTreeSet::new(),
            blocks: FxHashMap::default(),
            counters: Arc::default(),
            cursor: 0,
            untouched: 0,
            freed: BTreeMap::new(),
            packed_end: None,
            new_metadata: Vec::new(),
            old_metadata: Vec::new(),
        }
    }

    /// Reads the table; blocks follow when they are asked for.
    pub(super) fn open(storage: &dyn Storage, header: &Header) -> Result<Self> {
        let bytes = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        let table = super::tables::read_words(storage, header.refcount_table_offset, bytes / 8)?;
        let refcounts = Refcounts {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            table_offset: header.refcount_table_offset,
            table,
            untouched: storage.len()?,
            ..Self::absent()
        };
        refcounts.counters.budget.store(CLEAN_BYTES, Ordering::Relaxed);
        for index in 0..refcounts.table.len() {
            refcounts.block_offset(index as u64)?;
        }
        Ok(refcounts)
    }

    /// Has clean blocks dropped when all take more than `bytes`.
    pub(super) fn budget(&self) -> u64 {
        self.counters.budget.load(Ordering::Relaxed)
    }

    pub(super) fn set_budget(&mut self, bytes: u64) {
        self.counters.budget.store(bytes, Ordering::Relaxed);
    }

    /// How the blocks are used from now on.
    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters that one block counts.
    fn per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.order
    }

    /// Where block number `index` is, if there is one.
    fn block_offset(&self, index: u64) -> Result<Option<HostOffset>> {
        let Some(&word) = self.table.get(index as usize) else {
            return Ok(None);
        };
        let host = HostOffset(word & OFFSET_MASK);
        if !host.is_aligned(self.cluster_size()) {
            let entry = self.table_offset.0 + index * 8;
            return Err(
                Error::corrupt(format!("refcount table entry {word:#x} names no cluster boundary")).at(entry)
            );
        }
        Ok((host.0 != 0).then_some(host))
    }

    /// The clusters that the table and the blocks are in.
    pub(super) fn metadata_clusters(&self) -> impl Iterator<Item = u64> + '_ {
        let first = self.table_offset.0 >> self.cluster_bits;
        let blocks =
            self.table.iter().map(|word| (word & OFFSET_MASK) >> self.cluster_bits).filter(|&c| c != 0);
        (first..first + self.table_clusters()).chain(blocks)
    }

    /// Where the table is, and its clusters.
    pub(super) fn table_place(&self) -> (HostOffset, u32) {
        (self.table_offset, self.table_clusters() as u32)
    }

    fn table_clusters(&self) -> u64 {
        (self.table.len() as u64 * 8).div_ceil(self.cluster_size())
    }

    /// The block number `index`, which exists.
    fn block(&mut self, storage: &dyn Storage, index: u64, host: HostOffset) -> Result<&mut Block> {
        if self.blocks.contains_key(&index) {
            Counters::count(&self.counters.hits);
        } else {
            Counters::count(&self.counters.misses);
            self.make_room();
            let mut bytes = vec![0; self.cluster_size() as usize].into_boxed_slice();
            storage.readv_at((&mut *bytes).into(), host.0)?;
            self.keep(index, Block::new(bytes, 0..0));
        }
        Ok(self.blocks.get_mut(&index).expect("just inserted"))
    }

    fn keep(&mut self, index: u64, block: Block) {
        self.blocks.insert(index, block);
        self.counters.used.store(self.bytes(), Ordering::Relaxed);
    }

    /// Memory that the blocks take.
    fn bytes(&self) -> u64 {
        (self.blocks.len() as u64) << self.cluster_bits
    }

    fn make_room(&mut self) {
        if self.bytes() > self.counters.budget.load(Ordering::Relaxed) {
            self.blocks.retain(|_, block| block.landing || !block.dirty.is_empty());
            self.counters.used.store(self.bytes(), Ordering::Relaxed);
        }
    }

    fn get(&mut self, storage: &dyn Storage, cluster: u64) -> Result<u64> {
        let per_block = self.per_block();
        let index = cluster / per_block;
        let Some(host) = self.block_offset(index)? else {
            return Ok(0);
        };
        let order = self.order;
        Ok(read_count(&self.block(storage, index, host)?.bytes, order, cluster % per_block))
    }

    /// Sets the refcount of a cluster whose block exists.
    fn set(&mut self, storage: &dyn Storage, cluster: u64, count: u64) -> Result<()> {
        let per_block = self.per_block();
        let index = cluster / per_block;
        let host = self.block_offset(index)?.expect("a cluster with a refcount has a block");
        let order = self.order;
        let block = self.block(storage, index, host)?;
        let touched = write_count(&mut block.bytes, order, cluster % per_block, count);
        block.note_dirty(&touched);
        Ok(())
    }

    /// Takes up to `wanted` free clusters in a row, at least one; their refcounts become 1. `None`: the table is
    /// full, see [`grow_for`](Self::grow_for).
    ///
    /// A run ends where a new refcount block has to stand. That a cluster of metadata (`reserved`) counts as free is
    /// corruption, found before anything is put there (I6).
    pub(super) fn take(
        &mut self,
        storage: &dyn Storage,
        reserved: &FxHashSet<u64>,
        wanted: u64,
    ) -> Result<Option<Taken>> {
        loop {
            let first = self.first_free(storage)?;
            let index = first / self.per_block();
            if self.block_offset(index)?.is_none() {
                if index >= self.table.len() as u64 {
                    return Ok(None);
                }
                self.refuse_reserved(reserved, first..first + 1)?;
                self.add_block(storage, index, first)?;
                continue;
            }
            let block_end = (index + 1) * self.per_block();
            let mut end = first;
            while end < block_end && end - first < wanted && self.get(storage, end)? == 0 {
                end += 1;
            }
            self.refuse_reserved(reserved, first..end)?;
            for cluster in first..end {
                self.set(storage, cluster, 1)?;
            }
            self.cursor = end;
            let reads_zero = first << self.cluster_bits >= self.untouched;
            self.untouched = self.untouched.max(end << self.cluster_bits);
            return Ok(Some(Taken { first, count: end - first, reads_zero }));
        }
    }

    fn refuse_reserved(&self, reserved: &FxHashSet<u64>, mut clusters: Range<u64>) -> Result<()> {
        match clusters.find(|cluster| reserved.contains(cluster)) {
            None => Ok(()),
            Some(cluster) => Err(Error::corrupt(
                "metadata stands in a cluster that its refcount calls free; repair the image (a check with repair \"all\")",
            )
            .at(cluster << self.cluster_bits)),
        }
    }

    /// The first free cluster from the cursor on.
    fn first_free(&mut self, storage: &dyn Storage) -> Result<u64> {
        let (per_block, order) = (self.per_block(), self.order);
        let mut cluster = self.cursor;
        loop {
            let index = cluster / per_block;
            let Some(host) = self.block_offset(index)? else {
                return Ok(cluster);
            };
            let block = self.block(storage, index, host)?;
            let free = (cluster % per_block..per_block).find(|&i| read_count(&block.bytes, order, i) == 0);
            if let Some(i) = free {
                return Ok(index * per_block + i);
            }
            cluster = (index + 1) * per_block;
        }
    }

    /// Makes the free cluster `cluster`, which block number `index` or one that exists counts, that block.
    fn add_block(&mut self, storage: &dyn Storage, index: u64, cluster: u64) -> Result<()> {
        let bytes = vec![0; self.cluster_size() as usize].into_boxed_slice();
        // At once, over whatever the cluster held before: nothing names it yet, so a full medium is found out here, where
        // it does no harm, and not by a flush.
        storage.writev_at((&*bytes).into(), cluster << self.cluster_bits)?;
        self.make_room();
        self.keep(index, Block::new(bytes, 0..0));
        self.table[index as usize] = cluster << self.cluster_bits;
        self.dirty_entries.insert(index as usize);
        self.set(storage, cluster, 1)?;
        self.cursor = cluster + 1;
        self.untouched = self.untouched.max((cluster + 1) << self.cluster_bits);
        self.new_metadata.push(cluster);
        Ok(())
    }

    /// Moves the table to a larger one behind everything that the old one could count.
    ///
    /// Recipe (docs/qcow2.md, "Growing the refcount table"): blocks, barrier, table, barrier, header, barrier.
    fn grow_table(
        &mut self,
        storage: &dyn Storage,
        header: &Header,
        reserved: &FxHashSet<u64>,
    ) -> Result<()> {
        let (size, per_block) = (self.cluster_size(), self.per_block());
        let old_entries = self.table.len() as u64;
        let old_clusters = self.table_clusters();
        // `blocks` new blocks count themselves and the table behind them.
        let mut blocks = 1;
        let clusters = loop {
            let entries = (old_entries + blocks).max(old_entries + old_entries / 2);
            let clusters = (entries * 8).div_ceil(size).max(old_clusters + 1);
            if blocks * per_block >= blocks + clusters {
                break clusters;
            }
            blocks += 1;
        };
        if clusters * size > TABLE_BYTES {
            return Err(Error::unsupported(format!(
                "the image file has outgrown a refcount table of {TABLE_BYTES} bytes; use larger clusters"
            )));
        }
        let first = old_entries * per_block;
        let table_cluster = first + blocks;
        self.refuse_reserved(reserved, first..table_cluster + clusters)?;
        let mut table = self.table.clone();
        table.resize((clusters * size / 8) as usize, 0);

        let RefcountWrites { blocks: dirty, .. } = self.take_dirty();
        for (offset, bytes) in dirty {
            storage.writev_at((&bytes).into(), offset.0)?;
        }
        for index in old_entries..old_entries + blocks {
            let used = (first + blocks + clusters - index * per_block).min(per_block);
            let bytes = block_of_ones(used, self.order, size).into_boxed_slice();
            let host = (first + index - old_entries) << self.cluster_bits;
            table[index as usize] = host;
            storage.writev_at((&*bytes).into(), host)?;
            self.keep(index, Block::new(bytes, 0..0));
        }
        storage.sync()?;
        let table_offset = HostOffset(table_cluster << self.cluster_bits);
        let bytes: Vec<u8> = table.iter().flat_map(|word| word.to_be_bytes()).collect();
        storage.writev_at((&bytes).into(), table_offset.0)?;
        storage.sync()?;
        header.rewrite_refcount_table(storage, table_offset, clusters as u32)?;
        storage.sync()?;

        let old = self.table_offset.0 >> self.cluster_bits;
        self.table = table;
        self.table_offset = table_offset;
        self.untouched = self.untouched.max((first + blocks + clusters) << self.cluster_bits);
        self.new_metadata.extend(first..first + blocks + clusters);
        self.old_metadata.extend(old..old + old_clusters);
        self.drop_reference(
            storage,
            Dropped { host: HostOffset(old << self.cluster_bits), len: old_clusters * size },
        )?;
        Ok(())
    }

    /// Takes one reference off every cluster that the range touches; returns those that are free now.
    pub(super) fn drop_reference(&mut self, storage: &dyn Storage, dropped: Dropped) -> Result<Vec<u64>> {
        let first = dropped.host.0 >> self.cluster_bits;
        let last = (dropped.host.0 + dropped.len - 1) >> self.cluster_bits;
        let mut free = Vec::new();
        for cluster in first..=last {
            match self.get(storage, cluster)? {
                0 => return Err(uncounted(cluster << self.cluster_bits)),
                count => self.set(storage, cluster, count - 1)?,
            }
            if self.get(storage, cluster)? == 0 {
                free.push(cluster);
                self.note_freed(cluster);
                self.packed_end = self.packed_end.filter(|end| end >> self.cluster_bits != cluster);
                self.cursor = self.cursor.min(cluster);
            }
        }
        Ok(free)
    }

    /// Whether a cluster became free here.
    pub(super) fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    fn note_freed(&mut self, cluster: u64) {
        let end = self.freed.remove(&(cluster + 1)).unwrap_or(cluster + 1);
        if let Some((_, before)) = self.freed.range_mut(..=cluster).next_back()
            && *before >= cluster
        {
            *before = end.max(*before);
            return;
        }
        self.freed.insert(cluster, end);
        if self.freed.len() > FREED_MAX {
            self.freed.pop_first();
        }
    }

    /// What the width holds at most.
    fn max(&self) -> u64 {
        if self.order == 6 { u64::MAX } else { (1 << (1 << self.order)) - 1 }
    }

    /// Replaces the refcount of every cluster that a range touches, all of which are counted, by what `change` makes of it.
    fn update(
        &mut self,
        storage: &dyn Storage,
        range: Dropped,
        mut change: impl FnMut(u64, u64) -> Result<u64>,
    ) -> Result<()> {
        let (bits, order, per_block) = (self.cluster_bits, self.order, self.per_block());
        let mut cluster = range.host.0 >> bits;
        let end = ((range.host.0 + range.len - 1) >> bits) + 1;
        while cluster < end {
            let index = cluster / per_block;
            let stop = end.min((index + 1) * per_block);
            let host = self.block_offset(index)?.ok_or_else(|| uncounted(cluster << bits))?;
            let block = self.block(storage, index, host)?;
            while cluster < stop {
                let count = match read_count(&block.bytes, order, cluster % per_block) {
                    0 => return Err(uncounted(cluster << bits)),
                    count => count,
                };
                let new = change(cluster, count)?;
                if new != count {
                    let touched = write_count(&mut block.bytes, order, cluster % per_block, new);
                    block.note_dirty(&touched);
                }
                cluster += 1;
            }
        }
        Ok(())
    }

    /// Adds one reference to every cluster that the range touches.
    pub(super) fn add_reference(&mut self, storage: &dyn Storage, range: Dropped) -> Result<()> {
        let (max, bits, order) = (self.max(), self.cluster_bits, self.order);
        self.update(storage, range, |cluster, count| {
            if count < max {
                return Ok(count + 1);
            }
            Err(Error::unsupported(format!(
                "a refcount of {} bits cannot count one more reference than {max}; give the image wider refcounts \
                 (amend it, refcount_bits=...) or delete snapshots",
                1 << order
            ))
            .at(cluster << bits))
        })
    }

    /// Takes one reference off every cluster that the range touches, unless it is the last: that stays, and goes to `last`.
    pub(super) fn drop_shared(
        &mut self,
        storage: &dyn Storage,
        range: Dropped,
        last: &mut Vec<Dropped>,
    ) -> Result<()> {
        let bits = self.cluster_bits;
        let packed = self.packed_end.map(|end| end >> bits);
        let mut ends_packing = false;
        let updated = self.update(storage, range, |cluster, count| {
            if count > 1 {
                return Ok(count - 1);
            }
            ends_packing |= packed == Some(cluster);
            let host = HostOffset(cluster << bits);
            match last.last_mut() {
                Some(before) if before.host + before.len == host => before.len += 1 << bits,
                _ => last.push(Dropped { host, len: 1 << bits }),
            }
            Ok(count)
        });
        if ends_packing {
            // It waits for its readers: what were packed into it now would be given back before theirs have ended.
            self.packed_end = None;
        }
        updated
    }

    /// Whether the cluster at `host` has exactly one reference.
    pub(super) fn is_single(&mut self, storage: &dyn Storage, host: HostOffset) -> Result<bool> {
        Ok(self.get(storage, host.0 >> self.cluster_bits)? == 1)
    }

    /// Clusters up to the last one in use, of a file of `len` bytes. Where only free ones are found in [`END_BLOCKS`] blocks, what those count
    /// is taken for used.
    fn end_of_use(&mut self, storage: &dyn Storage, len: u64) -> Result<u64> {
        let (per_block, order) = (self.per_block(), self.order);
        // What no block counts is free.
        let mut end = len.div_ceil(self.cluster_size()).min(self.table.len() as u64 * per_block);
        let mut looked_at = 0;
        while end > 0 {
            let index = (end - 1) / per_block;
            let first = index * per_block;
            if let Some(host) = self.block_offset(index)? {
                let block = self.block(storage, index, host)?;
                let used = (first..end).rev().find(|c| read_count(&block.bytes, order, c % per_block) != 0);
                if let Some(last) = used {
                    return Ok(last + 1);
                }
                looked_at += 1;
                if looked_at == END_BLOCKS {
                    return Ok(end);
                }
            }
            end = first;
        }
        Ok(0)
    }

    /// Clusters that a file of `len` bytes has to have: those behind are free, and were made so here. What was free before is left alone:
    /// where refcounts are too low it may be somebody's, and a repair finds it only as long as it is there.
    pub(super) fn end_to_keep(&mut self, storage: &dyn Storage, len: u64) -> Result<u64> {
        let mut end = len.div_ceil(self.cluster_size());
        while let Some((&first, &behind)) = self.freed.range(..end).next_back()
            && behind >= end
        {
            end = first;
        }
        Ok(end.max(self.end_of_use(storage, len)?))
    }

    /// The file ends at `end` now, or before: what comes behind it reads as zeroes.
    pub(super) fn note_cut(&mut self, end: HostOffset) {
        self.untouched = self.untouched.min(end.0);
    }

    /// Forgets every change since all was on disk; the caller knows that it was, that nothing was taken since, and holds `flushing`.
    pub(super) fn forget_changes(&mut self) {
        debug_assert!(self.dirty_entries.is_empty());
        self.blocks.retain(|_, block| block.dirty.is_empty());
    }

    /// Takes the changes that are not on disk yet; once they are, [`landed`](Self::landed) is to be told.
    /// The caller holds `flushing`, so that what is taken later lands later.
    pub(super) fn take_dirty(&mut self) -> RefcountWrites {
        let mut writes = RefcountWrites::default();
        for (&index, block) in &mut self.blocks {
            if !block.dirty.is_empty() {
                let dirty = std::mem::replace(&mut block.dirty, 0..0);
                block.landing = true;
                let host = HostOffset(self.table[index as usize] & OFFSET_MASK);
                writes.blocks.push((host + dirty.start as u64, block.bytes[dirty].to_vec()));
            }
        }
        for index in std::mem::take(&mut self.dirty_entries) {
            writes.table.push((self.table_offset + index as u64 * 8, self.table[index]));
        }
        writes
    }

    /// Whether there are changes to [take](Self::take_dirty).
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty_entries.is_empty() || self.blocks.values().any(|block| !block.dirty.is_empty())
    }

    /// All that was taken is written: blocks may be dropped from memory again.
    pub(super) fn landed(&mut self) {
        self.blocks.values_mut().for_each(|block| block.landing = false);
        self.make_room();
    }
}

pub(super) fn uncounted(host: u64) -> Error {
    Error::corrupt("a cluster in use has refcount 0; repair the image (a check with repair \"all\")").at(host)
}

/// A refcount block of `size` bytes whose first `used` clusters have refcount 1.
pub(super) fn block_of_ones(used: u64, order: u32, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for index in 0..used {
        write_count(&mut bytes, order, index, 1);
    }
    bytes
}

/// Refcount number `index` of a block; widths below a byte start at the byte's low bits.
pub(super) fn read_count(bytes: &[u8], order: u32, index: u64) -> u64 {
    let i = index as usize;
    match order {
        0..=2 => {
            let (per_byte, bits) = (8 >> order, 1 << order);
            u64::from(bytes[i / per_byte] >> (i % per_byte * bits)) & ((1 << bits) - 1)
        }
        3 => u64::from(bytes[i]),
        4 => u64::from(u16::from_be_bytes(bytes.as_chunks::<2>().0[i])),
        5 => u64::from(u32::from_be_bytes(bytes.as_chunks::<4>().0[i])),
        _ => u64::from_be_bytes(bytes.as_chunks::<8>().0[i]),
    }
}

/// Writes refcount number `index`, which the width can hold; returns the bytes it touched.
pub(super) fn write_count(bytes: &mut [u8], order: u32, index: u64, count: u64) -> Range<usize> {
    let i = index as usize;
    if order < 3 {
        let (per_byte, bits) = (8 >> order, 1 << order);
        let shift = i % per_byte * bits;
        let mask = (((1u32 << bits) - 1) << shift) as u8;
        let byte = &mut bytes[i / per_byte];
        *byte = (*byte & !mask) | (count as u8) << shift;
        return i / per_byte..i / per_byte + 1;
    }
    let width = 1 << (order - 3);
    let touched = i * width..(i + 1) * width;
    bytes[touched.clone()].copy_from_slice(&count.to_be_bytes()[8 - width..]);
    touched
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;

    /// Reading it back meanwhile would show its clusters as free, and they would be taken twice.
    #[test]
    fn a_block_stays_in_memory_until_what_was_taken_of_it_is_written() {
        let storage = Memory::new(0);
        let bits = 21;
        let mut refcounts = Refcounts { cluster_bits: bits, table: vec![1 << bits], ..Refcounts::absent() };
        let taken = refcounts.take(&storage, &FxHashSet::default(), 1).unwrap().unwrap();
        let writes = refcounts.take_dirty();
        for index in 1..=(CLEAN_BYTES >> bits) {
            refcounts.blocks.insert(index, Block::new(vec![0; 1 << bits].into(), 0..0));
        }
        refcounts.make_room();
        assert_eq!(refcounts.get(&storage, taken.first).unwrap(), 1);
        for (offset, bytes) in &writes.blocks {
            storage.writev_at(bytes.into(), offset.0).unwrap();
        }
        refcounts.landed();
        refcounts.blocks.insert(1, Block::new(vec![0; 1 << bits].into(), 0..0));
        refcounts.blocks.insert(2, Block::new(vec![0; 1 << bits].into(), 0..0));
        refcounts.make_room();
        assert!(refcounts.blocks.is_empty());
        assert_eq!(refcounts.get(&storage, taken.first).unwrap(), 1);
    }

    #[test]
    fn counts_of_every_width_keep_their_neighbours() {
        for order in 0..=6 {
            let mut bytes = vec![0; 64];
            let max = if order == 6 { u64::MAX } else { (1 << (1u64 << order)) - 1 };
            write_count(&mut bytes, order, 3, max);
            write_count(&mut bytes, order, 5, 1);
            let counts: Vec<u64> = (2..7).map(|i| read_count(&bytes, order, i)).collect();
            assert_eq!(counts, [0, max, 0, 1, 0], "order {order}");
            write_count(&mut bytes, order, 3, 0);
            assert_eq!((read_count(&bytes, order, 3), read_count(&bytes, order, 5)), (0, 1));
        }
    }
}
