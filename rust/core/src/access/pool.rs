//! A small pool of worker threads for work that must not be done where it was asked for.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;

use parking_lot::{Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

/// Fewest workers, so that one that waits for a device does not stop everything.
const MIN_WORKERS: usize = 4;
/// Most workers.
const MAX_WORKERS: usize = 32;

/// Worker threads that run jobs in the order they came; they are started when they are first needed.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    workers: usize,
    /// What wakes each idle worker. Who fell idle last is woken first: its core's caches still hold what jobs work on.
    idle: Vec<Arc<Condvar>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let State { jobs, workers, idle } = self;
        write!(f, "State {{ jobs: {}, workers: {workers}, idle: {} }}", jobs.len(), idle.len())
    }
}

/// The pools of this process and of those it was forked from; a child's first use appends its own.
struct Link {
    pid: u32,
    pool: Pool,
    next: OnceLock<Box<Link>>,
}

impl Pool {
    /// The pool of this process: two workers per core, at least 4 and at most 32.
    ///
    /// A forked child has none of its parent's threads and gets a pool of its own.
    pub fn global() -> &'static Pool {
        static FIRST: OnceLock<Box<Link>> = OnceLock::new();
        let pid = std::process::id();
        let mut place = &FIRST;
        loop {
            let link = place
                .get_or_init(|| Box::new(Link { pid, pool: Pool::new(cores() * 2), next: OnceLock::new() }));
            if link.pid == pid {
                return &link.pool;
            }
            place = &link.next;
        }
    }

    fn new(workers: usize) -> Self {
        Pool { shared: Arc::default(), limit: workers.clamp(MIN_WORKERS, MAX_WORKERS) }
    }

    /// Runs `job` on a worker, after those that were given before.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(Box::new(job));
        if let Some(wake) = state.idle.pop() {
            drop(state);
            wake.notify_one();
        } else if state.workers < self.limit {
            state.workers += 1;
            drop(state);
            self.start();
        }
    }

    /// Runs `job` on a worker that has nothing to do; gives it back where there is none.
    pub fn spawn_idle<F: FnOnce() + Send + 'static>(&self, job: F) -> Result<(), F> {
        let state = self.shared.state.lock();
        if state.idle.is_empty() && state.workers >= self.limit {
            return Err(job);
        }
        drop(state);
        self.spawn(job);
        Ok(())
    }

    fn start(&self) {
        let shared = Arc::clone(&self.shared);
        let started = thread::Builder::new().name("imago-worker".to_owned()).spawn(move || shared.work());
        if started.is_err() {
            let mut state = self.shared.state.lock();
            state.workers -= 1;
            // With no thread at all the caller does the work itself: late is better than never.
            if state.workers == 0 {
                while let Some(job) = state.jobs.pop_front() {
                    drop(state);
                    run(job);
                    state = self.shared.state.lock();
                }
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        let wake = Arc::new(Condvar::new());
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                run(job);
                state = self.state.lock();
            } else {
                state.idle.push(Arc::clone(&wake));
                wake.wait(&mut state);
            }
        }
    }
}

/// A job that panics ends alone: its worker goes on. Whoever waits for the job sees that it never reported.
fn run(job: Job) {
    drop(catch_unwind(AssertUnwindSafe(job)));
}

thread_local! {
    /// This thread is one of those that keep all cores busy.
    static AMONG_ALL: Cell<bool> = const { Cell::new(false) };
}

/// Does `work` on a thread that is one of many at the same work: what it reads it unpacks itself.
pub(super) fn among_all<R>(work: impl FnOnce() -> R) -> R {
    let before = AMONG_ALL.replace(true);
    let result = work();
    AMONG_ALL.set(before);
    result
}

/// How many threads may help this one.
pub(super) fn helpers() -> usize {
    if AMONG_ALL.get() { 0 } else { cores() - 1 }
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn every_job_runs_and_one_that_panics_ends_alone() {
        let pool = Pool::new(1);
        let (sender, done) = channel();
        for number in 0..100 {
            let sender = sender.clone();
            pool.spawn(move || {
                assert!(number % 10 != 3, "this job fails on purpose");
                sender.send(number).unwrap();
            });
        }
        drop(sender);
        let mut numbers: Vec<i32> = done.iter().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).filter(|number| number % 10 != 3).collect::<Vec<_>>());
        assert!(pool.shared.state.lock().workers <= MIN_WORKERS);
    }

    #[test]
    fn a_job_for_idle_workers_comes_back_when_all_are_busy() {
        let pool = Pool::new(1);
        let (release, wait) = channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for _ in 0..pool.limit {
            let wait = Arc::clone(&wait);
            assert!(pool.spawn_idle(move || assert!(wait.lock().recv().is_err())).is_ok());
        }
        assert!(pool.spawn_idle(|| ()).is_err());
        drop(release);
        let (sender, done) = channel();
        pool.spawn(move || sender.send(()).unwrap());
        done.recv().unwrap();
    }

    #[test]
    fn one_process_has_one_pool() {
        assert!(std::ptr::eq(Pool::global(), Pool::global()));
    }
}
