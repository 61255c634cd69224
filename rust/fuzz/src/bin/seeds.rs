//! Writes small images of every kind into the folders of the corpus (arguments), for the fuzzer to begin with.

use std::fs;
use std::path::Path;

use imago_testkit::starts;

fn main() {
    for folder in std::env::args().skip(1) {
        fs::create_dir_all(&folder).expect("a folder for the corpus");
        // The larger ones only make the fuzzer slow.
        let small = |start: &imago_testkit::crash::Start| start.media[0].len() < 1 << 20;
        for start in starts::names().into_iter().filter_map(starts::start).filter(small) {
            fs::write(Path::new(&folder).join(&start.name), &start.media[0]).expect("a seed");
        }
    }
}
