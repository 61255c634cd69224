//! A storage in memory that holds a call until the test lets it through.

use imago_core::storage::memory::Memory;
use imago_core::storage::{Capabilities, ZeroMode};
use imago_core::{Error, IoVector, IoVectorMut, Result, Storage};
use parking_lot::{Condvar, Mutex};

/// Which call is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// A read that has its bytes and has not returned.
    Read,
    /// A write that has not begun.
    Write,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Open,
    Armed(On),
    Stopped,
}

/// A memory whose next read or write waits to be let through, once that is asked for, on a medium that may be full.
#[derive(Debug, Default)]
pub struct Stopping {
    /// What it holds.
    pub memory: Memory,
    /// Where the medium ends, in bytes; `None`: nowhere.
    pub limit: Mutex<Option<u64>>,
    state: Mutex<State>,
    changed: Condvar,
}

impl From<Vec<u8>> for Stopping {
    fn from(bytes: Vec<u8>) -> Self {
        Stopping { memory: Memory::from(bytes), ..Stopping::default() }
    }
}

impl Stopping {
    /// Holds the next such call.
    pub fn arm(&self, on: On) {
        *self.state.lock() = State::Armed(on);
    }

    /// Waits until a call is held.
    pub fn wait_until_stopped(&self) {
        self.changed.wait_while(&mut self.state.lock(), |state| *state != State::Stopped);
    }

    /// Lets it go on.
    pub fn let_through(&self) {
        *self.state.lock() = State::Open;
        self.changed.notify_all();
    }

    fn pass(&self, on: On) {
        let mut state = self.state.lock();
        if *state == State::Armed(on) {
            *state = State::Stopped;
            self.changed.notify_all();
            self.changed.wait_while(&mut state, |state| *state == State::Stopped);
        }
    }
}

impl Storage for Stopping {
    fn readv_at(&self, bufs: IoVectorMut<'_>, offset: u64) -> Result<()> {
        self.memory.readv_at(bufs, offset)?;
        self.pass(On::Read);
        Ok(())
    }

    fn writev_at(&self, bufs: IoVector<'_>, offset: u64) -> Result<()> {
        self.pass(On::Write);
        if self.limit.lock().is_some_and(|limit| offset + bufs.len() as u64 > limit) {
            return Err(Error::io("write", std::io::ErrorKind::StorageFull.into()));
        }
        self.memory.writev_at(bufs, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.memory.write_zeroes_at(offset, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.memory.discard_at(offset, len)
    }

    fn len(&self) -> Result<u64> {
        self.memory.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.memory.set_len(len)
    }

    fn sync(&self) -> Result<()> {
        self.memory.sync()
    }

    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
}
