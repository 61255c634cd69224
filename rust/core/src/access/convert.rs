//! The content of one image into a new one.

use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::create::{self, CreateOptions};
use super::image::{Base, Image};
use super::job::Job;
use super::map::Extents;
use super::open::{Backing, OpenOptions};
use super::pack::{CompressionLevel, Packer};
use super::sweep::{Piece, Then, cut, sweep};
use super::target;
use super::zero::is_zero;
use crate::error::{Error, Result};
use crate::format::preallocation::Preallocation;
use crate::format::raw::Raw;
use crate::format::{FormatKind, ZeroIntent};
use crate::storage::file::File;
use crate::storage::{Storage, StorageOpenOptions};

/// Zeroes are left out in runs of this many bytes, as `qemu-img convert` does (`-S 4k`).
const SPARSE: usize = 4096;

/// How to convert.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// What the target shall be. Its size is the source's, whatever is said here.
    pub target: CreateOptions,
    /// Writes compressed clusters, where the target can have them.
    pub compress: Option<CompressionLevel>,
}

/// Writes the content of `source` into a new image at `target`, on all cores, in bounded memory.
///
/// The image is made under another name beside `target` and takes its place when it is whole and durable; until then, and after a failure
/// or a cancellation, what was at `target` stays. A block device is overwritten where it stands (raw only). A target that is in use
/// is [`ErrorKind::Locked`](crate::ErrorKind::Locked).
pub fn convert(
    source: &Arc<Image>,
    target: impl AsRef<Path>,
    options: ConvertOptions,
    job: &mut Job<'_>,
) -> Result<()> {
    let target = target.as_ref();
    let ConvertOptions { target: mut create, compress } = options;
    match &mut create {
        CreateOptions::Raw { size, .. } | CreateOptions::Luks { size, .. } => *size = source.size(),
        CreateOptions::Qcow2(options) if options.backing.is_some() || options.data_file.is_some() => {
            return Err(Error::unsupported(
                "a conversion makes an image that stands alone: no backing file, no data file",
            ));
        }
        CreateOptions::Qcow2(options) => options.size = source.size(),
    }
    if let Some(level) = compress {
        let CreateOptions::Qcow2(options) = &create else {
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
    let existing = existing(source, target)?;
    if let Some(device) = existing.as_ref().filter(|file| file.is_block_device()) {
        if create.kind() != FormatKind::Raw {
            return Err(Error::unsupported("only raw can be written to a block device").in_file(target));
        }
        if create.preallocation() != Preallocation::Off {
            return Err(Error::invalid_input("a block device has its space: preallocation is for files")
                .in_file(target));
        }
        if device.len()? < source.size() {
            return Err(Error::invalid_input(format!(
                "the device has {} bytes, less than the disk's {}",
                device.len()?,
                source.size()
            ))
            .in_file(target));
        }
    }
    match existing {
        Some(device) if device.is_block_device() => {
            let image = Image::new(Arc::new(Raw::open(Arc::new(device), true)?), Base::None);
            copy(source, &image, Zeroes::Write, None, job)?;
            image.close()?;
            finish(source, job)
        }
        // Held until the new image has its name, so that nobody begins to use the old one meanwhile.
        held => target::make(target, held.as_ref(), |file| {
            let file: Arc<dyn Storage> = Arc::new(file);
            create::fill(&file, None, &create)?;
            let open = OpenOptions {
                write: true,
                format: Some(create.kind()),
                backing: Backing::None,
                secret: create.secret().cloned(),
                ..Default::default()
            };
            let image = open.open_storage(file)?;
            // A new disk reads as zeroes, unless it is encrypted as a whole.
            let zeroes = if create.kind() == FormatKind::Luks { Zeroes::Write } else { Zeroes::Skip };
            let packer = compress.map(|level| image.packer(level)).transpose()?;
            copy(source, &image, zeroes, packer, job)?;
            image.close()?;
            finish(source, job)
        }),
    }
}

/// Making it durable can take long: who gave up meanwhile keeps what was at the target.
fn finish(source: &Image, job: &mut Job<'_>) -> Result<()> {
    job.report(source.size(), source.size());
    job.wanted().check()
}

/// The file that is at `target` already, open so that its users are noticed.
fn existing(source: &Arc<Image>, target: &Path) -> Result<Option<File>> {
    if !target.exists() {
        return Ok(None);
    }
    let probe = File::open_sync(StorageOpenOptions::new().filename(target).lock(crate::storage::Lock::Off))?;
    let mut next = Some(source);
    while let Some(image) = next {
        let storages = [image.format().storage(), image.format().data_storage()];
        if storages
            .iter()
            .any(|storage| storage.identity().is_some() && storage.identity() == probe.identity())
        {
            return Err(
                Error::invalid_input("the target is a file of the source's own chain").in_file(target)
            );
        }
        next = image.backing();
    }
    File::open_sync(StorageOpenOptions::new().filename(target).write(true)).map(Some)
}

/// What to do where the source has zeroes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeroes {
    /// Nothing: the target is new.
    Skip,
    /// Write them: the target holds something else.
    Write,
}

fn copy(
    source: &Arc<Image>,
    target: &Image,
    zeroes: Zeroes,
    packer: Option<Packer>,
    job: &mut Job<'_>,
) -> Result<()> {
    let size = source.size();
    let unit = packer.as_ref().map_or(1, |packer| packer.cluster_size as u64);
    let ranges = Ranges { extents: source.extents(0, size)?, unit, size, end: 0 };
    // A zero extent is one piece where nothing is done about it.
    let pieces = cut(ranges, |piece| piece.what == Known::Zero && zeroes == Zeroes::Skip);
    sweep(pieces, size, job, |piece, buffer| {
        if piece.what == Known::Nothing {
            copy_piece(source, target, zeroes, packer.as_ref(), &piece, buffer)?;
        } else if zeroes == Zeroes::Write {
            target.write_zeroes(piece.start, piece.len(), ZeroIntent::Unmap)?;
        }
        Ok(Then::Next)
    })?;
    job.wanted().check()
}

fn copy_piece(
    source: &Image,
    target: &Image,
    zeroes: Zeroes,
    packer: Option<&Packer>,
    piece: &Piece<Known>,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    buffer.resize(piece.len() as usize, 0);
    source.read(&mut buffer[..], piece.start)?;
    if let Some(packer) = packer {
        let batch = packer.pack(piece.start, mem::take(buffer))?;
        target.write_batch(&batch)?;
        *buffer = batch.into_bytes();
        return Ok(());
    }
    let mut at = 0;
    for (run, zero) in runs(buffer) {
        let offset = piece.start + at as u64;
        at += run.len();
        match (zero, zeroes) {
            (false, _) => target.write(run, offset)?,
            (true, Zeroes::Write) => target.write_zeroes(offset, run.len() as u64, ZeroIntent::Unmap)?,
            (true, Zeroes::Skip) => {}
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Zero,
    Nothing,
}

/// The extents of the source. Data is widened to whole units, multiples of so many bytes or the disk's end.
struct Ranges {
    extents: Extents,
    unit: u64,
    size: u64,
    /// Up to where all was handed out.
    end: u64,
}

impl Iterator for Ranges {
    type Item = Result<Piece<Known>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let extent = match self.extents.next()? {
                Ok(extent) => extent,
                Err(error) => return Some(Err(error)),
            };
            let (start, end, what) = if extent.zero {
                (extent.offset, extent.end() / self.unit * self.unit, Known::Zero)
            } else {
                let whole = extent.offset / self.unit * self.unit;
                (whole, extent.end().next_multiple_of(self.unit).min(self.size), Known::Nothing)
            };
            let start = start.max(self.end);
            if start < end {
                self.end = end;
                return Some(Ok(Piece { start, end, what }));
            }
        }
    }
}

/// Splits `bytes` into runs of blocks that are zero and of blocks that are not.
fn runs(bytes: &[u8]) -> impl Iterator<Item = (&[u8], bool)> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let mut blocks = rest.chunks(SPARSE);
        let first = blocks.next()?;
        let zero = is_zero(first);
        let len =
            first.len() + blocks.take_while(|block| is_zero(block) == zero).map(<[u8]>::len).sum::<usize>();
        let (run, behind) = rest.split_at(len);
        rest = behind;
        Some((run, zero))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_everything_once() {
        let mut bytes = vec![0; 5 * SPARSE + 100];
        bytes[SPARSE + 7] = 1;
        bytes[2 * SPARSE] = 1;
        bytes[5 * SPARSE + 99] = 1;
        let found: Vec<_> = runs(&bytes).map(|(run, zero)| (run.len(), zero)).collect();
        assert_eq!(found, [(SPARSE, true), (2 * SPARSE, false), (2 * SPARSE, true), (100, false)]);
        assert_eq!(runs(&[]).count(), 0);
        assert_eq!(runs(&[0; 10]).map(|(run, zero)| (run.len(), zero)).collect::<Vec<_>>(), [(10, true)]);
    }
}
