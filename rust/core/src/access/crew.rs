//! Work that one thread shares with the idle workers of the pool.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

use super::pool::Pool;
use crate::error::{Error, ErrorKind, Result};

/// Pieces of work in the order they were given, done by the caller and by helpers.
///
/// Helpers own what they work on and wait for nothing but the caller to take a result, and the caller does what nobody has taken: so
/// nothing ever waits for a helper that has not begun.
pub(super) struct Crew<W, R> {
    shared: Arc<Shared<W, R>>,
    done: Receiver<R>,
    /// For helpers to come; given up once the caller waits for those that are there.
    sender: Option<SyncSender<R>>,
    /// Most helpers at a time.
    helpers: usize,
    /// Pieces that were given and whose result the caller does not have yet.
    open: usize,
}

struct Shared<W, R> {
    todo: Mutex<VecDeque<W>>,
    work: Box<dyn Fn(W) -> R + Send + Sync>,
}

impl<W, R> Shared<W, R> {
    fn do_next(&self) -> Option<R> {
        let next = self.todo.lock().pop_front();
        next.map(|piece| (self.work)(piece))
    }
}

impl<W: Send + 'static, R: Send + 'static> Crew<W, R> {
    /// A crew of the caller and at most `helpers` idle workers.
    pub(super) fn new(helpers: usize, work: impl Fn(W) -> R + Send + Sync + 'static) -> Self {
        let (sender, done) = sync_channel(2 * helpers);
        let shared = Shared { todo: Mutex::default(), work: Box::new(work) };
        Crew { shared: Arc::new(shared), done, sender: Some(sender), helpers, open: 0 }
    }

    /// Pieces under way.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Adds a piece of work.
    pub(super) fn give(&mut self, piece: W) {
        self.open += 1;
        self.shared.todo.lock().push_back(piece);
        // One reference is the caller's own.
        if Arc::strong_count(&self.shared) <= self.helpers
            && let Some(sender) = self.sender.clone()
        {
            let shared = Arc::clone(&self.shared);
            // Without an idle worker the caller is the one who does it.
            let _ = Pool::global().spawn_idle(move || {
                while let Some(result) = shared.do_next() {
                    if sender.send(result).is_err() {
                        return;
                    }
                }
            });
        }
    }

    /// The next result, in no certain order; `None` when there is no more work.
    pub(super) fn next(&mut self) -> Result<Option<R>> {
        if self.open == 0 {
            return Ok(None);
        }
        let at_hand = self.done.try_recv().ok().or_else(|| self.shared.do_next());
        let result = if let Some(result) = at_hand {
            result
        } else {
            self.sender = None;
            self.done.recv().map_err(|_| Error::new(ErrorKind::Io, "a worker died"))?
        };
        self.open -= 1;
        Ok(Some(result))
    }
}

impl<W, R> Drop for Crew<W, R> {
    fn drop(&mut self) {
        self.shared.todo.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_with_helpers_and_without() {
        for helpers in [0, 1, 5] {
            let mut crew = Crew::new(helpers, |n: u64| n * n);
            let mut sum = 0;
            for n in 1..=1000 {
                crew.give(n);
                if crew.open() > 10 {
                    sum += crew.next().unwrap().unwrap();
                }
            }
            while let Some(square) = crew.next().unwrap() {
                sum += square;
            }
            assert_eq!(sum, 1000 * 1001 * 2001 / 6);
            assert!(crew.next().unwrap().is_none());
        }
    }

    #[test]
    fn a_helper_that_dies_is_noticed() {
        let caller = std::thread::current().id();
        let mut crew = Crew::new(3, move |n: u32| {
            assert!(std::thread::current().id() == caller, "a helper dies on purpose");
            std::thread::sleep(std::time::Duration::from_millis(5));
            n
        });
        (0..100).for_each(|n| crew.give(n));
        let mut done = 0;
        let end = loop {
            match crew.next() {
                Ok(Some(_)) => done += 1,
                end => break end,
            }
        };
        // Where no worker was idle the caller did it all.
        assert!(done == 100 || end.unwrap_err().kind() == ErrorKind::Io);
    }
}
