//! The content of one image into a new one.

use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use parking_lot::Mutex;

use super::create::{self, CreateOptions};
use super::image::{Base, Image};
pub use super::job::Progress;
use super::map::Extents;
use super::open::{Backing, OpenOptions};
use super::pack::{CompressionLevel, Packer};
use super::pool::cores;
use super::target;
use super::zero::is_zero;
use crate::error::{Error, ErrorKind, Result};
use crate::format::preallocation::Preallocation;
use crate::format::raw::Raw;
use crate::format::{FormatKind, ZeroIntent};
use crate::storage::file::File;
use crate::storage::{Storage, StorageOpenOptions};

/// Bytes that one thread works on at a time; a multiple of every cluster size, so that no two write to one cluster.
const CHUNK: u64 = 2 << 20;

/// Zeroes are left out in runs of this many bytes, as `qemu-img convert` does (`-S 4k`).
const SPARSE: usize = 4096;

/// How to convert.
pub struct ConvertOptions<'a> {
    /// What the target shall be. Its size is the source's, whatever is said here.
    pub target: CreateOptions,
    /// Writes compressed clusters, where the target can have them.
    pub compress: Option<CompressionLevel>,
    /// Told how far it is, on the calling thread, after every chunk that this thread did.
    pub progress: Option<&'a mut dyn FnMut(Progress)>,
    /// Set by another thread to end the conversion soon: [`Interrupted`](std::io::ErrorKind::Interrupted), and no target.
    pub cancel: Option<&'a AtomicBool>,
}

/// Writes the content of `source` into a new image at `target`, on all cores, in bounded memory.
///
/// The image is made under another name beside `target` and takes its place when it is whole and durable; until then, and after a failure
/// or a cancellation, what was at `target` stays. A block device is overwritten where it stands (raw only). A target that is in use
/// is [`ErrorKind::Locked`].
pub fn convert(source: &Arc<Image>, target: impl AsRef<Path>, options: ConvertOptions<'_>) -> Result<()> {
    let target = target.as_ref();
    let ConvertOptions { target: mut create, compress, mut progress, cancel } = options;
    let total = source.size();
    let mut report = |done| {
        if let Some(progress) = &mut progress {
            progress(Progress { done, total });
        }
    };
    match &mut create {
        CreateOptions::Raw { size, .. } => *size = source.size(),
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
            copy(source, &image, Zeroes::Write, None, &mut report, cancel)?;
            image.close()?;
            report(total);
            check_cancelled(cancel)
        }
        // Held until the new image has its name, so that nobody begins to use the old one meanwhile.
        held => target::make(target, held.as_ref(), |file| {
            let file: Arc<dyn Storage> = Arc::new(file);
            create::fill(&file, None, &create)?;
            let open = OpenOptions {
                write: true,
                format: Some(create.kind()),
                backing: Backing::None,
                ..Default::default()
            };
            let image = open.open_storage(file)?;
            let packer = compress.map(|level| image.packer(level)).transpose()?;
            copy(source, &image, Zeroes::Skip, packer, &mut report, cancel)?;
            image.close()?;
            // Making it durable can take long: who gave up meanwhile keeps what was at the target.
            report(total);
            check_cancelled(cancel)
        }),
    }
}

fn check_cancelled(cancel: Option<&AtomicBool>) -> Result<()> {
    if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
        let source = std::io::ErrorKind::Interrupted.into();
        return Err(Error::io("the conversion was cancelled", source));
    }
    Ok(())
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

/// What the threads of one conversion share.
struct Work<'a> {
    source: &'a Image,
    target: &'a Image,
    zeroes: Zeroes,
    packer: Option<Packer>,
    cancel: Option<&'a AtomicBool>,
    todo: Mutex<Todo>,
    done: AtomicU64,
    failed: AtomicBool,
}

struct Todo {
    extents: Extents,
    /// What is copied begins and ends at multiples of this many bytes, or with the disk.
    unit: u64,
    size: u64,
    /// Up to where all was handed out, or is in `rest`.
    end: u64,
    /// The rest of an extent that was not handed out yet: start, end, and whether it is zero.
    rest: Option<(u64, u64, bool)>,
}

fn copy(
    source: &Arc<Image>,
    target: &Image,
    zeroes: Zeroes,
    packer: Option<Packer>,
    report: &mut dyn FnMut(u64),
    cancel: Option<&AtomicBool>,
) -> Result<()> {
    let (size, extents) = (source.size(), source.extents(0, source.size())?);
    let unit = packer.map_or(1, |packer| packer.cluster_size as u64);
    let todo = Mutex::new(Todo { extents, unit, size, end: 0, rest: None });
    let (done, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = Work { source, target, zeroes, packer, cancel, todo, done, failed };
    report(0);
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..cores()).map(|_| scope.spawn(|| work.run(|_| {}))).collect();
        let mut result = work.run(report);
        for helper in helpers {
            let lost = |_| Err(Error::new(ErrorKind::Io, "a thread that converted died"));
            // Of several failures the first thread's own counts; those that only stopped have none.
            result = result.and(helper.join().unwrap_or_else(lost));
        }
        result
    })?;
    check_cancelled(cancel)
}

impl Work<'_> {
    fn run(&self, mut report: impl FnMut(u64)) -> Result<()> {
        let result = self.run_chunks(&mut report);
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn run_chunks(&self, report: &mut impl FnMut(u64)) -> Result<()> {
        let mut buffer = Vec::new();
        while !self.failed.load(Ordering::Relaxed) {
            check_cancelled(self.cancel)?;
            let Some((start, end, zero)) = self.take()? else { break };
            if zero {
                if self.zeroes == Zeroes::Write {
                    self.target.write_zeroes(start, end - start, ZeroIntent::Unmap)?;
                }
            } else {
                self.copy_chunk(start, end, &mut buffer)?;
            }
            let len = end - start;
            report(self.done.fetch_add(len, Ordering::Relaxed) + len);
        }
        Ok(())
    }

    /// The next chunk: its start, its end, and whether it is known to be zero.
    fn take(&self) -> Result<Option<(u64, u64, bool)>> {
        let mut todo = self.todo.lock();
        let (start, extent_end, zero) = match todo.rest.take() {
            Some(rest) => rest,
            None => match todo.next_extent()? {
                Some(extent) => extent,
                None => return Ok(None),
            },
        };
        // A zero extent is one piece where nothing is done about it.
        let whole = zero && self.zeroes == Zeroes::Skip;
        let end = if whole { extent_end } else { extent_end.min((start / CHUNK + 1) * CHUNK) };
        if end < extent_end {
            todo.rest = Some((end, extent_end, zero));
        }
        Ok(Some((start, end, zero)))
    }

    fn copy_chunk(&self, start: u64, end: u64, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize((end - start) as usize, 0);
        self.source.read(&mut buffer[..], start)?;
        if let Some(packer) = &self.packer {
            let batch = packer.pack(start, mem::take(buffer))?;
            self.target.write_batch(&batch)?;
            *buffer = batch.into_bytes();
            return Ok(());
        }
        let mut at = 0;
        for (run, zero) in runs(buffer) {
            let offset = start + at as u64;
            at += run.len();
            match (zero, self.zeroes) {
                (false, _) => self.target.write(run, offset)?,
                (true, Zeroes::Write) => {
                    self.target.write_zeroes(offset, run.len() as u64, ZeroIntent::Unmap)?;
                }
                (true, Zeroes::Skip) => {}
            }
        }
        Ok(())
    }
}

impl Todo {
    /// The next extent: its start, its end, and whether it is zero. Data is widened to whole units.
    fn next_extent(&mut self) -> Result<Option<(u64, u64, bool)>> {
        while let Some(extent) = self.extents.next().transpose()? {
            let (start, end) = if extent.zero {
                (extent.offset, extent.end() / self.unit * self.unit)
            } else {
                let whole = extent.offset / self.unit * self.unit;
                (whole, extent.end().next_multiple_of(self.unit).min(self.size))
            };
            let start = start.max(self.end);
            if start < end {
                self.end = end;
                return Ok(Some((start, end, extent.zero)));
            }
        }
        Ok(None)
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
