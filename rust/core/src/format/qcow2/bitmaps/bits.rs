//! The bits of one bitmap in memory: marked by any number of writers at once, with no lock.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the smallest and of the largest chunk.
const CHUNK_BYTES: Range<u32> = 9..12;

/// Which granules of a disk are dirty.
///
/// Bits become 1 and never 0 again: a bitmap that is cleared gets new bits. What is read while others write is what was marked
/// at some time meanwhile. Bits past the disk's end are 0.
#[derive(Debug)]
pub(crate) struct Bits {
    /// Base-2 logarithm of a granule's bytes.
    granularity: u32,
    /// Bytes of the disk.
    size: u64,
    /// Base-2 logarithm of a chunk's bits. A cluster of bits in the file has one or more whole chunks.
    chunk_shift: u32,
    /// Each is made when its first bit is set.
    chunks: Box<[OnceLock<Chunk>]>,
}

#[derive(Debug)]
enum Chunk {
    /// All of it is dirty.
    Ones,
    Mixed(Box<[AtomicU64]>),
}

impl Bits {
    /// None is set; granules of 2 to the power of `granularity` bytes, a disk of `size` bytes, in an image with clusters of 2 to the power of `cluster_bits` bytes.
    pub(crate) fn new(size: u64, granularity: u32, cluster_bits: u32) -> Self {
        let chunk_shift = cluster_bits.clamp(CHUNK_BYTES.start, CHUNK_BYTES.end) + 3;
        let count = size.div_ceil(1 << granularity).div_ceil(1 << chunk_shift);
        let chunks = (0..count).map(|_| OnceLock::new()).collect();
        Bits { granularity, size, chunk_shift, chunks }
    }

    /// The same dirty granules for a disk of `size` bytes, as far as they lie in it. (What is new is clean, as in QEMU.)
    pub(crate) fn resized(&self, size: u64, cluster_bits: u32) -> Self {
        let new = Bits::new(size, self.granularity, cluster_bits);
        let mut at = 0;
        while let Some(run) = self.next_run(at).filter(|run| run.start < new.len()) {
            at = run.end;
            new.set(run.start..run.end.min(new.len()));
        }
        new
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.size.div_ceil(1 << self.granularity)
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that all of them take.
    pub(crate) fn bytes(&self) -> u64 {
        self.len().div_ceil(8)
    }

    /// Marks the granules that `len` bytes (at least 1) from `offset` on touch; they lie in the disk.
    #[inline]
    pub(crate) fn mark(&self, offset: u64, len: u64) {
        debug_assert!(len > 0 && offset + len <= self.size);
        self.set(offset >> self.granularity..((offset + len - 1) >> self.granularity) + 1);
    }

    fn chunk_len(&self) -> u64 {
        1 << self.chunk_shift
    }

    fn set(&self, bits: Range<u64>) {
        let mut start = bits.start;
        while start < bits.end {
            let index = start >> self.chunk_shift;
            let base = index << self.chunk_shift;
            let end = bits.end.min(base + self.chunk_len());
            self.set_in_chunk(index as usize, start - base..end - base);
            start = end;
        }
    }

    fn set_in_chunk(&self, index: usize, bits: Range<u64>) {
        let whole = bits.end - bits.start == self.chunk_len();
        let chunk = self.chunks[index].get_or_init(|| if whole { Chunk::Ones } else { self.zeroes() });
        let Chunk::Mixed(words) = chunk else { return };
        for index in bits.start / 64..bits.end.div_ceil(64) {
            let first = bits.start.saturating_sub(index * 64).min(63);
            let last = (bits.end - index * 64).min(64) - 1;
            let mask = u64::MAX << first & u64::MAX >> (63 - last);
            let word = &words[index as usize];
            // Most writes meet bits that are set already: those leave the cache line to its other readers.
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    fn zeroes(&self) -> Chunk {
        Chunk::Mixed((0..self.chunk_len() / 64).map(|_| AtomicU64::new(0)).collect())
    }

    /// 64 bits from `index * 64` on.
    fn word(&self, index: u64) -> u64 {
        match self.chunks[((index * 64) >> self.chunk_shift) as usize].get() {
            None => 0,
            Some(Chunk::Ones) => u64::MAX,
            Some(Chunk::Mixed(words)) => {
                words[(index & (self.chunk_len() / 64 - 1)) as usize].load(Ordering::Relaxed)
            }
        }
    }

    /// The first bit in the range that is set (`flip` is 0) or is not (all ones); its end, or that of all, if there is none.
    fn find(&self, range: Range<u64>, flip: u64) -> u64 {
        let (mut at, end) = (range.start, range.end.min(self.len()));
        while at < end {
            if at.is_multiple_of(self.chunk_len()) {
                let uniform = match self.chunks[(at >> self.chunk_shift) as usize].get() {
                    None => Some(0),
                    Some(Chunk::Ones) => Some(u64::MAX),
                    Some(Chunk::Mixed(_)) => None,
                };
                if uniform == Some(flip) {
                    at += self.chunk_len();
                    continue;
                }
            }
            let rest = (self.word(at / 64) ^ flip) & (u64::MAX << (at % 64));
            if rest != 0 {
                return ((at & !63) + u64::from(rest.trailing_zeros())).min(end);
            }
            at = (at & !63) + 64;
        }
        end
    }

    /// The first run of set bits from bit `from` on.
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let start = self.find(from..self.len(), 0);
        (start < self.len()).then(|| start..self.find(start..self.len(), u64::MAX))
    }

    /// The first dirty run from the disk's offset `from` (a multiple of the granularity) on: its offset and length in bytes.
    pub(crate) fn next_dirty(&self, from: u64) -> Option<(u64, u64)> {
        let run = self.next_run(from.div_ceil(1 << self.granularity))?;
        let start = run.start << self.granularity;
        // The last granule may reach past the end of the disk, and of all numbers.
        let end = run.end.saturating_mul(1 << self.granularity).min(self.size);
        Some((start, end - start))
    }

    /// Dirty bytes of the disk.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        let (mut at, mut dirty) = (0, 0);
        while let Some((offset, len)) = self.next_dirty(at) {
            dirty += len;
            at = offset + len;
        }
        dirty
    }

    /// Whether all bits of the cluster number `index`, of `len` bytes, are the same: `Some(true)` all ones (and none of them
    /// past the end), `Some(false)` all zeroes.
    pub(crate) fn uniform(&self, index: u64, len: u64) -> Option<bool> {
        let bits = index * len * 8..(index + 1) * len * 8;
        if self.find(bits.clone(), 0) >= bits.end.min(self.len()) {
            return Some(false);
        }
        (self.find(bits.clone(), u64::MAX) == bits.end).then_some(true)
    }

    /// The bits of the cluster number `index` as the file has them.
    pub(crate) fn to_disk(&self, index: u64, cluster: &mut [u8]) {
        let first = index * cluster.len() as u64 / 8;
        for (word, bytes) in (first..).zip(cluster.as_chunks_mut::<8>().0) {
            *bytes = if word * 64 < self.len() { self.word(word) } else { 0 }.to_le_bytes();
        }
    }

    /// Takes over the bits of the cluster number `index` as the file has them; what lies past the end is left out.
    pub(crate) fn add_from_disk(&self, index: u64, cluster: &[u8]) {
        let first = index * cluster.len() as u64 / 8;
        for (word, bytes) in (first..).zip(cluster.as_chunks::<8>().0) {
            let mut rest = u64::from_le_bytes(*bytes);
            while rest != 0 {
                let start = u64::from(rest.trailing_zeros());
                let len = u64::from((rest >> start).trailing_ones());
                let end = (word * 64 + start + len).min(self.len());
                if word * 64 + start < end {
                    self.set(word * 64 + start..end);
                }
                rest = if start + len < 64 { rest & u64::MAX << (start + len) } else { 0 };
            }
        }
    }

    /// Sets all bits of the cluster number `index`, of `len` bytes.
    pub(crate) fn add_ones(&self, index: u64, len: u64) {
        self.set((index * len * 8).min(self.len())..((index + 1) * len * 8).min(self.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(bits: &Bits) -> Vec<(u64, u64)> {
        let mut at = 0;
        std::iter::from_fn(|| {
            let run = bits.next_dirty(at)?;
            at = run.0 + run.1;
            Some(run)
        })
        .collect()
    }

    #[test]
    fn what_is_marked_is_dirty_up_to_the_granules_around_it() {
        let bits = Bits::new(100_000_000, 9, 9);
        bits.mark(5, 1);
        bits.mark(511, 2);
        bits.mark(10_000, 30_000_000);
        bits.mark(99_999_999, 1);
        let end = 30_010_000_u64.next_multiple_of(512);
        assert_eq!(runs(&bits), [(0, 1024), (9728, end - 9728), (99_999_744, 256)]);
        assert_eq!(bits.dirty_bytes(), 1024 + end - 9728 + 256);
    }

    #[test]
    fn every_bit_is_marked_alone_and_in_runs() {
        for granularity in [9, 16, 31] {
            let bits_len = 3 * 4096 + 7;
            for (start, len) in (0..200).map(|i| (i * 61, i * 37 + 1)) {
                let bits = Bits::new((bits_len << granularity) - 1, granularity, 9);
                let len = len.min(bits_len - start);
                bits.mark(start << granularity, (len << granularity) - 1);
                let end = ((start + len) << granularity).min(bits.size());
                assert_eq!(runs(&bits), [(start << granularity, end - (start << granularity))]);
            }
        }
    }

    #[test]
    fn the_files_form_is_read_back() {
        let size = (5 * 512 * 8 * 512) - 700;
        let bits = Bits::new(size, 9, 9);
        bits.mark(1000, 3_000_000);
        bits.mark(7 << 20, size - (7 << 20));
        let back = Bits::new(size, 9, 9);
        let mut seen = Vec::new();
        for index in 0..bits.bytes().div_ceil(512) {
            seen.push(bits.uniform(index, 512));
            match bits.uniform(index, 512) {
                Some(true) => back.add_ones(index, 512),
                Some(false) => {}
                None => {
                    let mut cluster = [0xff; 512];
                    bits.to_disk(index, &mut cluster);
                    back.add_from_disk(index, &cluster);
                }
            }
        }
        assert_eq!(runs(&back), runs(&bits));
        assert_eq!(seen, [None, None, Some(false), None, None]);
        assert_eq!(bits.uniform(4, 512), None, "the last one has bits past the end, which are 0");
    }

    #[test]
    fn bits_past_the_end_are_left_out() {
        let bits = Bits::new(100 * 512, 9, 12);
        bits.add_from_disk(0, &[0xff; 4096]);
        assert_eq!(runs(&bits), [(0, 51_200)]);
        let mut cluster = [0; 4096];
        bits.to_disk(0, &mut cluster);
        assert_eq!(cluster.iter().map(|byte| byte.count_ones()).sum::<u32>(), 100);
        let grown = bits.resized(200 * 512, 12);
        assert_eq!(runs(&grown), [(0, 51_200)], "what is new is clean");
        assert_eq!(runs(&bits.resized(10 * 512 + 1, 12)), [(0, 5121)]);
        assert_eq!(runs(&bits.resized(0, 12)), []);
    }

    #[test]
    fn the_largest_disks_do_not_overflow() {
        let bits = Bits::new(i64::MAX as u64, 31, 16);
        bits.mark(i64::MAX as u64 - 1, 1);
        assert_eq!(runs(&bits), [((i64::MAX as u64) >> 31 << 31, (1 << 31) - 1)]);
        let bits = Bits::new(u64::MAX, 31, 21);
        bits.mark(0, u64::MAX);
        assert_eq!(runs(&bits), [(0, u64::MAX)]);
    }

    #[test]
    fn many_writers_lose_no_bit() {
        let bits = Bits::new(64 << 20, 9, 12);
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let bits = &bits;
                scope.spawn(move || (0..16_384).for_each(|i| bits.mark((i * 8 + thread) * 512, 512)));
            }
        });
        assert_eq!(runs(&bits), [(0, 64 << 20)]);
    }
}
