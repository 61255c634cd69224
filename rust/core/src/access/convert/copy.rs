//! The pipeline: pieces of the input are read, looked through for zeroes, packed and written, on all cores.

use std::mem;

use super::super::image::Image;
use super::super::job::Job;
use super::super::pack::Packer;
use super::super::sweep::{CHUNK, Hands, PIECE, Piece, Then, cut, sweep_with};
use super::super::zero::is_zero;
use super::input::{Input, Known, OnError, Reader, Units};
use crate::buffer::IoVector;
use crate::error::Result;
use crate::format::ZeroIntent;
use crate::storage::Offload;

/// What is done where the input has zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroes {
    /// Nothing: the target reads as zeroes there.
    Skip,
    /// The target is made to read as zeroes there, and need not keep space for them.
    Write,
    /// They are written as data.
    Fill,
}

pub(super) struct Copy<'a> {
    pub(super) input: &'a Input,
    pub(super) on_error: OnError,
    pub(super) target: &'a Image,
    pub(super) zeroes: Zeroes,
    /// Bytes of the blocks, aligned in the disk, that are looked at for zeroes.
    pub(super) block: usize,
    pub(super) packer: Option<Packer>,
    /// Where what is below the target ends: behind that it reads as zeroes by itself.
    pub(super) below_end: u64,
    /// Bytes of a piece at most.
    pub(super) piece: u64,
    /// How data may get into the target without being read.
    pub(super) offload: Option<Offload>,
}

impl Copy<'_> {
    pub(super) fn run(&self, reader: &Reader<'_>, hands: &Hands, job: &mut Job<'_>) -> Result<()> {
        let unit = self.packer.as_ref().map_or(1, |packer| packer.cluster_size as u64);
        let units = Units::new(self.input, self.on_error, unit);
        // Nothing is done about it, or by one call for all of it.
        let whole = |piece: &Piece<Known>| match piece.what {
            Known::Below => true,
            Known::Zero => self.zeroes == Zeroes::Skip,
            Known::Nothing => false,
        };
        let pieces = cut(units, self.piece.max(unit), whole);
        sweep_with(hands, pieces, self.input.size(), job, |piece, buffer| {
            match piece.what {
                Known::Below => {}
                Known::Zero => self.put_zeroes(&piece, hands, buffer)?,
                Known::Nothing => self.put_data(&piece, reader, hands, buffer)?,
            }
            Ok(Then::Next)
        })?;
        job.wanted().check()
    }

    fn put_zeroes(&self, piece: &Piece<Known>, hands: &Hands, buffer: &mut Vec<u8>) -> Result<()> {
        match (self.zeroes, &self.packer) {
            (Zeroes::Skip, _) => Ok(()),
            (Zeroes::Write, _) => self.zero(piece.start, piece.end),
            (Zeroes::Fill, None) => {
                hands.charge(piece.len());
                self.target.write(IoVector::zeroes(piece.len() as usize), piece.start)
            }
            (Zeroes::Fill, Some(packer)) => {
                buffer.clear();
                buffer.resize(piece.len() as usize, 0);
                self.put_packed(packer, piece.start, hands, buffer)
            }
        }
    }

    /// Writes `buffer` packed.
    fn put_packed(&self, packer: &Packer, start: u64, hands: &Hands, buffer: &mut Vec<u8>) -> Result<()> {
        let batch = packer.pack(start, mem::take(buffer))?;
        hands.charge(batch.stored());
        self.target.write_batch(&batch)?;
        *buffer = batch.into_bytes();
        Ok(())
    }

    fn zero(&self, start: u64, end: u64) -> Result<()> {
        let end = end.min(self.below_end);
        if start >= end {
            return Ok(());
        }
        self.target.write_zeroes(start, end - start, ZeroIntent::Unmap)
    }

    fn put_data(
        &self,
        piece: &Piece<Known>,
        reader: &Reader<'_>,
        hands: &Hands,
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        if let Some(packer) = &self.packer {
            buffer.resize(piece.len() as usize, 0);
            reader.read(buffer, piece.start)?;
            return self.put_packed(packer, piece.start, hands, buffer);
        }
        let mut at = piece.start + self.offload(piece, hands)?;
        while at < piece.end {
            let len = (piece.end - at).min(CHUNK) as usize;
            buffer.resize(len, 0);
            reader.read(buffer, at)?;
            for (run, zero) in runs(buffer, at, self.block) {
                if !zero || self.zeroes == Zeroes::Fill {
                    hands.charge(run.len() as u64);
                    self.target.write(run, at)?;
                } else if self.zeroes == Zeroes::Write {
                    self.zero(at, at + run.len() as u64)?;
                }
                at += run.len() as u64;
            }
        }
        Ok(())
    }
}

impl Copy<'_> {
    /// Has the target take over what it can of a piece, and says how many bytes from the front that were.
    #[cfg(unix)]
    fn offload(&self, piece: &Piece<Known>, hands: &Hands) -> Result<u64> {
        let Some(how) = self.offload else { return Ok(0) };
        let mut done = 0;
        let Some(reads) = self.input.in_files(piece.start, piece.len())? else { return Ok(0) };
        for source in &reads.segments {
            let copied = self.target.copy_in(*source, piece.start + done, how)?;
            hands.charge(copied);
            done += copied;
            if copied < source.len {
                break;
            }
        }
        Ok(done)
    }

    #[cfg(not(unix))]
    fn offload(&self, _: &Piece<Known>, _: &Hands) -> Result<u64> {
        Ok(0)
    }
}

/// Bytes of a piece where `slow` work is done on it: the caller asks between two pieces whether it is wanted.
pub(super) fn piece_size(slow: bool) -> u64 {
    if slow { PIECE / 16 } else { PIECE }
}

/// Splits `bytes`, at `offset` of the disk, into runs of blocks that are zero and of blocks that are not.
fn runs(bytes: &[u8], offset: u64, block: usize) -> impl Iterator<Item = (&[u8], bool)> {
    let mut rest = bytes;
    let mut next = block - (offset % block as u64) as usize;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut len = next.min(rest.len());
        let zero = is_zero(&rest[..len]);
        let behind = rest[len..].chunks(block).take_while(|block| is_zero(block) == zero);
        len += behind.map(<[u8]>::len).sum::<usize>();
        next = block;
        let (run, behind) = rest.split_at(len);
        rest = behind;
        Some((run, zero))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    fn found(bytes: &[u8], offset: u64) -> Vec<(usize, bool)> {
        runs(bytes, offset, BLOCK).map(|(run, zero)| (run.len(), zero)).collect()
    }

    #[test]
    fn runs_cover_everything_once() {
        let mut bytes = vec![0; 5 * BLOCK + 100];
        bytes[BLOCK + 7] = 1;
        bytes[2 * BLOCK] = 1;
        bytes[5 * BLOCK + 99] = 1;
        let expected = [(BLOCK, true), (2 * BLOCK, false), (2 * BLOCK, true), (100, false)];
        assert_eq!(found(&bytes, 0), expected);
        assert_eq!(found(&bytes, 7 << 20), expected);
        assert_eq!(found(&[], 0), []);
        assert_eq!(found(&[0; 10], 0), [(10, true)]);
    }

    #[test]
    fn blocks_are_those_of_the_disk() {
        let mut bytes = vec![0; 2 * BLOCK];
        bytes[100] = 1;
        assert_eq!(found(&bytes, 3 * BLOCK as u64 - 200), [(200, false), (2 * BLOCK - 200, true)]);
        assert_eq!(found(&bytes, 3 * BLOCK as u64 - 50), [(50, true), (BLOCK, false), (BLOCK - 50, true)]);
    }
}
