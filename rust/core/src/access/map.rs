//! Where things are: extents for people and converters, and direct reads for a ring.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::error::Result;
use crate::format::{FormatKind, Lookup, Mapping, Place};
use crate::interrupt;
#[cfg(unix)]
use crate::storage::RawRange;
use crate::storage::{Run, Storage};
use crate::units::{GuestOffset, HostOffset};

use super::below::Answer;
use super::extent::Extent;
use super::image::{Base, Image, Operation};
use super::job::Job;
use super::sweep::{Piece, Then, sweep};

/// A read of plain data only, split into reads of files.
///
/// The image counts it as in flight as long as this lives. A read that comes back short has met the end of its file:
/// [`Image::read`] does it right.
#[cfg(unix)]
#[derive(Debug)]
pub struct DirectReads {
    /// The reads, in the request's order; together as long as the request.
    pub segments: SmallVec<[RawRange; 4]>,
    /// Buffers start at and are as long as multiples of this (1: anything).
    pub memory_alignment: u32,
    _operation: Operation,
}

/// The runs of a range, in order; see [`Image::extents`].
#[derive(Debug)]
pub struct Extents {
    /// The chain, topmost first.
    levels: Vec<Level>,
    offset: u64,
    end: u64,
    /// Read, and perhaps continued by what comes next.
    pending: Option<Extent>,
}

/// An image of the chain whose extents are asked for.
#[derive(Debug)]
struct Level {
    image: Arc<Image>,
    /// It is known to hold nothing from the iteration's offset up to here: it is not asked again for every run of another.
    empty_until: u64,
    seen: Seen,
}

/// The run of a data storage that was asked for last, of an image that is only read: the next extents may lie in it, too.
#[derive(Debug, Default)]
struct Seen {
    range: Range<u64>,
    data: bool,
}

/// How far a storage is asked beyond an extent: what it answers for more serves the next ones.
const AHEAD: u64 = 1 << 30;

/// Parts of a disk that one thread goes through: no smaller than this, a multiple of every cluster size, and no more than so many.
const PART: u64 = 1 << 30;
const PARTS: u64 = 256;

/// The disk from `offset` on in parts; what of them is not known yet.
pub(super) fn parts(offset: u64, len: u64) -> impl Iterator<Item = Result<Piece<()>>> {
    let (size, end) = (len.div_ceil(PARTS).next_multiple_of(PART), offset + len);
    let mut start = offset;
    iter::from_fn(move || {
        let part = Piece { start, end: (start / PART * PART + size).min(end), what: () };
        start = part.end;
        (part.start < part.end).then_some(Ok(part))
    })
}

/// What [`Image::extents`] says of a range, gathered by all cores.
pub fn gather(image: &Arc<Image>, offset: u64, len: u64, job: &mut Job<'_>) -> Result<Vec<Extent>> {
    image.check_range(offset, len)?;
    let gathered = Mutex::new(Vec::new());
    sweep(parts(offset, len), len, job, |part, _| {
        let extents = image.extents(part.start, part.len())?.collect::<Result<Vec<_>>>()?;
        gathered.lock().push(extents);
        Ok(Then::Next)
    })?;
    let mut gathered = gathered.into_inner();
    gathered.sort_unstable_by_key(|extents| extents.first().map(|extent| extent.offset));
    let mut all: Vec<Extent> = Vec::with_capacity(gathered.iter().map(Vec::len).sum());
    for extent in gathered.into_iter().flatten() {
        match all.last_mut() {
            Some(last) if last.continues_in(&extent) => last.length += extent.length,
            _ => all.push(extent),
        }
    }
    Ok(all)
}

impl Image {
    /// What `len` bytes at `offset` are, run by run; neighbours with the same facts are one extent.
    pub fn extents(self: &Arc<Self>, offset: u64, len: u64) -> Result<Extents> {
        self.check_range(offset, len)?;
        drop(self.enter()?);
        let chain = iter::successors(Some(self), |image| image.backing());
        let levels = chain
            .map(|image| Level { image: Arc::clone(image), empty_until: 0, seen: Seen::default() })
            .collect();
        Ok(Extents { levels, offset, end: offset + len, pending: None })
    }

    /// `len` bytes at `offset` as reads that a ring can do, if all of it is plain data in files and the metadata that
    /// says so is cached; otherwise `None`.
    #[cfg(unix)]
    pub fn direct_reads(self: &Arc<Self>, offset: u64, len: u64) -> Result<Option<DirectReads>> {
        self.check_range(offset, len)?;
        let operation = self.begin()?;
        let mut reads = DirectReads { segments: SmallVec::new(), memory_alignment: 1, _operation: operation };
        Ok(self.direct_into(offset, len, &mut reads)?.then_some(reads))
    }

    #[cfg(unix)]
    fn direct_into(&self, mut offset: u64, len: u64, reads: &mut DirectReads) -> Result<bool> {
        if self.cipher.is_some() {
            return Ok(false);
        }
        let end = offset + len;
        while offset < end {
            let mapping = self.format.map(GuestOffset(offset), end - offset, Lookup::Cached);
            let Some(Mapping { len, place }) = mapping.map_err(|e| self.name(e))? else { return Ok(false) };
            match place {
                Place::Data { storage, offset: host } => {
                    let limits = storage.raw_limits();
                    let Some((fd, at)) = storage.raw_fd(host.0, len) else { return Ok(false) };
                    if !(at | len).is_multiple_of(u64::from(limits.request_alignment)) {
                        return Ok(false);
                    }
                    reads.memory_alignment = reads.memory_alignment.max(limits.memory_alignment);
                    reads.segments.push(RawRange { fd, offset: at, len });
                }
                Place::Unallocated { .. } => {
                    if !self.direct_below(offset, len, reads)? {
                        return Ok(false);
                    }
                }
                Place::Zero { .. } | Place::Compressed { .. } => return Ok(false),
            }
            offset += len;
        }
        Ok(true)
    }

    #[cfg(unix)]
    fn direct_below(&self, mut offset: u64, len: u64, reads: &mut DirectReads) -> Result<bool> {
        let end = offset + len;
        while offset < end {
            // Who closes an image that was set from outside does not wait for this one's operations.
            let Base::Image { owned: true, .. } = &self.base else { return Ok(false) };
            let answer = self.below().answer(offset, end - offset, Lookup::Cached)?;
            let Some(Answer { len, image: Some(image), within }) = answer else { return Ok(false) };
            if within < len || !image.direct_into(offset, len, reads)? {
                return Ok(false);
            }
            offset += len;
        }
        Ok(true)
    }

    /// The run at `offset` of which `mapping` says that this image, number `depth` of the chain, holds it.
    fn extent(&self, offset: u64, depth: u32, mapping: Mapping<'_>, seen: &mut Seen) -> Result<Extent> {
        let Mapping { len, place } = mapping;
        let mut extent = Extent { allocated: true, zero: false, ..Extent::nothing(offset, len, depth) };
        match place {
            Place::Data { storage, offset: host } => {
                extent.data = true;
                self.place_in_file(&mut extent, storage, host);
                if self.format.may_be_hollow().map_err(|e| self.name(e))? {
                    let run = seen.run_at(self, storage, host.0, len)?;
                    extent.length = run.len.clamp(1, len);
                    extent.zero = !run.data;
                    // In other formats than raw the metadata has the say whether there is anything.
                    extent.data = run.data || self.kind() != FormatKind::Raw;
                }
            }
            Place::Zero { reserved } => {
                extent.zero = true;
                self.place_reserved(&mut extent, reserved);
            }
            Place::Compressed { .. } => {
                extent.data = true;
                extent.compressed = true;
            }
            Place::Unallocated { .. } => return Ok(Extent::nothing(offset, len, depth)),
        }
        Ok(extent)
    }

    fn place_reserved(&self, extent: &mut Extent, reserved: Option<HostOffset>) {
        if let Some(host) = reserved {
            self.place_in_file(extent, self.format.data_storage(), host);
        }
    }

    fn place_in_file(&self, extent: &mut Extent, storage: &Arc<dyn Storage>, host: HostOffset) {
        if self.format.is_encrypted() {
            return;
        }
        let data = usize::from(Arc::ptr_eq(storage, self.format.data_storage()));
        extent.host_file.clone_from(&self.host_files[data]);
        extent.host_offset = storage.position(host.0);
    }
}

impl Seen {
    /// Data or hole at `host` of the data storage of `image`, and how far that goes.
    fn run_at(&mut self, image: &Image, storage: &Arc<dyn Storage>, host: u64, len: u64) -> Result<Run> {
        if !self.range.contains(&host) {
            let run = storage.run_at(host, len.max(AHEAD)).map_err(|e| image.name(e))?;
            if image.writable() {
                // What is written meanwhile fills holes.
                return Ok(run);
            }
            *self = Seen { range: host..host.saturating_add(run.len), data: run.data };
        }
        Ok(Run { len: self.range.end - host, data: self.data })
    }
}

impl Extents {
    /// The run at the offset, as far as one image of the chain answers.
    ///
    /// A level is asked again only when what it said of its own ends, so that every level's metadata is gone through once, however
    /// small the runs of the others are.
    fn run(&mut self) -> Result<Extent> {
        let (offset, mut end) = (self.offset, self.end);
        // What shows where nobody below holds anything: the last level that was asked, and the space that it has there.
        let mut last = (0, None);
        for (depth, Level { image, empty_until, seen }) in (0..).zip(&mut self.levels) {
            if offset < *empty_until {
                end = end.min(*empty_until);
                last = (depth, None);
                continue;
            }
            let Some(within) = image.size().checked_sub(offset).filter(|within| *within > 0) else {
                // Behind the end of a disk nothing below it shows.
                break;
            };
            let _operation = image.enter()?;
            let mut mapping = image.map(offset, within.min(self.end - offset))?;
            let Place::Unallocated { reserved } = mapping.place else {
                mapping.len = mapping.len.min(end - offset);
                return image.extent(offset, depth, mapping, seen);
            };
            if let Base::Unopened(_) = &image.base {
                return Err(image.unopened_base());
            }
            end = end.min(offset + mapping.len);
            // What is written meanwhile may fill it.
            if !image.writable() && reserved.is_none() {
                *empty_until = offset + mapping.len;
            }
            last = (depth, reserved);
        }
        let (depth, reserved) = last;
        let mut extent = Extent::nothing(offset, end - offset, depth);
        self.levels[depth as usize].image.place_reserved(&mut extent, reserved);
        Ok(extent)
    }
}

impl Iterator for Extents {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.offset < self.end {
            let next = match interrupt::check().and_then(|()| self.run()) {
                Ok(extent) => extent,
                Err(error) => {
                    self.offset = self.end;
                    self.pending = None;
                    return Some(Err(error));
                }
            };
            self.offset = next.end();
            match &mut self.pending {
                Some(pending) if pending.continues_in(&next) => pending.length += next.length,
                Some(_) => return self.pending.replace(next).map(Ok),
                None => self.pending = Some(next),
            }
        }
        self.pending.take().map(Ok)
    }
}
