//! A guest request becomes extents, extents become storage operations.

mod align;
mod chain;
mod cluster_cache;
pub mod convert;
pub mod create;
mod crew;
mod deflate;
pub mod extent;
pub mod facade;
mod gate;
pub mod image;
pub mod info;
pub mod map;
pub mod open;
pub mod pack;
pub mod pool;
mod probe;
mod range_lock;
mod read;
mod unpack;
mod write;
mod zero;
