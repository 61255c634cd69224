//! Images to test with: every combination of features that can be created, and their content by the oracle.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago_core::access::image::Image;
use imago_core::access::open::OpenOptions;
use imago_core::file::File;
use imago_core::format::qcow2::create::{CreateOptions, Version, create};
use imago_core::format::{Compression, ImplicitReference};
use imago_core::{Result, Storage, StorageOpenOptions};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::check::check;
use crate::model::{Discards, Geometry, Model, View, pattern};

/// Where guest data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFile {
    /// Into the image.
    None,
    /// Into another file.
    Plain,
    /// Into another file, which is a raw image of the disk.
    Raw,
}

/// A backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// A qcow2 image; raw otherwise.
    pub qcow2: bool,
    /// Its length in bytes.
    pub len: u64,
}

/// What an image is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the header's fields")]
pub struct Config {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_bits: u32,
    pub extended_l2: bool,
    pub size: u64,
    pub backing: Option<Backing>,
    pub data_file: DataFile,
    pub zstd: bool,
}

impl Config {
    /// A version 3 image with 16-bit refcounts and nothing special.
    pub fn plain(cluster_bits: u32, size: u64) -> Self {
        Config {
            version: 3,
            cluster_bits,
            refcount_bits: 16,
            extended_l2: false,
            size,
            backing: None,
            data_file: DataFile::None,
            zstd: false,
        }
    }

    /// The edges that scripts aim at.
    pub fn geometry(&self) -> Geometry {
        let cluster = 1 << self.cluster_bits;
        Geometry {
            size: self.size,
            cluster,
            subcluster: if self.extended_l2 { cluster / 32 } else { cluster },
            table: cluster / if self.extended_l2 { 16 } else { 8 } * cluster,
            compresses: self.data_file == DataFile::None,
            // A host cluster of compressed ones has many owners already.
            snapshots: if self.data_file == DataFile::None && self.refcount_bits >= 16 { 4 } else { 0 },
            // In version 2 snapshots do not know their size.
            resizes: self.data_file == DataFile::None && self.version == 3,
            bitmaps: if self.version >= 3 { 3 } else { 0 },
        }
    }

    /// What a discarded cluster reads as, on storages whose discarded ranges read as zeroes.
    pub fn discards(&self) -> Discards {
        if self.version == 3 || self.backing.is_none() { Discards::Zero } else { Discards::Keep }
    }

    /// A model of a fresh image of this kind over what the backing file shows.
    pub fn model(&self, backing: &[u8]) -> Model {
        let mut bytes = backing.to_vec();
        bytes.resize(self.size as usize, 0);
        Model::new(View::of_disk(bytes), self.geometry(), self.discards())
    }

    /// The options that create it.
    pub fn options(&self) -> CreateOptions {
        CreateOptions {
            size: self.size,
            version: if self.version == 2 { Version::V2 } else { Version::V3 },
            cluster_size: 1 << self.cluster_bits,
            refcount_bits: self.refcount_bits,
            extended_l2: self.extended_l2,
            backing: self.backing.map(|backing| ImplicitReference {
                name: PathBuf::from("backing"),
                format: Some(if backing.qcow2 { "qcow2" } else { "raw" }.into()),
            }),
            data_file: (self.data_file != DataFile::None).then(|| "data".into()),
            data_file_raw: self.data_file == DataFile::Raw,
            compression: if self.zstd { Compression::Zstd } else { Compression::Deflate },
            ..CreateOptions::default()
        }
    }

    /// Creates it, with its backing and data file, in a directory of its own.
    pub fn build(&self) -> Built {
        self.build_in(&std::env::temp_dir())
    }

    /// The same in a directory of its own under `parent`.
    pub fn build_in(&self, parent: &Path) -> Built {
        let dir = tempfile::tempdir_in(parent).expect("a temporary directory");
        let backing = self.backing.map(|backing| build_backing(dir.path(), backing)).unwrap_or_default();
        let path = dir.path().join("image.qcow2");
        let storage = new_file(&path);
        let data = (self.data_file != DataFile::None).then(|| new_file(&dir.path().join("data")));
        create(&storage, data.as_ref(), &self.options()).expect("create an image");
        // Creating rounds sizes up to sectors; images whose size is none do exist.
        storage.writev_at((&self.size.to_be_bytes()).into(), 24).expect("write the size");
        Built { dir, path, backing }
    }
}

/// Sizes that reach past one L2 table where clusters are small, and are often no multiple of anything.
fn sizes(cluster_bits: u32) -> impl Strategy<Value = u64> {
    let cluster = 1u64 << cluster_bits;
    let most = match cluster_bits {
        9 => 140 << 10,
        10..=12 => 5 << 19,
        _ => (3 * cluster).max(1 << 20),
    };
    prop_oneof![
        3 => (1..=most / cluster).prop_map(move |n| n * cluster),
        3 => (1..=most / 512).prop_map(|n| n * 512),
        1 => 1..=most,
    ]
}

/// Every combination of features that makes sense.
pub fn config() -> impl Strategy<Value = Config> {
    let cluster_bits = prop_oneof![4 => Just(9), 3 => Just(12), 1 => Just(14), 3 => Just(16), 1 => Just(21)];
    let data_file =
        prop_oneof![6 => Just(DataFile::None), 1 => Just(DataFile::Plain), 1 => Just(DataFile::Raw)];
    let backing = prop::option::weighted(0.6, (any::<bool>(), 0..7u64));
    let bools = (any::<bool>(), any::<bool>());
    (cluster_bits, prop_oneof![1 => Just(2), 4 => Just(3)], 0..7u32, bools, data_file, backing).prop_flat_map(
        |(bits, version, order, (extended, zstd), data_file, backing)| {
            sizes(bits).prop_map(move |size| {
                let data_file = if version == 2 { DataFile::None } else { data_file };
                let backing =
                    backing.filter(|_| data_file != DataFile::Raw).map(|(qcow2, relation)| Backing {
                        qcow2,
                        len: match relation {
                            0 => 0,
                            1 => size / 2,
                            2 => size.saturating_sub(300),
                            3 => size / 3 / 512 * 512,
                            4 => size + 70_000,
                            _ => size,
                        },
                    });
                Config {
                    version,
                    cluster_bits: bits,
                    refcount_bits: if version == 2 { 16 } else { 1 << order },
                    extended_l2: extended && version == 3 && bits >= 14,
                    size,
                    backing,
                    data_file,
                    zstd: zstd && version == 3,
                }
            })
        },
    )
}

/// Creates a backing file with content; returns what it shows.
fn build_backing(dir: &Path, backing: Backing) -> Vec<u8> {
    let path = dir.join("backing");
    let mut content = pattern(0x5b, 0, backing.len);
    // Some of it is zeroes, so that the two can be told apart.
    content.chunks_mut(7000).step_by(3).for_each(|chunk| chunk.fill(0));
    if backing.qcow2 {
        let storage = new_file(&path);
        let options = CreateOptions { size: backing.len, cluster_size: 4096, ..CreateOptions::default() };
        create(&storage, None, &options).expect("create a backing file");
        drop(storage);
        let image = open(&path, true).expect("open the backing file");
        for (index, chunk) in content.chunks(7000).enumerate().filter(|(index, _)| index % 3 != 0) {
            image.write(chunk, index as u64 * 7000).expect("fill the backing file");
        }
        image.close().expect("close the backing file");
    } else {
        fs::write(&path, &content).expect("write the backing file");
    }
    content
}

/// A new, empty file opened for writing.
pub fn new_file(path: &Path) -> Arc<dyn Storage> {
    fs::File::create(path).expect("create a file");
    Arc::new(File::open_sync(StorageOpenOptions::new().filename(path).write(true)).expect("open a new file"))
}

/// Opens a qcow2 image with all that it refers to.
pub fn open(path: &Path, write: bool) -> Result<Arc<Image>> {
    OpenOptions { write, format: Some(imago_core::format::FormatKind::Qcow2), ..OpenOptions::default() }
        .open(path)
}

/// An image on disk, removed when dropped.
#[derive(Debug)]
pub struct Built {
    /// Its directory.
    pub dir: TempDir,
    /// The image.
    pub path: PathBuf,
    /// What the backing file shows; empty without one.
    pub backing: Vec<u8>,
}

impl Built {
    /// The bytes of its data file, where it has one.
    pub fn data_file(&self) -> Option<Vec<u8>> {
        fs::read(self.dir.path().join("data")).ok()
    }

    /// What it shows by the oracle, after a check that finds nothing at all.
    pub fn checked_view(&self) -> Result<View, String> {
        let bytes = fs::read(&self.path).map_err(|e| e.to_string())?;
        let report = check(&bytes);
        if !report.is_clean() {
            return Err(report.to_string());
        }
        View::parse(&bytes, &self.backing, self.data_file().as_deref())
    }
}
