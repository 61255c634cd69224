//! The images that scripts start from when power is lost: one for each way in which the engine can differ.

use crate::crash::{ByQemu, Start};
use crate::images::{Backing, Config, DataFile};

/// Everything that is needed to make the start image of that name.
#[derive(Clone, Debug)]
struct Recipe {
    name: &'static str,
    config: Config,
    by_qemu: ByQemu,
}

/// The names of all start images.
pub fn names() -> Vec<&'static str> {
    recipes().into_iter().map(|recipe| recipe.name).collect()
}

/// The start image of that name; `None` if it takes QEMU to make it and that is not there.
///
/// # Panics
/// When there is none of that name.
pub fn start(name: &str) -> Option<Start> {
    let recipe = recipes().into_iter().find(|recipe| recipe.name == name);
    let Recipe { name, config, by_qemu } =
        recipe.unwrap_or_else(|| panic!("no start image {name:?}; there are {:?}", names()));
    if by_qemu == ByQemu::default() {
        Some(Start::new(name, config))
    } else {
        Start::with(name, config, by_qemu)
    }
}

/// An image over a raw backing file that ends a little before it.
fn over_raw(config: Config) -> Config {
    Config { backing: Some(Backing { qcow2: false, len: config.size - 700 }), ..config }
}

fn recipes() -> Vec<Recipe> {
    let plain = Config::plain;
    let none = ByQemu::default();
    let compressed = ByQemu { compressed: true, ..none };
    let snapshot = ByQemu { snapshot: true, ..none };
    let with_data = |data_file, config| Config { data_file, ..config };
    [
        ("plain-512", plain(9, 70_000), none),
        ("backing-512", over_raw(Config { refcount_bits: 64, ..plain(9, 40_448) }), none),
        ("plain-4k", Config { refcount_bits: 1, ..plain(12, 200_000) }, none),
        ("refcounts-2", Config { refcount_bits: 2, ..plain(10, 100_000) }, none),
        ("refcounts-8", over_raw(Config { refcount_bits: 8, ..plain(9, 60_000) }), none),
        ("refcounts-32", Config { refcount_bits: 32, ..plain(9, 70_144) }, none),
        ("version-2", Config { version: 2, ..plain(9, 70_144) }, none),
        ("version-2-backing", over_raw(Config { version: 2, ..plain(10, 100_000) }), none),
        ("subclusters", over_raw(Config { extended_l2: true, ..plain(14, 200_192) }), none),
        // A refcount table of one cluster counts 2 MiB here: it is nearly full.
        ("refcount-table", Config { refcount_bits: 64, ..plain(9, 2 << 20) }, none),
        ("data-file", with_data(DataFile::Plain, plain(12, 200_192)), none),
        ("data-file-backing", over_raw(with_data(DataFile::Plain, plain(9, 70_144))), none),
        ("data-file-raw", with_data(DataFile::Raw, plain(12, 200_192)), none),
        (
            "data-file-subclusters",
            with_data(DataFile::Plain, Config { extended_l2: true, ..plain(14, 200_192) }),
            none,
        ),
        ("compressed", plain(12, 200_192), compressed),
        ("compressed-512", over_raw(plain(9, 60_416)), compressed),
        ("compressed-subclusters", Config { extended_l2: true, ..plain(14, 300_032) }, compressed),
        ("snapshot-512", plain(9, 40_960), snapshot),
        ("snapshot-4k", over_raw(plain(12, 150_016)), snapshot),
        ("snapshot-version-2", Config { version: 2, ..plain(9, 40_960) }, snapshot),
        ("snapshot-compressed", plain(10, 100_352), ByQemu { compressed: true, snapshot: true }),
        ("snapshot-refcounts-2", Config { refcount_bits: 2, ..plain(9, 40_960) }, snapshot),
        ("snapshot-subclusters", Config { extended_l2: true, ..plain(14, 200_192) }, snapshot),
    ]
    .map(|(name, config, by_qemu)| Recipe { name, config, by_qemu })
    .to_vec()
}
