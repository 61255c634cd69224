//! What the tests of the workspace share; never published.

pub mod check;
pub mod conformance;
pub mod crash;
pub mod history;
pub mod images;
pub mod model;
pub mod ops;
pub mod qcow2;
pub mod qemu;
pub mod replay;
pub mod rng;
pub mod sim;
pub mod starts;
pub mod stopping;

/// The engine as this crate sees it; the engine's own unit tests are another instance of it.
pub use imago_core;

use proptest::test_runner::{Config, FileFailurePersistence};

/// Settings of a property test with so many cases, [`scaled`]. Regressions are kept beside the test.
pub fn proptest_config(cases: u32) -> Config {
    Config {
        cases: scaled(cases.into()) as u32,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        max_shrink_iters: 1000,
        ..Config::default()
    }
}

/// `count` times `IMAGO_TEST_SCALE`, which `make test-long` sets. (`PROPTEST_CASES` would override every test's own number.)
pub fn scaled(count: u64) -> u64 {
    let scale = std::env::var("IMAGO_TEST_SCALE").ok().and_then(|scale| scale.parse().ok());
    count * scale.unwrap_or(1)
}
