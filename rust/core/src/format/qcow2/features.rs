//! The feature bits that are known, and the names of those that are not.

use zerocopy::{FromBytes, IntoBytes};

use crate::ondisk::RawFeatureName;

/// QEMU leaves the feature name table out of clusters up to this size, where a backing file's name needs the space.
pub(crate) const MAX_CLUSTER_WITHOUT_NAMES: u64 = 4096;

/// Refcounts may be wrong: the image was written to with lazy refcounts and not closed.
pub(crate) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Metadata contradicts itself; nobody may write before it is repaired.
pub(crate) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Guest data is in an external data file.
pub(crate) const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// The header has a compression type other than deflate.
pub(crate) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// L2 entries have 128 bits and subclusters.
pub(crate) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// All incompatible bits that are known.
pub(crate) const INCOMPATIBLE_KNOWN: u64 = INCOMPATIBLE_DIRTY
    | INCOMPATIBLE_CORRUPT
    | INCOMPATIBLE_DATA_FILE
    | INCOMPATIBLE_COMPRESSION
    | INCOMPATIBLE_EXTENDED_L2;

/// Refcount updates may be put off while the dirty bit is set.
pub(crate) const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;

/// The bitmaps extension is consistent.
pub(crate) const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
/// The external data file is a raw image of the disk.
pub(crate) const AUTOCLEAR_DATA_FILE_RAW: u64 = 1 << 1;
/// All autoclear bits that are known. The others are cleared before the first write.
pub(crate) const AUTOCLEAR_KNOWN: u64 = AUTOCLEAR_BITMAPS | AUTOCLEAR_DATA_FILE_RAW;

const CLASS_INCOMPATIBLE: u8 = 0;
const CLASS_COMPATIBLE: u8 = 1;
const CLASS_AUTOCLEAR: u8 = 2;

/// What the feature name table says for the bits that are known: class, bit, name.
const NAMES: [(u8, u64, &str); 8] = [
    (CLASS_INCOMPATIBLE, INCOMPATIBLE_DIRTY, "dirty bit"),
    (CLASS_INCOMPATIBLE, INCOMPATIBLE_CORRUPT, "corrupt bit"),
    (CLASS_INCOMPATIBLE, INCOMPATIBLE_DATA_FILE, "external data file"),
    (CLASS_INCOMPATIBLE, INCOMPATIBLE_COMPRESSION, "compression type"),
    (CLASS_INCOMPATIBLE, INCOMPATIBLE_EXTENDED_L2, "extended L2 entries"),
    (CLASS_COMPATIBLE, COMPATIBLE_LAZY_REFCOUNTS, "lazy refcounts"),
    (CLASS_AUTOCLEAR, AUTOCLEAR_BITMAPS, "bitmaps"),
    (CLASS_AUTOCLEAR, AUTOCLEAR_DATA_FILE_RAW, "raw external data"),
];

/// The feature name table of a new image, as QEMU fills it.
pub(crate) fn name_table() -> Vec<RawFeatureName> {
    let entries = NAMES.iter().map(|(class, mask, name)| {
        let mut entry = RawFeatureName { class: *class, bit: mask.trailing_zeros() as u8, name: [0; 46] };
        entry.name[..name.len()].copy_from_slice(name.as_bytes());
        entry
    });
    entries.collect()
}

/// The table of a header that is rewritten, as its extension holds it: that of a new image and, of `old`, the names of bits that are
/// not known here.
pub(crate) fn merged_name_table(old: Option<&[u8]>) -> Vec<u8> {
    let mut table = name_table();
    let old = old.unwrap_or_default().chunks_exact(size_of::<RawFeatureName>());
    for entry in old.filter_map(|entry| RawFeatureName::read_from_bytes(entry).ok()) {
        if !table.iter().any(|known| (known.class, known.bit) == (entry.class, entry.bit)) {
            table.push(entry);
        }
    }
    table.as_bytes().to_vec()
}

/// The incompatible features of `bits`, one name each, as the image itself names them in its table.
pub(crate) fn incompatible_names(bits: u64, table: &[RawFeatureName]) -> String {
    let names = (0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| {
        let named = table.iter().find(|e| e.class == CLASS_INCOMPATIBLE && e.bit == bit && e.name[0] != 0);
        named.map_or_else(
            || format!("incompatible feature bit {bit}"),
            |entry| {
                let name = entry.name.split(|b| *b == 0).next().unwrap_or_default();
                format!("\"{}\" (bit {bit})", String::from_utf8_lossy(name).escape_debug())
            },
        )
    });
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_are_named_by_the_table_or_by_number() {
        let mut entry = RawFeatureName { class: 0, bit: 17, name: [b'x'; 46] };
        let names = incompatible_names(1 << 17 | 1 << 63, &[entry]);
        assert_eq!(names, format!("\"{}\" (bit 17), incompatible feature bit 63", "x".repeat(46)));
        entry.name[1..4].copy_from_slice(b"\x1b\xff\0");
        assert_eq!(incompatible_names(1 << 17, &[entry]), "\"x\\u{1b}\u{fffd}\" (bit 17)");
        entry.class = 1;
        assert_eq!(incompatible_names(1 << 17, &[entry]), "incompatible feature bit 17");
    }

    #[test]
    fn the_table_names_every_known_bit() {
        let table = name_table();
        assert_eq!(table.len(), 8);
        assert_eq!(incompatible_names(INCOMPATIBLE_DATA_FILE, &table), "\"external data file\" (bit 2)");
        assert!(!incompatible_names(INCOMPATIBLE_KNOWN, &table).contains("feature bit"));
    }
}
