//! A disk as a plain array of bytes, scripts of operations for it, and what an image must show after them.

use std::ops::Range;

use imago_core::access::image::Image;
use imago_core::access::pack::CompressionLevel;
use imago_core::format::ZeroIntent;
use proptest::prelude::*;

/// What scripts aim at: the edges of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Bytes of a subcluster; a cluster's without them.
    pub subcluster: u64,
    /// Guest bytes that one L2 table maps.
    pub table: u64,
    /// Compressed clusters can be written.
    pub compresses: bool,
}

/// One operation on a disk; offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the operations' arguments")]
pub enum Op {
    Read { offset: u64, len: u64 },
    Write { offset: u64, len: u64, seed: u8 },
    WriteCompressed { offset: u64, len: u64, seed: u8 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
    Discard { offset: u64, len: u64 },
    Flush,
    Reopen,
}

/// The bytes that a write with that seed puts at `offset`; seed 0 writes zeroes.
pub fn pattern(seed: u8, offset: u64, len: u64) -> Vec<u8> {
    let byte =
        |at: u64| (at ^ at >> 8 ^ at >> 16).wrapping_mul(31).wrapping_add(u64::from(seed) * 97) as u8 | 1;
    if seed == 0 { vec![0; len as usize] } else { (offset..offset + len).map(byte).collect() }
}

/// What a compressed write with that seed puts at `offset`: bytes of which most clusters pack well, some do not, and
/// some are zeroes.
pub fn packable(seed: u8, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = pattern(seed, offset, len);
    if !seed.is_multiple_of(4) {
        for (run, at) in bytes.chunks_mut(24).zip((offset..).step_by(24)) {
            run.fill(pattern(seed, at / 24, 1)[0]);
        }
    }
    bytes
}

/// Ranges inside the disk, biased to start or end at, or just beside, an edge.
fn range(geometry: Geometry) -> impl Strategy<Value = (u64, u64)> {
    let Geometry { size, cluster, subcluster, table, .. } = geometry;
    let unit = prop_oneof![1 => Just(512), 4 => Just(subcluster), 4 => Just(cluster), 2 => Just(table), 1 => Just(1)];
    let point =
        (unit, any::<prop::sample::Index>(), prop_oneof![3 => Just(0i64), 1 => -2i64..3, 1 => -600i64..600])
            .prop_map(move |(unit, index, beside)| {
                let edge = index.index((size / unit + 1) as usize) as u64 * unit;
                edge.saturating_add_signed(beside).min(size)
            });
    let longest = (4 * cluster).max(table + cluster).min(512 * 1024).max(cluster + 600);
    let len = prop_oneof![1..1025u64, Just(subcluster), Just(cluster), Just(2 * cluster), 1..longest];
    prop_oneof![
        (point.clone(), len).prop_map(|(start, len)| (start, len)),
        (point.clone(), point).prop_map(move |(a, b)| (a.min(b), a.abs_diff(b).min(longest))),
    ]
    .prop_map(move |(start, len)| (start, len.min(size - start)))
}

/// Ranges of whole clusters; the disk's end is one's end too.
fn clusters(geometry: Geometry) -> impl Strategy<Value = (u64, u64)> {
    let Geometry { size, cluster, .. } = geometry;
    (any::<prop::sample::Index>(), 1..6u64).prop_map(move |(index, count)| {
        let start = index.index(size.div_ceil(cluster) as usize) as u64 * cluster;
        (start, (count * cluster).min(size - start))
    })
}

/// A script for a disk of that geometry.
pub fn script(geometry: Geometry, ops: Range<usize>) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => range(geometry).prop_map(|(offset, len)| Op::Read { offset, len }),
        8 => (range(geometry), any::<u8>()).prop_map(|((offset, len), seed)| Op::Write { offset, len, seed }),
        if geometry.compresses { 5 } else { 0 } => (clusters(geometry), any::<u8>())
            .prop_map(|((offset, len), seed)| Op::WriteCompressed { offset, len, seed }),
        4 => (range(geometry), any::<bool>())
            .prop_map(|((offset, len), unmap)| Op::WriteZeroes { offset, len, unmap }),
        3 => range(geometry).prop_map(|(offset, len)| Op::Discard { offset, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, ops)
}

/// What a disk must read as.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its bytes.
    pub bytes: Vec<u8>,
    geometry: Geometry,
    /// Whole clusters that are discarded read as zeroes; otherwise they keep what they show.
    discards_zero: bool,
}

impl Model {
    /// A disk that shows `bytes` now. `discards_zero` is false for version 2 over a backing file: there a
    /// discarded cluster would let old data of the backing file show, so that it is left alone.
    pub fn new(bytes: Vec<u8>, geometry: Geometry, discards_zero: bool) -> Self {
        Model { bytes, geometry, discards_zero }
    }

    /// The guest range of a discard that must read as zeroes afterwards: its whole clusters; the disk's last
    /// one is whole where the discard reaches its end.
    pub fn discarded(&self, offset: u64, len: u64) -> Range<usize> {
        let Geometry { size, cluster, .. } = self.geometry;
        let start = offset.next_multiple_of(cluster).min(size);
        let end = if offset + len == size { size } else { (offset + len) / cluster * cluster };
        if self.discards_zero { start as usize..end.max(start) as usize } else { 0..0 }
    }

    /// Changes the bytes as `op` would, where that is certain; a discard's ragged ends stay as they are.
    pub fn change(&mut self, op: &Op) {
        match *op {
            Op::Write { offset, len, seed } => {
                self.bytes[offset as usize..(offset + len) as usize]
                    .copy_from_slice(&pattern(seed, offset, len));
            }
            Op::WriteCompressed { offset, len, seed } => {
                self.bytes[offset as usize..(offset + len) as usize]
                    .copy_from_slice(&packable(seed, offset, len));
            }
            Op::WriteZeroes { offset, len, .. } => {
                self.bytes[offset as usize..(offset + len) as usize].fill(0);
            }
            Op::Discard { offset, len } => {
                let range = self.discarded(offset, len);
                self.bytes[range].fill(0);
            }
            Op::Read { .. } | Op::Flush | Op::Reopen => {}
        }
    }

    /// Does `op` to both; reads compare. [`Op::Reopen`] is the caller's, here it flushes.
    pub fn apply(&mut self, image: &Image, op: &Op) -> Result<(), String> {
        run(image, op).map_err(|e| format!("{op:?}: {e}"))?;
        self.change(op);
        match *op {
            Op::Read { offset, len } => self.compare(image, offset, len),
            // Parts of clusters may be zeroed or left: whichever it was stays.
            Op::Discard { offset, len } if len > 0 => self.settle(image, offset, len),
            _ => Ok(()),
        }
    }

    /// Reads a range of the image and compares.
    pub fn compare(&self, image: &Image, offset: u64, len: u64) -> Result<(), String> {
        let mut found = vec![0xa5; len as usize];
        image.read(&mut found, offset).map_err(|e| format!("read {len} at {offset}: {e}"))?;
        let wanted = &self.bytes[offset as usize..(offset + len) as usize];
        match found.iter().zip(wanted).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(i) => Err(format!("offset {:#x}: {:#x}, not {:#x}", offset + i as u64, found[i], wanted[i])),
        }
    }

    fn settle(&mut self, image: &Image, offset: u64, len: u64) -> Result<(), String> {
        let mut found = vec![0; len as usize];
        image.read(&mut found, offset).map_err(|e| format!("read after discard: {e}"))?;
        let whole = self.discarded(offset, len);
        for (at, &byte) in (offset as usize..).zip(&found) {
            let zeroed_part = byte == 0 && self.discards_zero && !whole.contains(&at);
            if byte != self.bytes[at] && !zeroed_part {
                return Err(format!(
                    "after the discard, offset {at:#x} shows {byte:#x}, not {:#x}",
                    self.bytes[at]
                ));
            }
            self.bytes[at] = byte;
        }
        Ok(())
    }
}

/// Does `op` to an image. [`Op::Reopen`] is a flush here.
pub fn run(image: &Image, op: &Op) -> imago_core::Result<()> {
    match *op {
        Op::Read { offset, len } => image.read(&mut vec![0; len as usize], offset),
        Op::Write { offset, len, seed } => image.write(&pattern(seed, offset, len), offset),
        Op::WriteCompressed { offset, len, seed } => {
            image.write_compressed(&packable(seed, offset, len), offset, CompressionLevel::Default)
        }
        Op::WriteZeroes { offset, len, unmap } => {
            image.write_zeroes(offset, len, if unmap { ZeroIntent::Unmap } else { ZeroIntent::Keep })
        }
        Op::Discard { offset, len } => image.discard(offset, len),
        Op::Flush | Op::Reopen => image.flush(),
    }
}

/// The same script every time for one seed.
pub fn fixed_script(geometry: Geometry, ops: usize, seed: u8) -> Vec<Op> {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    script(geometry, ops..ops + 1).new_tree(&mut runner).expect("a script without conditions").current()
}
