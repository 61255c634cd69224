//! Formats: what an image is opened as.
use std::sync::Arc;
use imago_core::access::image::{Image, Base};
use pyo3::prelude::*;
use crate::storages::Storage;
use crate::errors::exception;

#[pyclass(frozen, module = "pyimago")]
pub(crate) struct Raw(Arc<Image>);

#[pymethods]
impl Raw {
    #[staticmethod]
    #[pyo3(signature = (storage, *, write=false))]
    fn open_image_sync(py: Python<'_>, storage: &Storage, write: bool) -> PyResult<Raw> {
        let raw = imago_core::format::raw::Raw::open(storage.shared(), write).map_err(|e| exception(py, &e))?;
        Ok(Raw(Arc::new(Image::new(Arc::new(raw), Base::None))))
    }
}
pub(crate) fn into_image(object: &Bound<'_, PyAny>) -> PyResult<Arc<Image>> {
    Ok(object.cast::<Raw>()?.get().0.clone())
}
