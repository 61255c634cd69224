//! L2 entries: what they say and how they change. Pure arithmetic on 64-bit words; no I/O here.

use super::header::Header;
use crate::error::{Error, Result};
use crate::format::{CompressedCluster, Compression};
use crate::units::{GuestOffset, HostOffset};

/// Bits 9 to 55: where the cluster (or the L2 table, in an L1 entry) starts.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is exactly 1 (I5).
pub(super) const COPIED: u64 = 1 << 63;
/// Bit 62: the descriptor is of a compressed cluster.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// Bit 0: reads as zeroes (version 3, without extended L2).
pub(super) const ZERO: u64 = 1;
/// Every subcluster's bit in one half of an extended entry's bitmap.
pub(super) const ALL: u64 = 0xffff_ffff;
/// Of a slice, the part of an L2 table that is cached and written as one: 4096 bytes.
const SLICE_BITS: u32 = 12;

/// The sizes that every look-up needs, derived once from the header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) cluster_bits: u32,
    /// Entries have 128 bits, with 32 subclusters to a cluster.
    pub(super) extended: bool,
    /// Guest data lies in an external data file, each byte at the guest's own offset.
    pub(super) external_data: bool,
    /// The zero flag exists.
    pub(super) zero_flag: bool,
    pub(super) compression: Compression,
}

impl Geometry {
    pub(super) fn of(header: &Header) -> Self {
        Geometry {
            cluster_bits: header.cluster_bits,
            extended: header.is_extended_l2(),
            external_data: header.has_data_file(),
            zero_flag: header.version >= 3,
            compression: header.compression,
        }
    }

    pub(super) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// The unit that is allocated or zero as one: a subcluster, or a cluster where there are none.
    pub(super) fn unit_size(self) -> u64 {
        if self.extended { self.cluster_size() / 32 } else { self.cluster_size() }
    }

    fn units(self) -> u32 {
        if self.extended { 32 } else { 1 }
    }

    pub(super) fn entry_size(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    pub(super) fn slice_bits(self) -> u32 {
        self.cluster_bits.min(SLICE_BITS)
    }

    pub(super) fn slice_bytes(self) -> u64 {
        1 << self.slice_bits()
    }

    /// Guest bytes that one slice maps.
    pub(super) fn slice_span(self) -> u64 {
        self.slice_bytes() / self.entry_size() * self.cluster_size()
    }

    /// Guest bytes that one L2 table maps.
    pub(super) fn table_span(self) -> u64 {
        self.cluster_size() / self.entry_size() * self.cluster_size()
    }

    /// Bytes of all the L2 tables of a disk of `size` bytes, and of one more.
    pub(super) fn l2_bytes(self, size: u64) -> u64 {
        (size / self.table_span() + 1).saturating_mul(self.cluster_size())
    }

    /// Bits of the host offset in the descriptor of a compressed cluster.
    fn packed_offset_bits(self) -> u32 {
        62 - (self.cluster_bits - 8)
    }

    /// Where compressed clusters have to end, so that a descriptor can name them.
    pub(super) fn packed_limit(self) -> u64 {
        1 << self.packed_offset_bits().min(56)
    }

    /// Index of the L1 entry for `guest`.
    pub(super) fn l1_index(self, guest: GuestOffset) -> usize {
        (guest.0 / self.table_span()) as usize
    }

    /// Offset, inside its L2 table, of the slice that maps `guest`.
    pub(super) fn slice_offset(self, guest: GuestOffset) -> u64 {
        guest.within(self.table_span()) / self.slice_span() * self.slice_bytes()
    }

    /// Number of the slice that maps `guest`, counted over the disk.
    pub(super) fn slice_index(self, guest: GuestOffset) -> usize {
        (guest.0 / self.slice_span()) as usize
    }

    /// Index of the entry for `guest` inside its slice.
    pub(super) fn entry_index(self, guest: GuestOffset) -> usize {
        (guest.within(self.slice_span()) >> self.cluster_bits) as usize
    }
}

/// One L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) descriptor: u64,
    /// Of an extended entry: bits 0 to 31 say "allocated", 32 to 63 "reads as zeroes", a pair per subcluster.
    pub(super) bitmap: u64,
}

/// What one unit (cluster or subcluster) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Shows the backing file. `reserved`: its cluster has space all the same.
    Unallocated { reserved: Option<HostOffset> },
    /// Reads as zeroes.
    Zero { reserved: Option<HostOffset> },
    /// Stands at this offset.
    Data { host: HostOffset },
    /// Is part of a compressed cluster.
    Compressed,
}

impl Unit {
    /// Where its space starts, whatever is to be read there.
    pub(super) fn space(self) -> Option<HostOffset> {
        match self {
            Unit::Unallocated { reserved } | Unit::Zero { reserved } => reserved,
            Unit::Data { host } => Some(host),
            Unit::Compressed => None,
        }
    }

    /// Whether `next`, the unit behind this one, goes on where it ends.
    pub(super) fn continues(self, next: Unit, unit_size: u64) -> bool {
        let follows = |a: Option<HostOffset>, b: Option<HostOffset>| a.map(|a| a + unit_size) == b;
        match (self, next) {
            (Unit::Unallocated { reserved: a }, Unit::Unallocated { reserved: b })
            | (Unit::Zero { reserved: a }, Unit::Zero { reserved: b }) => follows(a, b),
            (Unit::Data { host: a }, Unit::Data { host: b }) => a + unit_size == b,
            _ => false,
        }
    }
}

impl Entry {
    pub(super) const EMPTY: Entry = Entry { descriptor: 0, bitmap: 0 };

    pub(super) fn is_compressed(self) -> bool {
        self.descriptor & COMPRESSED != 0
    }

    /// Its cluster belongs to nobody else and may be written in place.
    pub(super) fn is_copied(self) -> bool {
        self.descriptor & COPIED != 0
    }

    /// The host cluster that a plain entry names.
    fn cluster(self, geometry: Geometry) -> Result<Option<HostOffset>> {
        let host = HostOffset(self.descriptor & OFFSET_MASK);
        if !host.is_aligned(geometry.cluster_size()) {
            return Err(Error::corrupt(format!("L2 entry {:#x} names no cluster boundary", self.descriptor)));
        }
        // In an external data file offset 0 is a cluster like any other; COPIED tells that it is meant.
        let present = host.0 != 0 || (geometry.external_data && self.is_copied());
        Ok(present.then_some(host))
    }

    /// What unit number `index` of the cluster is.
    pub(super) fn unit(self, index: u32, geometry: Geometry) -> Result<Unit> {
        if self.is_compressed() {
            if geometry.external_data {
                return Err(Error::corrupt("compressed cluster in an image with an external data file"));
            }
            return Ok(Unit::Compressed);
        }
        let cluster = self.cluster(geometry)?;
        let reserved = cluster.map(|host| host + u64::from(index) * geometry.unit_size());
        if !geometry.extended {
            let zero = geometry.zero_flag && self.descriptor & ZERO != 0;
            return Ok(match reserved {
                _ if zero => Unit::Zero { reserved },
                Some(host) => Unit::Data { host },
                None => Unit::Unallocated { reserved: None },
            });
        }
        match (self.bitmap >> index & 1 != 0, self.bitmap >> (32 + index) & 1 != 0) {
            (true, true) => Err(Error::corrupt("subcluster is marked both allocated and zero")),
            (true, false) => match reserved {
                Some(host) => Ok(Unit::Data { host }),
                None => Err(Error::corrupt("subcluster is marked allocated in a cluster that is not")),
            },
            (false, true) => Ok(Unit::Zero { reserved }),
            (false, false) => Ok(Unit::Unallocated { reserved }),
        }
    }

    /// The compressed cluster behind the descriptor; `guest` is where it starts.
    pub(super) fn compressed(self, guest: GuestOffset, geometry: Geometry) -> CompressedCluster {
        let offset_bits = geometry.packed_offset_bits();
        let host = self.descriptor & ((1 << offset_bits) - 1);
        // The field counts the sectors after the one that the data starts in.
        let more_sectors = (self.descriptor & (COMPRESSED - 1)) >> offset_bits;
        CompressedCluster {
            host: HostOffset(host),
            packed_len: ((more_sectors + 1) * 512 - host % 512) as u32,
            guest,
            unpacked_len: geometry.cluster_size() as u32,
            method: geometry.compression,
        }
    }

    /// The entry of a cluster that is packed into `len` bytes at `host`; see [`Geometry::packed_limit`].
    pub(super) fn packed(host: HostOffset, len: u32, geometry: Geometry) -> Entry {
        let more_sectors = (host.0 % 512 + u64::from(len) - 1) / 512;
        Entry { descriptor: COMPRESSED | more_sectors << geometry.packed_offset_bits() | host.0, bitmap: 0 }
    }

    /// The host bytes that dropping this entry releases: start and length, or nothing.
    pub(super) fn owned(self, geometry: Geometry) -> Result<Option<(HostOffset, u64)>> {
        if geometry.external_data {
            return Ok(None);
        }
        if self.is_compressed() {
            let cluster = self.compressed(GuestOffset(0), geometry);
            return Ok(Some((cluster.host, u64::from(cluster.packed_len))));
        }
        Ok(self.cluster(geometry)?.map(|host| (host, geometry.cluster_size())))
    }

    /// Whether the cluster's own space can take a write of any of its units: it has some, and nobody shares it.
    pub(super) fn has_own_space(self, geometry: Geometry) -> Result<bool> {
        Ok(!self.is_compressed() && self.is_copied() && self.cluster(geometry)?.is_some())
    }

    /// Whether a new cluster in its place has to take over all of its content: units of it are in a
    /// cluster (shared or compressed) that the entry will not name any more.
    pub(super) fn moves_content(self, geometry: Geometry) -> bool {
        self.is_compressed() || (geometry.extended && self.descriptor & OFFSET_MASK != 0)
    }

    /// This entry with units `first..=last` holding data in the cluster at `host`, which nobody shares.
    pub(super) fn with_data(self, host: HostOffset, first: u32, last: u32, geometry: Geometry) -> Entry {
        let mask = unit_mask(first, last);
        let bitmap = if self.is_compressed() { 0 } else { self.bitmap };
        let bitmap = if geometry.extended { (bitmap | mask) & !(mask << 32) } else { 0 };
        Entry { descriptor: host.0 | COPIED, bitmap }
    }

    /// A (not extended) entry whose data is at `host`; `copied`: nobody shares it.
    pub(super) fn data(host: HostOffset, copied: bool) -> Entry {
        Entry { descriptor: host.0 | if copied { COPIED } else { 0 }, bitmap: 0 }
    }

    /// An entry without space whose every unit reads as zeroes.
    pub(super) fn zeroes(geometry: Geometry) -> Entry {
        if geometry.extended {
            Entry { descriptor: 0, bitmap: ALL << 32 }
        } else {
            Entry { descriptor: ZERO, bitmap: 0 }
        }
    }

    /// This (not compressed) entry with units `first..=last` reading as zeroes, its space kept.
    pub(super) fn with_zeroes(self, first: u32, last: u32, geometry: Geometry) -> Entry {
        if geometry.extended {
            let mask = unit_mask(first, last);
            Entry { bitmap: (self.bitmap & !mask) | mask << 32, ..self }
        } else {
            Entry { descriptor: self.descriptor | ZERO, ..self }
        }
    }

    /// Number of the unit that `guest` lies in.
    pub(super) fn unit_index(guest: GuestOffset, geometry: Geometry) -> u32 {
        (guest.within(geometry.cluster_size()) / geometry.unit_size()) as u32
    }

    /// Number of the last unit of a cluster.
    pub(super) fn last_unit(geometry: Geometry) -> u32 {
        geometry.units() - 1
    }
}

/// The bits of units `first..=last` in the lower half of a bitmap.
fn unit_mask(first: u32, last: u32) -> u64 {
    debug_assert!(first <= last && last < 32);
    (ALL >> (31 - last)) & (ALL << first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32, extended: bool) -> Geometry {
        Geometry {
            cluster_bits,
            extended,
            external_data: false,
            zero_flag: true,
            compression: Compression::Deflate,
        }
    }

    #[test]
    fn sector_count_of_a_compressed_cluster_is_of_additional_sectors() {
        let g = geometry(16, false);
        let entry = Entry { descriptor: COMPRESSED | 2 << 54 | 0x1_0123, bitmap: 0 };
        let cluster = entry.compressed(GuestOffset(0x20000), g);
        assert_eq!(cluster.host, HostOffset(0x1_0123));
        assert_eq!(u64::from(cluster.packed_len), 3 * 512 - 0x123);
        assert_eq!(cluster.unpacked_len, 65536);
    }

    #[test]
    fn an_entry_of_packed_bytes_covers_every_sector_that_they_touch() {
        for bits in 9..=21 {
            let g = geometry(bits, false);
            let longest = (1 << bits) - 1;
            for (host, len) in
                [(0x1_0000, 1), (0x1_01ff, 1), (0x1_01ff, longest), (0x1_0001, 511), (0x1_0001, 512)]
            {
                let host = HostOffset(host);
                let entry = Entry::packed(host, len, g);
                let cluster = entry.compressed(GuestOffset(0), g);
                assert_eq!(cluster.host, host);
                let end = host.0 + u64::from(len);
                assert_eq!(
                    host.0 + u64::from(cluster.packed_len),
                    end.next_multiple_of(512),
                    "{bits} {host} {len}"
                );
                assert!(entry.is_compressed() && !entry.is_copied());
            }
        }
    }

    #[test]
    fn both_bits_of_a_subcluster_are_corruption() {
        let g = geometry(16, true);
        let entry = Entry { descriptor: 0x10000 | COPIED, bitmap: 1 | 1 << 32 };
        assert_eq!(entry.unit(0, g).unwrap_err().kind(), crate::ErrorKind::Corrupt);
        assert_eq!(entry.unit(1, g).unwrap(), Unit::Unallocated { reserved: Some(HostOffset(0x10800)) });
    }

    #[test]
    fn data_and_zeroes_replace_each_other_in_a_subcluster_bitmap() {
        let g = geometry(16, true);
        let entry = Entry::zeroes(g).with_data(HostOffset(0x30000), 4, 7, g);
        assert_eq!(entry.unit(4, g).unwrap(), Unit::Data { host: HostOffset(0x32000) });
        assert_eq!(entry.unit(8, g).unwrap(), Unit::Zero { reserved: Some(HostOffset(0x34000)) });
        let entry = entry.with_zeroes(0, 31, g);
        assert_eq!(entry.bitmap, ALL << 32);
    }

    #[test]
    fn slices_and_entries_of_an_offset() {
        let g = geometry(16, false);
        assert_eq!(g.table_span(), 512 << 20);
        assert_eq!(g.slice_span(), 32 << 20);
        let guest = GuestOffset((512 << 20) + (33 << 20) + 70000);
        assert_eq!((g.l1_index(guest), g.slice_offset(guest), g.entry_index(guest)), (1, 4096, 17));
        let tiny = geometry(9, false);
        assert_eq!((tiny.slice_bytes(), tiny.slice_span()), (512, 64 * 512));
    }
}
