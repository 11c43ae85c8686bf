//! The status of a node's sessions.

use std::sync::Arc;

use crate::domain::time::Timestamp;

/// Why a node cannot remain in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// Another live node had the same name first.
    #[error("another live node of the cluster has the same name")]
    NameTaken,
}

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Both nodes see each other.
    Live,
    /// Connected, but not live yet.
    Half,
    /// Not connected: this node dials the other, or waits to be dialled.
    Dialling,
}

impl SessionState {
    /// The name in status output.
    pub const fn as_str(self) -> &'static str {
        match self {
            SessionState::Live => "live",
            SessionState::Half => "half",
            SessionState::Dialling => "dialling",
        }
    }
}

/// The link to one other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The name of the node; `None` for an address that has never answered.
    pub name: Option<Arc<str>>,
    /// The incarnation of the node, if there is a session.
    pub owner: Option<Arc<str>>,
    /// The address of the node.
    pub address: String,
    /// The state of the session.
    pub state: SessionState,
    /// The round-trip time of the last ping, in microseconds.
    pub round_trip_us: Option<u64>,
    /// Consecutive missed pings; while dialling, consecutive failures to connect.
    pub misses: u32,
    /// When the session began.
    pub since: Option<Timestamp>,
}
