//! The cache of L2 slices: sharded, sized in bytes, loading with no map lock held, one loader per slice.
//!
//! A slice is evicted only while nobody else holds it. Dirty slices are held by the driver's list of what a
//! flush has to write, so a dirty slice is never evicted.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use super::l2::Entry;
use crate::error::Result;
use crate::format::CacheUse;

const SHARDS: usize = 16;

/// Part of an L2 table, in memory.
#[derive(Debug)]
pub(super) struct Slice {
    words: OnceLock<Box<[AtomicU64]>>,
    /// Held by the one thread that loads it.
    loading: Mutex<()>,
    /// Looked up since the clock's hand last passed.
    referenced: AtomicBool,
}

impl Slice {
    fn unloaded() -> Self {
        Slice { words: OnceLock::new(), loading: Mutex::new(()), referenced: AtomicBool::new(true) }
    }

    fn touch(&self) {
        // A plain load first: hot slices would bounce this line between cores otherwise.
        if !self.referenced.load(Ordering::Relaxed) {
            self.referenced.store(true, Ordering::Relaxed);
        }
    }

    fn words(&self) -> &[AtomicU64] {
        self.words.get().expect("a slice leaves the cache loaded")
    }

    /// Entry number `index`.
    ///
    /// The two words of an extended entry are read one after the other; [`set`](Slice::set) orders its stores so that
    /// an unchanged descriptor before and after makes the pair a right answer.
    pub(super) fn get(&self, index: usize, extended: bool) -> Entry {
        let words = self.words();
        if !extended {
            return Entry { descriptor: words[index].load(Ordering::Acquire), bitmap: 0 };
        }
        let (descriptor, bitmap) = (&words[index * 2], &words[index * 2 + 1]);
        loop {
            let before = descriptor.load(Ordering::SeqCst);
            let bitmap = bitmap.load(Ordering::SeqCst);
            if descriptor.load(Ordering::SeqCst) == before {
                return Entry { descriptor: before, bitmap };
            }
        }
    }

    /// Replaces entry number `index`; the caller holds the driver's `pending` lock.
    ///
    /// The space is there before a bit of the bitmap says so, and the bits go before the space does. A compressed
    /// cluster's bitmap means nothing, so the new one is there before the descriptor that gives it a meaning.
    pub(super) fn set(&self, index: usize, entry: Entry, extended: bool) {
        let words = self.words();
        if !extended {
            words[index].store(entry.descriptor, Ordering::Release);
            return;
        }
        let (descriptor, bitmap) = (&words[index * 2], &words[index * 2 + 1]);
        let bitmap_means_nothing =
            Entry { descriptor: descriptor.load(Ordering::SeqCst), bitmap: 0 }.is_compressed();
        if entry.descriptor == 0 || bitmap_means_nothing {
            bitmap.store(entry.bitmap, Ordering::SeqCst);
            descriptor.store(entry.descriptor, Ordering::SeqCst);
        } else {
            descriptor.store(entry.descriptor, Ordering::SeqCst);
            bitmap.store(entry.bitmap, Ordering::SeqCst);
        }
    }

    /// The slice as it stands on disk.
    pub(super) fn to_disk(&self) -> Vec<u8> {
        self.words().iter().flat_map(|word| word.load(Ordering::Acquire).to_be_bytes()).collect()
    }
}

#[derive(Debug, Default)]
struct Shard {
    slices: FxHashMap<u64, Arc<Slice>>,
    /// The keys in the order that the clock's hand passes them.
    clock: Vec<u64>,
    hand: usize,
}

/// A shard and its counters, which share a line of memory with the lock: whoever looks up holds that line anyway.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct Counted {
    hits: AtomicU64,
    misses: AtomicU64,
    shard: RwLock<Shard>,
}

impl Counted {
    /// Not one step: two threads that look up at once may count once. An exact count would cost every look-up a locked operation more.
    #[inline]
    fn hit(&self) {
        self.hits.store(self.hits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// Slices by the offset at which they stand in the image file.
#[derive(Debug)]
pub(super) struct SliceCache {
    shards: [Counted; SHARDS],
    slice_bits: u32,
    /// Slices that one shard may hold.
    per_shard: AtomicUsize,
}

impl SliceCache {
    /// A cache of about `bytes`, at least one slice (of 2 to the `slice_bits` bytes) a shard.
    pub(super) fn new(bytes: u64, slice_bits: u32) -> Self {
        let cache = SliceCache { shards: Default::default(), slice_bits, per_shard: AtomicUsize::new(0) };
        cache.fit(bytes);
        cache
    }

    /// Lets it hold about `bytes` from now on, no fewer, at least one slice a shard.
    pub(super) fn fit(&self, bytes: u64) {
        let per_shard = bytes.div_ceil(self.slice_bytes() * SHARDS as u64).clamp(1, 1 << 24);
        self.per_shard.store(per_shard as usize, Ordering::Relaxed);
    }

    /// Slices it may hold.
    pub(super) fn capacity(&self) -> usize {
        self.per_shard.load(Ordering::Relaxed) * SHARDS
    }

    /// Whether `bytes` of tables have room in it.
    pub(super) fn covers(&self, bytes: u64) -> bool {
        (self.capacity() as u64).saturating_mul(self.slice_bytes()) >= bytes
    }

    /// How it has been used.
    pub(super) fn stats(&self) -> CacheUse {
        let mut stats =
            CacheUse { capacity: self.capacity() as u64 * self.slice_bytes(), ..CacheUse::default() };
        for counted in &self.shards {
            stats.hits += counted.hits.load(Ordering::Relaxed);
            stats.misses += counted.misses.load(Ordering::Relaxed);
            stats.used += counted.shard.read().slices.len() as u64 * self.slice_bytes();
        }
        stats
    }

    fn slice_bytes(&self) -> u64 {
        1 << self.slice_bits
    }

    /// Counts a look-up of the slice at offset `key` that somebody holds.
    #[inline]
    pub(super) fn hit(&self, key: u64) {
        self.shard(key).hit();
    }

    fn shard(&self, key: u64) -> &Counted {
        &self.shards[(key >> self.slice_bits) as usize % SHARDS]
    }

    /// What `f` makes of the slice at offset `key`, if that is cached. The shard is locked (shared) meanwhile, which costs less
    /// than a reference to the slice: `f` neither waits nor looks up another one.
    #[inline]
    pub(super) fn peek<T>(&self, key: u64, f: impl FnOnce(&Slice) -> T) -> Option<T> {
        let counted = self.shard(key);
        let shard = counted.shard.read();
        let slice = shard.slices.get(&key).filter(|slice| slice.words.get().is_some())?;
        slice.touch();
        counted.hit();
        Some(f(slice))
    }

    /// The slice at offset `key`; where it is not cached `load` fills a buffer with its bytes.
    pub(super) fn get(&self, key: u64, load: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Arc<Slice>> {
        let counted = self.shard(key);
        let found = counted.shard.read().slices.get(&key).cloned();
        let slice = found.unwrap_or_else(|| self.insert(key, Slice::unloaded()));
        slice.touch();
        if slice.words.get().is_some() {
            counted.hit();
            return Ok(slice);
        }
        let one_loader = slice.loading.lock();
        if slice.words.get().is_none() {
            counted.misses.fetch_add(1, Ordering::Relaxed);
            let mut bytes = vec![0; self.slice_bytes() as usize];
            load(&mut bytes)?;
            let words = bytes.as_chunks::<8>().0.iter();
            let words = words.map(|word| AtomicU64::new(u64::from_be_bytes(*word))).collect();
            slice.words.set(words).expect("one loader at a time");
        }
        drop(one_loader);
        Ok(slice)
    }

    /// Drops what is cached of `bytes` at `start`: the table there is no table any more, or a new one.
    pub(super) fn forget(&self, start: u64, bytes: u64) {
        for key in (start..start + bytes).step_by(self.slice_bytes() as usize) {
            let mut shard = self.shard(key).shard.write();
            if shard.slices.remove(&key).is_some() {
                shard.clock.retain(|&other| other != key);
            }
        }
    }

    /// Drops everything: tables were rewritten in the file. Who is loading a slice meanwhile keeps what it loads for itself.
    pub(super) fn clear(&self) {
        for counted in &self.shards {
            *counted.shard.write() = Shard::default();
        }
    }

    fn insert(&self, key: u64, slice: Slice) -> Arc<Slice> {
        let mut guard = self.shard(key).shard.write();
        let shard = &mut *guard;
        if let Some(slice) = shard.slices.get(&key) {
            return Arc::clone(slice);
        }
        if shard.slices.len() >= self.per_shard.load(Ordering::Relaxed) {
            shard.evict_one();
        }
        let slice = Arc::new(slice);
        shard.slices.insert(key, Arc::clone(&slice));
        shard.clock.push(key);
        slice
    }
}

impl Shard {
    /// Evicts the first slice that nobody holds and nobody looked at in the hand's last round; none where all are held.
    fn evict_one(&mut self) {
        for _ in 0..2 * self.clock.len() {
            self.hand = if self.hand + 1 < self.clock.len() { self.hand + 1 } else { 0 };
            let key = self.clock[self.hand];
            let slice = &self.slices[&key];
            // The shard is locked for writing: a count of 1 cannot grow now.
            if Arc::strong_count(slice) == 1 && !slice.referenced.swap(false, Ordering::Relaxed) {
                self.slices.remove(&key);
                self.clock.swap_remove(self.hand);
                return;
            }
        }
    }
}
