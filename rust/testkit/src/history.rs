//! What an image may show after a crash or a failure: for every sector what the last flush made durable, or
//! anything written to it since; and of what changes as a whole, all or nothing.

use crate::model::View;
use crate::ops::Crash;

/// What an image went through, and the flushes between.
#[derive(Debug)]
pub struct History {
    versions: Vec<Version>,
    /// Epoch in which a flush had ended, and the version that it made durable.
    flushes: Vec<(u64, usize)>,
    /// Bitmaps are held against it, too.
    bitmaps: bool,
}

#[derive(Debug)]
struct Version {
    /// Epoch of the storage in which it came about.
    epoch: u64,
    view: View,
    /// Nothing of it shows together with anything from before it.
    whole: bool,
    /// It may never have come about: what is before it shows together with what is behind it.
    undone: bool,
}

impl History {
    /// An image that shows `view`, durable.
    pub fn new(view: View) -> Self {
        let first = Version { epoch: 0, view, whole: false, undone: false };
        History { versions: vec![first], flushes: vec![(0, 0)], bitmaps: true }
    }

    /// The same where operations fail, and nobody knows what a bitmap was told of them.
    #[must_use]
    pub fn without_bitmaps(self) -> Self {
        History { bitmaps: false, ..self }
    }

    pub(crate) fn has_bitmaps(&self) -> bool {
        self.bitmaps
    }

    /// An operation of this kind that began in `epoch` leaves `view`, or some of it.
    pub fn push(&mut self, epoch: u64, view: View, crash: Crash) {
        self.versions.push(Version { epoch, view, whole: crash == Crash::Whole, undone: false });
    }

    /// How many versions there are.
    pub(crate) fn len(&self) -> usize {
        self.versions.len()
    }

    /// The operation with the versions from the one numbered `first` on failed, and seems to have changed nothing. It may have flushed or not.
    pub(crate) fn undone(&mut self, first: usize) {
        self.versions[first..].iter_mut().for_each(|version| version.undone = true);
    }

    /// What is there had been made durable in `epoch`.
    pub fn flushed(&mut self, epoch: u64) {
        self.flushes.push((epoch, self.versions.len() - 1));
    }

    /// The smallest size in bytes that the disk may have had up to `epoch`.
    pub(crate) fn smallest(&self, epoch: u64) -> usize {
        let begun = self.versions.iter().filter(|version| version.epoch <= epoch && !version.undone);
        begun.map(|version| version.view.disk.len()).min().expect("the first one")
    }

    /// Whether an image that lost power in `epoch` may show `found`, `unit` bytes of the disk for `unit` bytes.
    pub fn allows(&self, found: &View, epoch: u64, unit: usize) -> Result<(), String> {
        let durable = self.flushes.iter().rev().find(|flush| flush.0 <= epoch).expect("the first one").1;
        let begun = self.versions.partition_point(|version| version.epoch <= epoch);
        let all: Vec<&Version> = self.versions[durable..begun].iter().collect();
        let done: Vec<&Version> = all.iter().copied().filter(|version| !version.undone).collect();
        self.one_allows(&all, found, unit).or_else(|problem| {
            let more = done.len() < all.len() && self.one_allows(&done, found, unit).is_ok();
            if more { Ok(()) } else { Err(problem) }
        })
    }

    /// Whether `found` is of one whole version and those up to the next.
    fn one_allows(&self, mut rest: &[&Version], found: &View, unit: usize) -> Result<(), String> {
        let mut problems = Vec::new();
        while let Some((first, others)) = rest.split_first() {
            let len = 1 + others.iter().position(|version| version.whole).unwrap_or(others.len());
            let allowed = mix_allows(&rest[..len], found, unit)
                .and_then(|()| if self.bitmaps { bitmaps_allow(&rest[..len], found) } else { Ok(()) });
            match allowed {
                Ok(()) => return Ok(()),
                Err(problem) if first.whole => problems.push(format!("as a whole: {problem}")),
                Err(problem) => problems.push(problem),
            }
            rest = &rest[len..];
        }
        Err(problems.join("; "))
    }
}

/// Whether each part of `found` is a part of one of the versions, of which the first one is durable.
fn mix_allows(versions: &[&Version], found: &View, unit: usize) -> Result<(), String> {
    let durable = &versions[0].view;
    let same_size = |version: &&&Version| version.view.disk.len() == found.disk.len();
    let disks: Vec<&[u8]> = versions.iter().filter(same_size).map(|version| &*version.view.disk).collect();
    if disks.is_empty() {
        return Err(format!("a disk of {} bytes, which was {}", found.disk.len(), durable.disk.len()));
    }
    for (index, part) in found.disk.chunks(unit).enumerate() {
        let at = index * unit;
        if !disks.iter().any(|disk| disk[at..at + part.len()] == *part) {
            return Err(format!(
                "offset {at:#x} shows {:#x}..; flushed was {:#x}.., and none of {} later contents has that",
                part[0],
                disks[0][at],
                versions.len() - 1
            ));
        }
    }
    if !versions.iter().any(|version| version.view.beside_disk() == found.beside_disk()) {
        let problem = durable.expect(&View { disk: durable.disk.clone(), ..found.clone() });
        return Err(problem.expect_err("the first version is one of them"));
    }
    Ok(())
}

/// Whether each bitmap of `found` that does not say that nobody knows is as in one of the versions, and, if it records, says so of all in
/// which the disk differs from what it was then.
fn bitmaps_allow(versions: &[&Version], found: &View) -> Result<(), String> {
    let known = found.bitmaps.iter().filter(|bitmap| bitmap.dirty.is_some());
    for bitmap in known {
        let allows = |version: &&Version| {
            version.view.bitmaps.contains(bitmap)
                && (!bitmap.enabled || bitmap.knows_of(&version.view.disk, &found.disk))
        };
        if !versions.iter().any(allows) {
            return Err(format!("the bitmap {:?}, which is none of any version", bitmap.name));
        }
    }
    Ok(())
}
