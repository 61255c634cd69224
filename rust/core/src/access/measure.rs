//! How large a file a new image needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::create::CreateOptions;
use super::image::Image;
use super::job::Job;
use super::map::parts;
use super::sweep::{Then, sweep};
use crate::error::Result;
use crate::format::preallocation::Preallocation;
use crate::format::qcow2::create::Version;
use crate::format::qcow2::measure::{all_bitmaps, fully_allocated};
use crate::format::{FormatSpecificInfo, luks};

/// Extents between two looks at whether it is still wanted: some 100 microseconds.
const STEP: usize = 256;

/// Bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What a conversion of the source writes, or for an empty disk what a new image has, with the tables of a full one.
    pub required: u64,
    /// When all of the disk is allocated.
    pub fully_allocated: u64,
    /// What the source's bitmaps would take as well; `None` where source or target can have none.
    pub bitmaps: Option<u64>,
}

/// The size of an image of `target`'s options: an empty one of the size that they say, or with the content (and the size) of `source`.
///
/// As with `qemu-img measure` the tables are counted as if all of the disk were allocated, so that it is an upper bound;
/// data in less than a cluster counts as a cluster; with a backing file in `target`, or where it sets space aside for its data, all of the disk counts.
pub fn measure(source: Option<&Arc<Image>>, target: &CreateOptions, job: &mut Job<'_>) -> Result<Measured> {
    let options = match target {
        CreateOptions::Raw { size, .. } => {
            let size = source.map_or(*size, |source| source.size());
            return Ok(Measured { required: size, fully_allocated: size, bitmaps: None });
        }
        CreateOptions::Luks { size, encryption } => {
            let size = source.map_or(*size, |source| source.size()) + luks::area_len(encryption)?;
            return Ok(Measured { required: size, fully_allocated: size, bitmaps: None });
        }
        CreateOptions::Qcow2(options) => options,
    };
    let mut options = options.clone();
    if let Some(source) = source {
        options.size = source.size();
    }
    let (fully_allocated, all_data) = fully_allocated(&options)?;
    let data = match source {
        _ if matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full) => all_data,
        Some(_) if options.backing.is_some() => all_data,
        Some(source) => allocated(source, u64::from(options.cluster_size), job)?,
        None => 0,
    };
    let bitmaps = match source {
        Some(source) if options.version == Version::V3 => bitmaps(source, u64::from(options.cluster_size))?,
        _ => None,
    };
    Ok(Measured { required: fully_allocated - all_data + data, fully_allocated, bitmaps })
}

/// Bytes that the bitmaps of `image` take in an image with clusters of `cluster_size`.
fn bitmaps(image: &Arc<Image>, cluster_size: u64) -> Result<Option<u64>> {
    let Some(FormatSpecificInfo::Qcow2(info)) = image.format().info()?.specific else { return Ok(None) };
    Ok((info.version == 3).then(|| all_bitmaps(&info.bitmaps, image.size(), cluster_size)))
}

/// Bytes of the clusters of `cluster_size` that hold data of `image`, counted by all cores.
fn allocated(image: &Arc<Image>, cluster_size: u64, job: &mut Job<'_>) -> Result<u64> {
    let clusters = AtomicU64::new(0);
    let wanted = job.wanted();
    // A part ends where a cluster does.
    sweep(parts(0, image.size()), image.size(), job, |part, _| {
        let mut count = 0;
        // The first cluster that is not counted yet.
        let mut next = 0;
        for (number, extent) in image.extents(part.start, part.len())?.enumerate() {
            let extent = extent?;
            if number % STEP == 0 {
                wanted.check()?;
            }
            if extent.zero {
                continue;
            }
            let first = (extent.offset / cluster_size).max(next);
            let end = extent.end().div_ceil(cluster_size);
            count += end.saturating_sub(first);
            next = end.max(next);
        }
        clusters.fetch_add(count, Ordering::Relaxed);
        Ok(Then::Next)
    })?;
    Ok(clusters.into_inner() * cluster_size)
}
