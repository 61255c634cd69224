//! Zeroing and discarding.

use crate::buffer::IoVector;
use crate::error::Result;
use crate::format::{InPlace, ZeroIntent, ZeroStep};
use crate::storage::ZeroMode;
use crate::units::GuestOffset;

use super::image::Image;

/// Bytes that one write of zeroes has at most.
const WRITE_MAX: u64 = 1 << 20;

static ZEROES: [u8; 4096] = [0; 4096];

/// Whether all of `bytes` are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROES.len()).all(|part| *part == ZEROES[..part.len()])
}

impl Image {
    /// Makes `len` bytes at `offset` read as zeroes; `intent` says what becomes of the space.
    pub fn write_zeroes(&self, offset: u64, len: u64, intent: ZeroIntent) -> Result<()> {
        let _writing = self.begin_write(offset, len)?;
        self.zero_range(offset, len, intent)
    }

    /// The same of a range that was checked, by whoever writes alone or has begun to.
    pub(super) fn zero_range(&self, offset: u64, len: u64, intent: ZeroIntent) -> Result<()> {
        let _range = self.ranges.lock(offset, len, self.format.write_alignment());
        self.zero_locked(offset, len, intent)
    }

    /// Zeroes while the caller holds the range.
    pub(super) fn zero_locked(&self, offset: u64, len: u64, intent: ZeroIntent) -> Result<()> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let step = self.format.zero(GuestOffset(at), end - at, intent).map_err(|e| self.name(e))?;
            let done = match step {
                ZeroStep::Done { len } => {
                    self.unpacked.forget(at, len);
                    len
                }
                ZeroStep::InPlace(InPlace { len, storage, offset: host }) => {
                    match intent {
                        ZeroIntent::Discard => storage.discard_at(host.0, len),
                        ZeroIntent::Keep => storage.write_zeroes_at(host.0, len, ZeroMode::Keep),
                        ZeroIntent::Unmap => storage.write_zeroes_at(host.0, len, ZeroMode::Unmap),
                    }
                    .map_err(|e| self.name(e))?;
                    len
                }
                ZeroStep::Write { len } => {
                    if intent != ZeroIntent::Discard && !self.reads_zero(at, len)? {
                        self.write_zero_bytes(at, len)?;
                    }
                    len
                }
            };
            at += done;
        }
        Ok(())
    }

    /// Tells the image that the guest has no use for `len` bytes at `offset`: what is there afterwards are zeroes, or
    /// what was there before; the space goes back to the host where that is possible.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len, ZeroIntent::Discard)
    }

    /// Takes everything out of the image itself, see [`Format::make_empty`](crate::format::Format::make_empty).
    pub(super) fn make_empty(&self) -> Result<()> {
        self.exclusively(|format| {
            let emptied = format.make_empty();
            self.unpacked.forget(0, u64::MAX);
            emptied
        })
    }

    fn write_zero_bytes(&self, mut at: u64, len: u64) -> Result<()> {
        let end = at + len;
        while at < end {
            let part = (end - at).min(WRITE_MAX);
            self.write_locked(IoVector::zeroes(part as usize), at)?;
            at += part;
        }
        Ok(())
    }
}
