//! The header: unchecked bytes become a [`Header`] whose bounds are all settled, before anything is computed from them.

use std::mem::offset_of;
use std::ops::Range;
use std::path::PathBuf;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::extensions::{self, BitmapsExtension, CryptoExtension, Extensions};
use super::features::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_CORRUPT,
    INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTENDED_L2, INCOMPATIBLE_KNOWN,
    incompatible_names,
};
use crate::error::{Error, Result};
use crate::format::{Compression, ImplicitReference};
use crate::ondisk::{HEADER_V2_LEN, HEADER_V3_MIN_LEN, RawHeader, RawSnapshot, Table, bytes_fit};
use crate::storage::Storage;
use crate::units::HostOffset;

/// `QFI` and 0xfb.
pub(crate) const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
/// Clusters of 512 bytes: one sector is the least that compressed clusters and requests count in.
pub(crate) const MIN_CLUSTER_BITS: u32 = 9;
/// Clusters of 2 MiB: QEMU's limit.
pub(crate) const MAX_CLUSTER_BITS: u32 = 21;
/// 32 subclusters of at least 512 bytes make a cluster of at least 16 KiB.
pub(crate) const MIN_EXTENDED_L2_CLUSTER_BITS: u32 = 14;
/// Bytes of an L1 table at most, 4 Mi entries: 2 PiB of disk with clusters of 64 KiB (8,192 L2 entries of 64 KiB
/// for each), 128 GiB with 512 bytes, 2 EiB with 2 MiB.
pub(crate) const MAX_L1_LEN: u64 = 32 << 20;
/// Bytes of a refcount table at most, 1 Mi entries: 2 PiB of file with clusters of 64 KiB and 16-bit refcounts
/// (32,768 of them in a block).
pub(crate) const MAX_REFCOUNT_TABLE_LEN: u64 = 8 << 20;
/// Refcounts of 64 bits.
pub(crate) const MAX_REFCOUNT_ORDER: u32 = 6;
/// Refcounts of 16 bits, the only ones of version 2.
pub(crate) const V2_REFCOUNT_ORDER: u32 = 4;
/// Snapshots of one image at most.
pub(crate) const MAX_SNAPSHOTS: u64 = 65_536;
/// Bytes of a backing file's name at most.
pub(crate) const MAX_BACKING_NAME_LEN: u32 = 1023;

/// Encryption with qcow2's own AES.
pub(crate) const CRYPT_AES: u32 = 1;
/// Encryption with LUKS.
pub(crate) const CRYPT_LUKS: u32 = 2;

pub(crate) const COMPRESSION_DEFLATE: u8 = 0;
pub(crate) const COMPRESSION_ZSTD: u8 = 1;

/// Bytes read at first; the whole first cluster for all but the biggest clusters.
const FIRST_READ: u64 = 64 << 10;

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// AES-128-CBC under the secret itself, with IVs that count guest sectors.
    Aes,
    /// As the LUKS header there says, with IVs that count host sectors.
    Luks(CryptoExtension),
}

/// The header of an image, checked: every field is within its limits and every table that it names lies in the file, but for
/// those that [`lost`](Header::lost) tells of.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// 2 or 3.
    pub(crate) version: u32,
    /// 9 to 21.
    pub(crate) cluster_bits: u32,
    /// Size of the guest's disk in bytes, any number of them.
    pub(crate) size: u64,
    /// The active L1 table.
    pub(crate) l1_offset: HostOffset,
    /// Its entries: enough for the size, or more.
    pub(crate) l1_entries: u32,
    /// The refcount table.
    pub(crate) refcount_table_offset: HostOffset,
    /// Its clusters, at least 1.
    pub(crate) refcount_table_clusters: u32,
    /// 0 to 6.
    pub(crate) refcount_order: u32,
    /// Snapshots.
    pub(crate) snapshot_count: u32,
    /// The snapshot table; its length is known only when it has been read.
    pub(crate) snapshot_offset: HostOffset,
    /// Incompatible feature bits, all of them known. 0 in version 2, as the next two.
    pub(crate) incompatible: u64,
    /// Compatible feature bits.
    pub(crate) compatible: u64,
    /// Autoclear feature bits.
    pub(crate) autoclear: u64,
    /// How guest data is encrypted.
    pub(crate) encryption: Option<Encryption>,
    /// How compressed clusters are packed.
    pub(crate) compression: Compression,
    /// The backing file.
    pub(crate) backing: Option<ImplicitReference>,
    /// The external data file's name, if there is such a file and the image names it.
    pub(crate) data_file: Option<PathBuf>,
    /// The bitmap directory, if the autoclear bit vouches for it.
    pub(crate) bitmaps: Option<BitmapsExtension>,
    /// Tables that cannot be where the header says.
    pub(crate) lost: LostTables,
}

/// Why tables cannot be where the header says, of those that reading the disk does not take. They count as empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct LostTables {
    pub(crate) refcounts: Option<Error>,
    pub(crate) snapshots: Option<Error>,
}

impl Header {
    /// The header of an image of which no table is lost.
    pub(crate) fn read(storage: &dyn Storage) -> Result<Header> {
        let read = || Header::read_damaged(storage)?.whole();
        read().map_err(|error| in_file(storage, error))
    }

    /// The header of an image that is read or checked, for which some tables may be lost.
    pub(crate) fn read_damaged(storage: &dyn Storage) -> Result<Header> {
        let read = || {
            let file_len = storage.len()?;
            parse(&first_cluster(storage, file_len)?, file_len)
        };
        read().map_err(|error| in_file(storage, error))
    }

    /// An error where a table is lost.
    pub(super) fn whole(self) -> Result<Header> {
        let LostTables { refcounts, snapshots } = &self.lost;
        match refcounts.as_ref().or(snapshots.as_ref()) {
            Some(error) => Err(error.clone()),
            None => Ok(self),
        }
    }

    /// Bytes of a cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bits of one refcount: 1 to 64.
    pub(crate) fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Guest data is in an external data file, named or not.
    pub(crate) fn has_data_file(&self) -> bool {
        self.incompatible & INCOMPATIBLE_DATA_FILE != 0
    }

    /// The external data file is a raw image of the disk.
    pub(crate) fn is_data_file_raw(&self) -> bool {
        self.autoclear & AUTOCLEAR_DATA_FILE_RAW != 0
    }

    /// L2 entries have subclusters.
    pub(crate) fn is_extended_l2(&self) -> bool {
        self.incompatible & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// Refcounts may be wrong.
    pub(crate) fn is_dirty(&self) -> bool {
        self.incompatible & INCOMPATIBLE_DIRTY != 0
    }

    /// Metadata is known to be wrong; such an image is only read.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.incompatible & INCOMPATIBLE_CORRUPT != 0
    }

    fn crypt_method(&self) -> u32 {
        match self.encryption {
            None => 0,
            Some(Encryption::Aes) => CRYPT_AES,
            Some(Encryption::Luks(_)) => CRYPT_LUKS,
        }
    }

    /// The external data file, where the image names it.
    pub(crate) fn data_file_reference(&self) -> Option<ImplicitReference> {
        let name = self.data_file.clone()?;
        Some(ImplicitReference { name, format: Some("raw".into()) })
    }

    /// Writes the three feature fields (version 3 only): 24 bytes of one sector, so that all or nothing of them changes.
    pub(crate) fn rewrite_features(
        &self,
        storage: &dyn Storage,
        incompatible: u64,
        compatible: u64,
        autoclear: u64,
    ) -> Result<()> {
        if self.version < 3 {
            return Err(in_file(storage, Error::unsupported("version 2 images have no feature bits")));
        }
        let fields = [incompatible, compatible, autoclear].map(U64::new);
        storage.writev_at(fields.as_bytes().into(), offset_of!(RawHeader, incompatible) as u64)
    }

    /// Points the header to another L1 table and changes the disk's size: 24 bytes of one sector, so that all or nothing of it changes.
    pub(crate) fn rewrite_disk(
        &self,
        storage: &dyn Storage,
        size: u64,
        l1_offset: HostOffset,
        l1_entries: u32,
    ) -> Result<()> {
        debug_assert!(l1_offset.is_aligned(self.cluster_size()));
        let mut fields = [0; 24];
        fields[..8].copy_from_slice(U64::new(size).as_bytes());
        fields[8..12].copy_from_slice(U32::new(self.crypt_method()).as_bytes());
        fields[12..16].copy_from_slice(U32::new(l1_entries).as_bytes());
        fields[16..].copy_from_slice(U64::new(l1_offset.0).as_bytes());
        storage.writev_at((&fields).into(), offset_of!(RawHeader, size) as u64)
    }

    /// Points the header to another snapshot table: 12 bytes of one sector, so that all or nothing of them changes.
    pub(crate) fn rewrite_snapshots(
        &self,
        storage: &dyn Storage,
        offset: HostOffset,
        count: u32,
    ) -> Result<()> {
        debug_assert!(offset.is_aligned(self.cluster_size()));
        let mut fields = [0; 12];
        fields[..4].copy_from_slice(U32::new(count).as_bytes());
        fields[4..].copy_from_slice(U64::new(offset.0).as_bytes());
        storage.writev_at((&fields).into(), offset_of!(RawHeader, snapshot_count) as u64)
    }

    /// Points the header to another refcount table: 12 bytes of one sector, so that all or nothing of them changes.
    pub(crate) fn rewrite_refcount_table(
        &self,
        storage: &dyn Storage,
        offset: HostOffset,
        clusters: u32,
    ) -> Result<()> {
        debug_assert!(offset.is_aligned(self.cluster_size()) && clusters > 0);
        let mut fields = [0; 12];
        fields[..8].copy_from_slice(U64::new(offset.0).as_bytes());
        fields[8..].copy_from_slice(U32::new(clusters).as_bytes());
        storage.writev_at((&fields).into(), offset_of!(RawHeader, refcount_table_offset) as u64)
    }
}

/// The order of refcounts of so many bits, a width that was asked for.
pub(super) fn order_of_refcount_bits(bits: u32) -> Result<u32> {
    let order = bits.trailing_zeros();
    if !bits.is_power_of_two() || order > MAX_REFCOUNT_ORDER {
        return Err(Error::invalid_input(format!(
            "refcounts of {bits} bits are not possible; powers of two from 1 to 64 are"
        )));
    }
    Ok(order)
}

/// Entries of an L1 table for a disk of `size` bytes.
pub(crate) fn l1_entries_for(size: u64, cluster_bits: u32, l2_entry_size: u64) -> u64 {
    // One L2 table is a cluster full of entries, each for one cluster: at most 2^(21 + 18) bytes.
    size.div_ceil((1 << (2 * cluster_bits)) / l2_entry_size)
}

/// The first cluster of a qcow2 image; all of its `file_len` bytes, where it has fewer.
pub(super) fn first_cluster(storage: &dyn Storage, file_len: u64) -> Result<Vec<u8>> {
    let mut first = vec![0; file_len.min(FIRST_READ) as usize];
    storage.readv_at((&mut first).into(), 0)?;
    let len = file_len.min(1 << cluster_bits(&first)?) as usize;
    if first.len() < len {
        first.resize(len, 0);
        storage.readv_at((&mut first).into(), 0)?;
    }
    first.truncate(len);
    Ok(first)
}

pub(super) fn in_file(storage: &dyn Storage, error: Error) -> Error {
    match storage.path() {
        Some(path) => error.in_file(path),
        None => error,
    }
}

/// An error about a header field, at the field's offset.
macro_rules! refuse {
    ($field:ident, $($message:tt)*) => {
        return Err(Error::invalid_image(format!($($message)*)).at(offset_of!(RawHeader, $field) as u64))
    };
}

fn raw_header(first: &[u8]) -> Result<RawHeader> {
    // A version 2 header may be all there is in a file; what lies past the end reads as zeroes.
    let mut bytes = [0; size_of::<RawHeader>()];
    let there = first.len().min(bytes.len());
    bytes[..there].copy_from_slice(&first[..there]);
    let raw = RawHeader::read_from_bytes(&bytes).expect("the array has the structure's size");
    if raw.magic.get() != MAGIC {
        refuse!(magic, "this is no qcow2 image: it does not start with \"QFI\\xfb\"");
    }
    if there < HEADER_V2_LEN as usize {
        refuse!(magic, "the file has {there} bytes, fewer than a qcow2 header; it was cut off");
    }
    Ok(raw)
}

/// The cluster size, which says how much of the file is header.
fn cluster_bits(first: &[u8]) -> Result<u32> {
    let raw = raw_header(first)?;
    let version = raw.version.get();
    if !(2..=3).contains(&version) {
        let message = format!("qcow2 version {version} is not known, only 2 and 3 are");
        return Err(Error::unsupported(message).at(offset_of!(RawHeader, version) as u64));
    }
    let bits = raw.cluster_bits.get();
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits) {
        refuse!(cluster_bits, "clusters of 2^{bits} bytes are not possible, only of 512 bytes to 2 MiB");
    }
    Ok(bits)
}

/// The fields, those that version 2 lacks with the values it assumes, and where in `first` (the file's first cluster, shorter
/// only if the file is) extensions may be.
pub(super) fn fields(first: &[u8]) -> Result<(RawHeader, Range<usize>)> {
    let cluster_size = 1_u64 << cluster_bits(first)?;
    let mut raw = raw_header(first)?;
    if raw.version.get() == 2 {
        // What follows the 72 bytes is not of the header.
        (raw.incompatible, raw.compatible, raw.autoclear) = (U64::ZERO, U64::ZERO, U64::ZERO);
        (raw.refcount_order, raw.header_length) = (V2_REFCOUNT_ORDER.into(), HEADER_V2_LEN.into());
    } else {
        let header_length = raw.header_length.get();
        if header_length < HEADER_V3_MIN_LEN || !header_length.is_multiple_of(8) {
            refuse!(
                header_length,
                "the header claims {header_length} bytes; multiples of 8 from {HEADER_V3_MIN_LEN} on are possible"
            );
        }
    }
    let header_length = u64::from(raw.header_length.get());
    if header_length > cluster_size {
        refuse!(
            header_length,
            "the header claims {header_length} bytes, more than a cluster has ({cluster_size})"
        );
    }
    if raw.header_length.get() <= offset_of!(RawHeader, compression_type) as u32 {
        (raw.compression_type, raw.padding) = (COMPRESSION_DEFLATE, [0; 7]);
    }

    let extensions_end = match raw.backing_name_offset.get() {
        0 => cluster_size,
        offset if offset < header_length || offset > cluster_size => {
            refuse!(
                backing_name_offset,
                "the backing file's name is at {offset:#x}, not behind the header in its cluster"
            )
        }
        offset => offset,
    };
    let end = extensions_end.min(first.len() as u64) as usize;
    Ok((raw, (header_length as usize).min(end)..end))
}

/// Checks the header in the file's first cluster (`first`, shorter only if the file is); `file_len` in bytes.
pub(super) fn parse(first: &[u8], file_len: u64) -> Result<Header> {
    let (raw, space) = fields(first)?;
    let cluster_bits = raw.cluster_bits.get();
    let cluster_size = 1_u64 << cluster_bits;
    let (version, header_length) = (raw.version.get(), u64::from(raw.header_length.get()));
    let area = &first[space];

    let incompatible = raw.incompatible.get();
    if incompatible & !INCOMPATIBLE_KNOWN != 0 {
        let names =
            incompatible_names(incompatible & !INCOMPATIBLE_KNOWN, &Extensions::parse_feature_names(area));
        let message = format!("the image needs features that are not there: {names}");
        return Err(Error::unsupported(message).at(offset_of!(RawHeader, incompatible) as u64));
    }
    if incompatible & INCOMPATIBLE_EXTENDED_L2 != 0 && cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS {
        refuse!(
            cluster_bits,
            "extended L2 entries need clusters of 16 KiB at least; these have {cluster_size} bytes"
        );
    }
    let compression = compression(&raw)?;
    let refcount_order = raw.refcount_order.get();
    if refcount_order > MAX_REFCOUNT_ORDER {
        refuse!(
            refcount_order,
            "refcounts of 2^{refcount_order} bits are not possible, 64 bits are the most"
        );
    }

    let extensions = Extensions::parse(area, header_length, cluster_size)?;
    let encryption = encryption(&raw, extensions.crypto_header, file_len)?;
    let has_data_file = incompatible & INCOMPATIBLE_DATA_FILE != 0;
    let autoclear = raw.autoclear.get();
    if autoclear & AUTOCLEAR_DATA_FILE_RAW != 0 && !has_data_file {
        refuse!(autoclear, "the data file is said to be raw, but the image has no external data file");
    }

    let l2_entry_size = if incompatible & INCOMPATIBLE_EXTENDED_L2 != 0 { 16 } else { 8 };
    let tables = tables(&raw, cluster_bits, l2_entry_size, file_len)?;
    Ok(Header {
        version,
        cluster_bits,
        size: raw.size.get(),
        l1_offset: tables.l1,
        l1_entries: raw.l1_entries.get(),
        refcount_table_offset: tables.refcount_table,
        refcount_table_clusters: tables.refcount_table_clusters,
        refcount_order,
        snapshot_count: tables.snapshot_count,
        snapshot_offset: tables.snapshots,
        incompatible,
        compatible: raw.compatible.get(),
        autoclear,
        encryption,
        compression,
        backing: backing(&raw, first, extensions.backing_format)?,
        data_file: extensions.data_file.filter(|_| has_data_file),
        bitmaps: extensions.bitmaps.filter(|_| autoclear & AUTOCLEAR_BITMAPS != 0),
        lost: tables.lost,
    })
}

fn encryption(raw: &RawHeader, header: Option<CryptoExtension>, file_len: u64) -> Result<Option<Encryption>> {
    let cluster_size = 1 << raw.cluster_bits.get();
    let end_of_file = file_len.checked_next_multiple_of(cluster_size).unwrap_or(file_len);
    match (raw.crypt_method.get(), header) {
        (0, None) => Ok(None),
        (CRYPT_AES, None) => Ok(Some(Encryption::Aes)),
        (CRYPT_LUKS, Some(header)) if bytes_fit(header.offset.0, header.len, end_of_file) => {
            Ok(Some(Encryption::Luks(header)))
        }
        (CRYPT_LUKS, Some(header)) => refuse!(
            crypt_method,
            "the encryption header takes {} bytes from {} on, but the file ends at {file_len:#x}; it was cut off, get a whole \
             copy of it",
            header.len,
            header.offset
        ),
        (CRYPT_LUKS, None) => {
            refuse!(crypt_method, "the image is encrypted with LUKS, but there is no encryption header")
        }
        (0 | CRYPT_AES, Some(_)) => {
            refuse!(crypt_method, "there is an encryption header, but the image is not encrypted with LUKS")
        }
        (method, _) => Err(Error::unsupported(format!("encryption method {method} is not known"))
            .at(offset_of!(RawHeader, crypt_method) as u64)),
    }
}

fn compression(raw: &RawHeader) -> Result<Compression> {
    let marked = raw.incompatible.get() & INCOMPATIBLE_COMPRESSION != 0;
    match raw.compression_type {
        COMPRESSION_DEFLATE if marked => {
            refuse!(compression_type, "the feature bit says that a compression type is set, but none is")
        }
        COMPRESSION_DEFLATE => Ok(Compression::Deflate),
        kind if !marked => {
            refuse!(
                compression_type,
                "compression type {kind} is set without the feature bit that must go with it"
            )
        }
        COMPRESSION_ZSTD => Ok(Compression::Zstd),
        kind => Err(Error::unsupported(format!("compression type {kind} is not known"))
            .at(offset_of!(RawHeader, compression_type) as u64)),
    }
}

fn backing(raw: &RawHeader, first: &[u8], format: Option<String>) -> Result<Option<ImplicitReference>> {
    let (offset, len) = (raw.backing_name_offset.get(), raw.backing_name_len.get());
    if offset == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME_LEN || !bytes_fit(offset, len.into(), first.len() as u64) {
        refuse!(
            backing_name_len,
            "the backing file's name has {len} bytes at {offset:#x}; \
             at most {MAX_BACKING_NAME_LEN} are possible, inside the first cluster"
        );
    }
    let name = extensions::name(&first[offset as usize..][..len as usize]);
    Ok(name.map(|name| ImplicitReference { name, format: format.filter(|format| !format.is_empty()) }))
}

struct Tables {
    l1: HostOffset,
    refcount_table: HostOffset,
    refcount_table_clusters: u32,
    snapshots: HostOffset,
    snapshot_count: u32,
    lost: LostTables,
}

fn tables(raw: &RawHeader, cluster_bits: u32, l2_entry_size: u64, file_len: u64) -> Result<Tables> {
    let cluster_size = 1 << cluster_bits;
    let check = |table: Table, field: usize| {
        table.check(cluster_size, file_len).map_err(|problem| Error::invalid_image(problem).at(field as u64))
    };
    let refcount_table = Table {
        name: "refcount table",
        offset: raw.refcount_table_offset.get(),
        entries: raw.refcount_table_clusters.get().into(),
        entry_len: cluster_size,
        max_len: MAX_REFCOUNT_TABLE_LEN,
    };
    let snapshots = Table {
        name: "snapshot table",
        offset: raw.snapshot_offset.get(),
        entries: raw.snapshot_count.get().into(),
        entry_len: size_of::<RawSnapshot>() as u64,
        max_len: MAX_SNAPSHOTS * size_of::<RawSnapshot>() as u64,
    };
    let l1 = Table {
        name: "L1 table",
        offset: raw.l1_offset.get(),
        entries: raw.l1_entries.get().into(),
        entry_len: 8,
        max_len: MAX_L1_LEN,
    };
    let needed = l1_entries_for(raw.size.get(), cluster_bits, l2_entry_size);
    if l1.entries < needed {
        refuse!(
            l1_entries,
            "the L1 table has {} entries, but a disk of {} bytes needs {needed}",
            l1.entries,
            raw.size.get()
        );
    }
    let l1 = check(l1, offset_of!(RawHeader, l1_offset))?;
    let refcount_table = match raw.refcount_table_clusters.get() {
        0 => Err(Error::invalid_image("the image has no refcount table")
            .at(offset_of!(RawHeader, refcount_table_clusters) as u64)),
        _ => check(refcount_table, offset_of!(RawHeader, refcount_table_offset)),
    };
    let snapshots = check(snapshots, offset_of!(RawHeader, snapshot_offset));
    let unless_lost = |table: &Result<HostOffset>, count: U32| if table.is_ok() { count.get() } else { 0 };
    Ok(Tables {
        l1,
        refcount_table_clusters: unless_lost(&refcount_table, raw.refcount_table_clusters),
        snapshot_count: unless_lost(&snapshots, raw.snapshot_count),
        refcount_table: *refcount_table.as_ref().unwrap_or(&HostOffset(0)),
        snapshots: *snapshots.as_ref().unwrap_or(&HostOffset(0)),
        lost: LostTables { refcounts: refcount_table.err(), snapshots: snapshots.err() },
    })
}

#[cfg(test)]
mod tests;
