//! Conversions, with QEMU as the judge.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago_core::access::convert::{ConvertOptions, convert};
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::job::{Job, Progress};
use imago_core::access::open::OpenOptions;
use imago_core::access::pack::CompressionLevel;
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{Compression, FormatKind};
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
