//! Cryptography: ciphers over sectors, hashes, secrets, and the header of LUKS 1. Bytes in, bytes out: nothing here reads or writes a storage.
//!
//! Keys, and what they are derived from, are overwritten when they are dropped. The page `docs/luks.md` has layout and limits.

mod antiforensic;
mod cipher;
mod hash;
pub(crate) mod luks;
mod secret;

pub(crate) use cipher::SECTOR;
pub use cipher::{Algorithm, CipherSpec, IvGenerator, Mode, SectorCipher};
pub use hash::Hash;
pub use luks::{Cost, ITERATIONS_MIN, Options, ROUNDS_MAX, SLOTS, STRIPES, Slot};
pub use secret::Secret;

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Bytes of a key, wiped when they are dropped.
pub(crate) type KeyBytes = Zeroizing<Vec<u8>>;

/// The cipher of qcow2's own AES: the first 16 bytes of the secret are its key, and zeroes follow a shorter one.
pub(crate) fn qcow2_aes(secret: &Secret) -> Result<SectorCipher> {
    let (algorithm, mode, iv) = (Algorithm::Aes, Mode::Cbc, IvGenerator::Plain64);
    let spec = CipherSpec { algorithm, key_bits: 128, mode, iv };
    let mut key = Zeroizing::new([0; 16]);
    let len = secret.bytes().len().min(key.len());
    key[..len].copy_from_slice(&secret.bytes()[..len]);
    spec.with_key(&*key)
}

/// Bytes that nobody can guess, from the operating system.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| Error::io("get random bytes", std::io::Error::other(error)))
}
