use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago_testkit::qemu;
use tempfile::TempDir;

use super::*;
use crate::error::ErrorKind;
use crate::format::Format;
use crate::format::qcow2::Driver;
use crate::storage::StorageOpenOptions;
use crate::storage::file::File;
use crate::storage::memory::Memory;
use crate::units::GuestOffset;

fn open(path: &Path, write: bool) -> File {
    File::open_sync(StorageOpenOptions::new().filename(path).write(write)).unwrap()
}

#[track_caller]
fn info_of(path: &Path) -> Qcow2Info {
    let file = open(path, false);
    info(&file, &Header::read(&file).unwrap()).unwrap()
}

/// QEMU's JSON without white space.
#[track_caller]
fn json(path: &Path) -> String {
    let text = qemu::img(&["info", "--output=json", path.to_str().unwrap()]);
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// The image made by `qemu-img` and these commands, each with the image's path appended.
fn image(directory: &TempDir, options: &str, commands: &[&[&str]]) -> PathBuf {
    let path = directory.path().join("image.qcow2");
    qemu::create(&path, 64 << 20, options);
    for command in commands {
        let mut args: Vec<&str> = command.to_vec();
        args.insert(if command[0] == "bitmap" { args.len() - 1 } else { args.len() }, path.to_str().unwrap());
        qemu::img(&args);
    }
    path
}

/// Says what `info` found in QEMU's words and looks for each of them.
#[track_caller]
fn assert_as_qemu(path: &Path) {
    let (ours, theirs) = (info_of(path), json(path));
    let mut words = vec![
        format!("\"compat\":\"{}\"", if ours.version == 2 { "0.10" } else { "1.1" }),
        format!("\"compression-type\":\"{}\"", ours.compression_type),
        format!("\"refcount-bits\":{}", ours.refcount_bits),
    ];
    if ours.version == 3 {
        words.push(format!("\"lazy-refcounts\":{}", ours.lazy_refcounts));
        words.push(format!("\"corrupt\":{},\"extended-l2\":{}", ours.corrupt, ours.extended_l2));
    }
    if let Some(raw) = ours.data_file_raw {
        words.push(format!("\"data-file\":\"{}\",\"data-file-raw\":{raw}", ours.data_file.as_ref().unwrap()));
    }
    for bitmap in &ours.bitmaps {
        let flags = bitmap.flags.iter().map(|flag| format!("\"{flag}\"")).collect::<Vec<_>>().join(",");
        let (name, granularity) = (&bitmap.name, bitmap.granularity);
        words.push(format!("{{\"flags\":[{flags}],\"name\":\"{name}\",\"granularity\":{granularity}}}"));
    }
    for snapshot in &ours.snapshots {
        let icount = snapshot.icount.map(|icount| format!("\"icount\":{icount},")).unwrap_or_default();
        words.push(format!(
            "{{{icount}\"vm-clock-nsec\":{},\"name\":\"{}\",\"date-sec\":{},\"date-nsec\":{},\
             \"vm-clock-sec\":{},\"id\":\"{}\",\"vm-state-size\":{}}}",
            snapshot.vm_clock_nsec % 1_000_000_000,
            snapshot.name,
            snapshot.date_sec,
            snapshot.date_nsec,
            snapshot.vm_clock_nsec / 1_000_000_000,
            snapshot.id,
            snapshot.vm_state_size
        ));
    }
    for word in &words {
        assert!(theirs.contains(word), "{word} in {theirs}");
    }
    assert_eq!(theirs.matches("\"granularity\"").count(), ours.bitmaps.len());
    assert_eq!(theirs.matches("\"vm-state-size\"").count(), ours.snapshots.len());
}

#[test]
fn info_says_what_qemu_says() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    for options in [
        "",
        "compat=0.10",
        "cluster_size=512,refcount_bits=1",
        "extended_l2=on,compression_type=zstd,lazy_refcounts=on,refcount_bits=64",
    ] {
        assert_as_qemu(&image(&directory, options, &[]));
    }
    let data = directory.path().join("image.data");
    assert_as_qemu(&image(&directory, &format!("data_file={},data_file_raw=on", data.display()), &[]));
}

#[test]
fn snapshots_are_listed_as_qemu_lists_them() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let long = "x".repeat(100);
    for options in ["", "compat=0.10,cluster_size=512"] {
        let commands: [&[&str]; 3] =
            [&["snapshot", "-c", "first"], &["snapshot", "-c", "n"], &["snapshot", "-c", &long]];
        let path = image(&directory, options, &commands);
        assert_as_qemu(&path);
        let file = open(&path, false);
        let table = SnapshotTable::read(&file, &Header::read(&file).unwrap()).unwrap();
        assert_eq!(table.snapshots.len(), 3);
        // 64 bytes fixed and extra, the id, the name; padded to a multiple of 8 but for the last.
        assert_eq!(table.len, (64 + 1 + 5 + 2) + (64 + 1 + 1 + 6) + (64 + 1 + 100));
    }
}

#[test]
fn bitmaps_are_listed_as_qemu_lists_them() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    assert_as_qemu(&image(&directory, "", BITMAPS));
}

const BITMAPS: &[&[&str]] = &[
    &["bitmap", "--add", "on"],
    &["bitmap", "--add", "--disable", "off"],
    &["bitmap", "--add", "-g", "512", "another"],
];

#[test]
fn enabled_bitmaps_are_marked_and_qemu_takes_them_for_inconsistent() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = image(&directory, "", BITMAPS);
    for _ in 0..2 {
        // Never closed.
        let driver = Driver::open(Arc::new(open(&path, true)), true).unwrap();
        driver.record(GuestOffset(0), 1).unwrap();
    }
    let flags: Vec<_> = info_of(&path).bitmaps.into_iter().map(|bitmap| bitmap.flags).collect();
    assert_eq!(flags, [vec!["in-use", "auto"], vec![], vec!["in-use", "auto"]]);
    assert_as_qemu(&path);
    qemu::assert_clean(&path);

    let path = path.to_str().unwrap();
    let clear =
        |name| std::process::Command::new("qemu-img").args(["bitmap", "--clear", path, name]).output();
    let said = clear("on").unwrap();
    assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("inconsistent"));
    assert!(clear("off").unwrap().status.success(), "a disabled bitmap stays valid");
    qemu::img(&["bitmap", "--remove", path, "on"]);
    qemu::assert_clean(Path::new(path));
}

/// Every bit flipped and every length of the file: an answer, and nothing written.
#[test]
fn broken_tables_are_errors() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let commands = [BITMAPS, &[&["snapshot", "-c", "first"], &["snapshot", "-c", "second"]]].concat();
    let path = image(&directory, "cluster_size=512", &commands);
    let good = std::fs::read(&path).unwrap();
    let memory = Memory::default();
    memory.writev_at((&good).into(), 0).unwrap();
    let header = Header::read(&memory).unwrap();
    let snapshots = SnapshotTable::read(&memory, &header).unwrap();
    let bitmaps = header.bitmaps.unwrap();
    let tables =
        [(header.snapshot_offset.0, snapshots.len), (bitmaps.directory_offset.0, bitmaps.directory_size)];

    let mut refused = 0;
    for (start, len) in tables {
        for at in start..start + len {
            for flip in [0x01, 0x10, 0x80, 0xff] {
                memory.writev_at([good[at as usize] ^ flip].as_slice().into(), at).unwrap();
                match info(&memory, &header) {
                    Ok(_) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                        refused += 1;
                    }
                }
            }
            memory.writev_at([good[at as usize]].as_slice().into(), at).unwrap();
        }
    }
    assert!(refused > 100, "only {refused} changes were noticed");
    for len in (0..good.len() as u64).rev().step_by(37) {
        memory.set_len(len).unwrap();
        if let Ok(header) = Header::read(&memory) {
            let _ = info(&memory, &header);
        }
    }
}
