//! Which operations are still running, so that space freed under them is reused only after they ended.
//!
//! Two generations of sharded counters: an operation counts itself into the current one. To drain, the generation is
//! switched and the old one's counters must come to zero; whatever starts later cannot have seen the old mapping.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

const SHARDS: usize = 8;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    counts: [AtomicU64; 2],
}

/// Counters of the operations in flight on one image.
#[derive(Debug, Default)]
pub struct Inflight {
    generation: AtomicUsize,
    shards: [Shard; SHARDS],
    /// A generation is draining: one at a time.
    draining: AtomicBool,
}

/// A generation of operations that is being waited for.
#[derive(Debug)]
#[must_use = "no other drain can begin before this one is seen to its end"]
pub struct Drain {
    generation: usize,
}

/// One operation in flight; ends with [`Inflight::leave`].
#[derive(Debug)]
#[must_use = "an operation that entered has to leave"]
pub struct Ticket {
    shard: u8,
    generation: u8,
}

/// One operation in flight; ends when dropped.
#[derive(Debug)]
pub struct Guard<'a> {
    inflight: &'a Inflight,
    shard: u8,
    generation: u8,
}

fn my_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: Cell<usize> = const { Cell::new(usize::MAX) });
    SHARD.with(|shard| {
        if shard.get() == usize::MAX {
            shard.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        shard.get()
    })
}

impl Inflight {
    /// Counts an operation in; the ticket may travel to another thread.
    pub fn enter(&self) -> Ticket {
        let shard = my_shard();
        loop {
            let generation = self.generation.load(Ordering::Acquire) & 1;
            self.shards[shard].counts[generation].fetch_add(1, Ordering::SeqCst);
            // A switch between the load and the count would let the drain miss this operation.
            if self.generation.load(Ordering::SeqCst) & 1 == generation {
                return Ticket { shard: shard as u8, generation: generation as u8 };
            }
            self.shards[shard].counts[generation].fetch_sub(1, Ordering::Release);
        }
    }

    /// Counts an operation out.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is used up")]
    pub fn leave(&self, ticket: Ticket) {
        self.exit(ticket.shard, ticket.generation);
    }

    /// Counts an operation in until the guard is dropped.
    pub fn guard(&self) -> Guard<'_> {
        let Ticket { shard, generation } = self.enter();
        Guard { inflight: self, shard, generation }
    }

    fn exit(&self, shard: u8, generation: u8) {
        self.shards[shard as usize].counts[generation as usize].fetch_sub(1, Ordering::Release);
    }

    /// Starts to wait for every operation in flight now; [`is_drained`](Inflight::is_drained) tells when they have ended.
    ///
    /// Nothing blocks here: an operation may be in the hands of a thread that is flushing.
    /// `None` while an earlier drain goes on.
    pub fn begin_drain(&self) -> Option<Drain> {
        if self.draining.swap(true, Ordering::AcqRel) {
            return None;
        }
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) & 1;
        Some(Drain { generation })
    }

    /// Whether all that was in flight when `drain` began has ended; if so another drain may begin.
    pub fn is_drained(&self, drain: &Drain) -> bool {
        fence(Ordering::SeqCst);
        let drained =
            self.shards.iter().all(|shard| shard.counts[drain.generation].load(Ordering::Acquire) == 0);
        if drained {
            self.draining.store(false, Ordering::Release);
        }
        drained
    }
}

impl Inflight {
    /// Whether no operation is in flight, in either generation.
    ///
    /// Meaningful once new operations turn back at a flag that was set (sequentially consistent) before this call and
    /// that each reads after it entered: then every count seen as zero stays without work.
    pub fn is_idle(&self) -> bool {
        fence(Ordering::SeqCst);
        self.shards.iter().all(|shard| shard.counts.iter().all(|count| count.load(Ordering::SeqCst) == 0))
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.inflight.exit(self.shard, self.generation);
    }
}
