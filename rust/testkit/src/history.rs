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
}

#[derive(Debug)]
struct Version {
    /// Epoch of the storage in which it came about.
    epoch: u64,
    view: View,
    /// Nothing of it shows together with anything from before it.
    whole: bool,
}

impl History {
    /// An image that shows `view`, durable.
    pub fn new(view: View) -> Self {
        let first = Version { epoch: 0, view, whole: true };
        History { versions: vec![first], flushes: vec![(0, 0)] }
    }

    /// An operation of this kind that began in `epoch` leaves `view`, or some of it.
    pub fn push(&mut self, epoch: u64, view: View, crash: Crash) {
        self.versions.push(Version { epoch, view, whole: crash == Crash::Whole });
    }

    /// What is there had been made durable in `epoch`.
    pub fn flushed(&mut self, epoch: u64) {
        self.flushes.push((epoch, self.versions.len() - 1));
    }

    /// Whether an image that lost power in `epoch` may show `found`, `unit` bytes of the disk for `unit` bytes.
    pub fn allows(&self, found: &View, epoch: u64, unit: usize) -> Result<(), String> {
        let durable = self.flushes.iter().rev().find(|flush| flush.0 <= epoch).expect("the first one").1;
        let begun = self.versions.partition_point(|version| version.epoch <= epoch);
        let mut rest = &self.versions[durable..begun];
        let mut problems = Vec::new();
        while let Some((first, others)) = rest.split_first() {
            let len = 1 + others.iter().position(|version| version.whole).unwrap_or(others.len());
            match mix_allows(&rest[..len], found, unit) {
                Ok(()) => return Ok(()),
                Err(problem) if first.whole && durable > 0 => problems.push(format!("as a whole: {problem}")),
                Err(problem) => problems.push(problem),
            }
            rest = &rest[len..];
        }
        Err(problems.join("; "))
    }
}

/// Whether each part of `found` is a part of one of the versions, of which the first one is durable.
fn mix_allows(versions: &[Version], found: &View, unit: usize) -> Result<(), String> {
    let durable = &versions[0].view;
    let same_size = |version: &&Version| version.view.disk.len() == found.disk.len();
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
