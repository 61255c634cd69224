//! Bytes at offsets. No word of a format here.

/// What a wrapper answers as the storage inside of it (`self.inner`) does.
macro_rules! answers_of_inner {
    () => {
        fn len(&self) -> $crate::error::Result<u64> {
            self.inner.len()
        }

        fn capabilities(&self) -> $crate::storage::Capabilities {
            self.inner.capabilities()
        }

        fn allocated(&self) -> $crate::error::Result<Option<u64>> {
            self.inner.allocated()
        }

        fn path(&self) -> Option<&std::path::Path> {
            self.inner.path()
        }

        fn position(&self, offset: u64) -> Option<u64> {
            self.inner.position(offset)
        }

        fn begin_sync(&self) {
            self.inner.begin_sync();
        }

        fn identity(&self) -> Option<$crate::storage::Identity> {
            self.inner.identity()
        }

        fn check_named(&self) -> $crate::error::Result<()> {
            self.inner.check_named()
        }

        fn unlock(&self) {
            self.inner.unlock();
        }
    };
}
pub(crate) use answers_of_inner;

pub(crate) mod encrypted;
pub mod file;
mod identity;
pub mod latched;
mod lock;
pub mod memory;
pub mod null;
pub mod slice;
pub mod throttled;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
pub mod uring;

use std::fmt;
use std::path::{Path, PathBuf};

pub use self::identity::Identity;
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, Result};

/// What a storage asks of requests, all powers of two, in bytes. [`access`](crate::access) meets it, once, for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths of requests are multiples of this (1: any).
    pub request_alignment: u32,
    /// Buffers start at multiples of this (1: anywhere).
    pub memory_alignment: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { request_alignment: 1, memory_alignment: 1 }
    }
}

/// What a storage can do beyond reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a storage, read by name")]
pub struct Capabilities {
    /// It was opened for writing.
    pub write: bool,
    /// [`Storage::write_zeroes`] is cheaper than writing zeroes.
    pub fast_zeroes: bool,
    /// [`Storage::discard`] gives space back, and what was discarded reads as zeroes.
    pub discard_zeroes: bool,
    /// [`Storage::set_len`] works.
    pub resize: bool,
}

/// What [`Storage::write_zeroes`] may do to the space behind the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// Keep the space allocated.
    Keep,
    /// Give it back where that is possible.
    Unmap,
}

/// How a storage may take over bytes of a file, see [`Storage::copy_from`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// By sharing the file's space, which costs neither time nor space (reflink).
    Share,
    /// By any means that the system has; one of them is to move the bytes in the kernel.
    Copy,
}

/// Bytes of a file that a storage gave the descriptor of, see [`Storage::raw_fd`].
#[cfg(unix)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRange {
    /// The descriptor; it stays open meanwhile.
    pub fd: std::os::fd::RawFd,
    /// Offset in the file (bytes).
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A run of one kind in a storage, see [`Storage::run_at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes from the offset asked about.
    pub len: u64,
    /// Whether the run holds data; otherwise it is a hole, which reads as zeroes.
    pub data: bool,
}

/// A positional, shared, thread-safe array of bytes.
///
/// # Contract (the conformance suite in `rust/testkit` holds every storage to it)
///
/// - Requests need no lock of the caller's: any number may run at once. Two that overlap have the
///   effect of some mix of both on the overlap, and of each where they do not.
/// - A read fills the whole vector; what lies past [`len`](Storage::len) reads as zeroes. It never ends short.
/// - A write takes the whole vector or fails; a failed write may have had any part of its effect.
///   A write past the end makes the storage longer (where it can be resized); bytes between read as zeroes.
/// - A write is seen by every read that starts after it returned. It is durable only after a
///   [`sync`](Storage::sync) that *started* after it returned has succeeded. Before that any subset of the
///   sectors (512 bytes) written since the last sync may survive a crash.
/// - `write_zeroes` leaves zeroes; `discard` leaves zeroes or what was there (see [`Capabilities::discard_zeroes`]);
///   neither changes the length. Parts past the end are ignored. `allocate_at` changes no byte and no length either.
/// - Requests meet [`limits`](Storage::limits); what does not is an error, never a partial effect.
/// - After a failed `sync` nothing written since the last good one may be called durable.
///   No later `sync` makes up for it: callers stop writing (`Latched`).
pub trait Storage: fmt::Debug + Send + Sync {
    /// Fills `bufs` from `offset` on (bytes).
    fn readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<()>;

    /// Fills what can be had without waiting for a device and says how many bytes from the front that
    /// were; never more than a copy's worth of work. 0 where nothing is at hand or the storage cannot tell.
    fn try_readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        let _ = (bufs, offset);
        Ok(0)
    }

    /// Writes `bufs` from `offset` on (bytes).
    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()>;

    /// Makes `len` bytes from `offset` on read as zeroes.
    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()>;

    /// Tells the storage that `len` bytes from `offset` on are of no use any more.
    fn discard_at(&self, offset: u64, len: u64) -> Result<()>;

    /// Sets space aside for `len` bytes from `offset` on, so that writing them cannot fail for want of it later. What is there stays.
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the storage cannot do that without writing.
    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Err(Error::unsupported("this storage cannot set space aside without writing to it"))
    }

    /// Length in bytes.
    fn len(&self) -> Result<u64>;

    /// Whether there is no byte in it.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the storage to `len` bytes, or makes it longer with zeroes.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Makes the storage at least `len` bytes long, with zeroes, and never cuts: other requests may make it longer meanwhile. Where the storage cannot
    /// promise that, it does nothing.
    fn grow(&self, len: u64) -> Result<()> {
        if self.capabilities().resize && self.len()? < len { self.set_len(len) } else { Ok(()) }
    }

    /// Makes everything that was written before this call durable (`fdatasync`).
    fn sync(&self) -> Result<()>;

    /// Sends what was written on its way to the medium and does not wait for it to get there, so that a sync that follows has less to wait
    /// for. It promises nothing, and what fails is the sync's to tell.
    fn begin_sync(&self) {}

    /// Sends what was written of a range on its way, too, and waits until that got there: so a wait for the medium can come in pieces, behind which
    /// [`sync`](Storage::sync) has little left to do. It makes nothing durable; its failure is like one of `sync`.
    fn write_out(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Nobody is about to read the bytes of a range: memory need not hold them once they are on the medium.
    fn let_go(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Alignments to keep.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Data or hole at `offset` (below the length), and how far that goes, at most `len` bytes; where it cannot tell, data.
    fn run_at(&self, offset: u64, len: u64) -> Result<Run> {
        let _ = offset;
        Ok(Run { len, data: true })
    }

    /// Bytes it takes up on its medium, where that can be told.
    fn allocated(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// The file behind it, where there is one: implicit references are resolved against it and errors name it.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Where in that file the byte at `offset` is, if it is there as it is.
    fn position(&self, offset: u64) -> Option<u64> {
        Some(offset)
    }

    /// What of which file it is, where that can be told, for the detection of cycles.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// An error (`ENOENT`) if what is written here is lost with the last descriptor: the file behind it was removed meanwhile.
    fn check_named(&self) -> Result<()> {
        Ok(())
    }

    /// Lets go of the image locks, where it holds any: the image was closed and nothing is written through this
    /// storage any more, though its owner may keep it for a while.
    fn unlock(&self) {}

    /// A descriptor on which `io_uring` may do what [`readv_at`](Storage::readv_at) does with these `len` bytes at `offset`, where
    /// there is one, and the offset of the bytes in it. Requests on it keep [`raw_limits`](Storage::raw_limits).
    #[cfg(unix)]
    fn raw_fd(&self, offset: u64, len: u64) -> Option<(std::os::fd::RawFd, u64)> {
        let _ = (offset, len);
        None
    }

    /// Fills itself from `to` on with bytes of a file, in a way that does not move them through memory here, and says how many from the front that
    /// were. What it did not do is as it was or has what was to come there: the caller, who reads and writes the rest, meets the reason, if it is one.
    #[cfg(unix)]
    fn copy_from(&self, source: RawRange, to: u64, how: Offload) -> u64 {
        let _ = (source, to, how);
        0
    }

    /// What requests on [`raw_fd`](Storage::raw_fd) keep, which may be more than [`limits`](Storage::limits) asks for.
    fn raw_limits(&self) -> Limits {
        self.limits()
    }
}

/// How to open a storage: a file name, or another kind's settings.
#[derive(Clone, Debug, Default)]
pub struct StorageOpenOptions {
    filename: Option<PathBuf>,
    write: bool,
    direct: bool,
    lock: Lock,
    unsynced: bool,
}

/// Whether opening takes the locks that keep QEMU and other users out (OFD locks on QEMU's bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// Take them; a conflict is [`ErrorKind::Locked`](crate::ErrorKind::Locked). Where locks cannot be had, go on without.
    #[default]
    Auto,
    /// Take none.
    Off,
}

impl StorageOpenOptions {
    /// Read-only, buffered, locked, and no file name yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The file to open.
    #[must_use]
    pub fn filename(mut self, filename: impl Into<PathBuf>) -> Self {
        self.filename = Some(filename.into());
        self
    }

    /// Open for writing too.
    #[must_use]
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Bypass the page cache (`O_DIRECT`).
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Whether to take image locks.
    #[must_use]
    pub fn lock(mut self, lock: Lock) -> Self {
        self.lock = lock;
        self
    }

    /// Whether [`Storage::sync`] waits for the medium (it does, unless this says no). Without that a loss of power may leave anything
    /// of what was written: for what can be made again.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.unsynced = !durable;
        self
    }

    /// The file name, where one was given.
    pub fn get_filename(&self) -> Option<&Path> {
        self.filename.as_deref()
    }

    /// Whether it is to be opened for writing.
    pub fn get_write(&self) -> bool {
        self.write
    }

    /// Whether the page cache is bypassed.
    pub fn get_direct(&self) -> bool {
        self.direct
    }

    /// Whether image locks are taken.
    pub fn get_lock(&self) -> Lock {
        self.lock
    }

    /// Whether [`Storage::sync`] waits for the medium.
    pub fn get_durable(&self) -> bool {
        !self.unsynced
    }
}

#[cfg(test)]
pub(crate) mod simulated;
