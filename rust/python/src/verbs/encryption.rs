//! `encryption=` and what goes with it.

use std::time::Duration;

use imago_core::crypt::{Algorithm, CipherSpec, Cost, Hash, IvGenerator, Mode, Options, Secret};
use imago_core::format::qcow2::create as qcow2;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::Failure;
use crate::secret::PySecret;

/// How a new image is encrypted, under the names of QEMU's options.
#[derive(Default)]
pub(super) struct Encryption {
    secret: Option<PySecret>,
    /// With qcow2's own AES instead of LUKS.
    pub(super) aes: bool,
    cipher_alg: Option<(Algorithm, u32)>,
    cipher_mode: Option<Mode>,
    ivgen_alg: Option<String>,
    ivgen_hash_alg: Option<Hash>,
    hash_alg: Option<Hash>,
    iter_time: Option<u32>,
    iterations: Option<u32>,
}

impl Encryption {
    /// Takes one of `create`'s keyword arguments; `false` if it is none of encryption.
    pub(super) fn take(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        match name {
            "secret" => self.secret = Some(value.extract()?),
            "cipher_alg" => self.cipher_alg = Some(algorithm(value.extract()?)?),
            "cipher_mode" => self.cipher_mode = Some(named(name, value.extract()?, Mode::from_name)?),
            "ivgen_alg" => self.ivgen_alg = Some(value.extract()?),
            "ivgen_hash_alg" => self.ivgen_hash_alg = Some(named(name, value.extract()?, Hash::from_name)?),
            "hash_alg" => self.hash_alg = Some(named(name, value.extract()?, Hash::from_name)?),
            "iter_time" => self.iter_time = Some(super::create::small(name, value)?),
            "iterations" => self.iterations = Some(super::create::small(name, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What a new qcow2 image is encrypted with; `without` is the secret where none was given.
    pub(super) fn of_qcow2(self, without: Option<Secret>) -> Result<qcow2::Encryption, Failure> {
        if self.aes {
            secret(self.secret, without).map(qcow2::Encryption::Aes)
        } else {
            self.luks(without).map(qcow2::Encryption::Luks)
        }
    }

    /// The options of LUKS.
    pub(super) fn luks(self, without: Option<Secret>) -> Result<Options, Failure> {
        let mut options = Options::new(secret(self.secret, without)?);
        let (algorithm, key_bits) = self.cipher_alg.unwrap_or((Algorithm::Aes, 256));
        let iv = match (self.ivgen_alg.as_deref(), self.ivgen_hash_alg) {
            (Some("plain"), _) => IvGenerator::Plain,
            (None | Some("plain64"), None) => IvGenerator::Plain64,
            (Some("essiv"), hash) => IvGenerator::Essiv(hash.unwrap_or_default()),
            (None | Some("plain64"), Some(_)) => {
                return Err(PyValueError::new_err("ivgen_hash_alg goes with ivgen_alg='essiv'").into());
            }
            (Some(other), _) => {
                let text = format!("ivgen_alg is 'plain', 'plain64' or 'essiv', not {other:?}");
                return Err(PyValueError::new_err(text).into());
            }
        };
        options.cipher = CipherSpec { algorithm, key_bits, mode: self.cipher_mode.unwrap_or_default(), iv };
        options.hash = self.hash_alg.unwrap_or_default();
        options.cost = cost(self.iter_time, self.iterations)?.unwrap_or_default();
        Ok(options)
    }
}

fn secret(given: Option<PySecret>, without: Option<Secret>) -> Result<Secret, Failure> {
    match (given, without) {
        (Some(secret), _) => Ok(secret.get()?),
        (None, Some(secret)) => Ok(secret),
        (None, None) => Err(PyValueError::new_err("an encrypted image needs a secret").into()),
    }
}

/// How hard a secret is made to try; at most one of them is given.
pub(super) fn cost(iter_time: Option<u32>, iterations: Option<u32>) -> PyResult<Option<Cost>> {
    match (iter_time, iterations) {
        (Some(_), Some(_)) => Err(PyValueError::new_err("iter_time and iterations exclude each other")),
        (Some(milliseconds), None) => Ok(Some(Cost::Time(Duration::from_millis(milliseconds.into())))),
        (None, Some(iterations)) => Ok(Some(Cost::Iterations(iterations))),
        (None, None) => Ok(None),
    }
}

/// `aes-256` and its like.
fn algorithm(name: &str) -> PyResult<(Algorithm, u32)> {
    let parts = name.rsplit_once('-');
    let found = parts.and_then(|(name, bits)| Some((Algorithm::from_name(name)?, bits.parse().ok()?)));
    found.ok_or_else(|| {
        PyValueError::new_err(format!(
            "cipher_alg is aes, serpent or twofish with -128, -192 or -256, or cast5-128, not {name:?}"
        ))
    })
}

fn named<T>(option: &str, name: &str, find: impl FnOnce(&str) -> Option<T>) -> PyResult<T> {
    find(name).ok_or_else(|| PyValueError::new_err(format!("{option} cannot be {name:?}")))
}
