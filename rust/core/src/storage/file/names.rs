//! What gives files their names and takes them away.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{File, sys};
use crate::error::{Error, Result};

/// Bytes of a file that takes a while to be removed.
const LARGE: u64 = 16 << 20;

fn failed_to_rename(from: &Path, to: &Path, error: io::Error) -> Error {
    let name = to.display().to_string();
    Error::io(format!("rename to {}", name.escape_debug()), error).in_file(from)
}

/// Whether this file system does not know what it was asked for.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM))
        || error.kind() == io::ErrorKind::Unsupported
}

/// A descriptor of the file at `path`, if it is one whose removal takes a while.
fn large(path: &Path) -> Option<fs::File> {
    let file = fs::OpenOptions::new().read(true).custom_flags(sys::OPEN_FLAGS).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.blocks() > LARGE / 512).then_some(file)
}

/// Closes a descriptor without waiting for what that leads to: where that is possible not even the end of this process does.
fn close_later(file: fs::File) {
    #[cfg(feature = "io-uring")]
    if crate::storage::uring::hand_over(&file) {
        return;
    }
    // Where no thread can be had it is closed here.
    drop(std::thread::Builder::new().spawn(move || drop(file)));
}

impl File {
    /// An error (`EEXIST`) if there is something at `path`.
    pub fn check_absent(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        Err(Error::io("create", io::Error::from_raw_os_error(libc::EEXIST)).in_file(path))
    }

    /// Removes the file at `path`. The space of a large one is given back behind this call's back: what the page cache has of it, and what is on its
    /// way to the medium, takes a while to let go.
    pub fn remove_sync(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let last = large(path);
        fs::remove_file(path).map_err(|error| Error::io("remove", error).in_file(path))?;
        if let Some(last) = last {
            close_later(last);
        }
        Ok(())
    }

    /// Gives the file at `from` the name `to`, in place of what has that name.
    pub fn rename_sync(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        fs::rename(from, to).map_err(|error| failed_to_rename(from, to, error))
    }

    /// The same where nothing has the name `to`; otherwise it is an error (`EEXIST`).
    pub fn rename_new_sync(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let renamed = match sys::rename_new(from, to) {
            // Then it has two names for a moment.
            Err(error) if is_missing(&error) => fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
            renamed => renamed,
        };
        match renamed {
            Err(error) if is_missing(&error) => {
                Self::check_absent(to)?;
                Self::rename_sync(from, to)
            }
            renamed => renamed.map_err(|error| failed_to_rename(from, to, error)),
        }
    }

    /// Makes the name of the file at `path` durable, as far as the file system can.
    pub(crate) fn sync_name_of(path: &Path) {
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        // Without it the file may have its old name after a loss of power, but it is whole.
        let _ =
            fs::File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
    }
}
