//! Deep chains: every byte from the image that holds it, whatever was asked before.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use imago_core::Image;
use imago_core::access::create::{CreateOptions, create};
use imago_core::access::open::{Backing, OpenOptions};
use imago_core::format::qcow2::create::CreateOptions as Qcow2;
use imago_core::format::{FormatKind, ImplicitReference};
use imago_testkit::rng::Rng;
use imago_testkit::{qemu, scaled};
use tempfile::TempDir;

/// A chain on disk, and for every byte of its top what it is and which image (0: the top) holds it.
struct Chain {
    directory: TempDir,
    names: Vec<String>,
    content: Vec<u8>,
    owners: Vec<Option<usize>>,
}

impl Chain {
    /// `links` overlays of the sizes and cluster sizes that the seed gives over a raw file; each holds a few pieces.
    fn new(seed: u64, links: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let mut rng = Rng::new(seed);
        let base_len = rng.below(300_000) as usize;
        let base: Vec<u8> = (0..base_len).map(|_| rng.below(255) as u8 + 1).collect();
        fs::write(directory.path().join("0"), &base).unwrap();
        let mut chain =
            Chain { directory, names: vec!["0".into()], owners: vec![Some(0); base_len], content: base };
        for link in 1..=links {
            let (cluster_size, extended_l2) =
                [(512, false), (4096, false), (65536, false), (16384, true), (2 << 20, false)]
                    [rng.below(5) as usize];
            let size = (1 + rng.below(800)) * 512;
            let options = Qcow2 {
                size,
                cluster_size,
                extended_l2,
                backing: Some(ImplicitReference {
                    name: chain.names[link - 1].clone().into(),
                    format: Some(if link == 1 { "raw" } else { "qcow2" }.into()),
                }),
                ..Qcow2::default()
            };
            let path = chain.directory.path().join(link.to_string());
            create(&path, &CreateOptions::Qcow2(options)).unwrap();
            chain.names.push(link.to_string());
            chain.content.resize(size as usize, 0);
            chain.owners.resize(size as usize, None);
            let image = open(&path, true);
            let unit = u64::from(if extended_l2 { cluster_size / 32 } else { cluster_size });
            for _ in 0..rng.below(4) {
                let at = rng.below(size);
                let len = (1 + rng.below(20_000)).min(size - at);
                let byte = rng.below(255) as u8 + 1;
                image.write(&vec![byte; len as usize], at).unwrap();
                chain.content[at as usize..(at + len) as usize].fill(byte);
                let units = at / unit * unit..(at + len).next_multiple_of(unit).min(size);
                chain.owners[units.start as usize..units.end as usize].fill(Some(link));
            }
            image.close().unwrap();
        }
        for owner in chain.owners.iter_mut().flatten() {
            *owner = links - *owner;
        }
        chain
    }

    fn top(&self) -> std::path::PathBuf {
        self.directory.path().join(self.names.last().unwrap())
    }

    /// That every read, cold and hot, of any size, waiting or not, has the right bytes.
    #[track_caller]
    fn check_reads(&self, image: &Image, rng: &mut Rng, what: &str) {
        for _ in 0..scaled(40) {
            let at = rng.below(self.content.len() as u64);
            let most = if rng.chance(2) { 600 } else { 400_000 };
            let len = (1 + rng.below(most)).min(self.content.len() as u64 - at);
            let expected = &self.content[at as usize..(at + len) as usize];
            let mut bytes = vec![0xee; len as usize];
            let filled = image.try_read(&mut bytes, at).unwrap();
            assert!(
                bytes[..filled] == expected[..filled],
                "{what}: {filled} of {len} bytes at {at}, not waiting"
            );
            image.read(&mut bytes, at).unwrap();
            assert!(bytes == expected, "{what}: {len} bytes at {at}");
            bytes.fill(0xee);
            let filled = image.try_read(&mut bytes, at).unwrap();
            assert!(bytes[..filled] == expected[..filled], "{what}: {len} bytes at {at}, again");
        }
    }

    /// That the extents of the whole disk say who holds what.
    #[track_caller]
    fn check_extents(&self, image: &Arc<Image>, what: &str) {
        let mut next = 0;
        for extent in image.extents(0, image.size()).unwrap() {
            let extent = extent.unwrap();
            assert_eq!(extent.offset, next, "{what}");
            next = extent.end();
            for at in extent.offset..extent.end() {
                let owner = extent.allocated.then_some(extent.depth as usize);
                assert_eq!(owner, self.owners[at as usize], "{what}: byte {at} of {extent:?}");
            }
            let bytes = &self.content[extent.offset as usize..extent.end() as usize];
            assert!(!extent.zero || bytes.iter().all(|byte| *byte == 0), "{what}: {extent:?}");
        }
        assert_eq!(next, image.size(), "{what}");
    }
}

fn open(path: &Path, write: bool) -> Arc<Image> {
    OpenOptions { write, format: Some(FormatKind::Qcow2), ..OpenOptions::default() }.open(path).unwrap()
}

#[test]
fn every_byte_is_the_holders() {
    for seed in 0..scaled(16) {
        let chain = Chain::new(seed, 1 + (seed as usize * 7) % 23);
        let mut rng = Rng::new(seed + 1000);
        let image = open(&chain.top(), false);
        chain.check_reads(&image, &mut rng, &format!("seed {seed}"));
        chain.check_extents(&image, &format!("seed {seed}"));
        image.close().unwrap();
    }
}

#[test]
fn qemu_maps_and_reads_the_chain_the_same() {
    if !qemu::qemu_or_skip() {
        return;
    }
    for seed in 100..104 {
        let chain = Chain::new(seed, 12);
        assert!(qemu::content(&chain.top()) == chain.content, "seed {seed}");
    }
}

#[test]
fn writes_on_top_hide_what_was_remembered() {
    for seed in 200..200 + scaled(10) {
        let mut chain = Chain::new(seed, 9);
        let mut rng = Rng::new(seed + 1000);
        let image = open(&chain.top(), true);
        for step in 0..8 {
            chain.check_reads(&image, &mut rng, &format!("seed {seed}, step {step}"));
            let at = rng.below(chain.content.len() as u64) as usize;
            let len = (1 + rng.below(9000) as usize).min(chain.content.len() - at);
            if rng.chance(3) {
                image.write_zeroes(at as u64, len as u64, imago_core::format::ZeroIntent::Unmap).unwrap();
                chain.content[at..at + len].fill(0);
            } else {
                image.write(&vec![step + 1; len], at as u64).unwrap();
                chain.content[at..at + len].fill(step + 1);
            }
        }
        image.close().unwrap();
        let image = open(&chain.top(), false);
        chain.check_reads(&image, &mut rng, &format!("seed {seed}, opened again"));
    }
}

/// An image that the caller set below may change: what is below it is its own affair, and nothing of it is remembered.
#[test]
fn what_is_written_to_a_base_that_was_set_is_seen() {
    for seed in 300..300 + scaled(5) {
        let mut chain = Chain::new(seed, 6);
        let mut rng = Rng::new(seed + 1000);
        let base = open(&chain.top(), true);
        let size = base.size();
        let path = chain.directory.path().join("overlay");
        create(&path, &CreateOptions::qcow2(size)).unwrap();
        let below = Backing::Image(Arc::clone(&base));
        let image = OpenOptions { backing: below, ..OpenOptions::default() }.open(&path).unwrap();
        for step in 0..8 {
            chain.check_reads(&image, &mut rng, &format!("seed {seed}, step {step}"));
            let at = rng.below(size) as usize;
            let len = (1 + rng.below(9000) as usize).min(size as usize - at);
            base.write(&vec![step + 1; len], at as u64).unwrap();
            chain.content[at..at + len].fill(step + 1);
        }
        base.close().unwrap();
        assert!(image.read(&mut [0; 512], 0).is_err() || chain.owners[..512].iter().all(Option::is_none));
        image.close().unwrap();
    }
}

/// 64 images, each with one cluster of its own; the last one's holds everything else.
fn ladder(directory: &Path) -> Arc<Image> {
    const CLUSTER: u64 = 65536;
    for link in 0..64_u64 {
        let backing = (link > 0)
            .then(|| ImplicitReference { name: (link - 1).to_string().into(), format: Some("qcow2".into()) });
        let path = directory.join(link.to_string());
        create(&path, &CreateOptions::Qcow2(Qcow2 { size: 80 * CLUSTER, backing, ..Qcow2::default() }))
            .unwrap();
        let image = open(&path, true);
        image.write(&vec![link as u8 + 1; CLUSTER as usize], link * CLUSTER).unwrap();
        image.close().unwrap();
    }
    open(&directory.join("63"), false)
}

#[test]
fn what_is_deep_down_is_read_without_waiting() {
    let directory = TempDir::new().unwrap();
    let image = ladder(directory.path());
    let storage = image.format().storage();
    if storage.try_readv_at((&mut [0; 512]).into(), 0).unwrap() == 0 {
        eprintln!("skipped: the file system does not read without waiting");
        return;
    }
    let mut bytes = [0; 4096];
    for link in 0..64 {
        image.read(&mut bytes, link * 65536).unwrap();
        assert_eq!(bytes, [link as u8 + 1; 4096]);
        assert_eq!(image.try_read(&mut bytes, link * 65536 + 8192).unwrap(), 4096, "link {link}");
        assert_eq!(bytes, [link as u8 + 1; 4096]);
        let reads = image.direct_reads(link * 65536, 65536).unwrap().expect("plain data");
        assert_eq!(reads.segments.iter().map(|read| read.len).sum::<u64>(), 65536);
    }
    // Nobody holds the rest.
    assert_eq!(image.try_read(&mut bytes, 70 * 65536).unwrap(), 4096);
    assert_eq!(bytes, [0; 4096]);
    assert!(image.direct_reads(70 * 65536, 65536).unwrap().is_none());
}

/// How often each image of the chain has been asked where something is.
fn look_ups(image: &Arc<Image>) -> Vec<u64> {
    std::iter::successors(Some(image), |image| image.backing())
        .map(|image| image.cache_stats().expect("qcow2 has caches").l2)
        .map(|cache| cache.hits + cache.misses)
        .collect()
}

#[test]
fn a_hot_read_asks_the_top_and_the_holder() {
    let directory = TempDir::new().unwrap();
    let image = ladder(directory.path());
    let mut bytes = vec![0; 65536];
    image.read(&mut bytes, 5 * 65536).unwrap();
    let before = look_ups(&image);
    for at in 0..100 {
        image.read(&mut bytes[..600], 5 * 65536 + at * 600).unwrap();
    }
    let asked: Vec<u64> = look_ups(&image).iter().zip(before).map(|(after, before)| after - before).collect();
    for (depth, asked) in asked.iter().enumerate() {
        // Image 5 holds it, 58 below the top.
        assert_eq!(*asked, if depth == 0 || depth == 58 { 100 } else { 0 }, "depth {depth}");
    }
}

#[test]
fn extents_ask_each_level_once_for_each_of_its_own_runs() {
    let directory = TempDir::new().unwrap();
    let image = ladder(directory.path());
    let extents = image.extents(0, image.size()).unwrap().count();
    assert_eq!(extents, 65, "one for each image, and the rest");
    for (depth, asked) in look_ups(&image).iter().enumerate() {
        assert!((1..=6).contains(asked), "depth {depth}: {asked} look-ups for 65 runs");
    }
}
