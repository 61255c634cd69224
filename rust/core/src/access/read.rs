//! Reading: the plan of each run, carried out into the caller's memory.

use std::sync::Arc;

use crate::buffer::IoVectorMut;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CompressedCluster, Lookup, Mapping, Place};
use crate::storage::Storage;
use crate::units::GuestOffset;

use super::cluster_cache::Stamp;
use super::image::{Base, Image};
use super::unpack::{self, Piece};

impl Image {
    /// Fills `bufs` with the disk's bytes from `offset` on (bytes).
    ///
    /// A range that passes the end of the disk is [`ErrorKind::InvalidInput`] and nothing is read.
    pub fn read<'a>(&self, bufs: impl Into<IoVectorMut<'a>>, offset: u64) -> Result<()> {
        let bufs = bufs.into();
        self.check_range(offset, bufs.len() as u64)?;
        let _operation = self.enter()?;
        self.read_range(bufs, offset)
    }

    /// Fills from the front what can be had without waiting and says how many bytes that were: metadata that is
    /// cached, data that the storage has at hand, zeroes, clusters that are unpacked already.
    ///
    /// The work is that of copying the bytes: who must not be kept long asks for few of them.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "the frames of a small read are as dear as its look-up, see `read_nowait`"
    )]
    pub fn try_read<'a>(&self, bufs: impl Into<IoVectorMut<'a>>, offset: u64) -> Result<usize> {
        let bufs = bufs.into();
        self.check_range(offset, bufs.len() as u64)?;
        let _operation = self.enter_briefly()?;
        self.try_read_range(bufs, offset)
    }

    /// As [`read`](Image::read), of a range that was checked, inside an operation.
    #[inline]
    pub(super) fn read_range(&self, mut bufs: IoVectorMut<'_>, mut offset: u64) -> Result<()> {
        let mut packed = Vec::new();
        // Before the first look-up, so that a change of the mapping after it is noticed.
        let stamp = self.unpacked.stamp();
        while !bufs.is_empty() {
            let Mapping { len, place } = self.map(offset, bufs.len() as u64)?;
            let mut part = bufs.take_front(len as usize);
            match place {
                Place::Data { storage, offset: host } => {
                    self.read_data(&**storage, part, host, offset).map_err(|e| self.name(e))?;
                }
                Place::Zero { .. } => part.fill_zero(),
                Place::Unallocated { .. } => self.read_base(part, offset)?,
                Place::Compressed { storage, cluster } => {
                    let skip = (offset - cluster.guest.0) as usize;
                    if packed.is_empty() && bufs.is_empty() {
                        self.read_packed(&**storage, &cluster, skip, part, stamp)?;
                    } else {
                        packed.push(Piece { storage: Arc::clone(storage), cluster, skip, bufs: part });
                    }
                }
            }
            offset += len;
        }
        if packed.is_empty() { Ok(()) } else { unpack::read_all(self, packed, stamp) }
    }

    /// Where the bytes from `offset` on are; loads metadata where it has to. The length is at least 1 and at most `len`.
    #[inline]
    pub(super) fn map(&self, offset: u64, len: u64) -> Result<Mapping<'_>> {
        let mapping = self.format.map(GuestOffset(offset), len, Lookup::Load).map_err(|e| self.name(e))?;
        let mapping = mapping.expect("a look-up that loads has an answer");
        debug_assert!((1..=len).contains(&mapping.len));
        Ok(mapping)
    }

    /// Fills `part` with what lies below the image at `offset`.
    fn read_base(&self, mut part: IoVectorMut<'_>, mut offset: u64) -> Result<()> {
        match &self.base {
            Base::None => part.fill_zero(),
            // By who holds it, not image by image: a deep chain costs what one level costs.
            Base::Image { owned: true, .. } => {
                while !part.is_empty() {
                    let answer = self.below().answer(offset, part.len() as u64, Lookup::Load)?;
                    let answer = answer.expect("a look-up that loads has an answer");
                    let mut piece = part.take_front(answer.len as usize);
                    match answer.image {
                        Some(image) => {
                            let inside = piece.take_front(answer.within as usize);
                            image.read_range(inside, offset)?;
                            piece.fill_zero();
                        }
                        None => self.below().last().read_base(piece, offset)?,
                    }
                    offset += answer.len;
                }
            }
            Base::Image { image, owned: false } => {
                let within = image.size().saturating_sub(offset).min(part.len() as u64);
                let below = part.take_front(within as usize);
                part.fill_zero();
                if !below.is_empty() {
                    image.read(below, offset)?;
                }
            }
            Base::Unopened(_) => return Err(self.unopened_base()),
        }
        Ok(())
    }

    #[cold]
    pub(super) fn unopened_base(&self) -> Error {
        let Base::Unopened(reference) = &self.base else { unreachable!("only asked of an unopened base") };
        self.name(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the backing file {:?} was not opened: open the implicit dependencies or set a backing image",
                reference.name.to_string_lossy()
            ),
        ))
    }

    /// Fills `part` from one compressed cluster, from its byte `skip` on. A cluster that is read in part is kept unpacked, unless
    /// mappings have changed since `stamp`.
    pub(super) fn read_packed(
        &self,
        storage: &dyn Storage,
        cluster: &CompressedCluster,
        skip: usize,
        part: IoVectorMut<'_>,
        stamp: Stamp,
    ) -> Result<()> {
        if let Some(bytes) = self.unpacked.get(cluster) {
            copy(part, &bytes, skip);
            return Ok(());
        }
        if part.len() == cluster.unpacked_len as usize {
            return unpack::into(storage, cluster, part);
        }
        let mut bytes = Vec::new();
        unpack::cluster(storage, cluster, &mut bytes)?;
        copy(part, &bytes, skip);
        self.unpacked.put(*cluster, Arc::new(bytes), stamp);
        Ok(())
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "the frames of a small read are as dear as its look-up, see `read_nowait`"
    )]
    fn try_read_range(&self, mut bufs: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        let mut filled = 0;
        while !bufs.is_empty() {
            let at = offset + filled as u64;
            let mapping = self.format.map(GuestOffset(at), bufs.len() as u64, Lookup::Cached);
            let Some(Mapping { len, place }) = mapping.map_err(|e| self.name(e))? else { break };
            let mut part = bufs.take_front(len as usize);
            let len = part.len();
            let done = match place {
                Place::Data { .. } if self.cipher.is_some() => 0,
                Place::Data { storage, offset: host } => {
                    storage.try_readv_at(part, host.0).map_err(|e| self.name(e))?
                }
                Place::Zero { .. } => {
                    part.fill_zero();
                    len
                }
                Place::Compressed { cluster, .. } => match self.unpacked.get(&cluster) {
                    Some(bytes) => {
                        copy(part, &bytes, (at - cluster.guest.0) as usize);
                        len
                    }
                    None => 0,
                },
                Place::Unallocated { .. } => self.try_read_base(part, at)?,
            };
            filled += done;
            if done < len {
                break;
            }
        }
        Ok(filled)
    }

    fn try_read_base(&self, mut part: IoVectorMut<'_>, offset: u64) -> Result<usize> {
        let mut filled = 0;
        match &self.base {
            Base::None => {
                part.fill_zero();
                Ok(part.len())
            }
            Base::Image { owned: true, .. } => {
                while !part.is_empty() {
                    let at = offset + filled as u64;
                    let answer = self.below().answer(at, part.len() as u64, Lookup::Cached)?;
                    let Some(answer) = answer else { break };
                    let mut piece = part.take_front(answer.len as usize);
                    let whole = piece.len();
                    let done = match answer.image {
                        Some(image) => {
                            let inside = piece.take_front(answer.within as usize);
                            let within = inside.len();
                            let done = image.try_read_range(inside, at)?;
                            if done == within {
                                piece.fill_zero();
                                whole
                            } else {
                                done
                            }
                        }
                        None => self.below().last().try_read_base(piece, at)?,
                    };
                    filled += done;
                    if done < whole {
                        break;
                    }
                }
                Ok(filled)
            }
            Base::Image { image, owned: false } => {
                let within = image.size().saturating_sub(offset).min(part.len() as u64) as usize;
                let below = part.take_front(within);
                let mut done = if below.is_empty() { 0 } else { image.try_read(below, offset)? };
                if done == within {
                    part.fill_zero();
                    done += part.len();
                }
                Ok(done)
            }
            Base::Unopened(_) => Err(self.unopened_base()),
        }
    }

    /// Whether `len` bytes at `offset` are known to read as zeroes, through the chain, without reading data.
    pub(super) fn reads_zero(&self, mut offset: u64, len: u64) -> Result<bool> {
        let end = offset + len;
        while offset < end {
            let Mapping { len, place } = self.map(offset, end - offset)?;
            let zero = match place {
                Place::Zero { .. } => true,
                Place::Data { .. } | Place::Compressed { .. } => false,
                Place::Unallocated { .. } => self.base_reads_zero(offset, len)?,
            };
            if !zero {
                return Ok(false);
            }
            offset += len;
        }
        Ok(true)
    }

    fn base_reads_zero(&self, mut offset: u64, len: u64) -> Result<bool> {
        match &self.base {
            Base::None => Ok(true),
            Base::Image { owned: true, .. } => {
                let end = offset + len;
                while offset < end {
                    let answer = self.below().answer(offset, end - offset, Lookup::Load)?;
                    let answer = answer.expect("a look-up that loads has an answer");
                    let zero = match answer.image {
                        Some(image) => image.reads_zero(offset, answer.within)?,
                        None => self.below().last().base_reads_zero(offset, answer.len)?,
                    };
                    if !zero {
                        return Ok(false);
                    }
                    offset += answer.len;
                }
                Ok(true)
            }
            Base::Image { image, owned: false } => {
                let within = image.size().saturating_sub(offset).min(len);
                let _operation = image.enter()?;
                image.reads_zero(offset, within)
            }
            Base::Unopened(_) => Err(self.unopened_base()),
        }
    }
}

/// Fills `part` from `bytes[skip..]`.
pub(super) fn copy(mut part: IoVectorMut<'_>, bytes: &[u8], skip: usize) {
    part.copy_from_slice(&bytes[skip..skip + part.len()]);
}
