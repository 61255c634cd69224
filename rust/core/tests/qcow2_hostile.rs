//! Images that lie: an error that names the file and the reason, or some content, but never a panic, a hang or
//! memory that the file cannot justify.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use imago_core::access::check::{CheckOptions, FindingKind, Repair, Report, check, check_storage};
use imago_core::access::image::{Base, Image};
use imago_core::access::job::Job;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::qcow2::Driver;
use imago_core::format::{FormatKind, ZeroIntent};
use imago_core::storage::file::File;
use imago_core::storage::memory::Memory;
use imago_core::{Error, ErrorKind, Result, StorageOpenOptions};
use imago_testkit::images::{self, Config, DataFile};
use imago_testkit::model::pattern;
use imago_testkit::ops::fixed_script;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::{proptest_config, qemu};
use proptest::prelude::*;

fn open_bytes(bytes: Vec<u8>, write: bool) -> Result<Arc<Image>> {
    let options = OpenOptions {
        write,
        format: Some(FormatKind::Qcow2),
        backing: Backing::None,
        ..OpenOptions::default()
    };
    options.open_storage(Arc::new(Memory::from(bytes)))
}

/// An image with every kind of cluster that this crate writes.
fn used_image(config: &Config) -> Vec<u8> {
    let built = config.build();
    let image = images::open(&built.path, true).unwrap();
    let mut model = config.model(&built.backing);
    for op in fixed_script(config.geometry(), 20, 3) {
        model.apply(&image, &op).unwrap();
    }
    image.close().unwrap();
    fs::read(&built.path).unwrap()
}

/// An image with compressed clusters, a snapshot and a bitmap, if QEMU is there to make it.
fn rich_image(options: &str) -> Option<Vec<u8>> {
    if !qemu::qemu_or_skip() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rich.qcow2");
    qemu::create(&path, 300_032, options);
    let name = path.to_str().unwrap();
    qemu::io(&path, "qcow2", &["write -c -P 5 0 64k", "write -P 6 96k 64k", "write -z 192k 32k"]);
    qemu::img(&["snapshot", "-c", "before", name]);
    qemu::img(&["bitmap", "--add", name, "dirty"]);
    qemu::io(&path, "qcow2", &["write -P 7 100k 40k"]);
    Some(fs::read(&path).unwrap())
}

/// Reads all of it and writes here and there; errors are welcome.
fn use_image(bytes: Vec<u8>) {
    if let Ok(image) = open_bytes(bytes.clone(), false) {
        let mut buf = vec![0; 4096];
        for offset in (0..image.size().min(1 << 20)).step_by(4096) {
            let len = (image.size() - offset).min(4096) as usize;
            let _ = image.read(&mut buf[..len], offset);
        }
        if let Ok(extents) = image.extents(0, image.size().min(1 << 20)) {
            assert!(extents.take_while(Result::is_ok).count() <= 1 << 20);
        }
    }
    if let Ok(image) = open_bytes(bytes, true) {
        let size = image.size();
        for at in [0, 513, 40_000, 100_000, 250_000] {
            let len = 3000.min(size.saturating_sub(at));
            let _ = image.write(&pattern(1, at, len), at);
            let _ = image.write_zeroes(at, len, ZeroIntent::Unmap);
            let _ = image.discard(at, len);
        }
        let _ = image.flush();
        let _ = image.close();
    }
}

/// What opening a file of these bytes says.
fn refusal(bytes: &[u8]) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.qcow2");
    fs::write(&path, bytes).unwrap();
    let error = images::open(&path, true).map(|_| ()).expect_err("it was opened");
    assert_eq!(error.path(), Some(&*path), "{error}");
    assert!(fs::read(&path).unwrap() == bytes, "a refused image was changed");
    error
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn header_fields_out_of_bounds_are_refused_with_file_and_reason() {
    let image = used_image(&Config::plain(12, 200_192));
    let fields: [(&str, usize, &[u8]); 17] = [
        ("no qcow2", 0, b"QFI\xfa"),
        ("version", 4, &7u32.to_be_bytes()),
        ("cluster", 20, &8u32.to_be_bytes()),
        ("cluster", 20, &22u32.to_be_bytes()),
        ("cluster", 20, &u32::MAX.to_be_bytes()),
        ("needs", 24, &u64::MAX.to_be_bytes()),
        ("L1", 36, &0u32.to_be_bytes()),
        ("L1", 36, &u32::MAX.to_be_bytes()),
        ("L1", 40, &(1u64 << 60).to_be_bytes()),
        ("L1", 40, &4097u64.to_be_bytes()),
        ("refcount", 48, &u64::MAX.to_be_bytes()),
        ("refcount", 56, &u32::MAX.to_be_bytes()),
        ("refcount", 56, &0u32.to_be_bytes()),
        ("snapshot", 60, &u32::MAX.to_be_bytes()),
        ("refcount", 96, &7u32.to_be_bytes()),
        ("header", 100, &96u32.to_be_bytes()),
        ("header", 100, &u32::MAX.to_be_bytes()),
    ];
    for (word, at, value) in fields {
        let mut bytes = image.clone();
        put(&mut bytes, at, value);
        let error = refusal(&bytes);
        assert!(
            matches!(error.kind(), ErrorKind::InvalidImage | ErrorKind::Corrupt | ErrorKind::Unsupported),
            "{word} at {at}: {error:?}"
        );
        assert!(error.to_string().to_lowercase().contains(&word.to_lowercase()), "{word} at {at}: {error}");
    }
}

#[test]
fn unknown_features_and_encryption_are_refused_by_name() {
    let image = used_image(&Config::plain(16, 200_192));
    let mut bytes = image.clone();
    put(&mut bytes, 72, &(1u64 << 33).to_be_bytes());
    let error = refusal(&bytes);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("33"), "{error}");
    for (method, kind, name) in
        [(3u32, ErrorKind::Unsupported, "method 3"), (2, ErrorKind::InvalidImage, "no encryption header")]
    {
        let mut bytes = image.clone();
        put(&mut bytes, 32, &method.to_be_bytes());
        let error = refusal(&bytes);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(name), "{error}");
    }
}

#[test]
fn the_corrupt_bit_keeps_writers_out_and_readers_in() {
    let image = used_image(&Config::plain(12, 200_192));
    // Dirty or not: what is known to be corrupt is not repaired by opening it.
    for bits in [2u64, 3] {
        let mut bytes = image.clone();
        put(&mut bytes, 72, &bits.to_be_bytes());
        refusal(&bytes);
        let opened = open_bytes(bytes, false).unwrap();
        opened.read(&mut vec![0; opened.size() as usize], 0).unwrap();
    }
}

#[test]
fn an_image_cut_anywhere_is_an_error_or_reads_zeroes() {
    for config in [Config::plain(9, 40_960), Config::plain(12, 200_192)] {
        let image = used_image(&config);
        for len in (0..image.len()).step_by(97) {
            use_image(image[..len].to_vec());
        }
    }
}

/// Damages the L2 entry of guest offset 0 and returns what reading and writing it say.
fn entry_errors(change: impl Fn(u64) -> u64) -> (Result<()>, Result<()>) {
    let config = Config::plain(12, 200_192);
    let built = config.build();
    let image = images::open(&built.path, true).unwrap();
    image.write(&pattern(1, 0, 200_192), 0).unwrap();
    image.close().unwrap();
    drop(image);
    let mut bytes = fs::read(&built.path).unwrap();
    let table = (Qcow2::parse(&bytes).unwrap().active_l1().unwrap()[0] & !(1 << 63)) as usize;
    let word = u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap());
    put(&mut bytes, table, &change(word).to_be_bytes());
    fs::write(&built.path, bytes).unwrap();
    let image = images::open(&built.path, true).unwrap();
    let read = image.read(&mut vec![0; 4096], 0);
    let written = image.write(&pattern(2, 0, 4096), 0);
    for result in [&read, &written] {
        if let Err(error) = result {
            assert_eq!(error.path(), Some(&*built.path), "{error}");
        }
    }
    (read, written)
}

#[test]
fn an_entry_that_names_metadata_is_never_written_through() {
    for metadata in [0x1000u64, 0x2000, 0x3000] {
        let (_, written) = entry_errors(|_| 1 << 63 | metadata);
        let error = written.expect_err("guest data was written over metadata");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

/// The free space that this entry names may become a table before the entry is dropped.
#[test]
fn what_metadata_moved_into_is_not_freed() {
    let config = Config::plain(9, 200_192);
    let built = config.build();
    let image = images::open(&built.path, true).unwrap();
    image.write(&pattern(1, 0, 512), 0).unwrap();
    image.close().unwrap();
    drop(image);
    let mut bytes = fs::read(&built.path).unwrap();
    let table = (Qcow2::parse(&bytes).unwrap().active_l1().unwrap()[0] & !(1 << 63)) as usize;
    let free = bytes.len().next_multiple_of(512) as u64;
    put(&mut bytes, table + 8, &free.to_be_bytes());
    fs::write(&built.path, bytes).unwrap();
    let image = images::open(&built.path, true).unwrap();
    // Zeroing drops the entry; what is written before the flush puts a new L2 table where it pointed.
    image.write_zeroes(512, 512, ZeroIntent::Unmap).unwrap();
    image.write(&pattern(2, 0, 512), 100_352).unwrap();
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(image.close().unwrap_err().kind(), ErrorKind::Latched);
    let image = images::open(&built.path, false).unwrap();
    let mut found = vec![0; 512];
    image.read(&mut found, 100_352).unwrap();
    assert_eq!(found, pattern(2, 0, 512));
}

/// In an external data file every cluster is at its own offset, reserved ones too.
#[test]
fn a_reserved_cluster_elsewhere_in_the_data_file_is_not_written() {
    let config = Config { data_file: DataFile::Plain, ..Config::plain(16, 1 << 20) };
    let built = config.build();
    let options = OpenOptions { write: true, format: Some(FormatKind::Qcow2), ..OpenOptions::default() };
    let image = options.open(&built.path).unwrap();
    image.write(&pattern(1, 0, 1 << 18), 0).unwrap();
    image.close().unwrap();
    drop(image);
    let mut bytes = fs::read(&built.path).unwrap();
    let table = (Qcow2::parse(&bytes).unwrap().active_l1().unwrap()[0] & !(1 << 63)) as usize;
    put(&mut bytes, table + 8, &(1u64 << 63 | 0x30000 | 1).to_be_bytes());
    fs::write(&built.path, bytes).unwrap();
    let image = options.open(&built.path).unwrap();
    let error = image.write(b"content", 0x10000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(built.data_file().unwrap() == pattern(1, 0, 1 << 18));
}

/// Its guest offsets are offsets in the data file; in the image file they would be those of the header and the tables.
#[test]
fn without_its_data_file_nothing_is_written() {
    let built = Config { data_file: DataFile::Plain, ..Config::plain(16, 1 << 20) }.build();
    let before = fs::read(&built.path).unwrap();
    let storage = Arc::new(Memory::from(before.clone()));
    let image = Image::new(Arc::new(Driver::open(storage.clone(), true).unwrap()), Base::None);
    assert_eq!(image.write(b"content", 0).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(
        image.write_zeroes(0, 1 << 16, ZeroIntent::Unmap).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(storage.to_vec().unwrap() == before);
}

#[test]
fn a_bitmap_directory_at_the_end_of_all_offsets_is_refused() {
    let mut bytes = used_image(&Config::plain(12, 200_192));
    let words = [0x2385_2875, 24, 1, 0, 0, 1 << 20, u32::MAX, 0xffff_f000, 0, 0];
    let extensions: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
    let header_len = u32::from_be_bytes(bytes[100..104].try_into().unwrap()) as usize;
    put(&mut bytes, header_len, &extensions);
    put(&mut bytes, 88, &1u64.to_be_bytes());
    assert_eq!(refusal(&bytes).kind(), ErrorKind::Corrupt);
}

#[test]
fn a_storage_that_is_only_read_cannot_hold_an_image_to_write() {
    let built = Config::plain(16, 1 << 20).build();
    let storage = File::open_sync(StorageOpenOptions::new().filename(&built.path)).unwrap();
    let options = OpenOptions { write: true, format: Some(FormatKind::Qcow2), ..OpenOptions::default() };
    assert_eq!(options.open_storage(Arc::new(storage)).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn an_unaligned_entry_is_corruption() {
    let (read, written) = entry_errors(|word| word | 0x200);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn an_entry_past_the_end_of_the_file_reads_zeroes_or_is_an_error() {
    let (read, _) = entry_errors(|_| 1 << 63 | 0x00ff_ffff_0000_0000);
    if let Err(error) = read {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn compressed_garbage_is_corruption() {
    // Points into other clusters' data, which is no stream.
    let (read, _) = entry_errors(|word| 1 << 62 | word & 0x00ff_ffff_ffff_fe00 | 3 << 58);
    let error = read.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn a_chain_that_is_a_loop_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["one", "two", "three"];
    for (index, name) in names.iter().enumerate() {
        chain_link(dir.path(), name, names[(index + 1) % 3]);
    }
    chain_link(dir.path(), "self", "self");
    for name in ["one", "self"] {
        let error = images::open(&dir.path().join(name), false).map(|_| ()).expect_err("a loop was opened");
        assert!(matches!(error.kind(), ErrorKind::InvalidImage | ErrorKind::Corrupt), "{error:?}");
        assert!(error.path().is_some(), "{error}");
    }
}

#[test]
fn a_chain_that_is_too_long_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for index in 0..300 {
        chain_link(dir.path(), &format!("link{index}"), &format!("link{}", index + 1));
    }
    fs::write(dir.path().join("link300"), [0; 512]).unwrap();
    let error = images::open(&dir.path().join("link0"), false).map(|_| ()).expect_err("a chain of 300");
    assert!(error.to_string().contains("256"), "{error}");
}

fn chain_link(dir: &Path, name: &str, backing: &str) {
    let storage = images::new_file(&dir.join(name));
    let mut options =
        Config { backing: Some(images::Backing { qcow2: true, len: 0 }), ..Config::plain(9, 512) }.options();
    options.backing.as_mut().unwrap().name = backing.into();
    imago_core::format::qcow2::create::create(&storage, None, &options).unwrap();
}

/// Where mutations hurt most: the header, the tables that it names, and the first L2 tables and refcount blocks.
fn metadata_offsets(bytes: &[u8]) -> Vec<usize> {
    let image = Qcow2::parse(bytes).unwrap();
    let mut starts = vec![0, image.header.l1_table_offset, image.header.refcount_table_offset];
    starts.extend(image.active_l1().unwrap().iter().map(|entry| entry & 0x00ff_ffff_ffff_fe00));
    starts.extend(image.refcount_table().unwrap());
    starts.push(image.header.snapshots_offset);
    starts.push(image.bitmap_directory.0);
    starts.sort_unstable();
    starts.dedup();
    starts.into_iter().map(|start| start as usize).filter(|start| *start < bytes.len()).collect()
}

/// Some changes to an image: (which structure, offset in it, new bytes).
fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, Vec<u8>)>> {
    let word = prop_oneof![
        2 => any::<u64>(),
        2 => (0..64u32).prop_map(|bit| 1 << bit),
        2 => (0..64u64).prop_map(|cluster| cluster * 512),
        1 => (0..64u64).prop_map(|cluster| (1 << 63) | (cluster * 4096)),
        1 => (0..64u64).prop_map(|cluster| (1 << 62) | (cluster * 4096)),
        1 => Just(u64::MAX),
        1 => Just(0),
    ];
    let value = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        any::<u32>().prop_map(|word| word.to_be_bytes().to_vec()),
        word.prop_map(|word| word.to_be_bytes().to_vec()),
    ];
    let at = prop_oneof![(0..16usize).prop_map(|n| n * 8), 0..120usize, 0..4096usize];
    prop::collection::vec((any::<prop::sample::Index>(), at, value), 1..6)
}

fn mutate(image: &[u8], mutations: &[(prop::sample::Index, usize, Vec<u8>)]) -> Vec<u8> {
    let starts = metadata_offsets(image);
    let mut bytes = image.to_vec();
    for (structure, at, value) in mutations {
        let at = structure.get(&starts) + at;
        if at + value.len() <= bytes.len() {
            put(&mut bytes, at, value);
        }
    }
    bytes
}

fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SAMPLES.get_or_init(|| {
        let ours = [
            Config::plain(9, 40_960),
            Config { refcount_bits: 1, ..Config::plain(12, 200_192) },
            Config { extended_l2: true, ..Config::plain(14, 300_032) },
            Config { version: 2, ..Config::plain(12, 100_352) },
        ];
        let rich = [
            "cluster_size=4096",
            "cluster_size=512,compression_type=zstd",
            "extended_l2=on,cluster_size=16k",
        ];
        ours.iter().map(used_image).chain(rich.iter().filter_map(|options| rich_image(options))).collect()
    })
}

proptest! {
    #![proptest_config(proptest_config(10_000))]

    #[test]
    fn mutated_metadata_never_panics(sample in any::<prop::sample::Index>(), mutations in mutations()) {
        use_image(mutate(&samples()[sample.index(samples().len())], &mutations));
    }
}

/// What the guest sees, where all of it can be told.
fn content(bytes: &[u8]) -> Option<Vec<u8>> {
    let image = open_bytes(bytes.to_vec(), false).ok().filter(|image| image.size() <= 1 << 20)?;
    let mut found = vec![0; image.size() as usize];
    image.read(&mut found, 0).ok().map(|()| found)
}

fn check_bytes(storage: &Arc<Memory>, repair: Repair) -> Result<Report> {
    let options = CheckOptions { format: Some(FormatKind::Qcow2), repair, ..Default::default() };
    check_storage(storage.clone(), options, &mut Job::default())
}

fn is_wrong(kind: FindingKind) -> bool {
    !matches!(kind, FindingKind::RefcountTooHigh | FindingKind::Copied)
}

/// A check writes nothing, and no repair changes what the guest sees or makes the image worse.
fn check_and_repair(bytes: &[u8]) {
    let storage = Arc::new(Memory::from(bytes.to_vec()));
    let found = check_bytes(&storage, Repair::None);
    assert!(storage.to_vec().unwrap() == bytes, "a check wrote something");
    let Ok(found) = found else { return };
    let deep = CheckOptions { format: Some(FormatKind::Qcow2), deep: true, ..Default::default() };
    check_storage(storage, deep, &mut Job::default()).unwrap();
    let shown = content(bytes);
    for repair in [Repair::Leaks, Repair::All] {
        let storage = Arc::new(Memory::from(bytes.to_vec()));
        let Ok(left) = check_bytes(&storage, repair) else { continue };
        let after = storage.to_vec().unwrap();
        assert!(shown.is_none() || shown == content(&after), "{repair:?} changed the content: {found:?}");
        // Where a table may not be written, a refcount that was lowered to 1 may leave a flag behind.
        let wrong = |report: &Report| report.findings.iter().filter(|f| is_wrong(f.kind)).count();
        let all_kept = found.findings.len() < 1000;
        assert!(!all_kept || wrong(&left) <= wrong(&found), "{repair:?}: {found:?} became {left:?}");
        let again = check_bytes(&storage, Repair::None).unwrap();
        assert_eq!((again.corruptions, again.leaks), (left.corruptions, left.leaks));
    }
}

proptest! {
    #![proptest_config(proptest_config(1_000))]

    #[test]
    fn mutated_metadata_is_checked_and_repaired_with_no_harm(
        sample in any::<prop::sample::Index>(), mutations in mutations()
    ) {
        check_and_repair(&mutate(&samples()[sample.index(samples().len())], &mutations));
    }
}

/// Sparse files of petabytes cost nothing to make; what they claim to hold must cost nothing to check.
#[test]
fn an_offset_far_away_in_a_huge_file_costs_no_memory() {
    let built = Config::plain(9, 40_960).build();
    let image = images::open(&built.path, true).unwrap();
    image.write(&pattern(1, 0, 40_960), 0).unwrap();
    image.close().unwrap();
    drop(image);
    let mut bytes = fs::read(&built.path).unwrap();
    let table = (Qcow2::parse(&bytes).unwrap().active_l1().unwrap()[0] & !(1 << 63)) as usize;
    for index in 0..64u64 {
        let far = 1 << 63 | (index + 1) << 37;
        put(&mut bytes, table + index as usize * 8, &far.to_be_bytes());
    }
    fs::write(&built.path, &bytes).unwrap();
    fs::File::options().write(true).open(&built.path).unwrap().set_len(1 << 43).unwrap();
    let options = CheckOptions { format: Some(FormatKind::Qcow2), ..Default::default() };
    let report = check(&built.path, options, &mut Job::default()).unwrap();
    assert!(report.corruptions >= 64, "{report:#?}");
}
