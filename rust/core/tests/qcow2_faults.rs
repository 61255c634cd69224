//! Power loss and failing storage: what was flushed is there, nothing shows what was never written, and
//! the metadata has leaks at most.

use imago_testkit::crash::{Look, Start, assert_barriers_noticed};
use imago_testkit::ops::Op;
use imago_testkit::scaled;
use imago_testkit::sim::Failing;
use imago_testkit::starts::{self, start};

/// Runs the script of that seed, and panics with what replays the failure.
fn lose_power(start: &Start, seed: u64, only: Option<(u64, usize)>) {
    let script = start.script(18, seed);
    let look = Look { by_qemu: 1, only, ..Look::at(12, seed) };
    if let Err(failure) = start.lose_power(&script, look) {
        let image = failure.image.map(|(epoch, index)| format!("/{epoch}.{index}")).unwrap_or_default();
        panic!(
            "{}\nreplay: IMAGO_REPLAY={}/{seed}{image} cargo test -p imago-core --test qcow2_faults replay\n{:?}\n{script:#x?}",
            failure.message, start.name, start.config
        );
    }
}

/// `IMAGO_REPLAY=START/SEED[/EPOCH.INDEX]` runs exactly that, and at most that crash image.
#[test]
fn replay() {
    let Ok(what) = std::env::var("IMAGO_REPLAY") else { return };
    let mut parts = what.splitn(3, '/');
    let mut next = || parts.next().filter(|part| !part.is_empty());
    let name = next().expect("the name of a start image");
    let seed = next().expect("a seed").parse().expect("a seed is a number");
    let only = next().map(|image| {
        let (epoch, index) = image.split_once('.').expect("EPOCH.INDEX");
        (epoch.parse().expect("a number"), index.parse().expect("a number"))
    });
    lose_power(&start(name).expect("QEMU, which makes this image"), seed, only);
}

#[test]
fn power_loss_in_scripts() {
    for name in starts::names() {
        let Some(start) = start(name) else { continue };
        for seed in 0..scaled(2) {
            lose_power(&start, seed, None);
        }
    }
}

/// Barriers that are not needed for one kind of image, or for none.
fn redundant(name: &str) -> Vec<(&'static str, &'static str)> {
    // A flush of nothing but what the flush before it lowered.
    let mut redundant =
        vec![("< close", "only lowered refcounts are left to land: without them there are leaks")];
    if name == "data-file-raw" {
        redundant.push((
            "write_ordered: self.metadata.sync()",
            "all tables were made at creation, and no entry ever changes",
        ));
    }
    redundant
}

/// The harness is tested too.
#[test]
fn a_missing_barrier_is_noticed() {
    for name in starts::names() {
        let Some(start) = start(name) else { continue };
        let script = start.barrier_script();
        assert_barriers_noticed(name, &redundant(name), |broken_sync| {
            let images = if broken_sync.is_some() { 60 } else { 4 };
            start.lose_power(&script, Look { broken_sync, ..Look::at(images, 0) })
        });
    }
}

/// Each of the snapshot operations with something to lose before and behind it.
#[test]
fn a_missing_barrier_of_a_snapshot_is_noticed() {
    for name in ["plain-512", "backing-512", "version-2"] {
        let Some(start) = start(name) else { continue };
        let size = start.config.size;
        let write = |at: u64, seed| Op::Write { offset: size / 8 * at, len: size / 6, seed };
        let script = [
            write(1, 1),
            Op::TakeSnapshot { name: 1 },
            write(0, 2),
            // Everything that is not overwritten is the disk's alone again.
            Op::DeleteSnapshot { index: 0 },
            write(5, 3),
            Op::TakeSnapshot { name: 2 },
            write(3, 4),
            Op::ApplySnapshot { index: 0 },
            write(2, 5),
            Op::TakeSnapshot { name: 3 },
            write(4, 6),
            Op::RenameSnapshot { index: 1, name: 4 },
            write(1, 7),
            Op::DeleteSnapshot { index: 0 },
            write(6, 8),
            Op::DeleteSnapshot { index: 0 },
            write(2, 9),
            Op::Flush,
        ];
        assert_barriers_noticed(name, &[], |broken_sync| {
            let images = if broken_sync.is_some() { 60 } else { 20 };
            start.lose_power(&script, Look { broken_sync, ..Look::at(images, 0) })
        });
    }
}

fn fail_every_call(start: &Start, seed: u64) {
    let script = start.script(9, seed);
    let calls = start.calls(&script);
    for failing in [Failing::Once, Failing::Forever] {
        for nth in 0..calls {
            if let Err(error) = start.fail(&script, nth, failing) {
                panic!(
                    "{}, seed {seed}, call {nth} of {calls} {failing:?}: {error}\n{script:#x?}",
                    start.name
                );
            }
        }
    }
}

#[test]
fn every_failing_call_leaves_a_latched_or_consistent_image() {
    for name in ["plain-512", "snapshot-512", "subclusters"] {
        let Some(start) = start(name) else { continue };
        for seed in 0..scaled(1) {
            fail_every_call(&start, seed);
        }
    }
}
