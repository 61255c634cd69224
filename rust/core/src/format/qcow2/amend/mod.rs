//! Changing what an image is, with its content left alone: version, refcount width, what it names.
//!
//! Recipe (docs/qcow2.md, "Amending"): everything that can be refused is refused first; then what the new header will name is
//! written to where the old one names nothing, and one rewriting of the header puts all of it in force at once.

mod zeroes;

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::create::Version;
use super::extensions;
use super::features::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, COMPATIBLE_LAZY_REFCOUNTS, INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_KNOWN, incompatible_names, name_table,
};
use super::header::{Header, V2_REFCOUNT_ORDER, in_file, order_of_refcount_bits};
use super::pending::Dropped;
use super::refcounts::{Refcounts, Resized};
use super::rewrite::HeaderArea;
use super::{Driver, names, refuse_unsafe_writes};
use crate::error::{Error, ErrorKind, Result};
use crate::format::steps::Steps;
use crate::format::{Format, ImplicitReference};
use crate::storage::Storage;

/// What is to become of the backing file's reference. The file itself is not looked at, nor is the image's content made to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackingChange {
    /// No backing file: what the image does not hold reads as zeroes.
    Drop,
    /// This one, spelled as here.
    Set(ImplicitReference),
    /// The one that is there, with this format.
    Format(String),
}

/// What is to become of the external data file's name. The file itself is not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataFileChange {
    /// No name: who opens the image has to bring the file.
    Drop,
    /// This one, spelled as here.
    Set(PathBuf),
}

/// What of an image is to change; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmendOptions {
    /// Version of the format.
    pub version: Option<Version>,
    /// Put off refcount updates while the image is open (version 3).
    pub lazy_refcounts: Option<bool>,
    /// Bits of a refcount: 1, 2, 4, 8, 16, 32 or 64; 16 in version 2.
    pub refcount_bits: Option<u32>,
    /// The backing file.
    pub backing: Option<BackingChange>,
    /// The name of the external data file.
    pub data_file: Option<DataFileChange>,
    /// The external data file is a raw image of the disk. It can cease to be one, and not become one.
    pub data_file_raw: Option<bool>,
}

/// Amends the image in `storage`, which nobody has open. `steps` is told the bytes of tables that are done and all of
/// them; an error of its ends the amendment while the old header is still in force, with the image as good as before.
///
/// # Errors
/// Before anything is touched: [`InvalidInput`](ErrorKind::InvalidInput) for options that are wrong, exclude each other or do not go with the
/// image, [`Unsupported`](ErrorKind::Unsupported) for what the new version cannot have and for an image that has to be repaired first.
/// After any other error the old header or the new one is in force, and at worst clusters are leaked.
pub fn amend(storage: &Arc<dyn Storage>, options: &AmendOptions, steps: &mut Steps<'_>) -> Result<()> {
    let amended = Amendment::of(storage, options).and_then(|amendment| amendment.run(steps));
    amended.map_err(|error| in_file(&**storage, error))
}

/// Refuses what [`amend`] would refuse after a look at the header.
pub(crate) fn check(storage: &Arc<dyn Storage>, options: &AmendOptions) -> Result<()> {
    let checked = Amendment::of(storage, options).and_then(|amendment| amendment.area.check(&**storage));
    checked.map_err(|error| in_file(&**storage, error))
}

/// Versions, feature bits, refcount width.
fn change_fields(area: &mut HeaderArea, old: &Header, options: &AmendOptions) -> Result<()> {
    let version = match options.version {
        Some(Version::V2) => 2,
        Some(Version::V3) => 3,
        None => old.version,
    };
    let raw = &mut area.raw;
    raw.version = version.into();
    let order = options.refcount_bits.map_or(Ok(old.refcount_order), order_of_refcount_bits)?;
    raw.refcount_order = order.into();
    match options.lazy_refcounts {
        Some(true) if version == 2 => return Err(Error::invalid_input("lazy refcounts need version 3")),
        Some(true) => raw.compatible |= COMPATIBLE_LAZY_REFCOUNTS,
        Some(false) => raw.compatible &= !COMPATIBLE_LAZY_REFCOUNTS,
        None => {}
    }
    match options.data_file_raw {
        Some(true) if !old.is_data_file_raw() => {
            return Err(Error::invalid_input(
                "a data file that is there cannot become a raw image of the disk; make a new image with data_file_raw",
            ));
        }
        Some(false) => raw.autoclear &= !AUTOCLEAR_DATA_FILE_RAW,
        Some(true) | None => {}
    }
    if version == 2 {
        if order != V2_REFCOUNT_ORDER {
            return Err(Error::invalid_input(
                "version 2 has refcounts of 16 bits only; ask for refcount_bits 16 as well",
            ));
        }
        if old.version > 2 {
            refuse_version_3_only(old)?;
            (raw.incompatible, raw.compatible, raw.autoclear) = (0.into(), 0.into(), 0.into());
            raw.compression_type = 0;
        }
    }
    Ok(())
}

/// Refuses what the header says that version 2 cannot have. What the tables say is for later.
fn refuse_version_3_only(old: &Header) -> Result<()> {
    let features = old.incompatible & INCOMPATIBLE_KNOWN & !INCOMPATIBLE_COMPRESSION;
    let problem = if features != 0 {
        incompatible_names(features, &name_table())
    } else if old.autoclear & AUTOCLEAR_BITMAPS != 0 {
        "persistent bitmaps (remove them first)".to_owned()
    } else if old.encryption.is_some() {
        // Zeroes would have to be encrypted, each where it stands.
        "encryption".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::unsupported(format!(
        "version 2 cannot have what the image has: {problem}; convert it instead"
    )))
}

/// The backing file and the data file.
fn change_references(area: &mut HeaderArea, old: &Header, options: &AmendOptions) -> Result<()> {
    match &options.data_file {
        None => {}
        Some(_) if !old.has_data_file() => {
            return Err(Error::invalid_input("the image has no external data file whose name could change"));
        }
        Some(DataFileChange::Drop) => area.set_extension(extensions::DATA_FILE, None),
        Some(DataFileChange::Set(name)) => {
            names::check_data_file(name)?;
            area.set_extension(extensions::DATA_FILE, Some(name.as_os_str().as_bytes().to_vec()));
        }
    }
    match &options.backing {
        None => {}
        Some(BackingChange::Drop) => area.set_backing(b"", None),
        Some(BackingChange::Set(backing)) => {
            names::check_backing(backing)?;
            if old.is_data_file_raw() && options.data_file_raw != Some(false) {
                return Err(Error::invalid_input(
                    "a raw data file holds the whole disk and cannot have a backing file",
                ));
            }
            area.set_backing(backing.name.as_os_str().as_bytes(), backing.format.as_deref());
        }
        Some(BackingChange::Format(_)) if old.backing.is_none() => {
            return Err(Error::invalid_input("the image has no backing file whose format could change"));
        }
        Some(BackingChange::Format(format)) => {
            names::check_format(format)?;
            area.set_extension(extensions::BACKING_FORMAT, Some(format.as_bytes().to_vec()));
        }
    }
    Ok(())
}

/// An image on its way from `old` to the header in `area`.
struct Amendment<'a> {
    storage: &'a Arc<dyn Storage>,
    old: Header,
    area: HeaderArea,
}

impl<'a> Amendment<'a> {
    fn of(storage: &'a Arc<dyn Storage>, options: &AmendOptions) -> Result<Self> {
        if !storage.capabilities().write {
            return Err(Error::new(ErrorKind::ReadOnly, "the storage was opened read-only"));
        }
        let old = Header::read(&**storage)?;
        refuse_unsafe_writes(&old)?;
        let mut area = HeaderArea::read(&**storage)?;
        change_fields(&mut area, &old, options)?;
        change_references(&mut area, &old, options)?;
        Ok(Amendment { storage, old, area })
    }

    fn run(mut self, steps: &mut Steps<'_>) -> Result<()> {
        let storage = &**self.storage;
        let cluster_size = self.old.cluster_size();
        let version = self.area.raw.version.get();
        let order = self.area.raw.refcount_order.get();

        self.area.check(storage)?;
        let resize = order != self.old.refcount_order;
        if resize {
            let mut refcounts = Refcounts::open(storage, &self.old)?;
            steps.expect(3 * refcounts.block_count() * cluster_size)?;
            Resized::plan(&mut refcounts, storage, order, FxHashSet::default(), &mut || {
                steps.advance(cluster_size)
            })?;
        }
        let mut released = Vec::new();
        if version < self.old.version {
            self.expand_zeroes(steps)?;
        } else if version > self.old.version {
            released.extend(self.move_snapshot_table()?);
        }

        let storage = &**self.storage;
        if resize {
            self.resize_refcounts(order, &released, steps)
        } else {
            // The table moves when what was done before made it longer.
            let now = Header::read(storage)?;
            self.area.raw.refcount_table_offset = now.refcount_table_offset.0.into();
            self.area.raw.refcount_table_clusters = now.refcount_table_clusters.into();
            self.area.install(storage)?;
            // The new header is in force: an error leaves a leak, no more.
            let _ = release(self.storage, &released);
            Ok(())
        }
    }

    fn expand_zeroes(&mut self, steps: &mut Steps<'_>) -> Result<()> {
        let mut driver = Driver::open(Arc::clone(self.storage), true)?;
        driver.set_has_backing(self.old.backing.is_some() || self.area.has_backing());
        zeroes::check_snapshots(&driver)?;
        let tables = zeroes::all_tables(&driver)?;
        steps.expect(2 * tables.len() as u64 * self.old.cluster_size())?;
        zeroes::check(&driver, &tables, steps)?;
        driver.start_writing()?;
        zeroes::expand(&driver, &tables, steps)?;
        driver.close()
    }

    /// Moves the snapshot table, where version 3 wants more of it; returns where the old one is.
    fn move_snapshot_table(&mut self) -> Result<Option<Dropped>> {
        let driver = Driver::open(Arc::clone(self.storage), true)?;
        let Some((host, old)) = driver.put_version_3_table()? else {
            return Ok(None);
        };
        driver.close()?;
        self.area.raw.snapshot_offset = host.0.into();
        Ok(Some(old))
    }

    fn resize_refcounts(mut self, order: u32, released: &[Dropped], steps: &mut Steps<'_>) -> Result<()> {
        let cluster_size = self.old.cluster_size();
        let storage = &**self.storage;
        let bits = self.old.cluster_bits;
        let mut old = Refcounts::open(storage, &Header::read(storage)?)?;
        let clusters =
            released.iter().flat_map(|range| range.host.0 >> bits..=(range.host.0 + range.len - 1) >> bits);
        let resized =
            Resized::plan(&mut old, storage, order, clusters.collect(), &mut || steps.advance(cluster_size))?;
        resized.write(&mut old, storage, &mut || steps.advance(cluster_size))?;
        steps.settle(storage)?;
        storage.sync()?;
        self.area.raw.refcount_table_offset = resized.structure.table_offset().0.into();
        self.area.raw.refcount_table_clusters = resized.structure.table_clusters().into();
        self.area.install(storage)?;
        // Nothing counts or names the old structure any more; what cannot be given back stays in the file.
        for run in resized.freed.chunk_by(|a, b| a + 1 == *b) {
            let _ = storage.discard_at(run[0] << bits, (run.len() as u64) << bits);
        }
        Ok(())
    }
}

/// Takes one reference off each range.
fn release(storage: &Arc<dyn Storage>, ranges: &[Dropped]) -> Result<()> {
    if ranges.is_empty() {
        return Ok(());
    }
    let driver = Driver::open(Arc::clone(storage), true)?;
    driver.drop_references(ranges)?;
    driver.close()
}
