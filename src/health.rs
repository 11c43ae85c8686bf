//! What each part says of itself: the source of `/health/ready` and of the gauges behind it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Ready,
    /// It does not work yet or for now, for a reason that does not keep the node from serving.
    Explained(String),
    /// It does not work, and the node cannot serve without it.
    NotReady(String),
}

/// The parts' own words, shared over the node. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, Status>>>,
}

impl Health {
    /// `part` says how it is. The first word of a part must come before the node serves.
    pub fn report(&self, part: &'static str, status: Status) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.get(part) == Some(&status) {
            return;
        }
        metrics::gauge!("hygeia_part_ready", "part" => part)
            .set(f64::from(u8::from(status == Status::Ready)));
        match &status {
            Status::Ready => tracing::info!(part, "ready"),
            Status::Explained(reason) | Status::NotReady(reason) => tracing::warn!(part, reason, "not ready"),
        }
        parts.insert(part, status);
        metrics::gauge!("hygeia_node_ready").set(f64::from(u8::from(all_serve(&parts))));
    }

    /// Whether no part is `NotReady`, and what each says.
    pub fn snapshot(&self) -> (bool, BTreeMap<&'static str, Status>) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (all_serve(&parts), parts)
    }
}

/// Whether no part keeps the node from serving.
fn all_serve(parts: &BTreeMap<&'static str, Status>) -> bool {
    !parts.values().any(|status| matches!(status, Status::NotReady(_)))
}
