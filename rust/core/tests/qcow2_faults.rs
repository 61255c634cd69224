//! Power loss and failing storage: what was flushed is there, nothing shows what was never written, and
//! the metadata has leaks at most.

use imago_testkit::crash::{Look, Start, assert_barriers_noticed};
use imago_testkit::images::Config;
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

/// The harness is tested too. Each flush of this script has new data, dropped clusters and a new refcount block.
#[test]
fn a_missing_barrier_is_noticed() {
    let start = Start::new("barriers", Config { refcount_bits: 64, ..Config::plain(9, 140_800) });
    let round = |at: u64| {
        let write = Op::Write { offset: at * 30_000, len: 40_000, seed: at as u8 + 1 };
        [write, Op::Discard { offset: at * 30_000, len: 10_000 }, Op::Flush]
    };
    let script: Vec<Op> = (0..4).flat_map(round).collect();
    assert_barriers_noticed(&[], |broken_sync| {
        start.lose_power(&script, Look { broken_sync, ..Look::at(50, 0) })
    });
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
