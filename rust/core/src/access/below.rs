//! Who answers below an image: which of the images that were opened for it holds anything at an offset.
//!
//! Those images are read-only and do not change, so that what was found out about them stays true. An image that the caller set as a base may be
//! written meanwhile: it ends the row, and nothing is remembered of it.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromZeros;

use super::image::{Base, Image};
use crate::error::Result;
use crate::format::{Lookup, Mapping, Place};
use crate::units::GuestOffset;

/// Granules that are remembered at most, 8 bytes each: with 64 KiB clusters this covers 64 GiB.
const SLOTS_MAX: u64 = 1 << 20;

/// A granule is no smaller: the smallest cluster.
const GRANULE_MIN: u64 = 512;
/// And no larger: the largest cluster.
const GRANULE_MAX: u64 = 2 << 20;

/// Bits of a slot for the level; the others tell the granules apart that share the slot.
const LEVEL_BITS: u32 = 16;

/// The images below one that were opened for it, topmost first, and what is known of them.
pub(super) struct Below {
    images: Box<[Arc<Image>]>,
    /// Base-2 logarithm of a granule's bytes. Every image's mapping changes at its bounds only, but for the end of its disk.
    granule_bits: u32,
    /// For each granule the topmost level that is not unallocated all over it; 0 where that is not known. A slot is one word and
    /// says all by itself, so that it needs no lock.
    slots: OnceLock<Box<[AtomicU64]>>,
    /// Slots there are to be, a power of two.
    slot_count: u64,
}

/// The part of a range that one level answers for.
pub(super) struct Answer<'a> {
    /// Bytes of the range; all levels above are unallocated there.
    pub(super) len: u64,
    /// The image to ask, of whose disk `within` bytes of these are; what is behind its end reads as zeroes. `None`: no level holds anything, and what the last one's base has is there.
    pub(super) image: Option<&'a Arc<Image>>,
    pub(super) within: u64,
}

impl Below {
    /// What was opened for `top`.
    pub(super) fn of(top: &Image) -> Self {
        let mut images = Vec::new();
        let mut base = &top.base;
        while let Base::Image { image, owned: true } = base {
            images.push(Arc::clone(image));
            base = &image.base;
        }
        let unit = images.iter().map(|image| image.format.mapping_unit()).min().unwrap_or(GRANULE_MAX);
        let granule = unit.clamp(GRANULE_MIN, GRANULE_MAX);
        let granules = top.size().div_ceil(granule).max(1);
        Below {
            images: images.into(),
            granule_bits: granule.trailing_zeros(),
            slots: OnceLock::new(),
            slot_count: granules.next_power_of_two().min(SLOTS_MAX),
        }
    }

    /// The last image of the row.
    pub(super) fn last(&self) -> &Arc<Image> {
        self.images.last().expect("asked only where something was opened")
    }

    /// Who answers for the first of `len` bytes at `offset`, and for how many. `Ok(None)` only for [`Lookup::Cached`].
    pub(super) fn answer(&self, offset: u64, len: u64, lookup: Lookup) -> Result<Option<Answer<'_>>> {
        // One level is as quickly asked as remembered.
        let (level, len) = if self.images.len() == 1 {
            (0, len)
        } else {
            match self.level(offset, len, lookup)? {
                Some(found) => found,
                None => return Ok(None),
            }
        };
        let image = self.images.get(level);
        let within = image.map_or(len, |image| image.size().saturating_sub(offset).min(len));
        Ok(Some(Answer { len, image, within }))
    }

    fn level(&self, offset: u64, len: u64, lookup: Lookup) -> Result<Option<(usize, u64)>> {
        let (end, granule) = (offset + len, 1 << self.granule_bits);
        let start = offset & !(granule - 1);
        if let Some(level) = self.recall(start) {
            let mut known = start + granule;
            while known < end && self.recall(known) == Some(level) {
                known += granule;
            }
            return Ok(Some((level, known.min(end) - offset)));
        }
        let whole = end.next_multiple_of(granule) - start;
        let Some((level, known)) = self.walk(start, whole, lookup)? else { return Ok(None) };
        for at in (start..start + known).step_by(granule as usize) {
            self.remember(at, level);
        }
        Ok(Some((level, (start + known).min(end) - offset)))
    }

    /// The topmost level that is not unallocated all over the granule at `start`, and for how many bytes, in whole granules up to
    /// `len`, the same holds.
    fn walk(&self, start: u64, mut len: u64, lookup: Lookup) -> Result<Option<(usize, u64)>> {
        let granule = 1 << self.granule_bits;
        for (level, image) in self.images.iter().enumerate() {
            let within = image.size().saturating_sub(start).min(len);
            if within == 0 {
                return Ok(Some((level, len)));
            }
            let mapping = image.format.map(GuestOffset(start), within, lookup).map_err(|e| image.name(e))?;
            let Some(Mapping { len: run, place }) = mapping else { return Ok(None) };
            let whole = run & !(granule - 1);
            if !matches!(place, Place::Unallocated { .. }) || whole == 0 {
                return Ok(Some((level, whole.max(granule))));
            }
            len = whole;
        }
        Ok(Some((self.images.len(), len)))
    }

    /// The slot of the granule at `start`, and what tells that one from others there.
    fn slot<'a>(&self, slots: &'a [AtomicU64], start: u64) -> (&'a AtomicU64, u64) {
        let granule = start >> self.granule_bits;
        let index = granule & (self.slot_count - 1);
        (&slots[index as usize], granule >> self.slot_count.trailing_zeros())
    }

    fn recall(&self, start: u64) -> Option<usize> {
        let slots = self.slots.get().filter(|slots| !slots.is_empty())?;
        let (slot, tag) = self.slot(slots, start);
        let word = slot.load(Ordering::Relaxed);
        let level = word & ((1 << LEVEL_BITS) - 1);
        (level != 0 && word >> LEVEL_BITS == tag).then(|| level as usize - 1)
    }

    fn remember(&self, start: u64, level: usize) {
        let slots = self.slots.get_or_init(|| {
            // The memory is not touched before it is used. With none to be had nothing is remembered.
            <[AtomicU64]>::new_box_zeroed_with_elems(self.slot_count as usize).unwrap_or_default()
        });
        if slots.is_empty() {
            return;
        }
        let (slot, tag) = self.slot(slots, start);
        slot.store(tag << LEVEL_BITS | (level as u64 + 1), Ordering::Relaxed);
    }
}

impl fmt::Debug for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Below").field("images", &self.images.len()).finish_non_exhaustive()
    }
}
