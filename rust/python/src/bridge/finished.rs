//! Operations that have ended, gathered from all threads until the loop takes them.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::{Pending, Turn};

pub(super) struct Finished {
    state: Mutex<State>,
    /// Readable while there is something to take.
    #[cfg(target_os = "linux")]
    event: OwnedFd,
    /// For loops that cannot watch descriptors.
    wake: OnceLock<Wake>,
}

/// `call_soon_threadsafe` and what it is to call.
struct Wake {
    call: Py<PyAny>,
    turn: Py<Turn>,
}

#[derive(Default)]
struct State {
    list: Vec<Pending>,
    /// The loop was woken and has not come yet.
    woken: bool,
    /// No loop will come.
    orphaned: bool,
}

impl Finished {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Finished {
            state: Mutex::default(),
            #[cfg(target_os = "linux")]
            event: event()?,
            wake: OnceLock::new(),
        })
    }

    /// What the loop is to watch, where there is such a thing.
    #[expect(clippy::unnecessary_wraps, reason = "not on every system")]
    pub(super) fn descriptor(&self) -> Option<i32> {
        #[cfg(target_os = "linux")]
        return Some(self.event.as_raw_fd());
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Has the loop woken by a call instead.
    pub(super) fn wake_by_call(&self, call: Py<PyAny>, turn: Py<Turn>) {
        // There is one loop and it is told once.
        let _ = self.wake.set(Wake { call, turn });
    }

    /// Adds one; any thread may. The loop is woken for the first only.
    pub(super) fn push(&self, pending: Pending) {
        let mut state = self.state.lock();
        if state.orphaned {
            drop(state);
            // Nobody is left to resolve it for; its references end wherever the interpreter can be had.
            Python::try_attach(|_| drop(pending));
            return;
        }
        state.list.push(pending);
        if std::mem::replace(&mut state.woken, true) {
            return;
        }
        if let Some(wake) = self.wake.get() {
            drop(state);
            self.call(wake);
        } else {
            // Under the lock, as `take` clears it there: a late signal would stay and keep the loop busy.
            self.signal();
        }
    }

    fn call(&self, Wake { call, turn }: &Wake) {
        let called = Python::try_attach(|py| call.call1(py, (turn,)).is_ok());
        if called != Some(true) {
            // Closed.
            let list = self.orphan();
            Python::try_attach(|_| drop(list));
        }
    }

    fn signal(&self) {
        #[cfg(target_os = "linux")]
        {
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight readable bytes for a descriptor that is ours. The counter cannot overflow: `take` clears each signal.
            let _ = unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// All that has ended so far; on the loop's thread.
    pub(super) fn take(&self) -> Vec<Pending> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.woken, false) {
            #[cfg(target_os = "linux")]
            {
                let mut count = [0u8; 8];
                // SAFETY: eight writable bytes for a descriptor that is ours; it does not block.
                let _ = unsafe { libc::read(self.event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
            }
        }
        std::mem::take(&mut state.list)
    }

    /// No loop will take what ends from now on; what is there already is returned.
    pub(super) fn orphan(&self) -> Vec<Pending> {
        let mut state = self.state.lock();
        state.orphaned = true;
        std::mem::take(&mut state.list)
    }
}

#[cfg(target_os = "linux")]
fn event() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a valid result is a new descriptor.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nobody else has this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
