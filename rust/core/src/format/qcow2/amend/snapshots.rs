//! The snapshot table between the versions: version 3 wants 16 bytes of extra data in every entry, version 2 readers may not know them.

use std::mem::offset_of;

use zerocopy::{FromBytes, IntoBytes};

use super::super::header::Header;
use super::super::snapshots::SnapshotTable;
use crate::error::{Error, Result};
use crate::ondisk::{RawSnapshot, RawSnapshotExtra};
use crate::storage::Storage;

/// One entry of the table as it stands.
struct Entry {
    raw: RawSnapshot,
    extra: Vec<u8>,
    /// Id and name.
    names: Vec<u8>,
}

/// A snapshot table as it stands.
pub(super) struct Entries {
    entries: Vec<Entry>,
    /// Its length in bytes.
    pub(super) len: u64,
}

impl Entries {
    /// Reads the table of the image.
    pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Self> {
        let start = header.snapshot_offset.0;
        let len = SnapshotTable::read(storage, header)?.len;
        let mut bytes = vec![0; len as usize];
        storage.readv_at((&mut bytes).into(), start)?;
        let cut_off = || Error::corrupt("the snapshot table changed while it was read").at(start);
        let (mut entries, mut at) = (Vec::new(), 0_usize);
        for _ in 0..header.snapshot_count {
            let rest = bytes.get(at.next_multiple_of(8)..).ok_or_else(cut_off)?;
            let (raw, variable) = RawSnapshot::read_from_prefix(rest).map_err(|_| cut_off())?;
            let names_len = usize::from(raw.id_len.get()) + usize::from(raw.name_len.get());
            let (extra, names) =
                variable.split_at_checked(raw.extra_len.get() as usize).ok_or_else(cut_off)?;
            let names = names.get(..names_len).ok_or_else(cut_off)?;
            at = at.next_multiple_of(8) + size_of::<RawSnapshot>() + extra.len() + names.len();
            entries.push(Entry { raw, extra: extra.to_vec(), names: names.to_vec() });
        }
        Ok(Entries { entries, len })
    }

    /// Refuses what a reader of version 2 would not see: a size of its own, more than 4 GiB of VM state.
    pub(super) fn refuse_version_3_only(&self, disk_size: u64) -> Result<()> {
        let known = offset_of!(RawSnapshotExtra, icount);
        for entry in self.entries.iter().filter(|entry| entry.extra.len() >= known) {
            let word =
                |at: usize| entry.extra[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            let problem = if word(offset_of!(RawSnapshotExtra, disk_size)) != disk_size {
                "is of a disk of another size"
            } else if u32::try_from(word(offset_of!(RawSnapshotExtra, vm_state_size))).is_err() {
                "has 4 GiB of VM state or more"
            } else {
                continue;
            };
            let id =
                String::from_utf8_lossy(&entry.names[..usize::from(entry.raw.id_len.get())]).into_owned();
            return Err(Error::unsupported(format!(
                "snapshot {id:?} {problem}, which version 2 cannot say; delete the snapshot first"
            )));
        }
        Ok(())
    }

    /// The table with the extra data that version 3 wants; `None`: it is all there.
    pub(super) fn for_version_3(mut self, disk_size: u64) -> Option<Vec<u8>> {
        let wanted = offset_of!(RawSnapshotExtra, icount);
        if self.entries.iter().all(|entry| entry.extra.len() >= wanted) {
            return None;
        }
        let mut table = Vec::new();
        for entry in &mut self.entries {
            if entry.extra.len() < wanted {
                let vm_state_size = entry.extra.first_chunk().map_or_else(
                    || u64::from(entry.raw.vm_state_size.get()),
                    |bytes| u64::from_be_bytes(*bytes),
                );
                let extra = RawSnapshotExtra {
                    vm_state_size: vm_state_size.into(),
                    disk_size: disk_size.into(),
                    icount: u64::MAX.into(),
                };
                entry.extra = extra.as_bytes().to_vec();
                entry.raw.extra_len = (entry.extra.len() as u32).into();
            }
            table.resize(usize::next_multiple_of(table.len(), 8), 0);
            table.extend_from_slice(entry.raw.as_bytes());
            table.extend_from_slice(&entry.extra);
            table.extend_from_slice(&entry.names);
        }
        Some(table)
    }
}
