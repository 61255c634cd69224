//! The compressed clusters that were unpacked last, so that small sequential reads unpack each once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::format::CompressedCluster;

/// Bytes an image keeps unpacked, unless two clusters are more.
const BUDGET: usize = 1 << 20;

#[derive(Debug)]
struct Entry {
    cluster: CompressedCluster,
    bytes: Arc<Vec<u8>>,
}

/// A few unpacked clusters of one image; the most recent last.
#[derive(Debug, Default)]
pub(crate) struct ClusterCache {
    entries: Mutex<Vec<Entry>>,
    /// How many there are, so that writes to images without any pay no lock.
    count: AtomicUsize,
    /// How often something was forgotten, see [`Stamp`].
    forgotten: AtomicU64,
}

/// A moment before a mapping was looked up. What was unpacked by that mapping is kept only if nothing was forgotten since: a write
/// changes the mapping first and then lets the cache forget, so that whoever still saw the old one comes too late here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp(u64);

impl ClusterCache {
    /// The unpacked bytes of `cluster`, if they are here.
    pub(crate) fn get(&self, cluster: &CompressedCluster) -> Option<Arc<Vec<u8>>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut entries = self.entries.lock();
        let index = entries.iter().rposition(|entry| entry.cluster == *cluster)?;
        let entry = entries.remove(index);
        let bytes = Arc::clone(&entry.bytes);
        entries.push(entry);
        Some(bytes)
    }

    /// To be taken before the mapping of what is then [`put`](Self::put) is looked up.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp(self.forgotten.load(Ordering::SeqCst))
    }

    /// Keeps the unpacked bytes of `cluster`, whose mapping was looked up after `stamp`.
    pub(crate) fn put(&self, cluster: CompressedCluster, bytes: Arc<Vec<u8>>, stamp: Stamp) {
        let keep = (BUDGET / bytes.len().max(1)).max(2);
        let mut entries = self.entries.lock();
        entries.retain(|entry| entry.cluster != cluster);
        if entries.len() >= keep {
            let surplus = entries.len() + 1 - keep;
            entries.drain(..surplus);
        }
        entries.push(Entry { cluster, bytes });
        self.count.store(entries.len(), Ordering::SeqCst);
        // Either this sees that something was forgotten, or who forgets sees the count and waits for the lock.
        if self.forgotten.load(Ordering::SeqCst) != stamp.0 {
            entries.pop();
            self.count.store(entries.len(), Ordering::SeqCst);
        }
    }

    /// Forgets what stands for a byte of `len` guest bytes at `offset`: its mapping has changed, and the space may come to
    /// hold something else.
    pub(crate) fn forget(&self, offset: u64, len: u64) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut entries = self.entries.lock();
        entries.retain(|Entry { cluster, .. }| {
            let start = cluster.guest.0;
            start >= offset.saturating_add(len) || start + u64::from(cluster.unpacked_len) <= offset
        });
        self.count.store(entries.len(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Compression;
    use crate::units::{GuestOffset, HostOffset};

    fn cluster(index: u64, len: u32) -> CompressedCluster {
        CompressedCluster {
            host: HostOffset(index * 512),
            packed_len: 512,
            guest: GuestOffset(index * u64::from(len)),
            unpacked_len: len,
            method: Compression::Deflate,
        }
    }

    #[test]
    fn it_is_bounded_and_keeps_the_recent_ones() {
        for len in [65536_u32, 2 << 20] {
            let cache = ClusterCache::default();
            let keep = (BUDGET / len as usize).max(2) as u64;
            for index in 0..keep + 3 {
                cache.put(cluster(index, len), Arc::new(vec![index as u8; len as usize]), cache.stamp());
            }
            assert_eq!(cache.entries.lock().len() as u64, keep);
            assert!(cache.get(&cluster(2, len)).is_none());
            assert_eq!(cache.get(&cluster(keep + 2, len)).unwrap()[0], (keep + 2) as u8);
        }
    }

    #[test]
    fn what_was_overwritten_is_forgotten() {
        let cache = ClusterCache::default();
        for index in 0..3 {
            cache.put(cluster(index, 4096), Arc::new(vec![0; 4096]), cache.stamp());
        }
        cache.forget(8191, 1);
        assert!(cache.get(&cluster(0, 4096)).is_some());
        assert!(cache.get(&cluster(1, 4096)).is_none());
        assert!(cache.get(&cluster(2, 4096)).is_some());
    }

    #[test]
    fn what_was_unpacked_by_a_mapping_of_before_is_not_kept() {
        let cache = ClusterCache::default();
        let stamp = cache.stamp();
        cache.forget(0, 4096);
        cache.put(cluster(0, 4096), Arc::new(vec![0; 4096]), stamp);
        assert!(cache.get(&cluster(0, 4096)).is_none());
        cache.put(cluster(0, 4096), Arc::new(vec![0; 4096]), cache.stamp());
        assert!(cache.get(&cluster(0, 4096)).is_some());
    }
}
