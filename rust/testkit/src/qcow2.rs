//! qcow2 once more, read from its specification alone: an oracle that shares no code with the engine.
//!
//! Slow, small and strict. It works on a whole image in memory.

use std::fmt::Display;

/// Bits 9 to 55: the host offset of L1, L2 and bitmap table entries.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Refcount exactly one (L1 and standard L2 entries).
const COPIED: u64 = 1 << 63;
/// Compressed L2 entry.
const COMPRESSED: u64 = 1 << 62;
/// Standard L2 entry that reads as zeroes (version 3, standard entries only).
const ZERO: u64 = 1;

/// Incompatible feature bits.
pub mod incompatible {
    /// Refcounts may be wrong.
    pub const DIRTY: u64 = 1;
    /// Metadata is wrong.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data is in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// `compression_type` counts.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries of 128 bits.
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// Autoclear feature bits.
pub mod autoclear {
    /// The bitmaps extension is consistent.
    pub const BITMAPS: u64 = 1;
    /// The data file is a raw image of the disk.
    pub const DATA_FILE_RAW: u64 = 1 << 1;
}

/// Header extension types.
pub mod extension {
    /// Format of the backing file.
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    /// Feature name table.
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    /// Bitmaps.
    pub const BITMAPS: u32 = 0x2385_2875;
    /// Full disk encryption header.
    pub const CRYPTO: u32 = 0x0537_be77;
    /// Name of the external data file.
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// The header's fields; those that version 2 lacks have the values it assumes.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub struct Header {
    pub version: u32,
    pub backing: Option<Vec<u8>>,
    pub cluster_bits: u32,
    pub size: u64,
    pub crypt_method: u32,
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub compression_type: u8,
    /// Extensions in their order, without the end marker.
    pub extensions: Vec<(u32, Vec<u8>)>,
}

/// One entry of the snapshot table.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub struct Snapshot {
    pub l1_table_offset: u64,
    pub l1_size: u32,
    pub id: String,
    pub name: String,
    pub disk_size: u64,
}

/// One entry of the bitmap directory.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub struct Bitmap {
    pub table_offset: u64,
    pub table_size: u32,
    pub flags: u32,
    pub granularity_bits: u8,
    pub name: String,
}

/// An L2 entry as it stands; `bitmap` is zero without extended L2 entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the two words of the specification")]
pub struct L2Entry {
    pub word: u64,
    pub bitmap: u64,
}

/// Where a subcluster (a cluster, without extended L2 entries) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the backing file, if there is one.
    Unallocated,
    /// Nowhere: zeroes.
    Zero,
    /// At this host offset of the image or its data file.
    Data(u64),
    /// Packed in the image, in the sectors from `host`'s to the last of `len` bytes.
    Compressed {
        /// Host offset of the first byte.
        host: u64,
        /// Bytes from there to the end of the last sector.
        len: u64,
    },
}

/// An image that parsed.
#[derive(Debug)]
pub struct Qcow2<'a> {
    bytes: &'a [u8],
    /// The header.
    pub header: Header,
    /// The snapshot table, and where it ends.
    pub snapshots: Vec<Snapshot>,
    /// Bytes of the snapshot table.
    pub snapshot_table_len: u64,
    /// The bitmap directory; empty when the autoclear bit says that it is stale.
    pub bitmaps: Vec<Bitmap>,
    /// Offset and length of the bitmap directory.
    pub bitmap_directory: (u64, u64),
}

pub(crate) fn range(bytes: &[u8], offset: u64, len: u64, what: impl Display) -> Result<&[u8], String> {
    let end = offset.checked_add(len).filter(|&end| end <= bytes.len() as u64);
    let end = end.ok_or_else(|| format!("{what} at {offset:#x} + {len:#x} is past the end of the file"))?;
    Ok(&bytes[offset as usize..end as usize])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn be16(bytes: &[u8], at: usize) -> u64 {
    u64::from(bytes[at]) << 8 | u64::from(bytes[at + 1])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let fixed = range(bytes, 0, 72, "header")?;
        if &fixed[..4] != b"QFI\xfb" {
            return Err("no qcow2 magic".into());
        }
        let version = be32(fixed, 4);
        let mut header = Header {
            version,
            backing: None,
            cluster_bits: be32(fixed, 20),
            size: be64(fixed, 24),
            crypt_method: be32(fixed, 32),
            l1_size: be32(fixed, 36),
            l1_table_offset: be64(fixed, 40),
            refcount_table_offset: be64(fixed, 48),
            refcount_table_clusters: be32(fixed, 56),
            nb_snapshots: be32(fixed, 60),
            snapshots_offset: be64(fixed, 64),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression_type: 0,
            extensions: Vec::new(),
        };
        let mut at = 72;
        match version {
            2 => {}
            3 => {
                let more = range(bytes, 0, 104, "header")?;
                header.incompatible = be64(more, 72);
                header.compatible = be64(more, 80);
                header.autoclear = be64(more, 88);
                header.refcount_order = be32(more, 96);
                at = u64::from(be32(more, 100));
                if at < 104 || !at.is_multiple_of(8) {
                    return Err(format!("header length {at}"));
                }
                if at > 104 {
                    header.compression_type = range(bytes, 104, 1, "compression type")?[0];
                }
            }
            other => return Err(format!("version {other}")),
        }
        if !(9..=21).contains(&header.cluster_bits) {
            return Err(format!("cluster bits {}", header.cluster_bits));
        }
        if header.refcount_order > 6 {
            return Err(format!("refcount order {}", header.refcount_order));
        }
        if header.extended_l2() && header.cluster_bits < 14 {
            return Err("extended L2 entries with clusters below 16 KiB".into());
        }
        if header.incompatible >> 5 != 0 {
            return Err(format!("reserved incompatible features {:#x}", header.incompatible));
        }
        if (header.incompatible & incompatible::COMPRESSION != 0) != (header.compression_type == 1) {
            return Err(format!("compression type {} does not go with its bit", header.compression_type));
        }
        while at + 8 <= header.cluster_size() && at + 8 <= bytes.len() as u64 {
            let (kind, len) = (be32(bytes, at as usize), u64::from(be32(bytes, at as usize + 4)));
            if kind == 0 {
                break;
            }
            let data = range(bytes, at + 8, len, "header extension")?;
            header.extensions.push((kind, data.to_vec()));
            at += 8 + len.next_multiple_of(8);
        }
        let (name, len) = (be64(fixed, 8), be32(fixed, 16));
        if name != 0 {
            if len > 1023 || name + u64::from(len) > header.cluster_size() {
                return Err(format!("backing file name of {len} bytes at {name:#x}"));
            }
            header.backing = Some(range(bytes, name, len.into(), "backing file name")?.to_vec());
        }
        Ok(header)
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries have 128 bits.
    pub fn extended_l2(&self) -> bool {
        self.incompatible & incompatible::EXTENDED_L2 != 0
    }

    /// Whether guest data is in another file.
    pub fn data_file(&self) -> bool {
        self.incompatible & incompatible::DATA_FILE != 0
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / if self.extended_l2() { 16 } else { 8 }
    }

    /// Bytes of a subcluster; a cluster's without extended L2 entries.
    pub fn subcluster_size(&self) -> u64 {
        if self.extended_l2() { self.cluster_size() / 32 } else { self.cluster_size() }
    }

    /// The data of the first extension of that type.
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().find(|e| e.0 == kind).map(|e| &*e.1)
    }
}

impl L2Entry {
    /// Whether it describes a compressed cluster.
    pub fn compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// Whether it says that the cluster's refcount is one.
    pub fn copied(self) -> bool {
        self.word & COPIED != 0
    }

    /// Host offset of a standard cluster.
    pub fn host(self) -> u64 {
        self.word & OFFSET
    }

    /// The bits that a standard cluster descriptor keeps zero; `zero_flag`: bit 0 means something.
    pub(crate) fn reserved(self, zero_flag: bool) -> u64 {
        self.word & !(OFFSET | COPIED | COMPRESSED | if zero_flag { ZERO } else { 0 })
    }
}

impl<'a> Qcow2<'a> {
    /// Parses header, snapshot table and bitmap directory.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let header = Header::parse(bytes)?;
        let mut image = Qcow2 {
            bytes,
            header,
            snapshots: Vec::new(),
            snapshot_table_len: 0,
            bitmaps: Vec::new(),
            bitmap_directory: (0, 0),
        };
        image.parse_snapshots()?;
        image.parse_bitmaps()?;
        Ok(image)
    }

    fn parse_snapshots(&mut self) -> Result<(), String> {
        let start = self.header.snapshots_offset;
        let mut at = start;
        for _ in 0..self.header.nb_snapshots {
            let fixed = range(self.bytes, at, 40, "snapshot table entry")?;
            let (id, name, extra) = (be16(fixed, 12), be16(fixed, 14), u64::from(be32(fixed, 36)));
            let all = range(self.bytes, at, 40 + extra + id + name, "snapshot table entry")?;
            if self.header.version == 3 && extra < 16 {
                return Err("version 3 snapshot without its extra data".into());
            }
            let (id, name) = all[40 + extra as usize..].split_at(id as usize);
            self.snapshots.push(Snapshot {
                l1_table_offset: be64(fixed, 0),
                l1_size: be32(fixed, 8),
                id: text(id),
                name: text(name),
                disk_size: if extra >= 16 { be64(all, 48) } else { self.header.size },
            });
            at += (all.len() as u64).next_multiple_of(8);
        }
        self.snapshot_table_len = at - start;
        Ok(())
    }

    fn parse_bitmaps(&mut self) -> Result<(), String> {
        if self.header.autoclear & autoclear::BITMAPS == 0 {
            return Ok(());
        }
        let data =
            self.header.extension(extension::BITMAPS).ok_or("autoclear bit 0 without the extension")?;
        let data = range(data, 0, 24, "bitmaps extension")?;
        let (count, size, start) = (be32(data, 0), be64(data, 8), be64(data, 16));
        let directory = range(self.bytes, start, size, "bitmap directory")?;
        let mut at = 0;
        for _ in 0..count {
            let fixed = range(directory, at, 24, "bitmap directory entry")?;
            let (name, extra) = (be16(fixed, 18), u64::from(be32(fixed, 20)));
            let all = range(directory, at, 24 + extra + name, "bitmap directory entry")?;
            self.bitmaps.push(Bitmap {
                table_offset: be64(fixed, 0),
                table_size: be32(fixed, 8),
                flags: be32(fixed, 12),
                granularity_bits: fixed[17],
                name: text(&all[24 + extra as usize..]),
            });
            at += (all.len() as u64).next_multiple_of(8);
        }
        if at != size {
            return Err(format!("bitmap directory of {size} bytes, its entries have {at}"));
        }
        self.bitmap_directory = (start, size);
        Ok(())
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// `count` big-endian words at `offset`; a file that ends inside the table's last cluster reads as zeroes there.
    pub fn words(&self, offset: u64, count: u64, what: impl Display) -> Result<Vec<u64>, String> {
        let end = offset.checked_add(count * 8).ok_or_else(|| format!("{what} ends past 2^64"))?;
        if count > 0 && end.next_multiple_of(self.header.cluster_size()) > self.file_end() {
            return Err(format!("{what} at {offset:#x} + {count} entries is past the end of the file"));
        }
        let bytes = self.bytes.get(offset as usize..).unwrap_or_default();
        let mut words: Vec<u64> =
            bytes.chunks_exact(8).take(count as usize).map(|word| be64(word, 0)).collect();
        words.resize(count as usize, 0);
        Ok(words)
    }

    /// Length of the file, rounded up to clusters.
    pub fn file_end(&self) -> u64 {
        self.file_len().next_multiple_of(self.header.cluster_size())
    }

    /// The active L1 table.
    pub fn active_l1(&self) -> Result<Vec<u64>, String> {
        self.words(self.header.l1_table_offset, self.header.l1_size.into(), "active L1 table")
    }

    /// A snapshot's L1 table.
    pub fn snapshot_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>, String> {
        let what = format!("L1 table of snapshot {}", snapshot.id);
        self.words(snapshot.l1_table_offset, snapshot.l1_size.into(), what)
    }

    /// The refcount table.
    pub fn refcount_table(&self) -> Result<Vec<u64>, String> {
        let entries = u64::from(self.header.refcount_table_clusters) * self.header.cluster_size() / 8;
        self.words(self.header.refcount_table_offset, entries, "refcount table")
    }

    /// The refcounts of a block, from its first cluster on.
    pub fn refcount_block(&self, offset: u64) -> Result<Vec<u64>, String> {
        let block = range(self.bytes, offset, self.header.cluster_size(), "refcount block")?;
        let bits = 1 << self.header.refcount_order;
        Ok(match bits {
            1 | 2 | 4 => {
                let mask = (1 << bits) - 1;
                block
                    .iter()
                    .flat_map(|&b| (0..8 / bits).map(move |i| u64::from(b >> (i * bits)) & mask))
                    .collect()
            }
            _ => block
                .chunks_exact(bits / 8)
                .map(|c| c.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
                .collect(),
        })
    }

    /// An L2 table.
    pub fn l2_table(&self, offset: u64) -> Result<Vec<L2Entry>, String> {
        let words = self.words(offset, self.header.cluster_size() / 8, "L2 table")?;
        Ok(if self.header.extended_l2() {
            words.chunks_exact(2).map(|w| L2Entry { word: w[0], bitmap: w[1] }).collect()
        } else {
            words.into_iter().map(|word| L2Entry { word, bitmap: 0 }).collect()
        })
    }

    /// The host range of a compressed cluster: first byte, and bytes to the end of its last sector.
    pub fn compressed_range(&self, entry: L2Entry) -> (u64, u64) {
        let x = 62 - (self.header.cluster_bits - 8);
        let host = entry.word & ((1 << x) - 1);
        let sectors = (entry.word & (COMPRESSED - 1)) >> x;
        (host, (sectors + 1) * 512 - host % 512)
    }

    /// Where subcluster `index` (0 without extended L2 entries) of a cluster is.
    pub fn place(&self, entry: L2Entry, index: u64) -> Place {
        let data = Place::Data(entry.host() + index * self.header.subcluster_size());
        if entry.compressed() {
            let (host, len) = self.compressed_range(entry);
            Place::Compressed { host, len }
        } else if self.header.extended_l2() {
            match (entry.bitmap >> index & 1, entry.bitmap >> (index + 32) & 1) {
                (1, _) => data,
                (_, 1) => Place::Zero,
                _ => Place::Unallocated,
            }
        } else if entry.word & ZERO != 0 {
            Place::Zero
        } else if entry.host() != 0 || (self.header.data_file() && entry.copied()) {
            data
        } else {
            Place::Unallocated
        }
    }

    /// The bitmap of that name.
    pub fn bitmap(&self, name: &str) -> Option<&Bitmap> {
        self.bitmaps.iter().find(|bitmap| bitmap.name == name)
    }

    /// The granules that a bitmap calls dirty, as runs of bytes of the disk, cut off at its end.
    pub fn dirty(&self, bitmap: &Bitmap) -> Result<Vec<(u64, u64)>, String> {
        let what = format!("table of bitmap {:?}", bitmap.name);
        let cluster_size = self.header.cluster_size();
        let mut bits = Vec::new();
        for entry in self.words(bitmap.table_offset, bitmap.table_size.into(), &what)? {
            match entry & OFFSET {
                0 => bits.resize(bits.len() + cluster_size as usize, if entry & 1 == 1 { 0xff } else { 0 }),
                host => bits.extend_from_slice(range(self.bytes, host, cluster_size, &what)?),
            }
        }
        let granularity = 1 << bitmap.granularity_bits;
        let granules = self.header.size.div_ceil(granularity);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (granule, bit) in (0..).zip(bits.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1))) {
            if bit == 0 {
                continue;
            }
            if granule >= granules {
                return Err(format!("{what}: a bit behind the end of the disk is set"));
            }
            let offset = granule * granularity;
            let len = granularity.min(self.header.size - offset);
            match runs.last_mut() {
                Some(run) if run.0 + run.1 == offset => run.1 += len,
                _ => runs.push((offset, len)),
            }
        }
        Ok(runs)
    }

    /// The whole disk as the guest sees it. `backing`: what the backing file shows, from 0 on; `data_file`: its bytes.
    pub fn content(&self, backing: &[u8], data_file: Option<&[u8]>) -> Result<Vec<u8>, String> {
        self.content_of(&self.active_l1()?, self.header.size, backing, data_file)
    }

    /// The whole disk as it was at the time of a snapshot.
    pub fn snapshot_content(&self, snapshot: &Snapshot, backing: &[u8]) -> Result<Vec<u8>, String> {
        self.content_of(&self.snapshot_l1(snapshot)?, snapshot.disk_size, backing, None)
    }

    /// `len` bytes of the disk from `offset` on, as [`content`](Self::content) has them.
    pub fn read_guest(
        &self,
        offset: u64,
        len: u64,
        backing: &[u8],
        data_file: Option<&[u8]>,
    ) -> Result<Vec<u8>, String> {
        let l1 = self.active_l1()?;
        let mut out = vec![0; len as usize];
        let cluster_size = self.header.cluster_size();
        for cluster in offset / cluster_size..(offset + len).div_ceil(cluster_size) {
            let start = cluster * cluster_size;
            let mut whole = vec![0; cluster_size as usize];
            if let Some(&table) = l1.get((cluster / self.header.l2_entries()) as usize) {
                self.read_cluster(table, start, &mut whole, backing, data_file)?;
            }
            let (from, to) = (start.max(offset), (start + cluster_size).min(offset + len));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&whole[(from - start) as usize..(to - start) as usize]);
        }
        Ok(out)
    }

    fn content_of(
        &self,
        l1: &[u64],
        size: u64,
        backing: &[u8],
        data_file: Option<&[u8]>,
    ) -> Result<Vec<u8>, String> {
        let mut out = vec![0; size as usize];
        for (cluster, chunk) in (0..).zip(out.chunks_mut(self.header.cluster_size() as usize)) {
            let table = l1.get((cluster / self.header.l2_entries()) as usize);
            let table = *table.ok_or("the L1 table is too short for the disk")?;
            self.read_cluster(table, cluster * self.header.cluster_size(), chunk, backing, data_file)?;
        }
        Ok(out)
    }

    /// Fills `chunk`, a cluster or the disk's last part of one, at guest offset `guest`.
    fn read_cluster(
        &self,
        l1_entry: u64,
        guest: u64,
        chunk: &mut [u8],
        backing: &[u8],
        data_file: Option<&[u8]>,
    ) -> Result<(), String> {
        let entry = match l1_entry & OFFSET {
            0 => L2Entry::default(),
            table => {
                let index = guest / self.header.cluster_size() % self.header.l2_entries();
                let size = if self.header.extended_l2() { 2 } else { 1 };
                let words = self.words(table + index * size * 8, size, "L2 entry")?;
                L2Entry { word: words[0], bitmap: *words.get(1).unwrap_or(&0) }
            }
        };
        let unit = self.header.subcluster_size();
        for (index, part) in (0..).zip(chunk.chunks_mut(unit as usize)) {
            let at = guest + index * unit;
            match self.place(entry, index) {
                Place::Zero => {}
                Place::Unallocated => copy_or_zero(part, backing, at),
                Place::Data(host) => copy_or_zero(part, data_file.unwrap_or(self.bytes), host),
                Place::Compressed { host, len } => {
                    let packed = self.bytes.get(host as usize..).ok_or("compressed cluster past the end")?;
                    let packed = &packed[..packed.len().min(len as usize)];
                    let whole = self.unpack(packed).map_err(|e| format!("cluster at {guest:#x}: {e}"))?;
                    let start = (index * unit) as usize;
                    part.copy_from_slice(&whole[start..start + part.len()]);
                }
            }
        }
        Ok(())
    }

    fn unpack(&self, packed: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = vec![0; self.header.cluster_size() as usize];
        let filled = if self.header.compression_type == 1 {
            let mut context = zstd_safe::DCtx::create();
            let mut output = zstd_safe::OutBuffer::around(&mut out[..]);
            let mut input = zstd_safe::InBuffer::around(packed);
            while output.pos() < output.capacity() && input.pos < packed.len() {
                context.decompress_stream(&mut output, &mut input).map_err(zstd_safe::get_error_name)?;
            }
            output.pos()
        } else {
            let mut stream = flate2::Decompress::new(false);
            let end = stream.decompress(packed, &mut out, flate2::FlushDecompress::Finish);
            end.map_err(|e| e.to_string())?;
            stream.total_out() as usize
        };
        if filled == out.len() { Ok(out) } else { Err(format!("unpacks to {filled} bytes")) }
    }
}

/// Fills `part` from `source` at `offset`, with zeroes where that ends.
fn copy_or_zero(part: &mut [u8], source: &[u8], offset: u64) {
    let rest = usize::try_from(offset).ok().and_then(|at| source.get(at..)).unwrap_or_default();
    let len = part.len().min(rest.len());
    part[..len].copy_from_slice(&rest[..len]);
    part[len..].fill(0);
}
