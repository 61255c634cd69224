//! The splitter of LUKS (specification 1.2.3, section 2.4): a key becomes many stripes, and each part of the key needs
//! the same part of every stripe.

use super::hash::Hash;
use super::{KeyBytes, fill_random};
use crate::error::Result;

/// `key` as `stripes` stripes of its length.
pub(super) fn split(hash: Hash, key: &[u8], stripes: usize) -> Result<KeyBytes> {
    let mut material = KeyBytes::new(vec![0; key.len() * stripes]);
    let (random, last) = material.split_at_mut(key.len() * (stripes - 1));
    fill_random(random)?;
    let mixed = mix(hash, random, key.len());
    for (byte, (key, mixed)) in last.iter_mut().zip(key.iter().zip(mixed.iter())) {
        *byte = key ^ mixed;
    }
    Ok(material)
}

/// The key of `len` bytes that was split into `material`.
pub(super) fn merge(hash: Hash, material: &[u8], len: usize) -> KeyBytes {
    let (stripes, last) = material.split_at(material.len() - len);
    let mut key = mix(hash, stripes, len);
    for (key, byte) in key.iter_mut().zip(last) {
        *key ^= byte;
    }
    key
}

/// All of `stripes`, each of `len` bytes, diffused into one.
fn mix(hash: Hash, stripes: &[u8], len: usize) -> KeyBytes {
    let mut mixed = KeyBytes::new(vec![0; len]);
    for stripe in stripes.chunks_exact(len) {
        for (mixed, byte) in mixed.iter_mut().zip(stripe) {
            *mixed ^= byte;
        }
        hash.diffuse(&mut mixed);
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_bit_loses_a_part_of_the_key() {
        let key: Vec<u8> = (0..64).collect();
        for hash in Hash::ALL {
            let mut material = split(hash, &key, 10).unwrap();
            assert_eq!(*merge(hash, &material, 64), key);
            material[100] ^= 1;
            // Byte 36 of the second stripe: what one digest covers of the key, or the end of it.
            let lost = merge(hash, &material, 64);
            let part = 36 / hash.digest_len() * hash.digest_len();
            let part = part..64.min(part + hash.digest_len());
            assert!(
                lost[part.clone()].iter().zip(&key[part.clone()]).filter(|(a, b)| a == b).count() < 8,
                "{hash:?}"
            );
            assert_eq!(lost[..part.start], key[..part.start], "{hash:?}");
            assert_eq!(lost[part.end..], key[part.end..], "{hash:?}");
        }
    }
}
