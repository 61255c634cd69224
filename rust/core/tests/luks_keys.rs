//! Key slots: changed so that a loss of power at any time leaves the image open to somebody, and nothing of an erased key.

use std::sync::Arc;

use imago_core::access::keys::key_slots;
use imago_core::crypt::{CipherSpec, Cost, Mode, Options, Secret};
use imago_core::format::luks::{LastSlot, Volume, create, inspect};
use imago_core::storage::Storage;
use imago_core::storage::memory::Memory;
use imago_core::{ErrorKind, Result};
use imago_testkit::scaled;
use imago_testkit::sim::{CrashImage, Failing, SimStorage};

const COST: Cost = Cost::Iterations(1000);

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

/// An empty disk behind a header that "a" opens; the smallest key, as much is tried here.
fn image() -> Vec<u8> {
    let cipher = CipherSpec { key_bits: 128, mode: Mode::Cbc, ..Default::default() };
    let memory = Memory::new(0);
    create(&memory, 0, &Options { cipher, cost: COST, ..Options::new(secret("a")) }).unwrap();
    memory.to_vec().unwrap()
}

fn volume(bytes: Vec<u8>) -> Volume {
    Volume::open(Arc::new(Memory::from(bytes))).unwrap()
}

fn opens(bytes: &[u8], text: &str) -> bool {
    match volume(bytes.to_vec()).unlock(&secret(text)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WrongSecret => false,
        Err(error) => panic!("{error}"),
    }
}

fn is_active(bytes: &[u8], slot: usize) -> bool {
    inspect(&Memory::from(bytes.to_vec())).unwrap().0.slots[slot].active
}

/// `bytes` with the header's entry of a slot as `before` has it.
fn with_entry_of(bytes: &[u8], before: &[u8], slot: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let entry = 208 + 48 * slot..208 + 48 * (slot + 1);
    bytes[entry.clone()].copy_from_slice(&before[entry]);
    bytes
}

/// What a change leaves at a loss of power, one way or another.
type Judge = Box<dyn Fn(&CrashImage, &[u8]) -> bool>;

/// A change of the key slots and what has to hold of every crash image, given the bytes before it.
struct Case {
    name: &'static str,
    before: Vec<u8>,
    change: fn(&mut Volume) -> Result<()>,
    holds: Judge,
    barriers: u64,
}

fn add(volume: &mut Volume, slot: usize, text: &str) -> Result<()> {
    let unlocked = volume.unlock(&secret("a"))?;
    volume.add_key(&unlocked, &secret(text), Some(slot), COST).map(drop)
}

fn cases() -> Vec<Case> {
    let one = image();
    // Slot 6 lies in two sectors.
    let both = changed(one.clone(), |volume| add(volume, 6, "b"));
    vec![
        Case {
            name: "add",
            before: one.clone(),
            change: |volume| add(volume, 6, "b"),
            // Slot 6 is either not there or good.
            holds: Box::new(|image, _| {
                opens(&image.media[0], "a")
                    && is_active(&image.media[0], 6) == opens(&image.media[0], "b")
                    && (image.epoch < 2 || opens(&image.media[0], "b"))
            }),
            barriers: 2,
        },
        Case {
            name: "erase",
            before: both,
            change: |volume| volume.erase_slot(6, LastSlot::Keep),
            // Once the slot is inactive its old entry opens nothing.
            holds: Box::new(|image, before| {
                let gone = || !opens(&with_entry_of(&image.media[0], before, 6), "b");
                opens(&image.media[0], "a")
                    && (is_active(&image.media[0], 6) || gone())
                    && (image.epoch < 2 || !is_active(&image.media[0], 6))
            }),
            barriers: 2,
        },
        Case {
            name: "change",
            before: one,
            change: |volume| volume.change_key(&secret("a"), &secret("c"), COST).map(drop),
            holds: Box::new(|image, before| {
                let gone = || !opens(&with_entry_of(&image.media[0], before, 0), "a");
                let (a, c) = (opens(&image.media[0], "a"), opens(&image.media[0], "c"));
                (a || c)
                    && (is_active(&image.media[0], 0) || gone())
                    && is_active(&image.media[0], 1) == c
                    && (image.epoch < 4 || (c && !a && !is_active(&image.media[0], 0)))
            }),
            barriers: 4,
        },
    ]
}

fn changed(bytes: Vec<u8>, change: impl FnOnce(&mut Volume) -> Result<()>) -> Vec<u8> {
    let storage = Arc::new(Memory::from(bytes));
    change(&mut Volume::open(Arc::clone(&storage) as Arc<dyn Storage>).unwrap()).unwrap();
    storage.to_vec().unwrap()
}

/// The first crash image of which the case does not hold.
fn broken(case: &Case, broken_sync: Option<u64>, seed: u64, images: usize) -> Option<CrashImage> {
    let storage = Arc::new(SimStorage::from(case.before.clone()));
    let mut volume = Volume::open(Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
    if let Some(nth) = broken_sync {
        storage.break_sync(nth);
    }
    (case.change)(&mut volume).unwrap();
    assert_eq!(storage.epoch(), case.barriers, "{}", case.name);
    storage.crash_images(seed, images).find(|image| !(case.holds)(image, &case.before))
}

#[test]
fn every_crash_leaves_the_image_open_to_somebody() {
    for case in cases() {
        for seed in 0..scaled(2) {
            let image = broken(&case, None, seed, 12);
            assert!(image.is_none(), "{}, seed {seed}: {image:?}", case.name);
        }
    }
}

#[test]
fn every_barrier_is_needed() {
    for case in cases() {
        for nth in 0..case.barriers {
            let image = (0..8).find_map(|seed| broken(&case, Some(nth), seed, 12));
            assert!(image.is_some(), "{}: barrier {nth} is not missed", case.name);
        }
    }
}

#[test]
fn a_failing_call_leaves_the_image_open_and_nothing_is_written_after_it() {
    for case in cases() {
        for nth in 0.. {
            let storage = Arc::new(SimStorage::from(case.before.clone()));
            let mut volume = Volume::open(Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
            // Whether none or all of a failing write takes effect goes by the calls before; half of a sector is what no medium does.
            while (storage.calls() + nth).is_multiple_of(3) {
                storage.len().unwrap();
            }
            storage.fail_call(nth, Failing::Once);
            let result = (case.change)(&mut volume);
            let bytes = storage.contents();
            assert!(opens(&bytes, "a") || opens(&bytes, "c"), "{}, call {nth}", case.name);
            if result.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn what_is_refused_leaves_every_byte() {
    let before = image();
    let storage = Arc::new(Memory::from(before.clone()));
    let mut volume = Volume::open(Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
    let unlocked = volume.unlock(&secret("a")).unwrap();
    assert_eq!(unlocked.slot(), 0);
    let results = [
        (volume.add_key(&unlocked, &secret("b"), Some(0), COST).map(drop), ErrorKind::InvalidInput),
        (volume.add_key(&unlocked, &secret("b"), Some(8), COST).map(drop), ErrorKind::InvalidInput),
        (volume.add_key(&unlocked, &secret(""), None, COST).map(drop), ErrorKind::InvalidInput),
        (
            volume.add_key(&unlocked, &secret("b"), None, Cost::Iterations(1)).map(drop),
            ErrorKind::InvalidInput,
        ),
        (
            volume.add_key(&unlocked, &secret("b"), None, Cost::Iterations(1 << 31)).map(drop),
            ErrorKind::InvalidInput,
        ),
        (volume.change_key(&secret("x"), &secret("b"), COST).map(drop), ErrorKind::WrongSecret),
        (volume.erase_key(&secret("x"), LastSlot::Erase).map(drop), ErrorKind::WrongSecret),
        (volume.erase_key(&secret("a"), LastSlot::Keep).map(drop), ErrorKind::InvalidInput),
        (volume.erase_slot(0, LastSlot::Keep), ErrorKind::InvalidInput),
        (volume.erase_slot(9, LastSlot::Erase), ErrorKind::InvalidInput),
    ];
    for (number, (result, kind)) in results.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().kind(), kind, "number {number}");
    }
    assert_eq!(storage.to_vec().unwrap(), before);
}

#[test]
fn a_secret_of_several_slots_is_erased_from_all() {
    let both = changed(image(), |volume| {
        add(volume, 3, "a")?;
        add(volume, 4, "other")
    });
    let after = changed(both, |volume| {
        assert_eq!(volume.erase_key(&secret("a"), LastSlot::Keep)?, [0, 3]);
        Ok(())
    });
    assert!(!opens(&after, "a") && opens(&after, "other"));
    let none = changed(after, |volume| volume.erase_key(&secret("other"), LastSlot::Erase).map(drop));
    assert!(!opens(&none, "other"));
}

#[test]
fn an_image_without_key_slots_says_so() {
    let raw: Arc<dyn Storage> = Arc::new(Memory::new(4096));
    assert_eq!(key_slots(raw, None).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// Headers with bytes changed at random: an answer in little time, never a panic.
#[test]
fn broken_headers_are_errors_or_open_with_the_secret() {
    let good = image();
    let mut random = 7_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let (mut refused, mut opened) = (0, 0);
    for _ in 0..scaled(600) {
        let mut bytes = good.clone();
        for _ in 0..=next(3) {
            // Not the counts of iterations of this size: a minute of work for one header is what a header may ask.
            let at = next(592);
            bytes[at] = match next(3) {
                0 => 0,
                1 => 0xff,
                _ => bytes[at] ^ 1 << next(8),
            };
        }
        let too_long = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) > 1 << 16;
        if too_long(164) || too_long(212) {
            if let Ok(volume) = Volume::open(Arc::new(Memory::from(bytes))) {
                assert!(volume.info().slots[0].iterations <= 1 << 28);
            }
            continue;
        }
        match Volume::open(Arc::new(Memory::from(bytes))).and_then(|volume| volume.unlock(&secret("a"))) {
            Ok(_) => opened += 1,
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::Io, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 50 && opened > 50, "{refused} refused, {opened} opened");
}
