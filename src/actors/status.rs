//! The status of a node and of the whole cluster, for `GET /cluster` and `hygeia cluster status`. Nodes send
//! it to each other as JSON, so fields are only ever added, and every field may be missing.

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
    /// The node's name, stable across restarts.
    pub name: String,
    /// `node-name#boot-id`: names this incarnation in lease rows.
    pub owner: String,
    /// The node's roles.
    pub roles: Vec<NodeRole>,
    /// Whether no shard is placed on the node, because it is about to leave or cannot do its work now.
    pub draining: bool,
    /// Whether the node has answered itself. If not, the fields below are unknown.
    pub answers: bool,
    /// The version of its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The time since its start, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_ms: Option<u64>,
    /// The shards that the node serves, by kind, as reported by the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<BTreeMap<String, Vec<ShardStatus>>>,
    /// The node's sessions with other nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Vec<SessionStatus>>,
    /// HTTP requests in progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// Certificates and keys of the node that expire or are due to be replaced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<EndStatus>,
}

/// A certificate that expires, or a key that is due to be replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EndStatus {
    /// `node`: the node's certificate; `authority`: the first trusted authority to expire; `token-key`: the
    /// key that signs tokens, which nodes replace automatically.
    pub what: String,
    /// The time until then, in milliseconds; negative if it has passed.
    pub in_ms: i64,
}

/// A shard that a node serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ShardStatus {
    /// The number of the shard.
    pub shard: u16,
    /// The epoch of the lease, if the node holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// The state of the shard: `serving`, `lapsed`, `waiting` or `giving-up`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// A session with another node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct SessionStatus {
    /// The name of the other node, or its address while the name is unknown.
    pub peer: String,
    /// The state of the session: `live`, `half` or `dialling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The round-trip time of the last heartbeat, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
    /// Requests to the other node that are not yet answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
}

/// A lease, as stored in the database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct LeaseStatus {
    /// `patient`, `billing` or `outbox`.
    pub kind: String,
    /// The number of the shard.
    pub shard: u16,
    /// The current or last holder: `node-name#boot-id`.
    pub owner: String,
    /// The epoch of the lease.
    pub epoch: i64,
    /// Whether the lease has expired or was given up, so that no node holds it.
    pub expired: bool,
}

/// The rows that wait in the outbox. Rows are counted up to a limit (`store::OUTBOX_DEPTH_ROWS_MAX`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct OutboxStatus {
    /// Events that are not yet published to Kafka.
    pub unpublished_rows: u64,
    /// The age of the oldest of them, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<u64>,
    /// Registrations whose account is not yet opened.
    pub unbilled_rows: u64,
    /// Parked events. An event is parked when it cannot be read or fails repeatedly; the later events of its
    /// patient wait with it.
    pub parked_events: u64,
    /// Parked registrations.
    pub parked_registrations: u64,
}

/// The log of the topic that events are published to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicLogStatus {
    /// The number of the log: 1 for the first, and one more for each log that replaced another.
    pub no: i64,
    /// The name of the topic.
    pub topic: String,
    /// How long the log has been in use, in milliseconds.
    pub age_ms: u64,
    /// Why the log replaced the previous one.
    pub reason: String,
    /// Whether events of earlier logs are being put back into the outbox.
    pub replaying: bool,
    /// The number of events that were put back.
    pub replayed_rows: u64,
}

/// The cluster, as seen from one node or from the database alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterStatus {
    /// The name of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The node that reports; missing if only the database was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_from: Option<String>,
    /// The reachable nodes, sorted by name.
    pub nodes: Vec<NodeStatus>,
    /// The leases of all shards.
    pub leases: Vec<LeaseStatus>,
    /// The rows that wait in the outbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<OutboxStatus>,
    /// The log of the topic that events are published to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_log: Option<TopicLogStatus>,
    /// The facts that could not be determined, each with the reason.
    pub unknown: Vec<String>,
}

/// Reports the status of the node and of its cluster.
#[async_trait]
pub trait StatusProvider: Send + Sync {
    /// Returns the node's own status, without the database. Facts that are unknown within `limit` are left
    /// out.
    async fn node(&self, limit: Duration) -> NodeStatus;
    /// Returns the cluster as the node sees it, as part of the trace of `trace`. Facts that are unknown
    /// within `limit` are listed as unknown.
    async fn cluster(&self, trace: &TraceContext, limit: Duration) -> ClusterStatus;
}

impl ClusterStatus {
    /// Adds the facts from the database, and waits for it at most `limit`.
    pub async fn ask_database(&mut self, store: &dyn Store, now: Timestamp, limit: Duration) {
        match tokio::time::timeout(limit, facts(store, now)).await {
            Ok(Ok((leases, outbox, topic_log))) => {
                self.leases = leases;
                self.outbox = Some(outbox);
                self.topic_log = topic_log;
            }
            // The error names hosts and users, so it goes only to the log.
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
