//! Repairs that lose power or fail half-way: the guest's data stays, nothing gets worse, and the next repair ends what this one began.

use std::collections::BTreeMap;
use std::sync::Arc;

use imago_core::access::check::{CheckOptions, FindingKind, Repair, Report, check_storage};
use imago_core::access::image::Image;
use imago_core::access::job::Job;
use imago_core::format::{DirtyRange, FormatKind, Recording};
use imago_core::storage::memory::Memory;
use imago_core::{Result, Storage};
use imago_testkit::check as oracle;
use imago_testkit::images::{self, Config};
use imago_testkit::ops::fixed_script;
use imago_testkit::qcow2::Qcow2;
use imago_testkit::rng::Rng;
use imago_testkit::scaled;
use imago_testkit::sim::{Failing, SimStorage};

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The clusters of the image that has bitmaps, too.
const BITMAPS_IN: u32 = 10;

fn check(storage: Arc<dyn Storage>, repair: Repair) -> Result<Report> {
    let options = CheckOptions { format: Some(FormatKind::Qcow2), repair, ..CheckOptions::default() };
    check_storage(storage, options, &mut Job::default())
}

/// A damaged image and what is to be seen in it at any time.
struct Patient {
    bytes: Vec<u8>,
    content: Vec<u8>,
    /// The bitmaps that make sense: no others may be there at the end, and these with what they had.
    bitmaps: BTreeMap<String, Vec<DirtyRange>>,
    wrong: Wrong,
}

/// How many clusters have fewer references than users, and how much else but flags is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wrong {
    too_low: usize,
    others: usize,
}

impl Wrong {
    fn of(report: &Report) -> Self {
        let count = |wanted: fn(FindingKind) -> bool| {
            report.findings.iter().filter(|finding| wanted(finding.kind)).count()
        };
        Wrong {
            too_low: count(|kind| kind == FindingKind::RefcountTooLow),
            others: count(|kind| {
                use FindingKind::{Copied, Dirty, RefcountTooHigh, RefcountTooLow};
                !matches!(kind, Copied | Dirty | RefcountTooHigh | RefcountTooLow)
            }),
        }
    }
}

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: u64, word: u64) {
    bytes[at as usize..][..8].copy_from_slice(&word.to_be_bytes());
}

impl Patient {
    /// An image on which a script has run, and then `damage`.
    fn new(config: &Config, damage: impl FnOnce(&mut [u8])) -> Self {
        let built = config.build();
        let image = images::open(&built.path, true).unwrap();
        let mut model = config.model(&[]);
        for op in fixed_script(config.geometry(), 12, 200) {
            model.apply(&image, &op).unwrap();
        }
        let mut bitmaps = BTreeMap::new();
        if config.cluster_bits == BITMAPS_IN {
            for (name, granularity) in [("damaged", 512), ("sound", 1024), ("another", 4096)] {
                image.bitmaps().add(name, Some(granularity), Recording::Enabled).unwrap();
                image.write(&[granularity as u8; 700], granularity * 7).unwrap();
            }
            bitmaps = bitmaps_of(&image);
            bitmaps.remove("damaged").unwrap();
        }
        image.close().unwrap();
        drop(image);
        let mut bytes = std::fs::read(&built.path).unwrap();
        damage(&mut bytes);
        let content = Qcow2::parse(&bytes).unwrap().content(&[], None).unwrap();
        let report = check(Arc::new(Memory::from(bytes.clone())), Repair::None).unwrap();
        assert!(!report.is_clean() && report.findings.len() < 1000, "{}", report.corruptions);
        Patient { bytes, content, bitmaps, wrong: Wrong::of(&report) }
    }

    /// Looks at what a repair left half-done.
    fn verify(&self, bytes: &[u8]) -> std::result::Result<(), String> {
        if Qcow2::parse(bytes)?.content(&[], None)? != self.content {
            return Err("the content has changed".into());
        }
        let storage = Arc::new(Memory::from(bytes.to_vec()));
        let found = check(storage.clone(), Repair::None).map_err(|e| format!("check: {e}"))?;
        let wrong = Wrong::of(&found);
        if wrong.too_low > self.wrong.too_low || wrong.others > self.wrong.others {
            return Err(format!("{:?} became {wrong:?}", self.wrong));
        }
        let left = check(storage.clone(), Repair::All).map_err(|e| format!("repair: {e}"))?;
        if !left.is_clean() {
            return Err(format!("the next repair leaves {:#?}", left.findings));
        }
        let bytes = storage.to_vec().map_err(|e| e.to_string())?;
        let report = oracle::check(&bytes);
        if !report.corruptions.is_empty() || !report.leaks.is_empty() || report.dirty {
            return Err(report.to_string());
        }
        if Qcow2::parse(&bytes)?.content(&[], None)? != self.content {
            return Err("the content has changed in the next repair".into());
        }
        let image = images_open(storage)?;
        for (name, ranges) in bitmaps_of(&image) {
            if self.bitmaps.get(&name) != Some(&ranges) {
                return Err(format!("the bitmap {name:?} has {ranges:?}"));
            }
        }
        Ok(())
    }

    fn lose_power(&self, repair: Repair, broken: Option<u64>) -> std::result::Result<u64, String> {
        let sim = Arc::new(SimStorage::from(self.bytes.clone()));
        if let Some(nth) = broken {
            sim.break_sync(nth);
        }
        check(sim.clone(), repair).map_err(|e| e.to_string())?;
        for crash in sim.crash_images(7, scaled(60) as usize) {
            self.verify(&crash.media[0]).map_err(|e| format!("{crash:?}: {e}"))?;
        }
        Ok(sim.epoch())
    }

    fn fail_every_call(&self, repair: Repair) -> std::result::Result<(), String> {
        let sim = Arc::new(SimStorage::from(self.bytes.clone()));
        check(sim.clone(), repair).map_err(|e| e.to_string())?;
        let calls = sim.calls();
        for failing in [Failing::Once, Failing::Forever] {
            for nth in 0..calls {
                let sim = Arc::new(SimStorage::from(self.bytes.clone()));
                sim.fail_call(nth, failing);
                // Whether it succeeds or not: what it could not read or write it says.
                let _ = check(sim.clone(), repair);
                sim.heal();
                let name = format!("call {nth} of {calls} {failing:?}");
                self.verify(&sim.contents()).map_err(|e| format!("{name}: {e}"))?;
                for crash in sim.crash_images(nth, 2) {
                    self.verify(&crash.media[0]).map_err(|e| format!("{name}, {crash:?}: {e}"))?;
                }
            }
        }
        Ok(())
    }
}

fn bitmaps_of(image: &Image) -> BTreeMap<String, Vec<DirtyRange>> {
    let bitmaps = image.bitmaps();
    let names = bitmaps.list().unwrap().into_iter().map(|bitmap| bitmap.name);
    names.map(|name| (name.clone(), bitmaps.ranges(&name).unwrap().collect())).collect()
}

fn images_open(storage: Arc<Memory>) -> std::result::Result<Arc<Image>, String> {
    let options = imago_core::access::open::OpenOptions {
        write: true,
        format: Some(FormatKind::Qcow2),
        ..Default::default()
    };
    options.open_storage(storage).map_err(|e| format!("open: {e}"))
}

/// Refcounts of 16 bits and flags made wrong here and there.
fn damage_refcounts_and_flags(bytes: &mut [u8]) {
    let image = Qcow2::parse(bytes).unwrap();
    let (header, mut rng) = (image.header.clone(), Rng::new(5));
    let tables: Vec<u64> = image.active_l1().unwrap().iter().map(|word| word & OFFSET).collect();
    let stride = if header.extended_l2() { 16 } else { 8 };
    let block = image.refcount_table().unwrap()[0];
    for cluster in 0..header.cluster_size() / 2 {
        let at = (block + cluster * 2) as usize;
        let count = u16::from(bytes[at + 1]);
        let wrong = match (count, rng.below(8)) {
            (1, 0) => 0,
            (1, 1) => 3,
            (0, 2) if (cluster + 1) * header.cluster_size() < bytes.len() as u64 => 1,
            _ => count,
        };
        bytes[at + 1] = wrong as u8;
    }
    for table in tables.into_iter().filter(|table| *table != 0) {
        for at in (table..table + header.cluster_size()).step_by(stride) {
            let entry = word(bytes, at);
            if entry & OFFSET != 0 && rng.chance(4) {
                put(bytes, at, entry ^ COPIED);
            }
        }
    }
    put(bytes, 72, header.incompatible | 1);
}

/// The refcount table names no block that can be used.
fn break_refcount_table(bytes: &mut [u8]) {
    damage_refcounts_and_flags(bytes);
    let table = Qcow2::parse(bytes).unwrap().header.refcount_table_offset;
    let entry = word(bytes, table) | 8;
    put(bytes, table, entry);
}

fn only_leaks(bytes: &mut [u8]) {
    let image = Qcow2::parse(bytes).unwrap();
    let (block, size) = (image.refcount_table().unwrap()[0], image.header.cluster_size());
    for cluster in 0..size / 2 {
        let at = (block + cluster * 2) as usize;
        if (cluster + 1) * size < bytes.len() as u64 && bytes[at + 1] < 2 && cluster % 3 == 0 {
            bytes[at + 1] += 1;
        }
    }
}

/// Of one bitmap an entry of its table has reserved bits.
fn break_a_bitmap(bytes: &mut [u8]) {
    let table = Qcow2::parse(bytes).unwrap().bitmap("damaged").unwrap().table_offset;
    let entry = word(bytes, table) | 16;
    put(bytes, table, entry);
}

fn patients() -> Vec<(&'static str, Patient)> {
    let plain = Config::plain(9, 70_000);
    let subclusters = Config { extended_l2: true, ..Config::plain(14, 200_192) };
    vec![
        ("refcounts and flags", Patient::new(&plain, damage_refcounts_and_flags)),
        ("leaks", Patient::new(&Config::plain(12, 200_000), only_leaks)),
        ("leaks in small clusters", Patient::new(&plain, only_leaks)),
        ("one of three bitmaps", Patient::new(&Config::plain(BITMAPS_IN, 300_032), break_a_bitmap)),
        ("no refcount structures", Patient::new(&plain, break_refcount_table)),
        ("no refcount structures, with subclusters", Patient::new(&subclusters, break_refcount_table)),
    ]
}

#[test]
fn a_repair_that_loses_power_harms_nothing_and_can_be_done_again() {
    for (name, patient) in patients() {
        for repair in [Repair::Leaks, Repair::All] {
            if let Err(error) = patient.lose_power(repair, None) {
                panic!("{name}, {repair:?}: {error}");
            }
        }
    }
}

#[test]
fn a_repair_with_a_failing_call_harms_nothing_and_can_be_done_again() {
    for (name, patient) in patients() {
        for repair in [Repair::Leaks, Repair::All] {
            if let Err(error) = patient.fail_every_call(repair) {
                panic!("{name}, {repair:?}: {error}");
            }
        }
    }
}

/// No bitmap is sound at the end whose directory was torn while it was written.
#[test]
fn the_barriers_around_a_new_directory_of_bitmaps_are_missed() {
    let patient = Patient::new(&Config::plain(BITMAPS_IN, 300_032), break_a_bitmap);
    let syncs = patient.lose_power(Repair::All, None).unwrap();
    assert!((0..syncs).any(|nth| patient.lose_power(Repair::All, Some(nth)).is_err()), "of {syncs} barriers");
}

/// The harness is tested too. The header must not lead to blocks that are not there yet.
#[test]
fn the_barrier_before_new_refcount_structures_are_used_is_missed() {
    let patient = Patient::new(&Config::plain(9, 70_000), break_refcount_table);
    let syncs = patient.lose_power(Repair::All, None).unwrap();
    assert!((0..syncs).any(|nth| patient.lose_power(Repair::All, Some(nth)).is_err()), "of {syncs} barriers");
}
