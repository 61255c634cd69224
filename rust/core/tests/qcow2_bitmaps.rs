//! Persistent dirty bitmaps: what they say after every kind of write, and what QEMU says of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use imago_core::access::image::Image;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::access::pack::CompressionLevel;
use imago_core::format::{DirtyBitmap, FormatKind, Recording, ZeroIntent};
use imago_core::storage::memory::Memory;
use imago_core::{ErrorKind, Result};
use imago_testkit::check::check;
use imago_testkit::images::{self, Config, open};
use imago_testkit::qcow2::Qcow2;
use imago_testkit::qemu;

const MIB: u64 = 1 << 20;

fn ranges(image: &Image, name: &str) -> Vec<(u64, u64)> {
    image.bitmaps().ranges(name).unwrap().map(|range| (range.offset, range.length)).collect()
}

fn names(image: &Image) -> Vec<String> {
    image.bitmaps().list().unwrap().into_iter().map(|bitmap| bitmap.name).collect()
}

fn described(image: &Image, name: &str) -> DirtyBitmap {
    image.bitmaps().list().unwrap().into_iter().find(|bitmap| bitmap.name == name).unwrap()
}

/// What the oracle finds in an image that has no other faults.
fn stored(path: &Path, name: &str) -> Vec<(u64, u64)> {
    let bytes = fs::read(path).unwrap();
    check(&bytes).assert_clean();
    let image = Qcow2::parse(&bytes).unwrap();
    let bitmap = image.bitmap(name).unwrap();
    assert_eq!(bitmap.flags & 1, 0, "{bitmap:?} is in use");
    image.dirty(bitmap).unwrap()
}

/// What QEMU finds: it copies the bitmaps to an image of its own.
fn seen_by_qemu(path: &Path, name: &str) -> Vec<(u64, u64)> {
    let copy = path.with_extension("copy");
    let args = ["convert", "-q", "-f", "qcow2", "-O", "qcow2", "--bitmaps"];
    qemu::img(&[&args[..], &[path.to_str().unwrap(), copy.to_str().unwrap()]].concat());
    let seen = stored(&copy, name);
    fs::remove_file(&copy).unwrap();
    seen
}

#[test]
fn an_enabled_bitmap_records_every_kind_of_write() {
    let built = Config::plain(16, 64 * MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("all", None, Recording::Enabled).unwrap();
    image.bitmaps().add("fine", Some(512), Recording::Enabled).unwrap();
    image.bitmaps().add("off", None, Recording::Disabled).unwrap();
    assert!(described(&image, "all").enabled && !described(&image, "off").enabled);
    image.write(&[1; 100], MIB + 7).unwrap(); // allocates
    image.write(&[2; 100], MIB + 70_000).unwrap();
    image.write(&[3; 10], MIB + 20).unwrap(); // in place
    image.write_zeroes(5 * MIB, 1000, ZeroIntent::Keep).unwrap();
    image.write_zeroes(9 * MIB + 1, 65536, ZeroIntent::Unmap).unwrap();
    image.discard(20 * MIB, 65536).unwrap();
    image.write(&[], 30 * MIB).unwrap();
    // One cluster packs, one is zeroes.
    image
        .write_compressed(&[vec![7; 65536], vec![0; 65536]].concat(), 40 * MIB, CompressionLevel::Default)
        .unwrap();
    let refused = image.write_compressed(&vec![7; 65536], 50 * MIB + 512, CompressionLevel::Default);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    let coarse =
        [(MIB, 131_072), (5 * MIB, 65536), (9 * MIB, 131_072), (20 * MIB, 65536), (40 * MIB, 131_072)];
    let fine = [
        (MIB, 512),
        (MIB + 70_000 / 512 * 512, 512),
        (5 * MIB, 1024),
        (9 * MIB, 66_048),
        (20 * MIB, 65536),
        (40 * MIB, 131_072),
    ];
    assert_eq!(ranges(&image, "all"), coarse);
    assert_eq!(ranges(&image, "fine"), fine);
    assert_eq!(described(&image, "all").count, Some(8 * 65536));
    image.close().unwrap();
    drop(image);
    assert_eq!(stored(&built.path, "all"), coarse);
    assert_eq!(stored(&built.path, "fine"), fine);
    assert_eq!(stored(&built.path, "off"), []);
    let image = open(&built.path, false).unwrap();
    assert_eq!(names(&image), ["all", "fine", "off"]);
    assert_eq!(ranges(&image, "fine"), fine);
    drop(image);
    if qemu::qemu_or_skip() {
        qemu::assert_clean(&built.path);
        assert_eq!(seen_by_qemu(&built.path, "all"), coarse);
        assert_eq!(seen_by_qemu(&built.path, "fine"), fine);
    }
}

/// From the second opening on the bits come from the file.
#[test]
fn recording_goes_on_where_it_ended() {
    let built = Config::plain(9, 8 * MIB).build();
    for round in 0..5 {
        let image = open(&built.path, true).unwrap();
        if round == 0 {
            image.bitmaps().add("b", Some(4096), Recording::Enabled).unwrap();
        }
        image.write(&[1], round * MIB).unwrap();
        image.close().unwrap();
        let wanted: Vec<_> = (0..=round).map(|round| (round * MIB, 4096)).collect();
        assert_eq!(stored(&built.path, "b"), wanted);
    }
}

#[test]
fn a_bitmap_of_an_image_that_is_not_closed_is_inconsistent_and_can_only_be_removed() {
    let built = Config::plain(16, 8 * MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("lost", None, Recording::Enabled).unwrap();
    image.bitmaps().add("kept", None, Recording::Disabled).unwrap();
    image.write(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    let crashed = built.path.with_extension("crashed");
    fs::copy(&built.path, &crashed).unwrap();
    let image = open(&crashed, true).unwrap();
    let lost = described(&image, "lost");
    assert!(lost.inconsistent && lost.enabled && lost.count.is_none());
    let bitmaps = image.bitmaps();
    let refusals = [
        bitmaps.clear("lost"),
        bitmaps.set_recording("lost", Recording::Disabled),
        bitmaps.set_recording("lost", Recording::Enabled),
        bitmaps.ranges("lost").map(drop),
        bitmaps.merge("lost", bitmaps.ranges("kept").unwrap()),
    ];
    for refusal in refusals {
        assert_eq!(refusal.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    image.write(&[2; 512], MIB).unwrap();
    bitmaps.remove("lost").unwrap();
    assert_eq!(names(&image), ["kept"]);
    image.close().unwrap();
    check(&fs::read(&crashed).unwrap()).assert_clean();
}

/// What nothing recorded yet is durable at once, and right.
#[test]
fn changes_before_the_first_write_are_durable_when_they_return() {
    let built = Config::plain(12, 8 * MIB).build();
    let image = open(&built.path, true).unwrap();
    let bitmaps = image.bitmaps();
    let state = || {
        let bytes = fs::read(&built.path).unwrap();
        check(&bytes).assert_no_corruption();
        let image = Qcow2::parse(&bytes).unwrap();
        image.bitmaps.iter().map(|b| (b.name.clone(), b.flags, image.dirty(b).unwrap())).collect::<Vec<_>>()
    };
    bitmaps.add("a", None, Recording::Enabled).unwrap();
    bitmaps.add("b", Some(1 << 16), Recording::Disabled).unwrap();
    assert_eq!(state(), [("a".into(), 2, vec![]), ("b".into(), 0, vec![])]);
    bitmaps.set_recording("a", Recording::Disabled).unwrap();
    bitmaps.set_recording("b", Recording::Enabled).unwrap();
    assert_eq!(state(), [("a".into(), 0, vec![]), ("b".into(), 2, vec![])]);
    image.write(&[1; 5000], 3 * MIB + 1).unwrap();
    image.close().unwrap();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().merge("a", image.bitmaps().ranges("b").unwrap()).unwrap();
    let dirty = vec![(3 * MIB, 65536)];
    assert_eq!(state(), [("a".into(), 0, dirty.clone()), ("b".into(), 2, dirty.clone())]);
    image.bitmaps().clear("b").unwrap();
    assert_eq!(state(), [("a".into(), 0, dirty), ("b".into(), 2, vec![])]);
    image.bitmaps().remove("a").unwrap();
    image.bitmaps().remove("b").unwrap();
    assert_eq!(state(), []);
    image.close().unwrap();
    let bytes = fs::read(&built.path).unwrap();
    check(&bytes).assert_clean();
    let header = Qcow2::parse(&bytes).unwrap().header;
    assert_eq!(header.autoclear, 0);
    assert!(
        header.extension(imago_testkit::qcow2::extension::BITMAPS).is_none(),
        "the last one takes it along"
    );
}

#[test]
fn while_writes_are_recorded_bitmaps_can_be_changed() {
    let built = Config::plain(16, 8 * MIB).build();
    let image = open(&built.path, true).unwrap();
    let bitmaps = image.bitmaps();
    bitmaps.add("first", None, Recording::Enabled).unwrap();
    image.write(&[1], 0).unwrap();
    bitmaps.add("second", None, Recording::Enabled).unwrap();
    image.write(&[1], MIB).unwrap();
    bitmaps.set_recording("first", Recording::Disabled).unwrap();
    image.write(&[1], 2 * MIB).unwrap();
    bitmaps.set_recording("first", Recording::Enabled).unwrap();
    image.write(&[1], 3 * MIB).unwrap();
    bitmaps.clear("second").unwrap();
    image.write(&[1], 4 * MIB).unwrap();
    bitmaps.add("third", None, Recording::Disabled).unwrap();
    bitmaps.merge("third", bitmaps.ranges("first").unwrap()).unwrap();
    bitmaps.remove("first").unwrap();
    image.write(&[1], 5 * MIB).unwrap();
    bitmaps.set_recording("third", Recording::Enabled).unwrap();
    image.write(&[1], 6 * MIB).unwrap();
    image.close().unwrap();
    let at = |megabytes: &[u64]| megabytes.iter().map(|n| (n * MIB, 65536)).collect::<Vec<_>>();
    assert_eq!(stored(&built.path, "second"), at(&[4, 5, 6]));
    assert_eq!(stored(&built.path, "third"), at(&[0, 1, 3, 4, 6]));
}

#[test]
fn bitmaps_of_different_granularities_are_merged_also_across_images() {
    let built = Config::plain(16, 8 * MIB + 512).build();
    let other = Config::plain(9, 8 * MIB + 512).build();
    let (image, source) = (open(&built.path, true).unwrap(), open(&other.path, true).unwrap());
    source.bitmaps().add("fine", Some(512), Recording::Enabled).unwrap();
    image.bitmaps().add("coarse", Some(1 << 20), Recording::Disabled).unwrap();
    source.write(&[1; 600], 5 * MIB - 10).unwrap();
    source.write(&[1; 12], 8 * MIB + 500).unwrap();
    image.bitmaps().merge("coarse", source.bitmaps().ranges("fine").unwrap()).unwrap();
    assert_eq!(ranges(&image, "coarse"), [(4 * MIB, 2 * MIB), (8 * MIB, 512)]);
    source.bitmaps().add("back", Some(4096), Recording::Disabled).unwrap();
    source.bitmaps().merge("back", image.bitmaps().ranges("coarse").unwrap()).unwrap();
    assert_eq!(ranges(&source, "back"), [(4 * MIB, 2 * MIB), (8 * MIB, 512)]);
    let larger = Config::plain(16, 8 * MIB + 1024).build();
    let larger = open(&larger.path, true).unwrap();
    larger.bitmaps().add("x", None, Recording::Enabled).unwrap();
    let refused = larger.bitmaps().merge("x", image.bitmaps().ranges("coarse").unwrap());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput, "as QEMU refuses it");
    for image in [image, source, larger] {
        image.close().unwrap();
    }
    assert_eq!(stored(&built.path, "coarse"), [(4 * MIB, 2 * MIB), (8 * MIB, 512)]);
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_touched() {
    let built = Config::plain(16, 8 * MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("there", None, Recording::Enabled).unwrap();
    image.close().unwrap();
    let before = fs::read(&built.path).unwrap();
    let image = open(&built.path, true).unwrap();
    let bitmaps = image.bitmaps();
    let long = "x".repeat(1024);
    let add = |name: &str, granularity| bitmaps.add(name, granularity, Recording::Enabled);
    let refusals = [
        add("there", None),
        add("", None),
        add(&long, None),
        add("nul\0", None),
        add("a", Some(256)),
        add("a", Some(1000)),
        add("a", Some(0)),
        add("a", Some(1 << 32)),
        bitmaps.remove("a"),
        bitmaps.clear("a"),
        bitmaps.set_recording("a", Recording::Enabled),
        bitmaps.ranges("a").map(drop),
        bitmaps.merge("a", bitmaps.ranges("there").unwrap()),
    ];
    for refusal in refusals {
        assert_eq!(refusal.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    bitmaps.add(&"ü".repeat(511), Some(1 << 31), Recording::Disabled).unwrap();
    bitmaps.remove(&"ü".repeat(511)).unwrap();
    drop(image);
    let image = open(&built.path, false).unwrap();
    assert_eq!(image.bitmaps().remove("there").unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(ranges(&image, "there"), []);
    drop(image);
    let old = Config { version: 2, ..Config::plain(16, MIB) }.build();
    let old = open(&old.path, true).unwrap();
    assert_eq!(old.bitmaps().add("a", None, Recording::Enabled).unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(old.bitmaps().list().unwrap().is_empty());
    let image = open(&built.path, true).unwrap();
    image.close().unwrap();
    let after = fs::read(&built.path).unwrap();
    let (before, after) = (Qcow2::parse(&before).unwrap(), Qcow2::parse(&after).unwrap());
    assert_eq!(format!("{:?}", before.bitmaps[0].name), format!("{:?}", after.bitmaps[0].name));
}

#[test]
fn a_bitmap_that_would_take_too_much_is_refused() {
    let built = Config::plain(21, 1 << 50).build();
    let image = open(&built.path, true).unwrap();
    let add = |name, granularity| image.bitmaps().add(name, Some(granularity), Recording::Enabled);
    assert_eq!(add("fine", 1 << 17).unwrap_err().kind(), ErrorKind::InvalidInput);
    add("coarse", 1 << 18).unwrap();
    image.write(&[1], (1 << 50) - 1).unwrap();
    image.close().unwrap();
    let image = open(&built.path, false).unwrap();
    assert_eq!(ranges(&image, "coarse"), [((1 << 50) - (1 << 18), 1 << 18)]);
    assert!(fs::metadata(&built.path).unwrap().len() < 64 * MIB, "512 MiB of bits, most of them 0");
}

/// Tables and directories that are longer than what one refcount block counts.
#[test]
fn tables_of_many_clusters_lie_in_a_row() {
    let built = Config { refcount_bits: 64, ..Config::plain(9, 256 * MIB) }.build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("fine", Some(512), Recording::Enabled).unwrap();
    let mut names = vec!["fine".to_owned()];
    for index in 0..40 {
        names.push(format!("{index:01000}"));
        image.bitmaps().add(names.last().unwrap(), None, Recording::Disabled).unwrap();
    }
    image.write_zeroes(3 * MIB, 200 * MIB, ZeroIntent::Unmap).unwrap();
    image.write(&[1], 5000).unwrap();
    image.close().unwrap();
    let wanted = [(4608, 512), (3 * MIB, 200 * MIB)];
    assert_eq!(stored(&built.path, "fine"), wanted);
    let image = open(&built.path, true).unwrap();
    assert_eq!(self::names(&image), names);
    assert_eq!(ranges(&image, "fine"), wanted);
    for name in &names {
        image.bitmaps().remove(name).unwrap();
    }
    image.close().unwrap();
    check(&fs::read(&built.path).unwrap()).assert_clean();
}

#[test]
fn many_writers_lose_no_mark() {
    let built = Config::plain(16, 64 * MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("b", Some(512), Recording::Enabled).unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let image = &image;
            scope.spawn(move || {
                for index in 0..500 {
                    image.write(&[1; 512], (index * 8 + writer * 2) * 4096 % (64 * MIB)).unwrap();
                }
            });
        }
        let image = &image;
        // Beside them bitmaps come and go.
        scope.spawn(move || {
            for _ in 0..10 {
                image.bitmaps().add("other", None, Recording::Enabled).unwrap();
                image.bitmaps().remove("other").unwrap();
            }
        });
    });
    let wanted: Vec<_> = (0..2000).map(|index| (index * 8192, 512)).collect();
    assert_eq!(ranges(&image, "b"), wanted);
    image.close().unwrap();
    assert_eq!(stored(&built.path, "b"), wanted);
}

#[test]
fn an_image_over_a_backing_file_keeps_its_name_beside_the_bitmaps() {
    for cluster_bits in [9, 12, 16] {
        let backing = Some(images::Backing { qcow2: true, len: MIB });
        let built = Config { backing, ..Config::plain(cluster_bits, MIB) }.build();
        let image = open(&built.path, true).unwrap();
        image.bitmaps().add("b", None, Recording::Enabled).unwrap();
        image.write(&[1], 0).unwrap();
        image.close().unwrap();
        drop(image);
        let content = built.checked_view().unwrap().disk;
        assert!(content[1..] == built.backing[1..]);
        let image = open(&built.path, true).unwrap();
        image.bitmaps().remove("b").unwrap();
        image.close().unwrap();
        drop(image);
        assert!(built.checked_view().unwrap().disk[1..] == built.backing[1..]);
    }
}

#[test]
fn qemu_goes_on_with_our_bitmaps_and_we_with_its() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for options in ["", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "lazy_refcounts=on"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.qcow2");
        let name = path.to_str().unwrap();
        qemu::create(&path, 100 * MIB + 512, options);
        qemu::img(&["bitmap", "--add", name, "theirs"]);
        qemu::img(&["bitmap", "--add", "-g", "512", "--disable", name, "resting"]);
        qemu::io(&path, "qcow2", &["write 1M 100k", "write -z 50M 1", "discard 60M 3M"]);
        let image = open(&path, true).unwrap();
        let granularity = described(&image, "theirs").granularity;
        let around = |offset: u64, len: u64| {
            let start = offset / granularity * granularity;
            (start, (offset + len).next_multiple_of(granularity) - start)
        };
        // QEMU rounds what it cannot write as it is to its sectors.
        let mut wanted = vec![around(MIB, 100 << 10), around(50 * MIB, 1), around(60 * MIB, 3 * MIB)];
        assert_eq!(ranges(&image, "theirs"), wanted, "{options}");
        image.bitmaps().add("ours", Some(granularity), Recording::Enabled).unwrap();
        image.write(&[5; 3000], 70 * MIB).unwrap();
        image.bitmaps().set_recording("resting", Recording::Enabled).unwrap();
        image.write(&[6; 512], 80 * MIB).unwrap();
        image.close().unwrap();
        qemu::assert_clean(&path);
        qemu::io(&path, "qcow2", &["write 90M 512"]);
        let late = [around(70 * MIB, 3000), around(80 * MIB, 512), around(90 * MIB, 512)];
        wanted.extend(late);
        assert_eq!(seen_by_qemu(&path, "theirs"), wanted, "{options}");
        assert_eq!(seen_by_qemu(&path, "ours"), late, "{options}");
        assert_eq!(seen_by_qemu(&path, "resting"), [(80 * MIB, 512), (90 * MIB, 512)], "{options}");

        qemu::img(&["bitmap", "--clear", name, "theirs"]);
        qemu::img(&["bitmap", "--merge", "resting", name, "theirs"]);
        qemu::img(&["bitmap", "--disable", name, "ours"]);
        qemu::img(&["bitmap", "--remove", name, "resting"]);
        let image = open(&path, true).unwrap();
        assert_eq!(names(&image), ["theirs", "ours"]);
        assert_eq!(ranges(&image, "theirs"), [around(80 * MIB, 512), around(90 * MIB, 512)]);
        assert!(!described(&image, "ours").enabled);
        image.bitmaps().clear("ours").unwrap();
        image.bitmaps().merge("ours", image.bitmaps().ranges("theirs").unwrap()).unwrap();
        image.bitmaps().remove("theirs").unwrap();
        image.close().unwrap();
        qemu::assert_clean(&path);
        assert_eq!(seen_by_qemu(&path, "ours"), [around(80 * MIB, 512), around(90 * MIB, 512)]);
        assert!(!qemu::img(&["info", name]).contains("auto"));
        qemu::img(&["bitmap", "--remove", name, "ours"]);
        assert!(open(&path, true).unwrap().bitmaps().list().unwrap().is_empty());
    }
}

/// As QEMU: who does not know bitmaps clears the autoclear bit when it writes, and what they say is nothing then.
#[test]
fn bitmaps_that_another_program_invalidated_are_gone() {
    let built = Config::plain(16, 8 * MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("b", None, Recording::Enabled).unwrap();
    image.close().unwrap();
    let mut bytes = fs::read(&built.path).unwrap();
    bytes[88..96].fill(0);
    fs::write(&built.path, &bytes).unwrap();
    let image = open(&built.path, true).unwrap();
    assert!(image.bitmaps().list().unwrap().is_empty());
    image.bitmaps().add("b", None, Recording::Enabled).unwrap();
    image.write(&[1], 0).unwrap();
    image.close().unwrap();
    let bytes = fs::read(&built.path).unwrap();
    let report = check(&bytes);
    report.assert_no_corruption();
    assert!(!report.leaks.is_empty(), "what the old one took nothing names any more");
    let image = Qcow2::parse(&bytes).unwrap();
    assert_eq!(image.dirty(image.bitmap("b").unwrap()).unwrap(), [(0, 65536)]);
    let _: Arc<Image> = open(&built.path, true).unwrap();
}

/// An image with the bitmap "b", 512 bytes a cluster and a bit, in which some is dirty.
fn with_bitmap(state: Recording) -> Vec<u8> {
    let built = Config::plain(9, 8 * MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("b", Some(512), Recording::Enabled).unwrap();
    image.write(&[1; 512], 5 * MIB).unwrap();
    image.bitmaps().set_recording("b", state).unwrap();
    image.close().unwrap();
    fs::read(&built.path).unwrap()
}

fn open_bytes(bytes: Vec<u8>, write: bool) -> Result<Arc<Image>> {
    let format = Some(FormatKind::Qcow2);
    let options = OpenOptions { write, format, backing: Backing::None, ..OpenOptions::default() };
    options.open_storage(Arc::new(Memory::from(bytes)))
}

/// Where the directory's entry and the table of "b" are.
fn places(bytes: &[u8]) -> (usize, usize) {
    let image = Qcow2::parse(bytes).unwrap();
    (image.bitmap_directory.0 as usize, image.bitmaps[0].table_offset as usize)
}

#[test]
fn directories_that_lie_are_corruption_and_never_written() {
    let bytes = with_bitmap(Recording::Disabled);
    let (entry, table) = places(&bytes);
    let words = |at: usize, word: u64| (at, word.to_be_bytes().to_vec());
    let lies = [
        ("the table past the end", words(entry, 1 << 40)),
        ("the table off a cluster", words(entry, table as u64 + 8)),
        ("the table on the header", words(entry, 0)),
        ("no table entries", (entry + 8, vec![0; 4])),
        ("too many table entries", (entry + 8, vec![0xff; 4])),
        ("a longer table", (entry + 8, vec![0, 0, 0, 5])),
        ("unknown flags", (entry + 12, vec![0x80, 0, 0, 0])),
        ("another type", (entry + 16, vec![2])),
        ("granularity below", (entry + 17, vec![8])),
        ("granularity above", (entry + 17, vec![32])),
        ("another granularity", (entry + 17, vec![10])),
        ("no name", (entry + 18, vec![0, 0])),
        ("a name past the end", (entry + 18, vec![4, 0])),
        ("extra data past the end", (entry + 20, vec![0xff; 4])),
        ("a reserved bit in the table", words(table, 2)),
        ("bits off a cluster", words(table, 1 << 30 | 256)),
        ("all ones with a cluster", words(table, 512 | 1)),
        ("bits past the end of the file", words(table, 1 << 40)),
        ("bits on top of the header's neighbours", words(table, 512)),
        ("bits on top of their table", words(table, table as u64)),
    ];
    for (lie, (at, new)) in lies {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(&new);
        let error = open_bytes(bytes.clone(), true).expect_err(lie);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{lie}: {error}");
        // To read the disk no bitmap is needed.
        let image = open_bytes(bytes, false).expect(lie);
        image.read(&mut [0; 512], 0).expect(lie);
        if let Ok(ranges) = image.bitmaps().ranges("b") {
            assert!(ranges.count() < 100_000, "{lie}");
        }
    }
}

/// What an inconsistent bitmap says means nothing: it is in nobody's way, and can be removed.
#[test]
fn an_inconsistent_bitmap_may_be_garbage() {
    let bytes = with_bitmap(Recording::Enabled);
    let (entry, table) = places(&bytes);
    for (at, new) in [(table, vec![0xff; 8]), (entry + 8, vec![0, 0, 0, 1]), (entry + 17, vec![31])] {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(&new);
        bytes[entry + 15] |= 1;
        let image = open_bytes(bytes, true).unwrap();
        assert!(described(&image, "b").inconsistent);
        image.write(&[9; 512], 0).unwrap();
        image.bitmaps().remove("b").unwrap();
        image.bitmaps().add("b", None, Recording::Enabled).unwrap();
        image.write(&[9; 512], MIB).unwrap();
        assert_eq!(ranges(&image, "b"), [(MIB, 4096)]);
        image.close().unwrap();
    }
}

#[test]
fn two_bitmaps_of_one_name_are_corruption() {
    let built = Config::plain(16, MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("a", None, Recording::Disabled).unwrap();
    image.bitmaps().add("b", None, Recording::Disabled).unwrap();
    image.close().unwrap();
    let mut bytes = fs::read(&built.path).unwrap();
    let (entry, _) = places(&bytes);
    bytes[entry + 32 + 24] = b'a';
    assert_eq!(open_bytes(bytes.clone(), true).unwrap_err().kind(), ErrorKind::Corrupt);
    let image = open_bytes(bytes, false).unwrap();
    assert_eq!(image.bitmaps().list().unwrap_err().kind(), ErrorKind::Corrupt);
}

/// The specification lets an entry say so without any cluster of bits.
#[test]
fn a_cluster_of_ones_takes_no_space() {
    let mut bytes = with_bitmap(Recording::Disabled);
    let (_, table) = places(&bytes);
    bytes[table..table + 8].copy_from_slice(&1u64.to_be_bytes());
    let image = open_bytes(bytes, true).unwrap();
    assert_eq!(ranges(&image, "b"), [(0, 2 * MIB), (5 * MIB, 512)]);
    image.bitmaps().add("copy", Some(512), Recording::Enabled).unwrap();
    image.bitmaps().merge("copy", image.bitmaps().ranges("b").unwrap()).unwrap();
    image.write(&[1; 512], 2 * MIB).unwrap();
    assert_eq!(ranges(&image, "copy"), [(0, 2 * MIB + 512), (5 * MIB, 512)]);
    image.close().unwrap();
}

/// Extra data that nobody here knows: the bitmap is listed, and left alone with it; a write makes an enabled one inconsistent.
#[test]
fn extra_data_is_kept_and_its_bitmap_not_used() {
    let built = Config::plain(9, 8 * MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("12345678extra", Some(512), Recording::Enabled).unwrap();
    image.close().unwrap();
    let mut bytes = fs::read(&built.path).unwrap();
    let (entry, _) = places(&bytes);
    // The name's first 8 bytes become extra data.
    bytes[entry + 18..entry + 24].copy_from_slice(&[0, 5, 0, 0, 0, 8]);
    fs::write(&built.path, &bytes).unwrap();
    let entry_now = || {
        let bytes = fs::read(&built.path).unwrap();
        let (entry, _) = places(&bytes);
        bytes[entry + 12..entry + 40].to_vec()
    };
    let before = entry_now();
    let image = open(&built.path, true).unwrap();
    assert_eq!(image.bitmaps().clear("extra").unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(image.bitmaps().ranges("extra").map(drop).unwrap_err().kind(), ErrorKind::InvalidInput);
    image.bitmaps().add("other", None, Recording::Disabled).unwrap();
    assert_eq!(entry_now(), before, "it moves with the directory");
    image.write(&[1; 512], 0).unwrap();
    image.close().unwrap();
    let image = open(&built.path, true).unwrap();
    assert!(described(&image, "extra").inconsistent);
    // With bit 2 it may be used although nobody knows what the extra data is.
    let mut bytes = fs::read(&built.path).unwrap();
    drop(image);
    let (entry, _) = places(&bytes);
    bytes[entry + 15] = 4 | 2;
    fs::write(&built.path, &bytes).unwrap();
    let image = open(&built.path, true).unwrap();
    image.write(&[1; 512], MIB).unwrap();
    image.close().unwrap();
    assert_eq!(stored(&built.path, "extra"), [(MIB, 512)]);
    assert_eq!(entry_now()[3..], [&[4 | 2], &before[4..]].concat());
}

/// Any part of the disk may have become another one.
#[test]
fn applying_a_snapshot_makes_all_of_the_disk_dirty() {
    let built = Config::plain(16, 8 * MIB).build();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().add("off", Some(1 << 20), Recording::Enabled).unwrap();
    image.write(&[1; 512], MIB).unwrap();
    image.bitmaps().set_recording("off", Recording::Disabled).unwrap();
    image.bitmaps().add("on", None, Recording::Enabled).unwrap();
    image.close().unwrap();
    let image = open(&built.path, true).unwrap();
    image.create_snapshot("s", None).unwrap();
    assert_eq!(stored(&built.path, "on"), [], "taking one changes nothing of the disk");
    image.write(&[2; 512], MIB).unwrap();
    image.bitmaps().clear("on").unwrap();
    image.apply_snapshot("s").unwrap();
    assert_eq!(ranges(&image, "on"), [(0, 8 * MIB)]);
    assert_eq!(ranges(&image, "off"), [(MIB, MIB)]);
    image.close().unwrap();
    assert_eq!(stored(&built.path, "on"), [(0, 8 * MIB)]);
    assert_eq!(stored(&built.path, "off"), [(MIB, MIB)]);

    // One of another size: that of the disk when it was taken.
    let mut bytes = fs::read(&built.path).unwrap();
    let table = Qcow2::parse(&bytes).unwrap().header.snapshots_offset as usize;
    bytes[table + 48..table + 56].copy_from_slice(&(3 * MIB).to_be_bytes());
    fs::write(&built.path, &bytes).unwrap();
    let image = open(&built.path, true).unwrap();
    image.bitmaps().clear("on").unwrap();
    image.apply_snapshot("s").unwrap();
    assert_eq!(image.size(), 3 * MIB);
    image.close().unwrap();
    assert_eq!(stored(&built.path, "on"), [(0, 3 * MIB)]);
    assert_eq!(stored(&built.path, "off"), [(MIB, MIB)]);
}
