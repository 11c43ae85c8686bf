//! REST over HTTP/1.1: JSON in and out, problems (RFC 9457) for all that fails.
//!
//! ```text
//! listener ─► axum router ─► pipeline ─────────────────────────────────► handler ─► actors' handles
//!  connections, head size     trace, deadline, token, rate, body,          patients, billing, …
//!  and time, drain            admission; then headers, metrics, a log line
//! ```
//!
//! Invariants:
//! - Every request of a known route is answered before `request_deadline_ms`, be it by a 504 that says whether
//!   the outcome is known.
//! - Nothing is unbounded: connections, heads, bodies, requests in flight, the time a peer may stall.
//! - What is not answered by an open route has a named caller: the handlers' types say so (`pipeline::Handler`).
//! - A handler that reads is dropped when its client goes away, and harms nothing. One that changes something goes on,
//!   and so does the recording of what it did.
//! - Logs hold the route's template and the caller's name of its request (`X-Request-Id`), never a path, a query, a
//!   body or a token.
//! - Every route answers OPTIONS, and HEAD where it answers GET; every answer has the headers of `frame`.
//!
//! What is no HTTP at all, or a head over its limit, hyper answers itself with a bare 400, 414 or 431.

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

/// Where to listen, and every limit of the edge.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// A request is answered within this time after its head was read, whatever happens.
    pub request_deadline_ms: u64,
    /// Requests worked on at once; beyond, they are refused as `OVERLOADED`. Health and metrics do not count, nor
    /// does a request that has not come in whole: a slow sender takes a connection, and no place.
    pub in_flight_max: usize,
    /// Connections held at once, a file descriptor each. Further ones wait in the kernel's queue until one is
    /// free, which `waiting_grace_ms` and `header_timeout_ms` see to. More than `in_flight_max`, so that what is too much is told so.
    pub connections_max: usize,
    /// Where all connections are taken and one more comes, the one that has kept us waiting the longest for a whole
    /// request is ended, if it has for so long; else the new one waits for its turn.
    pub waiting_grace_ms: u64,
    /// Connections that wait in the kernel's queue until we take them. What does not fit has to try again, in steps of
    /// seconds. The kernel may allow fewer (`net.core.somaxconn`).
    pub queued_connections_max: u32,
    /// How long a connection may take to send a whole request head: from its start, and again from the end
    /// of each answer, so that it is the limit of idle connections too.
    pub header_timeout_ms: u64,
    /// The longest request head.
    pub header_max_bytes: usize,
    /// The most header fields.
    pub headers_max: usize,
    /// The longest request body.
    pub body_max_bytes: usize,
    /// How long a client may leave an answer unread before its connection is ended (TCP user timeout, RFC 5482).
    /// One that reads on, however slowly, is not ended: it takes a connection and one answer's memory, and no
    /// place among the requests in flight.
    pub write_stall_ms: u32,
    /// How long requests in flight may still take when the node stops.
    pub drain_timeout_ms: u64,
    /// How long a connection may still bring a request when the node stops. Its answer says that the connection
    /// ends with it. If idle connections were ended at once, a request just sent over one would be lost, and its
    /// client could not know whether it was carried out.
    pub drain_idle_ms: u64,
    /// Proxies of our own, by address or network: of requests that come from them the field `forwarded_by` says from
    /// whom (for the limits of logins, and the audit). None: no field is read.
    pub trusted_proxies: Vec<String>,
    /// The field in which those proxies name the client: `x-forwarded-for`, or `forwarded` (RFC 7239). The other one is
    /// not read.
    pub forwarded_by: ForwardedBy,
    /// Requests of one subject that are worked on per second, in the long run; beyond, they are refused as
    /// `RATE_LIMITED`. Per node: with several fronts a subject has as much at each of them. Zero: no limit.
    ///
    /// On by default, far above what a person or a well-behaved program needs: it is there so that a program run wild,
    /// or a stolen token, cannot take the whole node or carry off every record in a minute. A denial counts as
    /// `rate::DENIAL_COST`, because it is a row of the audit.
    pub rate_limit_per_s: u32,
    /// Requests that a subject may make at once, after a pause.
    pub rate_limit_burst: u32,
    /// Subjects whose requests are counted; the one not seen for the longest time is forgotten first.
    pub rate_limit_subjects_max: usize,
    /// Origins whose pages may ask (CORS), such as `https://app.example.org`. None by default.
    pub cors_origins: Vec<String>,
    /// The shortest answer that is compressed for who accepts it. Zero: none is.
    pub compress_min_bytes: u16,
    /// For how long browsers shall reach this host by TLS alone (RFC 6797), in seconds. Only where TLS stands in front
    /// of the node. Zero: nothing is said.
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
    /// The keys whose values are not allowed, each with what is.
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

/// Why the edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use, not ours, or not allowed.
    #[error("HTTP cannot listen on {address}: {source}; HYGEIA__HTTP__LISTEN sets another address")]
    Listen {
        /// The address wanted.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Says how many requests are being worked on.
pub type InFlight = Arc<dyn Fn() -> usize + Send + Sync>;

/// What the edge speaks to. Build it after the metrics recorder is installed.
#[derive(Clone)]
pub struct AppState {
    /// The patients of the cluster.
    pub patients: PatientHandle,
    /// The accounts of the cluster.
    pub billing: BillingHandle,
    /// The projection.
    pub analytics: AnalyticsHandle,
    /// Who callers are.
    pub auth: Auth,
    /// Users, for administrators.
    pub users: Arc<Users>,
    /// Where accesses are recorded.
    pub audit: AuditHandle,
    /// Where they are read.
    pub audit_reader: AuditReader,
    /// How the parts of this node are.
    pub health: Health,
    /// The metrics of this node.
    pub metrics: MetricsText,
    /// How the cluster is.
    pub cluster: Arc<dyn StatusProvider>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What the edge of a node that is no front speaks to: enough to say how the node is.
#[derive(Clone)]
pub struct OpsState {
    /// How the parts of this node are.
    pub health: Health,
    /// The metrics of this node.
    pub metrics: MetricsText,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What a node that is no front says to all other requests.
const NO_FRONT: &str = "This node has not the role front: it serves /health and /metrics alone";

/// The edge, listening but not yet answering.
pub struct Server {
    listener: listener::Listener,
    router: axum::Router,
    health: Health,
    in_flight: InFlight,
    changes: TaskTracker,
}

/// How long changes whose callers have gone may take to end when the server stops.
const CHANGES_LIMIT: Duration = Duration::from_secs(1);

impl Server {
    /// Takes the address. Connections wait until `serve`.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(settings: Settings, app: AppState) -> Result<Self, Error> {
        let (auth, clock, health) = (app.auth.clone(), Arc::clone(&app.clock), app.health.clone());
        let edge = pipeline::Edge::new(&settings, auth, app.audit.clone(), clock, app);
        let router = pipeline::router(&edge, &routes::ROUTES);
        let listener = listener::Listener::bind(settings).await?;
        Ok(Server { listener, router, health, in_flight: edge.in_flight(), changes: edge.changes() })
    }

    /// As `bind`, for a node that is no front: it says how it is, and nothing else.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind_ops(settings: Settings, ops: OpsState) -> Result<Self, Error> {
        let (clock, health) = (Arc::clone(&ops.clock), ops.health.clone());
        let edge = pipeline::Edge::new(&settings, None, AuditHandle::off(), clock, ops);
        let router = pipeline::router_of_part(&edge, &routes::OPS_ROUTES, NO_FRONT);
        let listener = listener::Listener::bind(settings).await?;
        Ok(Server { listener, router, health, in_flight: edge.in_flight(), changes: edge.changes() })
    }

    /// Says how many requests are being worked on.
    pub fn in_flight(&self) -> InFlight {
        Arc::clone(&self.in_flight)
    }

    /// The address it really has.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Answers until `shutdown` ends; then takes no more connections, ends what is in flight within
    /// `drain_timeout_ms`, and cuts off the rest.
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
