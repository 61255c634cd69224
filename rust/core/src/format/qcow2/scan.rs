//! Where the entries of an L2 table are empty, for whoever goes through all of a disk: one read of the table instead of one for each slice.

use parking_lot::Mutex;

use super::Driver;
use crate::error::Result;
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

/// Tables that are remembered at once: a few threads go through different parts.
const TABLES: usize = 4;

/// Bytes that are read at once.
const READ: usize = 64 << 10;

/// The tables that were looked through last, of an image that nobody writes to.
#[derive(Debug, Default)]
pub(super) struct Scans([Mutex<Scan>; TABLES]);

#[derive(Debug, Default)]
struct Scan {
    /// Where the table is; 0: none.
    table: u64,
    /// A bit for each entry that is not empty.
    used: Vec<u64>,
}

impl Driver {
    /// From `guest` on, which `table` maps, the first cluster below `end` whose entry is not empty, or the table's end.
    pub(super) fn empty_until(
        &self,
        table: HostOffset,
        guest: GuestOffset,
        end: GuestOffset,
    ) -> Result<GuestOffset> {
        let geometry = self.geometry;
        let start = guest.align_down(geometry.table_span());
        if start == guest {
            // The slice before was the table's last one.
            return Ok(guest);
        }
        let mut scan = self.scans.0[(table.0 / geometry.cluster_size()) as usize % TABLES].lock();
        if scan.table != table.0 {
            scan.load(table.0, geometry.cluster_size(), geometry.entry_size() as usize, &*self.storage)?;
        }
        let first = guest.within(geometry.table_span()) / geometry.cluster_size();
        let entries = geometry.cluster_size() / geometry.entry_size();
        let next = scan.next_used(first).unwrap_or(entries);
        Ok((start + next * geometry.cluster_size()).min(end))
    }
}

impl Scan {
    fn load(&mut self, table: u64, len: u64, entry_len: usize, storage: &dyn Storage) -> Result<()> {
        self.table = 0;
        self.used.clear();
        self.used.resize((len as usize / entry_len).div_ceil(64), 0);
        let mut bytes = vec![0; READ.min(len as usize)];
        for at in (0..len).step_by(bytes.len()) {
            storage.readv_at((&mut bytes).into(), table + at)?;
            let first = at as usize / entry_len;
            for (part, entries) in bytes.chunks(64 * entry_len).enumerate() {
                if is_empty(entries) {
                    continue;
                }
                let bits = entries.chunks(entry_len).enumerate();
                let bits = bits.map(|(bit, entry)| u64::from(!is_empty(entry)) << bit);
                self.used[first / 64 + part] |= bits.fold(0, |all, bit| all | bit) << (first % 64);
            }
        }
        self.table = table;
        Ok(())
    }

    fn next_used(&self, first: u64) -> Option<u64> {
        let word = (first / 64) as usize;
        let here = self.used.get(word)? & (u64::MAX << (first % 64));
        let rest = self.used[word + 1..].iter().copied();
        let (skipped, bits) = (0..).zip(std::iter::once(here).chain(rest)).find(|(_, bits)| *bits != 0)?;
        Some((word as u64 + skipped) * 64 + u64::from(bits.trailing_zeros()))
    }
}

/// Whether all of `bytes`, a multiple of 8, are zero.
fn is_empty(bytes: &[u8]) -> bool {
    bytes.as_chunks::<8>().0.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;

    #[test]
    fn the_next_used_entry_is_found_in_tables_of_any_size() {
        for (len, entry_len) in [(512_u64, 8), (4096, 8), (65536, 8), (65536, 16), (2 << 20, 8)] {
            let entries = len / entry_len as u64;
            let used: Vec<u64> =
                [0, 1, 63, 64, 65, 500, 4095, entries - 1].into_iter().filter(|n| *n < entries).collect();
            let mut table = vec![0; 512 + len as usize];
            for entry in &used {
                // Any byte counts.
                table[512 + *entry as usize * entry_len + *entry as usize % entry_len] = 1;
            }
            let mut scan = Scan::default();
            scan.load(512, len, entry_len, &Memory::from(table)).unwrap();
            for first in 0..entries {
                let expected = used.iter().copied().filter(|entry| *entry >= first).min();
                assert_eq!(scan.next_used(first), expected, "{first} of {entries}");
            }
        }
    }
}
