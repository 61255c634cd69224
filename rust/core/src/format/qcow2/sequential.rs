//! New images from the first byte to the last, for who cannot go back: a pipe.
//!
//! Where the data is has to be known before: header, refcounts, L1 table, the L2 tables that are needed, then the clusters of data in the
//! disk's order, one behind the other. Nothing is written twice.

use std::ops::Range;

use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::create::{ALL_SUBCLUSTERS, COPIED, CreateOptions, Plan};
use super::header::l1_entries_for;
use super::refcounts;
use crate::error::{Error, Result};
use crate::format::preallocation::Preallocation;

/// The numbers of the disk's clusters that have data, ascending, in ranges that do not touch one another's clusters. It is gone through
/// more than once and has to say the same every time.
pub type Clusters<'a> = dyn Fn() -> Box<dyn Iterator<Item = Result<Range<u64>>> + 'a> + 'a;

/// An image that is written from its first byte to its last.
#[derive(Debug)]
pub struct Sequential {
    plan: Plan,
    l1_entries: u64,
    entries_per_table: u64,
}

impl Sequential {
    /// Lays the image out. [`Unsupported`](crate::ErrorKind::Unsupported) for options that a stream cannot have.
    pub fn new(options: &CreateOptions, clusters: &Clusters<'_>) -> Result<Self> {
        let problem = if options.data_file.is_some() {
            "an external data file"
        } else if options.backing.is_some() {
            "a backing file"
        } else if options.encryption.is_some() {
            "encryption"
        } else if options.preallocation != Preallocation::Off {
            "preallocation"
        } else {
            ""
        };
        if !problem.is_empty() {
            return Err(Error::unsupported(format!(
                "an image that is written as a stream cannot have {problem}"
            )));
        }
        let l2_entry_size = if options.extended_l2 { 16 } else { 8 };
        let entries_per_table = u64::from(options.cluster_size) / l2_entry_size;
        let (mut tables, mut data, mut last) = (0, 0, None);
        for range in clusters() {
            let range = range?;
            data += range.end - range.start;
            let (first, end) = (range.start / entries_per_table, range.end.div_ceil(entries_per_table));
            tables += end - first - u64::from(last == Some(first));
            last = Some(end - 1);
        }
        let plan = Plan::with_data(options, tables, data)?;
        let l1_entries = l1_entries_for(plan.size, plan.cluster_bits, l2_entry_size);
        Ok(Sequential { plan, l1_entries, entries_per_table })
    }

    /// Bytes of the whole image.
    pub fn len(&self) -> u64 {
        self.plan.clusters() << self.plan.cluster_bits
    }

    /// Whether there is no byte in it: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// How many clusters of data follow the tables.
    pub fn data_clusters(&self) -> u64 {
        self.plan.data_clusters
    }

    /// Gives `put` everything that comes before the data, in pieces of at most a cluster.
    pub fn put_tables(
        &self,
        clusters: &Clusters<'_>,
        put: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let plan = &self.plan;
        let mut out = Out { put, cluster: Vec::new(), size: plan.cluster_size() as usize };
        out.put(&plan.head)?;
        out.end_cluster()?;
        for block in 0..plan.blocks {
            out.put(U64::new((plan.blocks_start() + block) << plan.cluster_bits).as_bytes())?;
        }
        out.end_cluster()?;
        let mut left = plan.clusters();
        for _ in 0..plan.blocks {
            let used = left.min(plan.refcounts_per_block());
            out.put(&refcounts::block_of_ones(used, plan.refcount_order, plan.cluster_size()))?;
            left -= used;
        }
        self.put_l1(clusters, &mut out)?;
        self.put_l2(clusters, &mut out)
    }

    fn put_l1(&self, clusters: &Clusters<'_>, out: &mut Out<'_>) -> Result<()> {
        let (mut index, mut table) = (0, self.plan.l2_start());
        for range in clusters() {
            let range = range?;
            let (first, end) =
                (range.start / self.entries_per_table, range.end.div_ceil(self.entries_per_table));
            while index < end {
                let mut entry = 0;
                if index >= first {
                    entry = table << self.plan.cluster_bits | COPIED;
                    table += 1;
                }
                out.put(U64::new(entry).as_bytes())?;
                index += 1;
            }
        }
        check_same(index <= self.l1_entries && table == self.plan.encryption_start())?;
        for _ in index..self.l1_entries {
            out.put(&[0; 8])?;
        }
        out.end_cluster()
    }

    fn put_l2(&self, clusters: &Clusters<'_>, out: &mut Out<'_>) -> Result<()> {
        let plan = &self.plan;
        // Number of the next entry, where one is open within a table.
        let mut next: Option<u64> = None;
        let mut host = plan.data_start();
        for range in clusters() {
            for cluster in range? {
                let table = cluster / self.entries_per_table;
                if next.is_some_and(|next| next.div_ceil(self.entries_per_table) <= table) {
                    out.end_cluster()?;
                    next = None;
                }
                for _ in next.unwrap_or(table * self.entries_per_table)..cluster {
                    self.put_entry(0, 0, out)?;
                }
                self.put_entry(host << plan.cluster_bits | COPIED, ALL_SUBCLUSTERS, out)?;
                host += 1;
                next = Some(cluster + 1);
            }
        }
        check_same(host == plan.clusters())?;
        out.end_cluster()
    }

    fn put_entry(&self, entry: u64, subclusters: u64, out: &mut Out<'_>) -> Result<()> {
        out.put(U64::new(entry).as_bytes())?;
        if self.plan.extended_l2 { out.put(U64::new(subclusters).as_bytes()) } else { Ok(()) }
    }
}

fn check_same(same: bool) -> Result<()> {
    if same {
        return Ok(());
    }
    Err(Error::invalid_input("the source changed while it was converted: what has data is not what it was"))
}

/// Bytes that leave in whole clusters.
struct Out<'a> {
    put: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    cluster: Vec<u8>,
    size: usize,
}

impl Out<'_> {
    /// `bytes`, which do not cross the end of the cluster.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.cluster.extend_from_slice(bytes);
        if self.cluster.len() < self.size {
            return Ok(());
        }
        debug_assert_eq!(self.cluster.len(), self.size);
        (self.put)(&self.cluster)?;
        self.cluster.clear();
        Ok(())
    }

    /// Zeroes up to the end of the cluster, if one has begun.
    fn end_cluster(&mut self) -> Result<()> {
        if self.cluster.is_empty() {
            return Ok(());
        }
        self.cluster.resize(self.size, 0);
        self.put(&[])
    }
}
