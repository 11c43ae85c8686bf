//! The status of each part of a node: the source of `/health/ready` and of the readiness gauges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The status of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The part works.
    Ready,
    /// The part does not work, but the node can serve without it. The text is the reason.
    Explained(String),
    /// The part does not work, and the node cannot serve without it. The text is the reason.
    NotReady(String),
}

/// The latest status of every part, shared across the node. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<Parts>>,
}

#[derive(Default)]
struct Parts {
    said: BTreeMap<&'static str, Status>,
    /// The parts that have been `Ready` at least once. A later failure of such a part is not part of the
    /// start-up.
    worked: BTreeSet<&'static str>,
    /// Whether the start-up period is over.
    started: bool,
}

impl Health {
    /// Records the status of `part`. Every part must report once before the node serves.
    pub fn report(&self, part: &'static str, status: Status) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.said.get(part) == Some(&status) {
            return;
        }
        metrics::gauge!("hygeia_part_ready", "part" => part)
            .set(f64::from(u8::from(status == Status::Ready)));
        match &status {
            Status::Ready => {
                parts.worked.insert(part);
                tracing::info!(part, "ready");
            }
            Status::Explained(reason) | Status::NotReady(reason) => {
                // A part that is still starting needs no attention, so this is not a warning.
                if parts.started || parts.worked.contains(part) {
                    tracing::warn!(part, reason, "not ready");
                } else {
                    tracing::info!(part, reason, "starting");
                }
            }
        }
        parts.said.insert(part, status);
        metrics::gauge!("hygeia_node_ready").set(f64::from(u8::from(all_serve(&parts.said))));
    }

    /// Ends the start-up period. Warns of each part that has never been `Ready`; from now on every failure is
    /// a warning.
    pub fn starting_is_over(&self) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.started = true;
        for (part, status) in &parts.said {
            if let Status::Explained(reason) | Status::NotReady(reason) = status
                && !parts.worked.contains(part)
            {
                tracing::warn!(part, reason, "not ready");
            }
        }
    }

    /// Returns whether no part is `NotReady`, and the status of each part.
    pub fn snapshot(&self) -> (bool, BTreeMap<&'static str, Status>) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).said.clone();
        (all_serve(&parts), parts)
    }

    /// Returns whether every part that has reported is `Ready`.
    pub fn all_work(&self) -> bool {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.said.values().all(|status| *status == Status::Ready)
    }
}

/// Returns whether no part is `NotReady`.
fn all_serve(parts: &BTreeMap<&'static str, Status>) -> bool {
    !parts.values().any(|status| matches!(status, Status::NotReady(_)))
}
