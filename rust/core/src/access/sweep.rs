//! Work over a whole disk, piece by piece, on all cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::job::{Job, Wanted};
use super::pool::{among_all, cores};
use crate::error::{Error, ErrorKind, Result};
use crate::interrupt;
use crate::storage::Storage;

/// Bytes of the disk in one piece at most, and what pieces of data do not cross; a multiple of every cluster size, so that no two
/// threads write to one cluster.
pub(super) const PIECE: u64 = 2 << 20;

/// Bytes that are read and written at a time: what a core's own cache holds beside all else.
pub(super) const CHUNK: u64 = 256 << 10;

/// A range of the disk that one thread works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<T> {
    /// Start in the disk (bytes).
    pub(super) start: u64,
    /// End in the disk.
    pub(super) end: u64,
    /// What is known of it.
    pub(super) what: T,
}

impl<T> Piece<T> {
    pub(super) fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// Whether a sweep goes on behind a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// With the next piece.
    Next,
    /// Not any more: pieces before this one are finished, none behind it is begun.
    Stop,
}

/// Who works on a sweep, and how fast.
#[derive(Debug)]
pub(super) struct Hands {
    /// Threads, the caller's among them.
    pub(super) threads: usize,
    /// How fast, at most.
    pub(super) pace: Option<Pace>,
    /// What is written is to be durable at the end.
    pub(super) ahead: Option<Ahead>,
}

impl Default for Hands {
    fn default() -> Self {
        Hands { threads: cores(), pace: None, ahead: None }
    }
}

impl Hands {
    /// Notes that `bytes` are written: the next pieces wait until their time has passed.
    pub(super) fn charge(&self, bytes: u64) {
        if let Some(pace) = &self.pace {
            pace.charge(bytes);
        }
        if let Some(ahead) = &self.ahead {
            ahead.note(bytes);
        }
    }

    /// Waits until what was written is paid for; `look` is called now and then.
    pub(super) fn rest(&self, job: &mut Job<'_>, mut look: impl FnMut(&mut Job<'_>)) -> Result<()> {
        while let Some(nap) = self.nap() {
            thread::sleep(nap);
            look(job);
            job.wanted().check()?;
        }
        Ok(())
    }

    /// How long to sleep before looking up again; `None` where nothing has to be waited for.
    fn nap(&self) -> Option<Duration> {
        let debt = self.pace.as_ref()?.debt();
        (!debt.is_zero()).then(|| debt.min(PATIENCE))
    }
}

/// Sends what is written on its way to the medium now and then, so that the sync at the end does not begin with all of it.
#[derive(Debug)]
pub(super) struct Ahead {
    storage: Arc<dyn Storage>,
    written: AtomicU64,
}

impl Ahead {
    /// Of what is written to `storage`.
    pub(super) fn new(storage: &Arc<dyn Storage>) -> Self {
        Ahead { storage: Arc::clone(storage), written: AtomicU64::new(0) }
    }

    fn note(&self, bytes: u64) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / AHEAD != (before + bytes) / AHEAD {
            self.storage.begin_sync();
        }
    }
}

/// Bytes that are sent on their way at once: enough to be written in long runs.
const AHEAD: u64 = 16 << 20;

/// So many bytes a second, at most.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    /// When what was written so far is paid for.
    paid: Mutex<Instant>,
}

/// Who waits looks up as often.
const PATIENCE: Duration = Duration::from_millis(20);

impl Pace {
    /// `rate` bytes a second, above 0.
    pub(super) fn new(rate: u64) -> Self {
        Pace { rate, paid: Mutex::new(Instant::now()) }
    }

    fn charge(&self, bytes: u64) {
        let mut paid = self.paid.lock();
        let start = Instant::now().max(*paid);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        *paid = start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
    }

    /// How long to wait now.
    fn debt(&self) -> Duration {
        self.paid.lock().saturating_duration_since(Instant::now())
    }
}

struct Shared<'a, I> {
    hands: &'a Hands,
    pieces: Mutex<I>,
    done: AtomicU64,
    /// Shared with what helpers ask while they look for a piece.
    stopped: Arc<AtomicBool>,
    wanted: Wanted<'a>,
}

/// Hands the pieces, in their order, to one thread per core until the last is done, one fails or stops, or the job is not wanted any more.
///
/// `work` gets a buffer of its thread's own, whose content and length mean nothing. `total` (bytes) is what the job is told.
pub(super) fn sweep<T: Send>(
    pieces: impl Iterator<Item = Result<Piece<T>>> + Send,
    total: u64,
    job: &mut Job<'_>,
    work: impl Fn(Piece<T>, &mut Vec<u8>) -> Result<Then> + Sync,
) -> Result<()> {
    sweep_with(&Hands::default(), pieces, total, job, work)
}

/// The same by these hands.
pub(super) fn sweep_with<T: Send>(
    hands: &Hands,
    pieces: impl Iterator<Item = Result<Piece<T>>> + Send,
    total: u64,
    job: &mut Job<'_>,
    work: impl Fn(Piece<T>, &mut Vec<u8>) -> Result<Then> + Sync,
) -> Result<()> {
    let shared = Shared {
        hands,
        pieces: Mutex::new(pieces),
        done: AtomicU64::new(0),
        stopped: Arc::default(),
        wanted: job.wanted(),
    };
    job.report(0, total);
    thread::scope(|scope| {
        let help = || {
            let stopped = Arc::clone(&shared.stopped);
            interrupt::while_wanted(move || !stopped.load(Ordering::Relaxed), || shared.run(&work, |_| {}))
        };
        let helpers: Vec<_> = (1..hands.threads).map(|_| scope.spawn(help)).collect();
        let mut result = shared.run(&work, |done| job.report(done, total));
        for helper in helpers {
            let lost = |_| Err(Error::new(ErrorKind::Io, "a thread that worked on the image died"));
            // Of several failures the first thread's own counts; those that only stopped have none.
            result = result.and(helper.join().unwrap_or_else(lost));
        }
        if result.is_ok() {
            // A helper may have done the last piece.
            job.report(shared.done.load(Ordering::Relaxed), total);
        }
        result
    })
}

impl<T, I: Iterator<Item = Result<Piece<T>>>> Shared<'_, I> {
    fn run(
        &self,
        work: &impl Fn(Piece<T>, &mut Vec<u8>) -> Result<Then>,
        mut report: impl FnMut(u64),
    ) -> Result<()> {
        let result = among_all(|| self.run_pieces(work, &mut report));
        if result.is_err() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        result
    }

    /// The same, but nothing for what may have failed only because somebody has stopped.
    fn unless_stopped<R>(&self, result: Result<R>) -> Result<Option<R>> {
        match result {
            Err(_) if self.stopped.load(Ordering::Relaxed) => Ok(None),
            result => result.map(Some),
        }
    }

    /// The next piece. Finding it may take another thread long, where the mapping is a hostile one.
    fn next(&self) -> Result<Option<Piece<T>>> {
        loop {
            self.wanted.check()?;
            if let Some(mut pieces) = self.pieces.try_lock_for(PATIENCE) {
                return pieces.next().transpose();
            }
        }
    }

    fn run_pieces(
        &self,
        work: &impl Fn(Piece<T>, &mut Vec<u8>) -> Result<Then>,
        report: &mut impl FnMut(u64),
    ) -> Result<()> {
        let mut buffer = Vec::new();
        while !self.stopped.load(Ordering::Relaxed) {
            if let Some(nap) = self.hands.nap() {
                self.unless_stopped(self.wanted.check())?;
                thread::sleep(nap);
                report(self.done.load(Ordering::Relaxed));
                continue;
            }
            let Some(piece) = self.unless_stopped(self.next())?.flatten() else { break };
            let len = piece.len();
            if work(piece, &mut buffer)? == Then::Stop {
                self.stopped.store(true, Ordering::Relaxed);
            }
            report(self.done.fetch_add(len, Ordering::Relaxed) + len);
        }
        Ok(())
    }
}

/// Ranges of a disk cut into pieces that do not cross multiples of `size`; those that `whole` holds for stay whole.
pub(super) fn cut<T: Copy>(
    ranges: impl Iterator<Item = Result<Piece<T>>>,
    size: u64,
    whole: impl Fn(&Piece<T>) -> bool,
) -> impl Iterator<Item = Result<Piece<T>>> {
    let mut ranges = ranges;
    let mut rest: Option<Piece<T>> = None;
    std::iter::from_fn(move || {
        let piece = match rest.take() {
            Some(piece) => piece,
            None => match ranges.next()? {
                Ok(piece) => piece,
                Err(error) => return Some(Err(error)),
            },
        };
        let end = if whole(&piece) { piece.end } else { piece.end.min((piece.start / size + 1) * size) };
        if end < piece.end {
            rest = Some(Piece { start: end, ..piece });
        }
        Some(Ok(Piece { end, ..piece }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: u64, end: u64, what: bool) -> Piece<bool> {
        Piece { start, end, what }
    }

    #[test]
    fn pieces_end_at_multiples_and_whole_ones_stay_whole() {
        let ranges =
            [piece(0, 100, false), piece(100, 2 * PIECE + 5, false), piece(2 * PIECE + 5, 9 * PIECE, true)];
        let cut: Vec<_> = cut(ranges.into_iter().map(Ok), PIECE, |p| p.what).map(Result::unwrap).collect();
        assert_eq!(
            cut,
            [
                piece(0, 100, false),
                piece(100, PIECE, false),
                piece(PIECE, 2 * PIECE, false),
                piece(2 * PIECE, 2 * PIECE + 5, false),
                piece(2 * PIECE + 5, 9 * PIECE, true)
            ]
        );
    }

    #[test]
    fn what_comes_before_a_stop_is_done_and_a_failure_is_told() {
        let pieces = || (0..1000).map(|i| Ok(piece(i * PIECE, (i + 1) * PIECE, false)));
        let seen = Mutex::new(Vec::new());
        sweep(pieces(), 1000 * PIECE, &mut Job::default(), |p, _| {
            seen.lock().push(p.start / PIECE);
            Ok(if p.start / PIECE == 500 { Then::Stop } else { Then::Next })
        })
        .unwrap();
        let mut seen = seen.into_inner();
        seen.sort_unstable();
        assert_eq!(seen[..=500], (0..=500).collect::<Vec<_>>());
        assert!(seen.len() < 1000);

        let failed = sweep(pieces(), 0, &mut Job::default(), |p, _| match p.start / PIECE {
            7 => Err(Error::corrupt("seven")),
            _ => Ok(Then::Next),
        });
        assert_eq!(failed.unwrap_err().message(), "seven");
    }

    #[test]
    fn a_job_that_is_not_wanted_ends() {
        let cancel = AtomicBool::new(true);
        let endless = (0..).map(|i| Ok(piece(i, i + 1, false)));
        let error =
            sweep(endless, 0, &mut Job::default().cancel(&cancel), |_, _| Ok(Then::Next)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}
