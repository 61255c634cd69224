//! Marking writes in the enabled bitmaps.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use zerocopy::IntoBytes;
use zerocopy::big_endian::U32;

use super::bits::Bits;
use super::{AUTO, Bitmap, Held, IN_USE, data, directory};
use crate::error::Result;
use crate::format::Recording;
use crate::format::qcow2::Driver;
use crate::ondisk::RawBitmapEntry;
use crate::storage::Storage;

/// The bitmaps that writes are marked in.
#[derive(Debug, Default)]
pub(in super::super) struct Recorder {
    /// The first write has been prepared and there is nothing to mark: all that most images ever look at.
    idle: AtomicBool,
    enabled: ArcSwap<Vec<Arc<Bits>>>,
}

impl Recorder {
    pub(in super::super) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::Release);
    }
}

impl Driver {
    /// Marks `len` bytes from `offset` on in the enabled bitmaps, which the first call prepares for it. Before the data: whatever
    /// becomes of that, no change of the disk is missing in them.
    #[inline]
    pub(in super::super) fn mark_written(&self, offset: u64, len: u64) -> Result<()> {
        // Bitmaps are added and enabled while nobody writes; who writes afterwards has synchronised with that.
        if self.recorder.idle.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.start_writing()?;
        if len > 0 {
            self.recorder.enabled.load().iter().for_each(|bits| bits.mark(offset, len));
        }
        Ok(())
    }

    /// Says which bitmaps are enabled now.
    pub(in super::super) fn refresh_recorder(&self, bitmaps: &[Bitmap]) {
        let none = self.publish_recorder(bitmaps);
        self.recorder.set_idle(none && self.started.load(Ordering::Acquire));
    }

    /// Says which bitmaps writes are marked in; whether there are none.
    pub(in super::super) fn publish_recorder(&self, bitmaps: &[Bitmap]) -> bool {
        let enabled: Vec<_> = bitmaps
            .iter()
            .filter_map(|bitmap| bitmap.held.as_ref().filter(|held| held.enabled))
            .map(|held| Arc::clone(&held.bits))
            .collect();
        let none = enabled.is_empty();
        self.recorder.enabled.store(Arc::new(enabled));
        none
    }

    /// Holds the enabled bitmaps; to be called before the first write of guest data.
    ///
    /// One that was never saved, or that has a meaning nobody here knows, is not held: it gets or keeps `in_use` and every reader
    /// takes it for inconsistent. Disabled bitmaps need not follow writes and stay as they are.
    pub(in super::super) fn hold_enabled(&self, bitmaps: &mut [Bitmap]) -> Result<()> {
        let enabled = |index: &usize| bitmaps[*index].entry.is_auto();
        let enabled: Vec<_> = (0..bitmaps.len()).filter(enabled).collect();
        self.hold(bitmaps, &enabled)
    }

    /// Takes the contents of the `wanted` bitmaps into memory, those that have any, and says so durably in the file.
    ///
    /// Each flag is four bytes inside one sector, so that a crash leaves some bitmaps marked and the others as they were, before
    /// anything else changed. The autoclear bit stays: the directory itself is right.
    pub(super) fn hold(&self, bitmaps: &mut [Bitmap], wanted: &[usize]) -> Result<()> {
        let header = self.header();
        let size = header.size;
        let mut loaded = Vec::new();
        for &index in wanted {
            let entry = &bitmaps[index].entry;
            if !entry.is_in_use() {
                let load = || data::load(&*self.storage, &header, entry, size).map(Arc::new);
                loaded.push((index, (!entry.is_foreign()).then(load).transpose()?));
            }
        }
        if loaded.is_empty() {
            return Ok(());
        }
        let flags = loaded.iter().map(|&(index, _)| (index, bitmaps[index].entry.flags | IN_USE));
        self.write_flags(bitmaps, &flags.collect::<Vec<_>>())?;
        for (index, bits) in loaded {
            let enabled = bitmaps[index].entry.is_auto();
            bitmaps[index].held = bits.map(|bits| Held { bits, enabled });
        }
        Ok(())
    }

    /// Changes flags of entries in their place, durably. Unknown features have been cleared.
    pub(super) fn write_flags(&self, bitmaps: &mut [Bitmap], flags: &[(usize, u32)]) -> Result<()> {
        let directory = self.header().bitmaps.expect("there are bitmaps").directory_offset;
        let offsets = directory::offsets(bitmaps.iter().map(|bitmap| &bitmap.entry)).0;
        for &(index, flags) in flags {
            let at = directory + offsets[index] + offset_of!(RawBitmapEntry, flags) as u64;
            self.metadata.writev_at(U32::new(flags).as_bytes().into(), at.0)?;
        }
        self.metadata.sync()?;
        for &(index, flags) in flags {
            bitmaps[index].entry.flags = flags;
        }
        Ok(())
    }

    /// Enables or disables a bitmap. What is not held changes in the file, durably; an enabled one is held once
    /// writing has started.
    pub(super) fn switch_recording(
        &self,
        bitmaps: &mut [Bitmap],
        index: usize,
        state: Recording,
    ) -> Result<()> {
        let enabled = state == Recording::Enabled;
        if bitmaps[index].is_enabled() == enabled {
            return Ok(());
        }
        self.clear_unknown_features(&mut self.flushing.lock())?;
        if enabled && self.started.load(Ordering::Acquire) {
            self.hold(bitmaps, std::slice::from_ref(&index))?;
        }
        if let Some(held) = &mut bitmaps[index].held {
            held.enabled = enabled;
        } else {
            let flags = bitmaps[index].entry.flags & !AUTO | if enabled { AUTO } else { 0 };
            self.write_flags(bitmaps, &[(index, flags)])?;
        }
        self.refresh_recorder(bitmaps);
        Ok(())
    }
}
