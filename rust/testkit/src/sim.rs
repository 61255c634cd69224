//! A storage whose medium can fail and lose power.
//!
//! # Fault model
//!
//! Time is cut into *epochs* by syncs that succeed. The medium's state after a loss of power in epoch *n* (after the
//! *n*th sync, before the next) is:
//!
//! - everything from before the *n*th sync, and
//! - of the changes made since then, for each sector of 512 bytes on its own, what it was at the sync or what it was
//!   after any one of the changes to it. So writes may be lost, torn between sectors and overtake one another; a sector itself
//!   is never torn, and a change to a part of a sector carries the rest of the sector as it was then. (Two changes to one sector
//!   that swap places leave what the first one left: no case of its own.)
//! - Lengths survive in the order they were given: the medium has one of the lengths since the sync, and what a
//!   cut took away stays away once that cut survived. What a growth added reads as zeroes until a write to it survives.
//! - A write that needs the storage to be longer and whose growth was lost is lost too.
//!
//! A zeroing or a discard is a write of what it left. A discard leaves zeroes in every other sector and the
//! old bytes in the rest: whoever reckons with one of the two meets the other.
//!
//! Several storages can share one power supply ([`SimStorage::beside`]): syncs, calls and faults are counted over all of them. A sync
//! is a barrier for its own storage only; changes of the others stay in doubt until one of theirs.
//!
//! A call that fails ([`SimStorage::fail_call`]) reports `EIO`; a write or zeroing that fails has had none, half (in whole
//! sectors) or all of its effect, by turns. After a failed sync no epoch ends any more: no later sync makes up for it.
//!
//! [`Storage::try_readv_at`] fills nothing, half or all of it by turns.

use std::backtrace::Backtrace;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use imago_core::storage::{Capabilities, Limits, Storage, ZeroMode};
use imago_core::{Error, IoVector, IoVectorMut, Result};
use parking_lot::{Mutex, MutexGuard};

use crate::rng::Rng;

/// Bytes that reach the medium together.
pub const SECTOR: usize = 512;

/// What failing calls report.
const EIO: i32 = 5;

/// How long a storage goes on failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// One call.
    Once,
    /// That call and all that follow.
    Forever,
}

/// Bytes in memory with a history, see the [module](self).
pub struct SimStorage {
    limits: Limits,
    /// Which of the power supply's media it is.
    medium: usize,
    state: Arc<Mutex<State>>,
}

/// Everything that loses power together.
#[derive(Default)]
struct State {
    media: Vec<Medium>,
    /// Epochs that have ended, oldest first.
    ended: Vec<Arc<Epoch>>,
    current: Epoch,
    calls: u64,
    fault: Option<(u64, Failing)>,
    /// The number of the sync that is to be no barrier.
    broken_sync: Option<u64>,
    /// Who called for each sync that reported success, if that is noted.
    barriers: Option<Vec<String>>,
}

struct Medium {
    /// What reads see.
    bytes: Vec<u8>,
    /// What it certainly held when the history began.
    base: Vec<u8>,
    sync_failed: bool,
}

#[derive(Clone, Default)]
struct Epoch {
    /// Syncs that had reported success when it began.
    number: u64,
    changes: Vec<Change>,
    /// The medium whose changes the sync that ended it made durable; the next epoch has the others too.
    durable: Option<usize>,
}

#[derive(Clone)]
struct Change {
    medium: usize,
    what: What,
}

#[derive(Clone)]
enum What {
    /// The length became this.
    Len(usize),
    /// The sectors from `first` on became this; the last one may be short.
    Sectors { first: usize, after: Vec<u8> },
}

/// What the media may hold after power was lost.
#[derive(Clone)]
pub struct CrashImage {
    /// Syncs that had succeeded: all that was written before the last of them is here.
    pub epoch: u64,
    /// The image's number among those of its epoch; with the seed it names the image.
    pub index: usize,
    /// The bytes of each medium, the first storage's first.
    pub media: Vec<Vec<u8>>,
}

impl fmt::Debug for CrashImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lens: Vec<usize> = self.media.iter().map(Vec::len).collect();
        write!(f, "crash image {} of epoch {}, {lens:?} bytes", self.index, self.epoch)
    }
}

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("SimStorage")
            .field("len", &state.media[self.medium].bytes.len())
            .field("epoch", &state.current.number)
            .field("calls", &state.calls)
            .finish_non_exhaustive()
    }
}

impl From<Vec<u8>> for SimStorage {
    /// A storage that holds `bytes`, durable.
    fn from(bytes: Vec<u8>) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let medium = state.lock().plug_in(bytes);
        SimStorage { limits: Limits::default(), medium, state }
    }
}

impl Default for SimStorage {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl SimStorage {
    /// Another storage that holds `bytes`, durable, and loses power together with this one.
    ///
    /// # Panics
    /// When something was written already.
    #[must_use]
    pub fn beside(&self, bytes: Vec<u8>) -> SimStorage {
        let mut state = self.state.lock();
        assert!(state.ended.is_empty() && state.current.changes.is_empty(), "the history has begun");
        let medium = state.plug_in(bytes);
        SimStorage { limits: Limits::default(), medium, state: Arc::clone(&self.state) }
    }

    /// Refuses requests that miss these alignments, as direct I/O does.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Calls of every kind so far.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// Syncs that have reported success so far. A crash image with at least this
    /// [`epoch`](CrashImage::epoch) holds all that was written before now's last sync.
    pub fn epoch(&self) -> u64 {
        self.state.lock().current.number
    }

    /// Lets the `nth` call from now on (0: the next one) fail.
    pub fn fail_call(&self, nth: u64, failing: Failing) {
        let mut state = self.state.lock();
        state.fault = Some((state.calls + nth, failing));
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.state.lock().fault = None;
    }

    /// Notes from now on who calls for each sync, see [`barriers`](Self::barriers). Slow.
    pub fn note_barriers(&self) {
        let state = &mut *self.state.lock();
        state.barriers = Some(vec![String::new(); state.current.number as usize]);
    }

    /// The places in the engine that called for the syncs so far, by their number: function, file and line.
    pub fn barriers(&self) -> Vec<String> {
        self.state.lock().barriers.clone().unwrap_or_default()
    }

    /// Lets the `nth` sync from now on (0: the next one) report success and do nothing: a barrier that
    /// somebody forgot. A test of power loss must notice.
    pub fn break_sync(&self, nth: u64) {
        let mut state = self.state.lock();
        state.broken_sync = Some(state.current.number + nth);
    }

    /// What reads see.
    pub fn contents(&self) -> Vec<u8> {
        self.state.lock().media[self.medium].bytes.clone()
    }

    /// Makes the epochs that have ended count as tested: later crash images begin with the current epoch.
    pub fn forget_history(&self) {
        let state = &mut *self.state.lock();
        let mut bases = state.bases();
        for epoch in state.ended.drain(..) {
            epoch.harden(&mut bases);
        }
        for (medium, base) in state.media.iter_mut().zip(bases) {
            medium.base = base;
        }
    }

    /// What the media may hold if power is lost at any time up to now, at most `n` images for each epoch: all there
    /// are, or else a sample by `seed` that begins with the epoch's last and first state and has whole changes lost as well as torn ones.
    pub fn crash_images(&self, seed: u64, n: usize) -> impl Iterator<Item = CrashImage> + use<> {
        let state = self.state.lock();
        let mut epochs = state.ended.clone();
        epochs.push(Arc::new(state.current.clone()));
        let mut bases = state.bases();
        drop(state);
        epochs.into_iter().flat_map(move |epoch| {
            let images = epoch.crash_images(bases.clone(), seed, n);
            epoch.harden(&mut bases);
            images
        })
    }

    /// Whether a request with regions (address, length) meets the limits.
    fn check(&self, regions: impl Iterator<Item = (usize, usize)>, offset: u64) -> Result<()> {
        for (address, len) in regions {
            self.check_range(offset, len as u64)?;
            if !address.is_multiple_of(self.limits.memory_alignment as usize) {
                return Err(Error::invalid_input("misaligned memory").at(offset));
            }
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let unit = u64::from(self.limits.request_alignment);
        if offset.is_multiple_of(unit) && len.is_multiple_of(unit) {
            return Ok(());
        }
        Err(Error::invalid_input("misaligned request").at(offset))
    }

    /// Counts a call; an error where it is to fail.
    fn enter(&self, what: &str) -> (MutexGuard<'_, State>, Result<()>) {
        let mut state = self.state.lock();
        let call = state.calls;
        state.calls += 1;
        let fails = match state.fault {
            Some((at, Failing::Once)) => call == at,
            Some((at, Failing::Forever)) => call >= at,
            None => false,
        };
        let result = if fails {
            let source = io::Error::from_raw_os_error(EIO);
            Err(Error::io(format!("{what} (failure injected into call {call})"), source))
        } else {
            Ok(())
        };
        (state, result)
    }
}

impl State {
    fn plug_in(&mut self, bytes: Vec<u8>) -> usize {
        self.media.push(Medium { base: bytes.clone(), bytes, sync_failed: false });
        self.media.len() - 1
    }

    fn bases(&self) -> Vec<Vec<u8>> {
        self.media.iter().map(|medium| medium.base.clone()).collect()
    }

    /// None, half or all of something, by turns.
    fn share(&self, whole: usize) -> usize {
        match self.calls % 3 {
            0 => 0,
            1 => whole / 2,
            _ => whole,
        }
    }

    /// The same of a change at `offset`; a sector is changed whole or not at all.
    fn share_of_sectors(&self, offset: u64, whole: usize) -> usize {
        let share = self.share(whole);
        let torn = (offset + share as u64) % SECTOR as u64;
        if share == whole { whole } else { share.saturating_sub(torn as usize) }
    }

    /// The part of a range that is inside a medium's length.
    fn inside(&self, medium: usize, offset: u64, len: u64) -> Range<usize> {
        let end = self.media[medium].bytes.len() as u64;
        offset.min(end) as usize..offset.saturating_add(len).min(end) as usize
    }

    fn resize(&mut self, medium: usize, len: u64) -> Result<()> {
        let too_long = || Error::io("grow", io::ErrorKind::StorageFull.into()).at(len);
        let len = usize::try_from(len).map_err(|_| too_long())?;
        let bytes = &mut self.media[medium].bytes;
        bytes.try_reserve(len.saturating_sub(bytes.len())).map_err(|_| too_long())?;
        bytes.resize(len, 0);
        self.current.changes.push(Change { medium, what: What::Len(len) });
        Ok(())
    }

    /// Puts a range that has changed into the history.
    fn record(&mut self, medium: usize, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let bytes = &self.media[medium].bytes;
        let first = range.start / SECTOR * SECTOR;
        let end = range.end.next_multiple_of(SECTOR).min(bytes.len());
        let what = What::Sectors { first, after: bytes[first..end].to_vec() };
        self.current.changes.push(Change { medium, what });
    }

    fn zero(&mut self, medium: usize, range: Range<usize>) {
        self.media[medium].bytes[range.clone()].fill(0);
        self.record(medium, range);
    }

    /// Ends the epoch; with `durable`, that medium's changes are certain from now on.
    fn end_epoch(&mut self, durable: Option<usize>) {
        let mut ended = std::mem::take(&mut self.current);
        ended.durable = durable;
        self.current.number = ended.number + 1;
        let in_doubt = ended.changes.iter().filter(|change| Some(change.medium) != durable);
        self.current.changes = in_doubt.cloned().collect();
        self.ended.push(Arc::new(ended));
    }
}

/// The functions and lines of the engine's format that are waiting for this call, innermost first, with its source.
fn caller() -> String {
    let trace = Backtrace::force_capture().to_string();
    let mut function = "";
    let mut callers = Vec::new();
    for line in trace.lines().map(str::trim) {
        let Some(place) = line.strip_prefix("at ") else {
            function = line.split_once(": ").map_or(line, |(_, function)| function);
            continue;
        };
        if let Some((room, file)) = place.split_once("src/format/") {
            let place = file.rsplit_once(':').map_or(file, |(line, _column)| line);
            let source = if callers.is_empty() { source(room, place) } else { String::new() };
            callers.push(format!("{}{source} ({place})", function.rsplit("::").next().unwrap_or(function)));
        }
    }
    if callers.is_empty() { "nobody in the format".into() } else { callers.join(" < ") }
}

/// The text of a line of the format (`file:line`, in the crate at `room`), if the source is there.
fn source(room: &str, place: &str) -> String {
    let text = || {
        let (file, line) = place.split_once(':')?;
        let text = std::fs::read_to_string(format!("{room}src/format/{file}")).ok()?;
        let line = text.lines().nth(line.parse::<usize>().ok()?.checked_sub(1)?)?;
        Some(format!(": {}", line.trim()))
    };
    text().unwrap_or_default()
}

/// Which changes of an epoch a crash image has.
enum Survivors {
    /// The first so many.
    First(usize),
    /// All but one.
    AllBut(usize),
    /// One only.
    Only(usize),
    /// Each with this chance in eight, whole.
    Some(u64),
    /// Each sector of each with this chance in eight.
    Torn(u64),
}

/// A sector of a medium.
type Place = (usize, usize);

impl Epoch {
    /// Applies its changes to the durable bytes of the medium for which its sync made them so.
    fn harden(&self, bases: &mut [Vec<u8>]) {
        if let Some(medium) = self.durable {
            let all = vec![usize::MAX; bases.len()];
            bases[medium] = self.media(bases, &all, |_, _| true).swap_remove(medium);
        }
    }

    /// The media with the first `lens` changes of the length of each and the sectors that survive (change, place).
    fn media(
        &self,
        bases: &[Vec<u8>],
        lens: &[usize],
        mut survives: impl FnMut(usize, Place) -> bool,
    ) -> Vec<Vec<u8>> {
        let mut media = bases.to_vec();
        let mut lens = lens.to_vec();
        let mut ends: Vec<usize> = bases.iter().map(Vec::len).collect();
        for change in &self.changes {
            let reach = match &change.what {
                What::Len(len) => *len,
                What::Sectors { first, after } => first + after.len(),
            };
            let bytes = &mut media[change.medium];
            bytes.resize(bytes.len().max(reach), 0);
        }
        for (index, Change { medium, what }) in self.changes.iter().enumerate() {
            let bytes = &mut media[*medium];
            match what {
                What::Len(_) if lens[*medium] == 0 => {}
                What::Len(new) => {
                    lens[*medium] -= 1;
                    ends[*medium] = *new;
                    bytes[*new..].fill(0);
                }
                What::Sectors { first, after } => {
                    for (sector, after) in (first / SECTOR..).zip(after.chunks(SECTOR)) {
                        if survives(index, (*medium, sector)) {
                            bytes[sector * SECTOR..][..after.len()].copy_from_slice(after);
                        }
                    }
                }
            }
        }
        for (bytes, end) in media.iter_mut().zip(ends) {
            bytes.truncate(end);
        }
        media
    }

    /// For each sector that changed the changes that did it, in order.
    fn versions(&self) -> BTreeMap<Place, Vec<usize>> {
        let mut versions = BTreeMap::<Place, Vec<usize>>::new();
        for (index, change) in self.changes.iter().enumerate() {
            if let What::Sectors { first, after } = &change.what {
                for sector in first / SECTOR..(first + after.len()).div_ceil(SECTOR) {
                    versions.entry((change.medium, sector)).or_default().push(index);
                }
            }
        }
        versions
    }

    /// How often the length of each medium changed.
    fn lens(&self, media: usize) -> Vec<usize> {
        let mut lens = vec![0; media];
        for change in self.changes.iter().filter(|change| matches!(change.what, What::Len(_))) {
            lens[change.medium] += 1;
        }
        lens
    }

    fn crash_images(
        self: &Arc<Self>,
        bases: Vec<Vec<u8>>,
        seed: u64,
        n: usize,
    ) -> impl Iterator<Item = CrashImage> + use<> {
        let epoch = Arc::clone(self);
        let versions = epoch.versions();
        let lens = epoch.lens(bases.len());
        let all = (lens.iter().copied().chain(versions.values().map(Vec::len)))
            .try_fold(1_usize, |product, choices| product.checked_mul(choices + 1))
            .filter(|all| *all <= n);
        (0..all.unwrap_or(n)).map(move |index| {
            let media = match all {
                Some(_) => epoch.nth_image(&bases, &lens, &versions, index),
                None => epoch.sampled_image(&bases, seed, index),
            };
            CrashImage { epoch: epoch.number, index, media }
        })
    }

    /// The image whose choices are the digits of `index`: how many lengths of each medium, and of each sector which version.
    fn nth_image(
        &self,
        bases: &[Vec<u8>],
        lens: &[usize],
        versions: &BTreeMap<Place, Vec<usize>>,
        index: usize,
    ) -> Vec<Vec<u8>> {
        let mut digits = index;
        let mut digit = |bound: usize| {
            let digit = digits % bound;
            digits /= bound;
            digit
        };
        let lens: Vec<usize> = lens.iter().map(|len| digit(len + 1)).collect();
        let chosen: BTreeMap<Place, usize> = versions
            .iter()
            .filter_map(|(place, changes)| Some((*place, changes[digit(changes.len() + 1).checked_sub(1)?])))
            .collect();
        self.media(bases, &lens, |change, place| chosen.get(&place) == Some(&change))
    }

    fn sampled_image(&self, bases: &[Vec<u8>], seed: u64, index: usize) -> Vec<Vec<u8>> {
        let mut rng = Rng::new(seed ^ self.number.rotate_left(32) ^ (index as u64).rotate_left(48));
        let changes = self.changes.len();
        let one = rng.below(changes as u64) as usize;
        let survivors = match index {
            0 => Survivors::First(changes),
            1 => Survivors::First(0),
            _ => match rng.below(6) {
                0 => Survivors::First(one),
                1 => Survivors::AllBut(one),
                2 => Survivors::Only(one),
                3 => Survivors::Some(1 + rng.below(7)),
                _ => Survivors::Torn(1 + rng.below(7)),
            },
        };
        let whole: Vec<bool> = (0..changes)
            .map(|change| match survivors {
                Survivors::First(first) => change < first,
                Survivors::AllBut(lost) => change != lost,
                Survivors::Only(kept) => change == kept,
                Survivors::Some(chance) | Survivors::Torn(chance) => rng.below(8) < chance,
            })
            .collect();
        let lens: Vec<usize> = (0..bases.len())
            .map(|medium| {
                (self.changes.iter().zip(&whole))
                    .filter(|(change, _)| change.medium == medium && matches!(change.what, What::Len(_)))
                    .take_while(|(_, survives)| **survives)
                    .count()
            })
            .collect();
        self.media(bases, &lens, |change, _| match survivors {
            Survivors::Torn(chance) => rng.below(8) < chance,
            _ => whole[change],
        })
    }
}

impl Storage for SimStorage {
    fn readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        self.check(bufs.as_iovecs().iter().map(|region| (region.iov_base.addr(), region.iov_len)), offset)?;
        let (state, result) = self.enter("read");
        result.map_err(|error| error.at(offset))?;
        let inside = state.inside(self.medium, offset, bufs.len() as u64);
        bufs.take_front(inside.len()).copy_from_slice(&state.media[self.medium].bytes[inside]);
        bufs.fill_zero();
        Ok(())
    }

    fn try_readv_at(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        let (state, result) = self.enter("read");
        result.map_err(|error| error.at(offset))?;
        let inside = state.inside(self.medium, offset, bufs.len() as u64);
        let filled = state.share(inside.len());
        bufs.take_front(filled).copy_from_slice(&state.media[self.medium].bytes[inside][..filled]);
        Ok(filled)
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        self.check(bufs.as_iovecs().iter().map(|region| (region.iov_base.addr(), region.iov_len)), offset)?;
        let mut bytes = vec![0; bufs.len()];
        bufs.copy_to_slice(&mut bytes);
        let (mut state, result) = self.enter("write");
        if result.is_err() {
            bytes.truncate(state.share_of_sectors(offset, bytes.len()));
        }
        if !bytes.is_empty() {
            let end = offset
                .checked_add(bytes.len() as u64)
                .ok_or_else(|| Error::invalid_input("a write past all offsets").at(offset))?;
            if end > state.media[self.medium].bytes.len() as u64 {
                state.resize(self.medium, end)?;
            }
            let range = state.inside(self.medium, offset, bytes.len() as u64);
            state.media[self.medium].bytes[range.clone()].copy_from_slice(&bytes);
            state.record(self.medium, range);
        }
        result.map_err(|error| error.at(offset))
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        self.check_range(offset, len)?;
        let (mut state, result) = self.enter("write zeroes");
        let mut range = state.inside(self.medium, offset, len);
        if result.is_err() {
            range.end = range.start + state.share_of_sectors(offset, range.len());
        }
        state.zero(self.medium, range);
        result.map_err(|error| error.at(offset))
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check_range(offset, len)?;
        let (mut state, result) = self.enter("discard");
        result.map_err(|error| error.at(offset))?;
        let range = state.inside(self.medium, offset, len);
        let whole = range.start.div_ceil(SECTOR)..range.end / SECTOR;
        for sector in whole.filter(|sector| sector.is_multiple_of(2)) {
            state.zero(self.medium, sector * SECTOR..(sector + 1) * SECTOR);
        }
        Ok(())
    }

    fn allocate_at(&self, offset: u64, _len: u64) -> Result<()> {
        let (_state, result) = self.enter("set space aside");
        result.map_err(|error| error.at(offset))
    }

    fn len(&self) -> Result<u64> {
        let (state, result) = self.enter("ask for the length");
        result.map(|()| state.media[self.medium].bytes.len() as u64)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let (mut state, result) = self.enter("change the length");
        result?;
        state.resize(self.medium, len)
    }

    fn grow(&self, len: u64) -> Result<()> {
        let (mut state, result) = self.enter("change the length");
        result?;
        if len > state.media[self.medium].bytes.len() as u64 {
            state.resize(self.medium, len)
        } else {
            Ok(())
        }
    }

    fn sync(&self) -> Result<()> {
        let (mut state, result) = self.enter("sync");
        if let Err(error) = result {
            state.media[self.medium].sync_failed = true;
            return Err(error);
        }
        let lies = state.media[self.medium].sync_failed || state.broken_sync == Some(state.current.number);
        state.end_epoch((!lies).then_some(self.medium));
        if let Some(barriers) = &mut state.barriers {
            barriers.push(caller());
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { write: true, fast_zeroes: true, discard_zeroes: false, resize: true }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn sector(value: u8) -> Vec<u8> {
        vec![value; SECTOR]
    }

    fn write(storage: &SimStorage, at: usize, value: u8) {
        storage.writev_at((&sector(value)).into(), (at * SECTOR) as u64).expect("write");
    }

    /// The images as one letter for each sector: its first byte.
    fn states(storage: &SimStorage, n: usize) -> BTreeSet<(u64, Vec<u8>)> {
        storage
            .crash_images(7, n)
            .map(|image| (image.epoch, image.media[0].iter().step_by(SECTOR).copied().collect()))
            .collect()
    }

    fn expected(states: &[(u64, &[u8])]) -> BTreeSet<(u64, Vec<u8>)> {
        states.iter().map(|(epoch, bytes)| (*epoch, bytes.to_vec())).collect()
    }

    #[test]
    fn unsynced_sectors_survive_in_every_combination() {
        let storage = SimStorage::from([sector(0), sector(0)].concat());
        write(&storage, 0, 1);
        write(&storage, 1, 2);
        write(&storage, 0, 3);
        let all = [[0, 0], [0, 2], [1, 0], [1, 2], [3, 0], [3, 2]];
        assert_eq!(states(&storage, 6), expected(&all.each_ref().map(|s| (0, s.as_slice()))));
    }

    #[test]
    fn a_sync_makes_durable_and_history_can_be_forgotten() {
        let storage = SimStorage::from(sector(0));
        write(&storage, 0, 1);
        storage.sync().expect("sync");
        write(&storage, 0, 2);
        assert_eq!(states(&storage, 100), expected(&[(0, &[0]), (0, &[1]), (1, &[1]), (1, &[2])]));
        storage.forget_history();
        assert_eq!(states(&storage, 100), expected(&[(1, &[1]), (1, &[2])]));
    }

    #[test]
    fn lengths_survive_in_order_and_growth_is_zero() {
        let storage = SimStorage::from([sector(9), sector(9)].concat());
        storage.set_len(SECTOR as u64).expect("set_len");
        write(&storage, 1, 1);
        let expected = expected(&[(0, &[9, 9]), (0, &[9, 1]), (0, &[9]), (0, &[9, 0])]);
        assert_eq!(states(&storage, 100), expected, "never the old second sector behind a cut that survived");
    }

    #[test]
    fn a_write_within_a_sector_carries_the_earlier_ones() {
        let storage = SimStorage::from(sector(0));
        storage.writev_at(b"a".as_slice().into(), 0).expect("write");
        storage.writev_at(b"b".as_slice().into(), 1).expect("write");
        let found: BTreeSet<Vec<u8>> =
            storage.crash_images(0, 100).map(|image| image.media[0][..2].to_vec()).collect();
        assert_eq!(found, [b"\0\0".to_vec(), b"a\0".to_vec(), b"ab".to_vec()].into());
    }

    #[test]
    fn a_sample_repeats_and_has_both_ends() {
        let storage = SimStorage::from(vec![0; 64 * SECTOR]);
        for at in 0..64 {
            write(&storage, at, 1);
        }
        let images = || storage.crash_images(3, 50).map(|image| image.media).collect::<Vec<_>>();
        let first = images();
        assert_eq!(first.len(), 50);
        assert_eq!(first, images());
        assert_eq!(first[0], [storage.contents()]);
        assert_eq!(first[1], [vec![0; 64 * SECTOR]]);
        assert!(first.iter().collect::<BTreeSet<_>>().len() > 30, "the images differ");
        assert_ne!(first, storage.crash_images(4, 50).map(|image| image.media).collect::<Vec<_>>());
    }

    #[test]
    fn a_broken_sync_is_no_barrier() {
        for (broken, can_be_lost) in [(false, false), (true, true)] {
            let storage = SimStorage::from(sector(0));
            if broken {
                storage.break_sync(0);
            }
            write(&storage, 0, 1);
            storage.sync().expect("sync");
            assert_eq!(storage.epoch(), 1);
            assert_eq!(states(&storage, 100).contains(&(1, vec![0])), can_be_lost);
            storage.sync().expect("sync");
            assert!(!states(&storage, 100).contains(&(2, vec![0])), "a later sync is a barrier");
        }
    }

    #[test]
    fn nothing_is_durable_after_a_failed_sync() {
        let storage = SimStorage::from(sector(0));
        write(&storage, 0, 1);
        storage.fail_call(0, Failing::Once);
        storage.sync().expect_err("injected");
        storage.sync().expect("the next one says yes");
        assert!(states(&storage, 100).contains(&(1, vec![0])), "and means nothing by it");
    }

    #[test]
    fn a_sync_is_a_barrier_for_its_own_storage_only() {
        let storage = SimStorage::from(sector(0));
        let other = storage.beside(sector(0));
        write(&storage, 0, 1);
        write(&other, 0, 2);
        storage.sync().expect("sync");
        other.sync().expect("sync");
        assert_eq!((storage.epoch(), other.epoch()), (2, 2));
        let found: BTreeSet<(u64, u8, u8)> = storage
            .crash_images(7, 100)
            .map(|image| (image.epoch, image.media[0][0], image.media[1][0]))
            .collect();
        assert_eq!(
            found,
            [(0, 0, 0), (0, 0, 2), (0, 1, 0), (0, 1, 2), (1, 1, 0), (1, 1, 2), (2, 1, 2)].into()
        );
    }

    #[test]
    fn the_nth_call_fails_once_or_forever() {
        let storage = SimStorage::default();
        storage.fail_call(1, Failing::Once);
        storage.len().expect("call 0");
        storage.sync().expect_err("call 1");
        storage.sync().expect("call 2");
        storage.fail_call(1, Failing::Forever);
        storage.len().expect("before");
        storage.len().expect_err("the first");
        storage.writev_at(b"x".as_slice().into(), 0).expect_err("and on");
        storage.heal();
        storage.len().expect("healed");
        assert_eq!(storage.calls(), 7);
    }

    #[test]
    fn a_failed_write_has_none_half_or_all_of_its_effect() {
        let mut effects = BTreeSet::new();
        for calls in 0..3 {
            let storage = SimStorage::from(vec![0; 4 * SECTOR]);
            for _ in 0..calls {
                storage.len().expect("len");
            }
            storage.fail_call(0, Failing::Once);
            storage.writev_at((&vec![1; 4 * SECTOR]).into(), 0).expect_err("injected");
            effects.insert(storage.contents().into_iter().map(usize::from).sum::<usize>());
        }
        assert_eq!(effects, [0, 2 * SECTOR, 4 * SECTOR].into());
    }
}
