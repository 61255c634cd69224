//! Damaged images: what a repair does not make worse, what it removes, what a check looks at, and that nothing is touched of what cannot be used.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use imago_core::access::check::{CheckOptions, FindingKind, Repair, Report, Severity, check};
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::facade::{IntoImage, qcow2};
use imago_core::access::job::Job;
use imago_core::access::open::{Gate, OpenOptions};
use imago_core::crypt::{CipherSpec, Cost, Mode, Options, Secret};
use imago_core::format::qcow2::create as new;
use imago_core::format::{FormatKind, ImplicitReference, Recording};
use imago_core::{ErrorKind, Image, Result};
use imago_testkit::check as oracle;
use imago_testkit::images;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::{model::pattern, qemu};
use tempfile::tempdir;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const SIZE: u64 = 4 << 20;
const CLUSTER: u64 = 1 << 16;

fn checked(path: &Path, repair: Repair) -> Report {
    let options = CheckOptions { format: Some(FormatKind::Qcow2), repair, ..CheckOptions::default() };
    check(path, options, &mut Job::default()).unwrap()
}

fn kinds(report: &Report) -> Vec<FindingKind> {
    let mut kinds: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
    kinds.dedup();
    kinds
}

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: u64, new: &[u8]) {
    bytes[at as usize..][..new.len()].copy_from_slice(new);
}

/// An image with data in its first two clusters; what `change` makes of its bytes.
fn damaged(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    create(path, &CreateOptions::qcow2(SIZE)).unwrap();
    let image = images::open(path, true).unwrap();
    image.write(&pattern(1, 0, 2 * CLUSTER), 0).unwrap();
    image.close().unwrap();
    drop(image);
    rewritten(path, change);
}

fn rewritten(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Where the L2 entry of cluster `number` of a small disk is.
fn l2_entry(bytes: &[u8], number: u64) -> u64 {
    let header = Qcow2::parse(bytes).unwrap().header;
    (word(bytes, header.l1_table_offset) & OFFSET) + number * 8
}

fn set_refcount(bytes: &mut [u8], cluster: u64, count: u16) {
    let table = Qcow2::parse(bytes).unwrap().header.refcount_table_offset;
    let block = word(bytes, table);
    put(bytes, block + cluster * 2, &count.to_be_bytes());
}

fn set_dirty(bytes: &mut [u8]) {
    let incompatible = word(bytes, 72) | 1;
    put(bytes, 72, &incompatible.to_be_bytes());
}

/// A refcount of 0 says that somebody else may have the cluster: COPIED on it would let two write there.
#[test]
fn a_repair_of_leaks_sets_no_copied_flag_where_the_refcount_is_0() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    damaged(&path, |bytes| {
        let entry = l2_entry(bytes, 0);
        let host = word(bytes, entry) & OFFSET;
        put(bytes, entry, &host.to_be_bytes());
        set_refcount(bytes, host / CLUSTER, 0);
        // And something for the repair to do.
        let lost = word(bytes, entry + 8) & OFFSET;
        set_refcount(bytes, lost / CLUSTER, 3);
    });
    let report = checked(&path, Repair::Leaks);
    assert_eq!((report.leaks, report.leaks_fixed), (0, 1), "{:#?}", report.findings);
    let bytes = fs::read(&path).unwrap();
    let entry = l2_entry(&bytes, 0);
    assert_eq!(word(&bytes, entry) & COPIED, 0, "COPIED on a cluster that counts as free");
    assert_eq!(word(&bytes, entry + 8) & COPIED, COPIED);
    assert!(checked(&path, Repair::All).is_clean());
    oracle::check(&fs::read(&path).unwrap()).assert_clean();
}

fn opened(path: &Path, gate: Gate, secret: Option<&str>) -> Result<Arc<Image>> {
    let secret = secret.map(Secret::new);
    OpenOptions { write: true, format: Some(FormatKind::Qcow2), gate, secret, ..OpenOptions::default() }
        .open(path)
}

/// It is repaired when everything that it needs is there, and not before.
#[test]
fn a_dirty_image_that_cannot_be_used_is_not_touched() {
    let dir = tempdir().unwrap();
    let elsewhere = tempdir().unwrap();
    let (base, path) = (elsewhere.path().join("base"), dir.path().join("image"));
    fs::write(&base, pattern(2, 0, SIZE)).unwrap();
    let reference = |name: &Path| ImplicitReference { name: name.into(), format: Some("raw".into()) };
    let over = |name: &Path| {
        CreateOptions::Qcow2(new::CreateOptions {
            size: SIZE,
            backing: Some(reference(name)),
            ..Default::default()
        })
    };
    let external = CreateOptions::Qcow2(new::CreateOptions {
        size: SIZE,
        data_file: Some("data".into()),
        ..Default::default()
    });
    let cases = [
        (over(&base), ErrorKind::ImplicitOpenDenied),
        (over(Path::new("nowhere")), ErrorKind::Io),
        (external, ErrorKind::Io),
    ];
    for (options, kind) in cases {
        let _ = fs::remove_file(&path);
        create(&path, &options).unwrap();
        let _ = fs::remove_file(dir.path().join("data"));
        rewritten(&path, |bytes| set_dirty(bytes));
        let before = fs::read(&path).unwrap();
        let error = opened(&path, Gate::Beside, None).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let mut steps = qcow2::Qcow2::open_path_sync(&path, true).unwrap();
        assert_eq!(steps.open_implicit_dependencies_sync().unwrap_err().kind(), kind);
        drop(steps);
        assert!(fs::read(&path).unwrap() == before, "{error}: touched");
    }
    // Refused where nobody has opened what it names.
    let _ = fs::remove_file(&path);
    create(&path, &over(&base)).unwrap();
    rewritten(&path, |bytes| set_dirty(bytes));
    let before = fs::read(&path).unwrap();
    let image = qcow2::Qcow2::open_path_sync(&path, true).unwrap().into_image();
    assert_eq!(image.write(&b"x"[..], 0).unwrap_err().kind(), ErrorKind::Unsupported);
    drop(image);
    assert!(fs::read(&path).unwrap() == before);
    let mut steps = qcow2::Qcow2::open_path_sync(&path, true).unwrap();
    steps.open_implicit_dependencies_gated_sync(&Gate::Allow).unwrap();
    let image = steps.into_image();
    image.write(&pattern(3, 0, 1000), 100).unwrap();
    image.close().unwrap();
    drop(image);
    let image = opened(&path, Gate::Allow, None).unwrap();
    let mut found = vec![0; 1100];
    image.read(&mut found, 0).unwrap();
    assert!(found[..100] == pattern(2, 0, 100) && found[100..] == pattern(3, 0, 1000));
    image.close().unwrap();
    assert!(checked(&path, Repair::None).is_clean());
}

fn encrypted(path: &Path) {
    let cipher = CipherSpec { key_bits: 128, mode: Mode::Cbc, ..CipherSpec::default() };
    let luks = Options { cipher, cost: Cost::Iterations(1000), ..Options::new(Secret::new("a")) };
    let encryption = Some(new::Encryption::Luks(luks));
    create(path, &CreateOptions::Qcow2(new::CreateOptions { size: SIZE, encryption, ..Default::default() }))
        .unwrap();
}

#[test]
fn a_dirty_encrypted_image_is_repaired_for_who_has_its_secret() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    encrypted(&path);
    rewritten(&path, |bytes| set_dirty(bytes));
    let before = fs::read(&path).unwrap();
    for secret in [None, Some("b")] {
        let error = opened(&path, Gate::Beside, secret).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongSecret);
        assert!(fs::read(&path).unwrap() == before);
    }
    let image = opened(&path, Gate::Beside, Some("a")).unwrap();
    image.write(&pattern(4, 0, 70_000), 5).unwrap();
    image.close().unwrap();
    drop(image);
    let image = opened(&path, Gate::Beside, Some("a")).unwrap();
    let mut found = vec![0; 70_000];
    image.read(&mut found, 5).unwrap();
    assert!(found == pattern(4, 0, 70_000));
}

#[test]
fn a_check_looks_at_the_encryption_header() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    encrypted(&path);
    assert!(checked(&path, Repair::None).is_clean());
    let good = fs::read(&path).unwrap();
    let header = good.windows(6).position(|bytes| bytes == b"LUKS\xba\xbe").unwrap() as u64;
    for (at, bytes) in [(0, &b"LUKX"[..]), (208, &[0, 0, 0, 1]), (8, b"rot13\0"), (252, &[0, 0, 0, 1])] {
        fs::write(&path, &good).unwrap();
        rewritten(&path, |image| put(image, header + at, bytes));
        for repair in [Repair::None, Repair::All] {
            let report = checked(&path, repair);
            assert_eq!(kinds(&report), [FindingKind::Encryption], "{at}: {:#?}", report.findings);
            assert_eq!((report.corruptions, report.findings[0].severity), (1, Severity::Corruption));
            assert!(report.findings[0].offset.is_some());
        }
        assert!(opened(&path, Gate::Beside, Some("a")).is_err());
    }
}

/// An image with two bitmaps, of which "b" has a cluster of bits.
fn with_bitmaps(path: &Path) {
    damaged(path, |_| {});
    let image = images::open(path, true).unwrap();
    image.bitmaps().add("a", None, Recording::Disabled).unwrap();
    image.bitmaps().add("b", Some(512), Recording::Enabled).unwrap();
    image.write(&pattern(5, 0, 1000), 1 << 20).unwrap();
    image.close().unwrap();
}

/// What is wrong, which bitmaps stay, and how it comes about.
type Damage<'a> = (&'a str, &'a [&'a str], Box<dyn Fn(&mut Vec<u8>) + 'a>);

/// Whatever is wrong with them, nobody could write to the image again.
#[test]
fn a_repair_of_all_and_no_other_removes_the_bitmaps_that_make_no_sense_and_keeps_the_others() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    with_bitmaps(&path);
    assert!(checked(&path, Repair::None).is_clean());
    let good = fs::read(&path).unwrap();
    let found = Qcow2::parse(&good).unwrap();
    let table = found.bitmap("b").unwrap().table_offset;
    let directory = found.bitmap_directory.0;
    let directory_of_b = directory + 32;
    let damages: [Damage<'_>; 9] = [
        ("a bitmap of no type", &["b"], Box::new(|bytes| put(bytes, directory + 16, &[9]))),
        ("a table nowhere", &["b"], Box::new(|bytes| put(bytes, directory, &(1_u64 << 50).to_be_bytes()))),
        ("an entry with reserved bits", &["a"], Box::new(|bytes| put(bytes, table, &6_u64.to_be_bytes()))),
        ("bits past the end", &["a"], Box::new(|bytes| put(bytes, table, &(1_u64 << 40).to_be_bytes()))),
        (
            "bits on the header",
            &["a"],
            Box::new(|bytes| {
                let l1 = Qcow2::parse(bytes).unwrap().header.l1_table_offset;
                put(bytes, table, &l1.to_be_bytes());
            }),
        ),
        ("two of one name", &["a"], Box::new(|bytes| put(bytes, directory_of_b + 24, b"a"))),
        ("an entry that does not end", &[], Box::new(|bytes| put(bytes, directory_of_b + 18, &[0xff, 0xff]))),
        (
            "one table for two",
            &[],
            Box::new(|bytes| {
                let of_a = Qcow2::parse(bytes).unwrap().bitmap("a").unwrap().table_offset;
                put(bytes, directory_of_b, &of_a.to_be_bytes());
            }),
        ),
        (
            "the bits of one for two",
            &[],
            Box::new(|bytes| {
                let of_a = Qcow2::parse(bytes).unwrap().bitmap("a").unwrap().table_offset;
                let bits = word(bytes, table);
                put(bytes, of_a, &bits.to_be_bytes());
            }),
        ),
    ];
    let ranges = {
        let image = images::open(&path, false).unwrap();
        image.bitmaps().ranges("b").unwrap().collect::<Vec<_>>()
    };
    assert!(!ranges.is_empty());
    for (name, stay, damage) in &damages {
        fs::write(&path, &good).unwrap();
        rewritten(&path, damage);
        let before = fs::read(&path).unwrap();
        assert!(images::open(&path, true).is_err(), "{name}: opened for writing");
        assert!(checked(&path, Repair::None).corruptions > 0, "{name}");
        checked(&path, Repair::Leaks);
        assert!(word(&fs::read(&path).unwrap(), 88) & 1 != 0, "{name}: a repair of leaks removed them");
        fs::write(&path, &before).unwrap();
        // Who opens a dirty image for writing has asked for no such repair.
        rewritten(&path, |bytes| set_dirty(bytes));
        assert!(images::open(&path, true).is_err(), "{name}");
        assert!(word(&fs::read(&path).unwrap(), 88) & 1 != 0, "{name}: opening removed them");
        fs::write(&path, &before).unwrap();

        let report = checked(&path, Repair::All);
        assert!(report.is_clean() && report.corruptions_fixed > 0, "{name}: {report:#?}");
        assert_eq!(kinds(&report), [FindingKind::BitmapsDropped], "{name}");
        assert!(checked(&path, Repair::None).findings.is_empty(), "{name}");
        oracle::check(&fs::read(&path).unwrap()).assert_clean();
        if qemu::have_qemu() {
            qemu::assert_clean(&path);
        }
        let image = images::open(&path, true).unwrap();
        let left: Vec<_> = image.bitmaps().list().unwrap().into_iter().map(|bitmap| bitmap.name).collect();
        assert_eq!(left, *stay, "{name}");
        if stay.contains(&"b") {
            assert_eq!(image.bitmaps().ranges("b").unwrap().collect::<Vec<_>>(), ranges, "{name}");
        }
        let mut data = vec![0; 1000];
        image.read(&mut data, 1 << 20).unwrap();
        assert!(data == pattern(5, 0, 1000), "{name}");
        image.bitmaps().add("c", None, Recording::Enabled).unwrap();
        image.close().unwrap();
    }
}

/// The tables that were written last go first when a file is cut; what the guest wrote may be there all the same.
#[test]
fn an_image_whose_refcount_or_snapshot_table_is_lost_is_read_and_never_written() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    for (name, field, value) in [
        ("a refcount table past the end", 48, 1_u64 << 40),
        ("no refcount table", 56, 1),
        ("a snapshot table past the end", 64, 1 << 40),
        ("a snapshot table at no cluster boundary", 64, 8),
    ] {
        damaged(&path, |_| {});
        let image = images::open(&path, true).unwrap();
        image.create_snapshot("one", None).unwrap();
        image.close().unwrap();
        rewritten(&path, |bytes| put(bytes, field, &value.to_be_bytes()));
        let before = fs::read(&path).unwrap();
        let image = images::open(&path, false).unwrap();
        let mut data = vec![0; 2 * CLUSTER as usize];
        image.read(&mut data, 0).unwrap();
        assert!(data == pattern(1, 0, 2 * CLUSTER), "{name}");
        let listed = image.snapshots().map(|all| all.len());
        assert_eq!(listed.is_ok(), field < 60, "{name}: {listed:?}");
        drop(image);
        let error = images::open(&path, true).unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::InvalidImage, Some(field)), "{name}: {error}");
        assert!(!checked(&path, Repair::None).is_clean(), "{name}");
        assert!(fs::read(&path).unwrap() == before, "{name}: changed");
        fs::remove_file(&path).unwrap();
    }
}

/// They would be zeroes: clean, and missing in the next backup.
#[test]
fn bits_that_the_file_lacks_are_an_error() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    with_bitmaps(&path);
    let good = fs::read(&path).unwrap();
    let table = Qcow2::parse(&good).unwrap().bitmap("b").unwrap().table_offset;
    for place in [1 << 40, good.len() as u64 / CLUSTER * CLUSTER] {
        fs::write(&path, &good).unwrap();
        rewritten(&path, |bytes| {
            bytes.resize(bytes.len().next_multiple_of(CLUSTER as usize) - 512, 0);
            let place = if place > 1 << 39 { place } else { bytes.len() as u64 / CLUSTER * CLUSTER };
            put(bytes, table, &place.to_be_bytes());
        });
        let image = images::open(&path, false).unwrap();
        for error in [image.bitmaps().list().unwrap_err(), image.bitmaps().ranges("b").map(drop).unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    }
}
