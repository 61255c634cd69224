//! Every storage against the contract of the trait.

use std::path::Path;
use std::sync::Arc;

use imago_core::StorageOpenOptions;
use imago_core::storage::file::{CreateMode, File};
use imago_core::storage::latched::Latched;
use imago_core::storage::memory::Memory;
use imago_core::storage::null::Null;
use imago_core::storage::{Limits, Storage};
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
// What is written to null vanishes: only the checks that expect no byte back.
conformance!(null, || Box::new(Null::new(0)) as Box<dyn Storage>, [new_storage_is_empty, empty_requests]);
