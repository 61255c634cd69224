//! Whether what a thread does is still wanted, for long work that no job goes along with: deriving a key, filling new space, going through a hostile
//! mapping. Who starts the work says how to ask; the work asks now and then.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Often enough for a person, and too rare to cost anything.
const INTERVAL: Duration = Duration::from_millis(20);

type Ask = Rc<dyn Fn() -> bool>;

thread_local! {
    static ASK: RefCell<Option<Ask>> = const { RefCell::new(None) };
    static NEXT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Does `run` on this thread. What it does and can stop in the middle of ends with [`Interrupted`](std::io::ErrorKind::Interrupted) soon after `ask`
/// has said `false`; `ask` is called on this thread, some 50 times a second at most.
pub fn while_wanted<R>(ask: impl Fn() -> bool + 'static, run: impl FnOnce() -> R) -> R {
    struct Restore(Option<Ask>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASK.set(self.0.take());
        }
    }
    let _restore = Restore(ASK.replace(Some(Rc::new(ask))));
    run()
}

/// An error if what this thread does is not wanted any more.
#[inline]
pub(crate) fn check() -> Result<()> {
    if ASK.with_borrow(Option::is_none) { Ok(()) } else { check_slowly() }
}

fn check_slowly() -> Result<()> {
    let now = Instant::now();
    if NEXT.get().is_some_and(|next| now < next) {
        return Ok(());
    }
    NEXT.set(Some(now + INTERVAL));
    // Not borrowed meanwhile: what is asked may do work of its own.
    let ask = ASK.with_borrow(Clone::clone);
    if ask.is_none_or(|ask| ask()) { Ok(()) } else { Err(interrupted()) }
}

/// What an operation that was given up ends with.
pub(crate) fn interrupted() -> Error {
    Error::io("the operation was cancelled", std::io::ErrorKind::Interrupted.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn work_ends_when_it_is_not_wanted_and_the_next_is_not_asked_for_it() {
        let end = Instant::now() + Duration::from_secs(20);
        let work = || -> Result<()> {
            loop {
                check()?;
                assert!(Instant::now() < end, "nobody ended it");
            }
        };
        let error = while_wanted(|| false, work).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        for _ in 0..1000 {
            check().unwrap();
        }
    }
}
