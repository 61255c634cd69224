//! Persistent dirty bitmaps: which parts of the disk were written since a bitmap was made or cleared.
//!
//! A bitmap is *held* once it has to follow writes: its bits are in memory, its entry in the file has `in_use`, durable before
//! the first guest data changes, and the next closing stores it. One with `in_use` that nobody holds is *inconsistent*: what
//! held it never came to its end, and it can only be removed.
//!
//! What the file has is changed in two ways, both in one step: the flags of an entry, four bytes inside a sector; or
//! the whole directory, written to new clusters as all that it names, which the header then switches to
//! (docs/qcow2.md, "Bitmaps").

mod bits;
mod data;
pub(super) mod directory;
mod record;
mod resize;
mod store;
mod verbs;

use std::ops::RangeInclusive;
use std::sync::Arc;

use self::bits::Bits;
pub(crate) use self::directory::{BitmapTable, Entry, read, read_each, to_bytes};
pub(super) use self::record::Recorder;
use crate::error::Result;
use crate::format::qcow2::header::Header;
use crate::storage::Storage;

/// The bitmap was not saved: its contents mean nothing.
const IN_USE: u32 = 1 << 0;
/// The bitmap is enabled: every write must be marked in it.
const AUTO: u32 = 1 << 1;
/// The bitmap may be used although its extra data is unknown.
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;

/// The only type there is.
const DIRTY_TRACKING: u8 = 1;
/// One bit stands for 512 bytes to 2 GiB.
const GRANULARITY_BITS: RangeInclusive<u8> = 9..=31;
/// Bytes of a name at most.
const MAX_NAME_LEN: usize = 1023;

/// A bitmap of an image that is open for writing.
#[derive(Clone, Debug)]
pub(super) struct Bitmap {
    /// As the file has it.
    entry: Entry,
    held: Option<Held>,
}

/// A bitmap whose truth is in memory.
#[derive(Clone, Debug)]
struct Held {
    bits: Arc<Bits>,
    /// It follows writes.
    enabled: bool,
}

impl Bitmap {
    fn is_enabled(&self) -> bool {
        self.held.as_ref().map_or(self.entry.is_auto(), |held| held.enabled)
    }

    /// Nobody can tell what it should say.
    fn is_inconsistent(&self) -> bool {
        self.held.is_none() && self.entry.is_in_use()
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

/// Reads the bitmaps of an image that is to be written.
pub(super) fn open(storage: &dyn Storage, header: &Header) -> Result<Vec<Bitmap>> {
    let entries = read(storage, header)?;
    Ok(entries.into_iter().map(|entry| Bitmap { entry, held: None }).collect())
}

/// The clusters that a bitmap's table is in, and those of its bits.
pub(super) fn clusters(
    storage: &dyn Storage,
    header: &Header,
    bitmap: &Bitmap,
    size: u64,
) -> Result<(Vec<u64>, Vec<u64>)> {
    data::clusters(storage, header, &bitmap.entry, size)
}
