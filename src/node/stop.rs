//! How a node is told to stop, and the order in which it does.
//!
//! Every wait has a limit, and all together have one too, so that a node is gone within ten seconds:
//! what orchestrators give a process before they kill it.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use super::Actors;
use crate::actors::billing_relay::BillingRelayMessage;
use crate::actors::kafka_bridge::BridgeMessage;
use crate::actors::system;
use crate::{grpc, http};

/// How long relay and bridge may take to end what they have in hand. What they do not
/// finish is still in the outbox.
const FOLLOWERS_LIMIT: Duration = Duration::from_secs(1);
/// How long the regions may take to end commits and give up their leases. Leases that are not given up
/// run out.
const REGIONS_LIMIT: Duration = Duration::from_secs(3);
/// How long draining may take in all.
pub(super) const STOP_LIMIT: Duration = Duration::from_millis(5_500);
/// How long the actors may take to end after that.
pub(super) const END_LIMIT: Duration = Duration::from_millis(500);
/// How long the database may take to close its connections.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_millis(500);
/// How long the broker may take to hear that analytics leaves its group. If it does not hear it, nobody reads the
/// partitions until `kafka.session_timeout_ms` is over.
pub(super) const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// The signals that a node hears.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// A terminal that is closed, or an operator who thinks of a daemon that reads its settings anew. Settings are read
    /// at the start alone, so the node stops, and whoever watches over it starts it again.
    hang_up: Signal,
    /// They mean nothing here, and would end the process at once.
    ignored: [Signal; 2],
}

impl Signals {
    /// From now on these signals no longer end the process at once.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            ignored: [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?],
        })
    }

    /// The name of the next one that stops the node.
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

/// The servers at the edges, each a task that ends when it has drained.
pub(super) struct Edges {
    pub(super) http: JoinHandle<http::Drained>,
    /// Where billing is.
    pub(super) grpc: Option<JoinHandle<Result<(), grpc::Error>>>,
}

impl Edges {
    /// Waits until all have drained; each has its own limit.
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

/// Has the actors end what they have in hand, in the reverse of the way of an event. Analytics needs no
/// word: a batch that it does not finish leaves no trace, and is read again.
pub(super) async fn drain(actors: &Actors) {
    let relay = system::ask(&actors.relay, BillingRelayMessage::Drain, FOLLOWERS_LIMIT);
    let bridge = system::ask(&actors.bridge, BridgeMessage::Drain, FOLLOWERS_LIMIT);
    let (relay, bridge) = tokio::join!(relay, bridge);
    let patients = actors.patients.drain(REGIONS_LIMIT);
    let accounts = actors.accounts.drain(REGIONS_LIMIT);
    let (patients, accounts) = tokio::join!(patients, accounts);
    // What the node does not run has nothing in hand.
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
