//! REST over HTTP/1.1 with JSON bodies. Every failure is a problem document (RFC 9457).
//!
//! ```text
//! listener ─► axum router ─► pipeline ─────────────────────────────────► handler ─► actors' handles
//!  connections, head size     trace, deadline, token, rate, body,          patients, billing, …
//!  and time, drain            admission; then headers, metrics, a log line
//! ```
//!
//! Invariants:
//! - Every request of a known route is answered within `request_deadline_ms`. If the time is up, the 504 says
//!   whether the outcome is known.
//! - Everything is bounded: connections, heads, bodies, requests in flight, and the time that a peer may
//!   stall.
//! - Only open routes are answered without an authenticated caller. The types of the handlers enforce this
//!   (`pipeline::Handler`).
//! - A handler that reads is dropped when its client disconnects. A handler that changes something continues,
//!   and its access is recorded.
//! - Logs contain the route template and the client's request id (`X-Request-Id`), never a path, a query, a
//!   body or a token.
//! - Every route answers OPTIONS, and HEAD where it answers GET. Every response has the headers of `frame`.
//!
//! hyper itself answers input that is not HTTP, or a head over its limit, with a bare 400, 414 or 431.

mod accesses;
mod analytics;
mod audit;
mod billing;
mod body;
mod break_glass;
mod client_address;
mod cluster;
mod compress;
mod conditional;
mod cors;
mod cursor;
mod docs;
mod fields;
mod frame;
mod history;
mod idempotency;
mod listener;
mod login;
mod message;
mod observe;
mod ops;
mod patch;
mod patients;
mod pipeline;
mod problem;
mod query;
mod rate;
mod replace;
mod reply;
mod routes;
mod scrape;
mod search;
mod seats;
mod security;
mod shown;
mod stage;
#[cfg(test)]
mod tests;
mod timer;
mod users;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio_util::task::TaskTracker;

use crate::actors::analytics::AnalyticsHandle;
use crate::actors::audit::{AuditHandle, AuditReader};
use crate::actors::billing::BillingHandle;
use crate::actors::patients::PatientHandle;
use crate::actors::status::StatusProvider;
use crate::auth::{Auth, Users};
use crate::domain::time::Clock;
use crate::health::{Health, Status};
use crate::rate::RATE_MAX;

pub use client_address::{ForwardedBy, TrustedProxies};
pub use docs::openapi;
pub use listener::Drained;
pub use scrape::MetricsText;

/// Listen address and limits of the HTTP server.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address and port. Port 0 lets the system choose a free port.
    pub listen: SocketAddr,
    /// Time limit of a request in milliseconds, from the moment its head was read until it is answered.
    pub request_deadline_ms: u64,
    /// Maximum number of requests processed at the same time; further requests are refused with `OVERLOADED`.
    /// Health and metrics requests do not count. A request counts only after its body has arrived, so a slow
    /// sender occupies a connection but no slot.
    pub in_flight_max: usize,
    /// Maximum number of open connections; each one takes a file descriptor. Further connections wait in the
    /// kernel's queue. Set it higher than `in_flight_max`, so that excess requests are answered with
    /// `OVERLOADED`.
    pub connections_max: usize,
    /// When all connections are in use and one more arrives, the server closes the connection that has waited
    /// longest for a complete request, if that wait is at least this long (milliseconds). Otherwise the new
    /// connection waits.
    pub waiting_grace_ms: u64,
    /// Length of the kernel's queue of connections not yet accepted. A client that finds the queue full
    /// retries after seconds. The kernel may impose a lower limit (`net.core.somaxconn`).
    pub queued_connections_max: u32,
    /// How long a connection may take to send a complete request head, in milliseconds. The time starts with
    /// the connection and again after each response, so it also limits idle connections.
    pub header_timeout_ms: u64,
    /// Maximum size of a request head in bytes.
    pub header_max_bytes: usize,
    /// Maximum number of header fields of a request.
    pub headers_max: usize,
    /// Maximum size of a request body in bytes.
    pub body_max_bytes: usize,
    /// How long a client may leave a response unread before its connection is closed, in milliseconds (TCP
    /// user timeout, RFC 5482). A client that keeps reading, however slowly, is not disconnected: it occupies
    /// a connection and the memory of one response, but no slot of the requests in flight.
    pub write_stall_ms: u32,
    /// How long requests in flight may continue when the node stops, in milliseconds.
    pub drain_timeout_ms: u64,
    /// How long an open connection may still send a request when the node stops, in milliseconds. The
    /// response announces that the connection closes. If idle connections were closed at once, a request just
    /// sent could be lost, and its client could not know whether it was carried out.
    pub drain_idle_ms: u64,
    /// Addresses or networks of the operator's own proxies. The client address of their requests is read from
    /// the field `forwarded_by`; login limits and the audit use it. An empty list means that no field is
    /// read.
    pub trusted_proxies: Vec<String>,
    /// The field in which those proxies name the client: `x-forwarded-for`, or `forwarded` (RFC 7239). The
    /// other field is ignored.
    pub forwarded_by: ForwardedBy,
    /// Sustained rate limit of one subject, in requests per second; further requests are refused with
    /// `RATE_LIMITED`. Each node counts for itself, so with several fronts a subject has this limit at each
    /// of them. Zero disables the limit.
    ///
    /// The default is far above what a person or a well-behaved program needs. It keeps a runaway program, or
    /// the holder of a stolen token, from overloading the node or reading every record within a minute. A
    /// denial counts as `rate::DENIAL_COST` requests, because it adds a row to the audit.
    pub rate_limit_per_s: u32,
    /// Number of requests that a subject may send at once after a pause.
    pub rate_limit_burst: u32,
    /// Maximum number of subjects that are counted. The least recently seen subject is forgotten first.
    pub rate_limit_subjects_max: usize,
    /// Origins whose pages may send cross-origin requests (CORS), such as `https://app.example.org`. Empty by
    /// default.
    pub cors_origins: Vec<String>,
    /// Minimum size of a response that is compressed, in bytes, if the client accepts a supported coding.
    /// Zero disables compression.
    pub compress_min_bytes: u16,
    /// The `max-age` of `Strict-Transport-Security` (RFC 6797), in seconds. Set it only where a TLS proxy is
    /// in front of the node. Zero omits the header.
    pub hsts_max_age_s: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            request_deadline_ms: 5000,
            in_flight_max: 256,
            connections_max: 768,
            waiting_grace_ms: 500,
            queued_connections_max: 4096,
            header_timeout_ms: 10_000,
            header_max_bytes: 16_384,
            headers_max: 64,
            body_max_bytes: 65_536,
            write_stall_ms: 10_000,
            drain_timeout_ms: 4000,
            drain_idle_ms: 500,
            trusted_proxies: Vec::new(),
            forwarded_by: ForwardedBy::default(),
            rate_limit_per_s: 1000,
            rate_limit_burst: 2000,
            rate_limit_subjects_max: 10_000,
            cors_origins: Vec::new(),
            compress_min_bytes: 1024,
            hsts_max_age_s: 0,
        }
    }
}

impl Settings {
    /// Returns the keys whose values are not allowed, each with the allowed values.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let within = |value: u64, least: u64, most: u64| {
            (!(least..=most).contains(&value)).then(|| format!("{least} to {most}"))
        };
        let checks = [
            ("request_deadline_ms", within(self.request_deadline_ms, 100, 600_000)),
            ("in_flight_max", within(self.in_flight_max as u64, 1, 1_000_000)),
            ("connections_max", within(self.connections_max as u64, 1, 1_000_000)),
            ("waiting_grace_ms", within(self.waiting_grace_ms, 1, 600_000)),
            ("queued_connections_max", within(self.queued_connections_max.into(), 1, 65_535)),
            ("header_timeout_ms", within(self.header_timeout_ms, 1, 600_000)),
            ("header_max_bytes", within(self.header_max_bytes as u64, 8192, 1_048_576)),
            ("headers_max", within(self.headers_max as u64, 16, 1024)),
            ("body_max_bytes", within(self.body_max_bytes as u64, 1024, 16_777_216)),
            ("write_stall_ms", within(u64::from(self.write_stall_ms), 1, 600_000)),
            ("drain_timeout_ms", within(self.drain_timeout_ms, 0, 600_000)),
            ("drain_idle_ms", within(self.drain_idle_ms, 0, 60_000)),
            (
                "trusted_proxies",
                TrustedProxies::parse(&self.trusted_proxies, self.forwarded_by)
                    .err()
                    .map(|_| "addresses, and networks such as 10.0.0.0/8".to_owned()),
            ),
            ("compress_min_bytes", within(self.compress_min_bytes.into(), 0, 60_000)),
            ("hsts_max_age_s", within(self.hsts_max_age_s.into(), 0, 315_360_000)),
            ("rate_limit_per_s", within(self.rate_limit_per_s.into(), 0, RATE_MAX.into())),
            ("rate_limit_burst", within(self.rate_limit_burst.into(), 1, RATE_MAX.into())),
            ("rate_limit_subjects_max", within(self.rate_limit_subjects_max as u64, 1, 1_000_000)),
            ("cors_origins", cors::problem(&self.cors_origins)),
        ];
        checks.into_iter().filter_map(|(key, allowed)| allowed.map(|allowed| (key, allowed))).collect()
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use, does not belong to this host, or is not permitted.
    #[error("HTTP cannot listen on {address}: {source}; HYGEIA__HTTP__LISTEN sets another address")]
    Listen {
        /// The address of `Settings::listen`.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// Returns the number of requests being processed.
pub type InFlight = Arc<dyn Fn() -> usize + Send + Sync>;

/// The services that the handlers use. Build it after the metrics recorder is installed.
#[derive(Clone)]
pub struct AppState {
    /// Patients, on any node of the cluster.
    pub patients: PatientHandle,
    /// Billing accounts, on any node of the cluster.
    pub billing: BillingHandle,
    /// The analytics projection.
    pub analytics: AnalyticsHandle,
    /// Authentication of callers.
    pub auth: Auth,
    /// User management, for administrators.
    pub users: Arc<Users>,
    /// Records accesses.
    pub audit: AuditHandle,
    /// Reads recorded accesses.
    pub audit_reader: AuditReader,
    /// Health of the parts of this node.
    pub health: Health,
    /// The metrics of this node.
    pub metrics: MetricsText,
    /// Status of the cluster.
    pub cluster: Arc<dyn StatusProvider>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// The services for a node without the front role: enough to report the health and metrics of the node.
#[derive(Clone)]
pub struct OpsState {
    /// Health of the parts of this node.
    pub health: Health,
    /// The metrics of this node.
    pub metrics: MetricsText,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// Answer of a node without the front role to all other requests.
const NO_FRONT: &str = "This node has not the role front: it serves /health and /metrics alone";

/// A bound HTTP server that does not serve yet.
pub struct Server {
    listener: listener::Listener,
    router: axum::Router,
    health: Health,
    in_flight: InFlight,
    changes: TaskTracker,
}

/// How long changes whose clients have disconnected may continue when the server stops.
const CHANGES_LIMIT: Duration = Duration::from_secs(1);

impl Server {
    /// Binds the address. Connections wait in the kernel's queue until `serve` is called.
    ///
    /// # Errors
    /// `Listen`: the address cannot be bound.
    pub async fn bind(settings: Settings, app: AppState) -> Result<Self, Error> {
        let (auth, clock, health) = (app.auth.clone(), Arc::clone(&app.clock), app.health.clone());
        let edge = pipeline::Edge::new(&settings, auth, app.audit.clone(), clock, app);
        let router = pipeline::router(&edge, &routes::ROUTES);
        let listener = listener::Listener::bind(settings).await?;
        Ok(Server { listener, router, health, in_flight: edge.in_flight(), changes: edge.changes() })
    }

    /// Like `bind`, for a node without the front role: serves health and metrics only.
    ///
    /// # Errors
    /// `Listen`: the address cannot be bound.
    pub async fn bind_ops(settings: Settings, ops: OpsState) -> Result<Self, Error> {
        let (clock, health) = (Arc::clone(&ops.clock), ops.health.clone());
        let edge = pipeline::Edge::new(&settings, None, AuditHandle::off(), clock, ops);
        let router = pipeline::router_of_part(&edge, &routes::OPS_ROUTES, NO_FRONT);
        let listener = listener::Listener::bind(settings).await?;
        Ok(Server { listener, router, health, in_flight: edge.in_flight(), changes: edge.changes() })
    }

    /// Returns a function that counts the requests being processed.
    pub fn in_flight(&self) -> InFlight {
        Arc::clone(&self.in_flight)
    }

    /// Returns the bound address; it differs from `Settings::listen` if that has port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` completes. Then it accepts no more connections, lets requests in flight finish
    /// within `drain_timeout_ms`, and cuts off the rest.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Drained {
        self.health.report("http", Status::Ready);
        let health = self.health;
        let stopping = async move {
            shutdown.await;
            health.report("http", Status::NotReady("draining".into()));
        };
        let drained = self.listener.serve(self.router, stopping).await;
        self.changes.close();
        if tokio::time::timeout(CHANGES_LIMIT, self.changes.wait()).await.is_err() {
            tracing::warn!(changes = self.changes.len(), "changes whose callers had gone were cut off");
        }
        drained
    }
}
