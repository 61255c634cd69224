//! Amending: the same as QEMU makes of the same image, whatever is refused before anything is touched, and the
//! old or the new image after every loss of power.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago_core::access::amend::{Amendment, amend as amend_file};
use imago_core::access::job::Job;
use imago_core::format::ImplicitReference;
use imago_core::format::qcow2::amend::{AmendOptions, BackingChange, DataFileChange, amend};
use imago_core::format::qcow2::create::Version;
use imago_core::format::steps::Steps;
use imago_core::storage::memory::Memory;
use imago_core::storage::slice::Slice;
use imago_core::{ErrorKind, Result, Storage};
use imago_testkit::check::check;
use imago_testkit::crash::{Moment, Verb};
use imago_testkit::images::Config;
use imago_testkit::qcow2::{Qcow2, extension};
use imago_testkit::sim::{Failing, SimStorage};
use imago_testkit::{qemu, scaled};
use tempfile::TempDir;

/// An image that QEMU made: data, zeroes of every kind, discards, snapshots that share tables and clusters.
struct Made {
    dir: TempDir,
    path: PathBuf,
    /// What the backing file shows.
    backing: Vec<u8>,
}

/// Bytes of the disk of an image of the usual [`make`].
const SIZE: u64 = (1 << 20) + 1536;

#[derive(Clone, Copy, PartialEq)]
enum Below {
    Nothing,
    Raw,
}

fn make(options: &str, below: Below, snapshots: bool) -> Made {
    make_in_units_of(1024, options, below, snapshots)
}

/// The same with the disk and all that is written to it scaled down.
fn make_small(options: &str, below: Below, snapshots: bool) -> Made {
    make_in_units_of(256, options, below, snapshots)
}

fn make_in_units_of(unit: u64, options: &str, below: Below, snapshots: bool) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut options = options.to_owned();
    let mut backing = Vec::new();
    let size = (SIZE * unit / 1024).next_multiple_of(512);
    if below == Below::Raw {
        backing = imago_testkit::model::pattern(9, 0, size - 70 * unit);
        fs::write(dir.path().join("base"), &backing).unwrap();
        options = format!("{options},backing_file={},backing_fmt=raw", dir.path().join("base").display());
    }
    let run = |commands: &[(&str, u64, u64)]| {
        let line =
            |(what, offset, len): &(&str, u64, u64)| format!("{what} {} {}", offset * unit, len * unit);
        qemu::io(&path, "qcow2", &commands.iter().map(line).collect::<Vec<_>>());
    };
    qemu::create(&path, size, options.trim_start_matches(','));
    run(&[("write -P 1", 0, 300), ("write -P 2", 500, 100), ("write -z", 40, 80)]);
    if snapshots {
        qemu::img(&["snapshot".as_ref(), "-c".as_ref(), "first".as_ref(), path.as_os_str()]);
        // Zeroes that keep clusters which the snapshot shows the data of.
        run(&[("write -P 3", 10, 20), ("write -z", 200, 64), ("write -z -u", 540, 60)]);
        qemu::img(&["snapshot".as_ref(), "-c".as_ref(), "second".as_ref(), path.as_os_str()]);
    }
    run(&[("discard", 128, 64), ("write -z", 700, 128), ("write -P 4", 900, 100)]);
    Made { dir, path, backing }
}

impl Made {
    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// The disk and each snapshot as the oracle reads them.
    fn contents(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let image = Qcow2::parse(bytes)?;
        let mut contents = vec![image.content(&self.backing, None)?];
        for snapshot in &image.snapshots {
            contents.push(image.snapshot_content(snapshot, &self.backing)?);
        }
        Ok(contents)
    }
}

fn options(change: impl FnOnce(&mut AmendOptions)) -> AmendOptions {
    let mut options = AmendOptions::default();
    change(&mut options);
    options
}

fn amend_path(path: &Path, options: &AmendOptions) -> Result<()> {
    amend_file(path, &of_header(options), &mut Job::default())
}

fn of_header(options: &AmendOptions) -> Amendment {
    Amendment { header: options.clone(), ..Amendment::default() }
}

/// What `qemu-img info` says of an image, but for what names or measures the file.
fn info(path: &Path) -> String {
    let said = qemu::img(&["info".as_ref(), "--output=json".as_ref(), path.as_os_str()]);
    let file = said
        .find("\"children\"")
        .map_or(0..0, |start| start..said[start..].find("\n    ],").map_or(start, |end| start + end));
    let said = said[..file.start].to_owned() + &said[file.end..];
    let differs = ["\"filename\"", "\"actual-size\"", "\"full-backing-filename\""];
    said.lines().filter(|line| !differs.iter().any(|word| line.contains(word))).collect::<Vec<_>>().join("\n")
}

fn down() -> AmendOptions {
    options(|o| o.version = Some(Version::V2))
}

fn up() -> AmendOptions {
    options(|o| o.version = Some(Version::V3))
}

fn bits(bits: u32) -> AmendOptions {
    options(|o| o.refcount_bits = Some(bits))
}

fn backing(name: &[u8], format: Option<&str>) -> AmendOptions {
    let reference =
        ImplicitReference { name: OsStr::from_bytes(name).into(), format: format.map(str::to_owned) };
    options(|o| o.backing = Some(BackingChange::Set(reference)))
}

/// The options of an image, the amendment, and what `qemu-img amend -o` calls it.
fn matrix() -> Vec<(&'static str, AmendOptions, &'static str)> {
    let lazy = |on| options(|o| o.lazy_refcounts = Some(on));
    vec![
        ("cluster_size=4k", down(), "compat=0.10"),
        ("cluster_size=512", down(), "compat=0.10"),
        ("", down(), "compat=0.10"),
        ("lazy_refcounts=on", down(), "compat=0.10"),
        ("compression_type=zstd", down(), "compat=0.10"),
        (
            "cluster_size=1k,refcount_bits=8",
            AmendOptions { refcount_bits: Some(16), ..down() },
            "compat=0.10,refcount_bits=16",
        ),
        ("compat=0.10,cluster_size=4k", up(), "compat=1.1"),
        (
            "compat=0.10",
            AmendOptions { refcount_bits: Some(64), lazy_refcounts: Some(true), ..up() },
            "compat=1.1,refcount_bits=64,lazy_refcounts=on",
        ),
        ("", lazy(true), "lazy_refcounts=on"),
        ("lazy_refcounts=on", lazy(false), "lazy_refcounts=off"),
        ("cluster_size=512", bits(64), "refcount_bits=64"),
        ("cluster_size=512,refcount_bits=64", bits(4), "refcount_bits=4"),
        ("cluster_size=4k,refcount_bits=2", bits(32), "refcount_bits=32"),
        ("", bits(8), "refcount_bits=8"),
        ("extended_l2=on,cluster_size=16k", bits(4), "refcount_bits=4"),
    ]
}

#[test]
fn it_amends_as_qemu_does() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for (created, options, spelled) in matrix() {
        let all = [(Below::Nothing, false), (Below::Raw, false), (Below::Nothing, true), (Below::Raw, true)];
        // Only going down looks at what is mapped.
        let some = if spelled.contains("0.10") { &all[..] } else { &all[3..] };
        for &(below, snapshots) in some {
            let made = make(created, below, snapshots);
            let theirs = made.dir.path().join("theirs");
            fs::copy(&made.path, &theirs).unwrap();
            let before = made.contents(&made.bytes()).unwrap();
            let which =
                format!("{created} -> {spelled}, snapshots {snapshots}, backing {}", below == Below::Raw);
            qemu::img(&[
                OsStr::new("amend"),
                "-f".as_ref(),
                "qcow2".as_ref(),
                "-o".as_ref(),
                spelled.as_ref(),
                theirs.as_os_str(),
            ]);
            amend_path(&made.path, &options).unwrap_or_else(|error| panic!("{which}: {error}"));

            check(&made.bytes()).assert_clean();
            qemu::assert_clean(&made.path);
            assert_eq!(info(&made.path), info(&theirs), "{which}");
            assert!(made.contents(&made.bytes()).unwrap() == before, "{which}: the content is another");
            assert!(qemu::content(&made.path) == before[0], "{which}");
            for (index, name) in ["first", "second"].iter().enumerate().filter(|_| snapshots) {
                assert!(qemu::snapshot_content(&made.path, name) == before[1 + index], "{which}: {name}");
            }
            qemu::img(&[OsStr::new("compare"), made.path.as_os_str(), theirs.as_os_str()]);
        }
    }
}

#[test]
fn what_was_downgraded_and_upgraded_goes_on_being_written() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let made = make("cluster_size=4k", Below::Raw, true);
    for change in [down(), up(), bits(1 << 5), AmendOptions { refcount_bits: Some(16), ..down() }] {
        amend_path(&made.path, &change).unwrap();
        qemu::io(&made.path, "qcow2", &["write -P 7 0 1M", "read -P 7 0 1M", "write -z 100k 100k"]);
        let image = imago_testkit::images::open(&made.path, true);
        // The base is beside the image.
        let image = image.unwrap();
        image.write(&[8; 5000], 77_777).unwrap();
        image.close().unwrap();
        check(&made.bytes()).assert_clean();
        qemu::assert_clean(&made.path);
    }
}

#[test]
fn references_change_and_the_rest_stays() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let long = [b"/".to_vec(), vec![b'n'; 1022]].concat();
    let names: [&[u8]; 6] = [
        b"base",
        b"/absolute/base",
        b"with spaces and: a colon",
        b"not \xff\xfe text",
        b"json:{\"driver\":\"null-co\"}",
        &long,
    ];
    for created in [
        "",
        "compat=0.10",
        "compat=0.10,cluster_size=2k",
        "cluster_size=512,refcount_bits=1",
        "lazy_refcounts=on",
    ] {
        let made = make(created, Below::Nothing, false);
        let before = made.bytes();
        let room = Qcow2::parse(&before).unwrap().header.cluster_size() > 1500;
        for name in names.into_iter().filter(|name| room || name.len() < 300) {
            for format in [Some("raw"), None] {
                if let Err(error) = amend_path(&made.path, &backing(name, format)) {
                    // Two long names and a detour have no room in four sectors.
                    assert!(
                        created.contains("2k") && error.kind() == ErrorKind::Unsupported,
                        "{created}: {error}"
                    );
                    amend_path(&made.path, &options(|o| o.backing = Some(BackingChange::Drop))).unwrap();
                    amend_path(&made.path, &backing(name, format)).unwrap();
                }
                let bytes = made.bytes();
                let header = Qcow2::parse(&bytes).unwrap().header;
                assert_eq!(header.backing.as_deref(), Some(name));
                assert_eq!(header.extension(extension::BACKING_FORMAT), format.map(str::as_bytes));
                check(&bytes).assert_clean();
            }
        }
        amend_path(&made.path, &backing(b"base", None)).unwrap();
        amend_path(&made.path, &options(|o| o.backing = Some(BackingChange::Format("vmdk".into())))).unwrap();
        let said = info(&made.path);
        assert!(said.contains("\"backing-filename\": \"base\"") && said.contains("\"vmdk\""), "{said}");
        amend_path(&made.path, &options(|o| o.backing = Some(BackingChange::Drop))).unwrap();
        let bytes = made.bytes();
        assert_eq!(Qcow2::parse(&bytes).unwrap().header.backing, None);
        assert_eq!(made.contents(&bytes).unwrap(), made.contents(&before).unwrap());
        qemu::assert_clean(&made.path);
    }
}

#[test]
fn a_data_file_gets_another_name_and_ceases_to_be_raw() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    qemu::create(
        &path,
        1 << 20,
        &format!("data_file={},data_file_raw=on", dir.path().join("data").display()),
    );
    qemu::io(&path, "qcow2", &["write -P 5 64k 128k"]);
    let content = qemu::content(&path);
    fs::rename(dir.path().join("data"), dir.path().join("da ta")).unwrap();
    amend_path(&path, &options(|o| o.data_file = Some(DataFileChange::Set(dir.path().join("da ta")))))
        .unwrap();
    assert_eq!(qemu::content(&path), content);
    amend_path(&path, &options(|o| o.data_file_raw = Some(true))).unwrap();
    assert!(info(&path).contains("\"data-file-raw\": true"));
    amend_path(&path, &options(|o| (o.data_file_raw, o.refcount_bits) = (Some(false), Some(1)))).unwrap();
    assert!(info(&path).contains("\"data-file-raw\": false"));
    amend_path(&path, &backing(b"base", Some("raw"))).unwrap();
    amend_path(&path, &options(|o| o.data_file = Some(DataFileChange::Drop))).unwrap();
    let bytes = fs::read(&path).unwrap();
    let header = Qcow2::parse(&bytes).unwrap().header;
    assert!(header.data_file() && header.extension(extension::DATA_FILE).is_none());
    check(&bytes).assert_clean();
}

/// What amending does not look at is there as before: bitmaps, the encryption header, clusters nobody can read here.
#[test]
fn bitmaps_and_encryption_stay() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let changes =
        AmendOptions { lazy_refcounts: Some(true), refcount_bits: Some(32), ..backing(b"base", Some("raw")) };
    let made = make("", Below::Nothing, true);
    qemu::img(&["bitmap", "--add", "--granularity", "4k", made.path.to_str().unwrap(), "enabled"]);
    qemu::io(&made.path, "qcow2", &["write -P 9 100k 100k"]);
    let bitmaps = |bytes: &[u8]| {
        let image = Qcow2::parse(bytes).unwrap();
        image
            .bitmaps
            .iter()
            .map(|bitmap| (bitmap.table_offset, bitmap.flags, bitmap.name.clone()))
            .collect::<Vec<_>>()
    };
    let before = made.bytes();
    amend_path(&made.path, &changes).unwrap();
    assert_eq!(bitmaps(&made.bytes()), bitmaps(&before));
    assert_eq!(bitmaps(&before)[0].1, 2, "enabled, and not in use");
    check(&made.bytes()).assert_clean();

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    let secret = "secret,id=key,data=hush";
    let create =
        ["create", "-q", "-f", "qcow2", "--object", secret, "-o", options, path.to_str().unwrap(), "1M"];
    qemu::img(&create);
    let before = fs::read(&path).unwrap();
    amend_path(&path, &changes).unwrap();
    let after = fs::read(&path).unwrap();
    check(&after).assert_clean();
    let crypto = |bytes: &[u8]| {
        let header = Qcow2::parse(bytes).unwrap().header;
        let place = header.extension(extension::CRYPTO).unwrap().to_vec();
        let [start, len] =
            [0, 8].map(|at| u64::from_be_bytes(place[at..at + 8].try_into().unwrap()) as usize);
        bytes[start..start + len].to_vec()
    };
    assert!(crypto(&after) == crypto(&before));
    refused(&path, &AmendOptions { refcount_bits: Some(16), ..down() }, ErrorKind::Unsupported, "encryption");
}

#[track_caller]
fn refused(path: &Path, options: &AmendOptions, kind: ErrorKind, says: &str) {
    let before = fs::read(path).unwrap();
    let error = amend_path(path, options).unwrap_err();
    assert!(error.kind() == kind && error.message().contains(says), "{error} ({:?})", error.kind());
    assert!(fs::read(path).unwrap() == before, "the file was touched: {error}");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    use ErrorKind::{Corrupt, InvalidInput, Unsupported};
    if !qemu::qemu_or_skip() {
        return;
    }
    let made = make("cluster_size=4k", Below::Nothing, true);
    let path = &made.path;
    for wrong in [0, 3, 128, u32::MAX] {
        refused(path, &bits(wrong), InvalidInput, "powers of two");
    }
    refused(path, &bits(1), InvalidInput, "a refcount of");
    refused(path, &AmendOptions { refcount_bits: Some(8), ..down() }, InvalidInput, "16 bits only");
    refused(path, &AmendOptions { lazy_refcounts: Some(true), ..down() }, InvalidInput, "version 3");
    refused(path, &options(|o| o.data_file_raw = Some(true)), InvalidInput, "raw image");
    refused(
        path,
        &options(|o| o.data_file = Some(DataFileChange::Set("x".into()))),
        InvalidInput,
        "no external data file",
    );
    refused(
        path,
        &options(|o| o.backing = Some(BackingChange::Format("raw".into()))),
        InvalidInput,
        "no backing file",
    );
    refused(path, &backing(b"", None), InvalidInput, "empty");
    refused(path, &backing(b"a\0b", None), InvalidInput, "NUL");
    refused(path, &backing(&[b'x'; 1024], None), InvalidInput, "1023");
    refused(path, &backing(b"x", Some("sixteen letters!")), InvalidInput, "no format's name");
    qemu::img(&["resize", "-q", path.to_str().unwrap(), "2M"]);
    refused(path, &down(), Unsupported, "of another size");

    let tiny = make("cluster_size=512", Below::Nothing, false);
    refused(&tiny.path, &backing(&[b'x'; 500], None), InvalidInput, "more than a cluster");
    refused(
        &tiny.path,
        &AmendOptions { refcount_bits: Some(64), ..backing(&[b'x'; 500], None) },
        InvalidInput,
        "more than",
    );

    for (created, says) in [("extended_l2=on", "extended L2"), ("data_file=DATA", "external data file")] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        qemu::create(&image, 1 << 20, &created.replace("DATA", dir.path().join("data").to_str().unwrap()));
        refused(&image, &down(), Unsupported, says);
    }
    let bitmap = make("", Below::Nothing, false);
    qemu::img(&["bitmap", "--add", bitmap.path.to_str().unwrap(), "b"]);
    refused(&bitmap.path, &down(), Unsupported, "bitmaps");
    let zstd = make("compression_type=zstd", Below::Nothing, false);
    qemu::io(&zstd.path, "qcow2", &["write -c -P 6 384k 64k"]);
    refused(&zstd.path, &down(), Unsupported, "zstd");

    let marked = |bit: u8| {
        let made = make("lazy_refcounts=on", Below::Nothing, false);
        let mut bytes = made.bytes();
        bytes[79] |= bit;
        fs::write(&made.path, &bytes).unwrap();
        made
    };
    refused(&marked(1).path, &bits(32), Unsupported, "repair it first");
    refused(&marked(2).path, &bits(32), Corrupt, "repair it first");
    let raw = made.dir.path().join("raw");
    fs::write(&raw, vec![0; 4096]).unwrap();
    refused(&raw, &up(), Unsupported, "nothing that could be amended");
}

/// A leak where no file reaches, and a structure behind it would not be where its offset says.
#[test]
fn refcounts_far_past_the_end_of_the_file_are_refused() {
    let config = Config { refcount_bits: 1, ..Config::plain(21, 4 << 20) };
    let built = config.build();
    let mut bytes = fs::read(&built.path).unwrap();
    let table = Qcow2::parse(&bytes).unwrap().header.refcount_table_offset as usize;
    bytes.copy_within(table..table + 8, table + (2 << 20) - 8);
    fs::write(&built.path, &bytes).unwrap();
    for bits in [2, 16] {
        refused(&built.path, &self::bits(bits), ErrorKind::Corrupt, "repair the image first");
    }
}

#[test]
fn an_image_in_use_is_not_amended() {
    let built = Config::plain(16, 1 << 20).build();
    let image = imago_testkit::images::open(&built.path, true).unwrap();
    let before = fs::read(&built.path).unwrap();
    assert_eq!(amend_path(&built.path, &up()).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(fs::read(&built.path).unwrap(), before);
    image.close().unwrap();
    amend_path(&built.path, &down()).unwrap();
    amend_path(&built.path, &up()).unwrap();
}

/// Version 2 allows entries without extra data, which version 3 wants; QEMU has not made such images for long.
#[test]
fn snapshots_of_old_images_get_their_extra_data() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for resize in [None, Some(8)] {
        let made = make("compat=0.10,cluster_size=1k", Below::Nothing, true);
        let mut bytes = made.bytes();
        without_extra_data(&mut bytes);
        fs::write(&made.path, &bytes).unwrap();
        let before = made.contents(&bytes).unwrap();
        qemu::assert_clean(&made.path);
        amend_path(&made.path, &AmendOptions { refcount_bits: resize, ..up() }).unwrap();
        check(&made.bytes()).assert_clean();
        qemu::assert_clean(&made.path);
        assert!(made.contents(&made.bytes()).unwrap() == before);
        assert!(qemu::snapshot_content(&made.path, "second") == before[2]);
    }
}

/// Rewrites the snapshot table, which is in one cluster, with no extra data.
fn without_extra_data(bytes: &mut [u8]) {
    let header = Qcow2::parse(bytes).unwrap().header;
    let start = header.snapshots_offset as usize;
    let (mut at, mut table) = (start, Vec::new());
    for _ in 0..header.nb_snapshots {
        let half = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let extra = u32::from_be_bytes(bytes[at + 36..at + 40].try_into().unwrap()) as usize;
        let names = half(at + 12) + half(at + 14);
        table.resize(usize::next_multiple_of(table.len(), 8), 0);
        table.extend_from_slice(&bytes[at..at + 36]);
        table.extend_from_slice(&[0; 4]);
        table.extend_from_slice(&bytes[at + 40 + extra..at + 40 + extra + names]);
        at = (at + 40 + extra + names).next_multiple_of(8);
    }
    bytes[start..at].fill(0);
    bytes[start..start + table.len()].copy_from_slice(&table);
}

/// An image, what is done to it, and barriers that it does without, and why.
struct Journey {
    made: Made,
    options: AmendOptions,
    redundant: &'static [(&'static str, &'static str)],
}

/// They meet every recipe of amending between them.
fn journeys() -> Vec<Journey> {
    let old = make_small("compat=0.10,cluster_size=1k", Below::Nothing, true);
    let mut bytes = old.bytes();
    without_extra_data(&mut bytes);
    fs::write(&old.path, &bytes).unwrap();
    let long = [b'x'; 900];
    let all = |version, bits| AmendOptions { version, refcount_bits: bits, ..backing(&long, Some("raw")) };
    [
        // New clusters, entries, header.
        (make_small("cluster_size=4k", Below::Raw, true), down(), &[][..]),
        // No new clusters.
        (
            make_small("cluster_size=8k", Below::Nothing, true),
            down(),
            &[("write_ordered: self.metadata.sync()?;", "no entry names anything new")],
        ),
        (
            make_small("cluster_size=2k,refcount_bits=8", Below::Raw, true),
            AmendOptions { refcount_bits: Some(16), ..down() },
            &[],
        ),
        // The new snapshot table, the header; the old table is let go.
        (old, up(), &[("< release", "what is let go is a leak until then")]),
        // The new refcounts, the header.
        (make_small("cluster_size=1k", Below::Nothing, true), bits(64), &[]),
        (make_small("cluster_size=4k", Below::Nothing, false), bits(1), &[]),
        // A detour.
        (make_small("", Below::Raw, false), all(None, None), &[]),
        (
            make_small("compat=0.10,cluster_size=4k", Below::Raw, false),
            all(Some(Version::V3), Some(4)),
            &[(
                "resize_refcounts: storage.sync()?;",
                "a barrier follows for what lies behind the first sector",
            )],
        ),
    ]
    .map(|(made, options, redundant)| Journey { made, options, redundant })
    .into()
}

/// What a header says, but for the version.
fn says(bytes: &[u8]) -> (u32, u64, Option<Vec<u8>>, Option<Vec<u8>>) {
    let header = Qcow2::parse(bytes).unwrap().header;
    let format = header.extension(extension::BACKING_FORMAT).map(<[u8]>::to_vec);
    (header.refcount_order, header.compatible, header.backing, format)
}

/// A medium after a loss of power: leaks at most, every content, the old header or (once it `returned` only) the new one.
fn verify(made: &Made, bytes: &[u8], old: &[u8], new: &[u8], returned: bool) -> Result<(), String> {
    let report = check(bytes);
    if !report.corruptions.is_empty() || report.dirty {
        return Err(report.to_string());
    }
    let version = |bytes: &[u8]| Qcow2::parse(bytes).unwrap().header.version;
    if says(bytes) != says(new) && (returned || says(bytes) != says(old)) {
        return Err(format!("neither the old nor the new header: {:?}", says(bytes)));
    }
    // On a detour to version 2 the header is the new one, still of version 3.
    if version(bytes) != version(new) && (returned || version(bytes) != version(old)) {
        return Err("the version is another".into());
    }
    if made.contents(bytes)? != made.contents(old)? {
        return Err("the content is another".into());
    }
    Ok(())
}

fn amend_sim(sim: &Arc<SimStorage>, options: &AmendOptions) -> Result<()> {
    amend(&(sim.clone() as Arc<dyn Storage>), options, &mut Steps::default())
}

#[test]
fn a_loss_of_power_leaves_the_old_or_the_new_image_and_needs_the_barriers() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for Journey { made, options, redundant } in journeys() {
        let old = made.bytes();
        let new = Arc::new(SimStorage::from(old.clone()));
        amend_sim(&new, &options).unwrap();
        let new = new.contents();
        let verb = Verb {
            start: std::slice::from_ref(&old),
            run: &|storages| amend(&storages[0], &options, &mut Steps::default()),
            verify: &|media, moment| verify(&made, &media[0], &old, &new, moment == Moment::After),
        };
        verb.assert_crash_proof(&format!("{options:?}"), scaled(150) as usize, redundant);
    }
}

#[test]
fn a_failing_call_leaves_the_old_or_the_new_image() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for Journey { made, options, .. } in journeys() {
        let old = made.bytes();
        let new = Arc::new(SimStorage::from(old.clone()));
        amend_sim(&new, &options).unwrap();
        let calls = new.calls();
        let new = new.contents();
        // Every call near the end, where the header changes, and a share of the many before.
        let before = (0..calls).step_by((calls / scaled(25)).max(1) as usize);
        for nth in before.chain(calls.saturating_sub(12)..calls) {
            let sim = Arc::new(SimStorage::from(old.clone()));
            // Whether none or all of a failing write takes effect goes by the calls before; half of a sector is what no medium does.
            while (sim.calls() + nth).is_multiple_of(3) {
                sim.len().unwrap();
            }
            sim.fail_call(nth, Failing::Forever);
            let result = amend_sim(&sim, &options);
            sim.heal();
            verify(&made, &sim.contents(), &old, &new, false)
                .unwrap_or_else(|problem| panic!("{options:?}, call {nth} ({result:?}): {problem}"));
            amend_sim(&sim, &options)
                .unwrap_or_else(|error| panic!("{options:?} once more after {nth}: {error}"));
        }
    }
}

#[test]
fn a_job_that_is_not_wanted_ends_with_the_old_image() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let made = make("cluster_size=4k", Below::Raw, true);
    let before = made.contents(&made.bytes()).unwrap();
    let cancel = std::sync::atomic::AtomicBool::new(false);
    let mut told = Vec::new();
    let mut progress = |progress: imago_core::access::job::Progress| {
        told.push(progress.done);
        cancel.store(progress.done > 3 * 4096, std::sync::atomic::Ordering::Relaxed);
    };
    let mut job = Job::default().progress(&mut progress).cancel(&cancel);
    let error = amend_file(&made.path, &of_header(&down()), &mut job).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(told.len() > 3 && told.is_sorted());
    assert_eq!(Qcow2::parse(&made.bytes()).unwrap().header.version, 3);
    assert!(made.contents(&made.bytes()).unwrap() == before);
    check(&made.bytes()).assert_no_corruption();
    amend_path(&made.path, &down()).unwrap();
}

/// Zeroes over a backing file become clusters, and so many of them that the refcount table moves on the way.
#[test]
fn a_refcount_table_that_moves_meanwhile_stays_in_force() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, path) = (dir.path().join("base"), dir.path().join("image"));
    fs::write(&base, vec![7; 12 << 20]).unwrap();
    qemu::create(
        &path,
        12 << 20,
        &format!("cluster_size=512,backing_file={},backing_fmt=raw", base.display()),
    );
    qemu::io(&path, "qcow2", &["write -z 0 11M", "write -P 3 11M 64k"]);
    let content = qemu::content(&path);
    let table = || Qcow2::parse(&fs::read(&path).unwrap()).unwrap().header.refcount_table_offset;
    let before = table();
    let options = AmendOptions { version: Some(Version::V2), ..AmendOptions::default() };
    amend_path(&path, &options).unwrap();
    assert_ne!(table(), before, "the table moved");
    qemu::assert_clean(&path);
    assert!(qemu::content(&path) == content);
}

#[test]
fn in_what_keeps_its_size_the_refcounts_go_where_nothing_is() {
    let made = make("", Below::Nothing, true);
    let bytes = made.bytes();
    let contents = made.contents(&bytes).unwrap();
    for (room, bits) in [(300_000, 64), (300_000, 1), (0, 64)] {
        let whole = [&[7; 512][..], &bytes, &vec![9; room], &[8; 512]].concat();
        let memory = Arc::new(Memory::from(whole.clone()));
        let size = Some((bytes.len() + room) as u64);
        let part: Arc<dyn Storage> = Arc::new(Slice::new(memory.clone(), 512, size).unwrap());
        let amended = amend(&part, &options(|o| o.refcount_bits = Some(bits)), &mut Steps::default());
        let after = memory.to_vec().unwrap();
        match amended {
            Ok(()) => {
                let image = &after[512..after.len() - 512];
                check(image).assert_no_corruption();
                assert_eq!(made.contents(image).unwrap(), contents);
                assert_eq!(Qcow2::parse(image).unwrap().header.refcount_order, bits.ilog2());
            }
            // A snapshot shares clusters; and what is full is full.
            Err(error) if bits == 1 => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}"),
            Err(error) => {
                assert_eq!((error.kind(), room), (ErrorKind::Unsupported, 0), "{error}");
                assert!(after == whole);
            }
        }
        assert!(after.starts_with(&[7; 512]) && after.ends_with(&[8; 512]));
    }
}
