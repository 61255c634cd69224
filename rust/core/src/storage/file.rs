//! Files and block devices: positional system calls straight on the caller's memory.

mod attributes;
mod names;
pub(in crate::storage) mod sys;

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::{
    Capabilities, Identity, Limits, Lock, Offload, RawRange, Run, Storage, StorageOpenOptions, ZeroMode, lock,
};
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, ErrorKind, Result};
use sys::{Allocate, DirectIo, Seek};

/// Alignment that every file system with direct I/O is content with, in bytes.
const SAFE_ALIGNMENT: u32 = 4096;

/// The end of the longest file there can be.
const OFFSET_MAX: u64 = i64::MAX.cast_unsigned();

/// Most of what file systems share are blocks of so many bytes.
const CLONED: u64 = 4096;

/// Bytes of zeroes that are written at once where the file system cannot make them itself.
const ZEROES: usize = 64 << 10;

/// What [`File::create_sync`] does with a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMode {
    /// Leave it alone and fail (`EEXIST`).
    New,
    /// Empty it, once its locks are had.
    Replace,
}

/// A regular file or a block device.
///
/// Buffered reads and writes are one `pread(v)` or `pwrite(v)` each; zeroes and holes are made with `fallocate` where
/// the file system has it. With [`direct`](StorageOpenOptions::direct) requests meet [`limits`](Storage::limits).
#[derive(Debug)]
pub struct File {
    handle: fs::File,
    path: PathBuf,
    kind: Kind,
    writable: bool,
    /// What is written is to get to the medium when that is asked for.
    durable: AtomicBool,
    direct: bool,
    limits: Limits,
    identity: Identity,
    /// The process that took image locks, if one did.
    lock_owner: Option<u32>,
    /// `preadv2(RWF_NOWAIT)` is worth a try.
    nowait: AtomicBool,
    set_aside: Support,
    zero_range: Support,
    punch_hole: Support,
    discard: Support,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    BlockDevice {
        /// Bytes of its logical block: it takes no less at a time.
        block: u32,
    },
}

/// What is known of an operation that only some file systems have.
#[derive(Debug)]
struct Support(AtomicU8);

impl Support {
    const UNKNOWN: u8 = 0;
    const THERE: u8 = 1;
    const MISSING: u8 = 2;

    const fn unknown() -> Self {
        Support(AtomicU8::new(Self::UNKNOWN))
    }

    fn is_missing(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::MISSING
    }

    fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::THERE
    }

    fn set(&self, state: u8) {
        // Most calls confirm what is known: no write to a shared cache line for that.
        if self.0.load(Ordering::Relaxed) != state {
            self.0.store(state, Ordering::Relaxed);
        }
    }
}

impl File {
    /// Opens the file that the options name.
    ///
    /// Anything but a regular file or a block device is refused, and nothing of this waits for the other end of a FIFO.
    /// With [`Lock::Auto`] a conflicting user of the image is [`ErrorKind::Locked`].
    #[expect(clippy::needless_pass_by_value, reason = "options are made for one opening")]
    pub fn open_sync(options: StorageOpenOptions) -> Result<Self> {
        let path = options.get_filename().ok_or_else(|| {
            Error::invalid_input("a file storage needs a file name (StorageOpenOptions::filename)")
        })?;
        let mut how = fs::OpenOptions::new();
        how.read(true).write(options.get_write());
        Self::open_with(&mut how, path, &options, 0).map_err(|error| error.in_file(path))
    }

    /// Creates an empty file, open for reading and writing, buffered, with a writer's image locks.
    ///
    /// A file that is there already is only ever emptied with [`CreateMode::Replace`], and not before nobody else
    /// uses it as an image; a block device keeps its content.
    pub fn create_sync(path: impl AsRef<Path>, mode: CreateMode) -> Result<Self> {
        let path = path.as_ref();
        let mut how = fs::OpenOptions::new();
        how.read(true).write(true);
        match mode {
            CreateMode::New => how.create_new(true),
            CreateMode::Replace => how.create(true).truncate(false),
        };
        let file = Self::open_with(&mut how, path, &StorageOpenOptions::new().write(true), 0)
            .map_err(|error| error.in_file(path))?;
        if file.kind == Kind::Regular {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Gives this file the access mode of `other`, in whose place it is to stand, and, as far as this process may, its owner and group, its access
    /// list, its security label and the user's extended attributes.
    pub fn take_after(&self, other: &File) -> Result<()> {
        let taken = other.handle.metadata().and_then(|metadata| {
            let group = Some(metadata.gid());
            // Few may give files away; a group of one's own everybody may choose.
            let _ = fchown(&self.handle, Some(metadata.uid()), group)
                .or_else(|_| fchown(&self.handle, None, group));
            self.handle.set_permissions(metadata.permissions())?;
            // After the mode, which changes what an access list lets groups do, and after the owner, who decides whom the list is beside.
            attributes::take_over(&other.handle, &self.handle);
            Ok(())
        });
        taken.map_err(|error| Error::io("set the mode", error).in_file(&self.path))
    }

    /// What [`Storage::identity`] would be of the file at `path`; `None` where there is no such file.
    pub(crate) fn identity_of(path: &Path) -> Option<Identity> {
        fs::metadata(path).ok().map(|metadata| identity(&metadata))
    }

    /// Whether this is a block device, whose length is given.
    pub fn is_block_device(&self) -> bool {
        self.kind != Kind::Regular
    }

    /// Whether [`sync`](Storage::sync) waits for the medium from now on, for all that was ever written: who makes a file that nobody sees before it is
    /// whole needs no barrier until then. It is given when the file is opened, see [`StorageOpenOptions::durable`].
    pub(crate) fn set_durable(&self, durable: bool) {
        self.durable.store(durable, Ordering::Relaxed);
    }

    fn is_durable(&self) -> bool {
        self.writable && self.durable.load(Ordering::Relaxed)
    }

    /// Whether there is a block device at `path`.
    pub(crate) fn is_device(path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
    }

    /// Opens what is at `path` to be overwritten, buffered, with a writer's image locks.
    ///
    /// A block device that the system itself uses (one that is mounted or swapped to, or a part of another one) is refused.
    pub(crate) fn open_to_replace(path: &Path) -> Result<Self> {
        let mut how = fs::OpenOptions::new();
        how.read(true).write(true);
        let alone = if Self::is_device(path) { libc::O_EXCL } else { 0 };
        Self::open_with(&mut how, path, &StorageOpenOptions::new().write(true), alone)
            .map_err(|error| error.in_file(path))
    }

    fn open_with(
        how: &mut fs::OpenOptions,
        path: &Path,
        options: &StorageOpenOptions,
        flags: libc::c_int,
    ) -> Result<Self> {
        let direct = match (options.get_direct(), sys::DIRECT) {
            (false, _) => 0,
            (true, Some(flag)) => flag,
            (true, None) => {
                return Err(Error::unsupported("direct I/O is not there on this system; open it buffered"));
            }
        };
        let writable = options.get_write();
        let file =
            how.custom_flags(sys::OPEN_FLAGS | direct | flags).open(path).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::EINVAL) if direct != 0 => no_direct_io(),
                    Some(libc::EBUSY) if flags & libc::O_EXCL != 0 => Error::io(
                        "open a device that is mounted, swapped to, or a part of another one",
                        error,
                    ),
                    _ => Error::io(if writable { "open for writing" } else { "open" }, error),
                }
            })?;
        let metadata = file.metadata().map_err(|error| Error::io("stat", error))?;
        let kind = kind_of(&file, metadata.file_type())?;
        sys::make_blocking(&file).map_err(|error| Error::io("set file flags", error))?;
        let limits = if options.get_direct() { direct_limits(&file, kind)? } else { Limits::default() };
        let lock_owner = match options.get_lock() {
            Lock::Auto => {
                lock::acquire(&file, writable)?;
                Some(std::process::id())
            }
            Lock::Off => None,
        };
        Ok(File {
            handle: file,
            path: path.to_owned(),
            kind,
            writable,
            durable: AtomicBool::new(options.get_durable()),
            direct: options.get_direct(),
            limits,
            identity: identity(&metadata),
            lock_owner,
            nowait: AtomicBool::new(cfg!(target_os = "linux") && !options.get_direct()),
            set_aside: Support::unknown(),
            zero_range: Support::unknown(),
            punch_hole: Support::unknown(),
            discard: Support::unknown(),
        })
    }

    #[cold]
    fn failed(&self, what: &str, offset: u64, error: io::Error) -> Error {
        Error::io(what, error).in_file(&self.path).at(offset)
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ReadOnly,
            "the file is open for reading only; open it for writing to change it",
        )
        .in_file(&self.path))
    }

    /// Direct I/O: offset, lengths and memory meet the limits.
    fn check_aligned(&self, iovecs: &[libc::iovec], offset: u64) -> Result<()> {
        if !self.direct {
            return Ok(());
        }
        let Limits { request_alignment: request, memory_alignment: memory } = self.limits;
        let aligned = offset.is_multiple_of(request.into())
            && iovecs.iter().all(|region| {
                region.iov_len.is_multiple_of(request as usize)
                    && region.iov_base.addr().is_multiple_of(memory as usize)
            });
        if aligned { Ok(()) } else { Err(self.misaligned(offset)) }
    }

    fn check_range_aligned(&self, offset: u64, len: u64) -> Result<()> {
        let unit = u64::from(self.limits.request_alignment);
        if offset.is_multiple_of(unit) && len.is_multiple_of(unit) {
            return Ok(());
        }
        Err(self.misaligned(offset))
    }

    #[cold]
    fn misaligned(&self, offset: u64) -> Error {
        let Limits { request_alignment: request, memory_alignment: memory } = self.limits;
        Error::invalid_input(format!(
            "direct I/O here needs offsets and lengths in multiples of {request} bytes and memory aligned to {memory}"
        ))
        .in_file(&self.path)
        .at(offset)
    }

    /// Goes on after the first call of a read, which gave `first`.
    #[cold]
    fn read_rest(&self, mut bufs: IoVectorMut<'_>, offset: u64, first: io::Result<usize>) -> Result<()> {
        let mut position = offset;
        let mut result = first;
        loop {
            match result {
                Ok(read) => {
                    let _ = bufs.take_front(read);
                    position += read as u64;
                    // Direct reads end in the middle of a block only where the file does.
                    let ended = read == 0 || !position.is_multiple_of(self.limits.request_alignment.into());
                    if ended || bufs.is_empty() {
                        bufs.fill_zero();
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read", position, error)),
            }
            result = sys::read(&self.handle, &mut bufs, position);
        }
    }

    /// Goes on after the first call of a write, which gave `first`.
    #[cold]
    fn write_rest(&self, mut bufs: IoVector<'_>, offset: u64, first: io::Result<usize>) -> Result<()> {
        let mut position = offset;
        let mut result = first;
        loop {
            match result {
                Ok(0) => return Err(self.failed("write", position, io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    let _ = bufs.take_front(written);
                    position += written as u64;
                    if bufs.is_empty() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("write", position, error)),
            }
            result = sys::write(&self.handle, &bufs, position);
        }
    }

    /// The part of the range that is inside the file, as (offset, length) above 0.
    fn clip(&self, offset: u64, len: u64) -> Result<Option<(u64, u64)>> {
        let inside = self.len()?.saturating_sub(offset).min(len);
        Ok((inside > 0).then_some((offset, inside)))
    }

    /// Changes the space of a range inside the file with `fallocate`; false where that cannot be done.
    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<bool> {
        let (support, what) = match how {
            Allocate::Length => (&self.set_aside, "make the file longer"),
            Allocate::Space => (&self.set_aside, "set space aside"),
            Allocate::ZeroRange => (&self.zero_range, "write zeroes"),
            Allocate::PunchHole => (&self.punch_hole, "punch a hole"),
        };
        if support.is_missing() {
            return Ok(false);
        }
        match sys::fallocate(&self.handle, how, offset, len) {
            Ok(()) => {
                support.set(Support::THERE);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                support.set(Support::MISSING);
                Ok(false)
            }
            // Some file systems want whole blocks.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
            Err(error) => Err(self.failed(what, offset, error)),
        }
    }

    /// The part of a range whose space can be changed: the whole blocks of a device, and all of it in a file.
    fn blocks(&self, offset: u64, len: u64) -> Range<u64> {
        let unit = match self.kind {
            Kind::Regular => 1,
            Kind::BlockDevice { block } => u64::from(block),
        };
        offset.next_multiple_of(unit)..(offset + len) / unit * unit
    }

    /// Tells a device that these blocks are of no use any more, if it wants to know.
    fn discard_blocks(&self, offset: u64, len: u64) -> Result<()> {
        if self.discard.is_missing() {
            return Ok(());
        }
        match sys::discard_blocks(&self.handle, offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.discard.set(Support::MISSING);
                Ok(())
            }
            done => done.map_err(|error| self.failed("discard", offset, error)),
        }
    }

    /// Writes zeroes to a range inside the file.
    fn write_plain_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let memory = self.limits.memory_alignment as usize;
        let buffer = vec![0; ZEROES + memory];
        let start = buffer.as_ptr().addr().next_multiple_of(memory) - buffer.as_ptr().addr();
        let zeroes = &buffer[start..][..ZEROES];
        // A file may end within a block, which a direct write would fill up.
        let tail = len % u64::from(self.limits.request_alignment);
        let mut done = 0;
        while done < len - tail {
            let part = (len - tail - done).min(ZEROES as u64);
            self.writev_at(zeroes[..part as usize].into(), offset + done)?;
            done += part;
        }
        if tail > 0 {
            let failed = |error| self.failed("write zeroes", offset + done, error);
            let buffered = sys::reopen_buffered(&self.handle).map_err(failed)?;
            std::os::unix::fs::FileExt::write_all_at(&buffered, &zeroes[..tail as usize], offset + done)
                .map_err(failed)?;
        }
        Ok(())
    }
}

/// What tells a file from every other.
fn identity(metadata: &fs::Metadata) -> Identity {
    if metadata.file_type().is_block_device() {
        // Several nodes may lead to one device. No inode has the number 0.
        Identity::of_file(metadata.rdev(), 0)
    } else {
        Identity::of_file(metadata.dev(), metadata.ino())
    }
}

fn kind_of(file: &fs::File, file_type: fs::FileType) -> Result<Kind> {
    if file_type.is_file() {
        return Ok(Kind::Regular);
    }
    if file_type.is_dir() {
        return Err(Error::io("open as an image", io::Error::from_raw_os_error(libc::EISDIR)));
    }
    if file_type.is_block_device() {
        if cfg!(target_os = "linux") {
            let block = sys::logical_block_size(file)
                .map_err(|error| Error::io("ask for the logical block size", error))?;
            return Ok(Kind::BlockDevice { block });
        }
        return Err(Error::unsupported("block devices can be opened on Linux only"));
    }
    let what = if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_char_device() {
        "a character device"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "something else"
    };
    Err(Error::invalid_input(format!("this is {what}; images are in regular files and block devices")))
}

#[cold]
fn no_direct_io() -> Error {
    Error::unsupported("the file system has no direct I/O on this file; open it buffered")
}

fn direct_limits(file: &fs::File, kind: Kind) -> Result<Limits> {
    match sys::direct_io(file) {
        DirectIo::Needs(limits) => return Ok(limits),
        DirectIo::Missing => return Err(no_direct_io()),
        DirectIo::Unknown => {}
    }
    let alignment = match kind {
        Kind::Regular => SAFE_ALIGNMENT,
        Kind::BlockDevice { block } => block,
    };
    Ok(Limits { request_alignment: alignment, memory_alignment: alignment.max(SAFE_ALIGNMENT) })
}

/// Bytes of a request of `len` at `offset` that are below the largest offset a file can have.
fn addressable(offset: u64, len: usize) -> usize {
    OFFSET_MAX.saturating_sub(offset).min(len as u64) as usize
}

impl Drop for File {
    /// Lets the locks go now: a child that another thread is just starting may have a copy of the descriptor until it
    /// runs its program, and locks end with the last copy.
    fn drop(&mut self) {
        self.unlock();
    }
}

impl Storage for File {
    fn readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        self.check_aligned(bufs.as_iovecs(), offset)?;
        let len = bufs.len();
        let there = addressable(offset, len);
        if there < len {
            let mut front = bufs.take_front(there);
            bufs.fill_zero();
            let first = sys::read(&self.handle, &mut front, offset.min(OFFSET_MAX));
            return self.read_rest(front, offset, first);
        }
        match sys::read(&self.handle, &mut bufs, offset) {
            Ok(read) if read == len => Ok(()),
            other => self.read_rest(bufs, offset, other),
        }
    }

    fn try_readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        if !self.nowait.load(Ordering::Relaxed) || addressable(offset, bufs.len()) < bufs.len() {
            return Ok(0);
        }
        sys::read_nowait(&self.handle, &mut bufs, offset).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
            io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput => {
                self.nowait.store(false, Ordering::Relaxed);
                Ok(0)
            }
            _ => Err(self.failed("read", offset, error)),
        })
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        self.check_writable()?;
        self.check_aligned(bufs.as_iovecs(), offset)?;
        let len = bufs.len();
        if len == 0 {
            return Ok(());
        }
        if addressable(offset, len) < len {
            return Err(self.failed("write", offset, io::Error::from_raw_os_error(libc::EFBIG)));
        }
        match sys::write(&self.handle, &bufs, offset) {
            Ok(written) if written == len => Ok(()),
            other => self.write_rest(bufs, offset, other),
        }
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check_writable()?;
        self.check_range_aligned(offset, len)?;
        let Some((offset, len)) = self.clip(offset, len)? else { return Ok(()) };
        let Range { start, end } = self.blocks(offset, len);
        let done = start < end
            && match mode {
                ZeroMode::Unmap => {
                    self.allocate(Allocate::PunchHole, start, end - start)?
                        || self.allocate(Allocate::ZeroRange, start, end - start)?
                }
                ZeroMode::Keep => self.allocate(Allocate::ZeroRange, start, end - start)?,
            };
        if !done {
            return self.write_plain_zeroes(offset, len);
        }
        self.write_plain_zeroes(offset, start - offset)?;
        self.write_plain_zeroes(end, offset + len - end)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        self.check_range_aligned(offset, len)?;
        let Some((offset, len)) = self.clip(offset, len)? else { return Ok(()) };
        let Range { start, end } = self.blocks(offset, len);
        if start >= end {
            return Ok(());
        }
        if self.is_block_device() {
            // Punching a hole would do, but a device that cannot unmap writes zeroes then.
            return self.discard_blocks(start, end - start);
        }
        self.allocate(Allocate::PunchHole, start, end - start).map(drop)
    }

    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        // A device's space is its own affair.
        let Some((offset, len)) = self.clip(offset, len)?.filter(|_| self.kind == Kind::Regular) else {
            return Ok(());
        };
        if self.allocate(Allocate::Space, offset, len)? {
            return Ok(());
        }
        Err(Error::unsupported("the file system cannot set space aside without writing to it")
            .in_file(&self.path))
    }

    fn len(&self) -> Result<u64> {
        sys::seek(&self.handle, Seek::End)
            .map_err(|error| Error::io("ask for the length", error).in_file(&self.path))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.check_writable()?;
        if self.is_block_device() {
            return Err(Error::unsupported("a block device has the length it has").in_file(&self.path));
        }
        if len == 0 && self.len()? == 0 {
            // ext4 writes a file out when it is closed once it was cut to nothing, even from nothing.
            return Ok(());
        }
        self.handle.set_len(len).map_err(|error| self.failed("change the length", len, error))
    }

    fn grow(&self, len: u64) -> Result<()> {
        self.check_writable()?;
        // One call, which no write can come between; a length that was looked at first could cut what was written meanwhile.
        if self.kind == Kind::Regular && len > 0 {
            self.allocate(Allocate::Length, len - 1, 1)?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        if !self.is_durable() {
            return Ok(());
        }
        self.handle.sync_data().map_err(|error| Error::io("sync", error).in_file(&self.path))
    }

    fn write_out(&self, offset: u64, len: u64) -> Result<()> {
        let Some((offset, len)) = self.clip(offset, len)?.filter(|_| self.is_durable()) else {
            return Ok(());
        };
        sys::write_out(&self.handle, offset, len)
            .map_err(|error| Error::io("sync", error).in_file(&self.path))
    }

    fn let_go(&self, offset: u64, len: u64) {
        sys::let_go(&self.handle, offset, len);
    }

    fn begin_sync(&self) {
        sys::begin_writeback(&self.handle);
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    /// `discard_zeroes` becomes true once a discard has shown that the file system makes holes.
    fn capabilities(&self) -> Capabilities {
        let regular = self.kind == Kind::Regular;
        Capabilities {
            write: self.writable,
            fast_zeroes: self.writable && cfg!(target_os = "linux") && !self.zero_range.is_missing(),
            discard_zeroes: self.writable && regular && self.punch_hole.is_there(),
            resize: self.writable && regular,
        }
    }

    fn run_at(&self, offset: u64, len: u64) -> Result<Run> {
        let whole = |data| Ok(Run { len, data });
        if offset >= OFFSET_MAX {
            return whole(false);
        }
        let failed = |error| self.failed("look for data", offset, error);
        match sys::seek(&self.handle, Seek::Data(offset)) {
            Ok(data) if data > offset => Ok(Run { len: len.min(data - offset), data: false }),
            Ok(_) => {
                let hole = sys::seek(&self.handle, Seek::Hole(offset)).map_err(failed)?;
                // A write from elsewhere may come between the two calls; a run is never empty.
                Ok(Run { len: len.min(hole.saturating_sub(offset).max(1)), data: true })
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ENXIO) => whole(false),
                Some(libc::EINVAL | libc::EOPNOTSUPP) => whole(true),
                _ => Err(failed(error)),
            },
        }
    }

    /// A device takes up nothing of the file system that its name is in.
    fn allocated(&self) -> Result<Option<u64>> {
        let metadata =
            self.handle.metadata().map_err(|error| Error::io("stat", error).in_file(&self.path))?;
        Ok(Some(metadata.blocks() * 512))
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity.clone())
    }

    fn check_named(&self) -> Result<()> {
        match self.handle.metadata() {
            Ok(metadata) if metadata.nlink() == 0 => {
                let removed = io::Error::from_raw_os_error(libc::ENOENT);
                Err(Error::io("removed meanwhile", removed).in_file(&self.path))
            }
            _ => Ok(()),
        }
    }

    fn unlock(&self) {
        // A process forked off must not give up the locks that its parent goes on to need.
        if self.lock_owner == Some(std::process::id()) {
            lock::release(&self.handle);
        }
    }

    fn copy_from(&self, source: RawRange, to: u64, how: Offload) -> u64 {
        let end = |offset: u64| offset.checked_add(source.len).is_some_and(|end| end <= OFFSET_MAX);
        if !self.writable || self.is_block_device() || source.len == 0 || !end(source.offset) || !end(to) {
            return 0;
        }
        match how {
            Offload::Share => {
                if sys::clone(&self.handle, source, to).is_ok() {
                    return source.len;
                }
                // A range that does not end with a block of the file system is shared only at the ends of both files.
                let len = source.len / CLONED * CLONED;
                let most = RawRange { len, ..source };
                let again = len > 0 && len < source.len && sys::clone(&self.handle, most, to).is_ok();
                if again { len } else { 0 }
            }
            Offload::Copy => {
                let mut done = 0;
                while done < source.len {
                    let rest = RawRange { offset: source.offset + done, len: source.len - done, ..source };
                    match sys::copy(&self.handle, rest, to + done) {
                        Ok(copied) if copied > 0 => done += copied,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        // The end of the source, or something that the caller meets, too.
                        _ => break,
                    }
                }
                done
            }
        }
    }

    fn raw_fd(&self, offset: u64, _: u64) -> Option<(RawFd, u64)> {
        Some((self.handle.as_raw_fd(), offset))
    }
}
