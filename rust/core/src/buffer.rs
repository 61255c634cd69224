//! I/O vectors: lists of memory regions that one request fills or drains.
//!
//! A region is a pointer and a length and never a `&mut [u8]` over memory that others may touch (a Python
//! buffer, a guest's memory): bytes are copied in and out, no reference to them is ever made.
//! Regions have the layout of `struct iovec`, so that a vector goes to `preadv` as it is.

use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;

use smallvec::SmallVec;

/// Regions that a vector holds without an allocation of its own.
const INLINE: usize = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    ptr: *mut u8,
    len: usize,
}

const _: () = assert!(
    size_of::<Region>() == size_of::<libc::iovec>() && align_of::<Region>() == align_of::<libc::iovec>()
);

#[derive(Clone)]
struct Regions {
    list: SmallVec<[Region; INLINE]>,
    /// Bytes in all regions.
    len: usize,
}

impl Regions {
    fn new() -> Self {
        Regions { list: SmallVec::new(), len: 0 }
    }

    fn push(&mut self, ptr: *mut u8, len: usize) {
        if len > 0 {
            self.len = self.len.checked_add(len).expect("memory regions fit the address space");
            self.list.push(Region { ptr, len });
        }
    }

    fn take_front(&mut self, bytes: usize) -> Regions {
        assert!(bytes <= self.len, "cannot take more bytes than the vector has");
        if bytes == self.len {
            return std::mem::replace(self, Regions::new());
        }
        let mut front = Regions::new();
        let mut whole = 0;
        while front.len < bytes {
            let region = &mut self.list[whole];
            let part = region.len.min(bytes - front.len);
            front.push(region.ptr, part);
            if part == region.len {
                whole += 1;
            } else {
                region.ptr = region.ptr.wrapping_add(part);
                region.len -= part;
            }
        }
        self.list.drain(..whole);
        self.len -= bytes;
        front
    }

    fn is_aligned(&self, align: usize) -> bool {
        self.list.iter().all(|r| r.ptr.addr().is_multiple_of(align) && r.len.is_multiple_of(align))
    }

    fn iovecs(&self) -> &[libc::iovec] {
        // SAFETY: `Region` is `repr(C)` with the fields of `struct iovec` in its order; size and alignment
        // are asserted above. The slice borrows `self`.
        unsafe { std::slice::from_raw_parts(self.list.as_ptr().cast(), self.list.len()) }
    }
}

/// What vectors of zeroes point to.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Memory that a read fills, in order.
///
/// Unique: splitting consumes, so that no two vectors made by safe code name the same byte.
pub struct IoVectorMut<'a> {
    regions: Regions,
    memory: PhantomData<&'a mut [u8]>,
}

/// Memory that a write takes its bytes from, in order.
#[derive(Clone)]
pub struct IoVector<'a> {
    regions: Regions,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: the vector stands for a `&mut [u8]` (or for memory whose owner promised as much in `push_raw`), which is `Send`.
unsafe impl Send for IoVectorMut<'_> {}
// SAFETY: a shared reference to the vector reads lengths only; it touches no byte of the memory.
unsafe impl Sync for IoVectorMut<'_> {}
// SAFETY: the vector stands for a `&[u8]` (or for memory whose owner promised as much in `push_raw`), which is `Send`.
unsafe impl Send for IoVector<'_> {}
// SAFETY: as above; `&[u8]` is `Sync`.
unsafe impl Sync for IoVector<'_> {}

impl<'a> IoVectorMut<'a> {
    /// A vector with no memory yet.
    pub fn new() -> Self {
        IoVectorMut { regions: Regions::new(), memory: PhantomData }
    }

    /// Adds memory at the end.
    pub fn push(&mut self, slice: &'a mut [u8]) {
        self.regions.push(slice.as_mut_ptr(), slice.len());
    }

    /// Adds `len` bytes at `ptr` at the end.
    ///
    /// # Safety
    /// The memory is writable for `len` bytes until `'a` ends. Others may read and write it meanwhile only
    /// as with a device's DMA: what they see is unspecified, and nobody holds a `&` or `&mut` to it while an operation runs.
    pub unsafe fn push_raw(&mut self, ptr: *mut u8, len: usize) {
        self.regions.push(ptr, len);
    }

    /// Bytes of all regions.
    pub fn len(&self) -> usize {
        self.regions.len
    }

    /// Whether there is no byte to fill.
    pub fn is_empty(&self) -> bool {
        self.regions.len == 0
    }

    /// Splits the first `bytes` off; they belong to the vector returned.
    ///
    /// # Panics
    /// When there are fewer bytes.
    #[must_use]
    pub fn take_front(&mut self, bytes: usize) -> IoVectorMut<'a> {
        IoVectorMut { regions: self.regions.take_front(bytes), memory: PhantomData }
    }

    /// The same memory for a shorter time, for one operation of several on it.
    pub fn reborrow(&mut self) -> IoVectorMut<'_> {
        IoVectorMut { regions: self.regions.clone(), memory: PhantomData }
    }

    /// Whether every region starts at and is as long as a multiple of `align`.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.regions.is_aligned(align)
    }

    /// Fills all of it with zeroes.
    pub fn fill_zero(&mut self) {
        for region in &self.regions.list {
            // SAFETY: the region is writable for its length (`push`, `push_raw`).
            unsafe { region.ptr.write_bytes(0, region.len) };
        }
    }

    /// Fills it from `src`, which is as long as the vector.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_from_slice(&mut self, src: &[u8]) {
        assert_eq!(src.len(), self.len());
        let mut rest = src;
        for region in &self.regions.list {
            let (part, tail) = rest.split_at(region.len);
            // SAFETY: the region is writable for its length, `part` is as long; `copy` allows an overlap.
            unsafe { std::ptr::copy(part.as_ptr(), region.ptr, region.len) };
            rest = tail;
        }
    }

    /// The regions in the layout that `preadv` takes.
    pub fn as_iovecs(&mut self) -> &[libc::iovec] {
        self.regions.iovecs()
    }
}

impl Default for IoVectorMut<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl IoVector<'static> {
    /// `len` bytes of zeroes, which take up no memory.
    pub fn zeroes(len: usize) -> Self {
        let mut vector = Self::new();
        let mut rest = len;
        while rest > 0 {
            let part = rest.min(ZEROES.len());
            vector.push(&ZEROES[..part]);
            rest -= part;
        }
        vector
    }
}

impl<'a> IoVector<'a> {
    /// A vector with no memory yet.
    pub fn new() -> Self {
        IoVector { regions: Regions::new(), memory: PhantomData }
    }

    /// Adds memory at the end.
    pub fn push(&mut self, slice: &'a [u8]) {
        self.regions.push(slice.as_ptr().cast_mut(), slice.len());
    }

    /// Adds `len` bytes at `ptr` at the end.
    ///
    /// # Safety
    /// The memory is readable for `len` bytes until `'a` ends. Others may write it meanwhile only as a
    /// guest may write its memory under a device's DMA: which bytes are taken is then unspecified.
    pub unsafe fn push_raw(&mut self, ptr: *const u8, len: usize) {
        self.regions.push(ptr.cast_mut(), len);
    }

    /// Bytes of all regions.
    pub fn len(&self) -> usize {
        self.regions.len
    }

    /// Whether there is no byte to take.
    pub fn is_empty(&self) -> bool {
        self.regions.len == 0
    }

    /// Splits the first `bytes` off.
    ///
    /// # Panics
    /// When there are fewer bytes.
    #[must_use]
    pub fn take_front(&mut self, bytes: usize) -> IoVector<'a> {
        IoVector { regions: self.regions.take_front(bytes), memory: PhantomData }
    }

    /// Adds `other`'s regions at the end.
    pub fn append(&mut self, other: IoVector<'a>) {
        for region in other.regions.list {
            self.regions.push(region.ptr, region.len);
        }
    }

    /// Whether every region starts at and is as long as a multiple of `align`.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.regions.is_aligned(align)
    }

    /// Copies all of it to `dst`, which is as long as the vector.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_to_slice(&self, dst: &mut [u8]) {
        assert_eq!(dst.len(), self.len());
        let mut rest = dst;
        for region in &self.regions.list {
            let (part, tail) = rest.split_at_mut(region.len);
            // SAFETY: the region is readable for its length, `part` is as long; `copy` allows an overlap.
            unsafe { std::ptr::copy(region.ptr.cast_const(), part.as_mut_ptr(), region.len) };
            rest = tail;
        }
    }

    /// The regions in the layout that `pwritev` takes.
    pub fn as_iovecs(&self) -> &[libc::iovec] {
        self.regions.iovecs()
    }
}

impl Default for IoVector<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> From<&'a mut [u8]> for IoVectorMut<'a> {
    fn from(slice: &'a mut [u8]) -> Self {
        let mut vector = Self::new();
        vector.push(slice);
        vector
    }
}

impl<'a> From<&'a mut Vec<u8>> for IoVectorMut<'a> {
    fn from(vec: &'a mut Vec<u8>) -> Self {
        vec.as_mut_slice().into()
    }
}

impl<'a, const N: usize> From<&'a mut [u8; N]> for IoVectorMut<'a> {
    fn from(array: &'a mut [u8; N]) -> Self {
        array.as_mut_slice().into()
    }
}

impl<'a> FromIterator<&'a mut [u8]> for IoVectorMut<'a> {
    fn from_iter<I: IntoIterator<Item = &'a mut [u8]>>(slices: I) -> Self {
        let mut vector = Self::new();
        slices.into_iter().for_each(|slice| vector.push(slice));
        vector
    }
}

impl<'a> From<&'a mut [IoSliceMut<'_>]> for IoVectorMut<'a> {
    fn from(slices: &'a mut [IoSliceMut<'_>]) -> Self {
        slices.iter_mut().map(|slice| &mut **slice).collect()
    }
}

impl<'a> From<&'a [u8]> for IoVector<'a> {
    fn from(slice: &'a [u8]) -> Self {
        let mut vector = Self::new();
        vector.push(slice);
        vector
    }
}

impl<'a> From<&'a Vec<u8>> for IoVector<'a> {
    fn from(vec: &'a Vec<u8>) -> Self {
        vec.as_slice().into()
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for IoVector<'a> {
    fn from(array: &'a [u8; N]) -> Self {
        array.as_slice().into()
    }
}

impl<'a> FromIterator<&'a [u8]> for IoVector<'a> {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(slices: I) -> Self {
        let mut vector = Self::new();
        slices.into_iter().for_each(|slice| vector.push(slice));
        vector
    }
}

impl<'a> From<&'a [IoSlice<'_>]> for IoVector<'a> {
    fn from(slices: &'a [IoSlice<'_>]) -> Self {
        slices.iter().map(|slice| &**slice).collect()
    }
}

#[cfg(feature = "vm-memory")]
pub use volatile::VolatileSliceGuard;

#[cfg(feature = "vm-memory")]
mod volatile {
    //! vm-memory's volatile slices as I/O vectors.

    use vm_memory::VolatileSlice;
    use vm_memory::bitmap::{Bitmap, BitmapSlice};
    use vm_memory::volatile_memory::{PtrGuard, PtrGuardMut};

    use super::{IoVector, IoVectorMut};

    /// Keeps the memory of volatile slices mapped; that of a read also marks it dirty, all of it, when dropped.
    #[must_use = "the vector is used only while this lives"]
    pub struct VolatileSliceGuard<'a, P, B: Bitmap> {
        mapped: Vec<P>,
        dirty: Vec<(&'a B, usize)>,
    }

    impl<'a> IoVector<'a> {
        /// A guest's memory as a vector to write from, and the guard that keeps it mapped.
        ///
        /// The guard outlives every use of the vector. (It does something with vm-memory's `xen` backend only, which maps on demand;
        /// other guest memory is mapped for `'a`.)
        pub fn from_volatile_slice<B: BitmapSlice>(
            slices: impl IntoIterator<Item = &'a VolatileSlice<'a, B>>,
        ) -> (Self, VolatileSliceGuard<'a, PtrGuard, B>) {
            let mapped: Vec<_> = slices.into_iter().map(VolatileSlice::ptr_guard).collect();
            let mut vector = Self::new();
            for guard in &mapped {
                // SAFETY: a volatile slice is readable for its length during `'a`, while the guard lives; others use volatile accesses only.
                unsafe { vector.push_raw(guard.as_ptr(), guard.len()) };
            }
            (vector, VolatileSliceGuard { mapped, dirty: Vec::new() })
        }
    }

    impl<'a> IoVectorMut<'a> {
        /// A guest's memory as a vector to read into, and the guard that keeps it mapped and marks it dirty when dropped.
        ///
        /// The guard outlives every use of the vector, as with [`IoVector::from_volatile_slice`].
        pub fn from_volatile_slice<B: BitmapSlice>(
            slices: impl IntoIterator<Item = &'a VolatileSlice<'a, B>>,
        ) -> (Self, VolatileSliceGuard<'a, PtrGuardMut, B>) {
            let mut guard = VolatileSliceGuard { mapped: Vec::new(), dirty: Vec::new() };
            let mut vector = Self::new();
            for slice in slices {
                let mapped = slice.ptr_guard_mut();
                // SAFETY: a volatile slice is writable for its length during `'a`, while the guard lives; others use volatile accesses only.
                unsafe { vector.push_raw(mapped.as_ptr(), mapped.len()) };
                guard.mapped.push(mapped);
                guard.dirty.push((slice.bitmap(), slice.len()));
            }
            (vector, guard)
        }
    }

    impl<P, B: Bitmap> Drop for VolatileSliceGuard<'_, P, B> {
        fn drop(&mut self) {
            for (bitmap, len) in &self.dirty {
                bitmap.mark_dirty(0, *len);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::num::NonZeroUsize;

        use vm_memory::VolatileMemory;
        use vm_memory::bitmap::{AtomicBitmap, Bitmap, RefSlice};
        use vm_memory::{Bytes, VolatileSlice};

        use super::*;

        #[test]
        fn bytes_go_in_and_out() {
            let mut memory = [0_u8; 64];
            let whole = VolatileSlice::from(&mut memory[..]);
            let slices = [whole.get_slice(8, 4).unwrap(), whole.get_slice(32, 4).unwrap()];
            {
                let (mut vector, _guard) = IoVectorMut::from_volatile_slice(&slices);
                assert_eq!(vector.len(), 8);
                vector.copy_from_slice(b"abcdefgh");
            }
            let mut bytes = [0; 4];
            whole.read_slice(&mut bytes, 32).unwrap();
            assert_eq!(&bytes, b"efgh");
            let (vector, _guard) = IoVector::from_volatile_slice(&slices);
            let mut bytes = [0; 8];
            vector.copy_to_slice(&mut bytes);
            assert_eq!(&bytes, b"abcdefgh");
        }

        #[test]
        fn a_read_marks_its_memory_dirty() {
            let mut memory = [0_u8; 8192];
            let bitmap = AtomicBitmap::new(8192, NonZeroUsize::new(4096).unwrap());
            let slice_of = |offset| -> RefSlice<'_, AtomicBitmap> { bitmap.slice_at(offset) };
            // SAFETY: the memory lives as long as the slice and nobody else uses it.
            let slice = unsafe {
                VolatileSlice::with_bitmap(memory.as_mut_ptr().add(4096), 16, slice_of(4096), None)
            };
            let slices = [slice];
            drop(IoVector::from_volatile_slice(&slices));
            assert!(!bitmap.dirty_at(4096));
            drop(IoVectorMut::from_volatile_slice(&slices));
            assert!(bitmap.dirty_at(4096) && !bitmap.dirty_at(0));
        }
    }
}
