//! Writing bits, tables and the directory to new clusters, and switching to them.
//!
//! Recipe (docs/qcow2.md, "Bitmaps"):
//! 1. bits, tables and the directory go to new clusters, which nothing names;
//! 2. flush: they and their refcounts are durable (I1);
//! 3. the header names the new directory, durably;
//! 4. what only the old one named goes to the dropped references of the next flush (I2).

use std::sync::Arc;

use rustc_hash::FxHashSet;
use zerocopy::IntoBytes;
use zerocopy::big_endian::U32;

use super::bits::Bits;
use super::data::{self, ALL_ONES};
use super::directory::{self, BitmapTable};
use super::{AUTO, Bitmap, Held, IN_USE};
use crate::error::Result;
use crate::format::qcow2::Driver;
use crate::format::qcow2::extensions::BITMAPS;
use crate::format::qcow2::features::AUTOCLEAR_BITMAPS;
use crate::format::qcow2::pending::Dropped;
use crate::format::qcow2::rewrite::HeaderArea;
use crate::ondisk::{RawBitmaps, clusters_for};
use crate::units::HostOffset;

/// New contents of a bitmap: its index, and the bits.
pub(super) type Contents = (usize, Arc<Bits>);

/// Clusters that were taken for what nothing names yet.
#[derive(Debug, Default)]
struct Fresh(Vec<Dropped>);

impl Fresh {
    fn clusters(&self, cluster_bits: u32) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().flat_map(move |range| {
            let first = range.host.0 >> cluster_bits;
            first..first + (range.len >> cluster_bits)
        })
    }
}

impl Driver {
    /// Stores all that is held as no longer in use; for the end of the image's use.
    pub(in super::super) fn release_bitmaps(&self) -> Result<()> {
        let mut bitmaps = self.bitmaps.lock();
        let contents: Vec<Contents> = bitmaps
            .iter()
            .enumerate()
            .filter_map(|(index, bitmap)| Some((index, Arc::clone(&bitmap.held.as_ref()?.bits))))
            .collect();
        if contents.is_empty() {
            return Ok(());
        }
        let mut new = bitmaps.clone();
        for bitmap in &mut new {
            if let Some(Held { enabled, .. }) = bitmap.held.take() {
                bitmap.entry.flags &= !(IN_USE | AUTO);
                bitmap.entry.flags |= if enabled { AUTO } else { 0 };
            }
        }
        self.switch_directory(&mut bitmaps, new, &contents)
    }

    /// Puts `new` in the place of `old` in the file, in one step and durably; `contents` are bits to be written for some of them.
    /// After an error before that step all is as it was.
    pub(super) fn switch_directory(
        &self,
        old: &mut Vec<Bitmap>,
        mut new: Vec<Bitmap>,
        contents: &[Contents],
    ) -> Result<()> {
        self.clear_unknown_features(&mut self.flushing.lock())?;
        let mut fresh = Fresh::default();
        let prepared = self.find_outdated(old, &new, contents).and_then(|outdated| {
            for (index, bits) in contents {
                new[*index].entry.table = self.write_bits(&mut fresh, bits)?;
            }
            let directory = self.write_directory(&mut fresh, &new)?;
            self.write_back()?;
            Ok((outdated, directory))
        });
        let switched = prepared.and_then(|(outdated, directory)| {
            self.name_directory(directory.as_ref())?;
            Ok(outdated)
        });
        let outdated = switched.inspect_err(|_| self.abandon_fresh(&fresh))?;
        for &range in &outdated {
            self.forget_metadata(range);
        }
        self.reserved.write().extend(fresh.clusters(self.geometry.cluster_bits));
        *old = new;
        self.pending.lock().dropped.extend(outdated);
        self.refresh_recorder(old);
        Ok(())
    }

    /// What the directory and those bitmaps take that are gone or replaced.
    fn find_outdated(&self, old: &[Bitmap], new: &[Bitmap], contents: &[Contents]) -> Result<Vec<Dropped>> {
        let header = self.header();
        let bits = header.cluster_bits;
        let cluster = |cluster: u64| Dropped { host: HostOffset(cluster << bits), len: 1 << bits };
        let mut outdated = Vec::new();
        if let Some(extension) = header.bitmaps.filter(|extension| extension.directory_size > 0) {
            outdated.push(Dropped { host: extension.directory_offset, len: extension.directory_size });
        }
        let mut kept: FxHashSet<_> = new.iter().map(|bitmap| bitmap.entry.raw_name()).collect();
        for (index, _) in contents {
            kept.remove(new[*index].entry.raw_name());
        }
        for bitmap in old.iter().filter(|bitmap| !kept.contains(bitmap.entry.raw_name())) {
            let (table, data) = data::clusters(&*self.storage, &header, &bitmap.entry, header.size)?;
            outdated.extend(table.into_iter().chain(data).map(cluster));
        }
        Ok(outdated)
    }

    /// Writes the clusters of a bitmap that are not uniform, and its table.
    fn write_bits(&self, fresh: &mut Fresh, bits: &Bits) -> Result<BitmapTable> {
        let cluster_size = self.geometry.cluster_size();
        let entries = clusters_for(bits.bytes(), self.geometry.cluster_bits);
        let mut words = vec![0; entries as usize];
        let mut mixed = Vec::new();
        for index in 0..entries {
            match bits.uniform(index, cluster_size) {
                Some(true) => words[index as usize] = ALL_ONES,
                Some(false) => {}
                None => mixed.push(index),
            }
        }
        let mut cluster = vec![0; cluster_size as usize];
        let mut rest = &*mixed;
        while !rest.is_empty() {
            let taken = self.take_clusters(rest.len() as u64)?;
            let host = HostOffset(taken.first << self.geometry.cluster_bits);
            fresh.0.push(Dropped { host, len: taken.count * cluster_size });
            let (now, later) = rest.split_at(taken.count as usize);
            for (&index, host) in now.iter().zip((host.0..).step_by(cluster_size as usize)) {
                bits.to_disk(index, &mut cluster);
                self.storage.writev_at((&cluster).into(), host)?;
                words[index as usize] = host;
            }
            rest = later;
        }
        let table: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let offset = self.write_fresh(fresh, table)?;
        Ok(BitmapTable { offset, entries: entries as u32 })
    }

    /// Writes the directory; `None`: there are no bitmaps.
    fn write_directory(&self, fresh: &mut Fresh, bitmaps: &[Bitmap]) -> Result<Option<RawBitmaps>> {
        if bitmaps.is_empty() {
            return Ok(None);
        }
        let directory = directory::to_bytes(bitmaps.iter().map(|bitmap| &bitmap.entry));
        let size = directory.len() as u64;
        let offset = self.write_fresh(fresh, directory)?;
        Ok(Some(RawBitmaps {
            count: (bitmaps.len() as u32).into(),
            reserved: U32::ZERO,
            directory_size: size.into(),
            directory_offset: offset.0.into(),
        }))
    }

    /// Writes `bytes`, and zeroes up to the end of a cluster, to new clusters in a row. Past the latch: nothing names
    /// them yet, so that a failure (a full medium) does no harm.
    fn write_fresh(&self, fresh: &mut Fresh, mut bytes: Vec<u8>) -> Result<HostOffset> {
        let count = clusters_for(bytes.len() as u64, self.geometry.cluster_bits);
        let first = self.take_row(count)?;
        let host = HostOffset(first << self.geometry.cluster_bits);
        fresh.0.push(Dropped { host, len: count << self.geometry.cluster_bits });
        bytes.resize((count << self.geometry.cluster_bits) as usize, 0);
        self.storage.writev_at((&bytes).into(), host.0)?;
        Ok(host)
    }

    /// Gives back what nothing names. While the latch is closed nobody knows whether the header does.
    fn abandon_fresh(&self, fresh: &Fresh) {
        if self.metadata.check().is_ok() {
            // A failure here leaves a leak; the first one is the one to report.
            let _ = self.drop_references(&fresh.0);
        }
    }

    /// Makes the header name the directory, or none; the extension and its autoclear bit change in one step.
    fn name_directory(&self, directory: Option<&RawBitmaps>) -> Result<()> {
        let one_flush = self.flushing.lock();
        let mut area = HeaderArea::read(&*self.storage)?;
        let autoclear = area.raw.autoclear.get() & !AUTOCLEAR_BITMAPS;
        area.raw.autoclear = (autoclear | directory.map_or(0, |_| AUTOCLEAR_BITMAPS)).into();
        area.set_extension(BITMAPS, directory.map(|raw| raw.as_bytes().to_vec()));
        let header = area.install(&self.metadata)?;
        self.change_header(|old| *old = header);
        drop(one_flush);
        Ok(())
    }
}
