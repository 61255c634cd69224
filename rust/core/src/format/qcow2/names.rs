//! What an image may call other files: the rules that creating and amending share.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::extensions::MAX_BACKING_FORMAT_LEN;
use super::header::MAX_BACKING_NAME_LEN;
use crate::error::{Error, Result};
use crate::format::ImplicitReference;

fn is_bad(name: &[u8]) -> bool {
    name.is_empty() || name.contains(&0)
}

/// Refuses a name that no image can have for its external data file.
pub(super) fn check_data_file(name: &Path) -> Result<()> {
    if is_bad(name.as_os_str().as_bytes()) {
        return Err(Error::invalid_input("the data file's name is empty or has a NUL in it"));
    }
    Ok(())
}

/// Refuses a backing file that no image can name.
pub(super) fn check_backing(backing: &ImplicitReference) -> Result<()> {
    let name = backing.name.as_os_str().as_bytes();
    if is_bad(name) {
        return Err(Error::invalid_input("the backing file's name is empty or has a NUL in it"));
    }
    if name.len() > MAX_BACKING_NAME_LEN as usize {
        return Err(Error::invalid_input(format!(
            "the backing file's name has more than {MAX_BACKING_NAME_LEN} bytes"
        )));
    }
    backing.format.as_deref().map_or(Ok(()), check_format)
}

/// Refuses what can be no name of a backing file's format.
pub(super) fn check_format(format: &str) -> Result<()> {
    if is_bad(format.as_bytes()) || format.len() > MAX_BACKING_FORMAT_LEN {
        return Err(Error::invalid_input("the backing file's format is no format's name"));
    }
    Ok(())
}
