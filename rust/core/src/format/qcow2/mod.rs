//! qcow2, versions 2 and 3. The page `docs/qcow2.md` has the layout, the limits, the invariants I1 to I8 and the write recipes.
//!
//! Lock order, outermost first: `bitmaps`, `tables`, `flushing`, `pending`, `refcounts`, a shard of `slices`, `reserved`, `header`.
//! None is held while guest data moves; `slices` and `pending` are not held over I/O at all.

mod allocate;
pub mod amend;
mod bitmaps;
mod cache;
pub mod check;
mod corruption;
pub mod create;
mod exchange;
mod extensions;
mod features;
mod flush;
mod header;
mod hollow;
mod info;
mod l2;
mod map;
pub mod measure;
mod names;
mod pack;
mod pending;
mod refcounts;
mod references;
mod resize;
mod rewrite;
mod scan;
pub mod sequential;
mod snapshots;
mod tables;
mod write;
mod zero;

use std::iter;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashSet;

use self::bitmaps::{Bitmap, Recorder};
use self::cache::{Slice, SliceCache};
use self::header::{Encryption, Header};
use self::l2::Geometry;
use self::pending::{Pending, Quarantine};
use self::refcounts::Refcounts;
use super::inflight::Inflight;
use super::{
    Allocation, Bitmaps, CacheSizes, CacheStats, Format, FormatInfo, FormatKind, FormatSpecificInfo,
    ImplicitReference, InPlace, Lookup, Mapping, Packing, Resize, Snapshots, WriteStep, ZeroIntent, ZeroStep,
    luks,
};
use crate::crypt::{self, Secret, SectorCipher};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::storage::latched::Latched;
use crate::units::GuestOffset;

/// What the L2 cache may hold at most: QEMU's default maximum, enough for 256 GiB of 64 KiB clusters.
const L2_CACHE_BYTES: u64 = 32 << 20;

/// What the metadata of an image says of it, for `info`: also of one that cannot be opened (encrypted).
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Size of the guest's disk in bytes.
    pub size: u64,
    /// The backing file.
    pub backing: Option<ImplicitReference>,
    /// Everything else.
    pub info: FormatInfo,
}

/// Reads what `info` shows of an image and nothing else; opens no other file.
pub fn inspect(storage: &dyn Storage) -> Result<Inspection> {
    let header = Header::read(storage)?;
    let info = format_info(storage, &header)?;
    Ok(Inspection { size: header.size, backing: header.backing, info })
}

fn format_info(storage: &dyn Storage, header: &Header) -> Result<FormatInfo> {
    Ok(FormatInfo {
        cluster_size: Some(header.cluster_size()),
        dirty: Some(header.is_dirty()),
        specific: Some(FormatSpecificInfo::Qcow2(info::info(storage, header)?)),
    })
}

/// An open qcow2 image.
#[derive(Debug)]
pub struct Driver {
    /// As it stands in the file; replaced as a whole, by whoever holds `flushing`.
    header: RwLock<Arc<Header>>,
    geometry: Geometry,
    /// Size of the guest's disk in bytes.
    size: AtomicU64,
    writable: bool,
    /// It is to be written, once a repair has made that possible: until then it is read-only.
    unclean: bool,
    /// Length of the image file when it was opened; an image that is written checked its tables against it then.
    file_end: u64,
    /// The image file. Metadata is written through the latch, so that nothing is ever written on top of unknown state.
    storage: Arc<dyn Storage>,
    metadata: Latched,
    /// Where guest data is: the image file, or the external data file once it is known; of an encrypted image what decrypts one of them,
    /// unless [`Format::guest_cipher`] does that.
    data: Option<Arc<dyn Storage>>,
    /// How it is encrypted.
    crypt: Option<Crypt>,
    /// The active L1 table, of a writable image with room for the longest; a table that a write made is here at once and on
    /// disk after the next flush.
    l1: Box<[AtomicU64]>,
    slices: SliceCache,
    /// Of an image that is only read and whose tables the cache holds all: its slices in the order of the disk, once they were looked up.
    /// Nothing takes one of them away, so that a look-up needs no lock.
    in_order: Box<[OnceLock<Arc<Slice>>]>,
    /// Of an image that is only read: where its tables are empty.
    scans: scan::Scans,
    /// The file may have holes where the metadata has space set aside, once that was looked at.
    hollow: OnceLock<bool>,
    /// What the caller wants `slices` to hold; otherwise the size of the disk decides.
    l2_cache_size: Option<u64>,
    inflight: Inflight,

    /// The first write has happened: the header says so (autoclear bits, bitmaps in use).
    started: AtomicBool,
    /// The persistent bitmaps of a writable image.
    bitmaps: Mutex<Vec<Bitmap>>,
    /// Those that follow writes.
    recorder: Recorder,
    /// One flush at a time; what it freed and may not be reused yet.
    flushing: Mutex<Quarantine>,
    /// Held while an L2 table is made or copied.
    tables: Mutex<()>,
    pending: Mutex<Pending>,
    refcounts: Mutex<Refcounts>,
    refcount_use: Arc<refcounts::Counters>,
    /// Clusters of the image file that hold metadata; guest data is never written there (I6).
    reserved: RwLock<FxHashSet<u64>>,
    /// There is a backing file behind what is unallocated.
    has_backing: bool,
}

/// What guest data is encrypted with.
#[derive(Debug)]
struct Crypt {
    /// The LUKS header; `None`: qcow2's own AES, which has none.
    volume: Option<luks::Volume>,
    /// The cipher, once a secret has given it.
    cipher: Option<Arc<SectorCipher>>,
}

impl Driver {
    /// Reads and checks the metadata; writes nothing (I8).
    ///
    /// An image whose header names an external data file needs [`set_data_storage`](Driver::set_data_storage) before any data is read or written;
    /// an encrypted one needs [`unlock`](Driver::unlock) and then [`set_data_storage`](Driver::set_data_storage).
    /// One that was not closed cleanly is only opened for reading; a repair ([`check`]) makes it writable again.
    pub fn open(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        let path = storage.path().map(Path::to_owned);
        Self::open_inner(storage, writable, None).map_err(|error| match path {
            Some(path) => error.in_file(path),
            None => error,
        })
    }

    /// Opens an image that was not closed cleanly and is to be written, for reading until a repair was made and [`reopen`](Driver::reopen) called.
    pub(crate) fn open_unclean(storage: Arc<dyn Storage>) -> Result<Self> {
        Ok(Driver { unclean: true, ..Self::open(storage, false)? })
    }

    /// Whether a repair has to be made before it is written.
    pub(crate) fn is_unclean(&self) -> bool {
        self.unclean
    }

    /// Whether it is written, or will be after a repair.
    pub(crate) fn will_write(&self) -> bool {
        self.writable || self.unclean
    }

    /// Opens it for writing after a repair; what was found out, set and opened for it stays.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        let mut driver = Self::open(Arc::clone(&self.storage), true)?;
        let sizes = CacheSizes { l2: self.l2_cache_size, refcount: Some(self.refcounts.get_mut().budget()) };
        driver.set_cache_sizes(sizes);
        driver.crypt = self.crypt.take();
        driver.data = self.data.take();
        driver.has_backing = self.has_backing;
        *self = driver;
        Ok(())
    }

    /// Opens the disk as it was when a snapshot (id or name) was taken, with its size then, for reading.
    pub fn open_snapshot(storage: Arc<dyn Storage>, id_or_name: &str) -> Result<Self> {
        let path = storage.path().map(Path::to_owned);
        Self::open_inner(storage, false, Some(id_or_name)).map_err(|error| match path {
            Some(path) => error.in_file(path),
            None => error,
        })
    }

    fn open_inner(storage: Arc<dyn Storage>, writable: bool, snapshot: Option<&str>) -> Result<Self> {
        let mut header = if writable { Header::read(&*storage) } else { Header::read_damaged(&*storage) }?;
        if let Some(snapshot) = snapshot {
            snapshots::show(storage.as_ref(), &mut header, snapshot)?;
        }
        if writable {
            if !storage.capabilities().write {
                return Err(Error::new(ErrorKind::ReadOnly, "the storage was opened read-only"));
            }
            refuse_unsafe_writes(&header)?;
        }
        let geometry = Geometry::of(&header);
        let capacity = if writable { header::MAX_L1_LEN as usize / 8 } else { 0 };
        let l1 = tables::read_l1(storage.as_ref(), &header, capacity)?;
        let (refcounts, bitmaps, reserved) = if writable {
            let refcounts = Refcounts::open(storage.as_ref(), &header)?;
            let bitmaps = bitmaps::open(storage.as_ref(), &header)?;
            let reserved = tables::reserved_clusters(storage.as_ref(), &header, &l1, &refcounts, &bitmaps)?;
            (refcounts, bitmaps, reserved)
        } else {
            (Refcounts::absent(), Vec::new(), FxHashSet::default())
        };
        let slices =
            SliceCache::new(geometry.l2_bytes(header.size).min(L2_CACHE_BYTES), geometry.slice_bits());
        let stay = !writable && slices.covers(geometry.l2_bytes(header.size));
        let in_order = if stay { header.size.div_ceil(geometry.slice_span()) } else { 0 };
        let crypt = match header.encryption {
            Some(Encryption::Luks(place)) => {
                let volume = luks::Volume::inside(Arc::clone(&storage), place.offset, place.len)?;
                Some(Crypt { volume: Some(volume), cipher: None })
            }
            Some(Encryption::Aes) => Some(Crypt { volume: None, cipher: None }),
            None => None,
        };
        Ok(Driver {
            geometry,
            writable,
            unclean: false,
            file_end: storage.len()?,
            metadata: Latched::new(Arc::clone(&storage)),
            data: (!geometry.external_data && crypt.is_none()).then(|| Arc::clone(&storage)),
            crypt,
            l1,
            slices,
            in_order: iter::repeat_with(OnceLock::new).take(in_order as usize).collect(),
            scans: scan::Scans::default(),
            hollow: OnceLock::new(),
            l2_cache_size: None,
            inflight: Inflight::default(),
            started: AtomicBool::new(false),
            bitmaps: Mutex::new(bitmaps),
            recorder: Recorder::default(),
            flushing: Mutex::default(),
            tables: Mutex::new(()),
            pending: Mutex::default(),
            refcount_use: refcounts.counters(),
            refcounts: Mutex::new(refcounts),
            reserved: RwLock::new(reserved),
            has_backing: header.backing.is_some(),
            size: AtomicU64::new(header.size),
            header: RwLock::new(Arc::new(header)),
            storage,
        })
    }

    /// Says how much its caches of metadata may hold; what is not said stays as it is. The L2 cache holds 16 slices of a table at least.
    pub fn set_cache_sizes(&mut self, sizes: CacheSizes) {
        if let Some(bytes) = sizes.l2 {
            self.l2_cache_size = Some(bytes);
            self.slices = SliceCache::new(bytes, self.geometry.slice_bits());
            self.in_order = Box::default();
        }
        if let Some(bytes) = sizes.refcount {
            self.refcounts.get_mut().set_budget(bytes);
        }
    }

    /// Has the L2 cache hold what a disk of `size` bytes needs, unless the caller decided on that.
    fn fit_slices(&self, size: u64) {
        if self.l2_cache_size.is_none() {
            self.slices.fit(self.geometry.l2_bytes(size).min(L2_CACHE_BYTES));
        }
    }

    /// The backing file that the header names.
    pub fn backing_reference(&self) -> Option<ImplicitReference> {
        self.header().backing.clone()
    }

    /// The external data file that the header names. [`needs_data_file`](Driver::needs_data_file) may be true without one.
    pub fn data_file_reference(&self) -> Option<ImplicitReference> {
        self.header().data_file_reference()
    }

    /// Whether guest data is in an external data file.
    pub fn needs_data_file(&self) -> bool {
        self.geometry.external_data
    }

    /// Whether guest data is encrypted.
    pub fn needs_secret(&self) -> bool {
        self.crypt.is_some()
    }

    /// Finds the key of guest data; [`ErrorKind::WrongSecret`] if `secret` does not open it. Nothing tells whether it is right where the
    /// image is encrypted with qcow2's own AES: with a wrong one the disk is noise.
    pub fn unlock(&mut self, secret: &Secret) -> Result<()> {
        let Some(crypt) = &mut self.crypt else {
            return Err(self.located(Error::invalid_input("the image is not encrypted")));
        };
        crypt.cipher = Some(match &crypt.volume {
            Some(volume) => volume.cipher(&volume.unlock(secret)?)?,
            None => Arc::new(crypt::qcow2_aes(secret)?),
        });
        Ok(())
    }

    /// Whether guest data is encrypted and its key has not been found.
    pub(crate) fn is_locked(&self) -> bool {
        self.crypt.as_ref().is_some_and(|crypt| crypt.cipher.is_none())
    }

    /// What decrypts the storage of guest data under the numbers of its own sectors, once the image is unlocked.
    pub(crate) fn host_cipher(&self) -> Option<&Arc<SectorCipher>> {
        let crypt = self.crypt.as_ref()?;
        // In an external data file every sector has the number that it has in the disk.
        crypt.cipher.as_ref().filter(|_| crypt.volume.is_some() || self.geometry.external_data)
    }

    /// The key slots, of an image that is encrypted with LUKS.
    pub fn into_key_slots(self) -> Result<Option<luks::Volume>> {
        let unknown = self.header().autoclear & !features::AUTOCLEAR_KNOWN;
        if self.writable && unknown != 0 {
            return Err(self.located(Error::unsupported(format!(
                "the image has autoclear bits {unknown:#x} that are not known here: write to its disk once, which clears \
                 them, before its keys are changed"
            ))));
        }
        Ok(self.crypt.and_then(|crypt| crypt.volume))
    }

    /// Says where guest data is, for an image with an external data file and for an encrypted one, of which `data` decrypts either file (see
    /// [`host_cipher`](Driver::host_cipher)).
    pub fn set_data_storage(&mut self, data: Arc<dyn Storage>) -> Result<()> {
        if !self.geometry.external_data && self.crypt.is_none() {
            return Err(self.located(Error::invalid_input("the image has no external data file")));
        }
        self.data = Some(data);
        Ok(())
    }

    /// Says whether anything is to be read behind unallocated clusters, where that differs from the header's word.
    pub fn set_has_backing(&mut self, present: bool) {
        self.has_backing = present;
    }

    /// The header as it stands in the file now.
    fn header(&self) -> Arc<Header> {
        Arc::clone(&self.header.read())
    }

    /// Notes a change that has been written to the file's header. The caller holds `flushing`.
    fn change_header(&self, change: impl FnOnce(&mut Header)) {
        change(Arc::make_mut(&mut self.header.write()));
    }

    fn located(&self, error: Error) -> Error {
        match self.storage.path() {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

/// Whether the image in `storage` says that it was not closed, and not that somebody found it corrupt: what a repair before the first
/// write is for.
pub(crate) fn needs_cleaning(storage: &dyn Storage) -> Result<bool> {
    let header = Header::read(storage)?;
    Ok(header.is_dirty() && !header.is_corrupt())
}

/// Images that can be read but must not be written as they are.
fn refuse_unsafe_writes(header: &Header) -> Result<()> {
    if header.is_corrupt() {
        return Err(Error::corrupt(
            "the image is marked corrupt: open it read-only, or repair it first (pyimago.check, repair=\"all\")",
        ));
    }
    if header.is_dirty() {
        return Err(Error::unsupported(
            "the image was not closed cleanly and its refcounts are stale: open it read-only, or repair it first (pyimago.check, repair=\"all\")",
        ));
    }
    Ok(())
}

impl Format for Driver {
    fn kind(&self) -> FormatKind {
        FormatKind::Qcow2
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn data_storage(&self) -> &Arc<dyn Storage> {
        self.data.as_ref().unwrap_or(&self.storage)
    }

    fn is_encrypted(&self) -> bool {
        self.crypt.is_some()
    }

    fn guest_cipher(&self) -> Option<&Arc<SectorCipher>> {
        let crypt = self.crypt.as_ref()?;
        crypt.cipher.as_ref().filter(|_| self.host_cipher().is_none())
    }

    fn inflight(&self) -> Option<&Inflight> {
        self.writable.then_some(&self.inflight)
    }

    fn map(&self, offset: GuestOffset, len: u64, lookup: Lookup) -> Result<Option<Mapping<'_>>> {
        self.map_run(offset, len, lookup).map_err(|e| self.located(e))
    }

    fn mapping_unit(&self) -> u64 {
        self.geometry.unit_size()
    }

    fn may_be_hollow(&self) -> Result<bool> {
        self.is_hollow()
    }

    fn in_place(&self, offset: GuestOffset, len: u64) -> Result<Option<InPlace<'_>>> {
        self.find_in_place(offset, len).map_err(|e| self.failed_write(e))
    }

    fn prepare_write(&self, offset: GuestOffset, len: u64) -> Result<WriteStep<'_>> {
        self.start_writing().map_err(|e| self.located(e))?;
        self.plan_write(offset, len).map_err(|e| self.failed_write(e))
    }

    fn commit(&self, allocation: Allocation) -> Result<()> {
        self.publish(&allocation).map_err(|e| self.failed_write(e))
    }

    fn abandon(&self, allocation: Allocation) {
        self.give_back(&allocation);
    }

    fn zero(&self, offset: GuestOffset, len: u64, intent: ZeroIntent) -> Result<ZeroStep<'_>> {
        self.start_writing().map_err(|e| self.located(e))?;
        self.plan_zero(offset, len, intent).map_err(|e| self.failed_write(e))
    }

    fn packing(&self) -> Result<&dyn Packing> {
        self.check_packing().map(|()| self as &dyn Packing).map_err(|e| self.located(e))
    }

    fn write_alignment(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.write_back().map_err(|e| self.failed_write(e))
    }

    fn is_settled(&self) -> bool {
        !self.bitmaps.lock().iter().any(Bitmap::is_held) && self.has_written_back()
    }

    fn record(&self, offset: GuestOffset, len: u64) -> Result<()> {
        self.mark_written(offset.0, len).map_err(|e| self.located(e))
    }

    fn close(&self) -> Result<()> {
        let stored = self.release_bitmaps().map_err(|e| self.located(e));
        // The flush before lowered the refcounts of what was freed and wrote them with no barrier.
        let flushed = self.flush().and_then(|()| {
            let freed = self.refcounts.lock().has_freed();
            if freed { self.trim_file().map_err(|e| self.located(e)) } else { Ok(()) }
        });
        stored.and(flushed)
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(self)
    }

    fn resize(&self) -> Option<&dyn Resize> {
        Some(self)
    }

    fn make_empty(&self) -> Result<()> {
        self.empty_disk().map_err(|e| self.located(e))
    }

    fn cache_stats(&self) -> Option<CacheStats> {
        Some(CacheStats { l2: self.slices.stats(), refcount: self.refcount_use.stats() })
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn info(&self) -> Result<FormatInfo> {
        // Tables move when they change.
        let _one_flush = self.flushing.lock();
        format_info(self.storage.as_ref(), &self.header()).map_err(|e| self.located(e))
    }
}

impl Driver {
    /// Refuses to write what cannot be written, before anything is touched.
    fn check_writable(&self) -> Result<()> {
        if !self.writable {
            return Err(Error::new(ErrorKind::ReadOnly, "the image was opened read-only"));
        }
        self.data()?;
        self.metadata.check()
    }
}
