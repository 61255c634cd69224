//! What the tests of the workspace share; never published.

pub mod qemu;
