//! Metadata that turns out wrong while an image is written: the image is marked, and nothing more is written to it.

use super::Driver;
use super::features::INCOMPATIBLE_CORRUPT;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;

impl Driver {
    /// The error of a call on the way of a write, to be returned when no lock is held any more.
    ///
    /// Metadata that contradicts itself ([`Corrupt`](ErrorKind::Corrupt)) is no reason to write on: whatever is allocated or freed next
    /// may be somebody else's. The corrupt bit is set, durably and once (version 2 has none), and the latch closes. What was not flushed before
    /// stays unflushed; reads go on and see it. Other errors are the caller's alone.
    #[cold]
    pub(super) fn failed_write(&self, error: Error) -> Error {
        let error = self.located(error);
        if error.kind() != ErrorKind::Corrupt {
            return error;
        }
        let one_flush = self.flushing.lock();
        if !self.writable || self.metadata.failure().is_some() {
            return error;
        }
        let consequence = match self.mark_corrupt() {
            Ok(true) => {
                "the image is marked corrupt now and only read from here on: save what can be read, and repair it before it is \
                 written again"
            }
            // The failure that led here is the one to report.
            Ok(false) | Err(_) => {
                "nothing more is written to the image: save what can be read, and repair it before it is written again"
            }
        };
        let error = error.followed_by(consequence);
        self.metadata.close(&error);
        drop(one_flush);
        error
    }

    /// Sets the corrupt bit durably; false: this version has none. The caller holds `flushing`.
    fn mark_corrupt(&self) -> Result<bool> {
        let header = self.header();
        if header.version < 3 {
            return Ok(false);
        }
        let incompatible = header.incompatible | INCOMPATIBLE_CORRUPT;
        header.rewrite_features(&self.metadata, incompatible, header.compatible, header.autoclear)?;
        self.metadata.sync()?;
        self.change_header(|header| header.incompatible = incompatible);
        Ok(true)
    }
}
