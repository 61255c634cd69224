//! Changing the size of an open image's disk.

use crate::buffer::IoVector;
use crate::error::{Error, Result};
use crate::format::preallocation::Preallocation;
use crate::format::steps::Steps;
use crate::format::{Allocation, Format, Lookup, Mapping, Place, Resize, WriteStep, ZeroIntent};
use crate::units::GuestOffset;

use super::image::{Base, Image};
use super::job::Job;

fn resizable(format: &dyn Format) -> Result<&dyn Resize> {
    format.resize().ok_or_else(|| Error::unsupported(format!("{} images keep their size", format.kind())))
}

impl Image {
    /// Makes the disk `size` bytes long. What is new reads as zeroes, whatever the backing file or an older, longer disk had there; what is
    /// cut off is gone, and its space goes back to the host where that is possible. Durable when it returns.
    ///
    /// `preallocation` is for what is new. Writes wait meanwhile, reads go on. A LUKS image that is not inside another format decrypts what is new, so that it
    /// reads as noise until it is written, unless it is preallocated in full; its size is rounded up to a multiple of 512.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a size that cannot be (qcow2 knows multiples of 512 only) and for preallocation when
    /// the disk shrinks; [`Unsupported`](crate::ErrorKind::Unsupported) for an image that keeps its size, the message says why. Nothing
    /// has been touched then. After any other error [`size`](Image::size) is the old size or, when the disk shrinks, the new one.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.resize_with(size, preallocation, &mut Job::default())
    }

    /// The same as a job, which is told the bytes that are set aside, or, where the disk shrinks, the bytes of tables that were gone through. A
    /// disk that shrinks and is given up meanwhile is as small as it was to be; resizing it to that size once more gives the rest of its space back.
    pub fn resize_with(&self, size: u64, preallocation: Preallocation, job: &mut Job<'_>) -> Result<()> {
        job.in_steps(|steps| self.resize_in_steps(size, preallocation, steps))
    }

    fn resize_in_steps(&self, size: u64, preallocation: Preallocation, steps: &mut Steps<'_>) -> Result<()> {
        self.exclusively(|format| {
            let resize = resizable(format)?;
            let old = format.size();
            resize.check(size)?;
            if preallocation != Preallocation::Off && size < old {
                return Err(Error::invalid_input("nothing is preallocated when the disk shrinks"));
            }
            let gives_space = preallocation != Preallocation::Off || size > old && resize.fills_places();
            if gives_space && format.is_encrypted() && !resize.is_flat() {
                return Err(Error::unsupported(
                    "space that was not written to decrypts to garbage: an encrypted disk grows without preallocation",
                ));
            }
            if preallocation == Preallocation::Metadata && resize.is_flat() {
                return Err(Error::invalid_input(
                    "a raw image has no metadata to preallocate: off, falloc and full are possible",
                ));
            }
            if size > old {
                if matches!(self.base, Base::Unopened(_)) {
                    return Err(self.unopened_base());
                }
                resize.make_room(size)?;
                let mut grow = || {
                    if resize.is_flat() {
                        resize.set_size(size, steps)?;
                        let new = format.size() - old;
                        steps.expect(preallocation.work(new))?;
                        preallocation.reserve(&**format.storage(), old, new, steps)?;
                        return steps.settle(&**format.storage());
                    }
                    self.prepare_growth(old, size, preallocation, resize, steps)?;
                    steps.settle(&**format.data_storage())?;
                    resize.set_size(size, &mut Steps::default())
                };
                let grown = grow();
                if grown.is_err() {
                    // What was set aside is given back; the first failure is the one to report.
                    let _ = resize.set_size(old, &mut Steps::default());
                }
                grown?;
            } else {
                resize.set_size(size, steps)?;
                if !resize.is_flat() {
                    // Not all who grow the disk later look for what is left in its last cluster.
                    self.clear_behind(size, size.next_multiple_of(format.write_alignment()))?;
                    format.flush()?;
                }
            }
            self.unpacked.forget(0, u64::MAX);
            Ok(())
        })
    }

    /// Refuses a size that the disk cannot have. Nothing is changed.
    pub(super) fn check_resize(&self, size: u64) -> Result<()> {
        self.exclusively(|format| resizable(format)?.check(size))
    }

    /// Makes everything between the old end and the new one read as zeroes, and sets space aside for it.
    fn prepare_growth(
        &self,
        old: u64,
        size: u64,
        mut preallocation: Preallocation,
        resize: &dyn Resize,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        let cluster = self.format.write_alignment();
        // What is left of the last cluster is nobody's: it counts as whole.
        self.clear_behind(old, size.next_multiple_of(cluster))?;
        if resize.fills_places() && preallocation == Preallocation::Off {
            preallocation = Preallocation::Metadata;
        }
        if preallocation == Preallocation::Off {
            return Ok(());
        }
        self.preallocate(old.next_multiple_of(cluster).min(size), size, preallocation, steps)
    }

    /// Zeroes what is mapped, or shows the backing file, from `at` (behind the end of the disk) up to `end`.
    fn clear_behind(&self, mut at: u64, end: u64) -> Result<()> {
        let below = self.backing().map_or(0, |image| image.size());
        while at < end {
            let mapping = self.format.map(GuestOffset(at), end - at, Lookup::Load)?;
            let Mapping { len, place } = mapping.expect("a look-up that loads has an answer");
            let shown = match place {
                Place::Data { .. } | Place::Compressed { .. } => len,
                Place::Zero { .. } => 0,
                Place::Unallocated { .. } => below.saturating_sub(at).min(len),
            };
            if shown > 0 {
                // To the end of the cluster, where metadata can say it of whole ones only.
                let whole = (at + shown).next_multiple_of(self.format.write_alignment()).min(at + len);
                self.zero_range(at, whole - at, ZeroIntent::Unmap)?;
            }
            at += len;
        }
        Ok(())
    }

    /// Gives every cluster from `at` up to `end`, which read as zeroes, a place, and what `preallocation` says.
    fn preallocate(
        &self,
        mut at: u64,
        end: u64,
        preallocation: Preallocation,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        steps.expect(end - at)?;
        let _range = self.ranges.lock(at, end - at, self.format.write_alignment());
        let storage = self.format.data_storage();
        while at < end {
            match self.format.prepare_write(GuestOffset(at), end - at)? {
                WriteStep::InPlace(place) => {
                    at += place.len;
                    steps.advance(place.len)?;
                }
                WriteStep::Allocate(allocation) => {
                    let len = allocation.request_len;
                    at += len;
                    if let Err(error) = set_aside(&**storage, &allocation, preallocation, steps) {
                        self.format.abandon(allocation);
                        return Err(error);
                    }
                    self.format.commit(allocation)?;
                    steps.advance(len - preallocation.work(len))?;
                }
            }
        }
        Ok(())
    }
}

/// Makes new space read as zeroes, inside the storage's length.
fn set_aside(
    storage: &dyn crate::Storage,
    allocation: &Allocation,
    preallocation: Preallocation,
    steps: &mut Steps<'_>,
) -> Result<()> {
    let (start, end) = (allocation.host.0, allocation.host.0 + allocation.len);
    let there = storage.len()?;
    if !allocation.reads_zero && start < there && preallocation != Preallocation::Full {
        storage.write_zeroes_at(start, allocation.len, crate::storage::ZeroMode::Unmap)?;
    }
    if there < end {
        if storage.capabilities().resize {
            storage.set_len(end)?;
        } else {
            storage.writev_at(IoVector::zeroes(1), end - 1)?;
        }
    }
    preallocation.reserve(storage, start, allocation.len, steps)
}
