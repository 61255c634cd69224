//! An open image: the executor of its format's plans.

use std::fmt;
use std::iter;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::crypt::SectorCipher;
use crate::error::{Error, ErrorKind, Result};
use crate::format::inflight::{Guard, Inflight, Ticket};
use crate::format::{CacheStats, Format, FormatKind, ImplicitReference};
use crate::units::GuestOffset;

use super::below::Below;
use super::cluster_cache::ClusterCache;
use super::range_lock::RangeLocks;

/// Images in a chain, the first one included.
pub const CHAIN_MAX: u32 = 256;

/// What answers for the bytes that an image itself does not hold.
#[derive(Clone, Debug, Default)]
pub enum Base {
    /// Nobody: they are zeroes.
    #[default]
    None,
    /// Another image. Who opened it closes it, unless `owned`.
    Image {
        /// The backing image.
        image: Arc<Image>,
        /// It was opened for this image alone and is closed with it.
        owned: bool,
    },
    /// A file the image names that was not opened: reading from it is an error.
    Unopened(ImplicitReference),
}

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const NO_DATA_FILE: u8 = 2;
const LOCKED: u8 = 3;
const UNCLEAN: u8 = 4;

/// An open image and the images below it.
///
/// Synchronous and shared: every method takes `&self` and may run on any number of threads at once. Two writes that
/// overlap leave some mix of both; a read beside a write sees some mix of before and after.
pub struct Image {
    pub(super) format: Arc<dyn Format>,
    pub(super) base: Base,
    /// An image further down that was opened for this one, and is written.
    brought: Option<Arc<Image>>,
    /// The images below that were opened for this one, once they were asked.
    below: OnceLock<Below>,
    /// Shared by every write, held alone by whoever changes the image as a whole.
    pub(super) writing: RwLock<()>,
    /// Guest ranges in which someone allocates or zeroes.
    pub(super) ranges: RangeLocks,
    pub(super) unpacked: ClusterCache,
    /// What encrypts the sectors of its data under their numbers in the disk, see [`guest_crypt`](super::guest_crypt).
    pub(super) cipher: Option<Arc<SectorCipher>>,
    /// The format was guessed: writes must not make it look like another one.
    pub(super) probed_raw: bool,
    /// The files of the metadata and of the data, as extents name them.
    pub(super) host_files: [Option<Arc<Path>>; 2],
    state: AtomicU8,
    /// Flushes in flight, and where the format does not count operations itself, those.
    inflight: Inflight,
    /// What closing came to.
    closed: Mutex<Option<Result<()>>>,
}

/// A change of the disk that is under way; ends when dropped.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    _writing: RwLockReadGuard<'a, ()>,
    _operation: Guard<'a>,
}

/// An operation on an image that goes on outside of it (a read that a ring does); the image's
/// [`close`](Image::close) waits until it is dropped.
#[derive(Debug)]
pub struct Operation {
    image: Arc<Image>,
    ticket: Option<Ticket>,
}

impl Image {
    /// An image of this format over `base`.
    pub fn new(format: Arc<dyn Format>, base: Base) -> Self {
        let file = |path: Option<&Path>| path.map(Arc::<Path>::from);
        let host_files = [file(format.storage().path()), file(format.data_storage().path())];
        Image {
            cipher: format.guest_cipher().cloned(),
            format,
            base,
            brought: None,
            below: OnceLock::new(),
            writing: RwLock::new(()),
            ranges: RangeLocks::default(),
            unpacked: ClusterCache::default(),
            probed_raw: false,
            host_files,
            state: AtomicU8::new(OPEN),
            inflight: Inflight::default(),
            closed: Mutex::new(None),
        }
    }

    /// The same image, marked as raw for want of a better guess: a write that would make its start look like
    /// another format is refused, as the guest could otherwise choose what the next one to probe it opens.
    #[must_use]
    pub(crate) fn probed_raw(mut self) -> Self {
        self.probed_raw = true;
        self
    }

    /// The same image, which closes `written`, an image below it.
    #[must_use]
    pub(super) fn bringing(mut self, written: Option<Arc<Image>>) -> Self {
        self.brought = written;
        self
    }

    /// The same image, still without the external data file it needs: every operation is an error that says so.
    #[must_use]
    pub(crate) fn without_data_file(self) -> Self {
        self.state.store(NO_DATA_FILE, Ordering::SeqCst);
        self
    }

    /// The same image, whose key nobody has found: every operation is an error that says so.
    #[must_use]
    pub(crate) fn locked(self) -> Self {
        self.state.store(LOCKED, Ordering::SeqCst);
        self
    }

    /// The same image, which was not closed cleanly and has not been repaired: every operation is an error that says so.
    #[must_use]
    pub(crate) fn unclean(self) -> Self {
        self.state.store(UNCLEAN, Ordering::SeqCst);
        self
    }

    /// Size of the guest's disk in bytes.
    pub fn size(&self) -> u64 {
        self.format.size()
    }

    /// Which format it has.
    pub fn kind(&self) -> FormatKind {
        self.format.kind()
    }

    /// Whether it was opened for writing.
    pub fn writable(&self) -> bool {
        self.format.writable()
    }

    /// The file it is in, where it is in one.
    pub fn path(&self) -> Option<&Path> {
        self.format.path()
    }

    /// The driver of its format.
    pub fn format(&self) -> &Arc<dyn Format> {
        &self.format
    }

    /// How the caches of its metadata have been used, its own and not those of the images below; `None` where there are none.
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.format.cache_stats()
    }

    /// The backing image, where there is one.
    pub fn backing(&self) -> Option<&Arc<Image>> {
        match &self.base {
            Base::Image { image, .. } => Some(image),
            Base::None | Base::Unopened(_) => None,
        }
    }

    /// The topmost image below that is open for writing.
    pub fn written_backing(&self) -> Option<&Arc<Image>> {
        iter::successors(self.backing(), |image| image.backing()).find(|image| image.writable())
    }

    /// The images below that were opened for this one.
    #[inline]
    pub(super) fn below(&self) -> &Below {
        self.below.get_or_init(|| Below::of(self))
    }

    /// Images in the chain from this one down, itself included.
    pub fn chain_len(&self) -> u32 {
        let mut len = 1;
        let mut image = self;
        while let Some(backing) = image.backing() {
            len += 1;
            image = backing;
        }
        len
    }

    /// Whether [`close`](Image::close) was called.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }

    /// Makes everything that was written durable: data, then the metadata that shows it.
    pub fn flush(&self) -> Result<()> {
        // Not among the format's: a flush follows no mapping, and would keep in quarantine what it could free.
        let _operation = self.inflight.guard();
        self.check_open()?;
        if self.writable() { self.format.flush().map_err(|e| self.name(e)) } else { Ok(()) }
    }

    /// Begins to write, zero or discard `len` bytes at `offset`, once it is clear that this can be done. Every change of the disk
    /// begins here: bitmaps that follow writes are told before anything happens.
    #[inline]
    pub(super) fn begin_write(&self, offset: u64, len: u64) -> Result<Writing<'_>> {
        self.check_write(offset, len)?;
        let operation = self.enter()?;
        let writing = self.writing.read();
        // The disk may have shrunk meanwhile.
        self.check_range(offset, len)?;
        if len > 0 {
            self.format.record(GuestOffset(offset), len).map_err(|e| self.name(e))?;
        }
        Ok(Writing { _writing: writing, _operation: operation })
    }

    #[inline]
    pub(super) fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable() {
            return Err(self.read_only());
        }
        self.check_range(offset, len)
    }

    #[cold]
    fn read_only(&self) -> Error {
        if self.state.load(Ordering::SeqCst) == UNCLEAN {
            return self.not_open(UNCLEAN);
        }
        self.name(Error::new(ErrorKind::ReadOnly, "the image was opened read-only"))
    }

    /// Changes the image as a whole (its size, its snapshots) while nobody writes to it: writes in flight end first, and others wait
    /// until `change` has returned. Reads go on meanwhile. `change` must not write through the image itself.
    pub(super) fn exclusively<R>(&self, change: impl FnOnce(&dyn Format) -> Result<R>) -> Result<R> {
        // Not among the format's operations, as a flush is not: what it frees may be free at its end.
        let _operation = self.inflight.guard();
        self.check_open()?;
        if !self.writable() {
            return Err(self.read_only());
        }
        let _alone = self.writing.write();
        change(&*self.format).map_err(|e| self.name(e))
    }

    /// Waits for the operations in flight, flushes, leaves the image clean and lets its locks go. What comes later is
    /// [`ErrorKind::Closed`]. Closing again does nothing and returns what the first time came to.
    pub fn close(&self) -> Result<()> {
        self.end(make_clean, Self::unlock)
    }

    /// The same for who does not need what it wrote last, as work that was stopped: guest data is left to the system where no metadata waits for it.
    pub fn leave(&self) -> Result<()> {
        self.end(|format| if format.is_settled() { Ok(()) } else { make_clean(format) }, Self::unlock)
    }

    /// The same for who goes on with the image's storage: that stays locked.
    pub(super) fn close_locked(&self) -> Result<()> {
        self.end(make_clean, |_| ())
    }

    fn unlock(&self) {
        self.format.storage().unlock();
        self.format.data_storage().unlock();
    }

    /// Closes it, unless it is closed: has `make_clean` leave the file as it should be, and `let_go` what holds others off.
    fn end(
        &self,
        make_clean: impl FnOnce(&dyn Format) -> Result<()>,
        let_go: impl FnOnce(&Self),
    ) -> Result<()> {
        let mut closed = self.closed.lock();
        if let Some(result) = &*closed {
            return result.clone();
        }
        self.state.store(CLOSED, Ordering::SeqCst);
        self.wait_idle();
        let mut result = Ok(());
        if self.writable() {
            result = make_clean(&*self.format).map_err(|e| self.name(e));
        }
        self.unpacked.forget(0, u64::MAX);
        if let Base::Image { image, owned: true } = &self.base {
            result = result.and(image.close());
        }
        if let Some(image) = &self.brought {
            result = result.and(image.close());
        }
        *closed = Some(result.clone());
        let_go(self);
        result
    }

    /// Begins an operation that goes on outside of the image.
    pub fn begin(self: &Arc<Self>) -> Result<Operation> {
        let ticket = self.inflight().enter();
        let operation = Operation { image: Arc::clone(self), ticket: Some(ticket) };
        self.check_open().map(|()| operation)
    }

    /// Begins an operation that ends with the guard.
    #[inline]
    pub(super) fn enter(&self) -> Result<Guard<'_>> {
        let guard = self.inflight().guard();
        // After the count, so that `close` either sees the count or this sees its mark.
        self.check_open().map(|()| guard)
    }

    /// Begins an operation that waits for nothing and ends with the guard. It is counted only where space that it reads could
    /// be freed and used again: a closing need not wait for it otherwise.
    #[inline]
    pub(super) fn enter_briefly(&self) -> Result<Option<Guard<'_>>> {
        let guard = self.format.inflight().map(Inflight::guard);
        self.check_open().map(|()| guard)
    }

    #[inline]
    fn check_open(&self) -> Result<()> {
        match self.state.load(Ordering::SeqCst) {
            OPEN => Ok(()),
            state => Err(self.not_open(state)),
        }
    }

    #[cold]
    fn not_open(&self, state: u8) -> Error {
        if state == NO_DATA_FILE {
            return self.name(Error::invalid_input(
                "the image keeps its data in an external data file that was not opened: open the implicit \
                 dependencies or set a data file first",
            ));
        }
        if state == LOCKED {
            let text = "the image is encrypted and was not unlocked: give the secret that opens it";
            return self.name(Error::new(ErrorKind::WrongSecret, text));
        }
        if state == UNCLEAN {
            return self.name(Error::unsupported(
                "the image was not closed cleanly and is repaired when what it names was opened: open the implicit \
                 dependencies first",
            ));
        }
        self.name(Error::new(ErrorKind::Closed, "the image is closed"))
    }

    #[inline]
    fn inflight(&self) -> &Inflight {
        self.format.inflight().unwrap_or(&self.inflight)
    }

    fn wait_idle(&self) {
        let mut pause = Duration::from_micros(20);
        while !(self.inflight.is_idle() && self.inflight().is_idle()) {
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// A range of the disk, checked before anything is done to it.
    #[inline]
    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(self.out_of_range(offset, len)),
        }
    }

    #[cold]
    fn out_of_range(&self, offset: u64, len: u64) -> Error {
        self.name(Error::invalid_input(format!(
            "{len} bytes at offset {offset} pass the end of the disk, which has {} bytes",
            self.size()
        )))
    }

    /// `error` with this image's file, unless it names one already.
    #[cold]
    pub(super) fn name(&self, error: Error) -> Error {
        match self.path() {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

fn make_clean(format: &dyn Format) -> Result<()> {
    format.flush().and_then(|()| format.close())
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.image.inflight().leave(ticket);
        }
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("format", &self.format)
            .field("size", &self.size())
            .field("backing", &self.backing())
            .finish_non_exhaustive()
    }
}
