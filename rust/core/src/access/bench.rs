//! How fast an image is: many requests, so many at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::image::Image;
use super::job::Job;
use crate::error::{Error, ErrorKind, Result};
use crate::interrupt;

/// Buffers start at multiples of this, as direct I/O wants it.
const PAGE: usize = 4096;

/// How often is told how far it is.
const TELL: Duration = Duration::from_millis(50);

/// Requests under way at a time, at most: each has a thread and a buffer.
pub const DEPTH_MAX: u32 = 1024;

/// What is to be measured; the default is what `qemu-img bench` does where nothing is said.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Requests.
    pub count: u64,
    /// Requests under way at a time: 1 to [`DEPTH_MAX`].
    pub depth: u32,
    /// Bytes of a request: 1 to 2^31 - 1.
    pub request_size: u32,
    /// Where the first one starts.
    pub offset: u64,
    /// From the start of one to the start of the next; behind the disk's end it goes on at its start.
    pub step: u64,
    /// What they do.
    pub work: Work,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions { count: 75_000, depth: 64, request_size: 4096, offset: 0, step: 4096, work: Work::Read }
    }
}

/// What requests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read.
    Read,
    /// Write bytes of that value. This overwrites what the image has!
    Write {
        /// The value.
        pattern: u8,
        /// When what was written is made durable.
        flush: Flush,
    },
}

/// When what was written is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// At the image's closing only, which is not measured.
    Never,
    /// After every so many requests, which wait for it, and it for them.
    Every(u64),
    /// The same while others go on.
    Beside(u64),
}

struct Bench<'a> {
    image: &'a Image,
    options: &'a BenchOptions,
    /// The disk's size; what comes behind it starts over.
    size: u64,
    /// Requests begun, and done.
    begun: AtomicU64,
    done: AtomicU64,
    /// Shared by requests, held alone by a flush that waits for them.
    under_way: RwLock<()>,
    /// Shared with what threads ask while a request takes long.
    stopped: Arc<AtomicBool>,
}

/// Does as many requests as `options` says, `depth` threads with one each at a time, and tells how long they took, opening and closing
/// left out. The job is told bytes.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) for options that cannot be; what a request says that fails, as one does that passes the end of the disk.
pub fn bench(image: &Arc<Image>, options: &BenchOptions, job: &mut Job<'_>) -> Result<Duration> {
    let wrong = |what: &str| Err(Error::invalid_input(what.to_owned()));
    match options {
        BenchOptions { count: 0, .. } => return wrong("no request at all has no speed"),
        BenchOptions { depth, .. } if !(1..=DEPTH_MAX).contains(depth) => {
            return wrong("1 to 1024 requests can be under way at a time");
        }
        BenchOptions { request_size, .. } if !(1..=i32::MAX.unsigned_abs()).contains(request_size) => {
            return wrong("a request has 1 to 2147483647 bytes");
        }
        BenchOptions {
            work: Work::Write { flush: Flush::Every(every) | Flush::Beside(every), .. }, ..
        } if *every == 0 => {
            return wrong("a flush comes after 1 request at least");
        }
        _ => {}
    }
    let bench = Bench {
        image,
        options,
        size: image.size(),
        begun: AtomicU64::new(0),
        done: AtomicU64::new(0),
        under_way: RwLock::new(()),
        stopped: Arc::default(),
    };
    let total = options.count.saturating_mul(u64::from(options.request_size));
    job.report(0, total);
    let start = Instant::now();
    thread::scope(|scope| {
        let (working, ends) = channel::<()>();
        let workers: Vec<_> = (0..u64::from(options.depth).min(options.count))
            .map(|_| {
                let working = working.clone();
                let stopped = Arc::clone(&bench.stopped);
                scope.spawn(|| {
                    let _until_it_ends = working;
                    interrupt::while_wanted(move || !stopped.load(Ordering::Relaxed), || bench.run())
                })
            })
            .collect();
        drop(working);
        let mut result = Ok(());
        // This thread sleeps: one that works waits for its turn among all of them before it notices anything.
        while ends.recv_timeout(TELL) == Err(RecvTimeoutError::Timeout) {
            job.report(bench.done.load(Ordering::Relaxed) * u64::from(options.request_size), total);
            result = result.and_then(|()| job.wanted().check());
            if result.is_err() {
                bench.stopped.store(true, Ordering::Relaxed);
            }
        }
        for worker in workers {
            let lost = |_| Err(Error::new(ErrorKind::Io, "a thread that worked on the image died"));
            // Of several failures the first counts; those that only stopped have none.
            result = result.and(worker.join().unwrap_or_else(lost));
        }
        result
    })?;
    let took = start.elapsed();
    job.report(total, total);
    Ok(took)
}

impl Bench<'_> {
    /// Does requests until there are none left.
    fn run(&self) -> Result<()> {
        let len = self.options.request_size as usize;
        let fill = if let Work::Write { pattern, .. } = self.options.work { pattern } else { 0 };
        let mut buffer = vec![fill; len + PAGE];
        let first = buffer.as_ptr().align_offset(PAGE).min(PAGE);
        let buffer = &mut buffer[first..first + len];
        while !self.stopped.load(Ordering::Relaxed) {
            let index = self.begun.fetch_add(1, Ordering::Relaxed);
            if index >= self.options.count {
                break;
            }
            if let Err(error) = self.request(index, buffer) {
                // What fails because somebody has stopped is not the failure to tell of.
                return if self.stopped.swap(true, Ordering::Relaxed) { Ok(()) } else { Err(error) };
            }
        }
        Ok(())
    }

    fn request(&self, index: u64, buffer: &mut [u8]) -> Result<()> {
        let at = u128::from(self.options.offset) + u128::from(index) * u128::from(self.options.step);
        // One that starts behind the disk says so; later ones go round.
        let offset = if index == 0 { at as u64 } else { (at % u128::from(self.size.max(1))) as u64 };
        let under_way = self.under_way.read();
        let flush = match self.options.work {
            Work::Read => {
                self.image.read(buffer, offset)?;
                Flush::Never
            }
            Work::Write { flush, .. } => {
                self.image.write(&*buffer, offset)?;
                flush
            }
        };
        drop(under_way);
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        match flush {
            Flush::Every(every) if done.is_multiple_of(every) => {
                let _alone = self.under_way.write();
                self.image.flush()
            }
            Flush::Beside(every) if done.is_multiple_of(every) => self.image.flush(),
            _ => Ok(()),
        }
    }
}
