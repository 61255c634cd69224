//! Chains of images: what opens, what does not, and what it says.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago_core::access::create::{CreateOptions, create};
use imago_core::access::info::{info, info_chain};
use imago_core::access::open::{Backing, Gate, OpenOptions, ReferenceKind, slice};
use imago_core::format::qcow2::create as qcow2;
use imago_core::format::{FormatKind, ImplicitReference};
use imago_core::qcow2::Qcow2;
use imago_core::raw::Raw;
use imago_core::storage::{Lock, Storage, StorageOpenOptions};
use imago_core::{ErrorKind, Image, SyncFormatAccess, file::File, null::Null};

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

fn file_of(path: &Path) -> Arc<dyn Storage> {
    Arc::new(File::open_sync(StorageOpenOptions::new().filename(path)).unwrap())
}

#[test]
fn parts_of_one_file_are_no_cycle_unless_they_overlap() {
    let directory = tempfile::tempdir().unwrap();
    let (top, bundle) = (directory.path().join("top"), directory.path().join("bundle"));
    overlay(&top, "base", Some("raw"));
    let mut bytes = vec![0; SIZE as usize];
    bytes[..4].copy_from_slice(b"base");
    bytes.extend(fs::read(&top).unwrap());
    fs::write(&bundle, bytes).unwrap();
    let file = file_of(&bundle);
    let over = |base: Arc<dyn Storage>| {
        let raw = OpenOptions { format: Some(FormatKind::Raw), ..Default::default() };
        let backing = Backing::Image(raw.open_storage(base)?);
        let options = OpenOptions { format: Some(FormatKind::Qcow2), backing, ..Default::default() };
        options.open_storage(slice(Arc::clone(&file), SIZE, None)?)
    };
    for len in [SIZE, 512] {
        assert_eq!(&first_bytes(&over(slice(Arc::clone(&file), 0, Some(len)).unwrap()).unwrap()), b"base");
    }
    // The same as the image itself describes it.
    for (len, fits) in [(SIZE, true), (SIZE + 1, false)] {
        let (top, whole) = (directory.path().join(format!("top-{len}")), directory.path().join("whole"));
        let file = format!("{{\"driver\": \"file\", \"filename\": \"{}\"}}", whole.display());
        overlay(&top, &format!("json:{{\"driver\": \"raw\", \"size\": {len}, \"file\": {file}}}"), None);
        let base = &fs::read(&bundle).unwrap()[..SIZE as usize];
        fs::write(&whole, [base, &fs::read(&top).unwrap()].concat()).unwrap();
        let gate = Gate::Ask(Arc::new(|_, _| Ok(true)));
        let options = OpenOptions { gate, format: Some(FormatKind::Qcow2), ..Default::default() };
        match options.open_storage(slice(file_of(&whole), SIZE, None).unwrap()) {
            Ok(image) => assert_eq!((&first_bytes(&image), fits), (b"base", true)),
            Err(error) => assert_eq!((error.kind(), fits), (ErrorKind::InvalidImage, false), "{error}"),
        }
    }
    let within = slice(slice(Arc::clone(&file), 4096, None).unwrap(), SIZE, Some(512)).unwrap();
    for base in [Arc::clone(&file), slice(Arc::clone(&file), 0, Some(SIZE + 1)).unwrap(), within] {
        let error = over(base).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidImage);
        assert!(error.to_string().contains("comes back"), "{error}");
    }
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

fn open_with(gate: Gate, path: &Path) -> imago_core::Result<Arc<Image>> {
    OpenOptions { gate, ..Default::default() }.open(path)
}

fn anything() -> Gate {
    Gate::Ask(Arc::new(|_, _| Ok(true)))
}

#[test]
fn an_image_that_describes_its_backing_file_gets_what_the_gate_lets_pass() {
    let (directory, middle) = three();
    let folder = directory.path().display();
    fs::write(directory.path().join("part"), [&[1; 512][..], b"part", &[2; 508]].concat()).unwrap();
    let inside = directory.path().join("inside.qcow2");
    create(&inside, &CreateOptions::Qcow2(qcow2::CreateOptions { size: SIZE, ..Default::default() }))
        .unwrap();
    let image = OpenOptions { write: true, ..Default::default() }.open(&inside).unwrap();
    image.write(b"disk", 512).unwrap();
    image.close().unwrap();
    let base = "{'driver': 'raw', 'file.filename': 'FOLDER/part'}";
    let top = directory.path().join("described.qcow2");
    for (json, bytes, chain_len) in [
        ("{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': 'FOLDER/top.qcow2'}}", b"base", 4),
        ("{'driver': 'raw', 'offset': 512, 'size': '512', 'file': {'filename': 'FOLDER/part'}}", b"part", 2),
        (
            "{'driver': 'raw', 'offset': 512, 'file': {'driver': 'qcow2', 'file.filename': 'FOLDER/inside.qcow2'}}",
            b"disk",
            2,
        ),
        ("{'driver': 'qcow2', 'file.filename': 'FOLDER/top.qcow2', 'backing': null}", &[0; 4], 2),
        (
            &format!("{{'driver': 'qcow2', 'file.filename': 'FOLDER/top.qcow2', 'backing': {base}}}"),
            &[1; 4],
            3,
        ),
    ] {
        let json = format!("json:{}", json.replace("FOLDER", &folder.to_string()).replace('\'', "\""));
        let _ = fs::remove_file(&top);
        overlay(&top, &json, None);
        for gate in [Gate::Beside, Gate::Allow, Gate::Deny] {
            assert_eq!(open_with(gate, &top).unwrap_err().kind(), ErrorKind::ImplicitOpenDenied, "{json}");
        }
        let image = open_with(anything(), &top).unwrap();
        assert_eq!((&first_bytes(&image), image.chain_len()), (bytes, chain_len), "{json}");
        let storage = File::open_sync(StorageOpenOptions::new().filename(&top).lock(Lock::Off)).unwrap();
        let images = info_chain(Arc::new(storage), None, &anything(), Lock::Off);
        assert_eq!(images.unwrap().len() as u32, chain_len, "{json}");
        image.close().unwrap();
        // Closing freed the locks, those of images within images too.
        for file in [&middle, &inside] {
            let backing = Backing::None;
            OpenOptions { write: true, backing, ..Default::default() }.open(file).unwrap().close().unwrap();
        }
    }
}

#[test]
fn a_described_chain_that_comes_back_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("top.qcow2");
    for json in [
        "{\"driver\": \"qcow2\", \"file\": {\"filename\": \"TOP\"}}",
        "{\"driver\": \"raw\", \"file\": {\"driver\": \"qcow2\", \"file.filename\": \"TOP\"}}",
    ] {
        let _ = fs::remove_file(&top);
        overlay(&top, &format!("json:{}", json.replace("TOP", &top.display().to_string())), None);
        let error = open_with(anything(), &top).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error}");
        assert!(error.to_string().contains("comes back"), "{error}");
    }
}

#[test]
fn what_a_description_lacks_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("top.qcow2");
    for (json, kind, says) in [
        ("json:{\"driver\": \"qcow2\"", ErrorKind::InvalidImage, "cannot be read"),
        ("json:{\"driver\": \"nbd\", \"host\": \"a\"}", ErrorKind::Unsupported, "driver \"nbd\""),
        ("json:{\"driver\": \"qcow2\", \"file\": \"node\"}", ErrorKind::InvalidImage, "\"node\""),
        (
            "json:{\"driver\": \"raw\", \"file.filename\": \"/nowhere\", \"offset\": 1}",
            ErrorKind::Io,
            "/nowhere",
        ),
    ] {
        let _ = fs::remove_file(&top);
        overlay(&top, json, None);
        let error = open_with(anything(), &top).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(text.contains(says) && text.contains(&top.display().to_string()), "{text}");
    }
}
