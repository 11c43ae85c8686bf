//! The place of a request among those that are worked on.

use metrics::Gauge;
use tokio::sync::OwnedSemaphorePermit;

/// The place of one request, which it leaves also if it is dropped unfinished.
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
