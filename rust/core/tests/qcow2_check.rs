//! Checks and repairs of images, held against `qemu-img check` and against the independent checker.

#[path = "qcow2_check/damages.rs"]
mod damages;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use imago_core::ErrorKind;
use imago_core::access::check::FindingKind::{self, *};
use imago_core::access::check::{CheckOptions, Repair, Report, check};
use imago_core::access::job::Job;
use imago_core::format::FormatKind;
use imago_testkit::check as oracle;
use imago_testkit::images;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::qemu;

use damages::{Bitmaps, CASES, Case, LAYOUTS, Made, NO_WORD, OWN, Patient, make, make_with};

fn options(repair: Repair) -> CheckOptions {
    CheckOptions { format: Some(FormatKind::Qcow2), repair, ..CheckOptions::default() }
}

fn checked(path: &Path, repair: Repair) -> Report {
    check(path, options(repair), &mut Job::default()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The numbers of `qemu-img check --output=json`, without those that are 0.
fn numbers(report: &Report) -> BTreeMap<String, u64> {
    let all = [
        ("check-errors", report.check_errors),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("image-end-offset", report.image_end_offset),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    all.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
}

fn qemu_numbers(path: &Path, repair: Option<&str>) -> BTreeMap<String, u64> {
    let mut numbers = qemu::check_numbers(path, repair).expect("qemu-img check says something");
    numbers.retain(|_, n| *n > 0);
    numbers
}

#[test]
fn a_good_image_is_clean_and_its_numbers_are_those_of_qemu() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for layout in LAYOUTS {
        let made = make(layout);
        let before = fs::read(&made.path).unwrap();
        let report =
            check(&made.path, CheckOptions { deep: true, ..options(Repair::None) }, &mut Job::default())
                .unwrap();
        assert!(report.is_clean() && report.findings.is_empty(), "{layout}: {:#?}", report.findings);
        assert_eq!(numbers(&report), qemu_numbers(&made.path, None), "{layout}");
        assert!(fs::read(&made.path).unwrap() == before, "{layout}: a check changed the image");
    }
}

fn kinds(report: &Report) -> BTreeMap<FindingKind, u64> {
    let mut kinds = BTreeMap::new();
    for finding in &report.findings {
        *kinds.entry(finding.kind).or_default() += 1;
    }
    kinds
}

fn damaged(case: &Case) -> Made {
    damage(case, make(case.layout))
}

fn damage(case: &Case, made: Made) -> Made {
    let mut patient = Patient { bytes: fs::read(&made.path).unwrap() };
    (case.damage)(&mut patient);
    fs::write(&made.path, &patient.bytes).unwrap();
    made
}

/// What a check of the damaged image says otherwise than expected.
fn misjudged(case: &Case) -> Result<(), String> {
    let made = damaged(case);
    let before = fs::read(&made.path).unwrap();
    let report = check(&made.path, options(Repair::None), &mut Job::default()).map_err(|e| e.to_string())?;
    let found: BTreeMap<FindingKind, u64> = kinds(&report);
    let as_expected = found.len() == case.finds.len()
        && case.finds.iter().all(|(kind, n)| found.get(kind).is_some_and(|found| *n == 0 || n == found));
    if !as_expected {
        let lines: Vec<_> = report.findings.iter().map(|finding| &finding.message).take(5).collect();
        return Err(format!("found {found:?}, not {:?}: {lines:#?}", case.finds));
    }
    if fs::read(&made.path).unwrap() != before {
        return Err("a check changed the image".into());
    }
    let mut found = numbers(&report);
    if case.unseen == NO_WORD {
        let (verdict, said) = qemu::check(&made.path);
        return if verdict == qemu::Verdict::Corrupt { Ok(()) } else { Err(said) };
    }
    let mut qemu = qemu::check_numbers(&made.path, None).ok_or("qemu-img check fails")?;
    let left = report.corruptions.checked_sub(case.unseen);
    found.insert("corruptions".to_owned(), left.ok_or("qemu-img check finds more")?);
    found.retain(|_, n| *n > 0);
    qemu.retain(|_, n| *n > 0);
    if found == qemu { Ok(()) } else { Err(format!("{found:?}, but QEMU has {qemu:?}")) }
}

#[test]
fn every_damage_is_found_and_counted_as_qemu_counts_it() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let judge = |case: &Case| misjudged(case).err().map(|error| format!("{}: {error}", case.name));
    let misjudged: Vec<_> = CASES.iter().filter_map(judge).collect();
    assert!(misjudged.is_empty(), "{}", misjudged.join("\n"));
}

/// What the guest sees, and saw at each snapshot, by the independent parser; its errors too.
fn contents(made: &Made) -> Vec<Result<Vec<u8>, String>> {
    let bytes = fs::read(&made.path).unwrap();
    let data = fs::read(made.dir.path().join("data")).ok();
    let image = Qcow2::parse(&bytes).unwrap();
    let now = image.content(&[], data.as_deref());
    let before = image.snapshots.iter().map(|snapshot| image.snapshot_content(snapshot, &[]));
    [now].into_iter().chain(before).collect()
}

fn badly_repaired(case: &Case) -> Result<(), String> {
    let made = damaged(case);
    let before = fs::read(&made.path).unwrap();
    let shown = Qcow2::parse(&before).is_ok().then(|| contents(&made));
    let found = checked(&made.path, Repair::None);
    let report = checked(&made.path, Repair::All);
    let kinds: Vec<_> = kinds(&report).into_keys().filter(|kind| *kind != RefcountTooHigh).collect();
    if kinds != case.stays {
        let lines: Vec<_> = report.findings.iter().map(|finding| &finding.message).take(5).collect();
        return Err(format!("{kinds:?} stay, not {:?}: {lines:#?}", case.stays));
    }
    let again = checked(&made.path, Repair::None);
    if (again.corruptions, again.leaks, again.check_errors)
        != (report.corruptions, report.leaks, report.check_errors)
    {
        return Err("the next check finds something else".into());
    }
    if shown.is_some_and(|shown| shown != contents(&made)) {
        return Err("the content has changed".into());
    }
    // Of bitmaps nothing has to be known to remove them.
    let dropped = case.stays.contains(&BitmapsDropped);
    if found.check_errors > 0 && !dropped && fs::read(&made.path).unwrap() != before {
        return Err("written to, though parts could not be checked".into());
    }
    if !case.stays.is_empty() && !dropped {
        return Ok(());
    }
    let fixed = (report.corruptions_fixed, report.leaks_fixed);
    // Flags may come right with the refcount.
    let flags = case.finds.iter().any(|(kind, _)| *kind == Copied);
    if dropped && fixed.0 > 0 {
        // What the bitmaps took is a leak in between.
    } else if fixed.1 != found.leaks || fixed.0 > found.corruptions || (fixed.0 < found.corruptions && !flags)
    {
        return Err(format!("{fixed:?} fixed of {} and {}", found.corruptions, found.leaks));
    }
    let by_oracle = oracle::check(&fs::read(&made.path).unwrap());
    if by_oracle.dirty || !by_oracle.corruptions.is_empty() || !by_oracle.leaks.is_empty() {
        return Err(format!("the independent checker: {by_oracle}"));
    }
    match qemu::check(&made.path) {
        (qemu::Verdict::Clean, _) => Ok(()),
        (_, said) => Err(said),
    }
}

#[test]
fn every_damage_that_can_be_is_repaired_and_the_content_stays() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let judge = |case: &Case| badly_repaired(case).err().map(|error| format!("{}: {error}", case.name));
    let bad: Vec<_> = CASES.iter().filter_map(judge).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Of images without bitmaps: QEMU 10 forgets the snapshots of an image that has bitmaps when it opens it to repair it.
#[test]
fn repairs_count_what_they_fixed_as_qemu_does() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let mut compared = 0;
    let seen = |case: &&Case| case.stays.is_empty() && case.unseen == 0;
    // QEMU writes small clusters one by one, with a barrier behind each.
    for case in CASES.iter().filter(seen).filter(|case| case.layout != "cluster_size=512") {
        for (repair, name) in [(Repair::Leaks, "leaks"), (Repair::All, "all")] {
            let image = || damage(case, make_with(case.layout, Bitmaps::None));
            let (ours, theirs) = (image(), image());
            let found = numbers(&checked(&ours.path, repair));
            let Some(mut qemu) = qemu::check_numbers(&theirs.path, Some(name)) else { continue };
            qemu.retain(|_, n| *n > 0);
            let of = |numbers: &BTreeMap<String, u64>| {
                ["corruptions", "leaks", "corruptions-fixed", "leaks-fixed"]
                    .map(|name| numbers.get(name).copied().unwrap_or(0))
            };
            if repair == Repair::All && qemu.contains_key("corruptions") {
                // More is repaired here: COPIED of compressed clusters.
                continue;
            }
            assert_eq!(of(&found), of(&qemu), "{}, -r {name}", case.name);
            compared += 1;
        }
    }
    assert!(compared > 10, "{compared} repairs compared");
}

/// A dirty image: refcounts that were never written, and a snapshot that shares clusters.
fn dirty() -> Made {
    let case = CASES.iter().find(|case| case.name.starts_with("dirty,")).expect("a case of that name");
    damaged(case)
}

#[test]
fn a_dirty_image_is_read_as_it_is_and_repaired_before_it_is_written() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let made = dirty();
    let before = fs::read(&made.path).unwrap();
    let shown = contents(&made);
    let image = images::open(&made.path, false).unwrap();
    let mut found = vec![0; 8 << 20];
    image.read(&mut found, 0).unwrap();
    image.close().unwrap();
    assert!(Some(&found) == shown[0].as_ref().ok());
    assert!(fs::read(&made.path).unwrap() == before, "opened for reading, and changed");
    let image = images::open(&made.path, true).unwrap();
    image.write(&vec![9; 70_000], 4 << 20).unwrap();
    image.close().unwrap();
    drop(image);
    found[4 << 20..(4 << 20) + 70_000].fill(9);
    let after = contents(&made);
    assert!(Some(&found) == after[0].as_ref().ok() && shown[1..] == after[1..]);
    oracle::check(&fs::read(&made.path).unwrap()).assert_clean();
    qemu::assert_clean(&made.path);
}

#[test]
fn a_dirty_image_that_cannot_be_made_right_is_not_opened_for_writing() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let made = dirty();
    let mut patient = Patient { bytes: fs::read(&made.path).unwrap() };
    patient.change(patient.l2(OWN + 0x10000), |word| word | 1 << 5);
    fs::write(&made.path, &patient.bytes).unwrap();
    let shown = contents(&made);
    let error = images::open(&made.path, true).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(error.path(), Some(&*made.path));
    assert!(shown == contents(&made), "the content has changed");
    images::open(&made.path, false).unwrap().close().unwrap();
}

#[test]
fn an_encryption_header_is_no_leak_and_needs_no_secret() {
    if !qemu::qemu_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let name = path.to_str().unwrap();
    qemu::img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=abc",
        "-o",
        options,
        name,
        "4M",
    ]);
    let before = fs::read(&path).unwrap();
    for repair in [Repair::None, Repair::Leaks, Repair::All] {
        let report = checked(&path, repair);
        assert!(report.is_clean() && report.findings.is_empty(), "{:#?}", report.findings);
        assert!(fs::read(&path).unwrap() == before, "{repair:?} wrote to a clean image");
    }
}
