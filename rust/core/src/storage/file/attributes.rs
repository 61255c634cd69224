//! Extended attributes, for a file that takes another one's place.

use std::fs;

/// Gives `to` the access list, the security label and the user's attributes of `from`, as far as this process may and the file system can.
///
/// Nothing else is taken over: what is said of a file's content (`security.ima`), or belongs to a file system's own book-keeping (`trusted.*`), does
/// not hold for another one.
#[cfg(target_os = "linux")]
pub(super) fn take_over(from: &fs::File, to: &fs::File) {
    use linux::{get, names, remove, set};

    const ACCESS_LIST: &[u8] = b"system.posix_acl_access";

    let Ok(names) = names(from) else { return };
    let names = || names.split(|byte| *byte == 0);
    for name in names() {
        if !(name == ACCESS_LIST || name == b"security.selinux" || name.starts_with(b"user.")) {
            continue;
        }
        if let Ok(value) = get(from, name)
            && get(to, name).ok().as_ref() != Some(&value)
        {
            let _ = set(to, name, &value);
        }
    }
    // A new file may have one from its folder.
    if !names().any(|name| name == ACCESS_LIST) {
        let _ = remove(to, ACCESS_LIST);
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn take_over(_: &fs::File, _: &fs::File) {}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::CString;
    use std::fs;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::ptr;

    /// The kernel has no longer lists and values than this.
    const LONGEST: usize = 64 << 10;

    /// The bytes that `read` puts into a buffer of so many bytes and says the number of.
    fn filled(read: impl Fn(*mut libc::c_void, usize) -> isize) -> io::Result<Vec<u8>> {
        let count = |result: isize| usize::try_from(result).map_err(|_| io::Error::last_os_error());
        if count(read(ptr::null_mut(), 0))? == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; LONGEST];
        let len = count(read(bytes.as_mut_ptr().cast(), bytes.len()))?;
        bytes.truncate(len);
        Ok(bytes)
    }

    fn name(name: &[u8]) -> io::Result<CString> {
        Ok(CString::new(name)?)
    }

    /// The names, each with a zero byte behind it.
    pub(super) fn names(file: &fs::File) -> io::Result<Vec<u8>> {
        let fd = file.as_raw_fd();
        // SAFETY: the buffer has that many bytes, or none are asked for.
        filled(|bytes, len| unsafe { libc::flistxattr(fd, bytes.cast(), len) })
    }

    pub(super) fn get(file: &fs::File, of: &[u8]) -> io::Result<Vec<u8>> {
        let (fd, of) = (file.as_raw_fd(), name(of)?);
        // SAFETY: the name ends with a zero byte, and the buffer has that many bytes, or none are asked for.
        filled(|bytes, len| unsafe { libc::fgetxattr(fd, of.as_ptr(), bytes, len) })
    }

    pub(super) fn set(file: &fs::File, of: &[u8], value: &[u8]) -> io::Result<()> {
        let of = name(of)?;
        // SAFETY: the name ends with a zero byte, and the value has that many bytes.
        let result =
            unsafe { libc::fsetxattr(file.as_raw_fd(), of.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn remove(file: &fs::File, of: &[u8]) -> io::Result<()> {
        let of = name(of)?;
        // SAFETY: the name ends with a zero byte.
        let result = unsafe { libc::fremovexattr(file.as_raw_fd(), of.as_ptr()) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
