//! The status of a region and its shards, as reported to a status request.

use std::sync::Arc;

use crate::domain::ids::{Epoch, Kind, ShardNo};

/// The status of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionStatus {
    /// The kind that the region serves.
    pub kind: Kind,
    /// The shards that the region holds, waits for, or gives up, ordered by number. Other shards are left
    /// out.
    pub shards: Vec<ShardStatus>,
    /// Lists and searches in progress.
    pub queries: usize,
}

/// The status of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The number of the shard.
    pub shard: ShardNo,
    /// The state of the shard.
    pub state: ShardState,
    /// The epoch under which the shard is held, if it is held.
    pub epoch: Option<Epoch>,
    /// The other node involved. For a shard that is given up, the name of the next node. For a shard that is
    /// waited for, the owner of its lease (`node-name#boot-id`).
    pub other: Option<Arc<str>>,
}

/// The state of a shard in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// The shard serves, and its holder relies on its lease now.
    Serving,
    /// The shard runs, but its lease was not renewed in time, so reads are not answered.
    Lapsed,
    /// The shard belongs here, but its lease is not available yet.
    Waiting,
    /// The shard finishes what is in flight, or its lease is being released.
    GivingUp,
}

impl ShardState {
    /// Returns the name used in tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            ShardState::Serving => "serving",
            ShardState::Lapsed => "lapsed",
            ShardState::Waiting => "waiting",
            ShardState::GivingUp => "giving-up",
        }
    }
}
