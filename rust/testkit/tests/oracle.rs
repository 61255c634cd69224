//! The oracle itself against QEMU: what QEMU makes is clean and reads the same, and damage is found.

use std::fs;
use std::path::{Path, PathBuf};

use imago_testkit::check::check;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::qemu;

/// A busy image made by QEMU: data, zeroes, discards, a compressed part, over a raw backing file.
fn busy_image(dir: &Path, options: &str) -> PathBuf {
    let base = dir.join("base.raw");
    fs::write(&base, (0..300_000u32).map(|i| (i / 7) as u8).collect::<Vec<_>>()).unwrap();
    let image = dir.join("image.qcow2");
    let backing = format!("backing_file={},backing_fmt=raw", base.display());
    let options = if options.is_empty() { backing } else { format!("{options},{backing}") };
    qemu::create(&image, 1_000_448, &options);
    let mut commands =
        vec!["write -P 17 1000 70000", "write -P 18 400k 200k", "write -z -u 64k 100k", "discard 448k 64k"];
    // QEMU packs whole clusters only; the 2 MiB one is larger than the disk.
    if !options.contains("data_file") && !options.contains("2097152") {
        commands.push("write -c -P 19 768k 64k");
    }
    qemu::io(&image, "qcow2", &commands);
    image
}

const MATRIX: [&str; 11] = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4096,refcount_bits=1",
    "refcount_bits=2",
    "refcount_bits=4,compression_type=zstd",
    "refcount_bits=8,cluster_size=2097152",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16384,refcount_bits=32",
    "lazy_refcounts=on",
];

#[test]
fn what_qemu_makes_is_clean_and_reads_as_qemu_reads_it() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for options in MATRIX {
        let dir = tempfile::tempdir().unwrap();
        let path = busy_image(dir.path(), options);
        let bytes = fs::read(&path).unwrap();
        check(&bytes).assert_clean();
        let image = Qcow2::parse(&bytes).unwrap();
        let backing = fs::read(dir.path().join("base.raw")).unwrap();
        let content = image.content(&backing, None).unwrap();
        assert!(content == qemu::content(&path), "{options}: contents differ");
        let part = image.read_guest(65_000, 400_001, &backing, None).unwrap();
        assert!(part == content[65_000..465_001], "{options}: a part differs from the whole");
    }
}

#[test]
fn a_data_file_is_read_and_its_image_is_clean() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.raw");
    let path = busy_image(dir.path(), &format!("data_file={}", data.display()));
    let bytes = fs::read(&path).unwrap();
    check(&bytes).assert_clean();
    let backing = fs::read(dir.path().join("base.raw")).unwrap();
    let content = Qcow2::parse(&bytes).unwrap().content(&backing, Some(&fs::read(data).unwrap())).unwrap();
    assert!(content == qemu::content(&path));
}

#[test]
fn snapshots_and_bitmaps_are_followed() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = busy_image(dir.path(), "cluster_size=4096");
    let name = path.to_str().unwrap();
    qemu::img(&["bitmap", "--add", "-g", "512", name, "dirty"]);
    qemu::img(&["snapshot", "-c", "one", name]);
    qemu::io(&path, "qcow2", &["write -P 33 0 500k"]);
    qemu::img(&["snapshot", "-c", "two", name]);
    qemu::io(&path, "qcow2", &["write -P 34 100k 300k", "write -z 0 64k"]);
    let bytes = fs::read(&path).unwrap();
    check(&bytes).assert_clean();
    let image = Qcow2::parse(&bytes).unwrap();
    let backing = fs::read(dir.path().join("base.raw")).unwrap();
    assert_eq!(image.bitmaps.iter().map(|b| &*b.name).collect::<Vec<_>>(), ["dirty"]);
    assert_eq!(image.snapshots.len(), 2);
    for snapshot in &image.snapshots {
        let content = image.snapshot_content(snapshot, &backing).unwrap();
        assert!(content == qemu::snapshot_content(&path, &snapshot.name), "{}", snapshot.name);
    }
}

/// An image of ours to damage: `(bytes, offset of its first L2 table)`.
fn plain_image() -> Option<(Vec<u8>, usize)> {
    if !qemu::qemu_or_skip() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu::create(&path, 1 << 20, "cluster_size=4096");
    qemu::io(&path, "qcow2", &["write -P 1 0 64k"]);
    let bytes = fs::read(&path).unwrap();
    let table = Qcow2::parse(&bytes).unwrap().active_l1().unwrap()[0] & !(1 << 63);
    Some((bytes, table as usize))
}

/// Damages the L2 entry at `index` of the image's first table and returns what the check says.
fn damaged_entry(index: usize, change: impl Fn(u64) -> u64) -> Option<imago_testkit::check::Report> {
    let (mut bytes, table) = plain_image()?;
    let at = table + index * 8;
    let word = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    bytes[at..at + 8].copy_from_slice(&change(word).to_be_bytes());
    Some(check(&bytes))
}

#[test]
fn a_dropped_pointer_is_a_leak_and_no_corruption() {
    if let Some(report) = damaged_entry(3, |_| 0) {
        report.assert_no_corruption();
        assert_eq!(report.leaks.len(), 1, "{report}");
    }
}

#[test]
fn damaged_entries_are_corruptions() {
    type Damage = fn(u64) -> u64;
    let damages: [(&str, Damage); 5] = [
        ("overlaps", |word| word - 4096),
        ("overlaps", |word| word & 1 << 63 | 4096),
        ("aligned", |word| word + 512),
        ("past the end", |word| word + (1 << 40)),
        ("reserved", |word| word | 1 << 57),
    ];
    for (words, damage) in damages {
        let Some(report) = damaged_entry(3, damage) else { return };
        assert!(report.corruptions.iter().any(|line| line.contains(words)), "{words}: {report}");
    }
}

#[test]
fn a_clear_copied_flag_is_told_apart_from_corruption() {
    let Some(report) = damaged_entry(3, |word| word & !(1 << 63)) else { return };
    assert!(report.unflagged.len() == 1 && report.corruptions.is_empty(), "{report}");
}

#[test]
fn a_set_copied_flag_on_a_shared_cluster_is_a_corruption() {
    let Some((mut bytes, table)) = plain_image() else { return };
    let block = Qcow2::parse(&bytes).unwrap().refcount_table().unwrap()[0] as usize;
    let host = u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap()) & !(1 << 63);
    bytes[block + host as usize / 4096 * 2 + 1] = 2;
    let report = check(&bytes);
    assert!(report.corruptions.iter().any(|line| line.contains("COPIED")), "{report}");
}

#[test]
fn a_refcount_that_is_too_low_is_a_corruption() {
    let Some((mut bytes, _)) = plain_image() else { return };
    let block = Qcow2::parse(&bytes).unwrap().refcount_table().unwrap()[0] as usize;
    bytes[block + 1] = 0;
    let report = check(&bytes);
    assert!(report.corruptions.iter().any(|line| line.contains("refcount 0, references 1")), "{report}");
}
