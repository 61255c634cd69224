//! Amending what several verbs do: key slots, the size, and both with the header; beside `qemu-img amend`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago_core::access::amend::{AmendOptions, Amendment, amend, amend_storage};
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::job::Job;
use imago_core::access::keys::{KeyChange, key_slots};
use imago_core::access::open::OpenOptions;
use imago_core::crypt::{CipherSpec, Cost, Mode, Options, Secret};
use imago_core::format::FormatKind;
use imago_core::format::luks::LastSlot;
use imago_core::format::qcow2::create::{Encryption, Version};
use imago_core::storage::memory::Memory;
use imago_core::{Error, ErrorKind, Result};
use imago_testkit::crash::{Content, Look, Moment, Start, Verb, survivor};
use imago_testkit::images::Config;
use imago_testkit::model::pattern;
use imago_testkit::{qemu, scaled};
use tempfile::{TempDir, tempdir};

const COST: Cost = Cost::Iterations(1000);
const SIZE: u64 = 1 << 20;
const KINDS: [FormatKind; 2] = [FormatKind::Qcow2, FormatKind::Luks];

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

/// An image that "a" opens, with the smallest key slots.
fn encrypted(kind: FormatKind) -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    let cipher = CipherSpec { key_bits: 128, mode: Mode::Cbc, ..CipherSpec::default() };
    let encryption = Options { cipher, cost: COST, ..Options::new(secret("a")) };
    let mut options = CreateOptions::qcow2(SIZE);
    match (&mut options, kind) {
        (CreateOptions::Qcow2(options), FormatKind::Qcow2) => {
            options.encryption = Some(Encryption::Luks(encryption));
        }
        _ => options = CreateOptions::Luks { size: SIZE, encryption },
    }
    create(&path, &options).unwrap();
    let image = opened(&path, "a").unwrap();
    image.write(&pattern(1, 0, 100_000), 70_001).unwrap();
    image.close().unwrap();
    (dir, path)
}

fn opened(path: &Path, text: &str) -> Result<Arc<imago_core::Image>> {
    OpenOptions { write: true, secret: Some(secret(text)), ..OpenOptions::default() }.open(path)
}

/// Whether a secret opens the image in `bytes`, which then reads as it should.
fn opens(bytes: &[u8], kind: FormatKind, text: &str) -> bool {
    let options = OpenOptions { format: Some(kind), secret: Some(secret(text)), ..OpenOptions::default() };
    match options.open_storage(Arc::new(Memory::from(bytes.to_vec()))) {
        Ok(image) => {
            let mut found = vec![0; 100_000];
            image.read(&mut found, 70_001).unwrap();
            assert!(found == pattern(1, 0, 100_000));
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WrongSecret, "{error}");
            false
        }
    }
}

fn add(text: &str, slot: Option<usize>) -> KeyChange {
    KeyChange::Add { secret: secret(text), slot, cost: COST }
}

fn erase(slot: Option<usize>, text: Option<&str>, last: LastSlot) -> KeyChange {
    KeyChange::Erase { slot, secret: text.map(secret), last }
}

fn opening(text: &str) -> OpenOptions {
    OpenOptions { secret: Some(secret(text)), ..OpenOptions::default() }
}

fn with_a(key: KeyChange) -> Amendment {
    Amendment { key: Some(key), open: opening("a"), ..Amendment::default() }
}

fn amended(path: &Path, amendment: &Amendment) -> Result<()> {
    amend(path, amendment, &mut Job::default())
}

#[test]
fn key_slots_come_and_go_and_what_qemu_refuses_is_refused_with_the_file_untouched() {
    for kind in KINDS {
        let (_dir, path) = encrypted(kind);
        let bytes = || fs::read(&path).unwrap();
        amended(&path, &with_a(add("b", Some(5)))).unwrap();
        assert!(opens(&bytes(), kind, "a") && opens(&bytes(), kind, "b"));
        let before = bytes();
        let refused = |amendment: &Amendment, kind: ErrorKind| {
            let error: Error = amended(&path, amendment).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.path().is_some(), "{error}");
            assert!(bytes() == before, "{error}");
        };
        let nobody = Amendment { open: opening("c"), ..with_a(add("d", None)) };
        refused(&nobody, ErrorKind::WrongSecret);
        refused(&Amendment { open: OpenOptions::default(), ..nobody }, ErrorKind::WrongSecret);
        refused(&with_a(add("c", Some(5))), ErrorKind::InvalidInput);
        refused(&with_a(add("c", Some(8))), ErrorKind::InvalidInput);
        refused(&with_a(add("", None)), ErrorKind::InvalidInput);
        refused(&with_a(erase(None, None, LastSlot::Keep)), ErrorKind::InvalidInput);
        refused(&with_a(erase(Some(3), None, LastSlot::Keep)), ErrorKind::InvalidInput);
        refused(&with_a(erase(Some(5), Some("a"), LastSlot::Keep)), ErrorKind::WrongSecret);
        refused(&with_a(erase(None, Some("c"), LastSlot::Keep)), ErrorKind::WrongSecret);

        amended(&path, &with_a(erase(Some(0), Some("a"), LastSlot::Keep))).unwrap();
        assert!(!opens(&bytes(), kind, "a") && opens(&bytes(), kind, "b"));
        let last = bytes();
        for key in [erase(Some(5), None, LastSlot::Keep), erase(None, Some("b"), LastSlot::Keep)] {
            assert_eq!(amended(&path, &with_a(key)).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert!(bytes() == last);
        }
        amended(&path, &with_a(erase(None, Some("b"), LastSlot::Erase))).unwrap();
        assert!(!opens(&bytes(), kind, "b"));
    }
}

#[test]
fn key_slots_survive_a_loss_of_power() {
    for kind in KINDS {
        let (_dir, path) = encrypted(kind);
        let one = fs::read(&path).unwrap();
        amended(&path, &with_a(add("b", Some(6)))).unwrap();
        let both = fs::read(&path).unwrap();
        let images = scaled(20) as usize;
        Verb {
            start: std::slice::from_ref(&one),
            run: &|storages| {
                let open = OpenOptions { format: Some(kind), ..opening("a") };
                let amendment = Amendment { open, ..with_a(add("b", Some(6))) };
                amend_storage(Arc::clone(&storages[0]), &amendment, &mut Job::default())
            },
            verify: &|media, moment| {
                if !opens(&media[0], kind, "a") {
                    return Err("the old secret does not open it".into());
                }
                // Active is only what opens.
                let memory = Arc::new(Memory::from(media[0].clone()));
                let slots = key_slots(memory, Some(kind)).map_err(|e| e.to_string())?;
                let active = slots.info().slots[6].active;
                let opens = opens(&media[0], kind, "b");
                if active != opens || (moment == Moment::After && !opens) {
                    return Err(format!("slot 6 is active: {active}, and opens: {opens}"));
                }
                Ok(())
            },
        }
        .assert_crash_proof("a key slot is made", images, &[]);
        let erased = Verb {
            start: std::slice::from_ref(&both),
            run: &|storages| {
                let key = erase(None, Some("b"), LastSlot::Keep);
                let open = OpenOptions { format: Some(kind), ..opening("a") };
                let amendment = Amendment { open, ..with_a(key) };
                amend_storage(Arc::clone(&storages[0]), &amendment, &mut Job::default())
            },
            verify: &|media, moment| match (opens(&media[0], kind, "a"), opens(&media[0], kind, "b")) {
                (false, _) => Err("the other secret does not open it".into()),
                (true, true) if moment == Moment::After => Err("the erased secret opens it".into()),
                (true, _) => Ok(()),
            },
        };
        erased.lose_power(Look::at(images, 0)).unwrap_or_else(|e| panic!("{kind}: {e:?}"));
    }
}

#[test]
fn the_size_changes_beside_the_header_and_what_cannot_be_is_refused_first() {
    let v3 = AmendOptions { version: Some(Version::V3), ..AmendOptions::default() };
    let v2 = AmendOptions { version: Some(Version::V2), ..AmendOptions::default() };
    let built = Config { version: 2, ..Config::plain(12, 300_032) }.build();
    let path = &built.path;
    let image = imago_testkit::images::open(path, true).unwrap();
    image.write(&pattern(3, 0, 300_032), 0).unwrap();
    image.create_snapshot("small", None).unwrap();
    image.close().unwrap();
    let with = |header: &AmendOptions, size| Amendment {
        header: header.clone(),
        size: Some(size),
        ..Amendment::default()
    };
    let before = fs::read(path).unwrap();
    let none = AmendOptions::default();
    let wide = AmendOptions { refcount_bits: Some(8), ..AmendOptions::default() };
    for (amendment, kind) in [
        (with(&none, 400_384), ErrorKind::Unsupported),
        (with(&v3, 400_383), ErrorKind::InvalidInput),
        (with(&wide, 400_384), ErrorKind::InvalidInput),
        (with(&v3, u64::MAX - 511), ErrorKind::InvalidInput),
    ] {
        let error = amended(path, &amendment).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(fs::read(path).unwrap() == before, "{error}");
    }
    // As version 3 it may have another size than its snapshots.
    amended(path, &with(&v3, 400_384)).unwrap();
    let image = imago_testkit::images::open(path, true).unwrap();
    assert_eq!(image.size(), 400_384);
    image.delete_snapshot("small").unwrap();
    image.close().unwrap();
    amended(path, &with(&v2, 200_192)).unwrap();
    let bytes = fs::read(path).unwrap();
    imago_testkit::check::check(&bytes).assert_clean();
    let view = survivor(&[bytes], &[]).unwrap();
    assert!(view.disk == pattern(3, 0, 200_192));
    // Nobody holds it any more.
    imago_testkit::images::open(path, true).unwrap().close().unwrap();
}

#[test]
fn an_encrypted_disk_changes_its_size_with_its_secret_only() {
    let (_dir, path) = encrypted(FormatKind::Qcow2);
    let size = Amendment { size: Some(2 * SIZE), ..Amendment::default() };
    let before = fs::read(&path).unwrap();
    assert_eq!(amended(&path, &size).unwrap_err().kind(), ErrorKind::WrongSecret);
    assert!(fs::read(&path).unwrap() == before);
    amended(&path, &Amendment { size: size.size, ..with_a(add("b", None)) }).unwrap();
    let image = opened(&path, "b").unwrap();
    assert_eq!(image.size(), 2 * SIZE);
    let mut bytes = vec![1; SIZE as usize];
    image.read(&mut bytes, SIZE).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    let (_dir, bare) = encrypted(FormatKind::Luks);
    for amendment in [size, Amendment::default()] {
        assert_eq!(amended(&bare, &amendment).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_loss_of_power_leaves_the_old_or_the_new_size() {
    let content = Content { compressed: false, used: true, snapshot: false, bitmaps: false };
    let start = Start::new("amend-512", Config::plain(9, 70_144), content).unwrap();
    for size in [35_328, 100_352] {
        let mut new = start.view.disk.clone();
        new.resize(size as usize, 0);
        let verb = Verb {
            start: &start.media,
            run: &|storages| {
                let amendment = Amendment { size: Some(size), ..Amendment::default() };
                amend_storage(Arc::clone(&storages[0]), &amendment, &mut Job::default())
            },
            verify: &|media, moment| {
                let disk = survivor(media, &[])?.disk;
                if disk == new || (moment == Moment::During && disk == start.view.disk) {
                    return Ok(());
                }
                Err(format!("a disk of {} bytes that never was", disk.len()))
            },
        };
        verb.lose_power(Look::at(scaled(60) as usize, 1)).unwrap_or_else(|e| panic!("{size}: {e:?}"));
    }
}

#[test]
fn it_amends_key_slots_and_sizes_as_qemu_does() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let (dir, path) = encrypted(FormatKind::Qcow2);
    let theirs = dir.path().join("theirs");
    fs::copy(&path, &theirs).unwrap();
    let objects = ["--object", "secret,id=a,data=a", "--object", "secret,id=b,data=b"];
    let image = |path: &Path, key: &str| {
        format!("driver=qcow2,file.filename={},encrypt.key-secret={key}", path.display())
    };
    let their = |key: &str, options: &str| {
        let image = image(&theirs, key);
        qemu::img(&[&["amend"], &objects[..], &["--image-opts", "-o", options, &image]].concat());
    };
    their("a", "encrypt.state=active,encrypt.new-secret=b,encrypt.keyslot=3,encrypt.iter-time=10");
    amended(&path, &with_a(add("b", Some(3)))).unwrap();
    their("b", "encrypt.state=inactive,encrypt.old-secret=a,size=2M");
    amended(
        &path,
        &Amendment {
            size: Some(2 << 20),
            open: opening("b"),
            ..with_a(erase(None, Some("a"), LastSlot::Keep))
        },
    )
    .unwrap();
    let slots = |path: &Path| {
        let said = qemu::img(&["info", "--output=json", path.to_str().unwrap()]);
        said.lines()
            .filter(|line| line.contains("\"active\"") || line.contains("virtual-size"))
            .collect::<String>()
    };
    assert_eq!(slots(&path), slots(&theirs));
    // Each opens what the other has amended, and QEMU finds the same in both.
    let compare = [&["compare"], &objects[..], &["--image-opts", &image(&path, "b"), &image(&theirs, "b")]];
    qemu::img(&compare.concat());
    opened(&theirs, "b").unwrap();
    assert_eq!(opened(&path, "a").unwrap_err().kind(), ErrorKind::WrongSecret);
}
