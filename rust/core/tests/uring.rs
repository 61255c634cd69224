//! Reads through a ring. Where the kernel allows none, that is said by name.
#![cfg(all(target_os = "linux", feature = "io-uring"))]

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::process::Command;

use imago_core::IoVectorMut;
use imago_core::storage::uring::{Ring, SWITCH};

const LEN: usize = 1 << 20;

fn file() -> std::fs::File {
    let file = tempfile::tempfile_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a file");
    let bytes: Vec<u8> = (0..LEN).map(expected).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("write");
    file
}

fn expected(at: usize) -> u8 {
    (at / 4096) as u8 ^ at as u8
}

fn ring(entries: u32) -> Option<Ring> {
    let ring = Ring::new(entries);
    if ring.is_none() {
        eprintln!(
            "skipped: no io_uring here (kernel, sysctl kernel.io_uring_disabled, seccomp or {SWITCH}=0)"
        );
    }
    ring
}

/// Whether the descriptor is readable within this time.
fn is_readable(fd: RawFd, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one `struct pollfd`.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
}

fn wait(ring: &mut Ring, results: &mut BTreeMap<u64, i32>) {
    while ring.in_flight() > 0 {
        assert!(is_readable(ring.fd(), 10_000), "the ring's descriptor tells of completions");
        ring.complete(|token, result| assert_eq!(results.insert(token, result), None, "completed once"));
    }
}

#[test]
fn reads_complete_with_their_tokens_and_bytes() {
    let Some(mut ring) = ring(8) else { return };
    let file = file();
    let mut buffers = vec![vec![0_u8; 5000]; 6];
    let mut vectors: Vec<IoVectorMut<'_>> =
        buffers.iter_mut().map(|buffer| buffer.chunks_mut(3000).collect()).collect();
    for (token, vector) in (0..).zip(&mut vectors) {
        // SAFETY: the buffers are looked at after the last completion only; the file outlives the ring's use of it.
        assert!(unsafe { ring.push_read(file.as_raw_fd(), vector.as_iovecs(), token * 7000, token) });
    }
    assert_eq!(ring.unsubmitted(), 6);
    assert_eq!(ring.submit().expect("submit"), 6);
    assert_eq!(ring.unsubmitted(), 0);
    let mut results = BTreeMap::new();
    wait(&mut ring, &mut results);
    assert_eq!(results, (0..6).map(|token| (token, 5000)).collect());
    drop(vectors);
    for (index, buffer) in buffers.iter().enumerate() {
        assert!((index * 7000..).zip(buffer).all(|(at, byte)| *byte == expected(at)));
    }
    assert!(!is_readable(ring.fd(), 0), "nothing left to tell");
}

#[test]
fn the_end_of_the_file_and_failures_are_results() {
    let Some(mut ring) = ring(4) else { return };
    let file = file();
    let mut results = BTreeMap::new();
    let mut buffer = vec![0_u8; 4096];
    let reads = [(file.as_raw_fd(), LEN - 100), (file.as_raw_fd(), LEN + 100), (-1, 0)];
    for (token, (fd, offset)) in (0..).zip(reads) {
        let mut vector = IoVectorMut::from(&mut buffer);
        // SAFETY: one read at a time, waited for below.
        assert!(unsafe { ring.push_read(fd, vector.as_iovecs(), offset as u64, token) });
        ring.submit().expect("submit");
        wait(&mut ring, &mut results);
    }
    assert_eq!(results, [(0, 100), (1, 0), (2, -libc::EBADF)].into());
}

#[test]
fn a_full_queue_says_so_and_no_completion_is_lost() {
    const READS: u64 = 500;
    let Some(mut ring) = ring(4) else { return };
    let file = file();
    let mut buffers = vec![[0_u8; 512]; READS as usize];
    let mut full = 0;
    for (token, buffer) in (0..).zip(&mut buffers) {
        let mut vector = IoVectorMut::from(buffer);
        // SAFETY: each buffer belongs to one read, and is looked at after the last completion.
        while !unsafe { ring.push_read(file.as_raw_fd(), vector.as_iovecs(), token * 512, token) } {
            full += 1;
            // Far more than the completion queue holds, and none is taken out.
            ring.submit().expect("submit");
        }
    }
    assert!(full > 100, "a queue of 4 was full {full} times");
    ring.submit().expect("submit");
    let mut results = BTreeMap::new();
    wait(&mut ring, &mut results);
    assert_eq!(results.len(), READS as usize);
    assert!(results.values().all(|result| *result == 512));
    for (index, buffer) in buffers.iter().enumerate() {
        assert!((index * 512..).zip(buffer).all(|(at, byte)| *byte == expected(at)), "read {index}");
    }
}

#[test]
fn dropping_waits_for_the_reads_in_flight() {
    let Some(mut ring) = ring(8) else { return };
    let file = file();
    let mut buffer = vec![0_u8; LEN];
    let mut vector = IoVectorMut::from(&mut buffer);
    // SAFETY: the buffer is looked at after the ring was dropped.
    assert!(unsafe { ring.push_read(file.as_raw_fd(), vector.as_iovecs(), 0, 1) });
    drop(ring);
    assert!(
        buffer.iter().enumerate().all(|(at, byte)| *byte == expected(at)),
        "not even submitted before the drop"
    );
}

/// In a process of its own, as the environment belongs to all threads.
#[test]
fn the_environment_switches_it_off() {
    if std::env::var_os(SWITCH).is_some_and(|value| value == "0") {
        assert!(Ring::new(8).is_none());
        return;
    }
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_environment_switches_it_off"])
        .env(SWITCH, "0")
        .output()
        .expect("run it again");
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
}
