//! The bitmap directory: its entries, and what each may claim.

use zerocopy::{FromBytes, IntoBytes};

use rustc_hash::FxHashSet;

use super::{AUTO, DIRTY_TRACKING, EXTRA_DATA_COMPATIBLE, GRANULARITY_BITS, IN_USE, MAX_NAME_LEN};
use crate::error::{Error, Result};
use crate::format::qcow2::extensions::{BitmapsExtension, MAX_BITMAP_DIRECTORY_LEN};
use crate::format::qcow2::header::{Header, in_file};
use crate::ondisk::{RawBitmapEntry, Table};
use crate::storage::Storage;
use crate::units::HostOffset;

/// Bytes of a bitmap table at most: 2^27 entries of 8 bytes.
const MAX_TABLE_LEN: u64 = 8 << 27;
/// Bytes of one bitmap's bits at most, as in QEMU, which has them all in memory.
const MAX_BITS_LEN: u64 = 512 << 20;

/// One persistent bitmap, as its directory entry has it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Unique in the image.
    name: Vec<u8>,
    pub(super) flags: u32,
    /// One bit stands for 2 to this power bytes.
    pub(crate) granularity_bits: u8,
    extra: Vec<u8>,
    pub(crate) table: BitmapTable,
}

/// Where a bitmap's table is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BitmapTable {
    pub(crate) offset: HostOffset,
    /// Entries of 8 bytes, one for each cluster of bits.
    pub(crate) entries: u32,
}

impl BitmapTable {
    /// Its length in bytes.
    pub(super) fn len(self) -> u64 {
        u64::from(self.entries) * 8
    }
}

impl Entry {
    /// A bitmap without a table yet, which was checked with [`check_new`].
    pub(super) fn new(name: &str, granularity_bits: u8, flags: u32) -> Self {
        let table = BitmapTable { offset: HostOffset(0), entries: 0 };
        Entry { name: name.as_bytes().to_vec(), flags, granularity_bits, extra: Vec::new(), table }
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// Its name as it stands.
    pub(super) fn raw_name(&self) -> &[u8] {
        &self.name
    }

    /// Whether it is called that.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name.as_bytes() || self.name() == name
    }

    /// Bytes that one bit stands for.
    pub(crate) fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Its contents mean nothing.
    pub(crate) fn is_in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    /// It must follow every write.
    pub(crate) fn is_auto(&self) -> bool {
        self.flags & AUTO != 0
    }

    /// It has extra data that means more than anyone here knows, and may only be left alone.
    pub(crate) fn is_foreign(&self) -> bool {
        !self.extra.is_empty() && self.flags & EXTRA_DATA_COMPATIBLE == 0
    }

    /// Bytes that its directory entry takes.
    fn entry_len(&self) -> u64 {
        entry_len(self.extra.len(), self.name.len())
    }
}

pub(crate) fn entry_len(extra: usize, name: usize) -> u64 {
    (size_of::<RawBitmapEntry>() as u64 + extra as u64 + name as u64).next_multiple_of(8)
}

/// Entries of the table for a disk of `size` bytes.
pub(super) fn table_entries(size: u64, granularity_bits: u8, cluster_bits: u32) -> u64 {
    size.div_ceil(1 << granularity_bits).div_ceil(8).div_ceil(1 << cluster_bits)
}

/// Whether a disk of `size` bytes can have a bitmap of that granularity.
pub(super) fn check_size(size: u64, granularity_bits: u8, cluster_bits: u32) -> Result<(), String> {
    let entries = table_entries(size, granularity_bits, cluster_bits);
    if entries == 0 {
        return Err("a disk of 0 bytes can have no bitmap".to_owned());
    }
    if entries << cluster_bits > MAX_BITS_LEN {
        return Err(format!(
            "its bits would take more than {MAX_BITS_LEN} bytes; use a larger granularity than {}",
            1_u64 << granularity_bits
        ));
    }
    Ok(())
}

/// Where each entry is in the directory, and how long all of it is.
pub(super) fn offsets<'a>(entries: impl Iterator<Item = &'a Entry>) -> (Vec<u64>, u64) {
    let mut len = 0;
    let offsets = entries
        .map(|entry| {
            len += entry.entry_len();
            len - entry.entry_len()
        })
        .collect();
    (offsets, len)
}

/// The directory of `entries` as the file has it.
pub(crate) fn to_bytes<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let raw = RawBitmapEntry {
            table_offset: entry.table.offset.0.into(),
            table_entries: entry.table.entries.into(),
            flags: entry.flags.into(),
            kind: DIRTY_TRACKING,
            granularity_bits: entry.granularity_bits,
            name_len: (entry.name.len() as u16).into(),
            extra_len: (entry.extra.len() as u32).into(),
        };
        bytes.extend_from_slice(raw.as_bytes());
        bytes.extend_from_slice(&entry.extra);
        bytes.extend_from_slice(&entry.name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

/// Reads the bitmap directory; an image without a consistent bitmaps extension has none.
pub(crate) fn read(storage: &dyn Storage, header: &Header) -> Result<Vec<Entry>> {
    read_each(storage, header)?.into_iter().collect()
}

/// The same, with an error in the place of each entry that makes no sense; one that leaves in doubt where the next entry begins is the directory's.
pub(crate) fn read_each(storage: &dyn Storage, header: &Header) -> Result<Vec<Result<Entry>>> {
    let Some(extension) = header.bitmaps else { return Ok(Vec::new()) };
    let in_image = |error| in_file(storage, error);
    let read = || {
        let file_len = storage.len()?;
        let bytes = read_bytes(storage, header, extension, file_len)?;
        let start = extension.directory_offset.0;
        let (mut entries, mut names) = (Vec::new(), FxHashSet::default());
        let mut at = 0;
        while at < bytes.len() {
            let blame = |problem| Error::corrupt(problem).at(start + at as u64);
            let (entry, len) = parse(&bytes[at..], header, file_len).map_err(blame)?;
            let entry = entry.and_then(|entry| {
                if names.insert(entry.name.clone()) {
                    return Ok(entry);
                }
                Err(format!("two bitmaps are called \"{}\"", entry.name().escape_debug()))
            });
            entries.push(entry.map_err(|problem| in_image(blame(problem))));
            at += len;
        }
        if entries.len() != extension.count as usize {
            let message = format!(
                "the header counts {} bitmaps, their directory has {}",
                extension.count,
                entries.len()
            );
            return Err(Error::corrupt(message).at(start));
        }
        Ok(entries)
    };
    read().map_err(in_image)
}

fn read_bytes(
    storage: &dyn Storage,
    header: &Header,
    extension: BitmapsExtension,
    file_len: u64,
) -> Result<Vec<u8>> {
    let start = extension.directory_offset.0;
    let directory = Table {
        name: "bitmap directory",
        offset: start,
        entries: extension.directory_size,
        entry_len: 1,
        max_len: MAX_BITMAP_DIRECTORY_LEN,
    };
    directory.check(header.cluster_size(), file_len).map_err(|problem| Error::corrupt(problem).at(start))?;
    let mut bytes = vec![0; extension.directory_size as usize];
    storage.readv_at((&mut bytes).into(), start)?;
    Ok(bytes)
}

/// The entry at the front of `bytes`, or what is wrong with it, and its length with the padding.
fn parse(bytes: &[u8], header: &Header, file_len: u64) -> Result<(Result<Entry, String>, usize), String> {
    let cut_off = || "a bitmap's entry goes past the end of the bitmap directory".to_owned();
    let (raw, rest) = RawBitmapEntry::read_from_prefix(bytes).map_err(|_| cut_off())?;
    let (extra_len, name_len) = (raw.extra_len.get() as usize, raw.name_len.get() as usize);
    let extra = rest.get(..extra_len).ok_or_else(cut_off)?;
    let name = rest[extra_len..].get(..name_len).ok_or_else(cut_off)?;
    let len = entry_len(extra_len, name_len) as usize;
    if len > bytes.len() {
        return Err(cut_off());
    }

    let flags = raw.flags.get();
    let entries = raw.table_entries.get();
    let problem = if name_len == 0 || name_len > MAX_NAME_LEN {
        format!("its name has {name_len} bytes; 1 to {MAX_NAME_LEN} are possible")
    } else if raw.kind != DIRTY_TRACKING {
        format!("its type is {}; only {DIRTY_TRACKING} is known", raw.kind)
    } else if !GRANULARITY_BITS.contains(&raw.granularity_bits) {
        format!("a bit stands for 2^{} bytes; 2^9 to 2^31 are possible", raw.granularity_bits)
    } else if flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) != 0 {
        format!("its flags {flags:#x} have unknown bits")
    } else if entries == 0 {
        "it has no bitmap table".to_owned()
    } else if u64::from(entries) << header.cluster_bits > MAX_BITS_LEN {
        format!("its bits take more than {MAX_BITS_LEN} bytes")
    } else {
        let table = Table {
            name: "bitmap table",
            offset: raw.table_offset.get(),
            entries: entries.into(),
            entry_len: 8,
            max_len: MAX_TABLE_LEN,
        };
        match table.check(header.cluster_size(), file_len) {
            Ok(offset) => {
                let table = BitmapTable { offset, entries };
                let (name, extra, granularity_bits) = (name.to_vec(), extra.to_vec(), raw.granularity_bits);
                return Ok((Ok(Entry { name, flags, granularity_bits, extra, table }), len));
            }
            Err(problem) => problem,
        }
    };
    let name = String::from_utf8_lossy(name);
    Ok((Err(format!("the bitmap \"{}\" makes no sense: {problem}", name.escape_debug())), len))
}
