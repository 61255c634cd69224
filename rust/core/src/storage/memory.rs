//! A storage in memory, sparse.

use std::collections::BTreeMap;
use std::fmt;

use parking_lot::RwLock;

use super::{Capabilities, Run, Storage, ZeroMode};
use crate::buffer::{IoVector, IoVectorMut};
use crate::error::{Error, Result};

/// Bytes of a chunk.
const CHUNK: u64 = 64 << 10;

type Chunk = RwLock<Box<[u8]>>;

/// Bytes in memory, growing where they are written; chunks that were never written take no memory.
///
/// Reads, and writes to chunks that are there, share the map and lock one chunk at a time; what adds or removes
/// chunks has the map for itself. Lock order: the map, then one chunk.
#[derive(Default)]
pub struct Memory {
    content: RwLock<Content>,
}

#[derive(Default)]
struct Content {
    len: u64,
    /// By index; a chunk that is missing is zeroes. Bytes at or past `len` are zeroes.
    chunks: BTreeMap<u64, Chunk>,
}

/// One chunk's share of a request.
struct Part {
    chunk: u64,
    start: usize,
    len: usize,
}

impl Part {
    fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// The parts of a range, whose end is a `u64`.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = Part> {
    let end = offset + len;
    let mut position = offset;
    std::iter::from_fn(move || {
        let start = position % CHUNK;
        let len = (CHUNK - start).min(end - position);
        let part = Part { chunk: position / CHUNK, start: start as usize, len: len as usize };
        position += len;
        (len > 0).then_some(part)
    })
}

fn new_chunk() -> Chunk {
    RwLock::new(vec![0; CHUNK as usize].into_boxed_slice())
}

impl Content {
    /// Zeroes a range inside the length; whole chunks go.
    fn clear(&mut self, offset: u64, len: u64) {
        let mut position = offset;
        let end = offset + len;
        while position < end {
            let rest = position / CHUNK..end.div_ceil(CHUNK);
            let Some((&chunk, bytes)) = self.chunks.range_mut(rest).next() else { break };
            let first = chunk * CHUNK;
            let from = position.max(first) - first;
            let to = (end - first).min(CHUNK);
            if to - from == CHUNK {
                self.chunks.remove(&chunk);
            } else {
                bytes.get_mut()[from as usize..to as usize].fill(0);
            }
            position = first + to;
        }
    }

    fn read(&self, mut bufs: IoVectorMut<'_>, offset: u64) {
        for part in parts(offset, self.clip(offset, bufs.len() as u64)) {
            let mut front = bufs.take_front(part.len);
            match self.chunks.get(&part.chunk) {
                Some(chunk) => front.copy_from_slice(&chunk.read()[part.range()]),
                None => front.fill_zero(),
            }
        }
        bufs.fill_zero();
    }

    /// How much of a range is inside the length.
    fn clip(&self, offset: u64, len: u64) -> u64 {
        self.len.saturating_sub(offset).min(len)
    }
}

impl Memory {
    /// `len` bytes of zeroes.
    pub fn new(len: u64) -> Self {
        Memory { content: RwLock::new(Content { len, chunks: BTreeMap::new() }) }
    }

    /// A copy of all its bytes.
    ///
    /// # Errors
    /// When that is more than memory can hold.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let content = self.content.read();
        let too_long = || Error::invalid_input("the storage is longer than memory can hold");
        let len = usize::try_from(content.len).map_err(|_| too_long())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| too_long())?;
        bytes.resize(len, 0);
        // A cut leaves the last chunk, zeroed, behind the end.
        for (index, chunk) in content.chunks.iter().filter(|(index, _)| *index * CHUNK < content.len) {
            let start = (index * CHUNK) as usize;
            let part = (len - start).min(CHUNK as usize);
            bytes[start..start + part].copy_from_slice(&chunk.read()[..part]);
        }
        Ok(bytes)
    }
}

impl From<&[u8]> for Memory {
    fn from(bytes: &[u8]) -> Self {
        let memory = Memory::new(bytes.len() as u64);
        let chunks = bytes.chunks(CHUNK as usize).map(|part| {
            let mut chunk = new_chunk();
            chunk.get_mut()[..part.len()].copy_from_slice(part);
            chunk
        });
        memory.content.write().chunks = (0..).zip(chunks).collect();
        memory
    }
}

impl From<Vec<u8>> for Memory {
    fn from(bytes: Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.content.read().len).finish_non_exhaustive()
    }
}

impl Storage for Memory {
    fn readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        self.content.read().read(bufs, offset);
        Ok(())
    }

    fn try_readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        let len = bufs.len();
        let Some(content) = self.content.try_read() else { return Ok(0) };
        content.read(bufs, offset);
        Ok(len)
    }

    fn writev_at(&self, mut bufs: IoVector<'_>, offset: u64) -> Result<()> {
        let len = bufs.len() as u64;
        if len == 0 {
            return Ok(());
        }
        let end = offset.checked_add(len).ok_or_else(|| {
            Error::invalid_input("a write ends past the largest offset there is").at(offset)
        })?;
        let content = self.content.read();
        if end <= content.len && parts(offset, len).all(|part| content.chunks.contains_key(&part.chunk)) {
            for part in parts(offset, len) {
                bufs.take_front(part.len)
                    .copy_to_slice(&mut content.chunks[&part.chunk].write()[part.range()]);
            }
            return Ok(());
        }
        drop(content);
        let content = &mut *self.content.write();
        for part in parts(offset, len) {
            let chunk = content.chunks.entry(part.chunk).or_insert_with(new_chunk);
            bufs.take_front(part.len).copy_to_slice(&mut chunk.get_mut()[part.range()]);
        }
        content.len = content.len.max(end);
        Ok(())
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        match mode {
            ZeroMode::Unmap => self.discard_at(offset, len),
            ZeroMode::Keep => {
                let content = self.content.read();
                for part in parts(offset, content.clip(offset, len)) {
                    if let Some(chunk) = content.chunks.get(&part.chunk) {
                        chunk.write()[part.range()].fill(0);
                    }
                }
                Ok(())
            }
        }
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        let mut content = self.content.write();
        let inside = content.clip(offset, len);
        if inside > 0 {
            content.clear(offset, inside);
        }
        Ok(())
    }

    fn allocate_at(&self, offset: u64, len: u64) -> Result<()> {
        let content = &mut *self.content.write();
        for part in parts(offset, content.clip(offset, len)) {
            content.chunks.entry(part.chunk).or_insert_with(new_chunk);
        }
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.content.read().len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut content = self.content.write();
        let cut = content.len.saturating_sub(len);
        if cut > 0 {
            content.clear(len, cut);
            // The last chunk may reach past the old end.
            content.chunks.split_off(&len.div_ceil(CHUNK));
        }
        content.len = len;
        Ok(())
    }

    fn grow(&self, len: u64) -> Result<()> {
        let content = &mut *self.content.write();
        content.len = content.len.max(len);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { write: true, fast_zeroes: true, discard_zeroes: true, resize: true }
    }

    fn run_at(&self, offset: u64, len: u64) -> Result<Run> {
        let content = self.content.read();
        let first = offset / CHUNK;
        let data = content.chunks.contains_key(&first);
        let next = if data {
            let there =
                content.chunks.range(first..).zip(first..).take_while(|((at, _), expected)| *at == expected);
            Some(first + there.count() as u64)
        } else {
            content.chunks.range(first..).next().map(|(at, _)| *at)
        };
        let end = next.and_then(|chunk| chunk.checked_mul(CHUNK)).unwrap_or(u64::MAX);
        Ok(Run { len: len.min(end - offset), data })
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(Some(self.content.read().chunks.len() as u64 * CHUNK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_written_chunks_take_memory() {
        let memory = Memory::new(1 << 50);
        memory.writev_at(b"x".into(), 1 << 49).expect("write");
        assert_eq!(memory.allocated().expect("allocated"), Some(CHUNK));
        assert_eq!(memory.run_at(0, 1 << 50).expect("run"), Run { len: 1 << 49, data: false });
        assert_eq!(memory.run_at(1 << 49, 1 << 49).expect("run"), Run { len: CHUNK, data: true });
        memory.write_zeroes_at(0, 1 << 50, ZeroMode::Unmap).expect("zeroes");
        assert_eq!(memory.allocated().expect("allocated"), Some(0));
        assert!(memory.to_vec().is_err(), "a petabyte is refused, not tried");
    }

    #[test]
    fn what_was_cut_off_takes_no_memory() {
        let memory = Memory::from(vec![1; 3 * CHUNK as usize / 2]);
        memory.set_len(CHUNK).expect("cut");
        assert_eq!(memory.allocated().expect("allocated"), Some(CHUNK));
        assert_eq!(memory.to_vec().expect("bytes"), vec![1; CHUNK as usize]);
    }

    #[test]
    fn keeping_zeroes_keeps_the_space() {
        let memory = Memory::from(vec![1; 3 * CHUNK as usize]);
        memory.write_zeroes_at(1, 2 * CHUNK, ZeroMode::Keep).expect("zeroes");
        assert_eq!(memory.allocated().expect("allocated"), Some(3 * CHUNK));
        memory.discard_at(0, 2 * CHUNK + 1).expect("discard");
        assert_eq!(memory.allocated().expect("allocated"), Some(CHUNK));
    }

    #[test]
    fn a_vector_goes_in_and_comes_out() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        assert_eq!(Memory::from(bytes.clone()).to_vec().expect("to_vec"), bytes);
    }
}
