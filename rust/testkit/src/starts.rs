//! The images that scripts start from when power is lost: one for each way in which the engine can differ.

use crate::crash::{Content, Start};
use crate::images::{Backing, Config, DataFile};

/// Everything that is needed to make the start image of that name.
#[derive(Clone, Debug)]
struct Recipe {
    name: &'static str,
    config: Config,
    content: Content,
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
    let recipe = recipe.unwrap_or_else(|| panic!("no start image {name:?}; there are {:?}", names()));
    Start::new(recipe.name, recipe.config, recipe.content)
}

/// An image over a raw backing file that ends a little before it.
fn over_raw(mut config: Config) -> Config {
    config.backing = Some(Backing { qcow2: false, len: config.size - 700 });
    config
}

fn recipes() -> Vec<Recipe> {
    let plain = Config::plain;
    let new = Content { compressed: false, used: false, snapshot: false };
    let used = Content { used: true, ..new };
    let compressed = Content { compressed: true, ..used };
    let snapshot = Content { snapshot: true, ..used };
    let with_data = |data_file, config| Config { data_file, ..config };
    let subclusters = |size| Config { extended_l2: true, ..plain(14, size) };
    [
        ("plain-512", plain(9, 70_000), used),
        ("backing-512", over_raw(Config { refcount_bits: 64, ..plain(9, 40_448) }), used),
        ("plain-4k", Config { refcount_bits: 1, ..plain(12, 200_000) }, used),
        ("refcounts-2", Config { refcount_bits: 2, ..plain(10, 100_000) }, used),
        ("refcounts-8", over_raw(Config { refcount_bits: 8, ..plain(9, 60_000) }), used),
        ("refcounts-32", Config { refcount_bits: 32, ..plain(9, 70_144) }, used),
        ("version-2", Config { version: 2, ..plain(9, 70_144) }, used),
        ("version-2-backing", over_raw(Config { version: 2, ..plain(10, 100_000) }), used),
        ("subclusters", over_raw(subclusters(200_192)), used),
        // A refcount table of one cluster counts 2 MiB here: it is full before the disk is.
        ("refcount-table", Config { refcount_bits: 64, ..plain(9, 2 << 20) }, new),
        ("data-file", with_data(DataFile::Plain, plain(12, 200_192)), new),
        ("data-file-backing", over_raw(with_data(DataFile::Plain, plain(9, 300_032))), used),
        ("data-file-raw", with_data(DataFile::Raw, plain(12, 200_192)), used),
        ("data-file-subclusters", with_data(DataFile::Plain, subclusters(200_192)), new),
        ("compressed", plain(12, 200_192), compressed),
        ("compressed-512", over_raw(plain(9, 60_416)), compressed),
        ("compressed-subclusters", subclusters(300_032), compressed),
        ("snapshot-512", plain(9, 40_960), snapshot),
        ("snapshot-4k", over_raw(plain(12, 150_016)), snapshot),
        ("snapshot-version-2", Config { version: 2, ..plain(9, 40_960) }, snapshot),
        ("snapshot-compressed", plain(10, 100_352), Content { snapshot: true, ..compressed }),
        ("snapshot-refcounts-2", Config { refcount_bits: 2, ..plain(9, 40_960) }, snapshot),
        ("snapshot-subclusters", subclusters(200_192), snapshot),
    ]
    .map(|(name, config, content)| Recipe { name, config, content })
    .to_vec()
}
