//! The system calls behind [`File`](super::File) and the image locks, each with a safe signature.
//!
//! Offsets are below `i64::MAX`, the largest that files have. What a platform lacks answers [`io::ErrorKind::Unsupported`]; callers then go the portable way.

#[cfg(target_os = "linux")]
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::buffer::{IoVector, IoVectorMut};
use crate::storage::{Limits, RawRange};

/// Regions that one call takes (`IOV_MAX` of Linux, the BSDs and macOS).
const IOV_MAX: libc::c_int = 1024;

/// How many of these regions one call takes.
fn regions(iovecs: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(iovecs.len()).map_or(IOV_MAX, |regions| regions.min(IOV_MAX))
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads into the first regions of `bufs`; the count may be short.
///
/// One region goes by `pread`: the kernel spends some 40 ns less on it than on a vector of one.
pub(super) fn read(file: &fs::File, bufs: &mut IoVectorMut<'_>, offset: u64) -> io::Result<usize> {
    let (fd, offset) = (file.as_raw_fd(), offset.cast_signed() as libc::off_t);
    count(match bufs.as_iovecs() {
        // SAFETY: the vector owns the right to write its regions, which live as long as it.
        [region] => unsafe { libc::pread(fd, region.iov_base, region.iov_len, offset) },
        // SAFETY: as above, and that many regions are there.
        iovecs => unsafe { libc::preadv(fd, iovecs.as_ptr(), regions(iovecs), offset) },
    })
}

/// Writes the first regions of `bufs`; the count may be short.
pub(super) fn write(file: &fs::File, bufs: &IoVector<'_>, offset: u64) -> io::Result<usize> {
    let (fd, offset) = (file.as_raw_fd(), offset.cast_signed() as libc::off_t);
    count(match bufs.as_iovecs() {
        // SAFETY: the regions are readable as long as the vector lives.
        [region] => unsafe { libc::pwrite(fd, region.iov_base, region.iov_len, offset) },
        // SAFETY: as above, and that many regions are there.
        iovecs => unsafe { libc::pwritev(fd, iovecs.as_ptr(), regions(iovecs), offset) },
    })
}

/// As [`read`], but only what needs no waiting for a device; `EAGAIN` where that is nothing.
#[cfg(target_os = "linux")]
pub(super) fn read_nowait(file: &fs::File, bufs: &mut IoVectorMut<'_>, offset: u64) -> io::Result<usize> {
    let iovecs = bufs.as_iovecs();
    // Not by the C library, whose function is a cancellation point and one frame more. A frame between here and the caller costs some
    // 8 ns where the kernel's own returns are made safe from speculation: after it none of the caller's is predicted.
    // The kernel takes the offset in two halves, and on 64-bit machines all of it from the first.
    // SAFETY: as in `read`.
    #[cfg(target_pointer_width = "64")]
    return Ok(unsafe {
        syscalls::syscall!(
            syscalls::Sysno::preadv2,
            file.as_raw_fd(),
            iovecs.as_ptr(),
            regions(iovecs),
            offset,
            0,
            libc::RWF_NOWAIT
        )?
    });
    // SAFETY: as in `read`.
    #[cfg(not(target_pointer_width = "64"))]
    count(unsafe {
        let offset = offset.cast_signed() as libc::off_t;
        libc::preadv2(file.as_raw_fd(), iovecs.as_ptr(), regions(iovecs), offset, libc::RWF_NOWAIT)
    })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read_nowait(_: &fs::File, _: &mut IoVectorMut<'_>, _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Has the kernel begin to write out what is changed in memory.
#[cfg(target_os = "linux")]
pub(super) fn begin_writeback(file: &fs::File) {
    // SAFETY: no memory is involved. A failure is seen by the next sync, which has all of it to do then.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn begin_writeback(_: &fs::File) {}

/// Has the kernel write out what is changed in memory of a range, and waits for that.
#[cfg(target_os = "linux")]
pub(super) fn write_out(file: &fs::File, offset: u64, len: u64) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: no memory is involved.
    done(unsafe { libc::sync_file_range(file.as_raw_fd(), offset.cast_signed(), len.cast_signed(), flags) })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn write_out(_: &fs::File, _: u64, _: u64) -> io::Result<()> {
    Ok(())
}

/// Has the kernel drop what it holds in memory of a range and has written.
#[cfg(target_os = "linux")]
pub(super) fn let_go(file: &fs::File, offset: u64, len: u64) {
    let (offset, len) = (offset.cast_signed(), len.cast_signed());
    // SAFETY: no memory is involved. It is advice.
    let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn let_go(_: &fs::File, _: u64, _: u64) {}

/// Where a seek goes.
#[derive(Clone, Copy)]
pub(super) enum Seek {
    /// To the end.
    End,
    /// To the first data at or after this offset.
    Data(u64),
    /// To the first hole at or after this offset; the end of the file counts as one.
    Hole(u64),
}

/// The offset that the seek leads to. It moves the descriptor's own position, which nothing here uses.
pub(super) fn seek(file: &fs::File, to: Seek) -> io::Result<u64> {
    let (offset, whence) = match to {
        Seek::End => (0, libc::SEEK_END),
        Seek::Data(offset) => (offset.cast_signed(), libc::SEEK_DATA),
        Seek::Hole(offset) => (offset.cast_signed(), libc::SEEK_HOLE),
    };
    // SAFETY: no memory is involved.
    let position = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    u64::try_from(position).map_err(|_| io::Error::last_os_error())
}

/// What becomes of the space behind a range without writing it; the length of the file stays, but for `Length`.
#[derive(Clone, Copy)]
pub(super) enum Allocate {
    /// There is some, and the file reaches to its end; what is there stays.
    Length,
    /// There is some; what is there stays.
    Space,
    /// Zeroes on allocated space.
    ZeroRange,
    /// A hole.
    PunchHole,
}

/// Changes the space of `len` bytes from `offset` on.
#[cfg(target_os = "linux")]
pub(super) fn fallocate(file: &fs::File, how: Allocate, offset: u64, len: u64) -> io::Result<()> {
    let mode = match how {
        Allocate::Length => 0,
        Allocate::Space => libc::FALLOC_FL_KEEP_SIZE,
        Allocate::ZeroRange => libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_ZERO_RANGE,
        Allocate::PunchHole => libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
    };
    loop {
        // SAFETY: no memory is involved.
        match done(unsafe {
            libc::fallocate(file.as_raw_fd(), mode, offset.cast_signed() as _, len.cast_signed() as _)
        }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn fallocate(_: &fs::File, _: Allocate, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Has `file` share the space of these bytes, from `to` on.
#[cfg(target_os = "linux")]
pub(super) fn clone(file: &fs::File, source: RawRange, to: u64) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: source.fd.into(),
        src_offset: source.offset,
        src_length: source.len,
        dest_offset: to,
    };
    // SAFETY: FICLONERANGE reads one `struct file_clone_range`.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::FICLONERANGE, &raw const range) })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn clone(_: &fs::File, _: RawRange, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Has the kernel copy these bytes to `to` on in `file`; the count may be short.
#[cfg(target_os = "linux")]
pub(super) fn copy(file: &fs::File, source: RawRange, to: u64) -> io::Result<u64> {
    let (mut from, mut to) = (source.offset.cast_signed(), to.cast_signed());
    let len = usize::try_from(source.len).unwrap_or(usize::MAX);
    // SAFETY: the kernel reads and advances two 64-bit offsets.
    let copied =
        unsafe { libc::copy_file_range(source.fd, &raw mut from, file.as_raw_fd(), &raw mut to, len, 0) };
    count(copied).map(|copied| copied as u64)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn copy(_: &fs::File, _: RawRange, _: u64) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives the file at `from` the name `to` where nothing has it.
#[cfg(target_os = "linux")]
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (CString::new(from.as_os_str().as_bytes())?, CString::new(to.as_os_str().as_bytes())?);
    // By its number: not every C library has a function for it.
    // SAFETY: both are C strings.
    let renamed = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    count(renamed as isize).map(drop)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn rename_new(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Flags for [`std::fs::OpenOptions`]: never hang on a FIFO, never become a terminal's process.
pub(super) const OPEN_FLAGS: libc::c_int = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Flag that bypasses the page cache, where the platform has one.
#[cfg(target_os = "linux")]
pub(super) const DIRECT: Option<libc::c_int> = Some(libc::O_DIRECT);
#[cfg(not(target_os = "linux"))]
pub(super) const DIRECT: Option<libc::c_int> = None;

/// Takes `O_NONBLOCK` away again: with it a ring would answer `EAGAIN` instead of waiting.
pub(super) fn make_blocking(file: &fs::File) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    done(flags)?;
    // SAFETY: no memory is involved.
    done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) })
}

/// The same file for writing through the page cache.
#[cfg(target_os = "linux")]
pub(super) fn reopen_buffered(file: &fs::File) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn reopen_buffered(_: &fs::File) -> io::Result<fs::File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A file's own word on direct I/O.
pub(super) enum DirectIo {
    /// It says nothing.
    Unknown,
    /// It has none.
    Missing,
    /// It asks for this.
    Needs(Limits),
}

/// Asks the file (`STATX_DIOALIGN`, Linux 6.1).
#[cfg(target_os = "linux")]
pub(super) fn direct_io(file: &fs::File) -> DirectIo {
    let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string, the buffer is one `struct statx`.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            stat.as_mut_ptr(),
        )
    };
    // SAFETY: zeroed above, and zeroes are a value of the plain C struct.
    let stat = unsafe { stat.assume_init() };
    let (request, memory) = (stat.stx_dio_offset_align, stat.stx_dio_mem_align);
    if result == -1 || stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        DirectIo::Unknown
    } else if request.is_power_of_two() && memory.is_power_of_two() {
        DirectIo::Needs(Limits { request_alignment: request, memory_alignment: memory })
    } else {
        DirectIo::Missing
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn direct_io(_: &fs::File) -> DirectIo {
    DirectIo::Unknown
}

/// Bytes of a block device's logical block.
#[cfg(target_os = "linux")]
pub(super) fn logical_block_size(file: &fs::File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET fills one int.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut size) })?;
    u32::try_from(size).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn logical_block_size(_: &fs::File) -> io::Result<u32> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Tells a block device that `len` bytes from `offset` on, whole blocks, are of no use any more.
#[cfg(target_os = "linux")]
pub(super) fn discard_blocks(file: &fs::File, offset: u64, len: u64) -> io::Result<()> {
    const BLKDISCARD: libc::Ioctl = libc::_IO(0x12, 119);
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit numbers.
    done(unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn discard_blocks(_: &fs::File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn lock_on(start: u64, len: u64, kind: libc::c_int) -> libc::flock {
    // SAFETY: `struct flock` is plain data for which zeroes are a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start.cast_signed() as libc::off_t;
    lock.l_len = len.cast_signed() as libc::off_t;
    lock
}

/// Takes a shared lock on one byte for this open file description; `EAGAIN` where another has an exclusive one.
#[cfg(target_os = "linux")]
pub(in crate::storage) fn lock_shared(file: &fs::File, byte: u64) -> io::Result<()> {
    let lock = lock_on(byte, 1, libc::F_RDLCK);
    // SAFETY: the kernel reads one `struct flock`.
    done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })
}

/// Gives up all locks of this open file description on `len` bytes from `start` on.
#[cfg(target_os = "linux")]
pub(in crate::storage) fn unlock(file: &fs::File, start: u64, len: u64) -> io::Result<()> {
    let lock = lock_on(start, len, libc::F_UNLCK);
    // SAFETY: the kernel reads one `struct flock`.
    done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })
}

/// Whether another open file description holds any lock on that byte.
#[cfg(target_os = "linux")]
pub(in crate::storage) fn is_locked_by_others(file: &fs::File, byte: u64) -> io::Result<bool> {
    let mut lock = lock_on(byte, 1, libc::F_WRLCK);
    // SAFETY: the kernel reads and fills one `struct flock`.
    done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(not(target_os = "linux"))]
pub(in crate::storage) fn lock_shared(_: &fs::File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(in crate::storage) fn is_locked_by_others(_: &fs::File, _: u64) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(in crate::storage) fn unlock(_: &fs::File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
