//! The caches of an image's metadata: their sizes, and what is told of them.

use std::path::Path;
use std::sync::Arc;

use imago_core::Image;
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::open::OpenOptions;
use imago_core::format::qcow2::create::CreateOptions as Qcow2;
use imago_core::format::{CacheSizes, CacheStats, CacheUse, FormatKind};
use imago_core::{ErrorKind, Result};
use tempfile::TempDir;

/// Clusters of 512 bytes: an L2 table is one slice and maps 32 KiB, a refcount block counts 256 clusters.
fn new(directory: &TempDir) -> std::path::PathBuf {
    let path = directory.path().join("image");
    create(&path, &CreateOptions::Qcow2(Qcow2 { size: 4 << 20, cluster_size: 512, ..Qcow2::default() }))
        .unwrap();
    path
}

fn open(path: &Path, write: bool, cache_sizes: CacheSizes) -> Result<Arc<Image>> {
    OpenOptions { write, format: Some(FormatKind::Qcow2), cache_sizes, ..OpenOptions::default() }.open(path)
}

fn stats(image: &Image) -> CacheStats {
    image.cache_stats().expect("qcow2 has caches")
}

fn read_all(image: &Image) {
    let mut bytes = [0; 512];
    for at in (0..image.size()).step_by(32 << 10) {
        image.read(&mut bytes, at).unwrap();
        assert_eq!(bytes, [7; 512]);
    }
}

#[test]
fn look_ups_are_counted_and_the_size_is_kept() {
    let directory = TempDir::new().unwrap();
    let path = new(&directory);
    let image = open(&path, true, CacheSizes::default()).unwrap();
    image.write(&vec![7; 4 << 20], 0).unwrap();
    image.close().unwrap();

    let large = CacheSizes { l2: Some(1 << 20), refcount: None };
    let image = open(&path, false, large).unwrap();
    assert_eq!(stats(&image).l2.used, 0);
    read_all(&image);
    let first = stats(&image);
    assert_eq!((first.l2.misses, first.l2.used), (128, 128 * 512), "{first:?}");
    read_all(&image);
    let second = stats(&image);
    assert_eq!((second.l2.misses, second.l2.hits), (128, first.l2.hits + 128), "{second:?}");
    assert_eq!(second.refcount, CacheUse::default(), "nothing was written");

    let small = CacheSizes { l2: Some(16 * 512), refcount: None };
    let image = open(&path, false, small).unwrap();
    for pass in 1..=3 {
        read_all(&image);
        let l2 = stats(&image).l2;
        assert_eq!((l2.capacity, l2.used), (16 * 512, 16 * 512), "{l2:?}");
        assert_eq!(l2.misses, 128 * pass, "one pass pushes out what the next one needs: {l2:?}");
    }
}

#[test]
fn refcounts_keep_to_their_size_and_are_right() {
    let directory = TempDir::new().unwrap();
    let mut misses = Vec::new();
    for refcount in [None, Some(0), Some(4 * 512)] {
        let path = new(&directory);
        let image = open(&path, true, CacheSizes { l2: None, refcount }).unwrap();
        for round in 0..3 {
            for at in (0..4 << 20).step_by(64 << 10) {
                image.write(&[round; 8 << 10], at).unwrap();
            }
            image.flush().unwrap();
            for at in (0..4 << 20).step_by(128 << 10) {
                image.discard(at, 8 << 10).unwrap();
            }
            image.flush().unwrap();
        }
        let told = stats(&image).refcount;
        assert!(told.hits > 0, "{told:?}");
        assert_eq!(told.capacity, refcount.unwrap_or(4 << 20));
        misses.push(told.misses);
        image.close().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let report = imago_testkit::check::check(&bytes);
        assert!(report.leaks.is_empty() && report.corruptions.is_empty(), "{report:?}");
        std::fs::remove_file(&path).unwrap();
    }
    assert!(misses[0] < misses[2] && misses[2] <= misses[1], "{misses:?}");
}

#[test]
fn raw_images_have_no_caches() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("raw");
    create(&path, &CreateOptions::raw(512)).unwrap();
    let raw = OpenOptions { format: Some(FormatKind::Raw), ..OpenOptions::default() };
    assert_eq!(raw.open(&path).unwrap().cache_stats(), None);
    let cache_sizes = CacheSizes { l2: Some(1), refcount: None };
    let error = OpenOptions { cache_sizes, ..raw }.open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
