//! The refcounts that the file has, and how they compare with the references counted.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::report::{FindingKind, Place};
use super::spread::Control;
use super::{READ, Survey};
use crate::error::Result;
use crate::format::qcow2::refcounts::read_count;
use crate::format::qcow2::tables::read_words;

const TABLE: &str = "the refcount table";
const BLOCK: &str = "a refcount block";

/// Whether this is one of the refcount structures.
pub(super) fn is_of_refcounts(what: &str) -> bool {
    what == TABLE || what == BLOCK
}

/// Bits 0 to 8 of an entry of the refcount table have to be 0.
const RESERVED: u64 = 0x1ff;

/// The refcount blocks that can be used.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The refcount table; entries that name no block that can be read are 0.
    pub(super) table: Vec<u64>,
    /// Offset and number of each block, in the order of the file.
    by_place: Vec<(u64, u64)>,
    /// Some of the table's entries make no sense.
    pub(super) broken: bool,
}

/// Entries of the refcount table that may name a block which another one names too.
const SHARED_MAX: usize = 64;

impl Survey<'_> {
    pub(super) fn per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.header.refcount_order
    }

    /// The largest refcount that the width can hold.
    pub(super) fn refcount_max(&self) -> u64 {
        u64::MAX >> (64 - self.header.refcount_bits())
    }

    pub(super) fn read_refcount_table(&mut self) -> Result<()> {
        if let Some(lost) = &self.header.lost.refcounts {
            let at = Place::at(lost.offset().unwrap_or_default());
            self.note(FindingKind::RefcountTable, at, 1, || lost.message().to_owned());
            self.blocks.broken = true;
            return Ok(());
        }
        let start = self.header.refcount_table_offset;
        let bytes = u64::from(self.header.refcount_table_clusters) << self.header.cluster_bits;
        self.claim(TABLE, start.0, bytes);
        // A table in the file's last cluster may be shorter than it says; the rest is zeroes.
        let there = bytes.min(self.file_len - start.0) / 8;
        let mut table = read_words(self.storage, start, there)?;
        for (index, word) in (0..).zip(&mut table) {
            let (raw, size) = (*word, self.cluster_size());
            *word &= !RESERVED;
            let block = *word;
            let problem = match raw {
                0 => continue,
                _ if !block.is_multiple_of(size) => Some("names no cluster boundary"),
                _ if block >= self.file_len => Some("names a block past the end of the file"),
                _ => None,
            };
            if raw & RESERVED == 0 && problem.is_none() {
                self.claim(BLOCK, block, size);
                if block + size > self.file_len {
                    self.cut(BLOCK, block, None);
                }
            } else {
                let problem = problem.unwrap_or("has bits set that have to be 0");
                self.note(FindingKind::RefcountTable, Place::at(start.0 + index * 8), 1, || {
                    format!("entry {index} of the refcount table, {raw:#x}, {problem}")
                });
                self.blocks.broken = true;
            }
            match problem {
                None if block != 0 => self.blocks.by_place.push((block, index)),
                _ => *word = 0,
            }
        }
        self.blocks.by_place.sort_unstable();
        // Where one block counts some parts of the file, what is wrong shows in the counts. Nobody makes thousands of entries name it but to
        // have them counted: then they are no table.
        let shared = self.blocks.by_place.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        let shared: Vec<_> = shared.map(|pair| pair[1].1).collect();
        if shared.len() > SHARED_MAX {
            self.blocks.broken = true;
            self.note(FindingKind::RefcountTable, Place::at(start.0), shared.len() as u64, || {
                "the refcount table names the same blocks again and again".to_owned()
            });
            for index in shared {
                table[index as usize] = 0;
            }
            self.blocks.by_place.dedup_by_key(|(block, _)| *block);
        }
        self.blocks.table = table;
        Ok(())
    }

    /// A table ends where the file does: its last entries were cut off and read as zeroes.
    pub(super) fn cut(&self, what: &str, offset: u64, guest: Option<u64>) {
        let place = Place { offset: Some(offset), guest };
        self.notes.add(FindingKind::PastEnd, place, 1, || format!("the file ends inside {what}"));
    }

    /// Runs of blocks that are read at once: neighbours, up to [`READ`] bytes.
    fn runs(&self) -> Vec<Range<usize>> {
        runs(&self.blocks.by_place, self.cluster_size(), |block| block.0)
    }

    /// Calls `visit` with the number and the bytes of every block; those that cannot be read are noted.
    fn each_block(
        &self,
        control: &mut Control<'_>,
        note: bool,
        visit: impl Fn(u64, &[u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let (runs, size) = (self.runs(), self.cluster_size() as usize);
        control.spread(runs.len(), |buffer: &mut Vec<u8>, number| {
            let run = &self.blocks.by_place[runs[number].clone()];
            self.read_each(buffer, run.iter().map(|block| block.0), |n, bytes| match bytes {
                Ok(bytes) => visit(run[n].1, &bytes[..size]),
                Err(error) => {
                    if note {
                        self.note(FindingKind::Unreadable, Place::at(run[n].0), 1, || error.to_string());
                    }
                    Ok(())
                }
            })
        })
    }

    /// Notes the clusters whose refcount is 1, for the COPIED flags.
    pub(super) fn note_ones(&self, control: &mut Control<'_>) -> Result<()> {
        let (per_block, order) = (self.per_block(), self.header.refcount_order);
        self.each_block(control, true, |number, bytes| {
            let first = number * per_block;
            let end = (first + per_block).min(self.file_clusters + 1);
            self.counts.note_ones(first..end, |cluster| read_count(bytes, order, cluster - first) == 1);
            Ok(())
        })
    }

    /// The refcount that the file has for a cluster, wherever that is; 0 where it cannot be read.
    pub(super) fn refcount(&self, cluster: u64) -> u64 {
        let order = self.header.refcount_order;
        let block = self.blocks.table.get((cluster / self.per_block()) as usize);
        let Some(&block) = block.filter(|block| **block != 0) else { return 0 };
        let index = cluster % self.per_block();
        let byte = ((index << order) / 8) & !7;
        let mut word = [0; 8];
        match self.storage.readv_at((&mut word).into(), block + byte) {
            Ok(()) => read_count(&word, order, index - ((byte * 8) >> order)),
            Err(_) => 0,
        }
    }

    /// Compares the refcounts with the references.
    pub(super) fn compare(&self, control: &mut Control<'_>) -> Result<()> {
        let (per_block, order) = (self.per_block(), self.header.refcount_order);
        self.each_block(control, false, |number, bytes| {
            let first = number * per_block;
            self.counts.visit(first..first + per_block, |start, users| {
                let mut last = None;
                for (cluster, &users) in (start..).zip(users) {
                    let refcount = read_count(bytes, order, cluster - first);
                    if refcount != users {
                        self.compare_one(cluster, refcount, users);
                    }
                    if users > 0 || (refcount > 0 && cluster < self.file_clusters) {
                        last = Some(cluster);
                    }
                }
                self.note_used(last);
            });
            Ok(())
        })?;
        let has_block = |cluster: u64| {
            self.blocks.table.get((cluster / per_block) as usize).is_some_and(|block| *block != 0)
        };
        for clusters in self.counts.used() {
            if clusters.clone().step_by(per_block.min(super::counts::LEAF) as usize).all(has_block) {
                continue;
            }
            self.counts.visit(clusters, |start, users| {
                let without =
                    (start..).zip(users).filter(|(cluster, users)| **users > 0 && !has_block(*cluster));
                for (cluster, &users) in without {
                    self.uncovered.store(true, Ordering::Relaxed);
                    self.compare_one(cluster, 0, users);
                    self.note_used(Some(cluster));
                }
            });
        }
        Ok(())
    }

    /// Calls `change` with the number and the bytes of every block, and with those of its clusters that have other refcounts (second)
    /// than users (third).
    pub(super) fn each_differing(
        &self,
        control: &mut Control<'_>,
        change: impl Fn(u64, &[u8], &[(u64, u64, u64)]) -> Result<()> + Sync,
    ) -> Result<()> {
        let (per_block, order) = (self.per_block(), self.header.refcount_order);
        self.each_block(control, false, |number, bytes| {
            let first = number * per_block;
            let mut differing = Vec::new();
            self.counts.visit(first..first + per_block, |start, users| {
                let counts = (start..)
                    .zip(users)
                    .map(|(cluster, &users)| (cluster, read_count(bytes, order, cluster - first), users));
                differing.extend(counts.filter(|(_, refcount, users)| refcount != users));
            });
            if differing.is_empty() { Ok(()) } else { change(number, bytes, &differing) }
        })
    }

    fn note_used(&self, last: Option<u64>) {
        if let Some(last) = last {
            self.last_used.fetch_max(last, Ordering::Relaxed);
        }
    }

    fn compare_one(&self, cluster: u64, refcount: u64, users: u64) {
        let place = Place::at(cluster << self.header.cluster_bits);
        let want = users.min(self.refcount_max());
        if want < users {
            self.note(FindingKind::RefcountOverflow, place, users - want, || {
                format!("{users} references, more than a refcount of this width can say")
            });
        }
        if refcount < want {
            self.note(FindingKind::RefcountTooLow, place, 1, || {
                format!("the refcount is {refcount}, but there are {users} references")
            });
        } else if refcount > want && self.is_leak(cluster) {
            self.note(FindingKind::RefcountTooHigh, place, 1, || {
                format!("the refcount is {refcount}, but there are {users} references")
            });
        }
    }

    /// Whether a refcount that is too high means a leak: not while parts of the image could not be followed, and not
    /// past the end of the file while entries point there, whose references are not counted.
    pub(super) fn is_leak(&self, cluster: u64) -> bool {
        self.notes.errors() == 0 && (cluster < self.file_clusters || !self.dangling.load(Ordering::Relaxed))
    }
}

/// Runs of neighbours among tables of `size` bytes in the order of their `place`, up to [`READ`] bytes each.
pub(super) fn runs<T>(tables: &[T], size: u64, place: impl Fn(&T) -> u64) -> Vec<Range<usize>> {
    let most = (READ / size).max(1) as usize;
    let mut runs = Vec::new();
    for neighbours in tables.chunk_by(|a, b| place(a) + size == place(b)) {
        let start = runs.last().map_or(0, |run: &Range<usize>| run.end);
        let end = start + neighbours.len();
        runs.extend((start..end).step_by(most).map(|first| first..end.min(first + most)));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together_and_not_too_many() {
        let size = READ / 4;
        let places = [0, 1, 3, 3, 4, 5, 6, 7, 8].map(|n| n * size);
        assert_eq!(runs(&places, size, |place| *place), [0..2, 2..3, 3..7, 7..9]);
        assert_eq!(runs(&places[..2], 2 * READ, |place| *place), [0..1, 1..2]);
    }
}
