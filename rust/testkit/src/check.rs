//! A check of a qcow2 image's metadata, independent of the engine: what every cluster's refcount must be,
//! what overlaps, what is misaligned, and what the COPIED flags say.

use std::collections::HashMap;
use std::fmt::{self, Display};

use crate::qcow2::{L2Entry, Place, Qcow2, extension, incompatible};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Clusters whose refcount is higher than their use: lost space, no danger.
    pub leaks: Vec<String>,
    /// Everything that may cost data.
    pub corruptions: Vec<String>,
    /// COPIED is clear although the refcount is 1. A write copies what it need not then, and no more; what takes or deletes snapshots leaves it in a crash.
    pub unflagged: Vec<String>,
    /// The dirty bit is set: refcounts may be too low and will be rebuilt.
    pub dirty: bool,
    /// Clusters in use, the header's included.
    pub used_clusters: u64,
}

impl Report {
    /// # Panics
    /// When anything at all was found.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }

    /// Nothing at all was found.
    pub fn is_clean(&self) -> bool {
        self.corruptions.is_empty() && self.leaks.is_empty() && self.unflagged.is_empty() && !self.dirty
    }

    /// # Panics
    /// When more than leaks was found.
    #[track_caller]
    pub fn assert_no_corruption(&self) {
        assert!(self.corruptions.is_empty(), "{self}");
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} corruptions, {} leaks", self.corruptions.len(), self.leaks.len())?;
        writeln!(f, "{}", if self.dirty { ", dirty" } else { "" })?;
        self.corruptions.iter().take(20).try_for_each(|line| writeln!(f, "  corruption: {line}"))?;
        self.unflagged.iter().take(20).try_for_each(|line| writeln!(f, "  COPIED is clear: {line}"))?;
        self.leaks.iter().take(20).try_for_each(|line| writeln!(f, "  leak: {line}"))
    }
}

/// Checks an image. Guest data in an external data file has no refcounts; that file is not needed.
pub fn check(bytes: &[u8]) -> Report {
    match Qcow2::parse(bytes) {
        Ok(image) => Check::new(&image).run(),
        Err(error) => Report { corruptions: vec![format!("unreadable: {error}")], ..Report::default() },
    }
}

/// What a cluster is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Header,
    RefcountTable,
    RefcountBlock,
    L1Table,
    /// Of this L1 index; the same table may serve several snapshots there.
    L2Table(u64),
    /// Of this guest cluster; it may serve several snapshots there.
    Data(u64),
    /// Any number of compressed clusters may share a host cluster.
    Compressed,
    SnapshotTable,
    BitmapDirectory,
    BitmapTable,
    BitmapData,
    CryptoHeader,
}

impl Use {
    fn shareable(self) -> bool {
        matches!(self, Use::L2Table(_) | Use::Data(_) | Use::Compressed)
    }
}

struct Check<'a> {
    image: &'a Qcow2<'a>,
    cluster_size: u64,
    /// Use and number of references of every cluster in use.
    used: HashMap<u64, (Use, u64)>,
    refcounts: HashMap<u64, u64>,
    report: Report,
}

impl<'a> Check<'a> {
    fn new(image: &'a Qcow2<'a>) -> Self {
        let cluster_size = image.header.cluster_size();
        Check {
            image,
            cluster_size,
            used: HashMap::new(),
            refcounts: HashMap::new(),
            report: Report::default(),
        }
    }

    fn run(mut self) -> Report {
        let header = &self.image.header;
        self.report.dirty = header.incompatible & incompatible::DIRTY != 0;
        if header.incompatible & incompatible::CORRUPT != 0 {
            self.corrupt("the corrupt bit is set");
        }
        self.claim(Use::Header, 0, 1, "header");
        if let Err(error) = self.walk() {
            self.corrupt(error);
            return self.report;
        }
        self.compare_refcounts();
        self.report.used_clusters = self.used.len() as u64;
        self.report
    }

    fn walk(&mut self) -> Result<(), String> {
        let image = self.image;
        self.refcount_structures()?;
        let header = &image.header;
        let active = image.active_l1()?;
        let covered =
            (active.len() as u64).saturating_mul(header.l2_entries()).saturating_mul(self.cluster_size);
        if covered < header.size {
            self.corrupt(format!("the L1 table covers {covered:#x} of {:#x} bytes", header.size));
        }
        self.claim_table(Use::L1Table, header.l1_table_offset, active.len() as u64 * 8, "active L1 table");
        self.l1_table(&active, true)?;
        self.claim_table(
            Use::SnapshotTable,
            header.snapshots_offset,
            image.snapshot_table_len,
            "snapshot table",
        );
        for snapshot in &image.snapshots {
            let l1 = image.snapshot_l1(snapshot)?;
            self.claim_table(
                Use::L1Table,
                snapshot.l1_table_offset,
                l1.len() as u64 * 8,
                "snapshot's L1 table",
            );
            self.l1_table(&l1, false)?;
        }
        let (offset, len) = image.bitmap_directory;
        self.claim_table(Use::BitmapDirectory, offset, len, "bitmap directory");
        self.bitmaps()?;
        if let Some(pointer) = header.extension(extension::CRYPTO).filter(|data| data.len() >= 16) {
            let word = |at: usize| u64::from_be_bytes(pointer[at..at + 8].try_into().expect("eight bytes"));
            self.claim_table(Use::CryptoHeader, word(0), word(8), "encryption header");
        }
        Ok(())
    }

    fn corrupt(&mut self, what: impl Display) {
        self.report.corruptions.push(what.to_string());
    }

    fn aligned(&mut self, offset: u64, what: &impl Display) {
        if !offset.is_multiple_of(self.cluster_size) {
            self.corrupt(format!("{what} at {offset:#x} is not aligned to a cluster"));
        }
    }

    fn claim_table(&mut self, usage: Use, offset: u64, len: u64, what: impl Display) {
        if len > 0 {
            self.aligned(offset, &what);
            self.claim(usage, offset, len, what);
        }
    }

    /// Counts one reference to every cluster that the range touches.
    fn claim(&mut self, usage: Use, offset: u64, len: u64, what: impl Display) {
        let first = offset / self.cluster_size;
        let last = offset.saturating_add(len - 1) / self.cluster_size;
        if last * self.cluster_size >= self.image.file_end() {
            return self.corrupt(format!("{what} at {offset:#x} + {len:#x} is past the end of the file"));
        }
        for cluster in first..=last {
            let (other, count) = self.used.entry(cluster).or_insert((usage, 0));
            *count += 1;
            if *count > 1 && !(usage.shareable() && usage == *other) {
                let text = format!("{what}: {usage:?} overlaps {other:?} in cluster {cluster:#x}");
                self.corrupt(text);
            }
        }
    }

    fn refcount_structures(&mut self) -> Result<(), String> {
        let (image, header) = (self.image, &self.image.header);
        let table = image.refcount_table()?;
        let len = u64::from(header.refcount_table_clusters) * self.cluster_size;
        self.claim_table(Use::RefcountTable, header.refcount_table_offset, len, "refcount table");
        let per_block = (self.cluster_size * 8) >> header.refcount_order;
        for (index, &entry) in (0..).zip(&table).filter(|(_, entry)| **entry != 0) {
            let what = format!("refcount block {index}");
            if entry & 0x1ff != 0 {
                self.corrupt(format!("{what} has reserved bits: {entry:#x}"));
            }
            let offset = entry & !0x1ff;
            self.claim_table(Use::RefcountBlock, offset, self.cluster_size, &what);
            let block = image.refcount_block(offset)?;
            let counts = (index * per_block..).zip(block).filter(|(_, count)| *count != 0);
            self.refcounts.extend(counts);
        }
        Ok(())
    }

    fn refcount(&self, offset: u64) -> u64 {
        *self.refcounts.get(&(offset / self.cluster_size)).unwrap_or(&0)
    }

    fn l1_table(&mut self, l1: &[u64], active: bool) -> Result<(), String> {
        let image = self.image;
        for (index, &entry) in (0..).zip(l1) {
            let what = format!("L1 entry {index} ({entry:#x}){}", if active { "" } else { " of a snapshot" });
            if entry & 0x7f00_0000_0000_01ff != 0 {
                self.corrupt(format!("{what} has reserved bits"));
            }
            let table = entry & 0x00ff_ffff_ffff_fe00;
            if table == 0 {
                continue;
            }
            self.claim_table(Use::L2Table(index), table, self.cluster_size, &what);
            if active {
                self.copied(entry >> 63 == 1, table, &what);
            }
            let first = index * image.header.l2_entries();
            for (cluster, entry) in (first..).zip(image.l2_table(table)?) {
                if entry != L2Entry::default() {
                    self.l2_entry(cluster, entry, active);
                }
            }
        }
        Ok(())
    }

    fn copied(&mut self, flag: bool, offset: u64, what: &str) {
        let refcount = self.refcount(offset);
        match (flag, refcount) {
            (true, 1) | (false, 0 | 2..) => {}
            (false, 1) => self.report.unflagged.push(what.to_owned()),
            (true, _) => self.corrupt(format!("{what}: COPIED is set, the refcount is {refcount}")),
        }
    }

    fn l2_entry(&mut self, cluster: u64, entry: L2Entry, active: bool) {
        let header = &self.image.header;
        let guest = cluster * self.cluster_size;
        let what = format!("L2 entry of guest offset {guest:#x} ({:#x}, {:#x})", entry.word, entry.bitmap);
        if entry.compressed() {
            let (host, len) = self.image.compressed_range(entry);
            if entry.copied() || entry.bitmap != 0 || header.data_file() || host >> 56 != 0 {
                self.corrupt(format!("{what}: not what a compressed cluster may have"));
            }
            // The last sectors may lie past the end of the file: packers do not pad.
            let end = (host + len).min(self.image.file_end().max(host + 1));
            return self.claim(Use::Compressed, host, end - host, &what);
        }
        if entry.reserved(header.version == 3 && !header.extended_l2()) != 0 {
            self.corrupt(format!("{what} has reserved bits"));
        }
        if entry.bitmap as u32 & (entry.bitmap >> 32) as u32 != 0 {
            self.corrupt(format!("{what}: a subcluster is both allocated and zero"));
        }
        if header.data_file() {
            let places =
                (0..self.cluster_size / header.subcluster_size()).map(|i| self.image.place(entry, i));
            let allocated = places.into_iter().any(|place| matches!(place, Place::Data(_)));
            if (allocated || entry.host() != 0) && (entry.host() != guest || !entry.copied()) {
                self.corrupt(format!("{what}: not at its own offset of the data file, or not COPIED"));
            }
        } else if entry.host() != 0 {
            self.aligned(entry.host(), &what);
            self.claim(Use::Data(cluster), entry.host(), self.cluster_size, &what);
            if active {
                self.copied(entry.copied(), entry.host(), &what);
            }
        } else if entry.copied() || entry.bitmap as u32 != 0 {
            self.corrupt(format!("{what}: allocated at offset 0"));
        }
    }

    fn bitmaps(&mut self) -> Result<(), String> {
        let image = self.image;
        for bitmap in &image.bitmaps {
            let what = format!("table of bitmap {:?}", bitmap.name);
            let table = image.words(bitmap.table_offset, bitmap.table_size.into(), &what)?;
            self.claim_table(Use::BitmapTable, bitmap.table_offset, table.len() as u64 * 8, &what);
            let bits = image.header.size.div_ceil(1 << bitmap.granularity_bits);
            let needed = bits.div_ceil(8).div_ceil(self.cluster_size);
            if bitmap.flags & 1 == 0 && needed != table.len() as u64 {
                self.corrupt(format!("{what} has {} entries, the disk needs {needed}", table.len()));
            }
            for entry in table {
                let offset = entry & 0x00ff_ffff_ffff_fe00;
                if entry & !(offset | u64::from(offset == 0)) != 0 {
                    self.corrupt(format!("{what}: entry {entry:#x} has reserved bits"));
                }
                if offset != 0 {
                    self.claim_table(Use::BitmapData, offset, self.cluster_size, &what);
                }
            }
        }
        Ok(())
    }

    fn compare_refcounts(&mut self) {
        let mut clusters: Vec<u64> = self.used.keys().chain(self.refcounts.keys()).copied().collect();
        clusters.sort_unstable();
        clusters.dedup();
        for cluster in clusters {
            let found = *self.refcounts.get(&cluster).unwrap_or(&0);
            let (usage, wanted) = match self.used.get(&cluster) {
                Some((usage, count)) => (format!("{usage:?}"), *count),
                None => ("nothing".into(), 0),
            };
            let line = format!("cluster {cluster:#x} ({usage}): refcount {found}, references {wanted}");
            match found.cmp(&wanted) {
                std::cmp::Ordering::Less => self.report.corruptions.push(line),
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => self.report.leaks.push(line),
            }
        }
    }
}
