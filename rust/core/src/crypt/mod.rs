//! Cryptography: ciphers over sectors, hashes, secrets, and the header of LUKS 1. Bytes in, bytes out: nothing here reads or writes a storage.
//!
//! Keys, and what they are derived from, are overwritten when they are dropped. The page `docs/luks.md` has layout and limits.

mod antiforensic;
mod cipher;
mod hash;
pub(crate) mod luks;
mod secret;

pub use cipher::{Algorithm, CipherSpec, IvGenerator, Mode};
pub(crate) use cipher::{SECTOR, SectorCipher};
pub use hash::Hash;
pub use luks::{Cost, ITERATIONS_MIN, Options, ROUNDS_MAX, SLOTS, STRIPES, Slot};
pub use secret::Secret;

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Bytes of a key, wiped when they are dropped.
pub(crate) type KeyBytes = Zeroizing<Vec<u8>>;

/// Bytes that nobody can guess, from the operating system.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| Error::io("get random bytes", std::io::Error::other(error)))
}
