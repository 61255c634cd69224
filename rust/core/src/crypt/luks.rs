//! The header of LUKS 1: unchecked bytes become a [`Header`] whose bounds are all settled; key slots are opened and made here, on bytes.
//!
//! Specification: "LUKS On-Disk Format Specification" 1.2.3. All numbers are big-endian, offsets count sectors of 512 bytes.

use std::mem::offset_of;
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    Algorithm, CipherSpec, Hash, IvGenerator, KeyBytes, Mode, SECTOR, Secret, SectorCipher, antiforensic,
    fill_random,
};
use crate::error::{Error, ErrorKind, Result};

/// Key slots of a header.
pub const SLOTS: usize = 8;
/// Stripes that a key is split into. The specification leaves the number open; QEMU and cryptsetup know no other.
pub const STRIPES: usize = 4000;
/// Rounds of HMAC that opening may take with all active slots tried: 2^28, a minute or so. cryptsetup and QEMU take two seconds
/// for a slot, which is some 10 million.
pub const ROUNDS_MAX: u64 = 1 << 28;
/// Iterations at least, as in QEMU and cryptsetup.
pub const ITERATIONS_MIN: u32 = 1000;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const DIGEST_LEN: usize = 20;
/// Bytes before the first slot's key material, and what the length of each slot's is rounded up to.
const ALIGNMENT: usize = 4096;

/// The header's structure. It starts the image, or the place that a qcow2 header names.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    /// `LUKS` and 0xba 0xbe.
    magic: [u8; 6],
    /// 1.
    version: U16,
    /// The cipher's name, filled up with NULs, as all names.
    cipher: [u8; 32],
    /// Mode, `-`, IV generator, and for essiv `:` and a hash.
    mode: [u8; 32],
    /// The hash of key derivation, key splitting and the digest.
    hash: [u8; 32],
    /// Where the encrypted disk starts. Of no meaning inside a qcow2 image.
    payload_offset: U32,
    /// Bytes of the master key.
    key_len: U32,
    /// PBKDF2 of the master key.
    digest: [u8; DIGEST_LEN],
    /// Its salt,
    digest_salt: [u8; 32],
    /// and its iterations.
    digest_iterations: U32,
    /// A UUID as text.
    uuid: [u8; 40],
    /// The key slots.
    slots: [RawSlot; SLOTS],
}

/// One key slot. Number 6 lies across the boundary of a sector.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawSlot {
    /// 0x00ac71f3: there is a key in it; 0x0000dead: there is none.
    active: U32,
    /// Iterations of the secret's PBKDF2,
    iterations: U32,
    /// and its salt.
    salt: [u8; 32],
    /// Where its key material is.
    material_offset: U32,
    /// Stripes of the key material.
    stripes: U32,
}

/// Bytes of the header.
pub(crate) const HEADER_LEN: usize = size_of::<RawHeader>();

const _: () = {
    assert!(HEADER_LEN == 592);
    assert!(size_of::<RawSlot>() == 48);
    assert!(offset_of!(RawHeader, slots) == 208);
};

/// How much work it shall be to try a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// As many iterations as this machine does in this time.
    Time(Duration),
    /// So many.
    Iterations(u32),
}

impl Default for Cost {
    /// 2 seconds, as `qemu-img create`.
    fn default() -> Self {
        Cost::Time(Duration::from_secs(2))
    }
}

/// What a new LUKS header shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// What opens the first key slot.
    pub secret: Secret,
    /// How the disk is encrypted.
    pub cipher: CipherSpec,
    /// The hash of key derivation, key splitting and the master key's digest.
    pub hash: Hash,
    /// How hard the secret is to try. The master key's digest takes an eighth of that.
    pub cost: Cost,
}

impl Options {
    /// What `qemu-img create` takes where nothing is said.
    pub fn new(secret: Secret) -> Self {
        Options { secret, cipher: CipherSpec::default(), hash: Hash::default(), cost: Cost::default() }
    }
}

/// What is behind a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    /// An image of so many bytes, header included, with the encrypted disk behind the key slots.
    Image(u64),
    /// So many bytes of another image, header included, for key slots only.
    Inside(u64),
}

/// The key that the disk is encrypted with, checked against its digest.
pub(crate) struct MasterKey(KeyBytes);

/// A header, checked: names are known, and the key material lies behind it and before the end of its area.
#[derive(Clone)]
pub(crate) struct Header {
    raw: RawHeader,
    pub(crate) cipher: CipherSpec,
    pub(crate) hash: Hash,
}

/// One slot as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whether a secret opens it.
    pub active: bool,
    /// Iterations of PBKDF2, if it is active.
    pub iterations: u32,
    /// Stripes of its key material, if it is active.
    pub stripes: u32,
    /// Where its key material starts, in bytes from the header on.
    pub material_offset: u64,
}

/// What has to be written for a slot that gets a key.
pub(crate) struct NewSlot {
    /// Its entry in the header, active.
    pub(crate) entry: RawSlot,
    /// Its key material, encrypted.
    pub(crate) material: Vec<u8>,
}

impl Header {
    /// Checks the header in `bytes`.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN], area: Area) -> Result<Self> {
        let raw = RawHeader::read_from_bytes(bytes).expect("the array has the structure's size");
        if raw.magic != MAGIC {
            return Err(Error::invalid_image(
                "this is no LUKS header: it does not start with \"LUKS\\xba\\xbe\"",
            ));
        }
        if raw.version.get() != 1 {
            let version = raw.version.get();
            return Err(Error::unsupported(format!("LUKS version {version} is not known, only 1 is")));
        }
        let cipher = cipher_spec(&raw)?;
        cipher.check()?;
        if raw.key_len.get() as usize != cipher.key_len() {
            return Err(Error::invalid_image(format!("the master key has {} bytes", raw.key_len.get())));
        }
        let name = text(&raw.hash)?;
        let hash = Hash::from_name(name).ok_or_else(|| unknown("hash", name))?;
        let header = Header { raw, cipher, hash };
        header.check_slots(match area {
            Area::Inside(len) => len,
            Area::Image(len) => header.check_payload(len)?,
        })?;
        header.check_work()?;
        Ok(header)
    }

    /// Where the encrypted disk starts in an image of `len` bytes.
    fn check_payload(&self, len: u64) -> Result<u64> {
        let offset = self.payload_offset();
        let at = offset_of!(RawHeader, payload_offset) as u64;
        if offset == 0 {
            return Err(Error::unsupported("the header is detached: its data is in another file").at(at));
        }
        if offset > len {
            return Err(Error::invalid_image(format!(
                "the data starts at {offset:#x}, but the file ends at {len:#x}; it was cut off, get a whole copy of it"
            ))
            .at(at));
        }
        Ok(offset)
    }

    fn check_slots(&self, area: u64) -> Result<()> {
        let refuse = |number: usize, problem: String| {
            Err(Error::invalid_image(format!("key slot {number}: {problem}")).at(slot_offset(number) as u64))
        };
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (number, slot) in self.raw.slots.iter().enumerate() {
            let (state, stripes) = (slot.active.get(), slot.stripes.get());
            if state != ENABLED && state != DISABLED {
                return refuse(number, format!("it is neither active nor inactive but {state:#010x}"));
            }
            if stripes as usize != STRIPES {
                return refuse(
                    number,
                    format!("its key has {stripes} stripes; {STRIPES} are what everybody uses"),
                );
            }
            let start = u64::from(slot.material_offset.get()) * SECTOR as u64;
            let end = start + self.material_len() as u64;
            if start < HEADER_LEN as u64 || end > area {
                return refuse(
                    number,
                    format!("its key material at {start:#x} is not between header and data"),
                );
            }
            if ranges.iter().any(|&(from, to)| start < to && from < end) {
                return refuse(number, "its key material overlaps another slot's".to_owned());
            }
            ranges.push((start, end));
        }
        Ok(())
    }

    /// Refuses a header that would keep a processor busy for too long.
    pub(crate) fn check_work(&self) -> Result<()> {
        let active = self.slots().filter(|slot| slot.active);
        let digest = self.hash.rounds(self.raw.digest_iterations.get(), DIGEST_LEN);
        let rounds: u64 =
            active.map(|slot| self.hash.rounds(slot.iterations, self.cipher.key_len()) + digest).sum();
        if rounds > ROUNDS_MAX {
            return Err(Error::unsupported(format!(
                "trying a secret on all key slots would take {rounds} rounds of HMAC, more than the {ROUNDS_MAX} that are \
                 done for an image"
            )));
        }
        if self.raw.digest_iterations.get() == 0
            || self.slots().any(|slot| slot.active && slot.iterations == 0)
        {
            return Err(Error::invalid_image("a key is derived with no iterations"));
        }
        Ok(())
    }

    /// Refuses options that no header can have, before anything is done.
    pub(crate) fn check_options(options: &Options) -> Result<()> {
        let cipher = options.cipher;
        cipher.check().map_err(|error| Error::invalid_input(error.message()))?;
        if cipher.mode != Mode::Xts && cipher.key_bits == 192 {
            return Err(Error::invalid_input(
                "192 bits of key go with xts only: key material would end within a sector, which QEMU cannot read",
            ));
        }
        check_new_key(&options.secret, options.cost)
    }

    /// A new header with one active slot, and all of its area: header and key material, up to where data starts.
    pub(crate) fn create(options: &Options) -> Result<(Self, MasterKey, Vec<u8>)> {
        let Options { secret, cipher, hash, cost } = options;
        Self::check_options(options)?;
        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.version = 1.into();
        set_text(&mut raw.cipher, cipher.algorithm.name());
        let iv = match cipher.iv {
            IvGenerator::Essiv(hash) => format!("{}-essiv:{}", cipher.mode.name(), hash.name()),
            iv => format!("{}-{}", cipher.mode.name(), iv.name()),
        };
        set_text(&mut raw.mode, &iv);
        set_text(&mut raw.hash, hash.name());
        raw.key_len = (cipher.key_len() as u32).into();
        set_text(&mut raw.uuid, &uuid()?);
        let area = material_area(cipher.key_len());
        for (number, slot) in raw.slots.iter_mut().enumerate() {
            slot.active = DISABLED.into();
            slot.stripes = (STRIPES as u32).into();
            slot.material_offset = (((ALIGNMENT + number * area) / SECTOR) as u32).into();
        }
        let payload = area_len(cipher.key_len());
        raw.payload_offset = ((payload / SECTOR as u64) as u32).into();

        let mut key = KeyBytes::new(vec![0; cipher.key_len()]);
        fill_random(&mut key)?;
        fill_random(&mut raw.digest_salt)?;
        let digest_iterations = match *cost {
            Cost::Time(time) => iterations_in(*hash, time / 8, DIGEST_LEN)?,
            Cost::Iterations(iterations) => (iterations / 8).max(ITERATIONS_MIN),
        };
        raw.digest_iterations = digest_iterations.into();

        let key = MasterKey(key);
        let mut header = Header { raw, cipher: *cipher, hash: *hash };
        // First the slot, which looks at the work that both are.
        let slot = header.new_slot(0, &key, secret, *cost)?;
        header.set_slot(0, slot.entry);
        hash.derive(&key.0, &raw.digest_salt, digest_iterations, &mut header.raw.digest)?;
        let mut bytes = vec![0; payload as usize];
        bytes[..HEADER_LEN].copy_from_slice(header.raw.as_bytes());
        bytes[ALIGNMENT..ALIGNMENT + slot.material.len()].copy_from_slice(&slot.material);
        Ok((header, key, bytes))
    }

    /// Bytes of one slot's key material.
    pub(crate) fn material_len(&self) -> usize {
        self.cipher.key_len() * STRIPES
    }

    /// Where the encrypted disk starts in a bare image, in bytes.
    pub(crate) fn payload_offset(&self) -> u64 {
        u64::from(self.raw.payload_offset.get()) * SECTOR as u64
    }

    /// Iterations of the master key's digest.
    pub(crate) fn digest_iterations(&self) -> u32 {
        self.raw.digest_iterations.get()
    }

    /// The UUID, as far as it is text.
    pub(crate) fn uuid(&self) -> String {
        let bytes = self.raw.uuid.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The slots, all eight.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.raw.slots.iter().map(|slot| Slot {
            active: slot.active.get() == ENABLED,
            iterations: slot.iterations.get(),
            stripes: slot.stripes.get(),
            material_offset: u64::from(slot.material_offset.get()) * SECTOR as u64,
        })
    }

    /// Slot `number` as bytes of the header.
    pub(crate) fn slot_bytes(&self, number: usize) -> &[u8] {
        self.raw.slots[number].as_bytes()
    }

    pub(crate) fn set_slot(&mut self, number: usize, entry: RawSlot) {
        self.raw.slots[number] = entry;
    }

    /// Marks slot `number` as one without a key.
    pub(crate) fn deactivate(&mut self, number: usize) {
        self.raw.slots[number].active = DISABLED.into();
    }

    /// Slot `number` without its key.
    pub(crate) fn empty_slot(&self, number: usize) -> RawSlot {
        let RawSlot { material_offset, stripes, .. } = self.raw.slots[number];
        RawSlot { active: DISABLED.into(), iterations: U32::ZERO, salt: [0; 32], material_offset, stripes }
    }

    /// The master key in slot `number`, whose key material is `material`, if `secret` opens it.
    pub(crate) fn open_slot(
        &self,
        number: usize,
        secret: &Secret,
        mut material: KeyBytes,
    ) -> Result<Option<MasterKey>> {
        let slot = &self.raw.slots[number];
        let mut slot_key = KeyBytes::new(vec![0; self.cipher.key_len()]);
        self.hash.derive(secret.bytes(), &slot.salt, slot.iterations.get(), &mut slot_key)?;
        self.cipher.with_key(&slot_key)?.decrypt(0, &mut material);
        let key = antiforensic::merge(self.hash, &material, self.cipher.key_len());
        let mut digest = [0; DIGEST_LEN];
        self.hash.derive(&key, &self.raw.digest_salt, self.digest_iterations(), &mut digest)?;
        Ok(bool::from(digest.ct_eq(&self.raw.digest)).then_some(MasterKey(key)))
    }

    /// Slot `number` with `key` in it, that `secret` opens.
    pub(crate) fn new_slot(
        &self,
        number: usize,
        key: &MasterKey,
        secret: &Secret,
        cost: Cost,
    ) -> Result<NewSlot> {
        check_new_key(secret, cost)?;
        let iterations = match cost {
            Cost::Time(time) => iterations_in(self.hash, time, self.cipher.key_len())?,
            Cost::Iterations(iterations) => iterations,
        };
        let mut entry = self.empty_slot(number);
        entry.active = ENABLED.into();
        entry.iterations = iterations.into();
        fill_random(&mut entry.salt)?;
        let mut tried = self.clone();
        tried.set_slot(number, entry);
        tried.check_work().map_err(|error| Error::invalid_input(error.message()))?;
        let mut slot_key = KeyBytes::new(vec![0; self.cipher.key_len()]);
        self.hash.derive(secret.bytes(), &entry.salt, iterations, &mut slot_key)?;
        let mut material = antiforensic::split(self.hash, &key.0, STRIPES)?;
        self.cipher.with_key(&slot_key)?.encrypt(0, &mut material);
        Ok(NewSlot { entry, material: std::mem::take(&mut *material) })
    }

    /// The cipher of the disk.
    pub(crate) fn disk_cipher(&self, key: &MasterKey) -> Result<SectorCipher> {
        self.cipher.with_key(&key.0)
    }
}

fn check_new_key(secret: &Secret, cost: Cost) -> Result<()> {
    match cost {
        _ if secret.is_empty() => Err(Error::invalid_input("the secret is empty")),
        Cost::Iterations(iterations) if iterations < ITERATIONS_MIN => Err(Error::invalid_input(format!(
            "{iterations} iterations are too few; {ITERATIONS_MIN} are the least"
        ))),
        Cost::Iterations(_) | Cost::Time(_) => Ok(()),
    }
}

/// Bytes that header and key slots take for keys of `key_len` bytes: 4096 and eight times 4000 stripes, each rounded up to 4096.
pub(crate) fn area_len(key_len: usize) -> u64 {
    (ALIGNMENT + SLOTS * material_area(key_len)) as u64
}

fn material_area(key_len: usize) -> usize {
    (key_len * STRIPES).next_multiple_of(ALIGNMENT)
}

/// Where slot `number` is, in bytes from the header on.
pub(crate) fn slot_offset(number: usize) -> usize {
    offset_of!(RawHeader, slots) + number * size_of::<RawSlot>()
}

fn cipher_spec(raw: &RawHeader) -> Result<CipherSpec> {
    let name = text(&raw.cipher)?;
    let algorithm = Algorithm::from_name(name).ok_or_else(|| unknown("cipher", name))?;
    let words = text(&raw.mode)?;
    // Plain "ecb" has no IV, and no word for one.
    let (mode, iv) = words.split_once('-').unwrap_or((words, IvGenerator::Plain64.name()));
    let mode = Mode::from_name(mode).ok_or_else(|| unknown("cipher mode", words))?;
    // A hash behind the others means nothing, to dm-crypt and QEMU too.
    let iv = match iv.split_once(':').unwrap_or((iv, "")) {
        ("plain", _) => IvGenerator::Plain,
        ("plain64", _) => IvGenerator::Plain64,
        ("essiv", hash) => IvGenerator::Essiv(Hash::from_name(hash).ok_or_else(|| unknown("hash", hash))?),
        _ => return Err(unknown("IV generator", iv)),
    };
    let key_len = raw.key_len.get();
    let key_len = if mode == Mode::Xts { key_len / 2 } else { key_len };
    if key_len > 32 {
        return Err(Error::invalid_image(format!("the master key has {} bytes", raw.key_len.get())));
    }
    Ok(CipherSpec { algorithm, key_bits: key_len * 8, mode, iv })
}

fn unknown(what: &str, name: &str) -> Error {
    Error::unsupported(format!("the {what} {name:?} is not known"))
}

fn text(field: &[u8]) -> Result<&str> {
    let bytes = field.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(bytes).map_err(|_| Error::invalid_image("a name in the LUKS header is no text"))
}

fn set_text(field: &mut [u8], text: &str) {
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// A random UUID (RFC 9562, version 4) as text.
fn uuid() -> Result<String> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    let bits = u128::from_be_bytes(bytes) & !(0xf000 << 64 | 3 << 62) | 0x4000 << 64 | 2 << 62;
    let text = format!("{bits:032x}");
    Ok([&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-"))
}

/// Iterations of PBKDF2 that this machine does in `time` for a key of `len` bytes.
fn iterations_in(hash: Hash, time: Duration, len: usize) -> Result<u32> {
    /// Long enough for a clock, and to be awake.
    const SAMPLE: Duration = Duration::from_millis(20);
    let mut key = KeyBytes::new(vec![0; len]);
    let mut iterations = ITERATIONS_MIN;
    let took = loop {
        let start = Instant::now();
        hash.derive(b"a secret", &[0; 32], iterations, &mut key)?;
        let took = start.elapsed();
        if took >= SAMPLE || iterations > u32::MAX / 2 {
            break took;
        }
        iterations *= 2;
    };
    let wanted = u128::from(iterations) * time.as_nanos() / took.as_nanos().max(1);
    let wanted = u32::try_from(wanted).map_err(|_| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("{wanted} iterations are more than a header can hold; take less time"),
        )
    })?;
    Ok(wanted.max(ITERATIONS_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(cipher: CipherSpec) -> Options {
        Options { cipher, cost: Cost::Iterations(1000), ..Options::new(Secret::new("swordfish")) }
    }

    fn parse(bytes: &[u8]) -> Result<Header> {
        Header::parse(bytes[..HEADER_LEN].try_into().unwrap(), Area::Image(bytes.len() as u64))
    }

    fn material(bytes: &[u8], header: &Header, slot: usize) -> KeyBytes {
        let start = header.slots().nth(slot).unwrap().material_offset as usize;
        KeyBytes::new(bytes[start..start + header.material_len()].to_vec())
    }

    #[test]
    fn a_new_header_opens_with_its_secret_only() {
        for (key_bits, mode, len) in [(256, Mode::Xts, 2_068_480), (128, Mode::Cbc, 528_384)] {
            let (_, key, bytes) =
                Header::create(&options(CipherSpec { key_bits, mode, ..Default::default() })).unwrap();
            assert_eq!(bytes.len(), len);
            let header = parse(&bytes).unwrap();
            assert_eq!(header.payload_offset(), len as u64);
            let opened =
                header.open_slot(0, &Secret::new("swordfish"), material(&bytes, &header, 0)).unwrap();
            assert_eq!(opened.unwrap().0, key.0);
            assert!(
                header
                    .open_slot(0, &Secret::new("Swordfish"), material(&bytes, &header, 0))
                    .unwrap()
                    .is_none()
            );
            assert!(bytes.windows(16).all(|window| window != &key.0[..16]));
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let (_, _, good) = Header::create(&options(CipherSpec::default())).unwrap();
        let be = |value: u32| value.to_be_bytes().to_vec();
        let refused = |offset: usize, bytes: Vec<u8>, kind: ErrorKind| {
            let mut header = good.clone();
            header[offset..offset + bytes.len()].copy_from_slice(&bytes);
            let error = parse(&header).err().unwrap_or_else(|| panic!("{bytes:?} at {offset} passed"));
            assert_eq!(error.kind(), kind, "{error}");
        };
        refused(0, b"LUKX".to_vec(), ErrorKind::InvalidImage);
        refused(6, vec![0, 2], ErrorKind::Unsupported);
        refused(8, b"rot13\0".to_vec(), ErrorKind::Unsupported);
        refused(8, vec![0xff; 32], ErrorKind::InvalidImage);
        refused(40, b"gcm-plain64\0".to_vec(), ErrorKind::Unsupported);
        refused(40, b"xts-essiv:sha1\0".to_vec(), ErrorKind::Unsupported);
        refused(72, b"crc32\0".to_vec(), ErrorKind::Unsupported);
        refused(108, be(0), ErrorKind::Unsupported);
        refused(108, be(u32::MAX), ErrorKind::InvalidImage);
        refused(108, be(33), ErrorKind::InvalidImage);
        refused(164, be(u32::MAX), ErrorKind::Unsupported);
        refused(164, be(0), ErrorKind::InvalidImage);
        refused(208, be(1), ErrorKind::InvalidImage);
        refused(212, be(u32::MAX), ErrorKind::Unsupported);
        refused(212, be(0), ErrorKind::InvalidImage);
        for stripes in [0, 1, 3999, u32::MAX] {
            refused(252, be(stripes), ErrorKind::InvalidImage);
        }
        for sector in [0, 1, 20, u32::MAX] {
            refused(248, be(sector), ErrorKind::InvalidImage);
        }
        refused(104, be(0), ErrorKind::Unsupported);
        refused(104, be(u32::MAX), ErrorKind::InvalidImage);
        refused(104, be(4000), ErrorKind::InvalidImage);
        for area in [Area::Image(1 << 20), Area::Inside(1 << 20)] {
            assert!(Header::parse(good[..HEADER_LEN].try_into().unwrap(), area).is_err());
        }
    }

    #[test]
    fn a_header_that_cannot_be_is_not_made() {
        let default = CipherSpec::default();
        for cipher in [
            CipherSpec { key_bits: 192, mode: Mode::Cbc, ..default },
            CipherSpec { key_bits: 100, ..default },
        ] {
            assert_eq!(Header::create(&options(cipher)).err().unwrap().kind(), ErrorKind::InvalidInput);
        }
        for (secret, cost) in
            [("", Cost::Iterations(1000)), ("s", Cost::Iterations(999)), ("s", Cost::Iterations(u32::MAX))]
        {
            let options = Options { cost, ..Options::new(Secret::new(secret)) };
            assert_eq!(Header::create(&options).err().unwrap().kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn time_is_turned_into_iterations() {
        let some = iterations_in(Hash::Sha256, Duration::ZERO, 64).unwrap();
        assert_eq!(some, ITERATIONS_MIN);
        assert!(iterations_in(Hash::Sha256, Duration::from_secs(1 << 40), 64).is_err());
    }
}
