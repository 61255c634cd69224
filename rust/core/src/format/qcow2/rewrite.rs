//! Rewriting the header with its extensions and the backing file's name, so that a loss of power at any time leaves
//! the old or the new one.
//!
//! One sector reaches the medium whole or not at all, and a header with all that belongs to it is often longer. So the first
//! sector is the switch: what it refers to behind itself is durable before it, and never on top of what the
//! sector on the medium refers to. Recipe (docs/qcow2.md, "Rewriting the header"):
//!
//! 1. Where the new header can stand at its place beside the old one: what lies behind the first sector, barrier, the first sector, barrier.
//! 2. Otherwise the same twice, with a detour: first to sectors behind all that is there, then home. In version 3 the extensions
//!    go along (`header_length` says where they start; what it skips counts as fields nobody knows), in version 2 the name alone.
//! 3. Where that has no room, the name stays away from the extensions, if that has; or else the rewrite is refused.

use std::mem::offset_of;

use zerocopy::IntoBytes;

use super::extensions::{self, Extension};
use super::features::{self, AUTOCLEAR_KNOWN};
use super::header::{self, Header, in_file};
use crate::error::{Error, Result};
use crate::ondisk::{HEADER_V2_LEN, HEADER_V3_MIN_LEN, RawHeader};
use crate::storage::Storage;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// Everything in an image's first cluster: what is known can be changed, the rest is kept byte for byte.
///
/// It is a snapshot of the file: whoever changes the header of an open image holds `flushing` from [`read`](HeaderArea::read)
/// to [`install`](HeaderArea::install).
#[derive(Clone, Debug)]
pub(crate) struct HeaderArea {
    /// The fields, to be changed at will. Those that say where things are inside the first cluster
    /// (`header_length`, `backing_name_offset`, `backing_name_len`) are set by [`install`](HeaderArea::install).
    pub(crate) raw: RawHeader,
    /// What a version 3 header has behind the fields that are known.
    unknown_fields: Vec<u8>,
    extensions: Vec<Extension>,
    /// Empty: none.
    backing_name: Vec<u8>,
    on_disk: OnDisk,
}

impl HeaderArea {
    /// Reads the first cluster of an image whose header is valid, also of an encrypted, dirty or corrupt one.
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self> {
        let read = || {
            let file_len = storage.len()?;
            let first = header::first_cluster(storage, file_len)?;
            header::parse(&first, file_len)?.whole()?;
            let (raw, space) = header::fields(&first)?;
            let (extensions, extensions_len) = extensions::list(&first[space.clone()])?;
            let piece = |start: usize, len: usize| Piece { start, bytes: first[start..][..len].to_vec() };
            let mut pieces = vec![piece(0, space.start), piece(space.start, extensions_len)];
            let mut backing_name = Vec::new();
            if raw.backing_name_offset.get() != 0 {
                let name = piece(raw.backing_name_offset.get() as usize, raw.backing_name_len.get() as usize);
                backing_name.clone_from(&name.bytes);
                pieces.push(name);
            }
            let unknown_fields = first.get(size_of::<RawHeader>()..space.start).unwrap_or_default().to_vec();
            let on_disk = OnDisk { first, layout: Layout { pieces } };
            Ok(HeaderArea { raw, unknown_fields, extensions, backing_name, on_disk })
        };
        read().map_err(|error| in_file(storage, error))
    }

    /// The data of the (first) extension of that kind.
    pub(crate) fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().find(|extension| extension.kind == kind).map(|extension| &*extension.data)
    }

    /// Changes the extension of that kind in its place, adds it where QEMU would put it, or (`None`) removes it.
    pub(crate) fn set_extension(&mut self, kind: u32, data: Option<Vec<u8>>) {
        let there = self.extensions.iter().position(|extension| extension.kind == kind);
        match (there, data) {
            (Some(index), Some(data)) => self.extensions[index].data = data,
            (None, Some(data)) => {
                let behind = self.extensions.iter().position(|other| rank(other.kind) > rank(kind));
                self.extensions.insert(behind.unwrap_or(self.extensions.len()), Extension { kind, data });
            }
            (_, None) => self.extensions.retain(|extension| extension.kind != kind),
        }
    }

    /// Whether a backing file is named.
    pub(crate) fn has_backing(&self) -> bool {
        !self.backing_name.is_empty()
    }

    /// Changes the backing file's name and format; an empty name is none, and has no format.
    pub(crate) fn set_backing(&mut self, name: &[u8], format: Option<&str>) {
        self.backing_name = name.to_vec();
        let format = format.filter(|_| !name.is_empty()).map(|format| format.as_bytes().to_vec());
        self.set_extension(extensions::BACKING_FORMAT, format);
    }

    /// Puts this header in the place of the one that was read, durably. A crash on the way leaves the old header or this one (where the
    /// version goes down to 2, perhaps this one with version 3), each with all that belongs to it. Unknown autoclear bits are
    /// cleared, the feature name table is brought up to date where there is one in new images.
    ///
    /// # Errors
    /// Before anything is touched: [`InvalidInput`](crate::ErrorKind::InvalidInput) for a header that does not fit in a cluster,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where it cannot take the other's place safely, and what reading the header would say
    /// of what was put into it. After a failed write or barrier the file has the old or the new header.
    pub(crate) fn install(mut self, storage: &dyn Storage) -> Result<Header> {
        let mut install = || {
            let (route, header) = self.plan(storage)?;
            let end = route.iter().map(Layout::end).fold(self.on_disk.layout.end(), usize::max);
            for layout in route {
                self.on_disk.switch(storage, layout)?;
            }
            self.on_disk.wipe(storage, end)?;
            Ok(header)
        };
        install().map_err(|error| in_file(storage, error))
    }

    /// What [`install`](HeaderArea::install) would refuse, with nothing touched.
    pub(crate) fn check(&self, storage: &dyn Storage) -> Result<()> {
        self.clone().plan(storage).map(drop).map_err(|error| in_file(storage, error))
    }

    /// The layouts to switch to, one after the other, and the header that the last one is.
    fn plan(&mut self, storage: &dyn Storage) -> Result<(Vec<Layout>, Header)> {
        let file_len = storage.len()?;
        self.raw.autoclear = (self.raw.autoclear.get() & AUTOCLEAR_KNOWN).into();
        let route = self.route()?;
        let mut header = None;
        for layout in &route {
            header = Some(header::parse(&layout.to_bytes(self.cluster_size()), file_len)?.whole()?);
        }
        Ok((route, header.expect("a route has an end")))
    }

    fn cluster_size(&self) -> usize {
        1 << self.raw.cluster_bits.get()
    }

    /// The layouts to switch to, one after the other; the last one is the new header's.
    fn route(&mut self) -> Result<Vec<Layout>> {
        let as_it_was = self.clone();
        if self.raw.version.get() < 3 {
            self.set_extension(extensions::FEATURE_NAMES, None);
        } else if self.cluster_size() as u64 > features::MAX_CLUSTER_WITHOUT_NAMES {
            let names = features::merged_name_table(self.extension(extensions::FEATURE_NAMES));
            self.set_extension(extensions::FEATURE_NAMES, Some(names));
        }
        // The table is a courtesy: a header that has no room for one more goes without.
        match self.find_route() {
            Err(_) if as_it_was.extension(extensions::FEATURE_NAMES).is_none() => as_it_was.find_route(),
            found => found,
        }
    }

    fn find_route(&self) -> Result<Vec<Layout>> {
        let old = &self.on_disk.layout;
        let Some(home) = self.layout(Placing::Home) else {
            return Err(self.too_long());
        };
        if home.can_follow(old) {
            return Ok(vec![home]);
        }
        let behind = |end: usize| end.next_multiple_of(SECTOR);
        let free = behind(old.end().max(home.end()));
        for placing in [Placing::All(free), Placing::Name(free)] {
            if let Some(detour) = self.layout(placing)
                && detour.can_follow(old)
                && home.can_follow(&detour)
            {
                return Ok(vec![detour, home]);
            }
        }
        match self.layout(Placing::Name(behind(old.end()))) {
            Some(away) if away.can_follow(old) => Ok(vec![away]),
            _ => Err(self.no_room()),
        }
    }

    /// Where everything would be; `None`: the cluster is too small, or the version cannot say it.
    fn layout(&self, placing: Placing) -> Option<Layout> {
        let mut raw = self.raw;
        if let Placing::All(_) = placing {
            let either = self.on_disk.version().max(raw.version.get());
            raw.version = (either >= 3).then_some(3)?.into();
        }
        let v2 = raw.version.get() < 3;
        let fields_len = match raw.header_length.get() {
            _ if v2 => HEADER_V2_LEN as usize,
            // The byte of the compression type is there, or it need not be.
            HEADER_V3_MIN_LEN if raw.compression_type == 0 => HEADER_V3_MIN_LEN as usize,
            _ => size_of::<RawHeader>(),
        };
        let unknown = if v2 { &[][..] } else { &*self.unknown_fields };
        let start = match placing {
            Placing::All(start) => start,
            Placing::Home | Placing::Name(_) => fields_len + unknown.len(),
        };
        let area = extensions::to_bytes(&self.extensions);
        let name_start = match placing {
            Placing::Name(start) => start,
            Placing::Home | Placing::All(_) => start + area.len(),
        };
        raw.header_length = u32::try_from(start).ok()?.into();
        let name = &self.backing_name;
        (raw.backing_name_offset, raw.backing_name_len) = match name.len() as u32 {
            0 => (0.into(), 0.into()),
            len => ((name_start as u64).into(), len.into()),
        };
        let fields = [&raw.as_bytes()[..fields_len], unknown].concat();
        let mut pieces = vec![Piece { start: 0, bytes: fields }, Piece { start, bytes: area }];
        if !name.is_empty() {
            pieces.push(Piece { start: name_start, bytes: name.clone() });
        }
        let layout = Layout { pieces };
        (layout.end() <= self.cluster_size()).then_some(layout)
    }

    fn too_long(&self) -> Error {
        let area = extensions::to_bytes(&self.extensions).len();
        let len = size_of::<RawHeader>() + self.unknown_fields.len() + area + self.backing_name.len();
        Error::invalid_input(format!(
            "the header with its names would have {len} bytes, more than a cluster of {}; use shorter names, or \
             convert the image to one with a cluster size of {} at least",
            self.cluster_size(),
            len.next_power_of_two()
        ))
    }

    fn no_room(&self) -> Error {
        Error::unsupported(format!(
            "the header's cluster of {} bytes has no room to change the header so that a loss of power does no harm; \
             use shorter names, remove the old name first, or convert the image to one with larger clusters",
            self.cluster_size()
        ))
    }
}

/// QEMU's order of the kinds that it knows; the others follow.
fn rank(kind: u32) -> usize {
    use extensions::{BACKING_FORMAT, BITMAPS, CRYPTO_HEADER, DATA_FILE, FEATURE_NAMES};
    let order = [BACKING_FORMAT, DATA_FILE, CRYPTO_HEADER, FEATURE_NAMES, BITMAPS];
    order.iter().position(|known| *known == kind).unwrap_or(order.len())
}

/// Where extensions and name go.
#[derive(Clone, Copy, Debug)]
enum Placing {
    /// Behind the header, one after the other.
    Home,
    /// The extensions behind the header, the name there.
    Name(usize),
    /// Both there.
    All(usize),
}

#[derive(Clone, Debug)]
struct Piece {
    start: usize,
    bytes: Vec<u8>,
}

/// A header with all that it refers to in the first cluster; the first piece is the header.
#[derive(Clone, Debug)]
struct Layout {
    pieces: Vec<Piece>,
}

impl Layout {
    fn end(&self) -> usize {
        self.pieces.iter().map(|piece| piece.start + piece.bytes.len()).max().unwrap_or(0)
    }

    /// Puts the pieces to their places in `first`, which is long enough for those that reach past the first sector.
    fn put_into(&self, first: &mut [u8]) {
        for Piece { start, bytes } in &self.pieces {
            let end = (start + bytes.len()).min(first.len());
            if *start < end {
                first[*start..end].copy_from_slice(&bytes[..end - start]);
            }
        }
    }

    fn to_bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.put_into(&mut bytes);
        bytes
    }

    /// Whether all that this one has behind the first sector can be there while `old`'s first sector is in force.
    fn can_follow(&self, old: &Layout) -> bool {
        self.pieces.iter().all(|new| {
            old.pieces.iter().all(|old| {
                let start = new.start.max(old.start).max(SECTOR);
                let end = (new.start + new.bytes.len()).min(old.start + old.bytes.len());
                start >= end
                    || new.bytes[start - new.start..end - new.start]
                        == old.bytes[start - old.start..end - old.start]
            })
        })
    }
}

/// What the file holds.
#[derive(Clone, Debug)]
struct OnDisk {
    /// Its first cluster.
    first: Vec<u8>,
    layout: Layout,
}

impl OnDisk {
    fn version(&self) -> u32 {
        let bytes = self.first[offset_of!(RawHeader, version)..].first_chunk();
        bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    /// Puts `layout` in force, durably: what lies behind the first sector, barrier, the first sector, barrier.
    fn switch(&mut self, storage: &dyn Storage, layout: Layout) -> Result<()> {
        let mut first = self.first.clone();
        first.resize(first.len().max(layout.end()).max(SECTOR), 0);
        self.first.resize(first.len(), 0);
        layout.put_into(&mut first);
        let changed = |i: &usize| self.first[*i] != first[*i];
        if let Some(start) = (SECTOR..first.len()).find(changed) {
            let end = (SECTOR..first.len()).rfind(changed).map_or(start, |last| last + 1);
            storage.writev_at((&first[start..end]).into(), start as u64)?;
            storage.sync()?;
        }
        first[..SECTOR].copy_from_slice(&layout.to_bytes(SECTOR));
        storage.writev_at((&first[..SECTOR]).into(), 0)?;
        storage.sync()?;
        *self = OnDisk { first, layout };
        Ok(())
    }

    /// Zeroes what nothing refers to any more, up to `end`.
    fn wipe(&mut self, storage: &dyn Storage, end: usize) -> Result<()> {
        let end = end.min(self.first.len());
        let start = self.layout.end().min(end);
        if self.first[start..end].iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.first[start..end].fill(0);
        storage.writev_at((&self.first[start..end]).into(), start as u64)
    }
}

#[cfg(test)]
mod tests;
