//! Power loss and failing storage: what was flushed is there, nothing shows what was never written, and
//! the metadata has leaks at most.

use std::sync::Arc;

use imago_core::access::image::Image;
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::FormatKind;
use imago_core::storage::memory::Memory;
use imago_core::{Result, Storage};
use imago_testkit::check::check;
use imago_testkit::history::History;
use imago_testkit::images::{self, Built, Config};
use imago_testkit::model::{Model, Op, fixed_script, run};
use imago_testkit::qcow2::Qcow2;
use imago_testkit::sim::{Failing, SECTOR, SimStorage};
use imago_testkit::{qemu, scaled};

/// An image to begin with, and what it is above.
struct Start {
    built: Built,
    config: Config,
    bytes: Vec<u8>,
    content: Vec<u8>,
}

impl Start {
    /// An image on which a script has run already, so that later ones meet every kind of cluster.
    fn new(config: Config) -> Self {
        let built = config.build();
        let image = images::open(&built.path, true).unwrap();
        let mut model = config.model(&built.backing);
        for op in fixed_script(config.geometry(), 12, 200) {
            model.apply(&image, &op).unwrap();
        }
        image.close().unwrap();
        drop(image);
        Start::of(built, config)
    }

    /// The same with its clusters shared with a snapshot; `None` without QEMU, which takes it.
    fn with_snapshot(config: Config) -> Option<Self> {
        if !qemu::qemu_or_skip() {
            return None;
        }
        let start = Start::new(config);
        qemu::img(&["snapshot", "-c", "shared", start.built.path.to_str().unwrap()]);
        Some(Start::of(start.built, start.config))
    }

    fn of(built: Built, config: Config) -> Self {
        let bytes = std::fs::read(&built.path).unwrap();
        let content = built.checked_content().unwrap();
        Start { built, config, bytes, content }
    }

    fn open(&self, storage: Arc<dyn Storage>, write: bool) -> Result<Arc<Image>> {
        let backing = match self.config.backing {
            None => Backing::None,
            Some(backing) => {
                let format = if backing.qcow2 { FormatKind::Qcow2 } else { FormatKind::Raw };
                let options = OpenOptions { format: Some(format), ..OpenOptions::default() };
                Backing::Image(options.open(self.built.dir.path().join("backing"))?)
            }
        };
        let format = Some(FormatKind::Qcow2);
        OpenOptions { write, format, backing, ..OpenOptions::default() }.open_storage(storage)
    }

    fn model(&self) -> Model {
        let config = &self.config;
        Model::new(self.content.clone(), config.geometry(), config.discards_zero())
    }

    /// A script with a flush after every third operation.
    fn script(&self, ops: usize, seed: u8) -> Vec<Op> {
        let ops = fixed_script(self.config.geometry(), ops, seed);
        ops.chunks(3).flat_map(|some| some.iter().cloned().chain([Op::Flush])).collect()
    }

    /// A medium after a crash or failure: checked by the oracle, compared with what may be there, and opened.
    fn verify(&self, bytes: Vec<u8>, history: &History, epoch: u64, unit: usize) -> Result<(), String> {
        let report = check(&bytes);
        if !report.corruptions.is_empty() || report.dirty {
            return Err(report.to_string());
        }
        let content = Qcow2::parse(&bytes)?.content(&self.built.backing, None)?;
        history.allows(&content, epoch, unit)?;
        let image = self.open(Arc::new(Memory::from(bytes)), false).map_err(|e| format!("open: {e}"))?;
        let mut found = vec![0; content.len()];
        image.read(&mut found, 0).map_err(|e| format!("read: {e}"))?;
        if found != content {
            return Err("the engine reads it differently".into());
        }
        Ok(())
    }

    /// Runs a script without failures and then looks at what every loss of power may leave. Returns the syncs
    /// before the last close.
    fn lose_power(
        &self,
        script: &[Op],
        seed: u64,
        images: usize,
        broken_sync: Option<u64>,
    ) -> Result<u64, String> {
        let sim = Arc::new(SimStorage::from(self.bytes.clone()));
        if let Some(nth) = broken_sync {
            sim.break_sync(nth);
        }
        let mut history = History::new(self.content.clone());
        let mut model = self.model();
        let mut image = self.open(sim.clone(), true).map_err(|e| e.to_string())?;
        for op in script {
            let epoch = sim.epoch();
            model.apply(&image, op)?;
            if *op == Op::Reopen {
                image.close().map_err(|e| e.to_string())?;
                image = self.open(sim.clone(), true).map_err(|e| e.to_string())?;
            }
            if matches!(op, Op::Flush | Op::Reopen) {
                history.flushed(sim.epoch());
            } else {
                history.push(epoch, model.bytes.clone());
            }
        }
        let syncs = sim.epoch();
        image.close().map_err(|e| e.to_string())?;
        history.flushed(sim.epoch());
        for crash in sim.crash_images(seed, images) {
            let name = format!("{crash:?}");
            self.verify(crash.bytes, &history, crash.epoch, SECTOR).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(syncs)
    }

    /// Runs a script in which the `nth` call fails.
    fn fail(&self, script: &[Op], nth: u64, failing: Failing) -> Result<(), String> {
        let sim = Arc::new(SimStorage::from(self.bytes.clone()));
        sim.fail_call(nth, failing);
        let mut history = History::new(self.content.clone());
        let mut model = self.model();
        let mut image = self.open(sim.clone(), true).ok();
        let mut flush_failed = false;
        for op in script {
            let Some(open) = &image else {
                // It could not be opened: it may be tried again.
                image = self.open(sim.clone(), true).ok();
                continue;
            };
            let epoch = sim.epoch();
            let done = run(open, op).and_then(|()| if *op == Op::Reopen { open.close() } else { Ok(()) });
            if matches!(op, Op::Flush | Op::Reopen) {
                if done.is_ok() {
                    history.flushed(sim.epoch());
                }
                // One that changed nothing may be tried again.
                flush_failed = done.is_err();
            }
            model.change(op);
            history.push(epoch, model.bytes.clone());
            // After a failed flush nobody can tell what the medium holds: another user of it would be misled.
            if *op == Op::Reopen && !flush_failed {
                image = self.open(sim.clone(), true).ok();
            }
            let mut found = vec![0; model.bytes.len()];
            if let Some(open) = &image
                && open.read(&mut found, 0).is_ok()
            {
                history.allows(&found, sim.epoch(), 1).map_err(|e| format!("{op:?}: {e}"))?;
                if done.is_ok() && !matches!(op, Op::Discard { .. } | Op::Reopen) && found != model.bytes {
                    return Err(format!("{op:?} succeeded and has not the effect"));
                }
                history.push(sim.epoch(), found.clone());
                model.bytes = found;
            }
        }
        sim.heal();
        if let Some(image) = image
            && image.close().is_ok()
        {
            history.flushed(sim.epoch());
        }
        self.verify(sim.contents(), &history, u64::MAX, 1)?;
        for crash in sim.crash_images(nth, 3) {
            let name = format!("{crash:?}");
            self.verify(crash.bytes, &history, crash.epoch, 1).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }

    /// Calls that a script makes.
    fn calls(&self, script: &[Op]) -> u64 {
        let sim = Arc::new(SimStorage::from(self.bytes.clone()));
        let mut image = self.open(sim.clone(), true).unwrap();
        for op in script {
            run(&image, op).unwrap();
            if *op == Op::Reopen {
                image.close().unwrap();
                image = self.open(sim.clone(), true).unwrap();
            }
        }
        image.close().unwrap();
        sim.calls()
    }
}

fn over_raw(mut config: Config) -> Config {
    config.backing = Some(images::Backing { qcow2: false, len: config.size - 700 });
    config
}

fn lose_power_in_scripts(start: &Start, scripts: u64) {
    for seed in 0..scaled(scripts) {
        let script = start.script(18, seed as u8);
        if let Err(error) = start.lose_power(&script, seed, 20, None) {
            panic!("{:?}, seed {seed}: {error}\n{script:#x?}", start.config);
        }
    }
}

#[test]
fn power_loss_with_512_byte_clusters() {
    lose_power_in_scripts(&Start::new(Config::plain(9, 70_000)), 4);
}

#[test]
fn power_loss_with_512_byte_clusters_and_a_backing_file() {
    lose_power_in_scripts(&Start::new(over_raw(Config { refcount_bits: 64, ..Config::plain(9, 40_448) })), 4);
}

#[test]
fn power_loss_with_4_kib_clusters() {
    lose_power_in_scripts(&Start::new(Config { refcount_bits: 1, ..Config::plain(12, 200_000) }), 4);
}

#[test]
fn power_loss_in_version_2() {
    lose_power_in_scripts(&Start::new(over_raw(Config { version: 2, ..Config::plain(10, 100_000) })), 4);
}

#[test]
fn power_loss_with_subclusters() {
    let config = Config { extended_l2: true, ..Config::plain(14, 200_192) };
    lose_power_in_scripts(&Start::new(over_raw(config)), 4);
}

#[test]
fn power_loss_with_clusters_that_a_snapshot_shares() {
    if let Some(start) = Start::with_snapshot(Config::plain(9, 40_960)) {
        lose_power_in_scripts(&start, 3);
    }
    if let Some(start) = Start::with_snapshot(over_raw(Config::plain(12, 150_016))) {
        lose_power_in_scripts(&start, 3);
    }
}

/// The harness is tested too. Each flush of this script has new data, dropped clusters and a new refcount block.
#[test]
fn a_missing_barrier_is_noticed() {
    let start = Start::new(Config { refcount_bits: 64, ..Config::plain(9, 140_800) });
    let round = |at: u64| {
        let write = Op::Write { offset: at * 30_000, len: 40_000, seed: at as u8 + 1 };
        [write, Op::Discard { offset: at * 30_000, len: 10_000 }, Op::Flush]
    };
    let script: Vec<Op> = (0..4).flat_map(round).collect();
    let syncs = start.lose_power(&script, 0, 20, None).unwrap();
    let unnoticed = |nth: &u64| start.lose_power(&script, 0, 100, Some(*nth)).is_ok();
    let missed: Vec<u64> = (0..syncs).filter(unnoticed).collect();
    assert!(missed.is_empty(), "of {syncs} barriers, these can be left out unnoticed: {missed:?}");
}

fn fail_every_call(start: &Start, seed: u8) {
    let script = start.script(9, seed);
    let calls = start.calls(&script);
    for failing in [Failing::Once, Failing::Forever] {
        for nth in 0..calls {
            if let Err(error) = start.fail(&script, nth, failing) {
                panic!(
                    "{:?}, seed {seed}, call {nth} of {calls} {failing:?}: {error}\n{script:#x?}",
                    start.config
                );
            }
        }
    }
}

#[test]
fn every_failing_call_leaves_a_latched_or_consistent_image() {
    for seed in 0..scaled(2) as u8 {
        fail_every_call(&Start::new(Config::plain(9, 70_000)), seed);
        fail_every_call(&Start::new(over_raw(Config::plain(12, 200_000))), seed);
    }
}

#[test]
fn every_failing_call_with_subclusters_leaves_a_latched_or_consistent_image() {
    let config = Config { extended_l2: true, ..Config::plain(14, 200_192) };
    fail_every_call(&Start::new(over_raw(config)), 1);
}

#[test]
fn every_failing_call_with_a_snapshot_leaves_a_latched_or_consistent_image() {
    if let Some(start) = Start::with_snapshot(Config::plain(9, 40_960)) {
        fail_every_call(&start, 2);
    }
}
