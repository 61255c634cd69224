//! Encrypted images, with QEMU as the judge.

use std::path::Path;
use std::sync::Arc;

use imago_core::access::convert::{ConvertOptions, convert};
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::info::info;
use imago_core::access::job::Job;
use imago_core::access::open::{Gate, OpenOptions};
use imago_core::access::pack::CompressionLevel;
use imago_core::crypt::{Algorithm, CipherSpec, Cost, Hash, IvGenerator, Mode, Options, Secret};
use imago_core::format::preallocation::Preallocation;
use imago_core::format::qcow2::create::{Encryption, Version};
use imago_core::format::qcow2_info::EncryptionInfo;
use imago_core::format::{FormatKind, FormatSpecificInfo, ZeroIntent};
use imago_core::{ErrorKind, Image, Result};
use imago_testkit::qemu::{self, Encrypted};
use imago_testkit::scaled;
use tempfile::tempdir;

const SIZE: u64 = 1 << 20;
const SECRET: &str = "open sesame";

fn options(cipher: CipherSpec, hash: Hash) -> Options {
    Options { cipher, hash, cost: Cost::Iterations(1000), ..Options::new(Secret::new(SECRET)) }
}

fn new_image(path: &Path, kind: FormatKind, encryption: Options) {
    let mut options = CreateOptions::qcow2(SIZE);
    match (&mut options, kind) {
        (CreateOptions::Qcow2(qcow2), FormatKind::Qcow2) => {
            qcow2.encryption = Some(Encryption::Luks(encryption));
        }
        _ => options = CreateOptions::Luks { size: SIZE, encryption },
    }
    create(path, &options).unwrap();
}

fn open_with(path: &Path, secret: &str) -> Result<Arc<Image>> {
    OpenOptions { write: true, secret: Some(Secret::new(secret)), ..Default::default() }.open(path)
}

fn open(path: &Path) -> Arc<Image> {
    open_with(path, SECRET).unwrap()
}

fn bytes(image: &Image, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    image.read(&mut bytes, offset).unwrap();
    bytes
}

/// What QEMU 10 takes: with 192 bits only xts, of cast5 only 128 bits and not xts, essiv where the digest is a key.
fn combinations() -> Vec<CipherSpec> {
    let mut found = Vec::new();
    for algorithm in [Algorithm::Aes, Algorithm::Serpent, Algorithm::Twofish, Algorithm::Cast5] {
        for key_bits in [128, 192, 256] {
            for mode in [Mode::Ecb, Mode::Cbc, Mode::Ctr, Mode::Xts] {
                let cast5 = algorithm == Algorithm::Cast5;
                if cast5 && (key_bits > 128 || mode == Mode::Xts) || key_bits == 192 && mode != Mode::Xts {
                    continue;
                }
                let essiv = [Hash::Md5, Hash::Sha256, Hash::Sm3].map(IvGenerator::Essiv);
                let essiv = if cast5 { &essiv[..1] } else { &essiv };
                for iv in [IvGenerator::Plain, IvGenerator::Plain64].iter().chain(essiv) {
                    found.push(CipherSpec { algorithm, key_bits, mode, iv: *iv });
                }
            }
        }
    }
    found
}

/// Both formats in turn, every hash in turn.
fn kind_and_hash(number: usize) -> (FormatKind, Hash) {
    let kind = if number.is_multiple_of(2) { FormatKind::Luks } else { FormatKind::Qcow2 };
    (kind, Hash::ALL[number / 2 % Hash::ALL.len()])
}

#[test]
fn qemu_reads_and_writes_what_is_made_here_in_every_combination() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = tempdir().unwrap();
    let combinations = combinations();
    assert_eq!(combinations.len(), 3 * (2 * 4 + 1) * 5 + 3 * 3);
    for (number, cipher) in combinations.into_iter().enumerate() {
        let (kind, hash) = kind_and_hash(number);
        let path = directory.path().join("image");
        new_image(&path, kind, options(cipher, hash));
        let image = open(&path);
        image.write(&[0xa1; 3000], 70_001).unwrap();
        image.write(&[0xa2; 512], SIZE - 512).unwrap();
        image.close().unwrap();
        let peer = Encrypted { path: &path, format: kind.name(), secret: SECRET };
        peer.io(&["read -P 0xa1 70001 3000", "read -P 0xa2 1048064 512", "write -P 0xb1 71000 300000"]);
        let image = open(&path);
        assert_eq!(bytes(&image, 70_001, 999), [0xa1; 999], "{cipher:?} {hash:?}");
        assert_eq!(bytes(&image, 71_000, 300_000), vec![0xb1; 300_000], "{cipher:?} {hash:?}");
        image.close().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_qemu_makes_is_read_and_written() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = tempdir().unwrap();
    let all: [(&str, &[&str]); 5] = [
        ("luks", &[]),
        ("qcow2", &[]),
        (
            "luks",
            &[
                "cipher-alg=serpent-128",
                "cipher-mode=cbc",
                "ivgen-alg=essiv",
                "ivgen-hash-alg=sha256",
                "hash-alg=sha1",
            ],
        ),
        ("qcow2", &["cipher-alg=twofish-192", "ivgen-alg=plain", "hash-alg=ripemd160"]),
        ("qcow2", &["cipher-alg=cast5-128", "cipher-mode=ctr", "hash-alg=sha512"]),
    ];
    let count = scaled(3).min(5) as usize;
    for (format, chosen) in &all[..count] {
        let path = directory.path().join("image");
        let peer = Encrypted { path: &path, format, secret: SECRET };
        let luks: &[&str] = if *format == "qcow2" { &["format=luks"] } else { &[] };
        peer.create(SIZE, &[luks, &["iter-time=10"], chosen].concat());
        peer.io(&["write -P 0xc1 0 1M", "write -P 0xc2 65536 1000"]);
        let image = open(&path);
        assert_eq!(image.kind().name(), *format);
        assert_eq!(image.size(), SIZE);
        assert_eq!(bytes(&image, 65_000, 536), [0xc1; 536]);
        assert_eq!(bytes(&image, 65_536, 1000), [0xc2; 1000]);
        image.write(b"from here", 100).unwrap();
        image.write(&vec![0xd1; 200_000], 600_000).unwrap();
        image.write_zeroes(300_000, 100_000, ZeroIntent::Unmap).unwrap();
        image.discard(500_000, 3000).unwrap();
        image.close().unwrap();
        let wanted = peer.content();
        let image = open(&path);
        assert_eq!(bytes(&image, 0, SIZE as usize), wanted);
        assert_eq!(bytes(&image, 100, 9), b"from here");
        assert_eq!(bytes(&image, 300_000, 100_000), vec![0; 100_000]);
        image.close().unwrap();
        if *format == "qcow2" {
            peer.assert_clean();
        }
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn new_clusters_read_as_what_was_there_around_the_data() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    new_image(&path, FormatKind::Qcow2, options(CipherSpec::default(), Hash::Sha256));
    let image = open(&path);
    let mut model = vec![0; SIZE as usize];
    for (offset, len) in
        [(5, 3), (70_000, 100_000), (511, 2), (900_000, 148_576), (131_072, 65_536), (65_535, 2)]
    {
        let data: Vec<u8> = (0..len).map(|at| (at * 7 + offset) as u8 | 1).collect();
        image.write(&data, offset as u64).unwrap();
        model[offset..offset + len].copy_from_slice(&data);
        assert_eq!(bytes(&image, 0, SIZE as usize), model);
    }
    image.write_zeroes(1000, 200_000, ZeroIntent::Keep).unwrap();
    model[1000..201_000].fill(0);
    assert_eq!(bytes(&image, 0, SIZE as usize), model);
    image.close().unwrap();
    assert_eq!(bytes(&open(&path), 0, SIZE as usize), model);
    let stored = std::fs::read(&path).unwrap();
    assert!(stored.windows(32).all(|window| window != &model[900_000..900_032]), "the file shows plain data");
}

#[test]
fn a_secret_that_is_missing_or_wrong_says_so_and_touches_nothing() {
    let directory = tempdir().unwrap();
    for kind in [FormatKind::Qcow2, FormatKind::Luks] {
        let path = directory.path().join(kind.name());
        new_image(&path, kind, options(CipherSpec::default(), Hash::Sha256));
        let before = std::fs::read(&path).unwrap();
        let wrong = open_with(&path, "open barley").unwrap_err();
        let missing = OpenOptions { write: true, ..Default::default() }.open(&path).unwrap_err();
        for (error, says) in [(wrong, "none of the key slots"), (missing, "give the secret")] {
            assert_eq!(error.kind(), ErrorKind::WrongSecret);
            assert!(error.message().contains(says), "{error}");
            assert_eq!(error.path(), Some(path.as_path()));
            assert!(!format!("{error} {error:?}").contains("sesame"));
        }
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}

#[test]
fn info_needs_no_secret() {
    let directory = tempdir().unwrap();
    let cipher = CipherSpec { iv: IvGenerator::Essiv(Hash::Sha256), mode: Mode::Cbc, ..Default::default() };
    for kind in [FormatKind::Qcow2, FormatKind::Luks] {
        let path = directory.path().join(kind.name());
        new_image(&path, kind, options(cipher, Hash::Sha512));
        let info = info(&path, None).unwrap();
        assert_eq!((info.kind, info.virtual_size), (kind, SIZE));
        let luks = match info.format.specific.unwrap() {
            FormatSpecificInfo::Luks(luks) => luks,
            FormatSpecificInfo::Qcow2(qcow2) => match qcow2.encrypted {
                Some(EncryptionInfo::Luks(luks)) => luks,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!((luks.cipher, luks.hash, luks.slots.len()), (cipher, Hash::Sha512, 8));
        assert_eq!(luks.slots.iter().filter(|slot| slot.active).count(), 1);
        assert_eq!(luks.payload_offset, 4096 + 8 * 131_072);
        assert_eq!((luks.slots[0].iterations, luks.digest_iterations), (1000, 1000));
    }
}

#[test]
fn a_conversion_reads_and_makes_encrypted_images() {
    let directory = tempdir().unwrap();
    let source = directory.path().join("source");
    new_image(&source, FormatKind::Qcow2, options(CipherSpec::default(), Hash::Sha256));
    let image = open(&source);
    image.write(&vec![0x77; 300_000], 123_456).unwrap();
    image.flush().unwrap();
    let wanted = bytes(&image, 0, SIZE as usize);
    let qcow2 = match CreateOptions::qcow2(0) {
        CreateOptions::Qcow2(mut options_of) => {
            options_of.encryption = Some(Encryption::Luks(options(CipherSpec::default(), Hash::Sha256)));
            CreateOptions::Qcow2(options_of)
        }
        _ => unreachable!(),
    };
    let luks = CreateOptions::Luks { size: 0, encryption: options(CipherSpec::default(), Hash::Sha256) };
    for target in [luks, qcow2, CreateOptions::raw(0)] {
        let path = directory.path().join(target.kind().name());
        convert(&image, &path, ConvertOptions::new(target.clone()), &mut Job::default()).unwrap();
        assert_eq!(bytes(&open(&path), 0, SIZE as usize), wanted, "{:?}", target.kind());
    }
}

#[test]
fn a_disk_of_an_odd_size_has_whole_sectors() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    let encryption = options(CipherSpec::default(), Hash::Sha256);
    create(&path, &CreateOptions::Luks { size: 1000, encryption }).unwrap();
    let image = open(&path);
    assert_eq!(image.size(), 1024);
    image.write(b"at its end", 1014).unwrap();
    image.close().unwrap();
    // A file that was cut within its last sector, as QEMU makes it.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(2_068_480 + 1000).unwrap();
    let image = open(&path);
    assert_eq!(image.size(), 1024);
    image.write(&[5; 1024], 0).unwrap();
    image.close().unwrap();
    assert_eq!(bytes(&open(&path), 0, 1024), [5; 1024]);
}

#[test]
fn backing_images_open_with_the_same_secret() {
    let directory = tempdir().unwrap();
    let base = directory.path().join("base");
    new_image(&base, FormatKind::Luks, options(CipherSpec::default(), Hash::Sha256));
    let image = open(&base);
    image.write(&vec![9; SIZE as usize], 0).unwrap();
    image.close().unwrap();
    let top = directory.path().join("top");
    let CreateOptions::Qcow2(mut qcow2) = CreateOptions::qcow2(SIZE) else { unreachable!() };
    let reference =
        imago_core::format::ImplicitReference { name: "base".into(), format: Some("luks".into()) };
    qcow2.backing = Some(reference);
    qcow2.encryption = Some(Encryption::Luks(options(CipherSpec::default(), Hash::Sha256)));
    create(&top, &CreateOptions::Qcow2(qcow2)).unwrap();
    let image = open(&top);
    image.write(b"above", 65_000).unwrap();
    assert_eq!(bytes(&image, 64_999, 7), b"\x09above\x09");
}

#[test]
fn an_encrypted_external_data_file_is_encrypted() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    let data = directory.path().join("data");
    let CreateOptions::Qcow2(mut qcow2) = CreateOptions::qcow2(SIZE) else { unreachable!() };
    // An absolute name, which is where QEMU finds it too.
    qcow2.data_file = Some(data.clone());
    qcow2.encryption = Some(Encryption::Luks(options(CipherSpec::default(), Hash::Sha256)));
    create(&path, &CreateOptions::Qcow2(qcow2.clone())).unwrap();
    let open = || {
        let secret = Some(Secret::new(SECRET));
        OpenOptions { write: true, secret, gate: Gate::Allow, ..Default::default() }.open(&path).unwrap()
    };
    let image = open();
    image.write(&vec![3; 100_000], 50_000).unwrap();
    image.write_zeroes(60_000, 1000, ZeroIntent::Unmap).unwrap();
    image.close().unwrap();
    assert!(!std::fs::read(&data).unwrap().windows(32).any(|window| window == [3; 32]));
    let mut wanted = vec![0; SIZE as usize];
    wanted[50_000..150_000].fill(3);
    wanted[60_000..61_000].fill(0);
    let image = open();
    assert_eq!(bytes(&image, 0, SIZE as usize), wanted);
    image.close().unwrap();
    if qemu::have_qemu() {
        assert_eq!(Encrypted { path: &path, format: "qcow2", secret: SECRET }.content(), wanted);
    }
    qcow2.data_file_raw = true;
    let other = directory.path().join("other");
    assert_eq!(create(&other, &CreateOptions::Qcow2(qcow2)).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(!other.exists());
}

#[test]
fn preallocated_clusters_read_as_zeroes() {
    let directory = tempdir().unwrap();
    for (extended_l2, preallocation) in
        [(false, Preallocation::Metadata), (true, Preallocation::Metadata), (false, Preallocation::Full)]
    {
        let path = directory.path().join("image");
        let CreateOptions::Qcow2(mut qcow2) = CreateOptions::qcow2(SIZE) else { unreachable!() };
        (qcow2.extended_l2, qcow2.preallocation) = (extended_l2, preallocation);
        qcow2.encryption = Some(Encryption::Luks(options(CipherSpec::default(), Hash::Sha256)));
        create(&path, &CreateOptions::Qcow2(qcow2.clone())).unwrap();
        let len = path.metadata().unwrap().len();
        let image = open(&path);
        let mut wanted = vec![0; SIZE as usize];
        assert_eq!(bytes(&image, 0, SIZE as usize), wanted);
        image.write(&[7; 5000], 100_000).unwrap();
        wanted[100_000..105_000].fill(7);
        assert_eq!(bytes(&image, 0, SIZE as usize), wanted);
        image.close().unwrap();
        assert_eq!(path.metadata().unwrap().len(), len, "the space that was set aside was used");
        if qemu::have_qemu() {
            let peer = Encrypted { path: &path, format: "qcow2", secret: SECRET };
            assert_eq!(peer.content(), wanted);
            peer.assert_clean();
        }
        std::fs::remove_file(&path).unwrap();
        (qcow2.version, qcow2.extended_l2) = (Version::V2, false);
        assert_eq!(create(&path, &CreateOptions::Qcow2(qcow2)).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_snapshot_of_an_encrypted_image_opens_with_the_secret() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    new_image(&path, FormatKind::Qcow2, options(CipherSpec::default(), Hash::Sha256));
    let image = open(&path);
    image.write(&vec![1; 200_000], 0).unwrap();
    image.create_snapshot("first", None).unwrap();
    image.write(&vec![2; 100_000], 50_000).unwrap();
    image.close().unwrap();
    let snapshot = |secret: Option<&str>| {
        let secret = secret.map(Secret::new);
        OpenOptions { snapshot: Some("first".to_owned()), secret, ..Default::default() }.open(&path)
    };
    assert_eq!(bytes(&snapshot(Some(SECRET)).unwrap(), 0, 200_000), vec![1; 200_000]);
    assert_eq!(snapshot(None).unwrap_err().kind(), ErrorKind::WrongSecret);
    assert_eq!(bytes(&open(&path), 49_999, 2), [1, 2]);
}

#[test]
fn compressed_clusters_are_refused_before_anything_is_touched() {
    let directory = tempdir().unwrap();
    let encryption = || Options { cost: Cost::Iterations(1000), ..Options::new(Secret::new(SECRET)) };
    for kind in [FormatKind::Qcow2, FormatKind::Luks] {
        let path = directory.path().join(kind.name());
        new_image(&path, kind, encryption());
        let before = std::fs::read(&path).unwrap();
        let image = open(&path);
        let error = image.write_compressed(&vec![1; 65536], 0, CompressionLevel::Default).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        image.close().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
    let target = directory.path().join("target");
    let mut create = CreateOptions::qcow2(0);
    if let CreateOptions::Qcow2(qcow2) = &mut create {
        qcow2.encryption = Some(Encryption::Luks(encryption()));
    }
    let mut options = ConvertOptions::new(create);
    options.copying.compress = Some(CompressionLevel::Default);
    let source = open(&directory.path().join("qcow2"));
    let error = convert(&source, &target, options, &mut Job::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(!target.exists());
}
