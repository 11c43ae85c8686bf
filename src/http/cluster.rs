//! `/cluster`: the status of the cluster. For administrators only, because it names nodes and their work.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::StatusCode;

use crate::actors::status::ClusterStatus;

use super::pipeline::Call;
use super::problem::Failure;
use super::{AppState, reply};

/// How long nodes and the database may take to report their status. A request with less time left gets less.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Returns the status of the cluster.
///
/// It contains the nodes with their roles and sessions, the leases of the shards with owner and epoch, the
/// requests in flight, and the outbox.
#[utoipa::path(get, path = "/cluster", operation_id = "clusterStatus", tag = "operations",
    responses((status = 200, description = "The cluster, as this node sees it. What is not known is left out.",
        body = ClusterStatus, example = json!({
            "cluster": "hygeia", "seenFrom": "front",
            "nodes": [{"name": "front", "owner": "front#01a20381-f501-74ce-bf8f-56f2d3a82b06", "roles": ["front"],
                "draining": false, "answers": true, "version": "0.1.0", "uptimeMs": 60000, "inFlight": 1,
                "sessions": [{"peer": "patient-1", "roundTripUs": 210, "inFlight": 0}]}],
            "leases": [{"kind": "patient", "shard": 0, "owner": "patient-1#01a20381-e2a2-75a5-bd0a-42bb0c312e43",
                "epoch": 3, "expired": false}],
            "outbox": {"unpublishedRows": 0, "unbilledRows": 0, "parkedEvents": 0, "parkedRegistrations": 0},
            "topicLog": {"no": 1, "topic": "patient", "ageMs": 60000, "reason": "no log was known",
                "replaying": false, "replayedRows": 0},
            "unknown": []
        }))))]
pub(super) async fn status(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let left = call.ctx.deadline.since(app.clock.mono());
    // Keep a part of the time for the response itself.
    let limit = ASK_LIMIT.min(left.mul_f64(0.8));
    reply::json(StatusCode::OK, &app.cluster.cluster(&call.ctx.trace, limit).await)
}
