//! The links of a node to all others: which nodes are reachable, and how to send to them. This part knows
//! nothing of patients.
//!
//! ```text
//! accept ─┐                                      ┌─ Gate ◄── pings of all sessions
//!         ├─ TLS ─ greeting ─► PeersActor ───────┼─ Desk     stands in for ractor's node server
//! dial ───┘  (net)             (manager)         └─ NodeSession, one for each other node
//!                                  │                  │
//!                                  │             its stream ◄─► frames, past ractor (shortcut)
//!                                  ▼ View (members), on every change
//! ```
//!
//! Invariants:
//! - A peer reaches ractor only after it has proved that it holds the cluster's secret and, with TLS, has
//!   presented a certificate for its name.
//! - There is one session between two nodes, and one incarnation of each name (`admit`).
//! - A node is in the `View` only while both nodes can send to each other, so that an answer can return.
//! - A node that answers no ping for `silence_max` is removed from the `View`, and all messages in transit to
//!   it are lost. A node whose connection breaks is removed at once.
//! - Remote actors of ractor are never stopped, only sessions.
//! - What another node can make this one keep in memory is bounded, whatever it sends (`control`).

mod admit;
mod control;
mod expiry;
mod gate;
mod greeting;
mod manager;
mod net;
mod session;
mod settings;
mod shortcut;
mod status;
mod stream;
mod targets;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use self::gate::Announced;
use self::greeting::{Identity, PROTOCOL};
use self::manager::{PeersActor, PeersArgs, PeersMessage};
use self::net::{Net, Refusals};
use super::address::Address;
use super::members::{FrameSink, Member, Members, View};
use super::supervisor::ChildSpec;
use super::system::ask;
use crate::domain::cluster::NodeRole;
use crate::domain::time::{Clock, Timestamp};
use crate::proto::cluster::PeerState;

pub use self::settings::{Secret, Settings, Tls};
pub use self::status::{Fatal, SessionInfo, SessionState};

/// The log target of this module.
const TARGET: &str = "hygeia::peers";
/// The time limit for an answer of the actor to the handle.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// A node of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The name of the node.
    pub name: Arc<str>,
    /// The address of the node, as `host:port`.
    pub address: String,
}

/// The arguments of `Peers::bind`.
pub struct Args {
    /// This node's name, stable across restarts.
    pub name: Arc<str>,
    /// `name#boot-id`. The boot id of a later start is greater.
    pub owner: Arc<str>,
    /// The roles of this node.
    pub roles: BTreeSet<NodeRole>,
    /// The nodes of the configuration, which may include this one.
    pub nodes: Vec<NodeAddress>,
    /// Addresses of nodes through which to join the cluster.
    pub join: Vec<String>,
    /// The settings.
    pub settings: Settings,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Receives all frames.
    pub frame_sink: FrameSink,
}

/// Why `Peers` could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is missing or invalid.
    #[error("{0}")]
    Settings(String),
    /// The node cannot listen on the address.
    #[error("cluster.listen {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Returns the address under which others reach this node: the configured address, else the address in the
/// list of nodes, else the listening address.
fn advertised(
    settings: &Settings,
    nodes: &[NodeAddress],
    name: &str,
    listening: SocketAddr,
) -> Result<String, Error> {
    let listed = || nodes.iter().find(|node| *node.name == *name).map(|node| node.address.clone());
    let own = || (!listening.ip().is_unspecified()).then(|| listening.to_string());
    settings.advertise.clone().or_else(listed).or_else(own).ok_or_else(|| {
        let reason = "not set: needed by a node that is in no list and listens on every address";
        Error::Settings(format!("cluster.advertise: {reason}"))
    })
}

/// The handle. Cloning is cheap.
#[derive(Clone)]
pub struct Peers {
    args: PeersArgs,
    address: Address<PeersMessage>,
    members: Members,
    fatal: watch::Receiver<Option<Fatal>>,
    listening: SocketAddr,
}

impl Peers {
    /// Binds the listening address. Other nodes are accepted and dialled after `child` has started.
    ///
    /// # Errors
    /// Returns an `Error` if a setting is missing or invalid, or the address cannot be bound.
    pub async fn bind(args: Args) -> Result<Self, Error> {
        let Args { name, owner, roles, nodes, join, settings, clock, frame_sink } = args;
        if let Some((key, reason)) = settings.problems().into_iter().next() {
            return Err(Error::Settings(format!("cluster.{key}: allowed: {reason}")));
        }
        let Some(secret) = &settings.secret else {
            let (key, reason) = settings.missing().unwrap_or_default();
            return Err(Error::Settings(format!("cluster.{key}: {reason}")));
        };
        let names: BTreeSet<_> = nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        let tls = tls::Tls::load(&settings.tls, names)?;
        for certificate in ["node", "authority"] {
            let end = tls.iter().flat_map(|tls| &tls.ends).find(|(known, _)| *known == certificate);
            metrics::gauge!("hygeia_certificate_end_timestamp_seconds", "certificate" => certificate)
                .set(end.map_or(f64::INFINITY, |(_, end)| end.0 as f64 / 1e6));
        }
        let failed = |source| Error::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let listening = listener.local_addr().map_err(failed)?;
        let advertised = advertised(&settings, &nodes, &name, listening)?;
        let announced = Announced::default();
        announced.state.store(Arc::new(PeerState {
            protocol: PROTOCOL,
            cluster: settings.name.clone(),
            name: name.to_string(),
            owner: owner.to_string(),
            roles: roles.iter().map(|role| role.as_str().to_owned()).collect(),
            advertised: advertised.clone(),
            ..PeerState::default()
        }));
        let identity =
            Identity::new(Arc::clone(&name), Arc::clone(&owner), &settings.name, advertised, secret);
        let me = Member { name: Arc::clone(&name), owner, roles, draining: false, wire: None };
        let (view, members) = watch::channel(Arc::new(View::new(name, vec![me.clone()])));
        let (fatal, failed) = watch::channel(None);
        let args = PeersArgs {
            net: Arc::new(Net { identity, tls, settings, refusals: Refusals::default() }),
            listener: Arc::new(listener),
            nodes: nodes.into(),
            join: join.into(),
            me,
            sink: frame_sink,
            clock,
            announced: Arc::new(announced),
            view,
            fatal,
            tickets: Arc::new(AtomicU64::new(1)),
        };
        Ok(Peers { args, address: Address::default(), members, fatal: failed, listening })
    }

    /// Returns the child specification for the node's supervisor.
    pub fn child(&self) -> ChildSpec {
        ChildSpec::new("peers", || PeersActor, self.args.clone(), self.address.clone())
    }

    /// Returns a receiver of the live nodes, which is updated on every change.
    pub fn members(&self) -> Members {
        self.members.clone()
    }

    /// Returns the address on which this node listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.listening
    }

    /// Announces to all other nodes whether this node is draining. While it is, no shard is placed on it. A
    /// node drains before it leaves, and while it cannot do its work.
    pub fn set_draining(&self, draining: bool) {
        self.args.announced.set_draining(draining);
        self.address.cast(PeersMessage::Draining);
    }

    /// Returns when certificates expire: the node's own (`node`), and the first of its authorities
    /// (`authority`).
    pub fn certificate_ends(&self) -> Vec<(&'static str, Timestamp)> {
        self.args.net.tls.as_ref().map(|tls| tls.ends.clone()).unwrap_or_default()
    }

    /// Returns the state of the links to all known nodes. Empty if the actor does not answer.
    pub async fn sessions(&self) -> Vec<SessionInfo> {
        ask(&self.address, PeersMessage::Sessions, ANSWER_LIMIT).await.unwrap_or_default()
    }

    /// Resolves when the node must not continue and its process must end.
    pub async fn failed(&self) -> Fatal {
        let mut fatal = self.fatal.clone();
        match fatal.wait_for(Option::is_some).await.map(|fatal| *fatal) {
            Ok(Some(fatal)) => fatal,
            // The sender is gone, so no failure can be reported.
            _ => std::future::pending().await,
        }
    }

    /// Ends all sessions, and accepts and opens no more.
    pub async fn stop(&self) {
        let _ = ask(&self.address, PeersMessage::Stop, ANSWER_LIMIT).await;
    }
}
