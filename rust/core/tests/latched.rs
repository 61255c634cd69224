//! After a failure that leaves the medium unknown nothing is written any more.

use std::sync::Arc;

use imago_core::storage::latched::Latched;
use imago_core::storage::{Limits, Storage, ZeroMode};
use imago_core::{ErrorKind, Result};
use imago_testkit::sim::{Failing, SimStorage};

type Call = fn(&dyn Storage) -> Result<()>;

const WRITES: [(&str, Call); 4] = [
    ("writev_at", |storage| storage.writev_at(b"bytes".into(), 0)),
    ("write_zeroes_at", |storage| storage.write_zeroes_at(0, 512, ZeroMode::Keep)),
    ("set_len", |storage| storage.set_len(1024)),
    ("sync", |storage| storage.sync()),
];

const DISCARD: Call = |storage| storage.discard_at(0, 512);

fn read(storage: &dyn Storage) -> Result<()> {
    storage.readv_at((&mut [0; 16]).into(), 0)
}

fn new() -> (Arc<SimStorage>, Latched) {
    let sim = Arc::new(SimStorage::from(vec![1; 512]));
    let latched = Latched::new(sim.clone());
    (sim, latched)
}

#[test]
fn each_failed_change_latches_all() {
    for (name, failing) in WRITES {
        let (sim, latched) = new();
        sim.fail_call(0, Failing::Once);
        assert_eq!(failing(&latched).expect_err(name).kind(), ErrorKind::Io, "{name} itself fails as it did");
        let calls = sim.calls();
        for (other, call) in WRITES.into_iter().chain([("discard_at", DISCARD)]) {
            let error = call(&latched).expect_err(other);
            assert_eq!(error.kind(), ErrorKind::Latched, "{other} after {name}");
            assert!(error.message().contains("injected"), "it names the first failure: {error}");
        }
        assert_eq!(sim.calls(), calls, "nothing reached the storage after {name} had failed");
        assert!(latched.failure().is_some());
        read(&latched).expect("reads go on");
    }
}

#[test]
fn reads_and_discards_that_fail_do_not_latch() {
    for call in [read as Call, DISCARD] {
        let (sim, latched) = new();
        sim.fail_call(0, Failing::Once);
        call(&latched).expect_err("injected");
        assert!(latched.failure().is_none());
        latched.sync().expect("sync");
    }
}

#[test]
fn refusals_do_not_latch() {
    let limits = Limits { request_alignment: 512, memory_alignment: 1 };
    let latched = Latched::new(Arc::new(SimStorage::default().with_limits(limits)));
    let error = latched.writev_at(b"odd".into(), 0).expect_err("misaligned");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    latched.writev_at((&[1; 512]).into(), 0).expect("an aligned write");
}
