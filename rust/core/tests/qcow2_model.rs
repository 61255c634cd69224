//! Random scripts against a plain array of bytes, over every combination of features.

use imago_testkit::images::{Built, Config, DataFile, config, open};
use imago_testkit::model::{Model, pattern};
use imago_testkit::ops::{Op, script};
use imago_testkit::{proptest_config, qemu};
use proptest::prelude::*;

/// Runs a script; afterwards the image is clean, and the engine, the oracle and the model agree.
fn run_script(config: &Config, script: &[Op]) -> Result<(Built, Model), String> {
    let built = config.build();
    let mut model = config.model(&built.backing);
    let mut image = open(&built.path, true).map_err(|e| format!("open: {e}"))?;
    for op in script {
        model.apply(&image, op)?;
        if *op == Op::Reopen {
            image.close().map_err(|e| format!("close: {e}"))?;
            drop(image);
            image = open(&built.path, true).map_err(|e| format!("reopen: {e}"))?;
        }
    }
    model.compare_all(&image)?;
    image.close().map_err(|e| format!("close: {e}"))?;
    drop(image);
    model.view.expect(&built.checked_view()?).map_err(|e| format!("the oracle: {e}"))?;
    let image = open(&built.path, false).map_err(|e| format!("reopen: {e}"))?;
    model.compare_all(&image)?;
    Ok((built, model))
}

fn any_script() -> impl Strategy<Value = (Config, Vec<Op>)> {
    config().prop_flat_map(|config| {
        let ops = script(config.geometry(), 1..40);
        (Just(config), ops)
    })
}

proptest! {
    #![proptest_config(proptest_config(500))]

    #[test]
    fn scripts_leave_a_clean_image_that_reads_as_the_model((config, script) in any_script()) {
        run_script(&config, &script).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(proptest_config(100))]

    #[test]
    fn qemu_agrees_with_what_scripts_leave((config, script) in any_script()) {
        if qemu::qemu_or_skip() {
            let (built, model) = run_script(&config, &script).map_err(TestCaseError::fail)?;
            qemu::assert_clean(&built.path);
            // QEMU shows whole sectors only.
            let whole = model.view.disk.len() / 512 * 512;
            prop_assert!(qemu::content(&built.path)[..whole] == model.view.disk[..whole]);
        }
    }
}

/// A raw image must stay one: the data file of a `data_file_raw` image holds the disk's bytes.
#[test]
fn a_raw_data_file_always_holds_the_disk() {
    let config = Config { data_file: DataFile::Raw, ..Config::plain(12, 200_000) };
    let ops = [
        Op::Write { offset: 5000, len: 90_000, seed: 1 },
        Op::WriteZeroes { offset: 10_000, len: 30_000, unmap: false },
        Op::Discard { offset: 50_000, len: 20_000 },
        Op::WriteZeroes { offset: 150_000, len: 50_000, unmap: true },
        Op::Write { offset: 199_000, len: 1000, seed: 2 },
    ];
    let (built, model) = run_script(&config, &ops).unwrap();
    let mut data = built.data_file().unwrap();
    data.resize(model.view.disk.len(), 0);
    assert!(data == model.view.disk);
}

/// The same clusters are written and discarded again and again: the file must not grow.
#[test]
fn discarded_space_is_used_again() {
    let built = Config::plain(12, 1 << 20).build();
    let image = open(&built.path, true).unwrap();
    let mut lens = Vec::new();
    for round in 1..=20 {
        image.write(&pattern(round, 0, 1 << 20), 0).unwrap();
        image.flush().unwrap();
        image.discard(0, 1 << 20).unwrap();
        image.flush().unwrap();
        lens.push(std::fs::metadata(&built.path).unwrap().len());
    }
    assert!(lens[19] <= 3 << 20, "{lens:?}");
    image.close().unwrap();
    drop(image);
    assert!(built.checked_view().unwrap().disk.iter().all(|&byte| byte == 0));
}
