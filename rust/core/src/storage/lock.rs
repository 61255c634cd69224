//! Image locks as QEMU takes them, so that a running VM and this library keep out of each other's images.
//!
//! A user of an image has *permissions* (what it does) and *shared* permissions (what it lets others do).
//! It holds a shared lock on byte 100 + n for each permission n it has and on byte 200 + n for each one it
//! does not share, and then looks whether anybody else has what it does not share, or denies what it has.
//! Locks belong to the open file description (`F_OFD_SETLK`). A process forked off shares that description, if only
//! until it runs another program, so closing does not end the locks: they are given up by [`release`].

use std::fs;
use std::io;

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
        Ok(Some(conflict)) => Err(Error::new(
            ErrorKind::Locked,
            format!("the image is locked: {conflict} (a running virtual machine?); end that use first"),
        )),
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

/// First all locks, then all checks: of two that come at once at least one sees the other.
fn lock_then_check(file: &fs::File, held: &[Permission]) -> io::Result<Option<&'static str>> {
    let bytes = held.iter().map(|p| p.held()).chain(UNSHARED.iter().map(|p| p.denied()));
    for byte in bytes {
        sys::lock_shared(file, byte)?;
    }
    for permission in held {
        if sys::is_locked_by_others(file, permission.denied())? {
            return Ok(Some(match permission {
                Permission::Read => "another user of it lets nobody read it",
                Permission::Write | Permission::Resize => {
                    "it is open elsewhere, where nobody else may write to it meanwhile"
                }
            }));
        }
    }
    for permission in UNSHARED {
        if sys::is_locked_by_others(file, permission.held())? {
            return Ok(Some("it is open for writing elsewhere"));
        }
    }
    Ok(None)
}
