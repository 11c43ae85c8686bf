//! The gRPC server: the service with which other systems open accounts, plus health and, if enabled,
//! reflection.
//!
//! A call passes `connection` (connection limits), `call` (trace, admission, deadline, log), `billing`
//! (authentication, rate limit, permission), and reaches the handle of the accounts. This module uses
//! handles, never actors. Statuses come from the one table in `error.rs`.
//!
//! Invariants:
//! - Every call is answered by its deadline.
//! - Connections, streams, calls, messages, headers and waits are bounded.
//! - No billing call is processed without an authenticated caller (`require_token`). Health and reflection
//!   are open, because they reveal no patient data.

mod billing;
mod call;
mod connection;
mod flood;
mod form;
mod probes;
mod status;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::codec::CompressionEncoding;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

pub use self::billing::Authenticate;
use self::billing::Billing;
use self::call::Envelope;
use self::connection::Limits;
use crate::actors::audit::AuditHandle;
use crate::actors::open_accounts::OpenAccounts;
use crate::domain::time::Clock;
use crate::health::{Health, Status};
use crate::proto::billing_service_server::BillingServiceServer;
use crate::rate::{Limiter, RATE_MAX};

type BillingServer = BillingServiceServer<Billing>;

/// Name of this part in the health report.
const PART: &str = "grpc";
/// How long openings whose callers have disconnected may continue when the server stops.
const CHANGES_LIMIT: Duration = Duration::from_secs(1);
/// The server reads this multiple of `metadata_max_bytes`, so that it can refuse excess metadata with a gRPC
/// status. HTTP/2 itself answers still larger metadata with 431.
const METADATA_READ_FACTOR: u32 = 16;
/// How much one stream, and one connection, may send before the server has read it (RFC 9113, section 5.2).
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// Listen address and limits of the gRPC server.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The address to listen on; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Whether opening an account requires a bearer token. False is allowed only on loopback.
    pub require_token: bool,
    /// Whether an account is opened for any `patientId`, even if there is no such patient.
    pub unknown_patients_allowed: bool,
    /// Whether reflection is served, which shows the available services to every caller.
    pub reflection: bool,
    /// How long a call may take, in milliseconds; a caller's own `grpc-timeout` can shorten it.
    pub timeout_ms: u64,
    /// How many calls may run at the same time.
    pub in_flight_max: usize,
    /// How many calls of one connection may run at the same time.
    pub concurrency_per_connection_max: usize,
    /// How many streams one connection may have open (HTTP/2).
    pub streams_per_connection_max: u32,
    /// How large a message may be, in bytes.
    pub message_max_bytes: usize,
    /// How large the metadata of a call may be, in bytes.
    pub metadata_max_bytes: u32,
    /// How many connections may be open; a further one is closed at once.
    pub connections_max: usize,
    /// How long a new connection may take to start HTTP/2, in milliseconds.
    pub opening_timeout_ms: u64,
    /// How often a connection is pinged, in milliseconds.
    pub keepalive_interval_ms: u64,
    /// How long a ping may remain unanswered before the connection is closed, in milliseconds.
    pub keepalive_timeout_ms: u64,
    /// How long calls in flight may continue when the server stops, in milliseconds.
    pub drain_timeout_ms: u64,
    /// Sustained rate limit of one subject on this node, in calls per second. A denial counts as
    /// `rate::DENIAL_COST` calls. Zero disables the limit.
    pub rate_limit_per_s: u32,
    /// How many calls a subject may make at once after a pause.
    pub rate_limit_burst: u32,
    /// Maximum number of subjects that are counted; the least recently seen subject is forgotten first.
    pub rate_limit_subjects_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9001)),
            require_token: true,
            unknown_patients_allowed: false,
            reflection: false,
            timeout_ms: 5_000,
            in_flight_max: 1_024,
            concurrency_per_connection_max: 64,
            streams_per_connection_max: 128,
            message_max_bytes: 64 * 1024,
            metadata_max_bytes: 16 * 1024,
            connections_max: 1_024,
            opening_timeout_ms: 5_000,
            keepalive_interval_ms: 30_000,
            keepalive_timeout_ms: 10_000,
            drain_timeout_ms: 4_000,
            rate_limit_per_s: 1_000,
            rate_limit_burst: 2_000,
            rate_limit_subjects_max: 10_000,
        }
    }
}

impl Settings {
    /// Returns the keys whose values are not allowed, each with the allowed values.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        const DAY_MS: u64 = 86_400_000;
        let wait = |ms: u64| (1..=DAY_MS).contains(&ms);
        let checks = [
            ("require_token", self.require_token || self.listen.ip().is_loopback(), "true off loopback"),
            ("timeout_ms", wait(self.timeout_ms), "1 to 86400000"),
            ("in_flight_max", self.in_flight_max >= 1, "at least 1"),
            ("concurrency_per_connection_max", self.concurrency_per_connection_max >= 1, "at least 1"),
            ("streams_per_connection_max", self.streams_per_connection_max >= 1, "at least 1"),
            ("message_max_bytes", (1..=1 << 30).contains(&self.message_max_bytes), "1 to 1073741824"),
            ("metadata_max_bytes", self.metadata_max_bytes >= 1_024, "at least 1024"),
            ("connections_max", self.connections_max >= 1, "at least 1"),
            ("opening_timeout_ms", wait(self.opening_timeout_ms), "1 to 86400000"),
            ("keepalive_interval_ms", wait(self.keepalive_interval_ms), "1 to 86400000"),
            ("keepalive_timeout_ms", wait(self.keepalive_timeout_ms), "1 to 86400000"),
            ("drain_timeout_ms", self.drain_timeout_ms <= DAY_MS, "at most 86400000"),
            ("rate_limit_per_s", self.rate_limit_per_s <= RATE_MAX, "0 to 1000000"),
            ("rate_limit_burst", (1..=RATE_MAX).contains(&self.rate_limit_burst), "1 to 1000000"),
            (
                "rate_limit_subjects_max",
                (1..=1_000_000).contains(&self.rate_limit_subjects_max),
                "1 to 1000000",
            ),
        ];
        checks
            .into_iter()
            .filter(|(_, holds, _)| !holds)
            .map(|(key, _, allowed)| (key, allowed.to_owned()))
            .collect()
    }
}

/// The services that the server uses.
#[derive(Clone)]
pub struct GrpcState {
    /// Opens accounts.
    pub billing: Arc<dyn OpenAccounts>,
    /// Authenticates callers by their tokens.
    pub auth: Arc<dyn Authenticate>,
    /// Records accesses before they are answered.
    pub audit: AuditHandle,
    /// Clock for deadlines and durations.
    pub clock: Arc<dyn Clock>,
    /// Health of the node: the source of the health service. The server also reports its own state here.
    pub health: Health,
}

/// Why the server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be bound.
    #[error("cannot listen for gRPC on {address} (grpc.listen): {source}")]
    Listen {
        /// `Settings::listen`
        address: SocketAddr,
        /// The error of the operating system, for example that the port is in use.
        source: io::Error,
    },
    /// The server would be reachable from other hosts without tokens.
    #[error("grpc.require_token=false is allowed only on loopback, and grpc.listen is {0}")]
    TokenNeeded(SocketAddr),
    /// The compiled-in descriptors are inconsistent.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] probes::ReflectionError),
    /// The server ended without being stopped.
    #[error("the gRPC server ended: {0}")]
    Ended(#[from] tonic::transport::Error),
}

/// A bound gRPC server that does not serve yet.
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    settings: Settings,
    state: GrpcState,
}

impl Server {
    /// Binds the address. Connections wait in the kernel's queue until `serve` is called.
    ///
    /// # Errors
    /// `Listen`, `TokenNeeded`.
    pub async fn bind(settings: Settings, state: GrpcState) -> Result<Self, Error> {
        if !settings.require_token && !settings.listen.ip().is_loopback() {
            return Err(Error::TokenNeeded(settings.listen));
        }
        let listening = async {
            let listener = TcpListener::bind(settings.listen).await?;
            let local_addr = listener.local_addr()?;
            Ok((listener, local_addr))
        };
        let (listener, local_addr) =
            listening.await.map_err(|source| Error::Listen { address: settings.listen, source })?;
        Ok(Server { listener, local_addr, settings, state })
    }

    /// Returns the bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` completes. Then it accepts no more connections and calls, lets calls in flight
    /// finish within `drain_timeout_ms`, and cuts off the rest.
    ///
    /// # Errors
    /// `Reflection`, `Ended`.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let Server { listener, local_addr, settings, state } = self;
        let reporter = HealthReporter::new();
        probes::not_serving(&reporter).await;
        let limits = Limits {
            connections_max: settings.connections_max,
            calls_per_connection_max: settings.concurrency_per_connection_max,
            opening_timeout: Duration::from_millis(settings.opening_timeout_ms),
        };
        let reflects = settings.reflection;
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let changes = TaskTracker::new();
        let mut serving = Box::pin(
            transport(&settings, &state)
                .add_service(
                    BillingServiceServer::new(Billing {
                        accounts: Arc::clone(&state.billing),
                        auth: Arc::clone(&state.auth),
                        require_token: settings.require_token,
                        audit: state.audit.clone(),
                        limiter: Limiter::new(
                            settings.rate_limit_per_s,
                            settings.rate_limit_burst,
                            settings.rate_limit_subjects_max,
                        ),
                        clock: Arc::clone(&state.clock),
                        changes: changes.clone(),
                    })
                    .accept_compressed(CompressionEncoding::Gzip)
                    .max_decoding_message_size(settings.message_max_bytes),
                )
                .add_service(
                    HealthServer::new(HealthService::from_health_reporter(reporter.clone()))
                        .accept_compressed(CompressionEncoding::Gzip),
                )
                .add_optional_service(reflects.then(|| probes::described().build_v1()).transpose()?)
                .add_optional_service(reflects.then(|| probes::described().build_v1alpha()).transpose()?)
                .serve_with_incoming_shutdown(
                    connection::accept(listener, limits, cut.clone()),
                    stop.clone().cancelled_owned(),
                ),
        );
        let follower =
            AbortOnDropHandle::new(tokio::spawn(probes::follow(state.health.clone(), reporter.clone())));
        state.health.report(PART, Status::Ready);
        tracing::info!(target: "hygeia::grpc", address = %local_addr, "serving");
        tokio::select! {
            ended = &mut serving => {
                state.health.report(PART, Status::NotReady("the gRPC server ended".into()));
                return Ok(ended?);
            }
            () = shutdown => {}
        }
        drop(follower);
        probes::not_serving(&reporter).await;
        stop.cancel();
        let drained = timeout(Duration::from_millis(settings.drain_timeout_ms), &mut serving).await;
        let ended = match drained {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!(target: "hygeia::grpc", "calls in flight were cut off at the end of the drain");
                cut.cancel();
                serving.await
            }
        };
        changes.close();
        if timeout(CHANGES_LIMIT, changes.wait()).await.is_err() {
            tracing::warn!(target: "hygeia::grpc", "openings whose callers had gone were cut off");
        }
        Ok(ended?)
    }
}

type Transport = tonic::transport::Server<tower::layer::util::Stack<Envelope, tower::layer::util::Identity>>;

/// Returns the HTTP/2 server with its limits and the layer around each call.
fn transport(settings: &Settings, state: &GrpcState) -> Transport {
    let envelope = Envelope::new(
        Arc::clone(&state.clock),
        Duration::from_millis(settings.timeout_ms),
        settings.in_flight_max,
        settings.metadata_max_bytes,
    );
    tonic::transport::Server::builder()
        .max_concurrent_streams(settings.streams_per_connection_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(settings.metadata_max_bytes.saturating_mul(METADATA_READ_FACTOR))
        .http2_keepalive_interval(Some(Duration::from_millis(settings.keepalive_interval_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(settings.keepalive_timeout_ms)))
        .layer(envelope)
}
