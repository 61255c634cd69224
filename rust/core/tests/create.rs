//! Creating image files: what QEMU makes of them, what is refused, and what becomes of files that are there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use imago_core::access::convert::{ConvertOptions, convert};
use imago_core::access::create::{BackingCheck, CreateHow, CreateOptions, create, create_with};
use imago_core::access::job::Job;
use imago_core::access::open::OpenOptions;
use imago_core::format::preallocation::Preallocation;
use imago_core::format::qcow2::create::{CreateOptions as Qcow2, Version};
use imago_core::format::{FormatKind, ImplicitReference};
use imago_core::{ErrorKind, Result, StorageOpenOptions, file::File};
use imago_testkit::images;
use imago_testkit::qemu;
use tempfile::TempDir;

const MODES: [Preallocation; 4] =
    [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];

fn backed(name: impl Into<PathBuf>, format: &str) -> Qcow2 {
    let backing = ImplicitReference { name: name.into(), format: Some(format.into()) };
    Qcow2 { size: 1 << 20, backing: Some(backing), ..Qcow2::default() }
}

fn make(path: &Path, options: Qcow2, how: CreateHow) -> Result<()> {
    create_with(path, CreateOptions::Qcow2(options), how, &mut Job::default())
}

const CHECKED: CreateHow = CreateHow { overwrite: false, backing: BackingCheck::Open };
const SIZED: CreateHow = CreateHow { overwrite: false, backing: BackingCheck::TakeSize };
const OVERWRITING: CreateHow = CreateHow { overwrite: true, backing: BackingCheck::Skip };

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// `qemu-img map` without the places in the file, neighbours that say the same as one. Where data is that nobody wrote, the host's file says whether it
/// is zero: there QEMU's answer hangs on which pages its tables came to share.
#[track_caller]
fn map(path: &Path, mode: Preallocation) -> Vec<(u64, u64, String)> {
    let text = qemu::img(&["map", "-f", "qcow2", "--output=json", path.to_str().unwrap()]);
    let mut runs: Vec<(u64, u64, String)> = Vec::new();
    for line in text.lines().filter(|line| line.contains("\"start\"")) {
        let number = |key: &str| -> u64 {
            let rest = &line[line.find(key).unwrap() + key.len() + 3..];
            rest[..rest.find(',').unwrap()].trim().parse().unwrap()
        };
        let from = line.find("\"depth\"").unwrap();
        let facts = line[from..].split(", \"offset\"").next().unwrap();
        let mut facts = facts.trim_end_matches(['}', ',', ']']).to_owned();
        if mode == Preallocation::Metadata && facts.contains("\"data\": true") {
            facts = facts.replace("\"zero\": true", "").replace("\"zero\": false", "");
        }
        let (start, len) = (number("start"), number("length"));
        match runs.last_mut() {
            Some(last) if last.0 + last.1 == start && last.2 == facts => last.1 += len,
            _ => runs.push((start, len, facts)),
        }
    }
    runs
}

/// Whether the file has the space for a disk of `size` bytes.
fn is_allocated(path: &Path, size: u64) -> bool {
    fs::metadata(path).unwrap().blocks() * 512 >= size
}

/// What an image is created as: our options and QEMU's.
fn cases() -> Vec<(Qcow2, String)> {
    let mut cases = Vec::new();
    for (cluster_size, refcount_bits, version, extended_l2) in [
        (512, 16, Version::V2, false),
        (512, 1, Version::V3, false),
        (4096, 64, Version::V3, false),
        (16384, 2, Version::V3, true),
        (65536, 16, Version::V2, false),
        (65536, 16, Version::V3, true),
        (2 << 20, 16, Version::V3, false),
    ] {
        for preallocation in MODES {
            for data_file in [false, true] {
                if data_file && version == Version::V2 {
                    continue;
                }
                let size = 3_000_000_u64.next_multiple_of(512);
                let ours = Qcow2 {
                    size,
                    cluster_size,
                    refcount_bits,
                    version,
                    extended_l2,
                    preallocation,
                    ..Qcow2::default()
                };
                let compat = if version == Version::V2 { "0.10" } else { "1.1" };
                let on = if extended_l2 { ",extended_l2=on" } else { "" };
                let theirs = format!(
                    "preallocation={preallocation},cluster_size={cluster_size},refcount_bits={refcount_bits},compat={compat}{on}"
                );
                cases.push(if data_file {
                    (Qcow2 { data_file: Some("ours.data".into()), ..ours }, theirs + ",data_file=theirs.data")
                } else {
                    (ours, theirs)
                });
            }
        }
    }
    cases
}

#[test]
fn preallocated_images_are_what_qemu_makes() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for (mut options, theirs) in cases() {
        let directory = TempDir::new().unwrap();
        let (ours_path, theirs_path) = (directory.path().join("ours"), directory.path().join("theirs"));
        if let Some(name) = &mut options.data_file {
            // QEMU looks for a relative name in its working directory.
            *name = directory.path().join(&*name);
        }
        let theirs = theirs.replace("theirs.data", directory.path().join("theirs.data").to_str().unwrap());
        create(&ours_path, &CreateOptions::Qcow2(options.clone())).unwrap();
        qemu::create(&theirs_path, options.size, &theirs);
        qemu::assert_clean(&ours_path);
        let mode = options.preallocation;
        let (ours, qemus) = (map(&ours_path, mode), map(&theirs_path, mode));
        assert!(ours == qemus, "{theirs}: {:?} ... and {:?} ...", ours.first(), qemus.first());
        let holder = options.data_file.clone().unwrap_or_else(|| ours_path.clone());
        if matches!(mode, Preallocation::Falloc | Preallocation::Full) {
            assert!(is_allocated(&holder, options.size), "{theirs}: the space is not there");
        }
        let len = fs::metadata(&ours_path).unwrap().len();
        // QEMU uses what is set aside, and so do we.
        for (pattern, at) in [(1, 0), (2, options.size / 2 / 512 * 512), (3, options.size - 512)] {
            qemu::io(&ours_path, "qcow2", &[&format!("write -P {pattern} {at} 512")]);
        }
        let image = images::open(&ours_path, true).unwrap();
        let mut bytes = vec![0; options.size as usize];
        image.read(&mut bytes, 0).unwrap();
        assert!(bytes[..512].iter().all(|byte| *byte == 1) && bytes[512] == 0, "{theirs}");
        image.write(&[4; 5000], 70_000).unwrap();
        bytes[70_000..75_000].fill(4);
        image.close().unwrap();
        qemu::assert_clean(&ours_path);
        assert!(qemu::content(&ours_path) == bytes, "{theirs}");
        if mode != Preallocation::Off {
            assert_eq!(fs::metadata(&ours_path).unwrap().len(), len, "{theirs}: writes need no more");
        }
    }
}

#[test]
fn preallocation_over_a_backing_file_shows_it_through_subclusters() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for preallocation in MODES {
        for data_file in [None, Some(PathBuf::from("data"))] {
            let directory = TempDir::new().unwrap();
            fs::write(directory.path().join("base"), vec![7; 300_000]).unwrap();
            let path = directory.path().join("top");
            let data_file = data_file.map(|name| directory.path().join(name));
            let options = Qcow2 { extended_l2: true, preallocation, data_file, ..backed("base", "raw") };
            make(&path, options, CHECKED).unwrap();
            qemu::assert_clean(&path);
            qemu::io(&path, "qcow2", &["write -P 9 4096 2048", "write -P 8 512k 1000"]);
            qemu::assert_clean(&path);
            let content = qemu::content(&path);
            assert!(content[..4096].iter().all(|byte| *byte == 7));
            assert!(content[4096..6144].iter().all(|byte| *byte == 9));
            assert!(content[6144..300_000].iter().all(|byte| *byte == 7));
            let image = images::open(&path, true).unwrap();
            let mut bytes = vec![0; 1 << 20];
            image.read(&mut bytes, 0).unwrap();
            assert!(bytes == content);
            image.write(b"ours", 100_000).unwrap();
            image.close().unwrap();
            bytes[100_000..100_004].copy_from_slice(b"ours");
            assert!(qemu::content(&path) == bytes);
            qemu::assert_clean(&path);
        }
    }
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("base"), [7; 512]).unwrap();
    let options = Qcow2 { preallocation: Preallocation::Metadata, ..backed("base", "raw") };
    let error = make(&directory.path().join("top"), options, CHECKED).unwrap_err();
    assert!(error.to_string().contains("extended L2"), "{error}");
    assert_eq!(names(directory.path()), ["base"]);
}

#[test]
fn an_adopted_data_file_keeps_its_content_whatever_is_preallocated() {
    for preallocation in MODES {
        let directory = TempDir::new().unwrap();
        let data = directory.path().join("data");
        fs::write(&data, [5; 1000]).unwrap();
        let options = Qcow2 {
            size: 1 << 20,
            data_file: Some("data".into()),
            data_file_raw: true,
            preallocation,
            ..Qcow2::default()
        };
        create(directory.path().join("image"), &CreateOptions::Qcow2(options)).unwrap();
        let bytes = fs::read(&data).unwrap();
        assert!(
            bytes.len() == 1 << 20 && bytes[..1000] == [5; 1000] && bytes[1000..].iter().all(|b| *b == 0)
        );
        if matches!(preallocation, Preallocation::Falloc | Preallocation::Full) {
            assert!(is_allocated(&data, 1 << 20));
        }
    }
}

#[test]
fn raw_images_are_preallocated_too() {
    let directory = TempDir::new().unwrap();
    for preallocation in [Preallocation::Off, Preallocation::Falloc, Preallocation::Full] {
        let path = directory.path().join(preallocation.name());
        create(&path, &CreateOptions::Raw { size: 3_000_000, preallocation }).unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![0; 3_000_000]);
        assert_eq!(is_allocated(&path, 3_000_000), preallocation != Preallocation::Off);
    }
    let path = directory.path().join("metadata");
    let options = CreateOptions::Raw { size: 1, preallocation: Preallocation::Metadata };
    assert_eq!(create(&path, &options).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(!path.exists());
}

#[test]
fn the_size_is_the_backing_files() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("base.raw"), vec![7; 300_001]).unwrap();
    create(directory.path().join("base.qcow2"), &CreateOptions::qcow2(5 << 20)).unwrap();
    // What the backing file names is not looked at: it may be missing.
    make(
        &directory.path().join("broken.qcow2"),
        Qcow2 { size: 7 << 20, ..backed("gone", "raw") },
        CreateHow::default(),
    )
    .unwrap();
    for (name, format, size) in [
        ("base.raw", "raw", 300_032),
        ("base.qcow2", "qcow2", 5 << 20),
        ("broken.qcow2", "qcow2", 7 << 20),
        ("base.qcow2", "raw", fs::metadata(directory.path().join("base.qcow2")).unwrap().len()),
    ] {
        let top = directory.path().join(format!("top-of-{name}-{format}"));
        make(&top, backed(name, format), SIZED).unwrap();
        let image = imago_core::access::info::info(&top, Some(FormatKind::Qcow2)).unwrap();
        assert_eq!(image.virtual_size, size);
        assert_eq!(image.backing.unwrap().name, Path::new(name));
    }
    let error = make(&directory.path().join("x"), Qcow2::default(), SIZED).unwrap_err();
    assert!(error.to_string().contains("size"), "{error}");
}

#[test]
fn a_backing_file_that_does_not_do_is_refused_before_a_file_is_made() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("base"), b"no image").unwrap();
    let before = names(directory.path());
    let top = directory.path().join("top");
    for (options, kind, says) in [
        (backed("gone", "raw"), ErrorKind::Io, "gone"),
        (backed("base", "qcow2"), ErrorKind::InvalidImage, "base"),
        (backed("base", "vmdk"), ErrorKind::Unsupported, "vmdk"),
        (
            Qcow2 {
                backing: Some(ImplicitReference { name: "base".into(), format: None }),
                ..Qcow2::default()
            },
            ErrorKind::InvalidInput,
            "format",
        ),
        (backed("json:{\"driver\":\"raw\"}", "raw"), ErrorKind::InvalidImage, "no file"),
        (backed("a".repeat(1024), "raw"), ErrorKind::Io, "aaa"),
        (Qcow2 { cluster_size: 3, ..backed("base", "raw") }, ErrorKind::InvalidInput, "cluster size"),
    ] {
        let error = make(&top, options, CHECKED).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(names(directory.path()), before);
    }
}

/// A name of `len` bytes that is found from the image's directory, of the file `last`.
fn long_name(len: usize, last: &str) -> PathBuf {
    let dots = (len - last.len()) / 2;
    PathBuf::from("./".repeat(dots) + &"/".repeat(len - last.len() - 2 * dots) + last)
}

#[test]
fn names_of_every_kind_are_found_by_us_and_by_qemu() {
    let directory = TempDir::new().unwrap();
    let odd = OsStr::from_bytes(b"not \xff utf-8");
    let absolute = directory.path().join("absolute");
    let long = long_name(1023, "at-the-end");
    let mut bases = vec![
        (PathBuf::from("plain"), PathBuf::from("plain")),
        (PathBuf::from("two words"), PathBuf::from("two words")),
        (PathBuf::from("a:b"), PathBuf::from("./a:b")),
        (PathBuf::from("nbd:host:1"), PathBuf::from("./nbd:host:1")),
        (PathBuf::from("./c:d"), PathBuf::from("./c:d")),
        (odd.into(), odd.into()),
        (absolute.clone(), absolute),
        (long.clone(), long),
    ];
    for (at, (name, recorded)) in bases.drain(..).enumerate() {
        assert!(recorded.as_os_str().len() <= 1023);
        fs::write(directory.path().join(&name), vec![at as u8 + 1; 70_000]).unwrap();
        for version in [Version::V2, Version::V3] {
            let top = directory.path().join(format!("top{at}{version:?}"));
            make(&top, Qcow2 { version, ..backed(&name, "raw") }, SIZED).unwrap();
            let info = imago_core::access::info::info(&top, Some(FormatKind::Qcow2)).unwrap();
            assert_eq!(
                info.backing.unwrap(),
                ImplicitReference { name: recorded.clone(), format: Some("raw".into()) }
            );
            let mut bytes = [0; 100];
            OpenOptions::default().open(&top).unwrap().read(&mut bytes, 1000).unwrap();
            assert_eq!(bytes, [at as u8 + 1; 100], "{name:?}");
            if qemu::qemu_or_skip() {
                assert!(qemu::content(&top)[..70_000] == vec![at as u8 + 1; 70_000], "{name:?}");
            }
        }
    }
    for name in ["data:file", "two words"] {
        let image = directory.path().join(format!("image of {name}"));
        let name = if name == "two words" { "more words" } else { name };
        let options = Qcow2 { size: 1 << 20, data_file: Some(name.into()), ..Qcow2::default() };
        make(&image, options, CreateHow::default()).unwrap();
        let opened = images::open(&image, true).unwrap();
        opened.write(b"data", 0).unwrap();
        opened.close().unwrap();
        assert_eq!(&fs::read(directory.path().join(name)).unwrap()[..4], b"data");
    }
    // What is not looked at is recorded as it stands.
    let verbatim = directory.path().join("verbatim");
    make(&verbatim, backed("nbd://host/disk", "raw"), CreateHow::default()).unwrap();
    let info = imago_core::access::info::info(&verbatim, None).unwrap();
    assert_eq!(info.backing.unwrap().name, Path::new("nbd://host/disk"));
}

#[test]
fn a_file_is_replaced_only_where_that_is_asked_for() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    fs::write(&path, b"precious").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("disk", directory.path().join("link")).unwrap();
    let error = make(&path, Qcow2 { size: 512, ..Qcow2::default() }, CreateHow::default()).unwrap_err();
    assert_eq!(error.os_error(), Some(17), "EEXIST: {error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");

    let link = directory.path().join("link");
    make(&link, Qcow2 { size: 1 << 20, ..Qcow2::default() }, OVERWRITING).unwrap();
    assert_eq!(images::open(&path, false).unwrap().size(), 1 << 20);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    create_with(&path, CreateOptions::raw(100), OVERWRITING, &mut Job::default()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [0; 100]);
    create_with(directory.path().join("new"), CreateOptions::raw(100), OVERWRITING, &mut Job::default())
        .unwrap();
    assert_eq!(names(directory.path()), ["disk", "link", "new"]);
}

#[test]
fn a_link_to_where_nothing_is_yet_leads_to_the_new_image() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("below")).unwrap();
    std::os::unix::fs::symlink("below/other", path("link")).unwrap();
    std::os::unix::fs::symlink("../disk", path("below/other")).unwrap();
    let own_data = Qcow2 { size: 1 << 20, data_file: Some("disk".into()), ..Qcow2::default() };
    assert_eq!(make(&path("link"), own_data, OVERWRITING).unwrap_err().kind(), ErrorKind::InvalidInput);
    make(&path("link"), Qcow2 { size: 1 << 20, ..Qcow2::default() }, OVERWRITING).unwrap();
    assert!(fs::symlink_metadata(path("link")).unwrap().is_symlink());
    assert_eq!(images::open(&path("disk"), false).unwrap().size(), 1 << 20);
    assert_eq!(names(directory.path()), ["below", "disk", "link"]);
}

/// Only root may give files away; the group of a test that is not root is its own, in the old file and the new.
#[test]
fn what_replaces_a_file_belongs_to_whom_that_did() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    fs::write(&path, b"").unwrap();
    if std::os::unix::fs::chown(&path, Some(12345), Some(54321)).is_err() {
        return;
    }
    create_with(&path, CreateOptions::raw(100), OVERWRITING, &mut Job::default()).unwrap();
    let made = fs::metadata(&path).unwrap();
    assert_eq!((made.len(), made.uid(), made.gid()), (100, 12345, 54321));
}

#[test]
fn a_name_that_is_taken_meanwhile_is_not_taken_away() {
    let directory = TempDir::new().unwrap();
    for taken in ["disk", "data"] {
        let theirs = directory.path().join(taken);
        let mut take = |_| drop(fs::write(&theirs, b"precious"));
        let options = Qcow2 { size: 1 << 20, data_file: Some("data".into()), ..Qcow2::default() };
        let options = CreateOptions::Qcow2(Qcow2 { preallocation: Preallocation::Full, ..options });
        let path = directory.path().join("disk");
        let error =
            create_with(&path, options, CreateHow::default(), &mut Job::default().progress(&mut take))
                .unwrap_err();
        assert_eq!((error.os_error(), error.path()), (Some(17), Some(&*theirs)), "EEXIST: {error}");
        assert_eq!(fs::read(&theirs).unwrap(), b"precious");
        assert_eq!(names(directory.path()), [taken]);
        fs::remove_file(theirs).unwrap();
    }
}

/// Numbers of processes come again, soonest in containers.
#[test]
fn what_a_killed_process_left_is_in_nobodys_way() {
    let directory = TempDir::new().unwrap();
    let left: Vec<_> = (0..1000).map(|n| format!(".disk.{}-{n}.partial", std::process::id())).collect();
    for name in &left {
        fs::write(directory.path().join(name), b"left").unwrap();
    }
    create(directory.path().join("disk"), &CreateOptions::qcow2(1 << 20)).unwrap();
    assert_eq!(names(directory.path()).len(), 1 + left.len());
}

#[test]
fn names_may_be_as_long_as_the_file_system_takes() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("x".repeat(255));
    create(&path, &CreateOptions::qcow2(1 << 20)).unwrap();
    create_with(&path, CreateOptions::raw(1 << 20), OVERWRITING, &mut Job::default()).unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), 1 << 20);
}

/// The guest's data would be gone with the file that the image replaces.
#[test]
fn an_image_cannot_be_its_own_data_file_whether_it_is_there_or_not() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("below")).unwrap();
    let (path, source) = (dir.path().join("image"), dir.path().join("source"));
    create(&source, &CreateOptions::qcow2(1 << 20)).unwrap();
    let source = images::open(&source, false).unwrap();
    for name in ["image".into(), "./image".into(), "below/../image".into(), path.clone()] {
        for raw in [false, true] {
            let options = || Qcow2 {
                size: 1 << 20,
                data_file: Some(name.clone()),
                data_file_raw: raw,
                ..Qcow2::default()
            };
            for how in [CHECKED, OVERWRITING] {
                let error = make(&path, options(), how).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}, {raw}: {error}");
            }
            let target = ConvertOptions::new(CreateOptions::Qcow2(options()));
            let error = convert(&source, &path, target, &mut Job::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}, {raw}: {error}");
            assert_eq!(names(dir.path()), ["below", "source"], "{name:?}, {raw}");
        }
    }
}

#[test]
fn what_cannot_be_replaced_stays_as_it_is() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    create(&path, &CreateOptions::qcow2(1 << 20)).unwrap();
    fs::write(directory.path().join("data"), b"data").unwrap();
    let before = fs::read(&path).unwrap();
    let data_file = |name: &str| Qcow2 { size: 1 << 20, data_file: Some(name.into()), ..Qcow2::default() };
    let refused = |options: Qcow2, kind: ErrorKind| {
        let error = make(&path, options, OVERWRITING).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(fs::read(&path).unwrap() == before, "{error}");
        assert_eq!(fs::read(directory.path().join("data")).unwrap(), b"data");
        assert_eq!(names(directory.path()), ["data", "disk"], "{error}");
    };
    refused(Qcow2 { cluster_size: 5, ..Qcow2::default() }, ErrorKind::InvalidInput);
    refused(backed("disk", "qcow2"), ErrorKind::InvalidInput);
    refused(backed(&path, "qcow2"), ErrorKind::InvalidInput);
    // A data file that is there is no part of what was asked to be replaced.
    refused(data_file("data"), ErrorKind::Io);
    refused(Qcow2 { data_file_raw: true, ..data_file("disk") }, ErrorKind::InvalidInput);
    // No file can be that long: it is found out when the new one is made, beside.
    let whole = Qcow2 {
        size: 1 << 55,
        cluster_size: 2 << 20,
        preallocation: Preallocation::Falloc,
        ..Qcow2::default()
    };
    refused(whole, ErrorKind::Io);
    let user = File::open_sync(StorageOpenOptions::new().filename(&path).write(true)).unwrap();
    refused(Qcow2 { size: 512, ..Qcow2::default() }, ErrorKind::Locked);
    drop(user);
}
