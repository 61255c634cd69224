//! What can be done with bitmaps.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::bits::Bits;
use super::directory::{self, Entry};
use super::{AUTO, Bitmap, GRANULARITY_BITS, Held, IN_USE, MAX_NAME_LEN, data};
use crate::error::{Error, Result};
use crate::format::qcow2::Driver;
use crate::format::qcow2::extensions::{MAX_BITMAP_DIRECTORY_LEN, MAX_BITMAPS};
use crate::format::{Bitmaps, DirtyBitmap, DirtyRange, DirtyRanges, Recording};

/// QEMU's default granularity: the cluster size, but not less or more than these.
const DEFAULT_GRANULARITY_BITS: (u32, u32) = (12, 16);

impl Bitmaps for Driver {
    fn list(&self) -> Result<Vec<DirtyBitmap>> {
        let describe = |bitmap: Bitmap| {
            let count = || Ok(self.bits_of(&bitmap)?.dirty_bytes());
            let known = !bitmap.is_inconsistent() && !bitmap.entry.is_foreign();
            let count = known.then(count).transpose()?;
            Ok(DirtyBitmap {
                name: bitmap.entry.name(),
                granularity: bitmap.entry.granularity(),
                enabled: bitmap.is_enabled(),
                inconsistent: bitmap.is_inconsistent(),
                count,
            })
        };
        self.read_bitmaps(|bitmaps| bitmaps.into_iter().map(describe).collect())
    }

    fn add(&self, name: &str, granularity: Option<u64>, state: Recording) -> Result<()> {
        self.change_bitmaps(|bitmaps| {
            let entry = self.new_entry(bitmaps, name, granularity, state)?;
            let bits = self.clean_bits(&entry);
            let mut bitmap = Bitmap { entry, held: None };
            if state == Recording::Enabled && self.started.load(Ordering::Acquire) {
                bitmap.entry.flags |= IN_USE;
                bitmap.held = Some(Held { bits: Arc::clone(&bits), enabled: true });
            }
            let mut new = bitmaps.clone();
            new.push(bitmap);
            self.switch_directory(bitmaps, new, &[(bitmaps.len(), bits)])
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.change_bitmaps(|bitmaps| {
            let mut new = bitmaps.clone();
            new.remove(find(bitmaps, name)?);
            self.switch_directory(bitmaps, new, &[])
        })
    }

    fn clear(&self, name: &str) -> Result<()> {
        self.change_bitmaps(|bitmaps| {
            let index = find_consistent(bitmaps, name)?;
            let bits = self.clean_bits(&bitmaps[index].entry);
            self.replace_bits(bitmaps, index, bits)
        })
    }

    fn set_recording(&self, name: &str, state: Recording) -> Result<()> {
        self.change_bitmaps(|bitmaps| {
            let index = find_consistent(bitmaps, name)?;
            self.switch_recording(bitmaps, index, state)
        })
    }

    fn merge(&self, name: &str, source: DirtyRanges) -> Result<()> {
        self.change_bitmaps(|bitmaps| {
            let index = find_consistent(bitmaps, name)?;
            let size = self.header().size;
            if source.disk_size() != size {
                return Err(Error::invalid_input(format!(
                    "the disk of the bitmap \"{name}\" has {size} bytes, that of the bitmap to merge {}; \
                     they have to be equal",
                    source.disk_size()
                )));
            }
            let bits = self.bits_of(&bitmaps[index])?;
            for range in source.filter(|range| range.length > 0) {
                bits.mark(range.offset, range.length);
            }
            self.replace_bits(bitmaps, index, bits)
        })
    }

    fn ranges(&self, name: &str) -> Result<DirtyRanges> {
        let bits = self.read_bitmaps(|bitmaps| {
            let index = find_consistent(&bitmaps, name)?;
            self.bits_of(&bitmaps[index])
        })?;
        let size = bits.size();
        let mut at = 0;
        let next = move || {
            let (offset, length) = bits.next_dirty(at)?;
            at = offset + length;
            Some(DirtyRange { offset, length })
        };
        Ok(DirtyRanges::new(size, iter::from_fn(next)))
    }
}

impl Driver {
    /// Looks at the bitmaps as they are now.
    fn read_bitmaps<T>(&self, look: impl FnOnce(Vec<Bitmap>) -> Result<T>) -> Result<T> {
        let look = || {
            if !self.writable {
                return look(super::open(&*self.storage, &self.header())?);
            }
            // Locked meanwhile: what a change drops may be used again.
            let bitmaps = self.bitmaps.lock();
            look(bitmaps.clone())
        };
        look().map_err(|e| self.located(e))
    }

    /// Changes the bitmaps in memory and in the file.
    fn change_bitmaps(&self, change: impl FnOnce(&mut Vec<Bitmap>) -> Result<()>) -> Result<()> {
        let change = || {
            self.check_writable()?;
            change(&mut self.bitmaps.lock())
        };
        change().map_err(|e| self.located(e))
    }

    /// The bits of a bitmap that is not inconsistent: the held ones themselves, or a copy of the file's.
    fn bits_of(&self, bitmap: &Bitmap) -> Result<Arc<Bits>> {
        if let Some(held) = &bitmap.held {
            return Ok(Arc::clone(&held.bits));
        }
        let header = self.header();
        data::load(&*self.storage, &header, &bitmap.entry, header.size).map(Arc::new)
    }

    fn clean_bits(&self, entry: &Entry) -> Arc<Bits> {
        let granularity_bits = entry.granularity_bits.into();
        Arc::new(Bits::new(self.header().size, granularity_bits, self.geometry.cluster_bits))
    }

    /// Gives a bitmap other contents: in memory if it is held, otherwise in the file.
    fn replace_bits(&self, bitmaps: &mut Vec<Bitmap>, index: usize, bits: Arc<Bits>) -> Result<()> {
        if let Some(held) = &mut bitmaps[index].held {
            held.bits = bits;
            self.refresh_recorder(bitmaps);
            return Ok(());
        }
        let new = bitmaps.clone();
        self.switch_directory(bitmaps, new, &[(index, bits)])
    }

    /// The entry of a bitmap that can be added; nothing has been touched when it cannot.
    fn new_entry(
        &self,
        bitmaps: &[Bitmap],
        name: &str,
        granularity: Option<u64>,
        state: Recording,
    ) -> Result<Entry> {
        let header = self.header();
        let refusal = |problem: String| {
            Error::invalid_input(format!("no bitmap \"{}\" can be made: {problem}", name.escape_debug()))
        };
        if header.version < 3 {
            return Err(Error::unsupported(
                "an image of version 2 (compat 0.10) cannot hold bitmaps; amend it to version 3 first",
            ));
        }
        if name.is_empty() || name.len() > MAX_NAME_LEN || name.contains('\0') {
            return Err(refusal(format!("a name has 1 to {MAX_NAME_LEN} bytes, none of them NUL")));
        }
        if bitmaps.iter().any(|bitmap| bitmap.entry.is_called(name)) {
            return Err(refusal("there is one already".to_owned()));
        }
        let (least, most) = (1_u64 << GRANULARITY_BITS.start(), 1_u64 << GRANULARITY_BITS.end());
        let granularity_bits = match granularity {
            None => header.cluster_bits.clamp(DEFAULT_GRANULARITY_BITS.0, DEFAULT_GRANULARITY_BITS.1) as u8,
            Some(bytes) if bytes.is_power_of_two() && (least..=most).contains(&bytes) => {
                bytes.trailing_zeros() as u8
            }
            Some(bytes) => {
                let text = format!("a granularity is a power of two from {least} to {most}, not {bytes}");
                return Err(refusal(text));
            }
        };
        directory::check_size(header.size, granularity_bits, header.cluster_bits).map_err(refusal)?;
        let flags = if state == Recording::Enabled { AUTO } else { 0 };
        let entry = Entry::new(name, granularity_bits, flags);
        let len = directory::offsets(bitmaps.iter().map(|bitmap| &bitmap.entry).chain([&entry])).1;
        if bitmaps.len() >= MAX_BITMAPS as usize || len > MAX_BITMAP_DIRECTORY_LEN {
            return Err(refusal(format!("the image has {} and takes no more", bitmaps.len())));
        }
        Ok(entry)
    }
}

fn find(bitmaps: &[Bitmap], name: &str) -> Result<usize> {
    let found = bitmaps.iter().position(|bitmap| bitmap.entry.is_called(name));
    found.ok_or_else(|| Error::invalid_input(format!("the image has no bitmap \"{}\"", name.escape_debug())))
}

/// The bitmap of that name, unless it may only be removed, or only be left alone.
fn find_consistent(bitmaps: &[Bitmap], name: &str) -> Result<usize> {
    let index = find(bitmaps, name)?;
    let refuse = |problem: &str| {
        Err(Error::invalid_input(format!("the bitmap \"{}\" {problem}", name.escape_debug())))
    };
    if bitmaps[index].is_inconsistent() {
        return refuse(
            "was not stored after the last writes and is inconsistent; remove it and make a full backup",
        );
    }
    if bitmaps[index].entry.is_foreign() {
        return refuse("has extra data of an unknown kind and cannot be used here");
    }
    Ok(index)
}
