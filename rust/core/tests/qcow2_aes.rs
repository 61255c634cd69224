//! qcow2's own AES, with QEMU as the judge.

use std::path::Path;
use std::sync::Arc;

use imago_core::access::convert::{ConvertOptions, convert};
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::info::info;
use imago_core::access::job::Job;
use imago_core::access::keys::open_key_slots;
use imago_core::access::open::{Gate, OpenOptions};
use imago_core::access::pack::CompressionLevel;
use imago_core::crypt::Secret;
use imago_core::format::preallocation::Preallocation;
use imago_core::format::qcow2::create::{self as qcow2, Encryption, Version};
use imago_core::format::qcow2_info::EncryptionInfo;
use imago_core::format::{FormatSpecificInfo, ImplicitReference, ZeroIntent};
use imago_core::{ErrorKind, Image};
use imago_testkit::qemu::{self, Encrypted};
use imago_testkit::scaled;
use tempfile::tempdir;

const SIZE: usize = 1 << 20;
const SECRET: &str = "sesame";

fn options() -> qcow2::CreateOptions {
    qcow2::CreateOptions {
        size: SIZE as u64,
        encryption: Some(Encryption::Aes(Secret::new(SECRET))),
        ..Default::default()
    }
}

fn new_image(path: &Path, options: qcow2::CreateOptions) {
    create(path, &CreateOptions::Qcow2(options)).unwrap();
}

fn open_with(path: &Path, secret: &str) -> Arc<Image> {
    let secret = Some(Secret::new(secret));
    OpenOptions { write: true, secret, gate: Gate::Allow, ..Default::default() }.open(path).unwrap()
}

fn open(path: &Path) -> Arc<Image> {
    open_with(path, SECRET)
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read(&mut bytes, 0).unwrap();
    bytes
}

fn peer(path: &Path) -> Encrypted<'_> {
    Encrypted { path, format: "qcow2", secret: SECRET }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (((at + seed) * 37) >> 3) as u8 | 1).collect()
}

/// An image and what it should hold.
struct Pair {
    image: Arc<Image>,
    model: Vec<u8>,
}

impl Pair {
    /// The image at `path`, which is new.
    fn new(path: &Path) -> Self {
        Pair { image: open(path), model: vec![0; SIZE] }
    }

    fn write(&mut self, offset: usize, len: usize) {
        let data = pattern(offset, len);
        self.image.write(&data, offset as u64).unwrap();
        self.model[offset..offset + len].copy_from_slice(&data);
    }

    fn zero(&mut self, offset: usize, len: usize, intent: ZeroIntent) {
        self.image.write_zeroes(offset as u64, len as u64, intent).unwrap();
        self.model[offset..offset + len].fill(0);
    }

    /// What a discard leaves is up to the image, but it does not change any more.
    fn discard(&mut self, offset: usize, len: usize) {
        self.image.discard(offset as u64, len as u64).unwrap();
        let mut now = vec![0; len];
        self.image.read(&mut now, offset as u64).unwrap();
        for (was, now) in self.model[offset..offset + len].iter_mut().zip(now) {
            assert!(now == 0 || now == *was);
            *was = now;
        }
    }

    /// Pieces of all kinds; their edges are inside sectors, at them, and at those of clusters.
    fn use_all(&mut self) {
        for (offset, len) in
            [(5, 3), (70_000, 100_000), (511, 2), (900_000, SIZE - 900_000), (131_072, 65_536), (65_535, 2)]
        {
            self.write(offset, len);
        }
        self.zero(70_100, 50, ZeroIntent::Keep);
        self.zero(100_000, 20_001, ZeroIntent::Unmap);
        self.zero(950_000, SIZE - 950_000, ZeroIntent::Keep);
        self.discard(140_000, 100_000);
        self.write(110_001, 700);
        self.write(960_007, 5000);
        for at in 0..30 {
            self.write(300_000 + at * 333, 100);
        }
        assert!(content(&self.image) == self.model);
    }
}

/// QEMU, where it is there, finds the image clean and reads `model` from it.
fn assert_qemu_agrees(path: &Path, model: &[u8]) {
    if qemu::have_qemu() {
        assert!(peer(path).content() == model, "{}", path.display());
        peer(path).assert_clean();
    }
}

/// Versions and cluster sizes.
fn shapes() -> Vec<qcow2::CreateOptions> {
    let mut shapes = Vec::new();
    for version in [Version::V2, Version::V3] {
        for cluster_size in [512, 4096, 65_536] {
            shapes.push(qcow2::CreateOptions { version, cluster_size, ..options() });
        }
    }
    shapes.push(qcow2::CreateOptions { extended_l2: true, ..options() });
    shapes
}

#[test]
fn qemu_reads_what_is_written_here() {
    let directory = tempdir().unwrap();
    for (number, options) in shapes().into_iter().enumerate() {
        let path = directory.path().join(number.to_string());
        new_image(&path, options);
        let mut pair = Pair::new(&path);
        pair.use_all();
        pair.image.close().unwrap();
        assert!(content(&open(&path)) == pair.model);
        let stored = std::fs::read(&path).unwrap();
        assert!(
            stored.windows(32).all(|window| window != &pair.model[900_000..900_032]),
            "the file shows plain data"
        );
        assert_qemu_agrees(&path, &pair.model);
    }
}

#[test]
fn what_qemu_writes_is_read_and_written_here() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    // QEMU takes a longer secret's first 16 bytes, too.
    let secrets = [SECRET, "sixteen bytes 16", "more than sixteen bytes"];
    for secret in &secrets[..scaled(3).min(3) as usize] {
        let peer = Encrypted { path: &path, format: "qcow2", secret };
        peer.create(SIZE as u64, &["format=aes"]);
        peer.io(&[
            "write -P 0xc1 0 1M",
            "write -P 0xc2 65536 1000",
            "write -z 131072 65536",
            "write -P 0xc3 513 5",
        ]);
        let mut model = vec![0xc1; SIZE];
        model[65_536..66_536].fill(0xc2);
        model[131_072..196_608].fill(0);
        model[513..518].fill(0xc3);
        let mut pair = Pair { image: open_with(&path, secret), model };
        assert!(content(&pair.image) == pair.model);
        pair.use_all();
        pair.image.close().unwrap();
        assert!(peer.content() == pair.model);
        peer.assert_clean();
        peer.io(&["write -P 0xd1 70001 3000"]);
        pair.model[70_001..73_001].fill(0xd1);
        assert!(content(&open_with(&path, secret)) == pair.model);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_lies_below_is_copied_encrypted() {
    let directory = tempdir().unwrap();
    let base = directory.path().join("base");
    create(&base, &CreateOptions::raw(SIZE as u64 - 300_000)).unwrap();
    let below = pattern(7, SIZE - 300_000);
    std::fs::write(&base, &below).unwrap();
    for (number, options) in shapes().into_iter().enumerate() {
        let path = directory.path().join(number.to_string());
        let backing = Some(ImplicitReference { name: "base".into(), format: Some("raw".into()) });
        new_image(&path, qcow2::CreateOptions { backing, ..options });
        let mut model = below.clone();
        model.resize(SIZE, 0);
        let mut pair = Pair { image: open(&path), model };
        pair.use_all();
        pair.image.close().unwrap();
        assert_qemu_agrees(&path, &pair.model);
        assert!(content(&open(&path)) == pair.model);
    }
}

#[test]
fn snapshots_keep_what_they_hold() {
    let directory = tempdir().unwrap();
    for (number, options) in shapes().into_iter().enumerate() {
        let path = directory.path().join(number.to_string());
        new_image(&path, options);
        let mut pair = Pair::new(&path);
        pair.use_all();
        let kept = pair.model.clone();
        pair.image.create_snapshot("first", None).unwrap();
        pair.write(64_000, 3);
        pair.write(910_000, 70_000);
        pair.zero(70_000, 900, ZeroIntent::Unmap);
        assert!(content(&pair.image) == pair.model);
        pair.image.close().unwrap();
        let secret = Some(Secret::new(SECRET));
        let options = OpenOptions { snapshot: Some("first".to_owned()), secret, ..Default::default() };
        assert!(content(&options.open(&path).unwrap()) == kept);
        assert_qemu_agrees(&path, &pair.model);
        let image = open(&path);
        image.apply_snapshot("first").unwrap();
        assert!(content(&image) == kept);
        image.close().unwrap();
    }
}

#[test]
fn an_external_data_file_is_encrypted() {
    let directory = tempdir().unwrap();
    let (path, data) = (directory.path().join("image"), directory.path().join("data"));
    let external = qcow2::CreateOptions { data_file: Some(data.clone()), ..options() };
    new_image(&path, external.clone());
    let mut pair = Pair::new(&path);
    pair.use_all();
    pair.image.close().unwrap();
    assert!(content(&open(&path)) == pair.model);
    let stored = std::fs::read(&data).unwrap();
    assert!(stored.windows(32).all(|window| window != &pair.model[900_000..900_032]));
    if qemu::have_qemu() {
        assert!(peer(&path).content() == pair.model);
    }
    let other = directory.path().join("other");
    let raw = CreateOptions::Qcow2(qcow2::CreateOptions { data_file_raw: true, ..external });
    assert_eq!(create(&other, &raw).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(!other.exists());
}

#[test]
fn preallocated_clusters_read_as_zeroes() {
    let directory = tempdir().unwrap();
    for (number, (extended_l2, preallocation)) in
        [(false, Preallocation::Metadata), (true, Preallocation::Metadata), (false, Preallocation::Full)]
            .into_iter()
            .enumerate()
    {
        let path = directory.path().join(number.to_string());
        new_image(&path, qcow2::CreateOptions { extended_l2, preallocation, ..options() });
        let mut pair = Pair::new(&path);
        assert!(content(&pair.image) == pair.model);
        pair.write(100_003, 5000);
        assert!(content(&pair.image) == pair.model);
        pair.image.close().unwrap();
        assert_qemu_agrees(&path, &pair.model);
    }
}

#[test]
fn a_disk_that_grows_shows_zeroes() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    new_image(&path, options());
    let image = open(&path);
    image.write(&pattern(1, SIZE), 0).unwrap();
    image.resize(SIZE as u64 - 1024, Preallocation::Off).unwrap();
    image.resize(2 * SIZE as u64, Preallocation::Off).unwrap();
    let mut wanted = pattern(1, SIZE);
    wanted[SIZE - 1024..].fill(0);
    wanted.resize(2 * SIZE, 0);
    assert!(content(&image) == wanted);
    let error = image.resize(3 * SIZE as u64, Preallocation::Metadata).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    image.close().unwrap();
    if qemu::have_qemu() {
        assert!(peer(&path).content() == wanted);
    }
}

#[test]
fn writers_of_one_sector_do_not_undo_each_other() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    new_image(&path, options());
    let image = open(&path);
    image.write(&[0xee; 2048], 0).unwrap();
    std::thread::scope(|scope| {
        for byte in 0..8_u64 {
            let image = &image;
            scope.spawn(move || {
                for value in 0..=200_u8 {
                    image.write(&[value], 508 + byte).unwrap();
                }
            });
        }
    });
    let mut wanted = [0xee; 2048];
    wanted[508..516].fill(200);
    assert_eq!(content(&image)[..2048], wanted);
}

#[test]
fn a_secret_is_asked_for_and_never_checked() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    new_image(&path, options());
    let image = open(&path);
    image.write(&vec![7; 100_000], 0).unwrap();
    image.close().unwrap();
    let before = std::fs::read(&path).unwrap();
    let missing = OpenOptions { write: true, ..Default::default() }.open(&path).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::WrongSecret);
    assert!(missing.message().contains("give the secret"), "{missing}");
    assert_eq!(missing.path(), Some(path.as_path()));
    let noise = content(&open_with(&path, "barley"));
    assert!(noise[..100_000].chunks(16).all(|block| block != [7; 16]));
    assert!(noise[131_072..].iter().all(|byte| *byte == 0), "what was not written is zeroes with any key");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let info = info(&path, None).unwrap();
    let Some(FormatSpecificInfo::Qcow2(qcow2)) = info.format.specific else { panic!("no qcow2") };
    assert!(matches!(qcow2.encrypted, Some(EncryptionInfo::Aes)));
    let error = open_key_slots(&path, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

#[test]
fn no_read_goes_around_the_cipher() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    new_image(&path, options());
    let image = open(&path);
    image.write(&vec![7; 100_000], 0).unwrap();
    let mut bytes = [1; 4096];
    assert_eq!(image.try_read(&mut bytes, 0).unwrap(), 0);
    assert_eq!(bytes, [1; 4096]);
    #[cfg(unix)]
    assert!(image.direct_reads(0, 4096).unwrap().is_none());
    for extent in image.extents(0, SIZE as u64).unwrap() {
        assert_eq!(extent.unwrap().host_offset, None);
    }
}

#[test]
fn compressed_clusters_are_refused_before_anything_is_touched() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    new_image(&path, options());
    let before = std::fs::read(&path).unwrap();
    let image = open(&path);
    let error = image.write_compressed(&vec![1; 65_536], 0, CompressionLevel::Default).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    image.close().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_conversion_reads_and_makes_such_images() {
    let directory = tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    new_image(&source, options());
    let mut pair = Pair { image: open(&source), model: vec![0; SIZE] };
    pair.use_all();
    pair.image.flush().unwrap();
    let encryption = Some(Encryption::Aes(Secret::new("another")));
    for target_options in
        [CreateOptions::raw(0), CreateOptions::Qcow2(qcow2::CreateOptions { encryption, ..options() })]
    {
        let options = ConvertOptions::new(target_options);
        convert(&pair.image, &target, options, &mut Job::default()).unwrap();
        assert!(content(&open_with(&target, "another")) == pair.model);
        std::fs::remove_file(&target).unwrap();
    }
}
