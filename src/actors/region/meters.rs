//! The metrics of a region. All are registered at zero from the start, so that a rate includes the first
//! event.

use metrics::{Counter, Gauge};

use crate::domain::ids::Kind;

/// The metrics of the region of one kind.
pub(super) struct Meters {
    /// Shards served here now.
    pub(super) served: Gauge,
    /// Leases taken, including new epochs of shards already held.
    pub(super) taken: Counter,
    /// Leases renewed, counted per lease.
    pub(super) renewed: Counter,
    /// Renewal statements that the database did not answer. Each statement covers all leases held.
    pub(super) renewals_failed: Counter,
    /// Leases that another owner took, or may have taken.
    pub(super) lost: Counter,
    /// Shards that stopped serving here because they belong elsewhere: hand-overs begun.
    pub(super) given_up: Counter,
}

impl Meters {
    /// Registers the metrics of `kind`, which has `shards` shards in the cluster.
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
