//! L1 and L2 tables: who refers to which cluster, and whether the entries make sense.

use std::sync::atomic::Ordering;

use super::Survey;
use super::blocks::runs;
use super::report::{FindingKind, Place};
use super::spread::Control;
use crate::error::{Error, Result};
use crate::format::CompressedCluster;
use crate::format::qcow2::l2::{ALL, COMPRESSED, COPIED, Entry, OFFSET_MASK, ZERO};
use crate::format::qcow2::tables::read_words;
use crate::units::{GuestOffset, HostOffset};

const L2_TABLE: &str = "an L2 table";
/// Bits of an L1 entry that have to be 0.
const L1_RESERVED: u64 = !(OFFSET_MASK | COPIED);
/// Entries of an L2 table in one part of the list of compressed clusters.
const PART: usize = 512;

/// An L2 table and who uses it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableUse {
    /// Where it is; a multiple of the cluster size unless its entry is wrong.
    pub(super) offset: u64,
    /// Number of the first L1 entry that names it.
    pub(super) l1_index: u32,
    /// Entries of the active L1 table that name it.
    pub(super) active: u32,
    /// Entries of snapshots' L1 tables that name it.
    pub(super) snapshots: u32,
}

impl TableUse {
    /// Entries of all L1 tables that name it.
    pub(super) fn users(&self) -> u64 {
        u64::from(self.active) + u64::from(self.snapshots)
    }
}

/// Entries of one table whose clusters follow each other, in the guest and in the file.
struct Run {
    entry: Entry,
    len: u64,
    /// Where the first entry is in the file.
    at: u64,
    guest: u64,
}

impl Survey<'_> {
    pub(super) fn active_l1(&mut self) -> Result<()> {
        let (offset, entries) = (self.header.l1_offset.0, self.header.l1_entries);
        self.claim("the L1 table", offset, u64::from(entries) * 8);
        self.l1_table(offset, entries, 1, 0)
    }

    /// Reads an L1 table that is `active` or of so many `snapshots`.
    pub(super) fn l1_table(&mut self, offset: u64, entries: u32, active: u32, snapshots: u32) -> Result<()> {
        let there = (self.file_len.saturating_sub(offset) / 8).min(entries.into());
        if there < entries.into() && offset < self.file_len {
            self.lost.store(true, Ordering::Relaxed);
            self.cut("an L1 table", offset, None);
        }
        if there == 0 {
            return Ok(());
        }
        let words = read_words(self.storage, HostOffset(offset), there)?;
        let users = u64::from(active) + u64::from(snapshots);
        let mut found = Vec::new();
        for (index, &word) in (0..).zip(&words).filter(|(_, word)| **word != 0) {
            let place = Place::at(offset + u64::from(index) * 8).guest(self.guest_of(index));
            let host = word & OFFSET_MASK;
            if word & L1_RESERVED != 0 || host == 0 {
                // What it should have named may be there still.
                self.lost.store(true, Ordering::Relaxed);
                self.note(FindingKind::ReservedBits, place, users, || {
                    format!("L1 entry {word:#x} has bits set that have to be 0")
                });
            }
            let aligned = host.is_multiple_of(self.cluster_size());
            if host == 0 {
                continue;
            }
            if !aligned {
                self.lost.store(true, Ordering::Relaxed);
                self.note(FindingKind::Unaligned, place, users, || {
                    format!("L1 entry {word:#x} names no cluster boundary")
                });
            }
            if active > 0 {
                self.check_copied(word, host, place, 1);
            }
            match self.inside(host, self.cluster_size()) {
                None => {
                    self.lost.store(true, Ordering::Relaxed);
                    self.note(FindingKind::PastEnd, place, users, || {
                        format!("the L2 table at {host:#x} is past the end of the file")
                    });
                }
                Some(clusters) => {
                    self.counts.add(clusters, users);
                    found.push(TableUse { offset: host, l1_index: index, active, snapshots });
                }
            }
        }
        found.sort_by_key(|table| table.offset);
        self.tables.append(&mut found);
        // Two sorted runs: cheap. Tables of several snapshots become one.
        self.tables.sort_by_key(|table| table.offset);
        self.tables.dedup_by(|next, table| {
            let same = next.offset == table.offset;
            if same {
                table.active = table.active.saturating_add(next.active);
                table.snapshots = table.snapshots.saturating_add(next.snapshots);
            }
            same
        });
        Ok(())
    }

    /// Guest offset of the first cluster behind an L1 entry.
    fn guest_of(&self, l1_index: u32) -> u64 {
        u64::from(l1_index).saturating_mul(self.geometry.table_span())
    }

    /// Holds the flag of one entry against the refcount.
    fn check_copied(&self, word: u64, host: u64, place: Place, times: u64) {
        let cluster = host >> self.header.cluster_bits;
        let one = if cluster < self.file_clusters {
            self.counts.is_one(cluster)
        } else {
            self.refcount(cluster) == 1
        };
        if one != (word & COPIED != 0) {
            self.contradicted(word, host, place, times);
        }
    }

    fn contradicted(&self, word: u64, host: u64, place: Place, times: u64) {
        self.note(FindingKind::Copied, place, times, || match word & COPIED {
            0 => format!("the refcount of the cluster at {host:#x} is 1, but COPIED is not set"),
            _ => format!("COPIED is set, but the refcount of the cluster at {host:#x} is not 1"),
        });
    }

    /// Walks all L2 tables and counts what they refer to.
    pub(super) fn walk(&self, control: &mut Control<'_>) -> Result<()> {
        let size = self.cluster_size();
        let runs = runs(&self.tables, size, |table| table.offset);
        control.pass(self.table_bytes(), runs.len(), |buffer: &mut Vec<u8>, number| {
            let run = &self.tables[runs[number].clone()];
            self.read_each(buffer, run.iter().map(|table| table.offset), |n, bytes| {
                let table = &run[n];
                let guest = self.guest_of(table.l1_index);
                match bytes {
                    Ok(bytes) => self.l2_table(table, bytes),
                    Err(error) => {
                        self.note(FindingKind::Unreadable, Place::at(table.offset).guest(guest), 1, || {
                            error.to_string()
                        });
                    }
                }
                if table.offset + size > self.file_len {
                    self.cut(L2_TABLE, table.offset, Some(guest));
                }
                Ok(())
            })
        })
    }

    /// Reads clusters that follow each other in one go and calls `visit` with the number and the bytes of each; where that fails,
    /// one by one.
    pub(super) fn read_each(
        &self,
        buffer: &mut Vec<u8>,
        offsets: impl ExactSizeIterator<Item = u64> + Clone,
        mut visit: impl FnMut(usize, Result<&[u8], Error>) -> Result<()>,
    ) -> Result<()> {
        let size = self.cluster_size() as usize;
        let count = offsets.len();
        buffer.resize(count * size, 0);
        let first = offsets.clone().next().unwrap_or_default();
        let together = count > 1 && self.storage.readv_at(buffer.as_mut_slice().into(), first).is_ok();
        for (number, offset) in offsets.enumerate() {
            let bytes = &mut buffer[number * size..][..size];
            let read = if together { Ok(()) } else { self.storage.readv_at((&mut *bytes).into(), offset) };
            visit(number, read.map(|()| &*bytes))?;
        }
        Ok(())
    }

    fn l2_table(&self, table: &TableUse, bytes: &[u8]) {
        let (extended, size) = (self.geometry.extended, self.cluster_size());
        let words = bytes.as_chunks::<8>().0;
        let stride = if extended { 2 } else { 1 };
        let word = |index: usize| u64::from_be_bytes(words[index * stride]);
        let bitmap = |index: usize| if extended { u64::from_be_bytes(words[index * 2 + 1]) } else { 0 };
        let entries = words.len() / stride;
        let guest = self.guest_of(table.l1_index);
        let mut follows = None;
        let mut next = 0;
        while next < entries {
            let index = next;
            next += 1;
            let entry = Entry { descriptor: word(index), bitmap: bitmap(index) };
            if entry == Entry::EMPTY {
                continue;
            }
            let mut run = Run {
                entry,
                len: 1,
                at: table.offset + index as u64 * self.geometry.entry_size(),
                guest: guest.saturating_add((index as u64) << self.header.cluster_bits),
            };
            if entry.is_compressed() {
                self.packed(table, &run);
                continue;
            }
            if entry.descriptor & OFFSET_MASK != 0 {
                let mut expected = entry.descriptor + size;
                while next < entries && word(next) == expected && bitmap(next) == entry.bitmap {
                    next += 1;
                    expected = expected.wrapping_add(size);
                }
                run.len = (next - index) as u64;
            }
            self.plain(table, &run, &mut follows);
        }
    }

    /// Clusters of which each has an entry like the first one's.
    fn plain(&self, table: &TableUse, run: &Run, follows: &mut Option<u64>) {
        let Run { entry: Entry { descriptor: word, bitmap }, len, .. } = *run;
        let (size, users, active) = (self.cluster_size(), table.users(), u64::from(table.active));
        let place = Place::at(run.at).guest(run.guest);
        let geometry = self.geometry;
        let has_zero_flag = geometry.zero_flag && !geometry.extended;
        let reserved = word & !(OFFSET_MASK | COPIED | if has_zero_flag { ZERO } else { 0 });
        if reserved != 0 {
            self.lost.store(true, Ordering::Relaxed);
            self.note(FindingKind::ReservedBits, place, len * users, || {
                format!("L2 entry {word:#x} has bits set that have to be 0")
            });
        }
        let host = word & OFFSET_MASK;
        let copied = word & COPIED != 0;
        let zero = !geometry.extended && word & ZERO != 0;
        if host == 0 && !(geometry.external_data && copied && !zero) {
            if bitmap & ALL != 0 {
                self.note(FindingKind::Subclusters, place, users, || {
                    format!("subclusters ({bitmap:#x}) are marked allocated in a cluster that is not")
                });
            }
            if copied {
                // What it should have named may be there still.
                self.lost.store(true, Ordering::Relaxed);
            }
            if copied && active > 0 {
                self.note(FindingKind::Copied, place, active, || "COPIED is set without a cluster".into());
            }
            return;
        }
        if bitmap & (bitmap >> 32) & ALL != 0 {
            self.note(FindingKind::Subclusters, place, len * users, || {
                format!("subclusters ({bitmap:#x}) are marked both allocated and zero")
            });
        }
        let aligned = host.is_multiple_of(size);
        if !aligned {
            self.note(FindingKind::Unaligned, place, len * users, || {
                format!("L2 entry {word:#x} names no cluster boundary")
            });
        }
        if active > 0 {
            self.allocated.fetch_add(len * active, Ordering::Relaxed);
            if follows.is_some_and(|follows| follows != host) {
                self.fragmented.fetch_add(active, Ordering::Relaxed);
            }
            *follows = Some(host.wrapping_add(len * size));
        }
        if geometry.external_data {
            return self.in_data_file(table, run);
        }
        let entries = |n: u64| (run.at + n * geometry.entry_size(), run.guest + n * size);
        match self.inside(host, len * size) {
            Some(clusters) if aligned => {
                let first = clusters.start;
                self.counts.refer(clusters, users, (active > 0).then_some(copied), |cluster| {
                    let (at, guest) = entries(cluster - first);
                    let host = cluster << self.header.cluster_bits;
                    self.contradicted(word, host, Place::at(at).guest(guest), active);
                });
            }
            Some(clusters) => {
                self.counts.add(clusters, users);
                if active > 0 {
                    self.check_copied(word, host, place, active);
                }
            }
            None if len > 1 => {
                for n in 0..len {
                    let (at, guest) = entries(n);
                    let descriptor = word.wrapping_add(n * size);
                    let run = Run { entry: Entry { descriptor, bitmap }, len: 1, at, guest };
                    self.reach(table, &run);
                }
            }
            None => self.reach(table, run),
        }
    }

    /// One cluster, of a run that goes past the end of the file.
    fn reach(&self, table: &TableUse, run: &Run) {
        let (word, place) = (run.entry.descriptor, Place::at(run.at).guest(run.guest));
        let host = word & OFFSET_MASK;
        match self.inside(host, self.cluster_size()) {
            Some(clusters) => self.counts.add(clusters, table.users()),
            None => self.note(FindingKind::PastEnd, place, table.users(), || {
                format!(
                    "the cluster at {host:#x} is past the end of the file, which is at {:#x}",
                    self.file_len
                )
            }),
        }
        if table.active > 0 {
            self.check_copied(word, host, place, table.active.into());
        }
    }

    /// Clusters of the external data file, of which there are no refcounts.
    fn in_data_file(&self, table: &TableUse, run: &Run) {
        let Run { entry: Entry { descriptor: word, bitmap }, len, .. } = *run;
        let (host, place) = (word & OFFSET_MASK, Place::at(run.at).guest(run.guest));
        let users = len * table.users();
        if host != run.guest {
            self.note(FindingKind::DataFile, place, users, || {
                format!("the entry names {host:#x} of the data file, where only its own offset can be")
            });
        }
        if word & COPIED == 0 && table.active > 0 {
            self.note(FindingKind::Copied, place, len * u64::from(table.active), || {
                "COPIED is not set, though the cluster is in the external data file".into()
            });
        }
        let has_data = if self.geometry.extended { bitmap & ALL != 0 } else { word & ZERO == 0 };
        let end = host.saturating_add(len << self.header.cluster_bits);
        if let Some(data_len) = self.data_len.filter(|data_len| has_data && end > *data_len) {
            let past = (end - data_len.max(host)) >> self.header.cluster_bits;
            if past > 0 {
                self.note(FindingKind::DataFile, place, past * table.users(), || {
                    format!(
                        "{past} clusters up to {end:#x} are past the end of the data file at {data_len:#x}"
                    )
                });
            }
        }
    }

    /// A compressed cluster.
    fn packed(&self, table: &TableUse, run: &Run) {
        let Run { entry, .. } = *run;
        let (users, place) = (table.users(), Place::at(run.at).guest(run.guest));
        let bad = |what: &str| {
            self.note(FindingKind::Compressed, place, users, || {
                format!("compressed cluster (entry {:#x}) {what}", entry.descriptor)
            });
        };
        if entry.is_copied() {
            bad("with COPIED");
        }
        if self.geometry.external_data {
            return bad("in an image with an external data file");
        }
        // It reads well all the same, so its space is counted, or a repair of leaks would take it away.
        if entry.bitmap != 0 {
            bad("with a subcluster bitmap");
        }
        let CompressedCluster { host, packed_len, .. } = self.packed_cluster(run.guest, entry);
        if table.active > 0 {
            let active = table.active.into();
            for counter in [&self.allocated, &self.compressed, &self.fragmented] {
                counter.fetch_add(active, Ordering::Relaxed);
            }
        }
        let clusters = self.inside(host.0, packed_len.into());
        if clusters.is_none() || host.0 >= self.file_len {
            self.note(FindingKind::PastEnd, place, users, || {
                format!("the compressed cluster at {host} is past the end of the file")
            });
        }
        if let Some(clusters) = clusters {
            self.counts.add(clusters, users);
        }
    }

    fn packed_cluster(&self, guest: u64, entry: Entry) -> CompressedCluster {
        let entry = Entry { descriptor: entry.descriptor & !COPIED, ..entry };
        entry.compressed(GuestOffset(guest), self.geometry)
    }

    pub(super) fn table_bytes(&self) -> u64 {
        (self.tables.len() as u64) << self.header.cluster_bits
    }

    pub(super) fn parts_of_table(&self) -> usize {
        let entries = self.cluster_size() / self.geometry.entry_size();
        entries.div_ceil(PART as u64) as usize
    }

    pub(super) fn compressed_of(&self, part: usize, found: &mut Vec<CompressedCluster>) -> Result<()> {
        let table = &self.tables[part / self.parts_of_table()];
        let first = part % self.parts_of_table() * PART;
        let stride = self.geometry.entry_size() as usize;
        let mut bytes = vec![0; (PART * stride).min(self.cluster_size() as usize)];
        self.storage.readv_at((&mut bytes).into(), table.offset + (first * stride) as u64)?;
        let guest = self.guest_of(table.l1_index);
        for (index, entry) in (first..).zip(bytes.chunks_exact(stride)) {
            let descriptor = u64::from_be_bytes(entry[..8].try_into().expect("eight bytes"));
            if descriptor & COMPRESSED != 0 && !self.geometry.external_data {
                let guest = guest.saturating_add((index as u64) << self.header.cluster_bits);
                found.push(self.packed_cluster(guest, Entry { descriptor, bitmap: 0 }));
            }
        }
        Ok(())
    }
}
