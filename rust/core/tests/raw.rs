//! Raw images, and what every image does with its arguments.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use imago_core::access::open::OpenOptions;
use imago_core::format::{FormatKind, ZeroIntent};
use imago_core::{ErrorKind, Image};

struct Disk {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl Disk {
    fn new(content: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        fs::write(&path, content).unwrap();
        Disk { directory, path }
    }

    fn open(&self, options: &OpenOptions) -> Arc<Image> {
        options.open(&self.path).unwrap()
    }
}

fn raw(write: bool) -> OpenOptions {
    OpenOptions { write, format: Some(FormatKind::Raw), ..Default::default() }
}

#[test]
fn a_disk_of_odd_size_is_read_and_written_to_its_last_byte() {
    for direct in [false, true] {
        let mut model: Vec<u8> = (0..10_007_u32).map(|i| (i % 251) as u8).collect();
        let disk = Disk::new(&model);
        let image = disk.open(&OpenOptions { direct, ..raw(true) });
        assert_eq!(image.size(), 10_007);
        image.write(b"the end", 10_000).unwrap();
        model[10_000..].copy_from_slice(b"the end");
        image.write_zeroes(4097, 5000, ZeroIntent::Unmap).unwrap();
        model[4097..9097].fill(0);
        let mut bytes = vec![0xff; 10_007];
        image.read(&mut bytes, 0).unwrap();
        assert_eq!(bytes, model);
        let mut bytes = [0; 3];
        image.read(&mut bytes, 10_004).unwrap();
        assert_eq!(&bytes, b"end");
        image.close().unwrap();
        assert_eq!(fs::read(&disk.path).unwrap(), model, "direct: {direct}");
    }
}

#[test]
fn wrong_ranges_have_no_effect() {
    let disk = Disk::new(&[7; 1000]);
    let image = disk.open(&raw(true));
    for (offset, len) in [(1000, 1), (999, 2), (u64::MAX, 1), (u64::MAX - 5, 10), (1001, 0)] {
        let mut bytes = vec![9; len];
        assert_eq!(image.read(&mut bytes, offset).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(image.try_read(&mut bytes, offset).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(bytes.iter().all(|byte| *byte == 9));
        assert_eq!(image.write(&bytes, offset).unwrap_err().kind(), ErrorKind::InvalidInput);
        let error = image.write_zeroes(offset, len as u64, ZeroIntent::Keep).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("1000 bytes") && error.path() == Some(&disk.path), "{error}");
        assert_eq!(image.discard(offset, len as u64).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(image.extents(offset, len as u64).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    image.read(&mut [], 1000).unwrap();
    image.close().unwrap();
    assert_eq!(fs::read(&disk.path).unwrap(), [7; 1000]);
}

#[test]
fn a_read_only_image_refuses_changes() {
    let disk = Disk::new(&[7; 1000]);
    let image = disk.open(&raw(false));
    assert_eq!(image.write(b"x", 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(image.write_zeroes(0, 1, ZeroIntent::Keep).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(image.discard(0, 1).unwrap_err().kind(), ErrorKind::ReadOnly);
    image.flush().unwrap();
}

#[test]
fn a_closed_image_says_so_and_frees_its_locks() {
    let disk = Disk::new(&[7; 1000]);
    let image = disk.open(&raw(true));
    assert_eq!(raw(true).open(&disk.path).unwrap_err().kind(), ErrorKind::Locked);
    image.close().unwrap();
    image.close().unwrap();
    let mut byte = [0];
    assert_eq!(image.read(&mut byte, 0).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(image.try_read(&mut byte, 0).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(image.write(&byte, 0).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Closed);
    assert!(image.is_closed());
    raw(true).open(&disk.path).unwrap();
}

#[test]
fn closing_waits_for_what_is_in_flight() {
    let disk = Disk::new(&[7; 1000]);
    let image = disk.open(&raw(true));
    let operation = image.begin().unwrap();
    let closer = std::thread::spawn({
        let image = Arc::clone(&image);
        move || image.close()
    });
    while !image.is_closed() {
        std::thread::yield_now();
    }
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert!(!closer.is_finished());
    drop(operation);
    closer.join().unwrap().unwrap();
    assert_eq!(image.begin().unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn holes_are_extents() {
    let disk = Disk::new(&[]);
    let file = fs::File::options().write(true).open(&disk.path).unwrap();
    file.set_len(3 << 20).unwrap();
    let image = disk.open(&raw(true));
    image.write(&vec![1; 4096], 1 << 20).unwrap();
    image.flush().unwrap();
    let extents: Vec<_> = image.extents(0, 3 << 20).unwrap().map(Result::unwrap).collect();
    let told: Vec<_> =
        extents.iter().map(|e| (e.offset, e.length, e.data, e.zero, e.allocated, e.host_offset)).collect();
    let rest = (1 << 20) + 4096;
    assert_eq!(
        told,
        [
            (0, 1 << 20, false, true, true, Some(0)),
            (1 << 20, 4096, true, false, true, Some(1 << 20)),
            (rest, (3 << 20) - rest, false, true, true, Some(rest)),
        ]
    );
    assert_eq!(extents[1].host_file.as_deref(), Some(disk.path.as_path()));
    assert!(extents.iter().all(|extent| extent.depth == 0 && !extent.compressed));
}

#[test]
fn direct_reads_name_the_file_and_keep_it_open() {
    let disk = Disk::new(&[7; 8192]);
    let image = disk.open(&raw(false));
    let reads = image.direct_reads(100, 1000).unwrap().unwrap();
    assert_eq!(reads.segments.len(), 1);
    assert_eq!((reads.segments[0].offset, reads.segments[0].len), (100, 1000));
}

#[test]
fn a_guessed_raw_disk_does_not_become_another_format() {
    let disk = Disk::new(&[0; 4096]);
    let image = OpenOptions { write: true, ..Default::default() }.open(&disk.path).unwrap();
    assert_eq!(image.kind(), FormatKind::Raw);
    let error = image.write(b"QFI\xfb\0\0\0\x03", 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("qcow2"), "{error}");
    // Nor in pieces.
    image.write(b"QF", 0).unwrap();
    image.write(b"I", 2).unwrap();
    assert!(image.write(b"\xfb and more", 3).is_err());
    image.write(b"KDMV", 4).unwrap();
    let mut start = [0; 8];
    image.read(&mut start, 0).unwrap();
    assert_eq!(&start, b"QFI\0KDMV");
    image.close().unwrap();
    // By the caller's word it is raw, whatever is in it.
    let image = disk.open(&raw(true));
    image.write(b"QFI\xfb", 0).unwrap();
}

#[test]
fn a_known_format_that_is_not_there_is_never_taken_for_raw() {
    let mut vdi = vec![0; 1024];
    vdi[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
    for (content, name) in [(b"KDMV".to_vec(), "vmdk"), (vdi, "vdi")] {
        let disk = Disk::new(&content);
        let error = OpenOptions::default().open(&disk.path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn an_empty_file_is_an_empty_disk() {
    let disk = Disk::new(&[]);
    let image = OpenOptions { write: true, ..Default::default() }.open(&disk.path).unwrap();
    assert_eq!(image.size(), 0);
    image.read(&mut [], 0).unwrap();
    image.write(&[], 0).unwrap();
    assert_eq!(image.extents(0, 0).unwrap().count(), 0);
    drop(image);
    assert!(disk.directory.path().exists());
}
