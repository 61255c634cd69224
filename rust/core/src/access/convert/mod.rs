//! The content of images as a new image, or into one that is there.

mod bitmaps;
mod copy;
mod input;
mod stream;
mod target;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use self::bitmaps::CopyBitmaps;
use self::copy::{Copy, Zeroes, piece_size};
pub use self::input::{Input, OnError};
use self::input::{Layer, Reader};
pub use self::stream::convert_to_stream;
use super::create::{CreateOptions, SECTOR};
use super::gate::name_as_meant;
use super::image::Image;
use super::job::Job;
use super::pack::{CompressionLevel, Packer};
use super::pool::cores;
use super::sweep::{Ahead, Hands, Pace};
use crate::error::{Error, Result};
use crate::format::preallocation::Preallocation;
use crate::format::{FormatKind, ZeroIntent};
use crate::storage::Offload;
use crate::storage::file::File;

/// Threads of one conversion, at most: together they hold less than 128 MiB.
const THREADS_MAX: usize = 16;

/// Bytes of zeroes that are worth leaving out where nothing is said, as for `qemu-img convert` (`-S 4k`).
pub const SPARSE: u32 = 4096;

/// What to do with the content on its way.
#[derive(Clone, Debug)]
pub struct Copying {
    /// Writes compressed clusters, where the target can have them.
    pub compress: Option<CompressionLevel>,
    /// Bytes of zeroes in data that are worth leaving out; 0 writes all of the disk as data, so that all of it is allocated.
    pub sparse: u32,
    /// Threads, 1 to 16; `None`: one for each core.
    pub threads: Option<u32>,
    /// Bytes written in a second, at most.
    pub rate: Option<u64>,
    /// What becomes of what cannot be read.
    pub on_error: OnError,
    /// Whether persistent dirty bitmaps are copied, too.
    pub bitmaps: CopyBitmaps,
    /// How data may get from file to file without being read. What is not read is not looked through for zeroes, and its bad sectors are not found: with
    /// `compress`, and where what cannot be read is salvaged, all is read. [`Offload::Share`] is for new images that need no space of their own
    /// (neither preallocation nor `sparse` 0 asks for it): otherwise it means nothing.
    pub offload: Option<Offload>,
}

impl Default for Copying {
    fn default() -> Self {
        Copying {
            compress: None,
            sparse: SPARSE,
            threads: None,
            rate: None,
            on_error: OnError::Fail,
            bitmaps: CopyBitmaps::None,
            offload: Some(Offload::Share),
        }
    }
}

impl Copying {
    /// The target shares no space.
    fn own_space(&mut self) {
        self.offload = self.offload.filter(|offload| *offload != Offload::Share);
    }
}

/// How to convert into a new image.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// What the target shall be. Its size is the input's, whatever is said here.
    pub target: CreateOptions,
    /// The backing image that `target` names, open. Only what the source itself holds is copied then: what it leaves to its backing file
    /// the target leaves to this one.
    pub backing: Option<Arc<Image>>,
    /// Whether the target is durable when it appears.
    pub durability: Durability,
    /// What to do with the content.
    pub copying: Copying,
}

impl ConvertOptions {
    /// A whole copy as `target`, durable.
    pub fn new(target: CreateOptions) -> Self {
        ConvertOptions {
            target,
            backing: None,
            durability: Durability::default(),
            copying: Copying::default(),
        }
    }
}

/// Whether a new image is on its medium when it gets its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// It is.
    #[default]
    Synced,
    /// The system writes it when it likes, as `qemu-img convert` has it by default (`-t unsafe`): a loss of power soon afterwards may leave
    /// anything in its place.
    Unsynced,
}

/// How to convert into an image that is there.
#[derive(Clone, Debug, Default)]
pub struct IntoOptions {
    /// It reads as zeroes, all of it.
    pub target_is_zero: bool,
    /// Only what the source itself holds is copied: what it leaves to its backing file stays as it is in the target.
    pub layer: bool,
    /// What to do with the content.
    pub copying: Copying,
}

/// What a conversion came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// What could not be read and is zeroes in the target, first to last (bytes of the disk).
    pub unreadable: Vec<Range<u64>>,
    /// Inconsistent bitmaps that were left out.
    pub skipped_bitmaps: Vec<String>,
}

/// Writes the content of `input` into a new image at `path`, on all cores, in bounded memory.
///
/// The image is made under another name beside `path` and takes its place when it is whole; until then, and after a failure
/// or a cancellation, what was at `path` stays. A block device is overwritten where it stands: one with a raw image is then part old and part new, and one
/// with another image has no header any more. A target that is in use is [`ErrorKind::Locked`](crate::ErrorKind::Locked).
pub fn convert(
    input: impl Into<Input>,
    path: impl AsRef<Path>,
    options: ConvertOptions,
    job: &mut Job<'_>,
) -> Result<Converted> {
    let (input, path) = (input.into(), path.as_ref());
    let ConvertOptions { target: mut create, backing, durability, copying } = options;
    check(&create, backing.as_ref(), &input, &copying)?;
    match &mut create {
        CreateOptions::Raw { size, .. } | CreateOptions::Luks { size, .. } => *size = input.size(),
        CreateOptions::Qcow2(options) => {
            options.size = input.size();
            options.backing.iter_mut().for_each(name_as_meant);
        }
    }
    let sources = input.images().chain(&backing);
    // Held until the new image has its name, so that nobody begins to use the old one meanwhile.
    let replaced = target::existing(sources, path)?;
    let of_device = replaced.as_ref().is_some_and(File::is_block_device);
    // A new disk reads as zeroes, unless it is encrypted as a whole, is a device, or something is below it.
    let mut copying = copying;
    if matches!(create.preallocation(), Preallocation::Falloc | Preallocation::Full) || copying.sparse == 0 {
        copying.own_space();
    }
    let zeroes = match (&backing, create.kind()) {
        (None, FormatKind::Raw) if !of_device => Zeroes::Skip,
        (None, FormatKind::Qcow2) => Zeroes::Skip,
        _ => Zeroes::Write,
    };
    // What these add to a disk that does not end with a sector reads as zeroes, too.
    let rounded = match create.kind() {
        FormatKind::Raw => input.size(),
        FormatKind::Qcow2 | FormatKind::Luks => input.size().next_multiple_of(SECTOR),
    };
    target::make(path, replaced, &create, backing.as_ref(), durability, job, |image, job| {
        let input = if backing.is_some() { input.clone().of_layer(Layer::Top) } else { input.clone() };
        let how = zeroes_of(&copying, zeroes);
        let converted = fill(&input, image, how, backing.as_ref(), &copying, durability, job)?;
        if zeroes == Zeroes::Write && rounded > input.size() {
            image.write_zeroes(input.size(), rounded - input.size(), ZeroIntent::Unmap)?;
        }
        Ok(converted)
    })
}

/// Writes the content of `input` into the open image `target`, from its start on. What the target has behind the input's end stays.
///
/// It is written where it stands: a failure or a cancellation leaves some of it new and some old. The target is flushed at the end.
pub fn convert_into(
    input: impl Into<Input>,
    target: &Arc<Image>,
    options: IntoOptions,
    job: &mut Job<'_>,
) -> Result<Converted> {
    let input = input.into();
    let IntoOptions { target_is_zero, layer, mut copying } = options;
    // It may have its space because it needs it.
    copying.own_space();
    target::check_apart(&input, target)?;
    if input.size() > target.size() {
        return Err(target.name(Error::invalid_input(format!(
            "output file is smaller than input file: {} bytes, not {}",
            target.size(),
            input.size()
        ))));
    }
    let below = target.backing();
    if target_is_zero && below.is_some() {
        return Err(target.name(Error::invalid_input("an image with a backing file does not read as zeroes")));
    }
    if layer && input.single().is_none() {
        return Err(only_one_layer());
    }
    let input = if layer { input.of_layer(Layer::Top) } else { input };
    let zeroes = if target_is_zero { Zeroes::Skip } else { Zeroes::Write };
    let below = below.filter(|_| layer);
    let converted =
        fill(&input, target, zeroes_of(&copying, zeroes), below, &copying, Durability::Synced, job)?;
    target.flush()?;
    job.finish(input.size())?;
    Ok(converted)
}

/// Refuses what cannot be, before anything is touched.
fn check(
    create: &CreateOptions,
    backing: Option<&Arc<Image>>,
    input: &Input,
    copying: &Copying,
) -> Result<()> {
    let named = matches!(create, CreateOptions::Qcow2(options) if options.backing.is_some());
    match backing {
        None if named => {
            return Err(Error::invalid_input("the backing file of the target has to be opened"));
        }
        Some(_) if !named => {
            return Err(Error::unsupported(format!(
                "Backing file not supported for file format '{}'",
                create.kind()
            )));
        }
        Some(_) if input.single().is_none() => return Err(only_one_layer()),
        _ => {}
    }
    if let Some(level) = copying.compress {
        let CreateOptions::Qcow2(options) = create else {
            return Err(Error::unsupported(format!("{} has no compressed clusters", create.kind())));
        };
        level.of(options.compression)?;
        if options.encryption.is_some() {
            return Err(Error::unsupported("an encrypted image cannot have compressed clusters"));
        }
        if options.preallocation != Preallocation::Off {
            return Err(Error::invalid_input(
                "space that is set aside cannot be compressed: leave preallocation out",
            ));
        }
    }
    bitmaps::check(input, create, copying.bitmaps)
}

fn only_one_layer() -> Error {
    Error::invalid_input(
        "Having a backing file for the target makes no sense when concatenating multiple input images",
    )
}

fn zeroes_of(copying: &Copying, zeroes: Zeroes) -> Zeroes {
    if copying.sparse == 0 { Zeroes::Fill } else { zeroes }
}

fn hands(copying: &Copying) -> Hands {
    let threads = copying.threads.map_or_else(cores, |threads| threads as usize).clamp(1, THREADS_MAX);
    Hands { threads, pace: copying.rate.filter(|rate| *rate > 0).map(Pace::new), ahead: None }
}

/// Fills `target`, over `below`.
fn fill(
    input: &Input,
    target: &Image,
    zeroes: Zeroes,
    below: Option<&Arc<Image>>,
    copying: &Copying,
    durability: Durability,
    job: &mut Job<'_>,
) -> Result<Converted> {
    let Copying { compress, sparse, rate, on_error, bitmaps, offload, .. } = *copying;
    let bitmaps = bitmaps::plan(input, target, bitmaps)?;
    let mut packer = compress.map(|level| target.packer(level)).transpose()?;
    if zeroes == Zeroes::Fill {
        packer = packer.map(Packer::packing_zeroes);
    }
    // What is written to a part of a cluster takes all of it.
    let unit = target.format.write_alignment().min(1 << 20) as usize;
    let copy = Copy {
        input,
        on_error,
        target,
        zeroes,
        block: unit.max(1 << (sparse | 1).ilog2()),
        piece: piece_size(rate.is_some() || packer.as_ref().is_some_and(Packer::is_slow)),
        packer,
        offload: offload.filter(|_| on_error == OnError::Fail),
        below_end: below.map_or(u64::MAX, |below| below.size()),
    };
    let reader = Reader::new(input, on_error);
    let ahead = (durability == Durability::Synced).then(|| Ahead::new(target.format.data_storage()));
    copy.run(&reader, &Hands { ahead, ..hands(copying) }, job)?;
    let skipped_bitmaps = bitmaps.copy(target)?;
    Ok(Converted { unreadable: reader.unreadable(), skipped_bitmaps })
}
