//! The hashes that LUKS headers name.

use hmac::{EagerHash, Hmac, KeyInit};
use md5::digest::{Digest, FixedOutput, Update};
use zeroize::Zeroize;

use super::KeyBytes;
use crate::error::Result;
use crate::interrupt;

/// Iterations of PBKDF2 between two questions whether the key is still wanted: below a millisecond.
const UNASKED: u32 = 1 << 10;

/// A hash. All that QEMU takes for LUKS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Hash {
    Md5,
    Sha1,
    Sha224,
    #[default]
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
    Sm3,
}

/// `$body` with the type `$H` of a hash.
macro_rules! with_hash {
    ($hash:expr, $H:ident => $body:expr) => {
        match $hash {
            Hash::Md5 => with_hash!(@ md5::Md5, $H, $body),
            Hash::Sha1 => with_hash!(@ sha1::Sha1, $H, $body),
            Hash::Sha224 => with_hash!(@ sha2::Sha224, $H, $body),
            Hash::Sha256 => with_hash!(@ sha2::Sha256, $H, $body),
            Hash::Sha384 => with_hash!(@ sha2::Sha384, $H, $body),
            Hash::Sha512 => with_hash!(@ sha2::Sha512, $H, $body),
            Hash::Ripemd160 => with_hash!(@ ripemd::Ripemd160, $H, $body),
            Hash::Sm3 => with_hash!(@ sm3::Sm3, $H, $body),
        }
    };
    (@ $type:ty, $H:ident, $body:expr) => {{
        type $H = $type;
        $body
    }};
}

impl Hash {
    /// All of them.
    pub const ALL: [Hash; 8] = [
        Hash::Md5,
        Hash::Sha1,
        Hash::Sha224,
        Hash::Sha256,
        Hash::Sha384,
        Hash::Sha512,
        Hash::Ripemd160,
        Hash::Sm3,
    ];

    /// The name in headers, which is QEMU's too.
    pub fn name(self) -> &'static str {
        match self {
            Hash::Md5 => "md5",
            Hash::Sha1 => "sha1",
            Hash::Sha224 => "sha224",
            Hash::Sha256 => "sha256",
            Hash::Sha384 => "sha384",
            Hash::Sha512 => "sha512",
            Hash::Ripemd160 => "ripemd160",
            Hash::Sm3 => "sm3",
        }
    }

    /// The hash of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// Bytes of a digest.
    pub(super) fn digest_len(self) -> usize {
        with_hash!(self, H => <H as Digest>::output_size())
    }

    /// The digest of `bytes`.
    pub(super) fn digest(self, bytes: &[u8]) -> KeyBytes {
        with_hash!(self, H => KeyBytes::new(H::digest(bytes).to_vec()))
    }

    /// Diffuses `bytes` as LUKS does: each piece as long as a digest becomes the digest of its number and itself, as far as it goes.
    pub(super) fn diffuse(self, bytes: &mut [u8]) {
        with_hash!(self, H => {
            for (number, piece) in (0_u32..).zip(bytes.chunks_mut(self.digest_len())) {
                let digest = H::new().chain_update(number.to_be_bytes()).chain_update(&*piece).finalize();
                piece.copy_from_slice(&digest[..piece.len()]);
            }
        });
    }

    /// Fills `key` with PBKDF2 over HMAC of this hash (RFC 8018, 5.2). It takes as long as the iterations want, and ends when it is not wanted
    /// any more.
    pub(super) fn derive(self, secret: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) -> Result<()> {
        with_hash!(self, H => pbkdf2::<H>(secret, salt, iterations, key))
    }

    /// Rounds of HMAC for `len` bytes of key: each digest's worth of it takes all iterations.
    pub(super) fn rounds(self, iterations: u32, len: usize) -> u64 {
        u64::from(iterations) * len.div_ceil(self.digest_len()) as u64
    }
}

/// PBKDF2 over HMAC, as the `pbkdf2` crate has it, but that it can be stopped.
fn pbkdf2<H: EagerHash>(secret: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) -> Result<()> {
    let keyed = Hmac::<H>::new_from_slice(secret).expect("HMAC takes keys of any length");
    for (number, block) in (1_u32..).zip(key.chunks_mut(keyed_len(&keyed))) {
        let mut last = {
            let mut first = keyed.clone();
            Update::update(&mut first, salt);
            Update::update(&mut first, &number.to_be_bytes());
            first.finalize_fixed()
        };
        block.copy_from_slice(&last[..block.len()]);
        for iteration in 1..iterations {
            if iteration.is_multiple_of(UNASKED) {
                interrupt::check()?;
            }
            let mut next = keyed.clone();
            Update::update(&mut next, &last);
            last = next.finalize_fixed();
            block.iter_mut().zip(&last).for_each(|(to, from)| *to ^= from);
        }
        last.as_mut_slice().zeroize();
    }
    Ok(())
}

/// Bytes that a keyed hash makes.
fn keyed_len<P: FixedOutput>(_: &P) -> usize {
    P::output_size()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for hash in Hash::ALL {
            assert_eq!(Hash::from_name(hash.name()), Some(hash));
            assert_eq!(hash.digest(b"abc").len(), hash.digest_len());
        }
        assert_eq!(Hash::from_name("SHA256"), None);
    }

    #[test]
    fn keys_are_those_of_rfc_6070() {
        let mut key = [0; 20];
        Hash::Sha1.derive(b"password", b"salt", 2, &mut key).unwrap();
        assert_eq!(key[..6], [0xea, 0x6c, 0x01, 0x4d, 0xc7, 0x2d]);
        assert_eq!(Hash::Sha1.rounds(1000, 64), 4000);
    }

    #[test]
    fn keys_are_those_of_the_library() {
        for (secret, iterations, len) in [(&b"s"[..], 1, 64), (&[7; 300], 2000, 33), (b"", 1025, 20)] {
            let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
            Hash::Sha256.derive(secret, b"some salt", iterations, &mut ours).unwrap();
            ::pbkdf2::pbkdf2_hmac::<sha2::Sha256>(secret, b"some salt", iterations, &mut theirs);
            assert_eq!(ours, theirs);
            Hash::Sha512.derive(secret, b"some salt", iterations, &mut ours).unwrap();
            ::pbkdf2::pbkdf2_hmac::<sha2::Sha512>(secret, b"some salt", iterations, &mut theirs);
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn a_key_that_is_not_wanted_any_more_is_not_derived() {
        let derive = || Hash::Sha256.derive(b"secret", b"salt", u32::MAX, &mut [0; 64]);
        let error = interrupt::while_wanted(|| false, derive).unwrap_err();
        assert_eq!(error.os_error(), None);
        assert_eq!(error.kind(), crate::ErrorKind::Io);
    }
}
