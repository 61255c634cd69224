//! Files: what opening refuses, what errors say, what the file system sees.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use imago_core::storage::file::{CreateMode, File};
use imago_core::storage::{Lock, Storage, ZeroMode};
use imago_core::{Error, ErrorKind, StorageOpenOptions};

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Directory(tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file with this content.
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("write a file");
        path
    }
}

fn options(path: &Path) -> StorageOpenOptions {
    StorageOpenOptions::new().filename(path)
}

fn refused(options: StorageOpenOptions) -> Error {
    File::open_sync(options).expect_err("this must not open")
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let directory = Directory::new();
    let fifo = directory.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    for write in [false, true] {
        let error = refused(options(&fifo).write(write));
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("FIFO"), "{error}");
        assert_eq!(error.path(), Some(&*fifo));

        let error = refused(options(directory.0.path()).write(write));
        assert_eq!(error.os_error(), Some(libc::EISDIR), "{error}");
    }
    assert_eq!(refused(options(Path::new("/dev/null"))).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(options(&directory.path("missing"))).os_error(), Some(libc::ENOENT));
    assert_eq!(refused(StorageOpenOptions::new()).kind(), ErrorKind::InvalidInput, "no name");
}

#[test]
fn a_read_only_file_refuses_every_change() {
    let directory = Directory::new();
    let path = directory.file("image", b"content");
    let file = File::open_sync(options(&path)).expect("open");
    assert!(!file.capabilities().write && !file.capabilities().resize);
    let changes = [
        file.writev_at(b"x".into(), 0),
        file.write_zeroes_at(0, 1, ZeroMode::Keep),
        file.discard_at(0, 1),
        file.set_len(0),
    ];
    for change in changes {
        let error = change.expect_err("read-only");
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        assert_eq!(error.path(), Some(&*path));
    }
    file.sync().expect("there is nothing to sync");
    assert_eq!(fs::read(&path).expect("read"), b"content");
}

#[test]
fn failures_name_operation_file_and_offset() {
    let directory = Directory::new();
    let file = File::create_sync(directory.path("image"), CreateMode::New).expect("create");
    let error = file.writev_at(b"xy".into(), i64::MAX as u64 - 1).expect_err("past what files can have");
    assert_eq!((error.kind(), error.os_error()), (ErrorKind::Io, Some(libc::EFBIG)));
    assert_eq!(error.path(), file.path());
    assert_eq!(error.offset(), Some(i64::MAX as u64 - 1));
    assert!(error.to_string().contains("write"), "{error}");
    let error = file.set_len(u64::MAX).expect_err("past what files can have");
    assert_eq!(error.path(), file.path());
}

#[test]
fn creating_empties_a_file_only_when_asked_and_unused() {
    let directory = Directory::new();
    let path = directory.file("image", b"content");
    let error = File::create_sync(&path, CreateMode::New).expect_err("it is there");
    assert_eq!(error.os_error(), Some(libc::EEXIST));

    let user = File::open_sync(options(&path)).expect("open");
    let error = File::create_sync(&path, CreateMode::Replace).expect_err("it is in use");
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(fs::read(&path).expect("read"), b"content");

    drop(user);
    let created = File::create_sync(&path, CreateMode::Replace).expect("replace");
    assert_eq!(created.len().expect("len"), 0);
    created.writev_at(b"new".into(), 0).expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"new");
}

#[test]
fn identity_is_the_file_and_not_its_name() {
    let directory = Directory::new();
    let path = directory.file("image", b"");
    let link = directory.path("link");
    symlink(&path, &link).expect("symlink");
    let identity = |path: &Path| File::open_sync(options(path)).expect("open").identity();
    assert_eq!(identity(&path), identity(&link));
    assert_ne!(identity(&path), identity(&directory.file("other", b"")));
}

#[test]
fn length_follows_what_others_do_to_the_file() {
    let directory = Directory::new();
    let path = directory.file("image", b"1234");
    let file = File::open_sync(options(&path).write(true).lock(Lock::Off)).expect("open");
    fs::OpenOptions::new().write(true).open(&path).expect("open").write_all_at(b"5678", 4).expect("write");
    assert_eq!(file.len().expect("len"), 8);
    file.set_len(2).expect("set_len");
    assert_eq!(fs::metadata(&path).expect("stat").len(), 2);
}

/// ext4, XFS, btrfs and tmpfs make holes; a build directory elsewhere is told by name.
#[test]
fn unmapping_gives_space_back_and_keeping_does_not() {
    const MIB: usize = 1 << 20;
    let directory = Directory::new();
    let file = File::create_sync(directory.path("image"), CreateMode::New).expect("create");
    file.writev_at((&vec![1; 4 * MIB]).into(), 0).expect("write");
    file.sync().expect("sync");
    let full = file.allocated().expect("allocated").expect("known for files");
    assert!(full >= 4 * MIB as u64);
    assert!(!file.capabilities().discard_zeroes, "not before it was seen to work");
    file.discard_at(0, MIB as u64).expect("discard");
    if !file.capabilities().discard_zeroes {
        eprintln!("skipped: the file system of {} makes no holes", env!("CARGO_TARGET_TMPDIR"));
        return;
    }
    file.write_zeroes_at(MIB as u64, MIB as u64, ZeroMode::Unmap).expect("zeroes");
    let left = file.allocated().expect("allocated").expect("known for files");
    assert!(left <= full - 2 * MIB as u64, "{left} of {full} bytes are left");
    file.write_zeroes_at(2 * MIB as u64, MIB as u64, ZeroMode::Keep).expect("zeroes");
    assert!(file.allocated().expect("allocated").expect("known for files") >= left);
    let run = file.run_at(0, 4 * MIB as u64).expect("run_at");
    assert!(!run.data && run.len >= 2 * MIB as u64, "{run:?}");
    assert!(file.run_at(3 * MIB as u64, 1).expect("run_at").data);
}

#[test]
fn cached_bytes_come_without_waiting() {
    let directory = Directory::new();
    let path = directory.file("image", &[7; 8192]);
    let file = File::open_sync(options(&path)).expect("open");
    let mut bytes = vec![0; 8192];
    file.readv_at((&mut bytes).into(), 0).expect("read");
    let mut again = vec![0; 8192];
    let filled = file.try_readv_at((&mut again).into(), 0).expect("try_read");
    if filled == 0 {
        eprintln!("skipped: the file system of {} has no RWF_NOWAIT", env!("CARGO_TARGET_TMPDIR"));
        return;
    }
    assert_eq!(again[..filled], bytes[..filled]);
}
