//! Reading the mapping: which run of guest bytes is where.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::Driver;
use super::cache::Slice;
use super::l2::{COPIED, Entry, OFFSET_MASK, Unit};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Lookup, Mapping, Place};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

/// The L2 table behind an L1 entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) host: HostOffset,
    /// Nobody shares it: its entries may be changed in place.
    pub(super) copied: bool,
}

/// The units of a slice, from one guest offset on.
pub(super) struct Units<'a> {
    driver: &'a Driver,
    slice: &'a Slice,
    /// The L2 table, for messages.
    table: HostOffset,
    next: GuestOffset,
    end: GuestOffset,
}

/// Units of one kind, one after the other, in the guest and in the file.
pub(super) struct Run {
    /// The entry of the first unit.
    pub(super) entry: Entry,
    /// The first unit.
    pub(super) unit: Unit,
    /// Where the run ends in the guest's disk.
    pub(super) end: GuestOffset,
}

impl Units<'_> {
    /// The entry and the unit at the next offset; `None` at the end of the slice or of the range.
    fn peek(&self) -> Result<Option<(Entry, Unit)>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let geometry = self.driver.geometry;
        let entry = self.slice.get(geometry.entry_index(self.next), geometry.extended);
        let unit = entry.unit(Entry::unit_index(self.next, geometry), geometry).map_err(|e| self.blame(e))?;
        Ok(Some((entry, unit)))
    }

    /// Moves to the start of the next unit.
    fn advance(&mut self) {
        let unit = self.driver.geometry.unit_size();
        self.next = self.next.align_down(unit) + unit;
    }

    /// The run that starts here, of units whose entry and self pass `wanted`; `None` if the first does not.
    pub(super) fn run(mut self, wanted: impl Fn(Entry, Unit) -> Result<bool>) -> Result<Option<Run>> {
        let unit_size = self.driver.geometry.unit_size();
        let (entry, first) = self.peek()?.expect("a range has at least one byte");
        if !wanted(entry, first)? {
            return Ok(None);
        }
        let mut last = first;
        self.advance();
        while let Some((entry, unit)) = self.peek()? {
            if !last.continues(unit, unit_size) || !wanted(entry, unit)? {
                break;
            }
            last = unit;
            self.advance();
        }
        Ok(Some(Run { entry, unit: first, end: self.next.min(self.end) }))
    }

    fn blame(&self, error: Error) -> Error {
        let entry = self.driver.geometry.entry_index(self.next) as u64 * self.driver.geometry.entry_size();
        error.at((self.table + self.driver.geometry.slice_offset(self.next) + entry).0)
    }
}

impl Driver {
    /// Where entry number `index` of the L1 table is in the file.
    pub(super) fn l1_entry_offset(&self, index: usize) -> HostOffset {
        self.header().l1_offset + index as u64 * 8
    }

    /// The L2 table that maps `guest`, if there is one.
    pub(super) fn table(&self, guest: GuestOffset) -> Result<Option<Table>> {
        let index = self.geometry.l1_index(guest);
        let word = self.l1[index].load(Ordering::Acquire);
        let host = HostOffset(word & OFFSET_MASK);
        if host.0 == 0 {
            return Ok(None);
        }
        let blame = |message| Error::corrupt(message).at(self.l1_entry_offset(index).0);
        if !host.is_aligned(self.geometry.cluster_size()) {
            return Err(blame(format!("L1 entry {word:#x} names no cluster boundary")));
        }
        if host.0 >= self.file_end && !self.writable {
            return Err(blame(format!("L2 table at {host} lies past the end of the file")));
        }
        Ok(Some(Table { host, copied: word & COPIED != 0 }))
    }

    /// The slice of `table` that maps `guest`.
    pub(super) fn slice(&self, table: HostOffset, guest: GuestOffset) -> Result<Arc<Slice>> {
        let key = table + self.geometry.slice_offset(guest);
        self.slices.get(key.0, |bytes| self.storage.readv_at(bytes.into(), key.0))
    }

    /// What `f` makes of the slice of `table` that maps `guest`; `Ok(None)` only for [`Lookup::Cached`].
    #[inline]
    pub(super) fn look_up<T>(
        &self,
        table: HostOffset,
        guest: GuestOffset,
        lookup: Lookup,
        f: impl Fn(&Slice) -> Result<T>,
    ) -> Result<Option<T>> {
        let slot = self.in_order.get(self.geometry.slice_index(guest));
        if let Some(slice) = slot.and_then(OnceLock::get) {
            self.slices.hit(table.0);
            return f(slice).map(Some);
        }
        let key = table + self.geometry.slice_offset(guest);
        if let Some(found) = self.slices.peek(key.0, &f) {
            return found.map(Some);
        }
        match lookup {
            Lookup::Cached => Ok(None),
            Lookup::Load => {
                let slice = self.slice(table, guest)?;
                let found = f(&slice).map(Some);
                slot.map(|slot| slot.set(slice));
                found
            }
        }
    }

    /// The units of `slice` for `len` bytes from `guest` on, as far as the slice goes.
    pub(super) fn units<'a>(
        &'a self,
        slice: &'a Slice,
        table: HostOffset,
        guest: GuestOffset,
        len: u64,
    ) -> Units<'a> {
        let span = self.geometry.slice_span();
        let end = (guest + len).min(guest.align_down(span) + span);
        Units { driver: self, slice, table, next: guest, end }
    }

    pub(super) fn map_run(
        &self,
        guest: GuestOffset,
        len: u64,
        lookup: Lookup,
    ) -> Result<Option<Mapping<'_>>> {
        let Some(table) = self.table(guest)? else {
            return Ok(Some(Mapping {
                len: self.without_table(guest, len)?,
                place: Place::Unallocated { reserved: None },
            }));
        };
        let all = |slice: &Slice| self.units(slice, table.host, guest, len).run(|_, _| Ok(true));
        let Some(run) = self.look_up(table.host, guest, lookup, all)? else {
            return Ok(None);
        };
        let run = run.expect("every run is wanted");
        let mut end = run.end;
        let within = guest.within(self.geometry.unit_size());
        let place = match run.unit {
            Unit::Data { host } => Place::Data { storage: self.data_at(guest, host)?, offset: host + within },
            Unit::Zero { reserved } => Place::Zero { reserved: reserved.map(|host| host + within) },
            Unit::Unallocated { reserved: Some(host) } => {
                Place::Unallocated { reserved: Some(host + within) }
            }
            Unit::Unallocated { reserved: None } => {
                let span = self.geometry.slice_span();
                // Who asks for more than a slice goes through all of the disk.
                if !self.writable && len > span && end == guest.align_down(span) + span {
                    end = self.empty_until(table.host, end, guest + len)?;
                }
                Place::Unallocated { reserved: None }
            }
            Unit::Compressed => {
                let start = guest.align_down(self.geometry.cluster_size());
                end = (guest + len).min(start + self.geometry.cluster_size());
                let cluster = run.entry.compressed(start, self.geometry);
                Place::Compressed { storage: &self.storage, cluster }
            }
        };
        Ok(Some(Mapping { len: end - guest, place }))
    }

    /// How many of `len` bytes from `guest` on have no L2 table.
    pub(super) fn without_table(&self, guest: GuestOffset, len: u64) -> Result<u64> {
        let span = self.geometry.table_span();
        let end = guest + len;
        let mut next = guest.align_down(span) + span;
        while next < end && self.table(next)?.is_none() {
            next = next + span;
        }
        Ok(next.min(end) - guest)
    }

    /// The storage of guest data.
    pub(super) fn data(&self) -> Result<&Arc<dyn Storage>> {
        self.data.as_ref().ok_or_else(|| {
            if self.is_locked() {
                return Error::new(ErrorKind::WrongSecret, "the image is encrypted and was not unlocked");
            }
            Error::invalid_input("the image keeps its data in an external data file that was not opened")
        })
    }

    /// The storage of guest data, for the unit at `host` that maps `guest`.
    pub(super) fn data_at(&self, guest: GuestOffset, host: HostOffset) -> Result<&Arc<dyn Storage>> {
        if self.geometry.external_data && host.0 != guest.align_down(self.geometry.unit_size()).0 {
            return Err(Error::corrupt(format!(
                "guest offset {guest} is mapped to {host} of the data file, where only its own offset can be"
            )));
        }
        self.data()
    }
}
