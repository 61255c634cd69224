//! Conversions, with QEMU as the judge.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago_core::access::convert::{
    ConvertOptions, Copying, Input, IntoOptions, OnError, convert, convert_into, convert_to_stream,
};
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::job::{Job, Progress};
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::access::pack::CompressionLevel;
use imago_core::format::preallocation::Preallocation;
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{Compression, FormatKind, ImplicitReference, ZeroIntent};
use imago_core::storage::file::{CreateMode, File};
use imago_core::storage::memory::Memory;
use imago_core::storage::{Offload, RawRange, Storage, StorageOpenOptions};
use imago_core::{ErrorKind, Image, Result};
use imago_testkit::qemu;

const SIZE: u64 = 20 << 20;

/// A qcow2 image with data, zeroes, holes and an odd end.
fn source(directory: &Path) -> Arc<Image> {
    let path = directory.join("source.qcow2");
    create(&path, &CreateOptions::qcow2(SIZE - 512)).unwrap();
    let image = OpenOptions { write: true, ..Default::default() }.open(&path).unwrap();
    let noise: Vec<u8> = (0..3_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    image.write(&noise, 100_000).unwrap();
    image.write(&vec![0; 1 << 20], 5 << 20).unwrap();
    image.write(b"needle", 7 << 20).unwrap();
    image.write(b"end", SIZE - 512 - 3).unwrap();
    image.flush().unwrap();
    image
}

fn run(source: &Arc<Image>, target: &Path, create: CreateOptions) -> Result<()> {
    convert(source, target, ConvertOptions::new(create), &mut Job::default()).map(drop)
}

fn all(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read(&mut bytes, 0).unwrap();
    bytes
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether the file system that the tests are on copies from file to file by itself.
fn file_systems_copy(directory: &Path) -> bool {
    let (from, to) = (directory.join("from"), directory.join("to"));
    fs::write(&from, [1; 8192]).unwrap();
    let from = File::open_sync(StorageOpenOptions::new().filename(&from)).unwrap();
    let to = File::create_sync(&to, CreateMode::New).unwrap();
    let (fd, offset) = from.raw_fd(0, 8192).unwrap();
    to.copy_from(RawRange { fd, offset, len: 8192 }, 0, Offload::Copy) == 8192
}

#[test]
fn what_is_not_read_arrives_all_the_same() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| directory.path().join(name);
    let source = source(directory.path());
    let content = all(&source);
    fs::write(path("source.raw"), &content).unwrap();
    let raw =
        OpenOptions { format: Some(FormatKind::Raw), ..Default::default() }.open(path("source.raw")).unwrap();
    // Above the other one, with writes of its own that begin and end within clusters.
    let mut overlay = qcow2::CreateOptions { size: source.size(), cluster_size: 4096, ..Default::default() };
    overlay.backing = Some(ImplicitReference { name: "source.qcow2".into(), format: Some("qcow2".into()) });
    source.close().unwrap();
    create(path("overlay"), &CreateOptions::Qcow2(overlay)).unwrap();
    let overlay = OpenOptions { write: true, ..Default::default() }.open(path("overlay")).unwrap();
    overlay.write(&vec![7; 100_000], 1_000_001).unwrap();
    overlay.write_zeroes(2 << 20, 70_001, ZeroIntent::Unmap).unwrap();
    let shown = all(&overlay);

    let extended = qcow2::CreateOptions { extended_l2: true, ..Default::default() };
    let data_file = qcow2::CreateOptions { data_file: Some("data".into()), ..Default::default() };
    let small = qcow2::CreateOptions { cluster_size: 512, ..Default::default() };
    let kinds = [
        CreateOptions::raw(0),
        CreateOptions::qcow2(0),
        CreateOptions::Qcow2(extended),
        CreateOptions::Qcow2(data_file),
        CreateOptions::Qcow2(small),
    ];
    let odd = Input::part(&raw, 513, 5_000_001);
    let odd_row = Input::row([Arc::clone(&raw), Arc::clone(&overlay)]);
    let inputs: [(Input, Vec<u8>); 4] = [
        ((&raw).into(), content.clone()),
        ((&overlay).into(), shown.clone()),
        (odd, content[513..5_000_514].to_vec()),
        (odd_row, [content, shown].concat()),
    ];
    for (kind, how) in kinds.iter().flat_map(|kind| [(kind, Offload::Share), (kind, Offload::Copy)]) {
        for (input, expected) in &inputs {
            let mut options = ConvertOptions::new(kind.clone());
            options.copying.offload = Some(how);
            convert(input.clone(), path("target"), options, &mut Job::default()).unwrap();
            let target = OpenOptions { format: Some(kind.kind()), write: true, ..Default::default() };
            let target = target.open(path("target")).unwrap();
            let mut found = all(&target);
            assert!(found[expected.len()..].iter().all(|byte| *byte == 0));
            found.truncate(expected.len());
            assert!(&found == expected, "{kind:?}, {how:?}");
            // What was taken over is the target's own.
            target.write(&[0xee; 9000], 150_000).unwrap();
            target.close().unwrap();
            if kind.kind() == FormatKind::Qcow2 {
                qemu::assert_clean(&path("target"));
            }
            let _ = fs::remove_file(path("data"));
        }
    }
    assert!(all(&overlay) == inputs[1].1, "sources stay as they are");
    assert!(fs::read(path("source.raw")).unwrap() == inputs[0].1);
}

#[test]
fn what_the_system_copies_keeps_its_zeroes_and_what_is_read_loses_them() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if !file_systems_copy(directory.path()) {
        return;
    }
    let (from, to) = (directory.path().join("zeroes"), directory.path().join("target"));
    fs::write(&from, vec![0; 4 << 20]).unwrap();
    let source = OpenOptions { format: Some(FormatKind::Raw), ..Default::default() }.open(&from).unwrap();
    let data = |offload: Option<Offload>, on_error: OnError| {
        let mut options = ConvertOptions::new(CreateOptions::raw(0));
        (options.copying.offload, options.copying.on_error) = (offload, on_error);
        convert(&source, &to, options, &mut Job::default()).unwrap();
        let target = OpenOptions { format: Some(FormatKind::Raw), ..Default::default() }.open(&to).unwrap();
        target
            .extents(0, 4 << 20)
            .unwrap()
            .map(Result::unwrap)
            .filter(|e| e.data)
            .map(|e| e.length)
            .sum::<u64>()
    };
    assert_eq!(data(Some(Offload::Copy), OnError::Fail), 4 << 20);
    assert_eq!(data(None, OnError::Fail), 0);
    assert_eq!(data(Some(Offload::Copy), OnError::Salvage), 0);
}

#[test]
fn the_content_arrives_in_either_format_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let content = all(&source);
    for kind in [CreateOptions::raw(0), CreateOptions::qcow2(0)] {
        let target = directory.path().join(kind.kind().name());
        run(&source, &target, kind.clone()).unwrap();
        let image = OpenOptions { format: Some(kind.kind()), ..Default::default() }.open(&target).unwrap();
        assert!(all(&image) == content);
        let data: u64 = image
            .extents(0, image.size())
            .unwrap()
            .map(Result::unwrap)
            .filter(|e| e.data)
            .map(|e| e.length)
            .sum();
        assert!(data < 4 << 20, "zeroes were left out: {data}");
        let back = directory.path().join("back");
        run(&image, &back, CreateOptions::raw(0)).unwrap();
        assert!(fs::read(&back).unwrap() == content);
    }
    assert_eq!(names(directory.path()), ["back", "qcow2", "raw", "source.qcow2"]);
}

#[test]
fn qemu_agrees() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    source.close().unwrap();
    let from = directory.path().join("source.qcow2");
    for (name, options) in
        [("packed", "compression_type=zlib"), ("small", "cluster_size=4k"), ("large", "cluster_size=2M")]
    {
        let image = directory.path().join(name);
        let packed: &[&str] = if name == "packed" { &["-c"] } else { &[] };
        let mut args = vec!["convert", "-O", "qcow2", "-o", options];
        args.extend(packed);
        args.extend([from.to_str().unwrap(), image.to_str().unwrap()]);
        qemu::img(&args);
        let opened = OpenOptions::default().open(&image).unwrap();
        for target in [CreateOptions::raw(0), CreateOptions::qcow2(0)] {
            let kind = target.kind().name();
            let path = directory.path().join("target");
            run(&opened, &path, target).unwrap();
            qemu::img(&[
                "compare",
                "-f",
                "qcow2",
                "-F",
                kind,
                image.to_str().unwrap(),
                path.to_str().unwrap(),
            ]);
            if kind == "qcow2" {
                qemu::img(&["check", path.to_str().unwrap()]);
            }
        }
    }
}

#[test]
fn extents_are_what_qemu_maps() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    source(directory.path()).close().unwrap();
    let from = directory.path().join("source.qcow2");
    let packed = directory.path().join("packed");
    qemu::img(&["convert", "-c", "-O", "qcow2", from.to_str().unwrap(), packed.to_str().unwrap()]);
    let top = directory.path().join("top");
    qemu::img(&["create", "-q", "-f", "qcow2", "-b", "packed", "-F", "qcow2", top.to_str().unwrap(), "24M"]);
    qemu::io(&top, "qcow2", &["write -P 1 1M 100k", "write -z 3M 1M", "discard 3M 64k", "write -P 2 23M 1M"]);
    for path in [&from, &packed, &top] {
        let told: Vec<String> = qemu::img(&["map", "--output=json", "-f", "qcow2", path.to_str().unwrap()])
            .lines()
            .map(|line| {
                let line = line.trim_matches(['[', ']', ',']);
                // Only newer versions tell the file.
                line.split(", \"filename\"").next().unwrap().trim_end_matches('}').to_owned()
            })
            .collect();
        let image = OpenOptions::default().open(path).unwrap();
        let ours: Vec<String> = image
            .extents(0, image.size())
            .unwrap()
            .map(|extent| {
                let e = extent.unwrap();
                let offset = e.host_offset.map_or(String::new(), |offset| format!(", \"offset\": {offset}"));
                format!(
                    "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}{offset}",
                    e.offset, e.length, e.depth, e.allocated, e.zero, e.data, e.compressed
                )
            })
            .collect();
        assert_eq!(ours, told, "{}", path.display());
    }
}

#[test]
fn an_existing_target_is_replaced_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let target = directory.path().join("target");
    fs::write(&target, b"old").unwrap();
    let cancel = AtomicBool::new(false);
    let mut reports = Vec::new();
    let mut progress = |progress: Progress| {
        reports.push(progress);
        cancel.store(true, Ordering::Relaxed);
    };
    let options = ConvertOptions::new(CreateOptions::raw(0));
    let mut job = Job::default().progress(&mut progress).cancel(&cancel);
    let error = convert(&source, &target, options, &mut job).unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert_eq!(reports[0].total, SIZE - 512);
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert_eq!(names(directory.path()), ["source.qcow2", "target"]);
    run(&source, &target, CreateOptions::raw(0)).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().len(), SIZE - 512);
    assert_eq!(names(directory.path()), ["source.qcow2", "target"]);
}

#[test]
fn a_compressed_conversion_packs_whatever_has_data() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let content = all(&source);
    let target = directory.path().join("target");
    for (cluster_size, compression) in [
        (512, Compression::Deflate),
        (4096, Compression::Zstd),
        (65_536, Compression::Deflate),
        (2 << 20, Compression::Zstd),
    ] {
        let layout = qcow2::CreateOptions { cluster_size, compression, ..Default::default() };
        let mut reports = Vec::new();
        let mut progress = |progress: Progress| reports.push(progress.done);
        let mut options = ConvertOptions::new(CreateOptions::Qcow2(layout));
        options.copying.compress = Some(CompressionLevel::Default);
        convert(&source, &target, options, &mut Job::default().progress(&mut progress)).unwrap();
        assert_eq!(reports.last(), Some(&(SIZE - 512)));
        assert!(reports.iter().all(|&done| done <= SIZE - 512), "{reports:?}");
        let image =
            OpenOptions { format: Some(FormatKind::Qcow2), ..Default::default() }.open(&target).unwrap();
        assert!(all(&image)[..content.len()] == content, "{cluster_size}");
        let extents: Vec<_> = image.extents(0, image.size()).unwrap().map(Result::unwrap).collect();
        assert!(extents.iter().any(|extent| extent.compressed));
        let data: u64 = extents.iter().filter(|extent| extent.data).map(|extent| extent.length).sum();
        assert!(data < (4 << 20) + 2 * u64::from(cluster_size), "zeroes were left out: {data}");
        image.close().unwrap();
        if qemu::qemu_or_skip() {
            qemu::assert_clean(&target);
            assert!(qemu::content(&target)[..content.len()] == content, "{cluster_size}: QEMU");
        }
    }
}

#[test]
fn a_target_in_use_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let error = run(&source, &directory.path().join("source.qcow2"), CreateOptions::raw(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let target = directory.path().join("target");
    fs::write(&target, [1; 4096]).unwrap();
    let user = OpenOptions { format: Some(FormatKind::Raw), ..Default::default() }.open(&target).unwrap();
    assert_eq!(run(&source, &target, CreateOptions::raw(0)).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(all(&user), [1; 4096]);
    assert_eq!(names(directory.path()), ["source.qcow2", "target"]);
}

#[test]
fn progress_ends_at_the_total() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let mut reports = Vec::new();
    let mut progress = |progress: Progress| reports.push(progress.done);
    let options = ConvertOptions::new(CreateOptions::qcow2(0));
    let mut job = Job::default().progress(&mut progress);
    convert(&source, directory.path().join("target"), options, &mut job).unwrap();
    assert_eq!((reports[0], *reports.last().unwrap()), (0, SIZE - 512));
    assert!(reports.is_sorted());
}

/// An overlay of the source with a few changes, open with its chain.
fn overlay(directory: &Path, source: &Arc<Image>) -> Arc<Image> {
    let path = directory.join("overlay.qcow2");
    create(&path, &CreateOptions::qcow2(source.size())).unwrap();
    let options =
        OpenOptions { write: true, backing: Backing::Image(Arc::clone(source)), ..Default::default() };
    let image = options.open(&path).unwrap();
    image.write(b"changed", 7 << 20).unwrap();
    image.write_zeroes(128 << 10, 1 << 20, ZeroIntent::Unmap).unwrap();
    image.write(&vec![7; 300_000], 12 << 20).unwrap();
    image
}

fn base(path: &Path) -> ImplicitReference {
    ImplicitReference { name: path.to_owned(), format: Some("qcow2".into()) }
}

#[test]
fn one_layer_over_another_copy_of_its_base_shows_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let top = overlay(directory.path(), &source);
    let copy = directory.path().join("copy.qcow2");
    run(&source, &copy, CreateOptions::qcow2(0)).unwrap();
    let below = OpenOptions::default().open(&copy).unwrap();
    for (compress, cluster_size) in
        [(None, 65_536), (None, 4096), (None, 2 << 20), (Some(CompressionLevel::Default), 65_536)]
    {
        let target = directory.path().join("target");
        let layout = qcow2::CreateOptions { cluster_size, backing: Some(base(&copy)), ..Default::default() };
        let mut options = ConvertOptions::new(CreateOptions::Qcow2(layout));
        options.backing = Some(Arc::clone(&below));
        options.copying.compress = compress;
        convert(&top, &target, options, &mut Job::default()).unwrap();
        let alone = OpenOptions { backing: Backing::None, ..Default::default() }.open(&target).unwrap();
        let own: u64 = alone
            .extents(0, alone.size())
            .unwrap()
            .map(Result::unwrap)
            .filter(|e| e.data)
            .map(|e| e.length)
            .sum();
        assert!(
            own <= 4 * u64::from(cluster_size).max(300_000),
            "only what the layer holds is copied: {own}"
        );
        alone.close().unwrap();
        let whole = OpenOptions { backing: Backing::Image(Arc::clone(&below)), ..Default::default() }
            .open(&target)
            .unwrap();
        assert!(all(&whole) == all(&top), "{compress:?} {cluster_size}");
        if qemu::qemu_or_skip() {
            qemu::assert_clean(&target);
        }
    }
    let mut options = ConvertOptions::new(CreateOptions::raw(0));
    options.backing = Some(below);
    let error = convert(&top, directory.path().join("raw"), options, &mut Job::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn an_existing_image_gets_the_content_and_keeps_what_is_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let size = SIZE + (1 << 20);
    for kind in [CreateOptions::raw(size), CreateOptions::qcow2(size)] {
        let path = directory.path().join(kind.kind().name());
        create(&path, &kind).unwrap();
        let target =
            OpenOptions { write: true, format: Some(kind.kind()), ..Default::default() }.open(&path).unwrap();
        target.write(&vec![0xa5; size as usize], 0).unwrap();
        convert_into(&source, &target, IntoOptions::default(), &mut Job::default()).unwrap();
        let bytes = all(&target);
        assert!(bytes[..source.size() as usize] == all(&source));
        assert!(bytes[source.size() as usize..].iter().all(|byte| *byte == 0xa5));
        let error = convert_into(&target, &source, IntoOptions::default(), &mut Job::default()).unwrap_err();
        assert!(error.to_string().contains("smaller than input"), "{error}");
        let error = convert_into(&target, &target, IntoOptions::default(), &mut Job::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_target_that_is_zero_is_not_zeroed() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let path = directory.path().join("raw");
    fs::write(&path, vec![0xa5; SIZE as usize]).unwrap();
    let target =
        OpenOptions { write: true, format: Some(FormatKind::Raw), ..Default::default() }.open(&path).unwrap();
    let options = IntoOptions { target_is_zero: true, ..Default::default() };
    convert_into(&source, &target, options, &mut Job::default()).unwrap();
    assert_eq!(all(&target)[SIZE as usize / 2], 0xa5, "who says that it is zero is believed");
}

#[test]
fn with_a_sparse_size_of_zero_all_is_allocated() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    for kind in [CreateOptions::raw(0), CreateOptions::qcow2(0)] {
        let target = directory.path().join("target");
        let mut options = ConvertOptions::new(kind.clone());
        options.copying.sparse = 0;
        convert(&source, &target, options, &mut Job::default()).unwrap();
        let image = OpenOptions { format: Some(kind.kind()), ..Default::default() }.open(&target).unwrap();
        assert!(image.extents(0, image.size()).unwrap().all(|extent| extent.unwrap().data));
        assert!(all(&image) == all(&source));
    }
}

#[test]
fn what_cannot_be_read_is_zeroes_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("source.qcow2");
    let from = source(directory.path());
    let bad = from.extents(0, from.size()).unwrap().map(Result::unwrap).find(|extent| extent.data).unwrap();
    let good = all(&from);
    from.close().unwrap();
    // The file ends within the image: what was behind reads as zeroes. A compressed cluster that is no stream cannot be read.
    let packed = directory.path().join("packed.qcow2");
    let image = OpenOptions::default().open(&path).unwrap();
    let mut options = ConvertOptions::new(CreateOptions::qcow2(0));
    options.copying.compress = Some(CompressionLevel::Default);
    convert(&image, &packed, options, &mut Job::default()).unwrap();
    let mut bytes = fs::read(&packed).unwrap();
    let data = bytes.len() - 200_000;
    bytes[data..data + 100_000].fill(0xff);
    fs::write(&packed, bytes).unwrap();
    let broken = OpenOptions::default().open(&packed).unwrap();
    let target = directory.path().join("target");
    let mut options = ConvertOptions::new(CreateOptions::raw(0));
    assert!(convert(&broken, &target, options.clone(), &mut Job::default()).is_err());
    assert!(!target.exists());
    options.copying.on_error = OnError::Salvage;
    let converted = convert(&broken, &target, options, &mut Job::default()).unwrap();
    assert!(!converted.unreadable.is_empty());
    let mut expected = good;
    for range in &converted.unreadable {
        assert!(
            range.start >= bad.offset && range.end <= from.size() && range.start.is_multiple_of(512),
            "{range:?}"
        );
        expected[range.start as usize..range.end as usize].fill(0);
    }
    assert!(fs::read(&target).unwrap() == expected);
}

#[test]
fn a_part_and_a_row_of_disks() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let content = all(&source);
    let target = directory.path().join("target");
    let part = Input::part(&source, 99_999, 7 << 20);
    convert(part, &target, ConvertOptions::new(CreateOptions::raw(0)), &mut Job::default()).unwrap();
    assert!(fs::read(&target).unwrap() == content[99_999..99_999 + (7 << 20)]);
    let row = Input::row([Arc::clone(&source), Arc::clone(&source)]);
    convert(row, &target, ConvertOptions::new(CreateOptions::qcow2(0)), &mut Job::default()).unwrap();
    let image = OpenOptions::default().open(&target).unwrap();
    assert!(all(&image) == [&content[..], &content].concat());
}

#[test]
fn a_stream_is_the_image_in_one_pass() {
    let directory = tempfile::tempdir().unwrap();
    source(directory.path()).close().unwrap();
    let source = OpenOptions::default().open(directory.path().join("source.qcow2")).unwrap();
    let content = all(&source);
    let stream = |target: CreateOptions| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        convert_to_stream(&source, target, &Copying::default(), &mut Job::default(), &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    };
    assert!(stream(CreateOptions::raw(0)).unwrap() == content);
    for layout in [
        qcow2::CreateOptions::default(),
        qcow2::CreateOptions { cluster_size: 512, refcount_bits: 1, ..Default::default() },
        qcow2::CreateOptions { cluster_size: 4096, refcount_bits: 64, ..Default::default() },
        qcow2::CreateOptions { cluster_size: 2 << 20, ..Default::default() },
        qcow2::CreateOptions { extended_l2: true, ..Default::default() },
        qcow2::CreateOptions { version: qcow2::Version::V2, ..Default::default() },
    ] {
        let path = directory.path().join("streamed");
        fs::write(&path, stream(CreateOptions::Qcow2(layout.clone())).unwrap()).unwrap();
        let image =
            OpenOptions { format: Some(FormatKind::Qcow2), ..Default::default() }.open(&path).unwrap();
        assert!(all(&image)[..content.len()] == content, "{layout:?}");
        let data: u64 = image
            .extents(0, image.size())
            .unwrap()
            .map(Result::unwrap)
            .filter(|e| e.data)
            .map(|e| e.length)
            .sum();
        assert!(data < (5 << 20) + 8 * u64::from(layout.cluster_size), "zeroes take no space: {data}");
        image.close().unwrap();
        if qemu::qemu_or_skip() {
            qemu::assert_clean(&path);
            assert!(qemu::content(&path)[..content.len()] == content, "{layout:?}: QEMU");
        }
        // It is an image as any other: it can be written to.
        let image = OpenOptions { write: true, format: Some(FormatKind::Qcow2), ..Default::default() }
            .open(&path)
            .unwrap();
        image.write(&vec![9; 1 << 20], 15 << 20).unwrap();
        image.close().unwrap();
        if qemu::qemu_or_skip() {
            qemu::assert_clean(&path);
        }
    }
    let preallocated = qcow2::CreateOptions { preallocation: Preallocation::Full, ..Default::default() };
    assert_eq!(stream(CreateOptions::Qcow2(preallocated)).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn an_empty_disk_is_a_stream_too() {
    let image = OpenOptions { format: Some(FormatKind::Raw), ..Default::default() }
        .open_storage(Arc::new(Memory::new(0)))
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    convert_to_stream(
        &image,
        CreateOptions::qcow2(0),
        &Copying::default(),
        &mut Job::default(),
        &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        },
    )
    .unwrap();
    let path = directory.path().join("empty");
    fs::write(&path, bytes).unwrap();
    let opened = OpenOptions { format: Some(FormatKind::Qcow2), ..Default::default() }.open(&path).unwrap();
    assert_eq!(opened.size(), 0);
    if qemu::qemu_or_skip() {
        qemu::assert_clean(&path);
    }
}

#[test]
fn a_slow_rate_holds_and_can_be_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(directory.path());
    let target = directory.path().join("target");
    let mut options = ConvertOptions::new(CreateOptions::raw(0));
    // One byte a second: only who gives up comes to an end.
    options.copying.rate = Some(1);
    let cancel = AtomicBool::new(false);
    let mut reports = 0;
    let mut progress = |_: Progress| {
        reports += 1;
        cancel.store(reports > 5, Ordering::Relaxed);
    };
    let mut job = Job::default().progress(&mut progress).cancel(&cancel);
    let error = convert(&source, &target, options, &mut job).unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert!(!target.exists());
}
