//! What a node says of itself, and what is seen of the whole cluster: the facts behind `GET /cluster` and
//! `hygeia cluster status`. They travel between nodes as JSON, so fields are only ever added, and each may
//! be missing.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::context::TraceContext;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::Kind;
use crate::domain::time::Timestamp;
use crate::store::{self, Store};

/// The kinds that have leases.
const KINDS: [Kind; 3] = [Kind::Patient, Kind::Billing, Kind::Outbox];

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name, the same over restarts.
    pub name: String,
    /// `node-name#boot-id`, as lease rows know it.
    pub owner: String,
    /// What it runs.
    pub roles: Vec<NodeRole>,
    /// Nothing is placed on it: it is about to leave, or cannot do its work now.
    pub draining: bool,
    /// Whether it has answered for itself. If not, what follows is not known.
    pub answers: bool,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How long it has run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_ms: Option<u64>,
    /// The shards that it serves, by kind, as it knows itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<BTreeMap<String, Vec<ShardStatus>>>,
    /// Its sessions with other nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Vec<SessionStatus>>,
    /// HTTP requests that it is working on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// What of it ends, or has to be replaced, by a certain time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<EndStatus>,
}

/// A certificate that ends, or a key that is due to be replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EndStatus {
    /// `node`: its certificate; `authority`: the first of those that it trusts; `token-key`: the key that signs tokens,
    /// which nodes replace by themselves.
    pub what: String,
    /// How long until then; negative if that is over.
    pub in_ms: i64,
}

/// A shard that a node serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ShardStatus {
    /// Its number.
    pub shard: u16,
    /// The epoch that it is held under, if it is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// How it is: `serving`, `waiting`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// A session with another node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct SessionStatus {
    /// The other node; its address, as long as its name is not known.
    pub peer: String,
    /// How far it is: `live`, `half` or `dialling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// How long its last heartbeat took to come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
    /// Questions on their way to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
}

/// A lease, as the database has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct LeaseStatus {
    /// `patient`, `billing` or `outbox`.
    pub kind: String,
    /// Its number.
    pub shard: u16,
    /// Who holds it, or held it last: `node-name#boot-id`.
    pub owner: String,
    /// Its epoch.
    pub epoch: i64,
    /// It has run out or was given up: nobody holds it.
    pub expired: bool,
}

/// What the world has not been told yet. Rows are counted up to a limit
/// (`store::OUTBOX_DEPTH_ROWS_MAX`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct OutboxStatus {
    /// Events that wait for Kafka.
    pub unpublished_rows: u64,
    /// How long the oldest of them has waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<u64>,
    /// Registrations that wait for an account.
    pub unbilled_rows: u64,
    /// Events that are parked, each with all that follows it for its patient: they cannot be read, or failed again
    /// and again.
    pub parked_events: u64,
    /// Registrations that are parked.
    pub parked_registrations: u64,
}

/// The log of the topic that events are published to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicLogStatus {
    /// Its number: 1 for the first, and one more for each that took the place of another.
    pub no: i64,
    /// The topic.
    pub topic: String,
    /// How long it has been in use.
    pub age_ms: u64,
    /// Why it took the place of the one before.
    pub reason: String,
    /// Events of earlier logs are being put back into the outbox for it.
    pub replaying: bool,
    /// How many were.
    pub replayed_rows: u64,
}

/// The cluster, as seen from one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterStatus {
    /// The cluster's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The node that has looked; none if it was only the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_from: Option<String>,
    /// The nodes in sight, in the order of names.
    pub nodes: Vec<NodeStatus>,
    /// Who holds which shard.
    pub leases: Vec<LeaseStatus>,
    /// What waits in the outbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<OutboxStatus>,
    /// Where it is published to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_log: Option<TopicLogStatus>,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

/// Says how the node and its cluster are.
#[async_trait]
pub trait StatusProvider: Send + Sync {
    /// What the node says of itself, without the database. What is not known within `limit` is left out.
    async fn node(&self, limit: Duration) -> NodeStatus;
    /// What it sees of the cluster, for the hop `trace`. What is not known within `limit` is told as unknown.
    async fn cluster(&self, trace: &TraceContext, limit: Duration) -> ClusterStatus;
}

impl ClusterStatus {
    /// Adds what the database knows, asking it for at most `limit`.
    pub async fn ask_database(&mut self, store: &dyn Store, now: Timestamp, limit: Duration) {
        match tokio::time::timeout(limit, facts(store, now)).await {
            Ok(Ok((leases, outbox, topic_log))) => {
                self.leases = leases;
                self.outbox = Some(outbox);
                self.topic_log = topic_log;
            }
            // The reason names hosts and users, and is for the log.
            Ok(Err(error)) => {
                tracing::warn!(%error, "the leases could not be read");
                self.unknown.push("leases and outbox: the database does not answer".to_owned());
            }
            Err(_) => {
                let limit_ms = limit.as_millis();
                self.unknown
                    .push(format!("leases and outbox: no answer of the database within {limit_ms} ms"));
            }
        }
    }
}

type Facts = (Vec<LeaseStatus>, OutboxStatus, Option<TopicLogStatus>);

async fn facts(store: &dyn Store, now: Timestamp) -> store::Result<Facts> {
    let mut leases = Vec::new();
    for kind in KINDS {
        let mut rows = store.leases(kind).await?;
        rows.sort_by_key(|row| row.shard);
        leases.extend(rows.into_iter().map(|row| LeaseStatus {
            kind: kind.as_str().to_owned(),
            shard: row.shard,
            owner: row.owner,
            epoch: row.epoch.0,
            expired: row.expired,
        }));
    }
    let depth = store.outbox_depth().await?;
    let waited = |oldest: Timestamp| u64::try_from((now.0 - oldest.0) / 1_000).unwrap_or(0);
    let outbox = OutboxStatus {
        unpublished_rows: depth.unpublished_rows,
        oldest_ms: depth.oldest_at.map(waited),
        unbilled_rows: depth.unbilled_rows,
        parked_events: depth.parked_events,
        parked_registrations: depth.parked_registrations,
    };
    let topic_log = store.topic_log().await?.map(|log| TopicLogStatus {
        no: log.no,
        topic: log.topic,
        age_ms: waited(log.began_at),
        reason: log.reason,
        replaying: !log.replay_done,
        replayed_rows: log.replayed_rows,
    });
    Ok((leases, outbox, topic_log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_another_version_is_read() {
        let later = r#"{"name": "patient-1", "roles": ["patient"], "mood": "fine", "uptimeMs": 5}"#;
        let status: NodeStatus = serde_json::from_str(later).expect("readable");
        assert_eq!((status.name.as_str(), status.uptime_ms, status.in_flight), ("patient-1", Some(5), None));
        let written = serde_json::to_value(&status).expect("JSON");
        assert!(written.get("inFlight").is_none() && written["roles"][0] == "patient", "{written}");
        let whole: ClusterStatus =
            serde_json::from_str(r#"{"nodes": [{"name": "front"}]}"#).expect("readable");
        assert_eq!((whole.nodes.len(), whole.outbox), (1, None));
    }
}
