//! Unpacking compressed clusters.
//!
//! The rule for both methods is the one QEMU's reader has for deflate: the decoder stops when one cluster is full, so a
//! stream that would go on is fine; one that ends before is corruption.

use std::cell::RefCell;
use std::mem;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use crate::buffer::IoVectorMut;
use crate::error::{Error, Result};
use crate::format::{CompressedCluster, Compression};
use crate::storage::Storage;

use super::cluster_cache::Stamp;
use super::crew::Crew;
use super::image::Image;
use super::pool;
use super::read::copy;

/// Largest window that a zstd frame may ask for: 8 MiB, four times the largest cluster. The encoder's window never
/// needs to be larger than a cluster; a frame that asks for more only wants our memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Below this many bytes (unpacked) handing work to other threads costs more than it saves.
const PARALLEL_MIN: usize = 128 << 10;

/// What one thread needs to unpack.
struct Unpacker {
    deflate: Decompressor,
    zstd: DCtx<'static>,
    packed: Vec<u8>,
}

thread_local! {
    static UNPACKER: RefCell<Option<Unpacker>> = const { RefCell::new(None) };
    /// Where a whole cluster is unpacked before it is copied out.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The part of a request that lies in one compressed cluster.
pub(super) struct Piece<'a> {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) cluster: CompressedCluster,
    /// Bytes of the cluster before the part.
    pub(super) skip: usize,
    pub(super) bufs: IoVectorMut<'a>,
}

/// Reads `cluster` from `storage` and unpacks all of it to `bufs`, which are as long as the cluster.
///
/// Through a buffer of ours: decoders want a `&mut [u8]`, which the caller's memory must never become (it may be a
/// guest's or Python's). The copy costs a twentieth of the unpacking.
pub(super) fn into(storage: &dyn Storage, cluster: &CompressedCluster, bufs: IoVectorMut<'_>) -> Result<()> {
    SCRATCH.with_borrow_mut(|scratch| {
        self::cluster(storage, cluster, scratch)?;
        copy(bufs, scratch, 0);
        Ok(())
    })
}

/// Fills all `pieces`, whose mappings were asked for after `stamp` was taken. The caller unpacks too; idle workers help with large requests.
pub(super) fn read_all(image: &Image, mut pieces: Vec<Piece<'_>>, stamp: Stamp) -> Result<()> {
    pieces.retain_mut(|piece| match image.unpacked.get(&piece.cluster) {
        Some(bytes) => {
            copy(mem::take(&mut piece.bufs), &bytes, piece.skip);
            false
        }
        None => true,
    });
    let total: usize = pieces.iter().map(|piece| piece.cluster.unpacked_len as usize).sum();
    let helpers = pool::helpers().min(pieces.len().saturating_sub(1));
    if total < PARALLEL_MIN || helpers == 0 {
        return pieces.into_iter().try_for_each(|piece| {
            image.read_packed(&*piece.storage, &piece.cluster, piece.skip, piece.bufs, stamp)
        });
    }
    let mut crew =
        Crew::new(helpers, |(index, storage, packed): (usize, Arc<dyn Storage>, CompressedCluster)| {
            let mut bytes = Vec::new();
            (index, cluster(&*storage, &packed, &mut bytes).map(|()| bytes))
        });
    for (index, piece) in pieces.iter().enumerate() {
        crew.give((index, Arc::clone(&piece.storage), piece.cluster));
    }
    while let Some((index, bytes)) = crew.next()? {
        let (piece, bytes) = (&mut pieces[index], bytes?);
        let bufs = mem::take(&mut piece.bufs);
        let whole = bufs.len() == bytes.len();
        copy(bufs, &bytes, piece.skip);
        if !whole {
            image.unpacked.put(piece.cluster, Arc::new(bytes), stamp);
        }
    }
    Ok(())
}

/// Reads `cluster` from `storage` and unpacks it into `out`, which becomes as long as the cluster.
pub(super) fn cluster(storage: &dyn Storage, cluster: &CompressedCluster, out: &mut Vec<u8>) -> Result<()> {
    out.resize(cluster.unpacked_len as usize, 0);
    UNPACKER.with_borrow_mut(|unpacker| {
        let unpacker = unpacker.get_or_insert_with(Unpacker::new);
        unpacker.packed.resize(cluster.packed_len as usize, 0);
        // The last sectors may be missing from the file; storages read zeroes there.
        storage.readv_at(unpacker.packed.as_mut_slice().into(), cluster.host.0)?;
        unpacker.unpack(cluster.method, out).map_err(|why| {
            let error = Error::corrupt(format!(
                "the compressed cluster for guest offset {} cannot be unpacked: {why}",
                cluster.guest
            ));
            let error = error.at(cluster.host.0);
            match storage.path() {
                Some(path) => error.in_file(path),
                None => error,
            }
        })
    })
}

impl Unpacker {
    fn new() -> Self {
        let mut zstd = DCtx::create();
        zstd.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
            .expect("a window of 8 MiB is within zstd's bounds");
        Unpacker { deflate: Decompressor::new(), zstd, packed: Vec::new() }
    }

    fn unpack(&mut self, method: Compression, out: &mut [u8]) -> Result<(), String> {
        match method {
            Compression::Deflate => match self.deflate.deflate_decompress(&self.packed, out) {
                Ok(len) if len == out.len() => Ok(()),
                Ok(len) => Err(too_short(len, out.len())),
                // libdeflate wants the stream's end; a stream that goes on, or that lacks its end, is for zlib.
                Err(_) => inflate(&self.packed, out),
            },
            Compression::Zstd => self.unzstd(out),
        }
    }

    fn unzstd(&mut self, out: &mut [u8]) -> Result<(), String> {
        self.zstd.reset(zstd_safe::ResetDirective::SessionOnly).map_err(zstd_error)?;
        let len = out.len();
        let mut input = InBuffer::around(&self.packed);
        let mut output = OutBuffer::around(out);
        while output.pos() < len {
            let before = (input.pos(), output.pos());
            self.zstd.decompress_stream(&mut output, &mut input).map_err(zstd_error)?;
            if (input.pos(), output.pos()) == before {
                return Err(too_short(output.pos(), len));
            }
        }
        Ok(())
    }
}

fn inflate(packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut stream = Decompress::new(false);
    loop {
        let (taken, done) = (stream.total_in(), stream.total_out());
        let rest = &mut out[done as usize..];
        let status = stream.decompress(&packed[taken as usize..], rest, FlushDecompress::None);
        // What follows the cluster's last byte is nobody's business, whether it makes sense or not.
        if stream.total_out() as usize == out.len() {
            return Ok(());
        }
        let status = status.map_err(|error| error.to_string())?;
        let stuck = (taken, done) == (stream.total_in(), stream.total_out());
        if status == Status::StreamEnd || stuck {
            return Err(too_short(stream.total_out() as usize, out.len()));
        }
    }
}

fn too_short(len: usize, want: usize) -> String {
    format!("its stream ends after {len} of {want} bytes")
}

fn zstd_error(code: usize) -> String {
    zstd_safe::get_error_name(code).to_owned()
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, FlushCompress};

    use super::*;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7 % 251) as u8 ^ (i % 13) as u8).collect()
    }

    fn deflate(bytes: &[u8], flush: FlushCompress) -> Vec<u8> {
        let mut packed = Vec::with_capacity(bytes.len() + 1024);
        Compress::new(flate2::Compression::default(), false).compress_vec(bytes, &mut packed, flush).unwrap();
        packed
    }

    fn unpacked(method: Compression, mut packed: Vec<u8>, len: usize) -> Result<Vec<u8>, String> {
        packed.resize(packed.len().next_multiple_of(512), 0xa5);
        let mut unpacker = Unpacker { packed, ..Unpacker::new() };
        let mut out = vec![0; len];
        unpacker.unpack(method, &mut out).map(|()| out)
    }

    #[test]
    fn one_cluster_comes_back() {
        let bytes = content(65536);
        assert_eq!(
            unpacked(Compression::Deflate, deflate(&bytes, FlushCompress::Finish), 65536).unwrap(),
            bytes
        );
        let packed = zstd_pack(&bytes);
        assert_eq!(unpacked(Compression::Zstd, packed, 65536).unwrap(), bytes);
    }

    #[test]
    fn a_longer_stream_stops_at_the_cluster() {
        let bytes = content(100_000);
        let packed = deflate(&bytes, FlushCompress::Finish);
        assert_eq!(unpacked(Compression::Deflate, packed, 65536).unwrap(), bytes[..65536]);
        assert_eq!(unpacked(Compression::Zstd, zstd_pack(&bytes), 65536).unwrap(), bytes[..65536]);
    }

    #[test]
    fn a_stream_without_its_end_is_fine_once_the_cluster_is_full() {
        let bytes = content(65536);
        let packed = deflate(&bytes, FlushCompress::Sync);
        assert_eq!(unpacked(Compression::Deflate, packed, 65536).unwrap(), bytes);
    }

    #[test]
    fn a_shorter_stream_is_an_error() {
        let bytes = content(60000);
        let error =
            unpacked(Compression::Deflate, deflate(&bytes, FlushCompress::Finish), 65536).unwrap_err();
        assert!(error.contains("60000 of 65536"), "{error}");
        assert!(unpacked(Compression::Zstd, zstd_pack(&bytes), 65536).is_err());
    }

    #[test]
    fn two_zstd_frames_make_one_cluster() {
        let bytes = content(65536);
        let mut packed = zstd_pack(&bytes[..30000]);
        packed.extend(zstd_pack(&bytes[30000..]));
        assert_eq!(unpacked(Compression::Zstd, packed, 65536).unwrap(), bytes);
    }

    #[test]
    fn garbage_is_an_error() {
        for seed in 0..64_u8 {
            let packed: Vec<u8> =
                (0..512_u32).map(|i| (i.wrapping_mul(97) as u8) ^ seed.wrapping_mul(31)).collect();
            for method in [Compression::Deflate, Compression::Zstd] {
                assert!(unpacked(method, packed.clone(), 1 << 20).is_err());
            }
        }
    }

    fn zstd_pack(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
        zstd_safe::compress(&mut packed, bytes, 3).unwrap();
        packed
    }
}
