//! `info`: the document that `qemu-img info --output=json` prints, as Python objects.

use std::path::PathBuf;

use imago_core::access::info::{ImageInfo, info_chain, info_storage};
use imago_core::crypt::{CipherSpec, IvGenerator};
use imago_core::format::FormatSpecificInfo;
use imago_core::format::luks::LuksInfo;
use imago_core::format::qcow2_info::{BitmapInfo, EncryptionInfo, Qcow2Info};
use imago_core::storage::StorageOpenOptions;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::Format;
use super::source::Place;
use crate::gate::PyGate;
use crate::operation::{Face, Venue};
use crate::storages::LockWord;
use crate::{bitmaps, snapshots};

const SECTOR: u64 = 512;
/// What is told of an image.
struct Facts(ImageInfo);

impl Facts {
    fn document<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Facts(image) = self;
        let document = PyDict::new(py);
        document.set_item("children", [self.child(py)?])?;
        document.set_item("filename", image.path.as_os_str())?;
        document.set_item("format", image.kind.name())?;
        document.set_item("virtual-size", image.virtual_size)?;
        set_some(&document, "actual-size", image.actual_size)?;
        document.set_item("dirty-flag", image.format.dirty.unwrap_or(false))?;
        set_some(&document, "cluster-size", image.format.cluster_size)?;
        if let Some(backing) = &image.backing {
            document.set_item("backing-filename", backing.name.as_os_str())?;
            set_some(&document, "full-backing-filename", image.backing_path().map(PathBuf::into_os_string))?;
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
            specific.set_item("data", luks_document(py, luks, None)?)?;
            document.set_item("format-specific", specific)?;
        }
        Ok(document)
    }

    /// The file that the image is in.
    fn child<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let specific = PyDict::new(py);
        specific.set_item("type", "file")?;
        specific.set_item("data", PyDict::new(py))?;
        let file = PyDict::new(py);
        file.set_item("children", PyList::empty(py))?;
        file.set_item("filename", self.0.file.as_os_str())?;
        file.set_item("format", if self.0.on_device { "host_device" } else { "file" })?;
        file.set_item("virtual-size", self.0.length.next_multiple_of(SECTOR))?;
        set_some(&file, "actual-size", self.0.actual_size)?;
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
        let encrypt = match encryption {
            EncryptionInfo::Aes => PyDict::from_sequence(&[("format", "aes")].into_pyobject(py)?)?,
            EncryptionInfo::Luks(luks) => luks_document(py, luks, Some("luks"))?,
        };
        data.set_item("encrypt", encrypt)?;
    }
    set_some(&data, "corrupt", newer.map(|qcow2| qcow2.corrupt))?;
    set_some(&data, "extended-l2", newer.map(|qcow2| qcow2.extended_l2))?;
    Ok(data)
}

/// `format` is what another format says of it, within which it is. The order is QEMU's.
fn luks_document<'py>(
    py: Python<'py>,
    luks: &LuksInfo,
    format: Option<&str>,
) -> PyResult<Bound<'py, PyDict>> {
    let CipherSpec { algorithm, key_bits, mode, iv } = luks.cipher;
    let data = PyDict::new(py);
    data.set_item("ivgen-alg", iv.name())?;
    data.set_item("detached-header", false)?;
    data.set_item("hash-alg", luks.hash.name())?;
    data.set_item("cipher-alg", format!("{}-{key_bits}", algorithm.name()))?;
    data.set_item("uuid", &luks.uuid)?;
    if let IvGenerator::Essiv(hash) = iv {
        data.set_item("ivgen-hash-alg", hash.name())?;
    }
    set_some(&data, "format", format)?;
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

faces! {
    /// The documents of the image at `path` and, with `chain` (as `implicit` of `open`), of those below it.
    info, info_awaited: Info {
        path: Place,
        format: Option<Format>,
        chain: Option<PyGate>,
        lock: LockWord,
    }
}

impl Info {
    fn carry_out<F: Face>(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Info { path: place, format, chain, lock } = self;
        let (kind, lock) = (format.map(|format| format.0), lock.0);
        let read = move || {
            let storage = place.storage(StorageOpenOptions::new().lock(lock))?;
            match chain {
                Some(gate) => gate.pass(|gate| info_chain(storage, kind, gate, lock)),
                None => Ok(vec![info_storage(&storage, kind)?]),
            }
        };
        F::call(py, Venue::Thread, read, |py, chain| {
            let documents = PyList::empty(py);
            for facts in chain.into_iter().map(Facts) {
                documents.append(facts.document(py)?)?;
            }
            Ok(documents.into_any().unbind())
        })
    }
}
