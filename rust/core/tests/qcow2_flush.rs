//! What others do while a flush is writing, and what becomes of a flush that fails.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use imago_core::access::image::Image;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::{CacheSizes, FormatKind};
use imago_core::storage::memory::Memory;
use imago_core::{ErrorKind, Storage};
use imago_testkit::check::check;
use imago_testkit::images::{Config, DataFile};
use imago_testkit::model::pattern;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::sim::{Failing, SimStorage};
use imago_testkit::stopping::{On, Stopping};

fn open(storage: Arc<dyn Storage>, data_file: Option<Arc<dyn Storage>>) -> Arc<Image> {
    OpenOptions {
        write: true,
        format: Some(FormatKind::Qcow2),
        backing: Backing::None,
        data_file,
        ..OpenOptions::default()
    }
    .open_storage(storage)
    .unwrap()
}

fn empty_image(config: &Config) -> Vec<u8> {
    std::fs::read(&config.build().path).unwrap()
}

/// 512-byte clusters with 64-bit refcounts: a table of one cluster counts 2 MiB.
fn tiny() -> Config {
    Config { refcount_bits: 64, ..Config::plain(9, 8 << 20) }
}

fn assert_holds(storage: &Memory, content: &[u8]) {
    let bytes = storage.to_vec().unwrap();
    check(&bytes).assert_clean();
    assert!(Qcow2::parse(&bytes).unwrap().content(&[], None).unwrap() == content, "the content differs");
}

#[test]
fn the_refcount_table_grows_as_often_as_it_has_to() {
    let content = pattern(1, 0, 8 << 20);
    for step in [512, 70_000, 8 << 20] {
        let storage = Arc::new(Memory::from(empty_image(&tiny())));
        let image = open(storage.clone(), None);
        for (index, part) in content.chunks(step).enumerate() {
            image.write(part, (index * step) as u64).unwrap();
        }
        image.close().unwrap();
        assert_holds(&storage, &content);
    }
}

/// What the flush took before must not land on top of what the growth wrote.
#[test]
fn the_refcount_table_grows_beside_a_flush() {
    let content = pattern(2, 0, 8 << 20);
    let storage = Arc::new(Stopping::from(empty_image(&tiny())));
    let image = open(storage.clone(), None);
    let (before, behind) = content.split_at(1 << 20);
    image.write(before, 0).unwrap();
    thread::scope(|scope| {
        storage.arm(On::Write);
        scope.spawn(|| image.flush().unwrap());
        storage.wait_until_stopped();
        let writer = scope.spawn(|| image.write(behind, before.len() as u64).unwrap());
        // It may wait for the flush; if it does not, it is given the time to be done first.
        let end = Instant::now() + Duration::from_millis(500);
        while !writer.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        storage.let_through();
    });
    image.close().unwrap();
    assert_holds(&storage.memory, &content);
}

/// No later sync makes up for one of the data file that failed: the image must not say that it does.
#[test]
fn a_failed_sync_of_the_data_file_latches_the_image() {
    let config = Config { data_file: DataFile::Plain, ..Config::plain(16, 1 << 20) };
    let data = Arc::new(SimStorage::from(Vec::new()));
    let image = open(Arc::new(Memory::from(empty_image(&config))), Some(data.clone()));
    image.write(b"content", 5).unwrap();
    data.fail_call(0, Failing::Once);
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Latched);
    assert_eq!(image.write(b"more", 5).unwrap_err().kind(), ErrorKind::Latched);
    assert_eq!(image.close().unwrap_err().kind(), ErrorKind::Latched);
}

#[test]
fn a_failed_sync_of_a_raw_image_latches_it() {
    let disk = Arc::new(SimStorage::from(vec![0; 4096]));
    let options = OpenOptions { write: true, format: Some(FormatKind::Raw), ..OpenOptions::default() };
    let image = options.open_storage(disk.clone()).unwrap();
    image.write(b"content", 5).unwrap();
    // After the question for the length.
    disk.fail_call(1, Failing::Once);
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Latched);
    assert_eq!(image.write(b"more", 5).unwrap_err().kind(), ErrorKind::Latched);
    let mut bytes = [0; 7];
    image.read(&mut bytes, 5).unwrap();
    assert_eq!(&bytes, b"content");
    assert_eq!(image.close().unwrap_err().kind(), ErrorKind::Latched);
}

/// A flush is no operation that could follow the old mapping: with no other in flight it frees what was dropped itself.
#[test]
fn one_flush_gives_discarded_space_back() {
    let storage = Arc::new(Memory::from(empty_image(&Config::plain(16, 8 << 20))));
    let image = open(storage.clone(), None);
    image.write(&pattern(3, 0, 8 << 20), 0).unwrap();
    image.flush().unwrap();
    let before = storage.allocated().unwrap().unwrap();
    image.discard(0, 4 << 20).unwrap();
    image.flush().unwrap();
    assert_eq!(before - storage.allocated().unwrap().unwrap(), 4 << 20);
}

#[test]
fn a_full_medium_costs_nothing_that_was_written_before() {
    let image_file = empty_image(&Config::plain(9, 8 << 20));
    // Every kind of cluster is the one that does not fit any more: data, L2 tables, refcount blocks.
    for clusters in 1..=150 {
        let storage = Arc::new(Stopping::from(image_file.clone()));
        *storage.limit.lock() = Some((image_file.len() + clusters * 512) as u64);
        let image = open(Arc::clone(&storage) as _, None);
        let mut written = 0;
        let error = loop {
            // A table of its own for every few writes.
            match image.write(&[written as u8 + 1; 512], written * 4096) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        image.flush().unwrap();
        *storage.limit.lock() = None;
        image.write(&[0xff; 512], written * 4096).unwrap();
        image.close().unwrap();

        let image = open(Arc::clone(&storage) as _, None);
        for n in 0..written {
            let mut sector = [0; 512];
            image.read(&mut sector, n * 4096).unwrap();
            assert_eq!(sector, [n as u8 + 1; 512], "write {n} of {written}");
        }
        image.close().unwrap();
        check(&storage.memory.to_vec().unwrap()).assert_clean();
    }
}

/// Writes all over the disk, each into another L2 table; returns how many barriers that took.
fn barriers_of_scattered_writes(l2_cache_size: Option<u64>) -> u64 {
    let config = Config::plain(9, 4 << 20);
    let storage = Arc::new(SimStorage::from(empty_image(&config)));
    let image = OpenOptions {
        write: true,
        format: Some(FormatKind::Qcow2),
        backing: Backing::None,
        cache_sizes: CacheSizes { l2: l2_cache_size, refcount: None },
        ..OpenOptions::default()
    }
    .open_storage(Arc::clone(&storage) as Arc<dyn Storage>)
    .unwrap();
    image.write(&[1], 0).unwrap();
    image.flush().unwrap();
    let before = storage.epoch();
    for table in 1..128 {
        image.write(&[1], table * (32 << 10)).unwrap();
    }
    let barriers = storage.epoch() - before;
    image.close().unwrap();
    barriers
}

#[test]
fn writes_wait_for_no_barrier_while_all_tables_of_the_disk_have_room_in_the_cache() {
    assert_eq!(barriers_of_scattered_writes(None), 0);
    let crowded = barriers_of_scattered_writes(Some(32 * 512));
    assert!(crowded >= 2 * (127 / 17), "{crowded}");
}

#[test]
fn an_image_that_is_left_waits_for_no_guest_data_and_loses_nothing() {
    let content = pattern(1, 0, 1 << 20);
    let storage = Arc::new(SimStorage::from(empty_image(&Config::plain(16, 1 << 20))));
    let image = open(storage.clone(), None);
    image.write(&content[..], 0).unwrap();
    image.leave().unwrap();
    // There was metadata that waited for it.
    assert_holds(&Memory::from(storage.contents()), &content);

    let content = pattern(2, 0, 1 << 20);
    let image = open(storage.clone(), None);
    image.write(&content[..], 0).unwrap();
    let before = storage.epoch();
    image.leave().unwrap();
    assert_eq!(storage.epoch(), before);
    assert!(image.is_closed());
    assert_holds(&Memory::from(storage.contents()), &content);
}
