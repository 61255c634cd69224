//! Power loss and failing storage: what was flushed is there, nothing shows what was never written, and
//! the metadata has leaks at most.

use std::time::{Duration, Instant, SystemTime};

use imago_testkit::crash::{Content, Look, Start, assert_barriers_noticed};
use imago_testkit::images::Config;
use imago_testkit::ops::Op;
use imago_testkit::replay::{self, Case, Fault};
use imago_testkit::rng::Rng;
use imago_testkit::scaled;
use imago_testkit::sim::Failing;
use imago_testkit::starts::{self, start};

fn run(case: &Case, start: &Start) {
    case.run_on(start).unwrap_or_else(|e| panic!("{e}"));
}

/// Runs exactly the case that `IMAGO_REPLAY` names, and nothing without it.
#[test]
fn replay() {
    if let Ok(case) = std::env::var(replay::VARIABLE) {
        case.parse::<Case>().and_then(|case| case.run()).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn power_loss_in_scripts() {
    for name in starts::names() {
        let Some(start) = start(name) else { continue };
        for seed in 0..scaled(2) {
            run(&Case { start: name.into(), seed, fault: Fault::PowerLoss }, &start);
        }
    }
}

/// The file ends within a cluster of data; writes in place make it longer.
#[test]
fn a_write_past_the_end_of_the_file_leaves_no_half_of_a_sector() {
    let nothing = Content { compressed: false, used: false, snapshot: false, bitmaps: false };
    let start = Start::new("new-4k", Config::plain(12, 64 << 10), nothing).expect("a new image");
    let write = |offset, len, seed| Op::Write { offset, len, seed };
    let script = [write(0, 4097, 1), write(4097, 700, 2), Op::Flush, write(4096, 4096, 3)];
    start.lose_power(&script, Look::at(2000, 0)).unwrap_or_else(|e| panic!("{e:?}"));
}

/// What a growth brings is clean and reads as zeroes, and what is written there afterwards is dirty, whether a call fails meanwhile or none does.
#[test]
fn a_bitmap_of_a_disk_that_was_cut_off_and_grew_again_misses_no_write() {
    let start = start("bitmaps-512").expect("it takes no QEMU");
    let size = start.config.size.next_multiple_of(512);
    let (small, grown) = (size / 1024 * 512, size + 4096);
    let write = |offset, len, seed| Op::Write { offset, len, seed };
    let script = [
        write(size - 5000, 3000, 1),
        Op::Resize { size: small },
        write(small - 700, 700, 2),
        Op::Resize { size: grown },
        write(small + 1000, 2000, 3),
        write(grown - 1000, 1000, 4),
        Op::Flush,
    ];
    for nth in 0..=start.calls(&script) {
        start.fail(&script, nth, Failing::Once).unwrap_or_else(|e| panic!("call {nth}: {e}"));
    }
}

/// What QEMU repairs ends with a whole sector, and so do its bitmaps.
#[test]
fn qemu_repairs_a_disk_that_ends_within_a_sector() {
    let case: Case = "bitmaps-4k/225935356/10.7".parse().expect("a case");
    case.run().unwrap_or_else(|e| panic!("{e}"));
}

/// `SOAK_MINUTES` of cases that nobody has run before; nothing without it. See `make soak`.
#[test]
fn soak() {
    let Ok(minutes) = std::env::var("SOAK_MINUTES") else { return };
    let end =
        Instant::now() + Duration::from_secs(60 * minutes.parse::<u64>().expect("SOAK_MINUTES is a number"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
    let mut rng = Rng::new(now.as_nanos() as u64);
    let mut cases = 0;
    while Instant::now() < end {
        let names = starts::names();
        let name = match names.get(rng.below(names.len() as u64 * 2) as usize) {
            Some(name) => (*name).to_owned(),
            None => format!("random-{}", rng.next_u64() >> 32),
        };
        let Some(start) = start(&name) else { continue };
        for _ in 0..4 {
            let case = Case { start: name.clone(), seed: rng.next_u64() >> 32, fault: Fault::PowerLoss };
            println!("{cases} cases; {case}");
            run(&case, &start);
            let calls = start.calls(&case.script(&start));
            for failing in [Failing::Once, Failing::Forever] {
                run(&Case { fault: Fault::Call(rng.below(calls), failing), ..case.clone() }, &start);
            }
            cases += 3;
        }
    }
}

/// Barriers that are not needed for one kind of image, or for none.
fn redundant(name: &str) -> Vec<(&'static str, &'static str)> {
    // A flush of nothing but what the flush before it lowered.
    let mut redundant = vec![
        ("< flush (..< close", "only lowered refcounts are left to land: without them there are leaks"),
        ("end_with_a_sector: ", "the file ends with a table that QEMU wrote, and not within guest data"),
    ];
    if name.starts_with("bitmaps-") {
        redundant.push((
            "switch: ..< release_bitmaps",
            "the closing flush makes the new directory durable too, before anything of the old one is free",
        ));
    }
    if name == "bitmaps-data-file" {
        redundant.push((
            "self.data()?.sync()..< release_bitmaps",
            "the flush before the close had no data left over",
        ));
    }
    if ["bitmaps-snapshot", "bitmaps-data-file"].contains(&name) {
        redundant.push((
            "write_flags: ..< hold_enabled",
            "nothing is written in place, and what is written elsewhere shows after the flush's own barrier",
        ));
    }
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
        assert_barriers_noticed(name, &redundant(name), |broken_sync| {
            let images = if broken_sync.is_some() { 60 } else { 20 };
            start.lose_power(&script, Look { broken_sync, ..Look::at(images, 0) })
        });
    }
}

#[test]
fn every_failing_call_leaves_a_latched_or_consistent_image() {
    for name in ["plain-512", "snapshot-512", "subclusters"] {
        let Some(start) = start(name) else { continue };
        for seed in 0..scaled(1) {
            let case = Case { start: name.into(), seed, fault: Fault::PowerLoss };
            for nth in 0..start.calls(&case.script(&start)) {
                for failing in [Failing::Once, Failing::Forever] {
                    run(&Case { fault: Fault::Call(nth, failing), ..case.clone() }, &start);
                }
            }
        }
    }
}
