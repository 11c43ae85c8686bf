//! What a node tells about its sessions.

use std::sync::Arc;

use crate::domain::time::Timestamp;

/// Why a node cannot go on being one of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// Another node with the same name was there before.
    #[error("another live node of the cluster has the same name")]
    NameTaken,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Each sees the other.
    Live,
    /// Connected, and not live yet.
    Half,
    /// Not connected: it is dialled, or dials.
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

/// The way to one other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its name; not known of an address that never answered.
    pub name: Option<Arc<str>>,
    /// Its incarnation, if there is a session.
    pub owner: Option<Arc<str>>,
    /// Where it is reached.
    pub address: String,
    /// How far the session is.
    pub state: SessionState,
    /// How long the last ping took, in microseconds.
    pub round_trip_us: Option<u64>,
    /// Pings missed in a row; of one that is dialled, failures in a row.
    pub misses: u32,
    /// When the session began.
    pub since: Option<Timestamp>,
}
