//! Compressed writing: clusters are packed on all cores, and then written one behind the other.

use std::cell::RefCell;
use std::fmt;
use std::mem;
use std::ops::Range;

use zstd_safe::{CCtx, CParameter};

use super::crew::Crew;
use super::deflate::Deflater;
use super::image::Image;
use super::pool::cores;
use super::zero::is_zero;
use crate::buffer::IoVector;
use crate::error::{Error, Result};
use crate::format::{CompressedCluster, Compression, Packing, ZeroIntent};
use crate::interrupt;
use crate::units::{GuestOffset, HostOffset};

/// Bytes that one thread packs at a time, unless a cluster is more.
const BATCH: usize = 256 << 10;

/// How hard to try: more is smaller and slower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionLevel {
    /// What `qemu-img` uses: 6 for zlib, 3 for zstd.
    #[default]
    Default,
    /// 1 to 9 for zlib, 1 to 22 for zstd.
    Of(u32),
}

impl CompressionLevel {
    /// The level as the library of `method` counts it; a number out of range is [`InvalidInput`](crate::ErrorKind::InvalidInput).
    pub fn of(self, method: Compression) -> Result<u32> {
        let (name, most, default) = match method {
            Compression::Deflate => ("zlib", 9, 6),
            Compression::Zstd => ("zstd", 22, 3),
        };
        match self {
            CompressionLevel::Default => Ok(default),
            CompressionLevel::Of(level @ 1..) if level <= most => Ok(level),
            CompressionLevel::Of(level) => {
                Err(Error::invalid_input(format!("compression level {level}: {name} has levels 1 to {most}")))
            }
        }
    }
}

/// How the clusters of one image are packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packer {
    method: Compression,
    level: u32,
    pub(super) cluster_size: usize,
    /// Clusters of zeroes are packed like others; otherwise they take no space.
    packs_zeroes: bool,
}

/// What becomes of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is all zeroes.
    Zero,
    /// Packing makes it no smaller.
    Plain,
    /// It is packed into this part of the batch's packed bytes.
    Packed(Range<usize>),
}

/// Clusters that are packed and have yet to be written.
pub(super) struct Batch {
    offset: u64,
    /// The clusters' bytes, without what is behind the disk's end.
    bytes: Vec<u8>,
    packed: Vec<u8>,
    clusters: Vec<Outcome>,
}

impl Image {
    /// Writes `bufs` to the disk from `offset` on (bytes), in compressed clusters.
    ///
    /// `offset` is a multiple of the cluster size, and so is the length unless it reaches the end of the disk; otherwise, and for a `level` that there is not, it is
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput). An image that cannot have compressed clusters (raw, encrypted, with an
    /// external data file) is [`Unsupported`](crate::ErrorKind::Unsupported). Nothing is written then. Clusters of zeroes take no space, and those that packing does not make
    /// smaller are written as they are. Durable after the next [`flush`](Image::flush). It can be [given up](crate::interrupt): clusters up to some
    /// point are written then.
    pub fn write_compressed<'a>(
        &self,
        bufs: impl Into<IoVector<'a>>,
        offset: u64,
        level: CompressionLevel,
    ) -> Result<()> {
        let mut bufs = bufs.into();
        let len = bufs.len() as u64;
        // All that can be refused, before bitmaps are told.
        self.check_write(offset, len)?;
        let packer = self.packer(level)?;
        self.check_whole_clusters(offset, len, packer.cluster_size as u64)?;
        let _writing = self.begin_write(offset, len)?;
        // The disk may have grown before.
        self.check_whole_clusters(offset, len, packer.cluster_size as u64)?;
        let size = packer.batch_size(BATCH);
        let helpers = cores().min(bufs.len().div_ceil(size)).saturating_sub(1);
        let mut crew = Crew::new(helpers, move |(offset, bytes)| packer.pack(offset, bytes));
        let mut at = offset;
        loop {
            while !bufs.is_empty() && crew.open() <= 2 * helpers {
                // A copy of ours: encoders want a `&[u8]`, which the caller's memory must never become.
                let part = bufs.take_front(bufs.len().min(size));
                let mut bytes = vec![0; part.len()];
                part.copy_to_slice(&mut bytes);
                at += bytes.len() as u64;
                crew.give((at - bytes.len() as u64, bytes));
            }
            interrupt::check()?;
            match crew.next()? {
                Some(batch) => self.write_packed_batch(&batch?)?,
                None => return Ok(()),
            }
        }
    }

    fn check_whole_clusters(&self, offset: u64, len: u64, cluster_size: u64) -> Result<()> {
        let end = offset + len;
        if offset.is_multiple_of(cluster_size) && (end.is_multiple_of(cluster_size) || end == self.size()) {
            return Ok(());
        }
        Err(self.name(Error::invalid_input(format!(
            "compressed writes are of whole clusters: {len} bytes at offset {offset} are no multiples of {cluster_size}"
        ))))
    }

    /// How clusters of this image are packed; an error where there can be none.
    pub(super) fn packer(&self, level: CompressionLevel) -> Result<Packer> {
        let packing = self.packing()?;
        let method = packing.method();
        let level = level.of(method).map_err(|e| self.name(e))?;
        Ok(Packer { method, level, cluster_size: packing.cluster_size() as usize, packs_zeroes: false })
    }

    fn packing(&self) -> Result<&dyn Packing> {
        self.format.packing().map_err(|e| self.name(e))
    }

    /// Writes a batch that somebody packed with this image's packer.
    pub(super) fn write_batch(&self, batch: &Batch) -> Result<()> {
        let _writing = self.begin_write(batch.offset, batch.bytes.len() as u64)?;
        self.write_packed_batch(batch)
    }

    /// The same inside a write: first all that is packed, so that it stands together.
    fn write_packed_batch(&self, batch: &Batch) -> Result<()> {
        let cluster_size = self.packing()?.cluster_size();
        let _range = self.ranges.lock(batch.offset, batch.bytes.len() as u64, self.format.write_alignment());
        self.write_packed(batch, cluster_size)?;
        let same = |a: &Outcome, b: &Outcome| mem::discriminant(a) == mem::discriminant(b);
        let mut at = 0;
        for run in batch.clusters.chunk_by(same) {
            let end = (at + run.len() * cluster_size as usize).min(batch.bytes.len());
            let (offset, bytes) = (batch.offset + at as u64, &batch.bytes[at..end]);
            match run[0] {
                Outcome::Zero => self.zero_locked(offset, bytes.len() as u64, ZeroIntent::Unmap)?,
                Outcome::Plain => self.write_locked(bytes.into(), offset)?,
                Outcome::Packed(_) => {}
            }
            at = end;
        }
        Ok(())
    }

    fn write_packed(&self, batch: &Batch, cluster_size: u32) -> Result<()> {
        let packing = self.packing()?;
        let of = |(index, outcome): (u64, &Outcome)| {
            let Outcome::Packed(range) = outcome else { return None };
            Some(CompressedCluster {
                host: HostOffset(0),
                packed_len: range.len() as u32,
                guest: GuestOffset(batch.offset + index * u64::from(cluster_size)),
                unpacked_len: cluster_size,
                method: packing.method(),
            })
        };
        let mut clusters: Vec<_> = (0..).zip(&batch.clusters).filter_map(of).collect();
        if clusters.is_empty() {
            return Ok(());
        }
        packing.prepare_packed(&mut clusters).map_err(|e| self.name(e))?;
        let follows =
            |a: &CompressedCluster, b: &CompressedCluster| a.host + u64::from(a.packed_len) == b.host;
        let mut at = 0;
        for run in clusters.chunk_by(follows) {
            let end = at + run.iter().map(|cluster| cluster.packed_len as usize).sum::<usize>();
            if let Err(error) =
                self.format.storage().writev_at((&batch.packed[at..end]).into(), run[0].host.0)
            {
                packing.abandon_packed(&clusters);
                return Err(self.name(error));
            }
            at = end;
        }
        let committed = packing.commit_packed(&clusters);
        // Also after an error, which leaves some of them published.
        for cluster in &clusters {
            self.unpacked.forget(cluster.guest.0, u64::from(cluster.unpacked_len));
        }
        committed.map_err(|e| self.name(e))
    }
}

impl Batch {
    /// Bytes that are written for it.
    pub(super) fn stored(&self) -> u64 {
        let plain = self.clusters.iter().filter(|outcome| **outcome == Outcome::Plain).count();
        (self.packed.len() + plain * self.bytes.len() / self.clusters.len().max(1)) as u64
    }

    /// The unpacked bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch of {} clusters at {:#x}", self.clusters.len(), self.offset)
    }
}

impl Packer {
    /// It takes a core tens of milliseconds to pack a MiB.
    pub(super) fn is_slow(&self) -> bool {
        match self.method {
            Compression::Deflate => self.level > 7,
            Compression::Zstd => self.level > 9,
        }
    }

    /// The same that packs clusters of zeroes like others.
    pub(super) fn packing_zeroes(self) -> Self {
        Packer { packs_zeroes: true, ..self }
    }

    /// Whole clusters of about `bytes`.
    pub(super) fn batch_size(&self, bytes: usize) -> usize {
        bytes.next_multiple_of(self.cluster_size)
    }

    /// Packs the clusters that start at `offset`. What the last one lacks is behind the disk's end and counts as zeroes.
    pub(super) fn pack(&self, offset: u64, bytes: Vec<u8>) -> Result<Batch> {
        ENCODERS.with_borrow_mut(|encoders| {
            let encoder = encoders.get(self.method, self.level)?;
            let mut packed = Vec::new();
            let mut whole = Vec::new();
            let mut clusters = Vec::with_capacity(bytes.len().div_ceil(self.cluster_size));
            for cluster in bytes.chunks(self.cluster_size) {
                if !self.packs_zeroes && is_zero(cluster) {
                    clusters.push(Outcome::Zero);
                    continue;
                }
                let mut cluster = cluster;
                if cluster.len() < self.cluster_size {
                    whole.extend_from_slice(cluster);
                    whole.resize(self.cluster_size, 0);
                    cluster = &whole;
                }
                let start = packed.len();
                encoder.pack(cluster, &mut packed)?;
                if packed.len() - start < self.cluster_size {
                    clusters.push(Outcome::Packed(start..packed.len()));
                } else {
                    packed.truncate(start);
                    clusters.push(Outcome::Plain);
                }
            }
            Ok(Batch { offset, bytes, packed, clusters })
        })
    }
}

thread_local! {
    static ENCODERS: RefCell<Encoders> = const { RefCell::new(Encoders(Vec::new())) };
}

/// The encoders of one thread; setting one up costs as much as packing a small cluster.
struct Encoders(Vec<(Compression, u32, Encoder)>);

/// Encoders that a thread keeps.
const ENCODERS_MAX: usize = 2;

enum Encoder {
    Deflate(Box<Deflater>),
    Zstd(CCtx<'static>),
}

impl Encoders {
    fn get(&mut self, method: Compression, level: u32) -> Result<&mut Encoder> {
        let found = self.0.iter().position(|(m, l, _)| (*m, *l) == (method, level));
        let index = if let Some(index) = found {
            index
        } else {
            let encoder = Encoder::new(method, level)?;
            if self.0.len() == ENCODERS_MAX {
                self.0.remove(0);
            }
            self.0.push((method, level, encoder));
            self.0.len() - 1
        };
        Ok(&mut self.0[index].2)
    }
}

impl Encoder {
    fn new(method: Compression, level: u32) -> Result<Self> {
        Ok(match method {
            Compression::Deflate => Encoder::Deflate(Box::new(Deflater::new(level))),
            Compression::Zstd => {
                let mut context = CCtx::create();
                context
                    .set_parameter(CParameter::CompressionLevel(level.cast_signed()))
                    .map_err(zstd_error)?;
                Encoder::Zstd(context)
            }
        })
    }

    /// Puts `cluster`, packed, behind what is in `packed`; at least as many bytes as it has where packing makes it no smaller.
    fn pack(&mut self, cluster: &[u8], packed: &mut Vec<u8>) -> Result<()> {
        let start = packed.len();
        match self {
            Encoder::Deflate(encoder) => match encoder.pack(cluster) {
                Some(stream) => packed.extend_from_slice(stream),
                None => packed.resize(start + cluster.len(), 0),
            },
            Encoder::Zstd(context) => {
                packed.resize(start + zstd_safe::compress_bound(cluster.len()), 0);
                let len = context.compress2(&mut packed[start..], cluster).map_err(zstd_error)?;
                packed.truncate(start + len);
            }
        }
        Ok(())
    }
}

fn zstd_error(code: usize) -> Error {
    let source = std::io::Error::other(zstd_safe::get_error_name(code));
    Error::io("compress a cluster", source)
}
