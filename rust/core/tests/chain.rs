//! Chains of images: what opens, what does not, and what it says.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago_core::access::create::{CreateOptions, create};
use imago_core::access::info::info;
use imago_core::access::open::{Backing, Gate, OpenOptions, ReferenceKind};
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{FormatKind, ImplicitReference};
use imago_core::qcow2::Qcow2;
use imago_core::raw::Raw;
use imago_core::{ErrorKind, Image, SyncFormatAccess, null::Null};

const SIZE: u64 = 1 << 20;

fn overlay(path: &Path, backing: &str, format: Option<&str>) {
    let backing = ImplicitReference { name: PathBuf::from(backing), format: format.map(str::to_owned) };
    let options = qcow2::CreateOptions { size: SIZE, backing: Some(backing), ..Default::default() };
    create(path, &CreateOptions::Qcow2(options)).unwrap();
}

fn first_bytes(image: &Image) -> [u8; 4] {
    let mut bytes = [0; 4];
    image.read(&mut bytes, 0).unwrap();
    bytes
}

/// base.raw <- middle.qcow2 <- top.qcow2
fn three() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("base.raw"), b"base").unwrap();
    overlay(&directory.path().join("middle.qcow2"), "base.raw", Some("raw"));
    let top = directory.path().join("top.qcow2");
    overlay(&top, "middle.qcow2", None);
    (directory, top)
}

#[test]
fn a_chain_reads_through_and_is_written_on_top() {
    let (directory, top) = three();
    let image = OpenOptions { write: true, ..Default::default() }.open(&top).unwrap();
    assert_eq!(image.chain_len(), 3);
    assert_eq!(&first_bytes(&image), b"base");
    image.write(b"B", 0).unwrap();
    assert_eq!(&first_bytes(&image), b"Base");
    let mut behind = [1; 600];
    image.read(&mut behind, 3).unwrap();
    assert_eq!(behind[0], b'e');
    assert!(behind[1..].iter().all(|byte| *byte == 0), "the base ends after 4 bytes");
    let depths: Vec<_> = image.extents(0, SIZE).unwrap().map(|extent| extent.unwrap().depth).collect();
    assert_eq!(depths[0], 0);
    image.close().unwrap();
    assert_eq!(fs::read(directory.path().join("base.raw")).unwrap(), b"base");
    // Closing freed the locks of the whole chain.
    OpenOptions { write: true, backing: Backing::None, ..Default::default() }
        .open(directory.path().join("middle.qcow2"))
        .unwrap();
}

#[test]
fn what_is_below_can_be_given() {
    let (directory, top) = three();
    fs::write(directory.path().join("other"), b"othe").unwrap();
    let other = OpenOptions { format: Some(FormatKind::Raw), ..Default::default() };
    let other = other.open(directory.path().join("other")).unwrap();
    let with = OpenOptions { backing: Backing::Image(Arc::clone(&other)), ..Default::default() };
    let image = with.open(&top).unwrap();
    assert_eq!(&first_bytes(&image), b"othe");
    image.close().unwrap();
    assert_eq!(&first_bytes(&other), b"othe", "who opened it closes it");
    let without = OpenOptions { backing: Backing::None, ..Default::default() }.open(&top).unwrap();
    assert_eq!(first_bytes(&without), [0; 4]);
}

#[test]
fn the_gate_is_asked_for_every_link() {
    let (directory, top) = three();
    let denied = OpenOptions { gate: Gate::Deny, ..Default::default() }.open(&top).unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::ImplicitOpenDenied);
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let gate = Gate::Ask(Arc::new({
        let asked = Arc::clone(&asked);
        move |path: &Path, kind| {
            assert_eq!(kind, ReferenceKind::Backing);
            asked.lock().unwrap().push(path.file_name().unwrap().to_owned());
            Ok(true)
        }
    }));
    OpenOptions { gate, ..Default::default() }.open(&top).unwrap();
    assert_eq!(*asked.lock().unwrap(), ["middle.qcow2", "base.raw"]);
    // A link that leads out of the directory, deeper down.
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    fs::remove_file(directory.path().join("base.raw")).unwrap();
    symlink(outside.path().join("secret"), directory.path().join("base.raw")).unwrap();
    let denied = OpenOptions::default().open(&top).unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::ImplicitOpenDenied);
    assert!(denied.to_string().contains("base.raw"), "{denied}");
    let allowed = OpenOptions { gate: Gate::Allow, ..Default::default() }.open(&top).unwrap();
    assert_eq!(&first_bytes(&allowed), b"secr");
}

#[test]
fn a_chain_that_comes_back_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    overlay(&a, "b", Some("qcow2"));
    overlay(&b, "a", Some("qcow2"));
    let own = directory.path().join("own");
    overlay(&own, "own", None);
    for path in [&a, &own] {
        let error = OpenOptions::default().open(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidImage);
        assert!(error.to_string().contains("comes back"), "{error}");
        assert_eq!(info(path, None).unwrap().virtual_size, SIZE, "info opens nothing else");
    }
    // By another name of the same file, too, and when it was given.
    symlink("a", directory.path().join("alias")).unwrap();
    let alias = OpenOptions { backing: Backing::None, ..Default::default() }
        .open(directory.path().join("alias"))
        .unwrap();
    let error = OpenOptions { backing: Backing::Image(alias), ..Default::default() }.open(&a).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidImage);
}

#[test]
fn a_chain_has_256_images_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("0"), b"base").unwrap();
    for link in 1..=256 {
        let format = if link == 1 { "raw" } else { "qcow2" };
        overlay(&directory.path().join(link.to_string()), &(link - 1).to_string(), Some(format));
    }
    let image = OpenOptions::default().open(directory.path().join("255")).unwrap();
    assert_eq!(image.chain_len(), 256);
    assert_eq!(&first_bytes(&image), b"base");
    assert!(image.extents(0, SIZE).unwrap().any(|extent| extent.unwrap().depth == 255));
    let error = OpenOptions::default().open(directory.path().join("256")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("256"), "{error}");
}

#[test]
fn a_missing_link_is_named() {
    let (directory, top) = three();
    fs::remove_file(directory.path().join("base.raw")).unwrap();
    for gate in [Gate::Beside, Gate::Allow] {
        let error = OpenOptions { gate, ..Default::default() }.open(&top).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(error.os_error(), Some(2));
        let text = error.to_string();
        assert!(text.contains("base.raw") && text.contains("middle.qcow2"), "{text}");
    }
}

#[test]
fn a_backing_file_of_a_strange_format_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("base"), b"KDMV").unwrap();
    for format in [Some("vmdk"), None] {
        let top = directory.path().join(format!("top-{format:?}"));
        overlay(&top, "base", format);
        let error = OpenOptions::default().open(&top).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("vmdk"), "{error}");
    }
}

#[test]
fn dependencies_that_were_not_opened_are_no_holes() {
    let (_directory, top) = three();
    let access = SyncFormatAccess::new(Qcow2::open_path_sync(&top, false).unwrap()).unwrap();
    let error = access.read(&mut [0; 4], 0).unwrap_err();
    assert!(error.to_string().contains("middle.qcow2"), "{error}");

    let mut qcow2 = Qcow2::open_path_sync(&top, false).unwrap();
    qcow2.open_implicit_dependencies_sync().unwrap();
    let access = SyncFormatAccess::new(qcow2).unwrap();
    assert_eq!(&first_bytes(access.image()), b"base");

    let mut qcow2 = Qcow2::open_path_sync(&top, false).unwrap();
    let below =
        SyncFormatAccess::new(Raw::open_image_sync(Box::new(Null::new(SIZE)), false).unwrap()).unwrap();
    qcow2.set_backing(Some(Arc::new(below)));
    qcow2.open_implicit_dependencies_sync().unwrap();
    assert_eq!(first_bytes(SyncFormatAccess::new(qcow2).unwrap().image()), [0; 4]);
}

#[test]
fn a_data_file_that_was_not_opened_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("top");
    let options = qcow2::CreateOptions { size: SIZE, data_file: Some("data".into()), ..Default::default() };
    create(&path, &CreateOptions::Qcow2(options)).unwrap();
    let error = SyncFormatAccess::new(Qcow2::open_path_sync(&path, true).unwrap()).unwrap_err();
    assert!(error.to_string().contains("data file"), "{error}");
    let mut qcow2 = Qcow2::open_path_sync(&path, true).unwrap();
    qcow2.open_implicit_dependencies_sync().unwrap();
    let access = SyncFormatAccess::new(qcow2).unwrap();
    access.write(b"data", 65536 * 3).unwrap();
    drop(access);
    assert_eq!(&fs::read(directory.path().join("data")).unwrap()[65536 * 3..][..4], b"data");
    // The image as its own data file would overwrite its own metadata.
    let path = directory.path().join("own");
    let options = qcow2::CreateOptions { size: SIZE, data_file: Some("spare".into()), ..Default::default() };
    create(&path, &CreateOptions::Qcow2(options)).unwrap();
    fs::remove_file(directory.path().join("spare")).unwrap();
    symlink("own", directory.path().join("spare")).unwrap();
    let error =
        OpenOptions { lock: imago_core::storage::Lock::Off, write: true, ..Default::default() }.open(&path);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidImage);
}
