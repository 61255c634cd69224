//! How large an image would be. The arithmetic is QEMU's, so that the answers are.

use super::bitmaps::directory::entry_len;
use super::create::{self, CreateOptions};
use crate::error::Result;
use crate::format::qcow2_info::BitmapInfo;

/// Bytes that an image of these options takes when every cluster of its disk is allocated, and how many of them are data.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for options that no image can have.
pub fn fully_allocated(options: &CreateOptions) -> Result<(u64, u64)> {
    create::check(options)?;
    let cluster_size = u64::from(options.cluster_size);
    let l2_entry_size = if options.extended_l2 { 16 } else { 8 };
    let data = options.size.next_multiple_of(cluster_size);
    // Tables in whole clusters.
    let l2_entries = (data / cluster_size).next_multiple_of(cluster_size / l2_entry_size);
    let l2 = l2_entries * l2_entry_size;
    let l1 = (l2 / cluster_size * 8).next_multiple_of(cluster_size);
    let encryption = options.encryption.as_ref().map_or(Ok(0), create::Encryption::header_len)?;
    let without_refcounts = cluster_size + l2 + l1 + data + encryption.next_multiple_of(cluster_size);
    let refcounts = refcount_clusters(without_refcounts / cluster_size, options) * cluster_size;
    Ok((without_refcounts + refcounts, data))
}

/// Clusters of the refcount table and blocks that count `clusters` others and themselves.
fn refcount_clusters(clusters: u64, options: &CreateOptions) -> u64 {
    let cluster_size = u64::from(options.cluster_size);
    let per_block = cluster_size * 8 / u64::from(options.refcount_bits);
    let (mut blocks, mut table) = (0, 0);
    loop {
        let next_blocks = (clusters + blocks + table).div_ceil(per_block);
        let next_table = (next_blocks * 8).div_ceil(cluster_size);
        if (next_blocks, next_table) == (blocks, table) {
            return blocks + table;
        }
        (blocks, table) = (next_blocks, next_table);
    }
}

/// Bytes that these bitmaps of a disk of `size` bytes take when none of their clusters is left out.
pub fn all_bitmaps(bitmaps: &[BitmapInfo], size: u64, cluster_size: u64) -> u64 {
    let whole = |bytes: u64| bytes.next_multiple_of(cluster_size);
    let one = |bitmap: &BitmapInfo| {
        let bits = whole(size.div_ceil(bitmap.granularity).div_ceil(8));
        bits + whole(bits / cluster_size * 8)
    };
    let directory: u64 = bitmaps.iter().map(|bitmap| entry_len(0, bitmap.name.len())).sum();
    bitmaps.iter().map(one).sum::<u64>() + whole(directory)
}
