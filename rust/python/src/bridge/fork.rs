//! Which process this is: a forked child has none of its parent's threads and shares its parent's files.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::shutdown::forget_operations;

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The process that something was made in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    /// This process.
    #[inline]
    pub(crate) fn now() -> Self {
        Generation(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether this process is it.
    #[inline]
    pub(crate) fn is_now(self) -> bool {
        self == Self::now()
    }
}

/// Has every fork from now on noticed in the child.
pub(crate) fn watch() {
    #[cfg(unix)]
    {
        extern "C" fn in_child() {
            GENERATION.fetch_add(1, Ordering::Relaxed);
            forget_operations();
        }
        static WATCH: Once = Once::new();
        WATCH.call_once(|| {
            // SAFETY: the handler only touches atomics, which is allowed between fork and exec.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
    }
}
