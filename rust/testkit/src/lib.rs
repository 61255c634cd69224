//! What the tests of the workspace share; never published.

pub mod conformance;
pub mod qemu;
pub mod rng;
pub mod sim;
