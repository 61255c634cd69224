//! How many references each cluster of the file has, in memory that the used clusters justify.
//!
//! A leaf stands for 4,096 clusters. Few counts in it are a list, many are a byte for each cluster; what a byte cannot
//! hold is kept apart. So an image costs a byte for each cluster where they stand close, and 4 bytes and a
//! share of the directory where they are far apart, whatever the file's length says.

use std::ops::Range;
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::error::{Error, Result};

/// Clusters of a leaf.
pub(super) const LEAF: u64 = 4096;
/// Counts that a leaf keeps as a list: as many bytes as the array would have are reached at four times as many.
const FEW: usize = 256;
/// Leaves of a node of the directory.
const NODE: u64 = 64;
/// Clusters of the longest file that can be checked: 4 PiB of 64 KiB clusters. The directory's root then has 4 MiB.
const CLUSTERS_MAX: u64 = 1 << 36;
/// The largest count of a byte; the rest of a larger one is kept apart.
const BYTE_MAX: u8 = u8::MAX;

type Node = [Mutex<Leaf>; NODE as usize];

/// Counts of references, shared by the threads that count.
#[derive(Debug)]
pub(super) struct Counts {
    root: Box<[OnceLock<Box<Node>>]>,
    /// What references there are beyond [`BYTE_MAX`].
    rest: Mutex<FxHashMap<u64, u64>>,
}

#[derive(Debug, Default)]
struct Leaf {
    tally: Tally,
    /// Which clusters the file's refcounts say have exactly one reference.
    ones: Option<Box<[u64; LEAF as usize / 64]>>,
}

#[derive(Debug)]
enum Tally {
    /// Sorted by place in the leaf.
    Few(Vec<(u16, u8)>),
    Many(Box<[u8; LEAF as usize]>),
}

impl Default for Tally {
    fn default() -> Self {
        Tally::Few(Vec::new())
    }
}

impl Tally {
    fn get(&self, index: u16) -> u8 {
        match self {
            Tally::Few(few) => few.binary_search_by_key(&index, |one| one.0).map_or(0, |at| few[at].1),
            Tally::Many(many) => many[usize::from(index)],
        }
    }

    /// Adds `weight` references to each; calls `over` with what a byte cannot hold of it.
    fn add(&mut self, range: Range<usize>, weight: u64, mut over: impl FnMut(usize, u64)) {
        let mut increase = |count: &mut u8, index: usize| {
            let fits = weight.min(u64::from(BYTE_MAX - *count));
            *count += fits as u8;
            if fits < weight {
                over(index, weight - fits);
            }
        };
        if let Tally::Few(few) = self {
            if few.len() + range.len() <= FEW {
                for index in range {
                    let key = index as u16;
                    let at = few.binary_search_by_key(&key, |one| one.0).unwrap_or_else(|at| {
                        few.insert(at, (key, 0));
                        at
                    });
                    increase(&mut few[at].1, index);
                }
                return;
            }
            let mut many = Box::new([0; LEAF as usize]);
            for (index, count) in &*few {
                many[usize::from(*index)] = *count;
            }
            *self = Tally::Many(many);
        }
        let Tally::Many(many) = self else { unreachable!("made so above") };
        let counts = &mut many[range.clone()];
        if weight == 1 && counts.iter().all(|count| *count < BYTE_MAX) {
            for count in counts {
                *count += 1;
            }
        } else {
            range.zip(counts).for_each(|(index, count)| increase(count, index));
        }
    }
}

/// Whether all bits of the range are `want`.
fn all_are(words: Option<&[u64; LEAF as usize / 64]>, range: &Range<usize>, want: bool) -> bool {
    let Some(words) = words else { return !want };
    let (first, last) = (range.start / 64, (range.end - 1) / 64);
    (first..=last).all(|index| {
        let low = if index == first { u64::MAX << (range.start % 64) } else { u64::MAX };
        let high = if index == last { u64::MAX >> (63 - (range.end - 1) % 64) } else { u64::MAX };
        let mask = low & high;
        words[index] & mask == if want { mask } else { 0 }
    })
}

impl Counts {
    /// Counts for a file of so many clusters.
    pub(super) fn new(clusters: u64) -> Result<Self> {
        if clusters > CLUSTERS_MAX {
            return Err(Error::unsupported(format!(
                "the file has {clusters} clusters; {CLUSTERS_MAX} are the most that can be checked"
            )));
        }
        // One more than the file has: what stands in its last cluster may end in the next one.
        let nodes = (clusters + 1).div_ceil(LEAF * NODE) as usize;
        Ok(Counts { root: (0..nodes).map(|_| OnceLock::new()).collect(), rest: Mutex::default() })
    }

    fn leaf(&self, cluster: u64) -> Option<&Mutex<Leaf>> {
        let node = self.root.get((cluster / (LEAF * NODE)) as usize)?.get()?;
        Some(&node[(cluster / LEAF % NODE) as usize])
    }

    fn make_leaf(&self, cluster: u64) -> &Mutex<Leaf> {
        let node = &self.root[(cluster / (LEAF * NODE)) as usize];
        &node.get_or_init(|| Box::new(std::array::from_fn(|_| Mutex::default())))
            [(cluster / LEAF % NODE) as usize]
    }

    /// Adds `weight` references to each of `clusters`.
    pub(super) fn add(&self, clusters: Range<u64>, weight: u64) {
        self.refer(clusters, weight, None, |_| {});
    }

    /// The same for clusters whose entries say that the refcount is 1, or is not (`copied`): calls `contradicted` for those of
    /// which the file's refcounts say something else. The clusters are inside the file.
    pub(super) fn refer(
        &self,
        clusters: Range<u64>,
        weight: u64,
        copied: Option<bool>,
        mut contradicted: impl FnMut(u64),
    ) {
        let mut next = clusters.start;
        while next < clusters.end {
            let base = next / LEAF * LEAF;
            let end = clusters.end.min(base + LEAF);
            let range = (next - base) as usize..(end - base) as usize;
            let mut leaf = self.make_leaf(next).lock();
            if let Some(copied) = copied {
                let ones = leaf.ones.as_deref();
                if !all_are(ones, &range, copied) {
                    let is_one = |i: &usize| ones.is_some_and(|ones| ones[i / 64] >> (i % 64) & 1 == 1);
                    range.clone().filter(|i| is_one(i) != copied).for_each(|i| contradicted(base + i as u64));
                }
            }
            leaf.tally.add(range, weight, |index, over| {
                let mut rest = self.rest.lock();
                let rest = rest.entry(base + index as u64).or_default();
                *rest = rest.saturating_add(over);
            });
            next = end;
        }
    }

    /// References to a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let count = self.leaf(cluster).map_or(0, |leaf| leaf.lock().tally.get((cluster % LEAF) as u16));
        self.whole(cluster, count)
    }

    fn whole(&self, cluster: u64, count: u8) -> u64 {
        let rest = if count == BYTE_MAX { self.rest.lock().get(&cluster).copied() } else { None };
        u64::from(count).saturating_add(rest.unwrap_or(0))
    }

    /// Notes those of `clusters`, which are inside the file, of which the file's refcounts say 1.
    pub(super) fn note_ones(&self, clusters: Range<u64>, is_one: impl Fn(u64) -> bool) {
        let mut next = clusters.start;
        while next < clusters.end {
            let base = next / LEAF * LEAF;
            let end = clusters.end.min(base + LEAF);
            let mut found = [0; LEAF as usize / 64];
            for cluster in next..end {
                let index = (cluster - base) as usize;
                found[index / 64] |= u64::from(is_one(cluster)) << (index % 64);
            }
            if found.iter().any(|word| *word != 0) {
                let mut leaf = self.make_leaf(base).lock();
                let ones = leaf.ones.get_or_insert_with(|| Box::new([0; LEAF as usize / 64]));
                ones.iter_mut().zip(found).for_each(|(word, found)| *word |= found);
            }
            next = end;
        }
    }

    /// Whether the file's refcounts say 1 of it.
    pub(super) fn is_one(&self, cluster: u64) -> bool {
        let index = (cluster % LEAF) as usize;
        self.leaf(cluster).is_some_and(|leaf| {
            leaf.lock().ones.as_ref().is_some_and(|ones| ones[index / 64] >> (index % 64) & 1 == 1)
        })
    }

    /// Calls `visit` with the counts of `clusters` in parts, each with its first cluster. A part is of one leaf.
    pub(super) fn visit(&self, clusters: Range<u64>, mut visit: impl FnMut(u64, &[u64])) {
        let mut part = vec![0; LEAF.min(clusters.end - clusters.start) as usize];
        let mut next = clusters.start;
        while next < clusters.end {
            let base = next / LEAF * LEAF;
            let end = clusters.end.min(base + LEAF);
            let part = &mut part[..(end - next) as usize];
            self.fill(next, part);
            visit(next, part);
            next = end;
        }
    }

    /// The counts of clusters of one leaf, from `first` on.
    fn fill(&self, first: u64, part: &mut [u64]) {
        part.fill(0);
        let Some(leaf) = self.leaf(first) else { return };
        let start = (first % LEAF) as usize;
        match &leaf.lock().tally {
            Tally::Few(few) => {
                for (index, count) in few {
                    if let Some(place) = usize::from(*index).checked_sub(start).and_then(|i| part.get_mut(i))
                    {
                        *place = u64::from(*count);
                    }
                }
            }
            Tally::Many(many) => {
                part.iter_mut().zip(&many[start..]).for_each(|(place, count)| *place = u64::from(*count));
            }
        }
        if part.contains(&u64::from(BYTE_MAX)) {
            for (cluster, count) in (first..).zip(part).filter(|(_, count)| **count == u64::from(BYTE_MAX)) {
                *count = self.whole(cluster, BYTE_MAX);
            }
        }
    }

    /// The clusters of each leaf in which something is counted, in order.
    pub(super) fn used(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        (0..).zip(&self.root).filter_map(|(n, node)| Some((n, node.get()?))).flat_map(|(n, node)| {
            (0..).zip(node.iter()).filter_map(move |(i, leaf)| {
                let empty = matches!(&leaf.lock().tally, Tally::Few(few) if few.is_empty());
                let first = (n * NODE + i) * LEAF;
                (!empty).then_some(first..first + LEAF)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_right_whether_few_many_or_large() {
        let counts = Counts::new(1 << 30).unwrap();
        counts.add(5..6, 1);
        counts.add(4090..4100, 2);
        counts.add(1 << 29..(1 << 29) + 1, 70_000);
        assert_eq!([5, 6, 4090, 4099, 4100, 1 << 29].map(|at| counts.get(at)), [1, 0, 2, 2, 0, 70_000]);
        counts.add(0..8192, 300);
        assert_eq!([0, 5, 4095, 4096, 8191, 8192].map(|at| counts.get(at)), [300, 301, 302, 302, 300, 0]);
        let used: Vec<_> = counts.used().collect();
        assert_eq!(used, [0..4096, 4096..8192, 1 << 29..(1 << 29) + 4096]);
        let mut seen = Vec::new();
        counts.visit(4094..4098, |first, part| seen.push((first, part.to_vec())));
        assert_eq!(seen, [(4094, vec![302, 302]), (4096, vec![302, 302])]);
    }

    #[test]
    fn entries_are_held_against_the_refcounts() {
        let counts = Counts::new(10_000).unwrap();
        counts.note_ones(0..8192, |cluster| (60..4200).contains(&cluster));
        let contradicted = |range: Range<u64>, copied| {
            let mut found = Vec::new();
            counts.refer(range, 1, Some(copied), |cluster| found.push(cluster));
            found
        };
        assert_eq!(contradicted(60..4200, true), Vec::<u64>::new());
        assert_eq!(contradicted(58..62, true), [58, 59]);
        assert_eq!(contradicted(4198..4202, false), [4198, 4199]);
        assert_eq!(contradicted(9000..9100, false), Vec::<u64>::new());
        assert!(counts.is_one(127) && !counts.is_one(59) && !counts.is_one(9000));
    }

    #[test]
    fn far_apart_clusters_cost_no_arrays() {
        let counts = Counts::new(CLUSTERS_MAX).unwrap();
        for n in 0..1000 {
            counts.add(n << 26..(n << 26) + 1, 1);
        }
        assert_eq!(counts.used().count(), 1000);
        assert!(Counts::new(CLUSTERS_MAX + 1).is_err());
    }
}
