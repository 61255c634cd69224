//! What is where in an image: metadata, allocation, ordering. Guest bytes are never moved here.
//!
//! A [`Format`] answers with *plans*: small values that say which bytes are where, and, for a write, what
//! must be committed after the data landed. [`access`](crate::access) carries them out.

pub mod inflight;
pub mod luks;
pub mod preallocation;
pub mod qcow2;
pub mod raw;
pub mod steps;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::crypt::SectorCipher;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};
use inflight::Inflight;
use steps::Steps;

/// The formats that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FormatKind {
    /// The bytes of the disk as they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// A raw disk encrypted with LUKS 1.
    Luks,
}

impl FormatKind {
    /// The name that QEMU uses for it.
    pub fn name(self) -> &'static str {
        match self {
            FormatKind::Raw => "raw",
            FormatKind::Qcow2 => "qcow2",
            FormatKind::Luks => "luks",
        }
    }

    /// The format with that name, if it is there.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "raw" => Some(FormatKind::Raw),
            "qcow2" => Some(FormatKind::Qcow2),
            "luks" => Some(FormatKind::Luks),
            _ => None,
        }
    }
}

impl fmt::Display for FormatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a look-up may wait for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Load metadata that is not cached.
    Load,
    /// Answer from what is cached, without a system call and without waiting for a lock held over I/O.
    Cached,
}

/// How a compressed cluster is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Deflate,
    /// A zstd frame.
    Zstd,
}

/// One compressed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// Where its bytes start in the storage.
    pub host: HostOffset,
    /// Upper bound of its packed length in bytes; what follows the stream's end inside it means nothing.
    pub packed_len: u32,
    /// Where the unpacked cluster starts in the guest's disk.
    pub guest: GuestOffset,
    /// Its length unpacked, in bytes.
    pub unpacked_len: u32,
    /// How it is packed.
    pub method: Compression,
}

/// Where a run of guest bytes is.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In `storage`, from `offset` on, as they are, or as [`Format::guest_cipher`] has encrypted them.
    Data {
        /// The storage that holds them.
        storage: &'a Arc<dyn Storage>,
        /// Offset in it.
        offset: HostOffset,
    },
    /// Nowhere: they are zeroes. `reserved` is the space set aside for them, where there is any.
    Zero {
        /// The space set aside for them in the image's data storage.
        reserved: Option<HostOffset>,
    },
    /// Inside one compressed cluster of `storage`.
    Compressed {
        /// The storage that holds it.
        storage: &'a Arc<dyn Storage>,
        /// The cluster.
        cluster: CompressedCluster,
    },
    /// In the backing file at the same guest offset; zeroes where there is none or it is shorter. `reserved` is the space set
    /// aside for them all the same, where there is any.
    Unallocated {
        /// The space set aside for them in the image's data storage.
        reserved: Option<HostOffset>,
    },
}

/// Where the bytes from the offset asked about are.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    /// How many bytes the answer covers; at least 1.
    pub len: u64,
    /// Where they are.
    pub place: Place<'a>,
}

/// Bytes that a storage holds in place: `len` of those asked about, at `offset` of `storage`.
#[derive(Clone, Copy, Debug)]
pub struct InPlace<'a> {
    /// How many of the bytes asked about this covers.
    pub len: u64,
    /// The storage that holds them.
    pub storage: &'a Arc<dyn Storage>,
    /// Offset in it.
    pub offset: HostOffset,
}

/// The next step of a write.
#[derive(Debug)]
pub enum WriteStep<'a> {
    /// The bytes go to their place; nothing to commit.
    InPlace(InPlace<'a>),
    /// New space was set aside; see [`Allocation`].
    Allocate(Allocation),
}

/// Space set aside for a write, that no mapping shows yet.
///
/// Whoever holds it writes the data and what the guest had around it into the new space, then gives it
/// back to [`Format::commit`] (or, after a failure, to [`Format::abandon`]). (I3)
#[derive(Debug)]
#[must_use = "an allocation is committed or abandoned"]
pub struct Allocation {
    /// Start of the guest range that the new space covers; not above the offset asked about.
    pub guest: GuestOffset,
    /// Length of that range in bytes. It may go past the end of the disk.
    pub len: u64,
    /// How many of the bytes asked about this step covers.
    pub request_len: u64,
    /// Where the space starts in [`Format::data_storage`].
    pub host: HostOffset,
    /// The space reads as zeroes already.
    pub reads_zero: bool,
    /// What the format needs to remember until commit.
    pub(crate) ticket: u64,
}

/// The next step of making a range read as zeroes, or of discarding it.
#[derive(Debug)]
pub enum ZeroStep<'a> {
    /// `len` bytes are done: metadata says so.
    Done {
        /// How many of the bytes asked about.
        len: u64,
    },
    /// The storage holds them in place and must zero (or discard) them.
    InPlace(InPlace<'a>),
    /// Metadata cannot say it for the next `len` bytes: zeroes are to be written as data
    /// (or, for a discard, left alone).
    Write {
        /// How many of the bytes asked about.
        len: u64,
    },
}

/// What a zeroing is meant to do with the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroIntent {
    /// Reads as zeroes afterwards; the space stays where it is set aside.
    Keep,
    /// Reads as zeroes afterwards; the space is given back where that is possible.
    Unmap,
    /// The guest has no use for it: what QEMU does for a discard.
    Discard,
}

/// A reference to another file, as the image spells it. Untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImplicitReference {
    /// The name, as stored; relative names start at the image's directory.
    pub name: PathBuf,
    /// The format the image claims for it.
    pub format: Option<String>,
}

/// What `info` shows of an image, beyond sizes.
#[derive(Clone, Debug, Default)]
pub struct FormatInfo {
    /// Cluster size in bytes, where the format has clusters.
    pub cluster_size: Option<u64>,
    /// The image was not closed cleanly.
    pub dirty: Option<bool>,
    /// The part that only this format has.
    pub specific: Option<FormatSpecificInfo>,
}

/// What `info` shows of one format only.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FormatSpecificInfo {
    /// Of qcow2.
    Qcow2(qcow2_info::Qcow2Info),
    /// Of LUKS.
    Luks(luks::LuksInfo),
}

/// How one cache of metadata has been used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Look-ups that found what they asked for in memory. Those of several threads at once may be counted as one.
    pub hits: u64,
    /// Look-ups that had to read the file; exact.
    pub misses: u64,
    /// Bytes it may hold.
    pub capacity: u64,
    /// Bytes it holds.
    pub used: u64,
}

/// The caches of an image's metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Of the mapping (L2 tables).
    pub l2: CacheUse,
    /// Of the refcounts; an image that is only read needs none.
    pub refcount: CacheUse,
}

/// Bytes that caches of metadata may hold; `None` is the format's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSizes {
    /// Of the mapping (L2 tables).
    pub l2: Option<u64>,
    /// Of the refcounts.
    pub refcount: Option<u64>,
}

pub mod qcow2_info {
    //! The part of `info` that only qcow2 has; names as in QEMU's JSON.

    /// See `qemu-img info --output=json`, `format-specific`.
    #[derive(Clone, Debug)]
    pub struct Qcow2Info {
        /// 2 or 3 (`compat` 0.10 and 1.1).
        pub version: u32,
        /// `zlib` or `zstd`.
        pub compression_type: &'static str,
        /// Lazy refcounts (compatible feature bit 0).
        pub lazy_refcounts: bool,
        /// Bits of one refcount.
        pub refcount_bits: u32,
        /// The corrupt bit.
        pub corrupt: bool,
        /// L2 entries of 128 bits with subclusters.
        pub extended_l2: bool,
        /// Name of the external data file, if there is one.
        pub data_file: Option<String>,
        /// The data file is a raw image of the disk.
        pub data_file_raw: Option<bool>,
        /// Encryption.
        pub encrypted: Option<EncryptionInfo>,
        /// Snapshots, in the order of their table.
        pub snapshots: Vec<SnapshotInfo>,
        /// Persistent bitmaps, in the order of their directory.
        pub bitmaps: Vec<BitmapInfo>,
    }

    /// How guest data is encrypted.
    #[derive(Clone, Debug)]
    pub enum EncryptionInfo {
        /// With qcow2's own AES.
        Aes,
        /// With LUKS.
        Luks(crate::format::luks::LuksInfo),
    }

    /// One snapshot.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct SnapshotInfo {
        /// Unique id, as text.
        pub id: String,
        /// Name.
        pub name: String,
        /// Bytes of the VM's state.
        pub vm_state_size: u64,
        /// When it was taken, seconds since the epoch.
        pub date_sec: u32,
        /// And nanoseconds.
        pub date_nsec: u32,
        /// The VM's clock, nanoseconds.
        pub vm_clock_nsec: u64,
        /// Instruction count, where it was recorded.
        pub icount: Option<u64>,
    }

    /// One persistent bitmap.
    #[derive(Clone, Debug)]
    pub struct BitmapInfo {
        /// Name.
        pub name: String,
        /// Bytes that one bit stands for.
        pub granularity: u64,
        /// `in-use` and `auto`, as in QEMU.
        pub flags: Vec<&'static str>,
    }
}

/// The size of the disk, changed in steps, while nobody writes to the image; reads may go on.
///
/// To grow: [`check`](Resize::check), [`make_room`](Resize::make_room), whatever is to be written behind the old end,
/// [`set_size`](Resize::set_size). To shrink: [`check`](Resize::check) and [`set_size`](Resize::set_size).
pub trait Resize {
    /// Refuses a size that cannot be; nothing is touched.
    fn check(&self, size: u64) -> Result<()>;

    /// Lets every call of [`Format`] reach up to `size`, although the disk ends where it did.
    fn make_room(&self, size: u64) -> Result<()>;

    /// Makes durable what was written, then the size, and drops what is behind it, which `steps` is told of and can end. With the disk's own size
    /// only the latter.
    fn set_size(&self, size: u64, steps: &mut Steps<'_>) -> Result<()>;

    /// The disk is the storage's bytes as they are: a growth has nothing to prepare, and what is set aside for it is so afterwards.
    fn is_flat(&self) -> bool {
        false
    }

    /// New parts of the disk have their place in the data file at once.
    fn fills_places(&self) -> bool {
        false
    }
}

/// The writing of compressed clusters, of a format that has them.
///
/// The caller holds the range locks over the clusters from [`prepare_packed`](Packing::prepare_packed) to the end. In between it writes each
/// cluster's `packed_len` bytes to its `host` in [`Format::storage`]; then it commits them (I3), or, after a failure, abandons them.
pub trait Packing: Send + Sync {
    /// How clusters are packed.
    fn method(&self) -> Compression;

    /// Bytes of a cluster; one that is packed takes less.
    fn cluster_size(&self) -> u32;

    /// Sets space aside for each of `clusters`, which it says in `host`, one behind the other where that is possible. On an error
    /// there is nothing to give back.
    fn prepare_packed(&self, clusters: &mut [CompressedCluster]) -> Result<()>;

    /// Publishes clusters whose packed bytes have been written. Those that an error leaves unpublished have been given back.
    fn commit_packed(&self, clusters: &[CompressedCluster]) -> Result<()>;

    /// Takes back the space of clusters that were not published.
    fn abandon_packed(&self, clusters: &[CompressedCluster]);
}

/// Snapshots inside an image. A snapshot is looked for by its id first, then by its name; ids are unique, names need not be.
///
/// Changes are made while nobody writes to the image; reads may go on. A change that is refused has touched nothing, and one that returned
/// is durable. [`InvalidInput`](crate::ErrorKind::InvalidInput): there is no such snapshot, or a name or id cannot be;
/// [`Unsupported`](crate::ErrorKind::Unsupported): the image cannot have (one more of) them; the message says why.
pub trait Snapshots {
    /// All of them, in the table's order.
    fn list(&self) -> Result<Vec<qcow2_info::SnapshotInfo>>;

    /// Keeps the disk as it is now under a name of at most 255 bytes. `id` is the next number unless given; `date` counts from 1970.
    fn create(&self, name: &str, id: Option<&str>, date: Duration) -> Result<qcow2_info::SnapshotInfo>;

    /// Makes the disk what it was, its size included; what was written since is lost. Whoever caches what is unpacked forgets it afterwards.
    fn apply(&self, id_or_name: &str) -> Result<()>;

    /// Removes one; what only it has is free.
    fn delete(&self, id_or_name: &str) -> Result<()>;

    /// Gives one another name.
    fn rename(&self, id_or_name: &str, name: &str) -> Result<()>;
}

/// A persistent dirty bitmap: which parts of the disk were written since it was made or cleared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    /// Its name, unique in the image.
    pub name: String,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// It follows writes.
    pub enabled: bool,
    /// What kept it up to date never came to its end: nobody can tell what it should say, and it can only be removed.
    pub inconsistent: bool,
    /// Bytes of the disk that are dirty, where that can be told: not of one that is inconsistent, or has extra data of an unknown kind.
    pub count: Option<u64>,
}

/// A dirty part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRange {
    /// Where it starts; a multiple of the bitmap's granularity.
    pub offset: u64,
    /// Its length. It does not pass the end of the disk.
    pub length: u64,
}

/// The dirty parts of a disk, first to last; no two touch.
///
/// They are the bitmap's from when this was made. What is written meanwhile to an image that is open for writing may show or not.
pub struct DirtyRanges {
    disk_size: u64,
    ranges: Box<dyn Iterator<Item = DirtyRange> + Send>,
}

impl DirtyRanges {
    /// Those of a disk of `disk_size` bytes.
    pub fn new(disk_size: u64, ranges: impl Iterator<Item = DirtyRange> + Send + 'static) -> Self {
        DirtyRanges { disk_size, ranges: Box::new(ranges) }
    }

    /// Size of the disk in bytes.
    pub fn disk_size(&self) -> u64 {
        self.disk_size
    }
}

impl Iterator for DirtyRanges {
    type Item = DirtyRange;

    fn next(&mut self) -> Option<DirtyRange> {
        self.ranges.next()
    }
}

impl fmt::Debug for DirtyRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyRanges").field("disk_size", &self.disk_size).finish_non_exhaustive()
    }
}

/// The persistent dirty bitmaps of an image, where its format has them.
///
/// A name that is not there is [`InvalidInput`](crate::ErrorKind::InvalidInput), and so is any use of an inconsistent bitmap but
/// [`remove`](Bitmaps::remove). Whoever changes one sees to it that nobody writes to the disk meanwhile. A change is durable when the
/// method returns; but a bitmap that has followed writes since the image was opened is stored by [`Format::close`] with all
/// that was done to it, and is inconsistent if that never comes.
pub trait Bitmaps {
    /// All of them, in the order of the image.
    fn list(&self) -> Result<Vec<DirtyBitmap>>;

    /// Makes a bitmap in which nothing is dirty, of a granularity in bytes (`None`: what QEMU would take).
    fn add(&self, name: &str, granularity: Option<u64>, state: Recording) -> Result<()>;

    /// Removes a bitmap, also an inconsistent one.
    fn remove(&self, name: &str) -> Result<()>;

    /// Makes everything clean.
    fn clear(&self, name: &str) -> Result<()>;

    /// Lets it follow writes from now on, or no more.
    fn set_recording(&self, name: &str, state: Recording) -> Result<()>;

    /// Makes dirty what is dirty in `source`, which comes from a disk of the same size. The granularities need not be the same.
    fn merge(&self, name: &str, source: DirtyRanges) -> Result<()>;

    /// What is dirty.
    fn ranges(&self, name: &str) -> Result<DirtyRanges>;
}

/// Whether a bitmap follows writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// Every write is marked in it.
    Enabled,
    /// It stays as it is.
    Disabled,
}

/// A format's driver for one open image.
///
/// Every method may be called from any thread. Offsets passed are below [`size`](Format::size) and lengths at least 1;
/// `offset + len` does not pass the size. Lock order and barriers are the driver's own affair, but no lock of its is held when a method has returned.
pub trait Format: fmt::Debug + Send + Sync {
    /// Which format.
    fn kind(&self) -> FormatKind;

    /// Size of the guest's disk in bytes.
    fn size(&self) -> u64;

    /// Whether it was opened for writing.
    fn writable(&self) -> bool;

    /// The storage with the metadata.
    fn storage(&self) -> &Arc<dyn Storage>;

    /// The storage that guest data goes to; the same unless there is an external data file.
    fn data_storage(&self) -> &Arc<dyn Storage> {
        self.storage()
    }

    /// Whether guest data is encrypted: places in the data storage are then not those of bytes that others can use.
    fn is_encrypted(&self) -> bool {
        false
    }

    /// What encrypts guest data under the numbers of the *disk's* sectors, which no storage knows: whoever follows
    /// [`Place::Data`], [`InPlace`] or an [`Allocation`] encrypts and decrypts. `None`: places hold bytes as the guest has them.
    fn guest_cipher(&self) -> Option<&Arc<SectorCipher>> {
        None
    }

    /// Operations in flight are counted here, so that freed space is not reused under them.
    /// `None` where nothing is ever freed.
    fn inflight(&self) -> Option<&Inflight> {
        None
    }

    /// The longest run from `offset` on, at most `len` bytes, that has one answer. `Ok(None)` only for [`Lookup::Cached`]:
    /// the answer is not at hand.
    fn map(&self, offset: GuestOffset, len: u64, lookup: Lookup) -> Result<Option<Mapping<'_>>>;

    /// Where [`map`](Format::map) can answer anew: at multiples of this (bytes, a power of two), but for the end of the disk.
    fn mapping_unit(&self) -> u64 {
        1
    }

    /// Whether what [`map`](Format::map) calls data may well be a hole of its storage, which reads as zeroes: who looks for zeroes without
    /// reading asks the storage, too. Found out once; a hint.
    fn may_be_hollow(&self) -> Result<bool> {
        Ok(false)
    }

    /// The next step of writing `len` bytes at `offset`.
    ///
    /// The caller holds a range lock over the (sub)clusters that an allocation may touch, see
    /// [`write_alignment`](Format::write_alignment); it may try without for [`WriteStep::InPlace`] via [`in_place`](Format::in_place).
    fn prepare_write(&self, offset: GuestOffset, len: u64) -> Result<WriteStep<'_>>;

    /// Where the bytes from `offset` on, at most `len`, may be overwritten with no allocation and no lock.
    fn in_place(&self, offset: GuestOffset, len: u64) -> Result<Option<InPlace<'_>>>;

    /// Publishes an allocation whose data has been written.
    fn commit(&self, allocation: Allocation) -> Result<()>;

    /// Takes an allocation back; nothing of it was published.
    fn abandon(&self, allocation: Allocation);

    /// The next step of zeroing or discarding `len` bytes at `offset`. The caller holds the range lock.
    fn zero(&self, offset: GuestOffset, len: u64, intent: ZeroIntent) -> Result<ZeroStep<'_>>;

    /// The writing of compressed clusters; where the image cannot have any, an error that says why.
    fn packing(&self) -> Result<&dyn Packing> {
        Err(Error::unsupported(format!("{} has no compressed clusters", self.kind())))
    }

    /// Unit of the range locks for writes that may allocate, in bytes (a power of two).
    fn write_alignment(&self) -> u64 {
        1
    }

    /// Notes that `len` bytes from `offset` on are about to change. It comes before any other call for a write, a zeroing or a
    /// discard, and before the data moves.
    fn record(&self, _offset: GuestOffset, _len: u64) -> Result<()> {
        Ok(())
    }

    /// Makes everything that was written durable, data before metadata in the format's order.
    fn flush(&self) -> Result<()>;

    /// Whether there is nothing but guest data for [`flush`](Format::flush) and [`close`](Format::close) to write. Nothing is under way.
    fn is_settled(&self) -> bool;

    /// Leaves the image clean, after a flush; nothing is written afterwards.
    fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Changing the size of the disk, where that is possible.
    fn resize(&self) -> Option<&dyn Resize> {
        None
    }

    /// Takes everything out of the disk, whose size stays: it shows what is below it. Durable when it returns, and all or nothing whatever
    /// ends it in between; a refusal has touched nothing. Nobody writes meanwhile; whoever caches what is unpacked forgets it afterwards.
    fn make_empty(&self) -> Result<()> {
        Err(Error::unsupported(format!("a {} image cannot show what is below it", self.kind())))
    }

    /// How the caches of its metadata have been used; `None` where there are none.
    fn cache_stats(&self) -> Option<CacheStats> {
        None
    }

    /// Its snapshots, where the format has such.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// What `info` shows.
    fn info(&self) -> Result<FormatInfo> {
        Ok(FormatInfo::default())
    }

    /// The persistent dirty bitmaps, where the format has them.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }

    /// The file the image is in, for messages.
    fn path(&self) -> Option<&Path> {
        self.storage().path()
    }
}
