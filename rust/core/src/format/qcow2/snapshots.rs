//! The snapshot table.

use std::mem::offset_of;

use zerocopy::FromBytes;

use super::header::{Header, MAX_L1_LEN, MAX_SNAPSHOTS, in_file};
use crate::error::{Error, Result};
use crate::ondisk::{RawSnapshot, RawSnapshotExtra, Table, bytes_fit};
use crate::storage::Storage;
use crate::units::HostOffset;

/// Bytes of the table at most: 1 KiB for each of [`MAX_SNAPSHOTS`], 64 MiB.
pub(super) const MAX_TABLE_LEN: u64 = 1024 * MAX_SNAPSHOTS;
/// Bytes of extra data of one snapshot at most.
pub(super) const MAX_EXTRA_LEN: u32 = 1024;

/// One internal snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Unique id.
    pub(crate) id: String,
    /// Name.
    pub(crate) name: String,
    /// Its L1 table.
    pub(crate) l1_offset: HostOffset,
    /// Entries of its L1 table.
    pub(crate) l1_entries: u32,
    /// When it was taken, seconds since the epoch,
    pub(crate) date_sec: u32,
    /// and nanoseconds.
    pub(crate) date_nsec: u32,
    /// How long the guest had been running, nanoseconds.
    pub(crate) vm_clock_nsec: u64,
    /// Bytes of VM state, which lie behind the disk in the snapshot's mapping.
    pub(crate) vm_state_size: u64,
    /// Instruction count, where it was recorded.
    pub(crate) icount: Option<u64>,
}

/// All snapshots of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotTable {
    /// In the table's order.
    pub(crate) snapshots: Vec<Snapshot>,
    /// Bytes of the table, from [`Header::snapshot_offset`] on.
    pub(crate) len: u64,
}

impl SnapshotTable {
    /// Reads the table entry by entry, so that no more is ever allocated than the file has there.
    pub(crate) fn read(storage: &dyn Storage, header: &Header) -> Result<Self> {
        let mut table = SnapshotTable::default();
        let read = || {
            let file_len = storage.len()?;
            let start = header.snapshot_offset.0;
            let limit = file_len.min(start.saturating_add(MAX_TABLE_LEN));
            for _ in 0..header.snapshot_count {
                let at = start + table.len.next_multiple_of(8);
                let (snapshot, len) = entry(storage, header, at, limit, file_len)?;
                table.snapshots.push(snapshot);
                table.len = at - start + len;
            }
            Ok(table)
        };
        read().map_err(|error| in_file(storage, error))
    }
}

/// The entry at `at`, which may not go past `limit`, and its length without the padding.
fn entry(
    storage: &dyn Storage,
    header: &Header,
    at: u64,
    limit: u64,
    file_len: u64,
) -> Result<(Snapshot, u64)> {
    let corrupt = |message: String| Error::corrupt(message).at(at);
    let cut_off =
        || corrupt("the snapshot table is longer than 64 MiB or goes past the end of the file".into());
    let mut fixed = [0; size_of::<RawSnapshot>()];
    if !bytes_fit(at, fixed.len() as u64, limit) {
        return Err(cut_off());
    }
    storage.readv_at((&mut fixed).into(), at)?;
    let raw = RawSnapshot::read_from_bytes(&fixed).expect("the array has the structure's size");
    if raw.extra_len.get() > MAX_EXTRA_LEN {
        let extra = raw.extra_len;
        return Err(corrupt(format!(
            "a snapshot has {extra} bytes of extra data; {MAX_EXTRA_LEN} are the most"
        )));
    }

    let (extra_len, id_len) = (raw.extra_len.get() as usize, raw.id_len.get() as usize);
    let mut variable = vec![0; extra_len + id_len + raw.name_len.get() as usize];
    let len = (fixed.len() + variable.len()) as u64;
    if !bytes_fit(at, len, limit) {
        return Err(cut_off());
    }
    storage.readv_at((&mut variable).into(), at + fixed.len() as u64)?;
    let (extra, names) = variable.split_at(extra_len);
    let (id, name) = names.split_at(id_len);

    let mut known_extra = [0; size_of::<RawSnapshotExtra>()];
    let known_len = extra.len().min(known_extra.len());
    known_extra[..known_len].copy_from_slice(&extra[..known_len]);
    let known = RawSnapshotExtra::read_from_bytes(&known_extra).expect("the array has the structure's size");
    let has_vm_state_size = known_len >= offset_of!(RawSnapshotExtra, disk_size);
    let has_icount = known_len == known_extra.len() && known.icount.get() != u64::MAX;

    let l1 = Table {
        name: "L1 table of a snapshot",
        offset: raw.l1_offset.get(),
        entries: raw.l1_entries.get().into(),
        entry_len: 8,
        max_len: MAX_L1_LEN,
    };
    let snapshot = Snapshot {
        id: String::from_utf8_lossy(id).into_owned(),
        name: String::from_utf8_lossy(name).into_owned(),
        l1_offset: l1.check(header.cluster_size(), file_len).map_err(corrupt)?,
        l1_entries: raw.l1_entries.get(),
        date_sec: raw.date_sec.get(),
        date_nsec: raw.date_nsec.get(),
        vm_clock_nsec: raw.vm_clock_nsec.get(),
        vm_state_size: if has_vm_state_size {
            known.vm_state_size.get()
        } else {
            raw.vm_state_size.get().into()
        },
        icount: has_icount.then_some(known.icount.get()),
    };
    Ok((snapshot, len))
}
