//! Metadata that turns out wrong while an image is written: the write is refused, the image is marked as QEMU marks
//! it, once and durably, and from then on only read.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use imago_core::access::image::Image;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::{FormatKind, ZeroIntent};
use imago_core::{ErrorKind, Result, Storage};
use imago_testkit::images::Config;
use imago_testkit::qcow2::{Qcow2, incompatible};
use imago_testkit::qemu;
use imago_testkit::sim::SimStorage;

const CLUSTER: u64 = 65_536;
const COPIED: u64 = 1 << 63;

fn open(storage: &Arc<SimStorage>, write: bool) -> Result<Arc<Image>> {
    let format = Some(FormatKind::Qcow2);
    OpenOptions { write, format, backing: Backing::None, ..OpenOptions::default() }
        .open_storage(storage.clone() as Arc<dyn Storage>)
}

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: u64, word: u64) {
    bytes[at as usize..][..8].copy_from_slice(&word.to_be_bytes());
}

/// Where the first L2 table is.
fn l2_table(bytes: &[u8]) -> u64 {
    Qcow2::parse(bytes).unwrap().active_l1().unwrap()[0] & !COPIED
}

/// Sixteen clusters, the first eight with data.
fn image(version: u32) -> Vec<u8> {
    let built = Config { version, ..Config::plain(16, 16 * CLUSTER) }.build();
    let image = imago_testkit::images::open(&built.path, true).unwrap();
    image.write(&vec![7; 8 * CLUSTER as usize], 0).unwrap();
    image.close().unwrap();
    fs::read(&built.path).unwrap()
}

type Lie = fn(&mut Vec<u8>);

/// What is wrong, and a byte of the disk where a write meets it.
const LIES: [(&str, Lie, u64); 5] = [
    (
        "the entry of cluster 2 names the refcount table",
        |bytes| {
            let table = l2_table(bytes);
            put(bytes, table + 16, CLUSTER | COPIED);
        },
        2 * CLUSTER,
    ),
    (
        "the entry of cluster 3 names no cluster boundary",
        |bytes| {
            let table = l2_table(bytes);
            let entry = word(bytes, table + 24);
            put(bytes, table + 24, entry + 512);
        },
        3 * CLUSTER,
    ),
    (
        "the L2 table starts at no cluster boundary",
        |bytes| {
            let l1 = Qcow2::parse(bytes).unwrap().header.l1_table_offset;
            let entry = word(bytes, l1);
            put(bytes, l1, entry + 512);
        },
        4 * CLUSTER,
    ),
    (
        "the L2 table counts as free, and a new cluster is needed",
        |bytes| {
            let table = l2_table(bytes) / CLUSTER;
            set_refcount(bytes, table, 0);
        },
        12 * CLUSTER,
    ),
    (
        "the refcount block starts at no cluster boundary, and a new cluster is needed",
        |bytes| {
            let table = Qcow2::parse(bytes).unwrap().header.refcount_table_offset;
            let entry = word(bytes, table);
            put(bytes, table, entry + 512);
        },
        12 * CLUSTER,
    ),
];

fn set_refcount(bytes: &mut [u8], cluster: u64, count: u16) {
    let table = Qcow2::parse(bytes).unwrap().header.refcount_table_offset;
    let at = word(bytes, table) + cluster * 2;
    bytes[at as usize..][..2].copy_from_slice(&count.to_be_bytes());
}

fn is_marked(bytes: &[u8]) -> bool {
    Qcow2::parse(bytes).unwrap().header.incompatible & incompatible::CORRUPT != 0
}

#[test]
fn a_write_that_meets_wrong_metadata_marks_the_image_once_and_durably() {
    let mut marks = 0;
    for (what, lie, at) in LIES {
        let mut bytes = image(3);
        lie(&mut bytes);
        let sim = Arc::new(SimStorage::from(bytes.clone()));
        let Ok(image) = open(&sim, true) else {
            // What opening notices is refused there, and nothing is written.
            assert!(sim.contents() == bytes, "{what}");
            continue;
        };
        marks += 1;
        let error = image.write(b"new", at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(
            error.message().contains("marked corrupt") && error.message().contains("repair"),
            "{what}: {error}"
        );
        let marked = sim.contents();
        assert!(is_marked(&marked), "{what}");
        // Durable: whatever power loss comes now finds the mark, and nothing but the mark.
        for crash in sim.crash_images(1, 50).filter(|crash| crash.epoch >= sim.epoch()) {
            assert!(is_marked(&crash.media[0]), "{what}: {crash:?}");
            let (mut crashed, mut before) = (crash.media[0].clone(), bytes.clone());
            crashed[72..80].fill(0);
            before[72..80].fill(0);
            assert!(crashed == before, "{what}: more than the mark was written");
        }
        for attempt in [
            image.write(b"again", at),
            image.write(b"x", 0),
            image.write_zeroes(0, CLUSTER, ZeroIntent::Keep),
            image.flush(),
        ] {
            assert_eq!(attempt.unwrap_err().kind(), ErrorKind::Latched, "{what}");
        }
        assert!(image.close().is_err(), "{what}: closing hides that writes are missing");
        assert!(sim.contents() == marked, "{what}: written to after the mark");
        assert_eq!(open(&sim, true).unwrap_err().kind(), ErrorKind::Corrupt, "{what}");
        open(&sim, false).unwrap().close().unwrap();
    }
    assert!(marks >= 4, "{marks}");
}

#[test]
fn reads_go_on_and_see_what_was_acknowledged() {
    let mut bytes = image(3);
    LIES[0].1(&mut bytes);
    let sim = Arc::new(SimStorage::from(bytes));
    let image = open(&sim, true).unwrap();
    image.write(b"acknowledged", 9 * CLUSTER).unwrap();
    assert_eq!(image.write(b"x", 2 * CLUSTER).unwrap_err().kind(), ErrorKind::Corrupt);
    let mut found = [0; 12];
    image.read(&mut found, 9 * CLUSTER).unwrap();
    assert_eq!(&found, b"acknowledged");
    image.read(&mut found, CLUSTER).unwrap();
    assert_eq!(found, [7; 12]);
}

/// A refcount that is too low shows when the cluster is let go.
#[test]
fn a_cluster_in_use_that_counts_as_free_marks_the_image() {
    let mut bytes = image(3);
    let data = word(&bytes, l2_table(&bytes)) & !COPIED;
    set_refcount(&mut bytes, data / CLUSTER, 0);
    let sim = Arc::new(SimStorage::from(bytes));
    let image = open(&sim, true).unwrap();
    image.write_zeroes(0, CLUSTER, ZeroIntent::Unmap).unwrap();
    let error = image.flush().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(is_marked(&sim.contents()));
    assert_eq!(image.write(b"x", CLUSTER).unwrap_err().kind(), ErrorKind::Latched);
}

#[test]
fn version_2_has_no_mark_and_is_not_written_any_more_all_the_same() {
    let mut bytes = image(2);
    LIES[0].1(&mut bytes);
    let sim = Arc::new(SimStorage::from(bytes.clone()));
    let image = open(&sim, true).unwrap();
    let error = image.write(b"x", 2 * CLUSTER).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("nothing more is written"), "{error}");
    assert_eq!(image.write(b"x", 0).unwrap_err().kind(), ErrorKind::Latched);
    assert!(sim.contents() == bytes);
}

#[test]
fn reading_marks_nothing() {
    for (what, lie, at) in LIES {
        let mut bytes = image(3);
        lie(&mut bytes);
        for write in [false, true] {
            let sim = Arc::new(SimStorage::from(bytes.clone()));
            if let Ok(image) = open(&sim, write) {
                let _ = image.read(&mut [0; 512], at);
                image.close().unwrap();
            }
            assert!(sim.contents() == bytes, "{what}");
        }
    }
}

/// Whether QEMU marks the image when the same write meets the same lie.
fn qemu_marks(bytes: &[u8], at: u64) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, bytes).unwrap();
    let tool = |command: &str| {
        std::process::Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", command])
            .arg(&path)
            .output()
            .unwrap()
    };
    tool(&format!("write {at} 512"));
    marked_by_info(&path)
}

fn marked_by_info(path: &Path) -> bool {
    qemu::img(&["info".as_ref(), "--output=json".as_ref(), path.as_os_str()]).contains("\"corrupt\": true")
}

#[test]
fn what_is_marked_here_is_marked_by_qemu() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let mut compared = 0;
    for (what, lie, at) in LIES {
        let mut bytes = image(3);
        lie(&mut bytes);
        let theirs = qemu_marks(&bytes, at);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, &bytes).unwrap();
        let Ok(image) = imago_testkit::images::open(&path, true) else {
            continue;
        };
        image.write(b"x", at).unwrap_err();
        drop(image);
        assert!(marked_by_info(&path) && theirs, "{what}: QEMU marks it: {theirs}");
        compared += 1;
    }
    assert!(compared >= 4, "{compared}");
}
