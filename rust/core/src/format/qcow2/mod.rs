//! qcow2, versions 2 and 3. The page `docs/qcow2.md` has the layout, the limits, the invariants I1 to I8 and the write recipes.

mod allocate;
mod bitmaps;
mod cache;
pub mod create;
mod extensions;
mod features;
mod flush;
mod header;
mod info;
mod l2;
mod map;
mod refcounts;
mod snapshots;
mod write;
mod zero;
