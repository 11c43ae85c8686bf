//! What a region counts. All of it is there from the start, at zero, so that a rate sees the first event.

use metrics::{Counter, Gauge};

use crate::domain::ids::Kind;

/// The metrics of the region of one kind.
pub(super) struct Meters {
    /// Shards served here now.
    pub(super) served: Gauge,
    /// Leases taken, new epochs of shards held included.
    pub(super) taken: Counter,
    /// Leases prolonged: one for each lease of a renewal.
    pub(super) renewed: Counter,
    /// Renewals that the database did not answer, each of all leases held.
    pub(super) renewals_failed: Counter,
    /// Leases that another owner took, or may have.
    pub(super) lost: Counter,
    /// Shards that stopped serving here because they belong elsewhere: hand-overs begun.
    pub(super) given_up: Counter,
}

impl Meters {
    /// Those of `kind`, of which the cluster has `shards` shards.
    pub(super) fn new(kind: Kind, shards: u16) -> Self {
        let kind = kind.as_str();
        metrics::gauge!("hygeia_shards", "kind" => kind).set(f64::from(shards));
        Meters {
            served: metrics::gauge!("hygeia_shards_served", "kind" => kind),
            taken: metrics::counter!("hygeia_leases_taken_total", "kind" => kind),
            renewed: metrics::counter!("hygeia_leases_renewed_total", "kind" => kind),
            renewals_failed: metrics::counter!("hygeia_lease_renewal_failures_total", "kind" => kind),
            lost: metrics::counter!("hygeia_leases_lost_total", "kind" => kind),
            given_up: metrics::counter!("hygeia_shards_given_up_total", "kind" => kind),
        }
    }
}
