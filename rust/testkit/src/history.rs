//! What a disk may show after a crash or a failure: for every sector what the last flush made durable, or
//! anything written to it since.

/// The contents a disk went through, and the flushes between them.
#[derive(Debug)]
pub struct History {
    /// Epoch of the storage in which each content came about, and the content.
    versions: Vec<(u64, Vec<u8>)>,
    /// Epoch in which a flush had ended, and the version that it made durable.
    flushes: Vec<(u64, usize)>,
}

impl History {
    /// A disk that holds `content`, durable.
    pub fn new(content: Vec<u8>) -> Self {
        History { versions: vec![(0, content)], flushes: vec![(0, 0)] }
    }

    /// An operation that began in `epoch` leaves `content`, or some of it.
    pub fn push(&mut self, epoch: u64, content: Vec<u8>) {
        self.versions.push((epoch, content));
    }

    /// A flush that succeeded had ended in `epoch`.
    pub fn flushed(&mut self, epoch: u64) {
        self.flushes.push((epoch, self.versions.len() - 1));
    }

    /// Whether a disk that lost power in `epoch` may show `content`, `unit` bytes for `unit` bytes.
    pub fn allows(&self, content: &[u8], epoch: u64, unit: usize) -> Result<(), String> {
        let durable = self.flushes.iter().rev().find(|flush| flush.0 <= epoch).expect("the first one").1;
        let begun = self.versions.partition_point(|version| version.0 <= epoch);
        let versions = &self.versions[durable..begun];
        for (index, found) in content.chunks(unit).enumerate() {
            let at = index * unit;
            if !versions.iter().any(|(_, version)| version[at..at + found.len()] == *found) {
                let from = versions[0].1[at];
                return Err(format!(
                    "offset {at:#x} shows {:#x}..; flushed was {from:#x}.., and none of {} later contents has that",
                    found[0],
                    versions.len() - 1
                ));
            }
        }
        Ok(())
    }
}
