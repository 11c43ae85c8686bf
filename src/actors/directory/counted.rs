//! Guards that count requests for as long as they last, however they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts a request as unanswered until it is answered or its caller goes away.
pub(super) struct Unanswered<'a>(&'a metrics::Gauge);

impl<'a> Unanswered<'a> {
    /// Adds one request to the gauge.
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

/// Counts a request among those that wait. The holder increments the counter itself.
pub(super) struct Waiting(pub(super) Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
