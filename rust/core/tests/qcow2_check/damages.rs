//! Images to be checked, and what may be wrong with them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use imago_core::access::check::FindingKind::{self, *};
use imago_testkit::qcow2::Qcow2;
use imago_testkit::qemu;
use tempfile::TempDir;

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An image with clusters of every kind, a snapshot that shares some of them, and a bitmap.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn make(options: &str) -> Made {
    make_with(options, Bitmaps::One)
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Bitmaps {
    None,
    One,
}

/// Made once for each layout, and copied; but for the data file, which the image names by its path.
pub(crate) fn make_with(options: &str, bitmaps: Bitmaps) -> Made {
    type Images = HashMap<(String, Bitmaps), Vec<u8>>;
    static IMAGES: LazyLock<Mutex<Images>> = LazyLock::new(Mutex::default);
    if options.contains("data_file") {
        return make_anew(options, bitmaps);
    }
    let key = (options.to_owned(), bitmaps);
    let known = IMAGES.lock().unwrap().get(&key).cloned();
    let bytes = known.unwrap_or_else(|| fs::read(make_anew(options, bitmaps).path).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    fs::write(&path, &bytes).unwrap();
    IMAGES.lock().unwrap().insert(key, bytes);
    Made { dir, path }
}

pub(crate) fn make_anew(options: &str, bitmaps: Bitmaps) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let data = dir.path().join("data");
    let options = options.replace("DATA", data.to_str().unwrap());
    qemu::create(&path, 8 << 20, &options);
    let name = path.to_str().unwrap();
    let external = options.contains("data_file");
    let version_2 = options.contains("0.10");
    let mut first = vec!["write -P 1 0 1M", "write -P 2 3M 700k", "write -z 2M 64k", "write -P 3 6M 64k"];
    if !external && !["refcount_bits=2", "refcount_bits=1", "=2M"].iter().any(|few| options.contains(few)) {
        first.push("write -c -P 4 5M 256k");
    }
    qemu::io(&path, "qcow2", &first);
    if !external && !options.contains("refcount_bits=1") {
        qemu::img(&["snapshot", "-c", "one", name]);
    }
    if !version_2 && bitmaps == Bitmaps::One {
        qemu::img(&["bitmap", "--add", "-g", "512", name, "dirty"]);
    }
    qemu::io(&path, "qcow2", &["write -P 5 512k 300k", "write -P 6 7M 64k", "discard 64k 64k"]);
    Made { dir, path }
}

/// An image to be damaged.
pub(crate) struct Patient {
    pub(crate) bytes: Vec<u8>,
}

impl Patient {
    pub(crate) fn image(&self) -> Qcow2<'_> {
        Qcow2::parse(&self.bytes).unwrap()
    }

    pub(crate) fn word(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.bytes[at as usize..][..8].try_into().unwrap())
    }

    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn change(&mut self, at: u64, change: impl FnOnce(u64) -> u64) {
        let word = change(self.word(at));
        self.put(at, &word.to_be_bytes());
    }

    /// Where the L1 entry of a guest offset is.
    pub(crate) fn l1(&self, guest: u64) -> u64 {
        let header = self.image().header;
        header.l1_table_offset + guest / header.cluster_size() / header.l2_entries() * 8
    }

    /// Where its L2 entry is.
    pub(crate) fn l2(&self, guest: u64) -> u64 {
        let header = self.image().header;
        let index = guest / header.cluster_size() % header.l2_entries();
        (self.word(self.l1(guest)) & OFFSET) + index * if header.extended_l2() { 16 } else { 8 }
    }

    /// The host offset of its cluster.
    pub(crate) fn host(&self, guest: u64) -> u64 {
        self.word(self.l2(guest)) & OFFSET
    }

    /// Sets the refcount, of 16 bits, of the cluster at `host`.
    pub(crate) fn set_refcount(&mut self, host: u64, count: u16) {
        let header = self.image().header;
        assert_eq!(header.refcount_order, 4);
        let (cluster, per_block) = (host / header.cluster_size(), header.cluster_size() / 2);
        let block = self.word(header.refcount_table_offset + cluster / per_block * 8);
        self.put(block + cluster % per_block * 2, &count.to_be_bytes());
    }
}

/// What is done to an image, and what is to be found then.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) layout: &'static str,
    pub(crate) damage: fn(&mut Patient),
    /// Kinds of findings and how many; 0: some.
    pub(crate) finds: &'static [(FindingKind, u64)],
    /// Corruptions that `qemu-img check` does not see; [`NO_WORD`]: it says nothing at all.
    pub(crate) unseen: u64,
    /// What is left after a full repair.
    pub(crate) stays: &'static [FindingKind],
}

/// `qemu-img check` fails, counts every cluster of which it knows no refcount, or calls space that is read a leak.
pub(crate) const NO_WORD: u64 = u64::MAX;

/// A guest offset of a plain cluster that no snapshot shares, one that a snapshot shares, and a compressed one.
pub(crate) const OWN: u64 = 512 << 10;
pub(crate) const SHARED: u64 = 3 << 20;
pub(crate) const PACKED: u64 = 5 << 20;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "an entry was lost",
        layout: "",
        damage: |image| image.change(image.l2(OWN), |_| 0),
        finds: &[(RefcountTooHigh, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "a refcount is too high",
        layout: "",
        damage: |image| image.set_refcount(image.host(OWN), 2),
        finds: &[(RefcountTooHigh, 1), (Copied, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "a refcount is 0",
        layout: "",
        damage: |image| image.set_refcount(image.host(OWN), 0),
        finds: &[(RefcountTooLow, 1), (Copied, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "a shared cluster has refcount 1",
        layout: "cluster_size=4096",
        damage: |image| image.set_refcount(image.host(SHARED), 1),
        finds: &[(RefcountTooLow, 1), (Copied, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "the header has refcount 0",
        layout: "",
        damage: |image| image.set_refcount(0, 0),
        finds: &[(RefcountTooLow, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "COPIED is missing",
        layout: "",
        damage: |image| {
            image.change(image.l2(OWN), |word| word & !COPIED);
            image.change(image.l1(OWN), |word| word & !COPIED);
        },
        finds: &[(Copied, 2)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "COPIED on a shared cluster",
        layout: "extended_l2=on",
        damage: |image| image.change(image.l2(SHARED), |word| word | COPIED),
        finds: &[(Copied, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "COPIED without a cluster",
        layout: "",
        damage: |image| image.change(image.l2(4 << 20), |_| COPIED),
        finds: &[(Copied, 1)],
        unseen: 1,
        stays: &[],
    },
    Case {
        name: "reserved bits of entries",
        layout: "",
        damage: |image| {
            image.change(image.l2(OWN), |word| word | 1 << 5);
            image.change(image.l1(OWN), |word| word | 1 << 57);
        },
        finds: &[(ReservedBits, 2)],
        unseen: 0,
        stays: &[ReservedBits],
    },
    Case {
        name: "the zero flag in version 2",
        layout: "compat=0.10",
        damage: |image| image.change(image.l2(OWN), |word| word | 1),
        finds: &[(ReservedBits, 1)],
        unseen: 1,
        stays: &[ReservedBits],
    },
    Case {
        name: "data at no cluster boundary",
        layout: "",
        damage: |image| image.change(image.l2(OWN), |word| word + 512),
        finds: &[(Unaligned, 1), (RefcountTooLow, 1)],
        unseen: 0,
        stays: &[Unaligned],
    },
    Case {
        name: "a cluster past the end",
        layout: "",
        damage: |image| image.change(image.l2(OWN), |_| COPIED | 1 << 50),
        finds: &[(PastEnd, 1), (RefcountTooHigh, 1), (Copied, 1)],
        unseen: 0,
        stays: &[PastEnd],
    },
    Case {
        name: "a compressed cluster past the end",
        layout: "",
        damage: |image| image.change(image.l2(PACKED), |word| word | 1 << 45),
        finds: &[(PastEnd, 1), (RefcountTooHigh, 1)],
        unseen: 0,
        stays: &[PastEnd],
    },
    Case {
        name: "an L2 table past the end",
        layout: "",
        damage: |image| image.change(image.l1(OWN), |_| COPIED | 1 << 50),
        finds: &[(PastEnd, 1), (RefcountTooHigh, 0), (Copied, 1)],
        unseen: 0,
        stays: &[PastEnd],
    },
    Case {
        name: "an L2 table at no cluster boundary",
        layout: "",
        damage: |image| image.change(image.l1(OWN), |word| word + 512),
        finds: &[(Unaligned, 0), (RefcountTooHigh, 0), (ReservedBits, 0), (PastEnd, 0)],
        unseen: 0,
        stays: &[Unaligned, ReservedBits, PastEnd],
    },
    Case {
        name: "a refcount block past the end",
        layout: "cluster_size=512",
        damage: |image| image.change(image.image().header.refcount_table_offset + 8, |_| 1 << 40),
        finds: &[(RefcountTable, 1), (RefcountTooLow, 0)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "a refcount block at no cluster boundary",
        layout: "",
        damage: |image| image.change(image.image().header.refcount_table_offset, |word| word + 512),
        finds: &[(RefcountTable, 1), (RefcountTooLow, 0), (Copied, 0)],
        unseen: NO_WORD,
        stays: &[],
    },
    Case {
        name: "reserved bits in the refcount table",
        layout: "",
        damage: |image| image.change(image.image().header.refcount_table_offset, |word| word | 8),
        finds: &[(RefcountTable, 1), (RefcountTooHigh, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "one refcount block for two ranges",
        layout: "cluster_size=512",
        damage: |image| {
            let table = image.image().header.refcount_table_offset;
            let first = image.word(table);
            image.change(table + 8, |_| first);
        },
        finds: &[(Overlap, 1), (RefcountTooLow, 0), (RefcountTooHigh, 0), (Copied, 0)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "no refcount block",
        layout: "cluster_size=512",
        damage: |image| image.change(image.image().header.refcount_table_offset + 16, |_| 0),
        finds: &[(RefcountTooLow, 0)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "data in the L1 table",
        layout: "",
        damage: |image| {
            let l1 = image.image().header.l1_table_offset;
            image.change(image.l2(OWN), |_| COPIED | l1);
        },
        finds: &[(RefcountTooHigh, 1), (RefcountTooLow, 1), (Overlap, 1)],
        unseen: 1,
        stays: &[Overlap],
    },
    Case {
        name: "data in an L2 table that counts for two",
        layout: "",
        damage: |image| {
            let table = image.word(image.l1(OWN)) & OFFSET;
            image.change(image.l2(OWN), |_| table);
            image.set_refcount(table, 2);
        },
        finds: &[(RefcountTooHigh, 1), (Copied, 1), (Overlap, 1)],
        unseen: 1,
        stays: &[Overlap],
    },
    Case {
        name: "a subcluster both allocated and zero",
        layout: "extended_l2=on",
        damage: |image| image.change(image.l2(OWN) + 8, |_| 1 << 32 | 1),
        finds: &[(Subclusters, 1)],
        unseen: 0,
        stays: &[Subclusters],
    },
    Case {
        name: "subclusters of no cluster",
        layout: "extended_l2=on",
        damage: |image| image.change(image.l2(4 << 20) + 8, |_| 3),
        finds: &[(Subclusters, 1)],
        unseen: 0,
        stays: &[Subclusters],
    },
    Case {
        name: "a compressed cluster with a subcluster bitmap",
        layout: "extended_l2=on",
        damage: |image| image.change(image.l2(PACKED) + 8, |_| 1),
        finds: &[(Compressed, 1)],
        unseen: NO_WORD,
        stays: &[Compressed],
    },
    Case {
        name: "a compressed cluster with COPIED",
        layout: "",
        damage: |image| image.change(image.l2(PACKED), |word| word | COPIED),
        finds: &[(Compressed, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "a compressed cluster in an image with a data file",
        layout: "data_file=DATA",
        damage: |image| image.change(image.l2(OWN), |_| 1 << 62 | 0x50000),
        finds: &[(Compressed, 1)],
        unseen: 0,
        stays: &[Compressed],
    },
    Case {
        name: "another place in the data file",
        layout: "data_file=DATA",
        damage: |image| image.change(image.l2(OWN), |word| word + 0x10000),
        finds: &[(DataFile, 1)],
        unseen: 1,
        stays: &[DataFile],
    },
    Case {
        name: "COPIED is missing in an image with a data file",
        layout: "data_file=DATA",
        damage: |image| image.change(image.l2(OWN), |word| word & !COPIED),
        finds: &[(Copied, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "a snapshot without its sizes",
        layout: "",
        damage: |image| {
            let table = image.image().header.snapshots_offset;
            let id_and_name = image.bytes[table as usize + 64..][..4].to_vec();
            image.put(table + 36, &8u32.to_be_bytes());
            image.put(table + 48, &id_and_name);
        },
        finds: &[(Snapshot, 1)],
        unseen: 0,
        stays: &[Snapshot],
    },
    Case {
        name: "a snapshot whose L1 table is nowhere",
        layout: "",
        damage: |image| image.change(image.image().header.snapshots_offset, |word| word + 512),
        finds: &[(Snapshot, 1), (RefcountTooHigh, 0)],
        unseen: 0,
        stays: &[Snapshot],
    },
    Case {
        name: "a snapshot table that does not end",
        layout: "",
        damage: |image| image.put(image.image().header.snapshots_offset + 36, &[0x7f]),
        finds: &[(Unreadable, 1)],
        unseen: NO_WORD,
        stays: &[Unreadable],
    },
    Case {
        name: "a bitmap without sense",
        layout: "",
        damage: |image| {
            let directory = image.image().bitmap_directory.0;
            image.put(directory + 16, &[9]);
        },
        finds: &[(Bitmap, 1), (Unreadable, 1)],
        unseen: NO_WORD,
        stays: &[BitmapsDropped],
    },
    Case {
        name: "reserved bits in a bitmap table",
        layout: "",
        damage: |image| {
            let table = image.image().bitmaps[0].table_offset;
            image.change(table, |word| word | 16);
        },
        finds: &[(Bitmap, 1), (RefcountTooHigh, 1)],
        unseen: NO_WORD,
        stays: &[BitmapsDropped],
    },
    Case {
        name: "the dirty bit",
        layout: "",
        damage: |image| image.change(72, |bits| bits | 1),
        finds: &[(Dirty, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "no refcount table",
        layout: "",
        damage: |image| image.change(56, |word| word & u64::from(u32::MAX)),
        finds: &[(RefcountTable, 1), (RefcountTooLow, 0), (Copied, 0)],
        unseen: NO_WORD,
        stays: &[],
    },
    Case {
        name: "a refcount table past the end",
        layout: "cluster_size=4096,refcount_bits=64",
        damage: |image| image.change(48, |_| 1 << 40),
        finds: &[(RefcountTable, 1), (RefcountTooLow, 0), (Copied, 0)],
        unseen: NO_WORD,
        stays: &[],
    },
    Case {
        name: "an L2 table named twice by the disk",
        layout: "cluster_size=512",
        damage: |image| {
            let (one, other) = (image.l1(OWN), image.l1(OWN + (4 << 20)));
            let word = image.word(one) & OFFSET;
            image.change(one, |_| word);
            image.change(other, |_| word);
        },
        finds: &[(Overlap, 1), (RefcountTooLow, 0), (Copied, 0)],
        unseen: 1,
        stays: &[Overlap],
    },
    Case {
        name: "a snapshot's L1 table past the end",
        layout: "",
        damage: |image| image.change(image.word(64), |_| 1 << 40),
        finds: &[(PastEnd, 1), (RefcountTooHigh, 0)],
        unseen: NO_WORD,
        stays: &[PastEnd],
    },
    Case {
        name: "a file that was cut inside the L1 table",
        layout: "",
        damage: |image| {
            let end = image.bytes.len().next_multiple_of(0x10000);
            let l1 = image.l1(0) as usize;
            image.bytes.resize(end, 0);
            image.bytes.extend_from_within(l1..l1 + 5);
            image.change(40, |_| end as u64);
        },
        finds: &[(PastEnd, 1), (RefcountTooLow, 1), (RefcountTooHigh, 0)],
        unseen: NO_WORD,
        stays: &[PastEnd],
    },
    Case {
        name: "a snapshot table past the end",
        layout: "",
        damage: |image| image.change(64, |_| 1 << 40),
        finds: &[(Unreadable, 1)],
        unseen: NO_WORD,
        stays: &[Unreadable],
    },
    Case {
        name: "the corrupt bit",
        layout: "",
        damage: |image| image.change(72, |bits| bits | 2),
        finds: &[(MarkedCorrupt, 1)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "dirty, and refcounts that were never written",
        layout: "lazy_refcounts=on",
        damage: |image| {
            image.change(72, |bits| bits | 1);
            image.set_refcount(image.host(OWN), 0);
            image.set_refcount(image.word(image.l1(OWN)) & OFFSET, 0);
        },
        finds: &[(Dirty, 1), (RefcountTooLow, 2), (Copied, 2)],
        unseen: 0,
        stays: &[],
    },
    Case {
        name: "a file that was cut",
        layout: "compat=0.10,cluster_size=512",
        damage: |image| {
            let end = image.host(7 << 20);
            image.bytes.truncate(end as usize);
        },
        finds: &[(PastEnd, 0), (Copied, 0), (RefcountTable, 1)],
        unseen: 0,
        stays: &[RefcountTable, Copied, PastEnd],
    },
    Case {
        name: "a file that was cut inside an L2 table",
        layout: "",
        damage: |image| {
            let table = image.word(image.l1(OWN)) & OFFSET;
            let end = image.bytes.len().next_multiple_of(0x10000) as u64;
            image.bytes.resize(end as usize, 0);
            let content = image.bytes[table as usize..][..0x10000].to_vec();
            image.bytes.extend(content);
            let l1 = image.l1(OWN);
            image.change(l1, |_| end | COPIED);
            image.set_refcount(end, 1);
            image.set_refcount(table, 1);
            image.bytes.truncate(end as usize + 4096);
        },
        finds: &[(PastEnd, 1), (RefcountTooHigh, 1)],
        unseen: 1,
        stays: &[PastEnd],
    },
    Case {
        name: "more references than a refcount can say",
        layout: "refcount_bits=1",
        damage: |image| {
            let host = image.host(OWN + 0x10000);
            image.change(image.l2(OWN), |_| host | COPIED);
        },
        finds: &[(RefcountOverflow, 1), (RefcountTooHigh, 1)],
        unseen: 0,
        stays: &[RefcountOverflow, Copied],
    },
];

pub(crate) const LAYOUTS: [&str; 10] = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=4096,refcount_bits=2",
    "cluster_size=4096,refcount_bits=64",
    "cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,refcount_bits=8",
    "data_file=DATA",
    "compression_type=zstd,cluster_size=8192,refcount_bits=32",
];
