//! The structures of qcow2 as they lie in the file, each declared once, and the arithmetic to check where they lie.
//!
//! All numbers are big-endian. The page `docs/qcow2.md` shows the same structures as tables.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::units::HostOffset;

/// Bytes of a version 2 header: [`RawHeader`] up to `snapshot_offset`.
pub(crate) const HEADER_V2_LEN: u32 = 72;
/// Bytes that a version 3 header has at least: [`RawHeader`] up to `header_length`.
pub(crate) const HEADER_V3_MIN_LEN: u32 = 104;

/// The header at offset 0. Version 2 ends after `snapshot_offset`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    /// `QFI` and 0xfb.
    pub(crate) magic: U32,
    /// 2 or 3.
    pub(crate) version: U32,
    /// Where the backing file's name is, inside the first cluster; 0: there is no backing file.
    pub(crate) backing_name_offset: U64,
    /// Length of that name in bytes (no NUL at its end), at most 1023.
    pub(crate) backing_name_len: U32,
    /// A cluster has 2 to this power bytes.
    pub(crate) cluster_bits: U32,
    /// Size of the guest's disk in bytes.
    pub(crate) size: U64,
    /// 0: not encrypted, 1: AES, 2: LUKS.
    pub(crate) crypt_method: U32,
    /// Entries of the active L1 table; may be more than the size needs.
    pub(crate) l1_entries: U32,
    /// Where the active L1 table is; a multiple of the cluster size.
    pub(crate) l1_offset: U64,
    /// Where the refcount table is; a multiple of the cluster size.
    pub(crate) refcount_table_offset: U64,
    /// Clusters that the refcount table takes.
    pub(crate) refcount_table_clusters: U32,
    /// Snapshots in the snapshot table.
    pub(crate) snapshot_count: U32,
    /// Where the snapshot table is; a multiple of the cluster size.
    pub(crate) snapshot_offset: U64,
    /// Bits that one has to know to open the image.
    pub(crate) incompatible: U64,
    /// Bits that may be ignored.
    pub(crate) compatible: U64,
    /// Bits that whoever does not know them clears before writing.
    pub(crate) autoclear: U64,
    /// A refcount has 2 to this power bits; 4 in version 2.
    pub(crate) refcount_order: U32,
    /// Length of this header in bytes, a multiple of 8; extensions start there. 72 in version 2.
    pub(crate) header_length: U32,
    /// 0: deflate, 1: zstd. There only if `header_length` reaches past it.
    pub(crate) compression_type: u8,
    /// Zeroes.
    pub(crate) padding: [u8; 7],
}

/// The start of a header extension; `len` bytes of data follow, and padding up to a multiple of 8.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawExtension {
    /// What the data is; 0 ends the list.
    pub(crate) kind: U32,
    /// Bytes of data, without the padding.
    pub(crate) len: U32,
}

/// One entry of the feature name table extension.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawFeatureName {
    /// 0: incompatible, 1: compatible, 2: autoclear.
    pub(crate) class: u8,
    /// Which bit of that field, 0 to 63.
    pub(crate) bit: u8,
    /// Its name, filled up with NULs.
    pub(crate) name: [u8; 46],
}

/// The data of the bitmaps extension.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawBitmaps {
    /// Entries of the bitmap directory, at least 1.
    pub(crate) count: U32,
    /// Zero.
    pub(crate) reserved: U32,
    /// Bytes of the bitmap directory: all its entries with their padding.
    pub(crate) directory_size: U64,
    /// Where the bitmap directory is; a multiple of the cluster size.
    pub(crate) directory_offset: U64,
}

/// The data of the encryption header's extension.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawCryptoHeader {
    /// Where the encryption header is; a multiple of the cluster size.
    pub(crate) offset: U64,
    /// Bytes of it, with all key material.
    pub(crate) len: U64,
}

/// The fixed part of a bitmap directory entry; `extra_len` bytes, the name and padding up to a multiple of 8 follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawBitmapEntry {
    /// Where the bitmap table is; a multiple of the cluster size.
    pub(crate) table_offset: U64,
    /// Entries (of 8 bytes) of the bitmap table.
    pub(crate) table_entries: U32,
    /// Bit 0: in use (not saved, contents mean nothing). Bit 1: auto (enabled, must follow every write).
    /// Bit 2: usable although the extra data is unknown.
    pub(crate) flags: U32,
    /// 1: dirty tracking bitmap.
    pub(crate) kind: u8,
    /// One bit stands for 2 to this power bytes.
    pub(crate) granularity_bits: u8,
    /// Length of the name in bytes, at least 1.
    pub(crate) name_len: U16,
    /// Bytes of extra data, before the name.
    pub(crate) extra_len: U32,
}

/// The fixed part of a snapshot table entry; extra data, id, name and padding up to a multiple of 8 follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawSnapshot {
    /// Where the snapshot's L1 table is; a multiple of the cluster size.
    pub(crate) l1_offset: U64,
    /// Entries of that L1 table.
    pub(crate) l1_entries: U32,
    /// Length of the id in bytes.
    pub(crate) id_len: U16,
    /// Length of the name in bytes.
    pub(crate) name_len: U16,
    /// When it was taken: seconds since the epoch,
    pub(crate) date_sec: U32,
    /// and nanoseconds.
    pub(crate) date_nsec: U32,
    /// How long the guest had been running, in nanoseconds.
    pub(crate) vm_clock_nsec: U64,
    /// Bytes of VM state, unless the extra data has them.
    pub(crate) vm_state_size: U32,
    /// Bytes of extra data ([`RawSnapshotExtra`], or less or more of it).
    pub(crate) extra_len: U32,
}

/// The extra data of a snapshot table entry, as far as it is defined. A shorter one lacks the last fields.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawSnapshotExtra {
    /// Bytes of VM state.
    pub(crate) vm_state_size: U64,
    /// Size of the guest's disk when the snapshot was taken, in bytes.
    pub(crate) disk_size: U64,
    /// Instruction count of record/replay; all ones: none.
    pub(crate) icount: U64,
}

const _: () = {
    assert!(size_of::<RawHeader>() == 112);
    assert!(std::mem::offset_of!(RawHeader, incompatible) == HEADER_V2_LEN as usize);
    assert!(std::mem::offset_of!(RawHeader, compression_type) == HEADER_V3_MIN_LEN as usize);
    assert!(size_of::<RawFeatureName>() == 48);
    assert!(size_of::<RawBitmaps>() == 24);
    assert!(size_of::<RawBitmapEntry>() == 24);
    assert!(size_of::<RawSnapshot>() == 40);
};

/// Whether `len` bytes from `offset` on end at or before `limit`.
pub(crate) fn bytes_fit(offset: u64, len: u64, limit: u64) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= limit)
}

/// Clusters that `bytes` bytes take.
pub(crate) fn clusters_for(bytes: u64, cluster_bits: u32) -> u64 {
    bytes.div_ceil(1 << cluster_bits)
}

/// A table as some field claims it to be; [`Table::check`] settles whether it can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    /// What to call it in a message.
    pub(crate) name: &'static str,
    /// Where it is said to start.
    pub(crate) offset: u64,
    /// Entries it is said to have.
    pub(crate) entries: u64,
    /// Bytes of an entry (at least).
    pub(crate) entry_len: u64,
    /// Bytes that it may have at most.
    pub(crate) max_len: u64,
}

impl Table {
    /// Settles the bounds: within its limit, at a multiple of `cluster_size` (bytes), behind the header's cluster and
    /// inside the file. An empty table takes no space and is nowhere.
    ///
    /// A file may end anywhere in its last cluster, where the rest reads as zeroes; a table that starts or goes on
    /// behind that cluster was cut off, and nothing is allocated for it.
    pub(crate) fn check(&self, cluster_size: u64, file_len: u64) -> Result<HostOffset, String> {
        let Table { name, offset, entries, entry_len, max_len } = *self;
        let len = entries.checked_mul(entry_len).filter(|len| *len <= max_len).ok_or_else(|| {
            format!("the {name} has {entries} entries of {entry_len} bytes; more than {max_len} bytes are never valid")
        })?;
        if !offset.is_multiple_of(cluster_size) {
            return Err(format!(
                "the {name} starts at {offset:#x}, which is no multiple of the cluster size {cluster_size:#x}"
            ));
        }
        if len == 0 {
            return Ok(HostOffset(offset));
        }
        if offset == 0 {
            return Err(format!("the {name} starts at 0, on top of the header"));
        }
        let end_of_file = file_len.checked_next_multiple_of(cluster_size).unwrap_or(file_len);
        if !bytes_fit(offset, len, end_of_file) {
            return Err(format!(
                "the {name} takes {len} bytes from {offset:#x} on, but the file ends at {file_len:#x}; \
                 it was cut off, get a whole copy of it"
            ));
        }
        Ok(HostOffset(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_wrap() {
        assert!(bytes_fit(0, 0, 0));
        assert!(bytes_fit(8, 8, 16));
        assert!(!bytes_fit(8, 9, 16));
        assert!(!bytes_fit(u64::MAX, 1, u64::MAX));
        assert_eq!(clusters_for(0, 16), 0);
        assert_eq!(clusters_for(65537, 16), 2);
        assert_eq!(clusters_for(u64::MAX, 9), 1 << 55);
    }

    #[test]
    fn a_table_lies_in_the_file_or_is_refused() {
        let table = Table { name: "L1 table", offset: 1024, entries: 64, entry_len: 8, max_len: 4096 };
        assert_eq!(table.check(512, 1536), Ok(HostOffset(1024)));
        assert_eq!(table.check(512, 1025), Ok(HostOffset(1024)), "the last cluster may end early");
        assert!(table.check(512, 1024).unwrap_err().contains("cut off"));
        assert!(Table { entries: 513, ..table }.check(512, 1 << 20).unwrap_err().contains("4096"));
        assert!(Table { offset: 1000, ..table }.check(512, 1 << 20).unwrap_err().contains("multiple"));
        assert!(Table { offset: 0, ..table }.check(512, 1 << 20).unwrap_err().contains("header"));
        assert!(Table { entries: u64::MAX, ..table }.check(512, 1 << 20).is_err());
        assert!(Table { offset: !511, ..table }.check(512, u64::MAX).is_err());
        assert_eq!(Table { offset: 0, entries: 0, ..table }.check(512, 0), Ok(HostOffset(0)));
    }
}
