//! Measuring an image: that what is measured is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago_core::access::bench::{BenchOptions, Flush, Work, bench};
use imago_core::access::job::{Job, Progress};
use imago_core::access::open::OpenOptions;
use imago_core::format::FormatKind;
use imago_core::storage::memory::Memory;
use imago_core::storage::throttled::Throttled;
use imago_core::{ErrorKind, Image, Storage};

fn image(storage: Arc<dyn Storage>) -> Arc<Image> {
    let options = OpenOptions { write: true, format: Some(FormatKind::Raw), ..Default::default() };
    options.open_storage(storage).unwrap()
}

fn bytes(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read(&mut bytes[..], 0).unwrap();
    bytes
}

#[test]
fn every_request_writes_its_part_and_goes_round_at_the_end() {
    let work = |flush| Work::Write { pattern: 7, flush };
    for flush in [Flush::Never, Flush::Every(3), Flush::Beside(3)] {
        let image = image(Arc::new(Memory::new(10_000)));
        let options = BenchOptions {
            count: 9,
            depth: 4,
            request_size: 100,
            offset: 500,
            step: 1000,
            work: work(flush),
        };
        bench(&image, &options, &mut Job::default()).unwrap();
        let written: Vec<_> = (0..9).map(|n| 500 + n * 1000).collect();
        let expected: Vec<u8> = (0..10_000)
            .map(|at| if written.iter().any(|start| (*start..start + 100).contains(&at)) { 7 } else { 0 })
            .collect();
        assert!(bytes(&image) == expected, "{flush:?}");
        let round = BenchOptions { count: 13, offset: 0, step: 2500, ..options };
        bench(&image, &round, &mut Job::default()).unwrap();
        assert!(bytes(&image)[7500..7600] == [7; 100]);
    }
}

#[test]
fn what_cannot_be_is_refused_and_a_failing_request_is_told() {
    let image = image(Arc::new(Memory::new(10_000)));
    let run = |options| bench(&image, &options, &mut Job::default()).unwrap_err().kind();
    let default = BenchOptions { count: 5, ..BenchOptions::default() };
    for options in [
        BenchOptions { count: 0, ..default.clone() },
        BenchOptions { depth: 0, ..default.clone() },
        BenchOptions { depth: 5000, ..default.clone() },
        BenchOptions { request_size: 0, ..default.clone() },
        BenchOptions { request_size: 1 << 31, ..default.clone() },
        BenchOptions { work: Work::Write { pattern: 1, flush: Flush::Every(0) }, ..default.clone() },
        BenchOptions { offset: 9_000, ..default.clone() },
        BenchOptions { offset: 20_000, ..default },
    ] {
        assert_eq!(run(options), ErrorKind::InvalidInput);
    }
    assert!(bytes(&image) == [0; 10_000]);
}

#[test]
fn it_ends_where_nobody_wants_it_any_more() {
    let slow = Throttled::new(Arc::new(Memory::new(1 << 20)), std::time::Duration::from_millis(5));
    let image = image(Arc::new(slow));
    let cancel = AtomicBool::new(false);
    let mut progress = |Progress { done, .. }: Progress| cancel.store(done > 0, Ordering::Relaxed);
    let mut job = Job::default().progress(&mut progress).cancel(&cancel);
    let options = BenchOptions { count: 1_000_000, depth: 3, ..BenchOptions::default() };
    assert_eq!(bench(&image, &options, &mut job).unwrap_err().kind(), ErrorKind::Io);
}
