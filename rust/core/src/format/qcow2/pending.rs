//! What a flush has to write, and space that is free but not to be reused yet.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::cache::Slice;
use crate::format::inflight::{Drain, Inflight};
use crate::units::HostOffset;

/// A range of the image file that lost one reference.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    pub(super) host: HostOffset,
    pub(super) len: u64,
}

/// Changes of the mapping that are in memory only.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Changed slices by their offset; holding them here keeps them in the cache.
    pub(super) slices: FxHashMap<u64, Arc<Slice>>,
    /// Indices of changed L1 entries.
    pub(super) l1: BTreeSet<usize>,
    /// What the changed entries do not name any more (I2).
    pub(super) dropped: Vec<Dropped>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.l1.is_empty() && self.dropped.is_empty()
    }
}

/// References whose removal is durable, but that operations in flight may still follow.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// Waiting for the next drain to begin.
    waiting: Vec<Dropped>,
    draining: Option<(Drain, Vec<Dropped>)>,
}

impl Quarantine {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.draining.is_none()
    }

    pub(super) fn add(&mut self, dropped: Vec<Dropped>) {
        self.waiting.extend(dropped);
    }

    /// Takes out what nobody can see any more.
    pub(super) fn release(&mut self, inflight: &Inflight) -> Vec<Dropped> {
        let mut released = Vec::new();
        loop {
            if let Some((drain, _)) = &self.draining {
                if !inflight.is_drained(drain) {
                    return released;
                }
                released.extend(self.draining.take().into_iter().flat_map(|(_, dropped)| dropped));
            }
            if self.waiting.is_empty() {
                return released;
            }
            self.draining = inflight.begin_drain().map(|drain| (drain, std::mem::take(&mut self.waiting)));
        }
    }
}
