//! Making refcounts and COPIED flags right, in an order that no loss of power can turn into lost data.
//!
//! Recipe (docs/qcow2.md, "Repair"), each step with a barrier behind it where it wrote anything:
//!
//! 0. Bitmaps that make no sense are removed: the header disowns all of them, the directory is written anew with those that are sound, and the header
//!    names it again.
//! 1. Unknown autoclear bits are cleared (I8).
//! 2. Refcounts that are too low are raised.
//! 3. COPIED is cleared where the cluster has more than one user.
//! 4. Refcounts that are too high are lowered; or all of them are replaced ([`rebuild`](super::rebuild)), which is 2 and 4 in one.
//! 5. COPIED is set where the cluster has one user.
//! 6. Another survey; if it finds no corruption the dirty and the corrupt bit are cleared.
//!
//! So at no time has a cluster a refcount below its users that was not below them before, and from step 3 on none is written in place
//! that somebody else uses.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::IntoBytes;
use zerocopy::big_endian::U32;

use super::report::{FindingKind, Place};
use super::spread::Control;
use super::structures::Claim;
use super::{READ, Repair, Survey};
use crate::error::Result;
use crate::format::qcow2::bitmaps::{self, Entry};
use crate::format::qcow2::extensions::{BITMAPS, BitmapsExtension};
use crate::format::qcow2::features::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_KNOWN, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY,
};
use crate::format::qcow2::l2::{ALL, COMPRESSED, COPIED, OFFSET_MASK, ZERO};
use crate::format::qcow2::refcounts::write_count;
use crate::format::qcow2::rewrite::HeaderArea;
use crate::ondisk::RawBitmaps;
use crate::storage::Storage;

/// What a repair did, beside what a later survey does not find any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repaired {
    /// Corruptions, those of the COPIED flags aside, and leaks that there were before.
    pub(super) corruptions: u64,
    pub(super) leaks: u64,
    /// COPIED flags that were changed.
    pub(super) flags: u64,
    /// The image lost bitmaps.
    dropped_bitmaps: Option<Kept>,
}

/// The names of the bitmaps that stay.
#[derive(Clone, Debug)]
struct Kept(Vec<String>);

/// What a repair of everything does about bitmaps that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DamagedBitmaps {
    /// It leaves them, and with them an image that nobody can write to.
    Keep,
    /// It removes them.
    Drop,
}

/// Which way refcounts are changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Raise,
    Lower,
}

/// Repairs what a survey finds. Nothing is written to an image of which parts could not be checked, or in which there is nothing to
/// repair; what cannot be repaired is left as it is.
pub(crate) fn repair(
    storage: &dyn Storage,
    data: Option<&dyn Storage>,
    what: Repair,
    bitmaps: DamagedBitmaps,
    control: &mut Control<'_>,
) -> Result<Repaired> {
    let mut survey = Survey::open(storage, data)?;
    survey.count(control)?;
    let mut repaired = survey.before_repair();
    if what == Repair::All && bitmaps == DamagedBitmaps::Drop && survey.bitmaps.are_damaged() {
        repaired.dropped_bitmaps = Some(survey.drop_bitmaps()?);
        survey = Survey::open(storage, data)?;
        survey.count(control)?;
    }
    if what == Repair::None || survey.notes.errors() > 0 {
        return Ok(repaired);
    }
    let now = survey.before_repair();
    let rebuild = survey.needs_rebuild();
    let flags_only = now.corruptions == 0;
    if (now.corruptions, now.leaks, survey.notes.copied()) == (0, 0, 0)
        || (rebuild && (what == Repair::Leaks || !survey.can_rebuild()))
    {
        return Ok(repaired);
    }
    survey.forget_unknown_autoclear_bits()?;
    if what == Repair::All && !rebuild {
        survey.change_refcounts(Change::Raise, control)?;
    }
    survey.raised = what == Repair::All;
    if what == Repair::All || flags_only {
        repaired.flags += survey.change_flags(false, control)?;
    }
    if rebuild {
        survey.rebuild()?;
    } else if !survey.is_lost() {
        survey.change_refcounts(Change::Lower, control)?;
    }
    // In a repair of leaks too: refcounts have become 1 there.
    repaired.flags += survey.change_flags(true, control)?;
    Ok(repaired)
}

impl Survey<'_> {
    /// Removes the bitmaps that are damaged; what they took is lost space then. Their directory is written anew where it is, while the header says
    /// that it is not to be trusted: after a loss of power in between all of them are gone.
    fn drop_bitmaps(&self) -> Result<Kept> {
        let sound = self.bitmaps.sound();
        let names = sound.iter().map(Entry::name).collect();
        let kept_in = if sound.is_empty() { None } else { self.header.bitmaps };
        let mut area = HeaderArea::read(self.storage)?;
        area.raw.autoclear = (area.raw.autoclear.get() & !AUTOCLEAR_BITMAPS).into();
        if kept_in.is_none() {
            area.set_extension(BITMAPS, None);
        }
        area.install(self.storage)?;
        let Some(BitmapsExtension { directory_offset, .. }) = kept_in else { return Ok(Kept(names)) };
        let directory = bitmaps::to_bytes(sound.iter());
        self.storage.writev_at((&directory).into(), directory_offset.0)?;
        self.storage.sync()?;
        let mut area = HeaderArea::read(self.storage)?;
        let raw = RawBitmaps {
            count: (sound.len() as u32).into(),
            reserved: U32::ZERO,
            directory_size: (directory.len() as u64).into(),
            directory_offset: directory_offset.0.into(),
        };
        area.set_extension(BITMAPS, Some(raw.as_bytes().to_vec()));
        area.raw.autoclear = (area.raw.autoclear.get() | AUTOCLEAR_BITMAPS).into();
        area.install(self.storage)?;
        Ok(Kept(names))
    }

    fn before_repair(&self) -> Repaired {
        Repaired {
            corruptions: self.notes.corruptions() - self.notes.copied(),
            leaks: self.notes.leaks(),
            ..Repaired::default()
        }
    }

    /// Notes what a repair ended, and clears the dirty and the corrupt bit if nothing is left that they could stand for.
    pub(crate) fn after_repair(&mut self, repaired: Repaired) -> Result<()> {
        let now = self.before_repair();
        self.corruptions_fixed = repaired.corruptions.saturating_sub(now.corruptions) + repaired.flags;
        self.leaks_fixed = repaired.leaks.saturating_sub(now.leaks);
        if let Some(Kept(names)) = repaired.dropped_bitmaps {
            self.note(FindingKind::BitmapsDropped, Place::default(), 1, || {
                if names.is_empty() {
                    return "bitmaps made no sense and were removed, all of them: the next backup has to be a full one".into();
                }
                let names: Vec<_> = names.iter().map(|name| format!("\"{}\"", name.escape_debug())).collect();
                format!(
                    "bitmaps made no sense and were removed, all but {}: the next backup by them has to be a full one",
                    names.join(", ")
                )
            });
        }
        let marks = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT;
        if self.notes.corruptions() > 0 || self.notes.errors() > 0 || self.header.incompatible & marks == 0 {
            return Ok(());
        }
        self.forget_unknown_autoclear_bits()?;
        let incompatible = self.header.incompatible & !marks;
        self.rewrite_features(incompatible, self.header.autoclear & AUTOCLEAR_KNOWN)?;
        self.notes.forget(&[FindingKind::Dirty, FindingKind::MarkedCorrupt]);
        Ok(())
    }

    fn forget_unknown_autoclear_bits(&self) -> Result<()> {
        let known = self.header.autoclear & AUTOCLEAR_KNOWN;
        if known == self.header.autoclear {
            return Ok(());
        }
        self.rewrite_features(self.header.incompatible, known)
    }

    fn rewrite_features(&self, incompatible: u64, autoclear: u64) -> Result<()> {
        self.header.rewrite_features(self.storage, incompatible, self.header.compatible, autoclear)?;
        self.storage.sync()
    }

    /// Steps 2 and 4: writes the parts of blocks that change, then a barrier.
    fn change_refcounts(&self, change: Change, control: &mut Control<'_>) -> Result<()> {
        let (per_block, order) = (self.per_block(), self.header.refcount_order);
        let changed = AtomicU64::new(0);
        self.each_differing(control, |number, bytes, differing| {
            let mut bytes = bytes.to_vec();
            let mut dirty = bytes.len()..0;
            for &(cluster, refcount, users) in differing {
                let want = users.min(self.refcount_max());
                let right = match change {
                    Change::Raise => refcount >= want,
                    Change::Lower => refcount <= want || !self.is_leak(cluster),
                };
                if !right {
                    let touched = write_count(&mut bytes, order, cluster - number * per_block, want);
                    dirty = dirty.start.min(touched.start)..dirty.end.max(touched.end);
                }
            }
            if dirty.is_empty() {
                return Ok(());
            }
            changed.fetch_add(1, Ordering::Relaxed);
            let block = self.blocks.table[number as usize];
            self.storage.writev_at((&bytes[dirty.clone()]).into(), block + dirty.start as u64)?;
            if change == Change::Lower {
                self.give_back(differing);
            }
            Ok(())
        })?;
        if changed.into_inner() > 0 { self.storage.sync() } else { Ok(()) }
    }

    /// Gives the space of clusters that nothing refers to back to the host.
    fn give_back(&self, differing: &[(u64, u64, u64)]) {
        let free = |&&(cluster, _, users): &&(u64, u64, u64)| users == 0 && self.is_leak(cluster);
        let free: Vec<u64> = differing.iter().filter(free).map(|one| one.0).collect();
        for run in free.chunk_by(|a, b| a + 1 == *b) {
            let bits = self.header.cluster_bits;
            // It was only lost space, and is if this fails.
            let _ = self.storage.discard_at(run[0] << bits, (run.len() as u64) << bits);
        }
    }

    /// Steps 3 and 5: sets (or clears) COPIED in the active tables where that is right, then a barrier. Returns how many
    /// wrong ones there were.
    fn change_flags(&self, set: bool, control: &mut Control<'_>) -> Result<u64> {
        let (wrong, written) = (AtomicU64::new(0), AtomicU64::new(0));
        let rewrite =
            |offset: u64, bytes: &mut [u8], stride: usize, right: &dyn Fn(u64, u64) -> Option<bool>| {
                let mut dirty = bytes.len()..0;
                let words = bytes.as_chunks_mut::<8>().0;
                for index in (0..words.len()).step_by(stride) {
                    let word = u64::from_be_bytes(words[index]);
                    let bitmap = if stride == 2 { u64::from_be_bytes(words[index + 1]) } else { 0 };
                    if (word & COPIED != 0) != set && right(word, bitmap) == Some(set) {
                        words[index] = (word ^ COPIED).to_be_bytes();
                        dirty = dirty.start.min(index * 8)..dirty.end.max(index * 8 + 8);
                        if word & COMPRESSED == 0 {
                            wrong.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                if dirty.is_empty() {
                    return Ok(());
                }
                written.fetch_add(1, Ordering::Relaxed);
                self.storage.writev_at((&bytes[dirty.clone()]).into(), offset + dirty.start as u64)
            };
        if !self.is_overlapped(self.header.l1_offset.0, u64::from(self.header.l1_entries) * 8) {
            let end = self.header.l1_offset.0 + u64::from(self.header.l1_entries) * 8;
            let mut part = vec![0; (end - self.header.l1_offset.0).min(READ) as usize];
            for at in (self.header.l1_offset.0..end.min(self.file_len)).step_by(READ as usize) {
                let part = &mut part[..(end.min(self.file_len & !7) - at).min(READ) as usize];
                self.storage.readv_at((&mut *part).into(), at)?;
                rewrite(at, part, 1, &|word, _| self.one_user(word & OFFSET_MASK))?;
            }
        }
        let stride = if self.geometry.extended { 2 } else { 1 };
        let tables: Vec<_> = self.tables.iter().filter(|table| table.active > 0).collect();
        control.pass(self.table_bytes(), tables.len(), |bytes: &mut Vec<u8>, number| {
            let (table, size) = (tables[number], self.cluster_size());
            let cluster = table.offset >> self.header.cluster_bits;
            let whole = table.offset.is_multiple_of(size) && table.offset + size <= self.file_len;
            if !whole || self.counts.get(cluster) != table.users() {
                return Ok(());
            }
            bytes.resize(size as usize, 0);
            self.storage.readv_at(bytes.as_mut_slice().into(), table.offset)?;
            rewrite(table.offset, bytes, stride, &|word, bitmap| self.copied_flag(word, bitmap))
        })?;
        if written.into_inner() > 0 {
            self.storage.sync()?;
        }
        Ok(wrong.into_inner())
    }

    /// What COPIED should be in an L2 entry; `None` where that is not to be said.
    fn copied_flag(&self, word: u64, bitmap: u64) -> Option<bool> {
        if word & COMPRESSED != 0 {
            return Some(false);
        }
        let host = word & OFFSET_MASK;
        if self.geometry.external_data {
            // At offset 0 the flag itself says that there is a cluster.
            let zero = !self.geometry.extended && word & ZERO != 0;
            return if host != 0 { Some(true) } else { (zero && bitmap & ALL == 0).then_some(false) };
        }
        if host == 0 { Some(false) } else { self.one_user(host) }
    }

    /// Whether the cluster at `host` has one user, and its refcount says so when all refcounts are changed that will be.
    fn one_user(&self, host: u64) -> Option<bool> {
        let cluster = host >> self.header.cluster_bits;
        let one = match cluster < self.file_clusters {
            // A refcount of 0 that nobody raises would let somebody else have the cluster.
            _ if !self.raised && self.refcount(cluster) == 0 => false,
            false => self.refcount(cluster) == 1,
            true if self.is_lost() => self.counts.get(cluster).max(self.refcount(cluster)) == 1,
            true => self.counts.get(cluster) == 1,
        };
        (host != 0).then_some(one)
    }

    fn is_overlapped(&self, offset: u64, len: u64) -> bool {
        let clusters = self.inside(offset, len.max(1));
        clusters.is_none_or(|clusters| clusters.clone().any(|cluster| self.counts.get(cluster) != 1))
    }

    /// The refcount structures cannot be written where they stand.
    fn needs_rebuild(&self) -> bool {
        let refcounts = |claim: &&Claim| super::blocks::is_of_refcounts(claim.what);
        self.blocks.broken
            || self.uncovered.load(Ordering::Relaxed)
            || self.claims.iter().filter(refcounts).any(|claim| {
                claim.clusters.clone().any(|cluster| self.counts.get(cluster) != 1)
                    || claim.clusters.end << self.header.cluster_bits > self.file_end()
            })
    }

    /// Tables or snapshots could not be followed: what seems to be lost space may be theirs.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Where the file ends, up to a whole cluster.
    fn file_end(&self) -> u64 {
        self.file_clusters << self.header.cluster_bits
    }
}
