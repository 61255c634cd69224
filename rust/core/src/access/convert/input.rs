//! What is converted: a disk, a part of one, or several one behind the other.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::image::Image;
#[cfg(unix)]
use super::super::map::DirectReads;
use super::super::map::Extents;
use super::super::sweep::{PIECE, Piece};
use crate::error::{Error, ErrorKind, Result};

/// Disks that follow one another start at multiples of this, as QEMU has it: it knows no smaller unit.
const SECTOR: u64 = 512;

/// Parts of disks, one behind the other, as one disk.
#[derive(Clone, Debug)]
pub struct Input {
    parts: Vec<Part>,
    size: u64,
    layer: Layer,
}

/// How much of each image's chain counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Layer {
    /// All of it.
    #[default]
    Chain,
    /// The image itself: what it leaves to its backing file, the target leaves to its own.
    Top,
}

/// `len` bytes from `from` on of an image, at `start` of the input.
#[derive(Clone, Debug)]
struct Part {
    image: Arc<Image>,
    start: u64,
    from: u64,
    len: u64,
}

impl Part {
    fn end(&self) -> u64 {
        self.start + self.len
    }
}

impl From<&Arc<Image>> for Input {
    fn from(image: &Arc<Image>) -> Self {
        Input::row(iter::once(Arc::clone(image)))
    }
}

impl Input {
    /// Whole disks, one behind the other; each but the first starts at a multiple of 512.
    pub fn row(images: impl IntoIterator<Item = Arc<Image>>) -> Self {
        let mut input = Input { parts: Vec::new(), size: 0, layer: Layer::Chain };
        for image in images {
            let (start, len) = (input.size.next_multiple_of(SECTOR), image.size());
            input.size = start.saturating_add(len);
            input.parts.push(Part { image, start, from: 0, len });
        }
        input
    }

    /// The part of a disk that starts at `offset` and has at most `len` bytes (what is behind the disk's end is not there).
    pub fn part(image: &Arc<Image>, offset: u64, len: u64) -> Self {
        let from = offset.min(image.size());
        let len = (image.size() - from).min(len);
        let part = Part { image: Arc::clone(image), start: 0, from, len };
        Input { parts: vec![part], size: len, layer: Layer::Chain }
    }

    pub(super) fn of_layer(mut self, layer: Layer) -> Self {
        self.layer = layer;
        self
    }

    /// Bytes of it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The only image, where it is converted as a whole.
    pub(super) fn single(&self) -> Option<&Arc<Image>> {
        match &self.parts[..] {
            [Part { image, from: 0, len, .. }] if *len == image.size() => Some(image),
            _ => None,
        }
    }

    pub(super) fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.parts.iter().map(|part| &part.image)
    }

    /// What it is, run by run, first to last. An image that cannot say what is where counts as data with [`OnError::Salvage`].
    pub(super) fn runs(&self, on_error: OnError) -> Runs<'_> {
        Runs { input: self, part: 0, extents: None, at: 0, on_error }
    }

    /// The bytes from `offset` on, at most `len`, as they are in files, if the disk there is plain data in them.
    #[cfg(unix)]
    pub(super) fn in_files(&self, offset: u64, len: u64) -> Result<Option<DirectReads>> {
        let part = self.parts.partition_point(|part| part.end() <= offset);
        let Some(part) = self.parts.get(part).filter(|part| part.start <= offset) else { return Ok(None) };
        part.image.direct_reads(part.from + (offset - part.start), len.min(part.end() - offset))
    }

    fn read(&self, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
        let mut part = self.parts.partition_point(|part| part.end() <= offset);
        while !bytes.is_empty() {
            let Part { image, start, from, .. } = &self.parts[part];
            let gap = start.saturating_sub(offset).min(bytes.len() as u64);
            let (zeroes, rest) = bytes.split_at_mut(gap as usize);
            zeroes.fill(0);
            offset += gap;
            let len = (self.parts[part].end() - offset).min(rest.len() as u64);
            let (here, rest) = rest.split_at_mut(len as usize);
            if !here.is_empty() {
                image.read(here, from + (offset - start))?;
            }
            offset += len;
            bytes = rest;
            part += 1;
        }
        Ok(())
    }
}

/// What is done where the input cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// That is a failure.
    #[default]
    Fail,
    /// Its sectors count as zeroes and are listed.
    Salvage,
}

impl OnError {
    fn salvages(self, error: &Error) -> bool {
        let of_content = matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::InvalidImage);
        self == OnError::Salvage && of_content
    }
}

/// Reads the input, and remembers what could not be read.
pub(super) struct Reader<'a> {
    input: &'a Input,
    on_error: OnError,
    unreadable: Mutex<Vec<Range<u64>>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a Input, on_error: OnError) -> Self {
        Reader { input, on_error, unreadable: Mutex::default() }
    }

    /// Fills `bytes` from `offset` on.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match self.input.read(bytes, offset) {
            Err(error) if self.on_error.salvages(&error) => {
                let mut gone = Vec::new();
                self.salvage(bytes, offset, &mut gone)?;
                self.unreadable.lock().append(&mut gone);
                Ok(())
            }
            read => read,
        }
    }

    /// Reads what cannot be read as a whole in halves, down to a sector.
    fn salvage(&self, bytes: &mut [u8], offset: u64, gone: &mut Vec<Range<u64>>) -> Result<()> {
        let sectors = offset.is_multiple_of(SECTOR) && bytes.len() as u64 > SECTOR;
        if !sectors {
            bytes.fill(0);
            let end = offset + bytes.len() as u64;
            match gone.last_mut() {
                Some(last) if last.end == offset => last.end = end,
                _ => gone.push(offset..end),
            }
            return Ok(());
        }
        let half = (bytes.len() / 2).next_multiple_of(SECTOR as usize).min(bytes.len() - 1);
        let (first, second) = bytes.split_at_mut(half);
        for (bytes, offset) in [(first, offset), (second, offset + half as u64)] {
            match self.input.read(bytes, offset) {
                Err(error) if self.on_error.salvages(&error) => self.salvage(bytes, offset, gone)?,
                read => read?,
            }
        }
        Ok(())
    }

    /// What could not be read, in order; neighbours are one.
    pub(super) fn unreadable(self) -> Vec<Range<u64>> {
        let mut lost = self.unreadable.into_inner();
        lost.sort_by_key(|range| range.start);
        lost.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        lost
    }
}

/// What is known of a run without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It reads as zeroes.
    Zero,
    /// The image leaves it to what is below it (only of [`Layer::Top`]).
    Below,
    /// Nothing: it has to be read.
    Nothing,
}

/// See [`Input::runs`].
#[derive(Debug)]
pub(super) struct Runs<'a> {
    input: &'a Input,
    /// The part that is next, and its rest.
    part: usize,
    extents: Option<Extents>,
    /// Up to where all was told.
    at: u64,
    on_error: OnError,
}

impl Iterator for Runs<'_> {
    type Item = Result<Piece<Known>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let part = self.input.parts.get(self.part)?;
            let start = self.at;
            if start < part.start {
                self.at = part.start;
                return Some(Ok(Piece { start, end: self.at, what: Known::Zero }));
            }
            let extents = match &mut self.extents {
                Some(extents) => extents,
                none => {
                    let skip = start - part.start;
                    match part.image.extents(part.from + skip, part.len - skip) {
                        Ok(extents) => none.insert(extents),
                        Err(error) => {
                            self.part = self.input.parts.len();
                            return Some(Err(error));
                        }
                    }
                }
            };
            match extents.next() {
                None => {
                    self.extents = None;
                    self.part += 1;
                }
                Some(Ok(extent)) => {
                    self.at = part.start + (extent.end() - part.from);
                    let what = match self.input.layer {
                        Layer::Top if extent.depth > 0 => Known::Below,
                        _ if extent.zero => Known::Zero,
                        _ => Known::Nothing,
                    };
                    return Some(Ok(Piece { start, end: self.at, what }));
                }
                Some(Err(error)) if self.on_error.salvages(&error) => {
                    self.extents = None;
                    self.at = ((start / PIECE + 1) * PIECE).min(part.end());
                    return Some(Ok(Piece { start, end: self.at, what: Known::Nothing }));
                }
                Some(Err(error)) => {
                    self.part = self.input.parts.len();
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Runs of whole units, multiples of so many bytes or the input's end: what has to be read is widened to them.
pub(super) struct Units<'a> {
    runs: Runs<'a>,
    unit: u64,
    size: u64,
    /// Up to where all was handed out.
    end: u64,
}

impl<'a> Units<'a> {
    pub(super) fn new(input: &'a Input, on_error: OnError, unit: u64) -> Self {
        Units { runs: input.runs(on_error), unit, size: input.size, end: 0 }
    }
}

impl Iterator for Units<'_> {
    type Item = Result<Piece<Known>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Piece { start, end, what } = match self.runs.next()? {
                Ok(run) => run,
                Err(error) => return Some(Err(error)),
            };
            let (start, end) = match what {
                Known::Nothing => (start / self.unit * self.unit, end.next_multiple_of(self.unit)),
                Known::Zero | Known::Below if end == self.size => (start, end),
                Known::Zero | Known::Below => (start, end / self.unit * self.unit),
            };
            let (start, end) = (start.max(self.end), end.min(self.size));
            if start < end {
                self.end = end;
                return Some(Ok(Piece { start, end, what }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::image::Base;
    use crate::format::raw::Raw;
    use crate::storage::memory::Memory;

    fn disk(bytes: Vec<u8>) -> Arc<Image> {
        let storage = Arc::new(Memory::from(bytes));
        Arc::new(Image::new(Arc::new(Raw::open(storage, false).unwrap()), Base::None))
    }

    fn all(input: &Input) -> Vec<u8> {
        let mut bytes = vec![0xee; input.size() as usize];
        input.read(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn disks_in_a_row_start_at_sectors() {
        let input = Input::row([disk(vec![1; 700]), disk(Vec::new()), disk(vec![2; 512]), disk(vec![3; 5])]);
        let mut expected = vec![1; 700];
        expected.resize(1024, 0);
        expected.extend([2; 512]);
        expected.extend([3; 5]);
        assert_eq!(all(&input), expected);
        for at in [0, 699, 700, 1000, 1024, 1535, 1537] {
            let mut bytes = vec![0xee; 4];
            input.read(&mut bytes, at as u64).unwrap();
            assert_eq!(bytes, expected[at..at + 4], "{at}");
        }
        let runs: Vec<_> = input.runs(OnError::Fail).map(Result::unwrap).collect();
        assert_eq!(runs.first().unwrap().start, 0);
        assert!(runs.windows(2).all(|pair| pair[0].end == pair[1].start), "{runs:?}");
        assert_eq!(runs.last().unwrap().end, input.size());
        assert!(runs.contains(&Piece { start: 700, end: 1024, what: Known::Zero }));
    }

    #[test]
    fn a_part_ends_where_the_disk_does() {
        let image = disk((0..100).collect());
        assert_eq!(all(&Input::part(&image, 10, 5)), [10, 11, 12, 13, 14]);
        assert_eq!(all(&Input::part(&image, 98, 5)), [98, 99]);
        assert_eq!(Input::part(&image, 1000, 5).size(), 0);
        assert_eq!(Input::part(&image, 1000, 5).runs(OnError::Fail).count(), 0);
    }

    #[test]
    fn what_is_read_is_widened_to_units_and_all_is_handed_out_once() {
        let input = Input::row([disk(vec![1; 700]), disk(vec![2; 4000])]);
        let units: Vec<_> = Units::new(&input, OnError::Fail, 1024).map(Result::unwrap).collect();
        assert_eq!(units.first().unwrap().start, 0);
        assert!(units.windows(2).all(|pair| pair[0].end == pair[1].start), "{units:?}");
        assert_eq!(units.last().unwrap().end, input.size());
    }
}
