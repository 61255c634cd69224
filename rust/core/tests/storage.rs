//! Every storage against the contract of the trait.

use std::path::Path;
use std::sync::Arc;

use imago_core::storage::file::{CreateMode, File};
use imago_core::storage::latched::Latched;
use imago_core::storage::memory::Memory;
use imago_core::storage::null::Null;
use imago_core::storage::slice::Slice;
use imago_core::storage::{Limits, Storage, ZeroMode};
use imago_core::{ErrorKind, StorageOpenOptions};
use imago_testkit::conformance;
use imago_testkit::sim::SimStorage;

/// A new file on the disk that the build is on (`/tmp` may be memory), without a name once it is open.
fn file(direct: bool) -> Box<dyn Storage> {
    let directory = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a directory");
    let path = directory.path().join("storage");
    drop(File::create_sync(&path, CreateMode::New).expect("create"));
    let options = StorageOpenOptions::new().filename(&path).write(true).direct(direct);
    Box::new(File::open_sync(options).expect("open"))
}

conformance!(file_buffered, || file(false));
conformance!(file_direct, || file(true));
conformance!(memory, || Box::new(Memory::new(0)) as Box<dyn Storage>);
conformance!(latched, || Box::new(Latched::new(Arc::new(Memory::new(0)))) as Box<dyn Storage>);
conformance!(sim, || Box::new(SimStorage::default()) as Box<dyn Storage>);
conformance!(sim_aligned, || {
    let limits = Limits { request_alignment: 512, memory_alignment: 64 };
    Box::new(SimStorage::default().with_limits(limits)) as Box<dyn Storage>
});
/// The part behind the `before` bytes that `inner` begins with.
fn behind(inner: Box<dyn Storage>, before: u64) -> Box<dyn Storage> {
    inner.set_len(before).expect("set_len");
    Box::new(Slice::new(Arc::from(inner), before, None).expect("a slice"))
}

conformance!(slice, || behind(Box::new(Memory::new(0)), 1000));
conformance!(slice_of_a_file, || behind(file(false), 4096 + 512));
conformance!(slice_direct, || behind(file(true), 8192));
// What is written to null vanishes: only the checks that expect no byte back.
conformance!(null, || Box::new(Null::new(0)) as Box<dyn Storage>, [new_storage_is_empty, empty_requests]);

#[test]
fn a_slice_with_a_size_reads_and_writes_nothing_outside_of_it() {
    let inner = Arc::new(Memory::from(&[7; 3000][..]));
    let slice = Slice::new(Arc::clone(&inner) as Arc<dyn Storage>, 1000, Some(500)).expect("a slice");
    assert_eq!((slice.len().expect("len"), slice.capabilities().resize), (500, false));
    let mut bytes = [1; 300];
    slice.readv_at((&mut bytes).into(), 400).expect("read");
    assert_eq!((&bytes[..100], &bytes[100..]), (&[7; 100][..], &[0; 200][..]));
    slice.readv_at((&mut bytes).into(), u64::MAX - 10).expect("read");
    assert_eq!(bytes, [0; 300]);
    slice.writev_at((&[9; 100]).into(), 400).expect("write");
    for (offset, len) in [(401, 100), (500, 1), (u64::MAX, 1)] {
        let error = slice.writev_at(vec![9; len].as_slice().into(), offset).expect_err("no room");
        assert_eq!(error.os_error(), Some(libc::ENOSPC), "{error}");
    }
    slice.write_zeroes_at(450, 5000, ZeroMode::Unmap).expect("zeroes");
    slice.discard_at(460, u64::MAX).expect("discard");
    assert_eq!(slice.set_len(100).expect_err("a size of its own").kind(), ErrorKind::Unsupported);
    assert!(slice.run_at(0, 5000).expect("run").len <= 500);
    let whole = inner.to_vec().expect("its bytes");
    assert!(whole[..1400].iter().chain(&whole[1500..]).all(|byte| *byte == 7));
    assert_eq!((&whole[1400..1450], &whole[1450..1500]), (&[9; 50][..], &[0; 50][..]));
}

#[test]
fn a_slice_that_is_not_there_is_refused() {
    let inner: Arc<dyn Storage> = Arc::new(Memory::new(3000));
    for (offset, size) in [(3001, None), (0, Some(3001)), (2000, Some(1001)), (1, Some(u64::MAX))] {
        let error = Slice::new(Arc::clone(&inner), offset, size).expect_err("not there");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    Slice::new(Arc::clone(&inner), 3000, None).expect("an empty one is there");
    let direct: Arc<dyn Storage> = Arc::from(file(true));
    direct.set_len(65536).expect("set_len");
    let error = Slice::new(direct, 512 + 1, None).expect_err("not aligned");
    assert!(error.message().contains("multiples of"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_slice_gives_the_descriptor_for_what_is_inside_of_it_only() {
    let whole = file(false);
    whole.set_len(10_000).expect("set_len");
    let whole: Arc<dyn Storage> = Arc::from(whole);
    let (fd, _) = whole.raw_fd(0, 1).expect("a file has one");
    let slice = Slice::new(Arc::clone(&whole), 1000, Some(5000)).expect("a slice");
    assert_eq!(slice.raw_fd(200, 4800), Some((fd, 1200)));
    assert_eq!(slice.raw_fd(200, 4801), None);
    assert_eq!(slice.raw_fd(u64::MAX, 1), None);
}
