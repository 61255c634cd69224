//! New qcow2 images, as QEMU sees them.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago_core::format::preallocation::Preallocation;
use imago_core::format::qcow2::create::{CreateOptions, Version, create};
use imago_core::format::{Compression, ImplicitReference};
use imago_core::storage::file::{CreateMode, File};
use imago_core::storage::memory::Memory;
use imago_core::storage::{Capabilities, ZeroMode};
use imago_core::{ErrorKind, IoVector, IoVectorMut, Result, Storage, StorageOpenOptions};
use imago_testkit::check::check;
use imago_testkit::crash::{Moment, Verb};
use imago_testkit::qemu;
use imago_testkit::sim::{Failing, SimStorage};
use tempfile::TempDir;

fn new_file(path: &Path) -> Arc<dyn Storage> {
    Arc::new(File::create_sync(path, CreateMode::Replace).unwrap())
}

/// Creates the image (and its data file) in `directory`; no file is open afterwards.
#[track_caller]
fn create_in(directory: &TempDir, options: &CreateOptions) -> PathBuf {
    let path = directory.path().join("image.qcow2");
    let data = options.data_file.as_ref().map(|name| new_file(&directory.path().join(name)));
    create(&new_file(&path), data.as_ref(), options).unwrap_or_else(|error| panic!("{options:?}: {error}"));
    path
}

/// One value of `qemu-img info --output=json`, as its text.
#[track_caller]
fn value(info: &str, key: &str) -> String {
    let key = format!("\"{key}\":");
    // The image's own values stand behind those of its children.
    let at = info.rfind(&key).unwrap_or_else(|| panic!("{key} in {info}"));
    let rest = &info[at + key.len()..];
    rest[..rest.find('\n').unwrap()].trim().trim_end_matches(',').trim_matches('"').to_owned()
}

#[track_caller]
fn info(path: &Path) -> String {
    qemu::img(&["info", "--output=json", path.to_str().unwrap()])
}

#[track_caller]
fn assert_as_asked(path: &Path, options: &CreateOptions) {
    qemu::assert_clean(path);
    let info = info(path);
    let expect =
        |key: &str, wanted: &str| assert_eq!(value(&info, key), wanted, "{key} of {options:?}: {info}");
    expect("virtual-size", &options.size.next_multiple_of(512).to_string());
    expect("cluster-size", &options.cluster_size.to_string());
    expect("refcount-bits", &options.refcount_bits.to_string());
    expect("compression-type", if options.compression == Compression::Zstd { "zstd" } else { "zlib" });
    if options.version == Version::V2 {
        expect("compat", "0.10");
        return;
    }
    expect("compat", "1.1");
    expect("lazy-refcounts", &options.lazy_refcounts.to_string());
    expect("extended-l2", &options.extended_l2.to_string());
    expect("corrupt", "false");
    if let Some(name) = &options.data_file {
        expect("data-file", name.to_str().unwrap());
        expect("data-file-raw", &options.data_file_raw.to_string());
    }
}

/// That QEMU can use all of it: writes at both ends and in the middle, and the check stays clean.
#[track_caller]
fn assert_usable(path: &Path, size: u64) {
    let places = [0, size / 2 / 512 * 512, (size - 1) / 512 * 512];
    qemu::io(path, "qcow2", &places.map(|at| format!("write -P 7 {at} 512")));
    qemu::io(path, "qcow2", &places.map(|at| format!("read -P 7 {at} 512")));
    qemu::assert_clean(path);
}

#[test]
fn qemu_finds_every_combination_clean() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    for cluster_size in [512, 4096, 65536, 2 << 20] {
        for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
            for (version, extended_l2) in [(Version::V2, false), (Version::V3, false), (Version::V3, true)] {
                if version == Version::V2 && refcount_bits != 16 || extended_l2 && cluster_size < 16384 {
                    continue;
                }
                for size in [0, 1, (64 << 20) + 100] {
                    let v3 = version == Version::V3;
                    let options = CreateOptions {
                        size,
                        version,
                        cluster_size,
                        refcount_bits,
                        extended_l2,
                        lazy_refcounts: v3 && refcount_bits == 64,
                        compression: if v3 && size == 1 { Compression::Zstd } else { Compression::Deflate },
                        ..CreateOptions::default()
                    };
                    let path = create_in(&directory, &options);
                    assert_as_asked(&path, &options);
                    if size > 1 && refcount_bits % 16 == 0 {
                        assert_usable(&path, size);
                    }
                }
            }
        }
    }
}

#[test]
fn the_default_is_what_qemu_makes() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let theirs = directory.path().join("theirs.qcow2");
    for (version, options) in [(Version::V3, ""), (Version::V2, "compat=0.10")] {
        let ours =
            create_in(&directory, &CreateOptions { size: 1 << 30, version, ..CreateOptions::default() });
        qemu::create(&theirs, 1 << 30, options);
        let (ours, theirs) = (std::fs::read(ours).unwrap(), std::fs::read(&theirs).unwrap());
        assert_eq!(ours.len(), theirs.len().next_multiple_of(65536));
        assert!(ours[..theirs.len()] == theirs, "the same image, byte by byte");
        assert!(ours[theirs.len()..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn backing_files_are_named_in_both_versions() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("base.raw"), vec![0x5a; 1 << 20]).unwrap();
    for version in [Version::V2, Version::V3] {
        for cluster_size in [512, 65536] {
            let backing = ImplicitReference { name: "base.raw".into(), format: Some("raw".into()) };
            let options = CreateOptions {
                size: 1 << 20,
                version,
                cluster_size,
                backing: Some(backing),
                ..CreateOptions::default()
            };
            let path = create_in(&directory, &options);
            assert_as_asked(&path, &options);
            assert_eq!(value(&info(&path), "backing-filename"), "base.raw");
            assert_eq!(value(&info(&path), "backing-filename-format"), "raw");
            assert!(qemu::content(&path) == vec![0x5a; 1 << 20]);
        }
    }
}

#[test]
fn data_files_are_named_and_raw_ones_are_mapped_one_to_one() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("image.data");
    for (cluster_size, extended_l2) in [(512, false), (65536, false), (65536, true)] {
        for data_file_raw in [false, true] {
            let options = CreateOptions {
                size: 3_000_000,
                cluster_size,
                extended_l2,
                // QEMU looks for a relative name in the working directory.
                data_file: Some(data.to_str().unwrap().into()),
                data_file_raw,
                ..CreateOptions::default()
            };
            let path = create_in(&directory, &options);
            assert_as_asked(&path, &options);
            let size = 3_000_000_u64.next_multiple_of(512);
            if data_file_raw {
                assert_eq!(std::fs::metadata(&data).unwrap().len(), size);
                // What is in the raw file is on the disk: the tables map it already.
                std::fs::write(&data, vec![0x33; size as usize]).unwrap();
                assert!(qemu::content(&path) == vec![0x33; size as usize]);
            }
            assert_usable(&path, size);
        }
    }
}

#[test]
fn a_raw_data_file_keeps_its_content() {
    let memory = Memory::default();
    memory.writev_at([1_u8; 100].as_slice().into(), 0).unwrap();
    let data: Arc<dyn Storage> = Arc::new(memory);
    let options = CreateOptions {
        size: 1 << 20,
        data_file: Some("d".into()),
        data_file_raw: true,
        ..CreateOptions::default()
    };
    let image: Arc<dyn Storage> = Arc::new(Memory::default());
    create(&image, Some(&data), &options).unwrap();
    assert_eq!(data.len().unwrap(), 1 << 20);
    let mut kept = [0; 101];
    data.readv_at((&mut kept).into(), 0).unwrap();
    assert!(kept[..100] == [1; 100] && kept[100] == 0);
}

#[test]
fn an_image_that_was_there_is_gone() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image.qcow2");
    qemu::create(&path, 1 << 20, "cluster_size=512");
    qemu::io(&path, "qcow2", &["write -P 7 0 1M"]);
    let options = StorageOpenOptions::new().filename(&path).write(true);
    let storage: Arc<dyn Storage> = Arc::new(File::open_sync(options).unwrap());
    create(&storage, None, &CreateOptions { size: 1 << 20, ..CreateOptions::default() }).unwrap();
    drop(storage);
    qemu::assert_clean(&path);
    assert!(qemu::content(&path) == vec![0; 1 << 20]);
}

#[track_caller]
fn refused(options: &CreateOptions, says: &str) {
    let storage: Arc<dyn Storage> = Arc::new(Memory::default());
    storage.writev_at(b"precious".as_slice().into(), 0).unwrap();
    let error = create(&storage, None, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.message().contains(says), "{error}");
    let mut kept = [0; 8];
    storage.readv_at((&mut kept).into(), 0).unwrap();
    assert_eq!((&kept, storage.len().unwrap()), (b"precious", 8), "the storage was touched");
}

#[test]
fn wrong_options_are_refused_before_anything_is_touched() {
    let good = || CreateOptions { size: 1 << 20, ..CreateOptions::default() };
    let v2 = || CreateOptions { version: Version::V2, ..good() };
    let backing =
        |name: &str, format: &str| Some(ImplicitReference { name: name.into(), format: Some(format.into()) });
    refused(&CreateOptions { cluster_size: 256, ..good() }, "256");
    refused(&CreateOptions { cluster_size: 0, ..good() }, "cluster size of 0");
    refused(&CreateOptions { cluster_size: 4 << 20, ..good() }, "2097152");
    refused(&CreateOptions { cluster_size: 65537, ..good() }, "powers of two");
    refused(&CreateOptions { cluster_size: 8192, extended_l2: true, ..good() }, "16384");
    refused(&CreateOptions { refcount_bits: 3, ..good() }, "3 bits");
    refused(&CreateOptions { refcount_bits: 128, ..good() }, "128 bits");
    refused(&CreateOptions { refcount_bits: 0, ..good() }, "0 bits");
    refused(&CreateOptions { refcount_bits: 8, ..v2() }, "version 3");
    refused(&CreateOptions { lazy_refcounts: true, ..v2() }, "lazy refcounts");
    refused(&CreateOptions { extended_l2: true, ..v2() }, "extended L2");
    refused(&CreateOptions { compression: Compression::Zstd, ..v2() }, "compression");
    refused(&CreateOptions { data_file: Some("d".into()), ..v2() }, "data files");
    refused(&CreateOptions { data_file_raw: true, ..good() }, "needs a data file");
    let raw = CreateOptions { data_file: Some("d".into()), data_file_raw: true, ..good() };
    refused(&CreateOptions { backing: backing("b", "raw"), ..raw.clone() }, "cannot have a backing file");
    refused(&raw, "the data file itself");
    refused(&CreateOptions { data_file: Some(String::new().into()), ..good() }, "empty");
    refused(&CreateOptions { backing: backing("", "raw"), ..good() }, "empty");
    refused(&CreateOptions { backing: backing("a\0b", "raw"), ..good() }, "NUL");
    refused(&CreateOptions { backing: backing(&"a".repeat(1024), "raw"), ..good() }, "1023");
    refused(&CreateOptions { backing: backing("b", &"x".repeat(16)), ..good() }, "format");
    refused(
        &CreateOptions { backing: backing(&"a".repeat(400), "raw"), cluster_size: 512, ..good() },
        "cluster size of 1024 at least",
    );
    refused(
        &CreateOptions { size: (128 << 30) + 1, cluster_size: 512, ..good() },
        "a cluster size of 1024 would do",
    );
    refused(&CreateOptions { size: u64::MAX, ..good() }, "with any cluster size");
    refused(
        &CreateOptions { size: (1 << 60) + 1, cluster_size: 2 << 20, extended_l2: true, ..good() },
        "any",
    );
}

#[test]
fn the_biggest_disk_of_a_cluster_size_can_be_made() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    for (cluster_size, size) in [(512, 128 << 30), (4096, 8 << 40), (65536, 1 << 51)] {
        let options = CreateOptions { size, cluster_size, ..CreateOptions::default() };
        let path = create_in(&directory, &options);
        assert_as_asked(&path, &options);
        assert_usable(&path, size);
    }
}

/// An image whose header takes several sectors.
fn rich() -> CreateOptions {
    let name = "a".repeat(900);
    CreateOptions {
        size: 3 << 20,
        cluster_size: 8192,
        backing: Some(ImplicitReference { name: name.into(), format: Some("raw".into()) }),
        ..CreateOptions::default()
    }
}

/// An image whose clusters have a place and space from the start.
fn preallocated() -> CreateOptions {
    CreateOptions {
        size: 1 << 20,
        cluster_size: 16384,
        extended_l2: true,
        preallocation: Preallocation::Falloc,
        ..CreateOptions::default()
    }
}

fn image_of(options: &CreateOptions) -> Vec<u8> {
    let sim = Arc::new(SimStorage::from(Vec::new()));
    create(&(Arc::clone(&sim) as Arc<dyn Storage>), None, options).unwrap();
    let bytes = sim.contents();
    let report = check(&bytes);
    assert!(report.leaks.is_empty() && report.corruptions.is_empty(), "{report:?}");
    bytes
}

fn is_an_image(bytes: &[u8]) -> bool {
    bytes.starts_with(b"QFI\xfb")
}

#[test]
fn power_loss_leaves_the_old_image_the_new_one_or_none() {
    let old = image_of(&CreateOptions { size: 1 << 20, cluster_size: 512, ..CreateOptions::default() });
    let new = image_of(&rich());
    let none = Cell::new(0);
    let verb = Verb {
        start: std::slice::from_ref(&old),
        run: &|storages| create(&storages[0], None, &rich()),
        verify: &|media, moment| {
            let found = &media[0];
            if moment == Moment::During && !is_an_image(found) {
                none.set(none.get() + 1);
                return Ok(());
            }
            let whole = *found == new || (moment == Moment::During && *found == old);
            whole.then_some(()).ok_or_else(|| "it is a part of an image".into())
        },
    };
    verb.assert_crash_proof("create", 200, &[]);
    assert!(none.get() > 0, "there is a time between the images");
}

#[test]
fn a_failing_call_leaves_the_old_image_the_new_one_or_none() {
    let old = image_of(&CreateOptions { size: 1 << 20, cluster_size: 512, ..CreateOptions::default() });
    for options in [rich(), preallocated()] {
        let new = image_of(&options);
        for nth in 0.. {
            let sim = Arc::new(SimStorage::from(old.clone()));
            sim.fail_call(nth, Failing::Forever);
            let result = create(&(Arc::clone(&sim) as Arc<dyn Storage>), None, &options);
            let bytes = sim.contents();
            assert!(!is_an_image(&bytes) || bytes == old || bytes == new, "call {nth}");
            let Err(error) = result else {
                assert!(nth > 5, "{nth} calls only");
                break;
            };
            assert_eq!(error.kind(), ErrorKind::Io);
        }
    }
}

/// A storage of a length that stays, as a block device's.
#[derive(Debug)]
struct Fixed(Memory);

impl Storage for Fixed {
    fn readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        self.0.readv_at(bufs, offset)
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        assert!(offset + bufs.len() as u64 <= self.0.len()?, "a write past the end of a device");
        self.0.writev_at(bufs, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.0.write_zeroes_at(offset, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard_at(offset, len)
    }

    fn len(&self) -> Result<u64> {
        self.0.len()
    }

    fn set_len(&self, _: u64) -> Result<()> {
        panic!("the length of a device cannot be set")
    }

    fn sync(&self) -> Result<()> {
        self.0.sync()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { resize: false, ..self.0.capabilities() }
    }
}

#[test]
fn a_device_full_of_something_else_becomes_an_image() {
    for cluster_size in [512, 65536] {
        let options = CreateOptions { size: 64 << 20, cluster_size, ..CreateOptions::default() };
        let memory = Memory::default();
        memory.writev_at((&vec![0xa5; 1 << 20]).into(), 0).unwrap();
        let device = Arc::new(Fixed(memory));
        create(&(Arc::clone(&device) as Arc<dyn Storage>), None, &options).unwrap();
        let report = check(&device.0.to_vec().unwrap());
        assert!(report.leaks.is_empty() && report.corruptions.is_empty(), "{report:?}");
    }
    let small: Arc<dyn Storage> = Arc::new(Fixed(Memory::new(100_000)));
    let error = create(&small, None, &CreateOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}
