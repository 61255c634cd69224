//! What an image must show: its disk as a plain array of bytes, and beside it whatever else operations change.

use std::ops::Range;
use std::sync::Arc;

use imago_core::access::image::Image;

use crate::ops::Op;
use crate::qcow2::Qcow2;

/// What scripts aim at: the edges of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the disk when a script begins.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Bytes of a subcluster; a cluster's without them.
    pub subcluster: u64,
    /// Guest bytes that one L2 table maps.
    pub table: u64,
    /// Compressed clusters can be written.
    pub compresses: bool,
    /// Snapshots that a script may have at once; 0 where there can be none.
    pub snapshots: usize,
    /// The disk's size can change.
    pub resizes: bool,
    /// Bitmaps that a script may have at once; 0 where there can be none.
    pub bitmaps: usize,
}

/// The bytes that a write with that seed puts at `offset`; seed 0 writes zeroes.
pub fn pattern(seed: u8, offset: u64, len: u64) -> Vec<u8> {
    let byte =
        |at: u64| (at ^ at >> 8 ^ at >> 16).wrapping_mul(31).wrapping_add(u64::from(seed) * 97) as u8 | 1;
    if seed == 0 { vec![0; len as usize] } else { (offset..offset + len).map(byte).collect() }
}

/// What a compressed write with that seed puts at `offset`: bytes of which most clusters pack well, some do not, and
/// some are zeroes.
pub fn packable(seed: u8, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = pattern(seed, offset, len);
    if !seed.is_multiple_of(4) {
        for (run, at) in bytes.chunks_mut(24).zip((offset..).step_by(24)) {
            run.fill(pattern(seed, at / 24, 1)[0]);
        }
    }
    bytes
}

/// What an image shows to whoever looks at it.
///
/// An operation that changes something else than the disk has a field here, so that the model, the history of a
/// crash ([`History`](crate::history::History)) and the oracle ([`View::parse`]) know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The disk; its length is the disk's size.
    pub disk: Vec<u8>,
    /// Name and disk of each snapshot, in the order of their table.
    pub snapshots: Vec<(String, Arc<[u8]>)>,
    /// The persistent bitmaps, in the order of their directory.
    pub bitmaps: Vec<Bitmap>,
}

/// A persistent dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// It records writes.
    pub enabled: bool,
    /// Bytes that a bit stands for.
    pub granule: u64,
    /// Its bits; `None`: it is inconsistent, nobody knows what they should be.
    pub dirty: Option<Vec<bool>>,
}

impl Bitmap {
    /// One of a disk of `size` bytes in which nothing is dirty.
    pub fn clean(name: String, enabled: bool, granule: u64, size: u64) -> Self {
        Bitmap { name, enabled, granule, dirty: Some(vec![false; size.div_ceil(granule) as usize]) }
    }

    /// Those that the oracle finds.
    pub(crate) fn all_of(image: &Qcow2<'_>) -> Result<Vec<Self>, String> {
        let bitmap = |found: &crate::qcow2::Bitmap| {
            let (enabled, size) = (found.flags & 2 != 0, image.header.size);
            let mut bitmap = Bitmap::clean(found.name.clone(), enabled, 1 << found.granularity_bits, size);
            if found.flags & 1 == 0 {
                image.dirty(found)?.into_iter().for_each(|(offset, len)| bitmap.mark(offset, len));
            } else {
                bitmap.dirty = None;
            }
            Ok(bitmap)
        };
        image.bitmaps.iter().map(bitmap).collect()
    }

    /// Makes what is in a range dirty.
    pub(crate) fn mark(&mut self, offset: u64, len: u64) {
        let granules = offset / self.granule..(offset + len).div_ceil(self.granule);
        if let Some(dirty) = self.dirty.as_mut().filter(|_| len > 0) {
            dirty[granules.start as usize..granules.end as usize].fill(true);
        }
    }

    /// What is dirty, of a disk of `size` bytes.
    fn ranges(&self, size: u64) -> Vec<(u64, u64)> {
        let dirty = self.dirty.iter().flatten().zip((0..).step_by(self.granule as usize));
        let range = |(_, at): (&bool, u64)| (at, self.granule.min(size - at));
        dirty.filter(|(dirty, _)| **dirty).map(range).collect()
    }

    pub(crate) fn merge(&mut self, other: &Bitmap, size: u64) {
        for (offset, len) in other.ranges(size) {
            self.mark(offset, len);
        }
    }

    pub(crate) fn resize(&mut self, size: u64) {
        if let Some(dirty) = &mut self.dirty {
            dirty.resize(size.div_ceil(self.granule) as usize, false);
        }
    }

    /// Whether it says so of every granule in which the two disks, of which one may be longer, differ.
    pub(crate) fn knows_of(&self, one: &[u8], other: &[u8]) -> bool {
        let common = one.len().min(other.len());
        let pairs = one[..common].chunks(self.granule as usize).zip(other.chunks(self.granule as usize));
        let mut dirty = self.dirty.iter().flatten().zip(pairs);
        dirty.all(|(dirty, (one, other))| *dirty || *one == other[..one.len()])
    }
}

impl View {
    /// A disk and nothing else.
    pub fn of_disk(disk: Vec<u8>) -> Self {
        View { disk, snapshots: Vec::new(), bitmaps: Vec::new() }
    }

    /// What the oracle sees in the bytes of an image. `backing`: what the backing file shows; `data_file`: its bytes.
    pub fn parse(bytes: &[u8], backing: &[u8], data_file: Option<&[u8]>) -> Result<Self, String> {
        let image = Qcow2::parse(bytes)?;
        let mut view = View::of_disk(image.content(backing, data_file)?);
        for snapshot in &image.snapshots {
            let disk = image.snapshot_content(snapshot, backing)?;
            view.snapshots.push((snapshot.name.clone(), disk.into()));
        }
        view.bitmaps = Bitmap::all_of(&image)?;
        Ok(view)
    }

    /// Everything but the disk and the bits of bitmaps: what an operation changes as a whole or not at all.
    pub fn beside_disk(&self) -> impl PartialEq + '_ {
        (&self.snapshots, self.bitmaps.iter().map(|bitmap| &bitmap.name).collect::<Vec<_>>())
    }

    /// Tells bitmaps that record of a change of the disk.
    pub(crate) fn record(&mut self, offset: u64, len: u64) {
        self.bitmaps.iter_mut().filter(|bitmap| bitmap.enabled).for_each(|bitmap| bitmap.mark(offset, len));
    }

    /// # Errors
    /// What `found`, which should be the same, shows instead.
    pub fn expect(&self, found: &View) -> Result<(), String> {
        let (ours, theirs) = (&self.disk, &found.disk);
        if ours.len() != theirs.len() {
            return Err(format!("a disk of {} bytes, not {}", theirs.len(), ours.len()));
        }
        if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
            return Err(format!("{:#x} at {at:#x}, not {:#x}", theirs[at], ours[at]));
        }
        let names = |view: &View| view.snapshots.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        if names(self) != names(found) {
            return Err(format!("the snapshots {:?}, not {:?}", names(found), names(self)));
        }
        if let Some(((name, _), _)) =
            self.snapshots.iter().zip(&found.snapshots).find(|(ours, theirs)| ours != theirs)
        {
            return Err(format!("another content in the snapshot {name:?}"));
        }
        if self.bitmaps == found.bitmaps {
            return Ok(());
        }
        let facts = |bitmap: &Bitmap| {
            let bits = bitmap.dirty.as_ref().map(|dirty| dirty.iter().filter(|dirty| **dirty).count());
            format!(
                "{} (enabled {}, {} bytes, {bits:?} dirty)",
                bitmap.name.trim_end_matches('-'),
                bitmap.enabled,
                bitmap.granule
            )
        };
        let of = |view: &View| view.bitmaps.iter().map(facts).collect::<Vec<_>>();
        Err(format!("the bitmaps {:?}, not {:?}", of(found), of(self)))
    }
}

/// What an image must show, changed by [`Op`]s as the image is.
#[derive(Clone, Debug)]
pub struct Model {
    /// What it shows.
    pub view: View,
    geometry: Geometry,
    discards: Discards,
}

/// What discarded clusters read as. The edges of a discard, parts of clusters, may read either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discards {
    /// Zeroes.
    Zero,
    /// What they showed. So it is in version 2 over a backing file, where old data of that file would show.
    Keep,
    /// One or the other, byte by byte: their storage decides.
    Either,
}

impl Model {
    /// An image that shows `view` now.
    pub fn new(view: View, geometry: Geometry, discards: Discards) -> Self {
        Model { view, geometry, discards }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn has_inconsistent_bitmap(&self) -> bool {
        self.view.bitmaps.iter().any(|bitmap| bitmap.dirty.is_none())
    }

    /// Bytes of a cluster.
    pub(crate) fn cluster(&self) -> u64 {
        self.geometry.cluster
    }

    /// Size of the disk now, in bytes.
    pub fn size(&self) -> u64 {
        self.view.disk.len() as u64
    }

    /// What it shows if `op` leaves all that it may: a discard zeroes its edges too.
    pub(crate) fn at_most(&self, op: &Op) -> View {
        let mut view = self.view.clone();
        if let Op::Discard { offset, len } = *op
            && self.discards != Discards::Keep
        {
            view.disk[offset as usize..(offset + len) as usize].fill(0);
        }
        view
    }

    /// The guest range of a discard that must read as zeroes afterwards: its whole clusters; the disk's last
    /// one is whole where the discard reaches its end.
    pub(crate) fn discarded(&self, offset: u64, len: u64) -> Range<usize> {
        let (size, cluster) = (self.size(), self.geometry.cluster);
        let start = offset.next_multiple_of(cluster).min(size);
        let end = if offset + len == size { size } else { (offset + len) / cluster * cluster };
        let certain = self.discards == Discards::Zero;
        if certain { start as usize..end.max(start) as usize } else { 0..0 }
    }

    /// Does `op` to both; reads compare. After [`Op::Reopen`], which flushes here, closing and opening is the caller's.
    pub fn apply(&mut self, image: &Image, op: &Op) -> Result<(), String> {
        let op = op.fitted(self);
        op.run(image, self).map_err(|e| format!("{op:?}: {e}"))?;
        op.change(self);
        match op {
            Op::Read { offset, len } => self.compare(image, offset, len),
            // Parts of clusters may be zeroed or left: whichever it was stays.
            Op::Discard { offset, len } if len > 0 => self.settle(image, offset, len),
            _ => Ok(()),
        }
    }

    /// Reads a range of the image and compares.
    pub fn compare(&self, image: &Image, offset: u64, len: u64) -> Result<(), String> {
        let mut found = vec![0xa5; len as usize];
        image.read(&mut found, offset).map_err(|e| format!("read {len} at {offset}: {e}"))?;
        let wanted = &self.view.disk[offset as usize..(offset + len) as usize];
        match found.iter().zip(wanted).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(i) => Err(format!("offset {:#x}: {:#x}, not {:#x}", offset + i as u64, found[i], wanted[i])),
        }
    }

    /// Reads the whole disk and compares.
    pub fn compare_all(&self, image: &Image) -> Result<(), String> {
        if image.size() != self.size() {
            return Err(format!("a disk of {} bytes, not {}", image.size(), self.size()));
        }
        self.compare(image, 0, self.size())
    }

    fn settle(&mut self, image: &Image, offset: u64, len: u64) -> Result<(), String> {
        let mut found = vec![0; len as usize];
        image.read(&mut found, offset).map_err(|e| format!("read after discard: {e}"))?;
        let whole = self.discarded(offset, len);
        let may_zero = self.discards != Discards::Keep;
        let disk = &mut self.view.disk;
        for (at, &byte) in (offset as usize..).zip(&found) {
            let zeroed = byte == 0 && may_zero && !whole.contains(&at);
            if byte != disk[at] && !zeroed {
                return Err(format!(
                    "after the discard, offset {at:#x} shows {byte:#x}, not {:#x}",
                    disk[at]
                ));
            }
            disk[at] = byte;
        }
        Ok(())
    }
}
