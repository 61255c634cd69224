//! Zeroing and discarding through metadata.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Driver;
use super::cache::Slice;
use super::l2::{Entry, Unit};
use super::pending::Dropped;
use crate::error::Result;
use crate::format::{InPlace, ZeroIntent, ZeroStep};
use crate::units::{GuestOffset, HostOffset};

/// What zeroing part of one cluster comes to.
enum Change {
    /// It reads as zeroes already and there is nothing to give back.
    None,
    /// The entry changes; the old one's space, if it is dropped.
    Entry { new: Entry, dropped: Option<Dropped> },
    /// An entry cannot say it.
    Impossible,
}

impl Driver {
    pub(super) fn plan_zero(&self, guest: GuestOffset, len: u64, intent: ZeroIntent) -> Result<ZeroStep<'_>> {
        let unit = self.geometry.unit_size();
        if !guest.is_aligned(unit) {
            return Ok(ZeroStep::Write { len: len.min(unit - guest.within(unit)) });
        }
        // What is left of the last unit behind the disk's end is nobody's: it counts as whole.
        let end = guest + len;
        let end = if end.0 == self.size.load(Ordering::Acquire) { end } else { end.align_down(unit) };
        if end <= guest {
            return Ok(ZeroStep::Write { len });
        }
        let len = end - guest;
        let has_backing = self.has_backing;
        if self.table(guest)?.is_none() && !has_backing {
            return Ok(ZeroStep::Done { len: self.without_table(guest, len)? });
        }
        let slice_end = guest.align_down(self.geometry.slice_span()) + self.geometry.slice_span();
        let mut len = len.min(slice_end - guest);
        if !self.geometry.zero_flag && has_backing {
            return Ok(ZeroStep::Write { len });
        }
        let table = self.own_table(guest)?;
        let slice = self.slice(table, guest)?;
        if self.geometry.external_data {
            let data = |_, unit| Ok(matches!(unit, Unit::Data { .. }));
            if let Some(run) = self.units(&slice, table, guest, len).run(data)? {
                let offset = HostOffset(guest.0);
                return Ok(ZeroStep::InPlace(InPlace {
                    len: run.end - guest,
                    storage: self.data()?,
                    offset,
                }));
            }
            // Up to the next data, which is a step of its own.
            let rest = |_, unit| Ok(!matches!(unit, Unit::Data { .. }));
            let run = self.units(&slice, table, guest, len).run(rest)?.expect("no data at the start");
            len = run.end - guest;
        }
        let done = self.zero_in_slice(&slice, table, guest, len, intent)?;
        if done > 0 {
            self.flush_if_crowded()?;
            return Ok(ZeroStep::Done { len: done });
        }
        let cluster_end = guest.align_down(self.geometry.cluster_size()) + self.geometry.cluster_size();
        Ok(ZeroStep::Write { len: len.min(cluster_end - guest) })
    }

    /// Changes the entries of one slice; how many bytes of `len` that covers.
    fn zero_in_slice(
        &self,
        slice: &Arc<Slice>,
        table: HostOffset,
        guest: GuestOffset,
        len: u64,
        intent: ZeroIntent,
    ) -> Result<u64> {
        let geometry = self.geometry;
        let cluster_size = geometry.cluster_size();
        let size = self.size.load(Ordering::Acquire);
        let end = guest + len;
        let mut next = guest;
        let mut pending = self.pending.lock();
        while next < end {
            let cluster = next.align_down(cluster_size);
            let to = end.min(cluster + cluster_size);
            let first = Entry::unit_index(next, geometry);
            let last = if to.0 == size {
                Entry::last_unit(geometry)
            } else {
                Entry::unit_index(GuestOffset(to.0 - 1), geometry)
            };
            let index = geometry.entry_index(next);
            let old = slice.get(index, geometry.extended);
            match self.zero_entry(old, first, last, intent)? {
                Change::None => {}
                Change::Entry { new, dropped } => {
                    slice.set(index, new, geometry.extended);
                    pending.dropped.extend(dropped);
                    pending.slices.insert(table.0 + geometry.slice_offset(guest), Arc::clone(slice));
                }
                Change::Impossible => break,
            }
            next = to;
        }
        Ok(next - guest)
    }

    /// What units `first..=last` of an entry come to when they are zeroed.
    fn zero_entry(&self, old: Entry, first: u32, last: u32, intent: ZeroIntent) -> Result<Change> {
        let geometry = self.geometry;
        let has_backing = self.has_backing;
        let whole = first == 0 && last == Entry::last_unit(geometry);
        if geometry.external_data {
            // There is no data among them, see the caller. In a raw data file the rest is zero in the file already.
            if !has_backing {
                return Ok(Change::None);
            }
            return Ok(Change::Entry { new: old.with_zeroes(first, last, geometry), dropped: None });
        }
        let dropped = self.owned(old)?;
        let drops = old.is_compressed()
            || intent != ZeroIntent::Keep
            || !geometry.zero_flag
            || !old.has_own_space(geometry)?;
        if whole && drops {
            // Something was there: the zeroes must outlive a backing file that is set later.
            let explicit = geometry.zero_flag && (has_backing || old != Entry::EMPTY);
            let zeroes = if explicit { Entry::zeroes(geometry) } else { Entry::EMPTY };
            if old == zeroes {
                return Ok(Change::None);
            }
            return Ok(Change::Entry { new: zeroes, dropped });
        }
        if old.is_compressed() {
            return Ok(Change::Impossible);
        }
        if dropped.is_none() && !has_backing && old == Entry::EMPTY {
            return Ok(Change::None);
        }
        Ok(Change::Entry { new: old.with_zeroes(first, last, geometry), dropped: None })
    }
}
