//! New files that take their places when they are whole.

use std::ffi::OsString;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::convert::Durability;
use crate::error::{Error, Result};
use crate::storage::file::{CreateMode, File};

/// Bytes of a name that leave room for more: 255 are what file systems take.
const NAME_MAX: usize = 200;

/// Has `fill` fill an image, and its external data file where that is to be a new one, and gives them their names once `fill` says that both are whole.
/// After a failure what was there stays, and nothing else does.
///
/// The data file gets its name first: an image never names one that is not there. See [`make_file`].
pub(super) fn make(
    path: &Path,
    replaced: Option<File>,
    new_data: Option<&Path>,
    durability: Durability,
    fill: impl FnOnce(Arc<File>, Option<Arc<File>>) -> Result<()>,
) -> Result<()> {
    let Some(data_path) = new_data else {
        return make_file(path, replaced, durability, |file| fill(file, None));
    };
    File::check_absent(data_path)?;
    let mut named = false;
    let made = make_file(path, replaced, durability, |file| {
        make_file(data_path, None, durability, |data| fill(file, Some(data)))?;
        named = true;
        Ok(())
    });
    if made.is_err() && named {
        // The failure that led here is the one to report.
        let _ = File::remove_sync(data_path);
    }
    made
}

/// Has `fill` fill a file under another name beside `target`, which gets the name `target` afterwards.
///
/// `replaced` is what is there now, held open (and locked) meanwhile; the new file takes its place and mode, and its owner where this process may. A block
/// device is filled where it stands. Without it the name has to be free, at the end as well.
fn make_file(
    target: &Path,
    replaced: Option<File>,
    durability: Durability,
    fill: impl FnOnce(Arc<File>) -> Result<()>,
) -> Result<()> {
    let replaced = match replaced {
        Some(device) if device.is_block_device() => return fill(Arc::new(device)),
        replaced => replaced,
    };
    // A symbolic link stays; what it leads to is replaced, or made.
    let place = if replaced.is_some() { resolve(target)? } else { led_to(target) };
    let (partial, made) = Partial::create(&place).map_err(|error| error.about(target))?;
    let done: Result<()> = (|| {
        if let Some(replaced) = &replaced {
            made.take_after(replaced)?;
        }
        fill(Arc::new(made))?;
        match replaced {
            Some(_) => File::rename_sync(&partial.0, &place),
            None => File::rename_new_sync(&partial.0, &place),
        }?;
        if durability == Durability::Synced {
            File::sync_name_of(&place);
        }
        Ok(())
    })();
    done.map_err(|error| if error.path() == Some(&partial.0) { error.about(target) } else { error })
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
    /// A new one beside `target`. There may be some that killed processes of this one's number have left.
    fn create(target: &Path) -> Result<(Self, File)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(name) = target.file_name() else {
            return Err(Error::invalid_input("the target has no file name"));
        };
        loop {
            let mut partial = OsString::from(".");
            if name.len() <= NAME_MAX {
                partial.push(name);
                partial.push(".");
            }
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            partial.push(format!("{}-{count}.partial", std::process::id()));
            let partial = Partial(target.with_file_name(partial));
            match File::create_sync(&partial.0, CreateMode::New) {
                // It is another's.
                Err(error) if error.os_error().is_some_and(is_taken) => mem::forget(partial),
                created => return created.map(|file| (partial, file)),
            }
        }
    }
}

fn is_taken(os_error: i32) -> bool {
    io::Error::from_raw_os_error(os_error).kind() == io::ErrorKind::AlreadyExists
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing of that name; a failure before it is the one to report.
        let _ = File::remove_sync(&self.0);
    }
}
