//! What an image holds, written into an image below it.

use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::extent::Extent;
use super::image::Image;
use super::job::Job;
use super::open::{OpenOptions, WriteBacking};
use super::sweep::{Ahead, CHUNK, Hands, Pace, Piece, Then, cut, sweep_with};
use crate::error::{Error, Result};
use crate::format::preallocation::Preallocation;
use crate::format::{FormatKind, ZeroIntent};

/// Unit of the size of a disk that QEMU makes.
const SECTOR: u64 = 512;

/// What becomes of the image whose content went into the one below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Committed {
    /// It is emptied, where it stands right above the base: it shows the same, from below. Above other images it stays as it is, as what
    /// these hold would show through.
    #[default]
    Empty,
    /// It stays as it is.
    Keep,
}

/// How content goes into the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merging {
    /// What becomes of the image.
    pub image: Committed,
    /// Bytes to write in a second, at most.
    pub rate: Option<u64>,
}

/// How to commit.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// How the image is opened, and what it names, the base among it; `write`, `write_backing` and `snapshot` mean nothing here.
    pub open: OpenOptions,
    /// The image to write to, one of those below: as the image above it spells its name, or the path of its file. `None`: the one right below.
    pub base: Option<PathBuf>,
    /// How its content goes there.
    pub merging: Merging,
}

/// Writes what the image at `path`, and every image between, holds into its base, on all cores. Nobody else may have the base open, nor the
/// image for writing.
///
/// The base grows to the image's size if that is larger, and never shrinks. All is durable in the base before the image is emptied, which
/// is one step: whatever ends it in between, the image shows what it showed, and it can be done again. Images between, looked at by
/// themselves, show other content afterwards, as does everything else above the base.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for an image without a backing file, or a base that is not below it; nothing has been
/// touched then. What opening and writing say.
pub fn commit(path: impl AsRef<Path>, options: &CommitOptions, job: &mut Job<'_>) -> Result<()> {
    let image = options.opening().open(path)?;
    let committed = commit_into(&image, options.merging, job);
    committed.and(image.close())
}

impl CommitOptions {
    fn opening(&self) -> OpenOptions {
        OpenOptions {
            write: self.merging.image == Committed::Empty,
            write_backing: self.base.clone().map_or(WriteBacking::First, WriteBacking::Named),
            snapshot: None,
            ..self.open.clone()
        }
    }
}

/// The same of an open image, which stays so: into the topmost image below it that is open for writing.
pub fn commit_into(image: &Arc<Image>, merging: Merging, job: &mut Job<'_>) -> Result<()> {
    let Some(base) = image.written_backing() else {
        let text = "no image below this one is open for writing, to take what it holds";
        return Err(image.name(Error::invalid_input(text)));
    };
    let chain = iter::successors(Some(image), |image| image.backing());
    let levels = chain.take_while(|above| !Arc::ptr_eq(above, base)).count() as u32;
    let empties = merging.image == Committed::Empty && levels == 1;
    if empties && !image.writable() {
        return Err(
            image.name(Error::invalid_input("an image that is to be emptied has to be open for writing"))
        );
    }
    merge(image, base, levels, merging.rate, job)?;
    // Who gives up while threads end, or while what was written becomes durable, keeps the image as it is.
    job.finish(image.size())?;
    // Durable before what it was made from goes.
    base.flush()?;
    job.finish(image.size())?;
    for storage in [base.format().storage(), base.format().data_storage()] {
        storage.check_named().map_err(|error| error.followed_by("the image keeps what it holds"))?;
    }
    if empties { image.make_empty() } else { Ok(()) }
}

/// What is to be done about a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// No image above the base holds anything.
    Nothing,
    Zero,
    Data,
}

fn merge(
    image: &Arc<Image>,
    base: &Arc<Image>,
    levels: u32,
    rate: Option<u64>,
    job: &mut Job<'_>,
) -> Result<()> {
    let size = image.size();
    if size > base.size() {
        let size = if base.kind() == FormatKind::Raw { size } else { size.next_multiple_of(SECTOR) };
        base.resize(size, Preallocation::Off)?;
    }
    let ranges = image.extents(0, size)?.map(|extent| {
        let Extent { offset, length, zero, depth, .. } = extent?;
        // What lies behind the end of an image above the base is that image's word.
        let what = match (depth < levels, zero) {
            (false, _) => What::Nothing,
            (true, true) => What::Zero,
            (true, false) => What::Data,
        };
        Ok(Piece { start: offset, end: offset + length, what })
    });
    let hands = Hands {
        pace: rate.filter(|rate| *rate > 0).map(Pace::new),
        ahead: Some(Ahead::new(base.format().data_storage())),
        ..Hands::default()
    };
    let most = CHUNK.max(base.format().write_alignment());
    let pieces = cut(ranges, most, |piece| piece.what == What::Nothing);
    sweep_with(&hands, pieces, size, job, |piece, buffer| {
        match piece.what {
            What::Nothing => {}
            What::Zero => base.write_zeroes(piece.start, piece.len(), ZeroIntent::Unmap)?,
            What::Data => {
                buffer.resize(piece.len() as usize, 0);
                image.read(&mut buffer[..], piece.start)?;
                base.write(&buffer[..], piece.start)?;
                hands.charge(piece.len());
            }
        }
        Ok(Then::Next)
    })
}
