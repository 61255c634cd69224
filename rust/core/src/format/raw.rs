//! The bytes of the disk as they are.
