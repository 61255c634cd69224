//! A new file that takes its place when it is whole.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};
use crate::storage::file::{CreateMode, File};

/// Makes a file under another name beside `target`, has `make` fill it, and gives it the name `target` once
/// `make` says that it is whole and durable. After a failure what was at `target` stays, and nothing else does.
///
/// `replaced` is the file that is there now, held open (and locked) by the caller; the new one takes its mode, and its owner where this process may.
pub(super) fn make(
    target: &Path,
    replaced: Option<&File>,
    make: impl FnOnce(File) -> Result<()>,
) -> Result<()> {
    // A symbolic link stays; what it leads to is replaced, or made.
    let target = if replaced.is_some() { resolve(target)? } else { led_to(target) };
    let partial = Partial::new(&target)?;
    let done = (|| {
        let file = File::create_sync(&partial.0, CreateMode::New)?;
        if let Some(replaced) = replaced {
            file.take_after(replaced)?;
        }
        make(file)?;
        File::rename_sync(&partial.0, &target)
    })();
    done.map_err(|error| if error.path() == Some(&partial.0) { error.about(&target) } else { error })
}

/// The path without symbolic links and dots.
pub(super) fn resolve(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|error| Error::io("resolve", error).in_file(path))
}

/// Where a path leads to, where nothing is yet.
pub(super) fn led_to(path: &Path) -> PathBuf {
    const LINKS_MAX: usize = 40; // Linux's
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(link) = path.read_link() else { break };
        path = path.with_file_name("").join(link);
    }
    path
}

/// A file that is removed when it has not got its name.
struct Partial(PathBuf);

impl Partial {
    fn new(target: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(name) = target.file_name() else {
            return Err(Error::invalid_input("the target has no file name").in_file(target));
        };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}-{count}.partial", std::process::id()));
        Ok(Partial(target.with_file_name(partial)))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing of that name; a failure before it is the one to report.
        let _ = File::remove_sync(&self.0);
    }
}
