//! New refcount structures from nothing but the references.
//!
//! They stand behind everything that is in the file, so that nothing is overwritten, whatever the old ones say:
//! 1. the new blocks and the new table, 2. barrier, 3. offset and length of the table in the header, one write inside a sector,
//! 4. barrier. Up to 3 the old structures are in force and the new ones lie past all that counts; after 3 the old ones are free space.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;

use super::Survey;
use super::blocks::is_of_refcounts;
use crate::error::Result;
use crate::format::qcow2::refcounts::{Structure, read_count, write_count};

impl Survey<'_> {
    /// Space behind the file must be free for good: nothing may point there. And what could not be followed keeps its refcounts,
    /// which takes the old ones.
    pub(super) fn can_rebuild(&self) -> bool {
        let keeps = self.header.lost.refcounts.is_none() || !self.is_lost();
        keeps && !self.dangling.load(Ordering::Relaxed)
    }

    pub(super) fn rebuild(&self) -> Result<()> {
        let (bits, per_block, order) =
            (self.header.cluster_bits, self.per_block(), self.header.refcount_order);
        // The old structures are not used any more afterwards.
        let mut old = FxHashMap::<u64, u64>::default();
        for claim in self.claims.iter().filter(|claim| is_of_refcounts(claim.what)) {
            claim.clusters.clone().for_each(|cluster| *old.entry(cluster).or_default() += 1);
        }
        let plan = self.plan()?;
        for (number, place) in plan.blocks() {
            let mut bytes = vec![0; self.cluster_size() as usize];
            let first = number * per_block;
            let before = self.old_block(number)?;
            self.counts.visit(first..first + per_block, |start, users| {
                for (cluster, &users) in (start..).zip(users) {
                    let index = cluster - first;
                    let mut count = users - old.get(&cluster).copied().unwrap_or(0);
                    if let Some(before) = &before {
                        count = count.max(read_count(before, order, index));
                    }
                    if plan.clusters().contains(&cluster) {
                        count = 1;
                    }
                    if count > 0 {
                        write_count(&mut bytes, order, index, count.min(self.refcount_max()));
                    }
                }
            });
            self.storage.writev_at((&bytes).into(), place << bits)?;
        }
        self.storage.writev_at((&plan.table_bytes()).into(), plan.table_offset().0)?;
        self.storage.sync()?;
        self.header.rewrite_refcount_table(self.storage, plan.table_offset(), plan.table_clusters())?;
        self.storage.sync()
    }

    /// The old refcounts of a block, where they are to be kept because what they count could not be followed.
    fn old_block(&self, number: u64) -> Result<Option<Vec<u8>>> {
        let block = self.blocks.table.get(number as usize).copied().unwrap_or(0);
        if !self.is_lost() || block == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; self.cluster_size() as usize];
        self.storage.readv_at((&mut bytes).into(), block)?;
        Ok(Some(bytes))
    }

    fn plan(&self) -> Result<Structure> {
        let per_block = self.per_block();
        let mut blocks = BTreeSet::new();
        for clusters in self.counts.used() {
            self.counts.visit(clusters, |start, users| {
                let used = (start..).zip(users).filter(|(_, users)| **users > 0);
                blocks.extend(used.map(|(cluster, _)| cluster / per_block));
            });
        }
        if self.is_lost() {
            blocks.extend(
                (0..).zip(&self.blocks.table).filter(|(_, word)| **word != 0).map(|(number, _)| number),
            );
        }
        let first = self.file_clusters + u64::from(self.counts.get(self.file_clusters) > 0);
        let used: Vec<u64> = blocks.into_iter().collect();
        Structure::behind(first, &used, self.header.cluster_bits, self.header.refcount_order)
    }
}
