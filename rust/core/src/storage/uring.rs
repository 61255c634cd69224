//! Reads through `io_uring`, for descriptors that [`Storage::raw_fd`](super::Storage::raw_fd) gives.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, Probe, opcode, types};

/// Set to `0` this environment variable keeps every [`Ring`] from being made, so that the worker pool does its work.
pub const SWITCH: &str = "PYIMAGO_IO_URING";

/// A submission and a completion queue.
///
/// Its descriptor is readable while completions wait, so an event loop can watch it.
/// One thread at a time uses it. Dropping it waits for the reads in flight, as their memory must outlive them; a
/// process forked off has no part in them and does not wait.
pub struct Ring {
    queues: IoUring,
    /// Reads pushed whose completion was not handed out yet.
    in_flight: usize,
    /// The process that made the ring.
    owner: u32,
}

impl Ring {
    /// A ring with room for `entries` unsubmitted reads (rounded up to a power of two).
    ///
    /// `None` where the kernel has no `io_uring`, lacks something that is needed here, or does not allow it (the sysctl
    /// `kernel.io_uring_disabled`, a seccomp filter), and where [`SWITCH`] says so: use the worker pool.
    pub fn new(entries: u32) -> Option<Ring> {
        if std::env::var_os(SWITCH).is_some_and(|value| value == "0") {
            return None;
        }
        let ring = IoUring::builder().setup_clamp().build(entries).ok()?;
        // No completion may be lost, and regions are read at submission at the latest.
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_submit_stable() {
            return None;
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).ok()?;
        if !probe.is_supported(opcode::Read::CODE) || !probe.is_supported(opcode::Readv::CODE) {
            return None;
        }
        Some(Ring { queues: ring, in_flight: 0, owner: std::process::id() })
    }

    /// The ring's descriptor, for polling.
    pub fn fd(&self) -> RawFd {
        self.queues.as_raw_fd()
    }

    /// Reads whose completion was not handed out yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues a read from `offset` of `fd` into the regions (at most 1024, 2 GiB); false when the queue is full:
    /// [`submit`](Ring::submit) first. `offset` is below 2^63. The result may be short, as that of `preadv`.
    ///
    /// # Safety
    /// The memory of the regions stays valid and written to by nobody else until the read's completion was
    /// handed out, or the ring was dropped; the slice of regions itself until `submit` has taken the read.
    /// `fd` stays open until `submit` has taken it.
    pub unsafe fn push_read(&mut self, fd: RawFd, regions: &[libc::iovec], offset: u64, token: u64) -> bool {
        debug_assert!(i64::try_from(offset).is_ok(), "-1 would mean the descriptor's own position");
        let fd = types::Fd(fd);
        let entry: Entry = match regions {
            [region] if u32::try_from(region.iov_len).is_ok() => {
                opcode::Read::new(fd, region.iov_base.cast(), region.iov_len as u32).offset(offset).build()
            }
            _ => opcode::Readv::new(fd, regions.as_ptr(), regions.len() as u32).offset(offset).build(),
        };
        // SAFETY: what the entry points to lives long enough by this function's own contract.
        let pushed = unsafe { self.queues.submission().push(&entry.user_data(token)) }.is_ok();
        self.in_flight += usize::from(pushed);
        pushed
    }

    /// Hands all queued reads to the kernel; how many it took.
    ///
    /// Fewer than were queued (0, say) means that it is short of memory or that completions wait in line: call
    /// [`complete`](Ring::complete), then this again.
    pub fn submit(&mut self) -> io::Result<usize> {
        loop {
            match self.queues.submit() {
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) => return Ok(0),
                    _ => return Err(error),
                },
                taken => return taken,
            }
        }
    }

    /// Reads that were pushed and not taken by the kernel yet.
    pub fn unsubmitted(&mut self) -> usize {
        self.queues.submission().len()
    }

    /// Hands out what has completed: the token and the byte count, or `-errno`. Does not wait.
    pub fn complete(&mut self, mut each: impl FnMut(u64, i32)) {
        let mut stuck = false;
        loop {
            let before = self.in_flight;
            for entry in self.queues.completion() {
                self.in_flight -= 1;
                each(entry.user_data(), entry.result());
            }
            // Completions that found the queue full are moved up by the kernel when it is entered. Should
            // it refuse, the descriptor stays readable and the next call tries again.
            let idle = self.in_flight == before;
            if !self.queues.submission().cq_overflow() || (stuck && idle) || self.submit().is_err() {
                return;
            }
            stuck = idle;
        }
    }
}

/// Has the kernel hold the file, until it gets round to letting it go: of a ring that is closed its own workers do that, and nobody waits for them.
pub(super) fn hand_over(file: &std::fs::File) -> bool {
    if std::env::var_os(SWITCH).is_some_and(|value| value == "0") {
        return false;
    }
    let ring = IoUring::new(1);
    ring.is_ok_and(|ring| ring.submitter().register_files(&[file.as_raw_fd()]).is_ok())
}

impl Drop for Ring {
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            return;
        }
        while self.in_flight > 0 {
            match self.queues.submit_and_wait(1) {
                Ok(_) => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) =>
                {
                    std::thread::yield_now();
                }
                // A ring that the kernel does not know any more writes to no memory.
                Err(_) => return,
            }
            self.complete(|_, _| {});
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("fd", &self.fd())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
