//! Bitmaps of a disk whose size changes.
//!
//! The length of a bitmap's table goes with the disk's size, and the two cannot change in one step. So every bitmap is held
//! while the size changes: with `in_use` a table may have any length.

use std::sync::Arc;

use super::{Bitmap, directory};
use crate::error::{Error, Result};
use crate::format::qcow2::Driver;

impl Driver {
    /// What comes before the size in the header changes to `size` bytes: holds all bitmaps, durably.
    ///
    /// As in QEMU an image with inconsistent bitmaps cannot change its size. Nothing has been touched when it is refused. A
    /// change that then does not come about leaves the bitmaps as they were.
    pub(in super::super) fn hold_bitmaps_for_resize(&self, size: u64) -> Result<()> {
        let mut bitmaps = self.bitmaps.lock();
        self.check_bitmaps(&bitmaps, size)?;
        self.clear_unknown_features(&mut self.flushing.lock())?;
        let all: Vec<_> = (0..bitmaps.len()).collect();
        self.hold(&mut bitmaps, &all)
    }

    /// Refuses a size that the bitmaps could not follow.
    pub(in super::super) fn check_bitmaps_for_resize(&self, size: u64) -> Result<()> {
        self.check_bitmaps(&self.bitmaps.lock(), size)
    }

    fn check_bitmaps(&self, bitmaps: &[Bitmap], size: u64) -> Result<()> {
        for bitmap in bitmaps {
            let refusal = |problem: &str| {
                let name = bitmap.entry.name();
                Error::invalid_input(format!(
                    "the disk cannot have {size} bytes while the image has the bitmap \"{}\": {problem}",
                    name.escape_debug()
                ))
            };
            if bitmap.is_inconsistent() || bitmap.entry.is_foreign() {
                return Err(refusal(
                    "it is inconsistent or of an unknown kind and cannot follow; remove it first",
                ));
            }
            directory::check_size(size, bitmap.entry.granularity_bits, self.geometry.cluster_bits)
                .map_err(|problem| refusal(&problem))?;
        }
        Ok(())
    }

    /// What comes after the size in the header has changed: the bitmaps follow. New parts of the disk are clean, as in QEMU; closing the image
    /// stores it.
    pub(in super::super) fn resize_bitmaps(&self) {
        let mut bitmaps = self.bitmaps.lock();
        let size = self.header().size;
        for held in bitmaps.iter_mut().filter_map(|bitmap| bitmap.held.as_mut()) {
            held.bits = Arc::new(held.bits.resized(size, self.geometry.cluster_bits));
        }
        self.refresh_recorder(&bitmaps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::format::qcow2::create::{CreateOptions, create};
    use crate::format::{Bitmaps, DirtyRange, DirtyRanges, Format, Recording};
    use crate::storage::Storage;
    use crate::storage::memory::Memory;

    const MIB: u64 = 1 << 20;

    fn image() -> Arc<dyn Storage> {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new(0));
        let options = CreateOptions { size: 8 * MIB, cluster_size: 512, ..CreateOptions::default() };
        create(&storage, None, &options).unwrap();
        let driver = Driver::open(Arc::clone(&storage), true).unwrap();
        driver.add("on", Some(512), Recording::Enabled).unwrap();
        driver.add("off", Some(4096), Recording::Disabled).unwrap();
        let dirty = [DirtyRange { offset: MIB, length: 10 }, DirtyRange { offset: 5 * MIB, length: 3 * MIB }];
        driver.merge("off", DirtyRanges::new(8 * MIB, dirty.into_iter())).unwrap();
        driver.close().unwrap();
        storage
    }

    /// Changes the size to one that the L1 table is long enough for.
    fn resize(driver: &Driver, size: u64) -> Result<()> {
        driver.hold_bitmaps_for_resize(size)?;
        driver.storage.writev_at((&size.to_be_bytes()).into(), 24)?;
        driver.change_header(|header| header.size = size);
        driver.size.store(size, std::sync::atomic::Ordering::Release);
        driver.resize_bitmaps();
        Ok(())
    }

    fn ranges(driver: &Driver, name: &str) -> Vec<(u64, u64)> {
        driver.ranges(name).unwrap().map(|range| (range.offset, range.length)).collect()
    }

    #[test]
    fn bitmaps_follow_the_size_and_what_is_new_is_clean() {
        let storage = image();
        let driver = Driver::open(Arc::clone(&storage), true).unwrap();
        resize(&driver, 6 * MIB + 512).unwrap();
        assert_eq!(ranges(&driver, "off"), [(MIB, 4096), (5 * MIB, MIB + 512)]);
        driver.mark_written(6 * MIB, 512).unwrap();
        driver.close().unwrap();
        let driver = Driver::open(Arc::clone(&storage), true).unwrap();
        assert_eq!(ranges(&driver, "off"), [(MIB, 4096), (5 * MIB, MIB + 512)]);
        assert_eq!(ranges(&driver, "on"), [(6 * MIB, 512)]);
        resize(&driver, 8 * MIB).unwrap();
        driver.close().unwrap();
        let driver = Driver::open(storage, false).unwrap();
        assert_eq!(ranges(&driver, "off"), [(MIB, 4096), (5 * MIB, MIB + 4096)]);
        assert_eq!(ranges(&driver, "on"), [(6 * MIB, 512)]);
        assert!(driver.list().unwrap().iter().all(|bitmap| bitmap.enabled == (bitmap.name == "on")));
    }

    #[test]
    fn a_size_that_a_bitmap_cannot_follow_is_refused_and_nothing_is_touched() {
        let storage = image();
        let driver = Driver::open(Arc::clone(&storage), true).unwrap();
        let mut before = vec![0; storage.len().unwrap() as usize];
        storage.readv_at((&mut before).into(), 0).unwrap();
        for size in [0, 1 << 42] {
            assert_eq!(driver.hold_bitmaps_for_resize(size).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let mut after = vec![0; storage.len().unwrap() as usize];
        storage.readv_at((&mut after).into(), 0).unwrap();
        assert!(before == after);
        driver.mark_written(0, 1).unwrap();
        let lost = Driver::open(storage, true).unwrap();
        assert_eq!(lost.hold_bitmaps_for_resize(MIB).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    /// Between the two steps the file says that nobody knows.
    #[test]
    fn a_crash_while_the_size_changes_leaves_the_bitmaps_inconsistent() {
        for size in [8 * MIB, 4 * MIB] {
            let storage = image();
            let driver = Driver::open(Arc::clone(&storage), true).unwrap();
            driver.hold_bitmaps_for_resize(4 * MIB).unwrap();
            storage.writev_at((&size.to_be_bytes()).into(), 24).unwrap();
            let crashed = Driver::open(Arc::clone(&storage), true).unwrap();
            assert!(crashed.list().unwrap().iter().all(|bitmap| bitmap.inconsistent));
            crashed.remove("on").unwrap();
            crashed.remove("off").unwrap();
            crashed.close().unwrap();
            assert!(Driver::open(storage, false).unwrap().list().unwrap().is_empty());
        }
    }
}
