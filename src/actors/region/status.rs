//! What a region tells of its shards to whoever asks how the cluster is.

use std::sync::Arc;

use crate::domain::ids::{Epoch, Kind, ShardNo};

/// How a region is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionStatus {
    /// Whose region.
    pub kind: Kind,
    /// The shards that it holds, waits for, or gives up, in their order. The others are none of its own.
    pub shards: Vec<ShardStatus>,
    /// Lists and searches under way.
    pub queries: usize,
}

/// How one shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which shard.
    pub shard: ShardNo,
    /// How it is.
    pub state: ShardState,
    /// The epoch it is held under, if it is held.
    pub epoch: Option<Epoch>,
    /// Who else it concerns: whom it is given to (a node's name), or who still holds it while it is waited
    /// for (`node-name#boot-id`).
    pub other: Option<Arc<str>>,
}

/// How a shard is in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// Served, under a lease that is believed at this moment.
    Serving,
    /// It runs, but its lease could not be renewed in time: reads are not answered.
    Lapsed,
    /// It belongs here, and its lease is not to be had yet.
    Waiting,
    /// What is in flight ends, or its lease is being released.
    GivingUp,
}

impl ShardState {
    /// The name, for tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            ShardState::Serving => "serving",
            ShardState::Lapsed => "lapsed",
            ShardState::Waiting => "waiting",
            ShardState::GivingUp => "giving-up",
        }
    }
}
