//! Comparisons, with QEMU as the judge.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use imago_core::Image;
use imago_core::access::compare::{Comparison, Strictness, compare};
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::job::Job;
use imago_core::access::open::OpenOptions;
use imago_core::format::{FormatKind, ZeroIntent};
use imago_testkit::qemu;
use imago_testkit::rng::Rng;

const SIZE: u64 = 9 << 20;

fn open(path: &Path, kind: FormatKind, write: bool) -> Arc<Image> {
    OpenOptions { write, format: Some(kind), ..Default::default() }.open(path).unwrap()
}

/// An image of `size` bytes with `data` here and there; the first bytes of an empty part are zeroes that are stored.
fn image(path: PathBuf, kind: FormatKind, size: u64, data: &[(u64, &[u8])]) -> (PathBuf, FormatKind) {
    let options = if kind == FormatKind::Raw { CreateOptions::raw(size) } else { CreateOptions::qcow2(size) };
    create(&path, &options).unwrap();
    let image = open(&path, kind, true);
    for (offset, bytes) in data {
        image.write(*bytes, *offset).unwrap();
    }
    image.close().unwrap();
    (path, kind)
}

/// What `qemu-img compare` prints for a result.
fn as_qemu_says(comparison: Comparison) -> String {
    match comparison {
        Comparison::Identical { sizes_differ: false } => "Images are identical.\n".into(),
        Comparison::Identical { sizes_differ: true } => {
            "Warning: Image size mismatch!\nImages are identical.\n".into()
        }
        Comparison::Content { offset } => format!("Content mismatch at offset {offset}!\n"),
        Comparison::Size => "Strict mode: Image size mismatch!\n".into(),
        Comparison::Status { offset } => format!("Strict mode: Offset {offset} block status mismatch!\n"),
    }
}

fn agrees_with_qemu(first: &(PathBuf, FormatKind), second: &(PathBuf, FormatKind), strictness: Strictness) {
    let images = [first, second].map(|(path, kind)| open(path, *kind, false));
    let ours = as_qemu_says(compare(&images[0], &images[1], strictness, &mut Job::default()).unwrap());
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-f", first.1.name(), "-F", second.1.name()]);
    command.args(if strictness == Strictness::Layout { &["-s"][..] } else { &[] });
    let output = command.args([&first.0, &second.0]).output().unwrap();
    let theirs = String::from_utf8(output.stdout).unwrap();
    // In front of a difference QEMU warns of sizes too, but only if it came that far.
    let theirs = theirs
        .strip_prefix("Warning: Image size mismatch!\nC")
        .map_or(theirs.clone(), |rest| format!("C{rest}"));
    // QEMU tells where a run begins that differs in whether it goes on to the end of its file; here it is where the status does.
    let status = |said: &str| said.starts_with("Strict mode: Offset");
    if !(status(&ours) && status(&theirs)) {
        assert_eq!(ours, theirs, "{first:?} {second:?} {strictness:?}");
    }
}

#[test]
fn a_comparison_says_what_qemu_says() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let noise: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (raw, qcow2) = (FormatKind::Raw, FormatKind::Qcow2);
    let images = [
        image(path("raw"), raw, SIZE, &[(70_000, &noise)]),
        image(path("same"), qcow2, SIZE, &[(70_000, &noise)]),
        image(path("zeroes"), qcow2, SIZE, &[(70_000, &noise), (5 << 20, &vec![0; 70_000])]),
        image(path("last"), raw, SIZE, &[(70_000, &noise), (SIZE - 1, b"x")]),
        image(path("longer"), raw, SIZE + 4096, &[(70_000, &noise)]),
        image(path("longer-data"), qcow2, SIZE + (1 << 20), &[(70_000, &noise), (SIZE + 70_000, b"x")]),
        image(path("other"), qcow2, SIZE, &[(70_000, &noise), (3 << 20, b"a"), (8 << 20, b"b")]),
        image(path("empty"), raw, 0, &[]),
    ];
    for first in &images {
        for second in &images {
            for strictness in [Strictness::Content, Strictness::Layout] {
                agrees_with_qemu(first, second, strictness);
            }
        }
    }
}

#[test]
fn the_first_of_many_differences_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let size = 64 << 20;
    let (first, kind) = image(directory.path().join("first"), FormatKind::Qcow2, size, &[]);
    let first = open(&first, kind, false);
    let mut rng = Rng::new(7);
    for round in 0..10 {
        let (path, kind) = image(directory.path().join(round.to_string()), FormatKind::Qcow2, size, &[]);
        let second = open(&path, kind, true);
        let offsets: Vec<u64> = (0..20).map(|_| rng.below(size / 512) * 512).collect();
        for offset in &offsets {
            second.write(b"difference", *offset).unwrap();
        }
        second.write_zeroes(0, 4096, ZeroIntent::Keep).unwrap();
        let lowest = *offsets.iter().filter(|offset| **offset >= 4096).min().unwrap();
        let found = compare(&first, &second, Strictness::Content, &mut Job::default()).unwrap();
        assert_eq!(found, Comparison::Content { offset: lowest });
        second.close().unwrap();
    }
}
