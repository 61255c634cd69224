//! Rebasing, with QEMU as the judge.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use imago_core::access::create::{CreateOptions, create};
use imago_core::access::job::Job;
use imago_core::access::open::{Backing, OpenOptions, slice};
use imago_core::access::rebase::{RebaseMode, RebaseOptions, rebase, rebase_storage};
use imago_core::buffer::{IoVector, IoVectorMut};
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{FormatKind, ImplicitReference, ZeroIntent};
use imago_core::storage::file::File;
use imago_core::storage::{Capabilities, Identity, Storage, StorageOpenOptions, ZeroMode};
use imago_core::{ErrorKind, Image};
use imago_testkit::qemu;
use imago_testkit::rng::Rng;

const SIZE: u64 = (6 << 20) + 1024;

fn open(path: &Path, write: bool) -> Arc<Image> {
    OpenOptions { write, format: Some(FormatKind::Qcow2), ..Default::default() }.open(path).unwrap()
}

fn all(path: &Path) -> Vec<u8> {
    let image = open(path, false);
    let mut bytes = vec![0; image.size() as usize];
    image.read(&mut bytes[..], 0).unwrap();
    image.close().unwrap();
    bytes
}

fn reference(name: &str) -> ImplicitReference {
    ImplicitReference { name: name.into(), format: Some("qcow2".into()) }
}

/// An image over `backing` with random data, zeroes and holes.
fn image(
    path: PathBuf,
    size: u64,
    backing: Option<&str>,
    options: &qcow2::CreateOptions,
    seed: u64,
) -> PathBuf {
    let backing = backing.map(reference);
    create(&path, &CreateOptions::Qcow2(qcow2::CreateOptions { size, backing, ..options.clone() })).unwrap();
    let image = open(&path, true);
    let mut rng = Rng::new(seed);
    for _ in 0..12 {
        let offset = rng.below(size);
        let len = rng.below(300_000).min(size - offset) + 1;
        let len = len.min(size - offset);
        if rng.chance(4) {
            image.write_zeroes(offset, len, ZeroIntent::Unmap).unwrap();
        } else {
            let mut bytes = vec![0; len as usize];
            rng.fill(&mut bytes);
            image.write(&bytes[..], offset).unwrap();
        }
    }
    image.close().unwrap();
    path
}

/// A storage that says when it is let go, and what is written to it afterwards.
#[derive(Debug)]
struct Watched {
    inner: File,
    unlocked: AtomicBool,
    late: AtomicU32,
}

impl Watched {
    fn open(path: &Path) -> Arc<Self> {
        let inner = File::open_sync(StorageOpenOptions::new().filename(path).write(true)).unwrap();
        Arc::new(Watched { inner, unlocked: AtomicBool::new(false), late: AtomicU32::new(0) })
    }

    fn written(&self) {
        self.late.fetch_add(self.unlocked.load(Ordering::SeqCst).into(), Ordering::SeqCst);
    }
}

impl Storage for Watched {
    fn readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> imago_core::Result<()> {
        self.inner.readv_at(bufs, offset)
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> imago_core::Result<()> {
        self.written();
        self.inner.writev_at(bufs, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> imago_core::Result<()> {
        self.written();
        self.inner.write_zeroes_at(offset, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> imago_core::Result<()> {
        self.written();
        self.inner.discard_at(offset, len)
    }

    fn len(&self) -> imago_core::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> imago_core::Result<()> {
        self.written();
        self.inner.set_len(len)
    }

    fn sync(&self) -> imago_core::Result<()> {
        self.inner.sync()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }

    fn identity(&self) -> Option<Identity> {
        self.inner.identity()
    }

    fn unlock(&self) {
        self.unlocked.store(true, Ordering::SeqCst);
        self.inner.unlock();
    }
}

fn run(path: &Path, backing: Option<&str>, mode: RebaseMode) -> imago_core::Result<()> {
    let options = RebaseOptions { backing: backing.map(reference), mode, ..RebaseOptions::default() };
    rebase(path, &options, &mut Job::default())
}

#[test]
fn what_a_guest_sees_stays_over_any_backing_file() {
    let layouts = [
        qcow2::CreateOptions::default(),
        qcow2::CreateOptions { version: qcow2::Version::V2, ..Default::default() },
        qcow2::CreateOptions { cluster_size: 4096, ..Default::default() },
        qcow2::CreateOptions { extended_l2: true, ..Default::default() },
    ];
    for (number, options) in layouts.iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let default = qcow2::CreateOptions::default();
        image(path("base"), SIZE, None, &default, 1);
        image(path("other"), SIZE, None, &default, 2);
        image(path("short"), 2 << 20, None, &default, 3);
        image(path("middle"), SIZE, Some("base"), &default, 4);
        let top = image(path("top"), SIZE, Some("middle"), options, 5);
        let content = all(&top);
        // Down to the image below, to others, to a shorter one, to none and back up.
        for backing in [Some("base"), Some("other"), Some("short"), None, Some("middle")] {
            run(&top, backing, RebaseMode::Safe).unwrap();
            assert!(all(&top) == content, "layout {number}, {backing:?}");
            if qemu::have_qemu() {
                qemu::assert_clean(&top);
                assert!(qemu::content(&top) == content, "layout {number}, {backing:?}");
            }
        }
    }
}

#[test]
fn what_both_backing_files_share_is_not_copied() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    image(path("base"), SIZE, None, &default, 1);
    image(path("middle"), SIZE, Some("base"), &default, 4);
    let middle = open(&path("middle"), false);
    let own: u64 =
        middle.extents(0, SIZE).unwrap().map(Result::unwrap).filter(|e| e.depth == 0).map(|e| e.length).sum();
    middle.close().unwrap();
    create(
        path("top"),
        &CreateOptions::Qcow2(qcow2::CreateOptions {
            size: SIZE,
            backing: Some(reference("middle")),
            ..default
        }),
    )
    .unwrap();
    run(&path("top"), Some("base"), RebaseMode::Safe).unwrap();
    let top = open(&path("top"), false);
    let copied: u64 =
        top.extents(0, SIZE).unwrap().map(Result::unwrap).filter(|e| e.depth == 0).map(|e| e.length).sum();
    assert!(copied <= own + 2 * 65536, "{copied} bytes are in the image, {own} were in the one left out");
}

#[test]
fn an_unsafe_rebase_changes_the_name_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    image(path("base"), SIZE, None, &default, 1);
    let top = image(path("top"), SIZE, Some("base"), &default, 5);
    let before = std::fs::metadata(&top).unwrap().len();
    run(&top, Some("nowhere"), RebaseMode::Unsafe).unwrap();
    assert_eq!(std::fs::metadata(&top).unwrap().len(), before);
    assert!(OpenOptions::default().open(&top).is_err());
    run(&top, Some("base"), RebaseMode::Unsafe).unwrap();
    all(&top);
}

#[test]
fn a_backing_file_that_cannot_be_read_is_refused_before_anything_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    image(path("base"), SIZE, None, &default, 1);
    let top = image(path("top"), SIZE, Some("base"), &default, 5);
    let before = std::fs::read(&top).unwrap();
    assert_eq!(run(&top, Some("nowhere"), RebaseMode::Safe).unwrap_err().kind(), ErrorKind::Io);
    assert!(run(&top, Some("top"), RebaseMode::Safe).is_err(), "an image is not its own backing file");
    assert!(std::fs::read(&top).unwrap() == before);
}

#[test]
fn the_image_stays_locked_until_its_header_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    image(path("base"), SIZE, None, &default, 1);
    let top = image(path("top"), SIZE, Some("base"), &default, 5);
    let content = all(&top);
    let storage = Watched::open(&top);
    rebase_storage(Arc::clone(&storage) as _, &RebaseOptions::default(), &mut Job::default()).unwrap();
    assert!(storage.unlocked.load(Ordering::SeqCst));
    assert_eq!(storage.late.load(Ordering::SeqCst), 0, "writes without the lock");
    std::fs::remove_file(path("base")).unwrap();
    // Its owner still has it.
    assert!(all(&top) == content);
}

#[test]
fn a_header_that_cannot_be_is_refused_before_anything_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    image(path("base"), SIZE, None, &default, 1);
    let raw_data =
        qcow2::CreateOptions { data_file: Some("data".into()), data_file_raw: true, ..Default::default() };
    let top = image(path("top"), SIZE, None, &raw_data, 5);
    let before = (std::fs::read(&top).unwrap(), std::fs::read(path("data")).unwrap());
    let error = run(&top, Some("base"), RebaseMode::Safe).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!((std::fs::read(&top).unwrap(), std::fs::read(path("data")).unwrap()) == before);
    let error = run(&path("data"), None, RebaseMode::Safe).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn what_the_image_is_over_and_where_its_data_is_can_be_given() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let default = qcow2::CreateOptions::default();
    image(path("base"), SIZE, None, &default, 1);
    image(path("other"), SIZE, None, &default, 2);
    let top = image(
        path("top"),
        SIZE,
        Some("base"),
        &qcow2::CreateOptions { data_file: Some("data".into()), ..Default::default() },
        5,
    );
    std::fs::rename(path("data"), path("moved")).unwrap();
    std::fs::rename(&top, path("alone")).unwrap();
    let bundle = [vec![0; 4096], std::fs::read(path("alone")).unwrap()].concat();
    std::fs::write(path("bundle"), bundle).unwrap();
    let file = |name: &str| -> Arc<dyn Storage> {
        Arc::new(File::open_sync(StorageOpenOptions::new().filename(path(name)).write(true)).unwrap())
    };
    let other = open(&path("other"), false);
    let given = |data: &Arc<dyn Storage>, backing| OpenOptions {
        data_file: Some(Arc::clone(data)),
        backing,
        ..OpenOptions::default()
    };
    let shown = |backing| {
        let part = slice(file("bundle"), 4096, None).unwrap();
        let image = given(&file("moved"), backing).open_storage(part).unwrap();
        let mut bytes = vec![0; SIZE as usize];
        image.read(&mut bytes[..], 0).unwrap();
        image.close().unwrap();
        bytes
    };
    let content = shown(Backing::Image(Arc::clone(&other)));
    let open = given(&file("moved"), Backing::Image(Arc::clone(&other)));
    let part = slice(file("bundle"), 4096, None).unwrap();
    let options = RebaseOptions { open, backing: Some(reference("base")), ..RebaseOptions::default() };
    rebase_storage(part, &options, &mut Job::default()).unwrap();
    assert!(shown(Backing::Implicit) == content);
    assert!(!other.is_closed(), "who opened it closes it");
}
