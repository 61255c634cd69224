//! The bitmap directory, and what becomes of bitmaps that are not kept up to date.

use std::mem::offset_of;

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::header::{Header, in_file};
use crate::error::{Error, Result};
use crate::ondisk::{RawBitmapEntry, Table};
use crate::storage::Storage;
use crate::units::HostOffset;

/// The bitmap was not saved: its contents mean nothing.
const IN_USE: u32 = 1 << 0;
/// The bitmap is enabled: every write must be marked in it.
const AUTO: u32 = 1 << 1;
/// The bitmap may be used although its extra data is unknown.
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;

/// The only type there is.
const DIRTY_TRACKING: u8 = 1;
/// One bit stands for 512 bytes to 2 GiB.
const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// Bytes of a name at most.
const MAX_NAME_LEN: usize = 1023;
/// Bytes of a bitmap table at most: 2^27 entries of 8 bytes.
const MAX_TABLE_LEN: u64 = 8 << 27;

/// One persistent bitmap.
#[derive(Clone, Debug)]
pub(crate) struct Bitmap {
    /// Name, unique in the image.
    pub(crate) name: String,
    /// Bytes that one bit stands for.
    pub(crate) granularity: u64,
    flags: u32,
    /// Where its table is.
    pub(crate) table_offset: HostOffset,
    /// Entries of its table.
    pub(crate) table_entries: u32,
    /// Where its directory entry is in the file.
    entry_offset: u64,
}

impl Bitmap {
    /// Its contents mean nothing.
    pub(crate) fn is_in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    /// It must follow every write.
    pub(crate) fn is_auto(&self) -> bool {
        self.flags & AUTO != 0
    }
}

/// Reads the bitmap directory; an image without a consistent bitmaps extension has none.
pub(crate) fn read(storage: &dyn Storage, header: &Header) -> Result<Vec<Bitmap>> {
    let Some(extension) = header.bitmaps else { return Ok(Vec::new()) };
    let start = extension.directory_offset.0;
    let read = || {
        let file_len = storage.len()?;
        let directory = Table {
            name: "bitmap directory",
            offset: start,
            entries: extension.directory_size,
            entry_len: 1,
            max_len: super::extensions::MAX_BITMAP_DIRECTORY_LEN,
        };
        directory
            .check(header.cluster_size(), file_len)
            .map_err(|problem| Error::corrupt(problem).at(start))?;
        let mut bytes = vec![0; extension.directory_size as usize];
        storage.readv_at((&mut bytes).into(), start)?;

        let mut bitmaps = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (bitmap, len) = entry(&bytes[at..], start + at as u64, header, file_len)
                .map_err(|problem| Error::corrupt(problem).at(start + at as u64))?;
            bitmaps.push(bitmap);
            at += len;
        }
        if bitmaps.len() != extension.count as usize {
            let message = format!(
                "the header counts {} bitmaps, their directory has {}",
                extension.count,
                bitmaps.len()
            );
            return Err(Error::corrupt(message).at(start));
        }
        Ok(bitmaps)
    };
    read().map_err(|error| in_file(storage, error))
}

/// The entry at the front of `bytes` (`entry_offset` in the file), and its length with the padding.
fn entry(bytes: &[u8], entry_offset: u64, header: &Header, file_len: u64) -> Result<(Bitmap, usize), String> {
    let cut_off = || "a bitmap's entry goes past the end of the bitmap directory".to_owned();
    let (raw, rest) = RawBitmapEntry::read_from_prefix(bytes).map_err(|_| cut_off())?;
    let (extra_len, name_len) = (raw.extra_len.get() as usize, raw.name_len.get() as usize);
    let name = rest.get(extra_len..).and_then(|rest| rest.get(..name_len)).ok_or_else(cut_off)?;
    let name = String::from_utf8_lossy(name).into_owned();
    let len = (size_of::<RawBitmapEntry>() + extra_len + name_len).next_multiple_of(8);
    if len > bytes.len() {
        return Err(cut_off());
    }

    let flags = raw.flags.get();
    let problem = if name_len == 0 || name_len > MAX_NAME_LEN {
        format!("its name has {name_len} bytes; 1 to {MAX_NAME_LEN} are possible")
    } else if raw.kind != DIRTY_TRACKING {
        format!("its type is {}; only {DIRTY_TRACKING} is known", raw.kind)
    } else if !GRANULARITY_BITS.contains(&raw.granularity_bits) {
        format!("a bit stands for 2^{} bytes; 2^9 to 2^31 are possible", raw.granularity_bits)
    } else if flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) != 0 {
        format!("its flags {flags:#x} have unknown bits")
    } else if raw.table_entries.get() == 0 {
        "it has no bitmap table".to_owned()
    } else {
        let table = Table {
            name: "bitmap table",
            offset: raw.table_offset.get(),
            entries: raw.table_entries.get().into(),
            entry_len: 8,
            max_len: MAX_TABLE_LEN,
        };
        let bitmap = Bitmap {
            name,
            granularity: 1 << raw.granularity_bits,
            flags,
            table_offset: table.check(header.cluster_size(), file_len)?,
            table_entries: raw.table_entries.get(),
            entry_offset,
        };
        return Ok((bitmap, len));
    };
    Err(format!("the bitmap \"{}\" makes no sense: {problem}", name.escape_debug()))
}

/// Says durably that the enabled bitmaps are not kept up to date; to be called before the first write of guest data.
///
/// Nothing here marks writes in bitmaps. A bitmap that should follow them would then lie by omission, and a backup
/// made with it would lack data; with `in_use` set every reader takes it for inconsistent. Disabled bitmaps need not follow
/// writes and stay valid. The autoclear bit stays: the directory itself is right. Each change is one field
/// inside one sector, so that a crash leaves some bitmaps marked and the others as they were, before any guest data changed.
pub(crate) fn mark_in_use(storage: &dyn Storage, header: &Header) -> Result<()> {
    let bitmaps = read(storage, header)?;
    let mut changed = false;
    for bitmap in bitmaps.iter().filter(|bitmap| bitmap.is_auto() && !bitmap.is_in_use()) {
        let flags = U32::new(bitmap.flags | IN_USE);
        let at = bitmap.entry_offset + offset_of!(RawBitmapEntry, flags) as u64;
        storage.writev_at(flags.as_bytes().into(), at)?;
        changed = true;
    }
    if changed { storage.sync() } else { Ok(()) }
}
