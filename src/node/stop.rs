//! The signals that stop a node, and the order in which it stops.
//!
//! Every wait has a limit, and so has their sum. A node stops within ten seconds, which is the time that
//! orchestrators give a process before they kill it.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use super::Actors;
use crate::actors::billing_relay::BillingRelayMessage;
use crate::actors::kafka_bridge::BridgeMessage;
use crate::actors::system;
use crate::{grpc, http};

/// How long relay and bridge may take to finish their current work. Unfinished rows stay in the outbox.
const FOLLOWERS_LIMIT: Duration = Duration::from_secs(1);
/// How long the regions may take to finish commits and release their leases. A lease that is not released
/// expires.
const REGIONS_LIMIT: Duration = Duration::from_secs(3);
/// The limit of all draining together.
pub(super) const STOP_LIMIT: Duration = Duration::from_millis(5_500);
/// How long the actors may take to stop after that.
pub(super) const END_LIMIT: Duration = Duration::from_millis(500);
/// How long the database may take to close its connections.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_millis(500);
/// How long leaving the consumer group may take. If the broker is not told, the partitions have no consumer
/// until `kafka.session_timeout_ms` has passed.
pub(super) const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// The signals that a node handles.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// SIGHUP: a closed terminal, or an operator who expects the settings to be reloaded. Settings are only
    /// read at start, so the node stops, and its service manager starts it again.
    hang_up: Signal,
    /// SIGUSR1 and SIGUSR2. They have no meaning here, but by default they would kill the process.
    ignored: [Signal; 2],
}

impl Signals {
    /// Registers the handlers, so that these signals no longer end the process at once.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            ignored: [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?],
        })
    }

    /// Waits for a signal that stops the node, and returns its name.
    pub(super) async fn next(&mut self) -> &'static str {
        let [user_1, user_2] = &mut self.ignored;
        loop {
            let ignored = tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => return "SIGHUP",
                _ = user_1.recv() => "SIGUSR1",
                _ = user_2.recv() => "SIGUSR2",
            };
            tracing::info!(signal = ignored, "ignored");
        }
    }
}

/// The servers of the edges. Each is a task that ends when it has drained.
pub(super) struct Edges {
    pub(super) http: JoinHandle<http::Drained>,
    /// Present on a billing node.
    pub(super) grpc: Option<JoinHandle<Result<(), grpc::Error>>>,
}

impl Edges {
    /// Waits until all edges have drained. Each edge has its own limit.
    pub(super) async fn ended(self) {
        match self.http.await {
            Ok(drained) if drained.cut_off > 0 => {
                tracing::warn!(connections = drained.cut_off, "HTTP connections were cut off");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the HTTP server ended badly"),
        }
        let Some(grpc) = self.grpc else { return };
        match grpc.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the gRPC server ended badly"),
            Err(error) => tracing::error!(%error, "the gRPC server ended badly"),
        }
    }
}

/// Makes the actors finish their current work: first relay and bridge, then the regions. Analytics is not
/// drained: an unfinished batch leaves no trace and is read again.
pub(super) async fn drain(actors: &Actors) {
    let relay = system::ask(&actors.relay, BillingRelayMessage::Drain, FOLLOWERS_LIMIT);
    let bridge = system::ask(&actors.bridge, BridgeMessage::Drain, FOLLOWERS_LIMIT);
    let (relay, bridge) = tokio::join!(relay, bridge);
    let patients = actors.patients.drain(REGIONS_LIMIT);
    let accounts = actors.accounts.drain(REGIONS_LIMIT);
    let (patients, accounts) = tokio::join!(patients, accounts);
    // An actor that the node does not run counts as drained.
    let relay = actors.relay.actor().is_none() || relay.is_some();
    let bridge = actors.bridge.actor().is_none() || bridge == Some(true);
    if !(relay && bridge && patients && accounts) {
        tracing::warn!(
            relay,
            bridge,
            patients,
            accounts,
            "not drained in time; what is left is in the outbox"
        );
    }
}
