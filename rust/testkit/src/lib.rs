//! What the tests of the workspace share; never published.

pub mod check;
pub mod qcow2;
pub mod qemu;
