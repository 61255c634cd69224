//! Operations: what they do without Python, and what they give Python at their end. The synchronous and the awaitable
//! classes carry out the same operations; see [`Face`].

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago_core::IoVectorMut;
use imago_core::access::image::Image;
use imago_core::interrupt;
use pyo3::prelude::*;

use crate::access::{Access, Lease};
use crate::bridge::Bridge;
use crate::buffers::Buffer;
use crate::errors::{Failure, exception};
use crate::transfer::{Budget, INLINE_LIMIT, Offset, Progress, Transfer, Unlimited};

/// Reads up to this many bytes are tried with the interpreter held: giving it up and taking it back costs more than
/// copying them from the page cache.
const ATTACHED_LIMIT: usize = 16 << 10;

/// Where an operation that waits does so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Venue {
    /// On a worker of the engine's pool.
    Pool,
    /// On a thread of its own, since it runs long, calls back into Python, or waits for operations that the pool has yet to do.
    Thread,
}

/// An operation that is carried out by whatever thread suits it.
pub(crate) trait Work: Send {
    /// Goes on for as long as nothing has to be waited for; the loop's thread calls it.
    fn advance(&mut self, _: &Bridge) -> Progress {
        Progress::Waits
    }

    /// The read that is left to do, if it is one that a ring can do.
    fn transfer(&self) -> Option<(&Arc<Image>, &Transfer)> {
        None
    }

    /// A ring has done all of it.
    fn complete(&mut self) {}

    /// Does what is left; nothing of Python is touched.
    fn run(&mut self);

    /// Gives back what it holds and says what came of it.
    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>>;
}

/// How a class lets its operations be done: at once, or as an awaitable.
pub(crate) trait Face {
    /// Fills `buf` from `offset` on.
    fn read(
        py: Python<'_>,
        access: &Arc<Access>,
        buf: &Bound<'_, PyAny>,
        offset: Offset,
    ) -> PyResult<Py<PyAny>>;

    /// Carries a read or write out.
    fn transfer(py: Python<'_>, access: &Arc<Access>, transfer: Transfer) -> PyResult<Py<PyAny>>;

    /// Carries `run` out without the interpreter, then `finish` with it. Ctrl-C ends what a synchronous caller waits for, the cancelling of the task what
    /// has a thread of its own, as far as the engine asks ([`interrupt`]).
    fn call<T, R, F>(py: Python<'_>, venue: Venue, run: R, finish: F) -> PyResult<Py<PyAny>>
    where
        T: Send + 'static,
        R: FnOnce() -> Result<T, Failure> + Send + 'static,
        F: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    {
        Self::call_until(py, venue, Arc::default(), run, finish)
    }

    /// The same with `cancel`, which is set once nobody waits for what is returned.
    fn call_until<T, R, F>(
        py: Python<'_>,
        venue: Venue,
        cancel: Arc<AtomicBool>,
        run: R,
        finish: F,
    ) -> PyResult<Py<PyAny>>
    where
        T: Send + 'static,
        R: FnOnce() -> Result<T, Failure> + Send + 'static,
        F: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static;

    /// Carries out what an image does and no value comes of.
    fn on_image<R>(py: Python<'_>, access: &Arc<Access>, run: R) -> PyResult<Py<PyAny>>
    where
        R: FnOnce(&Access, &Image) -> imago_core::Result<()> + Send + 'static,
    {
        let lease = access.lease(py)?;
        let run = move || run(lease.access(), lease.image()).map_err(Failure::from);
        Self::call(py, Venue::Pool, run, |py, ()| Ok(py.None()))
    }
}

/// Operations are done when the call returns.
pub(crate) struct Blocking;

/// Operations are awaited, by the running event loop.
pub(crate) struct Awaited;

/// Fills `buf` if it is small and what belongs in it at hand. Whatever else there is to say is said by who then does it with a [`Transfer`].
#[inline]
fn read_at_hand(
    py: Python<'_>,
    access: &Access,
    buf: &Bound<'_, PyAny>,
    offset: Offset,
    admit: impl FnOnce(usize) -> bool,
) -> bool {
    let read = |memory: IoVectorMut<'_>| {
        let len = memory.len();
        admit(len)
            && access.holds(offset.0, len as u64)
            && access.open_image(py).is_some_and(
                |open| matches!(open.get().try_read(memory, offset.0), Ok(filled) if filled == len),
            )
    };
    Buffer::lend(buf, read) == Some(true)
}

/// Does what is left of a transfer that was checked, without the interpreter.
fn wait_for(py: Python<'_>, access: &Access, mut transfer: Transfer) -> PyResult<Py<PyAny>> {
    let open = access.image(py)?;
    let image: &Image = open.get();
    let result = py.detach(|| caught(|| transfer.run(image).map_err(Failure::from)));
    drop(open);
    let reply = transfer.reply();
    result.map(|()| reply.unwrap_or_else(|| py.None())).map_err(|failure| failure.into_exception(py))
}

/// Told when a future is done: sets a flag if it was cancelled.
#[pyclass(frozen)]
struct OnCancel(Arc<AtomicBool>);

#[pymethods]
impl OnCancel {
    fn __call__(&self, future: &Bound<'_, PyAny>) -> PyResult<()> {
        if future.call_method0("cancelled")?.is_truthy()? {
            self.0.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Face for Blocking {
    #[inline]
    fn read(
        py: Python<'_>,
        access: &Arc<Access>,
        buf: &Bound<'_, PyAny>,
        offset: Offset,
    ) -> PyResult<Py<PyAny>> {
        if read_at_hand(py, access, buf, offset, |len| len <= ATTACHED_LIMIT) {
            return Ok(py.None());
        }
        let transfer = Transfer::read(buf, offset)?;
        transfer.check(access)?;
        wait_for(py, access, transfer)
    }

    #[inline]
    fn transfer(py: Python<'_>, access: &Arc<Access>, mut transfer: Transfer) -> PyResult<Py<PyAny>> {
        transfer.check(access)?;
        if transfer.is_small_read(ATTACHED_LIMIT) {
            let open = access.image(py)?;
            let tried = transfer.advance(open.get(), &Unlimited);
            drop(open);
            if tried.map_err(|error| exception(py, &error))? == Progress::Done {
                return Ok(transfer.reply().unwrap_or_else(|| py.None()));
            }
        }
        wait_for(py, access, transfer)
    }

    fn call_until<T, R, F>(
        py: Python<'_>,
        _: Venue,
        _: Arc<AtomicBool>,
        run: R,
        finish: F,
    ) -> PyResult<Py<PyAny>>
    where
        T: Send + 'static,
        R: FnOnce() -> Result<T, Failure> + Send + 'static,
        F: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    {
        match py.detach(|| until_signal(|| caught(run))) {
            Ok(value) => finish(py, value),
            Err(failure) => Err(failure.into_exception(py)),
        }
    }
}

impl Face for Awaited {
    #[inline]
    fn read(
        py: Python<'_>,
        access: &Arc<Access>,
        buf: &Bound<'_, PyAny>,
        offset: Offset,
    ) -> PyResult<Py<PyAny>> {
        let bridge = Bridge::current(py)?;
        let admit = |len| (len <= INLINE_LIMIT || bridge.affords(len)) && bridge.spend(len);
        if read_at_hand(py, access, buf, offset, admit) {
            return bridge.completed(py, None);
        }
        Self::transfer(py, access, Transfer::read(buf, offset)?)
    }

    fn transfer(py: Python<'_>, access: &Arc<Access>, mut transfer: Transfer) -> PyResult<Py<PyAny>> {
        transfer.check(access)?;
        let bridge = Bridge::current(py)?;
        let open = access.image(py)?;
        let image = open.get();
        match transfer.advance(image, &*bridge).map_err(|error| exception(py, &error))? {
            Progress::Done => {
                drop(open);
                bridge.completed(py, transfer.reply())
            }
            progress => {
                let work = TransferWork { transfer, lease: Some(access.lease(py)?), failure: None };
                bridge.submit(py, Box::new(work), progress, Venue::Pool)
            }
        }
    }

    fn call_until<T, R, F>(
        py: Python<'_>,
        venue: Venue,
        cancel: Arc<AtomicBool>,
        run: R,
        finish: F,
    ) -> PyResult<Py<PyAny>>
    where
        T: Send + 'static,
        R: FnOnce() -> Result<T, Failure> + Send + 'static,
        F: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    {
        let submit = |work| Bridge::current(py)?.submit(py, work, Progress::Waits, venue);
        if venue == Venue::Pool {
            return submit(Box::new(Call { run: Some(run), outcome: None, finish }));
        }
        let unwanted = Arc::clone(&cancel);
        let run = || interrupt::while_wanted(move || !unwanted.load(Ordering::Relaxed), run);
        let result = submit(Box::new(Call { run: Some(run), outcome: None, finish }))?;
        result.call_method1(py, "add_done_callback", (OnCancel(cancel),))?;
        Ok(result)
    }
}

/// `f`, with a panic turned into a failure: none may reach Python.
fn caught<T>(f: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| Err(Failure::from_panic(&*payload)))
}

/// Runs the handlers of signals that have come; what one raises is the error.
fn raise_signals(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}

/// What `run` comes to, which ends early for what a signal's handler raises (Ctrl-C) while this thread, the interpreter's first, is here.
fn until_signal<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let raised: Rc<Cell<Option<PyErr>>> = Rc::default();
    let raise = Rc::clone(&raised);
    let ask = move || match Python::try_attach(raise_signals) {
        Some(Err(error)) => {
            raise.set(Some(error));
            false
        }
        Some(Ok(())) | None => true,
    };
    let result = interrupt::while_wanted(ask, run);
    raised.take().map_or(result, |error| Err(Failure::Python(error)))
}

/// A read or write that was not done at once.
struct TransferWork {
    transfer: Transfer,
    /// Until the operation has really ended.
    lease: Option<Lease>,
    failure: Option<Failure>,
}

impl Work for TransferWork {
    fn advance(&mut self, bridge: &Bridge) -> Progress {
        let Some(lease) = &self.lease else { return Progress::Done };
        match self.transfer.advance(lease.image(), bridge) {
            Ok(Progress::Done) => {}
            Ok(progress) => return progress,
            Err(error) => self.failure = Some(error.into()),
        }
        self.complete();
        Progress::Done
    }

    fn transfer(&self) -> Option<(&Arc<Image>, &Transfer)> {
        self.lease.as_ref().map(|lease| (lease.image(), &self.transfer))
    }

    fn complete(&mut self) {
        self.lease = None;
    }

    fn run(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.failure = caught(|| self.transfer.run(lease.image()).map_err(Failure::from)).err();
        }
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let reply = self.transfer.reply();
        self.failure
            .map_or_else(|| Ok(reply.unwrap_or_else(|| py.None())), |failure| Err(failure.into_exception(py)))
    }
}

/// Anything else.
struct Call<T, R, F> {
    run: Option<R>,
    outcome: Option<Result<T, Failure>>,
    finish: F,
}

impl<T, R, F> Work for Call<T, R, F>
where
    T: Send,
    R: FnOnce() -> Result<T, Failure> + Send,
    F: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send,
{
    fn run(&mut self) {
        self.outcome = self.run.take().map(caught);
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.outcome.expect("it was run") {
            Ok(value) => (self.finish)(py, value),
            Err(failure) => Err(failure.into_exception(py)),
        }
    }
}
