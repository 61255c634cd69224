//! Reads that the loop's `io_uring` does: plain data in files that was not in the page cache, or is not to go through it.
//! Pushed as they come, handed to the kernel once per turn.

use std::sync::Arc;

use imago_core::access::map::DirectReads;
use imago_core::storage::uring::Ring;
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::{Bridge, Pending, resolve};
use crate::operation::Venue;
use crate::transfer::INLINE_LIMIT;

/// Room for reads that the kernel has not taken yet.
const ENTRIES: u32 = 256;
/// Bits of a token that say which part of an operation it is.
const PART_BITS: u32 = 16;

/// A loop's ring and what it is reading.
#[derive(Default)]
pub(super) struct State {
    // Before `reads`: dropping the ring waits for the kernel to be done with their memory.
    ring: Option<Ring>,
    reads: Vec<Option<Reading>>,
    free: Vec<usize>,
    /// Making the ring was tried.
    tried: bool,
}

/// An operation in the ring.
struct Reading {
    pending: Pending,
    parts: Parts,
    /// Parts that the ring has.
    outstanding: usize,
    /// A part failed or came back short: the pool is to do it again and to say why.
    spoilt: bool,
    /// Keeps image and files open.
    _plans: Plans,
}

type Parts = SmallVec<[Part; 1]>;
type Plans = SmallVec<[DirectReads; 1]>;

struct Part {
    fd: i32,
    offset: u64,
    len: u64,
    regions: Box<[libc::iovec]>,
}

// SAFETY: the regions point to memory that the operation's exports keep in place; only the kernel follows them.
unsafe impl Send for Part {}

impl State {
    /// Whether the kernel has yet to take something.
    pub(super) fn has_unsubmitted(&mut self) -> bool {
        self.ring.as_mut().is_some_and(|ring| ring.unsubmitted() > 0)
    }

    fn insert(&mut self, reading: Reading) -> usize {
        if let Some(place) = self.free.pop() {
            self.reads[place] = Some(reading);
            return place;
        }
        self.reads.push(Some(reading));
        self.reads.len() - 1
    }

    fn push(&mut self, reading: Reading) {
        let place = self.insert(reading);
        let (Some(ring), Some(reading)) = (&mut self.ring, &mut self.reads[place]) else { return };
        for (index, part) in reading.parts.iter().enumerate() {
            let token = (place as u64) << PART_BITS | index as u64;
            // SAFETY: regions and memory live in `reads` until the last completion was handed out or the ring was
            // dropped, see `State`; the plan keeps the descriptor open.
            let mut push = || unsafe { ring.push_read(part.fd, &part.regions, part.offset, token) };
            if push() {
                reading.outstanding += 1;
            } else {
                reading.spoilt = true;
                break;
            }
        }
    }

    /// What has completed: the operations, and whether the ring did them well.
    fn completed(&mut self) -> Vec<(Pending, bool)> {
        let State { ring: Some(ring), reads, free, .. } = self else { return Vec::new() };
        let mut ended = Vec::new();
        ring.complete(|token, result| {
            let place = (token >> PART_BITS) as usize;
            let Some(reading) = &mut reads[place] else { return };
            let part = &reading.parts[(token & ((1 << PART_BITS) - 1)) as usize];
            reading.spoilt |= u64::try_from(result).ok() != Some(part.len);
            reading.outstanding -= 1;
            if reading.outstanding == 0
                && let Some(Reading { pending, spoilt, .. }) = reads[place].take()
            {
                free.push(place);
                ended.push((pending, !spoilt));
            }
        });
        ended
    }

    /// Gives the ring up; what it has not read is to be read otherwise.
    fn abandon(&mut self) -> Vec<Pending> {
        self.ring = None;
        self.free.clear();
        self.reads.drain(..).flatten().map(|reading| reading.pending).collect()
    }
}

/// What of `pending` a ring would have to read; `None` if it is nothing for a ring.
fn plan(pending: &Pending) -> Option<(Parts, Plans)> {
    let (image, transfer) = pending.work.transfer()?;
    let (mut parts, mut plans) = (SmallVec::new(), SmallVec::new());
    for (mut memory, offset) in transfer.rest()? {
        let len = memory.len();
        // The kernel copies what is cached after all while it takes the read, on this thread.
        let reads = image.direct_reads(offset, len as u64).ok()??;
        let is_buffered = reads.memory_alignment == 1;
        if (is_buffered && len > INLINE_LIMIT) || !memory.is_aligned(reads.memory_alignment as usize) {
            return None;
        }
        for read in &reads.segments {
            let mut part = memory.take_front(read.len as usize);
            let regions = part.as_iovecs().into();
            parts.push(Part { fd: read.fd, offset: read.offset, len: read.len, regions });
        }
        plans.push(reads);
    }
    (!parts.is_empty() && parts.len() <= ENTRIES as usize).then_some((parts, plans))
}

impl Bridge {
    /// Has the ring do `pending`, from the next submission on; gives it back if it is nothing for a ring.
    pub(super) fn push_to_ring(
        self: &Arc<Self>,
        py: Python<'_>,
        pending: Pending,
    ) -> PyResult<Option<Pending>> {
        if pending.work.transfer().is_none() || !self.has_ring(py)? {
            return Ok(Some(pending));
        }
        let Some((parts, plans)) = plan(&pending) else { return Ok(Some(pending)) };
        let mut queues = self.queues.lock();
        let Some(ring) = &mut queues.ring.ring else { return Ok(Some(pending)) };
        if ring.unsubmitted() + parts.len() > ENTRIES as usize
            && (ring.submit().is_err() || ring.unsubmitted() > 0)
        {
            return Ok(Some(pending));
        }
        queues.ring.push(Reading { pending, parts, outstanding: 0, spoilt: false, _plans: plans });
        Ok(None)
    }

    fn has_ring(self: &Arc<Self>, py: Python<'_>) -> PyResult<bool> {
        {
            let state = &mut self.queues.lock().ring;
            if std::mem::replace(&mut state.tried, true) {
                return Ok(state.ring.is_some());
            }
        }
        let Some(ring) = Ring::new(ENTRIES) else { return Ok(false) };
        let watched = self.watch(py, Some(ring.fd()), false)?;
        if watched {
            self.queues.lock().ring.ring = Some(ring);
        }
        Ok(watched)
    }

    /// Resolves what the ring has read.
    pub(super) fn turn_ring(self: &Arc<Self>, py: Python<'_>) {
        let ended = self.queues.lock().ring.completed();
        for (mut pending, done) in ended {
            if done {
                pending.work.complete();
                resolve(py, pending);
            } else {
                self.run_elsewhere(pending, Venue::Pool);
            }
        }
    }

    /// Hands what was pushed to the kernel.
    pub(super) fn submit_ring(&self) {
        let state = &mut self.queues.lock().ring;
        if !state.has_unsubmitted() {
            return;
        }
        let failed = state.ring.as_mut().is_some_and(|ring| ring.submit().is_err());
        let left = if failed { state.abandon() } else { Vec::new() };
        for pending in left {
            self.run_elsewhere(pending, Venue::Pool);
        }
    }
}
