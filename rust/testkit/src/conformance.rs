//! The contract of [`Storage`] as tests that every storage runs.
//!
//! [`conformance!`](crate::conformance!) makes a module with one test for each check. The factory gives a new, empty,
//! writable storage that can be resized. Offsets and lengths are counted in the storage's own request alignment, so
//! that direct I/O runs the same checks.

use std::ops::{Deref, DerefMut};

use imago_core::storage::file::File;
use imago_core::storage::{Offload, RawRange, Storage, ZeroMode};
use imago_core::{ErrorKind, IoVector, IoVectorMut, StorageOpenOptions};

use crate::rng::Rng;

/// Makes a new, empty, writable storage.
pub type Factory<'a> = &'a dyn Fn() -> Box<dyn Storage>;

/// One test for each check of the contract, or of those listed, in a module of that name.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $factory:expr) => {
        $crate::conformance!(
            $name,
            $factory,
            [
                new_storage_is_empty,
                agrees_with_a_plain_array,
                reads_past_the_end_are_zeroes,
                a_write_past_the_end_grows,
                an_impossible_write_has_no_effect,
                many_regions,
                empty_requests,
                zeroes_keep_the_length,
                discard_leaves_old_bytes_or_zeroes,
                allocating_changes_no_byte,
                growing_never_cuts,
                what_was_cut_off_is_gone,
                reads_without_waiting_are_right,
                runs_cover_the_data,
                what_is_copied_from_a_file_is_its_bytes,
                misaligned_requests_are_refused,
                threads_share_it,
                racing_writes_mix_only_what_was_written,
                sync_any_time,
            ]
        );
    };
    ($name:ident, $factory:expr, [$($check:ident),* $(,)?]) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $check() {
                    $crate::conformance::$check(&$factory);
                }
            )*
        }
    };
}

/// Memory that starts where the storage wants it.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` bytes of 0xee, aligned for `storage`.
    pub fn new(storage: &dyn Storage, len: usize) -> Self {
        let align = storage.limits().memory_alignment as usize;
        let memory = vec![0xee; len + align];
        let start = memory.as_ptr().align_offset(align);
        Buffer { memory, start, len }
    }

    /// Random bytes, none of them zero.
    pub fn random(storage: &dyn Storage, len: usize, rng: &mut Rng) -> Self {
        let mut buffer = Self::new(storage, len);
        rng.fill(&mut buffer);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}

fn unit(storage: &dyn Storage) -> usize {
    storage.limits().request_alignment as usize
}

fn read(storage: &dyn Storage, offset: usize, len: usize) -> Buffer {
    let mut buffer = Buffer::new(storage, len);
    storage.readv_at((&mut *buffer).into(), offset as u64).expect("read");
    buffer
}

fn write(storage: &dyn Storage, offset: usize, bytes: &Buffer) {
    storage.writev_at((&**bytes).into(), offset as u64).expect("write");
}

fn content(storage: &dyn Storage) -> Vec<u8> {
    let len = usize::try_from(storage.len().expect("len")).expect("a small storage");
    let mut bytes = read(storage, 0, len.next_multiple_of(unit(storage))).to_vec();
    bytes.truncate(len);
    bytes
}

/// Shows the first difference only, not megabytes.
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if let Some(at) = found.iter().zip(expected).position(|(f, e)| f != e) {
        panic!("{what}: byte {at} is {:#04x}, not {:#04x}", found[at], expected[at]);
    }
}

/// Bytes of a file that it takes over without reading them are those of the file; all else stays.
pub fn what_is_copied_from_a_file_is_its_bytes(new: Factory<'_>) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("source");
    let mut bytes = vec![0; 300_000];
    Rng::new(5).fill(&mut bytes);
    std::fs::write(&path, &bytes).expect("a file");
    let source = File::open_sync(StorageOpenOptions::new().filename(&path)).expect("open");
    for how in [Offload::Share, Offload::Copy] {
        for (from, to, len) in [
            (0, 0, 300_000),
            (8192, 4096, 65536),
            (4096, 0, 100_000),
            (100, 777, 5000),
            (299_000, 0, 5000),
            (0, 0, 0),
        ] {
            let storage = &*new();
            write(storage, 0, &Buffer::random(storage, 100 * 4096, &mut Rng::new(9)));
            let mut model = content(storage);
            let (fd, offset) = source.raw_fd(from, len).expect("a file has one");
            let done = storage.copy_from(RawRange { fd, offset, len }, to, how);
            assert!(done <= len && from + done <= bytes.len() as u64, "{done} of {len} bytes");
            let (from, to, done) = (from as usize, to as usize, done as usize);
            model[to..to + done].copy_from_slice(&bytes[from..from + done]);
            assert_same(&content(storage), &model, &format!("{how:?}: {len} bytes from {from} to {to}"));
        }
    }
}

/// It starts with no bytes, and says that it can be written and resized.
pub fn new_storage_is_empty(new: Factory<'_>) {
    let storage = new();
    assert_eq!(storage.len().expect("len"), 0);
    assert!(storage.is_empty().expect("is_empty"));
    let capabilities = storage.capabilities();
    assert!(capabilities.write && capabilities.resize);
    let limits = storage.limits();
    assert!(limits.request_alignment.is_power_of_two() && limits.memory_alignment.is_power_of_two());
}

/// A long random sequence of requests has the effect it has on a byte array.
pub fn agrees_with_a_plain_array(new: Factory<'_>) {
    const UNITS: u64 = 300;
    for seed in 0..4 {
        let storage = &*new();
        let unit = unit(storage);
        let mut rng = Rng::new(seed);
        let mut model = Vec::<u8>::new();
        for step in 0..250 {
            let offset = rng.below(UNITS) as usize * unit;
            let len = rng.below(64) as usize * unit;
            let inside = offset.min(model.len())..(offset + len).min(model.len());
            let what = format!("seed {seed}, step {step}, {len} bytes at {offset}");
            match rng.below(10) {
                0..4 => {
                    let bytes = Buffer::random(storage, len, &mut rng);
                    write(storage, offset, &bytes);
                    if len > 0 {
                        model.resize(model.len().max(offset + len), 0);
                        model[offset..offset + len].copy_from_slice(&bytes);
                    }
                }
                4..7 => {
                    let mut expected = model[inside].to_vec();
                    expected.resize(len, 0);
                    assert_same(&read(storage, offset, len), &expected, &what);
                }
                7 => {
                    let mode = if rng.chance(2) { ZeroMode::Keep } else { ZeroMode::Unmap };
                    storage.write_zeroes_at(offset as u64, len as u64, mode).expect(&what);
                    model[inside].fill(0);
                }
                8 => {
                    storage.discard_at(offset as u64, len as u64).expect(&what);
                    let found = content(storage);
                    assert_eq!(found.len(), model.len(), "{what}");
                    for at in inside {
                        assert!(found[at] == model[at] || found[at] == 0, "{what}: discarded byte {at}");
                        model[at] = found[at];
                    }
                }
                _ => {
                    // Any length, not only whole units.
                    let len = rng.below(UNITS * unit as u64) as usize;
                    storage.set_len(len as u64).expect(&what);
                    model.resize(len, 0);
                }
            }
            assert_eq!(storage.len().expect("len"), model.len() as u64, "{what}");
        }
        assert_same(&content(storage), &model, &format!("seed {seed}, at the end"));
    }
}

/// Reads that pass the end, or start behind it at whatever distance, are whole and zero there.
pub fn reads_past_the_end_are_zeroes(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let bytes = Buffer::random(storage, 3 * unit, &mut Rng::new(1));
    write(storage, 0, &bytes);
    let found = read(storage, unit, 5 * unit);
    assert_same(&found[..2 * unit], &bytes[unit..], "inside");
    assert_same(&found[2 * unit..], &vec![0; 3 * unit], "behind the end");

    let highest = u64::MAX - (u64::MAX % unit as u64);
    let signed = i64::MAX as u64 - (i64::MAX as u64 % unit as u64);
    for offset in [3 * unit as u64, 1 << 40, signed - unit as u64, signed, signed + unit as u64, highest] {
        let mut buffer = Buffer::new(storage, 2 * unit);
        storage.readv_at((&mut *buffer).into(), offset).expect("a read behind the end");
        assert_same(&buffer, &vec![0; 2 * unit], "far behind the end");
    }
    assert_eq!(storage.len().expect("len"), 3 * unit as u64, "reading changes no length");
}

/// A write past the end makes the storage longer; what was skipped reads as zeroes.
pub fn a_write_past_the_end_grows(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let bytes = Buffer::random(storage, 2 * unit, &mut Rng::new(2));
    write(storage, 100 * unit, &bytes);
    assert_eq!(storage.len().expect("len"), 102 * unit as u64);
    assert_same(&read(storage, 0, 100 * unit), &vec![0; 100 * unit], "skipped");
    write(storage, 101 * unit, &bytes);
    assert_eq!(storage.len().expect("len"), 103 * unit as u64);
    assert_same(&read(storage, 100 * unit, unit), &bytes[..unit], "kept");
    assert_same(&read(storage, 101 * unit, 2 * unit), &bytes, "straddling");
}

/// A write whose end no offset can name fails and changes nothing.
pub fn an_impossible_write_has_no_effect(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let bytes = Buffer::random(storage, 2 * unit, &mut Rng::new(3));
    write(storage, 0, &bytes);
    let highest = u64::MAX - (u64::MAX % unit as u64);
    storage.writev_at((&*bytes).into(), highest).expect_err("a write past all offsets");
    assert_same(&content(storage), &bytes, "afterwards");
}

/// Vectors of more regions than one system call takes are written and read whole.
pub fn many_regions(new: Factory<'_>) {
    const REGIONS: usize = 2500;
    let storage = &*new();
    let unit = unit(storage);
    let bytes = Buffer::random(storage, REGIONS * unit, &mut Rng::new(4));
    let vector: IoVector<'_> = bytes.chunks(unit).collect();
    storage.writev_at(vector, unit as u64).expect("write");
    assert_eq!(storage.len().expect("len"), ((REGIONS + 1) * unit) as u64);

    let mut found = Buffer::new(storage, (REGIONS + 7) * unit);
    let vector: IoVectorMut<'_> = found.chunks_mut(unit).collect();
    storage.readv_at(vector, unit as u64).expect("read");
    assert_same(&found[..REGIONS * unit], &bytes, "read in regions");
    assert_same(&found[REGIONS * unit..], &vec![0; 7 * unit], "regions behind the end");

    // Regions of different lengths.
    let mut found = Buffer::new(storage, 60 * unit);
    let (first, rest) = found.split_at_mut(unit);
    let (second, third) = rest.split_at_mut(40 * unit);
    let vector: IoVectorMut<'_> = [first, second, third].into_iter().collect();
    storage.readv_at(vector, 2 * unit as u64).expect("read");
    assert_same(&found, &bytes[unit..61 * unit], "regions of different lengths");
}

/// Requests of no bytes succeed anywhere and do nothing.
pub fn empty_requests(new: Factory<'_>) {
    let storage = &*new();
    for offset in [0, 1 << 20] {
        storage.readv_at(IoVectorMut::new(), offset).expect("read");
        assert_eq!(storage.try_readv_at(IoVectorMut::new(), offset).expect("try_read"), 0);
        storage.writev_at(IoVector::new(), offset).expect("write");
        storage.write_zeroes_at(offset, 0, ZeroMode::Keep).expect("zeroes");
        storage.write_zeroes_at(offset, 0, ZeroMode::Unmap).expect("zeroes");
        storage.discard_at(offset, 0).expect("discard");
        assert_eq!(storage.len().expect("len"), 0);
    }
}

/// Zeroing zeroes its range and nothing else; what lies behind the end is ignored.
pub fn zeroes_keep_the_length(new: Factory<'_>) {
    for mode in [ZeroMode::Keep, ZeroMode::Unmap] {
        let storage = &*new();
        let unit = unit(storage);
        let units = 1000;
        let mut expected = Buffer::random(storage, units * unit, &mut Rng::new(5));
        write(storage, 0, &expected);
        let highest = u64::MAX - (u64::MAX % unit as u64);
        for (from, len) in [(1, 1), (7, 300), (500, 1), (990, 20), (1000, 5), (1 << 30, 5)] {
            let (from, len) = (from * unit, len * unit);
            storage.write_zeroes_at(from as u64, len as u64, mode).expect("zeroes");
            let (from, to) = (from.min(expected.len()), (from + len).min(expected.len()));
            expected[from..to].fill(0);
            assert_same(&content(storage), &expected, &format!("{mode:?} of {len} bytes"));
        }
        storage
            .write_zeroes_at((980 * unit) as u64, highest, mode)
            .expect("zeroes to the end of all offsets");
        expected[980 * unit..].fill(0);
        assert_same(&content(storage), &expected, "zeroes without an end");

        // A length that is no multiple of the alignment is kept as well.
        storage.set_len((20 * unit + 1) as u64).expect("set_len");
        storage.write_zeroes_at((19 * unit) as u64, (10 * unit) as u64, mode).expect("zeroes");
        expected[19 * unit..].fill(0);
        assert_same(&content(storage), &expected[..=20 * unit], "an odd length");
    }
}

/// Discarding touches nothing but its range, and keeps the promise of `discard_zeroes`.
pub fn discard_leaves_old_bytes_or_zeroes(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let before = Buffer::random(storage, 400 * unit, &mut Rng::new(6));
    write(storage, 0, &before);
    for (from, len) in [(0, 64), (100, 1), (200, 100), (390, 50), (500, 10)] {
        let (from, len) = (from * unit, len * unit);
        let promised = storage.capabilities().discard_zeroes;
        storage.discard_at(from as u64, len as u64).expect("discard");
        let found = content(storage);
        assert_eq!(found.len(), before.len());
        for at in from.min(found.len())..(from + len).min(found.len()) {
            assert!(found[at] == 0 || (!promised && found[at] == before[at]), "byte {at}");
        }
    }
    for kept in [64..100, 101..200, 300..390] {
        let kept = kept.start * unit..kept.end * unit;
        assert_same(&read(storage, kept.start, kept.len()), &before[kept], "not discarded");
    }
}

/// Space that is set aside takes up space and shows nothing; what was written there stays, and so does the length.
pub fn allocating_changes_no_byte(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let bytes = Buffer::random(storage, 100 * unit, &mut Rng::new(10));
    write(storage, 50 * unit, &bytes);
    let len = (8 << 20) + unit / 2;
    storage.set_len(len as u64).expect("set_len");
    // Any offset and length will do, and what lies past the end is ignored.
    match storage.allocate_at(1, 2 * len as u64) {
        Ok(()) => {
            let allocated = storage.allocated().expect("allocated");
            assert!(allocated.is_none_or(|bytes| bytes >= len as u64), "{allocated:?}");
            storage.allocate_at(u64::MAX - 5, 4).expect("far past the end");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
    }
    assert_eq!(storage.len().expect("len"), len as u64);
    assert_same(&read(storage, 0, 50 * unit), &vec![0; 50 * unit], "before the data");
    assert_same(&read(storage, 50 * unit, 100 * unit), &bytes, "the data");
    assert_same(&read(storage, 150 * unit, 100 * unit), &vec![0; 100 * unit], "behind the data");
}

/// Growing makes a storage longer, with zeroes, and never shorter.
pub fn growing_never_cuts(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let bytes = Buffer::random(storage, 10 * unit, &mut Rng::new(12));
    write(storage, 0, &bytes);
    let end = 10 * unit as u64;
    storage.grow(end - unit as u64).expect("grow");
    assert_eq!(storage.len().expect("len"), end);
    storage.grow(end + unit as u64).expect("grow");
    assert_eq!(storage.len().expect("len"), end + unit as u64);
    assert_same(&read(storage, 0, 10 * unit), &bytes, "the data");
    assert_same(&read(storage, 10 * unit, unit), &vec![0; unit], "behind the data");
}

/// Cutting and growing again shows zeroes, in the last unit too.
pub fn what_was_cut_off_is_gone(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let bytes = Buffer::random(storage, 200 * unit, &mut Rng::new(7));
    write(storage, 0, &bytes);
    let cut = 10 * unit + unit / 2;
    storage.set_len(cut as u64).expect("shrink");
    assert_eq!(storage.len().expect("len"), cut as u64);
    assert_same(&content(storage), &bytes[..cut], "what is left");
    storage.set_len((300 * unit) as u64).expect("grow");
    let found = content(storage);
    assert_eq!(found.len(), 300 * unit);
    assert_same(&found[..cut], &bytes[..cut], "kept");
    assert_same(&found[cut..], &vec![0; 300 * unit - cut], "grown");
    storage.set_len(0).expect("empty it");
    assert!(storage.is_empty().expect("is_empty"));
}

/// What a read that does not wait has filled is right; how much that is, is its own affair.
pub fn reads_without_waiting_are_right(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let bytes = Buffer::random(storage, 100 * unit, &mut Rng::new(8));
    write(storage, 0, &bytes);
    for (from, len) in [(0, 100), (3, 1), (50, 49), (90, 20), (100, 1), (5000, 3)] {
        let mut expected: Vec<u8> = bytes.iter().copied().skip(from * unit).take(len * unit).collect();
        expected.resize(len * unit, 0);
        for _ in 0..4 {
            let mut buffer = Buffer::new(storage, len * unit);
            let vector: IoVectorMut<'_> = buffer.chunks_mut(unit * 7).collect();
            let filled = storage.try_readv_at(vector, (from * unit) as u64).expect("try_read");
            assert!(filled <= len * unit);
            assert_same(&buffer[..filled], &expected[..filled], &format!("{len} units at {from}"));
        }
    }
    let mut buffer = Buffer::new(storage, unit);
    let far = u64::MAX - (u64::MAX % unit as u64);
    let filled = storage.try_readv_at((&mut *buffer).into(), far).expect("try_read far behind the end");
    assert!(buffer[..filled].iter().all(|byte| *byte == 0));
}

/// Runs follow one another without an end in sight before the length, and no hole hides data.
pub fn runs_cover_the_data(new: Factory<'_>) {
    let storage = &*new();
    let mib = 1 << 20;
    let bytes = Buffer::random(storage, mib, &mut Rng::new(9));
    write(storage, mib, &bytes);
    write(storage, 5 * mib, &bytes);
    storage.set_len(8 * mib as u64).expect("set_len");
    let len = storage.len().expect("len");
    let found = content(storage);
    let mut at = 0;
    while at < len {
        let run = storage.run_at(at, len - at).expect("run_at");
        assert!(run.len > 0 && run.len <= len - at, "{run:?} at {at}");
        if !run.data {
            assert!(
                found[at as usize..(at + run.len) as usize].iter().all(|byte| *byte == 0),
                "{run:?} at {at}"
            );
        }
        at += run.len;
    }
    let short = storage.run_at(mib as u64 + 1, 10).expect("run_at");
    assert!(short.data && short.len <= 10, "{short:?}");
    if let Some(allocated) = storage.allocated().expect("allocated") {
        assert!(allocated >= 2 * mib as u64, "{allocated} bytes allocated for 2 MiB of data");
    }
}

/// Requests that miss the alignment are errors and change nothing.
pub fn misaligned_requests_are_refused(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let limits = storage.limits();
    let before = Buffer::random(storage, 8 * unit, &mut Rng::new(10));
    write(storage, 0, &before);
    let other = Buffer::random(storage, 4 * unit, &mut Rng::new(11));
    let mut space = Buffer::new(storage, 4 * unit);
    let refused = |result: imago_core::Result<()>, what: &str| {
        assert_eq!(result.expect_err(what).kind(), ErrorKind::InvalidInput, "{what}");
        assert_same(&content(storage), &before, what);
    };
    if unit > 1 {
        let half = unit / 2;
        refused(storage.writev_at((&other[..unit]).into(), half as u64), "offset of a write");
        refused(storage.writev_at((&other[..half]).into(), 0), "length of a write");
        let halves: IoVector<'_> = [&other[..half], &other[unit..unit + half]].into_iter().collect();
        refused(storage.writev_at(halves, 0), "lengths of regions");
        refused(storage.readv_at((&mut space[..unit]).into(), half as u64), "offset of a read");
        refused(storage.readv_at((&mut space[..half]).into(), 0), "length of a read");
        for mode in [ZeroMode::Keep, ZeroMode::Unmap] {
            refused(storage.write_zeroes_at(half as u64, unit as u64, mode), "offset of zeroes");
            refused(storage.write_zeroes_at(0, half as u64, mode), "length of zeroes");
        }
        refused(storage.discard_at(half as u64, unit as u64), "offset of a discard");
        refused(storage.discard_at(0, half as u64), "length of a discard");
    }
    if limits.memory_alignment > 1 {
        refused(storage.writev_at((&other[1..=unit]).into(), 0), "memory of a write");
        refused(storage.readv_at((&mut space[1..=unit]).into(), 0), "memory of a read");
    }
}

/// Threads that write and read back each their own part, growing it on the way, do not see one another.
pub fn threads_share_it(new: Factory<'_>) {
    const THREADS: usize = 4;
    let storage = &*new();
    let unit = unit(storage);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut rng = Rng::new(thread as u64);
                for round in 0..200 {
                    let at = (rng.below(100) as usize * THREADS + thread) * 3 * unit;
                    let bytes = Buffer::random(storage, 3 * unit, &mut rng);
                    write(storage, at, &bytes);
                    assert_same(&read(storage, at, 3 * unit), &bytes, "a thread's own bytes");
                    match round % 20 {
                        5 => {
                            storage
                                .write_zeroes_at(at as u64, 3 * unit as u64, ZeroMode::Unmap)
                                .expect("zeroes");
                            assert_same(
                                &read(storage, at, 3 * unit),
                                &vec![0; 3 * unit],
                                "a thread's own zeroes",
                            );
                        }
                        10 => storage.sync().expect("sync"),
                        _ => {}
                    }
                }
            });
        }
    });
}

/// Of writes that race on one place every byte comes from one of them.
pub fn racing_writes_mix_only_what_was_written(new: Factory<'_>) {
    let storage = &*new();
    let unit = unit(storage);
    let len = 16 * unit;
    let bytes = |value: u8| {
        let mut bytes = Buffer::new(storage, len);
        bytes.fill(value);
        bytes
    };
    write(storage, 0, &bytes(1));
    std::thread::scope(|scope| {
        for value in 2..5 {
            scope.spawn(move || {
                let bytes = bytes(value);
                for _ in 0..100 {
                    write(storage, 0, &bytes);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..200 {
                let found = read(storage, 0, len);
                assert!(found.iter().all(|value| (1..5).contains(value)));
            }
        });
    });
    assert!(content(storage).iter().all(|value| (2..5).contains(value)), "all writers had their turn");
}

/// Syncing succeeds when there is nothing to sync, and again, and changes no byte.
pub fn sync_any_time(new: Factory<'_>) {
    let storage = &*new();
    storage.sync().expect("sync of an empty storage");
    let unit = unit(storage);
    let bytes = Buffer::random(storage, 5 * unit, &mut Rng::new(12));
    write(storage, 0, &bytes);
    storage.sync().expect("sync");
    storage.sync().expect("sync once more");
    storage.set_len(4 * unit as u64).expect("set_len");
    storage.sync().expect("sync of a new length");
    assert_same(&content(storage), &bytes[..4 * unit], "afterwards");
}
