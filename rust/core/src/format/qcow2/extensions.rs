//! Header extensions: everything between the header's end and the backing file's name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};
use crate::ondisk::{RawBitmaps, RawCryptoHeader, RawExtension, RawFeatureName};
use crate::units::HostOffset;

const END: u32 = 0;
/// Kind: the backing file's format.
pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Kind: the feature name table.
pub(crate) const FEATURE_NAMES: u32 = 0x6803_f857;
/// Kind: where the bitmap directory is.
pub(crate) const BITMAPS: u32 = 0x2385_2875;
/// Kind: where the encryption header is.
pub(crate) const CRYPTO_HEADER: u32 = 0x0537_be77;
/// Kind: the external data file's name.
pub(crate) const DATA_FILE: u32 = 0x4441_5441;

/// Bytes of a backing format's name at most: QEMU keeps it in 16 with a NUL.
pub(crate) const MAX_BACKING_FORMAT_LEN: usize = 15;
/// Bitmaps of one image at most, as in QEMU.
pub(crate) const MAX_BITMAPS: u32 = 65_535;
/// Bytes of the bitmap directory at most: 1 KiB for each of [`MAX_BITMAPS`], 64 MiB - 1 KiB.
pub(crate) const MAX_BITMAP_DIRECTORY_LEN: u64 = 1024 * MAX_BITMAPS as u64;

/// Where the bitmap directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitmapsExtension {
    /// Its entries.
    pub(crate) count: u32,
    /// Its length in bytes.
    pub(crate) directory_size: u64,
    /// Where it starts.
    pub(crate) directory_offset: HostOffset,
}

/// Where the encryption header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CryptoExtension {
    /// Where it starts: at a cluster.
    pub(crate) offset: HostOffset,
    /// Bytes of it, key material included.
    pub(crate) len: u64,
}

/// An extension as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    /// Its number.
    pub(crate) kind: u32,
    /// Its data, without padding.
    pub(crate) data: Vec<u8>,
}

/// All extensions of a header.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extensions {
    /// The backing file's format.
    pub(crate) backing_format: Option<String>,
    /// The external data file's name.
    pub(crate) data_file: Option<PathBuf>,
    /// The feature name table.
    pub(crate) feature_names: Vec<RawFeatureName>,
    /// The bitmap directory, whether or not the autoclear bit vouches for it.
    pub(crate) bitmaps: Option<BitmapsExtension>,
    /// Where the encryption header is.
    pub(crate) crypto_header: Option<CryptoExtension>,
    /// The others, in their order.
    pub(crate) unknown: Vec<Extension>,
}

impl Extensions {
    /// Reads the extensions in `area`, which starts `base` bytes into the file; `cluster_size` in bytes.
    pub(crate) fn parse(area: &[u8], base: u64, cluster_size: u64) -> Result<Self> {
        let mut extensions = Extensions::default();
        let mut seen = Vec::new();
        for item in (Items { area, base, at: 0 }) {
            let (at, kind, data) = item?;
            let known = [BACKING_FORMAT, FEATURE_NAMES, BITMAPS, CRYPTO_HEADER, DATA_FILE].contains(&kind);
            if known && seen.contains(&kind) {
                return Err(
                    Error::invalid_image(format!("header extension {kind:#010x} is there twice")).at(at)
                );
            }
            seen.push(kind);
            match kind {
                BACKING_FORMAT => {
                    extensions.backing_format = Some(backing_format(data).map_err(|e| e.at(at))?);
                }
                DATA_FILE => extensions.data_file = name(data),
                FEATURE_NAMES => extensions.feature_names = feature_names(data),
                BITMAPS => extensions.bitmaps = Some(bitmaps(data, cluster_size).map_err(|e| e.at(at))?),
                CRYPTO_HEADER => {
                    extensions.crypto_header = Some(crypto_header(data, cluster_size).map_err(|e| e.at(at))?);
                }
                _ => extensions.unknown.push(Extension { kind, data: data.to_vec() }),
            }
        }
        Ok(extensions)
    }

    /// The feature name table in `area`, as far as the extensions before it can be followed.
    pub(crate) fn parse_feature_names(area: &[u8]) -> Vec<RawFeatureName> {
        let mut items = Items { area, base: 0, at: 0 }.map_while(Result::ok);
        items.find(|item| item.1 == FEATURE_NAMES).map(|item| feature_names(item.2)).unwrap_or_default()
    }

    /// What lies behind the header for these extensions, the end marker included; in QEMU's order.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut area = Vec::new();
        if let Some(format) = &self.backing_format {
            push(&mut area, BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            push(&mut area, DATA_FILE, name.as_os_str().as_bytes());
        }
        if let Some(header) = &self.crypto_header {
            let raw = RawCryptoHeader { offset: header.offset.0.into(), len: header.len.into() };
            push(&mut area, CRYPTO_HEADER, raw.as_bytes());
        }
        if !self.feature_names.is_empty() {
            push(&mut area, FEATURE_NAMES, self.feature_names.as_bytes());
        }
        if let Some(bitmaps) = &self.bitmaps {
            let raw = RawBitmaps {
                count: bitmaps.count.into(),
                reserved: U32::ZERO,
                directory_size: bitmaps.directory_size.into(),
                directory_offset: bitmaps.directory_offset.0.into(),
            };
            push(&mut area, BITMAPS, raw.as_bytes());
        }
        for extension in &self.unknown {
            push(&mut area, extension.kind, &extension.data);
        }
        push(&mut area, END, &[]);
        area
    }
}

/// The extensions in `area` as they stand, and the bytes that they take there with the end marker, where there is one.
pub(crate) fn list(area: &[u8]) -> Result<(Vec<Extension>, usize)> {
    let (mut extensions, mut end) = (Vec::new(), 0);
    for item in (Items { area, base: 0, at: 0 }) {
        let (at, kind, data) = item?;
        extensions.push(Extension { kind, data: data.to_vec() });
        end = at as usize + size_of::<RawExtension>() + data.len().next_multiple_of(8);
    }
    Ok((extensions, (end + size_of::<RawExtension>()).min(area.len())))
}

/// What lies behind the header for these extensions, the end marker included.
pub(crate) fn to_bytes(extensions: &[Extension]) -> Vec<u8> {
    let mut area = Vec::new();
    for extension in extensions {
        push(&mut area, extension.kind, &extension.data);
    }
    push(&mut area, END, &[]);
    area
}

/// Walks the extensions up to the end marker or the end of the area.
struct Items<'a> {
    area: &'a [u8],
    base: u64,
    at: usize,
}

impl<'a> Iterator for Items<'a> {
    /// Where the extension starts in the file, its kind, its data.
    type Item = Result<(u64, u32, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.area.get(self.at..).filter(|rest| !rest.is_empty())?;
        let at = self.base + self.at as u64;
        let Ok((head, data)) = RawExtension::read_from_prefix(rest) else {
            self.at = self.area.len();
            return Some(Err(Error::invalid_image("a header extension is cut off").at(at)));
        };
        let (kind, len) = (head.kind.get(), head.len.get() as usize);
        if kind == END {
            self.at = self.area.len();
            return None;
        }
        let Some(data) = data.get(..len) else {
            self.at = self.area.len();
            return Some(Err(Error::invalid_image(format!(
                "header extension {kind:#010x} claims {len} bytes; it would leave the space for extensions"
            ))
            .at(at)));
        };
        self.at += size_of::<RawExtension>() + len.next_multiple_of(8);
        Some(Ok((at, kind, data)))
    }
}

fn push(area: &mut Vec<u8>, kind: u32, data: &[u8]) {
    let head = RawExtension { kind: kind.into(), len: (data.len() as u32).into() };
    area.extend_from_slice(head.as_bytes());
    area.extend_from_slice(data);
    area.resize(area.len().next_multiple_of(8), 0);
}

/// A file's name as the header holds it. Like QEMU, what follows a NUL is not of the name, and an empty name is none.
pub(crate) fn name(bytes: &[u8]) -> Option<PathBuf> {
    let name = bytes.split(|b| *b == 0).next().filter(|name| !name.is_empty())?;
    Some(OsString::from_vec(name.to_vec()).into())
}

fn backing_format(data: &[u8]) -> Result<String> {
    let data = data.split(|b| *b == 0).next().unwrap_or_default();
    if data.len() > MAX_BACKING_FORMAT_LEN {
        return Err(Error::invalid_image(format!(
            "the backing file's format has a name of {} bytes; no format's name is longer than {MAX_BACKING_FORMAT_LEN}",
            data.len()
        )));
    }
    OsStr::from_bytes(data)
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::invalid_image("the name of the backing file's format is no text"))
}

fn feature_names(data: &[u8]) -> Vec<RawFeatureName> {
    data.chunks_exact(size_of::<RawFeatureName>())
        .filter_map(|entry| RawFeatureName::read_from_bytes(entry).ok())
        .collect()
}

fn crypto_header(data: &[u8], cluster_size: u64) -> Result<CryptoExtension> {
    let raw = RawCryptoHeader::read_from_bytes(data).map_err(|_| {
        Error::invalid_image(format!(
            "the encryption header's extension has {} bytes instead of 16",
            data.len()
        ))
    })?;
    let (offset, len) = (raw.offset.get(), raw.len.get());
    if offset == 0 || !offset.is_multiple_of(cluster_size) {
        return Err(Error::invalid_image(format!(
            "the encryption header starts at {offset:#x}, which is no cluster that could hold it"
        )));
    }
    Ok(CryptoExtension { offset: HostOffset(offset), len })
}

fn bitmaps(data: &[u8], cluster_size: u64) -> Result<BitmapsExtension> {
    let raw = RawBitmaps::read_from_bytes(data).map_err(|_| {
        Error::invalid_image(format!("the bitmaps extension has {} bytes instead of 24", data.len()))
    })?;
    let (count, size, offset) = (raw.count.get(), raw.directory_size.get(), raw.directory_offset.get());
    let problem = if raw.reserved.get() != 0 {
        "its reserved field is not zero".to_owned()
    } else if count == 0 || count > MAX_BITMAPS {
        format!("it claims {count} bitmaps; 1 to {MAX_BITMAPS} are possible")
    } else if size > MAX_BITMAP_DIRECTORY_LEN {
        format!("it claims a directory of {size} bytes; {MAX_BITMAP_DIRECTORY_LEN} are the most")
    } else if offset == 0 || !offset.is_multiple_of(cluster_size) {
        format!("its directory starts at {offset:#x}, which is no cluster that could hold it")
    } else {
        return Ok(BitmapsExtension { count, directory_size: size, directory_offset: HostOffset(offset) });
    };
    Err(Error::invalid_image(format!("the bitmaps extension makes no sense: {problem}")))
}
