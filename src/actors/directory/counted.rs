//! Questions that are counted as long as they last, however they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A question that is counted among those not answered yet, until it is, or its asker goes away.
pub(super) struct Unanswered<'a>(&'a metrics::Gauge);

impl<'a> Unanswered<'a> {
    /// One more.
    pub(super) fn count(gauge: &'a metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Unanswered(gauge)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// A question that is counted among those that wait.
pub(super) struct Waiting(pub(super) Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
