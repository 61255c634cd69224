//! Bitmaps under random scripts, loss of power and failing storage: a bitmap is exactly right, or says that nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imago_core::access::image::Image;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::{FormatKind, Recording, ZeroIntent};
use imago_core::{ErrorKind, Result, Storage};
use imago_testkit::check::check;
use imago_testkit::images::{self, Built, Config, DataFile};
use imago_testkit::model::pattern;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::rng::Rng;
use imago_testkit::sim::{Failing, SimStorage};
use imago_testkit::{qemu, scaled};

const IN_USE: u32 = 1;
const AUTO: u32 = 2;

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, len: u64, seed: u8 },
    Zero { offset: u64, len: u64, intent: ZeroIntent },
    Add { name: &'static str, granularity: u64, state: Recording },
    Remove(&'static str),
    Clear(&'static str),
    Set(&'static str, Recording),
    Merge { target: &'static str, source: &'static str },
    Flush,
    Reopen,
}

/// What a bitmap must say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Track {
    granularity: u64,
    enabled: bool,
    /// Its truth is in memory.
    held: bool,
    granules: BTreeSet<u64>,
}

impl Track {
    fn mark(&mut self, offset: u64, len: u64) {
        self.granules.extend(offset / self.granularity..=(offset + len - 1) / self.granularity);
    }

    fn runs(&self, size: u64) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for granule in &self.granules {
            let offset = granule * self.granularity;
            let len = self.granularity.min(size - offset);
            match runs.last_mut() {
                Some(run) if run.0 + run.1 == offset => run.1 += len,
                _ => runs.push((offset, len)),
            }
        }
        runs
    }
}

#[derive(Clone, Debug, Default)]
struct Model {
    size: u64,
    started: bool,
    bitmaps: BTreeMap<String, Track>,
    /// The directory's order.
    order: Vec<String>,
}

impl Model {
    /// Changes it as `step` would; false: there is nothing that the step could be done to.
    fn change(&mut self, step: &Step) -> bool {
        match *step {
            Step::Write { offset, len, .. } | Step::Zero { offset, len, .. } => {
                if len > 0 {
                    self.started = true;
                    for bitmap in self.bitmaps.values_mut().filter(|bitmap| bitmap.enabled) {
                        bitmap.held = true;
                        bitmap.mark(offset, len);
                    }
                }
            }
            Step::Add { name, granularity, state } => {
                if self.bitmaps.contains_key(name) {
                    return false;
                }
                let enabled = state == Recording::Enabled;
                let held = enabled && self.started;
                let track = Track { granularity, enabled, held, granules: BTreeSet::new() };
                self.bitmaps.insert(name.to_owned(), track);
                self.order.push(name.to_owned());
            }
            Step::Remove(name) => {
                self.order.retain(|other| other != name);
                return self.bitmaps.remove(name).is_some();
            }
            Step::Clear(name) => {
                let Some(bitmap) = self.bitmaps.get_mut(name) else { return false };
                bitmap.granules.clear();
            }
            Step::Set(name, state) => {
                let started = self.started;
                let Some(bitmap) = self.bitmaps.get_mut(name) else { return false };
                bitmap.enabled = state == Recording::Enabled;
                bitmap.held |= bitmap.enabled && started;
            }
            Step::Merge { target, source } => {
                let size = self.size;
                let Some(runs) = self.bitmaps.get(source).map(|bitmap| bitmap.runs(size)) else {
                    return false;
                };
                let Some(bitmap) = self.bitmaps.get_mut(target) else { return false };
                for (offset, len) in runs {
                    bitmap.mark(offset, len);
                }
            }
            Step::Flush => {}
            Step::Reopen => {
                self.started = false;
                self.bitmaps.values_mut().for_each(|bitmap| bitmap.held = false);
            }
        }
        true
    }

    fn compare(&self, image: &Image) -> Result<(), String> {
        let list = image.bitmaps().list().map_err(|e| e.to_string())?;
        let names: Vec<_> = list.iter().map(|bitmap| &bitmap.name).collect();
        if names != self.order.iter().collect::<Vec<_>>() {
            return Err(format!("bitmaps {names:?}, not {:?}", self.order));
        }
        for bitmap in list {
            let wanted = &self.bitmaps[&bitmap.name];
            let runs = wanted.runs(self.size);
            let ranges = image.bitmaps().ranges(&bitmap.name).map_err(|e| e.to_string())?;
            let found: Vec<_> = ranges.map(|range| (range.offset, range.length)).collect();
            if found != runs {
                return Err(format!("{}: {found:?}, not {runs:?}", bitmap.name));
            }
            let count = runs.iter().map(|run| run.1).sum();
            let facts = (bitmap.granularity, bitmap.enabled, bitmap.inconsistent, bitmap.count);
            if facts != (wanted.granularity, wanted.enabled, false, Some(count)) {
                return Err(format!("{bitmap:?}, not {wanted:?}"));
            }
        }
        Ok(())
    }
}

/// A script with a close at its end.
fn script(rng: &mut Rng, size: u64, steps: usize) -> Vec<Step> {
    let mut all = Vec::new();
    for _ in 0..steps {
        let name = ["a", "b", "c"][rng.below(3) as usize];
        let source = ["a", "b", "c"][rng.below(3) as usize];
        let state = if rng.chance(2) { Recording::Enabled } else { Recording::Disabled };
        let offset = rng.below(size);
        let len = match rng.below(4) {
            0 => rng.below(16),
            1 => rng.below(size / 3),
            _ => rng.below(6000),
        }
        .min(size - offset);
        all.push(match rng.below(16) {
            0..5 => Step::Write { offset, len, seed: rng.below(255) as u8 + 1 },
            5 => {
                let intent =
                    [ZeroIntent::Keep, ZeroIntent::Unmap, ZeroIntent::Discard][rng.below(3) as usize];
                Step::Zero { offset, len, intent }
            }
            6..9 => Step::Add { name, granularity: 512 << rng.below(8), state },
            9 => Step::Remove(name),
            10 => Step::Clear(name),
            11 => Step::Set(name, state),
            12 => Step::Merge { target: name, source },
            13 => Step::Flush,
            _ => Step::Reopen,
        });
    }
    all.push(Step::Reopen);
    all
}

fn run(image: &Image, step: &Step) -> Result<()> {
    let bitmaps = image.bitmaps();
    match *step {
        Step::Write { offset, len, seed } => image.write(&pattern(seed, offset, len), offset),
        Step::Zero { offset, len, intent } => image.write_zeroes(offset, len, intent),
        Step::Add { name, granularity, state } => bitmaps.add(name, Some(granularity), state),
        Step::Remove(name) => bitmaps.remove(name),
        Step::Clear(name) => bitmaps.clear(name),
        Step::Set(name, state) => bitmaps.set_recording(name, state),
        Step::Merge { target, source } => bitmaps.merge(target, bitmaps.ranges(source)?),
        Step::Flush => image.flush(),
        Step::Reopen => image.close(),
    }
}

fn open(storage: Arc<SimStorage>) -> Result<Arc<Image>> {
    let options = OpenOptions {
        write: true,
        format: Some(FormatKind::Qcow2),
        backing: Backing::None,
        ..OpenOptions::default()
    };
    options.open_storage(storage as Arc<dyn Storage>)
}

fn run_script(config: &Config, script: &[Step]) -> Result<(Built, Model), String> {
    let built = config.build();
    let mut model = Model { size: config.size, ..Model::default() };
    let mut image = images::open(&built.path, true).map_err(|e| format!("open: {e}"))?;
    for step in script {
        let possible = model.change(step);
        match run(&image, step) {
            Ok(()) if possible => {}
            Err(error) if !possible && error.kind() == ErrorKind::InvalidInput => {}
            other => return Err(format!("{step:?}: {other:?}")),
        }
        if matches!(step, Step::Reopen) {
            image = images::open(&built.path, true).map_err(|e| format!("reopen: {e}"))?;
        }
        model.compare(&image).map_err(|e| format!("after {step:?}: {e}"))?;
    }
    image.close().map_err(|e| e.to_string())?;
    drop(image);
    let bytes = std::fs::read(&built.path).map_err(|e| e.to_string())?;
    let report = check(&bytes);
    if !report.corruptions.is_empty() || !report.leaks.is_empty() {
        return Err(report.to_string());
    }
    let parsed = Qcow2::parse(&bytes)?;
    for (name, bitmap) in &model.bitmaps {
        let found = parsed.bitmap(name).ok_or("a bitmap is missing")?;
        let flags = if bitmap.enabled { AUTO } else { 0 };
        if found.flags != flags || parsed.dirty(found)? != bitmap.runs(model.size) {
            return Err(format!("{found:?} {:?}, not {bitmap:?}", parsed.dirty(found)));
        }
    }
    Ok((built, model))
}

fn configs() -> Vec<Config> {
    vec![
        Config { refcount_bits: 64, ..Config::plain(9, 300_000) },
        Config { refcount_bits: 1, ..Config::plain(12, 1 << 20) },
        Config { extended_l2: true, ..Config::plain(14, 1_000_192) },
        Config { data_file: DataFile::Plain, ..Config::plain(16, 3 << 20) },
        Config { backing: Some(images::Backing { qcow2: true, len: 100_000 }), ..Config::plain(10, 200_192) },
    ]
}

#[test]
fn scripts_leave_bitmaps_that_say_what_was_written() {
    for seed in 0..scaled(40) {
        let configs = configs();
        let config = &configs[seed as usize % configs.len()];
        let script = script(&mut Rng::new(seed), config.size, 30);
        let (built, model) = run_script(config, &script)
            .unwrap_or_else(|error| panic!("seed {seed}, {config:?}: {error}\n{script:#?}"));
        if seed % 8 != 0 || !qemu::qemu_or_skip() {
            continue;
        }
        qemu::assert_clean(&built.path);
        let copy = built.path.with_extension("copy");
        let args = ["convert", "-f", "qcow2", "-O", "qcow2", "--bitmaps"];
        qemu::img(&[&args[..], &[built.path.to_str().unwrap(), copy.to_str().unwrap()]].concat());
        let bytes = std::fs::read(copy).unwrap();
        let copy = Qcow2::parse(&bytes).unwrap();
        // QEMU's disks have whole sectors.
        let size = model.size.next_multiple_of(512);
        for (name, bitmap) in &model.bitmaps {
            assert_eq!(copy.dirty(copy.bitmap(name).unwrap()).unwrap(), bitmap.runs(size), "{name}");
        }
    }
}

/// A model and the disk, after a step.
struct Version {
    /// Epochs in which the step began and had ended.
    epochs: (u64, u64),
    model: Model,
    content: Vec<u8>,
}

/// Whether a medium may show these bytes, when all of `versions` but the first may have come about or not.
fn allowed(bytes: &[u8], versions: &[Version]) -> Result<(), String> {
    let report = check(bytes);
    if !report.corruptions.is_empty() || report.dirty {
        return Err(report.to_string());
    }
    let image = Qcow2::parse(bytes)?;
    let content = image.content(&[], None)?;
    let names: Vec<_> = image.bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
    if !versions.iter().any(|version| version.model.order == names) {
        return Err(format!("bitmaps {names:?}"));
    }
    for bitmap in &image.bitmaps {
        let (in_use, enabled) = (bitmap.flags & IN_USE != 0, bitmap.flags & AUTO != 0);
        let dirty = if in_use { Vec::new() } else { image.dirty(bitmap)? };
        let is = |version: &Version| {
            let Some(wanted) = version.model.bitmaps.get(&bitmap.name) else { return false };
            let right = wanted.enabled == enabled && wanted.runs(version.model.size) == dirty;
            // An enabled one that calls itself right says of the whole disk what changed.
            wanted.held == in_use && (in_use || right && (!enabled || version.content == content))
        };
        if !versions.iter().any(is) {
            return Err(format!("{bitmap:?} with {dirty:?} is none of {} versions", versions.len()));
        }
    }
    Ok(())
}

fn content(image: &Image) -> Vec<u8> {
    let mut content = vec![0; image.size() as usize];
    image.read(&mut content, 0).unwrap();
    content
}

/// Runs a script and looks at what every loss of power may leave; the epochs in which each step began and had ended.
fn lose_power(
    config: &Config,
    script: &[Step],
    seed: u64,
    images: usize,
    broken: Option<u64>,
) -> Result<Vec<(u64, u64)>, String> {
    let bytes = std::fs::read(&config.build().path).map_err(|e| e.to_string())?;
    let sim = Arc::new(SimStorage::from(bytes));
    if let Some(nth) = broken {
        sim.break_sync(nth);
    }
    let mut image = open(sim.clone()).map_err(|e| e.to_string())?;
    let mut model = Model { size: config.size, ..Model::default() };
    let first = Version { epochs: (0, 0), model: model.clone(), content: content(&image) };
    let mut versions = vec![first];
    for step in script {
        let begun = sim.epoch();
        let possible = model.change(step);
        let done = run(&image, step);
        if done.is_ok() != possible {
            return Err(format!("{step:?}: {done:?}"));
        }
        let epochs = (begun, sim.epoch());
        if matches!(step, Step::Reopen) {
            image = open(sim.clone()).map_err(|e| e.to_string())?;
        }
        versions.push(Version { epochs, model: model.clone(), content: content(&image) });
    }
    for crash in sim.crash_images(seed, images) {
        let last = versions.iter().rposition(|version| version.epochs.1 <= crash.epoch).expect("the first");
        let begun = versions.iter().rposition(|version| version.epochs.0 <= crash.epoch).expect("the first");
        allowed(&crash.media[0], &versions[last..=begun]).map_err(|error| format!("{crash:?}: {error}"))?;
    }
    Ok(versions[1..].iter().map(|version| version.epochs).collect())
}

fn crash_configs() -> [Config; 3] {
    [
        Config { refcount_bits: 64, ..Config::plain(9, 100_000) },
        Config::plain(12, 300_000),
        Config { extended_l2: true, ..Config::plain(14, 200_192) },
    ]
}

#[test]
fn after_power_loss_a_bitmap_is_right_or_in_use() {
    for seed in 0..scaled(9) {
        let config = &crash_configs()[seed as usize % 3];
        let script = script(&mut Rng::new(1000 + seed), config.size, 25);
        if let Err(error) = lose_power(config, &script, seed, 20, None) {
            panic!("seed {seed}, {config:?}: {error}\n{script:#?}");
        }
    }
}

/// Recording, storing and every kind of change of the directory.
fn every_step() -> Vec<Step> {
    let write = |offset, seed| Step::Write { offset, len: 3000, seed };
    vec![
        Step::Add { name: "a", granularity: 512, state: Recording::Enabled },
        Step::Add { name: "b", granularity: 4096, state: Recording::Disabled },
        write(10_000, 1),
        Step::Reopen,
        Step::Merge { target: "b", source: "a" },
        Step::Set("b", Recording::Enabled),
        write(50_000, 2),
        Step::Add { name: "c", granularity: 512, state: Recording::Enabled },
        write(20_000, 3),
        Step::Set("a", Recording::Disabled),
        Step::Reopen,
        Step::Clear("b"),
        Step::Set("c", Recording::Disabled),
        Step::Remove("a"),
        write(30_000, 4),
        Step::Reopen,
        Step::Remove("b"),
        Step::Remove("c"),
        Step::Reopen,
    ]
}

/// The harness is tested too: each of these barriers is there for a reason.
#[test]
fn a_missing_barrier_is_noticed() {
    let config = Config { refcount_bits: 64, ..Config::plain(9, 100_000) };
    let script = every_step();
    let epochs = lose_power(&config, &script, 0, 20, None).unwrap();
    let mut needed = BTreeSet::new();
    for (step, (begun, ended)) in script.iter().zip(epochs).filter(|(_, (begun, ended))| begun < ended) {
        match step {
            // The one before the header names the stored bits. The header's own and the last flush's make up for each other.
            Step::Reopen if ended - begun >= 3 => needed.extend([ended - 3]),
            Step::Reopen => {}
            // The flags' one is the last. With the last bitmap nothing new is named.
            Step::Write { .. } | Step::Set(..) | Step::Remove("c") => needed.extend([ended - 1]),
            _ => needed.extend([begun, ended - 1]),
        }
    }
    assert!(needed.len() > 20, "{needed:?}");
    let unnoticed = |nth: &u64| lose_power(&config, &script, 0, 100, Some(*nth)).is_ok();
    let missed: Vec<u64> = needed.into_iter().filter(unnoticed).collect();
    assert!(missed.is_empty(), "these barriers can be left out unnoticed: {missed:?}");
}

/// Runs a script in which the `nth` call fails; false if there was none.
fn fail(config: &Config, bytes: &[u8], script: &[Step], nth: u64, failing: Failing) -> Result<bool, String> {
    let sim = Arc::new(SimStorage::from(bytes.to_vec()));
    let mut image = open(sim.clone()).map_err(|e| e.to_string())?;
    sim.fail_call(nth, failing);
    let mut model = Model { size: config.size, ..Model::default() };
    let mut failed = false;
    for step in script {
        let before = Version { epochs: (0, 0), model: model.clone(), content: content_of(&sim)? };
        model.change(step);
        let mut done = run(&image, step);
        if done.is_err() && !failed {
            failed = true;
            sim.heal();
            if torn(&sim)? {
                return Ok(true);
            }
            let after = Version { epochs: (0, 0), model: model.clone(), content: content_of(&sim)? };
            allowed(&sim.contents(), &[before, after]).map_err(|e| format!("{step:?} failed: {e}"))?;
            // What failed has left no trace, unless nothing is written any more.
            done = run(&image, step);
            if done.as_ref().is_err_and(|error| error.kind() == ErrorKind::Latched)
                || matches!(step, Step::Reopen)
            {
                return Ok(true);
            }
        }
        done.map_err(|e| format!("{step:?}: {e}"))?;
        if matches!(step, Step::Reopen) {
            image = match open(sim.clone()) {
                Err(_) if !failed => {
                    failed = true;
                    sim.heal();
                    open(sim.clone()).map_err(|e| e.to_string())?
                }
                opened => opened.map_err(|e| e.to_string())?,
            };
        }
        if failed {
            model.compare(&image).map_err(|e| format!("after {step:?}: {e}"))?;
        }
    }
    let report = check(&sim.contents());
    if report.corruptions.is_empty() { Ok(failed) } else { Err(report.to_string()) }
}

/// Whether a write that failed left half of the sector that switches to the first directory. Then there are no bitmaps.
fn torn(sim: &Arc<SimStorage>) -> Result<bool, String> {
    match Qcow2::parse(&sim.contents()) {
        Err(error) if error == "autoclear bit 0 without the extension" => {
            let image = open(sim.clone()).map_err(|e| e.to_string())?;
            Model { size: image.size(), ..Model::default() }.compare(&image)?;
            Ok(true)
        }
        parsed => parsed.map(|_| false),
    }
}

fn content_of(sim: &SimStorage) -> Result<Vec<u8>, String> {
    Qcow2::parse(&sim.contents())?.content(&[], None)
}

#[test]
fn a_failing_call_leaves_bitmaps_as_they_were_or_in_use() {
    let script = every_step();
    for config in crash_configs() {
        let bytes = std::fs::read(&config.build().path).unwrap();
        for failing in [Failing::Once, Failing::Forever] {
            for nth in 0.. {
                match fail(&config, &bytes, &script, nth, failing) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => panic!("{config:?}, call {nth} {failing:?}: {error}"),
                }
            }
        }
    }
}
