//! Key slots of encrypted images.

use std::path::PathBuf;

use imago_core::access::keys::open_key_slots;
use imago_core::crypt::Cost;
use imago_core::format::luks::{LastSlot, Volume};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::Format;
use super::encryption::cost;
use crate::errors::Failure;
use crate::operation::{Face, Venue};
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::transfer::Count;

/// Does `change` to the key slots of the image at `path`.
fn change_slots<F, T>(
    py: Python<'_>,
    path: PathBuf,
    format: Option<Format>,
    change: impl FnOnce(&mut Volume) -> Result<T, Failure> + Send + 'static,
) -> PyResult<Py<PyAny>>
where
    F: Face,
    T: for<'py> IntoPyObjectExt<'py> + Send + 'static,
{
    let run = move || {
        let mut slots = open_key_slots(path, format.map(|format| format.0))?;
        change(&mut slots)
    };
    F::call(py, Venue::Thread, run, |py, answer| answer.into_py_any(py))
}

/// How hard a new secret is to try.
fn cost_of(iter_time: Option<Count>, iterations: Option<Count>) -> PyResult<Cost> {
    let number = |count: Option<Count>| count.map(|Count(number)| number);
    Ok(cost(number(iter_time), number(iterations))?.unwrap_or_default())
}

faces! {
    /// Give the image another key slot; its number.
    add_key, add_key_awaited: AddKey {
        path: StrPath,
        format: Option<Format>,
        secret: PySecret,
        new_secret: PySecret,
        slot: Option<Count>,
        iter_time: Option<Count>,
        iterations: Option<Count>,
    }
}

impl AddKey {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let AddKey { path, format, secret, new_secret, slot, iter_time, iterations } = self;
        let cost = cost_of(iter_time, iterations)?;
        change_slots::<F, _>(py, path.0, format, move |slots| {
            let (secret, new_secret) = (secret.get()?, new_secret.get()?);
            let unlocked = slots.unlock(&secret)?;
            Ok(slots.add_key(&unlocked, &new_secret, slot.map(|Count(slot)| slot as usize), cost)?)
        })
    }
}

faces! {
    /// Move a key to a slot that another secret opens; its number.
    change_key, change_key_awaited: ChangeKey {
        path: StrPath,
        format: Option<Format>,
        secret: PySecret,
        new_secret: PySecret,
        iter_time: Option<Count>,
        iterations: Option<Count>,
    }
}

impl ChangeKey {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let ChangeKey { path, format, secret, new_secret, iter_time, iterations } = self;
        let cost = cost_of(iter_time, iterations)?;
        change_slots::<F, _>(py, path.0, format, move |slots| {
            let (secret, new_secret) = (secret.get()?, new_secret.get()?);
            Ok(slots.change_key(&secret, &new_secret, cost)?)
        })
    }
}

faces! {
    /// Erase the slot of that number, or all that the secret opens; their numbers.
    erase_key, erase_key_awaited: EraseKey {
        path: StrPath,
        format: Option<Format>,
        secret: Option<PySecret>,
        slot: Option<Count>,
        force: bool,
    }
}

impl EraseKey {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let EraseKey { path, format, secret, slot, force } = self;
        let last = if force { LastSlot::Erase } else { LastSlot::Keep };
        if secret.is_some() == slot.is_some() {
            return Err(PyValueError::new_err("erase_key takes either a secret or a slot's number"));
        }
        change_slots::<F, _>(py, path.0, format, move |slots| match (secret, slot) {
            (Some(secret), _) => Ok(slots.erase_key(&secret.get()?, last)?),
            (None, Some(Count(slot))) => {
                let slot = slot as usize;
                slots.erase_slot(slot, last)?;
                Ok(vec![slot])
            }
            (None, None) => unreachable!("checked above"),
        })
    }
}
