//! Operations of an event loop, awaited.
//!
//! What is at hand is done where it is asked for and comes back as a completed future. All else becomes a pending future;
//! its operation goes to the loop's ring or to a worker, and what has ended is gathered and resolved on the loop's
//! thread, woken once for as many as there are. Cancelling a future only detaches it: the operation keeps its image and its
//! memory until it has really ended.

mod asyncio;
mod completed;
mod finished;
pub(crate) mod fork;
pub(crate) mod interpreter;
#[cfg(target_os = "linux")]
mod ring;
mod shutdown;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use imago_core::access::pool::Pool;
use parking_lot::Mutex;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit};

use crate::operation::{Venue, Work};
use crate::transfer::{Budget, LARGE_LIMIT, Progress};
use asyncio::Asyncio;
use completed::Callback;
pub(crate) use completed::CompletedFuture;
use finished::Finished;
pub(crate) use shutdown::wait_for_operations;

/// Estimated inline work of one turn of the loop, in nanoseconds; then who awaits yields once.
const TURN_BUDGET: i64 = 300_000;
/// How far beyond that all others may get that run in the same turn, in nanoseconds; then operations are put off to the next one.
const OVERDRAFT: i64 = 300_000;
/// What one may do at least before it yields, in nanoseconds: some small reads, as yielding costs as much as one.
const SHARE: i64 = 4_000;

/// The bridges of the loops that are open. Loops are known by their address, which is theirs for as long as their bridge lives.
static BRIDGES: Mutex<Vec<(usize, Anchor)>> = Mutex::new(Vec::new());

thread_local! {
    /// The bridge that this thread asked for last.
    static LATEST: RefCell<Weak<Bridge>> = const { RefCell::new(Weak::new()) };
}

/// What keeps a bridge alive.
enum Anchor {
    /// Its loop does, by its [`Reader`].
    Loop(Weak<Bridge>),
    /// We do, as the loop cannot watch descriptors; until it is seen to be closed.
    Here(Arc<Bridge>),
}

impl Anchor {
    fn bridge(&self) -> Option<Arc<Bridge>> {
        match self {
            Anchor::Loop(bridge) => bridge.upgrade(),
            Anchor::Here(bridge) => Some(Arc::clone(bridge)),
        }
    }
}

/// An operation and the future that stands for it.
struct Pending {
    future: Py<PyAny>,
    work: Box<dyn Work>,
}

/// One event loop's operations.
pub(crate) struct Bridge {
    event_loop: Py<PyAny>,
    /// `loop=`, for the making of futures.
    future_arguments: Py<PyDict>,
    call_soon: Py<PyAny>,
    /// What [`Asyncio::running_mark`] was when the loop was last asked for; held, so that no other object is at its address.
    mark: Mark,
    turn: PyOnceLock<Py<Turn>>,
    /// What is left of [`TURN_BUDGET`].
    budget: AtomicI64,
    /// Who runs now yields when no more than this is left.
    pause_at: AtomicI64,
    /// The next completed future is to have its task yield.
    yields: AtomicBool,
    spare: Spare,
    queues: Mutex<Queues>,
    finished: Arc<Finished>,
    birth: fork::Generation,
}

/// An object known by its address, and held for as long as it is.
#[derive(Default)]
struct Mark {
    address: AtomicUsize,
    held: Mutex<Option<Py<PyAny>>>,
}

impl Mark {
    #[inline]
    fn is(&self, object: NonNull<ffi::PyObject>) -> bool {
        self.address.load(Ordering::Relaxed) == object.as_ptr().addr()
    }

    fn set(&self, object: Option<Py<PyAny>>) {
        let mut held = self.held.lock();
        self.address.store(object.as_ref().map_or(0, |object| object.as_ptr().addr()), Ordering::Relaxed);
        let before = std::mem::replace(&mut *held, object);
        drop(held);
        // Outside of the lock: it may be the last reference.
        drop(before);
    }
}

/// A completed future with no result. Once whoever got it has let go of it, it is given out again: who awaits small reads one by one
/// needs no other. It holds its bridge, until that is orphaned.
#[derive(Default)]
struct Spare(AtomicPtr<ffi::PyObject>);

impl Spare {
    /// The future, if nobody else has it.
    #[inline]
    fn idle<'py>(&self, py: Python<'py>) -> Option<Bound<'py, CompletedFuture>> {
        let future = self.0.load(Ordering::Relaxed);
        // SAFETY: it is null, or a `CompletedFuture` that this holds a reference to; it is only exchanged with the interpreter attached.
        unsafe {
            (!future.is_null() && ffi::Py_REFCNT(future) == 1)
                .then(|| Bound::from_borrowed_ptr(py, future).cast_into_unchecked())
        }
    }

    fn set(&self, py: Python<'_>, future: Option<Py<CompletedFuture>>) {
        let future = future.map_or(std::ptr::null_mut(), Py::into_ptr);
        let before = self.0.swap(future, Ordering::Relaxed);
        // SAFETY: the reference that this held, or null.
        drop(unsafe { Bound::from_owned_ptr_or_opt(py, before) });
    }
}

/// What waits for the loop's thread. The lock is never held while Python is called.
#[derive(Default)]
struct Queues {
    /// Calls that futures owe.
    callbacks: Vec<Callback>,
    /// Operations that found the budget used up.
    deferred: VecDeque<Pending>,
    /// A turn is scheduled already.
    scheduled: bool,
    #[cfg(target_os = "linux")]
    ring: ring::State,
}

impl Budget for Bridge {
    #[inline]
    fn spend(&self, len: usize) -> bool {
        // Only the loop's thread gets here: a load and a store will do.
        let before = self.budget.load(Ordering::Relaxed);
        let after = before - cost(len);
        self.budget.store(after, Ordering::Relaxed);
        if after <= self.pause_at.load(Ordering::Relaxed) {
            self.pause_at.store(after - SHARE, Ordering::Relaxed);
            self.yields.store(true, Ordering::Relaxed);
        }
        before > -OVERDRAFT
    }

    #[inline]
    fn affords(&self, len: usize) -> bool {
        // The one that uses the budget up has its task yield; if it went to a worker, every fifth would.
        len <= LARGE_LIMIT && self.budget.load(Ordering::Relaxed) > 0
    }
}

/// Nanoseconds that a read of so many bytes takes, see [`Budget`].
#[inline]
fn cost(len: usize) -> i64 {
    300 + (len / 16).cast_signed() as i64
}

impl Bridge {
    /// The bridge of the loop that runs in this thread; `RuntimeError` where none does.
    pub(crate) fn current(py: Python<'_>) -> PyResult<Arc<Self>> {
        let asyncio = Asyncio::get(py)?;
        let mark = asyncio.running_mark(py);
        if let Some(mark) = mark
            && let Some(bridge) = LATEST.with_borrow(Weak::upgrade)
            && bridge.mark.is(mark)
            && bridge.birth.is_now()
        {
            return Ok(bridge);
        }
        let event_loop = asyncio.running_loop(py)?;
        let key = event_loop.as_ptr().addr();
        // A forked child may go on with its parent's loop, but not with the ring and the event that the two share.
        let ours = |(k, anchor): &(usize, Anchor)| {
            let bridge = if *k == key { anchor.bridge() } else { None };
            bridge.filter(|bridge| bridge.birth.is_now())
        };
        let known = BRIDGES.lock().iter().find_map(ours);
        let bridge = match known {
            Some(bridge) => bridge,
            None => Self::create(py, event_loop)?,
        };
        // SAFETY: the thread's state holds the mark, so it is alive.
        let mark = mark.map(|mark| unsafe { Bound::from_borrowed_ptr(py, mark.as_ptr()).unbind() });
        bridge.mark.set(mark);
        LATEST.set(Arc::downgrade(&bridge));
        Ok(bridge)
    }

    fn create(py: Python<'_>, event_loop: Bound<'_, PyAny>) -> PyResult<Arc<Self>> {
        shutdown::refuse_if_begun()?;
        forget_closed_loops(py);
        let key = event_loop.as_ptr().addr();
        let future_arguments = PyDict::new(py);
        future_arguments.set_item("loop", &event_loop)?;
        let bridge = Arc::new(Bridge {
            call_soon: event_loop.getattr("call_soon")?.unbind(),
            future_arguments: future_arguments.unbind(),
            mark: Mark::default(),
            turn: PyOnceLock::new(),
            budget: AtomicI64::new(TURN_BUDGET),
            pause_at: AtomicI64::new(0),
            yields: AtomicBool::new(false),
            spare: Spare::default(),
            queues: Mutex::default(),
            finished: Arc::new(Finished::new()?),
            birth: fork::Generation::now(),
            event_loop: event_loop.clone().unbind(),
        });
        let turn = Py::new(py, Turn(Arc::downgrade(&bridge)))?;
        let anchor = if bridge.watch(py, bridge.finished.descriptor(), true)? {
            Anchor::Loop(Arc::downgrade(&bridge))
        } else {
            bridge
                .finished
                .wake_by_call(event_loop.getattr("call_soon_threadsafe")?.unbind(), turn.clone_ref(py));
            Anchor::Here(Arc::clone(&bridge))
        };
        bridge.turn.get_or_init(py, || turn);
        BRIDGES.lock().push((key, anchor));
        Ok(bridge)
    }

    /// Has the loop call us while `descriptor` is readable; false if it cannot.
    fn watch(self: &Arc<Self>, py: Python<'_>, descriptor: Option<i32>, traverses: bool) -> PyResult<bool> {
        let Some(descriptor) = descriptor else { return Ok(false) };
        let reader =
            Py::new(py, Reader { bridge: Arc::clone(self), traverses, watching: AtomicBool::new(false) })?;
        match self.event_loop.call_method1(py, "add_reader", (descriptor, &reader)) {
            Ok(_) => {
                reader.get().watching.store(true, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) if error.is_instance_of::<pyo3::exceptions::PyNotImplementedError>(py) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A future that has `result` already (None for Python's None). Awaiting it lets others run first if this turn has done its share.
    #[inline]
    pub(crate) fn completed(
        self: Arc<Self>,
        py: Python<'_>,
        result: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let yields = self.yields.load(Ordering::Relaxed);
        if yields {
            self.yields.store(false, Ordering::Relaxed);
            self.schedule(py)?;
        }
        if result.is_some() {
            return Ok(Py::new(py, CompletedFuture::new(self, result, yields))?.into_any());
        }
        if let Some(future) = self.spare.idle(py) {
            future.get().renew(yields);
            return Ok(future.into_any().unbind());
        }
        let future = Py::new(py, CompletedFuture::new(Arc::clone(&self), None, yields))?;
        self.spare.set(py, Some(future.clone_ref(py)));
        Ok(future.into_any())
    }

    /// Has `callback` called in the loop's next iteration, together with others: one handle of the loop's for all of them.
    fn call_back(&self, py: Python<'_>, callback: Callback) -> PyResult<()> {
        self.queues.lock().callbacks.push(callback);
        self.schedule(py)
    }

    /// A future for what `work` will come to.
    pub(crate) fn submit(
        self: &Arc<Self>,
        py: Python<'_>,
        work: Box<dyn Work>,
        progress: Progress,
        venue: Venue,
    ) -> PyResult<Py<PyAny>> {
        shutdown::refuse_if_begun()?;
        let future = Asyncio::get(py)?.future(py, &self.future_arguments)?.unbind();
        let pending = Pending { future: future.clone_ref(py), work };
        if progress == Progress::OutOfBudget {
            self.queues.lock().deferred.push_back(pending);
            self.schedule(py)?;
        } else {
            self.dispatch(py, pending, venue)?;
        }
        Ok(future)
    }

    /// Gives an operation that has to wait to who waits for it.
    fn dispatch(self: &Arc<Self>, py: Python<'_>, pending: Pending, venue: Venue) -> PyResult<()> {
        #[cfg(target_os = "linux")]
        let Some(pending) = self.push_to_ring(py, pending)? else { return self.schedule(py) };
        let _ = py;
        self.run_elsewhere(pending, venue);
        Ok(())
    }

    fn run_elsewhere(&self, mut pending: Pending, venue: Venue) {
        let finished = Arc::clone(&self.finished);
        let ticket = shutdown::begin();
        let job = move || {
            pending.work.run();
            finished.push(pending);
            drop(ticket);
        };
        match venue {
            Venue::Pool => Pool::global().spawn(job),
            Venue::Thread => {
                // A thread that cannot be started hands the job to nobody: so it is asked for with a slot to take it back from.
                let slot = Arc::new(Mutex::new(Some(job)));
                let theirs = Arc::clone(&slot);
                let run = move || {
                    let job = theirs.lock().take();
                    if let Some(job) = job {
                        job();
                    }
                };
                if thread::Builder::new().name("imago-control".to_owned()).spawn(run).is_err()
                    && let Some(job) = slot.lock().take()
                {
                    Pool::global().spawn(job);
                }
            }
        }
    }

    /// Has a turn run in the loop's next iteration.
    fn schedule(&self, py: Python<'_>) -> PyResult<()> {
        if std::mem::replace(&mut self.queues.lock().scheduled, true) {
            return Ok(());
        }
        self.call_soon.call1(py, (self.turn.get(py),)).map(drop)
    }

    /// Resolves what has ended and does this iteration's share of what was put off.
    fn turn(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let callbacks = {
            let mut queues = self.queues.lock();
            queues.scheduled = false;
            std::mem::take(&mut queues.callbacks)
        };
        self.budget.store(TURN_BUDGET, Ordering::Relaxed);
        self.call_all(py, callbacks)?;
        self.pause_at.store((self.budget.load(Ordering::Relaxed) - SHARE).min(0), Ordering::Relaxed);
        for pending in self.finished.take() {
            resolve(py, pending);
        }
        #[cfg(target_os = "linux")]
        self.turn_ring(py);
        loop {
            let Some(mut pending) = self.queues.lock().deferred.pop_front() else { break };
            if Asyncio::get(py)?.is_done(pending.future.bind(py))? {
                // Cancelled before anything was done for it.
                continue;
            }
            match pending.work.advance(self) {
                Progress::Done => resolve(py, pending),
                Progress::Waits => self.dispatch(py, pending, Venue::Pool)?,
                Progress::OutOfBudget => {
                    self.queues.lock().deferred.push_front(pending);
                    break;
                }
            }
        }
        #[cfg(target_os = "linux")]
        self.submit_ring();
        if self.has_work() { self.schedule(py) } else { Ok(()) }
    }

    /// Calls all of them. Tasks that yielded go on here and get an equal share of the turn each.
    fn call_all(&self, py: Python<'_>, callbacks: Vec<Callback>) -> PyResult<()> {
        let all = callbacks.len().cast_signed() as i64;
        let mut callbacks = callbacks.into_iter();
        while let Some(callback) = callbacks.next() {
            let left = self.budget.load(Ordering::Relaxed);
            let share = if all == 1 { TURN_BUDGET } else { SHARE.max((TURN_BUDGET + OVERDRAFT) / all) };
            self.pause_at.store(left - share, Ordering::Relaxed);
            if let Err(end) = callback.call(py, &self.event_loop) {
                // The loop stops; whoever runs it again finds the others still to be called.
                self.queues.lock().callbacks.splice(0..0, callbacks);
                self.schedule(py)?;
                return Err(end);
            }
        }
        Ok(())
    }

    fn has_work(&self) -> bool {
        let mut queues = self.queues.lock();
        #[cfg(target_os = "linux")]
        if queues.ring.has_unsubmitted() {
            return true;
        }
        !queues.deferred.is_empty()
    }

    /// The loop is closed: nobody will resolve a future of it any more. What goes on is seen to its end and let go.
    fn orphan(&self) {
        // Without an interpreter nobody is left to whom the loop of references would matter.
        let _ = Python::try_attach(|py| self.spare.set(py, None));
        if !self.birth.is_now() {
            return;
        }
        let queues = std::mem::take(&mut *self.queues.lock());
        drop(queues);
        drop(self.finished.orphan());
    }
}

/// Tells the future what came of its operation, once the operation's memory is free.
fn resolve(py: Python<'_>, Pending { future, work }: Pending) {
    let future = future.bind(py);
    let told = Asyncio::get(py).and_then(|asyncio| {
        if asyncio.is_done(future)? {
            // Cancelled meanwhile: nothing is made of what nobody gets.
            return Ok(());
        }
        asyncio.settle(future, work.finish(py))
    });
    if let Err(error) = told {
        error.write_unraisable(py, Some(future));
    }
}

/// Lets the bridges go whose loops could not tell us that they were closed.
fn forget_closed_loops(py: Python<'_>) {
    let kept: Vec<_> = BRIDGES
        .lock()
        .iter()
        .filter_map(|(key, anchor)| match anchor {
            Anchor::Here(bridge) => Some((*key, Arc::clone(bridge))),
            Anchor::Loop(_) => None,
        })
        .collect();
    for (key, bridge) in kept {
        let closed = bridge.event_loop.call_method0(py, "is_closed").and_then(|c| c.is_truthy(py));
        if closed.unwrap_or(true) {
            forget(key, &bridge);
            bridge.orphan();
        }
    }
}

fn forget(key: usize, bridge: &Arc<Bridge>) {
    let mut bridges = BRIDGES.lock();
    let ours = |anchor: &Anchor| match anchor {
        Anchor::Loop(other) => std::ptr::eq(other.as_ptr(), Arc::as_ptr(bridge)),
        Anchor::Here(other) => Arc::ptr_eq(other, bridge),
    };
    let removed =
        bridges.iter().position(|(k, anchor)| *k == key && ours(anchor)).map(|i| bridges.swap_remove(i));
    // Outside of the lock: it may be the last reference.
    drop(bridges);
    drop(removed);
}

/// What the loop calls when there is something to resolve. The loop holds it until it is closed, which is how that is noticed.
#[pyclass(frozen, module = "pyimago._native")]
struct Reader {
    bridge: Arc<Bridge>,
    /// Of the readers that share a bridge one answers for its references to the collector.
    traverses: bool,
    /// The loop has it.
    watching: AtomicBool,
}

#[pymethods]
impl Reader {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.bridge.turn(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if self.traverses {
            visit.call(&self.bridge.event_loop)?;
            visit.call(&self.bridge.future_arguments)?;
            visit.call(&self.bridge.call_soon)?;
            if let Some(mark) = self.bridge.mark.held.try_lock() {
                visit.call(&*mark)?;
            }
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !*self.watching.get_mut() {
            return;
        }
        forget(self.bridge.event_loop.as_ptr().addr(), &self.bridge);
        self.bridge.orphan();
    }
}

/// A turn that was asked for with `call_soon`.
#[pyclass(frozen, module = "pyimago._native")]
struct Turn(Weak<Bridge>);

#[pymethods]
impl Turn {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.0.upgrade().map_or(Ok(()), |bridge| bridge.turn(py))
    }
}
