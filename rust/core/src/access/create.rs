//! New images in new files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::crypt::{self, Secret};
use crate::error::Result;
use crate::format::FormatKind;
use crate::format::luks;
use crate::format::qcow2::create as qcow2;
use crate::storage::file::{CreateMode, File};
use crate::storage::{Storage, StorageOpenOptions};

/// What a new image shall be.
#[derive(Clone, Debug)]
pub enum CreateOptions {
    /// A raw image, all zeroes, that takes up no space yet.
    Raw {
        /// Size in bytes.
        size: u64,
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
    /// A raw image of `size` bytes.
    pub fn raw(size: u64) -> Self {
        CreateOptions::Raw { size }
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

    /// What will open it, if it is encrypted.
    pub(super) fn secret(&self) -> Option<&Secret> {
        match self {
            CreateOptions::Raw { .. } => None,
            CreateOptions::Qcow2(options) => options.encryption.as_ref(),
            CreateOptions::Luks { encryption, .. } => Some(encryption),
        }
        .map(|options| &options.secret)
    }
}

/// Creates an image in a new file at `path`; a file that is there already is an error (`EEXIST`) and stays as it is.
///
/// The external data file of a qcow2 image is created too, beside the image or where its name points, unless it is there already.
/// What was created is removed again when the rest fails.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<()> {
    let path = path.as_ref();
    let file: Arc<dyn Storage> = Arc::new(File::create_sync(path, CreateMode::New)?);
    let made = fill(path, &file, options);
    if made.is_err() {
        // The failure that led here is the one to report.
        let _ = File::remove_sync(path);
    }
    made
}

/// Makes `file`, which is at `path`, the image that `options` describe, durably.
pub(super) fn fill(path: &Path, file: &Arc<dyn Storage>, options: &CreateOptions) -> Result<()> {
    match options {
        CreateOptions::Raw { size } => file.set_len(*size)?,
        CreateOptions::Luks { size, encryption } => luks::create(&**file, *size, encryption)?,
        CreateOptions::Qcow2(options) => {
            let existing = if options.data_file_raw { Existing::Adopted } else { Existing::Refused };
            let data = options.data_file.as_ref().map(|name| data_file(path, name, existing)).transpose()?;
            let made = qcow2::create(file, data.as_ref().map(|data| &data.storage), options);
            if let (Err(_), Some(DataFile { created: Some(path), .. })) = (&made, data) {
                let _ = File::remove_sync(path);
            }
            made?;
        }
    }
    file.sync()
}

/// What becomes of a data file that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Adopted,
    Refused,
}

struct DataFile {
    storage: Arc<dyn Storage>,
    /// Where it is, if it was not there before.
    created: Option<PathBuf>,
}

/// The external data file `name` of an image at `image`: a new one, or, as what is in it becomes the disk's content, the one that is there.
fn data_file(image: &Path, name: &str, keep: Existing) -> Result<DataFile> {
    let path = image.parent().unwrap_or(Path::new("")).join(name);
    if keep == Existing::Adopted && path.exists() {
        let file = File::open_sync(StorageOpenOptions::new().filename(&path).write(true))?;
        return Ok(DataFile { storage: Arc::new(file), created: None });
    }
    let file = File::create_sync(&path, CreateMode::New)?;
    Ok(DataFile { storage: Arc::new(file), created: Some(path) })
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
        options.data_file = Some("data".to_owned());
        assert!(create(&path, &CreateOptions::Qcow2(options)).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_created_opens() {
        let directory = tempfile::tempdir().unwrap();
        let data_file = qcow2::CreateOptions {
            size: 5 << 20,
            data_file: Some("data".to_owned()),
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
