//! A guest request becomes extents, extents become storage operations.
pub mod convert;
pub mod create;
pub mod extent;
pub mod image;
pub mod info;
pub mod open;
pub mod pool;
