//! A bitmap's table and the clusters of bits that it names.

use super::bits::Bits;
use super::directory::{self, Entry};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::header::Header;
use crate::format::qcow2::l2::OFFSET_MASK;
use crate::format::qcow2::tables::read_words;
use crate::ondisk::{bytes_fit, clusters_for};
use crate::storage::Storage;
use crate::units::HostOffset;

/// A table entry without a cluster: all its bits are 1.
pub(super) const ALL_ONES: u64 = 1;

/// What an entry of a bitmap table says of a cluster of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Zeroes,
    Ones,
    At(HostOffset),
}

/// The entries of a bitmap's table, each valid. Bitmaps whose contents mean nothing may have any number of them.
pub(super) fn read_table(
    storage: &dyn Storage,
    header: &Header,
    entry: &Entry,
    size: u64,
) -> Result<Vec<Place>> {
    let blame = |message: String| {
        let name = entry.name();
        Error::corrupt(format!("the bitmap \"{}\" {message}", name.escape_debug()))
    };
    let needed = directory::table_entries(size, entry.granularity_bits, header.cluster_bits);
    let entries = u64::from(entry.table.entries);
    if entries != needed && !entry.is_in_use() {
        return Err(blame(format!(
            "has a table of {entries} entries, but a disk of {size} bytes needs {needed}"
        ))
        .at(entry.table.offset.0));
    }
    // What the file lacks of it would read as zeroes, which are clean bits.
    let file_len = storage.len()?;
    if !bytes_fit(entry.table.offset.0, entries * 8, file_len) {
        let text = format!("has a table that goes past the end of the file, which is at {file_len:#x}");
        return Err(blame(text).at(entry.table.offset.0));
    }
    let words = read_words(storage, entry.table.offset, entries)?;
    let place =
        |(index, word): (u64, u64)| {
            let offset = HostOffset(word & OFFSET_MASK);
            match word & !OFFSET_MASK {
                0 if offset.0 == 0 => Ok(Place::Zeroes),
                0 if offset.is_aligned(header.cluster_size()) => Ok(Place::At(offset)),
                ALL_ONES if offset.0 == 0 => Ok(Place::Ones),
                _ => Err(blame(format!("has a table with the entry {word:#x}, which makes no sense"))
                    .at(entry.table.offset.0 + index * 8)),
            }
        };
    (0..).zip(words).map(place).collect()
}

/// The bits of a bitmap for a disk of `size` bytes.
pub(super) fn load(storage: &dyn Storage, header: &Header, entry: &Entry, size: u64) -> Result<Bits> {
    let cluster_size = header.cluster_size();
    let places = read_table(storage, header, entry, size)?;
    let bits = Bits::new(size, entry.granularity_bits.into(), header.cluster_bits);
    let file_len = storage.len()?;
    let mut cluster = vec![0; cluster_size as usize];
    for (index, place) in (0..).zip(places) {
        match place {
            Place::Zeroes => {}
            Place::Ones => bits.add_ones(index, cluster_size),
            Place::At(host) if !bytes_fit(host.0, cluster_size, file_len) => {
                let name = entry.name();
                return Err(Error::corrupt(format!(
                    "bits of the bitmap \"{}\" go past the end of the file, which is at {file_len:#x}",
                    name.escape_debug()
                ))
                .at(host.0));
            }
            Place::At(host) => {
                storage.readv_at((&mut cluster).into(), host.0)?;
                bits.add_from_disk(index, &cluster);
            }
        }
    }
    Ok(bits)
}

/// The clusters of a bitmap's table, and those of its bits.
///
/// The table of a bitmap whose contents mean nothing may make no sense either: then its bits are nowhere.
pub(super) fn clusters(
    storage: &dyn Storage,
    header: &Header,
    entry: &Entry,
    size: u64,
) -> Result<(Vec<u64>, Vec<u64>)> {
    let bits = header.cluster_bits;
    let first = entry.table.offset.0 >> bits;
    let table = (first..first + clusters_for(entry.table.len(), bits)).collect();
    let places = match read_table(storage, header, entry, size) {
        Err(error) if entry.is_in_use() && error.kind() == ErrorKind::Corrupt => Vec::new(),
        places => places?,
    };
    let cluster = |place| match place {
        Place::At(host) => Some(host.0 >> bits),
        Place::Zeroes | Place::Ones => None,
    };
    Ok((table, places.into_iter().filter_map(cluster).collect()))
}
