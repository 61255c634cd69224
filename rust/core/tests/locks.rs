//! Image locks, between openers here and against QEMU's own tools.

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use imago_core::storage::file::{CreateMode, File};
use imago_core::storage::{Lock, Storage};
use imago_core::{ErrorKind, StorageOpenOptions};

fn image() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a directory");
    let path = directory.path().join("image");
    drop(File::create_sync(&path, CreateMode::New).expect("create"));
    (directory, path)
}

fn open(path: &Path, write: bool) -> imago_core::Result<File> {
    File::open_sync(StorageOpenOptions::new().filename(path).write(write))
}

/// What a conflict with this process itself says: only Linux tells who has a lock.
const OURSELVES: &str = if cfg!(target_os = "linux") { "this very process has it open" } else { "elsewhere" };

fn assert_locked(path: &Path, write: bool, expected: &str) {
    let error = open(path, write).expect_err("a conflict");
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.message().contains(expected), "{error}");
    assert_eq!(error.path(), Some(path));
    let off = StorageOpenOptions::new().filename(path).write(write).lock(Lock::Off);
    File::open_sync(off).expect("whoever takes no locks is let in");
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let (_directory, path) = image();
    let reader = open(&path, false).expect("a reader");
    let second = open(&path, false).expect("a second reader");
    assert_locked(&path, true, OURSELVES);
    drop((reader, second));
    let _writer = open(&path, true).expect("a writer, now that the readers have gone");
    assert_locked(&path, false, OURSELVES);
    assert_locked(&path, true, OURSELVES);
}

#[test]
fn closing_ends_the_locks_though_a_child_has_the_descriptor() {
    let (_directory, path) = image();
    let writer = open(&path, true).expect("a writer");
    let (fd, _) = writer.raw_fd(0, 1).expect("a file has one");
    // SAFETY: `writer` keeps it open meanwhile.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().expect("dup");
    drop(writer);
    open(&path, true).expect("free again");
    drop(inherited);
}

#[test]
fn a_forked_process_does_not_end_its_parents_locks() {
    let (_directory, path) = image();
    let writer = open(&path, true).expect("a writer");
    // SAFETY: the child drops one value and ends, calling nothing that takes another thread's locks.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(writer);
        // SAFETY: it ends the process, past all destructors.
        unsafe { libc::_exit(0) };
    }
    assert!(child > 0, "fork");
    let mut status = 0;
    // SAFETY: one int for the status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_locked(&path, true, OURSELVES);
    drop(writer);
}

/// False, said by name, where QEMU's tools are missing.
fn has_qemu() -> bool {
    let found = ["qemu-img", "qemu-io"]
        .iter()
        .all(|tool| Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success()));
    if !found {
        eprintln!("skipped: qemu-img and qemu-io are missing (Debian package qemu-utils)");
    }
    found
}

fn qemu_img(arguments: &[&str], path: &Path) -> (bool, String) {
    let output = Command::new("qemu-img").args(arguments).arg(path).output().expect("qemu-img");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn qcow2() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a directory");
    let path = directory.path().join("image.qcow2");
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&path)
        .arg("1M")
        .output()
        .expect("qemu-img");
    assert!(output.status.success());
    (directory, path)
}

/// `qemu-io` with an image open.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(arguments)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io");
        // It prompts once the image is open.
        let mut prompt = [0; 8];
        child.stdout.as_mut().expect("piped").read_exact(&mut prompt).expect("a prompt");
        assert_eq!(&prompt, b"qemu-io>");
        QemuIo(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("qemu-io ends with its input");
    }
}

#[test]
fn an_image_that_qemu_writes_is_locked_here() {
    if !has_qemu() {
        return;
    }
    let (_directory, path) = qcow2();
    for format in ["qcow2", "raw"] {
        let qemu = QemuIo::open(&path, &["-f", format]);
        assert_locked(&path, false, "open for writing elsewhere");
        assert_locked(&path, true, "elsewhere");
        #[cfg(target_os = "linux")]
        assert_locked(&path, false, &format!("by the process {} (qemu-io)", qemu.0.id()));
        drop(qemu);
        open(&path, true).expect("free again");
    }
}

#[test]
fn an_image_that_qemu_reads_can_be_read_here() {
    if !has_qemu() {
        return;
    }
    let (_directory, path) = qcow2();
    let _qemu = QemuIo::open(&path, &["-r", "-f", "qcow2"]);
    open(&path, false).expect("readers share");
    assert_locked(&path, true, "elsewhere");
}

#[test]
fn an_image_that_is_written_here_is_locked_for_qemu() {
    if !has_qemu() {
        return;
    }
    let (_directory, path) = qcow2();
    let writer = open(&path, true).expect("a writer");
    let (success, message) = qemu_img(&["info"], &path);
    assert!(!success && message.contains("lock"), "{message}");
    let (success, message) = qemu_img(&["info", "-U"], &path);
    assert!(success, "{message}");
    drop(writer);
    let _reader = open(&path, false).expect("a reader");
    let (success, message) = qemu_img(&["info"], &path);
    assert!(success, "{message}");
    let (success, message) = qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", ""], &path);
    assert!(!success && message.contains("lock"), "{message}");
}
