//! Ciphers over sectors of 512 bytes: each sector is encrypted by itself, under an IV that its number gives.

use std::fmt;

use cipher::array::Array;
use cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use super::hash::Hash;
use crate::error::{Error, Result};

/// Bytes that are encrypted as one: the unit that IVs count.
pub(crate) const SECTOR: usize = 512;

/// Sectors whose tweaks are made at once (XTS): enough blocks to keep a processor's AES units busy, few enough for its first cache.
const BATCH: usize = 8;

/// Bytes of the largest block.
const MAX_BLOCK: usize = 16;

/// A block cipher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// AES: the processor's own where it has it.
    #[default]
    Aes,
    /// Serpent.
    Serpent,
    /// Twofish.
    Twofish,
    /// CAST5: blocks of 8 bytes, keys of 128 bits.
    Cast5,
}

/// How blocks are chained within a sector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Each block by itself: equal blocks stay equal.
    Ecb,
    /// Cipher block chaining.
    Cbc,
    /// Counter mode: rewriting a sector uses the same key stream again.
    Ctr,
    /// XEX with two keys (IEEE 1619), made for disks.
    #[default]
    Xts,
}

/// How a sector's number becomes its IV.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IvGenerator {
    /// The low 32 bits of the number, little-endian: the same again after 2 TiB.
    Plain,
    /// The number in 64 bits, little-endian.
    #[default]
    Plain64,
    /// The same, encrypted with a key that is this hash of the key.
    Essiv(Hash),
}

/// How the bytes of a disk are encrypted, all but the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CipherSpec {
    /// The block cipher.
    pub algorithm: Algorithm,
    /// Bits of the block cipher's key: 128, 192 or 256. XTS has two such keys.
    pub key_bits: u32,
    /// How blocks are chained.
    pub mode: Mode,
    /// Where IVs come from.
    pub iv: IvGenerator,
}

impl Default for CipherSpec {
    /// What `qemu-img create` takes: aes-256, xts, plain64.
    fn default() -> Self {
        CipherSpec {
            algorithm: Algorithm::default(),
            key_bits: 256,
            mode: Mode::default(),
            iv: IvGenerator::default(),
        }
    }
}

impl Algorithm {
    const ALL: [Algorithm; 4] = [Algorithm::Aes, Algorithm::Serpent, Algorithm::Twofish, Algorithm::Cast5];

    /// The name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Aes => "aes",
            Algorithm::Serpent => "serpent",
            Algorithm::Twofish => "twofish",
            Algorithm::Cast5 => "cast5",
        }
    }

    /// The algorithm of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn has_key_bytes(self, bytes: usize) -> bool {
        match self {
            Algorithm::Cast5 => bytes == 16,
            _ => [16, 24, 32].contains(&bytes),
        }
    }
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Ecb, Mode::Cbc, Mode::Ctr, Mode::Xts];

    /// The name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Ecb => "ecb",
            Mode::Cbc => "cbc",
            Mode::Ctr => "ctr",
            Mode::Xts => "xts",
        }
    }

    /// The mode of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

impl IvGenerator {
    /// The name in headers, without the hash.
    pub fn name(self) -> &'static str {
        match self {
            IvGenerator::Plain => "plain",
            IvGenerator::Plain64 => "plain64",
            IvGenerator::Essiv(_) => "essiv",
        }
    }
}

impl CipherSpec {
    /// Bytes of the whole key.
    pub fn key_len(self) -> usize {
        let bytes = self.key_bits as usize / 8;
        if self.mode == Mode::Xts { 2 * bytes } else { bytes }
    }

    /// Refuses what no cipher can do.
    pub(crate) fn check(self) -> Result<()> {
        let CipherSpec { algorithm, key_bits, mode, iv } = self;
        let name = algorithm.name();
        if !key_bits.is_multiple_of(8) || !algorithm.has_key_bytes(key_bits as usize / 8) {
            return Err(Error::unsupported(format!("{name} has no keys of {key_bits} bits")));
        }
        if algorithm == Algorithm::Cast5 && mode == Mode::Xts {
            return Err(Error::unsupported("xts needs a cipher with blocks of 16 bytes, and cast5 has 8"));
        }
        if let IvGenerator::Essiv(hash) = iv
            && !algorithm.has_key_bytes(hash.digest_len())
        {
            return Err(Error::unsupported(format!(
                "essiv takes the {} bytes of a {} for the cipher's key, and {name} has no such keys",
                hash.digest_len(),
                hash.name()
            )));
        }
        Ok(())
    }

    /// The cipher with this key, which has [`key_len`](Self::key_len) bytes.
    pub(crate) fn with_key(self, key: &[u8]) -> Result<SectorCipher> {
        self.check()?;
        if key.len() != self.key_len() {
            return Err(Error::invalid_input(format!("a key of {} bytes is needed", self.key_len())));
        }
        let iv = match self.iv {
            IvGenerator::Plain => Iv::Plain,
            IvGenerator::Plain64 => Iv::Plain64,
            IvGenerator::Essiv(hash) => {
                // One block is a sector of one block in this mode, whose IV nobody looks at.
                Iv::Essiv(self.sectors(Mode::Ecb, &hash.digest(key), Iv::Plain))
            }
        };
        Ok(SectorCipher(self.sectors(self.mode, key, iv)))
    }

    fn sectors(self, mode: Mode, key: &[u8], iv: Iv) -> Box<dyn Sectors> {
        let bytes = if mode == Mode::Xts { key.len() / 2 } else { key.len() };
        match (self.algorithm, bytes) {
            (Algorithm::Aes, 16) => Keyed::<aes::Aes128>::boxed(mode, key, iv),
            (Algorithm::Aes, 24) => Keyed::<aes::Aes192>::boxed(mode, key, iv),
            (Algorithm::Aes, _) => Keyed::<aes::Aes256>::boxed(mode, key, iv),
            (Algorithm::Serpent, _) => Keyed::<serpent::Serpent>::boxed(mode, key, iv),
            (Algorithm::Twofish, _) => Keyed::<twofish::Twofish>::boxed(mode, key, iv),
            (Algorithm::Cast5, _) => Keyed::<cast5::Cast5>::boxed(mode, key, iv),
        }
    }
}

/// A cipher with its key, over sectors.
pub struct SectorCipher(Box<dyn Sectors>);

impl SectorCipher {
    /// Encrypts `bytes` in place; they start at sector number `first`. The last sector may be part of one, in whole blocks.
    pub(crate) fn encrypt(&self, first: u64, bytes: &mut [u8]) {
        self.0.run(Direction::Encrypt, first, bytes);
    }

    /// Decrypts them.
    pub(crate) fn decrypt(&self, first: u64, bytes: &mut [u8]) {
        self.0.run(Direction::Decrypt, first, bytes);
    }
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SectorCipher(..)")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

trait Sectors: Send + Sync {
    fn run(&self, direction: Direction, first: u64, bytes: &mut [u8]);
}

enum Iv {
    Plain,
    Plain64,
    Essiv(Box<dyn Sectors>),
}

impl Iv {
    fn of(&self, sector: u64, block: usize) -> [u8; MAX_BLOCK] {
        let mut iv = [0; MAX_BLOCK];
        match self {
            Iv::Plain => iv[..4].copy_from_slice(&(sector as u32).to_le_bytes()),
            Iv::Plain64 => iv[..8].copy_from_slice(&sector.to_le_bytes()),
            Iv::Essiv(cipher) => {
                iv[..8].copy_from_slice(&sector.to_le_bytes());
                cipher.run(Direction::Encrypt, 0, &mut iv[..block]);
            }
        }
        iv
    }
}

/// A cipher in one of the modes. A key schedule is wiped when it is dropped.
struct Keyed<C> {
    mode: Mode,
    cipher: C,
    /// The second cipher of XTS.
    tweak: Option<C>,
    iv: Iv,
}

impl<C> Keyed<C>
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync + 'static,
{
    fn boxed(mode: Mode, key: &[u8], iv: Iv) -> Box<dyn Sectors> {
        let new = |key: &[u8]| C::new_from_slice(key).expect("the length was checked");
        let (key, tweak) = if mode == Mode::Xts { key.split_at(key.len() / 2) } else { (key, [].as_slice()) };
        Box::new(Keyed { mode, cipher: new(key), tweak: (!tweak.is_empty()).then(|| new(tweak)), iv })
    }

    fn block(iv: [u8; MAX_BLOCK]) -> Block<C> {
        Array::from_fn(|at| iv[at])
    }

    fn blocks(bytes: &mut [u8]) -> &mut [Block<C>] {
        let (blocks, rest) = Array::slice_as_chunks_mut(bytes);
        debug_assert!(rest.is_empty(), "sectors are whole blocks");
        blocks
    }

    fn ecb(&self, direction: Direction, bytes: &mut [u8]) {
        match direction {
            Direction::Encrypt => self.cipher.encrypt_blocks(Self::blocks(bytes)),
            Direction::Decrypt => self.cipher.decrypt_blocks(Self::blocks(bytes)),
        }
    }

    fn cbc(&self, direction: Direction, iv: &Block<C>, sector: &mut [u8]) {
        if direction == Direction::Encrypt {
            let mut before = iv.clone();
            for block in Self::blocks(sector) {
                xor(block, &before);
                self.cipher.encrypt_block(block);
                before.clone_from(block);
            }
            return;
        }
        let mut encrypted = [0; SECTOR];
        let encrypted = &mut encrypted[..sector.len()];
        encrypted.copy_from_slice(sector);
        self.ecb(direction, sector);
        let first = iv.len();
        xor(&mut sector[..first], iv);
        xor(&mut sector[first..], encrypted);
    }

    fn ctr(&self, iv: Block<C>, sector: &mut [u8]) {
        let mut counter = iv;
        let mut stream = [0; SECTOR];
        let stream = &mut stream[..sector.len()];
        for block in Self::blocks(stream) {
            block.clone_from(&counter);
            for byte in counter.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        }
        self.ecb(Direction::Encrypt, stream);
        xor(sector, stream);
    }

    fn xts(&self, tweak: &C, direction: Direction, first: u64, bytes: &mut [u8]) {
        for (batch, first) in bytes.chunks_mut(BATCH * SECTOR).zip((first..).step_by(BATCH)) {
            let mut ivs: [Block<C>; BATCH] =
                std::array::from_fn(|at| Self::block(self.iv.of(first.wrapping_add(at as u64), MAX_BLOCK)));
            tweak.encrypt_blocks(&mut ivs);
            let mut tweaks = [0; BATCH * SECTOR / MAX_BLOCK];
            for (tweaks, iv) in tweaks.chunks_exact_mut(SECTOR / MAX_BLOCK).zip(&ivs) {
                let mut next = u128::from_le_bytes(std::array::from_fn(|at| iv[at]));
                for tweak in tweaks {
                    *tweak = next;
                    // Times x in GF(2^128), whose polynomial is x^128 + x^7 + x^2 + x + 1.
                    next = (next << 1) ^ ((next >> 127) * 0x87);
                }
            }
            xor_words(batch, &tweaks);
            self.ecb(direction, batch);
            xor_words(batch, &tweaks);
        }
    }
}

impl<C> Sectors for Keyed<C>
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync + 'static,
{
    fn run(&self, direction: Direction, first: u64, bytes: &mut [u8]) {
        if let Some(tweak) = &self.tweak {
            return self.xts(tweak, direction, first, bytes);
        }
        if self.mode == Mode::Ecb {
            return self.ecb(direction, bytes);
        }
        for (sector, number) in bytes.chunks_mut(SECTOR).zip(first..) {
            let iv = Self::block(self.iv.of(number, C::block_size()));
            if self.mode == Mode::Ctr {
                self.ctr(iv, sector);
            } else {
                self.cbc(direction, &iv, sector);
            }
        }
    }
}

fn xor(bytes: &mut [u8], with: &[u8]) {
    for (byte, with) in bytes.iter_mut().zip(with) {
        *byte ^= with;
    }
}

fn xor_words(bytes: &mut [u8], with: &[u128]) {
    for (word, with) in bytes.as_chunks_mut::<MAX_BLOCK>().0.iter_mut().zip(with) {
        *word = (u128::from_le_bytes(*word) ^ with).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + 3) as u8).collect()
    }

    fn possible() -> impl Iterator<Item = CipherSpec> {
        let ivs = [IvGenerator::Plain, IvGenerator::Plain64]
            .into_iter()
            .chain(Hash::ALL.into_iter().map(IvGenerator::Essiv));
        let ivs: Vec<_> = ivs.collect();
        Algorithm::ALL
            .into_iter()
            .flat_map(|algorithm| [128, 192, 256].map(|key_bits| (algorithm, key_bits)))
            .flat_map(|(algorithm, key_bits)| Mode::ALL.map(|mode| (algorithm, key_bits, mode)))
            .flat_map(move |(algorithm, key_bits, mode)| {
                ivs.clone().into_iter().map(move |iv| CipherSpec { algorithm, key_bits, mode, iv })
            })
            .filter(|spec| spec.check().is_ok())
    }

    #[test]
    fn what_was_encrypted_is_decrypted_and_sectors_stand_alone() {
        let mut seen = 0;
        for spec in possible() {
            let cipher = spec.with_key(&key(spec.key_len())).unwrap();
            let plain: Vec<u8> = (0..20 * SECTOR).map(|at| (at % 509) as u8).collect();
            let mut bytes = plain.clone();
            cipher.encrypt(7, &mut bytes);
            assert_ne!(bytes, plain, "{spec:?}");
            let mut part = bytes[9 * SECTOR..11 * SECTOR].to_vec();
            cipher.decrypt(16, &mut part);
            assert_eq!(part, plain[9 * SECTOR..11 * SECTOR], "{spec:?}");
            cipher.decrypt(7, &mut bytes);
            assert_eq!(bytes, plain, "{spec:?}");
            seen += 1;
        }
        // aes, serpent and twofish: 3 keys, 4 modes, 5 IVs (essiv with md5, sha256 and sm3 among them); cast5: 3 modes, 3 IVs.
        assert_eq!(seen, 3 * 3 * 4 * 5 + 3 * 3);
    }

    #[test]
    fn equal_sectors_differ_unless_the_mode_says_otherwise() {
        for spec in possible() {
            let cipher = spec.with_key(&key(spec.key_len())).unwrap();
            let mut bytes = vec![0x55; 2 * SECTOR];
            cipher.encrypt(0, &mut bytes);
            assert_eq!(bytes[..SECTOR] == bytes[SECTOR..], spec.mode == Mode::Ecb, "{spec:?}");
        }
    }

    #[test]
    fn xts_is_that_of_ieee_1619() {
        // Vector 4: 256 bits of key, sector 0, the bytes 0 to 255 twice.
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
        };
        let key = hex("2718281828459045235360287471352631415926535897932384626433832795");
        let spec = CipherSpec { key_bits: 128, ..Default::default() };
        let mut bytes: Vec<u8> = (0..SECTOR).map(|at| at as u8).collect();
        spec.with_key(&key).unwrap().encrypt(0, &mut bytes);
        assert_eq!(bytes[..16], hex("27a7479befa1d476489f308cd4cfa6e2"));
    }

    #[test]
    fn impossible_combinations_are_refused_by_name() {
        let default = CipherSpec::default();
        for (spec, message) in [
            (CipherSpec { key_bits: 512, ..default }, "512 bits"),
            (CipherSpec { algorithm: Algorithm::Cast5, key_bits: 128, ..default }, "cast5 has 8"),
            (CipherSpec { iv: IvGenerator::Essiv(Hash::Sha1), ..default }, "20 bytes of a sha1"),
        ] {
            let error = spec.with_key(&[0; 64]).unwrap_err();
            assert!(error.message().contains(message), "{error}");
        }
        assert!(default.with_key(&[0; 32]).is_err());
    }
}
