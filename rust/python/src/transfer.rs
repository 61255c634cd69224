//! Reads and writes: which memory, which offsets, how far they have come.

use imago_core::access::image::Image;
use imago_core::access::pack::CompressionLevel;
use imago_core::{IoVector, IoVectorMut, Result};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use smallvec::{SmallVec, smallvec};

use crate::access::Access;
use crate::buffers::Buffer;

/// Reads up to this size, in bytes, are tried on the event loop's thread in this turn or a later one.
pub(crate) const INLINE_LIMIT: usize = 64 << 10;
/// The most that is ever copied at once on an event loop's thread, in bytes: if this turn has the time. A worker would spend as
/// much again on being woken and on memory that another core has.
pub(crate) const LARGE_LIMIT: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
    WriteCompressed(CompressionLevel),
}

/// One contiguous guest range and the memory for it.
struct Segment {
    buffers: SmallVec<[Buffer; 1]>,
    len: usize,
    offset: u64,
}

/// How far an attempt without waiting came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// All is read.
    Done,
    /// This turn of the loop has done its share.
    OutOfBudget,
    /// What comes next has to be waited for.
    Waits,
}

/// What an event loop may still do inline in this turn, in nanoseconds of estimated work.
///
/// Estimated and not measured: asking the clock costs a tenth of a small read. The figures are those of a
/// `preadv` of cached data: about 300 ns of system call and 16 bytes per nanosecond.
pub(crate) trait Budget {
    /// Takes the cost of reading `len` bytes; `false` if the budget is used up.
    fn spend(&self, len: usize) -> bool;

    /// Whether a read of more than [`INLINE_LIMIT`] may be done in what is left.
    fn affords(&self, len: usize) -> bool;
}

/// A caller that blocks anyway.
pub(crate) struct Unlimited;

impl Budget for Unlimited {
    fn spend(&self, _: usize) -> bool {
        true
    }

    fn affords(&self, _: usize) -> bool {
        true
    }
}

/// One read or write of one or many ranges, with the memory it needs.
pub(crate) struct Transfer {
    direction: Direction,
    segments: SmallVec<[Segment; 1]>,
    /// The segment that comes next, and how much of it is there already.
    next: usize,
    filled: usize,
    reply: Option<Py<PyBytes>>,
}

impl Segment {
    fn new(buffers: SmallVec<[Buffer; 1]>, offset: u64) -> Self {
        let len = buffers.iter().map(Buffer::len).sum();
        Segment { buffers, len, offset }
    }

    fn memory(&self, from: usize) -> IoVectorMut<'_> {
        let mut memory = IoVectorMut::new();
        for buffer in &self.buffers {
            buffer.push_to(&mut memory);
        }
        if from > 0 {
            let _ = memory.take_front(from);
        }
        memory
    }

    fn data(&self) -> IoVector<'_> {
        let mut data = IoVector::new();
        for buffer in &self.buffers {
            buffer.append_to(&mut data);
        }
        data
    }
}

fn segment_of(
    buffer: fn(&Bound<'_, PyAny>) -> PyResult<Buffer>,
    buffers: &Bound<'_, PyAny>,
    offset: u64,
) -> PyResult<Segment> {
    let exported = buffers.try_iter()?.map(|item| buffer(&item?)).collect::<PyResult<_>>()?;
    Ok(Segment::new(exported, offset))
}

fn segments_of(
    buffer: fn(&Bound<'_, PyAny>) -> PyResult<Buffer>,
    pairs: &Bound<'_, PyAny>,
) -> PyResult<SmallVec<[Segment; 1]>> {
    let mut segments = SmallVec::with_capacity(pairs.len().unwrap_or(0));
    for pair in pairs.try_iter()? {
        let pair = pair?;
        let Ok((object, offset)) = pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() else {
            return Err(PyTypeError::new_err("requests are pairs (tuples) of a buffer and an offset"));
        };
        let Offset(offset) = offset.extract()?;
        segments.push(Segment::new(smallvec![buffer(&object)?], offset));
    }
    Ok(segments)
}

impl Transfer {
    fn new(direction: Direction, segments: SmallVec<[Segment; 1]>) -> Self {
        Transfer { direction, segments, next: 0, filled: 0, reply: None }
    }

    /// Fills one buffer.
    pub(crate) fn read(buf: &Bound<'_, PyAny>, offset: Offset) -> PyResult<Self> {
        let segment = Segment::new(smallvec![Buffer::writable(buf)?], offset.0);
        Ok(Self::new(Direction::Read, smallvec![segment]))
    }

    /// Fills several buffers, one after the other, from one range.
    pub(crate) fn readv(bufs: &Bound<'_, PyAny>, offset: Offset) -> PyResult<Self> {
        Ok(Self::new(Direction::Read, smallvec![segment_of(Buffer::writable, bufs, offset.0)?]))
    }

    /// Fills each buffer from its own offset.
    pub(crate) fn read_many(pairs: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self::new(Direction::Read, segments_of(Buffer::writable, pairs)?))
    }

    /// Fills a new `bytes` object, which becomes the operation's result.
    pub(crate) fn pread(
        py: Python<'_>,
        access: &Access,
        length: Offset,
        Offset(offset): Offset,
    ) -> PyResult<Self> {
        // Before the memory is asked for: a hostile length must not become an allocation.
        access.check_range("read", offset, length.0)?;
        let (bytes, buffer) = Buffer::of_new_bytes(py, length.0)?;
        let segment = Segment::new(smallvec![buffer], offset);
        let mut transfer = Self::new(Direction::Read, smallvec![segment]);
        transfer.reply = Some(bytes);
        Ok(transfer)
    }

    /// Writes one buffer.
    pub(crate) fn write(data: &Bound<'_, PyAny>, offset: Offset) -> PyResult<Self> {
        let segment = Segment::new(smallvec![Buffer::readable(data)?], offset.0);
        Ok(Self::new(Direction::Write, smallvec![segment]))
    }

    /// Writes several buffers, one after the other, to one range.
    pub(crate) fn writev(bufs: &Bound<'_, PyAny>, offset: Offset) -> PyResult<Self> {
        Ok(Self::new(Direction::Write, smallvec![segment_of(Buffer::readable, bufs, offset.0)?]))
    }

    /// Writes each buffer to its own offset.
    pub(crate) fn write_many(pairs: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self::new(Direction::Write, segments_of(Buffer::readable, pairs)?))
    }

    /// Writes one buffer in compressed clusters.
    pub(crate) fn write_compressed(
        data: &Bound<'_, PyAny>,
        offset: Offset,
        level: Option<Level>,
    ) -> PyResult<Self> {
        let segment = Segment::new(smallvec![Buffer::readable(data)?], offset.0);
        let level = level.map_or(CompressionLevel::Default, |level| level.0);
        Ok(Self::new(Direction::WriteCompressed(level), smallvec![segment]))
    }

    /// Refuses what cannot succeed before anything of it is done.
    pub(crate) fn check(&self, access: &Access) -> PyResult<()> {
        let what = match self.direction {
            Direction::Read => "read",
            Direction::Write | Direction::WriteCompressed(_) => {
                access.check_writable()?;
                "write"
            }
        };
        self.segments.iter().try_for_each(|s| access.check_range(what, s.offset, s.len as u64))
    }

    /// What a ring would have to read: for each range its memory and where it is in the disk. `None` for writes.
    pub(crate) fn rest(&self) -> Option<impl Iterator<Item = (IoVectorMut<'_>, u64)>> {
        (self.direction == Direction::Read).then(|| {
            self.segments[self.next..].iter().enumerate().map(|(i, segment)| {
                let filled = if i == 0 { self.filled } else { 0 };
                (segment.memory(filled), segment.offset + filled as u64)
            })
        })
    }

    /// Whether it is a read of no more than `limit` bytes in all.
    pub(crate) fn is_small_read(&self, limit: usize) -> bool {
        self.direction == Direction::Read && self.segments.iter().map(|s| s.len).sum::<usize>() <= limit
    }

    /// Reads on for as long as nothing has to be waited for.
    pub(crate) fn advance(&mut self, image: &Image, budget: &impl Budget) -> Result<Progress> {
        if self.direction != Direction::Read {
            return Ok(Progress::Waits);
        }
        while let Some(segment) = self.segments.get(self.next) {
            if segment.len > INLINE_LIMIT && !budget.affords(segment.len) {
                return Ok(Progress::Waits);
            }
            if !budget.spend(segment.len) {
                return Ok(Progress::OutOfBudget);
            }
            if self.filled < segment.len {
                let memory = segment.memory(self.filled);
                self.filled += image.try_read(memory, segment.offset + self.filled as u64)?;
            }
            if self.filled < segment.len {
                return Ok(Progress::Waits);
            }
            self.next += 1;
            self.filled = 0;
        }
        Ok(Progress::Done)
    }

    /// Does what is left, waiting where that is needed.
    pub(crate) fn run(&mut self, image: &Image) -> Result<()> {
        while let Some(segment) = self.segments.get(self.next) {
            match self.direction {
                _ if segment.len == 0 => {}
                Direction::Read => {
                    image.read(segment.memory(self.filled), segment.offset + self.filled as u64)?;
                }
                Direction::Write => image.write(segment.data(), segment.offset)?,
                Direction::WriteCompressed(level) => {
                    image.write_compressed(segment.data(), segment.offset, level)?;
                }
            }
            self.next += 1;
            self.filled = 0;
        }
        Ok(())
    }

    /// Gives the memory back and says what Python gets, if that is not None.
    #[inline]
    pub(crate) fn reply(self) -> Option<Py<PyAny>> {
        let Transfer { segments, reply, .. } = self;
        drop(segments);
        reply.map(Py::into_any)
    }
}

/// An offset or length in bytes. A negative or too large number is a `ValueError`, anything else than a number a `TypeError`.
#[derive(Clone, Copy)]
pub(crate) struct Offset(pub(crate) u64);

impl<'py> FromPyObject<'_, 'py> for Offset {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract::<u64>().map(Offset).map_err(|error| {
            if error.is_instance_of::<pyo3::exceptions::PyOverflowError>(object.py()) {
                PyValueError::new_err(format!(
                    "{} is out of range: offsets and lengths are not negative and below 2**64",
                    *object
                ))
            } else {
                error
            }
        })
    }
}

/// A small number that is not negative. One that is out of range is a `ValueError`, anything else than a number a `TypeError`.
pub(crate) struct Count(pub(crate) u32);

impl<'py> FromPyObject<'_, 'py> for Count {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract::<u32>().map(Count).map_err(|error| {
            if error.is_instance_of::<pyo3::exceptions::PyOverflowError>(object.py()) {
                PyValueError::new_err(format!("{} is out of range: 0 to {} are possible", *object, u32::MAX))
            } else {
                error
            }
        })
    }
}

/// A compression level. A number that no method has is a `ValueError`, anything else than a number a `TypeError`.
pub(crate) struct Level(pub(crate) CompressionLevel);

impl<'py> FromPyObject<'_, 'py> for Level {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract::<u32>().map(|level| Level(CompressionLevel::Of(level))).map_err(|error| {
            if error.is_instance_of::<pyo3::exceptions::PyOverflowError>(object.py()) {
                PyValueError::new_err(format!("there is no compression level {}", *object))
            } else {
                error
            }
        })
    }
}
