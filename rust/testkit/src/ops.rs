//! Operations on an open image, and scripts of them.
//!
//! A new operation is a variant of [`Op`] and a line or two in each of these, where the compiler asks for it:
//!
//! - [`Op::run`]: do it to the image;
//! - [`Op::change`]: what the [`View`](crate::model::View) is afterwards;
//! - [`Op::crash`]: how much of it a loss of power in the middle of it may leave;
//! - [`Op::fitted`]: if it depends on what is there (the disk's size, which snapshots there are);
//! - `any_op`: how often scripts have it, and with what. If not every image can take it, [`Geometry`] gets a field that says so.
//!
//! It is then part of the model test, of the differential test and of every test of power loss and failing storage.

use std::ops::Range;

use imago_core::access::image::Image;
use imago_core::access::pack::CompressionLevel;
use imago_core::format::preallocation::Preallocation;
use imago_core::format::{Recording, ZeroIntent};
use proptest::prelude::*;
use proptest::strategy::Union;

use crate::model::{Bitmap, Geometry, Model, packable, pattern};
use crate::rng::by_seed;

/// One operation on an image; offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the operations' arguments")]
pub enum Op {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
        seed: u8,
    },
    /// Of whole clusters.
    WriteCompressed {
        offset: u64,
        len: u64,
        seed: u8,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        unmap: bool,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    TakeSnapshot {
        name: u8,
    },
    ApplySnapshot {
        index: usize,
    },
    DeleteSnapshot {
        index: usize,
    },
    RenameSnapshot {
        index: usize,
        name: u8,
    },
    Resize {
        size: u64,
    },
    AddBitmap {
        name: u8,
        enabled: bool,
    },
    RemoveBitmap {
        index: usize,
    },
    ClearBitmap {
        index: usize,
    },
    RecordBitmap {
        index: usize,
        enabled: bool,
    },
    MergeBitmap {
        index: usize,
        source: usize,
    },
    Flush,
    Reopen,
}

/// What a loss of power leaves of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Each sector of the disk shows the old or the new content; the new one is durable after the next flush.
    Sectors,
    /// All of it or nothing of it; what was before it is durable first, and it is durable itself when it has returned.
    Whole,
    /// It changes nothing; what was before it is durable when it has returned.
    Durable,
}

impl Op {
    /// What a loss of power in the middle of it leaves.
    pub fn crash(&self) -> Crash {
        match self {
            Op::Read { .. }
            | Op::Write { .. }
            | Op::WriteCompressed { .. }
            | Op::WriteZeroes { .. }
            | Op::Discard { .. }
            // Of bitmaps that are held nothing is durable before they are stored.
            | Op::AddBitmap { .. }
            | Op::RemoveBitmap { .. }
            | Op::ClearBitmap { .. }
            | Op::RecordBitmap { .. }
            | Op::MergeBitmap { .. } => Crash::Sectors,
            Op::TakeSnapshot { .. }
            | Op::ApplySnapshot { .. }
            | Op::DeleteSnapshot { .. }
            | Op::RenameSnapshot { .. }
            | Op::Resize { .. } => Crash::Whole,
            Op::Flush | Op::Reopen => Crash::Durable,
        }
    }

    /// It changes bitmaps and nothing else.
    pub(crate) fn is_of_bitmaps(&self) -> bool {
        matches!(
            self,
            Op::AddBitmap { .. }
                | Op::RemoveBitmap { .. }
                | Op::ClearBitmap { .. }
                | Op::RecordBitmap { .. }
                | Op::MergeBitmap { .. }
        )
    }

    /// The same for an image that is as the model is now: inside its disk, and of a snapshot that is there. Without any, and where there
    /// can be no more, a flush.
    #[must_use]
    pub fn fitted(&self, model: &Model) -> Op {
        let mut op = self.clone();
        match &mut op {
            Op::WriteCompressed { offset, len, .. } => {
                let (size, cluster) = (model.size(), model.cluster());
                let end = (*offset + *len).min(size);
                let end = if end == size { end } else { end / cluster * cluster };
                *len = end.saturating_sub(*offset);
                *offset = if *len == 0 { 0 } else { *offset };
            }
            Op::Read { offset, len }
            | Op::Write { offset, len, .. }
            | Op::WriteZeroes { offset, len, .. }
            | Op::Discard { offset, len } => {
                *offset = (*offset).min(model.size());
                *len = (*len).min(model.size() - *offset);
            }
            Op::TakeSnapshot { .. } => {
                if model.view.snapshots.len() >= model.geometry().snapshots {
                    op = Op::Flush;
                }
            }
            Op::ApplySnapshot { .. } | Op::Resize { .. } if model.has_inconsistent_bitmap() => op = Op::Flush,
            Op::ApplySnapshot { index } | Op::DeleteSnapshot { index } | Op::RenameSnapshot { index, .. } => {
                match index.checked_rem(model.view.snapshots.len()) {
                    Some(there) if model.geometry().snapshots > 0 => *index = there,
                    _ => op = Op::Flush,
                }
            }
            Op::Resize { .. } => {
                if !model.geometry().resizes {
                    op = Op::Flush;
                }
            }
            Op::AddBitmap { name, .. } => {
                let name = bitmap_name(*name);
                let there = &model.view.bitmaps;
                if there.len() >= model.geometry().bitmaps || there.iter().any(|bitmap| bitmap.name == name) {
                    op = Op::Flush;
                }
            }
            Op::RemoveBitmap { index }
            | Op::ClearBitmap { index }
            | Op::RecordBitmap { index, .. }
            | Op::MergeBitmap { index, .. } => match index.checked_rem(model.view.bitmaps.len()) {
                None => op = Op::Flush,
                // Nothing else can be done with one that is inconsistent.
                Some(there) if model.view.bitmaps[there].dirty.is_none() => {
                    op = Op::RemoveBitmap { index: there };
                }
                Some(there) => {
                    *index = there;
                    if let Op::MergeBitmap { source, .. } = &mut op {
                        *source %= model.view.bitmaps.len();
                        if model.view.bitmaps[*source].dirty.is_none() {
                            op = Op::Flush;
                        }
                    }
                }
            },
            Op::Flush | Op::Reopen => {}
        }
        op
    }

    /// Does it to an image, which is as `before` says. [`Op::Reopen`] is a flush here: closing and opening is the caller's.
    pub fn run(&self, image: &Image, before: &Model) -> imago_core::Result<()> {
        debug_assert_eq!(self, &self.fitted(before), "it fits");
        let bitmap = |index: usize| &*before.view.bitmaps[index].name;
        match *self {
            Op::Read { offset, len } => image.read(&mut vec![0; len as usize], offset),
            Op::Write { offset, len, seed } => image.write(&pattern(seed, offset, len), offset),
            Op::WriteCompressed { offset, len, seed } => {
                image.write_compressed(&packable(seed, offset, len), offset, CompressionLevel::Default)
            }
            Op::WriteZeroes { offset, len, unmap } => {
                image.write_zeroes(offset, len, if unmap { ZeroIntent::Unmap } else { ZeroIntent::Keep })
            }
            Op::Discard { offset, len } => image.discard(offset, len),
            Op::TakeSnapshot { name } => image.create_snapshot(&snapshot_name(name), None).map(drop),
            Op::ApplySnapshot { index } => image.apply_snapshot(&id(image, index)?),
            Op::DeleteSnapshot { index } => image.delete_snapshot(&id(image, index)?),
            Op::RenameSnapshot { index, name } => {
                image.rename_snapshot(&id(image, index)?, &snapshot_name(name))
            }
            Op::Resize { size } => image.resize(size, Preallocation::Off),
            Op::AddBitmap { name, enabled } => {
                image.bitmaps().add(&bitmap_name(name), Some(granule(name)), recording(enabled))
            }
            Op::RemoveBitmap { index } => image.bitmaps().remove(bitmap(index)),
            Op::ClearBitmap { index } => image.bitmaps().clear(bitmap(index)),
            Op::RecordBitmap { index, enabled } => {
                image.bitmaps().set_recording(bitmap(index), recording(enabled))
            }
            Op::MergeBitmap { index, source } => {
                let ranges = image.bitmaps().ranges(bitmap(source))?;
                image.bitmaps().merge(bitmap(index), ranges)
            }
            Op::Flush | Op::Reopen => image.flush(),
        }
    }

    /// Changes the model as it changes an image, where that is certain; a discard's ragged ends stay as they are.
    pub fn change(&self, model: &mut Model) {
        match *self {
            Op::Write { offset, len, .. }
            | Op::WriteCompressed { offset, len, .. }
            | Op::WriteZeroes { offset, len, .. }
            | Op::Discard { offset, len } => model.view.record(offset, len),
            _ => {}
        }
        match *self {
            Op::Write { offset, len, seed } => {
                model.view.disk[offset as usize..(offset + len) as usize]
                    .copy_from_slice(&pattern(seed, offset, len));
            }
            Op::WriteCompressed { offset, len, seed } => {
                model.view.disk[offset as usize..(offset + len) as usize]
                    .copy_from_slice(&packable(seed, offset, len));
            }
            Op::WriteZeroes { offset, len, .. } => {
                model.view.disk[offset as usize..(offset + len) as usize].fill(0);
            }
            Op::Discard { offset, len } => {
                let range = model.discarded(offset, len);
                model.view.disk[range].fill(0);
            }
            Op::TakeSnapshot { name } => {
                let disk = model.view.disk.clone().into();
                model.view.snapshots.push((snapshot_name(name), disk));
            }
            Op::ApplySnapshot { index } => {
                model.view.disk = model.view.snapshots[index].1.to_vec();
                let size = model.size();
                model.view.bitmaps.iter_mut().for_each(|bitmap| bitmap.resize(size));
                model.view.record(0, size);
            }
            Op::DeleteSnapshot { index } => drop(model.view.snapshots.remove(index)),
            Op::RenameSnapshot { index, name } => model.view.snapshots[index].0 = snapshot_name(name),
            Op::Resize { size } => {
                model.view.disk.resize(size as usize, 0);
                model.view.bitmaps.iter_mut().for_each(|bitmap| bitmap.resize(size));
            }
            Op::AddBitmap { name, enabled } => {
                let bitmap = Bitmap::clean(bitmap_name(name), enabled, granule(name), model.size());
                model.view.bitmaps.push(bitmap);
            }
            Op::RemoveBitmap { index } => drop(model.view.bitmaps.remove(index)),
            Op::ClearBitmap { index } => {
                model.view.bitmaps[index].dirty.iter_mut().for_each(|dirty| dirty.fill(false));
            }
            Op::RecordBitmap { index, enabled } => model.view.bitmaps[index].enabled = enabled,
            Op::MergeBitmap { index, source } => {
                let (size, source) = (model.size(), model.view.bitmaps[source].clone());
                model.view.bitmaps[index].merge(&source, size);
            }
            Op::Read { .. } | Op::Flush | Op::Reopen => {}
        }
    }
}

/// No number, so that it is never taken for an id; of any length, so that the table's is too.
fn snapshot_name(name: u8) -> String {
    format!("s{name}{}", "-".repeat(usize::from(name) / 2))
}

fn bitmap_name(name: u8) -> String {
    format!("b{name}{}", "-".repeat(usize::from(name)))
}

fn granule(name: u8) -> u64 {
    512 << (name % 4)
}

fn recording(enabled: bool) -> Recording {
    if enabled { Recording::Enabled } else { Recording::Disabled }
}

fn id(image: &Image, index: usize) -> imago_core::Result<String> {
    let gone = || imago_core::Error::invalid_input("there are fewer snapshots");
    image.snapshots()?.get(index).map(|snapshot| snapshot.id.clone()).ok_or_else(gone)
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

/// An operation for an image of that geometry, with its weight.
fn any_op(geometry: Geometry) -> impl Strategy<Value = Op> {
    let range = range(geometry).boxed();
    let write = (range.clone(), any::<u8>());
    let zeroes = (range.clone(), any::<bool>());
    let index = any::<usize>();
    let rename = (index, any::<u8>());
    let mut ops = vec![
        (4, range.clone().prop_map(|(offset, len)| Op::Read { offset, len }).boxed()),
        (8, write.prop_map(|((offset, len), seed)| Op::Write { offset, len, seed }).boxed()),
        (4, zeroes.prop_map(|((offset, len), unmap)| Op::WriteZeroes { offset, len, unmap }).boxed()),
        (3, range.prop_map(|(offset, len)| Op::Discard { offset, len }).boxed()),
        (2, any::<u8>().prop_map(|name| Op::TakeSnapshot { name }).boxed()),
        (1, index.prop_map(|index| Op::ApplySnapshot { index }).boxed()),
        (1, index.prop_map(|index| Op::DeleteSnapshot { index }).boxed()),
        (1, rename.prop_map(|(index, name)| Op::RenameSnapshot { index, name }).boxed()),
        (1, (1..=geometry.size / 256 + 1).prop_map(|sectors| Op::Resize { size: sectors * 512 }).boxed()),
        (1, Just(Op::Flush).boxed()),
        (1, Just(Op::Reopen).boxed()),
    ];
    if geometry.bitmaps > 0 {
        let flag = any::<bool>();
        let add = (any::<u8>(), flag).prop_map(|(name, enabled)| Op::AddBitmap { name, enabled });
        let record = (index, flag).prop_map(|(index, enabled)| Op::RecordBitmap { index, enabled });
        let merge = (index, index).prop_map(|(index, source)| Op::MergeBitmap { index, source });
        ops.extend([
            (2, add.boxed()),
            (1, index.prop_map(|index| Op::RemoveBitmap { index }).boxed()),
            (1, index.prop_map(|index| Op::ClearBitmap { index }).boxed()),
            (1, record.boxed()),
            (1, merge.boxed()),
        ]);
    }
    if geometry.compresses {
        let packed = (clusters(geometry), any::<u8>());
        let packed = packed.prop_map(|((offset, len), seed)| Op::WriteCompressed { offset, len, seed });
        ops.push((5, packed.boxed()));
    }
    Union::new_weighted(ops)
}

/// A script for an image of that geometry.
pub fn script(geometry: Geometry, ops: Range<usize>) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(any_op(geometry), ops)
}

/// The same script every time for one seed.
pub fn fixed_script(geometry: Geometry, ops: usize, seed: u64) -> Vec<Op> {
    by_seed(script(geometry, ops..ops + 1), seed)
}
