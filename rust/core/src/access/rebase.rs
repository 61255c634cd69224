//! Another backing file under an image, with the content that a guest sees kept.

use std::iter;
use std::path::Path;
use std::sync::Arc;

use super::align::aligned;
use super::amend::{AmendOptions, Amendment, BackingChange, amend_aligned, ended};
use super::extent::Extent;
use super::gate::{name_as_meant, resolve_beside};
use super::image::Image;
use super::job::Job;
use super::open::OpenOptions;
use super::pack::{CompressionLevel, Packer};
use super::pairs::Pairs;
use super::probe::probe;
use super::sweep::{Ahead, CHUNK, Hands, Piece, Then, cut, sweep_with};
use super::zero::is_zero;
use crate::error::{Error, Result};
use crate::format::qcow2::amend as qcow2;
use crate::format::{FormatKind, ImplicitReference, Mapping, Place, ZeroIntent};
use crate::storage::file::File;
use crate::storage::{Lock, Storage};

/// What is done about the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebaseMode {
    /// What a guest sees stays: where the new backing file has something else than the old one, the image gets what it showed.
    #[default]
    Safe,
    /// Nothing: only the name in the header changes, for a backing file that was moved or has the same content.
    Unsafe,
}

/// How to rebase.
#[derive(Clone, Debug, Default)]
pub struct RebaseOptions {
    /// How the image is opened, with the backing file that it has so far; `write` and `snapshot` mean nothing here, and the image's own file is
    /// always locked. Secret, gate, `direct` and lock are for the new backing file, too: that is the caller's word, and what it names in turn is the
    /// gate's affair.
    pub open: OpenOptions,
    /// The new backing file as the image shall spell it, a relative name from the image's directory on, or its description (`json:{...}`). Where
    /// other readers would take the name for a protocol's (`a:b`), a safe rebase records it as `./a:b`. `None`: the image stands alone afterwards.
    pub backing: Option<ImplicitReference>,
    /// What is done about the content.
    pub mode: RebaseMode,
    /// Writes what the image gets in compressed clusters, where it can have them.
    pub compress: Option<CompressionLevel>,
}

/// Puts another backing file below the image at `path`, which nobody else may have open.
///
/// All that differs is written and made durable first, then the header changes in one step: whatever ends it in between, the image
/// shows what it showed, and it can be done again.
pub fn rebase(path: impl AsRef<Path>, options: &RebaseOptions, job: &mut Job<'_>) -> Result<()> {
    let file = File::open_sync(options.open.files().filename(path.as_ref()).write(true).lock(Lock::Auto))?;
    rebase_storage(Arc::new(file), options, job)
}

/// The same for an image in `storage`, which is unlocked at the end, as a data file is that the options bring.
pub fn rebase_storage(storage: Arc<dyn Storage>, options: &RebaseOptions, job: &mut Job<'_>) -> Result<()> {
    let storage = aligned(storage);
    let rebased = rebase_aligned(&storage, options, job);
    ended(&storage, &options.open, rebased)
}

fn rebase_aligned(storage: &Arc<dyn Storage>, options: &RebaseOptions, job: &mut Job<'_>) -> Result<()> {
    let kind = options.open.format.map_or_else(|| probe(&**storage), Ok)?;
    if kind != FormatKind::Qcow2 {
        return Err(Error::unsupported(format!("a {kind} image has no backing file")));
    }
    let mut backing = options.backing.clone();
    if options.mode == RebaseMode::Safe {
        backing.iter_mut().for_each(name_as_meant);
    }
    if let Some(backing) = &backing
        && let Some(file) = File::identity_of(&resolve_beside(storage.path(), &backing.name))
        && storage.identity().is_some_and(|own| own.overlaps(&file))
    {
        return Err(Error::invalid_input("an image cannot be its own backing file"));
    }
    let change = backing.clone().map_or(BackingChange::Drop, BackingChange::Set);
    let header = AmendOptions { backing: Some(change), ..AmendOptions::default() };
    let open = OpenOptions { write: true, format: Some(kind), snapshot: None, ..options.open.clone() };
    if options.mode == RebaseMode::Safe {
        let image = open.open_storage(Arc::clone(storage))?;
        // Before anything is copied: what this refuses would be refused at the end.
        let kept = qcow2::check(storage, &header)
            .and_then(|()| keep_content(&image, &open, backing.as_ref(), options.compress, job));
        // Its locks stay until the header is changed.
        kept.and(image.close_locked())?;
    }
    amend_aligned(storage, &Amendment { open, header, ..Amendment::default() }, &mut Job::default())
}

fn keep_content(
    image: &Arc<Image>,
    open: &OpenOptions,
    backing: Option<&ImplicitReference>,
    compress: Option<CompressionLevel>,
    job: &mut Job<'_>,
) -> Result<()> {
    let packer = compress.map(|level| image.packer(level)).transpose()?;
    let below = backing.map(|backing| open.open_below(backing, image)).transpose()?;
    let kept = copy_differences(image, below.as_ref(), packer.as_ref(), job);
    kept.and(below.map_or(Ok(()), |below| below.close()))
}

/// What is known of a range of the image and of what will be below it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// The image holds it itself, or both show the same.
    Same,
    Nothing,
}

fn judge(start: u64, image: Option<&Extent>, below: Option<&Extent>) -> Known {
    let zero = |extent: Option<&Extent>| extent.is_none_or(|extent| extent.zero);
    let own = image.is_some_and(|extent| extent.depth == 0 && extent.allocated);
    // One place in one file, which both have something in.
    let place = |extent: &Extent| {
        let at = extent.host_offset.filter(|_| extent.allocated)? + (start - extent.offset);
        Some((extent.host_file.clone()?, at))
    };
    let shared = image.and_then(place).is_some_and(|here| below.and_then(place) == Some(here));
    if own || shared || (zero(image) && zero(below)) { Known::Same } else { Known::Nothing }
}

fn copy_differences(
    image: &Arc<Image>,
    below: Option<&Arc<Image>>,
    packer: Option<&Packer>,
    job: &mut Job<'_>,
) -> Result<()> {
    let size = image.size();
    let of_below = below.map(|below| below.extents(0, below.size())).transpose()?;
    let ranges = Pairs::new([Some(image.extents(0, size)?), of_below], size, judge);
    let unit = image.format().write_alignment();
    let hands = Hands { ahead: Some(Ahead::new(image.format().data_storage())), ..Hands::default() };
    let pieces = cut(ranges, CHUNK.max(unit), |piece| piece.what == Known::Same);
    sweep_with(&hands, pieces, size, job, |piece, buffer| {
        if piece.what != Known::Same {
            hands.charge(keep(image, below, &piece, unit, packer, buffer)?);
        }
        Ok(Then::Next)
    })?;
    job.finish(size)?;
    image.flush()?;
    job.finish(size)
}

/// What becomes of a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cluster {
    /// Both show the same.
    Same,
    Zero,
    Data,
}

/// Writes what the image shows in `piece` to the image itself, cluster by cluster, where what will be below it has something else. Says how many
/// bytes of the disk that were.
fn keep<T>(
    image: &Image,
    below: Option<&Arc<Image>>,
    piece: &Piece<T>,
    unit: u64,
    packer: Option<&Packer>,
    buffer: &mut Vec<u8>,
) -> Result<u64> {
    // Whole clusters: a part of one would have the rest of it read once more.
    let start = piece.start / unit * unit;
    let len = (piece.end.next_multiple_of(unit).min(image.size()) - start) as usize;
    buffer.resize(2 * len, 0);
    let (shown, other) = buffer.split_at_mut(len);
    image.read(&mut *shown, start)?;
    let within = below.map_or(0, |below| below.size().saturating_sub(start)).min(len as u64) as usize;
    if let Some(below) = below.filter(|_| within > 0) {
        below.read(&mut other[..within], start)?;
    }
    other[within..].fill(0);

    let clusters: Vec<Cluster> = iter::zip(shown.chunks(unit as usize), other.chunks(unit as usize))
        .map(|(shown, other)| match shown == other {
            true => Cluster::Same,
            false if is_zero(shown) => Cluster::Zero,
            false => Cluster::Data,
        })
        .collect();
    let (mut at, mut kept) = (0, 0);
    for run in clusters.chunk_by(|a, b| a == b) {
        let end = (at + run.len() * unit as usize).min(len);
        let (offset, bytes) = (start + at as u64, &shown[at..end]);
        at = end;
        let len = bytes.len() as u64;
        match run[0] {
            Cluster::Same => continue,
            Cluster::Zero => {
                image.write_zeroes(offset, len, ZeroIntent::Unmap)?;
                if holds(image, offset, len)? {
                    continue;
                }
                // A format that cannot say zero over a backing file has nothing to do while that reads as zeroes.
            }
            Cluster::Data => {
                kept += len;
                if let Some(packer) = packer {
                    image.write_batch(&packer.pack(offset, bytes.to_vec())?)?;
                    continue;
                }
            }
        }
        image.write(bytes, offset)?;
    }
    Ok(kept)
}

/// Whether the image itself says what is in the range.
fn holds(image: &Image, offset: u64, len: u64) -> Result<bool> {
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let Mapping { len, place } = image.map(at, end - at)?;
        if let Place::Unallocated { .. } = place {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}
