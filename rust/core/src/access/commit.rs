//! What an image holds, written into an image below it.

use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::{Link, Opener, stack};
use super::extent::Extent;
use super::gate::{Gate, resolve_beside};
use super::image::{Base, Image};
use super::job::Job;
use super::sweep::{Ahead, CHUNK, Hands, Pace, Piece, Then, cut, sweep_with};
use super::target::resolve;
use crate::crypt::Secret;
use crate::error::{Error, Result};
use crate::format::preallocation::Preallocation;
use crate::format::{FormatKind, ZeroIntent};
use crate::storage::file::File;
use crate::storage::{Lock, Storage, StorageOpenOptions};

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
    /// The image's format; probed unless given.
    pub format: Option<FormatKind>,
    /// The image to write to, one of those below: as the image above it spells its name, or the path of its file. `None`: the one right below.
    pub base: Option<PathBuf>,
    /// How its content goes there.
    pub merging: Merging,
    /// Who decides on the files that images name, the base among them.
    pub gate: Gate,
    /// What opens encrypted images of the chain.
    pub secret: Option<Secret>,
    /// Bypass the page cache (`O_DIRECT`).
    pub direct: bool,
    /// Whether the files are locked.
    pub lock: Lock,
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
    let Chain { image, base } = open(path.as_ref(), options)?;
    let committed = commit_into(&image, &base, options.merging, job);
    committed.and(base.close()).and(image.close())
}

/// The same with images that the caller opened: `image`, and below it `base`, which is open for writing.
pub fn commit_into(image: &Arc<Image>, base: &Arc<Image>, merging: Merging, job: &mut Job<'_>) -> Result<()> {
    let chain = iter::successors(Some(image), |image| image.backing());
    let Some(levels) = chain.skip(1).position(|below| Arc::ptr_eq(below, base)) else {
        return Err(image.name(Error::invalid_input("the base is none of the images below this one")));
    };
    let levels = levels as u32 + 1;
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
    if empties { image.make_empty() } else { Ok(()) }
}

/// An image with all below it.
struct Chain {
    image: Arc<Image>,
    /// Open for writing, and not closed with the image.
    base: Arc<Image>,
}

fn open(path: &Path, options: &CommitOptions) -> Result<Chain> {
    let writable = options.merging.image == Committed::Empty;
    let file =
        StorageOpenOptions::new().filename(path).write(writable).direct(options.direct).lock(options.lock);
    let storage: Arc<dyn Storage> = Arc::new(File::open_sync(file)?);
    let mut opener = Opener::new(&options.gate, options.secret.as_ref(), options.direct, options.lock);
    opener.note(&*storage)?;
    opener.count(1)?;
    let mut top = Link::open(storage, writable, options.format, options.secret.as_ref())?;
    opener.open_data_file_of(&mut top)?;
    let Some(reference) = top.backing_reference() else {
        return Err(
            Error::invalid_input("the image has no backing file that its content could go to").in_file(path)
        );
    };
    let mut levels = 0_usize;
    let mut found = false;
    let mut above = opener.open_links(Some(path), reference, |from, name, file| {
        if !found {
            levels += 1;
            found = options.base.as_deref().is_none_or(|base| is_called(base, from, name, file));
            return found;
        }
        false
    })?;
    if !found {
        let base = options.base.as_deref().unwrap_or(Path::new(""));
        let message = format!("{:?} is none of the backing files below the image", base.to_string_lossy());
        return Err(Error::invalid_input(message).in_file(path));
    }
    let mut rest = above.split_off(levels - 1).into_iter();
    let base = rest.next().expect("it was found");
    let base = Arc::new(base.into_image(stack(rest.collect(), Base::None)));
    // Not owned: what is remembered of images below another one is of those that nobody writes to.
    let below = Base::Image { image: Arc::clone(&base), owned: false };
    let image = Arc::new(top.into_image(stack(above, below)));
    Ok(Chain { image, base })
}

/// Whether `wanted` means the backing file of the image `from` that this spells `name`, and that is in `file`, if it is in one.
fn is_called(wanted: &Path, from: Option<&Path>, name: &Path, file: Option<&Path>) -> bool {
    if wanted == name {
        return true;
    }
    let Some(Ok(file)) = file.map(resolve) else { return false };
    // As QEMU: a relative name starts where the image is that could spell it so.
    match resolve(&resolve_beside(from, wanted)) {
        Ok(beside) => beside == file,
        Err(_) => resolve(wanted).is_ok_and(|path| path == file),
    }
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
