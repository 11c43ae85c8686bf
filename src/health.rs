//! What each part says of itself: the source of `/health/ready` and of the gauges behind it.

use std::collections::{BTreeMap, BTreeSet};
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
    parts: Arc<Mutex<Parts>>,
}

#[derive(Default)]
struct Parts {
    said: BTreeMap<&'static str, Status>,
    /// Those that have worked once: what is wrong with them from then on is no start.
    worked: BTreeSet<&'static str>,
    /// The node has had its time to start.
    started: bool,
}

impl Health {
    /// `part` says how it is. The first word of a part must come before the node serves.
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
                // To start takes its time, and needs nobody's attention.
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

    /// The time to start is over: warns of each part that does not work yet, and of every further one from now on.
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

    /// Whether no part is `NotReady`, and what each says.
    pub fn snapshot(&self) -> (bool, BTreeMap<&'static str, Status>) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).said.clone();
        (all_serve(&parts), parts)
    }

    /// Whether each part that has said a word works.
    pub fn all_work(&self) -> bool {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.said.values().all(|status| *status == Status::Ready)
    }
}

/// Whether no part keeps the node from serving.
fn all_serve(parts: &BTreeMap<&'static str, Status>) -> bool {
    !parts.values().any(|status| matches!(status, Status::NotReady(_)))
}
