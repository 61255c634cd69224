//! What is in the file beside the mapping and the refcounts: header, snapshot table, bitmaps.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rustc_hash::FxHashSet;
use zerocopy::FromBytes;

use super::report::{FindingKind, Place};
use super::{READ, Survey};
use crate::error::{Error, ErrorKind, Result};
use crate::format::luks;
use crate::format::qcow2::bitmaps::{self, BitmapTable, Entry};
use crate::format::qcow2::header::{Encryption, MAX_L1_LEN};
use crate::format::qcow2::l2::OFFSET_MASK;
use crate::format::qcow2::snapshots::{MAX_EXTRA_LEN, MAX_TABLE_LEN};
use crate::ondisk::{RawSnapshot, bytes_fit};

/// Extra data that every snapshot of a version 3 image has: the sizes of VM state and disk.
const NEEDED_EXTRA_LEN: u32 = 16;

pub(super) const HEADER: &str = "the header";
const SNAPSHOT_TABLE: &str = "the snapshot table";
const SNAPSHOT_L1: &str = "the L1 table of a snapshot";
const BITMAP_DIRECTORY: &str = "the bitmap directory";
const BITMAP_TABLE: &str = "a bitmap table";
const BITMAP_DATA: &str = "a cluster of a bitmap";
const ENCRYPTION_HEADER: &str = "the encryption header";

/// Clusters of a structure that nothing else may be in.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) what: &'static str,
    pub(super) clusters: Range<u64>,
}

/// The persistent bitmaps. Nobody may write to an image as long as one is there that makes no sense, or shares space with something else.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    /// The directory as a whole can be relied on.
    pub(super) directory_is_bad: AtomicBool,
    /// Its entries; those that make no sense are not among them.
    pub(super) entries: Vec<Entry>,
    /// Some make no sense.
    pub(super) senseless: bool,
    tables: Vec<TableOfBits>,
}

/// The table of a bitmap, or of several that name the same one.
#[derive(Debug)]
struct TableOfBits {
    offset: u64,
    entries: u32,
    /// It, or what it names, makes no sense or has another use.
    is_bad: AtomicBool,
}

impl TableOfBits {
    fn blame(&self) {
        self.is_bad.store(true, Ordering::Relaxed);
    }
}

impl Bitmaps {
    fn blame_directory(&self) {
        self.directory_is_bad.store(true, Ordering::Relaxed);
    }

    /// Whether something has to go.
    pub(super) fn are_damaged(&self) -> bool {
        let bad = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        self.senseless || bad(&self.directory_is_bad) || self.tables.iter().any(|table| bad(&table.is_bad))
    }

    /// Those that can stay.
    pub(super) fn sound(&self) -> Vec<Entry> {
        if self.directory_is_bad.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let is_bad = |entry: &Entry| {
            let of = |table: &&TableOfBits| {
                (table.offset, table.entries) == (entry.table.offset.0, entry.table.entries)
            };
            self.tables.iter().find(of).is_none_or(|table| table.is_bad.load(Ordering::Relaxed))
        };
        self.entries.iter().filter(|entry| !is_bad(entry)).cloned().collect()
    }
}

impl Survey<'_> {
    pub(super) fn feature_bits(&self) {
        if self.header.is_dirty() {
            self.note(FindingKind::Dirty, Place::at(72), 1, || {
                "the dirty bit is set: the image was not closed, its refcounts may be too low".into()
            });
        }
        if self.header.is_corrupt() {
            self.note(FindingKind::MarkedCorrupt, Place::at(72), 1, || "the corrupt bit is set".into());
        }
    }

    /// Counts one reference to each cluster of a structure that nothing else may be in.
    pub(super) fn claim(&mut self, what: &'static str, offset: u64, len: u64) {
        self.claim_often(what, offset, len, 1);
    }

    /// The same for one that is referred to `times`, which is too often if not once.
    pub(super) fn claim_often(&mut self, what: &'static str, offset: u64, len: u64, times: u64) {
        if len == 0 {
            return;
        }
        match self.inside(offset, len) {
            Some(clusters) => {
                self.counts.add(clusters.clone(), times);
                self.claims.push(Claim { what, clusters });
            }
            None => self.past_end(what, offset, times),
        }
    }

    fn past_end(&self, what: &str, offset: u64, times: u64) {
        self.lost.store(true, Ordering::Relaxed);
        let end = self.file_len;
        self.note(FindingKind::PastEnd, Place::at(offset), times, || {
            format!("{what} goes past the end of the file, which is at {end:#x}")
        });
    }

    /// Part of the image cannot be followed: what it refers to looks like a leak.
    fn unreadable(&self, offset: u64, message: impl FnOnce() -> String) {
        self.note(FindingKind::Unreadable, Place::at(offset), 1, message);
    }

    /// Reads the snapshot table, and the L1 tables that it names.
    pub(super) fn snapshots(&mut self) -> Result<()> {
        if let Some(lost) = &self.header.lost.snapshots {
            self.unreadable(lost.offset().unwrap_or_default(), || lost.message().to_owned());
        }
        let (start, count) = (self.header.snapshot_offset.0, self.header.snapshot_count);
        if count > 0 && self.header.has_data_file() {
            self.note(FindingKind::Snapshot, Place::at(start), 1, || {
                format!("there are {count} snapshots in an image with an external data file")
            });
        }
        // Of L1 tables that are named more than once: how often.
        let mut l1_tables = BTreeMap::<(u64, u32), u64>::new();
        let limit = self.file_len.min(start.saturating_add(MAX_TABLE_LEN));
        let mut end = start;
        for number in 0..count {
            let at = end.next_multiple_of(8);
            let mut fixed = [0; size_of::<RawSnapshot>()];
            if !bytes_fit(at, fixed.len() as u64, limit) {
                self.cut_snapshot_table(at, number);
                break;
            }
            self.storage.readv_at((&mut fixed).into(), at)?;
            let raw = RawSnapshot::read_from_bytes(&fixed).expect("the array has the structure's size");
            let extra = raw.extra_len.get();
            let len = fixed.len() as u64
                + u64::from(extra)
                + u64::from(raw.id_len.get())
                + u64::from(raw.name_len.get());
            if !bytes_fit(at, len, limit) {
                self.cut_snapshot_table(at, number);
                break;
            }
            end = at + len;
            let problem = |message: &dyn Fn() -> String| {
                self.note(FindingKind::Snapshot, Place::at(at), 1, || {
                    format!("entry {number} of the snapshot table: {}", message())
                });
            };
            if extra > MAX_EXTRA_LEN {
                problem(&|| format!("{extra} bytes of extra data; {MAX_EXTRA_LEN} are the most"));
            } else if extra < NEEDED_EXTRA_LEN && self.header.version >= 3 {
                problem(&|| format!("{extra} bytes of extra data; version 3 needs {NEEDED_EXTRA_LEN}"));
            }
            let (l1, entries) = (raw.l1_offset.get(), raw.l1_entries.get());
            if !l1.is_multiple_of(self.cluster_size()) || u64::from(entries) * 8 > MAX_L1_LEN {
                self.lost.store(true, Ordering::Relaxed);
            }
            if !l1.is_multiple_of(self.cluster_size()) {
                problem(&|| format!("its L1 table at {l1:#x} starts at no cluster boundary"));
            } else if u64::from(entries) * 8 > MAX_L1_LEN {
                problem(&|| format!("its L1 table has {entries} entries, more than any can have"));
            } else {
                *l1_tables.entry((l1, entries)).or_default() += 1;
            }
        }
        self.claim(SNAPSHOT_TABLE, start, end - start);
        for ((l1, entries), times) in l1_tables {
            self.claim_often(SNAPSHOT_L1, l1, u64::from(entries) * 8, times);
            self.l1_table(l1, entries, 0, times as u32)?;
        }
        Ok(())
    }

    fn cut_snapshot_table(&self, at: u64, number: u32) {
        let count = self.header.snapshot_count;
        self.unreadable(at, || {
            format!("the snapshot table is longer than 64 MiB or cut off at entry {number} of {count}")
        });
    }

    /// Reads the bitmap directory and the bitmap tables.
    pub(super) fn bitmaps(&mut self) -> Result<()> {
        if let Some(extension) = self.header.bitmaps {
            let (offset, len) = (extension.directory_offset.0, extension.directory_size);
            if self.inside(offset, len).is_none() {
                self.bitmaps.blame_directory();
            }
            self.claim(BITMAP_DIRECTORY, offset, len);
        }
        let senseless = |survey: &Self, error: &Error| {
            let at = error.offset().unwrap_or_default();
            survey.note(FindingKind::Bitmap, Place::at(at), 1, || error.message().to_owned());
            survey.unreadable(at, || "what the bitmaps use cannot be told from leaks".into());
        };
        let found = match bitmaps::read_each(self.storage, &self.header) {
            Ok(found) => found,
            Err(error) if error.os_error().is_some() => return Err(error),
            Err(error) => {
                self.bitmaps.blame_directory();
                senseless(self, &error);
                return Ok(());
            }
        };
        for entry in found {
            match entry {
                Ok(entry) => self.bitmaps.entries.push(entry),
                Err(error) => {
                    self.bitmaps.senseless = true;
                    senseless(self, &error);
                }
            }
        }
        // Of each table how often it is named, and whether for so many bits.
        let mut tables = BTreeMap::<(u64, u32), (u64, bool)>::new();
        for bitmap in &self.bitmaps.entries {
            let BitmapTable { offset, entries } = bitmap.table;
            let (times, fits) = tables.entry((offset.0, entries)).or_insert((0, true));
            *times += 1;
            let bits = self.header.size.div_ceil(bitmap.granularity());
            let needed = bits.div_ceil(8).div_ceil(self.cluster_size());
            if u64::from(entries) != needed && !bitmap.is_in_use() {
                let name = bitmap.name();
                *fits = false;
                self.note(FindingKind::Bitmap, Place::at(offset.0), 1, || {
                    let name = name.escape_debug();
                    format!("the table of bitmap \"{name}\" has {entries} entries; the disk needs {needed}")
                });
            }
        }
        for ((offset, entries), (times, fits)) in tables {
            let len = u64::from(entries) * 8;
            let there = self.inside(offset, len).is_some();
            self.claim_often(BITMAP_TABLE, offset, len, times);
            let table = TableOfBits { offset, entries, is_bad: AtomicBool::new(!fits || !there) };
            self.bitmap_table(&table, times)?;
            self.bitmaps.tables.push(table);
        }
        Ok(())
    }

    /// Counts the space of a LUKS header, and looks at it: without it nothing of the disk can be read.
    pub(super) fn encryption_header(&mut self) -> Result<()> {
        let Some(Encryption::Luks(place)) = self.header.encryption else { return Ok(()) };
        self.claim(ENCRYPTION_HEADER, place.offset.0, place.len);
        match luks::inspect_inside(self.storage, place.offset, place.len) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                let at = Place::at(error.offset().unwrap_or(place.offset.0));
                self.note(FindingKind::Encryption, at, 1, || {
                    format!("{ENCRYPTION_HEADER} makes no sense: {}", error.message())
                });
            }
        }
        Ok(())
    }

    fn bitmap_table(&self, table: &TableOfBits, times: u64) -> Result<()> {
        let bad = |at, word: u64, what: &str| {
            self.lost.store(true, Ordering::Relaxed);
            table.blame();
            self.note(FindingKind::Bitmap, Place::at(at), times, || {
                format!("entry {word:#x} of a bitmap table {what}")
            });
        };
        self.bitmap_entries(table, |at, word| {
            let host = word & OFFSET_MASK;
            if word & !(OFFSET_MASK | u64::from(host == 0)) != 0 {
                bad(at, word, "has bits set that have to be 0");
            } else if !host.is_multiple_of(self.cluster_size()) {
                bad(at, word, "names no cluster boundary");
            } else if host != 0 {
                let within = self.inside(host, self.cluster_size());
                if let Some(clusters) = within.clone() {
                    self.counts.add(clusters, times);
                }
                // Who stores bits writes whole clusters of them: what the file lacks are no zeroes.
                if within.is_none() || host + self.cluster_size() > self.file_len {
                    table.blame();
                    self.past_end(BITMAP_DATA, host, times);
                }
            }
        })
    }

    /// Calls `visit` with the place and the word of each entry that is not 0.
    fn bitmap_entries(&self, table: &TableOfBits, mut visit: impl FnMut(u64, u64)) -> Result<()> {
        let mut at = table.offset;
        let end = at + u64::from(table.entries) * 8;
        let mut part = vec![0; (end - at).min(READ) as usize];
        while at < end.min(self.file_len) {
            let part = &mut part[..(end - at).min(READ) as usize];
            self.storage.readv_at((&mut *part).into(), at)?;
            for (n, word) in (0..).zip(part.as_chunks::<8>().0) {
                match u64::from_be_bytes(*word) {
                    0 => {}
                    word => visit(at + n * 8, word),
                }
            }
            at += READ;
        }
        Ok(())
    }

    /// Clusters of metadata with another user.
    pub(super) fn overlaps(&self) -> Result<()> {
        let mut seen = FxHashSet::default();
        let mut overlap = |what: &str, cluster: u64, users: u64| {
            if self.counts.get(cluster) == users {
                return;
            }
            match what {
                BITMAP_DIRECTORY => self.bitmaps.blame_directory(),
                BITMAP_TABLE => self.tables_in(cluster).for_each(TableOfBits::blame),
                _ => {}
            }
            if seen.insert(cluster) {
                let at = cluster << self.header.cluster_bits;
                self.note(FindingKind::Overlap, Place::at(at), 1, || {
                    format!("the cluster of {what} has another use as well")
                });
            }
        };
        for Claim { what, clusters } in &self.claims {
            clusters.clone().for_each(|cluster| overlap(what, cluster, 1));
        }
        for table in self.tables.iter().filter(|table| table.offset.is_multiple_of(self.cluster_size())) {
            // A snapshot may have any table, the disk each of its own only once: written through one entry it would change behind the other.
            let users = table.users() - u64::from(table.active.saturating_sub(1));
            overlap("an L2 table", table.offset >> self.header.cluster_bits, users);
        }
        for table in &self.bitmaps.tables {
            self.bitmap_entries(table, |_, word| {
                let host = word & OFFSET_MASK;
                if host != 0 && word & !OFFSET_MASK == 0 && self.inside(host, 1).is_some() {
                    let cluster = host >> self.header.cluster_bits;
                    if self.counts.get(cluster) != 1 {
                        table.blame();
                    }
                    overlap(BITMAP_DATA, cluster, 1);
                }
            })?;
        }
        Ok(())
    }

    /// The tables of bitmaps that are in a cluster.
    fn tables_in(&self, cluster: u64) -> impl Iterator<Item = &TableOfBits> {
        let bits = self.header.cluster_bits;
        self.bitmaps.tables.iter().filter(move |table| {
            let last = table.offset + u64::from(table.entries).max(1) * 8 - 1;
            (table.offset >> bits..=last >> bits).contains(&cluster)
        })
    }
}
