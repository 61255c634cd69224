//! Is what the image says of itself true? Independent of the [`Driver`](super::Driver): it reads tables, counts what they
//! refer to, and holds that against the refcounts and the COPIED flags.
//!
//! 1. The structures that are not mapping ([`structures`]) and the refcount blocks ([`blocks`]) are read; which clusters
//!    have refcount 1 is noted.
//! 2. All L1 tables become one list of L2 tables in the order of the file, each with the number of its users ([`tables`]): each
//!    is read once, however many snapshots share it, neighbours together.
//! 3. Several threads walk the L2 tables and count ([`counts`]).
//! 4. The refcount blocks are read again and compared with the counts; then the clusters of metadata, which have one user.

mod blocks;
mod counts;
mod rebuild;
mod repair;
mod report;
mod spread;
mod structures;
mod tables;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::blocks::Blocks;
use self::counts::Counts;
pub(crate) use self::repair::{DamagedBitmaps, repair};
pub use self::report::{Finding, FindingKind, Report, Severity};
use self::report::{Notes, Place};
pub use self::spread::Control;
use self::structures::{Bitmaps, Claim};
use self::tables::TableUse;
use super::header::Header;
use super::l2::Geometry;
use crate::error::Result;
use crate::format::{CompressedCluster, ImplicitReference};
use crate::storage::Storage;

/// What a check does about what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: nothing is written.
    #[default]
    None,
    /// Refcounts that are too high are lowered.
    Leaks,
    /// Refcounts and COPIED flags are made right; where the refcount structures cannot be used they are made anew.
    All,
}

/// Where an image says that the guest's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataFile {
    /// In the image itself.
    None,
    /// In another file, which has this name where it has one.
    External(Option<ImplicitReference>),
}

/// Where the guest's data of the image in `storage` is. The file that it names is not opened.
pub fn data_file(storage: &dyn Storage) -> Result<DataFile> {
    let header = Header::read_damaged(storage)?;
    Ok(if header.has_data_file() { DataFile::External(header.data_file_reference()) } else { DataFile::None })
}

/// Bytes of tables that are read at once, if one is not longer.
const READ: u64 = 1 << 20;

/// A check of one image: what its tables refer to.
#[derive(Debug)]
pub struct Survey<'a> {
    storage: &'a dyn Storage,
    header: Header,
    geometry: Geometry,
    file_len: u64,
    /// Clusters of the file; the last one may be cut.
    file_clusters: u64,
    /// Length of the external data file, where it is known.
    data_len: Option<u64>,
    counts: Counts,
    blocks: Blocks,
    /// All L2 tables in the order of the file.
    tables: Vec<TableUse>,
    claims: Vec<Claim>,
    bitmaps: Bitmaps,
    notes: Notes,
    /// An entry names a place past the end of the file, where no references are counted.
    dangling: AtomicBool,
    /// Tables or snapshots could not be followed.
    lost: AtomicBool,
    /// A cluster with references has no refcount block.
    uncovered: AtomicBool,
    /// A repair has raised what was too low.
    raised: bool,
    corruptions_fixed: u64,
    leaks_fixed: u64,
    /// The last cluster of the file that is used or has a refcount.
    last_used: AtomicU64,
    allocated: AtomicU64,
    fragmented: AtomicU64,
    compressed: AtomicU64,
}

impl<'a> Survey<'a> {
    /// Reads what is small: the header, the refcount table, the L1 tables, the snapshot table, the bitmap directory. `data` is the
    /// external data file, where there is one and it is open.
    pub fn open(storage: &'a dyn Storage, data: Option<&dyn Storage>) -> Result<Self> {
        let header = Header::read_damaged(storage)?;
        let file_len = storage.len()?;
        let file_clusters = file_len.div_ceil(header.cluster_size());
        let mut survey = Survey {
            geometry: Geometry::of(&header),
            file_len,
            file_clusters,
            data_len: data.map(Storage::len).transpose()?,
            counts: Counts::new(file_clusters)?,
            blocks: Blocks::default(),
            tables: Vec::new(),
            claims: Vec::new(),
            bitmaps: Bitmaps::default(),
            notes: Notes::default(),
            dangling: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            uncovered: AtomicBool::new(false),
            raised: false,
            corruptions_fixed: 0,
            leaks_fixed: 0,
            last_used: AtomicU64::new(0),
            allocated: AtomicU64::new(0),
            fragmented: AtomicU64::new(0),
            compressed: AtomicU64::new(0),
            header,
            storage,
        };
        survey.feature_bits();
        survey.claim(structures::HEADER, 0, survey.cluster_size());
        survey.read_refcount_table()?;
        Ok(survey)
    }

    /// Counts all references and compares them with the refcounts.
    pub fn count(&mut self, control: &mut Control<'_>) -> Result<()> {
        self.note_ones(control)?;
        self.active_l1()?;
        self.snapshots()?;
        self.bitmaps()?;
        self.encryption_header()?;
        self.walk(control)?;
        self.compare(control)?;
        self.overlaps()
    }

    /// Calls `visit` on all threads with every compressed cluster, those of snapshots too, after [`count`](Self::count). What
    /// it makes of `S`, a state that each thread has, is its own affair; an error says that the cluster cannot be unpacked.
    pub(crate) fn each_compressed<S: Default>(
        &self,
        control: &mut Control<'_>,
        visit: impl Fn(&mut S, &CompressedCluster) -> Result<()> + Sync,
    ) -> Result<()> {
        let parts = self.tables.len() * self.parts_of_table();
        control.pass(self.table_bytes(), parts, |(clusters, state): &mut (Vec<_>, S), part| {
            clusters.clear();
            self.compressed_of(part, clusters)?;
            for cluster in clusters {
                if let Err(why) = visit(state, cluster) {
                    let place = Place::at(cluster.host.0).guest(cluster.guest.0);
                    self.note(FindingKind::Undecodable, place, 1, || why.message().to_owned());
                }
            }
            Ok(())
        })
    }

    /// What was found.
    pub fn into_report(self) -> Report {
        let total_clusters = self.header.size.div_ceil(self.cluster_size());
        Report {
            total_clusters,
            corruptions_fixed: self.corruptions_fixed,
            leaks_fixed: self.leaks_fixed,
            image_end_offset: (self.last_used.into_inner() + 1) << self.header.cluster_bits,
            allocated_clusters: self.allocated.into_inner(),
            fragmented_clusters: self.fragmented.into_inner(),
            compressed_clusters: self.compressed.into_inner(),
            ..self.notes.into_report()
        }
    }

    fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// The clusters of a range that is inside the file; it may end in the file's last cluster, or start there and be no
    /// longer than a cluster. `None`: past the end.
    fn inside(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.checked_add(len).filter(|end| *end < self.file_len + self.cluster_size())?;
        let bits = self.header.cluster_bits;
        Some(offset >> bits..((end - 1) >> bits) + 1)
    }

    fn note(&self, kind: FindingKind, place: Place, times: u64, message: impl FnOnce() -> String) {
        if kind == FindingKind::PastEnd {
            self.dangling.store(true, Ordering::Relaxed);
        }
        self.notes.add(kind, place, times, message);
    }
}
