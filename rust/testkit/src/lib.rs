//! What the tests of the workspace share; never published.

pub mod check;
pub mod conformance;
pub mod history;
pub mod images;
pub mod model;
pub mod qcow2;
pub mod qemu;
pub mod rng;
pub mod sim;

use proptest::test_runner::{Config, FileFailurePersistence};

/// Settings of a property test with `cases` cases; `PROPTEST_CASES` scales them (256 is once).
/// Regressions are kept beside the test.
pub fn proptest_config(cases: u32) -> Config {
    let default = Config::default();
    Config {
        cases: (u64::from(cases) * u64::from(default.cases) / 256).max(1) as u32,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        max_shrink_iters: 1000,
        ..default
    }
}

/// `count`, scaled by `PROPTEST_CASES` as [`proptest_config`] does.
pub fn scaled(count: u64) -> u64 {
    (count * u64::from(Config::default().cases) / 256).max(1)
}
