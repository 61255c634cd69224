//! A process that writes is killed, for real: nothing it had flushed is lost, and the image goes on.
//!
//! The child is this test binary again, running [`child`]. It says on its standard output which operation it begins and
//! which flush has ended; both sides know what the operations are, by their seed.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write, stdout};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use imago_testkit::check::check;
use imago_testkit::crash::survivor;
use imago_testkit::history::History;
use imago_testkit::images::{Built, Config, DataFile, open};
use imago_testkit::model::{Bitmap, Model, View};
use imago_testkit::ops::{Crash, Op, fixed_script};
use imago_testkit::qcow2::Qcow2;
use imago_testkit::rng::Rng;
use imago_testkit::sim::SECTOR;
use imago_testkit::{qemu, scaled};

/// The child's image and seed: `SEED CONFIG PATH`.
const CHILD: &str = "IMAGO_KILL_CHILD";
/// Operations of a script; a child that survives them all ends by itself.
const OPS: usize = 120;
/// Kills of one image, each going on with what the one before left.
const KILLS_OF_ONE: u64 = 9;

fn configs() -> Vec<Config> {
    let plain = Config::plain;
    let backing = Some(imago_testkit::images::Backing { qcow2: false, len: 900_000 });
    vec![
        plain(9, 400_384),
        Config { backing, ..plain(12, 1 << 20) },
        Config { extended_l2: true, ..plain(14, 3 << 20) },
        Config { version: 2, refcount_bits: 16, ..plain(10, 600_064) },
        Config { data_file: DataFile::Plain, ..plain(12, 1 << 20) },
        Config { refcount_bits: 1, backing, ..plain(9, 300_032) },
        plain(16, 4 << 20),
    ]
}

/// The script of a seed, with discards whose effect is certain: whole clusters, and zeroes where a data file's storage decides.
fn script(config: &Config, seed: u64) -> Vec<Op> {
    let cluster = config.geometry().cluster;
    let certain = |op| match op {
        Op::Discard { offset, len } if config.data_file != DataFile::None => {
            Op::WriteZeroes { offset, len, unmap: true }
        }
        Op::Discard { offset, len } => {
            let start = offset.next_multiple_of(cluster).min(config.size);
            let end = (offset + len) / cluster * cluster;
            Op::Discard { offset: start, len: end.saturating_sub(start) }
        }
        op => op,
    };
    fixed_script(config.geometry(), OPS, seed).into_iter().map(certain).collect()
}

fn media(built: &Built) -> Vec<Vec<u8>> {
    let image = fs::read(&built.path).expect("the image");
    [image].into_iter().chain(built.data_file()).collect()
}

/// As much of what an image shows as its operations depend on; the parent compares.
fn outline(path: &Path) -> View {
    let bytes = fs::read(path).expect("the image");
    let image = Qcow2::parse(&bytes).expect("an image");
    let mut view = View::of_disk(vec![0; image.header.size as usize]);
    let snapshots = image.snapshots.iter();
    let zeroes = |size: u64| vec![0; size as usize].into();
    view.snapshots = snapshots.map(|snapshot| (snapshot.name.clone(), zeroes(snapshot.disk_size))).collect();
    for found in &image.bitmaps {
        let mut bitmap =
            Bitmap::clean(found.name.clone(), true, 1 << found.granularity_bits, image.header.size);
        bitmap.dirty = bitmap.dirty.filter(|_| found.flags & 1 == 0);
        view.bitmaps.push(bitmap);
    }
    view
}

/// What runs in the child; in an ordinary run of the tests it is nothing.
#[test]
fn child() {
    let Ok(task) = env::var(CHILD) else { return };
    let mut parts = task.splitn(3, ' ');
    let mut next = || parts.next().expect("SEED CONFIG PATH");
    let seed = next().parse().expect("a seed");
    let config = &configs()[next().parse::<usize>().expect("the number of a config")];
    let path = Path::new(next());
    let mut model = Model::new(outline(path), config.geometry(), config.discards());
    // One that was left dirty is repaired.
    let mut image = open(path, true).expect("open");
    let say = |what: &str, nth: usize| {
        // One write, so that a kill leaves whole lines.
        stdout().write_all(format!("\nimago {what} {nth}\n").as_bytes()).expect("the parent reads");
        stdout().flush().expect("the parent reads");
    };
    for (nth, op) in script(config, seed).iter().enumerate() {
        let op = op.fitted(&model);
        say("begins", nth);
        op.run(&image, &model).expect("an operation");
        op.change(&mut model);
        if op == Op::Reopen {
            image.close().expect("close");
            drop(image);
            image = open(path, true).expect("reopen");
        }
        if op.crash() != Crash::Sectors {
            say("flushed", nth);
        }
    }
    image.close().expect("close");
    say("flushed", OPS);
}

/// Starts a child, kills it after some operation, and returns what it said: (begun, number of the operation).
fn kill(path: &Path, config: usize, seed: u64, rng: &mut Rng) -> Vec<(bool, usize)> {
    let mut child = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{seed} {config} {}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let last = rng.below(OPS as u64 * 3 / 4) as usize;
    let delay = Duration::from_micros(rng.below(3000));
    let mut said = Vec::new();
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("text");
        let Some((what, nth)) = line.strip_prefix("imago ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        said.push((what == "begins", nth.parse().expect("a number")));
        if !killed && said.last() == Some(&(true, last)) {
            thread::sleep(delay);
            child.kill().expect("SIGKILL");
            killed = true;
        }
    }
    let status = child.wait().expect("its end");
    assert!(killed || status.success(), "the child failed by itself: {status}");
    said
}

/// What the image may show after what the child said.
fn history(config: &Config, before: View, seed: u64, said: &[(bool, usize)]) -> History {
    let mut model = Model::new(before.clone(), config.geometry(), config.discards());
    let mut history = History::new(before);
    let script = script(config, seed);
    for &(begins, nth) in said {
        if !begins {
            history.flushed(nth as u64);
            continue;
        }
        let op = script[nth].fitted(&model);
        op.change(&mut model);
        if op.crash() != Crash::Durable {
            history.push(nth as u64, model.view.clone(), op.crash());
        }
    }
    history
}

#[test]
fn nothing_flushed_is_lost_when_the_writer_is_killed() {
    let mut rng = Rng::new(4);
    let (mut built, mut view) = (None, View::of_disk(Vec::new()));
    // 1,008 with the scale of `make test-long`.
    for round in 0..scaled(63) {
        let config_number = (round / KILLS_OF_ONE) as usize % configs().len();
        let config = &configs()[config_number];
        if round % KILLS_OF_ONE == 0 {
            built = Some(config.build_in(Path::new(env!("CARGO_TARGET_TMPDIR"))));
            view = built.as_ref().expect("just built").checked_view().expect("a fresh image");
        }
        let built = built.as_ref().expect("the first round builds one");
        let said = kill(&built.path, config_number, round, &mut rng);
        let media = media(built);
        let failed = |what: &str, error: String| -> String {
            format!("{config:?}, round {round}: {what}: {error}\n{said:?}")
        };
        let found = survivor(&media, &built.backing).unwrap_or_else(|e| panic!("{}", failed("check", e)));
        let history = history(config, view, round, &said);
        history.allows(&found, u64::MAX, SECTOR).unwrap_or_else(|e| panic!("{}", failed("content", e)));
        let report = check(&media[0]);
        if qemu::have_qemu() && !report.dirty && report.unflagged.is_empty() {
            let (verdict, said) = qemu::check(&built.path);
            assert!(verdict != qemu::Verdict::Corrupt, "{}", failed("qemu-img check", said));
        }
        let image = open(&built.path, false).unwrap_or_else(|e| panic!("{}", failed("open", e.to_string())));
        let model = Model::new(found.clone(), config.geometry(), config.discards());
        model.compare_all(&image).unwrap_or_else(|e| panic!("{}", failed("the engine", e)));
        view = found;
    }
}
