//! What `info` shows of a qcow2 image.

use super::bitmaps;
use super::features::COMPATIBLE_LAZY_REFCOUNTS;
use super::header::{Encryption, Header};
use super::snapshots::{Snapshot, SnapshotTable};
use crate::error::Result;
use crate::format::Compression;
use crate::format::luks;
use crate::format::qcow2_info::{BitmapInfo, EncryptionInfo, Qcow2Info};
use crate::storage::Storage;

/// Reads what the header does not say itself: snapshots and bitmaps.
pub(crate) fn info(storage: &dyn Storage, header: &Header) -> Result<Qcow2Info> {
    let snapshots = SnapshotTable::read(storage, header)?.snapshots;
    let bitmaps = bitmaps::read(storage, header)?.into_iter().map(|bitmap| {
        let flags = [(bitmap.is_in_use(), "in-use"), (bitmap.is_auto(), "auto")];
        BitmapInfo {
            flags: flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect(),
            name: bitmap.name(),
            granularity: bitmap.granularity(),
        }
    });
    let data_file = header.data_file.as_ref().map(|name| name.to_string_lossy().into_owned());
    let encrypted = match header.encryption {
        None => None,
        Some(Encryption::Aes) => Some(EncryptionInfo::Aes),
        Some(Encryption::Luks(place)) => {
            Some(EncryptionInfo::Luks(luks::inspect_inside(storage, place.offset, place.len)?))
        }
    };
    Ok(Qcow2Info {
        version: header.version,
        compression_type: match header.compression {
            Compression::Deflate => "zlib",
            Compression::Zstd => "zstd",
        },
        lazy_refcounts: header.compatible & COMPATIBLE_LAZY_REFCOUNTS != 0,
        refcount_bits: header.refcount_bits(),
        corrupt: header.is_corrupt(),
        extended_l2: header.is_extended_l2(),
        data_file,
        data_file_raw: header.has_data_file().then(|| header.is_data_file_raw()),
        encrypted,
        snapshots: snapshots.iter().map(Snapshot::info).collect(),
        bitmaps: bitmaps.collect(),
    })
}

#[cfg(test)]
mod tests;
