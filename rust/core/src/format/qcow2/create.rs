//! New images.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use zerocopy::big_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

use super::extensions::{CryptoExtension, Extensions};
use super::features::{
    AUTOCLEAR_DATA_FILE_RAW, COMPATIBLE_LAZY_REFCOUNTS, INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_DATA_FILE,
    INCOMPATIBLE_EXTENDED_L2, MAX_CLUSTER_WITHOUT_NAMES, name_table,
};
use super::header::{
    COMPRESSION_ZSTD, CRYPT_AES, CRYPT_LUKS, MAGIC, MAX_CLUSTER_BITS, MAX_L1_LEN, MAX_REFCOUNT_TABLE_LEN,
    MIN_CLUSTER_BITS, MIN_EXTENDED_L2_CLUSTER_BITS, V2_REFCOUNT_ORDER, in_file, l1_entries_for,
    order_of_refcount_bits,
};
use super::{names, refcounts};
use crate::crypt::{self, Secret};
use crate::error::{Error, Result};
use crate::format::preallocation::Preallocation;
use crate::format::steps::Steps;
use crate::format::{Compression, ImplicitReference, luks};
use crate::ondisk::{HEADER_V2_LEN, RawHeader, clusters_for};
use crate::storage::{Storage, ZeroMode};
use crate::units::HostOffset;

/// Sizes are rounded up to this, as QEMU does: it knows no smaller unit.
const SECTOR: u64 = 512;
/// Bytes gathered before they are written.
const WRITE_SIZE: usize = 1 << 20;
/// In L1 and L2 entries: the cluster's refcount is exactly 1. (I5)
pub(super) const COPIED: u64 = 1 << 63;
/// Host offsets in L2 entries are below this.
const HOST_END: u64 = 1 << 56;
/// In L2 entries of 8 bytes: the cluster reads as zeroes.
const ZERO: u64 = 1;
/// The bitmap of an extended L2 entry whose subclusters are all there.
pub(super) const ALL_SUBCLUSTERS: u64 = 0xffff_ffff;

/// Which version of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// 2: `compat=0.10`, for QEMU before 1.1 (2012).
    V2,
    /// 3: `compat=1.1`.
    #[default]
    V3,
}

/// What a new image shall be; the default is what `qemu-img create` makes, of no size.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the guest's disk in bytes; rounded up to a multiple of 512.
    pub size: u64,
    /// Version of the format.
    pub version: Version,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u32,
    /// Bits of a refcount: 1, 2, 4, 8, 16, 32 or 64; 16 in version 2.
    pub refcount_bits: u32,
    /// Put off refcount updates while the image is open (version 3).
    pub lazy_refcounts: bool,
    /// Allocate in 32nds of a cluster (version 3, clusters of 16 KiB at least).
    pub extended_l2: bool,
    /// How clusters are packed, if any are (other than deflate: version 3).
    pub compression: Compression,
    /// The backing file, as the image shall spell it. Its size and existence are not looked at.
    pub backing: Option<ImplicitReference>,
    /// The external data file, as the image shall spell it (version 3).
    pub data_file: Option<PathBuf>,
    /// The external data file is to be a raw image of the disk at all times.
    pub data_file_raw: bool,
    /// What is set aside for the disk's bytes. Over a backing file it needs extended L2 entries, where a cluster has a place and its
    /// subclusters still show what is below.
    pub preallocation: Preallocation,
    /// Encrypt guest data.
    pub encryption: Option<Encryption>,
}

/// How a new image is encrypted.
#[derive(Clone, Debug)]
pub enum Encryption {
    /// With LUKS.
    Luks(crypt::Options),
    /// With qcow2's own AES, for who needs what old programs read: any secret opens such an image, only its first 16 bytes count, and no work
    /// slows down who tries them all.
    Aes(Secret),
}

impl Encryption {
    /// What opens the image.
    pub fn secret(&self) -> &Secret {
        match self {
            Encryption::Luks(options) => &options.secret,
            Encryption::Aes(secret) => secret,
        }
    }

    fn crypt_method(&self) -> u32 {
        match self {
            Encryption::Luks(_) => CRYPT_LUKS,
            Encryption::Aes(_) => CRYPT_AES,
        }
    }

    /// Bytes of the encryption header and what belongs to it.
    pub(super) fn header_len(&self) -> Result<u64> {
        match self {
            Encryption::Luks(options) => luks::area_len(options),
            Encryption::Aes(_) => Ok(0),
        }
    }

    fn header(&self) -> Result<Vec<u8>> {
        match self {
            Encryption::Luks(options) => luks::create_inside(options),
            Encryption::Aes(_) => Ok(Vec::new()),
        }
    }
}

impl Default for CreateOptions {
    fn default() -> Self {
        CreateOptions {
            size: 0,
            version: Version::default(),
            cluster_size: 64 << 10,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Deflate,
            backing: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            encryption: None,
        }
    }
}

/// Refuses options that are wrong or exclude each other, as [`create`] does.
pub fn check(options: &CreateOptions) -> Result<()> {
    Plan::new(options).map(drop)
}

/// Makes `storage` a new image; whatever was in it is lost.
///
/// `data_storage` is the external data file. With `data_file_raw` it is made as long as the disk and otherwise kept: it is the new disk's
/// content. With preallocation alone it is emptied and made as long as the disk. It is not used otherwise.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for options that are wrong or exclude each other, before either storage
/// is touched. After any other error `storage` holds no image, the old one, or (the last barrier failed) the new one,
/// never a part of one that could be taken for an image.
pub fn create(
    storage: &Arc<dyn Storage>,
    data_storage: Option<&Arc<dyn Storage>>,
    options: &CreateOptions,
) -> Result<()> {
    create_with(storage, data_storage, options, &mut Steps::default())
}

/// The same, which tells `steps` the bytes that are set aside or written.
pub fn create_with(
    storage: &Arc<dyn Storage>,
    data_storage: Option<&Arc<dyn Storage>>,
    options: &CreateOptions,
    steps: &mut Steps<'_>,
) -> Result<()> {
    let plan = Plan::new(options)?;
    let data_file = match (plan.external && plan.l2_tables > 0, data_storage) {
        (false, _) => None,
        (true, Some(data)) => Some(data.as_ref()),
        (true, None) => {
            return Err(Error::invalid_input(
                "data_file_raw and preallocation need the data file itself, to set its length",
            ));
        }
    };
    if let Some(data) = data_file
        && !data.capabilities().resize
        && data.len()? < plan.size
    {
        return Err(in_file(data, too_small(data.len()?, plan.size)));
    }
    let encryption = options.encryption.as_ref().map(Encryption::header).transpose()?.unwrap_or_default();
    plan.write(storage.as_ref(), data_file, &encryption, steps)
        .map_err(|error| in_file(storage.as_ref(), error))
}

/// A new image, laid out: header, refcount table, refcount blocks, L1 table, and, for preallocation and raw data files, all L2 tables, then
/// the clusters that they name.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    pub(super) extended_l2: bool,
    preallocation: Preallocation,
    /// Guest data goes into an external data file, which (`raw`) shows the disk as it is.
    external: bool,
    raw: bool,
    pub(super) size: u64,
    /// Clusters of the refcount table, of all refcount blocks, of the L1 table, of all L2 tables.
    table_clusters: u64,
    pub(super) blocks: u64,
    l1_clusters: u64,
    l2_tables: u64,
    /// Clusters of LUKS header and key slots, and their bytes.
    encryption_clusters: u64,
    encryption_len: u64,
    /// As the header says it.
    crypt_method: u32,
    /// Clusters of this file that guest data has already.
    pub(super) data_clusters: u64,
    /// Header, extensions and the backing file's name.
    pub(super) head: Vec<u8>,
}

impl Plan {
    fn new(options: &CreateOptions) -> Result<Plan> {
        Self::laid_out(options, None)
    }

    /// An image whose `data_clusters` have their place already, by `l2_tables`.
    pub(super) fn with_data(options: &CreateOptions, l2_tables: u64, data_clusters: u64) -> Result<Plan> {
        Self::laid_out(options, Some((l2_tables, data_clusters)))
    }

    fn laid_out(options: &CreateOptions, content: Option<(u64, u64)>) -> Result<Plan> {
        check_combination(options)?;
        let cluster_bits = cluster_bits(options)?;
        let cluster_size = 1_u64 << cluster_bits;
        let refcount_order = refcount_order(options)?;
        let size = options.size.checked_next_multiple_of(SECTOR).ok_or_else(|| too_big(options))?;
        let l2_entry_size = if options.extended_l2 { 16 } else { 8 };
        let l1_entries = l1_entries_for(size, cluster_bits, l2_entry_size);
        if l1_entries * 8 > MAX_L1_LEN {
            return Err(too_big(options));
        }

        let encryption = options.encryption.as_ref();
        let encryption_len = encryption.map_or(Ok(0), Encryption::header_len)?;
        let mut plan = Plan {
            cluster_bits,
            refcount_order,
            extended_l2: options.extended_l2,
            preallocation: options.preallocation,
            external: options.data_file.is_some(),
            raw: options.data_file_raw,
            size,
            table_clusters: 0,
            blocks: 0,
            l1_clusters: clusters_for(l1_entries * 8, cluster_bits),
            l2_tables: 0,
            encryption_clusters: clusters_for(encryption_len, cluster_bits),
            encryption_len,
            crypt_method: encryption.map_or(0, Encryption::crypt_method),
            data_clusters: 0,
            head: Vec::new(),
        };
        // A raw data file is one to one behind the tables, so that both ways of reading it agree.
        if plan.raw || plan.preallocation != Preallocation::Off {
            plan.l2_tables = l1_entries;
            plan.data_clusters = if plan.external { 0 } else { clusters_for(size, cluster_bits) };
        }
        if let Some(content) = content {
            (plan.l2_tables, plan.data_clusters) = content;
        }
        plan.place_refcounts()?;
        plan.head = plan.head(options, l1_entries as u32);
        if plan.head.len() as u64 > cluster_size {
            return Err(Error::invalid_input(format!(
                "the header with its names has {} bytes, more than a cluster of {cluster_size}; \
                 use shorter names or a cluster size of {} at least",
                plan.head.len(),
                plan.head.len().next_power_of_two()
            )));
        }
        Ok(plan)
    }

    /// Refcount blocks count themselves and the table that finds them: grows both until they count everything.
    fn place_refcounts(&mut self) -> Result<()> {
        loop {
            let blocks = self.clusters().div_ceil(self.refcounts_per_block());
            let table_clusters = clusters_for(blocks * 8, self.cluster_bits);
            if (blocks, table_clusters) == (self.blocks, self.table_clusters) {
                break;
            }
            (self.blocks, self.table_clusters) = (blocks, table_clusters);
        }
        if self.table_clusters * self.cluster_size() > MAX_REFCOUNT_TABLE_LEN {
            return Err(Error::invalid_input(
                "the clusters of this image need more refcounts than a refcount table of 8 MiB has; use bigger clusters",
            ));
        }
        if self.clusters() > HOST_END >> self.cluster_bits {
            return Err(Error::invalid_input(
                "an image file has 64 PiB at most: not all of this disk can be preallocated",
            ));
        }
        Ok(())
    }

    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn refcounts_per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// All clusters of the new image.
    pub(super) fn clusters(&self) -> u64 {
        self.data_start() + self.data_clusters
    }

    pub(super) fn data_start(&self) -> u64 {
        self.encryption_start() + self.encryption_clusters
    }

    pub(super) fn blocks_start(&self) -> u64 {
        1 + self.table_clusters
    }

    fn l1_start(&self) -> u64 {
        self.blocks_start() + self.blocks
    }

    pub(super) fn l2_start(&self) -> u64 {
        self.l1_start() + self.l1_clusters
    }

    pub(super) fn encryption_start(&self) -> u64 {
        self.l2_start() + self.l2_tables
    }

    fn head(&self, options: &CreateOptions, l1_entries: u32) -> Vec<u8> {
        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC.into();
        raw.version = if options.version == Version::V2 { 2 } else { 3 }.into();
        raw.cluster_bits = self.cluster_bits.into();
        raw.size = self.size.into();
        raw.l1_entries = l1_entries.into();
        raw.l1_offset = if l1_entries == 0 { 0 } else { self.l1_start() << self.cluster_bits }.into();
        raw.refcount_table_offset = self.cluster_size().into();
        raw.refcount_table_clusters = (self.table_clusters as u32).into();
        raw.refcount_order = self.refcount_order.into();
        raw.crypt_method = self.crypt_method.into();
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        let zstd = options.compression == Compression::Zstd;
        raw.incompatible = (bit(options.data_file.is_some(), INCOMPATIBLE_DATA_FILE)
            | bit(zstd, INCOMPATIBLE_COMPRESSION)
            | bit(options.extended_l2, INCOMPATIBLE_EXTENDED_L2))
        .into();
        raw.compatible = bit(options.lazy_refcounts, COMPATIBLE_LAZY_REFCOUNTS).into();
        raw.autoclear = bit(options.data_file_raw, AUTOCLEAR_DATA_FILE_RAW).into();
        raw.compression_type = if zstd { COMPRESSION_ZSTD } else { 0 };
        let header_len = match options.version {
            Version::V2 => HEADER_V2_LEN as usize,
            Version::V3 => size_of::<RawHeader>(),
        };
        raw.header_length = (header_len as u32).into();

        let named = options.version == Version::V3 && self.cluster_size() > MAX_CLUSTER_WITHOUT_NAMES;
        let extensions = Extensions {
            backing_format: options.backing.as_ref().and_then(|backing| backing.format.clone()),
            data_file: options.data_file.clone(),
            feature_names: if named { name_table() } else { Vec::new() },
            crypto_header: (self.encryption_len > 0).then(|| CryptoExtension {
                offset: HostOffset(self.encryption_start() << self.cluster_bits),
                len: self.encryption_len,
            }),
            ..Extensions::default()
        };
        let area = extensions.to_bytes();
        let name =
            options.backing.as_ref().map_or(OsStr::new(""), |backing| backing.name.as_os_str()).as_bytes();
        if !name.is_empty() {
            raw.backing_name_offset = ((header_len + area.len()) as u64).into();
            raw.backing_name_len = (name.len() as u32).into();
        }
        [&raw.as_bytes()[..header_len], &area, name].concat()
    }

    /// The first sector of the header comes last and alone, so that an interrupted create leaves no valid image.
    fn write(
        &self,
        storage: &dyn Storage,
        data_file: Option<&dyn Storage>,
        encryption: &[u8],
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        self.clear(storage)?;
        let bytes = |clusters: u64| clusters << self.cluster_bits;
        let elsewhere = if data_file.is_some() { self.size } else { 0 };
        let data_len = bytes(self.data_clusters);
        steps.expect(bytes(self.l2_tables) + self.preallocation.work(data_len + elsewhere))?;
        // The most of the space first: what is full is found out before all else is written.
        self.preallocation.reserve(storage, bytes(self.data_start()), data_len, steps)?;
        if let Some(data) = data_file {
            self.prepare_data_file(data, steps).map_err(|error| in_file(data, error))?;
        }

        let mut out = Stream { storage, offset: self.cluster_size(), buffer: Vec::new() };
        for block in 0..self.blocks {
            out.put(U64::new((self.blocks_start() + block) << self.cluster_bits).as_bytes())?;
        }
        out.fill(self.blocks_start() << self.cluster_bits)?;
        let mut left = self.clusters();
        for _ in 0..self.blocks {
            let used = left.min(self.refcounts_per_block());
            out.put(&refcounts::block_of_ones(used, self.refcount_order, self.cluster_size()))?;
            left -= used;
        }
        for table in 0..self.l2_tables {
            out.put(U64::new((self.l2_start() + table) << self.cluster_bits | COPIED).as_bytes())?;
        }
        if self.l2_tables > 0 {
            out.fill(self.l2_start() << self.cluster_bits)?;
            let first = if self.external { 0 } else { self.data_start() };
            // Where there are subclusters, space alone shows nothing: what is below stays in sight.
            let bitmap = if self.raw { ALL_SUBCLUSTERS } else { 0 };
            // Zeroes of the file are no zeroes once they are decrypted.
            let zero = if self.crypt_method != 0 && !self.extended_l2 { ZERO } else { 0 };
            let table_entries = self.cluster_size() / if self.extended_l2 { 16 } else { 8 };
            for (index, cluster) in (first..first + clusters_for(self.size, self.cluster_bits)).enumerate() {
                if (index as u64).is_multiple_of(table_entries) {
                    steps.advance(self.cluster_size())?;
                }
                out.put(U64::new(cluster << self.cluster_bits | COPIED | zero).as_bytes())?;
                if self.extended_l2 {
                    out.put(U64::new(bitmap).as_bytes())?;
                }
            }
            out.fill(self.encryption_start() << self.cluster_bits)?;
        }
        out.flush()?;
        if !encryption.is_empty() {
            out.offset = self.encryption_start() << self.cluster_bits;
            out.put(encryption)?;
            out.fill(self.data_start() << self.cluster_bits)?;
        }

        let (first_sector, rest) = self.head.split_at(self.head.len().min(SECTOR as usize));
        if !rest.is_empty() {
            storage.writev_at(rest.into(), SECTOR)?;
        }
        steps.settle(storage)?;
        storage.sync()?;
        storage.writev_at(first_sector.into(), 0)?;
        storage.sync()
    }

    /// Makes the external data file what the tables say of it: the bytes that are there (raw), or zeroes.
    fn prepare_data_file(&self, data: &dyn Storage, steps: &mut Steps<'_>) -> Result<()> {
        let there = data.len()?;
        let mut kept = 0;
        if self.raw {
            kept = there.min(self.size);
            if there < self.size {
                data.set_len(self.size)?;
            }
        } else if data.capabilities().resize {
            data.set_len(0)?;
            data.set_len(self.size)?;
        } else {
            data.write_zeroes_at(0, self.size, ZeroMode::Keep)?;
        }
        // What is kept must not be written over.
        let of_kept = if self.preallocation == Preallocation::Full {
            Preallocation::Falloc
        } else {
            self.preallocation
        };
        of_kept.reserve(data, 0, kept, steps)?;
        self.preallocation.reserve(data, kept, self.size - kept, steps)?;
        steps.settle(data)?;
        data.sync()
    }

    /// Makes an image that was there before invalid, durably, and the header's cluster and the L1 table zeroes.
    fn clear(&self, storage: &dyn Storage) -> Result<()> {
        let len = self.clusters() << self.cluster_bits;
        if storage.capabilities().resize {
            storage.set_len(0)?;
            storage.set_len(len)?;
            return storage.sync();
        }
        let there = storage.len()?;
        if there < len {
            return Err(too_small(there, len));
        }
        storage.write_zeroes_at(0, self.cluster_size(), ZeroMode::Keep)?;
        storage.sync()?;
        let l1_len = self.l1_clusters << self.cluster_bits;
        if l1_len > 0 {
            storage.write_zeroes_at(self.l1_start() << self.cluster_bits, l1_len, ZeroMode::Keep)?;
        }
        if self.data_clusters > 0 {
            let (start, len) =
                (self.data_start() << self.cluster_bits, self.data_clusters << self.cluster_bits);
            storage.write_zeroes_at(start, len, ZeroMode::Keep)?;
        }
        Ok(())
    }
}

/// Bytes one after another, written in big pieces.
struct Stream<'a> {
    storage: &'a dyn Storage,
    offset: u64,
    buffer: Vec<u8>,
}

impl Stream<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < WRITE_SIZE { Ok(()) } else { self.flush() }
    }

    /// Zeroes up to the offset `end`, less than a cluster away.
    fn fill(&mut self, end: u64) -> Result<()> {
        self.buffer.resize((end - self.offset) as usize, 0);
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.storage.writev_at((&self.buffer).into(), self.offset)?;
            self.offset += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}

fn check_combination(options: &CreateOptions) -> Result<()> {
    let v2 = options.version == Version::V2;
    let problem = if v2 && options.lazy_refcounts {
        "lazy refcounts need version 3"
    } else if v2 && options.extended_l2 {
        "extended L2 entries need version 3"
    } else if v2 && options.compression != Compression::Deflate {
        "compression types other than deflate need version 3"
    } else if v2 && options.data_file.is_some() {
        "external data files need version 3"
    } else if options.data_file_raw && options.data_file.is_none() {
        "data_file_raw needs a data file"
    } else if options.data_file_raw && options.encryption.is_some() {
        "a raw data file shows the disk to whoever reads it and cannot be encrypted"
    } else if options.data_file_raw && options.backing.is_some() {
        "a raw data file holds the whole disk and cannot have a backing file"
    } else if v2 && options.preallocation != Preallocation::Off && options.encryption.is_some() {
        "preallocated clusters of an encrypted image need version 3, which can say that they read as zeroes"
    } else if let Some(Encryption::Aes(secret)) = &options.encryption
        && secret.is_empty()
    {
        "the secret is empty"
    } else if options.preallocation != Preallocation::Off && options.backing.is_some() && !options.extended_l2
    {
        "over a backing file preallocation needs extended L2 entries: without subclusters a cluster that has a place hides what is below"
    } else {
        if let Some(name) = &options.data_file {
            names::check_data_file(name)?;
        }
        return options.backing.as_ref().map_or(Ok(()), names::check_backing);
    };
    Err(Error::invalid_input(problem))
}

fn cluster_bits(options: &CreateOptions) -> Result<u32> {
    let size = options.cluster_size;
    let bits = size.trailing_zeros();
    if !size.is_power_of_two() || !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits) {
        return Err(Error::invalid_input(format!(
            "a cluster size of {size} is not possible; powers of two from 512 to 2097152 are"
        )));
    }
    if options.extended_l2 && bits < MIN_EXTENDED_L2_CLUSTER_BITS {
        return Err(Error::invalid_input(format!(
            "extended L2 entries need a cluster size of {} at least",
            1 << MIN_EXTENDED_L2_CLUSTER_BITS
        )));
    }
    Ok(bits)
}

fn refcount_order(options: &CreateOptions) -> Result<u32> {
    let order = order_of_refcount_bits(options.refcount_bits)?;
    if options.version == Version::V2 && order != V2_REFCOUNT_ORDER {
        return Err(Error::invalid_input("refcounts of other than 16 bits need version 3"));
    }
    Ok(order)
}

fn too_small(there: u64, needed: u64) -> Error {
    Error::invalid_input(format!("{needed} bytes are needed, but the storage has {there} and cannot grow"))
}

/// The disk is too big for one L1 table.
fn too_big(options: &CreateOptions) -> Error {
    let entry_size = if options.extended_l2 { 16 } else { 8 };
    let limit = |bits: u32| (MAX_L1_LEN / 8) * ((1 << (2 * bits)) / entry_size);
    let bits = options.cluster_size.trailing_zeros();
    let advice = match (bits..=MAX_CLUSTER_BITS).find(|bits| limit(*bits) >= options.size) {
        Some(enough) => format!("a cluster size of {} would do", 1 << enough),
        None => format!("{} are the most with any cluster size", limit(MAX_CLUSTER_BITS)),
    };
    Error::invalid_input(format!(
        "a disk of {} bytes is too big for a cluster size of {}, where {} bytes are the most; {advice}",
        options.size,
        options.cluster_size,
        limit(bits)
    ))
}
