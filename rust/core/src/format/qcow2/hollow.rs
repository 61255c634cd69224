//! Whether space that the metadata has set aside may be a hole in the file, as that of `preallocation=metadata` is.

use super::Driver;
use super::l2::OFFSET_MASK;
use super::refcounts::read_count;
use super::tables::read_words;
use crate::error::Result;
use crate::interrupt;
use crate::units::HostOffset;

impl Driver {
    /// QEMU's rule, so that `map` says what its `map` says: the refcounts have a tenth more of the file in use than it takes up, and two
    /// clusters at least. It looks at the image file, also where the data is in another one.
    ///
    /// A file without holes costs the look at its length. Refcounts that cannot be read make nothing hollow.
    pub(super) fn is_hollow(&self) -> Result<bool> {
        if let Some(&known) = self.hollow.get() {
            return Ok(known);
        }
        // Places of encrypted data are not those of bytes: a hole there does not read as zeroes.
        let found = self.crypt.is_none() && self.uses_more_than_it_takes()?;
        Ok(*self.hollow.get_or_init(|| found))
    }

    fn uses_more_than_it_takes(&self) -> Result<bool> {
        let (Ok(Some(allocated)), Ok(len)) = (self.storage.allocated(), self.storage.len()) else {
            return Ok(false);
        };
        let header = self.header();
        let (cluster_size, order) = (header.cluster_size(), header.refcount_order);
        let taken = allocated / cluster_size;
        let threshold = (taken.saturating_mul(10) / 9).max(taken + 2);
        let clusters = len.div_ceil(cluster_size);
        if clusters < threshold {
            return Ok(false);
        }
        let per_block = (cluster_size * 8) >> order;
        let blocks = u64::from(header.refcount_table_clusters) * (cluster_size / 8);
        let blocks = blocks.min(clusters.div_ceil(per_block));
        let Ok(table) = read_words(&*self.storage, header.refcount_table_offset, blocks) else {
            return Ok(false);
        };
        let mut block = vec![0; cluster_size as usize];
        let mut used = 0;
        for (index, word) in (0..).zip(table) {
            interrupt::check()?;
            let host = HostOffset(word & OFFSET_MASK);
            if host.0 == 0 {
                continue;
            }
            if self.storage.readv_at((&mut block[..]).into(), host.0).is_err() {
                return Ok(false);
            }
            let counted = per_block.min(clusters - index * per_block);
            used += (0..counted).filter(|&cluster| read_count(&block, order, cluster) != 0).count() as u64;
            if used >= threshold {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
