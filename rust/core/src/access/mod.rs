//! A guest request becomes extents, extents become storage operations.

mod align;
mod chain;
mod cluster_cache;
pub mod compare;
pub mod convert;
pub mod create;
pub mod extent;
pub mod facade;
mod gate;
pub mod hash;
pub mod image;
pub mod info;
pub mod job;
pub mod keys;
pub mod map;
pub mod measure;
pub mod open;
pub mod pool;
mod probe;
mod range_lock;
mod read;
mod snapshots;
mod sweep;
mod target;
mod unpack;
mod write;
mod zero;
