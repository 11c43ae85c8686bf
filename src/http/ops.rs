//! `/health` and `/metrics`, for operators. They are open, answered at any load, and served by every node
//! whatever its roles.
//!
//! Invariant: anyone can read these responses, so only the fixed first words of a reason are shown. Text from
//! the database, the broker or the system (hosts, users, files) follows after a colon, and is only in the
//! log.

use std::collections::BTreeMap;

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ErrorCode;
use crate::health::{Health, Status};

use super::pipeline::OpenCall;
use super::problem::Failure;
use super::{MetricsText, reply};

/// Health of the node.
#[derive(Serialize, ToSchema)]
#[schema(as = Readiness, example = json!({
    "status": "ready",
    "parts": {"consumer": {"status": "explained", "reason": "joining the group"}, "store": {"status": "ready"}}
}))]
pub(super) struct ReadinessBody {
    /// `ready` or `not ready`.
    #[schema(value_type = String)]
    status: &'static str,
    parts: BTreeMap<&'static str, PartBody>,
}

/// Health of a part of the node.
#[derive(Serialize, ToSchema)]
#[schema(as = Part)]
pub(super) struct PartBody {
    /// `ready`, `not ready`, or `explained`: the part does not work at present, but the node can serve
    /// without it.
    #[schema(value_type = String)]
    status: &'static str,
    /// General reason; the node's log has the details.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct LiveBody {
    status: &'static str,
}

/// Returns 200 if the process responds.
#[utoipa::path(get, path = "/health/live", operation_id = "live", tag = "operations",
    responses((status = 200, description = "It lives.", body = Object, example = json!({"status": "live"}))))]
pub(super) async fn live(_: OpenCall) -> Result<Response, Failure> {
    reply::json(StatusCode::OK, &LiveBody { status: "live" })
}

/// Returns whether the node should receive requests, and the health of each part.
#[utoipa::path(get, path = "/health/ready", operation_id = "ready", tag = "operations",
    responses(
        (status = 200, description = "Every needed part works.", body = ReadinessBody),
        (status = 503, description = "A needed part does not work.", body = ReadinessBody),
    ))]
pub(super) async fn ready(health: Health, _: OpenCall) -> Result<Response, Failure> {
    let (status, body) = readiness(&health);
    reply::json(status, &body)
}

fn readiness(health: &Health) -> (StatusCode, ReadinessBody) {
    let (ready, parts) = health.snapshot();
    let shown = |status| match status {
        Status::Ready => PartBody { status: "ready", reason: None },
        Status::Explained(reason) => PartBody { status: "explained", reason: Some(fixed_words(reason)) },
        Status::NotReady(reason) => PartBody { status: "not ready", reason: Some(fixed_words(reason)) },
    };
    let body = ReadinessBody {
        status: if ready { "ready" } else { "not ready" },
        parts: parts.into_iter().map(|(part, status)| (part, shown(status))).collect(),
    };
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

/// Returns `reason` up to the first colon; the text after it comes from other systems.
fn fixed_words(mut reason: String) -> String {
    reason.truncate(reason.find(": ").unwrap_or(reason.len()));
    reason
}

/// Returns the metrics as Prometheus text.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "operations",
    responses((status = 200, description = "All metrics.", body = String, content_type = "text/plain",
        example = "hygeia_http_requests_total{method=\"GET\",route=\"/health/live\",status=\"2xx\"} 1")))]
pub(super) async fn metrics(text: MetricsText, _: OpenCall) -> Result<Response, Failure> {
    let broken = || Failure::new(ErrorCode::Internal, "The metrics could not be written");
    let text = text.text().await.ok_or_else(broken)?;
    Ok(reply::bytes_of(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn readiness_tells_of_every_part() {
        let health = Health::default();
        health.report("store", Status::Ready);
        health.report("consumer", Status::Explained("joining".into()));
        let (status, body) = readiness(&health);
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            serde_json::to_value(body).expect("JSON"),
            json!({"status": "ready", "parts": {
                "store": {"status": "ready"}, "consumer": {"status": "explained", "reason": "joining"}}})
        );
        let told = "the database is unavailable: canary at canary-host";
        health.report("store", Status::NotReady(told.into()));
        health.report("consumer", Status::Explained("the broker is away: canary-host".into()));
        let (status, body) = readiness(&health);
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body.status, "not ready");
        assert_eq!(body.parts["store"].reason.as_deref(), Some("the database is unavailable"));
        assert_eq!(body.parts["consumer"].reason.as_deref(), Some("the broker is away"));
    }
}
