//! Image locks as QEMU takes them, so that a running VM and this library keep out of each other's images.
//!
//! A user of an image has *permissions* (what it does) and *shared* permissions (what it lets others do).
//! It holds a shared lock on byte 100 + n for each permission n it has and on byte 200 + n for each one it
//! does not share, and then looks whether anybody else has what it does not share, or denies what it has.
//! Locks belong to the open file description (`F_OFD_SETLK`). A process forked off shares that description, if only
//! until it runs another program, so closing does not end the locks: they are given up by [`release`].

use std::fs;
use std::io;
#[cfg(target_os = "linux")]
use std::time::{Duration, Instant};

use super::file::sys;
use crate::error::{Error, ErrorKind, Result};

/// The byte for the first permission that is held.
const HELD: u64 = 100;

/// The byte for the first permission that is denied to others.
const DENIED: u64 = 200;

/// Bytes set aside for either kind.
const PERMISSIONS: u64 = 100;

/// What a user of an image may do, numbered as QEMU numbers its permissions.
#[derive(Clone, Copy)]
enum Permission {
    /// Read, and find it consistent.
    Read = 0,
    /// Change what it reads as.
    Write = 1,
    /// Change its length.
    Resize = 3,
}

impl Permission {
    fn held(self) -> u64 {
        HELD + self as u64
    }

    fn denied(self) -> u64 {
        DENIED + self as u64
    }
}

/// What nobody else may do while an image is open here, as for QEMU's image formats.
const UNSHARED: [Permission; 2] = [Permission::Write, Permission::Resize];

/// Takes the locks of a reader, or of a reader and writer.
///
/// A conflict is [`ErrorKind::Locked`]. Where the system or the file system has no such locks, nothing happens.
pub(super) fn acquire(file: &fs::File, writable: bool) -> Result<()> {
    let held: &[Permission] = if writable {
        &[Permission::Read, Permission::Write, Permission::Resize]
    } else {
        &[Permission::Read]
    };
    let result = lock_then_check(file, held);
    if !matches!(result, Ok(None)) {
        release(file);
    }
    match result {
        Ok(None) => Ok(()),
        Ok(Some(Conflict { what, byte })) => {
            let text = match holder(file, byte) {
                Some(Holder::Ourselves) => {
                    "this very process has it open already, and one of the two uses is for writing: was it \
                     named twice?"
                        .to_owned()
                }
                Some(Holder::Process(who)) => format!("{what}, by {who}; end that use first"),
                None => format!("{what} (a running virtual machine?); end that use first"),
            };
            Err(Error::new(ErrorKind::Locked, format!("the image is locked: {text}")))
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Err(Error::new(
                ErrorKind::Locked,
                "the image is locked: another process wants it for itself alone",
            )),
            // Not every file system has locks, and those of a network may be switched off.
            Some(libc::EINVAL | libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP) | None => Ok(()),
            Some(_) => Err(Error::io("lock", error)),
        },
    }
}

/// Gives all of them up. There is nothing to do about a failure; the locks then end with the last descriptor.
pub(super) fn release(file: &fs::File) {
    let _ = sys::unlock(file, HELD, DENIED + PERMISSIONS - HELD);
}

/// Why an image cannot be had.
struct Conflict {
    what: &'static str,
    /// The byte that somebody else has a lock on.
    byte: u64,
}

/// First all locks, then all checks: of two that come at once at least one sees the other.
fn lock_then_check(file: &fs::File, held: &[Permission]) -> io::Result<Option<Conflict>> {
    let bytes = held.iter().map(|p| p.held()).chain(UNSHARED.iter().map(|p| p.denied()));
    for byte in bytes {
        sys::lock_shared(file, byte)?;
    }
    for permission in held {
        if sys::is_locked_by_others(file, permission.denied())? {
            let what = match permission {
                Permission::Read => "another user of it lets nobody read it",
                Permission::Write | Permission::Resize => {
                    "it is open elsewhere, where nobody else may write to it meanwhile"
                }
            };
            return Ok(Some(Conflict { what, byte: permission.denied() }));
        }
    }
    for permission in UNSHARED {
        if sys::is_locked_by_others(file, permission.held())? {
            return Ok(Some(Conflict { what: "it is open for writing elsewhere", byte: permission.held() }));
        }
    }
    Ok(None)
}

/// Who has a lock.
enum Holder {
    Ourselves,
    /// Another process, in words.
    Process(String),
}

/// How long to look for who has a lock: where processes have many thousands of files open, or the lock is gone by now, all of them would take seconds, and
/// who waits for an image asks again and again.
#[cfg(target_os = "linux")]
const PATIENCE: Duration = Duration::from_millis(50);

/// Who has a lock on that byte, where this process may know.
///
/// The kernel names no owner of such a lock: any process with the descriptor has it. So it is looked for in what `/proc` tells of
/// descriptors, which touches no file itself (one on a dead network file system would never answer).
#[cfg(target_os = "linux")]
fn holder(file: &fs::File, byte: u64) -> Option<Holder> {
    use std::os::unix::fs::MetadataExt;

    let metadata = file.metadata().ok()?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let end = Instant::now() + PATIENCE;
    let has_it = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        descriptors
            .take_while(|_| Instant::now() < end)
            .filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok())
            .any(|told| told.lines().any(|line| is_lock_on(line, &file, byte)))
    };
    if has_it(std::process::id()) {
        return Some(Holder::Ourselves);
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pid = processes
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| has_it(*pid))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder::Process(format!("the process {pid} ({})", name.trim_end().escape_debug())))
}

#[cfg(not(target_os = "linux"))]
fn holder(_: &fs::File, _: u64) -> Option<Holder> {
    None
}

/// Whether a line of `fdinfo` is of a lock on that byte of that file:
/// `lock:  1: OFDLCK  ADVISORY  READ -1 fe:00:130 100 101`.
#[cfg(target_os = "linux")]
fn is_lock_on(line: &str, file: &str, byte: u64) -> bool {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("lock:") {
        return false;
    }
    let [.., on, start, end] = *words.collect::<Vec<_>>() else { return false };
    let within = start.parse().is_ok_and(|start: u64| start <= byte)
        && end.parse().map_or(end == "EOF", |end: u64| byte <= end);
    on == file && within
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::is_lock_on;

    #[test]
    fn locks_are_read_as_the_kernel_writes_them() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:130 100 101";
        assert!(is_lock_on(line, "fe:00:130", 100) && is_lock_on(line, "fe:00:130", 101));
        assert!(!is_lock_on(line, "fe:00:130", 102) && !is_lock_on(line, "fe:00:13", 100));
        assert!(is_lock_on("lock:\t1: POSIX ADVISORY WRITE 7 fe:00:130 0 EOF", "fe:00:130", 9));
        for other in ["", "pos:\t0", "lock:", "lock: a b", "lock:\t1: OFDLCK ADVISORY READ -1 fe:00:130 x y"]
        {
            assert!(!is_lock_on(other, "fe:00:130", 100), "{other:?}");
        }
    }
}
