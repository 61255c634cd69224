//! LUKS 1: the header at the start of an image, or where a qcow2 header says, and its key slots. The page `docs/luks.md` has layout,
//! limits and the recipes for key slots.

use std::fmt;
use std::mem;
use std::sync::Arc;

use crate::crypt::luks::{self, Area, HEADER_LEN, Header, MasterKey, NewSlot, slot_offset};
use crate::crypt::{
    CipherSpec, Cost, Hash, KeyBytes, Options, SECTOR, SLOTS, Secret, SectorCipher, Slot, fill_random,
};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::latched::Latched;
use crate::storage::{Storage, ZeroMode};
use crate::units::HostOffset;

/// What a LUKS header says without a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksInfo {
    /// How the disk is encrypted.
    pub cipher: CipherSpec,
    /// The hash of key derivation.
    pub hash: Hash,
    /// The UUID, as text.
    pub uuid: String,
    /// Where the disk starts in a bare image, in bytes; inside a qcow2 image the length of the header with its key slots.
    pub payload_offset: u64,
    /// Iterations of the master key's digest.
    pub digest_iterations: u32,
    /// All eight key slots.
    pub slots: Vec<Slot>,
}

/// A LUKS header in a storage, with its key slots.
pub struct Volume {
    storage: Latched,
    /// Where the header is.
    start: HostOffset,
    header: Header,
}

/// The keys of a disk: what a secret has opened.
pub struct Unlocked {
    key: MasterKey,
    slot: usize,
}

impl Unlocked {
    /// The number of the key slot that the secret opened, from 0.
    pub fn slot(&self) -> usize {
        self.slot
    }
}

/// Whether the last active key slot may be erased, after which nothing ever opens the image again (and an inactive one wiped again).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastSlot {
    /// No: that is refused.
    #[default]
    Keep,
    /// Yes: all that is in the image is lost.
    Erase,
}

/// What the header of a bare image says, and the size of its disk in bytes.
pub fn inspect(storage: &dyn Storage) -> Result<(LuksInfo, u64)> {
    let len = storage.len()?;
    let info = info(&read_header(storage, HostOffset(0), Area::Image(len))?);
    let size = (len - info.payload_offset).next_multiple_of(SECTOR as u64);
    Ok((info, size))
}

/// What the header of `len` bytes at `start` of another image says.
pub(crate) fn inspect_inside(storage: &dyn Storage, start: HostOffset, len: u64) -> Result<LuksInfo> {
    read_header(storage, start, Area::Inside(len)).map(|header| info(&header))
}

fn info(header: &Header) -> LuksInfo {
    LuksInfo {
        cipher: header.cipher,
        hash: header.hash,
        uuid: header.uuid(),
        payload_offset: header.payload_offset(),
        digest_iterations: header.digest_iterations(),
        slots: header.slots().collect(),
    }
}

fn read_header(storage: &dyn Storage, start: HostOffset, area: Area) -> Result<Header> {
    let mut bytes = [0; HEADER_LEN];
    storage.readv_at((&mut bytes).into(), start.0)?;
    Header::parse(&bytes, area).map_err(|error| {
        let offset = start.0 + error.offset().unwrap_or_default();
        in_file(storage, Error::new(error.kind(), error.message()).at(offset))
    })
}

fn in_file(storage: &dyn Storage, error: Error) -> Error {
    match storage.path() {
        Some(path) => error.in_file(path),
        None => error,
    }
}

/// Makes `storage` a new image with a disk of `size` bytes, rounded up to whole sectors. What a new disk reads as is nobody's word.
///
/// The header's first sector comes last: a create that was interrupted leaves no valid image.
pub fn create(storage: &dyn Storage, size: u64, options: &Options) -> Result<()> {
    let (header, _, area) = Header::create(options)?;
    let size = size.checked_next_multiple_of(SECTOR as u64);
    let len = size.and_then(|size| size.checked_add(area.len() as u64));
    let len = len.filter(|len| i64::try_from(*len).is_ok()).ok_or_else(|| {
        Error::invalid_input("a disk of that size with its header passes the end of what a file can be")
    })?;
    debug_assert_eq!(header.payload_offset(), area.len() as u64);
    let write = || {
        if storage.capabilities().resize {
            storage.set_len(0)?;
            storage.set_len(len)?;
        } else {
            let there = storage.len()?;
            if there < len {
                let text = format!("the image takes {len} bytes, and the device has {there}");
                return Err(Error::invalid_input(text));
            }
            storage.write_zeroes_at(0, SECTOR as u64, ZeroMode::Keep)?;
            storage.sync()?;
        }
        let (first, rest) = area.split_at(SECTOR);
        storage.writev_at(rest.into(), SECTOR as u64)?;
        storage.sync()?;
        storage.writev_at(first.into(), 0)?;
        storage.sync()
    };
    write().map_err(|error| in_file(storage, error))
}

/// Bytes that header and key slots of these options take.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for options that exclude each other.
pub(crate) fn area_len(options: &Options) -> Result<u64> {
    Header::check_options(options)?;
    Ok(luks::area_len(options.cipher.key_len()))
}

/// Refuses options that exclude each other, as [`create`] does.
pub fn check(options: &Options) -> Result<()> {
    Header::check_options(options)
}

/// Header and key slots for a place inside another image: all bytes of it, with one active slot.
pub(crate) fn create_inside(options: &Options) -> Result<Vec<u8>> {
    Header::create(options).map(|(_, _, area)| area)
}

impl Volume {
    /// The header at the start of `storage`.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let area = Area::Image(storage.len()?);
        Self::read(storage, HostOffset(0), area)
    }

    /// The header of `len` bytes at `start` of another image.
    pub(crate) fn inside(storage: Arc<dyn Storage>, start: HostOffset, len: u64) -> Result<Self> {
        Self::read(storage, start, Area::Inside(len))
    }

    fn read(storage: Arc<dyn Storage>, start: HostOffset, area: Area) -> Result<Self> {
        let header = read_header(&*storage, start, area)?;
        Ok(Volume { storage: Latched::new(storage), start, header })
    }

    /// What the header says.
    pub fn info(&self) -> LuksInfo {
        info(&self.header)
    }

    /// Tries `secret` on the active slots, in their order.
    ///
    /// # Errors
    /// [`ErrorKind::WrongSecret`] if it opens none.
    pub fn unlock(&self, secret: &Secret) -> Result<Unlocked> {
        self.unlock_any(secret, 0..SLOTS)?.ok_or_else(|| self.wrong_secret())
    }

    /// The cipher of the disk.
    pub(crate) fn cipher(&self, unlocked: &Unlocked) -> Result<Arc<SectorCipher>> {
        self.header.disk_cipher(&unlocked.key).map(Arc::new)
    }

    /// Where the disk starts in a bare image, in bytes.
    pub(crate) fn payload_offset(&self) -> u64 {
        self.header.payload_offset()
    }

    /// Gives the key that `unlocked` holds another slot, that `secret` opens: number `slot`, or the first inactive one. Returns its number.
    ///
    /// Durable when it returns. Recipe (`docs/luks.md`): key material, salt and iterations; barrier; the four bytes that make the slot active; barrier.
    pub fn add_key(
        &mut self,
        unlocked: &Unlocked,
        secret: &Secret,
        slot: Option<usize>,
        cost: Cost,
    ) -> Result<usize> {
        let number = self.free_slot(slot)?;
        let NewSlot { entry, material } = self.header.new_slot(number, &unlocked.key, secret, cost)?;
        let mut waiting = self.header.clone();
        waiting.set_slot(number, entry);
        waiting.deactivate(number);
        self.write(self.material_offset(number), &material)?;
        self.write_slot(&waiting, number)?;
        self.sync()?;
        self.header.set_slot(number, entry);
        self.write_state(number)?;
        self.sync()?;
        Ok(number)
    }

    /// Moves the key that `secret` opens to a slot that `new` opens, and erases the old one. Returns the new one's number.
    ///
    /// It takes an inactive slot, since a slot cannot be written over without a time when neither secret opens it.
    pub fn change_key(&mut self, secret: &Secret, new: &Secret, cost: Cost) -> Result<usize> {
        let unlocked = self.unlock(secret)?;
        let number = self.add_key(&unlocked, new, None, cost)?;
        self.erase(unlocked.slot)?;
        Ok(number)
    }

    /// An error unless `secret` opens slot `number`.
    pub fn check_secret(&self, number: usize, secret: &Secret) -> Result<()> {
        self.check_slot(number)?;
        match self.unlock_any(secret, number..number + 1)? {
            Some(_) => Ok(()),
            None => Err(in_file(
                &self.storage,
                Error::new(ErrorKind::WrongSecret, format!("the secret does not open key slot {number}")),
            )),
        }
    }

    /// Erases slot `number`. An inactive one is refused, as by QEMU, unless it is forced, which wipes its key material again.
    ///
    /// Recipe: random bytes over the key material; barrier; the slot inactive and empty; barrier.
    pub fn erase_slot(&mut self, number: usize, last: LastSlot) -> Result<()> {
        self.check_slot(number)?;
        if !self.is_active(number) && last == LastSlot::Keep {
            return Err(self.refuse(format!("key slot {number} is erased already")));
        }
        self.check_last(&[number], last)?;
        self.erase(number)
    }

    /// Erases every slot that `secret` opens. Returns their numbers.
    pub fn erase_key(&mut self, secret: &Secret, last: LastSlot) -> Result<Vec<usize>> {
        let mut numbers = Vec::new();
        while let Some(found) = self.unlock_any(secret, numbers.last().map_or(0, |last| last + 1)..SLOTS)? {
            numbers.push(found.slot);
        }
        if numbers.is_empty() {
            return Err(self.wrong_secret());
        }
        self.check_last(&numbers, last)?;
        for &number in &numbers {
            self.erase(number)?;
        }
        Ok(numbers)
    }

    fn unlock_any(&self, secret: &Secret, slots: std::ops::Range<usize>) -> Result<Option<Unlocked>> {
        for number in slots {
            if !self.slot(number).active {
                continue;
            }
            let mut material = KeyBytes::new(vec![0; self.header.material_len()]);
            self.storage.readv_at(material.as_mut_slice().into(), self.material_offset(number))?;
            if let Some(key) = self.header.open_slot(number, secret, material)? {
                return Ok(Some(Unlocked { key, slot: number }));
            }
        }
        Ok(None)
    }

    fn slot(&self, number: usize) -> Slot {
        self.header.slots().nth(number).expect("there are eight")
    }

    fn is_active(&self, number: usize) -> bool {
        self.slot(number).active
    }

    fn check_slot(&self, number: usize) -> Result<()> {
        if number >= SLOTS {
            return Err(
                self.refuse(format!("there is no key slot {number}: they go from 0 to {}", SLOTS - 1))
            );
        }
        Ok(())
    }

    fn free_slot(&self, wanted: Option<usize>) -> Result<usize> {
        if let Some(number) = wanted {
            self.check_slot(number)?;
            if self.is_active(number) {
                return Err(
                    self.refuse(format!("key slot {number} is active: erase it first, or take another"))
                );
            }
            return Ok(number);
        }
        (0..SLOTS)
            .find(|&number| !self.is_active(number))
            .ok_or_else(|| self.refuse("all eight key slots are active: erase one first".to_owned()))
    }

    fn check_last(&self, erased: &[usize], last: LastSlot) -> Result<()> {
        let left = (0..SLOTS).any(|number| self.is_active(number) && !erased.contains(&number));
        if left || last == LastSlot::Erase || !erased.iter().any(|&number| self.is_active(number)) {
            return Ok(());
        }
        Err(self.refuse(
            "no active key slot would be left and the image lost for good: add a key first, or force it"
                .to_owned(),
        ))
    }

    fn erase(&mut self, number: usize) -> Result<()> {
        let mut noise = vec![0; self.header.material_len()];
        fill_random(&mut noise)?;
        self.write(self.material_offset(number), &noise)?;
        self.sync()?;
        self.header.deactivate(number);
        self.write_state(number)?;
        self.header.set_slot(number, self.header.empty_slot(number));
        self.write_slot(&self.header, number)?;
        self.sync()
    }

    fn material_offset(&self, number: usize) -> u64 {
        self.start.0 + self.slot(number).material_offset
    }

    /// Writes a slot's whole entry, which may lie in two sectors.
    fn write_slot(&self, header: &Header, number: usize) -> Result<()> {
        self.write(self.start.0 + slot_offset(number) as u64, header.slot_bytes(number))
    }

    /// Writes the four bytes that say whether a slot is active; they lie in one sector.
    fn write_state(&self, number: usize) -> Result<()> {
        let state = &self.header.slot_bytes(number)[..mem::size_of::<u32>()];
        self.write(self.start.0 + slot_offset(number) as u64, state)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.storage.writev_at(bytes.into(), offset).map_err(|error| in_file(&self.storage, error))
    }

    fn sync(&self) -> Result<()> {
        self.storage.sync().map_err(|error| in_file(&self.storage, error))
    }

    fn refuse(&self, message: String) -> Error {
        in_file(&self.storage, Error::invalid_input(message))
    }

    fn wrong_secret(&self) -> Error {
        in_file(&self.storage, Error::new(ErrorKind::WrongSecret, "the secret opens none of the key slots"))
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("storage", &self.storage)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unlocked").field("slot", &self.slot).finish_non_exhaustive()
    }
}
