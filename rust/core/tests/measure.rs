//! How large a file would be, with QEMU as the judge.

use imago_core::access::create::CreateOptions;
use imago_core::access::job::Job;
use imago_core::access::measure::measure;
use imago_core::access::open::OpenOptions;
use imago_core::format::qcow2::create::{self, Version};
use imago_testkit::qemu;

/// "required size" and "fully allocated size" as `qemu-img measure` has them.
fn by_qemu(options: &str, what: &[&str]) -> (u64, u64) {
    let mut args = vec!["measure", "-O", "qcow2", "-o", options];
    args.extend(what);
    let said = qemu::img(&args);
    let number = |label: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(label)).expect(label);
        line.trim().parse().expect("a number")
    };
    (number("required size:"), number("fully allocated size:"))
}

fn layouts() -> Vec<(&'static str, create::CreateOptions)> {
    let default = create::CreateOptions::default();
    vec![
        ("compat=1.1", default.clone()),
        ("compat=0.10", create::CreateOptions { version: Version::V2, ..default.clone() }),
        ("cluster_size=512", create::CreateOptions { cluster_size: 512, ..default.clone() }),
        ("cluster_size=2M", create::CreateOptions { cluster_size: 2 << 20, ..default.clone() }),
        ("refcount_bits=1", create::CreateOptions { refcount_bits: 1, ..default.clone() }),
        (
            "refcount_bits=64,cluster_size=4k",
            create::CreateOptions { refcount_bits: 64, cluster_size: 4096, ..default.clone() },
        ),
        ("extended_l2=on", create::CreateOptions { extended_l2: true, ..default }),
    ]
}

#[test]
fn an_empty_disk_is_measured_as_qemu_measures_it() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for (name, options) in layouts() {
        for size in [0, 512, 1 << 20, (1 << 30) + 512, 100 << 30] {
            let ours = measure(
                None,
                &CreateOptions::Qcow2(create::CreateOptions { size, ..options.clone() }),
                &mut Job::default(),
            )
            .unwrap();
            let theirs = by_qemu(name, &["--size", &size.to_string()]);
            assert_eq!((ours.required, ours.fully_allocated), theirs, "{name} {size}");
        }
    }
}

#[test]
fn a_conversion_is_measured_as_qemu_measures_it() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("source");
    qemu::create(&path, (50 << 20) + 1024, "cluster_size=4k");
    qemu::io(
        &path,
        "qcow2",
        &[
            "write 1M 4k",
            "write 1100k 12k",
            "write -z 2M 1M",
            "write -c 3M 8k",
            "write 49M 1M",
            "write 50M 1k",
        ],
    );
    let image = OpenOptions::default().open(&path).unwrap();
    for (name, options) in layouts() {
        let ours = measure(Some(&image), &CreateOptions::Qcow2(options), &mut Job::default()).unwrap();
        let theirs = by_qemu(name, &["-f", "qcow2", path.to_str().unwrap()]);
        assert_eq!((ours.required, ours.fully_allocated), theirs, "{name}");
    }
    let raw = measure(Some(&image), &CreateOptions::raw(0), &mut Job::default()).unwrap();
    assert_eq!((raw.required, raw.fully_allocated), ((50 << 20) + 1024, (50 << 20) + 1024));
}
