use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

const FILE_LEN: u64 = 8 << 16;

/// A version 3 header of 1 GiB in clusters of 64 KiB: refcount table at 1, L1 table at 3.
fn good() -> RawHeader {
    RawHeader {
        magic: MAGIC.into(),
        version: 3.into(),
        backing_name_offset: 0.into(),
        backing_name_len: 0.into(),
        cluster_bits: 16.into(),
        size: (1 << 30).into(),
        crypt_method: 0.into(),
        l1_entries: 2.into(),
        l1_offset: (3 << 16).into(),
        refcount_table_offset: (1 << 16).into(),
        refcount_table_clusters: 1.into(),
        snapshot_count: 0.into(),
        snapshot_offset: 0.into(),
        incompatible: 0.into(),
        compatible: 0.into(),
        autoclear: 0.into(),
        refcount_order: 4.into(),
        header_length: 112.into(),
        compression_type: 0,
        padding: [0; 7],
    }
}

/// The first cluster (as far as it matters) of an image with every extension and a backing file.
fn rich() -> Vec<u8> {
    let mut raw = good();
    raw.incompatible = (INCOMPATIBLE_DATA_FILE | INCOMPATIBLE_COMPRESSION).into();
    raw.compression_type = COMPRESSION_ZSTD;
    raw.autoclear = AUTOCLEAR_BITMAPS.into();
    let extensions = Extensions {
        backing_format: Some("qcow2".into()),
        data_file: Some("disk.data".into()),
        feature_names: crate::format::qcow2::features::name_table(),
        bitmaps: Some(BitmapsExtension {
            count: 2,
            directory_size: 64,
            directory_offset: HostOffset(4 << 16),
        }),
        crypto_header: None,
        unknown: vec![extensions::Extension { kind: 0x1234_5678, data: b"kept".to_vec() }],
    };
    let area = extensions.to_bytes();
    raw.backing_name_offset = (112 + area.len() as u64).into();
    raw.backing_name_len = 9.into();
    [raw.as_bytes(), &area, b"base.img\0"].concat()
}

fn parse_raw(raw: &RawHeader) -> Result<Header> {
    parse(&cluster(raw.as_bytes()), FILE_LEN)?.whole()
}

fn cluster(head: &[u8]) -> Vec<u8> {
    let mut cluster = head.to_vec();
    cluster.resize(1 << 16, 0);
    cluster
}

#[track_caller]
fn refused(change: impl FnOnce(&mut RawHeader), kind: ErrorKind, at: usize, says: &str) {
    let mut raw = good();
    change(&mut raw);
    let error = parse_raw(&raw).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (kind, Some(at as u64)), "{error}");
    assert!(error.message().contains(says), "{error}");
}

#[test]
fn a_good_header_is_read() {
    let header = parse_raw(&good()).unwrap();
    assert_eq!((header.version, header.size, header.l1_entries), (3, 1 << 30, 2));
    assert_eq!((header.cluster_size(), header.refcount_bits()), (65536, 16));
    assert_eq!((header.l1_offset, header.refcount_table_offset), (HostOffset(3 << 16), HostOffset(1 << 16)));
    assert_eq!(header.compression, Compression::Deflate);
    assert!(header.backing.is_none() && header.data_file.is_none() && header.bitmaps.is_none());
    assert!(!header.is_dirty() && !header.is_corrupt() && !header.has_data_file());
}

#[test]
fn everything_a_header_can_hold_is_read() {
    let header = parse(&cluster(&rich()), FILE_LEN).unwrap();
    let backing = header.backing.unwrap();
    assert_eq!((backing.name.to_str(), backing.format.as_deref()), (Some("base.img"), Some("qcow2")));
    assert_eq!(header.data_file.unwrap().to_str(), Some("disk.data"));
    assert_eq!(header.bitmaps.unwrap().count, 2);
    assert_eq!(header.compression, Compression::Zstd);
}

#[test]
fn extensions_survive_being_read_and_written() {
    let bytes = rich();
    let parsed = Extensions::parse(&bytes[112..bytes.len() - 9], 112, 1 << 16).unwrap();
    assert_eq!(parsed.unknown[0].data, b"kept");
    assert_eq!(parsed.to_bytes(), bytes[112..bytes.len() - 9]);
}

#[test]
fn version_2_has_defaults_and_extensions() {
    let mut raw = good();
    raw.version = 2.into();
    let area = Extensions { backing_format: Some("raw".into()), ..Extensions::default() }.to_bytes();
    raw.backing_name_offset = (72 + area.len() as u64).into();
    raw.backing_name_len = 1.into();
    let bytes = [&raw.as_bytes()[..72], &area, b"b"].concat();
    let header = parse(&cluster(&bytes), FILE_LEN).unwrap();
    assert_eq!((header.refcount_order, header.incompatible, header.autoclear), (4, 0, 0));
    assert_eq!(header.backing.unwrap().format.as_deref(), Some("raw"));

    // Old images have the name directly behind the header: it is no extension.
    raw.backing_name_offset = 72.into();
    let bytes = [&raw.as_bytes()[..72], b"b"].concat();
    let header = parse(&cluster(&bytes), FILE_LEN).unwrap();
    assert_eq!(header.backing.unwrap(), ImplicitReference { name: "b".into(), format: None });
}

#[test]
fn a_disk_of_no_bytes_needs_no_l1_table() {
    let mut raw = good();
    (raw.size, raw.l1_entries, raw.l1_offset) = (0.into(), 0.into(), 0.into());
    assert_eq!(parse_raw(&raw).unwrap().l1_entries, 0);
}

#[test]
fn an_l1_table_may_have_entries_past_the_disk() {
    let mut raw = good();
    raw.l1_entries = 8192.into();
    assert_eq!(parse_raw(&raw).unwrap().l1_entries, 8192);
}

#[test]
fn limits_are_kept_and_errors_name_the_field() {
    use ErrorKind::{InvalidImage, Unsupported};
    refused(|h| h.magic = 0.into(), InvalidImage, 0, "no qcow2 image");
    refused(|h| h.version = 1.into(), Unsupported, 4, "version 1");
    refused(|h| h.version = 4.into(), Unsupported, 4, "version 4");
    refused(|h| h.cluster_bits = 8.into(), InvalidImage, 20, "2^8");
    refused(|h| h.cluster_bits = 22.into(), InvalidImage, 20, "2^22");
    refused(|h| h.cluster_bits = u32::MAX.into(), InvalidImage, 20, "2 MiB");
    refused(|h| h.backing_name_offset = 111.into(), InvalidImage, 8, "behind the header");
    refused(|h| h.backing_name_offset = 65537.into(), InvalidImage, 8, "in its cluster");
    refused(
        |h| (h.backing_name_offset, h.backing_name_len) = (200.into(), 1024.into()),
        InvalidImage,
        16,
        "1023",
    );
    refused(
        |h| (h.backing_name_offset, h.backing_name_len) = (65530.into(), 7.into()),
        InvalidImage,
        16,
        "inside the first cluster",
    );
    refused(|h| h.size = u64::MAX.into(), InvalidImage, 36, "needs");
    refused(|h| h.l1_entries = 1.into(), InvalidImage, 36, "needs 2");
    refused(|h| h.crypt_method = 3.into(), Unsupported, 32, "method 3");
    refused(|h| h.l1_entries = ((4 << 20) + 1).into(), InvalidImage, 40, "never valid");
    refused(|h| h.l1_entries = (4 << 20).into(), InvalidImage, 40, "cut off");
    refused(|h| h.l1_offset = 512.into(), InvalidImage, 40, "multiple");
    refused(|h| h.l1_offset = 0.into(), InvalidImage, 40, "on top of the header");
    refused(|h| h.l1_offset = FILE_LEN.into(), InvalidImage, 40, "cut off");
    refused(|h| h.refcount_table_clusters = 0.into(), InvalidImage, 56, "no refcount table");
    refused(|h| h.refcount_table_clusters = 129.into(), InvalidImage, 48, "never valid");
    refused(|h| h.refcount_table_offset = (!0 << 16).into(), InvalidImage, 48, "cut off");
    refused(|h| h.snapshot_count = 65537.into(), InvalidImage, 64, "never valid");
    refused(|h| h.snapshot_offset = 8.into(), InvalidImage, 64, "multiple");
    refused(|h| h.refcount_order = 7.into(), InvalidImage, 96, "64 bits");
    refused(|h| h.header_length = 96.into(), InvalidImage, 100, "104");
    refused(|h| h.header_length = 105.into(), InvalidImage, 100, "multiples of 8");
    refused(|h| h.header_length = (65536 + 8).into(), InvalidImage, 100, "more than a cluster");
    refused(|h| h.compression_type = 1, InvalidImage, 104, "without the feature bit");
    refused(|h| h.incompatible = INCOMPATIBLE_COMPRESSION.into(), InvalidImage, 104, "none is");
    refused(
        |h| (h.incompatible, h.compression_type) = (INCOMPATIBLE_COMPRESSION.into(), 2),
        Unsupported,
        104,
        "type 2",
    );
    refused(|h| h.incompatible = (1 << 40).into(), Unsupported, 72, "bit 40");
    refused(|h| h.autoclear = AUTOCLEAR_DATA_FILE_RAW.into(), InvalidImage, 88, "no external data file");
}

#[test]
fn a_short_header_has_no_compression_type() {
    let mut raw = good();
    (raw.header_length, raw.compression_type) = (104.into(), 1);
    // The byte belongs to an extension then: kind 0x01000000 of no bytes.
    assert_eq!(parse_raw(&raw).unwrap().compression, Compression::Deflate);
}

#[test]
fn extended_l2_entries_need_clusters_of_16_kib() {
    for (bits, fine) in [(13, false), (14, true)] {
        let mut raw = good();
        (raw.cluster_bits, raw.size, raw.incompatible) =
            (bits.into(), (1 << 20).into(), INCOMPATIBLE_EXTENDED_L2.into());
        assert_eq!(parse_raw(&raw).is_ok_and(|header| header.is_extended_l2()), fine);
    }
}

#[test]
fn an_unknown_feature_is_named_by_the_image() {
    let mut raw = good();
    raw.incompatible = (1 << 9).into();
    let mut name = crate::format::qcow2::features::name_table()[0];
    name.bit = 9;
    name.name[..9].copy_from_slice(b"time warp");
    let area = Extensions { feature_names: vec![name], ..Extensions::default() }.to_bytes();
    let error = parse(&cluster(&[raw.as_bytes(), &area].concat()), FILE_LEN).unwrap_err();
    assert!(error.message().ends_with("\"time warp\" (bit 9)"), "{error}");
}

#[test]
fn bad_extensions_are_refused() {
    let cases: [(&[u8], &str); 8] = [
        (&[0xe2, 0x79, 0x2a, 0xca, 0, 1, 0, 0], "leave the space"),
        (
            &[
                0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 16, b'q', b'q', b'q', b'q', b'q', b'q', b'q', b'q', b'q',
                b'q', b'q', b'q', b'q', b'q', b'q', b'q',
            ],
            "16 bytes",
        ),
        (&[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 1, 0xff, 0, 0, 0, 0, 0, 0, 0], "no text"),
        (&[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 0], "0 bytes instead of 24"),
        (&[0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 0], "0 bytes instead of 16"),
        (
            &[0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0],
            "no cluster that could hold it",
        ),
        (
            &[0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0],
            "not encrypted with LUKS",
        ),
        (&[0x44, 0x41, 0x54, 0x41, 0, 0, 0, 0, 0x44, 0x41, 0x54, 0x41, 0, 0, 0, 0], "twice"),
    ];
    for (bytes, says) in cases {
        let error = parse(&cluster(&[good().as_bytes(), bytes].concat()), FILE_LEN).unwrap_err();
        assert!(error.message().contains(says), "{error}");
    }
}

#[test]
fn bitmaps_count_only_with_their_autoclear_bit() {
    let mut bytes = rich();
    bytes[95] = 0;
    assert!(parse(&cluster(&bytes), FILE_LEN).unwrap().bitmaps.is_none());
}

#[test]
fn every_flip_and_every_cut_is_an_answer() {
    let good = rich();
    for at in 0..good.len() {
        for flip in (0..8).map(|bit| 1 << bit).chain([0xff, good[at], !good[at]]) {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            let _ = parse(&bytes, FILE_LEN);
        }
    }
    for len in 0..good.len() {
        assert!(
            parse(&good[..len], len as u64).and_then(Header::whole).is_err(),
            "a file of {len} bytes has no tables"
        );
        let _ = parse(&good[..len], FILE_LEN);
    }
}

proptest! {
    #[test]
    fn garbage_is_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600), len in any::<u64>()) {
        let _ = parse(&bytes, len);
    }

    #[test]
    fn garbage_behind_a_plausible_start_is_an_answer(
        version in 2..=3_u32,
        bits in 9..=21_u32,
        fields in proptest::collection::vec(any::<u8>(), 88..600),
        len in any::<u64>(),
    ) {
        let start = [MAGIC.to_be_bytes(), version.to_be_bytes()].concat();
        let mut bytes = [start, fields].concat();
        bytes[20..24].copy_from_slice(&bits.to_be_bytes());
        if let Ok(header) = parse(&bytes, len) {
            prop_assert!(header.l1_entries as u64 * 8 <= len.next_multiple_of(header.cluster_size()));
        }
    }

    #[test]
    fn extensions_of_garbage_are_an_answer(bytes in proptest::collection::vec(0..4_u8, 0..200)) {
        if let Ok(extensions) = Extensions::parse(&bytes, 104, 512) {
            let again = Extensions::parse(&extensions.to_bytes(), 104, 512).unwrap();
            prop_assert_eq!(extensions.unknown, again.unknown);
        }
    }
}
