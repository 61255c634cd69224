//! Images that QEMU made: this reads what QEMU reads; this goes on writing, and QEMU finds them clean and agrees.

use std::fs;
use std::path::{Path, PathBuf};

use imago_core::access::image::Image;
use imago_testkit::check::check;
use imago_testkit::images::open;
use imago_testkit::model::{Discards, Geometry, Model, pattern};
use imago_testkit::ops::{Op, fixed_script};
use imago_testkit::qcow2::Qcow2;
use imago_testkit::qemu;
use tempfile::TempDir;

/// What QEMU is to make.
#[derive(Clone, Copy, Default)]
struct Case {
    /// As `qemu-img create -o` takes them.
    options: &'static str,
    /// Bytes of the disk; 0: 3 MiB and three sectors.
    size: u64,
    /// Format and length of the backing file.
    backing: Option<(&'static str, u64)>,
    snapshots: bool,
    bitmap: bool,
    compressed: bool,
    /// The disk's size at the end.
    resized: Option<u64>,
}

impl Case {
    fn size(&self) -> u64 {
        if self.size == 0 { (3 << 20) + 1536 } else { self.size }
    }

    fn version_2(&self) -> bool {
        self.options.contains("compat=0.10")
    }
}

const DEFAULT: Case = Case {
    options: "",
    size: 0,
    backing: None,
    snapshots: false,
    bitmap: false,
    compressed: false,
    resized: None,
};

fn with(options: &'static str) -> Case {
    Case { options, ..DEFAULT }
}

fn matrix() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=1024,refcount_bits=1",
        "cluster_size=4096,refcount_bits=2",
        "cluster_size=8192,refcount_bits=4",
        "cluster_size=16384,refcount_bits=8",
        "cluster_size=131072,refcount_bits=32",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=2097152",
        "compat=0.10,cluster_size=512",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16384",
        "extended_l2=on,cluster_size=2097152",
        "data_file=DATA",
        "data_file=DATA,data_file_raw=on",
        "data_file=DATA,extended_l2=on,cluster_size=32768",
        "preallocation=metadata",
        "preallocation=full,cluster_size=4096",
        "preallocation=falloc,extended_l2=on",
    ]
    .map(with)
    .to_vec();
    for options in [
        "",
        "compression_type=zstd",
        "cluster_size=512",
        "cluster_size=4096,compression_type=zstd",
        "extended_l2=on",
    ] {
        cases.push(Case { compressed: true, ..with(options) });
        cases.push(Case { compressed: true, backing: Some(("raw", 1 << 20)), ..with(options) });
    }
    for options in ["", "compat=0.10,cluster_size=4096", "cluster_size=512", "extended_l2=on"] {
        for backing in [("raw", 1_000_000), ("qcow2", 5 << 20), ("qcow2", 512), ("raw", 3 << 20)] {
            cases.push(Case { backing: Some(backing), ..with(options) });
        }
        cases.push(Case { snapshots: true, ..with(options) });
        cases.push(Case {
            snapshots: true,
            compressed: true,
            backing: Some(("raw", 2 << 20)),
            ..with(options)
        });
        cases.push(Case { resized: Some(5 << 20), ..with(options) });
        cases.push(Case { resized: Some(1 << 20), compressed: true, ..with(options) });
    }
    for options in ["", "cluster_size=512", "extended_l2=on"] {
        cases.push(Case { bitmap: true, ..with(options) });
        cases.push(Case { bitmap: true, snapshots: true, ..with(options) });
    }
    cases.push(Case { backing: Some(("qcow2", 2 << 20)), ..with("data_file=DATA") });
    cases.push(Case { size: 512, ..DEFAULT });
    cases.push(Case { size: 65_536 + 512, backing: Some(("raw", 65_537)), ..DEFAULT });
    cases
}

struct Made {
    dir: TempDir,
    path: PathBuf,
    name: String,
}

/// Lets QEMU make the image and use it: data, zeroes, discards, compressed clusters, snapshots, bitmaps.
fn make(case: &Case) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let mut options = case.options.replace("DATA", dir.path().join("data").to_str().unwrap());
    if let Some((format, len)) = case.backing {
        let backing = dir.path().join("backing");
        make_backing(&backing, format, len);
        let comma = if options.is_empty() { "" } else { "," };
        options = format!("{options}{comma}backing_file={},backing_fmt={format}", backing.display());
    }
    let size = case.size();
    qemu::create(&path, size, &options);
    let name = path.to_str().unwrap().to_owned();
    let at = |part: u64| size / 512 * part / 100 * 512;
    let cluster = Qcow2::parse(&fs::read(&path).unwrap()).unwrap().header.cluster_size();
    let mut first = vec![
        format!("write -P 11 {} {}", at(2) + 100.min(size - 1), at(20).max(1)),
        format!("write -P 12 {} {}", at(50), at(15)),
        format!("write -z -u {} {}", at(55), at(5)),
        format!("write -z {} {}", at(5), at(3)),
    ];
    if case.bitmap {
        qemu::img(&["bitmap", "--add", "-g", "4096", &name, "enabled"]);
        qemu::img(&["bitmap", "--add", "--disable", &name, "disabled"]);
    }
    if case.compressed {
        let units = (size / cluster / 8).clamp(1, 64);
        first.insert(
            0,
            format!("write -c -P 13 {} {}", 3 * cluster.min(size / 4 / cluster * cluster), units * cluster),
        );
    }
    qemu::io(&path, "qcow2", &first);
    if case.snapshots {
        qemu::img(&["snapshot", "-c", "one", &name]);
        qemu::io(
            &path,
            "qcow2",
            &[format!("write -P 14 {} {}", at(10), at(30)), format!("discard {} {}", at(60), at(10))],
        );
        qemu::img(&["snapshot", "-c", "two", &name]);
    }
    let last = [
        format!("discard {} {}", at(15), at(8)),
        format!("write -P 15 {} {}", at(70) + 7.min(size - 1), at(2).max(1)),
        format!("write -z {} {}", at(90), size - at(90)),
    ];
    qemu::io(&path, "qcow2", &last);
    if let Some(to) = case.resized {
        let shrink = if to < size { vec!["--shrink"] } else { vec![] };
        let to = to.to_string();
        qemu::img(&[&["resize", "-q", "-f", "qcow2"][..], &shrink, &[&name, &to]].concat());
    }
    Made { dir, path, name }
}

fn make_backing(path: &Path, format: &str, len: u64) {
    if format == "raw" {
        fs::write(path, pattern(0x77, 0, len)).unwrap();
    } else {
        qemu::create(path, len, "");
        qemu::io(
            path,
            "qcow2",
            &[format!("write -P 99 0 {}", len / 1024 * 512), format!("write -P 98 {} 512", len - 512)],
        );
    }
}

fn read(image: &Image, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xa5; len as usize];
    image.read(&mut bytes, offset).unwrap();
    bytes
}

#[test]
fn this_reads_what_qemu_reads() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for case in matrix() {
        let made = make(&case);
        let before = fs::read(&made.path).unwrap();
        let wanted = qemu::content(&made.path);
        let image = open(&made.path, false).unwrap_or_else(|e| panic!("{}: {e}", case.options));
        assert_eq!(image.size(), wanted.len() as u64, "{}", case.options);
        assert!(read(&image, 0, image.size()) == wanted, "{}: the whole differs", case.options);
        let mut offset = 0;
        for len in [1u64, 511, 3, 4096, 70_000, 513, 1_000_000, 12_345].into_iter().cycle() {
            let len = len.min(image.size() - offset);
            if len == 0 {
                break;
            }
            let part = read(&image, offset, len);
            assert!(
                part == wanted[offset as usize..(offset + len) as usize],
                "{}: {len} at {offset}",
                case.options
            );
            offset += len;
        }
        image.close().unwrap();
        assert!(fs::read(&made.path).unwrap() == before, "{}: reading changed the file", case.options);
    }
}

#[test]
fn qemu_agrees_with_what_this_writes_into_its_images() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for (seed, case) in (0..).zip(matrix()) {
        let made = make(&case);
        let options = case.options;
        let mut geometry = geometry(&made.path);
        let view = qemu::view(&made.path);
        // QEMU shows a snapshot with the size that the disk has now: the one or the other.
        if geometry.resizes && seed % 2 == 0 && view.snapshots.is_empty() {
            geometry.snapshots = 0;
        } else {
            geometry.resizes = false;
        }
        let keeps = case.version_2() && case.backing.is_some();
        let discards = if keeps { Discards::Keep } else { Discards::Zero };
        let mut model = Model::new(view, geometry, discards);
        let mut image = open(&made.path, true).unwrap_or_else(|e| panic!("{options}: {e}"));
        for op in fixed_script(geometry, 40, seed) {
            model.apply(&image, &op).unwrap_or_else(|e| panic!("{options}: {e}"));
            if op == Op::Reopen {
                image.close().unwrap();
                drop(image);
                image = open(&made.path, true).unwrap();
            }
        }
        image.close().unwrap();
        drop(image);
        let report = check(&fs::read(&made.path).unwrap());
        assert!(report.corruptions.is_empty() && report.leaks.is_empty(), "{options}, seed {seed}: {report}");
        qemu::assert_clean(&made.path);
        (model.view.expect(&qemu::view(&made.path)))
            .unwrap_or_else(|e| panic!("{options}, seed {seed}: QEMU sees {e}"));
        if case.options.contains("data_file_raw") {
            let data = fs::read(made.dir.path().join("data")).unwrap();
            // QEMU makes it whole clusters long.
            let (disk, rest) = data.split_at(model.view.disk.len());
            assert!(disk == model.view.disk, "{options}: the data file is not the disk");
            assert!(
                rest.iter().all(|&byte| byte == 0) && (rest.len() as u64) < geometry.cluster,
                "{options}"
            );
        }
        // What QEMU does with the bitmaps must not be an error.
        for bitmap in &model.view.bitmaps {
            qemu::img(&["bitmap", "--remove", &made.name, &bitmap.name]);
            qemu::assert_clean(&made.path);
        }
    }
}

fn geometry(path: &Path) -> Geometry {
    let bytes = fs::read(path).unwrap();
    let header = Qcow2::parse(&bytes).unwrap().header;
    let cluster = header.cluster_size();
    Geometry {
        size: header.size,
        cluster,
        subcluster: header.subcluster_size(),
        table: header.l2_entries() * cluster,
        compresses: !header.data_file(),
        snapshots: if header.data_file() || header.refcount_order < 4 { 0 } else { 4 },
        resizes: !header.data_file() && header.version == 3,
        bitmaps: if header.version >= 3 { 3 } else { 0 },
    }
}
