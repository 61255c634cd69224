//! What the fuzz targets do with bytes that are taken for a qcow2 image.

use std::sync::Arc;

use imago_core::access::check::{CheckOptions, check_storage};
use imago_core::access::image::Image;
use imago_core::access::job::Job;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::FormatKind;
use imago_core::storage::memory::Memory;
use imago_core::{Result, Storage};
use imago_testkit::check::check;
use imago_testkit::model::{Discards, Geometry, Model, View};
use imago_testkit::ops::{Op, fixed_script};
use imago_testkit::qcow2::Qcow2;

/// Bytes that are read from each place.
const READ: u64 = 256 << 10;
/// Disks up to this size are written to: the model has them in memory.
const DISK: u64 = 4 << 20;

fn open(memory: &Arc<Memory>, write: bool) -> Result<Arc<Image>> {
    let options = OpenOptions {
        write,
        format: Some(FormatKind::Qcow2),
        backing: Backing::None,
        data_file: Some(Arc::new(Memory::default())),
        ..OpenOptions::default()
    };
    let storage = Arc::clone(memory) as Arc<dyn Storage>;
    // The data file is an error where there is none.
    options
        .open_storage(Arc::clone(&storage))
        .or_else(|_| OpenOptions { data_file: None, ..options }.open_storage(storage))
}

/// Opens it, reads from its start, its middle and its end, and asks what there is. Errors are welcome.
pub fn open_and_read(bytes: &[u8]) {
    let Ok(image) = open(&Arc::new(Memory::from(bytes.to_vec())), false) else { return };
    let size = image.size();
    for offset in [0, size / 2, size.saturating_sub(READ)] {
        let len = READ.min(size - offset);
        let _ = image.read(&mut vec![0; len as usize], offset);
        if let Ok(extents) = image.extents(offset, len) {
            extents.take(1000).for_each(drop);
        }
    }
    let _ = image.format().info();
    let _ = image.snapshots();
}

/// Checks it, compressed clusters too. Errors and findings are welcome; the bytes stay as they are.
pub fn check_only(bytes: &[u8]) {
    let memory = Arc::new(Memory::from(bytes.to_vec()));
    let options = CheckOptions { format: Some(FormatKind::Qcow2), deep: true, ..CheckOptions::default() };
    let _ = check_storage(Arc::clone(&memory) as _, options, &mut Job::default());
    assert!(memory.to_vec().expect("memory") == bytes, "a check that only looks has written");
}

/// Runs a script on it. If the image was sound by the oracle, it is sound afterwards and shows what the model says;
/// otherwise errors are welcome.
pub fn write_and_check(bytes: &[u8]) {
    let seed = bytes.iter().rev().take(64).fold(7, |seed: u64, byte| seed.rotate_left(5) ^ u64::from(*byte));
    let memory = Arc::new(Memory::from(bytes.to_vec()));
    let Ok(image) = open(&memory, true) else { return };
    if image.size() == 0 || image.size() > DISK {
        return;
    }
    let Ok(parsed) = Qcow2::parse(bytes) else { return };
    // The oracle believes what it reads.
    if parsed.snapshots.iter().any(|snapshot| snapshot.disk_size > DISK)
        || parsed.bitmaps.iter().any(|bitmap| bitmap.granularity_bits > 31)
    {
        return;
    }
    let Ok(view) = View::parse(bytes, &[], None) else { return };
    let header = parsed.header;
    let report = check(bytes);
    let sound = report.corruptions.is_empty() && !report.dirty;
    let geometry = Geometry {
        size: header.size,
        cluster: header.cluster_size(),
        subcluster: header.subcluster_size(),
        table: header.l2_entries() * header.cluster_size(),
        compresses: !header.data_file(),
        snapshots: 0,
        resizes: false,
        bitmaps: 0,
    };
    let sound = sound && !header.data_file();
    let mut model = Model::new(view, geometry, Discards::Either);
    for op in fixed_script(geometry, 12, seed) {
        if op == Op::Reopen {
            continue;
        }
        let done = model.apply(&image, &op);
        if sound {
            done.expect("an operation on a sound image");
        }
    }
    let closed = image.close();
    if sound {
        closed.expect("closing a sound image");
        let bytes = memory.to_vec().expect("memory");
        check(&bytes).assert_no_corruption();
        let found = View::parse(&bytes, &[], None).expect("an image");
        model.view.expect(&found).expect("what the model says");
    }
}
