//! Growing and shrinking: QEMU agrees, what is new reads as zeroes, what is cut off is given back, what cannot be is refused untouched.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago_core::access::create::{CreateOptions, create};
use imago_core::access::image::Image;
use imago_core::access::job::{Job, Progress};
use imago_core::access::open::{Backing as Below, OpenOptions};
use imago_core::format::preallocation::Preallocation;
use imago_core::format::{FormatKind, Recording};
use imago_core::{ErrorKind, Result};
use imago_testkit::check::check;
use imago_testkit::images::{Backing, Config, DataFile, open};
use imago_testkit::model::pattern;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::qemu;
use tempfile::TempDir;

const OFF: Preallocation = Preallocation::Off;

fn read(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xa5; image.size() as usize];
    image.read(&mut bytes, 0).unwrap();
    bytes
}

fn resized(mut content: Vec<u8>, size: u64) -> Vec<u8> {
    content.resize(size as usize, 0);
    content
}

#[track_caller]
fn assert_clean(path: &Path, what: &str) {
    let report = check(&fs::read(path).unwrap());
    assert!(report.corruptions.is_empty() && report.leaks.is_empty() && !report.dirty, "{what}: {report}");
    qemu::assert_clean(path);
}

fn made_by_qemu(options: &str, size: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let options = options.replace("DATA", dir.path().join("data").to_str().unwrap());
    qemu::create(&path, size, &options);
    (dir, path)
}

const LAYOUTS: [&str; 12] = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "compat=0.10,cluster_size=1024",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=2097152",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16384",
    "preallocation=metadata",
    "data_file=DATA",
    "data_file=DATA,data_file_raw=on",
];

/// Sizes after one another: within a cluster, over the end of L1 tables, back to nothing and up again.
const SIZES: [u64; 8] = [700_416, 5 << 20, (5 << 20) + 512, 99_840, 100_352, 12 << 20, 0, 300_032];

#[test]
fn qemu_agrees_with_every_size() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for options in LAYOUTS {
        let (dir, path) = made_by_qemu(options, 1 << 20);
        let mut content = vec![0; 1 << 20];
        let image = open(&path, true).unwrap();
        for (round, size) in (1..).zip(SIZES) {
            let data = pattern(round, 0, content.len() as u64 * 3 / 4);
            let at = content.len() - data.len();
            image.write(&data, at as u64).unwrap();
            content[at..].copy_from_slice(&data);
            image.resize(size, OFF).unwrap_or_else(|e| panic!("{options}, {size}: {e}"));
            content = resized(content, size);
            assert_eq!(image.size(), size);
            assert!(read(&image) == content, "{options}, {size}");
            assert_eq!(image.read(&mut [0], size).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        image.close().unwrap();
        drop(image);
        assert_clean(&path, options);
        assert!(qemu::content(&path) == content, "{options}");
        if options.contains("data_file") {
            assert_eq!(fs::metadata(dir.path().join("data")).unwrap().len(), content.len() as u64);
        }
        if options.contains("data_file_raw") {
            assert!(fs::read(dir.path().join("data")).unwrap() == content, "{options}: no raw disk");
        }
    }
}

#[test]
fn sizes_that_qemu_changed_are_gone_on_with() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for options in LAYOUTS {
        let (_dir, path) = made_by_qemu(options, 1 << 20);
        let mut content = vec![0; 1 << 20];
        for (round, size) in (1..).zip([1 << 19, 4 << 20, 70_144, 2 << 20]) {
            let image = open(&path, true).unwrap();
            let data = pattern(round, 0, content.len() as u64);
            image.write(&data, 0).unwrap();
            content.copy_from_slice(&data);
            let between = content.len() as u64 / 1024 * 512 + 512;
            image.resize(between, OFF).unwrap();
            content = resized(content, between);
            image.close().unwrap();
            drop(image);
            let size_text = size.to_string();
            qemu::img(&["resize", "-q", "-f", "qcow2", "--shrink", path.to_str().unwrap(), &size_text]);
            content = resized(content, size);
            let image = open(&path, true).unwrap();
            assert!(read(&image) == content, "{options}, {size}");
            image.close().unwrap();
            assert_clean(&path, options);
        }
    }
}

/// A backing file that is longer than the disk was stays hidden, and so does what the disk had before it was cut.
#[test]
fn what_is_new_hides_a_longer_backing_file() {
    for qcow2 in [false, true] {
        for (version, cluster_bits, extended_l2) in
            [(3, 16, false), (2, 12, false), (3, 9, false), (3, 14, true), (2, 9, false)]
        {
            let config = Config {
                version,
                extended_l2,
                backing: Some(Backing { qcow2, len: 700_000 }),
                ..Config::plain(cluster_bits, 200_704)
            };
            let built = config.build();
            let mut content = built.backing[..200_704].to_vec();
            let image = open(&built.path, true).unwrap();
            for (round, size) in (1..).zip([400_384, 60_416, 2 << 20, 650_240, 699_904, 700_416, 1 << 20]) {
                let at = content.len() as u64 / 2;
                image.write(&pattern(round, 0, 9000), at).unwrap();
                content[at as usize..][..9000].copy_from_slice(&pattern(round, 0, 9000));
                image.resize(size, OFF).unwrap();
                content = resized(content, size);
                assert!(read(&image) == content, "{config:?}, {size}");
            }
            image.close().unwrap();
            drop(image);
            assert!(built.checked_view().unwrap().disk == content, "{config:?}");
            if qemu::qemu_or_skip() {
                qemu::assert_clean(&built.path);
                assert!(qemu::content(&built.path) == content, "{config:?}");
            }
        }
    }
}

#[test]
fn preallocation_gives_what_is_new_its_place() {
    for config in [
        Config::plain(16, 1 << 20),
        Config { version: 2, ..Config::plain(12, 100_352) },
        Config { extended_l2: true, ..Config::plain(16, 300_032) },
        Config { backing: Some(Backing { qcow2: false, len: 3 << 20 }), ..Config::plain(12, 100_352) },
        Config { data_file: DataFile::Plain, ..Config::plain(16, 300_032) },
    ] {
        for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
            let built = config.build();
            let image = open(&built.path, true).unwrap();
            image.write(&pattern(1, 0, 50_000), 40_000).unwrap();
            let content = resized(read(&image), 2 << 20);
            image.resize(2 << 20, preallocation).unwrap();
            assert!(read(&image) == content, "{config:?}, {preallocation}");
            // Nothing is allocated any more.
            let len = || fs::metadata(&built.path).unwrap().len();
            let before = len();
            let from = config.size.next_multiple_of(1 << config.cluster_bits);
            image.write(&vec![7; ((2 << 20) - from) as usize], from).unwrap();
            image.flush().unwrap();
            assert_eq!(len(), before, "{config:?}, {preallocation}");
            assert_eq!(image.resize(1 << 20, preallocation).unwrap_err().kind(), ErrorKind::InvalidInput);
            image.close().unwrap();
            drop(image);
            built.checked_view().unwrap();
        }
    }
}

#[test]
fn what_is_cut_off_goes_back_to_the_host() {
    for snapshot in [false, true] {
        let built = Config::plain(16, 8 << 20).build();
        let image = open(&built.path, true).unwrap();
        image.write(&pattern(1, 0, 8 << 20), 0).unwrap();
        if snapshot {
            image.create_snapshot("kept", None).unwrap();
        }
        image.flush().unwrap();
        let before = fs::metadata(&built.path).unwrap().len();
        image.resize(1 << 20, OFF).unwrap();
        let after = fs::metadata(&built.path).unwrap().len();
        assert_eq!(before.saturating_sub(after) >= 7 << 20, !snapshot, "{before} {after}");
        image.resize(8 << 20, OFF).unwrap();
        assert!(read(&image)[1 << 20..].iter().all(|byte| *byte == 0));
        if snapshot {
            image.apply_snapshot("kept").unwrap();
            assert!(read(&image) == pattern(1, 0, 8 << 20));
        }
        image.close().unwrap();
        drop(image);
        built.checked_view().unwrap();
    }
}

/// The file ends with the last cluster in use, as soon as the image is closed.
#[test]
fn a_discard_at_the_files_end_makes_it_shorter() {
    let built = Config::plain(16, 8 << 20).build();
    let image = open(&built.path, true).unwrap();
    image.write(&pattern(1, 0, 8 << 20), 0).unwrap();
    image.discard(1 << 20, 7 << 20).unwrap();
    image.close().unwrap();
    drop(image);
    assert!(fs::metadata(&built.path).unwrap().len() <= 2 << 20);
    let bytes = fs::read(&built.path).unwrap();
    let image = open(&built.path, true).unwrap();
    image.close().unwrap();
    assert!(fs::read(&built.path).unwrap() == bytes, "nothing was freed, nothing is cut");
    built.checked_view().unwrap();
}

#[test]
fn a_size_that_cannot_be_is_refused_untouched() {
    let v2 = Config { version: 2, ..Config::plain(9, 100_352) };
    let with_snapshot = v2.build();
    let image = open(&with_snapshot.path, true).unwrap();
    image.create_snapshot("x", None).unwrap();
    image.close().unwrap();
    let cases = [
        (with_snapshot, 1 << 20, ErrorKind::Unsupported),
        (Config::plain(16, 1 << 20).build(), 1000, ErrorKind::InvalidInput),
        // 4 Mi L1 entries of 64 clusters each.
        (Config::plain(9, 1 << 20).build(), (4 << 20) * 64 * 512 + 512, ErrorKind::InvalidInput),
    ];
    for (built, size, kind) in cases {
        let before = fs::read(&built.path).unwrap();
        let image = open(&built.path, true).unwrap();
        let error = image.resize(size, OFF).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        image.close().unwrap();
        drop(image);
        assert!(fs::read(&built.path).unwrap() == before);
        let image = open(&built.path, false).unwrap();
        assert_eq!(image.resize(512, OFF).unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    // Nobody can tell what of an unopened backing file would show.
    let built =
        Config { backing: Some(Backing { qcow2: false, len: 512 }), ..Config::plain(16, 1 << 20) }.build();
    let facade = imago_core::qcow2::Qcow2::open_path_sync(&built.path, true).unwrap();
    let image = imago_core::access::facade::IntoImage::into_image(facade);
    let before = fs::read(&built.path).unwrap();
    assert_eq!(image.resize(2 << 20, OFF).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(fs::read(&built.path).unwrap() == before);
    image.close().unwrap();
}

#[test]
fn bitmaps_follow_the_size() {
    let built = Config::plain(16, 4 << 20).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("on", Some(65_536), Recording::Enabled).unwrap();
    image.write(&[1; 1000], 1 << 20).unwrap();
    image.write(&[1; 1000], 3 << 20).unwrap();
    image.resize(2 << 20, OFF).unwrap();
    image.resize(64 << 20, OFF).unwrap();
    image.write(&[1; 1000], 60 << 20).unwrap();
    image.close().unwrap();
    drop(image);
    built.checked_view().unwrap();
    let image = open(&built.path, true).unwrap();
    let dirty: Vec<u64> = image.bitmaps().ranges("on").unwrap().map(|range| range.offset).collect();
    assert_eq!(dirty, [1 << 20, 60 << 20]);
    image.create_snapshot("now", None).unwrap();
    image.bitmaps().clear("on").unwrap();
    image.resize(1 << 20, OFF).unwrap();
    image.apply_snapshot("now").unwrap();
    // Whoever applies a snapshot writes the whole disk.
    let dirty: Vec<_> =
        image.bitmaps().ranges("on").unwrap().map(|range| (range.offset, range.length)).collect();
    assert_eq!(dirty, [(0, 64 << 20)]);
    image.close().unwrap();
    drop(image);
    built.checked_view().unwrap();
    if qemu::qemu_or_skip() {
        qemu::assert_clean(&built.path);
    }
}

#[test]
fn a_raw_image_has_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    fs::write(&path, pattern(1, 0, 5000)).unwrap();
    let options = OpenOptions {
        write: true,
        format: Some(FormatKind::Raw),
        backing: Below::None,
        ..OpenOptions::default()
    };
    let image: Arc<Image> = options.open(&path).unwrap();
    image.resize(3001, OFF).unwrap();
    for (size, preallocation) in
        [(10_000, OFF), (200_000, Preallocation::Falloc), (300_000, Preallocation::Full)]
    {
        image.resize(size, preallocation).unwrap();
        assert_eq!(image.size(), size);
        assert!(read(&image) == resized(pattern(1, 0, 3001), size));
    }
    assert_eq!(image.resize(400_000, Preallocation::Metadata).unwrap_err().kind(), ErrorKind::InvalidInput);
    image.write(&[9; 10], 299_990).unwrap();
    assert_eq!(image.write(&[9; 11], 299_990).unwrap_err().kind(), ErrorKind::InvalidInput);
    image.close().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 300_000);
}

/// Cut to nothing and grown while others read and write: what they see is data, zeroes, or a range past the end.
#[test]
fn readers_and_writers_beside_a_changing_size() {
    let built = Config::plain(12, 1 << 20).build();
    let image = open(&built.path, true).unwrap();
    image.write(&vec![1; 1 << 20], 0).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for value in 2..4_u8 {
            let (image, done) = (&image, &done);
            scope.spawn(move || {
                let mut at = u64::from(value) * 4096;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    at = (at * 5 + 4096) % (1 << 20) / 4096 * 4096;
                    for result in [image.write(&[value; 4096], at), image.read(&mut [0; 4096], at)] {
                        assert!(result.is_ok() || result.unwrap_err().kind() == ErrorKind::InvalidInput);
                    }
                    let mut found = [9; 4096];
                    if image.read(&mut found, at).is_ok() {
                        assert!(found.iter().all(|byte| *byte < 4));
                    }
                }
            });
        }
        for round in 0..imago_testkit::scaled(20) {
            image.resize([64 << 10, 1 << 20, 300 << 10, 700 << 10][round as usize % 4], OFF).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    image.close().unwrap();
    drop(image);
    built.checked_view().unwrap();
    let bytes = fs::read(&built.path).unwrap();
    assert_eq!(Qcow2::parse(&bytes).unwrap().header.size, 700 << 10);
}

/// Refcounts that are too low make used clusters look free; a repair finds them only as long as they are in the file.
#[test]
fn closing_cuts_off_only_what_was_freed_here() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    create(&path, &CreateOptions::qcow2(4 << 20)).unwrap();
    let image = open(&path, true).unwrap();
    image.write(&vec![1; 8 << 16][..], 0).unwrap();
    image.close().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let block = word(&bytes, word(&bytes, 48));
    let last = bytes.len().div_ceil(1 << 16) - 1;
    bytes[block + 2 * last..][..2].fill(0);
    fs::write(&path, &bytes).unwrap();
    let image = open(&path, true).unwrap();
    image.discard(0, 1 << 16).unwrap();
    image.close().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64);
    let mut last_bytes = vec![0; 1 << 16];
    open(&path, false).unwrap().read(&mut last_bytes[..], 7 << 16).unwrap();
    assert!(last_bytes.iter().all(|byte| *byte == 1));
}

/// Gives up when told the `limit`-th time, if it comes to that; says how often it was told.
fn given_up(image: &Image, size: u64, preallocation: Preallocation, limit: usize) -> (Result<()>, usize) {
    let cancel = AtomicBool::new(false);
    let mut told = Vec::new();
    let mut progress = |Progress { done, total }| {
        told.push(done);
        assert!(done <= total);
        cancel.store(told.len() > limit, Ordering::Relaxed);
    };
    let result =
        image.resize_with(size, preallocation, &mut Job::default().progress(&mut progress).cancel(&cancel));
    assert!(told.is_sorted());
    (result, told.len())
}

#[test]
fn one_that_is_given_up_at_any_step_leaves_a_sound_image_of_the_old_size_or_shrinks_on_when_asked_again() {
    let layouts: [(&str, u64, u64, Preallocation); 7] = [
        ("cluster_size=512", 200 << 10, 500 << 10, Preallocation::Metadata),
        ("cluster_size=512", 200 << 10, 2 << 20, Preallocation::Full),
        ("cluster_size=65536", 1 << 20, 4 << 20, Preallocation::Full),
        ("cluster_size=65536", 1 << 20, 4 << 20, Preallocation::Falloc),
        ("extended_l2=on", 1 << 20, 4 << 20, Preallocation::Metadata),
        ("cluster_size=512,preallocation=metadata", 500 << 10, 40 << 10, OFF),
        ("compat=0.10,cluster_size=512,preallocation=metadata", 500 << 10, 1 << 10, OFF),
    ];
    for (options, old, new, preallocation) in layouts {
        let mut limit = 0;
        let steps = loop {
            let (_dir, path) = made_by_qemu(options, old);
            let image = open(&path, true).unwrap();
            image.write(&[7; 512], 512).unwrap();
            let (result, steps) = given_up(&image, new, preallocation, limit);
            let what = format!("{options} {preallocation} given up at {limit}");
            if result.is_err() {
                assert_eq!(image.size(), old.min(new), "{what}");
                image.close().unwrap();
                drop(image);
                assert_clean(&path, &what);
                let image = open(&path, true).unwrap();
                assert_eq!(image.size(), old.min(new), "{what}");
                image.resize(new, preallocation).unwrap();
                image.close().unwrap();
            } else {
                image.close().unwrap();
            }
            assert_clean(&path, &what);
            let image = open(&path, false).unwrap();
            let mut expected = vec![0; new as usize];
            expected[512..1024].fill(7);
            assert_eq!(read(&image), expected, "{what}");
            if result.is_ok() {
                break steps;
            }
            limit += 1 + limit / 2;
        };
        assert!(steps > 1, "{options}: told {steps} times");
    }
}
