//! New images in new files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::{Opener, named};
use super::convert::Durability;
use super::gate::{Gate, as_file, name_as_meant};
use super::info::info_storage;
use super::job::Job;
use super::target;
use crate::crypt::{self, Secret};
use crate::error::{Error, Result};
use crate::format::FormatKind;
use crate::format::luks;
use crate::format::preallocation::Preallocation;
use crate::format::qcow2::create as qcow2;
use crate::format::steps::Steps;
use crate::storage::file::File;
use crate::storage::{Lock, Storage, StorageOpenOptions, ZeroMode};

/// What QEMU looks at to tell formats apart is in here.
pub(super) const SECTOR: u64 = 512;

/// What a new image shall be.
#[derive(Clone, Debug)]
pub enum CreateOptions {
    /// A raw image, all zeroes.
    Raw {
        /// Size in bytes.
        size: u64,
        /// What is set aside for them; there is no metadata to preallocate.
        preallocation: Preallocation,
    },
    /// A qcow2 image.
    Qcow2(qcow2::CreateOptions),
    /// A raw image encrypted with LUKS. What a new one reads as is nobody's word: not zeroes.
    Luks {
        /// Size in bytes; rounded up to a multiple of 512.
        size: u64,
        /// What it is encrypted with.
        encryption: crypt::Options,
    },
}

impl CreateOptions {
    /// A raw image of `size` bytes that takes up no space yet.
    pub fn raw(size: u64) -> Self {
        CreateOptions::Raw { size, preallocation: Preallocation::Off }
    }

    /// A qcow2 image of `size` bytes with what `qemu-img create` takes where nothing is said.
    pub fn qcow2(size: u64) -> Self {
        CreateOptions::Qcow2(qcow2::CreateOptions { size, ..Default::default() })
    }

    /// Which format that is.
    pub fn kind(&self) -> FormatKind {
        match self {
            CreateOptions::Raw { .. } => FormatKind::Raw,
            CreateOptions::Qcow2(_) => FormatKind::Qcow2,
            CreateOptions::Luks { .. } => FormatKind::Luks,
        }
    }

    /// Size of its disk in bytes.
    pub fn size(&self) -> u64 {
        match self {
            CreateOptions::Raw { size, .. } | CreateOptions::Luks { size, .. } => *size,
            CreateOptions::Qcow2(options) => options.size,
        }
    }

    /// What will open it, if it is encrypted.
    pub(super) fn secret(&self) -> Option<&Secret> {
        match self {
            CreateOptions::Raw { .. } => None,
            CreateOptions::Qcow2(options) => options.encryption.as_ref().map(qcow2::Encryption::secret),
            CreateOptions::Luks { encryption, .. } => Some(&encryption.secret),
        }
    }

    /// The external data file, as the image names it.
    pub(super) fn data_file(&self) -> Option<&Path> {
        match self {
            CreateOptions::Qcow2(options) => options.data_file.as_deref(),
            CreateOptions::Raw { .. } | CreateOptions::Luks { .. } => None,
        }
    }

    /// What is set aside for the disk's bytes.
    pub fn preallocation(&self) -> Preallocation {
        match self {
            CreateOptions::Raw { preallocation, .. } => *preallocation,
            CreateOptions::Qcow2(options) => options.preallocation,
            CreateOptions::Luks { .. } => Preallocation::Off,
        }
    }

    /// Refuses what is wrong or excludes each other, before any file is made.
    fn check(&self) -> Result<()> {
        match self {
            CreateOptions::Raw { preallocation: Preallocation::Metadata, .. } => Err(Error::invalid_input(
                "a raw image has no metadata to preallocate: off, falloc and full are possible",
            )),
            CreateOptions::Raw { size, .. } if i64::try_from(*size).is_err() => Err(Error::invalid_input(
                format!("a disk of {size} bytes passes the end of what a file can be: 2^63 - 1 bytes"),
            )),
            CreateOptions::Raw { .. } => Ok(()),
            CreateOptions::Qcow2(options) => qcow2::check(options),
            CreateOptions::Luks { encryption, .. } => luks::check(encryption),
        }
    }
}

/// What is done about the backing file that the options name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingCheck {
    /// Nothing: the name is recorded byte by byte, whatever is there (`qemu-img create -u`).
    #[default]
    Skip,
    /// It has to be there and be an image of the format that is given with it. `json:{...}` describes it; all else is a file, however it is spelled: where
    /// other readers would take the name for a protocol's (`a:b`), it is recorded as `./a:b`.
    Open,
    /// The same, and the new disk gets the size of its disk, whatever size the options say.
    TakeSize,
}

/// What is done about files that are there already.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateHow {
    /// A file that has the new image's name is replaced, once the new one is whole and durable; otherwise it is an error (`EEXIST`).
    pub overwrite: bool,
    /// The backing file.
    pub backing: BackingCheck,
}

/// Creates an image in a new file at `path`; a file that is there already is an error (`EEXIST`) and stays as it is, and the
/// backing file is not looked at. See [`create_with`].
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<()> {
    create_with(path, options.clone(), CreateHow::default(), &mut Job::default())
}

/// Creates an image at `path`. A block device that is there (`overwrite`) keeps its length, and a raw image on it all of its content but for the first
/// sector, which might look like another format's.
///
/// The external data file of a qcow2 image is created too, beside the image or where its name points. One that is there already is an error, also with
/// `overwrite`, unless the image is to adopt it (`data_file_raw`). What was created is removed again when the rest fails. The job is told the bytes that are set aside or written.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for options that are wrong or exclude each other, before any file is made or touched;
/// with `overwrite` also for an image that would replace its own backing or data file, and [`Locked`](crate::ErrorKind::Locked) where the file to replace is in use.
pub fn create_with(
    path: impl AsRef<Path>,
    mut options: CreateOptions,
    how: CreateHow,
    job: &mut Job<'_>,
) -> Result<()> {
    let path = path.as_ref();
    if let CreateOptions::Qcow2(options) = &mut options {
        options.data_file = options.data_file.take().map(as_file);
        check_backing(path, options, how.backing)?;
    }
    options.check()?;
    let data_path = options.data_file().map(|name| data_path(path, name)).transpose()?;
    let replaced = if how.overwrite { replaced(path, &options)? } else { None };
    if !how.overwrite {
        File::check_absent(path)?;
    }
    let adopted = data_path.as_deref().map(|path| adopted(path, &options)).transpose()?.flatten();
    let new_data = data_path.as_deref().filter(|_| adopted.is_none());
    target::make(path, replaced, new_data, Durability::Synced, |file, data| {
        let data = data.map(|data| data as Arc<dyn Storage>).or(adopted);
        let file = file as Arc<dyn Storage>;
        job.in_steps(|steps| fill(&file, data.as_ref(), &options, steps))
    })
}

/// The file at `path`, where it is there and becomes the data file with what is in it.
fn adopted(path: &Path, options: &CreateOptions) -> Result<Option<Arc<dyn Storage>>> {
    let adopts = matches!(options, CreateOptions::Qcow2(options) if options.data_file_raw);
    if !adopts || !path.exists() {
        return Ok(None);
    }
    let file = File::open_sync(StorageOpenOptions::new().filename(path).write(true))?;
    Ok(Some(Arc::new(file)))
}

/// Makes `file` the image that `options` describe, durably. `data` is its external data file, where it has one.
pub(super) fn fill(
    file: &Arc<dyn Storage>,
    data: Option<&Arc<dyn Storage>>,
    options: &CreateOptions,
    steps: &mut Steps<'_>,
) -> Result<()> {
    if !file.capabilities().resize {
        check_room(&**file, options)?;
    }
    match options {
        // What is there stays, but for what could be taken for another format's first sector.
        CreateOptions::Raw { size, .. } if !file.capabilities().resize => {
            file.write_zeroes_at(0, SECTOR.min(*size), ZeroMode::Keep)?;
        }
        CreateOptions::Raw { size, preallocation } => {
            file.set_len(*size)?;
            steps.expect(preallocation.work(*size))?;
            preallocation.reserve(file.as_ref(), 0, *size, steps)?;
        }
        CreateOptions::Luks { size, encryption } => luks::create(&**file, *size, encryption)?,
        CreateOptions::Qcow2(options) => qcow2::create_with(file, data, options, steps)?,
    }
    steps.settle(&**file)?;
    file.sync()
}

/// Refuses what a storage of a given length, such as a device, cannot hold.
fn check_room(file: &dyn Storage, options: &CreateOptions) -> Result<()> {
    let named = |error: Error| named(file.path(), error);
    if let mode @ (Preallocation::Falloc | Preallocation::Full) = options.preallocation() {
        let text = format!("preallocation {mode} is for files: a block device has its space");
        return Err(named(Error::invalid_input(text)));
    }
    let len = file.len()?;
    match options {
        CreateOptions::Raw { size, .. } if *size > len => Err(named(Error::invalid_input(format!(
            "the device has {len} bytes, less than the disk's {size}"
        )))),
        // Formats with metadata say themselves how much they need.
        _ => Ok(()),
    }
}

/// Does what `check` says about the backing file of a new image at `path`. Only that file is opened, to read what it says of itself: whose name is the
/// caller's word, but what it names in turn is not.
fn check_backing(path: &Path, options: &mut qcow2::CreateOptions, check: BackingCheck) -> Result<()> {
    let Some(backing) = &mut options.backing else {
        return match check {
            BackingCheck::TakeSize => {
                Err(Error::invalid_input("without a backing file the size has to be given"))
            }
            BackingCheck::Skip | BackingCheck::Open => Ok(()),
        };
    };
    if check == BackingCheck::Skip {
        return Ok(());
    }
    name_as_meant(backing);
    let shown = backing.name.to_string_lossy();
    let Some(format) = backing.format.as_deref() else {
        return Err(Error::invalid_input(format!(
            "the format of the backing file {shown:?} has to be given: whoever guesses it takes the word of what a guest wrote there"
        )));
    };
    let Some(kind) = FormatKind::from_name(format) else {
        return Err(Error::unsupported(format!(
            "the backing file {shown:?} cannot be looked at: its format {format:?} is not there; skip the check and give the size"
        )));
    };
    let gate = Gate::default();
    let found = Gate::by_the_caller(Some(path), backing)
        .and_then(|node| Opener::new(&gate, None, false, Lock::Off).open_place(node.place, false))
        .and_then(|storage| info_storage(&storage, Some(kind)))
        .map_err(|error| error.within(&format!("backing file {shown:?}")))?;
    if check == BackingCheck::TakeSize {
        options.size = found.virtual_size;
    }
    Ok(())
}

/// A name as an image at `image` spells it.
pub(super) fn beside(image: &Path, name: &Path) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(name)
}

/// Where the external data file of a new image at `image` is, which cannot be the image itself.
pub(super) fn data_path(image: &Path, name: &Path) -> Result<PathBuf> {
    let path = beside(image, name);
    if place(&path).is_some_and(|place_of_data| place(image) == Some(place_of_data)) {
        return Err(Error::invalid_input("the new image would be its own data file").in_file(image));
    }
    Ok(path)
}

/// Where a file is, also one that is not there yet.
fn place(path: &Path) -> Option<PathBuf> {
    if let Ok(place) = path.canonicalize() {
        return Some(place);
    }
    let path = target::led_to(path);
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    Some(directory.unwrap_or(Path::new(".")).canonicalize().ok()?.join(path.file_name()?))
}

/// The file at `path`, held so that nobody uses it meanwhile; no backing file of the new image.
fn replaced(path: &Path, options: &CreateOptions) -> Result<Option<File>> {
    if !path.exists() {
        return Ok(None);
    }
    let own = target::resolve(path)?;
    if let CreateOptions::Qcow2(options) = options {
        let backing = options.backing.as_ref();
        let named = backing.and_then(|backing| beside(path, &backing.name).canonicalize().ok());
        if named == Some(own) {
            return Err(
                Error::invalid_input("the new image would replace its own backing file").in_file(path)
            );
        }
    }
    File::open_to_replace(path).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::open::OpenOptions;
    use crate::error::ErrorKind;

    #[test]
    fn an_existing_file_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, b"precious").unwrap();
        for options in [CreateOptions::raw(1 << 20), CreateOptions::qcow2(1 << 20)] {
            let error = create(&path, &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        }
    }

    #[test]
    fn nothing_is_left_after_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let mut options = qcow2::CreateOptions { size: 1 << 20, cluster_size: 1000, ..Default::default() };
        assert_eq!(
            create(&path, &CreateOptions::Qcow2(options.clone())).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        options.data_file = Some("data".into());
        assert!(create(&path, &CreateOptions::Qcow2(options)).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_created_opens() {
        let directory = tempfile::tempdir().unwrap();
        let data_file = qcow2::CreateOptions {
            size: 5 << 20,
            data_file: Some("data".into()),
            data_file_raw: true,
            ..Default::default()
        };
        for (name, options) in [
            ("raw", CreateOptions::raw(5 << 20)),
            ("qcow2", CreateOptions::qcow2(5 << 20)),
            ("external", CreateOptions::Qcow2(data_file)),
        ] {
            let path = directory.path().join(name);
            create(&path, &options).unwrap();
            let image = OpenOptions { write: true, format: Some(options.kind()), ..Default::default() }
                .open(&path)
                .unwrap();
            assert_eq!(image.size(), 5 << 20);
            image.write(b"content", 70_000).unwrap();
            let mut bytes = [0xff; 9];
            image.read(&mut bytes, 69_999).unwrap();
            assert_eq!(&bytes, b"\0content\0");
            image.close().unwrap();
        }
        assert_eq!(&std::fs::read(directory.path().join("data")).unwrap()[70_000..70_007], b"content");
    }
}
