//! `info`: the document that `qemu-img info --output=json` prints, as Python objects.

use std::path::Path;

use imago_core::access::image::CHAIN_MAX;
use imago_core::access::info::{ImageInfo, info_storage};
use imago_core::access::open::ReferenceKind;
use imago_core::crypt::{CipherSpec, IvGenerator};
use imago_core::format::luks::LuksInfo;
use imago_core::format::qcow2_info::{BitmapInfo, EncryptionInfo, Qcow2Info};
use imago_core::format::{FormatKind, FormatSpecificInfo};
use imago_core::storage::{Lock, StorageOpenOptions};
use imago_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::Format;
use super::source::Place;
use crate::errors::Failure;
use crate::gate::PyGate;
use crate::operation::{Face, Venue};
use crate::storages::LockWord;
use crate::{bitmaps, snapshots};

const SECTOR: u64 = 512;
/// An image's facts and the length of its file.
struct Facts {
    image: ImageInfo,
    /// In bytes, up to a whole sector, as QEMU sees it.
    file_length: u64,
}

impl Facts {
    fn read(place: Place, kind: Option<FormatKind>, lock: Lock) -> Result<Self> {
        let storage = place.storage(StorageOpenOptions::new().lock(lock))?;
        let image = info_storage(&storage, kind)?;
        Ok(Facts { image, file_length: storage.len()?.next_multiple_of(SECTOR) })
    }

    /// Of the image at `place` and of those below it that `gate` lets pass, topmost first.
    fn read_chain(
        place: Place,
        kind: Option<FormatKind>,
        gate: &PyGate,
        lock: Lock,
    ) -> Result<Vec<Self>, Failure> {
        let mut chain: Vec<Self> = Vec::new();
        // Files that were read, and how the chain spells the next one.
        let mut read = vec![place.path().unwrap_or(Path::new("")).to_owned()];
        let mut next = Some((place, read[0].clone(), kind));
        while let Some((place, spelt, kind)) = next {
            let path = &read[chain.len()];
            if chain.len() == CHAIN_MAX as usize {
                let error = Error::invalid_input(format!("the chain has more than {CHAIN_MAX} images"));
                return Err(error.in_file(path).into());
            }
            let mut facts = Self::read(place, kind, lock)?;
            facts.image.path.clone_from(&spelt);
            next = match &facts.image.backing {
                Some(backing) => {
                    let below =
                        gate.pass(|gate| gate.pass(Some(path), &backing.name, ReferenceKind::Backing))?;
                    if read.contains(&below) {
                        let text = format!("the chain comes back to {}", below.display());
                        return Err(Error::invalid_image(text).in_file(path).into());
                    }
                    read.push(below.clone());
                    let spelt = spelt.parent().unwrap_or(Path::new("")).join(&backing.name);
                    Some((
                        Place::Path(below),
                        spelt,
                        backing.format.as_deref().and_then(FormatKind::from_name),
                    ))
                }
                None => None,
            };
            chain.push(facts);
        }
        Ok(chain)
    }

    fn document<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Facts { image, file_length } = self;
        let document = PyDict::new(py);
        document.set_item("children", [self.child(py, *file_length)?])?;
        document.set_item("filename", image.path.as_os_str())?;
        document.set_item("format", image.kind.name())?;
        document.set_item("virtual-size", image.virtual_size)?;
        set_some(&document, "actual-size", image.actual_size)?;
        document.set_item("dirty-flag", image.format.dirty.unwrap_or(false))?;
        set_some(&document, "cluster-size", image.format.cluster_size)?;
        if let Some(backing) = &image.backing {
            let directory = image.path.parent().unwrap_or(Path::new(""));
            document.set_item("backing-filename", backing.name.as_os_str())?;
            document.set_item("full-backing-filename", directory.join(&backing.name).as_os_str())?;
            set_some(&document, "backing-filename-format", backing.format.as_deref())?;
        }
        if let Some(FormatSpecificInfo::Qcow2(qcow2)) = &image.format.specific {
            if qcow2.encrypted.is_some() {
                document.set_item("encrypted", true)?;
            }
            if !qcow2.snapshots.is_empty() {
                let snapshots = PyList::empty(py);
                for snapshot in &qcow2.snapshots {
                    snapshots.append(snapshots::document(py, snapshot)?)?;
                }
                document.set_item("snapshots", snapshots)?;
            }
            let specific = PyDict::new(py);
            specific.set_item("type", "qcow2")?;
            specific.set_item("data", qcow2_document(py, qcow2)?)?;
            document.set_item("format-specific", specific)?;
        }
        if let Some(FormatSpecificInfo::Luks(luks)) = &image.format.specific {
            document.set_item("encrypted", true)?;
            let specific = PyDict::new(py);
            specific.set_item("type", "luks")?;
            specific.set_item("data", luks_document(py, luks)?)?;
            document.set_item("format-specific", specific)?;
        }
        Ok(document)
    }

    /// The file that the image is in.
    fn child<'py>(&self, py: Python<'py>, length: u64) -> PyResult<Bound<'py, PyDict>> {
        let specific = PyDict::new(py);
        specific.set_item("type", "file")?;
        specific.set_item("data", PyDict::new(py))?;
        let file = PyDict::new(py);
        file.set_item("children", PyList::empty(py))?;
        file.set_item("filename", self.image.path.as_os_str())?;
        file.set_item("format", "file")?;
        file.set_item("virtual-size", length)?;
        set_some(&file, "actual-size", self.image.actual_size)?;
        file.set_item("dirty-flag", false)?;
        file.set_item("format-specific", specific)?;
        let child = PyDict::new(py);
        child.set_item("name", "file")?;
        child.set_item("info", file)?;
        Ok(child)
    }
}

fn set_some<'py, T: IntoPyObject<'py>>(
    dict: &Bound<'py, PyDict>,
    key: &str,
    value: Option<T>,
) -> PyResult<()> {
    value.map_or(Ok(()), |value| dict.set_item(key, value))
}

fn qcow2_document<'py>(py: Python<'py>, qcow2: &Qcow2Info) -> PyResult<Bound<'py, PyDict>> {
    let data = PyDict::new(py);
    data.set_item("compat", if qcow2.version == 2 { "0.10" } else { "1.1" })?;
    data.set_item("compression-type", qcow2.compression_type)?;
    let newer = (qcow2.version > 2).then_some(qcow2);
    set_some(&data, "lazy-refcounts", newer.map(|qcow2| qcow2.lazy_refcounts))?;
    if !qcow2.bitmaps.is_empty() {
        let bitmaps = PyList::empty(py);
        for bitmap in &qcow2.bitmaps {
            let BitmapInfo { name, granularity, flags } = bitmap;
            bitmaps.append(bitmaps::document(py, name, *granularity, flags)?)?;
        }
        data.set_item("bitmaps", bitmaps)?;
    }
    data.set_item("refcount-bits", qcow2.refcount_bits)?;
    set_some(&data, "data-file", qcow2.data_file.as_deref())?;
    set_some(&data, "data-file-raw", qcow2.data_file_raw)?;
    if let Some(encryption) = &qcow2.encrypted {
        let (method, encrypt) = match encryption {
            EncryptionInfo::Aes => ("aes", PyDict::new(py)),
            EncryptionInfo::Luks(luks) => ("luks", luks_document(py, luks)?),
        };
        encrypt.set_item("format", method)?;
        data.set_item("encrypt", encrypt)?;
    }
    set_some(&data, "corrupt", newer.map(|qcow2| qcow2.corrupt))?;
    set_some(&data, "extended-l2", newer.map(|qcow2| qcow2.extended_l2))?;
    Ok(data)
}

fn luks_document<'py>(py: Python<'py>, luks: &LuksInfo) -> PyResult<Bound<'py, PyDict>> {
    let CipherSpec { algorithm, key_bits, mode, iv } = luks.cipher;
    let data = PyDict::new(py);
    data.set_item("ivgen-alg", iv.name())?;
    if let IvGenerator::Essiv(hash) = iv {
        data.set_item("ivgen-hash-alg", hash.name())?;
    }
    data.set_item("detached-header", false)?;
    data.set_item("hash-alg", luks.hash.name())?;
    data.set_item("cipher-alg", format!("{}-{key_bits}", algorithm.name()))?;
    data.set_item("uuid", &luks.uuid)?;
    data.set_item("cipher-mode", mode.name())?;
    let slots = PyList::empty(py);
    for slot in &luks.slots {
        let document = PyDict::new(py);
        document.set_item("active", slot.active)?;
        if slot.active {
            document.set_item("iters", slot.iterations)?;
        }
        document.set_item("key-offset", slot.material_offset)?;
        if slot.active {
            document.set_item("stripes", slot.stripes)?;
        }
        slots.append(document)?;
    }
    data.set_item("slots", slots)?;
    data.set_item("payload-offset", luks.payload_offset)?;
    data.set_item("master-key-iters", luks.digest_iterations)?;
    Ok(data)
}

fn info_with<F: Face>(
    py: Python<'_>,
    place: Place,
    format: Option<Format>,
    chain: Option<PyGate>,
    lock: LockWord,
) -> PyResult<Py<PyAny>> {
    let (kind, lock) = (format.map(|format| format.0), lock.0);
    let read = move || match chain {
        Some(gate) => Facts::read_chain(place, kind, &gate, lock),
        None => Ok(vec![Facts::read(place, kind, lock)?]),
    };
    F::call(py, Venue::Thread, read, |py, chain| {
        let documents = PyList::empty(py);
        for facts in &chain {
            documents.append(facts.document(py)?)?;
        }
        Ok(documents.into_any().unbind())
    })
}

faces! {
    /// The documents of the image at `place` and, with `chain` (as `implicit` of `open`), of those below it.
    info_with => info, info_awaited(
        place: Place,
        format: Option<Format>,
        chain: Option<PyGate>,
        lock: LockWord,
    )
}
