//! The slot of a request among the requests in flight.

use metrics::Gauge;
use tokio::sync::OwnedSemaphorePermit;

/// The slot of one request. Dropping it frees the slot, so an unfinished request frees it too.
pub(super) struct Admitted {
    _permit: OwnedSemaphorePermit,
    in_flight: Gauge,
}

impl Admitted {
    pub(super) fn new(permit: OwnedSemaphorePermit, in_flight: &Gauge) -> Self {
        in_flight.increment(1.0);
        Admitted { _permit: permit, in_flight: in_flight.clone() }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.in_flight.decrement(1.0);
    }
}
