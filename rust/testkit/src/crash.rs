//! Power loss and failing storage, for scripts on an open image and for verbs on a closed one.
//!
//! A script runs on [`Start`] images ([`Start::lose_power`], [`Start::fail`]); a verb that needs no open image (amend, repair, ...)
//! is a [`Verb`]. Both look at every crash image that [`SimStorage`] has of it, and both take a barrier out to see whether
//! that is noticed ([`assert_barriers_noticed`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use imago_core::access::check::{CheckOptions, check_storage};
use imago_core::access::image::Image;
use imago_core::access::job::Job;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::{FormatKind, Recording};
use imago_core::storage::memory::Memory;
use imago_core::{Result, Storage};

use crate::check::check;
use crate::history::History;
use crate::images::{self, Built, Config, DataFile};
use crate::model::{Discards, Geometry, Model, View};
use crate::ops::{Crash, Op, fixed_script};
use crate::qcow2::Qcow2;
use crate::qemu;
use crate::sim::{CrashImage, Failing, SECTOR, SimStorage};

/// What the oracle sees in an image (and its data file, the second of `media`) that survived something.
///
/// # Errors
/// Its check finds more than leaks. Flags that do not agree with refcounts are no more than that where the dirty bit says so; version 2 has no
/// such bit, and may lack flags.
pub fn survivor(media: &[Vec<u8>], backing: &[u8]) -> Result<View, String> {
    let report = check(&media[0]);
    let says_so = report.dirty || Qcow2::parse(&media[0])?.header.version == 2;
    if !report.corruptions.is_empty() || !(report.unflagged.is_empty() || says_so) {
        return Err(report.to_string());
    }
    View::parse(&media[0], backing, media.get(1).map(Vec::as_slice))
}

/// Bytes that a bit of the enabled bitmap stands for.
const GRANULE: u64 = 512;

/// An image to begin with, and what it is above.
#[derive(Debug)]
pub struct Start {
    /// Names it in failures and replays.
    pub name: String,
    /// What it is like.
    pub config: Config,
    content: Content,
    built: Built,
    /// The bytes of the image, and of its data file.
    pub media: Vec<Vec<u8>>,
    /// What it shows.
    pub view: View,
}

/// What a start image holds. Compressed clusters and snapshots are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent parts, read by name")]
pub struct Content {
    /// Compressed clusters, in the disk's first half.
    pub compressed: bool,
    /// What a script leaves that ran on it, so that later ones meet every kind of cluster.
    pub used: bool,
    /// A snapshot of everything at last, so that all clusters are shared.
    pub snapshot: bool,
    /// The bitmaps `on`, which records, and `off`, which does not; nothing is dirty in them.
    pub bitmaps: bool,
}

impl Start {
    /// An image of that kind; `None` if it takes QEMU to make it, and that is not there.
    pub fn new(name: &str, config: Config, content: Content) -> Option<Self> {
        let by_qemu = content.compressed || content.snapshot;
        if by_qemu && !qemu::qemu_or_skip() {
            return None;
        }
        let built = config.build();
        if content.compressed {
            let cluster = config.geometry().cluster;
            let write = |n| format!("write -c -P {} {} {cluster}", n % 200 + 1, n * cluster);
            let clusters = (config.size / cluster / 2).clamp(1, 40);
            qemu::io(&built.path, "qcow2", &(0..clusters).map(write).collect::<Vec<_>>());
        }
        let mut model = config.model(&built.backing);
        model.view = built.checked_view().expect("a fresh image");
        let image = images::open(&built.path, true).expect("open");
        // Packed clusters share host clusters up to what a narrow refcount holds: no snapshot could be taken of them.
        let geometry = config.geometry();
        let compresses = geometry.compresses && (!content.snapshot || config.refcount_bits >= 8);
        let geometry = Geometry { compresses, ..geometry };
        for op in fixed_script(geometry, if content.used { 12 } else { 0 }, 200) {
            model.apply(&image, &op).expect("the script of a start image");
        }
        if content.bitmaps && content.used {
            // The first write after the bitmaps came is to be one in place.
            let write = Op::Write { offset: 0, len: model.size() / 4, seed: 77 };
            model.apply(&image, &write).expect("a write");
        }
        if content.bitmaps {
            image.bitmaps().add("on", Some(GRANULE), Recording::Enabled).expect("a bitmap");
            image.bitmaps().add("off", None, Recording::Disabled).expect("a bitmap");
        }
        image.close().expect("close");
        drop(image);
        if content.snapshot {
            qemu::img(&["snapshot", "-c", "shared", built.path.to_str().expect("a name")]);
        }
        let view = built.checked_view().expect("a clean image");
        let image = std::fs::read(&built.path).expect("the image");
        let media = [image].into_iter().chain(built.data_file()).collect();
        Some(Start { name: name.to_owned(), config, content, built, media, view })
    }

    /// Opens storages that hold such an image: its own, and its data file's.
    pub fn open(&self, media: &[Arc<dyn Storage>], write: bool) -> Result<Arc<Image>> {
        let backing = match self.config.backing {
            None => Backing::None,
            Some(backing) => {
                let format = if backing.qcow2 { FormatKind::Qcow2 } else { FormatKind::Raw };
                let options = OpenOptions { format: Some(format), ..OpenOptions::default() };
                Backing::Image(options.open(self.built.dir.path().join("backing"))?)
            }
        };
        let format = Some(FormatKind::Qcow2);
        let data_file = media.get(1).cloned();
        OpenOptions { write, format, backing, data_file, ..OpenOptions::default() }
            .open_storage(Arc::clone(&media[0]))
    }

    fn model(&self, view: View) -> Model {
        // What is discarded in a data file is the storage's affair, and the one here leaves some of it.
        let discards =
            if self.config.data_file == DataFile::None { self.config.discards() } else { Discards::Either };
        Model::new(view, self.config.geometry(), discards)
    }

    /// The script with that seed, with a flush after every third operation.
    pub fn script(&self, ops: usize, seed: u64) -> Vec<Op> {
        let ops = fixed_script(self.config.geometry(), ops, seed);
        ops.chunks(3).flat_map(|some| some.iter().cloned().chain([Op::Flush])).collect()
    }

    /// A script in which every flush has new data, dropped clusters and, where clusters are small, a new refcount block.
    pub fn barrier_script(&self) -> Vec<Op> {
        let size = self.config.size;
        let round = |at: u64| {
            let (offset, len) = (at * size / 5, size / 4);
            let write = Op::Write { offset, len, seed: at as u8 + 1 };
            [write, Op::Discard { offset, len: len / 3 }, Op::Flush]
        };
        (0..4).flat_map(round).collect()
    }

    /// Media after a crash or failure: checked by the oracle, compared with what may be there, opened, and written to.
    fn verify(&self, media: &[Vec<u8>], history: &History, epoch: u64, unit: usize) -> Result<(), String> {
        let view = survivor(media, &self.built.backing)?;
        history.allows(&view, epoch, unit)?;
        let bitmaps_too = !history.has_bitmaps();
        let kept = history.smallest(epoch);
        if bitmaps_too {
            self.verify_bitmaps(media, &view, kept)?;
        }
        if self.config.data_file == DataFile::Raw {
            let mut raw = media[1].clone();
            raw.resize(view.disk.len(), 0);
            view.expect(&View { disk: raw, ..view.clone() })
                .map_err(|e| format!("the raw data file: {e}"))?;
        }
        let memories: Vec<Arc<Memory>> =
            media.iter().map(|bytes| Arc::new(Memory::from(bytes.clone()))).collect();
        let storages: Vec<Arc<dyn Storage>> = memories.iter().map(|memory| Arc::clone(memory) as _).collect();
        let mut model = self.model(view);
        let image = self.open(&storages, false).map_err(|e| format!("open: {e}"))?;
        model.compare_all(&image).map_err(|e| format!("the engine reads it differently: {e}"))?;
        drop(image);
        let oracle = check(&media[0]);
        let flags_differ = oracle.dirty || !oracle.unflagged.is_empty();
        let options = CheckOptions {
            format: Some(FormatKind::Qcow2),
            data_file: storages.get(1).cloned(),
            ..CheckOptions::default()
        };
        let report = check_storage(Arc::clone(&storages[0]), options, &mut Job::default())
            .map_err(|e| format!("the engine's check: {e}"))?;
        if !flags_differ && report.corruptions > 0 || report.check_errors > 0 {
            return Err(format!("the engine's check: {:?}", report.findings));
        }
        if oracle.dirty {
            return Ok(());
        }
        let image = self.open(&storages, true).map_err(|e| format!("open for writing: {e}"))?;
        for op in self.afterwards(&model) {
            model.apply(&image, &op).map_err(|e| format!("afterwards: {e}"))?;
        }
        image.close().map_err(|e| format!("afterwards, close: {e}"))?;
        let media: Vec<Vec<u8>> = memories
            .iter()
            .map(|memory| memory.to_vec())
            .collect::<Result<_>>()
            .map_err(|e| e.to_string())?;
        let view = survivor(&media, &self.built.backing).map_err(|e| format!("afterwards: {e}"))?;
        if bitmaps_too {
            self.verify_bitmaps(&media, &view, kept).map_err(|e| format!("afterwards: {e}"))?;
        }
        model.view.expect(&view).map_err(|e| format!("afterwards: {e}"))
    }

    /// For scripts that leave the bitmaps alone: one that does not say that nobody knows misses no granule in which the disk differs from that at the start.
    ///
    /// From `kept` on, the disk's smallest size since then, the disk may have been cut off and grown again: what a growth brings is zeroes and clean, as in QEMU.
    fn verify_bitmaps(&self, media: &[Vec<u8>], view: &View, kept: usize) -> Result<(), String> {
        if !self.content.bitmaps {
            return Ok(());
        }
        let image = Qcow2::parse(&media[0])?;
        for name in ["on", "off"] {
            let bitmap = image.bitmap(name).ok_or_else(|| format!("the bitmap {name} is gone"))?;
            if bitmap.flags & 1 != 0 {
                continue;
            }
            let dirty = image.dirty(bitmap)?;
            if name == "off" && !dirty.is_empty() {
                return Err(format!("the disabled bitmap says {dirty:?}"));
            }
            let mut start = self.view.disk.clone();
            start.resize(view.disk.len(), 0);
            let granules = start.chunks(GRANULE as usize).zip(view.disk.chunks(GRANULE as usize));
            for (offset, (before, now)) in (0..).step_by(GRANULE as usize).zip(granules) {
                let marked = dirty.iter().any(|(start, len)| (*start..start + len).contains(&offset));
                let grown = offset as usize >= kept && now.iter().all(|byte| *byte == 0);
                if name == "on" && !marked && !grown && before != now {
                    return Err(format!("the bitmap misses what was written at {offset:#x}: {dirty:?}"));
                }
            }
        }
        Ok(())
    }

    /// What is done to an image after a crash: it takes space, frees some and takes that again.
    fn afterwards(&self, model: &Model) -> [Op; 4] {
        let (size, cluster) = (model.size(), self.config.geometry().cluster);
        let (offset, len) = (size / 3, (4 * cluster).min(size / 2));
        [
            Op::Write { offset, len, seed: 0xa7 },
            Op::Discard { offset: offset / 2, len },
            Op::Flush,
            Op::Write { offset: size - len, len, seed: 0xa8 },
        ]
    }

    /// `qemu-img` finds no more than leaks in what a crash left, and reads from it what the oracle does.
    fn verify_by_qemu(&self, media: &[Vec<u8>]) -> Result<(), String> {
        let dir = self.built.dir.path();
        let path = dir.join("crashed.qcow2");
        std::fs::write(&path, &media[0]).map_err(|e| e.to_string())?;
        if let Some(data) = media.get(1) {
            std::fs::write(dir.join("data"), data).map_err(|e| e.to_string())?;
        }
        let report = check(&media[0]);
        let mut view = survivor(media, &self.built.backing)?;
        if report.dirty || !report.unflagged.is_empty() {
            // Its repair forgets the snapshots of an image that has bitmaps.
            if !view.bitmaps.is_empty() && !view.snapshots.is_empty() {
                return Ok(());
            }
            qemu::check_numbers(&path, Some("all"));
        }
        let (verdict, said) = qemu::check(&path);
        if verdict == qemu::Verdict::Corrupt {
            return Err(format!("qemu-img check: {said}"));
        }
        // QEMU shows whole sectors only, and its repair makes the disk end with one.
        let whole_sectors = |view: &mut View| {
            let size = view.disk.len() / SECTOR * SECTOR;
            view.disk.truncate(size);
            view.bitmaps.iter_mut().for_each(|bitmap| bitmap.resize(size as u64));
            for (_, disk) in &mut view.snapshots {
                *disk = disk[..disk.len() / SECTOR * SECTOR].into();
            }
        };
        whole_sectors(&mut view);
        let mut found = qemu::view(&path);
        whole_sectors(&mut found);
        // It shows a snapshot with the size that the disk has now.
        for ((_, ours), (_, theirs)) in view.snapshots.iter_mut().zip(&mut found.snapshots) {
            let common = ours.len().min(theirs.len());
            (*ours, *theirs) = (ours[..common].into(), theirs[..common].into());
        }
        view.expect(&found).map_err(|e| format!("QEMU reads {e}"))
    }

    /// Runs a script without failures and then looks at what every loss of power may leave.
    pub fn lose_power(&self, script: &[Op], look: Look) -> Result<Vec<String>, Failure> {
        let sims = self.sims();
        let sim = &sims[0];
        match look.broken_sync {
            Some(nth) => sim.break_sync(nth),
            None => sim.note_barriers(),
        }
        let history = self.run_to_the_end(script, &sims).map_err(Failure::running)?;
        let mut for_qemu = if qemu::have_qemu() { look.by_qemu } else { 0 };
        let images: Vec<CrashImage> = sim.crash_images(look.seed, look.images).collect();
        let step = images.len().checked_div(for_qemu).unwrap_or(0).max(1);
        for (n, crash) in images.iter().enumerate() {
            // A missing barrier shows in the epoch after it: before it, and after the next one, all is as with it.
            let broken = look.broken_sync.is_some_and(|nth| crash.epoch <= nth);
            if broken || look.only.is_some_and(|only| only != (crash.epoch, crash.index)) {
                continue;
            }
            let failure = |message| Failure { image: Some((crash.epoch, crash.index)), message };
            self.verify(&crash.media, &history, crash.epoch, SECTOR).map_err(failure)?;
            if for_qemu > 0 && n % step == step / 2 {
                for_qemu -= 1;
                self.verify_by_qemu(&crash.media).map_err(failure)?;
            }
        }
        Ok(sim.barriers())
    }

    /// One simulated storage for each medium, all on one power supply.
    fn sims(&self) -> Vec<Arc<SimStorage>> {
        let first = SimStorage::from(self.media[0].clone());
        let others: Vec<SimStorage> =
            self.media[1..].iter().map(|bytes| first.beside(bytes.clone())).collect();
        [first].into_iter().chain(others).map(Arc::new).collect()
    }

    fn open_sims(&self, sims: &[Arc<SimStorage>]) -> Result<Arc<Image>> {
        let storages: Vec<Arc<dyn Storage>> = sims.iter().map(|sim| Arc::clone(sim) as _).collect();
        self.open(&storages, true)
    }

    fn run_to_the_end(&self, script: &[Op], sims: &[Arc<SimStorage>]) -> Result<History, String> {
        let sim = &sims[0];
        let mut history = History::new(self.view.clone());
        let mut model = self.model(self.view.clone());
        let mut image = self.open_sims(sims).map_err(|e| format!("open: {e}"))?;
        for op in script {
            let epoch = sim.epoch();
            model.apply(&image, op)?;
            if *op == Op::Reopen {
                image.close().map_err(|e| format!("close: {e}"))?;
                image = self.open_sims(sims).map_err(|e| format!("reopen: {e}"))?;
            }
            let crash = op.crash();
            if crash != Crash::Durable {
                history.push(epoch, model.view.clone(), crash);
            }
            if crash != Crash::Sectors {
                history.flushed(sim.epoch());
            }
        }
        image.close().map_err(|e| format!("close: {e}"))?;
        history.flushed(sim.epoch());
        Ok(history)
    }

    /// Runs a script in which the `nth` call of a storage fails, and goes on with it as far as the image allows.
    pub fn fail(&self, script: &[Op], nth: u64, failing: Failing) -> Result<(), String> {
        let sims = self.sims();
        let sim = &sims[0];
        sim.fail_call(nth, failing);
        let mut history = History::new(self.view.clone()).without_bitmaps();
        let mut model = self.model(self.view.clone());
        let mut image = self.open_sims(&sims).ok();
        let mut flush_failed = false;
        // An operation failed, and what came of it could not be read.
        let mut unknown = false;
        let mut other = self.view.clone();
        for op in script.iter().filter(|op| !op.is_of_bitmaps()) {
            let Some(open) = &image else {
                // It could not be opened: it may be tried again.
                image = self.open_sims(&sims).ok();
                continue;
            };
            let epoch = sim.epoch();
            let op = op.fitted(&model);
            let done =
                op.run(open, &model).and_then(|()| if op == Op::Reopen { open.close() } else { Ok(()) });
            let before = model.view.clone();
            op.change(&mut model);
            let operation = history.len();
            history.push(epoch, model.at_most(&op), op.crash());
            history.push(epoch, model.view.clone(), op.crash());
            if op.crash() != Crash::Sectors {
                if done.is_ok() {
                    history.flushed(sim.epoch());
                }
                // One that changed nothing may be tried again.
                flush_failed = done.is_err();
            }
            // After a failed flush nobody can tell what the medium holds: another user of it would be misled.
            if op == Op::Reopen && !flush_failed {
                image = self.open_sims(&sims).ok();
            }
            let mut found = vec![0; image.as_ref().map_or(0, |open| open.size()) as usize];
            // Twice: the call that fails may be this one.
            let mut look = |open: &Image| open.read(&mut found, 0);
            if let Some(open) = &image
                && look(open).or_else(|_| look(open)).is_ok()
            {
                let certain = !unknown && !matches!(op, Op::Discard { .. } | Op::Reopen);
                if done.is_ok() && certain && found != model.view.disk {
                    return Err(format!("{op:?} succeeded and has not the effect"));
                }
                if done.is_err() && op.crash() == Crash::Whole && found == before.disk {
                    model.view = before;
                    history.undone(operation);
                }
                let found = View { disk: found, ..model.view.clone() };
                history.allows(&found, sim.epoch(), 1).map_err(|e| format!("{op:?}: {e}"))?;
                history.push(sim.epoch(), found.clone(), Crash::Sectors);
                model.view = found;
                unknown = false;
            } else if done.is_err() && op.crash() == Crash::Whole {
                // Nobody can see whether it was done: what comes on top of it is not known either.
                other = before;
                break;
            } else {
                unknown |= done.is_err();
            }
        }
        sim.heal();
        if let Some(open) = image.as_ref().filter(|open| !open.is_closed()) {
            // While every read failed nobody could see what the writes that failed came to.
            let mut found = vec![0; open.size() as usize];
            open.read(&mut found, 0).map_err(|e| format!("healed: {e}"))?;
            let with = |beside: View| View { disk: found.clone(), ..beside };
            let allowed = |found: &View| history.allows(found, sim.epoch(), 1);
            let found = Some(with(other)).filter(|found| allowed(found).is_ok()).unwrap_or(with(model.view));
            allowed(&found).map_err(|e| format!("healed: {e}"))?;
            history.push(sim.epoch(), found, Crash::Sectors);
        }
        if let Some(image) = image
            && image.close().is_ok()
        {
            history.flushed(sim.epoch());
        }
        let media: Vec<Vec<u8>> = sims.iter().map(|sim| sim.contents()).collect();
        self.verify(&media, &history, u64::MAX, 1)?;
        for crash in sim.crash_images(nth, 3) {
            let name = format!("{crash:?}");
            self.verify(&crash.media, &history, crash.epoch, 1).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }

    /// Calls of the storages that a script makes.
    pub fn calls(&self, script: &[Op]) -> u64 {
        let sims = self.sims();
        self.run_to_the_end(script, &sims).expect("a script without failures");
        sims[0].calls()
    }
}

/// Which crash images of a run to look at.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Chooses among them.
    pub seed: u64,
    /// At most so many of each epoch; all there are, if they are not more.
    pub images: usize,
    /// So many of all are shown to QEMU too.
    pub by_qemu: usize,
    /// Only this one (epoch, index).
    pub only: Option<(u64, usize)>,
    /// The sync that does nothing.
    pub broken_sync: Option<u64>,
}

impl Look {
    /// So many of each epoch, chosen by `seed`.
    pub fn at(images: usize, seed: u64) -> Self {
        Look { seed, images, by_qemu: 0, only: None, broken_sync: None }
    }
}

/// What went wrong, and in which crash image (epoch, index); without one the run itself failed.
#[derive(Debug)]
#[expect(missing_docs, reason = "said above")]
pub struct Failure {
    pub image: Option<(u64, usize)>,
    pub message: String,
}

impl Failure {
    fn running(message: String) -> Self {
        Failure { image: None, message }
    }
}

/// When a crash image of a [`Verb`] is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The verb had not returned.
    During,
    /// It had: what it did must be there.
    After,
}

/// What a verb does to storages.
pub type Run<'a> = dyn Fn(&[Arc<dyn Storage>]) -> Result<()> + 'a;
/// What is held of the media after a loss of power.
pub type Verify<'a> = dyn Fn(&[Vec<u8>], Moment) -> Result<(), String> + 'a;

/// A verb on the storages of a closed image: the image's, and its data file's if it has one.
pub struct Verb<'a> {
    /// What they hold when it begins.
    pub start: &'a [Vec<u8>],
    /// The verb.
    pub run: &'a Run<'a>,
    /// Looks at what they hold after a loss of power; see [`survivor`].
    pub verify: &'a Verify<'a>,
}

impl Verb<'_> {
    /// Runs it and looks at what every loss of power may leave; the barriers it had.
    pub fn lose_power(&self, look: Look) -> Result<Vec<String>, Failure> {
        let sim = Arc::new(SimStorage::from(self.start[0].clone()));
        let others = self.start[1..].iter().map(|bytes| Arc::new(sim.beside(bytes.clone())) as _);
        let storages: Vec<Arc<dyn Storage>> =
            [Arc::clone(&sim) as _].into_iter().chain(others.collect::<Vec<_>>()).collect();
        match look.broken_sync {
            Some(nth) => sim.break_sync(nth),
            None => sim.note_barriers(),
        }
        (self.run)(&storages).map_err(|e| Failure::running(e.to_string()))?;
        let end = sim.epoch();
        for crash in sim.crash_images(look.seed, look.images) {
            let moment = if crash.epoch < end { Moment::During } else { Moment::After };
            (self.verify)(&crash.media, moment)
                .map_err(|message| Failure { image: Some((crash.epoch, crash.index)), message })?;
        }
        Ok(sim.barriers())
    }

    /// # Panics
    /// When one of at most `images` crash images of each epoch fails, or one of the barriers can be left out
    /// and none of them does; `redundant` as [`assert_barriers_noticed`] has it.
    #[track_caller]
    pub fn assert_crash_proof(&self, what: &str, images: usize, redundant: &[(&str, &str)]) {
        assert_barriers_noticed(what, redundant, |broken_sync| {
            self.lose_power(Look { broken_sync, ..Look::at(images, 0) })
        });
    }
}

/// Holds that `run` succeeds with all of its barriers, and fails when one of them does nothing (`Some(nth)`): for each place in the
/// engine that calls for barriers at least one of those it called for. `what` is for the failure's message, `run` returns the places of its barriers in their order.
///
/// `redundant`: parts of places (`..` is between parts that follow one another) whose barriers are not needed in this case, and why; that they are not noticed is held too.
///
/// # Panics
/// When that is not so.
#[track_caller]
pub fn assert_barriers_noticed(
    what: &str,
    redundant: &[(&str, &str)],
    run: impl Fn(Option<u64>) -> Result<Vec<String>, Failure>,
) {
    let barriers = run(None).unwrap_or_else(|e| panic!("{what}, with all barriers: {e:?}"));
    assert!(!barriers.is_empty(), "{what}: no barrier at all");
    let mut noticed = BTreeMap::<&str, (u32, u32)>::new();
    for (nth, place) in (0..).zip(&barriers) {
        let (all, missed) = noticed.entry(place).or_default();
        if *missed == 0 {
            *all += 1;
            *missed += u32::from(run(Some(nth)).is_err());
        }
    }
    let wrong: Vec<String> = noticed
        .iter()
        .filter_map(|(place, (all, noticed))| {
            match (redundant.iter().find(|(parts, _)| has_parts(place, parts)), noticed) {
                (None, 0) => Some(format!("{place}: none of {all} was missed")),
                (Some((_, why)), 1..) => Some(format!("{place}: missed, though {why}")),
                _ => None,
            }
        })
        .collect();
    assert!(wrong.is_empty(), "{what}: {wrong:#?}\nall of them: {noticed:#?}");
}

/// Whether the parts between the `..` of `parts` follow one another in `place`.
fn has_parts(place: &str, parts: &str) -> bool {
    let mut rest = Some(place);
    for part in parts.split("..") {
        rest = rest.and_then(|rest| rest.split_once(part)).map(|(_, behind)| behind);
    }
    rest.is_some()
}
