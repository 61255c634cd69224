//! L1 and L2 tables: reading the L1 table, making and copying L2 tables, and where metadata stands.

use std::sync::atomic::{AtomicU64, Ordering};

use rustc_hash::FxHashSet;
use zerocopy::FromZeros;

use super::Driver;
use super::bitmaps::{self, Bitmap};
use super::header::{Encryption, Header};
use super::l2::{COPIED, OFFSET_MASK};
use super::pending::Dropped;
use super::refcounts::Refcounts;
use super::snapshots::SnapshotTable;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

/// Bytes of a table that are read at once, so that a large one is not in memory twice.
const TABLE_READ: u64 = 1 << 20;

/// Reads `count` big-endian words at `offset`, which have to lie in the file.
pub(super) fn read_words(storage: &dyn Storage, offset: HostOffset, count: u64) -> Result<Vec<u64>> {
    let end = count.checked_mul(8).and_then(|bytes| offset.0.checked_add(bytes));
    if end.is_none_or(|end| end > storage.len().unwrap_or(0)) {
        return Err(
            Error::corrupt(format!("a table of {count} entries goes past the end of the file")).at(offset.0)
        );
    }
    let mut words = Vec::with_capacity(count as usize);
    let mut part = vec![0; (count * 8).min(TABLE_READ) as usize];
    while words.len() < count as usize {
        let at = words.len() * 8;
        let len = part.len().min(count as usize * 8 - at);
        storage.readv_at((&mut part[..len]).into(), offset.0 + at as u64)?;
        words.extend(part[..len].as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)));
    }
    Ok(words)
}

/// The active L1 table, with room for `capacity` entries at least. Entries behind those of the file are 0; the
/// memory for them is not touched before they are.
pub(super) fn read_l1(storage: &dyn Storage, header: &Header, capacity: usize) -> Result<Box<[AtomicU64]>> {
    let words = read_words(storage, header.l1_offset, u64::from(header.l1_entries))?;
    let l1 = <[AtomicU64]>::new_box_zeroed_with_elems(capacity.max(words.len()))
        .map_err(|_| Error::new(ErrorKind::Io, "no memory for the L1 table"))?;
    for (entry, word) in l1.iter().zip(words) {
        entry.store(word, Ordering::Relaxed);
    }
    Ok(l1)
}

/// The clusters with metadata of the active image. Two structures in one cluster are corruption (I6).
pub(super) fn reserved_clusters(
    storage: &dyn Storage,
    header: &Header,
    l1: &[AtomicU64],
    refcounts: &Refcounts,
    bitmaps: &[Bitmap],
) -> Result<FxHashSet<u64>> {
    let bits = header.cluster_bits;
    let file_end = storage.len()?.div_ceil(1 << bits);
    let mut reserved = FxHashSet::default();
    let mut add = |cluster: u64, what: &str| {
        if cluster >= file_end {
            return Err(Error::corrupt(format!("{what} lies past the end of the file")).at(cluster << bits));
        }
        if !reserved.insert(cluster) {
            return Err(Error::corrupt(format!(
                "{what} overlaps other metadata: open the image read-only, or repair it first (a check with repair \"all\")"
            ))
            .at(cluster << bits));
        }
        Ok(())
    };
    let clusters = |offset: HostOffset, bytes: u64| offset.0 >> bits..(offset.0 + bytes).div_ceil(1 << bits);

    add(0, "the header")?;
    for cluster in clusters(header.l1_offset, u64::from(header.l1_entries) * 8) {
        add(cluster, "the L1 table")?;
    }
    for cluster in refcounts.metadata_clusters() {
        add(cluster, "a refcount structure")?;
    }
    for word in l1[..header.l1_entries as usize]
        .iter()
        .map(|word| word.load(Ordering::Relaxed) & OFFSET_MASK)
        .filter(|&host| host != 0)
    {
        add(word >> bits, "an L2 table")?;
    }
    let table = SnapshotTable::read(storage, header)?;
    for cluster in clusters(header.snapshot_offset, table.len) {
        add(cluster, "the snapshot table")?;
    }
    for snapshot in &table.snapshots {
        for cluster in clusters(snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8) {
            add(cluster, "a snapshot's L1 table")?;
        }
    }
    if let Some(Encryption::Luks(place)) = header.encryption {
        for cluster in clusters(place.offset, place.len) {
            add(cluster, "the encryption header")?;
        }
    }
    if let Some(extension) = &header.bitmaps {
        for cluster in clusters(extension.directory_offset, extension.directory_size) {
            add(cluster, "the bitmap directory")?;
        }
    }
    for bitmap in bitmaps {
        let (table, data) = bitmaps::clusters(storage, header, bitmap, header.size)?;
        table.into_iter().try_for_each(|cluster| add(cluster, "a bitmap table"))?;
        data.into_iter().try_for_each(|cluster| add(cluster, "a bitmap's bits"))?;
    }
    Ok(reserved)
}

impl Driver {
    /// The L2 table that maps `guest`, made or copied first if there is none or it is shared.
    ///
    /// Its content is in the file when this returns and its refcount counted, so that the next flush's first barrier makes
    /// both durable before the L1 entry is written (I4).
    pub(super) fn own_table(&self, guest: GuestOffset) -> Result<HostOffset> {
        if let Some(table) = self.table(guest)?
            && table.copied
        {
            return Ok(table.host);
        }
        let one_maker = self.tables.lock();
        let shared = match self.table(guest)? {
            Some(table) if table.copied => return Ok(table.host),
            Some(table) => Some(table.host),
            None => None,
        };
        let size = self.geometry.cluster_size();
        let mut content = vec![0; size as usize];
        if let Some(old) = shared {
            // A shared table is never changed in memory: the file has its latest state.
            self.storage.readv_at((&mut content).into(), old.0)?;
        }
        let taken = self.take_clusters(1)?;
        let host = HostOffset(taken.first << self.geometry.cluster_bits);
        self.slices.forget(host.0, size);
        // Past the latch: nothing names the cluster yet, so that a failure (a full medium) does no harm.
        if let Err(error) = self.storage.writev_at((&content).into(), host.0) {
            // A failure here leaves a leak; the first one is the one to report.
            let _ = self.drop_references(&[Dropped { host, len: size }]);
            return Err(error);
        }
        {
            let mut reserved = self.reserved.write();
            reserved.insert(taken.first);
            if let Some(old) = shared {
                reserved.remove(&(old.0 >> self.geometry.cluster_bits));
            }
        }
        let index = self.geometry.l1_index(guest);
        let mut pending = self.pending.lock();
        self.l1[index].store(host.0 | COPIED, Ordering::Release);
        pending.l1.insert(index);
        pending.dropped.extend(shared.map(|host| Dropped { host, len: size }));
        drop(pending);
        drop(one_maker);
        Ok(host)
    }
}
