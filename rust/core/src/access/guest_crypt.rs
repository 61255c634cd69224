//! Data whose sectors are encrypted under their numbers in the disk (qcow2's own AES): the only encryption that is not done
//! by a storage, as only here it is known which sector of the disk a place stands for.
//!
//! Zeroes, what is below the image and compressed clusters are plain. Whoever writes holds the range: a sector that is
//! written in part is read first.

use crate::buffer::{IoVector, IoVectorMut};
use crate::crypt::{SECTOR, SectorCipher};
use crate::error::Result;
use crate::storage::Storage;
use crate::storage::encrypted::{read_sectors, write_sectors};
use crate::units::HostOffset;

use super::image::Image;

impl Image {
    /// Fills `bufs` with the data that `storage` has at `host` for the disk's offset `guest`.
    #[inline]
    pub(super) fn read_data(
        &self,
        storage: &dyn Storage,
        bufs: IoVectorMut<'_>,
        host: HostOffset,
        guest: u64,
    ) -> Result<()> {
        match &self.cipher {
            None => storage.readv_at(bufs, host.0),
            Some(cipher) => read(storage, cipher, bufs, host.0, guest),
        }
    }

    /// Writes `bufs` to `host` of `storage`, as the data of the disk's offset `guest`.
    #[inline]
    pub(super) fn write_data(
        &self,
        storage: &dyn Storage,
        bufs: IoVector<'_>,
        host: HostOffset,
        guest: u64,
    ) -> Result<()> {
        match &self.cipher {
            None => storage.writev_at(bufs, host.0),
            Some(cipher) => write(storage, cipher, bufs, host.0, guest),
        }
    }
}

/// The first of the pieces that `len` bytes at `guest` are done in.
enum Piece {
    /// So many bytes, whole sectors.
    Whole(usize),
    /// `len` bytes of one sector, behind its first `skip`.
    Part { skip: usize, len: usize },
}

impl Piece {
    fn first(guest: u64, len: usize) -> Piece {
        let skip = (guest % SECTOR as u64) as usize;
        let whole = len - len % SECTOR;
        if skip == 0 && whole > 0 {
            return Piece::Whole(whole);
        }
        Piece::Part { skip, len: len.min(SECTOR - skip) }
    }
}

fn read(
    storage: &dyn Storage,
    cipher: &SectorCipher,
    mut bufs: IoVectorMut<'_>,
    mut host: u64,
    mut guest: u64,
) -> Result<()> {
    while !bufs.is_empty() {
        let number = guest / SECTOR as u64;
        let done = match Piece::first(guest, bufs.len()) {
            Piece::Whole(len) => {
                read_sectors(storage, cipher, bufs.take_front(len), host, number)?;
                len
            }
            Piece::Part { skip, len } => {
                let mut sector = [0; SECTOR];
                read_sectors(storage, cipher, (&mut sector).into(), host - skip as u64, number)?;
                bufs.take_front(len).copy_from_slice(&sector[skip..skip + len]);
                len
            }
        };
        host += done as u64;
        guest += done as u64;
    }
    Ok(())
}

fn write(
    storage: &dyn Storage,
    cipher: &SectorCipher,
    mut bufs: IoVector<'_>,
    mut host: u64,
    mut guest: u64,
) -> Result<()> {
    while !bufs.is_empty() {
        let number = guest / SECTOR as u64;
        let done = match Piece::first(guest, bufs.len()) {
            Piece::Whole(len) => {
                write_sectors(storage, cipher, bufs.take_front(len), host, number)?;
                len
            }
            Piece::Part { skip, len } => {
                let (mut sector, start) = ([0; SECTOR], host - skip as u64);
                read_sectors(storage, cipher, (&mut sector).into(), start, number)?;
                bufs.take_front(len).copy_to_slice(&mut sector[skip..skip + len]);
                write_sectors(storage, cipher, (&sector).into(), start, number)?;
                len
            }
        };
        host += done as u64;
        guest += done as u64;
    }
    Ok(())
}
