//! The key slots of an encrypted image, for changes.

use std::path::Path;
use std::sync::Arc;

use super::align::aligned;
use super::probe::probe;
use crate::crypt::{Cost, Secret};
use crate::error::{Error, ErrorKind, Result};
use crate::format::FormatKind;
use crate::format::luks::{LastSlot, Volume};
use crate::format::qcow2::Driver;
use crate::storage::file::File;
use crate::storage::{Storage, StorageOpenOptions};

/// Opens the key slots of the image in the file at `path`, bare LUKS or qcow2 with LUKS inside, to change them; without a `kind`
/// its first bytes decide. Nobody else can have the image open meanwhile.
pub fn open_key_slots(path: impl AsRef<Path>, kind: Option<FormatKind>) -> Result<Volume> {
    let file = File::open_sync(StorageOpenOptions::new().filename(path.as_ref()).write(true))?;
    key_slots(Arc::new(file), kind)
}

/// The same for an image in `storage`.
pub fn key_slots(storage: Arc<dyn Storage>, kind: Option<FormatKind>) -> Result<Volume> {
    let storage = aligned(storage);
    let path = storage.path().map(Path::to_owned);
    let volume = match kind.map_or_else(|| probe(&*storage), Ok)? {
        FormatKind::Raw => None,
        FormatKind::Luks => Some(Volume::open(storage)?),
        FormatKind::Qcow2 => Driver::open(storage, true)?.into_key_slots()?,
    };
    volume.ok_or_else(|| {
        let error = Error::invalid_input("the image has no key slots: it is not encrypted with LUKS");
        match path {
            Some(path) => error.in_file(path),
            None => error,
        }
    })
}

/// A change of the key slots, in the words of QEMU's `amend`.
#[derive(Clone, Debug)]
pub enum KeyChange {
    /// A slot becomes active (`state=active`).
    Add {
        /// What opens it.
        secret: Secret,
        /// Its number, from 0; the first inactive one unless given.
        slot: Option<usize>,
        /// How hard the secret is to try.
        cost: Cost,
    },
    /// Slots become inactive and their key material is overwritten (`state=inactive`).
    Erase {
        /// Only this one; otherwise all that `secret` opens.
        slot: Option<usize>,
        /// What opens them. With a slot's number: nothing is erased unless it opens that one.
        secret: Option<Secret>,
        /// What if none is left.
        last: LastSlot,
    },
}

/// Makes a change of the key slots of the image in `storage`, durably. `secret` opens the image.
///
/// # Errors
/// [`WrongSecret`](ErrorKind::WrongSecret) for a secret that opens nothing, or not the slot that is to be erased; [`InvalidInput`](ErrorKind::InvalidInput) for what [`Volume`] refuses.
/// The image is what it was.
pub fn change(
    storage: Arc<dyn Storage>,
    kind: Option<FormatKind>,
    change: &KeyChange,
    secret: Option<&Secret>,
) -> Result<()> {
    let mut slots = key_slots(storage, kind)?;
    match change {
        KeyChange::Add { secret: new, slot, cost } => {
            let Some(secret) = secret else {
                let text = "a key slot is made with the help of a secret that opens the image: give it";
                return Err(Error::new(ErrorKind::WrongSecret, text));
            };
            let unlocked = slots.unlock(secret)?;
            slots.add_key(&unlocked, new, *slot, *cost).map(drop)
        }
        KeyChange::Erase { slot: Some(slot), secret, last } => {
            if let Some(secret) = secret {
                slots.check_secret(*slot, secret)?;
            }
            slots.erase_slot(*slot, *last)
        }
        KeyChange::Erase { slot: None, secret: Some(secret), last } => {
            slots.erase_key(secret, *last).map(drop)
        }
        KeyChange::Erase { slot: None, secret: None, .. } => Err(Error::invalid_input(
            "to erase key slots give the number of one, or the secret that opens them",
        )),
    }
}
