//! Amending an image.

use imago_core::access::amend::{AmendOptions, Amendment, BackingChange, DataFileChange, amend_storage};
use imago_core::access::keys::KeyChange;
use imago_core::access::open::OpenOptions;
use imago_core::format::ImplicitReference;
use imago_core::format::luks::LastSlot;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Format;
use super::create::{QcowVersion, of_option, small};
use super::encryption::cost;
use super::job::run_job;
use super::open::{Below, DataFile};
use super::source::Place;
use crate::errors::Failure;
use crate::gate::PyGate;
use crate::operation::Face;
use crate::path::StrPath;
use crate::secret::PySecret;
use crate::transfer::Offset;

/// What is to become of key slots, in the words of QEMU's options.
#[derive(Default)]
struct KeySlots {
    active: Option<bool>,
    slot: Option<usize>,
    new_secret: Option<PySecret>,
    old_secret: Option<PySecret>,
    iter_time: Option<u32>,
    iterations: Option<u32>,
}

impl KeySlots {
    /// Takes one of `amend`'s keyword arguments; `false` if it is none of key slots.
    fn take(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        match name {
            "keyslot_state" => {
                self.active = Some(match value.extract::<&str>()? {
                    "active" => true,
                    "inactive" => false,
                    other => {
                        let text = format!("keyslot_state is 'active' or 'inactive', not {other:?}");
                        return Err(PyValueError::new_err(text));
                    }
                });
            }
            "keyslot" => self.slot = Some(small(name, value)? as usize),
            "new_secret" => self.new_secret = Some(value.extract()?),
            "old_secret" => self.old_secret = Some(value.extract()?),
            "iter_time" => self.iter_time = Some(small(name, value)?),
            "iterations" => self.iterations = Some(small(name, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The change that this is, with the rules of `qemu-img amend`.
    fn change(self, force: bool) -> Result<Option<KeyChange>, Failure> {
        let KeySlots { active, slot, new_secret, old_secret, iter_time, iterations } = self;
        let refuse = |text| Err(PyValueError::new_err(text).into());
        let Some(active) = active else {
            let nothing = slot.is_none() && new_secret.is_none() && old_secret.is_none();
            if nothing && iter_time.is_none() && iterations.is_none() {
                return Ok(None);
            }
            return refuse("keyslot_state says what becomes of a key slot: 'active' or 'inactive'");
        };
        let cost = cost(iter_time, iterations)?;
        if active {
            if old_secret.is_some() {
                return refuse("old_secret goes with keyslot_state='inactive'");
            }
            let Some(new_secret) = new_secret else {
                return refuse("keyslot_state='active' takes new_secret, which is to open the image");
            };
            let cost = cost.unwrap_or_default();
            return Ok(Some(KeyChange::Add { secret: new_secret.get()?, slot, cost }));
        }
        if new_secret.is_some() || cost.is_some() {
            return refuse("new_secret, iter_time and iterations go with keyslot_state='active'");
        }
        if slot.is_none() && old_secret.is_none() {
            return refuse("keyslot_state='inactive' takes keyslot, old_secret or both");
        }
        let last = if force { LastSlot::Erase } else { LastSlot::Keep };
        Ok(Some(KeyChange::Erase { slot, secret: PySecret::get_some(old_secret)?, last }))
    }
}

/// What `changes`, keyword arguments of `pyimago.amend`, ask for: what is not among them stays as it is.
fn amend_options(changes: &Bound<'_, PyDict>) -> PyResult<(AmendOptions, Option<u64>, KeySlots)> {
    let mut options = AmendOptions::default();
    let (mut size, mut key_slots) = (None, KeySlots::default());
    let mut backing_format = None;
    let mut take = |name: &str, value: &Bound<'_, PyAny>| {
        match name {
            "backing" if value.is_none() => options.backing = Some(BackingChange::Drop),
            "backing" => {
                let name = value.extract::<StrPath>()?.0;
                options.backing = Some(BackingChange::Set(ImplicitReference { name, format: None }));
            }
            "data_file" if value.is_none() => options.data_file = Some(DataFileChange::Drop),
            "data_file" => options.data_file = Some(DataFileChange::Set(value.extract::<StrPath>()?.0)),
            _ if value.is_none() => {}
            "backing_format" => backing_format = Some(value.extract::<String>()?),
            "version" => options.version = Some(value.extract::<QcowVersion>()?.0),
            "lazy_refcounts" => options.lazy_refcounts = Some(value.extract()?),
            "refcount_bits" => options.refcount_bits = Some(small(name, value)?),
            "data_file_raw" => options.data_file_raw = Some(value.extract()?),
            "size" => size = Some(value.extract::<Offset>()?.0),
            _ if key_slots.take(name, value)? => {}
            "cluster_size" | "extended_l2" | "compression_type" | "preallocation" => {
                return Err(PyValueError::new_err(format!(
                    "{name} is chosen when an image is created: convert the image to change it"
                )));
            }
            _ => return Err(PyTypeError::new_err(format!("there is no {name} to amend"))),
        }
        Ok(())
    };
    for (name, value) in changes {
        let name = name.extract::<&str>()?;
        take(name, &value).map_err(|error| of_option(&value, name, error))?;
    }
    options.backing = match (options.backing, backing_format) {
        (backing, None) => backing,
        (None, Some(format)) => Some(BackingChange::Format(format)),
        (Some(BackingChange::Set(backing)), format) => {
            Some(BackingChange::Set(ImplicitReference { format, ..backing }))
        }
        (Some(_), Some(_)) => {
            return Err(PyValueError::new_err("backing_format is given, and no backing"));
        }
    };
    Ok((options, size, key_slots))
}

faces! {
    /// Amend the image at `path`; `changes` has the keyword arguments of `pyimago.amend` that were given.
    amend, amend_awaited: Amend<'py> {
        path: Place,
        format: Option<Format>,
        implicit: PyGate,
        secret: Option<PySecret>,
        force: bool,
        opened_backing: Below,
        opened_data_file: Option<DataFile>,
        progress: Option<Py<PyAny>>,
        changes: Bound<'py, PyDict>,
    }
}

impl Amend<'_> {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Amend {
            path: place,
            format,
            implicit,
            secret,
            force,
            opened_backing,
            opened_data_file,
            progress,
            changes,
        } = self;
        let (header, size, key_slots) = amend_options(&changes)?;
        run_job::<F, _, _, _>(
            py,
            progress,
            move |job| {
                let key = key_slots.change(force)?;
                let mut open = OpenOptions {
                    write: true,
                    format: format.map(|format| format.0),
                    backing: opened_backing.0,
                    secret: PySecret::get_some(secret)?,
                    ..OpenOptions::default()
                };
                open.data_file = DataFile::storage(opened_data_file, open.files())?;
                implicit.pass(|gate| {
                    open.gate = gate.clone();
                    let files = open.files();
                    amend_storage(place.storage(files)?, &Amendment { open, header, size, key }, job)
                })
            },
            |py, ()| Ok(py.None()),
        )
    }
}
