//! The snapshot table: read entry by entry, written as a whole.

use std::mem::offset_of;

use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::error::{Error, Result};
use crate::format::qcow2::header::{Header, MAX_L1_LEN, MAX_SNAPSHOTS, in_file};
use crate::format::qcow2_info::SnapshotInfo;
use crate::ondisk::{RawSnapshot, RawSnapshotExtra, Table, bytes_fit};
use crate::storage::Storage;
use crate::units::HostOffset;

/// Bytes of the table at most: 1 KiB for each of [`MAX_SNAPSHOTS`], 64 MiB.
pub(crate) const MAX_TABLE_LEN: u64 = 1024 * MAX_SNAPSHOTS;
/// Bytes of extra data of one snapshot at most.
pub(crate) const MAX_EXTRA_LEN: u32 = 1024;
/// Bytes of a name and of an id at most: what QEMU shows of them.
const MAX_NAME_LEN: usize = 255;
const MAX_ID_LEN: usize = 127;
/// Bytes of extra data that every entry of a version 3 image has: up to the disk size.
const V3_EXTRA_LEN: usize = offset_of!(RawSnapshotExtra, icount);

/// One internal snapshot, as its entry has it.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Its L1 table, checked: it lies in the file.
    pub(crate) l1_offset: HostOffset,
    /// Entries of its L1 table.
    pub(crate) l1_entries: u32,
    raw: RawSnapshot,
    /// Known and unknown, kept byte for byte.
    extra: Vec<u8>,
    id: Vec<u8>,
    name: Vec<u8>,
}

impl Snapshot {
    /// A new one without VM state, of a disk of `disk_size` bytes.
    pub(super) fn new(
        id: &str,
        name: &str,
        date: (u32, u32),
        disk_size: u64,
        l1: (HostOffset, u32),
    ) -> Result<Self> {
        if id.len() > MAX_ID_LEN {
            return Err(Error::invalid_input(format!(
                "the id has {} bytes; {MAX_ID_LEN} are the most",
                id.len()
            )));
        }
        let mut raw = RawSnapshot::new_zeroed();
        raw.l1_offset = l1.0.0.into();
        raw.l1_entries = l1.1.into();
        (raw.date_sec, raw.date_nsec) = (date.0.into(), date.1.into());
        let extra = RawSnapshotExtra {
            disk_size: disk_size.into(),
            icount: U64::MAX_VALUE,
            ..FromZeros::new_zeroed()
        };
        let mut snapshot = Snapshot {
            l1_offset: l1.0,
            l1_entries: l1.1,
            raw,
            extra: extra.as_bytes().to_vec(),
            id: id.into(),
            name: Vec::new(),
        };
        snapshot.rename(name)?;
        Ok(snapshot)
    }

    pub(super) fn rename(&mut self, name: &str) -> Result<()> {
        if name.len() > MAX_NAME_LEN {
            return Err(Error::invalid_input(format!(
                "the name has {} bytes; {MAX_NAME_LEN} are the most",
                name.len()
            )));
        }
        if name.contains('\0') {
            return Err(Error::invalid_input("the name has a NUL in it"));
        }
        self.name = name.into();
        Ok(())
    }

    /// The extra data as far as it is known, and how many bytes of that are there.
    fn known_extra(&self) -> (RawSnapshotExtra, usize) {
        let mut bytes = [0; size_of::<RawSnapshotExtra>()];
        let len = self.extra.len().min(bytes.len());
        bytes[..len].copy_from_slice(&self.extra[..len]);
        (RawSnapshotExtra::read_from_bytes(&bytes).expect("the array has the structure's size"), len)
    }

    /// Bytes of VM state, which lie behind the disk in the snapshot's mapping.
    fn vm_state_size(&self) -> u64 {
        let (extra, len) = self.known_extra();
        if len >= offset_of!(RawSnapshotExtra, disk_size) {
            extra.vm_state_size.get()
        } else {
            self.raw.vm_state_size.get().into()
        }
    }

    /// Size of the disk, where the entry knows it.
    pub(crate) fn disk_size(&self) -> Option<u64> {
        let (extra, len) = self.known_extra();
        (len >= V3_EXTRA_LEN).then(|| extra.disk_size.get())
    }

    /// The number that its id starts with, as QEMU reads it.
    pub(super) fn number(&self) -> u64 {
        let digits = self.id.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0_u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    }

    pub(super) fn has_id(&self, id: &str) -> bool {
        self.id == id.as_bytes()
    }

    /// What `info` shows of it.
    pub(crate) fn info(&self) -> SnapshotInfo {
        let (extra, len) = self.known_extra();
        let icount =
            Some(extra.icount.get()).filter(|icount| len == size_of_val(&extra) && *icount != u64::MAX);
        SnapshotInfo {
            id: String::from_utf8_lossy(&self.id).into_owned(),
            name: String::from_utf8_lossy(&self.name).into_owned(),
            vm_state_size: self.vm_state_size(),
            date_sec: self.raw.date_sec.get(),
            date_nsec: self.raw.date_nsec.get(),
            vm_clock_nsec: self.raw.vm_clock_nsec.get(),
            icount,
        }
    }

    /// The entry, padded to a multiple of 8. In version 3 the VM state size and the disk size are there always; a
    /// snapshot that did not know its disk's size has that of the disk (`disk_size`).
    fn put(&self, out: &mut Vec<u8>, version: u32, disk_size: u64) {
        let mut extra = self.extra.clone();
        if version >= 3 && extra.len() < V3_EXTRA_LEN {
            extra.clear();
            extra.extend_from_slice(&self.vm_state_size().to_be_bytes());
            extra.extend_from_slice(&disk_size.to_be_bytes());
        }
        let mut raw = self.raw;
        raw.l1_offset = self.l1_offset.0.into();
        raw.extra_len = (extra.len() as u32).into();
        raw.id_len = (self.id.len() as u16).into();
        raw.name_len = (self.name.len() as u16).into();
        out.extend_from_slice(raw.as_bytes());
        for part in [&extra, &self.id, &self.name] {
            out.extend_from_slice(part);
        }
        out.resize(out.len().next_multiple_of(8), 0);
    }
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
            if let Some(lost) = &header.lost.snapshots {
                return Err(lost.clone());
            }
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

    /// The snapshot with that id or, if there is none, the first with that name.
    pub(crate) fn find(&self, id_or_name: &str) -> Result<usize> {
        let named = |snapshot: &Snapshot| snapshot.name == id_or_name.as_bytes();
        let found = self.snapshots.iter().position(|snapshot| snapshot.has_id(id_or_name));
        found.or_else(|| self.snapshots.iter().position(named)).ok_or_else(|| {
            Error::invalid_input(format!("there is no snapshot {id_or_name:?}, by id or by name"))
        })
    }

    /// The table as it is written; limits are checked.
    pub(super) fn to_bytes(&self, header: &Header) -> Result<Vec<u8>> {
        if self.snapshots.len() as u64 > MAX_SNAPSHOTS {
            return Err(Error::invalid_input(format!("an image has {MAX_SNAPSHOTS} snapshots at most")));
        }
        let mut bytes = Vec::new();
        self.snapshots.iter().for_each(|snapshot| snapshot.put(&mut bytes, header.version, header.size));
        if bytes.len() as u64 > MAX_TABLE_LEN {
            return Err(Error::invalid_input("the snapshot table would be longer than 64 MiB"));
        }
        Ok(bytes)
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

    let l1 = Table {
        name: "L1 table of a snapshot",
        offset: raw.l1_offset.get(),
        entries: raw.l1_entries.get().into(),
        entry_len: 8,
        max_len: MAX_L1_LEN,
    };
    let snapshot = Snapshot {
        l1_offset: l1.check(header.cluster_size(), file_len).map_err(corrupt)?,
        l1_entries: raw.l1_entries.get(),
        raw,
        extra: extra.into(),
        id: id.into(),
        name: name.into(),
    };
    Ok((snapshot, len))
}
