//! A hash of what a guest sees, equal for equal content whatever the format.
//!
//! The disk is cut into blocks of 2 MiB from its start. A block's digest is BLAKE3 of its bytes, the last block's of those it has.
//! The result is BLAKE3, with the context below, of the disk's size (8 bytes, little-endian) and, for each block that is not all
//! zeroes in the order of the disk, its number (8 bytes, little-endian) and its digest (32 bytes). So blocks of zeroes
//! cost nothing where the image knows them, and every other block can be hashed by any core.

use std::sync::Arc;

use parking_lot::Mutex;

use super::extent::Extent;
use super::image::Image;
use super::job::Job;
use super::map::Extents;
use super::sweep::{PIECE, Piece, Then, sweep};
use super::zero::is_zero;
use crate::error::Result;

/// What tells this hash from any other use of BLAKE3.
const CONTEXT: &str = "pyimago 2026-11-23 content of a disk, blocks of 2 MiB";

/// The digest of `image`'s content, worked out on all cores.
pub fn hash(image: &Arc<Image>, job: &mut Job<'_>) -> Result<[u8; 32]> {
    let size = image.size();
    let blocks = Blocks { extents: image.extents(0, size)?, current: None, position: 0, size };
    let digests = Mutex::new(Vec::new());
    sweep(blocks, size, job, |piece, buffer| {
        if piece.what != Known::Zero
            && let Some(digest) = digest_of(image, &piece, buffer)?
        {
            digests.lock().push((piece.start / PIECE, digest));
        }
        Ok(Then::Next)
    })?;
    let mut digests = digests.into_inner();
    digests.sort_unstable_by_key(|(block, _)| *block);
    let mut whole = blake3::Hasher::new_derive_key(CONTEXT);
    whole.update(&size.to_le_bytes());
    for (block, digest) in digests {
        whole.update(&block.to_le_bytes()).update(&digest);
    }
    Ok(*whole.finalize().as_bytes())
}

/// Bytes that are read and hashed at a time, so that they are still in a core's own cache for the hash.
const PART: u64 = 128 << 10;

static ZEROES: [u8; PART as usize] = [0; PART as usize];

/// The digest of a block, `None` if all of it is zeroes.
fn digest_of(image: &Image, piece: &Piece<Known>, buffer: &mut Vec<u8>) -> Result<Option<[u8; 32]>> {
    let mut hasher = None;
    let mut at = piece.start;
    while at < piece.end {
        let len = PART.min(piece.end - at);
        buffer.resize(len as usize, 0);
        image.read(&mut buffer[..], at)?;
        if hasher.is_none() && !is_zero(buffer) {
            let mut begun = blake3::Hasher::new();
            for _ in (piece.start..at).step_by(PART as usize) {
                begun.update(&ZEROES);
            }
            hasher = Some(begun);
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(buffer);
        }
        at += len;
    }
    Ok(hasher.map(|hasher| *hasher.finalize().as_bytes()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Zero,
    Nothing,
}

/// Whole blocks of the disk; a run of blocks that are known to be zero is one piece.
struct Blocks {
    extents: Extents,
    /// The extent that was read last.
    current: Option<Extent>,
    position: u64,
    size: u64,
}

impl Blocks {
    /// How far the disk is known to be zero from the position on.
    fn zero_until(&mut self) -> Result<u64> {
        let mut until = self.position;
        while until < self.size {
            while self.current.as_ref().is_none_or(|extent| extent.end() <= until) {
                self.current = self.extents.next().transpose()?;
            }
            match &self.current {
                Some(extent) if extent.zero => until = extent.end(),
                _ => break,
            }
        }
        Ok(until)
    }
}

impl Iterator for Blocks {
    type Item = Result<Piece<Known>>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.position;
        if start >= self.size {
            return None;
        }
        let zero_until = match self.zero_until() {
            Ok(until) => until,
            Err(error) => {
                self.position = self.size;
                return Some(Err(error));
            }
        };
        let whole = if zero_until == self.size { zero_until } else { zero_until / PIECE * PIECE };
        let what = if whole > start { Known::Zero } else { Known::Nothing };
        let end = if what == Known::Zero { whole } else { (start + PIECE).min(self.size) };
        self.position = end;
        Some(Ok(Piece { start, end, what }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::create::{CreateOptions, create};
    use crate::access::image::Base;
    use crate::access::open::OpenOptions;
    use crate::format::FormatKind;
    use crate::format::raw::Raw;
    use crate::storage::memory::Memory;

    fn digest(image: &Arc<Image>) -> [u8; 32] {
        hash(image, &mut Job::default()).unwrap()
    }

    fn raw(bytes: &[u8]) -> Arc<Image> {
        let storage = Arc::new(Memory::from(bytes.to_vec()));
        Arc::new(Image::new(Arc::new(Raw::open(storage, false).unwrap()), Base::None))
    }

    /// The definition, word for word.
    fn by_definition(bytes: &[u8]) -> [u8; 32] {
        let mut whole = blake3::Hasher::new_derive_key(CONTEXT);
        whole.update(&(bytes.len() as u64).to_le_bytes());
        for (number, block) in bytes.chunks(PIECE as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                whole.update(&(number as u64).to_le_bytes()).update(blake3::hash(block).as_bytes());
            }
        }
        *whole.finalize().as_bytes()
    }

    #[test]
    fn equal_content_has_one_hash_in_every_format() {
        let size = 9 * PIECE as usize + 1536;
        let mut bytes = vec![0; size];
        bytes[3 * PIECE as usize - 1] = 1;
        bytes[5 * PIECE as usize + 70_000..][..100_000].fill(0xa5);
        bytes[size - 1] = 7;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        create(&path, &CreateOptions::qcow2(size as u64)).unwrap();
        let options = OpenOptions { write: true, format: Some(FormatKind::Qcow2), ..Default::default() };
        let qcow2 = options.open(&path).unwrap();
        for start in [2 * PIECE as usize, 5 * PIECE as usize, 9 * PIECE as usize] {
            let end = (start + PIECE as usize).min(size);
            qcow2.write(&bytes[start..end], start as u64).unwrap();
        }
        assert_eq!(digest(&raw(&bytes)), by_definition(&bytes));
        assert_eq!(digest(&qcow2), by_definition(&bytes));
        qcow2.write(b"x", 0).unwrap();
        assert_ne!(digest(&qcow2), by_definition(&bytes));
        bytes.push(0);
        assert_ne!(digest(&raw(&bytes)), by_definition(&bytes[..size]), "the size counts");
        assert_eq!(digest(&raw(&[])), by_definition(&[]));
    }
}
