//! What a check has to say: findings, and the counts that `qemu-img check` prints.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::units::{GuestOffset, HostOffset};

/// Findings that are kept; the counts go on.
const KEPT: usize = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// May cost data.
    Corruption,
    /// Lost space, no danger.
    Leak,
    /// A part of the image could not be checked.
    Error,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// Its name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Corruption => "corruption",
            Severity::Leak => "leak",
            Severity::Error => "error",
            Severity::Info => "info",
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// The dirty bit is set: the image was not closed and its refcounts may be too low.
    Dirty,
    /// The corrupt bit is set: somebody met metadata that makes no sense.
    MarkedCorrupt,
    /// A cluster has more references than its refcount says.
    RefcountTooLow,
    /// A cluster has fewer references than its refcount says.
    RefcountTooHigh,
    /// A cluster has more references than a refcount can say.
    RefcountOverflow,
    /// An entry of the refcount table names no place where a block can be.
    RefcountTable,
    /// COPIED says otherwise than the refcount.
    Copied,
    /// Two structures are in one cluster.
    Overlap,
    /// A table or cluster starts at no cluster boundary.
    Unaligned,
    /// Bits are set that have to be 0.
    ReservedBits,
    /// What an entry names is past the end of the file.
    PastEnd,
    /// A subcluster bitmap contradicts itself or its entry.
    Subclusters,
    /// A compressed cluster has what only others may have.
    Compressed,
    /// An entry of an image with an external data file names another place than its own, or has no place there.
    DataFile,
    /// The snapshot table, or an entry of it.
    Snapshot,
    /// The bitmap directory, or a bitmap.
    Bitmap,
    /// A repair removed all bitmaps, since some made no sense.
    BitmapsDropped,
    /// The LUKS header.
    Encryption,
    /// A table could not be read.
    Unreadable,
    /// A compressed cluster cannot be unpacked.
    Undecodable,
}

impl FindingKind {
    /// Its name in documents.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Dirty => "dirty",
            FindingKind::MarkedCorrupt => "marked-corrupt",
            FindingKind::RefcountTooLow => "refcount-too-low",
            FindingKind::RefcountTooHigh => "refcount-too-high",
            FindingKind::RefcountOverflow => "refcount-overflow",
            FindingKind::RefcountTable => "refcount-table",
            FindingKind::Copied => "copied",
            FindingKind::Overlap => "overlap",
            FindingKind::Unaligned => "unaligned",
            FindingKind::ReservedBits => "reserved-bits",
            FindingKind::PastEnd => "past-end",
            FindingKind::Subclusters => "subclusters",
            FindingKind::Compressed => "compressed",
            FindingKind::DataFile => "data-file",
            FindingKind::Snapshot => "snapshot",
            FindingKind::Bitmap => "bitmap",
            FindingKind::BitmapsDropped => "bitmaps-dropped",
            FindingKind::Encryption => "encryption",
            FindingKind::Unreadable => "unreadable",
            FindingKind::Undecodable => "undecodable",
        }
    }

    fn severity(self) -> Severity {
        match self {
            FindingKind::Dirty | FindingKind::MarkedCorrupt | FindingKind::BitmapsDropped => Severity::Info,
            FindingKind::RefcountTooHigh => Severity::Leak,
            FindingKind::Unreadable => Severity::Error,
            _ => Severity::Corruption,
        }
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// How bad that is.
    pub severity: Severity,
    /// Where in the image file: of an entry the entry itself, of a cluster its start.
    pub offset: Option<HostOffset>,
    /// Where on the guest's disk, where that is known.
    pub guest: Option<GuestOffset>,
    /// The same for people.
    pub message: String,
}

/// What a check came to; the numbers are those of `qemu-img check --output=json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The first findings by their place, at most 1,000; a finding may count more than once (a table that several snapshots share).
    pub findings: Vec<Finding>,
    /// All corruptions, whether their findings are kept or not.
    pub corruptions: u64,
    /// All leaked clusters.
    pub leaks: u64,
    /// What could not be checked.
    pub check_errors: u64,
    /// Corruptions that a repair ended.
    pub corruptions_fixed: u64,
    /// Leaks that a repair ended.
    pub leaks_fixed: u64,
    /// Where the last cluster in use ends in the image file.
    pub image_end_offset: u64,
    /// Clusters of the guest's disk.
    pub total_clusters: u64,
    /// Clusters of it that have space of their own.
    pub allocated_clusters: u64,
    /// Those of them that do not follow the one before in the file; every compressed one counts.
    pub fragmented_clusters: u64,
    /// Those of them that are compressed.
    pub compressed_clusters: u64,
}

impl Report {
    /// Nothing is wrong, and everything could be checked.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }
}

/// Findings while several threads look.
#[derive(Debug, Default)]
pub(super) struct Notes {
    findings: Mutex<Vec<Finding>>,
    corruptions: AtomicU64,
    leaks: AtomicU64,
    errors: AtomicU64,
    /// Corruptions that are COPIED flags.
    copied: AtomicU64,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) offset: Option<u64>,
    pub(super) guest: Option<u64>,
}

impl Place {
    pub(super) fn at(offset: u64) -> Self {
        Place { offset: Some(offset), guest: None }
    }

    pub(super) fn guest(self, guest: u64) -> Self {
        Place { guest: Some(guest), ..self }
    }
}

impl Notes {
    /// Notes a finding that counts `times`; `message` is asked for only if it is kept.
    pub(super) fn add(&self, kind: FindingKind, place: Place, times: u64, message: impl FnOnce() -> String) {
        let severity = kind.severity();
        let counter = match severity {
            Severity::Corruption => Some(&self.corruptions),
            Severity::Leak => Some(&self.leaks),
            Severity::Error => Some(&self.errors),
            Severity::Info => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(times, Ordering::Relaxed);
        }
        if kind == FindingKind::Copied {
            self.copied.fetch_add(times, Ordering::Relaxed);
        }
        let mut findings = self.findings.lock();
        if findings.len() < KEPT {
            let (offset, guest) = (place.offset.map(HostOffset), place.guest.map(GuestOffset));
            findings.push(Finding { kind, severity, offset, guest, message: message() });
        }
    }

    pub(super) fn corruptions(&self) -> u64 {
        self.corruptions.load(Ordering::Relaxed)
    }

    pub(super) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    pub(super) fn leaks(&self) -> u64 {
        self.leaks.load(Ordering::Relaxed)
    }

    /// Takes back findings that count nothing.
    pub(super) fn forget(&mut self, kinds: &[FindingKind]) {
        self.findings.get_mut().retain(|finding| !kinds.contains(&finding.kind));
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// What was found, in order.
    pub(super) fn into_report(self) -> Report {
        let mut findings = self.findings.into_inner();
        findings.sort_by_key(|finding| (finding.severity, finding.offset, finding.guest, finding.kind));
        Report {
            findings,
            corruptions: self.corruptions.into_inner(),
            leaks: self.leaks.into_inner(),
            check_errors: self.errors.into_inner(),
            ..Report::default()
        }
    }
}
