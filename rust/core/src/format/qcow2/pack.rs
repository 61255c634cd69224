//! Writing compressed clusters: space for them, and the entries that name them.
//!
//! Recipe (docs/qcow2.md, "Compressed write"): take bytes in memory; the caller writes the packed clusters there; then the L2 entries
//! change in memory. Flushes order the rest as for any other write.

use std::sync::Arc;

use super::Driver;
use super::cache::Slice;
use super::l2::Entry;
use super::pending::Dropped;
use crate::error::{Error, Result};
use crate::format::{CompressedCluster, Compression, Packing};
use crate::units::HostOffset;

impl Driver {
    /// Refuses what cannot have compressed clusters, before anything is touched.
    pub(super) fn check_packing(&self) -> Result<()> {
        let why = if self.geometry.external_data {
            "an image with an external data file"
        } else if self.header().encryption.is_some() {
            "an encrypted image"
        } else {
            return Ok(());
        };
        Err(Error::unsupported(format!("{why} cannot have compressed clusters: write without compression")))
    }

    /// Takes space for all `clusters`; on an error none is taken.
    fn take_space(&self, clusters: &mut [CompressedCluster]) -> Result<()> {
        let limit = self.geometry.packed_limit();
        let mut done = 0;
        while done < clusters.len() {
            let mut refcounts = self.refcounts.lock();
            let mut taken = Ok(Some(HostOffset(0)));
            for cluster in &mut clusters[done..] {
                // Past the latch: what this writes nothing names yet, and a failure leaves all as it was.
                let len = u64::from(cluster.packed_len);
                taken = refcounts.take_bytes(&*self.storage, &self.reserved.read(), len, limit);
                let Ok(Some(host)) = taken else { break };
                cluster.host = host;
                done += 1;
            }
            self.note_moved_metadata(&mut refcounts);
            drop(refcounts);
            let grown = match taken {
                Ok(Some(_)) => Ok(()),
                Ok(None) => self.grow_refcount_table(),
                Err(error) => Err(error),
            };
            if let Err(error) = grown {
                self.abandon_packed(&clusters[..done]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The slice and the entry for a cluster, and where that slice stands.
    fn packed_entry(&self, cluster: &CompressedCluster) -> Result<(Arc<Slice>, Entry, u64)> {
        let table = self.own_table(cluster.guest)?;
        let slice = self.slice(table, cluster.guest)?;
        let entry = slice.get(self.geometry.entry_index(cluster.guest), self.geometry.extended);
        Ok((slice, entry, table.0 + self.geometry.slice_offset(cluster.guest)))
    }

    fn publish_cluster(&self, cluster: &CompressedCluster) -> Result<()> {
        let geometry = self.geometry;
        let (slice, old, key) = self.packed_entry(cluster)?;
        let dropped = self.owned(old)?;
        let mut pending = self.pending.lock();
        let new = Entry::packed(cluster.host, cluster.packed_len, geometry);
        slice.set(geometry.entry_index(cluster.guest), new, geometry.extended);
        pending.slices.insert(key, slice);
        pending.dropped.extend(dropped);
        Ok(())
    }
}

impl Packing for Driver {
    fn method(&self) -> Compression {
        self.geometry.compression
    }

    fn cluster_size(&self) -> u32 {
        self.geometry.cluster_size() as u32
    }

    fn prepare_packed(&self, clusters: &mut [CompressedCluster]) -> Result<()> {
        self.start_writing().map_err(|e| self.located(e))?;
        let mut prepare = || {
            for cluster in &*clusters {
                // L2 tables first, so that none comes to stand between packed clusters; and what is wrong with the old entry is
                // found here, where nothing has to be taken back.
                let (_, old, _) = self.packed_entry(cluster)?;
                self.owned(old)?;
            }
            self.take_space(clusters)
        };
        prepare().map_err(|e| self.failed_write(e))
    }

    fn commit_packed(&self, clusters: &[CompressedCluster]) -> Result<()> {
        for (index, cluster) in clusters.iter().enumerate() {
            if let Err(error) = self.publish_cluster(cluster) {
                self.abandon_packed(&clusters[index..]);
                return Err(self.failed_write(error));
            }
        }
        self.flush_if_crowded().map_err(|e| self.failed_write(e))
    }

    fn abandon_packed(&self, clusters: &[CompressedCluster]) {
        // Where nothing is written any more nothing is freed either: the refcounts may be what is wrong.
        if self.metadata.failure().is_some() {
            return;
        }
        let dropped =
            |cluster: &CompressedCluster| Dropped { host: cluster.host, len: u64::from(cluster.packed_len) };
        let dropped: Vec<_> = clusters.iter().map(dropped).collect();
        // An error leaves a leak, which harms nothing, and the failure that led here is the one to report.
        let _ = self.drop_references(&dropped);
    }
}
