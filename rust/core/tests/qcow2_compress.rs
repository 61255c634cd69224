//! Compressed writing: QEMU and the oracle read it, clusters stand densely, and what cannot be is refused untouched.

use std::fs;
use std::sync::Arc;
use std::thread;

use imago_core::access::image::Image;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::access::pack::CompressionLevel;
use imago_core::format::{FormatKind, ZeroIntent};
use imago_core::storage::Limits;
use imago_core::storage::memory::Memory;
use imago_core::{ErrorKind, Storage};
use imago_testkit::check::check;
use imago_testkit::images::{self, Config, DataFile, open};
use imago_testkit::model::{Discards, packable, pattern};
use imago_testkit::qcow2::Qcow2;
use imago_testkit::qemu;
use imago_testkit::rng::Rng;
use imago_testkit::sim::SimStorage;
use imago_testkit::stopping::{On, Stopping};

const DEFAULT: CompressionLevel = CompressionLevel::Default;

/// Every cluster size, width, version and method, though not all at once.
fn configs() -> Vec<Config> {
    let mut configs = Vec::new();
    for (bits, refcount_bits) in
        [(9, 16), (9, 1), (10, 64), (12, 2), (13, 4), (14, 8), (16, 16), (16, 32), (18, 1), (21, 16)]
    {
        let size = ((40 << bits) + 700_u64).next_multiple_of(512).min((6 << 20) + 1536);
        for zstd in [false, true] {
            configs.push(Config { refcount_bits, zstd, ..Config::plain(bits, size) });
        }
        configs.push(Config { version: 2, ..Config::plain(bits, size) });
        if bits >= 14 {
            let backing = Some(images::Backing { qcow2: true, len: size / 2 + 300 });
            configs.push(Config { extended_l2: true, backing, ..Config::plain(bits, size) });
        }
    }
    configs
}

/// Clusters that pack, that do not, and that are zeroes.
fn content(seed: u8, config: &Config) -> Vec<u8> {
    let cluster = 1 << config.cluster_bits;
    let mut bytes = packable(seed | 1, 0, config.size);
    let mut rng = Rng::new(u64::from(seed));
    for (index, bytes) in bytes.chunks_mut(cluster).enumerate() {
        match index % 5 {
            2 => bytes.iter_mut().for_each(|byte| *byte = rng.next_u64() as u8),
            4 => bytes.fill(0),
            _ => {}
        }
    }
    bytes
}

/// Compressed clusters in the image.
fn compressed(bytes: &[u8]) -> u64 {
    let image = Qcow2::parse(bytes).unwrap();
    let tables = image.active_l1().unwrap().into_iter().map(|entry| entry & 0x00ff_ffff_ffff_fe00);
    let entries = tables.filter(|table| *table != 0).flat_map(|table| image.l2_table(table).unwrap());
    entries.filter(|entry| entry.compressed()).count() as u64
}

#[test]
fn qemu_reads_compressed_clusters_of_every_kind() {
    for (seed, config) in (1..).zip(configs()) {
        let built = config.build();
        let content = content(seed, &config);
        let image = open(&built.path, true).unwrap();
        image.write_compressed(&content, 0, DEFAULT).unwrap();
        let mut found = vec![0xa5; content.len()];
        image.read(&mut found, 0).unwrap();
        assert!(found == content, "{config:?}: read back");
        image.close().unwrap();
        drop(image);
        assert!(built.checked_view().unwrap().disk == content, "{config:?}: the oracle");
        let bytes = fs::read(&built.path).unwrap();
        let clusters = config.size.div_ceil(1 << config.cluster_bits);
        assert_eq!(compressed(&bytes), (0..clusters).filter(|n| ![2, 4].contains(&(n % 5))).count() as u64);
        assert!(bytes.len().is_multiple_of(512), "{config:?}: {} bytes", bytes.len());
        if qemu::qemu_or_skip() {
            qemu::assert_clean(&built.path);
            assert!(qemu::content(&built.path) == content, "{config:?}: QEMU");
            let map = qemu::img(&["map", "--output=json", built.path.to_str().unwrap()]);
            assert!(map.contains("\"compressed\": true"), "{map}");
        }
    }
}

#[test]
fn compressed_clusters_are_overwritten_by_everything() {
    for config in configs() {
        let built = config.build();
        let cluster = 1 << config.cluster_bits;
        let mut wanted = content(1, &config);
        let image = open(&built.path, true).unwrap();
        image.write_compressed(&wanted, 0, DEFAULT).unwrap();
        image.flush().unwrap();
        for (n, at) in (0..config.size / cluster).map(|n| (n, n * cluster)) {
            let part = &mut wanted[at as usize..(at + cluster) as usize];
            match n % 6 {
                0 => {
                    part.copy_from_slice(&packable(9, at, cluster));
                    image.write_compressed(&*part, at, DEFAULT).unwrap();
                }
                1 => {
                    part[100..300].copy_from_slice(&pattern(10, at, 200));
                    image.write(&part[100..300], at + 100).unwrap();
                }
                2 => {
                    part.fill(0);
                    image.write_compressed(&*part, at, DEFAULT).unwrap();
                }
                3 => {
                    part.fill(0);
                    image.write_zeroes(at, cluster, ZeroIntent::Keep).unwrap();
                }
                4 if config.discards() == Discards::Zero => {
                    part.fill(0);
                    image.discard(at, cluster).unwrap();
                }
                _ => {}
            }
        }
        // And plain ones by compressed ones.
        let first = packable(21, 0, cluster);
        image.write(&pattern(20, 0, cluster), 0).unwrap();
        image.write_compressed(&first, 0, DEFAULT).unwrap();
        wanted[..first.len()].copy_from_slice(&first);
        image.close().unwrap();
        drop(image);
        assert!(built.checked_view().unwrap().disk == wanted, "{config:?}");
        if qemu::qemu_or_skip() {
            qemu::assert_clean(&built.path);
            assert!(qemu::content(&built.path) == wanted, "{config:?}: QEMU");
        }
    }
}

#[test]
fn clusters_stand_as_densely_as_qemu_packs_them() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src/format/qcow2");
    let mut content: Vec<u8> = Vec::new();
    for entry in fs::read_dir(sources).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
        content.extend(fs::read(entry.path()).unwrap());
    }
    content.truncate(content.len() / 65_536 * 65_536);
    assert!(content.len() > 65_536);
    for (zstd, name) in [(false, "zlib"), (true, "zstd")] {
        let config = Config { zstd, ..Config::plain(16, content.len() as u64) };
        let built = config.build();
        let image = open(&built.path, true).unwrap();
        image.write_compressed(&content, 0, DEFAULT).unwrap();
        image.close().unwrap();
        let raw = built.dir.path().join("raw");
        fs::write(&raw, &content).unwrap();
        let theirs = built.dir.path().join("theirs");
        let options = format!("compression_type={name}");
        let paths = [raw.to_str().unwrap(), theirs.to_str().unwrap()];
        qemu::img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, paths[0], paths[1]]);
        let (ours, theirs) = (fs::metadata(&built.path).unwrap().len(), fs::metadata(&theirs).unwrap().len());
        assert!(ours * 100 <= theirs * 102, "{name}: {ours} bytes, QEMU's {theirs}");
    }
}

/// Packed bytes are in nobody's way once nothing names them.
#[test]
fn space_of_compressed_clusters_is_used_again() {
    for refcount_bits in [1, 16] {
        let built = Config { refcount_bits, ..Config::plain(12, 1 << 20) }.build();
        let image = open(&built.path, true).unwrap();
        let mut lens = Vec::new();
        for round in 1..=20 {
            image.write_compressed(&packable(2 * round + 1, 0, 1 << 20), 0, DEFAULT).unwrap();
            image.flush().unwrap();
            image.flush().unwrap();
            lens.push(fs::metadata(&built.path).unwrap().len());
        }
        assert!(lens[19] <= lens[9], "{lens:?}");
        image.close().unwrap();
        drop(image);
        assert!(built.checked_view().unwrap().disk == packable(41, 0, 1 << 20));
    }
}

#[test]
fn what_cannot_be_written_compressed_is_refused_before_anything_is_touched() {
    let data = packable(1, 0, 8192);
    let refused = |image: &Image, bytes: &[u8], offset, level, kind, about: &str| {
        let error = image.write_compressed(bytes, offset, level).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(about), "{error}");
    };
    let built = Config::plain(12, 100_000).build();
    let before = fs::read(&built.path).unwrap();
    let image = open(&built.path, true).unwrap();
    let invalid = ErrorKind::InvalidInput;
    refused(&image, &data, 512, DEFAULT, invalid, "4096");
    refused(&image, &data[..5000], 0, DEFAULT, invalid, "4096");
    refused(&image, &data[..1000], 98_304, DEFAULT, invalid, "4096");
    refused(&image, &data, 98_304, DEFAULT, invalid, "end of the disk");
    for level in [0, 10, u32::MAX] {
        refused(&image, &data, 0, CompressionLevel::Of(level), invalid, "zlib has levels 1 to 9");
    }
    image.close().unwrap();
    drop(image);
    let image = open(&built.path, false).unwrap();
    refused(&image, &data, 0, DEFAULT, ErrorKind::ReadOnly, "read-only");
    image.close().unwrap();
    assert!(fs::read(&built.path).unwrap() == before);

    for data_file in [DataFile::Plain, DataFile::Raw] {
        let built = Config { data_file, ..Config::plain(12, 100_000) }.build();
        let before = (fs::read(&built.path).unwrap(), built.data_file());
        let image = open(&built.path, true).unwrap();
        refused(&image, &data, 0, DEFAULT, ErrorKind::Unsupported, "external data file");
        image.close().unwrap();
        assert!((fs::read(&built.path).unwrap(), built.data_file()) == before);
    }

    let raw = OpenOptions { write: true, format: Some(FormatKind::Raw), ..OpenOptions::default() };
    let storage = Arc::new(Memory::from(vec![7; 8192]));
    let image = raw.open_storage(storage.clone()).unwrap();
    refused(&image, &data, 0, DEFAULT, ErrorKind::Unsupported, "raw has no compressed clusters");
    assert_eq!(storage.to_vec().unwrap(), vec![7; 8192]);
}

#[test]
fn every_level_of_both_methods_reads_back() {
    for (zstd, levels) in [(false, 1..=9), (true, 1..=22)] {
        let built = Config { zstd, ..Config::plain(14, 22 << 14) }.build();
        let image = open(&built.path, true).unwrap();
        let wanted = packable(5, 0, 22 << 14);
        for level in levels {
            let at = (u64::from(level) - 1) << 14;
            let part = &wanted[at as usize..][..1 << 14];
            image.write_compressed(part, at, CompressionLevel::Of(level)).unwrap();
            let mut found = vec![0; 1 << 14];
            image.read(&mut found, at).unwrap();
            assert!(found == part, "level {level}");
        }
        image.close().unwrap();
        drop(image);
        built.checked_view().unwrap();
        assert!(compressed(&fs::read(&built.path).unwrap()) >= 9);
    }
}

fn open_storage(storage: Arc<dyn Storage>) -> Arc<Image> {
    OpenOptions {
        write: true,
        format: Some(FormatKind::Qcow2),
        backing: Backing::None,
        ..OpenOptions::default()
    }
    .open_storage(storage)
    .unwrap()
}

/// Packed clusters of different threads share sectors, and the storage takes whole ones only.
#[test]
fn writers_of_neighbours_do_not_damage_each_other() {
    const THREADS: u64 = 4;
    let config = Config::plain(12, 2 << 20);
    let file = fs::read(&config.build().path).unwrap();
    let limits = Limits { request_alignment: 512, memory_alignment: 512 };
    let storage = Arc::new(SimStorage::from(file).with_limits(limits));
    let image = open_storage(storage.clone());
    let clusters = config.size >> 12;
    thread::scope(|scope| {
        for number in 0..THREADS {
            let image = &image;
            scope.spawn(move || {
                let mut rng = Rng::new(number);
                let mut seeds = vec![0; clusters as usize];
                for round in 0..300 {
                    let mine = rng.next_u64() % (clusters / THREADS) * THREADS + number;
                    let seed = rng.next_u64() as u8 | 1;
                    let bytes = packable(seed, mine << 12, 4096);
                    if round % 7 == 3 {
                        image.write(&bytes, mine << 12).unwrap();
                    } else {
                        image.write_compressed(&bytes, mine << 12, DEFAULT).unwrap();
                    }
                    seeds[mine as usize] = seed;
                    if round % 50 == 20 {
                        image.flush().unwrap();
                    }
                    let other = rng.next_u64() % (clusters / THREADS) * THREADS + number;
                    let mut found = vec![0xa5; 1000];
                    image.read(&mut found, (other << 12) + 500).unwrap();
                    let wanted = match seeds[other as usize] {
                        0 => vec![0; 4096],
                        seed => packable(seed, other << 12, 4096),
                    };
                    assert!(found == wanted[500..1500], "cluster {other}, round {round}");
                }
            });
        }
    });
    let mut before = vec![0; config.size as usize];
    image.read(&mut before, 0).unwrap();
    image.close().unwrap();
    let bytes = storage.contents();
    check(&bytes).assert_clean();
    assert!(Qcow2::parse(&bytes).unwrap().content(&[], None).unwrap() == before);
}

/// A read that began before the overwriting must not leave what it unpacked where later reads find it.
#[test]
fn a_read_beside_an_overwriting_leaves_nothing_stale() {
    let config = Config::plain(16, 1 << 20);
    let storage = Arc::new(Stopping::from(fs::read(&config.build().path).unwrap()));
    let image = open_storage(storage.clone());
    let (old, new) = (vec![0x11; 65_536], vec![0x22; 65_536]);
    image.write_compressed(&old, 0, DEFAULT).unwrap();
    let mut part = [0; 100];
    thread::scope(|scope| {
        storage.arm(On::Read);
        let reader = scope.spawn(|| {
            let mut part = [0; 100];
            image.read(&mut part, 10).unwrap();
            part
        });
        storage.wait_until_stopped();
        // The old cluster is free after this, as soon as the reader has ended.
        image.write(&new, 0).unwrap();
        storage.let_through();
        assert_eq!(reader.join().unwrap(), [0x11; 100]);
    });
    image.flush().unwrap();
    image.flush().unwrap();
    // It packs into as many bytes and comes to stand where the old one stood.
    image.write_compressed(&new, 0, DEFAULT).unwrap();
    image.read(&mut part, 10).unwrap();
    assert_eq!(part, [0x22; 100]);
    image.close().unwrap();
}
