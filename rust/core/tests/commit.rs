//! Committing an image into one below it, with QEMU as the judge.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago_core::access::commit::{CommitOptions, Committed, Merging, commit, commit_into};
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::job::{Job, Progress};
use imago_core::access::open::{Backing, OpenOptions, WriteBacking};
use imago_core::access::pack::CompressionLevel;
use imago_core::format::preallocation::Preallocation;
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{FormatKind, ImplicitReference, Recording, ZeroIntent};
use imago_core::storage::memory::Memory;
use imago_core::{ErrorKind, Image, Result, Storage};
use imago_testkit::check::check;
use imago_testkit::crash::{Moment, Verb, survivor};
use imago_testkit::model::View;
use imago_testkit::qemu;
use imago_testkit::rng::Rng;
use imago_testkit::scaled;

const SIZE: u64 = (6 << 20) + 1024;

fn open_as(path: &Path, format: FormatKind, write: bool) -> Arc<Image> {
    OpenOptions { write, format: Some(format), ..Default::default() }.open(path).unwrap()
}

fn bytes_of(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read(&mut bytes[..], 0).unwrap();
    bytes
}

fn all(path: &Path, format: FormatKind) -> Vec<u8> {
    let image = open_as(path, format, false);
    let bytes = bytes_of(&image);
    image.close().unwrap();
    bytes
}

/// Data, zeroes and, where there can be any, compressed clusters.
fn scribble(image: &Image, seed: u64) {
    let mut rng = Rng::new(seed);
    let size = image.size();
    for round in 0..14 {
        let offset = rng.below(size);
        let len = (rng.below(size / 20) + 1).min(size - offset);
        let mut bytes = vec![0; len as usize];
        rng.fill(&mut bytes);
        match round % 4 {
            0 => image.write_zeroes(offset, len, ZeroIntent::Unmap).unwrap(),
            1 => {
                let unit = image.format().write_alignment();
                let offset = offset / unit * unit;
                let len = unit.min(size - offset) as usize;
                let compressible = vec![seed as u8; len];
                match image.write_compressed(&compressible[..], offset, CompressionLevel::Default) {
                    Err(error) if error.kind() != ErrorKind::Unsupported => panic!("{error}"),
                    _ => {}
                }
            }
            _ => image.write(&bytes[..], offset).unwrap(),
        }
    }
}

fn overlay(size: u64, backing: &str, options: &qcow2::CreateOptions) -> qcow2::CreateOptions {
    let format = if backing.ends_with("raw") { "raw" } else { "qcow2" };
    let backing = ImplicitReference { name: backing.into(), format: Some(format.into()) };
    qcow2::CreateOptions { size, backing: Some(backing), ..options.clone() }
}

fn image(path: PathBuf, options: &CreateOptions, seed: u64) -> PathBuf {
    create(&path, options).unwrap();
    let image = open_as(&path, options.kind(), true);
    scribble(&image, seed);
    image.close().unwrap();
    path
}

fn own_clusters(path: &Path) -> usize {
    let image = open_as(path, FormatKind::Qcow2, false);
    let extents = image.extents(0, image.size()).unwrap().map(Result::unwrap);
    let own = extents.filter(|extent| extent.depth == 0 && extent.allocated).count();
    image.close().unwrap();
    own
}

fn run(path: &Path, options: &CommitOptions) -> Result<()> {
    commit(path, options, &mut Job::default())
}

fn layouts() -> Vec<qcow2::CreateOptions> {
    let default = qcow2::CreateOptions::default;
    vec![
        default(),
        qcow2::CreateOptions { version: qcow2::Version::V2, ..default() },
        qcow2::CreateOptions { cluster_size: 512, ..default() },
        qcow2::CreateOptions { cluster_size: 2 << 20, ..default() },
        qcow2::CreateOptions { extended_l2: true, ..default() },
    ]
}

#[test]
fn the_base_shows_what_the_image_showed_and_the_image_is_empty() {
    for (number, options) in layouts().iter().enumerate() {
        for (other, below) in layouts().iter().enumerate().skip(number % 2).step_by(2) {
            // The top larger than the base, as large, and smaller.
            for size in [SIZE, SIZE - (1 << 20), SIZE + (3 << 20)] {
                let directory = tempfile::tempdir().unwrap();
                let path = |name: &str| directory.path().join(name);
                let base = qcow2::CreateOptions { size: SIZE, ..below.clone() };
                let base = image(path("base"), &CreateOptions::Qcow2(base), 1);
                let top = image(path("top"), &CreateOptions::Qcow2(overlay(size, "base", options)), 2);
                let (old_base, shown) = (all(&base, FormatKind::Qcow2), all(&top, FormatKind::Qcow2));
                run(&top, &CommitOptions::default()).unwrap();
                let what = format!("layout {number} over {other}, {size} bytes");
                assert!(all(&top, FormatKind::Qcow2) == shown, "{what}");
                assert_eq!(own_clusters(&top), 0, "{what}");
                let mut expected = shown.clone();
                expected.extend(old_base.iter().skip(size as usize));
                assert!(all(&base, FormatKind::Qcow2) == expected, "{what}");
                // The host has no use for holes that are smaller than its blocks.
                if options.cluster_size > 512 {
                    let taken = 512 * fs::metadata(&top).unwrap().blocks();
                    let most = u64::from(6 * options.cluster_size);
                    assert!(taken <= most, "{what}: the file takes {taken} bytes");
                }
                if qemu::have_qemu() {
                    for path in [&top, &base] {
                        qemu::assert_clean(path);
                    }
                    assert!(qemu::content(&top) == shown, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_raw_base_is_written_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let raw = CreateOptions::Raw { size: SIZE, preallocation: Preallocation::Off };
    let base = image(path("base.raw"), &raw, 1);
    let options = overlay(SIZE + 512, "base.raw", &qcow2::CreateOptions::default());
    let top = image(path("top"), &CreateOptions::Qcow2(options), 2);
    let shown = all(&top, FormatKind::Qcow2);
    run(&top, &CommitOptions::default()).unwrap();
    assert!(fs::read(&base).unwrap() == shown);
    assert!(all(&top, FormatKind::Qcow2) == shown);
    assert_eq!(own_clusters(&top), 0);
}

#[test]
fn a_deeper_base_gets_what_all_images_above_it_hold() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    let plain = |size| CreateOptions::Qcow2(qcow2::CreateOptions { size, ..default.clone() });
    for spelled in ["base", "elsewhere"] {
        image(path("bottom"), &plain(SIZE), 1);
        let base = image(path("base"), &CreateOptions::Qcow2(overlay(SIZE, "bottom", &default)), 2);
        // What is behind its end is zeroes to those above, whatever the base has there.
        image(path("middle"), &CreateOptions::Qcow2(overlay(2 << 20, "base", &default)), 3);
        let top = image(path("top"), &CreateOptions::Qcow2(overlay(SIZE, "middle", &default)), 4);
        let shown = all(&top, FormatKind::Qcow2);
        let held = own_clusters(&top);
        let named = if spelled == "base" { PathBuf::from("base") } else { path("./base") };
        run(&top, &CommitOptions { base: Some(named), ..CommitOptions::default() }).unwrap();
        assert!(all(&top, FormatKind::Qcow2) == shown);
        assert!(all(&base, FormatKind::Qcow2) == shown);
        assert_eq!(own_clusters(&top), held, "what the image between holds would show");
        if qemu::have_qemu() {
            for name in ["bottom", "base", "middle", "top"] {
                qemu::assert_clean(&path(name));
            }
        }
        for name in ["bottom", "base", "middle", "top"] {
            fs::remove_file(path(name)).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    let plain = CreateOptions::Qcow2(qcow2::CreateOptions { size: SIZE, ..default.clone() });
    let base = image(path("base"), &plain, 1);
    let top = image(path("top"), &CreateOptions::Qcow2(overlay(SIZE, "base", &default)), 2);
    let before = || [&base, &top].map(|path| fs::read(path).unwrap());
    let bytes = before();
    let kind = |path: &Path, options: &CommitOptions| run(path, options).unwrap_err().kind();
    assert_eq!(kind(&base, &CommitOptions::default()), ErrorKind::InvalidInput);
    let to = |name: &str| CommitOptions { base: Some(path(name)), ..CommitOptions::default() };
    assert_eq!(kind(&top, &to("nowhere")), ErrorKind::InvalidInput);
    assert_eq!(kind(&top, &to("top")), ErrorKind::InvalidInput);
    let gate = imago_core::access::open::Gate::Deny;
    assert_eq!(
        kind(
            &top,
            &CommitOptions {
                open: OpenOptions { gate, ..OpenOptions::default() },
                ..CommitOptions::default()
            }
        ),
        ErrorKind::ImplicitOpenDenied
    );
    let reader = open_as(&base, FormatKind::Qcow2, false);
    assert_eq!(kind(&top, &CommitOptions::default()), ErrorKind::Locked);
    reader.close().unwrap();
    assert!(before() == bytes);
    run(
        &top,
        &CommitOptions {
            merging: Merging { image: Committed::Keep, rate: None },
            ..CommitOptions::default()
        },
    )
    .unwrap();
    assert!(fs::read(&top).unwrap() == bytes[1], "it is kept");
}

#[test]
fn images_that_were_not_closed_cleanly_are_repaired_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    let plain = CreateOptions::Qcow2(qcow2::CreateOptions { size: SIZE, ..default.clone() });
    let base = image(path("base"), &plain, 1);
    let top = image(path("top"), &CreateOptions::Qcow2(overlay(SIZE, "base", &default)), 2);
    let shown = all(&top, FormatKind::Qcow2);
    for path in [&base, &top] {
        let mut bytes = fs::read(path).unwrap();
        bytes[79] |= 1;
        fs::write(path, bytes).unwrap();
    }
    run(&top, &CommitOptions::default()).unwrap();
    for path in [&base, &top] {
        assert!(all(path, FormatKind::Qcow2) == shown);
        assert_eq!(fs::read(path).unwrap()[79] & 1, 0);
        check(&fs::read(path).unwrap()).assert_no_corruption();
    }
    assert_eq!(own_clusters(&top), 0);
}

#[test]
fn an_open_image_goes_into_the_first_one_below_that_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    let plain = CreateOptions::Qcow2(qcow2::CreateOptions { size: SIZE, ..default.clone() });
    image(path("base"), &plain, 1);
    image(path("middle"), &CreateOptions::Qcow2(overlay(SIZE, "base", &default)), 2);
    let top = image(path("top"), &CreateOptions::Qcow2(overlay(SIZE, "middle", &default)), 3);
    let shown = all(&top, FormatKind::Qcow2);
    let open = |write_backing| OpenOptions { write: true, write_backing, ..OpenOptions::default() };
    let into = |image: &Arc<Image>| commit_into(image, Merging::default(), &mut Job::default());
    let image = open(WriteBacking::No).open(&top).unwrap();
    assert_eq!(into(&image).unwrap_err().kind(), ErrorKind::InvalidInput);
    image.close().unwrap();
    for (write_backing, name, emptied) in [
        (WriteBacking::Named("base".into()), "base", false),
        (WriteBacking::Named(path("middle")), "middle", true),
        (WriteBacking::First, "middle", true),
    ] {
        let image = open(write_backing).open(&top).unwrap();
        assert_eq!(image.written_backing().and_then(|image| image.path()), Some(&*path(name)));
        image.write(&b"again"[..], 70_000).unwrap();
        into(&image).unwrap();
        let still = bytes_of(&image);
        assert!(still[..70_000] == shown[..70_000] && still[70_005..] == shown[70_005..]);
        image.close().unwrap();
        assert_eq!(own_clusters(&top) == 0, emptied, "{name}");
        // Closed with the image, and its locks are free.
        let below = open_as(&path(name), FormatKind::Qcow2, true);
        assert!(bytes_of(&below) == still, "{name}");
        below.close().unwrap();
    }
    let lent = open_as(&path("middle"), FormatKind::Qcow2, false);
    let error = OpenOptions { backing: Backing::Image(lent), ..open(WriteBacking::First) }.open(&top);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
    if qemu::have_qemu() {
        for name in ["base", "middle", "top"] {
            qemu::assert_clean(&path(name));
        }
    }
}

#[test]
fn a_commit_that_is_not_wanted_any_more_leaves_what_was_shown_and_can_be_done_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    let size = 64 << 20;
    let plain = CreateOptions::Qcow2(qcow2::CreateOptions { size, ..default.clone() });
    let base = image(path("base"), &plain, 1);
    let top = image(path("top"), &CreateOptions::Qcow2(overlay(size, "base", &default)), 2);
    let shown = all(&top, FormatKind::Qcow2);
    let cancel = AtomicBool::new(false);
    let mut progress = |Progress { done, total }: Progress| {
        assert_eq!(total, size);
        cancel.store(done > size / 3, Ordering::Relaxed);
    };
    let mut job = Job::default().progress(&mut progress).cancel(&cancel);
    let merging = Merging { rate: Some(64 << 20), ..Merging::default() };
    assert_eq!(
        commit(&top, &CommitOptions { merging, ..CommitOptions::default() }, &mut job).unwrap_err().kind(),
        ErrorKind::Io
    );
    assert!(all(&top, FormatKind::Qcow2) == shown);
    assert_ne!(own_clusters(&top), 0);
    if qemu::have_qemu() {
        for path in [&top, &base] {
            qemu::assert_clean(path);
        }
    }
    run(&top, &CommitOptions::default()).unwrap();
    assert!(all(&base, FormatKind::Qcow2) == shown);
}

#[test]
fn snapshots_bitmaps_and_the_data_file_of_the_image_outlive_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    let plain = CreateOptions::Qcow2(qcow2::CreateOptions { size: SIZE, ..default.clone() });
    let base = image(path("base"), &plain, 1);
    let above = open_as(&base, FormatKind::Qcow2, true);
    above.bitmaps().add("follows", Some(65536), Recording::Enabled).unwrap();
    above.close().unwrap();
    let top = image(path("top"), &CreateOptions::Qcow2(overlay(SIZE, "base", &default)), 2);
    let open = open_as(&top, FormatKind::Qcow2, true);
    open.bitmaps().add("stays", None, Recording::Enabled).unwrap();
    open.write(&b"marked"[..], 0).unwrap();
    open.create_snapshot("kept", None).unwrap();
    open.write(&[9; 4000][..], 1 << 20).unwrap();
    let shown = bytes_of(&open);
    open.close().unwrap();
    let snapshot = || {
        let options =
            OpenOptions { snapshot: Some("kept".into()), backing: Backing::None, ..Default::default() };
        bytes_of(&options.open(&top).unwrap())
    };
    let kept = snapshot();
    run(&top, &CommitOptions::default()).unwrap();
    assert!(snapshot() == kept, "what it holds itself");
    let open = open_as(&top, FormatKind::Qcow2, false);
    assert!(bytes_of(&open) == shown);
    let bitmap = &open.bitmaps().list().unwrap()[0];
    assert!(bitmap.enabled && !bitmap.inconsistent && bitmap.count.is_some_and(|count| count > 0));
    open.close().unwrap();
    let below = open_as(&base, FormatKind::Qcow2, false);
    let bitmap = &below.bitmaps().list().unwrap()[0];
    assert!(!bitmap.inconsistent && bitmap.count.is_some_and(|count| count > 0), "{bitmap:?}");
    below.close().unwrap();
    for path in [&top, &base] {
        check(&fs::read(path).unwrap()).assert_no_corruption();
    }

    let data = overlay(SIZE, "base", &default);
    let data_file = Some(ImplicitReference { name: "data".into(), format: None });
    let options = CreateOptions::Qcow2(qcow2::CreateOptions { data_file: data_file.map(|r| r.name), ..data });
    let top = image(path("with-data"), &options, 3);
    let shown = all(&top, FormatKind::Qcow2);
    run(&top, &CommitOptions::default()).unwrap();
    assert!(all(&top, FormatKind::Qcow2) == shown && all(&base, FormatKind::Qcow2) == shown);
    assert_eq!(own_clusters(&top), 0);
    if qemu::have_qemu() {
        qemu::assert_clean(&top);
    }
}

/// An image over a raw base, both as bytes, with what it shows.
fn made(cluster_size: u32, version: qcow2::Version, snapshot: bool) -> (Vec<Vec<u8>>, Vec<u8>) {
    let size = 160 * u64::from(cluster_size);
    let mut base = vec![0; size as usize - 1024];
    Rng::new(5).fill(&mut base);
    let base: Arc<dyn Storage> = Arc::new(Memory::from(base));
    let top: Arc<dyn Storage> = Arc::new(Memory::new(0));
    let default = qcow2::CreateOptions { cluster_size, version, ..Default::default() };
    qcow2::create(&top, None, &overlay(size, "base.raw", &default)).unwrap();
    let storages = [top, base];
    let (image, below) = open_both(&storages).unwrap();
    scribble(&image, 6);
    if snapshot {
        image.create_snapshot("kept", None).unwrap();
        scribble(&image, 7);
    }
    let shown = bytes_of(&image);
    image.close().unwrap();
    below.close().unwrap();
    (storages.iter().map(|storage| contents(&**storage)).collect(), shown)
}

fn contents(storage: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.readv_at((&mut bytes).into(), 0).unwrap();
    bytes
}

fn open_both(storages: &[Arc<dyn Storage>]) -> Result<(Arc<Image>, Arc<Image>)> {
    let options = OpenOptions { write: true, format: Some(FormatKind::Raw), ..OpenOptions::default() };
    let base = options.open_storage(Arc::clone(&storages[1]))?;
    let backing = Backing::Image(Arc::clone(&base));
    let options = OpenOptions { format: Some(FormatKind::Qcow2), backing, ..options };
    Ok((options.open_storage(Arc::clone(&storages[0]))?, base))
}

fn commit_both(storages: &[Arc<dyn Storage>]) -> Result<()> {
    let (image, base) = open_both(storages)?;
    let committed = commit_into(&image, Merging::default(), &mut Job::default());
    committed.and(image.close()).and(base.close())
}

#[test]
fn a_loss_of_power_leaves_what_was_shown_and_needs_the_barriers() {
    let cases =
        [(512, qcow2::Version::V3, false), (512, qcow2::Version::V2, true), (4096, qcow2::Version::V3, true)];
    for (cluster_size, version, snapshot) in cases {
        let (start, shown) = made(cluster_size, version, snapshot);
        let snapshots = View::parse(&start[0], &[], None).unwrap().snapshots;
        let verb = Verb {
            start: &start,
            run: &commit_both,
            verify: &|media, moment| {
                let view = survivor(&media[..1], &media[1])?;
                if view.disk != shown {
                    return Err("it shows something else".into());
                }
                let alone = survivor(&media[..1], &[])?;
                if alone.snapshots != snapshots {
                    return Err("a snapshot is another".into());
                }
                if moment == Moment::After && alone.disk.iter().any(|byte| *byte != 0) {
                    return Err("it was not emptied".into());
                }
                let again: Vec<Arc<dyn Storage>> =
                    media.iter().map(|bytes| Arc::new(Memory::from(bytes.clone())) as _).collect();
                commit_both(&again).map_err(|e| format!("once more: {e}"))?;
                let base = contents(&*again[1]);
                survivor(&[contents(&*again[0])], &base)?;
                if base == shown { Ok(()) } else { Err("once more: the base is another".into()) }
            },
        };
        verb.assert_crash_proof(
            &format!("clusters of {cluster_size}, {version:?}, snapshot: {snapshot}"),
            scaled(40) as usize,
            &[
                ("write_ordered", "nothing of the image waits to be written when it is emptied"),
                ("set_size", "the base is flushed before the image is emptied"),
            ],
        );
    }
}
