//! Internal snapshots: what this makes QEMU understands, what QEMU makes this understands, and what cannot be is refused untouched.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use imago_core::ErrorKind;
use imago_core::access::image::Image;
use imago_core::access::open::OpenOptions;
use imago_core::format::FormatKind;
use imago_core::format::qcow2_info::SnapshotInfo;
use imago_testkit::check::check;
use imago_testkit::images::{Config, DataFile, open};
use imago_testkit::model::pattern;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::{qemu, scaled};
use tempfile::TempDir;

const SIZE: u64 = 3 << 20;

/// An image that QEMU made, with every kind of cluster in it.
fn made_by_qemu(options: &str, compressed: bool) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu::create(&path, SIZE, options);
    let mut commands = vec!["write -P 1 0 1M".to_owned(), "write -z 1536k 64k".to_owned()];
    if compressed {
        let cluster = Qcow2::parse(&fs::read(&path).unwrap()).unwrap().header.cluster_size();
        commands.insert(0, format!("write -c -P 2 2M {}", cluster * 3.min((1 << 20) / cluster)));
    }
    qemu::io(&path, "qcow2", &commands);
    (dir, path)
}

fn read(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xa5; image.size() as usize];
    image.read(&mut bytes, 0).unwrap();
    bytes
}

fn at_snapshot(path: &Path, snapshot: &str) -> Arc<Image> {
    let options = OpenOptions {
        snapshot: Some(snapshot.into()),
        format: Some(FormatKind::Qcow2),
        ..OpenOptions::default()
    };
    options.open(path).unwrap()
}

/// What a snapshot shows. Closed again, which lets go of the locks even where a child process still has the file.
fn content_at(path: &Path, snapshot: &str) -> Vec<u8> {
    let image = at_snapshot(path, snapshot);
    assert!(!image.writable());
    let content = read(&image);
    image.close().unwrap();
    content
}

fn list(image: &Image) -> Vec<(String, String)> {
    image.snapshots().unwrap().into_iter().map(|snapshot| (snapshot.id, snapshot.name)).collect()
}

fn pair(id: &str, name: &str) -> (String, String) {
    (id.into(), name.into())
}

#[track_caller]
fn assert_clean(path: &Path, what: &str) {
    let report = check(&fs::read(path).unwrap());
    assert!(report.corruptions.is_empty() && report.leaks.is_empty() && !report.dirty, "{what}: {report}");
    qemu::assert_clean(path);
}

const LAYOUTS: [(&str, bool); 16] = [
    ("", false),
    ("", true),
    ("compat=0.10", true),
    ("compat=0.10,cluster_size=512", false),
    ("cluster_size=512", true),
    ("cluster_size=512,refcount_bits=64", false),
    ("cluster_size=1024,refcount_bits=4", false),
    ("cluster_size=4096,refcount_bits=8", false),
    ("cluster_size=4096,compression_type=zstd", true),
    ("cluster_size=16384,refcount_bits=64", true),
    ("cluster_size=131072,refcount_bits=32", false),
    ("cluster_size=2097152", false),
    ("extended_l2=on", true),
    ("extended_l2=on,cluster_size=16384", false),
    ("preallocation=metadata", false),
    ("lazy_refcounts=on", false),
];

#[test]
fn qemu_agrees_with_snapshots_made_here() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for (options, compressed) in LAYOUTS {
        let (_dir, path) = made_by_qemu(options, compressed);
        let image = open(&path, true).unwrap();
        let mut contents = Vec::new();
        for (round, name) in (0..).zip(["first", "second"]) {
            contents.push(read(&image));
            let made = image.create_snapshot(name, None).unwrap_or_else(|e| panic!("{options}: {e}"));
            assert_eq!((made.id.as_str(), made.name.as_str()), (["1", "2"][round], name));
            let round = round as u64;
            image.write(&pattern(20 + round as u8, 0, 300_000), round * 500_000).unwrap();
            image.discard(round * 700_000, 100_000).unwrap();
        }
        contents.push(read(&image));
        image.close().unwrap();
        drop(image);
        assert_clean(&path, options);
        for (name, content) in [("first", &contents[0]), ("second", &contents[1])] {
            assert!(qemu::snapshot_content(&path, name) == *content, "{options}: {name}");
            assert!(content_at(&path, name) == *content, "{options}: {name}");
        }
        assert!(qemu::content(&path) == contents[2], "{options}");

        let image = open(&path, true).unwrap();
        image.apply_snapshot("first").unwrap();
        assert!(read(&image) == contents[0], "{options}: applied");
        image.write(&pattern(30, 0, 200_000), 100_000).unwrap();
        let changed = read(&image);
        image.close().unwrap();
        drop(image);
        assert_clean(&path, options);
        assert!(qemu::content(&path) == changed, "{options}");
        assert!(qemu::snapshot_content(&path, "first") == contents[0], "{options}");

        let image = open(&path, true).unwrap();
        image.delete_snapshot("1").unwrap();
        assert_eq!(list(&image), [pair("2", "second")]);
        image.write(&pattern(31, 0, 100_000), 1 << 20).unwrap();
        let changed = read(&image);
        image.delete_snapshot("second").unwrap();
        assert!(read(&image) == changed, "{options}: deleted");
        image.write(&pattern(32, 0, 100_000), 2 << 20).unwrap();
        let changed = read(&image);
        image.close().unwrap();
        drop(image);
        assert_clean(&path, options);
        assert!(qemu::content(&path) == changed, "{options}");
        assert!(qemu::img(&["snapshot", "-l", path.to_str().unwrap()]).trim().is_empty());
    }
}

#[test]
fn snapshots_made_by_qemu_are_read_applied_and_deleted_here() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for (options, compressed) in LAYOUTS {
        let (_dir, path) = made_by_qemu(options, compressed);
        let name = path.to_str().unwrap();
        let before = qemu::content(&path);
        qemu::img(&["snapshot", "-c", "one", name]);
        qemu::io(&path, "qcow2", &["write -P 7 512k 1M", "discard 0 256k"]);
        let between = qemu::content(&path);
        qemu::img(&["snapshot", "-c", "two", name]);
        qemu::io(&path, "qcow2", &["write -P 8 2M 300k"]);
        let after = qemu::content(&path);
        for (snapshot, content) in [("one", &before), ("2", &between)] {
            assert!(content_at(&path, snapshot) == *content, "{options}: {snapshot}");
        }
        let image = open(&path, true).unwrap();
        assert_eq!(list(&image), [pair("1", "one"), pair("2", "two")]);
        image.delete_snapshot("two").unwrap();
        assert!(read(&image) == after, "{options}");
        image.apply_snapshot("1").unwrap();
        assert!(read(&image) == before, "{options}");
        image.close().unwrap();
        drop(image);
        assert_clean(&path, options);
        assert!(qemu::content(&path) == before, "{options}");
        // QEMU goes on with what is left.
        qemu::io(&path, "qcow2", &["write -P 9 0 2M"]);
        qemu::img(&["snapshot", "-a", "one", name]);
        assert_clean(&path, options);
        assert!(qemu::content(&path) == before, "{options}");
        qemu::img(&["snapshot", "-d", "one", name]);
        assert_clean(&path, options);
    }
}

#[test]
fn ids_count_on_names_repeat_and_either_finds_a_snapshot() {
    let built = Config::plain(12, 100_000).build();
    let image = open(&built.path, true).unwrap();
    image.create_snapshot("same", None).unwrap();
    image.create_snapshot("same", Some("7up")).unwrap();
    image.create_snapshot("1", None).unwrap();
    assert_eq!(list(&image), [pair("1", "same"), pair("7up", "same"), pair("8", "1")]);
    // An id comes before a name.
    image.rename_snapshot("1", "new\u{e4}").unwrap();
    image.delete_snapshot("same").unwrap();
    assert_eq!(list(&image), [pair("1", "new\u{e4}"), pair("8", "1")]);
    let refused = [
        image.create_snapshot("x", Some("8")).unwrap_err(),
        image.create_snapshot("x", Some("")).unwrap_err(),
        image.create_snapshot(&"x".repeat(256), None).unwrap_err(),
        image.create_snapshot("x", Some(&"1".repeat(128))).unwrap_err(),
        image.create_snapshot("a\0b", None).unwrap_err(),
        image.rename_snapshot("8", &"x".repeat(256)).unwrap_err(),
        image.rename_snapshot("nobody", "x").unwrap_err(),
        image.apply_snapshot("nobody").unwrap_err(),
        image.delete_snapshot("nobody").unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::InvalidInput), "{refused:?}");
    image.create_snapshot(&"x".repeat(255), Some(&"1".repeat(127))).unwrap();
    image.close().unwrap();
    drop(image);
    check(&fs::read(&built.path).unwrap()).assert_clean();
    if qemu::qemu_or_skip() {
        qemu::assert_clean(&built.path);
        assert!(qemu::img(&["snapshot", "-l", built.path.to_str().unwrap()]).contains(&"x".repeat(255)));
    }
}

/// What is refused leaves every byte of the file as it was.
#[test]
fn a_snapshot_that_cannot_be_is_refused_untouched() {
    let narrow = Config { refcount_bits: 1, ..Config::plain(12, 100_000) };
    let with_data = Config { data_file: DataFile::Plain, ..Config::plain(16, 1 << 20) };
    for (config, snapshots) in
        [(narrow, 0), (Config { refcount_bits: 2, ..Config::plain(9, 50_000) }, 2), (with_data, 0)]
    {
        let built = config.build();
        let image = open(&built.path, true).unwrap();
        image.write(&pattern(1, 0, 40_000), 5000).unwrap();
        for name in 0..snapshots {
            image.create_snapshot(&name.to_string(), None).unwrap();
        }
        image.write(&pattern(3, 0, 1024), 8192).unwrap();
        image.close().unwrap();
        let before = fs::read(&built.path).unwrap();
        let image = open(&built.path, true).unwrap();
        let error = image.create_snapshot("one more", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        // A cluster that disk and snapshots share, in L2 tables of their own: it has one owner more for a while.
        if snapshots > 0 {
            let error = image.apply_snapshot("0").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
        assert!(fs::read(&built.path).unwrap() == before, "{config:?}");
        image.write(&pattern(2, 0, 30_000), 20_000).unwrap();
        image.close().unwrap();
        drop(image);
        check(&fs::read(&built.path).unwrap()).assert_clean();
    }
    let image = open(&Config::plain(16, 1 << 20).build().path, false).unwrap();
    assert_eq!(image.create_snapshot("x", None).unwrap_err().kind(), ErrorKind::ReadOnly);
}

/// More clusters in a row than one refcount block, or the whole refcount table, counts.
#[test]
fn long_tables_find_their_row_of_clusters() {
    // 64 clusters of 512 bytes to a block; an L1 table of 16 KiB, then of 1 MiB.
    for size in [64 << 20, 4 << 30] {
        let built = Config { refcount_bits: 64, ..Config::plain(9, 4096) }.build();
        fs::remove_file(&built.path).unwrap();
        let storage = imago_testkit::images::new_file(&built.path);
        let options = Config { refcount_bits: 64, ..Config::plain(9, size) }.options();
        imago_core::format::qcow2::create::create(&storage, None, &options).unwrap();
        drop(storage);
        let image = open(&built.path, true).unwrap();
        for at in 0..8 {
            image.write(&pattern(at as u8 + 1, 0, 2000), size / 8 * at).unwrap();
        }
        for name in ["a", "b", "c"] {
            image.create_snapshot(name, None).unwrap();
            image.write(&pattern(9, 0, 2000), size / 2 + 1000).unwrap();
        }
        image.delete_snapshot("b").unwrap();
        image.apply_snapshot("a").unwrap();
        image.close().unwrap();
        check(&fs::read(&built.path).unwrap()).assert_clean();
    }
}

/// Fields that nobody here knows, and those of other users, outlive every rewrite of the table.
#[test]
fn entries_are_kept_byte_for_byte() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let (_dir, path) = made_by_qemu("", false);
    qemu::img(&["snapshot", "-c", "kept", path.to_str().unwrap()]);
    let mut bytes = fs::read(&path).unwrap();
    let start = Qcow2::parse(&bytes).unwrap().header.snapshots_offset as usize;
    // VM clock, VM state size, and extra data: VM state size, disk size, instruction count, and 13 bytes of the future.
    let entry = bytes[start..start + 40 + 24 + 5].to_vec();
    let (fixed, rest) = entry.split_at(40);
    let (extra, names) = rest.split_at(24);
    let mut odd = fixed.to_vec();
    odd[24..32].copy_from_slice(&0x1234_5678_9abc_u64.to_be_bytes());
    odd[32..36].copy_from_slice(&77_u32.to_be_bytes());
    odd[36..40].copy_from_slice(&37_u32.to_be_bytes());
    odd.extend_from_slice(&12_345_u64.to_be_bytes());
    odd.extend_from_slice(&extra[8..16]);
    odd.extend_from_slice(&99_u64.to_be_bytes());
    odd.extend_from_slice(b"of the future");
    odd.extend_from_slice(names);
    bytes.resize(bytes.len().next_multiple_of(65_536), 0);
    bytes[start..start + odd.len()].copy_from_slice(&odd);
    fs::write(&path, &bytes).unwrap();

    let image = open(&path, true).unwrap();
    image.create_snapshot("another", None).unwrap();
    image.rename_snapshot("another", "a longer name").unwrap();
    image.apply_snapshot("kept").unwrap();
    image.delete_snapshot("a longer name").unwrap();
    let SnapshotInfo { vm_state_size, vm_clock_nsec, icount, .. } = image.snapshots().unwrap().remove(0);
    assert_eq!((vm_state_size, vm_clock_nsec, icount), (12_345, 0x1234_5678_9abc, Some(99)));
    image.close().unwrap();
    drop(image);
    let bytes = fs::read(&path).unwrap();
    let start = Qcow2::parse(&bytes).unwrap().header.snapshots_offset as usize;
    assert_eq!(bytes[start..start + odd.len()], odd);
    assert_clean(&path, "odd entry");
}

/// A snapshot has the size that the disk had then.
#[test]
fn a_snapshot_of_another_size_is_read_and_applied_with_its_own() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for options in ["", "cluster_size=512", "extended_l2=on"] {
        for size in ["1M", "9M"] {
            let (_dir, path) = made_by_qemu(options, false);
            let name = path.to_str().unwrap();
            let before = qemu::content(&path);
            qemu::img(&["snapshot", "-c", "old", name]);
            qemu::img(&["resize", "-q", "-f", "qcow2", "--shrink", name, size]);
            qemu::io(&path, "qcow2", &["write -P 4 100k 800k"]);
            let after = qemu::content(&path);
            let snapshot = at_snapshot(&path, "old");
            assert_eq!(snapshot.size(), SIZE);
            assert!(read(&snapshot) == before, "{options} {size}");
            snapshot.close().unwrap();
            let image = open(&path, true).unwrap();
            image.create_snapshot("new", None).unwrap();
            image.apply_snapshot("old").unwrap();
            assert_eq!(image.size(), SIZE);
            assert!(read(&image) == before, "{options} {size}");
            image.apply_snapshot("new").unwrap();
            assert!(read(&image) == after, "{options} {size}");
            image.write(&pattern(3, 0, 1000), image.size() - 1000).unwrap();
            let after = read(&image);
            image.close().unwrap();
            drop(image);
            assert_clean(&path, options);
            assert!(qemu::content(&path) == after, "{options} {size}");
            // QEMU shows it with the disk's size, cut or followed by zeroes.
            let found = qemu::snapshot_content(&path, "old");
            let both = found.len().min(before.len());
            assert!(
                found[..both] == before[..both] && found[both..].iter().all(|byte| *byte == 0),
                "{options} {size}"
            );
        }
    }
}

/// Reads go on while snapshots come and go, and every write is in the snapshot whole or not at all.
#[test]
fn readers_and_writers_beside_snapshots() {
    const BLOCK: u64 = 4096;
    let built = Config { refcount_bits: 64, ..Config::plain(12, 1 << 20) }.build();
    let image = open(&built.path, true).unwrap();
    let blocks = image.size() / BLOCK;
    image.write(&vec![1; image.size() as usize], 0).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (image, done) = (&image, &done);
            scope.spawn(move || {
                // A thread's blocks are its own: none ever shows anything but what it wrote last.
                let mut written = vec![1_u8; blocks as usize];
                for round in 0.. {
                    let block = (round * 7 + 3 * thread) % (blocks / 2) * 2 + thread;
                    let value = (round % 250) as u8 + 1;
                    image.write(&[value; BLOCK as usize], block * BLOCK).unwrap();
                    written[block as usize] = value;
                    let other = (round * 13) % (blocks / 2) * 2 + thread;
                    let mut found = [0; BLOCK as usize];
                    image.read(&mut found, other * BLOCK).unwrap();
                    assert_eq!(found, [written[other as usize]; BLOCK as usize]);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        for round in 0..scaled(12) {
            image.create_snapshot(&format!("s{round}"), None).unwrap();
            if round % 3 == 2 {
                image.delete_snapshot(&format!("s{}", round - 1)).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let names = list(&image);
    image.close().unwrap();
    drop(image);
    check(&fs::read(&built.path).unwrap()).assert_clean();
    for (id, _) in names {
        for block in content_at(&built.path, &id).chunks(BLOCK as usize) {
            assert!(block.iter().all(|byte| *byte == block[0]), "half a write in snapshot {id}");
        }
    }
}

#[test]
fn a_raw_image_has_no_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    fs::write(&path, [0; 4096]).unwrap();
    let options = OpenOptions { write: true, format: Some(FormatKind::Raw), ..OpenOptions::default() };
    let image = options.open(&path).unwrap();
    assert_eq!(image.snapshots().unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(image.create_snapshot("x", None).unwrap_err().kind(), ErrorKind::Unsupported);
    image.close().unwrap();
    let options = OpenOptions { snapshot: Some("1".into()), write: false, ..options };
    assert_eq!(options.open(&path).unwrap_err().kind(), ErrorKind::Unsupported);
    let options = OpenOptions { write: true, ..options };
    assert_eq!(options.open(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
}
