//! Exclusive locks over byte ranges.

use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;

/// Ranges of one disk (or one file) that someone works on alone.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    held: Mutex<SmallVec<[(u64, u64); 8]>>,
    released: Condvar,
}

/// A range held; given back when dropped.
#[derive(Debug)]
#[must_use = "the range is free again as soon as this is dropped"]
pub(crate) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: (u64, u64),
}

impl RangeLocks {
    /// Waits until nobody holds a byte of `len` bytes from `offset` on, widened to multiples of `align` (a power of two).
    ///
    /// No one waits for a range while holding another of the same `RangeLocks`.
    pub(crate) fn lock(&self, offset: u64, len: u64, align: u64) -> RangeGuard<'_> {
        debug_assert!(align.is_power_of_two());
        let start = offset & !(align - 1);
        let end = offset.saturating_add(len).checked_next_multiple_of(align).unwrap_or(u64::MAX);
        let mut held = self.held.lock();
        while held.iter().any(|&(s, e)| s < end && start < e) {
            self.released.wait(&mut held);
        }
        held.push((start, end));
        RangeGuard { locks: self, range: (start, end) }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock();
        if let Some(index) = held.iter().position(|&range| range == self.range) {
            held.swap_remove(index);
        }
        drop(held);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn overlapping_ranges_exclude_each_other() {
        let locks = RangeLocks::default();
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (locks, inside) = (&locks, &inside);
                scope.spawn(move || {
                    for round in 0..500 {
                        // All of these touch the cluster at 0.
                        let guard = locks.lock((thread * 100 + round) % 4096, 1, 4096);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(guard);
                    }
                });
            }
        });
        assert!(locks.held.lock().is_empty());
    }

    #[test]
    fn neighbours_do_not_wait() {
        let locks = RangeLocks::default();
        let first = locks.lock(0, 4096, 4096);
        let second = locks.lock(4096, 1, 4096);
        drop((first, second));
    }

    #[test]
    fn the_end_of_the_address_space_is_a_range_too() {
        let locks = RangeLocks::default();
        let guard = locks.lock(u64::MAX - 10, 10, 1 << 16);
        assert_eq!(guard.range.1, u64::MAX);
    }
}
