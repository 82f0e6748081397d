//! An allocator that counts, to notice when a file makes the engine ask for too much.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is allocated, and refuses what would exceed the limit that is set.
pub(crate) struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

impl Counting {
    /// Runs `work` and returns what it took at most beyond what there was before, in bytes.
    ///
    /// Everything that the process allocates counts, so nothing else may run at the same time. Asking
    /// for more than `limit` aborts the process, so that a runaway does not take the machine with it.
    pub(crate) fn peak<T>(limit: usize, work: impl FnOnce() -> T) -> (T, usize) {
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        LIMIT.store(before.saturating_add(limit), Ordering::Relaxed);
        let outcome = work();
        LIMIT.store(usize::MAX, Ordering::Relaxed);
        (outcome, PEAK.load(Ordering::Relaxed).saturating_sub(before))
    }
}

// SAFETY: every call is passed on to the system allocator unchanged or refused, as an allocator may;
// only counters are added.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        if live > LIMIT.load(Ordering::Relaxed) {
            // What reports the refusal needs memory itself.
            LIMIT.store(usize::MAX, Ordering::Relaxed);
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}
