//! Whether two images show a guest the same bytes.

use std::cmp::min;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::extent::Extent;
use super::image::Image;
use super::job::Job;
use super::pairs::Pairs;
use super::sweep::{PIECE, Piece, Then, cut, sweep};
use crate::error::Result;

/// Differences are told by the sector they are in.
const SECTOR: usize = 512;

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Every byte is the same. Where one disk is longer (`sizes_differ`), the rest of it is zeroes.
    Identical {
        /// The disks have different sizes.
        sizes_differ: bool,
    },
    /// The first sector that differs starts at `offset` (bytes).
    Content {
        /// Where.
        offset: u64,
    },
    /// The sizes differ (only with [`Strictness::Layout`]).
    Size,
    /// What is allocated, or known to be zero, differs first at `offset` (only with [`Strictness::Layout`]).
    Status {
        /// Where.
        offset: u64,
    },
}

/// What counts as different.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// The bytes that a guest sees, up to zeroes behind the shorter disk's end.
    #[default]
    Content,
    /// The sizes too, and what is allocated and what is known to be zero.
    Layout,
}

/// What is known of a range of both disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Both {
    /// Known to read as zeroes (or past the end).
    zero: [bool; 2],
    /// What has to be the same for [`Strictness::Layout`] is not.
    status_differs: bool,
}

/// Compares two disks on all cores.
pub fn compare(
    first: &Arc<Image>,
    second: &Arc<Image>,
    strictness: Strictness,
    job: &mut Job<'_>,
) -> Result<Comparison> {
    let images = [first, second];
    let sizes = images.map(|image| image.size());
    if strictness == Strictness::Layout && sizes[0] != sizes[1] {
        return Ok(Comparison::Size);
    }
    let total = sizes[0].max(sizes[1]);
    let extents = [Some(first.extents(0, sizes[0])?), Some(second.extents(0, sizes[1])?)];
    let ranges = Pairs::new(extents, total, judge);
    let both_zero = |piece: &Piece<Both>| piece.what.zero == [true; 2];
    let differs_at = AtomicU64::new(u64::MAX);
    let status_at = AtomicU64::new(u64::MAX);
    sweep(cut(ranges, PIECE, both_zero), total, job, |piece, buffer| {
        if strictness == Strictness::Layout && piece.what.status_differs {
            status_at.fetch_min(piece.start, Ordering::Relaxed);
            return Ok(Then::Stop);
        }
        let found = if both_zero(&piece) { None } else { first_difference(images, &piece, buffer)? };
        Ok(match found {
            None => Then::Next,
            Some(offset) => {
                differs_at.fetch_min(offset, Ordering::Relaxed);
                Then::Stop
            }
        })
    })?;
    // All pieces before the first difference are done: the lowest offset found is the first there is.
    let (content, status) = (differs_at.into_inner(), status_at.into_inner());
    Ok(match min(content, status) {
        u64::MAX => Comparison::Identical { sizes_differ: sizes[0] != sizes[1] },
        offset if offset == content => Comparison::Content { offset },
        offset => Comparison::Status { offset },
    })
}

fn judge(_: u64, first: Option<&Extent>, second: Option<&Extent>) -> Both {
    let status = |extent: Option<&Extent>| extent.map(|extent| (extent.data, extent.zero, extent.allocated));
    Both {
        zero: [first, second].map(|extent| extent.is_none_or(|extent| extent.zero)),
        status_differs: status(first) != status(second),
    }
}

/// The first sector of a piece in which the disks differ.
fn first_difference(
    images: [&Arc<Image>; 2],
    piece: &Piece<Both>,
    buffer: &mut Vec<u8>,
) -> Result<Option<u64>> {
    let len = piece.len() as usize;
    buffer.resize(2 * len, 0);
    let (first, second) = buffer.split_at_mut(len);
    for ((image, zero), bytes) in images.into_iter().zip(piece.what.zero).zip([&mut *first, &mut *second]) {
        if zero {
            bytes.fill(0);
        } else {
            let within = (image.size() - piece.start).min(len as u64) as usize;
            image.read(&mut bytes[..within], piece.start)?;
            bytes[within..].fill(0);
        }
    }
    if first == second {
        return Ok(None);
    }
    let sector = first.chunks(SECTOR).zip(second.chunks(SECTOR)).position(|(a, b)| a != b);
    Ok(sector.map(|sector| piece.start + (sector * SECTOR) as u64))
}
